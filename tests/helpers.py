"""Anchors with a known condition number, and float64 references by NumPy and SciPy."""

import itertools

import numpy as np
import pytest


def rotation(d, rng):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def anchors(n, d_in, d_out, *, cond=1e2, offset=0.0, seed=0):
    """Correlated anchors [n, d_in], [n, d_out] with covariances of condition `cond`**2."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, max(d_in, d_out)))
    x = (latent[:, :d_in] * np.geomspace(1, 1 / cond, d_in)) @ rotation(d_in, rng)
    noisy = latent[:, :d_out] + 0.3 * rng.standard_normal((n, d_out))
    y = (noisy * np.geomspace(1, 1 / cond, d_out)) @ rotation(d_out, rng)
    return x + offset, y - offset


def polar(m):
    u, _, vt = np.linalg.svd(m, full_matrices=False)
    return u @ vt


def completed(m, completion="orthogonal", rcond=1e-10):
    """The polar factor; what `m` leaves open is as near to the identity as can be, or zero.

    Of the smaller space padded by zeros, and between the spaces of what is open on both sides.
    """
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    kept = s > rcond * s.max(initial=0)
    if kept.all() or completion == "partial":
        return u[:, kept] @ vt[kept]
    d = max(m.shape)
    u, v = (np.pad(a[:, kept], ((0, d - len(a)), (0, 0))) for a in (u, vt.T))
    rest = (np.eye(d) - u @ u.T) @ (np.eye(d) - v @ v.T)
    # The polar factor keeps apart what has no direction in common.
    return polar(2 * u @ v.T + rest)[: m.shape[0], : m.shape[1]]


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


METHODS = ("affine", "linear", "l-ortho", "ortho")


def prepared(x, y, *, center, weights=None, normalize="none"):
    """Centred, scaled and weighted anchors of both sides, and how to undo that."""
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    sides = []
    for data in (x, y):
        data = np.where(w[:, None] > 0, np.asarray(data, np.float64), 0)
        mean = w @ data / w.sum() if center else np.zeros(data.shape[1])
        variance = w @ (data - mean) ** 2 / w.sum()
        if normalize == "isotropic":
            variance = np.full_like(variance, variance.mean())
        scaled = normalize in ("standard", "isotropic")
        scale = np.sqrt(np.where(variance > 0, variance, 1)) if scaled else np.ones(len(mean))
        sides.append((np.sqrt(w)[:, None] * (data - mean) / scale, mean, scale))
    return sides


def reference(
    method, x, y, *, weights=None, normalize="none", ridge=0.0, scale=False, rcond=1e-13,
    completion="orthogonal",
):  # fmt: skip
    """The map by its definition in float64 with NumPy: (weight, bias)."""
    center = method == "affine" or normalize != "none"
    (a, mean_x, scale_x), (b, mean_y, scale_y) = prepared(
        x, y, center=center, weights=weights, normalize=normalize
    )
    d_in, d_out = a.shape[1], b.shape[1]
    if method == "ortho":
        weight = completed(a.T @ b, completion)
    else:
        augmented = np.concatenate([a, np.sqrt(ridge) * np.eye(d_in)])
        weight = np.linalg.lstsq(augmented, np.concatenate([b, np.zeros((d_in, d_out))]), rcond)[0]
        if method == "l-ortho":
            weight = completed(weight, completion)
    if scale:
        power = np.sum((a @ weight) ** 2) + ridge * np.sum(weight**2)
        weight = weight * np.sum((a @ weight) * b) / (power or 1)
    weight = weight * scale_y[None, :] / scale_x[:, None]
    return weight, mean_y - mean_x @ weight


def condition(a):
    """Ratio of the largest to the smallest singular value that is not rounding noise."""
    s = np.linalg.svd(a, compute_uv=False)
    s = s[s > 1e-10 * s.max(initial=0)]
    return s[0] / s[-1] if len(s) else 1.0


def slow(case):
    """A case of `pytest.mark.parametrize` that the test run leaves to `-m slow`."""
    if hasattr(case, "marks"):
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)


def some(cases, every=2):
    """All cases; the test run has one in `every`, the first too, and `-m slow` the others."""
    return [slow(case) if place % every else case for place, case in enumerate(cases)]


def latin(*axes):
    """All combinations; the test run has each value of each axis, and `-m slow` the others.

    As many cells run as the longest axis has values, in which the shorter ones come in turn.
    """
    kept = {
        tuple((step + k * (step // len(axis))) % len(axis) for k, axis in enumerate(axes))
        for step in range(max(map(len, axes)))
    }
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        cases.append(pytest.param(*values, marks=[] if places in kept else [pytest.mark.slow]))
    return cases


def half(*axes):
    """Half of all combinations, of which any two differ in more than one axis.

    So they hold every combination of the values of all axes but one, whichever that is.
    """
    places = itertools.product(*(range(len(axis)) for axis in axes))
    kept = (place for place in places if sum(place) % 2 == 0)
    return [tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in kept]
