"""The four maps: affine, linear, l-ortho and ortho, estimated from matched anchors.

One convention everywhere: rows are samples and `y ~ x @ weight + bias`. The estimators are those
of Maiorca et al. 2023 (arXiv 2311.00664, section 3), used by Di Folco et al. 2025
(arXiv 2503.04478). All four minimise

    sum_i w_i || x_i W + b - y_i ||^2 + ridge ||W||_F^2

within their class, after the chosen normalisation of both spaces. A fit goes through three
functions: `normalized_anchors`, `solve` (which map by which algorithm), and `Anchors.map_of`, which
undoes the normalisation.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from .._core import checks
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    counts,
    lq,
    matmul,
    power_of_two_scale,
    safe_inverse,
    singular_values,
    transpose,
)
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike, Completion, Method, Normalize, RidgeUnit, Solver
from ._solvers.least_squares import least_squares
from ._solvers.polar import Bases, orthogonal_factor
from .adam import adam_affine
from .affine_map import AffineMap
from .auto import auto_map
from .leave_one_out import best_strength
from .options import FitOptions, FitValues, check_anchors, check_method, check_options
from .sides import (
    effective_number,
    mean_direction,
    normalized_anchors,
    row_weights,
    shares,
    without_mean_row,
)

#: With at most this share of anchors to dimensions, an orthogonal map is computed between the
#: spans of the anchors: 200 anchors of 768 dimensions in a fifth of the time.
FEW_ANCHORS = 0.75


@by_value
class FitInfo(NamedTuple):
    """Diagnostics of a fit; all fields are arrays, so it passes through `jit` and `vmap`.

    Attributes:
        rank: int32 scalar, the numerical rank of the problem: of the (normalised, weighted)
            anchors `x` for affine and linear, of the linear solution for l-ortho, of `x^T y` for
            ortho. Below min(d_in, d_out) the map is not determined in every direction.
        n_effective: scalar, Kish's effective number of anchors, (sum w)^2 / sum w^2.
        residual_mse: scalar, weighted mean over anchors and target dimensions of the squared
            residual, in squared units of `y`.
        singular_values: [k], descending, of the matrix that `rank` speaks of, up to a power of two
            that keeps them in range.
        orthogonality_error: scalar, max `|W^T W - I|` (or `|W W^T - I|` if d_in < d_out) of the
            returned weight.
    """

    rank: Array
    n_effective: Array
    residual_mse: Array
    singular_values: Array
    orthogonality_error: Array


# --- which map by which algorithm --------------------------------------------------------------


def solve(
    options: FitOptions, x: Array, y: Array, ridge: Array | None, rcond: Array | None
) -> tuple[Array, Array]:
    """The weight [d_in, d_out] between prepared rows, and the matrix whose rank is reported.

    Args:
        options: of the fit.
        x: source rows [n, d_in], normalised and weighted.
        y: target rows [n, d_out].
        ridge: in the units of `x`.
        rcond: relative cut-off for singular values, of `x^T y` for ortho, else of `x`.
    """
    if options.method in ("affine", "linear"):
        return least_squares(x, y, ridge, rcond), x
    if options.method == "ortho":
        matrix, cut = matmul(transpose(x), y), rcond
    else:
        matrix, cut = least_squares(x, y, ridge, rcond), None
    bases = None
    if x.shape[0] <= FEW_ANCHORS * min(matrix.shape) and not options.rotation_only:
        bases = bases_of_anchors(options, *jax.lax.stop_gradient((x, y, ridge, rcond)))
    weight = orthogonal_factor(options.completion, options.rotation_only, matrix, cut, bases)
    if options.scale:
        mapped = matmul(x, weight)
        gain, power = jnp.sum(mapped * y), jnp.sum(mapped * mapped)
        weight = weight * best_scale(gain, power, weight, ridge)
    return weight, matrix


def bases_of_anchors(
    options: FitOptions, x: Array, y: Array, ridge: Array | None, rcond: Array | None
) -> Bases:
    """The matrix of ortho or l-ortho between the spans of the anchors of either side.

    With x = L Q the problem in the coordinates of the rows of Q has the rows L, and is n x n.
    """
    (l_x, left), (l_y, right) = lq(x), lq(y)
    if options.method == "ortho":
        return Bases(left, matmul(transpose(l_x), l_y), right)
    return Bases(left, least_squares(l_x, l_y, ridge, rcond), right)


def best_scale(gain: Array, power: Array, weight: Array, ridge: Array | None) -> Array:
    """The factor of an orthogonal map that makes the squared residual the smallest.

    Args:
        gain: inner product of mapped and target rows.
        power: sum of squares of mapped rows.
        weight: of the map, for its ridge.
        ridge: in the units of the rows; None means none.
    """
    if ridge is not None:
        power = power + ridge * jnp.sum(weight * weight)
    return gain * safe_inverse(power, power > 0)


def fit_anchors(
    options: FitOptions, x: Array, y: Array, weights: Array | None, values: FitValues
) -> tuple[AffineMap, Array]:
    """Fit a map to checked anchors; also the matrix whose rank is reported."""
    dtype = common_dtype(x.dtype, y.dtype)
    if options.method == "auto":
        fitted, _, matrix = auto_map(
            x, y, weights, robust=options.robust, restore_norm=options.restore_norm
        )
        return fitted, matrix
    anchors = normalized_anchors(x, y, weights, center=options.center, normalize=options.normalize)
    source, target, w, root = anchors
    values = values.astype(w.dtype)
    rows_x, rows_y, shift = source.rows, target.rows, None
    if options.solver == "adam":
        assert values.key is not None  # checked with the options
        assert values.learning_rate is not None
        weight, shift = adam_affine(
            rows_x, rows_y, root, values.key, values.learning_rate, options.steps
        )
        matrix = rows_x
    else:
        if options.center:
            direction = mean_direction(w, root)
            rows_x, rows_y = (without_mean_row(side, direction) for side in (rows_x, rows_y))
        ridge, in_gram = values.ridge, options.ridge_unit == "gram"
        if options.ridge_by_loo:
            ridge = best_strength(source.rows, target.rows, w, center=options.center)
            in_gram = True
        if ridge is not None and in_gram:
            ridge = ridge * jnp.sum(rows_x * rows_x) / x.shape[1]
        elif ridge is not None:
            ridge = ridge / source.unit / source.unit
        weight, matrix = solve(options, rows_x, rows_y, ridge, values.rcond)
    if options.scale or options.method in ("affine", "linear"):
        # An orthogonal factor does not depend on the units; everything else does.
        weight = weight * (target.unit / source.unit)
    fitted = anchors.map_of(weight, shift)
    return jax.tree.map(lambda a: a.astype(dtype), fitted), matrix


# --- diagnostics -------------------------------------------------------------------------------


def fit_info(
    options: FitOptions,
    fitted: AffineMap,
    matrix: Array,
    anchors: tuple[Array, Array, Array | None],
    rcond: Array | None,
) -> FitInfo:
    """`FitInfo` of a map fitted to `anchors`, (x, y, weights); `matrix` is that of `solve`."""
    x, y, weights = anchors
    w, _ = row_weights(weights, x.shape[0], matrix.dtype)
    if weights is not None:
        x, y = (jnp.where(w[:, None] > 0, side, 0) for side in (x, y))
    error = (fitted(x) - y.astype(fitted.weight.dtype)).astype(w.dtype)
    s = singular_values(matrix)
    return FitInfo(
        rank=rank_of(options, s, rcond),
        n_effective=effective_number(w),
        residual_mse=matmul(shares(w), jnp.mean(error * error, axis=1)),
        singular_values=s,
        orthogonality_error=orthogonality_error(fitted.weight.astype(w.dtype)),
    )


def rank_of(options: FitOptions, s: Array, rcond: Array | None) -> Array:
    """How many of the singular values of the reported matrix count."""
    # Of l-ortho, rcond is that of the linear solution.
    cut = None if options.method == "l-ortho" or rcond is None else rcond.astype(s.dtype)
    return jnp.sum(counts(s, cut), dtype=jnp.int32)


def orthogonality_error(weight: Array) -> Array:
    """Max |W^T W - I|, or |W W^T - I| if there are fewer rows than columns."""
    if weight.shape[0] < weight.shape[1]:
        weight = transpose(weight)
    square = matmul(transpose(weight), weight)
    return jnp.max(jnp.abs(square - jnp.eye(square.shape[0], dtype=square.dtype)))


@partial(jax.jit, static_argnums=(0, 1))
def compiled_fit(
    options: FitOptions,
    info: bool,
    x: Array,
    y: Array,
    weights: Array | None,
    values: FitValues,
) -> Any:
    """The map, or with `info` the map and its `FitInfo`, of checked arguments."""
    fitted, matrix = fit_anchors(options, x, y, weights, values)
    if not info:
        return fitted
    return fitted, fit_info(options, fitted, matrix, (x, y, weights), values.rcond)


def _checked_fit(
    method: Method,
    x: Any,
    y: Any,
    *,
    weights: Any = None,
    validate: Any = True,
    info: Any = False,
    **options: Any,
) -> Any:
    """Check every argument of a fit, then run it compiled."""
    x, y, weights = check_anchors(x, y, weights, validate)
    static, values = check_options(method, (x.shape[1], y.shape[1]), **options)
    return compiled_fit(static, checks.flag("info", info), x, y, weights, values)


# --- the public functions: `locals()` are all of their arguments ------------------------------


def fit_affine(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike | Literal["loo"] = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: ArrayLike | None = None,
    solver: Solver = "auto",
    steps: int = 300,
    learning_rate: ArrayLike = 1e-3,
    key: Array | None = None,
    validate: bool = True,
) -> AffineMap:
    """Least-squares map with offset: `y ~ x @ weight + bias`.

    The closed form centres both sides and solves the linear problem, with the minimum-norm
    weight if the centred anchors do not determine it. `solver="adam"` is the gradient form of
    Maiorca et al. (2023), a linear layer trained on all anchors at once, which approaches the
    closed form as `steps` grows; only the closed form uses `ridge` (on the weight, not on the
    offset) and `rcond`.

    Args:
        x: source anchors [n, d_in], floating point, n >= 1; row i matches row i of `y`.
        y: target anchors [n, d_out], floating point.
        weights: [n], >= 0, floats or a boolean mask; None means equal weights. Rows of weight
            zero are exactly inert, NaN included; the gradient with respect to a zero weight is
            defined as 0.
        normalize: applied to both sides with the anchors' own statistics and undone in the
            target: "none", "center", "standard" (each dimension to unit variance; not
            rotation-equivariant) or "isotropic" (one scale a side).
        ridge: penalty on ||weight||_F^2 in the normalised spaces, >= 0; may be traced. "loo": of
            1e-3 to 32 mean diagonals of the Gram matrix, in half decades from 0.1 on, the one
            with the largest leave-one-out cosine of predicted and target anchors in the normalised
            spaces (from the mean, if they are centred). Constant for differentiation.
        ridge_unit: "absolute", or "gram": in units of the mean diagonal of the Gram matrix of
            the normalised, weighted anchors `x`, which makes `ridge` free of scale (1 is a
            good start).
        rcond: singular values of the centred anchors at most `rcond` times the largest count as
            zero. None means 8 machine epsilons, which keeps every direction above rounding
            noise; NumPy's rule eps * max(n, d_in) cuts off far more, which changes predictions
            and often generalises better. 0 keeps all that the arithmetic can tell from zero
            (of float32 anchors, what is above 2 epsilons). With a ridge, None means no cut-off.
        solver: "auto" is the closed form; "adam" the gradient form.
        steps: gradient steps (static), for "adam".
        learning_rate: for "adam"; may be traced.
        key: PRNG key of the initial weights, needed for "adam".
        validate: whether to check values (NaN, infinity, bad weights) when called outside of a
            transformation; inside, only shapes and dtypes are checked.

    Returns:
        `AffineMap` in the common dtype of `x` and `y`; half precision is computed in float32.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for shapes that do not match, unknown options, non-finite anchors, negative
            or all-zero weights.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> mapping = sa.fit_affine(x, x[:, ::-1] + 3)
        >>> print(mapping.bias.round())
        [3. 3. 3. 3.]
    """
    return _checked_fit("affine", **locals())


def fit_linear(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike | Literal["loo"] = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: ArrayLike | None = None,
    validate: bool = True,
) -> AffineMap:
    """Least-squares map without offset (in the normalised spaces): `y ~ x @ weight`.

    If the anchors do not determine it (n < d_in, or dependent rows), the solution of minimum
    norm. Maiorca et al. (2023), "linear".

    Args:
        x: source anchors [n, d_in]; see `fit_affine` for all arguments.
        y: target anchors [n, d_out].
        weights: [n], >= 0, floats or a boolean mask.
        normalize: "none", "center", "standard" or "isotropic".
        ridge: penalty on ||weight||_F^2, >= 0; may be traced. Or "loo".
        ridge_unit: "absolute" or "gram".
        rcond: relative cut-off for singular values of `x`; None means 8 machine epsilons.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap`; its bias is zero for normalize="none".

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors or bad weights.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> mapping = sa.fit_linear(x, x[:, ::-1] + 3)
        >>> print(mapping.bias)
        [0. 0. 0. 0.]
    """
    return _checked_fit("linear", **locals())


def fit_l_ortho(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike | Literal["loo"] = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: ArrayLike | None = None,
    scale: bool = False,
    rotation_only: bool = False,
    completion: Completion = "orthogonal",
    validate: bool = True,
) -> AffineMap:
    """The linear map made orthogonal: the polar factor `U V^T` of the least-squares solution.

    It depends strongly on small singular values of `x`, hence on `rcond`: a truncated and an
    untruncated linear solution have different polar factors. Maiorca et al. (2023), "l-ortho".

    Args:
        x: source anchors [n, d_in]; see `fit_affine` for the arguments not described here.
        y: target anchors [n, d_out].
        weights: [n], >= 0, floats or a boolean mask.
        normalize: "none", "center", "standard" or "isotropic".
        ridge: penalty of the underlying linear solution, >= 0; may be traced. Or "loo", chosen for
            that solution.
        ridge_unit: "absolute" or "gram".
        rcond: relative cut-off for singular values of `x`; None means 8 machine epsilons.
        scale: whether to multiply by the isotropic factor of least squared residual.
        rotation_only: whether to exclude reflections (determinant +1); equal dimensions only.
        completion: what to do with directions that the anchors do not determine, see
            `fit_ortho`.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap` with a (semi-)orthogonal weight in the normalised spaces.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors, bad weights, or
            `rotation_only` with unequal dimensions.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> mapping = sa.fit_l_ortho(x, 2 * x[:, ::-1])
        >>> print(abs(mapping.weight[0]).round())
        [0. 0. 0. 1.]
    """
    return _checked_fit("l-ortho", **locals())


def fit_ortho(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: ArrayLike | None = None,
    scale: bool = False,
    rotation_only: bool = False,
    completion: Completion = "orthogonal",
    validate: bool = True,
) -> AffineMap:
    """Orthogonal Procrustes: `U V^T` of the SVD of `x^T y` (Schönemann 1966).

    The best orthogonal map of the anchors; Maiorca et al. (2023), "ortho". For unequal
    dimensions the weight is semi-orthogonal and maximises tr(W^T x^T y), which for
    d_in <= d_out is the least-squares optimum too.

    It matches directions alone, not offset and scale: between spaces of other sizes or other
    means give `normalize="isotropic"` (both sides centred and brought to one scale each), as the
    studies and the `semalign` command do. As it is, it equals
    `scipy.linalg.orthogonal_procrustes` where the anchors determine the map.

    Args:
        x: source anchors [n, d_in]; see `fit_affine` for the arguments not described here.
        y: target anchors [n, d_out].
        weights: [n], >= 0, floats or a boolean mask.
        normalize: "none", "center", "standard" or "isotropic".
        ridge: penalty on ||weight||_F^2, >= 0; may be traced. The norm of an orthogonal matrix
            is fixed, so it matters only with `scale`.
        ridge_unit: "absolute" or "gram".
        rcond: singular values of `x^T y` at most `rcond` times the largest count as
            undetermined; None means 8 machine epsilons, which is above the rounding noise.
        scale: whether to multiply by the isotropic factor of least squared residual.
        rotation_only: whether to exclude reflections (determinant +1, Kabsch/Umeyama); equal
            dimensions only.
        completion: with fewer anchors than dimensions every completion fits the anchors equally.
            "orthogonal" maps the undetermined directions as near to the identity (for unequal
            dimensions, of the smaller space padded by zeros) as an orthogonal matrix can, whatever
            the order of the anchors; "partial" maps them to zero, which makes
            the weight a partial isometry and the estimate equivariant under rotations of either
            space.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap` with a (semi-)orthogonal weight in the normalised spaces.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors, bad weights, or
            `rotation_only` with unequal dimensions.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> y = 2 * x[:, ::-1] + 3
        >>> mapping = sa.fit_ortho(x, y, normalize="isotropic")
        >>> print(abs(mapping(x) - y).max() < 1e-4)
        True
    """
    return _checked_fit("ortho", **locals())


def polar_factor(m: ArrayLike, *, rcond: ArrayLike | None = None) -> Array:
    """Orthogonal polar factor: the (semi-)orthogonal matrix nearest to `m`.

    For the SVD `m = U S V^T` this is `U V^T`, with orthonormal columns if d_in >= d_out, else
    with orthonormal rows. It maximises tr(Q^T m) and minimises ||Q - m|| (Higham, "Computing the
    polar decomposition", 1986).

    Rank-deficient input: directions whose singular value is at most `rcond` times the largest
    are undetermined; they are filled as by `fit_ortho(completion="orthogonal")`, as near to the
    identity as possible. A zero matrix gives the identity (zero-padded or cut to shape).

    Args:
        m: matrix [d_in, d_out], floating point; `jax.vmap` it for batches.
        rcond: relative cut-off >= 0 for singular values, may be traced; None means 8 machine
            epsilons.

    Returns:
        Array [d_in, d_out] of the dtype of `m` (half precision is computed in float32).
        Derivatives of all orders are finite; exact wherever the rank is locally constant.

    Raises:
        TypeError: if `m` is not floating point.
        ValueError: if `m` is not a matrix, is empty or holds NaN or infinity, or for a bad `rcond`.

    Example:
        >>> import jax.numpy as jnp, semalign_jax as sa
        >>> print(abs(sa.polar_factor(jnp.diag(jnp.array([5.0, -4.0, 3.0, 2.0])))).round()[1])
        [0. 1. 0. 0.]
    """
    m = checks.float_array("m", m, 2)
    if checks.is_concrete(m):
        checks.finite_rows("m", m)
    cut = None if rcond is None else checks.scalar("rcond", rcond)
    return _polar_factor(m, cut)


@jax.jit
def _polar_factor(m: Array, rcond: Array | None) -> Array:
    work = m.astype(compute_dtype(m.dtype))
    work = work / power_of_two_scale(work)
    cut = None if rcond is None else rcond.astype(work.dtype)
    return orthogonal_factor("orthogonal", False, work, cut).astype(m.dtype)


@overload
def fit(
    method: Method, x: ArrayLike, y: ArrayLike, *, info: Literal[False] = False, **options: Any
) -> AffineMap: ...
@overload
def fit(
    method: Method, x: ArrayLike, y: ArrayLike, *, info: Literal[True], **options: Any
) -> tuple[AffineMap, FitInfo]: ...


def fit(
    method: Method, x: ArrayLike, y: ArrayLike, *, info: bool = False, **options: Any
) -> AffineMap | tuple[AffineMap, FitInfo]:
    """Fit a map by name: "affine", "linear", "l-ortho", "ortho" or "auto".

    Args:
        method: which of the four maps, or "auto", the map of `fit_auto`.
        x: source anchors [n, d_in].
        y: target anchors [n, d_out].
        info: whether to return diagnostics too: rank, effective number of anchors, residual and
            orthogonality. They cost an SVD.
        **options: keyword options of the function of that name, e.g. `fit_ortho`.

    Returns:
        The map, or with `info` the map and its `FitInfo`.

    Raises:
        TypeError: as the function of that name.
        ValueError: as that function; also for an unknown method or an option it does not have.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> mapping, info = sa.fit("ortho", x, x[:, ::-1], info=True)
        >>> int(info.rank)
        4
    """
    check_method(method, options)
    return _checked_fit(method, x, y, info=info, **options)
