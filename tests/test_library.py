import dataclasses
import inspect
import os
import re
import subprocess
import sys
from functools import partial
from types import ModuleType
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, reference, some
from jax.sharding import PartitionSpec as P
from sklearn.linear_model import LogisticRegression

import semalign_jax as sa
from semalign_jax.stitching import head_accuracy


def test_map_algebra():
    first, second = (sa.fit_affine(*anchors(30, d, 5, cond=3, seed=d)) for d in (5, 5))
    x = anchors(7, 5, 5)[0]
    np.testing.assert_allclose((first >> second)(x), second(first(x)), atol=1e-9)
    np.testing.assert_allclose(first.inverse()(first(x)), x, atol=1e-8)
    usual = x @ np.asarray(first.weight) + np.asarray(first.bias)
    np.testing.assert_allclose(first(x), usual, atol=1e-9)
    np.testing.assert_allclose(sa.identity_map(2, 3)(np.ones((1, 2), np.float32)), [[1, 1, 0]])
    batch = jax.tree_util.tree_map(lambda a: jnp.stack([a, a]), first)
    np.testing.assert_allclose(batch(x)[1], first(x))
    np.testing.assert_allclose(first(np.stack([x, 2 * x]))[1], first(2 * x), atol=1e-12)
    np.testing.assert_allclose(first(x[0]), first(x)[0], atol=1e-12)
    with pytest.raises(ValueError, match="5 features"):
        first(np.ones((2, 4)))
    with pytest.raises(ValueError, match="rcond must be finite and >= 0"):
        first.inverse(rcond=-1.0)


NAMESPACES = [one for name in sa.__all__ if isinstance(one := getattr(sa, name), ModuleType)]
CLASSES = {
    found
    for module in (*NAMESPACES, sa.metrics.intervals)
    for name in module.__all__
    if hasattr(found := getattr(module, name), "_fields") or dataclasses.is_dataclass(found)
}
#: Their `Any` is no array, but hashed by compiled code, or of another library.
WITHOUT_ARRAYS = {sa.encoders.EncoderConfig, sa.encoders.ImagePreprocessor, sa.SweepMethod}
WITHOUT_ARRAYS |= {sa.encoders.TextPreprocessor, sa.plot.Look}


@pytest.mark.parametrize(
    "kind", sorted(CLASSES - WITHOUT_ARRAYS, key=repr), ids=lambda kind: kind.__name__
)
def test_what_holds_arrays_can_be_compared(kind):
    hints = {name: str(hint) for name, hint in get_type_hints(kind).items()}
    arrays = [name for name, hint in hints.items() if re.match("(?!.*Callable).*(rray|Any)", hint)]

    def made(number):
        values = {name: {"a": np.arange(3) + number} if name in arrays else "b" for name in hints}
        if hasattr(kind, "_fields"):
            return kind(**values)
        found = object.__new__(kind)
        for name, value in values.items():
            object.__setattr__(found, name, value)
        return found

    one = made(0)
    assert one == one
    assert not one != one
    # Data and encoders are equal to themselves alone, results to those of equal values.
    by_value = kind.__eq__ is not object.__eq__
    assert (one == made(0)) is by_value
    assert (one != made(0)) is not by_value
    if arrays:
        assert (one == made(1)) is False
        assert one != made(1)
    assert one != 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_saved_map_is_the_same(tmp_path, dtype):
    x, y = (jnp.asarray(a, dtype) for a in anchors(10, 3, 4))
    fitted = sa.fit_affine(x, y)
    sa.save_map(fitted, tmp_path / "map.safetensors")
    loaded = sa.load_map(tmp_path / "map.safetensors")
    for name in ("weight", "source_offset", "target_offset"):
        assert getattr(loaded, name).dtype == dtype
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
    wrongly: tuple[Any, ...] = ({"method": 3}, "method must be text"), ({"diagnosis": x}, "summary")
    for wrong, message in wrongly:
        with pytest.raises(TypeError, match=message):
            sa.save_map(fitted, tmp_path / "map.safetensors", **wrong)


def test_maps_of_numpy_arrays_are_saved_as_they_are_or_refused(tmp_path):
    made: Any = sa.AffineMap
    path, weight = tmp_path / "map.safetensors", np.asfortranarray(np.arange(6.0).reshape(3, 2) / 7)
    for kind in ("f8", ">f8", ">f4"):
        with jax.enable_x64(False):  # as it is by default
            sa.save_map(made(*(a.astype(kind) for a in (weight, weight[:, 0], weight[0]))), path)
        found = sa.load_map(path).weight
        assert found.dtype == kind[-2:]
        np.testing.assert_array_equal(found, weight.astype(kind))
    half = sa.identity_map(3, 2, dtype="bfloat16")
    sa.save_map(half, path)
    assert sa.load_map(path) == half
    before = path.read_bytes()
    for wrong, message in (
        (made(weight, weight[0], weight[0]), "does not fit a map with weight"),
        (made(np.eye(2, dtype=int), weight[0], weight[0]), "not floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            sa.save_map(wrong, path)
    assert path.read_bytes() == before


def test_files_have_the_mode_of_the_user_and_leave_nothing_behind(tmp_path, monkeypatch):
    mask = os.umask(0o027)
    try:
        path, mapping = tmp_path / "map.safetensors", sa.identity_map(3, 3)
        # The umask is of the whole process: changed for a moment, other threads' files are open.
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
            sa.save_map(mapping, path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    code = (
        "import os, semalign_jax as sa\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        f"sa.save_map(sa.identity_map(3, 3), {str(path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert sa.load_map(path) == mapping
    sa.save_map(mapping, path)
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_or_foreign_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "map.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        sa.load_map(path)
    sa.save_map(sa.identity_map(3, 3), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        sa.load_map(path)
    path.write_bytes(whole.replace(b'"format_version":"1"', b'"format_version":"9"'))
    with pytest.raises(ValueError, match="version '9'; this release reads 1"):
        sa.load_map(path)
    save_file({"weight": np.eye(2)}, path)
    with pytest.raises(ValueError, match="expected 'semalign_jax.AffineMap'"):
        sa.load_map(path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "map.safetensors"
    sa.save_map(sa.identity_map(3, 3), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        sa.save_map(sa.identity_map(4, 4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_anchor_masks_are_exact_nested_and_stratified():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    masks = np.asarray(sa.sweeps.anchor_masks(jax.random.key(0), 100, [10, 50], labels=labels))
    assert masks.sum(1).tolist() == [10, 50]
    assert (masks[0] <= masks[1]).all()
    assert np.abs(np.bincount(labels[masks[1]]) - [30, 15, 5]).max() <= 1
    again = sa.sweeps.anchor_masks(jax.random.key(0), 100, [10, 50], labels=labels)
    np.testing.assert_array_equal(masks, again)
    with pytest.raises(ValueError, match="more than the 100 rows"):
        sa.sweeps.anchor_masks(jax.random.key(0), 100, [101])


def squared_error(mapping, data):
    return jnp.mean((mapping(data[0]) - data[1]) ** 2)


RIDGE = sa.SweepMethod("affine", ridge=1.0, ridge_unit="gram")


@pytest.mark.slow
def test_sweep_equals_independent_fits():
    x, y = anchors(60, 8, 6, cond=3)
    test = anchors(20, 8, 6, cond=3, seed=1)
    keys = jax.random.split(jax.random.key(1), 2)
    custom = partial(sa.fit_ortho, scale=True)
    methods = {method: method for method in METHODS} | {"ridge": RIDGE, "custom": custom}
    result = sa.anchor_sweep(
        x, y, [5, 30], keys, methods=methods, metrics={"mse": squared_error}, eval_data=test
    )
    assert result.values["mse"].shape == (6, 2, 2)
    for s, key in enumerate(keys):
        order = sa.sweeps.anchor_order(key, 60)
        for c, n in enumerate(result.counts):
            a, b = (np.asarray(side)[order[:n]] for side in (x, y))
            maps = [reference(method, a, b) for method in METHODS]
            maps.append(reference("affine", a, b, ridge=np.sum((a - a.mean(0)) ** 2) / 8))
            maps.append(reference("ortho", a, b, scale=True))
            expected = [np.mean((test[0] @ weight + bias - test[1]) ** 2) for weight, bias in maps]
            np.testing.assert_allclose(result.values["mse"][:, c, s], expected, rtol=1e-8)


@pytest.mark.parametrize("batch_size", some([2, 5]))
def test_sweep_is_the_same_in_any_batch_size(batch_size):
    x, y = map(jnp.asarray, anchors(40, 6, 6, cond=3))
    run = partial(
        sa.anchor_sweep, x, y, [4, 20], jax.random.split(jax.random.key(0), 5),
        metrics={"mse": squared_error}, methods=["ortho", "affine"], eval_data=(x, y),
    )  # fmt: skip
    one, more = run(batch_size=1), run(batch_size=batch_size)
    np.testing.assert_allclose(more.values["mse"], one.values["mse"], rtol=1e-9)


def test_sweep_compiles_once_and_repeats_itself():
    traces = []

    def metric(mapping, data):
        traces.append(1)
        return squared_error(mapping, data)

    x, y = map(jnp.asarray, anchors(30, 4, 4))
    keys = jax.random.split(jax.random.key(0), 3)
    run = partial(sa.anchor_sweep, metrics={"mse": metric}, methods=["ortho"], eval_data=(x, y))
    first = run(x, y, [5, 10], keys)
    traced = len(traces)
    second = run(x, y, [5, 10], keys)
    run(x + 1, y, [5, 10], jax.random.split(jax.random.key(9), 3))
    assert len(traces) == traced
    np.testing.assert_array_equal(first.values["mse"], second.values["mse"])


def test_head_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    x = rng.standard_normal((200, 6)) + 2 * np.eye(6)[labels] + 3
    head, info = sa.fit_head(x, labels, 3, l2=2.0, tolerance=1e-14, info=True)
    assert bool(info.converged)
    reference = LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(x, labels)
    probabilities = jax.nn.softmax(head(x), axis=-1)
    np.testing.assert_allclose(probabilities, reference.predict_proba(x), atol=1e-4)
    mapping = sa.fit_affine(x, x[:, ::-1].copy())
    np.testing.assert_allclose(sa.stitch(head, mapping)(x), head(mapping(x)), atol=1e-8)


def stitching_problem():
    x, y = (a.astype(np.float32) for a in anchors(12, 4, 3))
    head = sa.identity_map(3, 2, dtype=jnp.float32)
    labels = np.asarray(head(y)).argmax(1)
    return head, sa.fit_affine(x, y), x, y, labels


def test_rows_that_are_not_numbers_are_refused_by_name():
    head, mapping, x, y, labels = stitching_problem()
    scores = sa.evaluate_stitching(head, mapping, x, y, labels)
    assert scores.upper_bound == 1
    assert scores.naive < 1
    broken = [np.where(np.arange(12)[:, None] == 5, np.nan, a) for a in (x, y)]
    with pytest.raises(ValueError, match="x holds .* in 1 of 12 rows, first in row 5; .* weight 0"):
        sa.evaluate_stitching(head, mapping, broken[0], y, labels)
    with pytest.raises(ValueError, match="y holds NaN or infinity in 1 of 12 rows, first in row 5"):
        sa.evaluate_stitching(head, mapping, x, broken[1], labels)
    nan = jax.tree_util.tree_map(lambda a: a * np.nan, mapping)
    with pytest.raises(ValueError, match="head gives NaN .* for 12 of 12 rows .* first for row 0"):
        sa.evaluate_stitching(head, nan, x, y, labels)
    largest = jax.tree_util.tree_map(lambda a: a * np.finfo(a.dtype).max, head)
    with pytest.raises(ValueError, match="the scores overflow"):  # classes that are tied there
        sa.evaluate_stitching(largest, mapping, x, y, labels)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\); entry \(3,\) is -1"):
        sa.evaluate_stitching(head, mapping, x, y, np.where(np.arange(12) == 3, -1, labels))
    with pytest.raises(ValueError, match="labels .* is beyond 32 bits"):
        sa.evaluate_stitching(head, mapping, x, y, labels + 2**32)
    with pytest.raises(TypeError, match="labels is a masked array"):
        sa.evaluate_stitching(head, mapping, x, y, np.ma.array(labels, mask=labels == 1))
    got = head_accuracy(head, broken[1], labels, weights=np.arange(12) != 5)
    assert got == 1  # without weight they may hold anything


def test_traced_rows_that_are_not_numbers_make_the_accuracy_undefined():
    head, mapping, x, y, labels = stitching_problem()
    run = jax.jit(sa.evaluate_stitching)
    clean = sa.evaluate_stitching(head, mapping, x, y, labels)
    np.testing.assert_allclose(run(head, mapping, x, y, labels), clean)
    for value in (np.nan, np.inf):
        x_bad, y_bad = (np.where(np.arange(12)[:, None] == 5, value, a) for a in (x, y))
        got = run(head, mapping, x_bad.astype(np.float32), y, labels)
        assert np.isnan(got).tolist() == [True, True, False]
        got = run(head, mapping, x, y_bad.astype(np.float32), labels)
        assert np.isnan(got).tolist() == [False, False, True]
    assert np.isnan(run(head, mapping, x, y, np.where(labels == 0, -1, labels))).all()


def test_zero_shot_normalises_averages_and_normalises_again():
    prompts = np.array([[2.0, 0], [0, 1], [0, -5]])
    classes = sa.zeroshot.class_embeddings(prompts, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [0, -1]], atol=1e-12)
    assert sa.zero_shot_predict(np.array([[3.0, 2], [0.1, -9]]), classes).tolist() == [0, 1]


def test_cosine_of_zero_and_tiny_vectors():
    x = jnp.array([[0.0, 0], [3e-30, 4e-30]], jnp.float32)
    np.testing.assert_allclose(sa.metrics.normalize_rows(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: sa.metrics.cosine_similarity(x, x).sum())(x)).all()


def test_scores_of_equal_shapes_compile_once():
    rng = np.random.default_rng(0)
    mapping = sa.fit_affine(rng.standard_normal((20, 6)), rng.standard_normal((20, 5)))
    prompts = sa.zeroshot.EmbeddedPrompts(
        jnp.asarray(rng.standard_normal((4, 5))),
        jnp.arange(4, dtype=jnp.int32) % 2,
        jnp.arange(4) < 2,
        ("a", "b"),
        "multi-label",
    )

    def run():
        images = jnp.asarray(rng.standard_normal((31, 6)))
        sa.zeroshot.zero_shot_scores(mapping, images, prompts, batch_size=10)
        sa.zeroshot.prompt_scores(mapping(images), prompts, batch_size=10)
        return sa.zero_shot_logits(mapping(images), jnp.eye(5)[:2], batch_size=10)

    run()
    other = jnp.zeros(3)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled: list[str] = []
        patch.setattr("logging.Logger.handle", lambda _, r: compiled.append(r.getMessage()))
        run()
        jax.jit(lambda x: x + 1)(other)  # is seen
    assert sum("XLA compilation" in text for text in compiled) == 1, compiled


@pytest.mark.slow
def test_scores_in_batches():
    """The same as all at once, with the memory of a batch and not of all rows."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1001, 32)))
    labels = jnp.asarray(rng.integers(0, 3, 1001))
    mapping = sa.fit_affine(x[:50], jnp.asarray(rng.standard_normal((50, 32))))
    texts = jnp.asarray(rng.standard_normal((6, 32)))
    classes = sa.zeroshot.class_embeddings(texts, np.arange(6) % 3, 3)
    prompts = sa.zeroshot.EmbeddedPrompts(
        texts, jnp.arange(6, dtype=jnp.int32) % 3, jnp.arange(6) < 3, ("a", "b", "c"), "multi-label"
    )
    space = sa.zeroshot.anchor_space(x[:50], mapping(x[:50]))
    head = sa.fit_head(mapping(x), labels, 3)
    mlp = sa.stitching.fit_mlp_head(jax.random.key(0), x, labels, 3, units=4, max_steps=3)
    calls = [
        lambda x, size: head_accuracy(mapping >> head, x, labels[: len(x)], batch_size=size),
        lambda x, size: sa.zero_shot_logits(x, classes, center=texts.mean(0), batch_size=size),
        lambda x, size: sa.zero_shot_predict(x, classes, batch_size=size),
        lambda x, size: sa.zeroshot.evaluate_zero_shot(
            mapping, x, labels[: len(x)], texts, np.arange(6) % 3, 3, batch_size=size
        ),
        lambda x, size: sa.zeroshot.prompt_scores(x, prompts, batch_size=size),
        lambda x, size: sa.zeroshot.zero_shot_scores(
            mapping, x, prompts, normalization="whiten", space=space, batch_size=size
        ),
        lambda x, size: mlp.apply(x, batch_size=size),
    ]
    for call in calls:
        expected = call(x, None)
        for size in (100, 1001, 5000):
            np.testing.assert_allclose(call(x, size), expected, rtol=1e-12)
        labels = jnp.zeros(100_000, jnp.int32)
        rows = jnp.zeros((100_000, 32))
        compiled = jax.jit(lambda x, call=call: call(x, 100)).lower(rows).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 5_000_000  # the rows take 25.6 MB
        labels = jnp.asarray(rng.integers(0, 3, 1001))
        with pytest.raises((TypeError, ValueError), match="batch_size"):
            call(x, 0)
    spread = P("rows")
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    for call in calls[1:3] + calls[4:]:  # of rows that each device has; not means over them
        one = partial(call, size=3)
        together = jax.shard_map(one, mesh=mesh, in_specs=spread, out_specs=spread)
        np.testing.assert_allclose(jax.jit(together)(x[:80]), call(x[:80], None), atol=1e-14)
    total = jax.grad(lambda x: jnp.sum(sa.zero_shot_logits(x, classes, batch_size=30) ** 2))
    whole = jax.grad(lambda x: jnp.sum(sa.zero_shot_logits(x, classes) ** 2))
    np.testing.assert_allclose(total(x[:100]), whole(x[:100]), rtol=1e-10)


@pytest.mark.parametrize("name", [n for n in sa.__all__ if inspect.isfunction(getattr(sa, n))])
def test_signatures_can_be_read(name):
    """`help` names ArrayLike; expanded, it takes 130 characters a time."""
    shown = str(inspect.signature(getattr(sa, name)))
    assert "Union[" not in shown
    assert len(shown) < 700
