"""The four maps from `PairStats` instead of anchors."""

from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import (
    counts,
    default_rcond,
    matmul,
    power_of_two_scale,
    safe_inverse,
    singular_values,
)
from .._core.typing import Array, Method
from ._solvers.least_squares import least_squares_of_gram
from ._solvers.polar import orthogonal_factor
from .affine_map import AffineMap
from .fit import FitInfo, best_scale, orthogonality_error, rank_of
from .options import FitOptions, FitValues, check_method, check_options
from .sides import deviations
from .stats import PairStats


@overload
def fit_from_stats(
    method: Method, stats: PairStats, *, info: Literal[False] = False, **options: Any
) -> AffineMap: ...
@overload
def fit_from_stats(
    method: Method, stats: PairStats, *, info: Literal[True], **options: Any
) -> tuple[AffineMap, FitInfo]: ...


def fit_from_stats(
    method: Method, stats: PairStats, *, info: bool = False, **options: Any
) -> AffineMap | tuple[AffineMap, FitInfo]:
    """Fit a map from the statistics of its anchors.

    Equal to the fit of the anchors themselves, but for rounding: least squares goes through the
    Gram matrix, which squares the condition number. So singular values of `x` below `rcond`,
    by default sqrt(8 machine epsilons) of the largest (1e-3 in float32, 4e-8 in float64), count
    as zero. Statistics in float64, e.g. of `accumulate_stats`, are solved in float64.

    Args:
        method: "affine", "linear", "l-ortho" or "ortho".
        stats: of `update_stats`, `merge_stats`, `psum_stats` or `accumulate_stats`.
        info: whether to return diagnostics too. The residual comes from sums of squares, so
            where it is below a machine epsilon of the variance of `y` it is rounding noise.
        **options: as the function of that name takes them: `normalize`, `ridge`, `ridge_unit`,
            `rcond`, `scale`, `rotation_only`, `completion`. (Weights are part of the statistics.)

    Returns:
        `AffineMap` in the dtype of the statistics; float32 for float64 statistics where JAX's
        64-bit types are off. With `info` also its `FitInfo`.

    Raises:
        TypeError: for an option of the wrong type or if `stats` is not a `PairStats`.
        ValueError: for an unknown method or option, statistics of no anchors, or what leaves single
            anchors out (method "auto", ridge="loo").

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> stats = sa.accumulate_stats([(x, x[:, ::-1] + 3)])
        >>> mapping = sa.fit_from_stats("affine", stats)
        >>> print(mapping.bias.round())
        [3. 3. 3. 3.]
    """
    if not isinstance(stats, PairStats):
        raise TypeError(f"stats must be a PairStats; got {type(stats).__name__}")
    check_method(method, options)
    for name in ("weights", "validate", "solver", "steps", "learning_rate", "key"):
        if name in options:
            raise ValueError(f"{name} is not an option of fit_from_stats")
    if method == "auto" or isinstance(options.get("ridge"), str):
        raise ValueError(
            "method 'auto' and ridge='loo' leave single anchors out, which statistics do not hold: "
            "fit to the anchors themselves"
        )
    if checks.is_concrete(*stats) and not float(np.asarray(stats.weight_sum)) > 0:
        raise ValueError("stats hold no anchors: update them with some first")
    d_in, d_out = stats.cxy.shape
    static, values = check_options(method, (d_in, d_out), **options)
    info = checks.flag("info", info)
    # Float64 statistics of the host keep their digits where 64-bit types are off.
    wide = stats.cxx.dtype == np.float64 and jax.dtypes.canonicalize_dtype(float) != np.float64
    with jax.enable_x64(True) if wide else nullcontext():
        fitted = _fit_stats(static, info, stats, values)
    if wide:
        fitted = jax.tree.map(_in_float32, fitted)
    return fitted


def _in_float32(leaf: Array) -> Array:
    host = np.asarray(leaf)
    # A copy that nobody changes, so that it may stay where it is.
    return jax.device_put(host.astype(np.float32) if host.dtype == np.float64 else host)


@partial(jax.jit, static_argnums=(0, 1))
def _fit_stats(options: FitOptions, info: bool, stats: PairStats, values: FitValues) -> Any:
    ridge, rcond, _, _ = values.astype(stats.cxx.dtype)
    total = stats.weight_sum
    cxx, cxy, mean_x, mean_y = stats.cxx, stats.cxy, stats.mean_x, stats.mean_y
    if not options.center:
        cxx = cxx + total * jnp.outer(mean_x, mean_x)
        cxy = cxy + total * jnp.outer(mean_x, mean_y)
        mean_x, mean_y = jnp.zeros_like(mean_x), jnp.zeros_like(mean_y)
    share = safe_inverse(total, total > 0)
    scale_x = deviations(options.normalize, jnp.diagonal(cxx) * share, stats.mean_x)
    scale_y = deviations(options.normalize, stats.cyy_diagonal * share, stats.mean_y)
    cxx = cxx / scale_x[:, None] / scale_x[None, :]
    cxy = cxy / scale_x[:, None] / scale_y[None, :]
    if options.ridge_unit == "gram" and ridge is not None:
        ridge = ridge * jnp.mean(jnp.diagonal(cxx))
    unit, unit_cross = power_of_two_scale(cxx), power_of_two_scale(cxy)
    cxx, cxy = cxx / unit, cxy / unit_cross
    penalty = None if ridge is None else ridge / unit

    matrix = cxy
    if options.method != "ortho":
        matrix = least_squares_of_gram(cxx, cxy, penalty, rcond)
    weight = matrix
    if options.method in ("affine", "linear"):
        weight = weight * (unit_cross / unit)
    else:
        cut = rcond if options.method == "ortho" else None
        weight = orthogonal_factor(options.completion, options.rotation_only, matrix, cut)
        if options.scale:
            gain, power = jnp.sum(weight * cxy), jnp.sum(weight * matmul(cxx, weight))
            weight = weight * best_scale(gain, power, weight, penalty) * (unit_cross / unit)
    weight = weight * (scale_y[None, :] / scale_x[:, None])
    fitted = AffineMap(weight, mean_x, mean_y)
    if not info:
        return fitted
    shown = cxx if options.method in ("affine", "linear") else matrix
    return fitted, _diagnose(options, fitted, stats, shown, rcond)


def _diagnose(
    options: FitOptions, fitted: AffineMap, stats: PairStats, matrix: Array, rcond: Array | None
) -> FitInfo:
    """As of the anchors; `matrix` is their Gram matrix for affine and linear."""
    total, weight = stats.weight_sum, fitted.weight
    share = safe_inverse(total, total > 0)
    squares = (
        jnp.sum(stats.cyy_diagonal)
        - 2 * jnp.sum(weight * stats.cxy)
        + jnp.sum(weight * matmul(stats.cxx, weight))
    )
    of_means = fitted(stats.mean_x) - stats.mean_y
    s = singular_values(matrix)
    if options.method in ("affine", "linear"):
        s = jnp.sqrt(s)
        rcond = jnp.asarray(default_rcond(s.dtype) ** 0.5) if rcond is None else rcond
        rank = jnp.sum(counts(s, rcond), dtype=jnp.int32)
    else:
        rank = rank_of(options, s, rcond)
    effective = safe_inverse(stats.weight_square_sum, stats.weight_square_sum > 0)
    return FitInfo(
        rank=rank,
        n_effective=total * total * effective,
        residual_mse=jnp.maximum(squares, 0) * share / weight.shape[1] + jnp.mean(of_means**2),
        singular_values=s,
        orthogonality_error=orthogonality_error(weight),
    )
