"""The four maps from `PairStats` instead of anchors."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.checks import is_concrete
from .._core.linalg import (
    gram_solve,
    matmul,
    power_of_two_scale,
    safe_inverse,
)
from .._core.typing import Array, Method
from ..maps.affine_map import AffineMap
from ..maps.fit import (
    Options,
    Static,
    check_method,
    check_options,
    deviations,
    orthogonal_weight,
)
from ..maps.stats import PairStats


def fit_from_stats(method: Method, stats: PairStats, **options: Any) -> AffineMap:
    """Fit a map from the statistics of its anchors.

    Equal to the fit of the anchors themselves, but for rounding: least squares goes through the
    Gram matrix, which squares the condition number. So singular values of `x` below `rcond`,
    by default sqrt(8 machine epsilons) of the largest (1e-3 in float32, 4e-8 in float64), count
    as zero. Statistics in float64, e.g. of `accumulate_stats`, are solved in float64.

    Args:
        method: "affine", "linear", "l-ortho" or "ortho".
        stats: of `update_stats`, `merge_stats`, `psum_stats` or `accumulate_stats`.
        **options: as the function of that name takes them: `normalize`, `ridge`, `ridge_unit`,
            `rcond`, `scale`, `rotation_only`, `completion`; and `solver` of l-ortho and ortho,
            where "auto" is "svd". (Weights are part of the statistics.)

    Returns:
        `AffineMap` in the dtype of the statistics; float32 for float64 statistics where JAX's
        64-bit types are off.

    Raises:
        TypeError: for an option of the wrong type or if `stats` is not a `PairStats`.
        ValueError: for an unknown method or option, or statistics of no anchors.
    """
    if not isinstance(stats, PairStats):
        raise TypeError(f"stats must be a PairStats; got {type(stats).__name__}")
    check_method(method, options)
    gram_only = () if method in ("l-ortho", "ortho") else ("solver",)
    for name in (*gram_only, "weights", "validate", "steps", "learning_rate", "key"):
        if name in options:
            raise ValueError(f"{name} is not an option of fit_from_stats")
    if is_concrete(*stats) and not float(np.asarray(stats.weight_sum)) > 0:
        raise ValueError("stats hold no anchors: update them with some first")
    d_in, d_out = stats.cxy.shape
    static, traced = check_options(method, ((0, d_in), (0, d_out)), **options)
    if static.solver == "auto":
        # One solution at the end of a stream can afford singular values, which know the rank.
        static = static._replace(solver="svd")
    # Float64 statistics of the host keep their digits where 64-bit types are off.
    wide = stats.cxx.dtype == np.float64 and jax.dtypes.canonicalize_dtype(float) != np.float64
    with jax.enable_x64(True) if wide else nullcontext():
        fitted = _fit_stats(static, jax.tree.map(jnp.asarray, stats), traced)
    if wide:
        fitted = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), fitted)
    return fitted


@partial(jax.jit, static_argnums=0)
def _fit_stats(static: Static, stats: PairStats, options: Options) -> AffineMap:
    dtype = stats.cxx.dtype
    ridge, rcond = (None if a is None else a.astype(dtype) for a in (options.ridge, options.rcond))
    total = stats.weight_sum
    cxx, cxy, cyy = stats.cxx, stats.cxy, stats.cyy_diagonal
    mean_x, mean_y = stats.mean_x, stats.mean_y
    if not static.center:
        cxx = cxx + total * jnp.outer(mean_x, mean_x)
        cxy = cxy + total * jnp.outer(mean_x, mean_y)
        mean_x, mean_y = jnp.zeros_like(mean_x), jnp.zeros_like(mean_y)
    share = safe_inverse(total, total > 0)
    scale_x = _scale(static, jnp.diagonal(cxx) * share, stats.mean_x)
    scale_y = _scale(static, cyy * share, stats.mean_y)
    cxx = cxx / scale_x[:, None] / scale_x[None, :]
    cxy = cxy / scale_x[:, None] / scale_y[None, :]
    if static.ridge_unit == "gram" and ridge is not None:
        ridge = ridge * jnp.mean(jnp.diagonal(cxx))
    unit = power_of_two_scale(cxx)
    unit_cross = power_of_two_scale(cxy)
    cxx, cxy = cxx / unit, cxy / unit_cross
    penalty = None if ridge is None else ridge / unit

    weight = cxy if static.method == "ortho" else gram_solve(cxx, cxy, penalty, rcond)
    if static.method in ("affine", "linear"):
        weight = weight * (unit_cross / unit)
    else:
        cut = rcond if static.method == "ortho" else None
        weight = orthogonal_weight(static, weight, rcond=cut)
        if static.scale:
            power = jnp.sum(weight * matmul(cxx, weight))
            if penalty is not None:
                power = power + penalty * jnp.sum(weight * weight)
            gain = jnp.sum(weight * cxy)
            weight = weight * (gain * safe_inverse(power, power > 0) * (unit_cross / unit))
    weight = weight * (scale_y[None, :] / scale_x[:, None])
    return AffineMap(weight, mean_x, mean_y, static.method)


def _scale(static: Static, variance: Array, mean: Array) -> Array:
    """What each dimension is divided by; 1 where it is not."""
    if static.normalize not in ("standard", "isotropic"):
        return jnp.ones_like(variance)
    scale = deviations(static.normalize, variance, mean)
    return jnp.where(scale > 0, scale, 1)
