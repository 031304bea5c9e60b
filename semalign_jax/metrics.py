"""Scores as pure functions of arrays: safe under `jit`, `vmap` and `grad`."""

import jax
import jax.numpy as jnp

from ._linalg import compute_dtype, matmul, safe_inverse, transpose
from ._typing import Array


def normalize_rows(x: Array) -> Array:
    """Divide rows by their Euclidean norm; zero rows stay zero, with a finite derivative.

    Args:
        x: [..., n, d], floating point; entries of any magnitude are handled without underflow.
    """
    dtype = x.dtype
    x = x.astype(compute_dtype(dtype))
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    x = x * safe_inverse(largest, largest > 0)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1))
    return jnp.where(positive, x / norm, 0).astype(dtype)


def cosine_similarity(x: Array, y: Array) -> Array:
    """Cosine of every row of `x` with every row of `y`; 0 where a row is zero.

    Args:
        x: [..., n, d].
        y: [..., m, d].

    Returns:
        [..., n, m].
    """
    return matmul(normalize_rows(x), transpose(normalize_rows(y)))


def accuracy(labels: Array, predicted: Array, *, weights: Array | None = None) -> Array:
    """Weighted share of rows whose predicted class is the true one.

    Args:
        labels: true classes [n], integers.
        predicted: predicted classes [n], integers.
        weights: [n], >= 0, floats or a boolean mask; None means equal weights.

    Returns:
        Scalar in [0, 1]; NaN if all weights are zero.
    """
    hit = (labels == predicted).astype(jnp.float32)
    if weights is None:
        return jnp.mean(hit)
    weights = weights.astype(jnp.float32)
    total = jnp.sum(weights)
    return jnp.where(total > 0, jnp.sum(weights * hit) / jnp.where(total > 0, total, 1), jnp.nan)
