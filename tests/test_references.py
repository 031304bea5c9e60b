"""The four maps against their definitions in float64 NumPy and SciPy."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from helpers import METHODS, anchors, condition, half, prepared, reference, relative, some

import semalign_jax as sa

SIZES = (1, 2, 8, 64, 384, 768)
SQUARE = [(n, d, d) for d in SIZES for n in sorted({max(1, d // 2), d, 2 * d + 3})]
UNEQUAL = [
    (24, 8, 5),
    (24, 5, 8),
    (4, 8, 5),
    (4, 5, 8),
    (7, 8, 5),
    (100, 64, 384),
    (100, 384, 64),
    (900, 768, 384),
    (200, 384, 768),
]


@cache
def problem(n, d_in, d_out, cond):
    # Rounded to float32, so that both precisions have the same reference.
    x, y = anchors(n, d_in, d_out, cond=cond)
    return x.astype(np.float32), y.astype(np.float32), anchors(50, d_in, d_out, seed=1)[0]


# Least squares of centred anchors or others, and the polar factor of its solution or of x^T y, are
# the same functions in both precisions.
@pytest.mark.parametrize(
    ("shape", "method", "precision"),
    some(half(SQUARE + UNEQUAL, ["affine", "linear"], ["x32", "x64"]), 9),
    indirect=["precision"],
)
def test_least_squares_predicts_like_numpy(shape, method, precision):
    n, d_in, d_out = shape
    x, y, test = problem(n, d_in, d_out, 100)
    weight, bias = reference(method, x, y)
    dtype = np.float64 if precision == "x64" else np.float32
    fitted = sa.fit(method, x.astype(dtype), y.astype(dtype))
    assert fitted.weight.dtype == dtype
    # NumPy's own float64 solution is this uncertain too.
    cond = condition(prepared(x, y, center=method == "affine")[0][0])
    tolerance = 1e-12 + 30 * np.finfo(dtype).eps * cond
    expected = test @ weight + bias
    assert np.abs(np.asarray(fitted(test.astype(dtype))) - expected).max() <= tolerance * np.abs(
        expected
    ).max(initial=1)


@pytest.mark.parametrize(
    ("shape", "method", "precision"),
    some(half(SQUARE + UNEQUAL, ["l-ortho", "ortho"], ["x32", "x64"]), 9),
    indirect=["precision"],
)
def test_orthogonal_maps_reach_the_optimum(shape, method, precision):
    n, d_in, d_out = shape
    x, y, _ = problem(n, d_in, d_out, 10)
    (a, *_), (b, *_) = prepared(x, y, center=True)
    matrix = a.T @ b if method == "ortho" else reference("linear", x, y, normalize="center")[0]
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    dtype = np.float64 if precision == "x64" else np.float32
    fitted = sa.fit(method, x.astype(dtype), y.astype(dtype), normalize="center")
    weight = np.asarray(fitted.weight, np.float64)
    eps = np.finfo(dtype).eps
    gram = weight.T @ weight if d_in >= d_out else weight @ weight.T
    assert np.abs(gram - np.eye(len(gram))).max() < 50 * eps
    assert np.sum(weight * matrix) >= s.sum() * (1 - 50 * eps)
    if min(n - 1, d_in, d_out) == len(s) and len(s) > 0:
        # Full rank: the optimum is unique.
        noise = condition(a) if method == "l-ortho" else 1
        assert relative(weight, u @ vt) < 20 * eps * noise * s[0] / s[-1]


def test_ortho_is_scipy_orthogonal_procrustes(precision):
    x, y = anchors(300, 64, 64, cond=10)
    expected = scipy.linalg.orthogonal_procrustes(x, y)[0]
    dtype = np.float64 if precision == "x64" else np.float32
    fitted = sa.fit_ortho(x.astype(dtype), y.astype(dtype))
    assert relative(fitted.weight, expected) < (1e-11 if precision == "x64" else 1e-3)


@pytest.mark.parametrize(
    ("method", "d", "precision"),
    some(half(METHODS, [8, 64, 384], ["x32", "x64"]), 5),
    indirect=["precision"],
)
def test_condition_1e6_is_not_truncated(method, d, precision):
    x, y, _ = problem(4 * d, d, d, 1e6)
    weight, bias = reference(method, x, y)
    dtype = np.float64 if precision == "x64" else np.float32
    fitted = sa.fit(method, x.astype(dtype), y.astype(dtype), rcond=0.0)
    if method in ("affine", "linear"):
        # The weights reach 1e5: applying even the exact map in float32 costs digits.
        expected = x.astype(np.float64) @ weight + bias
        exact = x.astype(dtype) @ weight.astype(dtype) + bias.astype(dtype)
        assert relative(fitted(x.astype(dtype)), expected) < 3 * relative(exact, expected) + 1e-9
    else:
        (a, *_), (b, *_) = prepared(x, y, center=False)
        matrix = a.T @ b if method == "ortho" else reference("linear", x, y)[0]
        bound = 1e-5 if method == "ortho" else 1e-3
        nuclear = np.linalg.svd(matrix, compute_uv=False).sum()
        assert np.sum(np.asarray(fitted.weight, np.float64) * matrix) > nuclear * (1 - bound)


@pytest.mark.parametrize(
    ("method", "normalize", "precision"),
    some(half(METHODS, ["none", "center", "standard", "isotropic"], ["x32", "x64"]), 3),
    indirect=["precision"],
)
def test_options_together(method, normalize, precision):
    x, y = anchors(30, 6, 6, cond=5, offset=3.0)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 3, 30) * (rng.random(30) < 0.8)
    options: dict[str, Any] = dict(normalize=normalize, weights=weights, ridge=0.4)
    if "ortho" in method:
        options["scale"] = True
    weight, bias = reference(method, x, y, **options)
    dtype = np.float64 if precision == "x64" else np.float32
    options["weights"] = weights.astype(dtype)
    fitted = sa.fit(method, x.astype(dtype), y.astype(dtype), **options)
    tolerance = 1e-9 if precision == "x64" else 1e-3
    np.testing.assert_allclose(fitted.weight, weight, atol=tolerance)
    np.testing.assert_allclose(fitted.bias, bias, atol=10 * tolerance)
