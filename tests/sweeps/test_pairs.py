"""A sweep over pairs of encoders gives the scores of independent fits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from helpers import reference, relative, rotation, some

import semalign_jax as sa

N = 40
SHARED = {method: sa.SweepMethod(method) for method in ("affine", "l-ortho", "ortho")}
SHARED |= {
    "partial l-ortho": sa.SweepMethod("l-ortho", normalize="center", completion="partial"),
    "isotropic": sa.SweepMethod("ortho", normalize="isotropic"),
    "cut off": sa.SweepMethod("linear", rcond=0.2),  # not everywhere
}
#: And those that are fitted on their own.
LINES = SHARED | {
    "ridge": sa.SweepMethod("affine", ridge=0.3),
    "shuffled": sa.SweepMethod("linear", shuffled=True),
}


def scores_of(scores, _):
    return scores


def encoders(dims, *, dtype: Any = np.float64, offset=5.0, seed=0) -> tuple[dict, dict[str, Any]]:
    """Embeddings, test embeddings and readouts of encoders with these dimensions."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((N + 11, max(dims.values())))
    data: dict[str, np.ndarray] = {}
    test: dict[str, np.ndarray] = {}
    readouts: dict[str, sa.AffineMap] = {}
    for name, d in dims.items():
        mixed = latent[:, :d] @ rng.standard_normal((d, d)) + 0.3 * rng.standard_normal((N + 11, d))
        data[name], test[name] = np.split((mixed + offset).astype(dtype), [N])
        weight, source, target = (
            jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in ((d, 4), d, 4)
        )
        readouts[name] = sa.AffineMap(weight, source, target)
    return data, {"test": test, "readouts": readouts}


@pytest.mark.parametrize(
    ("dims", "lines"),
    [
        pytest.param({"a": 8, "b": 8}, LINES, id="equal"),
        pytest.param({"a": 8, "c": 5}, SHARED, id="unequal", marks=pytest.mark.slow),
    ],
)
def test_every_cell_equals_its_own_fit(dims, lines):
    data, rest = encoders(dims)
    counts = (30, 1, 6, 8, 9)
    order = np.random.default_rng(1).permutation(N)
    result = sa.sweep_pairs(
        data, counts, orders=order[None], methods=lines, metrics={"scores": scores_of}, **rest
    )
    assert result.counts == counts
    assert result.methods == tuple(lines)
    found = np.asarray(result.values["scores"])
    for p, (source, target) in enumerate(result.pairs):
        for m, line in enumerate(lines.values()):
            for c, n in enumerate(counts):
                x, y = data[source][order[:n]], data[target][order[:n]]
                y = np.roll(y, 1, axis=0) if line.shuffled else y
                weight, bias = reference(line.method, x, y, **dict(line.options))
                head = jax.tree.map(np.asarray, rest["readouts"][target])
                mapped = rest["test"][source] @ weight + bias
                expected = (mapped - head.source_offset) @ head.weight + head.target_offset
                got = found[p, m, c, 0]
                np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_memory_and_threads_change_nothing():
    data, rest = encoders({name: 6 for name in "abcde"})
    calls = []

    def run(**options):
        return sa.sweep_pairs(
            data,
            (3, 20),
            jax.random.split(jax.random.key(0), 2),
            methods=["ortho", "affine"],
            metrics={"scores": scores_of},
            **rest,
            **options,
        )

    plain = run()
    small = run(max_encoders=2, workers=2, progress=lambda *done: calls.append(done))
    assert plain.pairs == small.pairs
    np.testing.assert_array_equal(plain.values["scores"], small.values["scores"])
    assert calls[-1] == (40, 40)
    one_way = run(pairs=[("d", "b"), ("a", "e")])
    for got, pair in zip(np.asarray(one_way.values["scores"]), one_way.pairs, strict=True):
        expected = np.asarray(plain.values["scores"])[plain.pairs.index(pair)]
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_many_anchors_of_usual_condition_share_their_factors(monkeypatch):
    """In float32 a loose bound of the condition would send every count of d and more away."""
    from semalign_jax.sweeps import many_pairs as pairs

    d = 48
    rng = np.random.default_rng(0)
    spectrum = np.geomspace(1, 1e-4, d)
    names = ("a", "b")
    data = {
        name: ((rng.standard_normal((400, d)) * spectrum) @ rotation(d, rng)).astype(np.float32)
        for name in names
    }
    readout = sa.AffineMap.from_weight(np.eye(d, 2, dtype=np.float32))

    def refused(*args):
        raise AssertionError("fitted on its own")

    monkeypatch.setattr(pairs, "_own_head", refused)
    result = sa.sweep_pairs(
        data,
        (20, 100, 400),
        orders=np.arange(400)[None],
        readouts=dict.fromkeys(names, readout),
        test={name: data[name][:9] for name in names},
        metrics={"scores": scores_of},
        methods=["affine", "linear", "l-ortho"],
    )
    assert np.isfinite(result.values["scores"]).all()


@pytest.mark.parametrize("method", some(["affine", "linear"]))
def test_ill_conditioned_least_squares_is_as_exact_as_its_own_fit(method):
    d, counts = 40, (20, 29, 34, 38, 40, 41, 42, 60, 200)
    rng = np.random.default_rng(0)
    latent, spectrum = rng.standard_normal((200, d)), np.geomspace(1, 1e-6, d)
    views = (latent, latent + 0.3 * rng.standard_normal((200, d)))
    data = {
        name: ((view * spectrum) @ rotation(d, rng)).astype(np.float32)
        for name, view in zip("ab", views, strict=True)
    }
    result = sa.sweep_pairs(
        data,
        counts,
        orders=np.arange(200)[None],
        readouts={"b": sa.AffineMap.from_weight(np.eye(d, dtype=np.float32))},
        test={"a": data["a"]},
        metrics={"scores": scores_of},
        methods={method: sa.SweepMethod(method, rcond=0.0)},
        pairs=[("a", "b")],
    )
    for n, scores in zip(counts, np.asarray(result.values["scores"])[0, 0, :, 0], strict=True):
        x, y = (data[name][:n].astype(np.float64) for name in "ab")
        means = [side.mean(0) if method == "affine" else 0 * side[0] for side in (x, y)]
        exact = np.linalg.lstsq(x - means[0], y - means[1], rcond=1e-13)[0]
        expected = (x - means[0]) @ exact + means[1]
        own = sa.fit(method, data["a"][:n], data["b"][:n], rcond=0.0).apply(data["a"][:n])
        error, of_own = (relative(mapped, expected) for mapped in (scores[:n], own))
        assert error < max(1e-3, 2 * of_own), n


def test_encoders_held_at_once_are_bounded(monkeypatch):
    from semalign_jax.sweeps import many_pairs as pairs

    held = []
    batches = pairs._batches

    def watched(*args):
        for ready, group in batches(*args):
            held.append(len(ready))
            yield ready, group

    monkeypatch.setattr(pairs, "_batches", watched)
    data, rest = encoders({name: 4 for name in "abcdefg"})
    for bound in (2, 3, 4):
        held.clear()
        result = sa.sweep_pairs(
            data, [5], orders=np.arange(N)[None], methods=["linear"], max_encoders=bound,
            metrics={"scores": scores_of}, **rest,
        )  # fmt: skip
        assert len(result.pairs) == 42
        assert max(held) <= bound


def test_equal_shapes_compile_once():
    traces = []

    def metric(scores, labels):
        traces.append(1)
        return jnp.mean((jnp.argmax(scores, 1).astype(jnp.int32) == labels).astype(jnp.float32))

    data, rest = encoders({name: 6 for name in "abcd"})
    labels = np.zeros(11, np.int32)
    run: dict[str, Any] = dict(
        methods=["ortho", "affine"], metrics={"accuracy": metric}, eval_data=labels, **rest
    )
    sa.sweep_pairs(data, (3, 20), jax.random.split(jax.random.key(0), 2), **run)
    assert traces
    traces.clear()
    data, rest = encoders({name: 6 for name in "wxyz"}, seed=1)
    sa.sweep_pairs(data, (3, 20), jax.random.split(jax.random.key(5), 3), **run | rest)
    assert not traces


def test_float32_with_a_large_offset():
    data, rest = encoders({"a": 12, "b": 12}, dtype=np.float32, offset=1e4)
    order = np.arange(N)
    with jax.enable_x64(False):
        result = sa.sweep_pairs(
            data, (6, 13, 40), orders=order[None], methods=["affine"],
            metrics={"scores": scores_of}, **rest,
        )  # fmt: skip
    found = np.asarray(result.values["scores"])
    for c, n in enumerate(result.counts):
        x, y = (data[name][:n].astype(np.float64) for name in "ab")
        mean_x, mean_y = x.mean(0), y.mean(0)
        weight = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=1e-12)[0]
        head = jax.tree.map(lambda a: np.asarray(a, np.float64), rest["readouts"]["b"])
        mapped = (rest["test"]["a"].astype(np.float64) - mean_x) @ weight + mean_y
        expected = (mapped - head.source_offset) @ head.weight + head.target_offset
        # The scores themselves are of the size of the offset.
        bound = 1e-5 * np.abs(expected).max() * np.linalg.cond(x - mean_x) ** 0.5
        np.testing.assert_allclose(found[0, 0, c, 0], expected, atol=bound)


def test_bad_input_is_named():
    data, rest = encoders({"a": 4, "b": 4})
    run: dict[str, Any] = dict(orders=np.arange(N)[None], metrics={"scores": scores_of}, **rest)
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(pairs=[("a", "x")]), "pairs has 'x'"),
        (dict(pairs=[]), "pairs is empty"),
        (dict(test={"a": rest["test"]["a"]}), "test has no embeddings of the source 'b'"),
        (dict(test=rest["test"] | {"b": np.ones((11, 3))}), "has 3 features"),
        (dict(test=rest["test"] | {"b": np.ones((10, 4))}), "test must have the same rows"),
        (dict(readouts={"a": rest["readouts"]["a"]}), "readouts has none of the target 'b'"),
        (dict(methods={"own": sa.fit_ortho}), "must be a name or a SweepMethod"),
        (dict(max_encoders=1), "max_encoders must be at least 2"),
        (dict(keys=jax.random.split(jax.random.key(0), 1)), "exactly one of keys"),
        (dict(metrics={}), "metrics is empty"),
        (dict(metrics=["accuracy"]), "need eval_data, the labels"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            sa.sweep_pairs(data, [5], **run | change)
    twice: Any = {"methods": ["ortho", "affine", "ortho"]}
    with pytest.raises(ValueError, match="methods: 'ortho' is there more than once"):
        sa.sweep_pairs(data, [5], **run | twice)
    data["b"] = data["b"].copy()
    data["b"][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"embeddings\['b'\]"):
        sa.sweep_pairs(data, [5], **run)


def test_metrics_by_name():
    """Those of classes and those of labels are the functions of `metrics`."""
    data, rest = encoders({"a": 8, "b": 8})
    labels = np.random.default_rng(2).integers(0, 4, 11)
    names = ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision"]
    run = partial(sa.sweep_pairs, data, (20,), orders=np.arange(N)[None], methods=["ortho"], **rest)
    named = jax.tree.map(np.asarray, run(metrics=names, eval_data=labels).values)
    logits = np.asarray(run(metrics={"scores": scores_of}).values["scores"])[0, 0, 0, 0]
    decided = np.argmax(logits, axis=1)
    assert named["accuracy"][0, 0, 0, 0] == pytest.approx(np.mean(decided == labels))
    expected = sklearn.metrics.balanced_accuracy_score(labels, decided)
    assert named["balanced_accuracy"][0, 0, 0, 0] == pytest.approx(expected)
    expected = sklearn.metrics.roc_auc_score(
        labels, scipy.special.softmax(logits, axis=1), multi_class="ovr"
    )
    assert named["auroc"][0, 0, 0, 0] == pytest.approx(expected)
    several = labels[:, None] <= np.arange(4)
    several[0], several[1] = True, False
    named = jax.tree.map(np.asarray, run(metrics=names, eval_data=several).values)
    expected = sklearn.metrics.average_precision_score(several, logits, average="macro")
    assert named["average_precision"][0, 0, 0, 0] == pytest.approx(expected)
    for metrics, message in (("accuracy", "must be a list"), (["recall"], "must be one of")):
        with pytest.raises(ValueError, match=message):
            run(metrics=metrics, eval_data=labels)


def test_options_of_a_method_may_be_scalar_arrays():
    data, rest = encoders({"a": 4, "b": 4})
    lines = {
        "number": sa.SweepMethod("affine", ridge=0.5),
        "array": sa.SweepMethod("affine", ridge=jnp.float32(0.5)),
        "numpy": sa.SweepMethod("affine", ridge=np.array(0.5)),
    }
    assert len(set(lines.values())) == 1
    found = sa.sweep_pairs(
        data, (8,), jax.random.split(jax.random.key(0), 1), methods=lines,
        metrics={"scores": scores_of}, **rest,
    ).values["scores"]  # fmt: skip
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    with pytest.raises(TypeError, match="ridge of a SweepMethod must be a constant number"):
        sa.SweepMethod("affine", ridge=jnp.ones(2))
    with pytest.raises(TypeError, match="ridge of a SweepMethod must be a constant number"):
        jax.jit(lambda ridge: sa.SweepMethod("affine", ridge=ridge))(1.0)
