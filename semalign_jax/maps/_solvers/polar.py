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

from ..._core import checks
from ..._core.linalg import (
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
from ..._core.typing import POLAR_SOLVERS, Array, Completion, Solver

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
        rcond: relative cut-off >= 0 for singular values; None means 8 machine epsilons. Only
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
    m = checks.float_array("m", m, 2)
    checks.option("solver", solver, POLAR_SOLVERS)
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
        rcond: relative cut-off; None means 8 machine epsilons.
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
    masked = isinstance(row_bound, Array)
    static = _Static(completion, rotation_only, solver, whole, masked)
    constants = lax.stop_gradient(_Constants(thin, rcond, row_bound))
    return _orthogonal_factor(static, constants, m)


class _Static(NamedTuple):
    completion: Completion
    rotation_only: bool
    solver: Solver
    whole: bool  # whether an SVD is that of the whole matrix
    masked: bool  # whether a bound of the rank is known when the program runs, not before


class _Constants(NamedTuple):
    thin: ThinFactors | None
    rcond: Array | float | None
    row_bound: Array | int | None


def _whole_is_faster(thin: ThinFactors, d_in: int, d_out: int) -> bool:
    """Whether the SVD of the whole matrix is faster on a CPU than that of its core."""
    return thin.inner.shape[0] > THIN_SHARE * min(d_in, d_out)


def _core(static: _Static, constants: _Constants) -> SpectralFactors | None:
    """Factors of the core between thin bases [n, n]; None if the whole matrix is factored."""
    thin, rcond, row_bound = constants
    if thin is None or static.whole:
        return None
    return spectral_factors(thin.inner, rcond, POLAR_RCOND_EPS, row_bound)


def _factors(core: SpectralFactors | None, constants: _Constants, m: Array) -> SpectralFactors:
    thin, rcond, row_bound = constants
    if core is None:
        return spectral_factors(m, rcond, POLAR_RCOND_EPS, row_bound)
    assert thin is not None
    return core._replace(u=matmul(thin.left, core.u), vt=matmul(core.vt, transpose(thin.right)))


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
        core = _core(static, constants)
        f = _factors(core, constants, m)
        if static.completion == "partial":
            value = matmul(f.kept_u, f.vt)
        elif static.rotation_only:
            value = _complete(f, m, rotation_only=True)
        elif core is not None:
            value = dense(thin_completion(constants.thin, core))
        else:
            value = matmul(*_completed_factors(f))
        return value, f if with_factors else None

    def by_products(constants, m):
        thin = constants.thin
        if thin is None:
            value = nearest_orthogonal(m)
        elif static.completion == "partial":
            u, v = _determined(thin, None)
            value = matmul(u, transpose(v))
        else:
            value = dense(thin_completion(thin, None))
        factors = _factors(_core(static, constants), constants, m) if with_factors else None
        return value, factors

    def on_accelerator(constants, m):
        if not static.masked:
            return by_products(constants, m)
        # Products alone do not know which directions rows of weight zero leave undetermined.
        size = min(m.shape) if constants.thin is None else constants.thin.inner.shape[0]
        return lax.cond(constants.row_bound >= size, by_products, by_svd, constants, m)

    if static.solver == "auto" and not static.rotation_only:
        return lax.platform_dependent(constants, m, cpu=by_svd, default=on_accelerator)
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


class BasesForm(NamedTuple):
    """The square matrix `identity + left @ across @ right^T - s s^T`, `s = left @ a + right @ b`.

    Attributes:
        left: orthonormal columns [d, n].
        right: orthonormal columns [d, n].
        across: [n, n].
        a: [n, n].
        b: [n, n].
    """

    left: Array
    right: Array
    across: Array
    a: Array
    b: Array

    def dense(self) -> Array:
        """The matrix [d, d]."""
        turned = matmul(self.left, self.a) + matmul(self.right, self.b)
        columns = jnp.concatenate([self.left, turned], axis=1)
        rows = [matmul(self.across, transpose(self.right)), -transpose(turned)]
        product = matmul(columns, jnp.concatenate(rows))
        return product + jnp.eye(product.shape[0], dtype=product.dtype)

    def times(self, b: Array) -> Array:
        """The matrix times `b` [d, c], without forming it."""
        of_left, of_right = (matmul(transpose(side), b) for side in (self.left, self.right))
        turned = matmul(transpose(self.a), of_left) + matmul(transpose(self.b), of_right)
        change = matmul(self.left, matmul(self.across, of_right) - matmul(self.a, turned))
        return b + change - matmul(self.right, matmul(self.b, turned))

    @property
    def mT(self) -> "BasesForm":  # noqa: N802, the name that arrays use
        """The transposed matrix."""
        return BasesForm(self.right, self.left, transpose(self.across), self.b, self.a)


def bases_completion(thin: ThinFactors, core: SpectralFactors | None) -> BasesForm:
    """The orthogonal matrix that is determined between thin bases and else nearest to the identity.

    With singular vectors U and V of what is determined, and the polar decomposition
    `U^T V = H P`, it is

        identity + U (1 + H) V^T - (U H + V) (1 + P)^-1 (U H + V)^T:

    outside of span(U, V) the identity; within the plane of a pair of principal vectors the
    direct rotation of one complement to the other (Davis and Kahan, "The rotation of
    eigenvectors by a perturbation III", 1970). 1 + P has a condition number of at most 2.

    Args:
        thin: the determined part, d_in = d_out.
        core: factors of `thin.inner`; None if all directions count and no SVD is wanted.
    """
    if core is None:
        left, right = _determined(thin, None)
        cosines = matmul(transpose(left), right)
        eye = jnp.eye(cosines.shape[0], dtype=cosines.dtype)
        h = nearest_orthogonal(cosines + 2 * jnp.where(_counts(left)[None, :], 0, eye))
        p = matmul(transpose(h), cosines)
        root = upper_inverse(transpose(cholesky(eye + (p + transpose(p)) / 2)))
        return BasesForm(left, right, eye + h, matmul(h, root), root)
    left, right = thin.left, thin.right
    cosines = matmul(transpose(left), right)
    u, vt = core.kept_u, core.kept_vt
    # Twos stay apart from the cosines of the others, which are at most 1.
    twos = jnp.diag(jnp.where(core.keep, 0, 2).astype(u.dtype))
    a, cosines, bt = svd(matmul(transpose(u), matmul(cosines, transpose(vt))) + twos)
    a, b = matmul(u, a), transpose(matmul(bt, vt))
    across = matmul(u, vt) + matmul(a, transpose(b))
    root = 1 / jnp.sqrt(1 + cosines)[None, :]
    return BasesForm(left, right, across, a * root, b * root)


def span_completion(u: Array, v: Array, *, products_only: bool) -> LowRankForm:
    """As `bases_completion`, for spaces of unequal dimensions.

    Only the span of the columns on either side departs from the naive map; so the polar factor
    is taken there, at most 3 k wide, and not in the whole space.

    Args:
        u: orthonormal columns [d_in, k]; zero ones, in both, do not count.
        v: orthonormal columns [d_out, k], 3 k <= min(d_in, d_out).
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


def thin_completion(
    thin: ThinFactors, core: SpectralFactors | None
) -> LowRankForm | BasesForm | Array:
    """The completed polar factor of a matrix of low rank, as a constant.

    Args:
        thin: the matrix, n < min(d_in, d_out).
        core: factors of `thin.inner`; None if all directions count and no SVD is wanted.

    Returns:
        A form where that is cheaper, else the matrix [d_in, d_out].
    """
    d_in, d_out = thin.left.shape[0], thin.right.shape[0]
    if d_in == d_out:
        return bases_completion(thin, core)
    u, v = _determined(thin, core)
    if 3 * u.shape[1] <= min(d_in, d_out):
        return span_completion(u, v, products_only=core is None)
    target = _with_rest(matmul(u, transpose(v)), jnp.eye(d_in, d_out, dtype=u.dtype))
    return _full_rank_polar(target, core is None)


def _determined(thin: ThinFactors, core: SpectralFactors | None) -> tuple[Array, Array]:
    """Two matrices [d_in, n] and [d_out, n] with the partial isometry `u @ v^T`.

    Their columns are orthonormal, or zero in both.
    """
    if core is None:
        v = matmul(thin.right, transpose(nearest_orthogonal(thin.inner)))
        return thin.left, jnp.where(_counts(thin.left)[None, :], v, 0)
    return matmul(thin.left, core.kept_u), matmul(thin.right, transpose(core.kept_vt))


def _counts(basis: Array) -> Array:
    """Which columns of a basis are not zero."""
    return jnp.sum(basis * basis, axis=0) > 0.5


def thin_polar_form(thin: ThinFactors, completion: Completion) -> LowRankForm | BasesForm | None:
    """The polar factor of `thin` as a form that is multiplied with few columns, as a constant.

    Returns:
        None if working with the whole matrix is cheaper.
    """
    (d_in, n), d_out = thin.left.shape, thin.right.shape[0]
    square = d_in == d_out
    if _whole_is_faster(thin, d_in, d_out) or (not square and 3 * n > min(d_in, d_out)):
        return None

    def form(thin: ThinFactors, core: SpectralFactors | None) -> BasesForm | tuple[Array, Array]:
        if completion == "partial":
            u, v = _determined(thin, core)
            return u, transpose(v)
        found = thin_completion(thin, core)
        assert not isinstance(found, Array)
        return found if isinstance(found, BasesForm) else (found.left, found.right)

    found = lax.platform_dependent(
        lax.stop_gradient(thin),
        cpu=lambda thin: form(thin, spectral_factors(thin.inner, None, POLAR_RCOND_EPS, n)),
        default=lambda thin: form(thin, None),
    )
    if isinstance(found, BasesForm):
        return found
    left, right = found
    return LowRankForm(left, right, completion == "orthogonal")


def dense(form: LowRankForm | BasesForm | Array) -> Array:
    """The matrix itself."""
    return form.dense() if isinstance(form, LowRankForm | BasesForm) else form


def polar_form(m: Array, completion: Completion) -> LowRankForm:
    """The polar factor of a matrix with singular values down to any size, as a constant.

    A product of two matrices, for those who multiply it with few columns.

    Args:
        m: matrix [d_in, d_out].
        completion: as of `orthogonal_factor`.
    """

    def by_svd(m: Array) -> tuple[Array, Array]:
        f = spectral_factors(m, None, POLAR_RCOND_EPS)
        return (f.kept_u, f.vt) if completion == "partial" else _completed_factors(f)

    def by_products(m: Array) -> tuple[Array, Array]:
        q, eye = nearest_orthogonal(m), jnp.eye(min(m.shape), dtype=m.dtype)
        return (q, eye) if m.shape[0] >= m.shape[1] else (eye, q)

    left, right = lax.platform_dependent(lax.stop_gradient(m), cpu=by_svd, default=by_products)
    return LowRankForm(left, right, False)


def _completed_factors(f: SpectralFactors) -> tuple[Array, Array]:
    """Two matrices whose product is the completed polar factor, from all singular vectors."""
    d_in, d_out = f.u.shape[0], f.vt.shape[1]
    if d_in == d_out:
        return _completed_trailing((f.u, f.vt, f.keep)), f.vt

    def deficient(f: SpectralFactors) -> tuple[Array, Array]:
        target = _with_rest(matmul(f.kept_u, f.vt), jnp.eye(d_in, d_out, dtype=f.s.dtype))
        u, _, vt = svd(target)
        return u, vt

    return lax.cond(jnp.all(f.keep), lambda f: (f.u, f.vt), deficient, f)


@one_by_one_on_cpu
def _completed_trailing(factors: tuple[Array, Array, Array]) -> Array:
    """What to put for u in `u @ vt` so that it becomes the completed polar factor (square).

    Undetermined directions come last. The map between them that is nearest to the identity is
    the polar factor of their inner products: a second, smaller SVD.
    """
    u, vt, keep = factors
    d = u.shape[0]
    widths = sorted({-(-d * part // 4) for part in (1, 2, 3, 4)})

    def complete(width: int, u: Array, vt: Array, keep: Array) -> Array:
        last, last_t, kept = u[:, d - width :], vt[d - width :], keep[d - width :]
        inner = matmul(transpose(last), transpose(last_t))
        free = (~kept[:, None] & ~kept[None, :]).astype(u.dtype)
        twos = jnp.where(kept, 2, 0).astype(u.dtype)
        a, _, bt = svd(free * inner + jnp.diag(twos))
        return jnp.concatenate([u[:, : d - width], matmul(last, matmul(a, bt))], 1)

    branches: list[Callable] = [lambda u, vt, keep: u]
    for width in widths:
        branches.append(lambda *args, width=width: complete(width, *args))
    missing = d - jnp.sum(keep)
    # Not an array of widths: where a condition is batched, constants would be too.
    index = sum((missing > width).astype(jnp.int32) for width in (0, *widths[:-1]))
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
