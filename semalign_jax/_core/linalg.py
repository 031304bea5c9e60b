"""Dense linear algebra with derivatives that stay finite: factorisations and least squares.

The solvers here and in `_polar` separate the *value*, which comes from a factorisation held as
plain data, from the *derivative*, which comes from linear systems solved with these same factors
(`lax.custom_linear_solve`). So any algorithm may produce the factors, derivatives of every order
exist in forward and reverse mode, and no `1 / (s_i - s_j)` ever appears: repeated or zero
singular values are harmless. Singular values at or below the cut-off count as exact zeros.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._core.typing import Array, Solver

#: Precision of every matrix product in the solvers. TF32 and bfloat16, the defaults on GPU and
#: TPU, would ruin orthogonality. Assign another `jax.lax.Precision` here to override it.
PRECISION = lax.Precision.HIGHEST

#: Relative cut-off for singular values, in units of the machine epsilon eps. What lifts an exact
#: zero: forming m = x^T y errs by up to 1.7 eps ||m|| (measured, n to 5,000, d to 768; sums are
#: blocked, so the bound n eps is never near), and an SVD is backward stable, its zeros come out at
#: up to 5 eps ||m||, whatever the size and the kernels of the BLAS. Together below 8 eps, which
#: still keeps a condition number of 1e6 in float32.
LSTSQ_RCOND_EPS = 8.0
POLAR_RCOND_EPS = 8.0

#: With no cut-off (rcond=0), the inverse of a triangular factor is used up to this product of the
#: machine epsilon and a bound of the condition number; beyond it, it is useless.
INVERSE_LOSS = 30.0

#: Triangular matrices up to this size are inverted by substitution.
INVERSE_BLOCK = 64

#: Blocks that products with triangular matrices are made of have at least this many rows.
TRIANGLE_BLOCK = 256

#: Ridge problems are solved by Cholesky where that loses at most this much relative accuracy.
RIDGE_CHOLESKY_LOSS = 2e-4


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at `PRECISION`."""
    return jnp.matmul(a, b, precision=PRECISION)


def transpose(a: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(a, -1, -2)


def common_dtype(a, b) -> jnp.dtype:
    """The dtype that holds values of both, also where JAX's promotion is set to strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def compute_dtype(dtype) -> jnp.dtype:
    """Floating dtype the solvers work in: half precision is raised to float32."""
    return common_dtype(dtype, jnp.float32)


def kept(s: Array, rcond: Array | float | None, default_eps: float) -> Array:
    """Mask of the singular values that count: strictly above `rcond` times the largest.

    Strict, so that nothing of an all-zero matrix is kept.
    """
    cut = default_eps * jnp.finfo(s.dtype).eps if rcond is None else rcond
    return s > jnp.asarray(cut, s.dtype) * jnp.max(s, initial=0.0)


def power_of_two_scale(a: Array) -> Array:
    """Largest power of two at most max|a|, as a constant for differentiation; 1 for a == 0.

    Dividing by it is exact and keeps products of entries near 1e-20 or 1e20 in range.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(a)))
    usable = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(usable, largest, 1))
    return jnp.ldexp(jnp.ones((), a.dtype), exponent - 1)


def safe_inverse(a: Array, where: Array) -> Array:
    """1 / a where `where`, else 0, with a finite derivative everywhere."""
    return jnp.where(where, 1 / jnp.where(where, a, 1), 0)


# --- factorisations ----------------------------------------------------------------------------


def one_by_one(function: Callable, in_batched: Any, args: tuple) -> Any:
    """`function` of each element of a batch in turn: what a rule of `custom_vmap` may return.

    Args:
        function: of arguments `args` without their batch axis.
        in_batched: like `args`, booleans: which leaves have a leading batch axis.
        args: pytrees of arrays.
    """
    leaves, structure = jax.tree_util.tree_flatten(args)
    flags = jax.tree_util.tree_leaves(in_batched)

    def one(own: list[Array]) -> Any:
        rest = iter(own)
        pairs = zip(leaves, flags, strict=True)
        return function(*structure.unflatten([next(rest) if f else leaf for leaf, f in pairs]))

    return lax.map(one, [leaf for leaf, f in zip(leaves, flags, strict=True) if f])


def always_one_by_one(function: Callable) -> Callable:
    """Give `function` a batching rule that runs it on one element after the other.

    For functions that use 64-bit types within: JAX's own rules would ask for the types again
    where they may be switched off.
    """
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, *args):
        del axis_size
        outputs = one_by_one(wrapped, tuple(in_batched), args)
        return outputs, jax.tree_util.tree_map(lambda _: True, outputs)

    return wrapped


def in_float64(function: Callable) -> Callable:
    """`function` of one array, computed in float64 and rounded to the array's dtype.

    Also where JAX has 64-bit types switched off. No derivative.
    """

    @always_one_by_one
    def wide(a: Array) -> Any:
        with jax.enable_x64(True):
            found = function(a.astype(jnp.float64))
            return jax.tree_util.tree_map(lambda leaf: leaf.astype(a.dtype), found)

    return wide


def one_by_one_on_cpu(function: Callable) -> Callable:
    """Give `function` a batching rule that runs LAPACK on one matrix after the other.

    XLA's CPU runtime splits a batched LAPACK call over its thread pool and waits inside of it:
    two such calls at once can block each other for ever. On other backends the batched kernel
    is used.
    """
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, *args):
        axes = jax.tree_util.tree_map(lambda batched: 0 if batched else None, tuple(in_batched))
        outputs = lax.platform_dependent(
            *args,
            cpu=lambda *args: one_by_one(wrapped, in_batched, args),
            default=jax.vmap(function, in_axes=axes, axis_size=axis_size),
        )
        return outputs, jax.tree_util.tree_map(lambda _: True, outputs)

    return wrapped


def _plain_svd(a: Array) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vt


def safe_svd(a: Array) -> tuple[Array, Array, Array]:
    """SVD by divide and conquer; by QR iteration where that does not converge.

    LAPACK's sgesdd now and then gives up (NaN) on clustered singular values. The second
    result is less orthogonal, which a Newton-Schulz step repairs.
    """

    def by_qr_iteration(a, u, s, vt):
        del u, s, vt
        u, s, vt = lax.linalg.svd(a, full_matrices=False, algorithm=lax.linalg.SvdAlgorithm.QR)
        return _reorthogonalised(u), s, transpose(_reorthogonalised(transpose(vt)))

    first = _padded_svd(a) if a.shape[0] == a.shape[1] and a.shape[0] % 256 == 0 else _plain_svd(a)
    failed = jnp.isnan(first[1]).any() & jnp.isfinite(a).all()
    return lax.cond(failed, by_qr_iteration, lambda a, *usv: usv, a, *first)


def _padded_svd(a: Array, extra: int = 8) -> tuple[Array, Array, Array]:
    """SVD of a square matrix whose size suits the cache badly: of the matrix above rows of zeros.

    LAPACK takes up to 1.4 times as long where the leading dimension is a multiple of 256. Zero
    rows change neither singular values nor, since its reflections leave them out, vectors.
    """
    u, s, vt = _plain_svd(jnp.pad(a, ((0, extra), (0, 0))))
    return u[: a.shape[0]], s, vt


def _reorthogonalised(q: Array) -> Array:
    return 1.5 * q - 0.5 * matmul(q, matmul(transpose(q), q))


@one_by_one_on_cpu
def svd(a: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of a matrix; no derivative."""
    return lax.platform_dependent(a, cpu=safe_svd, cuda=_svd_in_float64, default=_plain_svd)


@one_by_one_on_cpu
def _singular_values(a: Array) -> Array:
    def plain(a: Array) -> Array:
        return jnp.linalg.svd(a, compute_uv=False)

    return lax.platform_dependent(a, cpu=plain, cuda=lambda a: _svd_in_float64(a)[1], default=plain)


def _svd_in_float64(a: Array) -> tuple[Array, Array, Array]:
    """SVD for GPUs, where that of float32 errs by 1e-4 and this takes 1.5 times as long."""
    return in_float64(_plain_svd)(a)


@one_by_one_on_cpu
def _qr(a: Array) -> tuple[Array, Array]:
    q, r = jnp.linalg.qr(a)
    return q, r


@one_by_one_on_cpu
def cholesky(a: Array) -> Array:
    """Lower Cholesky factor of a symmetric matrix; no derivative."""
    return jnp.linalg.cholesky(a, symmetrize_input=False)


@one_by_one_on_cpu
def upper_inverse(r: Array) -> Array:
    """Inverse of an upper triangular matrix; no derivative."""
    return lax.platform_dependent(r, cpu=inverse_by_halves, default=_inverse_by_substitution)


def _inverse_by_substitution(r: Array) -> Array:
    return lax.linalg.triangular_solve(r, jnp.eye(r.shape[0], dtype=r.dtype), left_side=True)


def inverse_by_halves(r: Array) -> Array:
    """As by substitution, whose zeros take two thirds of the time on a CPU.

    The corner is solved for, not multiplied with the inverse beside it: so r times the result
    differs from the identity by no more than after substitution.
    """
    d = r.shape[0]
    if d <= INVERSE_BLOCK:
        return _inverse_by_substitution(r)
    first, corner, last = r[: d // 2, : d // 2], r[: d // 2, d // 2 :], r[d // 2 :, d // 2 :]
    inverse = inverse_by_halves(last)
    corner = lax.linalg.triangular_solve(first, -matmul(corner, inverse), left_side=True)
    below = jnp.zeros((d - d // 2, d // 2), r.dtype)
    return jnp.block([[inverse_by_halves(first), corner], [below, inverse]])


def _spans(d: int) -> list[tuple[int, int]]:
    """Cut d rows of a triangle into blocks of at least TRIANGLE_BLOCK."""
    number = max(1, d // TRIANGLE_BLOCK)
    cuts = [d * i // number for i in range(number + 1)]
    return list(pairwise(cuts))


def upper_times(r: Array, b: Array) -> Array:
    """`r @ b` for an upper triangular `r`, without most of the products with zeros."""
    return jnp.concatenate([matmul(r[i:j, i:], b[i:]) for i, j in _spans(r.shape[0])])


def upper_transposed_times(r: Array, b: Array) -> Array:
    """`r^T @ b` for an upper triangular `r`, likewise."""
    return jnp.concatenate([matmul(transpose(r[:j, i:j]), b[:j]) for i, j in _spans(r.shape[0])])


def times_upper(a: Array, r: Array) -> Array:
    """`a @ r` for an upper triangular `r`, likewise."""
    return jnp.concatenate([matmul(a[:, :j], r[:j, i:j]) for i, j in _spans(r.shape[0])], axis=1)


def cross_product(a: Array, b: Array) -> Array:
    """`a^T @ b` of `a` [n, d] and `b` [n, k], divided by their power of two scales; any units.

    On a CPU the division of all rows is only done where the product would leave the range of its
    dtype. No derivative.
    """
    units = power_of_two_scale(a), power_of_two_scale(b)

    def scaled(a: Array, b: Array, units: tuple[Array, Array]) -> Array:
        return matmul(transpose(a / units[0]), b / units[1])

    @one_by_one_on_cpu
    def unscaled(a: Array, b: Array, units: tuple[Array, Array]) -> Array:
        product = matmul(transpose(a), b)
        limits = jnp.finfo(product.dtype)
        largest = jnp.max(jnp.abs(product))  # of NaN, neither comparison holds
        inside = (largest > limits.tiny / limits.eps**2) & (largest < limits.max)
        return lax.cond(
            inside,
            lambda a, b, units: product / units[0] / units[1],
            scaled,
            *(a, b, units),
        )

    return lax.platform_dependent(a, b, units, cpu=unscaled, default=scaled)


def gram_matrix(a: Array) -> Array:
    """`a^T @ a` [d, d] of `a` [n, d]."""
    return lax.platform_dependent(a, cpu=gram_by_halves, default=lambda a: matmul(transpose(a), a))


def gram_by_halves(a: Array) -> Array:
    """One quarter is the transposed other one: XLA would compute both."""
    first, last = jnp.split(a, [a.shape[1] // 2], axis=1)
    top = matmul(transpose(first), a)
    below = matmul(transpose(last), last)
    corner = transpose(top[:, first.shape[1] :])
    return jnp.concatenate([top, jnp.concatenate([corner, below], axis=1)])


def thin_qr(a: Array) -> tuple[Array, Array]:
    """Thin QR of `a` [n, d], n >= d, cut off from differentiation."""
    return lax.stop_gradient(_qr(lax.stop_gradient(a)))


@one_by_one_on_cpu
def triangular_factor(a: Array) -> Array:
    """The second part of `thin_qr` alone, at half the cost; no derivative."""
    return jnp.linalg.qr(a, mode="r")


class SpectralFactors(NamedTuple):
    """SVD-like factors `u @ diag(s) @ vt` of a matrix [n, d], constants for differentiation.

    Attributes:
        u: left singular vectors [n, k].
        s: singular values [k].
        vt: right singular vectors [k, d].
        keep: boolean [k], which directions count.
    """

    u: Array
    s: Array
    vt: Array
    keep: Array

    @property
    def kept_u(self) -> Array:
        """`u` with zeros for the directions that do not count."""
        return jnp.where(self.keep[None, :], self.u, 0)

    @property
    def kept_vt(self) -> Array:
        """`vt` with zeros for the directions that do not count."""
        return jnp.where(self.keep[:, None], self.vt, 0)


def spectral_factors(
    a: Array,
    rcond: Array | float | None = None,
    default_eps: float = LSTSQ_RCOND_EPS,
    row_bound: Array | int | None = None,
) -> SpectralFactors:
    """Thin SVD of `a`, cut off from differentiation.

    The rank is decided by `rcond` and, where known, by `row_bound`, the number of non-zero rows.
    """
    u, s, vt = svd(lax.stop_gradient(a))
    keep = kept(s, rcond, default_eps)
    if row_bound is not None:
        keep &= jnp.arange(s.shape[0]) < row_bound
    return lax.stop_gradient(SpectralFactors(u, s, vt, keep))


def singular_values(a: Array) -> Array:
    """Singular values of `a`, descending, cut off from differentiation."""
    return lax.stop_gradient(_singular_values(lax.stop_gradient(a)))


# --- least squares -----------------------------------------------------------------------------


class LeastSquaresFactors(NamedTuple):
    """Factors of min ||a w - b||^2 + ridge ||w||^2 for a tall `a` [n, d], as constants.

    `a = u @ root` with `root^T root = a^T a + ridge`; directions that count as zero are left
    out.

    Attributes:
        u: [n, k].
        inverse: pseudo-inverse of the root [d, k].
    """

    u: Array
    inverse: Array


def tall_qr(a: Array) -> tuple[Array, Array]:
    """Thin QR of `a` [n, d], or of its transpose if n < d: the start of every fit to `a`."""
    return thin_qr(a if a.shape[0] >= a.shape[1] else transpose(a))


def least_squares_factors(
    qr: tuple[Array, Array],
    ridge: Array | None = None,
    rcond: Array | float | None = None,
    row_bound: Array | int | None = None,
    solver: Solver = "auto",
    inverse: Array | None = None,
) -> LeastSquaresFactors:
    """Factor a tall matrix [n, d] from its thin QR, by SVD where its condition requires that.

    Args:
        qr: `tall_qr` of the matrix.
        ridge: penalty >= 0; None means none.
        rcond: relative cut-off; None means 8 eps without and no cut-off with a ridge.
        row_bound: number of non-zero rows if it is less than n.
        solver: "svd" always takes the SVD, "qr" never (then nothing is cut off); others choose.
        inverse: of the triangular factor, if it is known.
    """
    (q, r), ridge, rcond, row_bound = lax.stop_gradient((qr, ridge, rcond, row_bound))
    cut = LSTSQ_RCOND_EPS * jnp.finfo(r.dtype).eps if rcond is None else rcond
    cut = jnp.asarray(cut, r.dtype)

    def by_svd() -> LeastSquaresFactors:
        default = LSTSQ_RCOND_EPS if ridge is None else 0.0
        f = spectral_factors(r, rcond, default, row_bound)
        s = jnp.where(f.keep, f.s, 0)
        root = s if ridge is None else jnp.sqrt(s * s + ridge)
        inverse = safe_inverse(root, root > 0)
        return LeastSquaresFactors(
            matmul(q, f.u * (s * inverse)[None, :]), transpose(f.vt) * inverse[None, :]
        )

    if solver == "svd" or (solver != "qr" and ridge is not None and rcond is not None):
        return lax.stop_gradient(by_svd())
    if ridge is not None and solver != "qr":
        return _ridge_factors(q, r, ridge, by_svd)
    if ridge is not None:
        # The triangular factor of [r; sqrt(ridge)], whose conditioning is that of the problem.
        eye = jnp.sqrt(ridge) * jnp.eye(r.shape[0], dtype=r.dtype)
        root = thin_qr(jnp.concatenate([r, eye]))[1]
        inner = upper_inverse(root)
        return lax.stop_gradient(LeastSquaresFactors(matmul(q, matmul(r, inner)), inner))
    inverse = lax.stop_gradient(upper_inverse(r) if inverse is None else inverse)
    if solver == "qr":
        return lax.stop_gradient(LeastSquaresFactors(q, inverse))
    # ||root||_F ||root^-1||_F bounds the condition number; NaN and infinity fail the test.
    bound = jnp.linalg.norm(r) * jnp.linalg.norm(inverse)
    safe = (1 > cut * bound) & (jnp.finfo(r.dtype).eps * bound < INVERSE_LOSS)
    if row_bound is not None:
        safe &= row_bound >= r.shape[0]
    return lax.stop_gradient(lax.cond(safe, lambda: LeastSquaresFactors(q, inverse), by_svd))


def _ridge_factors(
    q: Array, r: Array, ridge: Array, by_svd: Callable[[], LeastSquaresFactors]
) -> LeastSquaresFactors:
    """Cholesky of r^T r + ridge where the ridge conditions it well, else the SVD of r."""

    def by_cholesky() -> LeastSquaresFactors:
        eye = jnp.eye(r.shape[0], dtype=r.dtype)
        root = transpose(cholesky(matmul(transpose(r), r) + ridge * eye))
        inverse = upper_inverse(root)
        return LeastSquaresFactors(matmul(q, matmul(r, inverse)), inverse)

    # The condition number of the shifted Gram matrix is at most 1 + ||r||^2 / ridge.
    safe = jnp.sum(r * r) * jnp.finfo(r.dtype).eps < RIDGE_CHOLESKY_LOSS * ridge
    return lax.stop_gradient(lax.cond(safe, by_cholesky, by_svd))


def least_squares(
    factors: LeastSquaresFactors, a: Array, b: Array, ridge: Array | None = None
) -> Array:
    """Minimise ||a w - b||^2 + ridge ||w||^2; the smallest such w if it is not unique.

    Args:
        factors: `least_squares_factors` of `a`, or of its transpose if n < d.
        a: matrix [n, d].
        b: right-hand sides [n, k].
        ridge: penalty >= 0, scalar, the one that `factors` were made with; None means none.

    Returns:
        The solution [d, k]. It has derivatives of every order with respect to `a`, `ridge` and
        `b`, exact at full rank; directions that count as zero have the derivative zero.
    """
    n, d = a.shape
    zero = jnp.zeros((d, b.shape[1]), a.dtype)
    fixed_a, fixed_b = lax.stop_gradient((a, b))
    if n >= d:
        exact = _saddle_solve(factors, a, ridge, b, zero, refine=ridge is None)[1]
        value = matmul(factors.inverse, matmul(transpose(factors.u), fixed_b))
        if ridge is None:
            # As `_saddle_solve` does, where c is zero.
            residual = fixed_b - matmul(fixed_a, value)
            value += matmul(factors.inverse, matmul(transpose(factors.u), residual))
    else:
        # Fewer rows than columns: w = a^T z is regular in the dual unknown z.
        exact = -_saddle_solve(factors, transpose(a), ridge, zero, -b)[0]
        value = matmul(factors.u, matmul(transpose(factors.inverse), fixed_b))
    return value_of(value, exact)


@jax.custom_jvp
def value_of(value: Array, exact: Array) -> Array:
    """`value` with the derivative of `exact`, which is the same by another algorithm.

    What leads to `exact` is never computed unless something is differentiated.
    """
    del exact
    return value


@value_of.defjvp
def _value_of_jvp(primals, tangents):
    return value_of(*primals), tangents[1]


def _saddle_solve(
    f: LeastSquaresFactors,
    a: Array,
    ridge: Array | None,
    b: Array,
    c: Array,
    *,
    refine: bool = False,
) -> tuple[Array, Array]:
    """Solve `r + a w = b`, `a^T r - ridge w = c` for r [n, k] and w [d, k], n >= d.

    The symmetric (augmented) form of least squares: unlike the normal equations it does not
    square the condition number.
    """

    def matvec(unknown):
        r, w = unknown
        second = matmul(transpose(a), r)
        return r + matmul(a, w), second if ridge is None else second - ridge * w

    def solve_once(rhs):
        b, c = rhs
        t = matmul(transpose(f.u), b) - matmul(transpose(f.inverse), c)
        return b - matmul(f.u, t), matmul(f.inverse, t)

    def solve(matvec, rhs):
        r, w = solve_once(rhs)
        if not refine:
            return r, w
        # A factorisation errs by many roundings, a residual by one: a step with it halves the
        # error of the predictions. (Only of the first equation: that of the second would be
        # rounding noise times the condition number.)
        residual = rhs[0] - matvec((r, w))[0]
        dr, dw = solve_once((residual, jnp.zeros_like(rhs[1])))
        return r + dr, w + dw

    return lax.custom_linear_solve(matvec, (b, c), solve, solve, symmetric=True)


@one_by_one_on_cpu
def _eigh(a: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


def gram_solve(
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
    values, vectors = lax.stop_gradient(_eigh(lax.stop_gradient(gram)))
    eps = LSTSQ_RCOND_EPS * jnp.finfo(gram.dtype).eps
    if rcond is None:
        cut = jnp.asarray(eps if ridge is None else 0.0, gram.dtype)
    else:
        cut = lax.stop_gradient(jnp.asarray(rcond, gram.dtype)) ** 2
    keep = values > cut * jnp.max(values, initial=0.0)
    shifted = values if ridge is None else values + lax.stop_gradient(ridge)
    keep &= shifted > 0
    inverse = safe_inverse(shifted, keep)[:, None]

    def matvec(w):
        product = matmul(gram, w)
        return product if ridge is None else product + ridge * w

    def solve(_, b):
        return matmul(vectors, inverse * matmul(transpose(vectors), b))

    return lax.custom_linear_solve(matvec, cross, solve, solve, symmetric=True)
