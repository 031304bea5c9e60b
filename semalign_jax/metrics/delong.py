"""DeLong's variance of the AUROC: an interval of one, and a test of two on the same rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from .._core import checks
from .._core.linalg import common_dtype
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .ranking import RankedScores, placements, ranked
from .samples import row_sum, sample_weights, weighted_mean


@by_value
class DeLongInterval(NamedTuple):
    """AUROC with its DeLong interval; scalars or one entry a label.

    Attributes:
        estimate: the AUROC.
        lower: end of the interval, >= 0.
        upper: end of the interval, <= 1.
        standard_error: root of the DeLong variance.
    """

    estimate: Array
    lower: Array
    upper: Array
    standard_error: Array


@by_value
class DeLongTest(NamedTuple):
    """Comparison of two correlated AUROCs; scalars or one entry a label.

    Attributes:
        difference: AUROC of the first minus that of the second scores.
        standard_error: of the difference.
        z: difference / standard_error; 0 where the difference is 0.
        p_value: two-sided, from the normal distribution.
    """

    difference: Array
    standard_error: Array
    z: Array
    p_value: Array


def tail_of(level: float) -> float:
    """The share of a distribution on each side of an interval; refuses a wrong level."""
    if not isinstance(level, int | float | np.number) or not 0 < level < 1:
        raise ValueError(f"level must be a number in (0, 1), e.g. 0.95; got {level!r}")
    return (1 - float(level)) / 2


def delong_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    level: float = 0.95,
    weights: ArrayLike | None = None,
) -> DeLongInterval:
    """AUROC with the variance and normal interval of DeLong et al. (1988).

    Assumes independent rows; for several rows a patient use `bootstrap` with `clusters`.

    Args:
        labels: see `metrics.auroc`.
        scores: see `metrics.auroc`.
        level: of the interval, in (0, 1).
        weights: [n], or of the shape of `scores`: a boolean mask or counts (a row of weight 2
            is two rows); rows of weight zero are inert. None means ones.

    Returns:
        `DeLongInterval`, the interval cut off at 0 and 1. NaN where a class is empty; all but
        the estimate where it has one row only.

    Raises:
        TypeError: for labels that are not integers or booleans, or scores that are not floats.
        ValueError: for shapes that do not match, labels or level out of range, negative weights.
    """
    tail = tail_of(level)
    (estimate, error), *_ = _delong(labels, (scores,), weights)
    return _normal_interval(tail, estimate, error)


@jax.jit
def _normal_interval(tail: float | Array, estimate: Array, error: Array) -> DeLongInterval:
    reach = -ndtri(jnp.asarray(tail, estimate.dtype)) * error
    estimate = jnp.minimum(estimate, 1)  # but for rounding
    return DeLongInterval(
        estimate, jnp.maximum(estimate - reach, 0), jnp.minimum(estimate + reach, 1), error
    )


def delong_test(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    weights: ArrayLike | None = None,
) -> DeLongTest:
    """Test of equal AUROC of two scores of the same rows (DeLong et al. 1988).

    Args:
        labels: see `metrics.auroc`.
        first: scores of the first method, see `metrics.auroc`.
        second: scores of the second method, of the same shape.
        weights: see `delong_interval`.

    Returns:
        `DeLongTest`; NaN where a class is empty or has one row only.

    Raises:
        TypeError: for labels that are not integers or booleans, or scores that are not floats.
        ValueError: for shapes that do not match, labels out of range or negative weights.
    """
    return _normal_test(*_delong(labels, (first, second), weights)[-1])


@jax.jit
def _normal_test(difference: Array, error: Array) -> DeLongTest:
    z = jnp.where(difference == 0, jnp.where(jnp.isnan(error), jnp.nan, 0), difference / error)
    return DeLongTest(difference, error, z, 2 * ndtr(-jnp.abs(z)))


def _delong(labels, sides: tuple[ArrayLike, ...], weights) -> list[tuple[Array, Array]]:
    """(AUROC, standard error) of each of one or two scores, and of the difference of two."""
    names = ("scores",) if len(sides) == 1 else ("first", "second")
    arrays = [checks.float_array(n, s, (1, 2)) for n, s in zip(names, sides, strict=True)]
    if arrays[0].shape != arrays[-1].shape:
        raise ValueError(
            f"first and second must have the same shape; got {arrays[0].shape} and "
            f"{arrays[-1].shape}"
        )
    shape = arrays[0].shape
    dtype = common_dtype(arrays[0].dtype, arrays[-1].dtype)
    weights = sample_weights(weights, shape, dtype)
    rankings = [ranked(labels, array, weights) for array in arrays]
    return _delong_of_rankings(weights, *rankings)


@jax.jit
def _delong_of_rankings(weights: Array, *rankings: RankedScores) -> list[tuple[Array, Array]]:
    if weights.ndim > 1:
        return jax.vmap(_delong_of_rankings)(weights.T, *rankings)
    parts = [placements(ranking, weights) for ranking in rankings]
    values = [placement for placement, _ in parts]
    if len(values) == 2:
        values.append(values[0] - values[1])
    return [_mean_and_error(v, parts[0][1], weights) for v in values]


def _mean_and_error(placement: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """Mean over the positive rows, and its standard error from the placements of both classes."""
    means, variance = [], jnp.zeros((), weights.dtype)
    for mask in (positive, ~positive):
        of_class = jnp.where(mask, weights, 0)
        means.append(weighted_mean(placement, of_class))
        count = row_sum(of_class)
        spread = row_sum(of_class * jnp.where(of_class > 0, placement - means[-1], 0) ** 2)
        several = count > 1
        variance += jnp.where(several, spread / jnp.where(several, (count - 1) * count, 1), jnp.nan)
    return means[0], jnp.sqrt(variance)
