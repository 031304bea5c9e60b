"""`f == jit(f) == vmap(f)[i]`, nested `vmap`, and compile counts, for the public functions."""

import copy
import pickle
from functools import partial
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, half, latin, some

import semalign_jax as sa

X, Y = (
    np.stack([anchors(12, 4, 4, cond=3, seed=seed)[side] for seed in range(3)]) for side in (0, 1)
)
FEW_X, FEW_Y = X[:, :3], Y[:, :3]
WEIGHTS = np.random.default_rng(0).uniform(0.1, 2, (3, 12))
LABELS = np.random.default_rng(0).integers(0, 3, (3, 12)).astype(np.int32)


def head(x, labels):
    return sa.fit_head(x, labels, 3, tolerance=1e-10)


def zero_shot(x, prompts):
    classes = sa.zeroshot.class_embeddings(prompts, np.arange(4, dtype=np.int32) % 3, 3)
    return sa.zero_shot_logits(x, classes)


FUNCTIONS = {
    **{method: (partial(sa.fit, method), (X, Y)) for method in METHODS},
    **{f"{method}, n < d": (partial(sa.fit, method), (FEW_X, FEW_Y)) for method in METHODS},
    "weights": (lambda x, y, w: sa.fit_affine(x, y, weights=w), (X, Y, WEIGHTS)),
    "info": (lambda x, y: sa.fit("ortho", x, y, rotation_only=True, info=True), (X, Y)),
    "adam": (
        lambda x, y: sa.fit_affine(x, y, solver="adam", steps=20, key=jax.random.key(0)),
        (X, Y),
    ),
    "polar_factor": (sa.polar_factor, (X,)),
    "apply": (lambda x, y: sa.fit_affine(x, y)(x), (X, Y)),
    "inverse and then": (lambda x, y: sa.fit_ortho(x, y) >> sa.fit_ortho(x, y).inverse(), (X, Y)),
    "fit_head": (head, (X, LABELS)),
    "zero_shot_logits": (zero_shot, (X, Y[:, :4])),
    "normalize_rows": (sa.metrics.normalize_rows, (X,)),
    "cosine_similarity": (sa.metrics.cosine_similarity, (X, Y)),
    "accuracy": (lambda a: sa.metrics.accuracy(a, jnp.zeros_like(a)), (LABELS,)),
}


@pytest.mark.parametrize("name", some(FUNCTIONS, 3))
def test_jit_and_vmap_change_nothing(name):
    function, arguments = FUNCTIONS[name]
    batched = jax.vmap(function)(*arguments)
    one = [a[1] for a in arguments]
    plain = function(*one)
    close = partial(chex.assert_trees_all_close, atol=1e-7, rtol=1e-7)
    close(jax.jit(function)(*one), plain)
    close(jax.tree_util.tree_map(lambda leaf: np.asarray(leaf)[1], batched), plain)


class TestSolvers(chex.TestCase):
    """As other JAX libraries test theirs: jitted or not, of arrays on the device or the host."""

    @chex.all_variants(with_pmap=False)  # pyright: ignore[reportCallIssue]
    def test_variants_agree(self):
        for name in (*METHODS, "polar_factor", "fit_head"):
            function, arguments = FUNCTIONS[name]
            one = [a[1] for a in arguments]
            plain = function(*(jnp.asarray(a) for a in one))
            chex.assert_trees_all_close(self.variant(function)(*one), plain, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("method", some(METHODS))
def test_nested_vmap(method):
    x, y = np.stack([X, -X]), np.stack([Y, Y + X])

    def weight_of(x, y):
        return sa.fit(method, x, y, normalize="center").weight

    nested = np.asarray(jax.jit(jax.vmap(jax.vmap(weight_of)))(x, y))
    np.testing.assert_allclose(nested[1, 2], weight_of(x[1, 2], y[1, 2]), atol=1e-9)


def test_vmap_over_options():
    batched = jax.vmap(lambda ridge: sa.fit_linear(X[0], Y[0], ridge=ridge).weight)(
        np.array([0.1, 1.0])
    )
    expected = sa.fit_linear(X[0], Y[0], ridge=1.0).weight
    np.testing.assert_allclose(np.asarray(batched)[1], expected, atol=1e-9)
    masks = np.arange(12)[None, :] < np.array([[3], [9]])
    batched = jax.vmap(lambda mask: sa.fit_ortho(X[0], Y[0], weights=mask).weight)(masks)
    expected = sa.fit_ortho(FEW_X[0], FEW_Y[0]).weight
    np.testing.assert_allclose(np.asarray(batched)[0], expected, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_new_values_do_not_compile_again(method):
    chex.clear_trace_counter()

    @jax.jit
    @partial(chex.assert_max_traces, n=1)
    def weight_of(x, y, weights, ridge):
        return sa.fit(method, x, y, weights=weights, ridge=ridge).weight

    for seed, ridge in ((0, 0.1), (1, 3.0), (2, 0.0)):
        weight_of(X[seed], Y[seed], WEIGHTS[seed], ridge)


@pytest.mark.parametrize("method", METHODS)
def test_eager_fits_of_one_shape_compile_once(method, caplog):
    sa.fit(method, X[0], Y[0])
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        sa.fit(method, X[1], Y[1])
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize(
    ("name", "n", "dtype"), some(half([*METHODS, "polar"], [4, 12], ["float32", "float64"]), 3)
)
def test_under_a_condition_that_is_batched(name, n, dtype):
    x, y = (a.astype(dtype) for a in anchors(n, 6, 6, cond=3))

    def weight():
        return sa.polar_factor(x[:6].T) if name == "polar" else sa.fit(name, x, y).weight

    def weight_or_not(wanted):
        return jax.lax.cond(wanted, weight, lambda: jnp.zeros_like(expected))

    expected = weight()
    found = np.asarray(jax.jit(jax.vmap(weight_or_not))(np.array([True, False])))
    np.testing.assert_allclose(found[0], expected, atol=1e-5 if dtype == "float32" else 1e-12)
    assert not found[1].any()


def test_maps_of_all_methods_are_of_one_kind():
    """CASES-2, 6: they stack, and go through conditions and loops of every kind."""
    x, y = X[0], Y[0]
    maps = [sa.fit(method, x, y) for method in METHODS]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps)
    assert isinstance(stacked, sa.AffineMap)
    assert stacked.batch_shape == (4,)
    np.testing.assert_allclose(np.asarray(stacked(x))[2], maps[2](x), atol=1e-12)
    chosen = jax.jit(
        lambda p: jax.lax.cond(p, lambda: sa.fit_ortho(x, y), lambda: sa.fit_linear(x, y))
    )
    chex.assert_trees_all_close(chosen(True), sa.fit_ortho(x, y), atol=1e-12)
    chex.assert_trees_all_close(chosen(False), sa.fit_linear(x, y), atol=1e-12)
    start = sa.identity_map(4, 4, dtype=x.dtype)
    powers: Any = jax.lax.fori_loop(0, 3, lambda _, m: m >> maps[3], start)
    np.testing.assert_allclose(powers.weight, np.linalg.matrix_power(maps[3].weight, 3), atol=1e-9)
    last, _ = jax.lax.scan(lambda m, _: (m >> maps[3], None), start, length=3)
    chex.assert_trees_all_close(last, powers, atol=1e-12)


def test_maps_compare_copy_and_print():
    fitted = sa.fit_ortho(X[0], Y[0])
    for same in (copy.deepcopy(fitted), copy.copy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert same == fitted
    assert fitted != sa.fit_ortho(X[1], Y[1])
    assert fitted != jax.tree.map(lambda a: a.astype(jnp.float32), fitted)
    assert fitted != "a map"
    assert (fitted == 3) is False
    assert repr(fitted) == "AffineMap(float64[4,4])"
    assert "\n" not in repr(jax.tree.map(lambda a: jnp.stack([a, a]), fitted))
    with pytest.raises(TypeError, match="unhashable"):
        hash(fitted)


def test_maps_are_serialised_by_flax_and_orbax(tmp_path):
    import flax.serialization
    import orbax.checkpoint

    fitted = sa.fit_affine(X[0], Y[0])
    like = sa.identity_map(4, 4, dtype=X.dtype)
    read = flax.serialization.from_bytes(like, flax.serialization.to_bytes(fitted))
    assert isinstance(read, sa.AffineMap)
    assert read == fitted
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "map", fitted)
        checkpointer.wait_until_finished()
        assert checkpointer.restore(tmp_path / "map", like) == fitted


def test_maps_are_arguments_of_exported_functions():
    fitted = sa.fit_affine(X[0], Y[0])
    exported = jax.export.export(jax.jit(lambda fitted, x: (fitted(x), fitted >> fitted)))(
        fitted, X[0]
    )
    read = jax.export.deserialize(exported.serialize())
    mapped, twice = read.call(fitted, X[0])
    np.testing.assert_allclose(mapped, fitted(X[0]), atol=1e-12)
    assert isinstance(twice, sa.AffineMap)


@pytest.mark.parametrize(("name", "n"), latin(METHODS, [4, 12]))
def test_fits_are_exported(name, n):
    x, y = (a.astype(np.float32) for a in anchors(n, 6, 6, cond=3))
    # Without a promise of JAX that later versions read them: LAPACK's second SVD.
    checks = [
        jax.export.DisabledSafetyCheck.custom_call(f"lapack_{name}_ffi")
        for name in ("sgesvd", "spotrf", "strsm", "sgeqrf", "sorgqr", "dpotrf", "dtrsm", "dsyevd")
    ]
    export = partial(jax.export.export, jax.jit(partial(sa.fit, name)), disabled_checks=checks)
    for platform in ("cuda", "tpu"):
        assert export(platforms=[platform])(x, y).mlir_module_serialized
    fitted: Any = export(platforms=["cpu"])(x, y).call(x, y)
    np.testing.assert_allclose(fitted.weight, sa.fit(name, x, y).weight, atol=1e-5)


def test_many_rows_in_batches():
    fitted = sa.fit_ortho(X[0], Y[0])
    x = np.random.default_rng(0).standard_normal((1001, 4))
    np.testing.assert_allclose(fitted.apply(x, batch_size=100), fitted(x), atol=1e-12)
    lowered = jax.jit(lambda x: fitted.apply(x, batch_size=10)).lower(np.zeros((100_000, 4)))
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 200_000  # the result itself has 3.2 MB
    with pytest.raises(ValueError, match="x must have"):
        fitted.apply(X, batch_size=2)
    for one in (fitted, sa.stitching.MlpHead(fitted, fitted, "relu")):
        with pytest.raises(ValueError, match=r"x must have 4 features .* got shape \(7, 5\)"):
            one.apply(np.zeros((7, 5)), batch_size=2)
    with pytest.raises(ValueError, match="batch_size is for one map"):
        jax.tree.map(lambda a: a[None], fitted).apply(X[0], batch_size=2)
