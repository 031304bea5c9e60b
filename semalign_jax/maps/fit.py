"""The four maps: affine, linear, l-ortho and ortho, estimated from matched anchors.

One convention everywhere: rows are samples and `y ~ x @ weight + bias`. The estimators are those
of Maiorca et al. 2023 (arXiv 2311.00664, section 3), used by Di Folco et al. 2025
(arXiv 2503.04478). All four minimise

    sum_i w_i || x_i W + b - y_i ||^2 + ridge ||W||_F^2

within their class, after the chosen normalisation of both spaces.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._core import checks
from .._core.linalg import (
    LSTSQ_RCOND_EPS,
    POLAR_RCOND_EPS,
    LeastSquaresFactors,
    common_dtype,
    compute_dtype,
    cross_product,
    kept,
    least_squares,
    least_squares_factors,
    matmul,
    power_of_two_scale,
    safe_inverse,
    singular_values,
    tall_qr,
    transpose,
    value_of,
)
from .._core.typing import (
    COMPLETIONS,
    METHODS,
    NORMALIZE,
    RIDGE_UNITS,
    SOLVERS,
    Array,
    ArrayLike,
    Completion,
    Method,
    Normalize,
    RidgeUnit,
    Solver,
)
from ..maps._solvers.float64 import LEAST_SHARE, wide_least_squares
from ..maps._solvers.polar import ThinFactors, orthogonal_factor
from ..maps.affine_map import AffineMap


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
        orthogonality_error: scalar, max |W^T W - I| (or |W W^T - I| if d_in < d_out) of the
            returned weight.
    """

    rank: Array
    n_effective: Array
    residual_mse: Array
    singular_values: Array
    orthogonality_error: Array


class Static(NamedTuple):
    """Everything a compiled fit depends on besides array shapes and dtypes."""

    method: Method
    normalize: Normalize
    ridge_unit: RidgeUnit = "absolute"
    scale: bool = False
    rotation_only: bool = False
    completion: Completion = "orthogonal"
    solver: Solver = "auto"
    steps: int = 300

    @property
    def center(self) -> bool:
        """Whether the anchors are centred."""
        return self.method == "affine" or self.normalize != "none"


class Options(NamedTuple):
    """The options of a fit that may be traced."""

    ridge: Array | None = None
    rcond: Array | None = None
    learning_rate: Array | None = None
    key: Array | None = None


class Rows(NamedTuple):
    """Anchors of one side, normalised: rows = (data - offset - rest) / scale / unit.

    Attributes:
        rows: [n, d], not yet weighted.
        offset: [d], the mean rounded to the data's dtype; zero if the side is not centred.
        rest: [d], the remainder of the mean, so that offset + rest is exact.
        scale: [d], the normalising standard deviations (1 where not normalised).
        unit: scalar power of two that keeps products in range.
    """

    rows: Array
    offset: Array
    rest: Array
    scale: Array
    unit: Array


class Side:
    """The anchors of one side in the solvers' dtype, and what fits to them have in common.

    Lives within one trace: what several fits of the same anchors need is traced once.

    Attributes:
        data: [n, d]; rows of weight zero are zero.
        weights: [n], >= 0.
        weighted: whether weights were given (static).
    """

    def __init__(self, data: Array, weights: Array | None, dtype) -> None:
        n = data.shape[0]
        self.weighted = weights is not None
        self.weights = jnp.ones(n, dtype)
        self.data = data.astype(dtype)
        if weights is not None:
            active = weights > 0
            self.weights = jnp.where(active, weights.astype(dtype), 0)
            self.data = jnp.where(active[:, None], self.data, 0)
        self._cache: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def normalised(self, static: Static) -> Rows:
        """The rows centred and scaled as the options say."""
        center, normalize = static.center, static.normalize
        return self._once(
            ("normalised", center, normalize),
            lambda: _normalised(self.data, self.weights, center, normalize),
        )

    def root_weights(self) -> Array:
        """Square roots of the weights [n]."""
        w = self.weights
        return jnp.where(w > 0, jnp.sqrt(jnp.where(w > 0, w, 1)), 0)

    def row_bound(self, static: Static) -> Array | None:
        """How many prepared rows can be independent; None means all of them."""
        return jnp.sum(self.weights > 0) - int(static.center) if self.weighted else None

    def weighted_rows(self, static: Static) -> Array:
        """Normalised rows times the roots of their weights [n, d]."""
        rows = self.normalised(static).rows
        return rows * self.root_weights()[:, None] if self.weighted else rows

    def prepared(self, static: Static) -> Array:
        """The rows that the closed forms work on: weighted, and independent if centred."""

        def make() -> Array:
            rows = self.weighted_rows(static)
            if not static.center:
                return rows
            root = self.root_weights()
            norm = jnp.sqrt(jnp.sum(self.weights))
            return _without_mean_row(rows, root * safe_inverse(norm, norm > 0))

        return self._once(("prepared", static.center, static.normalize), make)

    def qr(self, static: Static) -> tuple[Array, Array]:
        """`tall_qr` of the prepared rows."""
        key = ("qr", static.center, static.normalize)
        return self._once(key, lambda: tall_qr(self.prepared(static)))

    def triangular_inverse(self, static: Static) -> Array | None:
        """Inverse of the second part of `qr`, where it is known."""
        del static
        return None

    def product(self, other: "Side", static: Static) -> Array:
        """`prepared^T @ other.prepared` [d, d']."""
        exact = matmul(transpose(self.prepared(static)), other.prepared(static))
        if static.center or self.weighted:
            return exact
        value = cross_product(*lax.stop_gradient((self.data, other.data)))
        return value_of(value, exact)

    def penalty(self, static: Static, ridge: Array | None) -> Array | None:
        """The ridge in the units of the prepared rows."""
        if ridge is None:
            return None
        ridge = ridge.astype(self.data.dtype)
        if static.ridge_unit == "gram":
            rows = self.prepared(static)
            return ridge * jnp.sum(rows * rows) / rows.shape[1]
        unit = self.normalised(static).unit
        return ridge / unit / unit

    def factors(self, static: Static, options: Options) -> tuple[LeastSquaresFactors, Array | None]:
        """Least-squares factors of the prepared rows, and the ridge they were made with."""
        ridge, rcond = options.ridge, options.rcond

        def make():
            penalty = self.penalty(static, ridge)
            bound = self.row_bound(static)
            inverse = self.triangular_inverse(static)
            factors = least_squares_factors(
                self.qr(static), penalty, rcond, bound, static.solver, inverse
            )
            return factors, penalty, options

        return self._once(("factors", *_least_squares_key(static, options)), make)[:2]

    def solution(self, static: Static, target: "Side", options: Options) -> Array:
        """The least-squares solution to the prepared rows of `target` [d_in, d_out]."""

        def make():
            # Kept with what the key names by identity.
            return _least_squares_solution(static, self, target, options), target, options

        key = ("solution", id(target), *_least_squares_key(static, options))
        return self._once(key, make)[0]


def _least_squares_key(static: Static, options: Options) -> tuple[Any, ...]:
    """What a least-squares solution of the same sides depends on."""
    key = (static.center, static.normalize, static.ridge_unit, static.solver)
    return (*key, id(options.ridge), id(options.rcond))


def _least_squares_solution(static: Static, source: Side, target: Side, options: Options) -> Array:
    """Minimum-norm solution between the prepared rows [d_in, d_out]."""
    factors, penalty = source.factors(static, options)
    x, y = source.prepared(static), target.prepared(static)
    weight = least_squares(factors, x, y, penalty)
    fixed = lax.stop_gradient((x, y, penalty, options.rcond, source.row_bound(static)))
    if static.solver == "cholesky":
        return value_of(wide_least_squares(*fixed, trusted=True), weight)
    if static.solver != "auto" or x.dtype != jnp.float32:
        return weight
    few = x.shape[0] < LEAST_SHARE * x.shape[1]

    def in_float64(fixed, _):
        return wide_least_squares(*fixed)

    def in_float32(_, weight):
        return weight

    value = lax.platform_dependent(
        fixed,
        lax.stop_gradient(weight),
        cpu=in_float32 if few else in_float64,
        cuda=in_float64,
        default=in_float32,
    )
    return value_of(value, weight)


def _normalised(data: Array, weights: Array, center: bool, normalize: Normalize) -> Rows:
    d = data.shape[1]
    total = jnp.sum(weights)
    share = weights * safe_inverse(total, total > 0)
    zero, one = jnp.zeros(d, data.dtype), jnp.ones(d, data.dtype)
    if not center:
        unit = power_of_two_scale(data)
        return Rows(data / unit, zero, zero, one, unit)
    # Taken relative to one of the rows: a constant column has exactly its value as the mean,
    # and a large common offset costs no digits.
    first = data[jnp.argmax(weights > 0)]
    rows = jnp.where(weights[:, None] > 0, data - first[None, :], 0)
    offset = first + matmul(share, rows)
    rows = jnp.where(weights[:, None] > 0, data - offset[None, :], 0)
    rest = matmul(share, rows)
    rows = jnp.where(weights[:, None] > 0, rows - rest[None, :], 0)
    scale = one
    unit = power_of_two_scale(rows)
    if normalize in ("standard", "isotropic"):
        variance = matmul(share, (rows / unit) ** 2)
        scale = deviations(normalize, variance, offset / unit) * unit
        scale = jnp.where(scale > 0, scale, 1)
        rows = rows / scale[None, :]
        unit = power_of_two_scale(rows)
    return Rows(rows / unit, offset, rest, scale, unit)


def deviations(normalize: Normalize, variance: Array, mean: Array) -> Array:
    """Standard deviations [d] to normalise by; 0 where values do not vary beyond rounding.

    Args:
        normalize: "standard" or "isotropic".
        variance: of each dimension [d].
        mean: of each dimension [d]: rounding noise of a constant is not a deviation.
    """
    noise = (10 * jnp.finfo(variance.dtype).eps * mean) ** 2
    if normalize == "isotropic":
        variance, noise = (jnp.full_like(a, jnp.mean(a)) for a in (variance, noise))
    varies = variance > noise
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0)


def _without_mean_row(rows: Array, direction: Array) -> Array:
    """Rotate rows that are orthogonal to `direction` so that the first is zero, and drop it.

    Centred anchors have one linear dependency; this removes it without changing any product
    x^T y, so that n centred anchors are n - 1 independent rows. (A Householder reflection.)
    """
    if rows.shape[0] == 1:
        return jnp.zeros_like(rows)
    sign = jnp.where(direction[0] < 0, -1, 1).astype(rows.dtype)
    step = sign * direction[1:] / (1 + jnp.abs(direction[0]))
    return rows[1:] - step[:, None] * rows[:1]


def fit_sides(
    static: Static, source: Side, target: Side, options: Options, dtype
) -> tuple[AffineMap, FitInfo]:
    """Fit a map between two sides that have equal weights; `dtype` is that of the result."""
    if static.solver == "adam":
        weight, shift, spectrum = _solve_adam(static, source, target, options)
        rcond_eps = LSTSQ_RCOND_EPS
    else:
        solve, rcond_eps = _SOLVERS[static.method]
        weight, spectrum = solve(static, source, target, options)
        shift = jnp.zeros(target.data.shape[1], target.data.dtype)
    x, y = source.normalised(static), target.normalised(static)
    if static.scale or static.method in ("affine", "linear"):
        # An orthogonal factor does not depend on the units; everything else does.
        weight = weight * (y.unit / x.unit)
    weight = weight * (y.scale[None, :] / x.scale[:, None])
    target_offset = y.offset + (y.rest - matmul(x.rest, weight)) + shift * (y.unit * y.scale)
    fitted = AffineMap(weight, x.offset, target_offset, static.method)

    s = singular_values(spectrum)
    rank = jnp.sum(kept(s, options.rcond, rcond_eps))
    bound = source.row_bound(static)
    if bound is not None:
        rank = jnp.minimum(rank, jnp.maximum(bound, 0))
    info = _diagnose(fitted, source.data, target.data, source.weights, s, rank)
    return jax.tree_util.tree_map(lambda a: a.astype(dtype), fitted), info


def _diagnose(fitted: AffineMap, x: Array, y: Array, w: Array, s: Array, rank: Array) -> FitInfo:
    total = jnp.sum(w)
    share = w * safe_inverse(total, total > 0)
    error = fitted.apply(x) - y
    weight = fitted.weight
    square = matmul(transpose(weight), weight)
    if weight.shape[0] < weight.shape[1]:
        square = matmul(weight, transpose(weight))
    squares = jnp.sum(w * w)
    return FitInfo(
        rank=jnp.asarray(rank, jnp.int32),
        n_effective=total * total * safe_inverse(squares, squares > 0),
        residual_mse=matmul(share, jnp.mean(error * error, axis=1)),
        singular_values=s,
        orthogonality_error=jnp.max(jnp.abs(square - jnp.eye(square.shape[0], dtype=s.dtype))),
    )


def _solve_linear(static: Static, source: Side, target: Side, options: Options):
    return source.solution(static, target, options), source.prepared(static)


def _solve_l_ortho(static: Static, source: Side, target: Side, options: Options):
    linear, x = _solve_linear(static, source, target, options)
    thin = None
    if x.shape[0] < min(linear.shape):
        # linear = u inverse^T y, and y has its rows in the span of a thin basis.
        factors, penalty = source.factors(static, options)
        basis, core = target.qr(static)
        left, inner = factors.u, matmul(transpose(factors.inverse), transpose(core))
        if penalty is not None:  # then u is not orthonormal
            left = source.qr(static)[0]
            inner = matmul(matmul(transpose(left), factors.u), inner)
        thin = ThinFactors(left, inner, basis)
    return _finish_ortho(static, source, target, options, linear, thin), linear


def _solve_ortho(static: Static, source: Side, target: Side, options: Options):
    cross = source.product(target, static)
    thin = None
    if source.prepared(static).shape[0] < min(cross.shape):
        basis_x, core_x = source.qr(static)
        basis_y, core_y = target.qr(static)
        thin = ThinFactors(basis_x, matmul(core_x, transpose(core_y)), basis_y)
    return _finish_ortho(static, source, target, options, cross, thin), cross


def orthogonal_weight(
    static: Static,
    m: Array,
    thin: ThinFactors | None = None,
    rcond: Array | None = None,
    row_bound: Array | int | None = None,
) -> Array:
    """Polar factor of `m` as the options of the fit say; see `orthogonal_factor`."""
    return orthogonal_factor(
        m,
        thin=thin,
        rcond=rcond,
        row_bound=row_bound,
        completion=static.completion,
        rotation_only=static.rotation_only,
        solver=static.solver,
    )


def _finish_ortho(
    static: Static,
    source: Side,
    target: Side,
    options: Options,
    m: Array,
    thin: ThinFactors | None,
) -> Array:
    """Polar factor of `m` with the requested completion, then the best isotropic scale."""
    bound = source.row_bound(static)
    if bound is None and thin is not None:
        bound = thin.inner.shape[0]
    # Of l-ortho, rcond is that of the linear solution.
    rcond = options.rcond if static.method == "ortho" else None
    weight = orthogonal_weight(static, m, thin, rcond, bound)
    if static.scale:
        mapped = matmul(source.prepared(static), weight)
        power = jnp.sum(mapped * mapped)
        penalty = source.penalty(static, options.ridge)
        if penalty is not None:
            power = power + penalty * jnp.sum(weight * weight)
        gain = jnp.sum(mapped * target.prepared(static))
        weight = weight * (gain * safe_inverse(power, power > 0))
    return weight


#: Solver of each method, `-> (weight, matrix whose rank is reported)`, and the default cut-off
#: for that rank.
_SOLVERS: dict[str, tuple[Callable, float]] = {
    "affine": (_solve_linear, LSTSQ_RCOND_EPS),
    "linear": (_solve_linear, LSTSQ_RCOND_EPS),
    "l-ortho": (_solve_l_ortho, POLAR_RCOND_EPS),
    "ortho": (_solve_ortho, POLAR_RCOND_EPS),
}


def _solve_adam(
    static: Static, source: Side, target: Side, options: Options
) -> tuple[Array, Array, Array]:
    """Gradient form of the affine map, in the way of Maiorca et al. (2023).

    A linear layer with bias, Adam, full-batch mean squared error. Rows carry the root of their
    weights, so the bias column is weighted in the same way.
    """
    x, y = source.weighted_rows(static), target.weighted_rows(static)
    ones = source.root_weights()[:, None]
    d_in, d_out = x.shape[1], y.shape[1]
    bound = 1 / np.sqrt(d_in)
    assert options.key is not None  # checked with the arguments
    key_weight, key_bias = jax.random.split(options.key)
    start = (
        jax.random.uniform(key_weight, (d_in, d_out), x.dtype, -bound, bound),
        jax.random.uniform(key_bias, (d_out,), x.dtype, -bound, bound),
    )
    total = jnp.sum(source.weights)
    inverse_total = safe_inverse(total, total > 0) / d_out

    def loss(params):
        weight, bias = params
        error = matmul(x, weight) + ones * bias[None, :] - y
        return jnp.sum(error * error) * inverse_total

    assert options.learning_rate is not None  # likewise
    optimizer = optax.adam(options.learning_rate)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (cast(tuple[Array, Array], optax.apply_updates(params, updates)), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=static.steps)
    return params[0], params[1], x


def _fit_both_core(static: Static, x: Array, y: Array, weights: Array | None, options: Options):
    dtype = common_dtype(x.dtype, y.dtype)
    work = compute_dtype(dtype)
    source, target = Side(x, weights, work), Side(y, weights, work)
    return fit_sides(static, source, target, options, dtype)


_fit_map = partial(jax.jit, static_argnums=0)(lambda *args: _fit_both_core(*args)[0])
_fit_both = partial(jax.jit, static_argnums=0)(_fit_both_core)


def _optional_scalar(name: str, value: Any, *, zero_is_none: bool) -> Array | None:
    if value is None or (zero_is_none and isinstance(value, int | float) and value == 0):
        return None
    return checks.scalar(name, value)


def check_options(
    method: Method,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    *,
    normalize: Normalize = "none",
    ridge: Any = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: Any = None,
    scale: bool = False,
    rotation_only: bool = False,
    completion: Completion = "orthogonal",
    solver: Solver = "auto",
    steps: int = 300,
    learning_rate: Any = 1e-3,
    key: Any = None,
) -> tuple[Static, Options]:
    """Check the options of a fit to anchors of these shapes and split them into two kinds."""
    checks.option("normalize", normalize, NORMALIZE)
    checks.option("ridge_unit", ridge_unit, RIDGE_UNITS)
    checks.option("completion", completion, COMPLETIONS)
    checks.option("solver", solver, SOLVERS[method])
    scale, rotation_only = (
        checks.flag("scale", scale),
        checks.flag("rotation_only", rotation_only),
    )
    if rotation_only and shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"rotation_only needs equal dimensions, since only square matrices have a "
            f"determinant; got x {shapes[0]} and y {shapes[1]}. Leave it False"
        )
    if rotation_only and completion == "partial":
        raise ValueError(
            "rotation_only needs completion='orthogonal': a partial isometry is no rotation"
        )
    ridge = _optional_scalar("ridge", ridge, zero_is_none=True)
    if solver == "iterative" and rotation_only:
        raise ValueError("rotation_only needs an SVD; leave solver='auto'")
    rcond = _optional_scalar("rcond", rcond, zero_is_none=False)
    if rcond is not None and solver == "iterative" and method == "ortho":
        raise ValueError("rcond needs singular values; use solver='svd' or 'qr' with it")
    if solver == "adam":
        if key is None:
            raise ValueError("key is needed with solver='adam', e.g. jax.random.key(0)")
        if ridge is not None:
            raise ValueError("ridge is not part of the gradient form; use another solver")
        learning_rate = checks.scalar("learning_rate", learning_rate)
        steps = checks.positive_int("steps", steps)
    else:
        learning_rate = key = None
    static = Static(method, normalize, ridge_unit, scale, rotation_only, completion, solver, steps)
    return static, Options(ridge, rcond, learning_rate, key)


def _prepare(
    method: Method, x: Any, y: Any, *, weights: Any = None, validate: bool = True, **options: Any
) -> tuple[Static, Array, Array, Array | None, Options]:
    """Check every argument of a fit."""
    x, y = checks.pair(x, y)
    static, traced = check_options(method, (x.shape, y.shape), **options)
    if weights is not None:
        weights = checks.row_weights(weights, x.shape[0])
    if checks.flag("validate", validate) and checks.is_concrete(x, y, weights):
        active = None
        if weights is not None:
            checks.weight_values(weights)
            active = np.asarray(weights) > 0
        checks.finite_rows("x", x, active)
        checks.finite_rows("y", y, active)
    return static, x, y, weights, traced


def fit_affine(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike = 0.0,
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
        ridge: penalty on ||weight||_F^2 in the normalised spaces, >= 0; may be traced.
        ridge_unit: "absolute", or "gram": in units of the mean diagonal of the Gram matrix of
            the normalised, weighted anchors `x`, which makes `ridge` free of scale (1 is a
            good start).
        rcond: singular values of the centred anchors at most `rcond` times the largest count as
            zero. None means 8 machine epsilons, which keeps every direction above rounding
            noise; NumPy's rule eps * max(n, d_in) cuts off far more, which changes predictions
            and often generalises better. 0 keeps all that the arithmetic can tell from zero
            and the result can hold. With a ridge, None means no cut-off.
        solver: "auto" chooses by shape, dtype and device, for float32 on CPUs and NVIDIA GPUs
            among algorithms in float64; "cholesky" (normal equations in float64, whatever the
            dtype and device) and "qr" (in the anchors' dtype) take no singular values, so nothing
            is cut off: fast and compact, for anchors known to be independent; "svd"; or "adam".
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
    """
    return _fit_map(
        *_prepare(
            "affine",
            x,
            y,
            weights=weights,
            normalize=normalize,
            ridge=ridge,
            ridge_unit=ridge_unit,
            rcond=rcond,
            solver=solver,
            steps=steps,
            learning_rate=learning_rate,
            key=key,
            validate=validate,
        )
    )


def fit_linear(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    normalize: Normalize = "none",
    ridge: ArrayLike = 0.0,
    ridge_unit: RidgeUnit = "absolute",
    rcond: ArrayLike | None = None,
    solver: Solver = "auto",
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
        ridge: penalty on ||weight||_F^2, >= 0; may be traced.
        ridge_unit: "absolute" or "gram".
        rcond: relative cut-off for singular values of `x`; None means 8 machine epsilons.
        solver: "auto", "cholesky", "qr" or "svd"; see `fit_affine`.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap`; its bias is zero for normalize="none".

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors or bad weights.
    """
    return _fit_map(
        *_prepare(
            "linear",
            x,
            y,
            weights=weights,
            normalize=normalize,
            ridge=ridge,
            ridge_unit=ridge_unit,
            rcond=rcond,
            solver=solver,
            validate=validate,
        )
    )


def fit_l_ortho(
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
    solver: Solver = "auto",
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
        ridge: penalty of the underlying linear solution, >= 0; may be traced.
        ridge_unit: "absolute" or "gram".
        rcond: relative cut-off for singular values of `x`; None means 8 machine epsilons.
        scale: whether to multiply by the isotropic factor of least squared residual.
        rotation_only: whether to exclude reflections (determinant +1); equal dimensions only.
        completion: what to do with directions that the anchors do not determine, see
            `fit_ortho`.
        solver: "auto", "qr", "svd" or "iterative"; see `fit_ortho`.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap` with a (semi-)orthogonal weight in the normalised spaces.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors, bad weights, or
            `rotation_only` with unequal dimensions.
    """
    return _fit_map(
        *_prepare(
            "l-ortho",
            x,
            y,
            weights=weights,
            normalize=normalize,
            ridge=ridge,
            ridge_unit=ridge_unit,
            rcond=rcond,
            scale=scale,
            rotation_only=rotation_only,
            completion=completion,
            solver=solver,
            validate=validate,
        )
    )


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
    solver: Solver = "auto",
    validate: bool = True,
) -> AffineMap:
    """Orthogonal Procrustes: `U V^T` of the SVD of `x^T y` (Schönemann 1966).

    The best orthogonal map of the anchors; Maiorca et al. (2023), "ortho". For unequal
    dimensions the weight is semi-orthogonal and maximises tr(W^T x^T y), which for
    d_in <= d_out is the least-squares optimum too.

    Args:
        x: source anchors [n, d_in]; see `fit_affine` for the arguments not described here.
        y: target anchors [n, d_out].
        weights: [n], >= 0, floats or a boolean mask.
        normalize: "none", "center", "standard" or "isotropic".
        ridge: penalty on ||weight||_F^2, >= 0; may be traced. The norm of an orthogonal matrix
            is fixed, so it matters only with `scale`.
        ridge_unit: "absolute" or "gram".
        rcond: singular values of `x^T y` at most `rcond` times the largest count as
            undetermined; None means 8 machine epsilons.
        scale: whether to multiply by the isotropic factor of least squared residual.
        rotation_only: whether to exclude reflections (determinant +1, Kabsch/Umeyama); equal
            dimensions only.
        completion: with fewer anchors than dimensions every completion fits the anchors equally.
            "orthogonal" maps the undetermined directions as near to the identity (zero-padded
            or cut) as a (semi-)orthogonal matrix can; "partial" maps them to zero, which makes
            the weight a partial isometry and the estimate equivariant under rotations of either
            space.
        solver: "auto" chooses by shapes and device: with few anchors ("qr") the singular value
            factors of a core between thin bases, else ("svd") those of the whole matrix; and on
            accelerators, unless rows have weight zero, "iterative", matrix products alone, which
            knows no cut-off: directions at the level of rounding are then filled arbitrarily.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap` with a (semi-)orthogonal weight in the normalised spaces.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for bad shapes, unknown options, non-finite anchors, bad weights, or
            `rotation_only` with unequal dimensions.
    """
    return _fit_map(
        *_prepare(
            "ortho",
            x,
            y,
            weights=weights,
            normalize=normalize,
            ridge=ridge,
            ridge_unit=ridge_unit,
            rcond=rcond,
            scale=scale,
            rotation_only=rotation_only,
            completion=completion,
            solver=solver,
            validate=validate,
        )
    )


_COMMON_OPTIONS = ("weights", "normalize", "ridge", "ridge_unit", "rcond", "validate")
_ORTHO_OPTIONS = (*_COMMON_OPTIONS, "solver", "scale", "rotation_only", "completion")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "affine": (*_COMMON_OPTIONS, "solver", "steps", "learning_rate", "key"),
    "linear": (*_COMMON_OPTIONS, "solver"),
    "l-ortho": _ORTHO_OPTIONS,
    "ortho": _ORTHO_OPTIONS,
}


def check_method(method: Any, options: Iterable[str]) -> None:
    """Check the name of a method and that it has all of these options."""
    checks.option("method", method, METHODS)
    for name in options:
        if name not in _OPTIONS[method]:
            raise ValueError(
                f"{name} is not an option of method {method!r}; it takes "
                f"{', '.join(_OPTIONS[method])}"
            )


def fit(method: Method, x: ArrayLike, y: ArrayLike, **options: Any) -> AffineMap:
    """Fit a map by name: "affine", "linear", "l-ortho" or "ortho".

    Args:
        method: which of the four maps.
        x: source anchors [n, d_in].
        y: target anchors [n, d_out].
        **options: keyword options of the function of that name, e.g. `fit_ortho`.

    Raises:
        TypeError: as the function of that name.
        ValueError: as that function; also for an unknown method or an option it does not have.
    """
    check_method(method, options)
    return _fit_map(*_prepare(method, x, y, **options))


def fit_with_info(
    method: Method, x: ArrayLike, y: ArrayLike, **options: Any
) -> tuple[AffineMap, FitInfo]:
    """Like `fit`, and report rank, effective sample size, residual and orthogonality.

    Args:
        method: which of the four maps.
        x: source anchors [n, d_in].
        y: target anchors [n, d_out].
        **options: keyword options of the function of that name.

    Returns:
        The map and its `FitInfo`.

    Raises:
        TypeError: as the function of that name.
        ValueError: as that function; also for an unknown method or an option it does not have.
    """
    check_method(method, options)
    return _fit_both(*_prepare(method, x, y, **options))
