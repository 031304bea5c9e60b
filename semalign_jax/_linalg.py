"""Dense linear algebra with derivatives that stay finite: least squares and polar factors.

Both solvers separate the *value*, which comes from a factorisation held as plain data, from the
*derivative*, which comes from linear systems solved with these same factors
(`lax.custom_linear_solve`). So any algorithm may produce the factors, derivatives of every order
exist in forward and reverse mode, and no `1 / (s_i - s_j)` ever appears: repeated or zero
singular values are harmless. Singular values at or below the cut-off count as exact zeros.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._checks import float_array
from ._typing import Array

#: Precision of every matrix product in the solvers. TF32 and bfloat16, the defaults on GPU and
#: TPU, would ruin orthogonality. Assign another `jax.lax.Precision` here to override it.
PRECISION = lax.Precision.HIGHEST

#: Relative cut-offs in units of the machine epsilon. Rounding lifts exact zero singular values
#: to at most about 5 eps in practice (n to 5,000, d to 768), independently of the size, so
#: 8 eps separates noise from signal and still keeps a condition number of 1e6 in float32.
#: A wrong rank is fatal for least squares and harmless for a polar factor, which also wants to
#: keep small but real directions, hence two numbers.
LSTSQ_RCOND_EPS = 8.0
POLAR_RCOND_EPS = 1.0

#: With no cut-off (rcond=0), the inverse of a triangular factor is used up to this product of the
#: machine epsilon and a bound of the condition number; beyond it, it is useless.
INVERSE_LOSS = 30.0

#: Ridge problems are solved by Cholesky where that loses at most this much relative accuracy.
RIDGE_CHOLESKY_LOSS = 2e-4


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at `PRECISION`."""
    return jnp.matmul(a, b, precision=PRECISION)


def transpose(a: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(a, -1, -2)


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


def _one_by_one_on_cpu(function: Callable) -> Callable:
    """Give `function` a batching rule that runs LAPACK on one matrix after the other.

    XLA's CPU runtime splits a batched LAPACK call over its thread pool and waits inside of it:
    two such calls at once can block each other for ever. On other backends the batched kernel
    is used.
    """
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, *args):
        del axis_size
        assert all(in_batched)  # each has one argument
        outputs = lax.platform_dependent(
            *args, cpu=lambda a: lax.map(wrapped, a), default=jax.vmap(function)
        )
        return outputs, jax.tree_util.tree_map(lambda _: True, outputs)

    return wrapped


def _plain_svd(a: Array) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vt


def _safe_svd(a: Array) -> tuple[Array, Array, Array]:
    """SVD by divide and conquer; by QR iteration where that does not converge.

    LAPACK's sgesdd now and then gives up (NaN) on clustered singular values. The second
    result is less orthogonal, which a Newton-Schulz step repairs.
    """

    def by_qr_iteration(a, u, s, vt):
        del u, s, vt
        u, s, vt = lax.linalg.svd(a, full_matrices=False, algorithm=lax.linalg.SvdAlgorithm.QR)
        return _reorthogonalised(u), s, transpose(_reorthogonalised(transpose(vt)))

    first = _plain_svd(a)
    failed = jnp.isnan(first[1]).any() & jnp.isfinite(a).all()
    return lax.cond(failed, by_qr_iteration, lambda a, *usv: usv, a, *first)


def _reorthogonalised(q: Array) -> Array:
    return 1.5 * q - 0.5 * matmul(q, matmul(transpose(q), q))


@_one_by_one_on_cpu
def _svd(a: Array) -> tuple[Array, Array, Array]:
    return lax.platform_dependent(a, cpu=_safe_svd, default=_plain_svd)


@_one_by_one_on_cpu
def _singular_values(a: Array) -> Array:
    return jnp.linalg.svd(a, compute_uv=False)


@_one_by_one_on_cpu
def _qr(a: Array) -> tuple[Array, Array]:
    q, r = jnp.linalg.qr(a)
    return q, r


@_one_by_one_on_cpu
def _cholesky(a: Array) -> Array:
    return jnp.linalg.cholesky(a, symmetrize_input=False)


@_one_by_one_on_cpu
def _upper_inverse(r: Array) -> Array:
    return lax.linalg.triangular_solve(r, jnp.eye(r.shape[0], dtype=r.dtype), left_side=True)


def thin_qr(a: Array) -> tuple[Array, Array]:
    """Thin QR of `a` [n, d], n >= d, cut off from differentiation."""
    return lax.stop_gradient(_qr(lax.stop_gradient(a)))


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
    row_bound: Array | None = None,
) -> SpectralFactors:
    """Thin SVD of `a`, cut off from differentiation.

    The rank is decided by `rcond` and, where known, by `row_bound`, the number of non-zero rows.
    """
    u, s, vt = _svd(lax.stop_gradient(a))
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
    row_bound: Array | None = None,
) -> LeastSquaresFactors:
    """Factor a tall matrix [n, d] from its thin QR, by SVD where its condition requires that.

    Args:
        qr: `tall_qr` of the matrix.
        ridge: penalty >= 0; None means none.
        rcond: relative cut-off; None means 8 eps without and no cut-off with a ridge.
        row_bound: number of non-zero rows if it is less than n.
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

    if ridge is not None and rcond is not None:
        return lax.stop_gradient(by_svd())
    if ridge is not None:
        return _ridge_factors(q, r, ridge, by_svd)
    inverse = _upper_inverse(r)
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
        root = transpose(_cholesky(matmul(transpose(r), r) + ridge * eye))
        inverse = _upper_inverse(root)
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
    if n >= d:
        return _saddle_solve(factors, a, ridge, b, zero, refine=ridge is None)[1]
    # Fewer rows than columns: w = a^T z is regular in the dual unknown z.
    return -_saddle_solve(factors, transpose(a), ridge, zero, -b)[0]


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


@_one_by_one_on_cpu
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


# --- polar factor ------------------------------------------------------------------------------


def polar_factor(m: Array, *, rcond: Array | float | None = None) -> Array:
    """Orthogonal polar factor: the (semi-)orthogonal matrix nearest to `m`.

    For the SVD `m = U S V^T` this is `U V^T`, with orthonormal columns if d_in >= d_out, else
    with orthonormal rows. It maximises tr(Q^T m) and minimises ||Q - m|| (Higham, "Computing the
    polar decomposition", 1986).

    Rank-deficient input: directions whose singular value is at most `rcond` times the largest
    are undetermined; they are filled so that the result is as close as possible to the identity
    (zero-padded or cut to shape), which makes it deterministic. A zero matrix gives the identity.

    Args:
        m: matrix [d_in, d_out], floating point; `jax.vmap` it for batches.
        rcond: relative cut-off >= 0 for singular values; None means one machine epsilon.

    Returns:
        Array [d_in, d_out] of the dtype of `m` (half precision is computed in float32).
        Derivatives of all orders are finite; exact wherever the rank is locally constant.

    Raises:
        TypeError: if `m` is not floating point.
        ValueError: if `m` is not a matrix or is empty.
    """
    m = float_array("m", m, 2)
    dtype = m.dtype
    m = m.astype(compute_dtype(dtype))
    m = m / power_of_two_scale(m)
    factors = spectral_factors(m, rcond, POLAR_RCOND_EPS)
    return complete_isometry(factors, m).astype(dtype)


def common_dtype(a, b) -> jnp.dtype:
    """The dtype that holds values of both, also where JAX's promotion is set to strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def compute_dtype(dtype) -> jnp.dtype:
    """Floating dtype the solvers work in: half precision is raised to float32."""
    return common_dtype(dtype, jnp.float32)


def signed_factors(f: SpectralFactors, *, rotation_only: bool) -> SpectralFactors:
    """Factors of the optimum within the rotations: the last direction may change its sign."""
    if not rotation_only:
        return f
    sign = jnp.linalg.slogdet(matmul(f.u, f.vt))[0]
    return f._replace(u=f.u.at[:, -1].multiply(sign), s=f.s.at[-1].multiply(sign))


def partial_isometry(f: SpectralFactors, m: Array) -> Array:
    """`U V^T` over the kept singular directions of `m`, zero on all others.

    Args:
        f: SVD-like factors of `m`: at least its kept directions, u [d_in, k], vt [k, d_out].
        m: the matrix [d_in, d_out]; only read when differentiated.
    """
    return _isometry(f, m)


def complete_isometry(f: SpectralFactors, m: Array, *, rotation_only: bool = False) -> Array:
    """Semi-orthogonal `U V^T` of `m`, undetermined directions as near the identity as possible.

    It is the limit of the polar factor of `m + eps * identity` for eps -> 0+. With
    `rotation_only` (square `m`) the determinant is +1: if need be the least determined
    direction is reflected (Umeyama 1991).

    Args:
        f: SVD-like factors of `m`; see `partial_isometry`.
        m: the matrix [d_in, d_out].
        rotation_only: whether to exclude reflections.
    """
    if f.s.shape[0] < min(m.shape):
        return _completed(f, m, rotation_only)
    # The second factorisation is only paid for where the rank is deficient.
    return lax.cond(
        jnp.all(f.keep),
        lambda f, m: _isometry(signed_factors(f, rotation_only=rotation_only), m),
        lambda f, m: _completed(f, m, rotation_only),
        f,
        m,
    )


def _completed(f: SpectralFactors, m: Array, rotation_only: bool) -> Array:
    target = _with_rest(_isometry(f, m), jnp.eye(*m.shape, dtype=m.dtype))
    if not rotation_only and 3 * f.s.shape[0] <= min(m.shape):
        return _polar_of(_completed_in_span(f, *m.shape), target)
    full = spectral_factors(target)
    full = full._replace(keep=jnp.ones_like(full.keep))
    return _isometry(signed_factors(full, rotation_only=rotation_only), target)


def _with_rest(determined: Array, naive: Array) -> Array:
    """Twice the partial isometry, plus the naive map between the undetermined directions.

    Twice, so that determined directions (2) stay apart from the others (at most 1).
    """
    rest = naive - matmul(determined, matmul(transpose(determined), naive))
    return 2 * determined + rest - matmul(matmul(rest, transpose(determined)), determined)


def _completed_in_span(f: SpectralFactors, d_in: int, d_out: int) -> Array:
    """The completed isometry for few determined directions, as a constant.

    Only the span of these directions on either side departs from the naive map; so the polar
    factor is taken there, at most 3 k wide, and not in the whole space.
    """
    if d_in > d_out:
        swapped = SpectralFactors(transpose(f.vt), f.s, transpose(f.u), f.keep)
        return transpose(_completed_in_span(swapped, d_out, d_in))
    v = transpose(f.vt)
    left, _ = thin_qr(jnp.concatenate([f.u, v[:d_in]], axis=1))
    right = left
    if d_in < d_out:
        padded = jnp.pad(left, ((0, d_out - d_in), (0, 0)))
        right, _ = thin_qr(jnp.concatenate([padded, v], axis=1))
    determined = matmul(matmul(transpose(left), f.kept_u), matmul(f.vt, right))
    target = _with_rest(determined, matmul(transpose(left), right[:d_in]))
    u, _, vt = lax.stop_gradient(_svd(target))
    inner = matmul(matmul(u, vt), transpose(right))
    change = inner - jnp.pad(transpose(left), ((0, 0), (0, d_out - d_in)))
    return lax.stop_gradient(jnp.eye(d_in, d_out, dtype=f.s.dtype) + matmul(left, change))


@jax.custom_jvp
def _polar_of(q: Array, m: Array) -> Array:
    """`q`, known to be the polar factor of the full-rank `m`."""
    del m
    return q


@_polar_of.defjvp
def _polar_of_jvp(primals, tangents):
    q, m = primals
    f = spectral_factors(m)
    q = _polar_of(q, m)
    return q, _isometry_tangent(f._replace(keep=jnp.ones_like(f.keep)), q, m, tangents[1])


@jax.custom_jvp
def _isometry(f: SpectralFactors, m: Array) -> Array:
    return matmul(f.kept_u, f.vt)


@_isometry.defjvp
def _isometry_jvp(primals, tangents):
    f, m = primals
    q = _isometry(f, m)
    return q, _isometry_tangent(f, q, m, tangents[1])


def _isometry_tangent(f: SpectralFactors, q: Array, m: Array, dm: Array) -> Array:
    # With m = q h, h = V diag(s) V^T: h w + w h = q^T dm - dm^T q gives the rotation w within
    # the range; the other two terms turn the range itself. Denominators are s_i + s_j and s_i.
    qt = transpose(q)
    projector = matmul(qt, q)
    h = matmul(qt, m) + jnp.eye(m.shape[1], dtype=m.dtype) - projector
    skew = matmul(qt, dm)
    skew = matmul(projector, matmul(skew - transpose(skew), projector))
    tangent = matmul(q, _sylvester_solve(f, h, skew))
    left = matmul(dm - matmul(q, matmul(qt, dm)), projector)
    tangent = tangent + transpose(_symmetric_solve(f, h, transpose(left)))
    right = matmul(qt, dm - matmul(dm, projector))
    return tangent + matmul(q, _symmetric_solve(f, h, right))


def _symmetric_solve(f: SpectralFactors, h: Array, c: Array) -> Array:
    """`h^-1 c` for `h = V diag(s) V^T` on the kept directions and the identity elsewhere."""
    vt = f.kept_vt
    gain = safe_inverse(f.s, f.keep)[:, None]

    def solve(_, c):
        inner = matmul(vt, c)
        return c + matmul(transpose(vt), (gain - 1) * inner)

    return lax.custom_linear_solve(lambda w: matmul(h, w), c, solve, solve, symmetric=True)


def _sylvester_solve(f: SpectralFactors, h: Array, c: Array) -> Array:
    """The w with `h w + w h = c`, for `h` as in `_symmetric_solve`.

    Pairs of directions with s_i + s_j = 0 have no solution and get 0.
    """
    vt = f.kept_vt
    s = jnp.where(f.keep, f.s, 1)
    sums = s[:, None] + s[None, :]
    regular = jnp.abs(sums) > jnp.finfo(s.dtype).eps * jnp.max(jnp.abs(s))
    within = safe_inverse(sums, regular)
    across = safe_inverse(s + 1, s + 1 > 0)[:, None]

    def solve(_, c):
        left = matmul(vt, c)
        inner = matmul(left, transpose(vt))
        left = left - matmul(inner, vt)
        right = transpose(matmul(c, transpose(vt)) - matmul(transpose(vt), inner))
        rest = c - matmul(transpose(vt), matmul(inner, vt) + left) - matmul(transpose(right), vt)
        mixed = matmul(transpose(vt), across * left)
        mixed = mixed + transpose(matmul(transpose(vt), across * right))
        return matmul(transpose(vt), matmul(inner * within, vt)) + mixed + rest / 2

    def matvec(w):
        return matmul(h, w) + matmul(w, h)

    return lax.custom_linear_solve(matvec, c, solve, solve, symmetric=True)
