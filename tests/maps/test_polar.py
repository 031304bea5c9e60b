"""Orthogonal maps: the polar factor, and where the data leave it undetermined."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, completed, half, latin, rotation, some

import semalign_jax as sa

EPS32 = 2.0**-23


def spread(d_in: int, d_out: int, condition, seed=0):
    """A matrix with geometric singular values from 1 to 1 / condition."""
    rng = np.random.default_rng(seed)
    k = min(d_in, d_out)
    u, v = rotation(d_in, rng)[:, :k], rotation(d_out, rng)[:, :k]
    return (u * np.geomspace(1, 1 / condition, k)) @ v.T


def orthogonality_error(weight):
    q = np.asarray(weight, np.float64)
    q = q if q.shape[0] >= q.shape[1] else q.T
    return np.abs(q.T @ q - np.eye(q.shape[1])).max()


@pytest.mark.parametrize("shape", [(48, 48), (64, 24), (24, 64)], ids=str)
def test_polar_factor_bounds_in_float32(shape):
    with jax.enable_x64(False):
        for condition, scale in itertools.product([1, 1e2, 1e6, 1e8, 1e12], [1e-20, 1.0, 1e20]):
            m = jnp.asarray(scale * spread(shape[0], shape[1], condition), jnp.float32)
            q = np.asarray(sa.polar_factor(m), np.float64)
            assert orthogonality_error(q) < 60 * EPS32
            singular = np.linalg.svd(np.asarray(m, np.float64), compute_uv=False)
            best = singular.sum()
            # What the completion of undetermined directions may give up on purpose.
            given_up = 2 * singular[singular <= 1.1 * 8 * EPS32 * singular[0]].sum() / best
            assert 1 - np.sum(q * np.asarray(m, np.float64)) / best < 1e-6 + given_up


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_undetermined_directions_are_the_identity(shape, precision):
    del precision
    eye = np.eye(*shape, dtype=np.float32)
    for m in (np.zeros(shape, np.float32), 1e-30 * eye, eye * (np.arange(shape[1]) < 2)):
        q = sa.polar_factor(jnp.asarray(m, jnp.float32))
        np.testing.assert_allclose(q, eye, atol=1e-6)


@pytest.mark.parametrize(
    ("missing", "shape"), latin([1, 3, 6, 7, 12], [(12, 12), (14, 12), (12, 14)])
)
def test_the_completion_by_its_definition(missing, shape):
    """Nearest to the identity between what is undetermined, of the smaller space padded."""
    rng = np.random.default_rng(missing)
    k = 12 - missing
    u, v = rotation(shape[0], rng)[:, :k], rotation(shape[1], rng)[:, :k]
    m = (u * np.geomspace(1, 1e-3, k)) @ v.T
    expected = completed(m)
    by_matrix = jax.jit(partial(sa.polar_factor, rcond=1e-10))
    np.testing.assert_allclose(by_matrix(m), expected, atol=1e-9)
    # The same from as many anchors, by the thin path if they are few.
    if k:
        x, y = (u * np.geomspace(1, 1e-3, k)).T, v.T
        np.testing.assert_allclose(sa.fit_ortho(x, y).weight, expected, atol=1e-9)


def permuted(fit, x, y, seed=0):
    """How far the predictions on new data move if the anchors are permuted, and the map."""
    rng = np.random.default_rng(seed)
    new = rng.standard_normal((50, x.shape[1])).astype(x.dtype)
    fitted = fit(x, y)
    before = np.asarray(fitted(new), np.float64)
    order = rng.permutation(len(x))
    after = np.asarray(fit(x[order], y[order])(new), np.float64)
    return np.linalg.norm(after - before) / np.linalg.norm(before), fitted


@pytest.mark.parametrize(
    ("shape", "method", "normalize"),
    some(half([(60, 64, 20), (300, 96, 20)], ["ortho", "l-ortho"], ["none", "center"])),
)
def test_repeated_texts_leave_directions_open_whatever_their_order(shape, method, normalize):
    """CASES-2, 1: the number of directions is that of the texts, and noise decides nothing."""
    n, d, texts = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = rng.standard_normal((texts, d)).astype(np.float32)[np.arange(n) % texts]
    with jax.enable_x64(False):
        options: dict[str, Any] = dict(normalize=normalize) | (
            dict(ridge=0.1) if method == "l-ortho" else {}
        )
        moved, fitted = permuted(partial(sa.fit, method, **options), x, y)
        _, info = sa.fit(method, x, y, info=True, **options)
    assert moved < 1e-4
    assert info.rank == texts - (normalize == "center")
    with jax.enable_x64(True):
        wide = sa.fit(method, x.astype(np.float64), y.astype(np.float64), **options).weight
    assert np.abs(np.asarray(fitted.weight) - np.asarray(wide)).max() < 1e-3


@pytest.mark.slow
def test_ties_of_the_completion_are_broken_the_same_way_everywhere():
    """A dimension that is zero in the source, and another one in the target: +1 or -1?"""
    rng = np.random.default_rng(0)
    for n in (4, 7, 40):  # few anchors; about as many as dimensions; many
        for shape in ((9, 9), (9, 7), (7, 9)):
            x, y = (rng.standard_normal((n, d)) for d in shape)
            x[:, 0] = y[:, 1] = 0
            moved, fitted = permuted(sa.fit_ortho, x, y)
            assert moved < 1e-12
            assert orthogonality_error(fitted.weight) < 1e-13
            stats = sa.accumulate_stats([(x, y)])
            by_stats = sa.fit_from_stats("ortho", stats).weight
            np.testing.assert_allclose(by_stats, fitted.weight, atol=1e-12)
            with jax.enable_x64(False):
                narrow = sa.fit_ortho(x.astype(np.float32), y.astype(np.float32)).weight
            np.testing.assert_allclose(narrow, fitted.weight, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "method", "completion"),
    some(
        half(
            [(4, 12, 12), (8, 12, 12), (11, 12, 12), (3, 12, 10), (8, 10, 12)],
            ["ortho", "l-ortho"],
            ["orthogonal", "partial"],
        ),
        3,
    ),
)
def test_few_anchors_and_padded_ones_give_the_same_map(shape, method, completion):
    """Rows of weight zero make the same problem one of many anchors, another algorithm."""
    x, y = anchors(*shape, cond=3)
    options: dict[str, Any] = dict(completion=completion, normalize="center", ridge=0.1)
    expected = sa.fit(method, x, y, **options)
    x, y = (np.concatenate([side, np.full_like(side, np.nan), side]) for side in (x, y))
    weights = np.arange(len(x)) < shape[0]
    got = sa.fit(method, x, y, weights=weights, **options)
    np.testing.assert_allclose(got.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(got.bias, expected.bias, atol=1e-9)


@pytest.mark.parametrize("completion", ["orthogonal", "partial"])
def test_isometry_of_few_anchors_at_its_rank(completion):
    x, y = anchors(6, 12, 12, cond=3)
    x[5], y[5] = x[0], y[0]
    weight = np.asarray(sa.fit_ortho(x, y, completion=completion).weight)
    s = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(s, np.arange(12) < (5 if completion == "partial" else 12), atol=1e-9)


def test_an_svd_that_fails_is_done_again(monkeypatch):
    """LAPACK's divide and conquer gives NaN now and then; here always."""
    from jax import lax

    plain = lax.linalg.svd

    def failing(a, **options):
        found = plain(a, **options)
        by_qr = options.get("algorithm") == lax.linalg.SvdAlgorithm.QR
        return found if by_qr else tuple(jnp.full_like(part, jnp.nan) for part in found)

    x, y = anchors(30, 5, 5)
    expected = sa.fit_ortho(x, y).weight
    jax.clear_caches()
    monkeypatch.setattr(jnp.linalg, "svd", lambda a, **_: failing(a, full_matrices=False))
    np.testing.assert_allclose(sa.fit_ortho(x, y).weight, expected, atol=1e-12)
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize("scales", [(1e-25, 1e-25), (1e25, 1e25), (1e30, 1e-30), (1e-18, 1.0)])
def test_units_out_of_the_range_of_products(scales):
    x, y = (
        np.float32(scale * side)
        for scale, side in zip(scales, anchors(50, 6, 6, cond=3), strict=True)
    )
    wide: Any = [np.asarray(side, np.float64) for side in (x, y)]
    expected = completed(wide[0].T @ wide[1])
    np.testing.assert_allclose(sa.fit_ortho(x, y).weight, expected, atol=2e-5)


def lowered_for(platform, function, *arguments):
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    return lowered.as_text().lower()


def test_singular_values_on_gpus_are_those_of_float64():
    x = jnp.ones((20, 6), jnp.float32)
    fit = partial(sa.fit_ortho, completion="partial")
    with jax.enable_x64(False):
        for platform, wide in (("cuda", True), ("cpu", False), ("tpu", False)):
            assert ("xf64>" in lowered_for(platform, fit, x, x)) == wide, platform
