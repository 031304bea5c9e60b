"""Anchors with a known condition number, and float64 references by NumPy and SciPy."""

import numpy as np


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


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
