"""Affine and linear: as exact as the dtype can hold, in every regime."""

from functools import partial
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import latin, relative, rotation
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import semalign_jax as sa

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


def anchors(n, d, k, *, cond, seed=0):
    """Two noisy views [n, d] and [n, k], float32, of a matrix of about this condition number."""
    rng = np.random.default_rng(seed)
    spectrum = np.geomspace(1, 1 / cond, d)
    x = ((rng.standard_normal((n, d)) * spectrum) @ rotation(d, rng)).astype(np.float32)
    y = x @ rng.standard_normal((d, k)) + 0.3 / cond * rng.standard_normal((n, k))
    return x, y.astype(np.float32)


def expected_weight(x, y, *, ridge=0.0, rcond=8 * EPS):
    """In float64, from the singular values of x."""
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    keep = s > rcond * s[0]
    gain = np.where(keep, s / np.where(keep, s * s + ridge, 1), 0)
    return vt.T @ (gain[:, None] * (u.T @ y.astype(np.float64)))


def error_and_floor(x, weight, expected):
    """Relative error of the predictions, and that of the exact map rounded to float32."""
    assert weight.dtype == jnp.float32
    x = x.astype(np.float64)
    scale = np.linalg.norm(x @ expected)
    error, floor = (
        np.linalg.norm(x @ (np.asarray(w, np.float64) - expected)) / scale
        for w in (weight, expected.astype(np.float32))
    )
    return error, floor


@pytest.mark.parametrize("rcond", [None, 1e-3])
@pytest.mark.parametrize("n", [40, 44, 2501, 39, 27])
def test_as_exact_as_float32_can_hold(n, rcond):
    for cond in (10.0, 1e4, 1e6):
        x, y = anchors(n, 40, 7, cond=cond)
        expected = expected_weight(x, y, rcond=8 * EPS if rcond is None else rcond)
        weight = sa.fit_linear(x, y, rcond=rcond).weight
        error, floor = error_and_floor(x, weight, expected)
        assert error < 1.5 * floor + 1e-6, cond


def test_no_cut_off_but_that_of_rounding():
    x, y = anchors(100, 40, 7, cond=1e6)
    weight = sa.fit_linear(x, y, rcond=0.0).weight
    error, floor = error_and_floor(x, weight, expected_weight(x, y, rcond=2 * EPS))
    assert error < 1.5 * floor + 1e-6


@pytest.mark.parametrize("n", [60, 12, 6])
def test_float64_anchors_by_qr_or_singular_values(n):
    with jax.enable_x64(True):
        rng = np.random.default_rng(n)
        rank = min(n, 12)
        for condition, rcond in ((1e2, None), (1e9, None), (1e9, 1e-6)):
            spectrum = np.geomspace(1, 1 / condition, rank)
            x = (rotation(n, rng)[:, :rank] * spectrum) @ rotation(12, rng)[:, :rank].T
            y = rng.standard_normal((n, 3))
            best = np.linalg.lstsq(x, y, rcond=1e-14 if rcond is None else rcond)[0]
            got = np.asarray(sa.fit_linear(x, y, rcond=rcond).weight)
            assert np.abs(got - best).max() < 100 * 2e-16 * condition * np.abs(best).max()


def test_a_target_that_is_not_finite_spoils_no_other():
    x, y = anchors(60, 40, 7, cond=10.0)
    targets = np.stack([y, np.full_like(y, np.nan), 2 * y])

    def fit(x, y):
        return sa.fit_linear(x, y).weight

    found = np.asarray(jax.vmap(fit, in_axes=(None, 0))(x, targets))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], fit(x, y), atol=1e-6)
    np.testing.assert_allclose(found[2], fit(x, 2 * y), atol=1e-6)
    assert np.isnan(jax.jit(fit)(targets[1, :, :5], y)).all()


@pytest.mark.parametrize("n", [175, 192])
def test_centred_anchors_are_computed_once(n):
    # Otherwise, if XLA fuses what led to them, the Gram matrix and what is made of it would be of
    # rows that differ by a rounding.
    d = 256
    x, y = (side.astype(np.float32) for side in helpers.anchors(n, d, d, cond=1e6))
    fit = jax.jit(lambda x, y: sa.fit_affine(x, y, rcond=0.0))
    options: Any = {"xla_backend_optimization_level": 3}
    optimised = fit.lower(x, y).compile(compiler_options=options)
    wide, target = x.astype(np.float64), y.astype(np.float64)
    a, b = wide - wide.mean(0), target - target.mean(0)
    expected = a @ np.linalg.lstsq(a, b, rcond=1e-13)[0]
    weight, start, end = (np.asarray(part, np.float64) for part in jax.tree.leaves(optimised(x, y)))
    predicted = (wide - start) @ weight + end - target.mean(0)
    assert relative(predicted, expected) < 1e-3


@pytest.mark.parametrize(
    ("ridge", "rcond"), [(1e-12, None), (1e-4, None), (1.0, None), (1e-4, 1e-3)]
)
@pytest.mark.parametrize("n", [60, 30])
def test_ridge(n, ridge, rcond):
    x, y = anchors(n, 40, 7, cond=1e6)
    expected = expected_weight(x, y, ridge=ridge, rcond=rcond or 2 * EPS)
    weight = sa.fit_linear(x, y, ridge=ridge, rcond=rcond).weight
    error, floor = error_and_floor(x, weight, expected)
    assert error < 2 * floor + 1e-6


@pytest.mark.parametrize("rcond", [0.0, None])
@pytest.mark.parametrize("n", [100, 38])
def test_dependent_columns_give_the_smallest_solution(n, rcond):
    x, y = anchors(n, 40, 7, cond=10.0)
    x[:, 20:] = x[:, :20]  # exactly, in float32
    expected = expected_weight(x, y, rcond=1e-6)
    weight = np.asarray(sa.fit_linear(x, y, rcond=rcond).weight)
    np.testing.assert_allclose(weight, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("ridge", "dtype"), latin([0.0, 0.1], ["float32", "float64"]))
def test_weights_of_zero_are_inert(ridge, dtype):
    """CASES-2, 3: 16 rows of 24 dimensions, 8 of them of weight zero."""
    with jax.enable_x64(dtype == "float64"):
        for shape, active in (((16, 24, 5), 8), ((100, 40, 7), 30)):
            x, y = (side.astype(dtype) for side in helpers.anchors(*shape, cond=10))
            expected = sa.fit_affine(x[:active], y[:active], ridge=ridge).weight
            weights = np.arange(len(x)) < active
            x[~weights] = np.nan
            weight = sa.fit_affine(x, y, weights=weights, ridge=ridge).weight
            np.testing.assert_allclose(weight, expected, atol=2e-5 * np.abs(expected).max())


def test_zero_and_nan_anchors():
    zero, y = np.zeros((50, 40), np.float32), np.ones((50, 3), np.float32)
    for rcond in (None, 0.0):
        assert not np.any(sa.fit_linear(zero, y, rcond=rcond).weight)
        nan = sa.fit_linear(zero * np.nan, y, rcond=rcond, validate=False).weight
        assert np.isnan(nan).any()


def test_under_transformations():
    pairs = [anchors(50, 40, 7, cond=1e3, seed=seed) for seed in (0, 1)]
    x, y = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    one = lambda x, y, **options: sa.fit_linear(x, y, **options).weight  # noqa: E731
    expected = np.asarray(one(x[1], y[1]))
    bound = 1e-5 * np.abs(expected).max()

    def close(found, expected, place: Any = ...):
        np.testing.assert_allclose(np.asarray(found)[place], expected, atol=bound)

    close(jax.jit(jax.vmap(jax.jit(one)))(x, y), expected, 1)
    close(jax.vmap(jax.vmap(one))(x[None], y[None]), expected, (0, 1))
    close(jax.vmap(jax.vmap(one, (None, 0)), (0, None))(x, y), expected, (1, 1))
    close(jax.jit(partial(jax.lax.map, lambda pair: one(*pair)))((x, y)), expected, 1)
    close(jax.checkpoint(one)(x[1], y[1]), expected)
    batched = jax.vmap(lambda ridge: one(x[1], y[1], ridge=ridge))(np.array([1e-3, 1], "f"))
    close(batched, one(x[1], y[1], ridge=1.0), 1)
    batched = jax.vmap(lambda rcond: one(x[1], y[1], rcond=rcond))(np.array([0, 1e-2], "f"))
    close(batched, one(x[1], y[1], rcond=1e-2), 1)
    with jax.enable_x64(True):
        close(one(x[1], y[1]), expected)


def test_what_only_derivatives_need_is_not_computed():
    x, y = anchors(50, 40, 7, cond=1e3)
    text = jax.jit(lambda x, y: sa.fit_linear(x, y).weight).lower(x, y).compile().as_text() or ""
    assert "geqrf" not in text
    assert "gesdd" not in text


def test_the_derivative_is_that_of_float64():
    x, y = anchors(60, 40, 7, cond=10.0)
    loss = lambda x, y: jnp.sum(jnp.sin(sa.fit_linear(x, y).weight))  # noqa: E731
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    gradients = slopes(x, y)
    with jax.enable_x64(True):
        expected = slopes(x.astype(np.float64), y.astype(np.float64))
    for got, exact in zip(gradients, expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, exact, atol=1e-4 * np.abs(exact).max())


def test_float64_is_used_on_cpus_and_gpus_only():
    x, y = anchors(60, 40, 7, cond=10.0)
    fit = jax.jit(lambda x, y: sa.fit_linear(x, y).weight).trace(x, y)
    for platform, wide in (("cpu", True), ("cuda", True), ("tpu", False)):
        text = fit.lower(lowering_platforms=(platform,)).as_text()
        assert ("xf64>" in text) == wide, platform


@pytest.mark.parametrize("n", [4096, 160])
def test_sharded_rows_are_not_gathered(n):
    mesh = Mesh(np.array(jax.devices("cpu")), ("rows",))
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    x, y = anchors(n, 6, 5, cond=10.0)
    sides = [jax.device_put(a, sharding) for a in (x, y)]
    compiled = jax.jit(lambda x, y: sa.fit_linear(x, y).weight).lower(*sides).compile()
    text = compiled.as_text() or ""
    assert "all-reduce" in text
    assert "all-gather" not in text
    expected = sa.fit_linear(x, y).weight
    np.testing.assert_allclose(compiled(*sides), expected, atol=1e-6)
