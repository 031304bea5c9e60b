"""Least squares: min ||a w - b||^2 + ridge ||w||^2, the smallest such w where it is not unique.

The *value* comes from normal equations in float64 for float32 anchors (see `float64`), else from a
QR, or from singular values where some have to be cut off. The *derivative* does not depend on that:
it solves with the Gram matrix, by the same singular values, to any order.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..._core.linalg import (
    counts,
    default_rcond,
    eigh,
    matmul,
    one_by_one_on_cpu,
    qr,
    replace_value,
    safe_inverse,
    solve_upper,
    spectral_factors,
    transpose,
)
from ..._core.typing import Array
from .float64 import normal_equations


@jax.custom_jvp
def least_squares(
    a: Array, b: Array, ridge: Array | None = None, rcond: Array | float | None = None
) -> Array:
    """Minimise ||a w - b||^2 + ridge ||w||^2.

    Args:
        a: matrix [n, d], entries of about unit size.
        b: right-hand sides [n, k].
        ridge: penalty >= 0, scalar; None means none.
        rcond: singular values of `a` at most `rcond` times the largest count as zero; None means 8
            machine epsilons, or with a ridge no cut-off. In float32 at least 2 epsilons, below
            which there is only rounding.

    Returns:
        The solution [d, k]. Derivatives of every order with respect to `a`, `b` and `ridge`, exact
        at full rank; directions that count as zero have the derivative zero.
    """
    if a.dtype != jnp.float32:
        return _by_rows(a, b, ridge, rcond)
    return lax.platform_dependent(
        a, b, ridge, rcond, cpu=normal_equations, cuda=normal_equations, default=_by_rows
    )


@least_squares.defjvp
def _least_squares_jvp(primals, tangents):
    a, b, ridge, rcond = primals
    value = lax.stop_gradient(least_squares(*primals))
    root = _inverse_root(*lax.stop_gradient((a, ridge, rcond)))

    def exact(a: Array, b: Array, ridge: Array | None) -> Array:
        if a.shape[0] >= a.shape[1]:
            solution = gram_solve(root, a, ridge, matmul(transpose(a), b))
            if ridge is None:
                solution = solution + _turned_rows(root, a, solution)
        else:  # w = a^T z is regular in the dual unknown z
            solution = matmul(transpose(a), gram_solve(root, transpose(a), ridge, b))
        return replace_value(solution, value)

    return jax.jvp(exact, (a, b, ridge), tuple(tangents[:3]))


# --- value -------------------------------------------------------------------------------------


@one_by_one_on_cpu
def _by_rows(a: Array, b: Array, ridge: Array | None, rcond: Array | float | None) -> Array:
    """From a QR of the longer side; by its singular values where these have to be looked at."""
    tall = a.shape[0] >= a.shape[1]
    q, r = qr(a if tall else transpose(a))

    def by_singular_values() -> Array:
        f = spectral_factors(r, 0.0 if rcond is None and ridge is not None else rcond)
        penalty = 0.0 if ridge is None else ridge
        gain = (f.s * safe_inverse(f.s * f.s + penalty, f.keep))[:, None]
        if tall:
            return matmul(transpose(f.vt), gain * matmul(transpose(f.u), matmul(transpose(q), b)))
        return matmul(q, matmul(f.u, gain * matmul(f.vt, b)))

    if ridge is not None:
        return by_singular_values()
    inverse = solve_upper(r, jnp.eye(r.shape[0], dtype=r.dtype))
    # This bounds the condition number; NaN and infinity fail the tests.
    bound = jnp.linalg.norm(r) * jnp.linalg.norm(inverse)
    cut = jnp.asarray(default_rcond(r.dtype) if rcond is None else rcond, r.dtype)
    independent = (cut * bound < 1) & (default_rcond(r.dtype) * bound < 1)

    def by_triangle() -> Array:
        if not tall:
            return matmul(q, matmul(transpose(inverse), b))

        def once(b: Array) -> Array:
            return matmul(inverse, matmul(transpose(q), b))

        w = once(b)
        # A factorisation errs by many roundings, a residual by one.
        return w + once(b - matmul(a, w))

    return lax.cond(independent, by_triangle, by_singular_values)


# --- derivative --------------------------------------------------------------------------------


def _inverse_root(a: Array, ridge: Array | None, rcond: Array | float | None) -> Array:
    """`root` with root root^T = (a^T a + ridge)^-1 for the directions that count.

    Of `a` [n, d] if n >= d, else of its transpose.
    """
    _, r = qr(a if a.shape[0] >= a.shape[1] else transpose(a))
    f = spectral_factors(r, rcond)
    if ridge is None:
        return transpose(f.vt) * safe_inverse(f.s, f.keep)[None, :]
    s = jnp.sqrt(f.s * f.s + ridge)
    # A ridge makes every direction count, also those without anchors.
    return transpose(f.vt) * safe_inverse(s, (s > 0) & (f.keep | (rcond is None)))[None, :]


def _turned_rows(root: Array, a: Array, solution: Array) -> Array:
    """Zero, with the derivative of the smallest solution if the rows of `a` leave their span.

    With rows of weight zero the others may span less than the whole space: the solution is then
    a^T z, and turns with the rows. First derivatives alone.
    """
    fixed, solution = jax.lax.stop_gradient((a, solution))
    z = matmul(fixed, matmul(root, matmul(transpose(root), solution)))
    turned = matmul(transpose(a), z)
    within = matmul(transpose(root), matmul(transpose(fixed), matmul(fixed, turned)))
    return turned - matmul(root, within)


def gram_solve(root: Array, a: Array, ridge: Array | None, c: Array) -> Array:
    """`(a^T a + ridge)^-1 c` by `root`, see `_inverse_root`, which is a constant.

    Derivatives, also of the transposed function, are linear solves by `root` again.
    """

    def matvec(w: Array) -> Array:
        product = matmul(transpose(a), matmul(a, w))
        return product if ridge is None else product + ridge * w

    def solve(_, c: Array) -> Array:
        return matmul(root, matmul(transpose(root), c))

    return lax.custom_linear_solve(matvec, c, solve, solve, symmetric=True)


# --- from a Gram matrix ------------------------------------------------------------------------


def least_squares_of_gram(
    gram: Array, cross: Array, ridge: Array | None = None, rcond: Array | float | None = None
) -> Array:
    """Least squares from `gram = a^T a` and `cross = a^T b`: the smallest solution.

    Args:
        gram: symmetric, positive semi-definite [d, d].
        cross: [d, k].
        ridge: penalty >= 0, scalar; None means none.
        rcond: relative cut-off for the singular values of `a`; None means the square root of
            8 machine epsilons (no cut-off with a ridge), which is what a Gram matrix resolves.

    Returns:
        [d, k], with derivatives of every order, exact at full rank.
    """
    vectors, gain = _gram_spectrum(gram, ridge, rcond)

    def matvec(w: Array) -> Array:
        product = matmul(gram, w)
        return product if ridge is None else product + ridge * w

    def solve(_, c: Array) -> Array:
        return matmul(vectors, gain[:, None] * matmul(transpose(vectors), c))

    return lax.custom_linear_solve(matvec, cross, solve, solve, symmetric=True)


def _gram_spectrum(
    gram: Array, ridge: Array | None, rcond: Array | float | None
) -> tuple[Array, Array]:
    """Eigenvectors [d, d], and what each direction is multiplied with [d], zero if cut off."""
    gram, ridge, rcond = lax.stop_gradient((gram, ridge, rcond))
    values, vectors = eigh(gram)
    if rcond is None:
        cut = default_rcond(gram.dtype) if ridge is None else 0.0
    else:
        cut = jnp.asarray(rcond, gram.dtype) ** 2
    shifted = values if ridge is None else values + ridge
    return lax.stop_gradient((vectors, safe_inverse(shifted, counts(values, cut) & (shifted > 0))))
