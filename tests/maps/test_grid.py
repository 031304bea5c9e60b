"""Random problems of every kind, against float64's optimum.

Some hundred in the test run; 3,000 under the mark `slow`, which `.ci/run` runs. The problems of one
shape and one kind of fit go through one compiled program, each once more with its rows permuted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import half, polar, prepared

import semalign_jax as sa

#: Few anchors, about as many as dimensions, and many.
SHAPES = [(4, 7, 7), (5, 7, 4), (7, 4, 7), (8, 7, 7), (20, 7, 7), (20, 4, 7), (1, 4, 7)]
FITS: list[tuple[Any, dict[str, Any]]] = [
    ("affine", {}),
    ("affine", {"ridge": 0.3, "normalize": "isotropic"}),
    ("linear", {}),
    ("linear", {"ridge": 1e-3}),
    ("l-ortho", {"normalize": "center"}),
    ("l-ortho", {"ridge": 0.1}),
    ("ortho", {}),
    ("ortho", {"normalize": "isotropic"}),
]


def problem(rng, shape):
    """Anchors with a random condition up to 1e6, faults and weights."""
    n, d_in, d_out = shape
    condition = 10 ** rng.uniform(0, 6)
    x = rng.standard_normal((n, d_in)) * np.geomspace(1, 1 / condition, d_in)
    x = x @ np.linalg.qr(rng.standard_normal((d_in, d_in)))[0]
    y = rng.standard_normal((n, d_out)) + (x @ rng.standard_normal((d_in, d_out)))
    fault = rng.integers(7)
    if fault == 1:  # repeated texts
        y = y[rng.integers(max(1, n // 3), size=n)]
    elif fault == 2:  # repeated anchors
        again = rng.integers(n, size=n)
        x, y = x[again], y[again]
    elif fault == 3:
        x[:, rng.integers(d_in)] = 0
        y[:, rng.integers(d_out)] = 0
    elif fault == 4:
        x[:, rng.integers(d_in)] = 14.62
        y[:, rng.integers(d_out)] = -3
    elif fault == 5:
        x, y = x + 100, y - 30
    elif fault == 6:
        x[:, -1] = x[:, 0]
    weights = np.ones(n)
    if rng.random() < 0.5:
        weights = rng.uniform(0.1, 2, n) * (rng.random(n) < 0.7)
        weights[0] = 1
    return x, y, weights


def check(method, options, x, y, weights, weight, eps):
    """Within 60 machine epsilons of the constraint and the optimum, in the normalised spaces."""
    ridge, normalize = options.get("ridge", 0.0), options.get("normalize", "none")
    center = method == "affine" or normalize != "none"
    (a, mean_x, scale_x), (b, mean_y, scale_y) = prepared(
        x, y, center=center, weights=weights, normalize=normalize
    )
    for mean, scale in ((mean_x, scale_x), (mean_y, scale_y)):
        if np.any(scale < 1e-5 * np.abs(mean).max()):
            return  # a side of one repeated row has no scale but rounding
    weight = weight * scale_x[:, None] / scale_y[None, :]
    # Rounding of the anchors themselves, before means are taken off.
    total = np.sum(weights) ** 0.5
    size_a = np.linalg.norm(a) + total * np.linalg.norm(mean_x / scale_x)
    size_b = np.linalg.norm(b) + total * np.linalg.norm(mean_y / scale_y)
    if method in ("affine", "linear"):
        augmented = np.concatenate([a, np.sqrt(ridge) * np.eye(a.shape[1])])
        padded = np.concatenate([b, np.zeros(weight.shape)])
        s = np.linalg.svd(a, compute_uv=False)
        # What lies below the cut-off is given up on purpose, and what is near it may be.
        cut = 0.0 if ridge else 20 * eps * (1e-300 + size_a)
        best = np.linalg.lstsq(augmented, padded, rcond=max(cut / s.max(initial=1e-300), 1e-15))[0]
        got, least = (np.linalg.norm(augmented @ w - padded) for w in (weight, best))
        # A weight, rounded, moves predictions by eps ||a|| ||w||; rounded anchors by as much, and
        # by eps ||a|| times what the residual is worth in weights.
        smallest = max(s[s > cut].min(initial=np.inf), ridge**0.5)
        moved = size_a * (np.linalg.norm(weight) + least / smallest) + size_b
        assert got <= least + 60 * eps * moved
        return
    square = weight if weight.shape[0] <= weight.shape[1] else weight.T
    assert np.abs(square @ square.T - np.eye(len(square))).max() < 60 * eps
    if method == "ortho":
        m = a.T @ b
        singular = np.linalg.svd(m, compute_uv=False)
        # What is completed gives up at most twice what it is worth: 8 eps of the largest each.
        given_up = 2 * singular[singular <= 10 * eps * singular.max(initial=0)].sum()
        assert np.sum(weight * polar(m)) <= len(square) * (1 + 60 * eps)
        assert singular.sum() - np.sum(weight * m) <= 60 * eps * size_a * size_b + given_up


def run(method, options, shape, seeds, dtype):
    rng = np.random.default_rng(seeds)
    problems = []
    for _ in range(len(seeds)):
        found = problem(rng, shape)
        order = rng.permutation(shape[0])
        problems += [found, tuple(part[order] for part in found)]
    with jax.enable_x64(dtype == "float64"):
        stacked = [np.stack(parts).astype(dtype) for parts in zip(*problems, strict=True)]
        fit = partial(sa.fit, method, validate=False, **options)

        @jax.jit
        def fit_all(*parts):
            return jax.lax.map(lambda one: fit(*one[:2], weights=one[2]).weight, parts)

        weights = np.asarray(fit_all(*map(jnp.asarray, stacked)), np.float64)
    eps = float(np.finfo(dtype).eps)
    for i, one in enumerate(zip(*stacked, weights, strict=True)):
        assert np.isfinite(one[3]).all(), i
        x, y, used, weight = (part.astype(np.float64) for part in one)
        check(method, options, x, y, used, weight, eps)


@pytest.mark.parametrize("number", range(len(FITS)))
def test_some_random_problems(number):
    method, options = FITS[number]
    for i, dtype in enumerate(("float32", "float64")):
        run(method, options, SHAPES[(2 * number + 3 * i) % len(SHAPES)], range(15), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "shape", "dtype"), half(FITS, SHAPES, ["float32", "float64"]), ids=str
)
def test_many_random_problems(fit, shape, dtype):
    method, options = fit
    run(method, options, shape, range(100, 154), dtype)
