"""Scores of rankings, AUROC and average precision, from one sort that any weights share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._core import checks
from .._core.linalg import compute_dtype
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .samples import BLOCK, poisoned, row_sum, sample_weights, targets, tree_sums

#: Numbers of scores that are evaluated at once; bounds the memory.
SCORES_AT_ONCE = 2**22


@by_value
class RankedScores(NamedTuple):
    """Scores sorted once, for AUROC and average precision under many weights.

    [n] for one binary problem, [labels, n] for several; positions count from the highest score.

    Attributes:
        order: int32, the row at each position.
        first: int32, for each position the first one of its group of tied scores.
        last: int32, the position after the last one of this group.
        positive: bool, whether the row at each position is positive.
        valid: bool, whether its score and label can be used, i.e. are not NaN and 0 or 1.
    """

    order: Array
    first: Array
    last: Array
    positive: Array
    valid: Array


Kernel: TypeAlias = Callable[[RankedScores, Array], Array]


def rank_scores(labels: ArrayLike, scores: ArrayLike) -> RankedScores:
    """Sort scores once, to compute AUROC or average precision under many weights.

    Args:
        labels: see `auroc`.
        scores: see `auroc`.

    Returns:
        `RankedScores` for `auroc_from_ranking` and `average_precision_from_ranking`. Labels that
        are not 0 or 1, or no class, make the score NaN unless their weight is zero.

    Raises:
        TypeError: for labels that are not integers or booleans, or scores that are not floats.
        ValueError: for shapes that do not match.
    """
    scores = checks.float_array("scores", scores, (1, 2))
    # Weights come later: only they tell whether an invalid label matters.
    return ranked(labels, scores, jnp.zeros(scores.shape, compute_dtype(scores.dtype)))


def ranked(labels: ArrayLike, scores: Array, weights: Array) -> RankedScores:
    """`rank_scores` of checked scores; invalid labels of positive weight are refused."""
    return _sorted(scores, *targets(labels, scores.shape, weights))


@jax.jit
def rankings_of_draws(labels: Array, scores: Array, known: Array | None) -> RankedScores:
    """Rankings [draws, classes, n] of scores [draws, n, classes] by `rank_scores`.

    Labels that are not `known`, bool [n, classes], weigh nothing.
    """
    rankings = jax.vmap(lambda s: rank_scores(labels, s))(scores)
    if known is None:
        return rankings
    known = jnp.broadcast_to(known.T, rankings.order.shape)
    kept = jnp.take_along_axis(known, rankings.order, axis=-1)
    # There is no row n: `_by_position` gives it no weight.
    order = jnp.where(kept, rankings.order, rankings.order.shape[-1])
    return rankings._replace(order=order, valid=rankings.valid | ~kept)


@jax.jit
def _sorted(scores: Array, target: Array, valid: Array) -> RankedScores:
    """The ranking of [n] or [n, labels]; NaN comes last."""
    scores, target, valid = scores.T, target.T, valid.T
    n, axis = scores.shape[-1], scores.ndim - 1
    position = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), scores.shape)
    falling, order = lax.sort((-scores, position), num_keys=1)
    differs = falling[..., 1:] != falling[..., :-1]
    pad = [(0, 0)] * axis
    starts = jnp.pad(differs, [*pad, (1, 0)], constant_values=True)
    ends = jnp.pad(differs, [*pad, (0, 1)], constant_values=True)
    return RankedScores(
        order,
        lax.cummax(jnp.where(starts, position, 0), axis),
        lax.cummin(jnp.where(ends, position + 1, n), axis, reverse=True),
        jnp.take_along_axis(target, order, axis=-1),
        jnp.take_along_axis(valid, order, axis=-1) & ~jnp.isnan(falling),
    )


def auroc(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Area under the receiver operating characteristic; ties count half.

    The weighted share of pairs of a positive and a negative row in which the positive one scores
    higher (Hanley and McNeil 1982). In float32, accurate to about 1e-6 up to 1e5 rows.

    Args:
        labels: booleans or 0/1, [n] (binary) or [n, num_labels] (multi-label); or integer
            classes [n] for scores [n, num_classes] (every class against the rest).
        scores: floating point [n], [n, num_labels] or [n, num_classes]; higher is more likely.
            Infinite scores are in order. Integer scores must be converted; note that float64
            scores lose digits, and may become tied, where JAX's 64-bit types are off.
        weights: [n], or of the shape of `scores`, e.g. to mask missing labels; >= 0, floats,
            counts or a boolean mask. Rows of weight zero are inert, even if they hold NaN or
            no valid label. None means equal weights.

    Returns:
        Scalar, [num_labels] or [num_classes] in [0, 1], in the wider dtype of scores and weights
        (at least float32). NaN where a class is empty, or where a row of positive weight has a
        NaN score; `macro_mean` averages the rest.

    Raises:
        TypeError: for labels that are not integers or booleans, or scores that are not floats.
        ValueError: for shapes that do not match, labels out of range or negative weights.
    """
    return _of_scores(_weighted_auroc, labels, scores, weights)


def average_precision(
    labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    """Average precision: mean precision at the positive rows, tied scores taken together.

    sum_t (recall_t - recall_(t-1)) precision_t over the distinct scores t in falling order, as
    scikit-learn has it, without interpolation.

    Args:
        labels: see `auroc`.
        scores: see `auroc`.
        weights: see `auroc`.

    Returns:
        As `auroc`; NaN where no row is positive.

    Raises:
        TypeError: for labels that are not integers or booleans, or scores that are not floats.
        ValueError: for shapes that do not match, labels out of range or negative weights.
    """
    return _of_scores(_weighted_average_precision, labels, scores, weights)


def auroc_from_ranking(ranking: RankedScores, weights: ArrayLike | None = None) -> Array:
    """`auroc` of scores that `rank_scores` has sorted, under any weights.

    Vectorised over weights it is far cheaper than `auroc`: all resamples of a bootstrap share
    the sort.

    Args:
        ranking: of `rank_scores`.
        weights: see `auroc`.

    Returns:
        See `auroc`; in the dtype of `weights`, at least float32.

    Raises:
        ValueError: for weights of another shape or negative ones.
    """
    return _of_ranking(_AUROC_IN_COLUMNS, ranking, weights)


def average_precision_from_ranking(
    ranking: RankedScores, weights: ArrayLike | None = None
) -> Array:
    """`average_precision` of scores that `rank_scores` has sorted; see `auroc_from_ranking`.

    Args:
        ranking: of `rank_scores`.
        weights: see `auroc`.

    Raises:
        ValueError: for weights of another shape or negative ones.
    """
    return _of_ranking(_AVERAGE_PRECISION_IN_COLUMNS, ranking, weights)


def placements(ranking: RankedScores, weights: Array) -> tuple[Array, Array]:
    """How every row of a binary problem stands to the opposite class (DeLong 1988).

    Returns:
        (placement, positive), both [n] in the order of the rows: the share of negatives that a
        positive row outranks, or of positives that outrank a negative row; ties count half. The
        means of the placements are the AUROC.
    """
    weights, positive = _by_position(ranking, weights[:, None])
    above = []
    for mask in (positive, ~positive):
        sums, total = _sums_before(jnp.where(mask, weights, 0))
        # The weight above each position plus half of that tied with it.
        middle = (sums[ranking.first] + sums[ranking.last]) / 2
        above.append((middle / jnp.where(total > 0, total, jnp.nan)[None, :])[:, 0])
    placement = jnp.where(ranking.positive, 1 - above[1], above[0])
    placement = jnp.where(ranking.valid, placement, jnp.nan)

    def by_row(values):
        return jnp.zeros_like(values).at[ranking.order].set(values)

    return by_row(placement), by_row(ranking.positive)


# --- kernels: a ranking and weights [n, b] to [b] -----------------------------------------------


def _by_position(ranking: RankedScores, weights: Array) -> tuple[Array, Array]:
    """Weights [n, b] in the order of the ranking, and which of them are positive [n, 1].

    Weights of invalid rows are NaN, unless they are zero.
    """
    weights = jnp.pad(weights, ((0, 1), (0, 0)))[ranking.order]
    return poisoned(weights, ranking.valid[:, None]), ranking.positive[:, None]


def _sums_before(values: Array) -> tuple[Array, Array]:
    """Sums of the `values` [n, b] at all earlier positions, [.. > n, b], and of all values [b].

    Two levels, as `row_sum`: short sums within blocks, side by side, and a tree over the blocks.
    """
    n, columns = values.shape
    blocks = n // BLOCK + 1
    values = jnp.pad(values, ((0, blocks * BLOCK - n), (0, 0))).reshape(blocks, BLOCK, columns)

    def step(total, row):
        return total + row, total

    totals, within = lax.scan(step, jnp.zeros_like(values[:, 0]), jnp.moveaxis(values, 1, 0))
    totals = tree_sums(totals)
    before = jnp.pad(totals[:-1], ((1, 0), (0, 0)))
    sums = jnp.moveaxis(within, 0, 1) + before[:, None]
    return sums.reshape(blocks * BLOCK, columns), totals[-1]


def _weighted_auroc(ranking: RankedScores, weights: Array) -> Array:
    weights, positive = _by_position(ranking, weights)
    negatives = jnp.where(positive, 0, weights)
    sums, total = _sums_before(jnp.where(positive, weights, 0))
    against = row_sum(negatives)
    defined = (total > 0) & (against > 0)
    # Shares before the products: float32 would round the product of two large counts.
    shares = sums * (0.5 / jnp.where(defined, total, 1))[None, :]
    area = row_sum((shares[ranking.first] + shares[ranking.last]) * negatives)
    # Rounding may lift a perfect score above 1.
    return jnp.where(defined, jnp.minimum(area / jnp.where(defined, against, 1), 1), jnp.nan)


def _weighted_average_precision(ranking: RankedScores, weights: Array) -> Array:
    weights, positive = _by_position(ranking, weights)
    positives = jnp.where(positive, weights, 0)
    sums, total = _sums_before(positives)
    retrieved, _ = _sums_before(weights)
    precision = (sums / jnp.where(retrieved == 0, 1, retrieved))[ranking.last]
    defined = total > 0
    share = positives / jnp.where(defined, total, 1)[None, :]
    return jnp.where(defined, jnp.minimum(row_sum(share * precision), 1), jnp.nan)


def _in_columns(kernel: Kernel) -> Kernel:
    """`kernel` with a batching rule: more weights for one ranking are more columns.

    With the rows first, whole vectors of weights are gathered and added: a bootstrap takes half
    the time. Of several rankings one is taken after the other, as each may have many weights.
    """
    wrapped = jax.custom_batching.custom_vmap(kernel)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, ranking, weights):
        ranking_batched, weights_batched = in_batched
        if not any(ranking_batched):
            columns = jnp.moveaxis(weights, 0, 1).reshape(weights.shape[1], -1)
            return wrapped(ranking, columns).reshape(axis_size, -1), True
        ranking = RankedScores(
            *(
                leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
                for leaf, batched in zip(ranking, ranking_batched, strict=True)
            )
        )
        if weights_batched:
            return lax.map(lambda pair: wrapped(*pair), (ranking, weights)), True
        return lax.map(lambda one: wrapped(one, weights), ranking), True

    return wrapped


_AUROC_IN_COLUMNS = _in_columns(_weighted_auroc)
_AVERAGE_PRECISION_IN_COLUMNS = _in_columns(_weighted_average_precision)


def _of_scores(
    kernel: Kernel, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> Array:
    scores = checks.float_array("scores", scores, (1, 2))
    weights = sample_weights(weights, scores.shape, scores.dtype)
    return _side_by_side(kernel, scores, *targets(labels, scores.shape, weights), weights)


def _of_ranking(kernel: Kernel, ranking: RankedScores, weights: ArrayLike | None) -> Array:
    n = ranking.order.shape[-1]
    if weights is not None and np.ndim(weights) < ranking.order.ndim:
        # Not spread over the labels, which would cost a copy for each.
        weights = sample_weights(weights, (n,), jnp.float32)
    else:
        weights = sample_weights(weights, ranking.order.T.shape, jnp.float32)
    return _one_by_one(kernel, ranking, weights)


@partial(jax.jit, static_argnums=0)
def _side_by_side(
    kernel: Kernel, scores: Array, target: Array, valid: Array, weights: Array
) -> Array:
    """Apply `kernel` to [n] or [n, labels], as many labels at once as the memory allows."""
    ranking, weights = _sorted(scores, target, valid), weights.T

    def one(ranking, weights):
        return kernel(ranking, weights[:, None])[0]

    if weights.ndim == 1:
        return one(ranking, weights)
    at_once = max(1, SCORES_AT_ONCE // weights.shape[1])
    if len(weights) <= at_once:
        return jax.vmap(one)(ranking, weights)
    return lax.map(lambda pair: one(*pair), (ranking, weights), batch_size=at_once)


@partial(jax.jit, static_argnums=0)
def _one_by_one(kernel: Kernel, ranking: RankedScores, weights: Array) -> Array:
    """Apply `kernel` of `_in_columns` to a ranking and weights [n] or [n, labels]."""
    weights = weights.T
    if ranking.order.ndim == 1:
        return kernel(ranking, weights[:, None])[0]
    if weights.ndim == 1:
        return jax.vmap(kernel, (0, None))(ranking, weights[:, None])[:, 0]
    return jax.vmap(kernel)(ranking, weights[:, :, None])[:, 0]
