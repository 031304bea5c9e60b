"""Polar factors by matrix products alone, for accelerators, where an SVD is slow.

On one H100, 100 fits of 768 dimensions take 1.1 times as long as the products that this makes; a
vmapped SVD takes 50 times as long.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._core.linalg import matmul, power_of_two_scale, safe_inverse, transpose
from ..._core.typing import Array

#: Singular values from this share of the largest on are brought to 1 by the schedule below;
#: smaller ones by the steps after it.
_SMALLEST = 1e-8


def _best_quintic(lower: float) -> tuple[np.ndarray, float]:
    """Odd polynomial of degree 5 nearest to 1 on [lower, 1], by Remez exchange; and its error."""
    inner = np.array([(3 * lower + 1) / 4, (lower + 3) / 4])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    for _ in range(50):
        points = np.array([lower, *inner, 1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt(np.array([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)]))
        inner = np.sort(inner)
    return np.array([a, b, c]), float(error)


def _value_at(coefficients: np.ndarray, x: float) -> float:
    return float(coefficients @ np.array([x, x**3, x**5]))


@cache
def _quintic_schedule() -> np.ndarray:
    """Coefficients [steps, 3] that bring [_SMALLEST, 1] close to 1."""
    lower, steps = _SMALLEST, []
    while lower < 0.9:
        # The best polynomial of a wide range takes some large values down to the smallest,
        # where rounding buries them: so the range is narrowed, at hardly a loss of speed.
        coefficients, error = _best_quintic(max(lower, 0.03))
        # Scaled so that the largest value is just below 1: rounding must not carry it out of
        # the range where the next polynomial holds.
        scale = 1 / (1 + error) / 1.002
        steps.append(coefficients * scale)
        lower = min(1 - error, _value_at(coefficients, lower)) * scale
    return np.array(steps)


@jax.jit
def nearest_orthogonal(m: Array) -> Array:
    """Polar factor by matrix products alone, for devices where an SVD is slow. No derivative.

    Odd polynomials of degree 5, each the best for the range that the singular values are in,
    as in Amsel et al., "The Polar Express" (arXiv 2505.16932), then Newton-Schulz steps until
    the result is orthogonal. A trace of the identity is added, about a machine epsilon, so that a
    singular matrix has an orthogonal result too; what it is there is left to rounding.

    Args:
        m: matrix [d_in, d_out], or batches of such under `jax.vmap`.
    """
    if m.shape[0] < m.shape[1]:
        return transpose(nearest_orthogonal(transpose(m)))
    dtype = m.dtype
    eps = float(jnp.finfo(dtype).eps)
    eye = jnp.eye(m.shape[1], dtype=dtype)
    m = m / power_of_two_scale(m)
    rows, columns = (jnp.max(jnp.sum(jnp.abs(m), axis=i)) for i in (1, 0))
    bound = jnp.minimum(jnp.sqrt(rows * columns), jnp.sqrt(jnp.sum(m * m)))
    q = m * safe_inverse(1.001 * bound, bound > 0)
    q = q + eps * jnp.eye(*m.shape, dtype=dtype)

    def step(q, coefficients):
        a, b, c = coefficients
        gram = matmul(transpose(q), q)
        return matmul(q, a * eye + b * gram + c * matmul(gram, gram))

    # Made of scalars: an array constant of a custom_vmap fails in a condition that is batched.
    schedule = jnp.stack(
        [
            jnp.stack([jnp.full((), float(value), dtype) for value in row])
            for row in _quintic_schedule()
        ]
    )
    q, _ = lax.scan(lambda q, row: (step(q, (row[0], row[1], row[2])), None), q, schedule)
    # The step that follows the last test takes an error to its third power.
    tolerance = eps ** (1 / 3) / 4

    def unfinished(state):
        _, error, count = state
        return (error > tolerance) & (count < 60)

    def again(state):
        q, _, count = state
        error = jnp.max(jnp.abs(matmul(transpose(q), q) - eye))
        return step(q, (15 / 8, -10 / 8, 3 / 8)), error, count + 1

    # The error starts as an entry of q, so that both vary over the same axes of a mesh.
    start = (q, jnp.ones_like(q[0, 0]), jnp.zeros_like(q[0, 0], jnp.int32))
    return lax.while_loop(unfinished, again, start)[0]
