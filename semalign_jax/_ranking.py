"""Scores of rankings, AUROC and average precision, from one sort that any weights share."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._core import checks
from ._core.linalg import compute_dtype
from ._core.typing import Array, ArrayLike
from ._samples import BLOCK, poisoned, row_sum, sample_weights, targets, tree_sums

#: Rows that are sorted by digits: more would take more than three of them.
LARGEST_BY_DIGITS = 2**21
#: Numbers of scores that are evaluated at once; bounds the memory.
SCORES_AT_ONCE = 2**22


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
    target, valid = targets(labels, scores.shape, weights)
    return _sorted(scores.T, target.T, valid.T)


def ranking_of_known(ranking: RankedScores, known: Array) -> RankedScores:
    """The ranking in which rows that are not `known` (of its shape) weigh nothing."""
    kept = jnp.take_along_axis(known, ranking.order, axis=-1)
    # The row number n is out of range: `_by_position` gives it no weight.
    order = jnp.where(kept, ranking.order, ranking.order.shape[-1])
    return ranking._replace(order=order, valid=ranking.valid | ~kept)


@jax.jit
def _sorted(scores: Array, target: Array, valid: Array) -> RankedScores:
    """The ranking of [n] or [labels, n]."""
    order = _falling_order(scores)
    sorted_scores = jnp.take_along_axis(scores, order, axis=-1)
    n = scores.shape[-1]
    position = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), order.shape)
    differs = sorted_scores[..., 1:] != sorted_scores[..., :-1]
    pad = [(0, 0)] * (order.ndim - 1)
    starts = jnp.pad(differs, [*pad, (1, 0)], constant_values=True)
    ends = jnp.pad(differs, [*pad, (0, 1)], constant_values=True)
    to_end = jnp.flip(jnp.where(ends, n - 1 - position, 0), axis=-1)
    return RankedScores(
        order,
        _running_max(jnp.where(starts, position, 0)),
        n - jnp.flip(_running_max(to_end), axis=-1),
        jnp.take_along_axis(target, order, axis=-1),
        jnp.take_along_axis(valid, order, axis=-1) & ~jnp.isnan(sorted_scores),
    )


def _falling_order(scores: Array) -> Array:
    """The rows [..., n] from the highest score to the lowest, then NaN; equal ones in order."""

    def by_comparison(scores):
        return jnp.argsort(-scores, axis=-1).astype(jnp.int32)

    scores = scores.astype(compute_dtype(scores.dtype))
    if scores.dtype != jnp.float32 or scores.shape[-1] > LARGEST_BY_DIGITS:
        return by_comparison(scores)
    return lax.platform_dependent(scores, cpu=_order_by_digits, default=by_comparison)


def _order_by_digits(scores: Array) -> Array:
    """`_falling_order` of float32 scores by a radix sort.

    XLA's CPU sort of one array of integers is many times faster than of floats or of several
    arrays. So each of a few sorts is of some bits of the score, followed by the position.
    """
    n = scores.shape[-1]
    position_bits = max(1, (n - 1).bit_length())
    digits = -(-32 // (32 - position_bits))
    digit_bits = -(-32 // digits)
    # One zero, and one NaN, whose bits come after those of infinity.
    falling = jnp.where(scores == 0, 0, jnp.where(jnp.isnan(scores), jnp.nan, -scores))
    bits = lax.bitcast_convert_type(falling, jnp.uint32)
    # Integers in the order of the floats: the larger the bits of a negative one, the smaller it.
    key = jnp.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    position = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32), key.shape)
    order = position.astype(jnp.int32)
    for number in range(digits):
        digit = (key >> (number * digit_bits)) & ((1 << digit_bits) - 1)
        digit = jnp.take_along_axis(digit, order, axis=-1)
        found = lax.sort(digit << position_bits | position, is_stable=False)
        found = (found & ((1 << position_bits) - 1)).astype(jnp.int32)
        order = jnp.take_along_axis(order, found, axis=-1)
    return order


def _running_max(values: Array) -> Array:
    """Cumulative maximum of non-negative values along the last axis, blocks side by side."""
    n = values.shape[-1]
    blocks = -(-n // BLOCK)
    rest = [(0, 0)] * (values.ndim - 1)
    values = jnp.pad(values, [*rest, (0, blocks * BLOCK - n)])
    values = jnp.moveaxis(values.reshape(*values.shape[:-1], blocks, BLOCK), -1, 0)

    def step(largest, row):
        largest = jnp.maximum(largest, row)
        return largest, largest

    largest, within = lax.scan(step, jnp.zeros_like(values[0]), values)
    before = jnp.pad(lax.cummax(largest, largest.ndim - 1)[..., :-1], [*rest, (1, 0)])
    values = jnp.moveaxis(jnp.maximum(within, before[None]), 0, -1)
    return values.reshape(*values.shape[:-2], blocks * BLOCK)[..., :n]


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
    return _of_ranking(_weighted_auroc, ranking, weights)


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
    return _of_ranking(_weighted_average_precision, ranking, weights)


def placements(ranking: RankedScores, weights: Array) -> tuple[Array, Array]:
    """How every row stands to the opposite class; their means are the AUROC (DeLong 1988).

    Args:
        ranking: of one binary problem, [n].
        weights: [n].

    Returns:
        (placement, positive), both [n] in the order of the rows: the share of negatives that a
        positive row outranks, or of positives that outrank a negative row; ties count half.
    """
    n = len(weights)
    ranking, weights, positive = _by_position(ranking, weights[:, None])
    above = []
    for mask in (positive, ~positive):
        sums, total = _exclusive_cumsum(jnp.where(mask, weights, 0))
        # The weight above each position plus half of that tied with it.
        middle = (sums[ranking.first] + sums[ranking.last]) / 2
        above.append((middle / jnp.where(total > 0, total, jnp.nan)[None, :])[:, 0])
    placement = jnp.where(ranking.positive, 1 - above[1], above[0])
    placement = jnp.where(ranking.valid, placement, jnp.nan)

    def by_row(values):  # the filling positions have the row number n, out of range
        return jnp.zeros(n, values.dtype).at[ranking.order].set(values, mode="drop")

    return by_row(placement), by_row(ranking.positive)


# --- kernels: weights [n, b] to [b] ---------------------------------------------------------------

# The ranking is one for all columns of weights, [n], or each has its own, [n, b].


def _wide(kernel: Callable[[RankedScores, Array], Array]):
    """Give `kernel` a batching rule: more weights for one ranking are more columns.

    With the rows first, sorting and summing copies and adds whole vectors of weights, several
    times faster than what `vmap` makes of it. Rankings that have many columns of weights, or may
    get them from an outer `vmap`, are taken one after the other.
    """
    wrapped = jax.custom_batching.custom_vmap(kernel)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, ranking, weights):
        ranking_batched, weights_batched = in_batched
        each_ranking = any(jax.tree_util.tree_leaves(ranking_batched))

        def batched(value, is_batched):
            return value if is_batched else jnp.broadcast_to(value, (axis_size, *value.shape))

        def side_by_side(values):
            return jnp.moveaxis(values, 0, 1).reshape(values.shape[1], -1)

        if each_ranking:
            ranking = jax.tree_util.tree_map(batched, ranking, ranking_batched)
            if ranking.order.ndim == 2:  # one for all of its columns
                if not weights_batched:
                    return lax.map(lambda one: wrapped(one, weights), ranking), True
                return lax.map(lambda pair: wrapped(*pair), (ranking, weights)), True
            ranking = jax.tree_util.tree_map(side_by_side, ranking)
        elif ranking.order.ndim == 2:  # one for each column
            columns = jax.tree_util.tree_map(jnp.transpose, ranking)
            pairs = (columns, jnp.transpose(weights, (2, 1, 0)))
            return lax.map(lambda pair: wrapped(*pair), pairs).T, True
        weights = side_by_side(batched(weights, weights_batched))
        return wrapped(ranking, weights).reshape(axis_size, -1), True

    return wrapped


def _rows_at(values: Array, index: Array) -> Array:
    """Rows of `values` [n, b], the same or others of each column."""
    return values[index] if index.ndim == 1 else jnp.take_along_axis(values, index, axis=0)


def _by_position(ranking: RankedScores, weights: Array) -> tuple[RankedScores, Array, Array]:
    """Weights [n, b] in the order of the ranking, laid out for `_exclusive_cumsum`.

    The ranking is padded by at least one position and its blocks of successive positions are
    interleaved: first all first positions of a block, then all second ones, and so on.

    Returns:
        The ranking in this layout (`first` and `last` index into it), its weights, and which
        of them are positive, [.., 1] or [.., b].
    """
    n = ranking.order.shape[0]
    blocks = n // BLOCK + 1

    def spread(values, fill):
        rest = values.shape[1:]
        pad = [(0, blocks * BLOCK - n), *[(0, 0)] * len(rest)]
        values = jnp.pad(values, pad, constant_values=fill).reshape(blocks, BLOCK, *rest)
        return jnp.swapaxes(values, 0, 1).reshape(-1, *rest)

    def slot(position):
        return position % BLOCK * blocks + position // BLOCK

    ranking = RankedScores(
        spread(ranking.order, n),
        spread(slot(ranking.first), 0),
        spread(slot(ranking.last), 0),
        spread(ranking.positive, False),
        spread(ranking.valid, True),
    )
    slots = blocks * BLOCK
    weights = _rows_at(jnp.pad(weights, ((0, 1), (0, 0))), ranking.order)
    weights = poisoned(weights, ranking.valid.reshape(slots, -1))
    return ranking, weights, ranking.positive.reshape(slots, -1)


def _exclusive_cumsum(values: Array) -> tuple[Array, Array]:
    """Sums over all earlier positions [.., b], in the layout of `_by_position`; and the total [b].

    Two levels, as `row_sum`: short sums within the blocks, side by side, which vectorises, and a
    tree over the blocks.
    """
    values = values.reshape(BLOCK, -1, values.shape[-1])

    def step(total, row):
        return total + row, total

    totals, within = lax.scan(step, jnp.zeros_like(values[0]), values)
    totals = tree_sums(totals)
    before = jnp.pad(totals[:-1], ((1, 0), (0, 0)))
    return (within + before[None]).reshape(-1, values.shape[-1]), totals[-1]


@_wide
def _weighted_auroc(ranking: RankedScores, weights: Array) -> Array:
    ranking, weights, positive = _by_position(ranking, weights)
    negatives = jnp.where(positive, 0, weights)
    sums, total = _exclusive_cumsum(jnp.where(positive, weights, 0))
    against = row_sum(negatives)
    defined = (total > 0) & (against > 0)
    # Shares before the products: float32 would round the product of two large counts.
    shares = sums * (0.5 / jnp.where(defined, total, 1))[None, :]
    both = _rows_at(shares, ranking.first) + _rows_at(shares, ranking.last)
    area = row_sum(both * negatives)
    return jnp.where(defined, area / jnp.where(defined, against, 1), jnp.nan)


@_wide
def _weighted_average_precision(ranking: RankedScores, weights: Array) -> Array:
    ranking, weights, positive = _by_position(ranking, weights)
    positives = jnp.where(positive, weights, 0)
    sums, total = _exclusive_cumsum(positives)
    retrieved = _rows_at(_exclusive_cumsum(weights)[0], ranking.last)
    precision = _rows_at(sums, ranking.last) / jnp.where(retrieved == 0, 1, retrieved)
    defined = total > 0
    share = positives / jnp.where(defined, total, 1)[None, :]
    return jnp.where(defined, row_sum(share * precision), jnp.nan)


def _of_scores(kernel, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> Array:
    scores = checks.float_array("scores", scores, (1, 2))
    weights = sample_weights(weights, scores.shape, scores.dtype)
    return _side_by_side(kernel, ranked(labels, scores, weights), weights.T)


def _of_ranking(kernel, ranking: RankedScores, weights: ArrayLike | None) -> Array:
    n = ranking.order.shape[-1]
    if weights is not None and np.ndim(weights) < ranking.order.ndim:
        # Not spread over the labels, which would cost a copy for each.
        weights = sample_weights(weights, (n,), jnp.float32)
    else:
        weights = sample_weights(weights, ranking.order.T.shape, jnp.float32)
    return _one_by_one(kernel, ranking, weights.T)


@partial(jax.jit, static_argnums=0)
def _side_by_side(kernel, ranking: RankedScores, weights: Array) -> Array:
    """Apply `kernel` to [n] or [labels, n], each label with its own weights."""

    def one(pair):
        ranking, weights = jax.tree_util.tree_map(lambda a: a[:, None], pair)
        return kernel(ranking, weights)[0]

    if weights.ndim == 1:
        return one((ranking, weights))
    at_once = max(1, SCORES_AT_ONCE // weights.shape[1])
    if len(weights) <= at_once:
        return jax.vmap(one)((ranking, weights))
    return lax.map(one, (ranking, weights), batch_size=at_once)


@partial(jax.jit, static_argnums=0)
def _one_by_one(kernel, ranking: RankedScores, weights: Array) -> Array:
    """Apply `kernel` to [n] or [labels, n]; each label's weights may become many columns."""
    if ranking.order.ndim == 1:
        return kernel(ranking, weights[:, None])[0]
    if weights.ndim == 1:
        return lax.map(lambda one: kernel(one, weights[:, None])[0], ranking)
    return lax.map(lambda pair: kernel(pair[0], pair[1][:, None])[0], (ranking, weights))
