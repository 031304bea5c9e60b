"""Fits from statistics equal fits to the anchors: streamed, merged, in either precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, latin, reference, relative, some
from hypothesis import given
from hypothesis import strategies as st

import semalign_jax as sa

NORMALIZE = ("none", "center", "standard", "isotropic")


def stats_of(x, y, weights=None, parts=1, dtype=jnp.float64):
    stats = sa.maps.init_stats(x.shape[1], y.shape[1], dtype=dtype)
    for rows in np.array_split(np.arange(len(x)), parts):
        batch = None if weights is None else weights[rows]
        stats = sa.maps.update_stats(stats, x[rows], y[rows], weights=batch)
    return stats


@pytest.mark.parametrize(("method", "normalize"), latin(METHODS, NORMALIZE))
def test_fit_from_stats_equals_the_fit_to_the_anchors(method, normalize):
    x, y = anchors(60, 6, 5, cond=5, offset=2.0)
    weights = np.random.default_rng(0).uniform(0.2, 2, 60)
    options: dict[str, Any] = dict(normalize=normalize, ridge=0.3, ridge_unit="gram")
    if "ortho" in method:
        options["scale"] = True
    expected = sa.fit(method, x, y, weights=weights, **options)
    fitted = sa.fit_from_stats(method, stats_of(x, y, weights, parts=4), **options)
    np.testing.assert_allclose(fitted.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(fitted.bias, expected.bias, atol=1e-9)


@pytest.mark.parametrize(("method", "shape"), latin(METHODS, [(3, 6, 6), (3, 5, 8), (3, 8, 5)]))
def test_rank_deficient_stats_equal_the_fit(method, shape):
    x, y = anchors(*shape, cond=3)
    fitted = sa.fit_from_stats(method, stats_of(x, y), normalize="center")
    expected = sa.fit(method, x, y, normalize="center")
    np.testing.assert_allclose(fitted.weight, expected.weight, atol=1e-6)


def test_rotation_only_and_partial():
    x, y = anchors(4, 6, 6, cond=3)
    cases: list[dict[str, Any]] = [dict(rotation_only=True), dict(completion="partial")]
    for options in cases:
        fitted = sa.fit_from_stats("ortho", stats_of(x, y), **options)
        np.testing.assert_allclose(fitted.weight, sa.fit_ortho(x, y, **options).weight, atol=1e-7)


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(11, 19))
def test_merging_is_associative_and_equals_one_pass(seed, i, j):
    x, y = anchors(20, 4, 3, seed=seed, offset=10)
    weights = np.random.default_rng(seed).uniform(0, 2, 20)
    a, b, c = (
        stats_of(x[rows], y[rows], weights[rows])
        for rows in (slice(0, i), slice(i, j), slice(j, 20))
    )
    whole = stats_of(x, y, weights)
    for merged in (
        sa.maps.merge_stats(sa.maps.merge_stats(a, b), c),
        sa.maps.merge_stats(a, sa.maps.merge_stats(b, c)),
        sa.maps.merge_stats(c, sa.maps.merge_stats(b, a)),
    ):
        for one, two in zip(merged, whole, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-10)


def test_zero_weight_rows_are_exactly_inert():
    x, y = anchors(9, 4, 3)
    weights = np.where(np.arange(9) < 6, 1.5, 0.0)
    clean = stats_of(x, y, weights)
    x[6:], y[6:] = np.nan, np.inf
    for one, two in zip(stats_of(x, y, weights), clean, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_large_offset_costs_no_digits_in_float32():
    x, y = (a.astype(np.float32) for a in anchors(2000, 16, 16, cond=5, offset=1e4))
    with jax.enable_x64(False):
        stats = stats_of(x, y, parts=20, dtype=jnp.float32)
        for method in METHODS:
            fitted = sa.fit_from_stats(method, stats, normalize="center")
            expected, _ = reference(method, x, y, normalize="center")
            assert relative(fitted.weight, expected) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_streaming_in_float64_survives_condition_1e6_with_64_bit_types_off(method):
    x, y = (a.astype(np.float32) for a in anchors(400, 32, 32, cond=1e6))
    seen = []
    with jax.enable_x64(False):
        stats = sa.accumulate_stats(sa.maps.row_batches(x, y, 90), progress=seen.append)
        assert seen == [90, 180, 270, 360, 400]
        fitted = sa.fit_from_stats(method, stats)
        assert fitted.weight.dtype == jnp.float32
    weight, bias = reference(method, x, y)
    x64 = x.astype(np.float64)
    got = x64 @ np.asarray(fitted.weight, np.float64) + np.asarray(fitted.bias, np.float64)
    assert relative(got, x64 @ weight + bias) < 1e-3


def test_memory_mapped_files_and_weights(tmp_path):
    x, y = anchors(5000, 3, 2, offset=7)
    weights = np.random.default_rng(0).integers(0, 3, 5000).astype(float)
    x[weights == 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    mapped_x, mapped_y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    stats = sa.accumulate_stats(sa.maps.row_batches(mapped_x, mapped_y, 4500, weights=weights))
    expected = sa.fit_affine(x, y, weights=weights)
    fitted = sa.fit_from_stats("affine", stats)
    np.testing.assert_allclose(fitted.weight, expected.weight, atol=1e-9)
    squares = float((weights**2).sum())
    assert float(stats.weight_square_sum) == pytest.approx(squares)


def test_two_million_streamed_rows_of_y_equal_3x():
    def batches():
        rng = np.random.default_rng(0)
        for _ in range(20):
            x = rng.standard_normal((100_000, 4), dtype=np.float32)
            yield x, 3 * x

    fitted = sa.fit_from_stats("linear", sa.accumulate_stats(batches()))
    np.testing.assert_allclose(fitted.weight, 3 * np.eye(4), atol=1e-6)


@pytest.mark.parametrize("method", some(METHODS))
def test_gradients_flow_through_the_statistics(method):
    x, y = anchors(30, 4, 4, cond=3)
    probe = np.random.default_rng(0).standard_normal((4, 4))

    def by_stats(x):
        stats = sa.maps.update_stats(sa.maps.init_stats(4, 4, dtype=x.dtype), x, y)
        return jnp.vdot(sa.fit_from_stats(method, stats).weight, probe)

    def by_anchors(x):
        return jnp.vdot(sa.fit(method, x, y).weight, probe)

    expected = jax.jit(jax.grad(by_anchors))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(by_stats))(x), expected, atol=1e-8)


def test_bad_input_is_named():
    x, y = anchors(6, 3, 2)
    stats = stats_of(x, y)
    with pytest.raises(ValueError, match="must have 3 and 2 features"):
        sa.maps.update_stats(stats, x[:, :2], y)
    with pytest.raises(ValueError, match=r"dimensions of first, \(3, 2\); got \(1, 2\)"):
        sa.maps.merge_stats(sa.maps.init_stats(3, 2), sa.maps.init_stats(1, 2))
    with pytest.raises(TypeError, match="stats must be a PairStats"):
        sa.fit_from_stats("ortho", (x, y))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hold no anchors"):
        sa.fit_from_stats("ortho", sa.maps.init_stats(3, 2))
    with pytest.raises(ValueError, match="weights is not an option of fit_from_stats"):
        sa.fit_from_stats("ortho", stats, weights=np.ones(6))
    with pytest.raises(ValueError, match="batches is empty"):
        sa.accumulate_stats([])
    with pytest.raises(ValueError, match="first in row 7"):
        sa.accumulate_stats([(x, y), (np.where(np.arange(6)[:, None] == 1, np.nan, x), y)])
    with pytest.raises(ValueError, match=r"same number of rows; got \(6, \d\) and \(5, \d\)$"):
        sa.accumulate_stats([(x, y[:5])])
    with pytest.raises(ValueError, match=r"weights must be \[6\], as x has rows; got \(5,\)"):
        sa.accumulate_stats([(x, y, np.ones(5))])
    with pytest.raises(TypeError, match="floats of at most 64 bits"):
        sa.accumulate_stats([(x.astype(int), y)])
    for batch, name in (((np.ma.masked_less(x, 0), y), "x"), ((x, y, np.ma.ones(6)), "weights")):
        with pytest.raises(TypeError, match=f"{name} is a masked array"):
            sa.accumulate_stats([batch])
    with pytest.raises(ValueError, match="differ in rows"):
        sa.maps.row_batches(x, y[:4], 2)
