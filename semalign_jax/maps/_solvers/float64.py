"""Least squares of float32 anchors by normal equations in float64, on CPUs and NVIDIA GPUs.

A CPU multiplies float64 matrices at half the speed of float32, a data-centre GPU as fast. Products
of two float32 numbers are exact in float64, and a condition number of 1e6, squared, is within its
range: so normal equations in float64 cost less than the Householder QR that float32 needs, and give
the solution to the last digit that float32 holds. 64-bit types are used here where JAX has them
switched off, inside of functions that take and return float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from ..._core.linalg import (
    cholesky,
    default_rcond,
    eigh,
    is_positive_definite,
    matmul,
    one_by_one,
    safe_inverse,
    solve_upper,
    transpose,
)
from ..._core.typing import Array

#: Sums over rows go in blocks of at most this many: their float64 copies then stay in the cache.
BLOCK_ROWS = 1024

#: Singular values of float32 anchors up to this share of the largest, two machine epsilons, are
#: rounding of the anchors; a Gram matrix in float64 resolves them well (its square is 250 eps).
SMALLEST = 2.0**-22


@one_by_one
def normal_equations(a: Array, b: Array, ridge: Array | None, rcond: Array | float | None) -> Array:
    """Minimise ||a w - b||^2 + ridge ||w||^2; see `least_squares`. No derivative.

    Args:
        a: float32 matrix [n, d], entries of about unit size; rows of zeros are inert.
        b: right-hand sides [n, k].
        ridge: penalty >= 0, scalar; None means none.
        rcond: relative cut-off for the singular values of `a`; None means 8 epsilons of float32,
            or with a ridge none beyond `SMALLEST`.

    Returns:
        The smallest solution [d, k], float32.
    """
    default = default_rcond(a.dtype) if ridge is None else 0.0
    with jax.enable_x64(True):
        cut = jnp.maximum(jnp.asarray(default if rcond is None else rcond, jnp.float64), SMALLEST)
        penalty = jnp.asarray(0.0 if ridge is None else ridge, jnp.float64)

        def solve(a: Array, b: Array, cut: Array, penalty: Array) -> Array:
            tall = a.shape[0] >= a.shape[1]
            if tall:
                gram, rhs = row_sums(gram_and_cross, a, b)
            else:  # the dual problem: w = a^T z
                gram, rhs = row_sums(gram_matrix, transpose(a)), b.astype(jnp.float64)
            w = solve_gram(gram, rhs, penalty, cut)
            if not tall:
                w = matmul(transposed_in_memory(a.astype(jnp.float64)), w)
            return w.astype(a.dtype)

        def undefined(a: Array, b: Array, *_: Array) -> Array:
            return a[0, :, None] * b[0, None, :] * jnp.nan

        # Within a branch of a condition, arrays are in memory. What led to them would else be
        # computed again wherever they are used, each time with other roundings in float32, if
        # multiplications and additions are fused here and not there: a Gram matrix would be that
        # of other rows.
        return lax.cond(jnp.isfinite(jnp.sum(a)), solve, undefined, a, b, cut, penalty)


def solve_gram(gram: Array, rhs: Array, penalty: Array, cut: Array) -> Array:
    """`(gram + penalty)^-1 rhs` in float64 without the directions below `cut`.

    A Cholesky factor of the Gram matrix minus the square of the cut-off tells whether there are
    such directions: it exists if there are none. Only then are eigenvectors needed.
    """

    def by_cholesky() -> Array:
        return cho_solve((cholesky(_plus(gram, penalty)), True), rhs)

    def by_eigenvectors() -> Array:
        values, vectors = eigh(gram)
        keep = values > cut * cut * values[-1]
        gain = safe_inverse(values + penalty, keep)[:, None]
        return matmul(vectors, gain * matmul(transpose(vectors), rhs))

    # A negative penalty, which only a traced one can be, takes from the eigenvalues too.
    determined = determines(_plus(gram, jnp.minimum(penalty, 0.0)), cut)
    return lax.cond(determined, by_cholesky, by_eigenvectors)


def determines(gram: Array, cut: Array | float) -> Array:
    """Whether all singular values behind a Gram matrix are above `cut` times the largest."""
    # The norm bounds the largest eigenvalue.
    return is_positive_definite(_plus(gram, -cut * cut * jnp.linalg.norm(gram)))


def inverse_root(gram: Array, cut: float) -> Array:
    """`root` with root root^T = gram^-1, without the directions below `cut`."""

    def by_cholesky() -> Array:
        return solve_upper(transpose(cholesky(gram)), jnp.eye(len(gram), dtype=gram.dtype))

    def by_eigenvectors() -> Array:
        values, vectors = eigh(gram)
        keep = values > cut * cut * values[-1]
        return vectors * jnp.sqrt(safe_inverse(values, keep))[None, :]

    return lax.cond(determines(gram, cut), by_cholesky, by_eigenvectors)


def _plus(a: Array, shift: Array) -> Array:
    """The square matrix `a` plus `shift` times the identity."""
    order = jnp.arange(a.shape[0], dtype=jnp.int32)
    return a + jnp.where(order[:, None] == order[None, :], shift, 0.0)


def row_sums(products: Callable[..., Any], *sides: Array) -> Any:
    """Sum of `products` over blocks of rows of all sides, in float64."""

    def of_block(*parts: Array) -> Any:
        return products(*(part.astype(jnp.float64) for part in parts))

    n = sides[0].shape[0]
    blocks = -(-n // BLOCK_ROWS)
    rows = n // blocks * blocks
    # Every block takes rows from all over, so that rows spread over devices stay there.
    parts = [side[:rows].reshape(rows // blocks, blocks, -1) for side in sides]

    def step(totals, index):
        block = of_block(*(part[:, index] for part in parts))
        return jax.tree.map(jnp.add, totals, block), None

    totals = of_block(*(part[:, 0] for part in parts))
    if rows < n:
        totals = jax.tree.map(jnp.add, totals, of_block(*(side[rows:] for side in sides)))
    if blocks > 1:
        totals, _ = lax.scan(step, totals, jnp.arange(1, blocks))
    return totals


def cross_product(a: Array, b: Array) -> Array:
    """`a^T b` [d, k] of `a` [n, d] and `b` [n, k]."""
    return matmul(transposed_in_memory(a), b)


def gram_matrix(a: Array) -> Array:
    """`a^T a` [d, d] of `a` [n, d]."""
    return cross_product(a, a)


def gram_and_cross(a: Array, b: Array) -> tuple[Array, Array]:
    """`a^T a` and `a^T b`."""
    across = transposed_in_memory(a)
    return matmul(across, a), matmul(across, b)


def transposed_in_memory(a: Array) -> Array:
    """`a^T`, which XLA does not fold into a product: that would halve its speed on a CPU."""
    return lax.optimization_barrier(transpose(a))
