"""Least squares of float32 anchors in float64, on CPUs and GPUs.

A CPU multiplies float64 matrices at half the speed of float32, where normal equations in float64
are faster than the Householder QR that float32 needs, and more exact: products of two float32
numbers are exact in float64, and a condition number of 1e6, squared, is within its range. So it is
on GPUs, whose QR is far slower than their products. 64-bit types are used here where JAX has them
switched off: inside of functions that take and return float32, which `vmap`, `jit` and `export`
trace as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from ..._core.linalg import (
    LSTSQ_RCOND_EPS,
    always_one_by_one,
    gram_by_halves,
    gram_solve,
    inverse_by_halves,
    matmul,
    one_by_one,
    safe_inverse,
    safe_svd,
    transpose,
    upper_times,
    upper_transposed_times,
)
from ..._core.typing import Array

#: Fewer anchors than this share of the dimensions are conditioned so well as a rule that float32
#: is exact enough, and on CPUs faster.
LEAST_SHARE = 2 / 3

#: Matrices with sides less than this factor apart are so badly conditioned as a rule that, where
#: nothing is to be cut off, a QR is tried first.
NEARLY_SQUARE = 9 / 8

#: Sums over rows go in about this many at a time: their float64 copies then stay in the cache.
BLOCK_ROWS = 1024

EPS = float(np.finfo(np.float64).eps)
UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2

#: Eigenvalues of a Gram matrix are trusted from this many roundings of the largest on.
GRAM_ROUNDINGS = 4.0

#: Singular values from this share of the largest on are taken from a Gram matrix; if a smaller
#: one may count, from the anchors.
GRAM_CUT = 2.0**-22

#: If the rounding of the solution to float32 would move the predictions by more than this share,
#: directions that cost more than they bring are left out.
LARGEST_ROUNDING = 0.3


def wide_least_squares(
    a: Array,
    b: Array,
    ridge: Array | None = None,
    rcond: Array | None = None,
    row_bound: Array | int | None = None,
    *,
    trusted: bool = False,
) -> Array:
    """Minimise ||a w - b||^2 + ridge ||w||^2 in float64; the smallest such w if not unique.

    Cholesky factors of the normal equations (with n < d, of their dual) where no singular value
    is cut off; their eigenvectors where some are; QR, or singular values, where a square root of
    the machine epsilon would hide what counts.

    Args:
        a: matrix [n, d], entries of about unit size.
        b: right-hand sides [n, k].
        ridge: penalty >= 0, scalar; None means none.
        rcond: relative cut-off for the singular values of `a`; None means 8 epsilons of float32,
            or with a ridge no cut-off. Whatever it is, directions are left out that are at the
            rounding of float64, or so small that their weights, rounded to float32, would move
            predictions by more than they explain.
        row_bound: number of non-zero rows if it is less than n.
        trusted: whether to take the Cholesky factors without a test; nothing is cut off then.

    Returns:
        The solution [d, k] in the dtype of `a`. No derivative.
    """

    @jax.custom_batching.custom_vmap
    def wide(a: Array, b: Array, rest: tuple[Any, ...]) -> Array:
        def solved(a: Array, b: Array) -> Array:
            problem = _Problem(a, b, *rest)
            found = problem.by_factor() if trusted else problem.solve()
            return found.astype(a.dtype)

        with jax.enable_x64(True):
            return _if_finite(solved, jnp.full((a.shape[1], b.shape[1]), jnp.nan, a.dtype), a, b)

    @wide.def_vmap
    def rule(axis_size, in_batched, a, b, rest):
        of_a, of_b, of_rest = in_batched
        if of_b and not any(jax.tree_util.tree_leaves((of_a, of_rest))):
            # Right-hand sides of the same matrix become columns of one.
            w = wide(a, jnp.moveaxis(b, 0, 1).reshape(b.shape[1], -1), rest)
            return jnp.moveaxis(w.reshape(-1, axis_size, b.shape[2]), 1, 0), True
        return one_by_one(wide, in_batched, (a, b, rest)), True

    return wide(a, b, (ridge, rcond, row_bound))


def _float64(a: Array) -> Array:
    return a.astype(jnp.float64)


def _if_finite(function: Callable[..., Any], otherwise: Any, a: Array, *rest: Array) -> Any:
    """`function(a, *rest)` if the values of `a` are finite.

    Within a branch of a condition, arrays are in memory. What led to them would else be computed
    again wherever they are used, each time with other roundings in float32, if multiplications
    and additions are fused here and not there: a Gram matrix would be that of other rows.
    """
    return lax.cond(jnp.isfinite(jnp.sum(a)), function, lambda *_: otherwise, a, *rest)


def _summed(products: Callable[..., Any], *sides: Array) -> Any:
    """Sum of `products` of blocks of rows of all sides, in float64."""
    n = sides[0].shape[0]
    blocks = max(1, round(n / BLOCK_ROWS))
    if blocks == 1:
        return products(*map(_float64, sides))
    rows = n // blocks * blocks
    # Every block takes rows from all over, so that rows spread over devices stay there.
    parts = [side[:rows].reshape(rows // blocks, blocks, -1) for side in sides]

    def step(totals, index):
        block = products(*(_float64(part[:, index]) for part in parts))
        return jax.tree_util.tree_map(jnp.add, totals, block), None

    rest = products(*(_float64(side[rows:]) for side in sides))
    totals, _ = lax.scan(step, rest, jnp.arange(blocks))
    return totals


def _cholesky_plus(gram: Array, shift: Array) -> Array:
    """Lower Cholesky factor of a matrix plus `shift` times the identity; NaN if there is none."""
    order = jnp.arange(gram.shape[0], dtype=jnp.int32)
    shifted = gram + jnp.where(order[:, None] == order[None, :], shift, 0)
    return lax.linalg.cholesky(shifted, symmetrize_input=False)


def _positive_definite(gram: Array, shift: Array) -> Array:
    """Whether a matrix plus `shift` times the identity is."""
    return jnp.isfinite(jnp.sum(jnp.diagonal(_cholesky_plus(gram, shift))))


class WidePrefixes(NamedTuple):
    """Least squares over several prefixes of the same rows, factored in float64.

    Attributes:
        inverse: of the upper Cholesky factor of each prefix's Gram matrix [prefixes, d, d, 2]:
            the bits of float64, so that arrays between compiled functions have 32-bit types.
        safe: whether a prefix has singular values above each cut-off alone [cuts, prefixes], and
            above what its Gram matrix resolves; the factors of others are of no use.
    """

    inverse: Array
    safe: Array


def wide_prefixes(rows: Array, ends: Sequence[int], cuts: Sequence[float]) -> WidePrefixes:
    """Factor the prefixes of `rows` [n, d] of these lengths, ascending and at least d.

    Args:
        rows: entries of about unit size. No derivative.
        ends: lengths of the prefixes.
        cuts: relative cut-offs for singular values.
    """
    d = rows.shape[1]

    def factors(rows: Array) -> tuple[Array, Array]:
        gram, start = jnp.zeros((d, d), jnp.float64), 0
        inverse, safe = [], []
        for end in ends:
            gram = gram + _summed(gram_by_halves, rows[start:end])
            start = end
            factor = transpose(_cholesky_plus(gram, jnp.zeros((), jnp.float64)))
            inverse.append(_bits(inverse_by_halves(factor)))
            size = jnp.linalg.norm(gram)
            shares = (max(GRAM_ROUNDINGS * EPS, cut * cut) for cut in cuts)
            safe.append(jnp.stack([_positive_definite(gram, -cut * size) for cut in shares]))
        return jnp.stack(inverse), jnp.stack(safe, axis=1)

    @always_one_by_one
    def wide(rows: Array) -> tuple[Array, Array]:
        none = jnp.zeros((len(ends), d, d, 2), jnp.uint32), jnp.zeros((len(cuts), len(ends)), bool)
        with jax.enable_x64(True):
            return _if_finite(factors, none, rows)

    return WidePrefixes(*wide(rows))


def wide_prefix_solutions(
    factors: WidePrefixes, rows: Array, b: Array, ends: Sequence[int]
) -> Array:
    """Least-squares solutions for the prefixes [prefixes, d, k], in the dtype of `rows`.

    Args:
        factors: `wide_prefixes` of the rows.
        rows: [n, d].
        b: right-hand sides [n, k].
        ends: lengths of the prefixes.
    """
    shape = (rows.shape[1], b.shape[1])

    def solutions(bits: Array, rows: Array, b: Array) -> Array:
        cross, start = jnp.zeros(shape, jnp.float64), 0
        weights = []
        for position, end in enumerate(ends):
            block = slice(start, end)
            cross = cross + _summed(lambda a, b: matmul(transpose(a), b), rows[block], b[block])
            start = end
            inverse = lax.bitcast_convert_type(bits[position], jnp.float64)
            weight = upper_times(inverse, upper_transposed_times(inverse, cross))
            weights.append(weight.astype(rows.dtype))
        return jnp.stack(weights)

    @always_one_by_one
    def wide(bits: Array, rows: Array, b: Array) -> Array:
        none = jnp.full((len(ends), *shape), jnp.nan, rows.dtype)
        with jax.enable_x64(True):
            return _if_finite(partial(solutions, bits), none, rows, b)

    return wide(factors.inverse, rows, b)


def _bits(a: Array) -> Array:
    return lax.bitcast_convert_type(a, jnp.uint32)


class _Problem:
    """One problem; lives within one trace, where 64-bit types are switched on.

    Of some operations, as argmin, code is generated where they are off again: these are no use.
    """

    def __init__(
        self,
        a: Array,
        b: Array,
        ridge: Array | None,
        rcond: Array | None,
        row_bound: Array | int | None,
    ) -> None:
        self.a, self.b, self.ridge, self.rcond, self.row_bound = a, b, ridge, rcond, row_bound
        n, d = a.shape
        self.tall = n >= d
        self.penalty = jnp.asarray(0.0 if ridge is None else ridge, jnp.float64)
        default = LSTSQ_RCOND_EPS * 2 * UNIT_ROUNDOFF if ridge is None else 0.0
        self.cut = jnp.asarray(default if rcond is None else rcond, jnp.float64)
        self.order = jnp.arange(min(n, d), dtype=jnp.int32)

    def solve(self) -> Array:
        """The solution by what suits the shape and the condition."""
        n, d = self.a.shape
        certain = self.rcond is None or self.ridge is not None
        if certain or max(n, d) >= NEARLY_SQUARE * min(n, d):
            return self._by_gram()
        return lax.cond(self.cut >= GRAM_CUT, self._by_gram, self._by_rows)

    def by_factor(self) -> Array:
        """The solution by a Cholesky factor that is not tested."""
        return self._by_factor(*self._normal_equations())

    def _normal_equations(self) -> tuple[Array, Array]:
        """The Gram matrix of the shorter side and its right-hand sides."""
        a, b = self.a, self.b
        if not self.tall:
            return gram_by_halves(transpose(_float64(a))), _float64(b)
        return _summed(lambda a, b: (gram_by_halves(a), matmul(transpose(a), b)), a, b)

    def _from_dual(self, z: Array) -> Array:
        return z if self.tall else matmul(transpose(_float64(self.a)), z)

    def _by_factor(self, gram: Array, rhs: Array) -> Array:
        lower = _cholesky_plus(gram, self.penalty)
        return self._from_dual(cho_solve((lower, True), rhs))

    def _by_eigenvectors(self, gram: Array, rhs: Array) -> Array:
        ridge = None if self.ridge is None else self.penalty
        return self._from_dual(gram_solve(gram, rhs, ridge, self.cut))

    def _by_gram(self) -> Array:
        gram, rhs = self._normal_equations()
        # The norm bounds the largest eigenvalue; a Cholesky factor exists if all are positive.
        size = jnp.linalg.norm(gram)
        shift = jnp.minimum(self.penalty - GRAM_ROUNDINGS * EPS * size, -self.cut * self.cut * size)
        return lax.cond(
            _positive_definite(gram, shift), self._by_factor, self._where_cut, gram, rhs
        )

    def _where_cut(self, gram: Array, rhs: Array) -> Array:
        if self.rcond is None:
            return self._by_rows() if self.ridge is not None else self._by_eigenvectors(gram, rhs)
        return lax.cond(
            self.cut >= GRAM_CUT, self._by_eigenvectors, lambda *_: self._by_rows(), gram, rhs
        )

    def _by_rows(self) -> Array:
        a, b = _float64(self.a), _float64(self.b)
        q, r = lax.linalg.qr(a if self.tall else transpose(a), full_matrices=False)
        rhs = matmul(transpose(q), b) if self.tall else b
        # How much a unit of ||w||^2, rounded to float32, takes from ||a w||^2 on average.
        rounding = UNIT_ROUNDOFF**2 / 3 * jnp.sum(r * r) / self.a.shape[1]

        def by_singular_values() -> Array:
            return self._by_singular_values(r, rhs, rounding)

        if self.ridge is not None:
            w = by_singular_values()
        else:
            inverse = inverse_by_halves(r)
            w = (upper_times if self.tall else upper_transposed_times)(inverse, rhs)
            # This bounds the condition number; NaN and infinity fail the test.
            bound = jnp.linalg.norm(r) * jnp.linalg.norm(inverse)
            safe = (1 > self.cut * bound) & (1 > GRAM_ROUNDINGS * EPS * bound)
            safe &= rounding * jnp.sum(w * w) < LARGEST_ROUNDING**2 * jnp.sum(rhs * rhs)
            w = lax.cond(safe, lambda: w, by_singular_values)
        return w if self.tall else matmul(q, w)

    def _by_singular_values(self, r: Array, rhs: Array, rounding: Array) -> Array:
        u, s, vt = safe_svd(r)
        if not self.tall:  # of the transposed matrix
            u, vt = transpose(vt), transpose(u)
        along = matmul(transpose(u), rhs)
        order = self.order
        keep = s > jnp.maximum(self.cut, LSTSQ_RCOND_EPS * EPS) * jnp.max(s)
        if self.row_bound is not None:
            keep &= order < jnp.asarray(self.row_bound, jnp.int32)
        gain = s * safe_inverse(s * s + self.penalty, keep)
        # Keep as many directions as make the error of the predictions the smallest.
        size = jnp.sum(along * along, axis=1) * gain * gain
        kept = (order[:, None] >= order[None, :]).astype(jnp.float64)
        error = matmul(1 - kept, s * s * size) + rounding * matmul(kept, size)
        last = jnp.min(jnp.where(error <= jnp.min(error), order, order[-1]))
        gain = jnp.where(order <= last, gain, 0)
        return matmul(transpose(vt), gain[:, None] * along)
