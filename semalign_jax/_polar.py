"""Polar factors: the (semi-)orthogonal matrix nearest to a given one, with derivatives.

The *value* comes from whatever algorithm suits the shape and the device: an SVD, an SVD between
two thin bases where the matrix has few rows of anchors behind it, or matrix products alone on
accelerators. The *derivative* is defined once, from singular value factors (see `_linalg`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _checks
from ._linalg import (
    POLAR_RCOND_EPS,
    SpectralFactors,
    cholesky,
    compute_dtype,
    matmul,
    one_by_one_on_cpu,
    power_of_two_scale,
    safe_inverse,
    spectral_factors,
    svd,
    thin_qr,
    transpose,
    upper_inverse,
    value_of,
)
from ._typing import POLAR_SOLVERS, Array, Completion, Solver

#: On a CPU, up to this share of the dimensions a problem of few anchors is solved in their span.
THIN_SHARE = 0.75


class ThinFactors(NamedTuple):
    """A matrix of low rank as `left @ inner @ right^T`, constants for differentiation.

    Attributes:
        left: orthonormal columns (or zero ones) [d_in, n].
        inner: [n, n].
        right: orthonormal columns [d_out, n].
    """

    left: Array
    inner: Array
    right: Array


def polar_factor(m: Array, *, rcond: Array | float | None = None, solver: Solver = "auto") -> Array:
    """Orthogonal polar factor: the (semi-)orthogonal matrix nearest to `m`.

    For the SVD `m = U S V^T` this is `U V^T`, with orthonormal columns if d_in >= d_out, else
    with orthonormal rows. It maximises tr(Q^T m) and minimises ||Q - m|| (Higham, "Computing the
    polar decomposition", 1986).

    Rank-deficient input: directions whose singular value is at most `rcond` times the largest
    are undetermined; they are filled so that the result is as close as possible to the identity
    (zero-padded or cut to shape), which makes it deterministic. A zero matrix gives the identity.

    Args:
        m: matrix [d_in, d_out], floating point; `jax.vmap` it for batches.
        rcond: relative cut-off >= 0 for singular values; None means one machine epsilon. Only
            an SVD knows it.
        solver: "svd", "iterative" (matrix products alone, see `nearest_orthogonal`) or "auto":
            the first on CPU, the second elsewhere.

    Returns:
        Array [d_in, d_out] of the dtype of `m` (half precision is computed in float32).
        Derivatives of all orders are finite; exact wherever the rank is locally constant.

    Raises:
        TypeError: if `m` is not floating point.
        ValueError: if `m` is not a matrix or is empty, or for an unknown solver.
    """
    m = _checks.float_array("m", m, 2)
    _checks.option("solver", solver, POLAR_SOLVERS)
    dtype = m.dtype
    m = m.astype(compute_dtype(dtype))
    m = m / power_of_two_scale(m)
    return orthogonal_factor(m, rcond=rcond, solver=solver).astype(dtype)


def orthogonal_factor(
    m: Array,
    *,
    thin: ThinFactors | None = None,
    rcond: Array | float | None = None,
    row_bound: Array | int | None = None,
    completion: Completion = "orthogonal",
    rotation_only: bool = False,
    solver: Solver = "auto",
) -> Array:
    """Polar factor of `m` with a choice of completion and algorithm.

    Args:
        m: matrix [d_in, d_out].
        thin: the same matrix through thin bases, n < min(d_in, d_out): then only their n x n
            core is factored. `m` itself is then read for the derivative alone.
        rcond: relative cut-off; None means one machine epsilon.
        row_bound: upper bound of the rank, if known.
        completion: "orthogonal" (nearest to the identity, the limit of the polar factor of
            `m + eps * identity` for eps -> 0+) or "partial" (zero).
        rotation_only: whether to exclude reflections (square `m`, Umeyama 1991).
        solver: "svd" factors the whole matrix, "qr" the core of `thin`, "iterative" uses matrix
            products alone; "auto" chooses by shape and device.
    """
    whole = solver == "svd" or (
        solver == "auto" and thin is not None and _whole_is_faster(thin, *m.shape)
    )
    static = _Static(completion, rotation_only, solver, whole)
    constants = lax.stop_gradient(_Constants(thin, rcond, row_bound))
    return _orthogonal_factor(static, constants, m)


class _Static(NamedTuple):
    completion: Completion
    rotation_only: bool
    solver: Solver
    whole: bool  # whether an SVD is that of the whole matrix


class _Constants(NamedTuple):
    thin: ThinFactors | None
    rcond: Array | float | None
    row_bound: Array | int | None


def _whole_is_faster(thin: ThinFactors, d_in: int, d_out: int) -> bool:
    """Whether the SVD of the whole matrix is faster on a CPU than that of its core."""
    return thin.inner.shape[0] > THIN_SHARE * min(d_in, d_out)


def _factors(static: _Static, constants: _Constants, m: Array) -> SpectralFactors:
    """Singular value factors of `m`, or of the core of its thin form."""
    thin, rcond, row_bound = constants
    m = m if thin is None or static.whole else thin.inner
    return spectral_factors(m, rcond, POLAR_RCOND_EPS, row_bound)


def _whole_factors(f: SpectralFactors, thin: ThinFactors | None) -> SpectralFactors:
    """Factors of the matrix from those of its core."""
    if thin is None:
        return f
    return f._replace(u=matmul(thin.left, f.u), vt=matmul(f.vt, transpose(thin.right)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _orthogonal_factor(static: _Static, constants: _Constants, m: Array) -> Array:
    return _value_and_factors(static, constants, m, with_factors=False)[0]


@_orthogonal_factor.defjvp
def _orthogonal_factor_jvp(static, primals, tangents):
    constants, m = primals
    found = _value_and_factors(static, constants, lax.stop_gradient(m), with_factors=True)
    value, f = lax.stop_gradient(found)
    assert f is not None

    def exact(m: Array) -> Array:
        if static.completion == "partial":
            return value_of(value, _isometry(f, m))
        return value_of(value, _complete(f, m, rotation_only=static.rotation_only))

    return jax.jvp(exact, (m,), tangents[1:])


def _value_and_factors(
    static: _Static, constants: _Constants, m: Array, *, with_factors: bool
) -> tuple[Array, SpectralFactors | None]:
    """The polar factor, and the factors that its derivative is made of if they are wanted."""

    def by_svd(constants, m):
        core = _factors(static, constants, m)
        thin = None if static.whole else constants.thin
        f = _whole_factors(core, thin)
        if static.completion == "partial":
            value = matmul(f.kept_u, f.vt)
        elif static.rotation_only:
            value = _complete(f, m, rotation_only=True)
        elif thin is not None:
            value = dense(thin_completion(thin.left, thin.right, core))
        else:
            value = _completed_value(f, *m.shape)
        return value, f if with_factors else None

    def by_products(constants, m):
        thin = constants.thin
        if thin is None:
            value = nearest_orthogonal(m)
        else:
            left, right = matmul(thin.left, nearest_orthogonal(thin.inner)), thin.right
            if static.completion == "partial":
                value = matmul(left, transpose(right))
            else:
                value = dense(thin_completion(left, right, None))
        if not with_factors:
            return value, None
        core = _factors(static, constants, m)
        return value, _whole_factors(core, None if static.whole else thin)

    if static.solver == "auto" and not static.rotation_only:
        return lax.platform_dependent(constants, m, cpu=by_svd, default=by_products)
    return (by_products if static.solver == "iterative" else by_svd)(constants, m)


# --- values: completions -----------------------------------------------------------------------


class LowRankForm(NamedTuple):
    """The matrix `left @ right`, plus the identity (cut to shape) if `plus_identity`.

    Attributes:
        left: [d_in, k].
        right: [k, d_out].
        plus_identity: a Python bool.
    """

    left: Array
    right: Array
    plus_identity: bool

    def dense(self) -> Array:
        """The matrix [d_in, d_out]."""
        product = matmul(self.left, self.right)
        if not self.plus_identity:
            return product
        return product + jnp.eye(*product.shape, dtype=product.dtype)

    def times(self, b: Array) -> Array:
        """The matrix times `b` [d_out, c], without forming it."""
        product = matmul(self.left, matmul(self.right, b))
        if not self.plus_identity:
            return product
        d_in, d_out = self.left.shape[0], b.shape[0]
        return product + jnp.pad(b[:d_in], ((0, max(0, d_in - d_out)), (0, 0)))

    @property
    def mT(self) -> "LowRankForm":  # noqa: N802, the name that arrays use
        """The transposed matrix."""
        return LowRankForm(transpose(self.right), transpose(self.left), self.plus_identity)


class DenseForm(NamedTuple):
    """A matrix [d_in, d_out] with the interface of `LowRankForm`."""

    matrix: Array

    def times(self, b: Array) -> Array:
        """The matrix times `b` [d_out, c]."""
        return matmul(self.matrix, b)

    @property
    def mT(self) -> "DenseForm":  # noqa: N802, the name that arrays use
        """The transposed matrix."""
        return DenseForm(transpose(self.matrix))


def low_rank_completion(left: Array, right: Array, core: SpectralFactors | None) -> LowRankForm:
    """The orthogonal matrix that maps span(u) as `u v^T` does and else is nearest to the identity.

    With the polar decomposition `u^T v = h p` it is

        identity + u (1 + h) v^T - (u h + v) (1 + p)^-1 (u h + v)^T:

    outside of span(u, v) the identity; within the plane of a pair of principal vectors the
    direct rotation of one complement to the other (Davis and Kahan, "The rotation of
    eigenvectors by a perturbation III", 1970). 1 + p has a condition number of at most 2.

    Args:
        left: orthonormal columns [d, k], of which u = left @ core.kept_u is made.
        right: orthonormal columns [d, k], v = right @ core.kept_vt^T.
        core: singular value factors [k, k]. None: u and v are `left` and `right`, and the
            completion is made of matrix products alone.
    """
    cosines = matmul(transpose(left), right)
    eye = jnp.eye(cosines.shape[0], dtype=cosines.dtype)
    # Columns of size k where that is possible: products with d rows are what takes time. The
    # inverse of 1 + p is half @ half^T.
    if core is None:
        h = nearest_orthogonal(cosines)
        p = matmul(transpose(h), cosines)
        half = upper_inverse(transpose(cholesky(eye + (p + transpose(p)) / 2)))
        sum_left, sum_right, between = matmul(h, half), half, eye + h
    else:
        u, v = core.kept_u, transpose(core.kept_vt)
        cosines = matmul(transpose(u), matmul(cosines, v))
        # Of directions that do not count, u and v have zeros. Twos keep them apart from the
        # cosines of the others, which are at most 1.
        twos = jnp.where(core.keep, 0, 2).astype(cosines.dtype)
        a, cosines, bt = svd(cosines + twos[:, None] * eye)
        scale = 1 / jnp.sqrt(1 + cosines)[None, :]
        sum_left, sum_right = matmul(u, a * scale), matmul(v, transpose(bt) * scale)
        between = matmul(u + matmul(u, matmul(a, bt)), transpose(v))
    both = matmul(left, sum_left) + matmul(right, sum_right)
    to_right = [matmul(between, transpose(right)), -transpose(both)]
    return LowRankForm(jnp.concatenate([left, both], 1), jnp.concatenate(to_right, 0), True)


def span_completion(u: Array, v: Array, *, products_only: bool = False) -> LowRankForm:
    """As `low_rank_completion`, for spaces of unequal dimensions.

    Only the span of the columns on either side departs from the naive map; so the polar factor
    is taken there, at most 3 k wide, and not in the whole space.

    Args:
        u: orthonormal columns, or zero ones [d_in, k].
        v: orthonormal columns, or zero ones [d_out, k], 3 k <= min(d_in, d_out).
        products_only: whether to avoid an SVD.
    """
    d_in, d_out = u.shape[0], v.shape[0]
    if d_in > d_out:
        return span_completion(v, u, products_only=products_only).mT
    left, _ = thin_qr(jnp.concatenate([u, v[:d_in]], axis=1))
    padded = jnp.pad(left, ((0, d_out - d_in), (0, 0)))
    right, _ = thin_qr(jnp.concatenate([padded, v], axis=1))
    determined = matmul(matmul(transpose(left), u), matmul(transpose(v), right))
    target = _with_rest(determined, matmul(transpose(left), right[:d_in]))
    inner = matmul(_full_rank_polar(target, products_only), transpose(right))
    change = inner - jnp.pad(transpose(left), ((0, 0), (0, d_out - d_in)))
    return LowRankForm(left, change, True)


def _full_rank_polar(m: Array, products_only: bool) -> Array:
    if products_only:
        return nearest_orthogonal(m)
    u, _, vt = svd(m)
    return matmul(u, vt)


def thin_completion(left: Array, right: Array, core: SpectralFactors | None) -> LowRankForm | Array:
    """The completed polar factor from few singular vectors, as a constant.

    Args:
        left: orthonormal columns [d_in, k], k < min(d_in, d_out).
        right: orthonormal columns [d_out, k].
        core: singular value factors [k, k] of the map between them. None: its polar factor is
            the identity, and no SVD is to be used.

    Returns:
        A low-rank form where that is cheaper, else the matrix [d_in, d_out].
    """
    d_in, d_out = left.shape[0], right.shape[0]
    if d_in == d_out:
        return low_rank_completion(left, right, core)
    u, v = left, right
    if core is not None:
        u, v = matmul(left, core.kept_u), matmul(right, transpose(core.kept_vt))
    if 3 * u.shape[1] <= min(d_in, d_out):
        return span_completion(u, v, products_only=core is None)
    target = _with_rest(matmul(u, transpose(v)), jnp.eye(d_in, d_out, dtype=u.dtype))
    return _full_rank_polar(target, core is None)


def thin_polar_form(thin: ThinFactors, completion: Completion) -> LowRankForm | None:
    """The polar factor of `thin` as a low-rank form, as a constant.

    Returns:
        None if working with the whole matrix is cheaper.
    """
    (d_in, n), d_out = thin.left.shape, thin.right.shape[0]
    square = d_in == d_out
    if _whole_is_faster(thin, d_in, d_out) or (not square and 3 * n > min(d_in, d_out)):
        return None

    def form(left: Array, right: Array, core: SpectralFactors | None) -> tuple[Array, Array]:
        if completion == "partial":
            if core is not None:
                left, right = matmul(left, matmul(core.kept_u, core.vt)), right
            return left, transpose(right)
        found = thin_completion(left, right, core)
        assert isinstance(found, LowRankForm)
        return found.left, found.right

    def by_svd(thin):
        return form(thin.left, thin.right, spectral_factors(thin.inner, None, POLAR_RCOND_EPS, n))

    def by_products(thin):
        return form(matmul(thin.left, nearest_orthogonal(thin.inner)), thin.right, None)

    thin = lax.stop_gradient(thin)
    left, right = lax.platform_dependent(thin, cpu=by_svd, default=by_products)
    return LowRankForm(left, right, completion == "orthogonal")


def dense(form: LowRankForm | Array) -> Array:
    """The matrix itself."""
    return form.dense() if isinstance(form, LowRankForm) else form


def _completed_value(f: SpectralFactors, d_in: int, d_out: int) -> Array:
    """The completed polar factor as a constant, from all singular vectors."""
    if d_in == d_out:
        return _completed_trailing((f.u, f.vt, f.keep))

    def deficient(f: SpectralFactors) -> Array:
        target = _with_rest(matmul(f.kept_u, f.vt), jnp.eye(d_in, d_out, dtype=f.s.dtype))
        return _full_rank_polar(target, products_only=False)

    return lax.cond(jnp.all(f.keep), lambda f: matmul(f.u, f.vt), deficient, f)


@one_by_one_on_cpu
def _completed_trailing(factors: tuple[Array, Array, Array]) -> Array:
    """The completed polar factor of a square matrix from all of its singular vectors.

    Undetermined directions come last. The map between them that is nearest to the identity is
    the polar factor of their inner products: a second, smaller SVD.
    """
    u, vt, keep = factors
    d = u.shape[0]
    widths = sorted({-(-d // 2), d})

    def complete(width: int, u: Array, vt: Array, keep: Array) -> Array:
        last, last_t, kept = u[:, d - width :], vt[d - width :], keep[d - width :]
        inner = matmul(transpose(last), transpose(last_t))
        free = (~kept[:, None] & ~kept[None, :]).astype(u.dtype)
        twos = jnp.where(kept, 2, 0).astype(u.dtype)
        a, _, bt = svd(free * inner + jnp.diag(twos))
        last = matmul(last, matmul(a, bt))
        return matmul(jnp.concatenate([u[:, : d - width], last], 1), vt)

    branches: list[Callable] = [lambda u, vt, keep: matmul(u, vt)]
    for width in widths:
        branches.append(lambda *args, width=width: complete(width, *args))
    missing = d - jnp.sum(keep)
    index = jnp.sum(missing > jnp.asarray([0, *widths[:-1]]))
    return lax.switch(index, branches, u, vt, keep)


# --- values: matrix products alone -------------------------------------------------------------

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


def nearest_orthogonal(m: Array) -> Array:
    """Polar factor by matrix products alone, for devices where an SVD is slow. No derivative.

    Odd polynomials of degree 5, each the best for the range that the singular values are in,
    as in Amsel et al., "The Polar Express" (arXiv 2505.16932), then Newton-Schulz steps until
    the result is orthogonal. A trace of the identity is added, about a machine epsilon, which
    fills exactly undetermined directions as `polar_factor` does; directions at the level of
    rounding are filled in some orthogonal way.

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

    schedule = jnp.asarray(_quintic_schedule(), dtype)
    q, _ = lax.scan(lambda q, row: (step(q, (row[0], row[1], row[2])), None), q, schedule)
    polish = tuple(jnp.asarray(value, dtype) for value in (15 / 8, -10 / 8, 3 / 8))

    # The step that follows the last test takes an error to its third power.
    tolerance = eps ** (1 / 3) / 4

    def unfinished(state):
        _, error, count = state
        return (error > tolerance) & (count < 60)

    def again(state):
        q, _, count = state
        error = jnp.max(jnp.abs(matmul(transpose(q), q) - eye))
        return step(q, polish), error, count + 1

    start = (q, jnp.ones((), dtype), jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, again, start)[0]


# --- derivatives -------------------------------------------------------------------------------


def _complete(f: SpectralFactors, m: Array, *, rotation_only: bool = False) -> Array:
    """The completed polar factor of `m` as a differentiable function.

    With `rotation_only` the determinant is +1: if need be the least determined direction is
    reflected.
    """

    def deficient(f: SpectralFactors, m: Array) -> Array:
        target = _with_rest(_isometry(f, m), jnp.eye(*m.shape, dtype=m.dtype))
        full = spectral_factors(target)
        full = full._replace(keep=jnp.ones_like(full.keep))
        return _isometry(_signed(full, rotation_only), target)

    if f.s.shape[0] < min(m.shape):
        return deficient(f, m)
    # The second factorisation is only paid for where the rank is deficient.
    return lax.cond(
        jnp.all(f.keep), lambda f, m: _isometry(_signed(f, rotation_only), m), deficient, f, m
    )


def _signed(f: SpectralFactors, rotation_only: bool) -> SpectralFactors:
    """Factors of the optimum within the rotations: the last direction may change its sign."""
    if not rotation_only:
        return f
    sign = jnp.linalg.slogdet(matmul(f.u, f.vt))[0]
    return f._replace(u=f.u.at[:, -1].multiply(sign), s=f.s.at[-1].multiply(sign))


def _with_rest(determined: Array, naive: Array) -> Array:
    """Twice the partial isometry, plus the naive map between the undetermined directions.

    Twice, so that determined directions (2) stay apart from the others (at most 1).
    """
    rest = naive - matmul(determined, matmul(transpose(determined), naive))
    return 2 * determined + rest - matmul(matmul(rest, transpose(determined)), determined)


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
