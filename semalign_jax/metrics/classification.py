"""Scores of predicted classes and probabilities."""

from __future__ import annotations

from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .samples import (
    INT32,
    MacroMean,
    in_range,
    integers,
    macro_mean,
    masked_sums,
    poisoned,
    row_sum,
    sample_weights,
    segment_sum,
    sum_of_others,
    targets,
    weighted_mean,
)


@by_value
class PrecisionRecallF1(NamedTuple):
    """Per-class scores in [0, 1]: [num_classes], [num_labels] or scalars; NaN where undefined.

    Attributes:
        precision: share of the rows predicted as the class that are of it; undefined if none is.
        recall: share of the rows of the class that are predicted as it; undefined if none is.
        f1: 2 true positives / (rows of the class + rows predicted as it), the harmonic mean of
            both; undefined if there are neither.
    """

    precision: Array
    recall: Array
    f1: Array


def predicted_classes(scores: ArrayLike) -> Array:
    """The class of the largest score, the first one if there are several.

    What `jnp.argmax` gives, several times as fast on a CPU. A row with NaN gets the place of its
    first NaN.

    Args:
        scores: floats [..., num_classes], e.g. logits.

    Returns:
        int32 [...].

    Raises:
        TypeError: if `scores` is not floating point.
        ValueError: if it is a scalar or has no classes.
    """
    return _first_largest(
        checks.float_array("scores", scores, tuple(range(1, max(2, np.ndim(scores) + 1))))
    )


@jax.jit
def _first_largest(scores: Array) -> Array:
    number = scores.shape[-1]
    # Two plain reductions become vector instructions; that of pairs in an argmax does not.
    found = (scores == jnp.max(scores, axis=-1, keepdims=True)) | jnp.isnan(scores)
    places = jnp.where(found, jnp.arange(number, dtype=jnp.int32), number)
    return jnp.min(places, axis=-1)


def accuracy(labels: ArrayLike, predicted: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Weighted share of rows whose predicted class is the true one.

    Args:
        labels: true classes [n], booleans or integers >= 0 within 32 bits. Renumber others, e.g.
            ids: `np.unique(np.stack([labels, predicted]), return_inverse=True)`.
        predicted: predicted classes [n], likewise; or below 0 for none.
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero may hold any
            class. None means equal weights.

    Returns:
        Scalar in [0, 1], float32 or the wider dtype of `weights`; NaN if all weights are zero, or
        a traced class of positive weight is beyond 32 bits.

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes beyond 32 bits, and negative labels or
            weights.
    """
    labels = integers("labels", labels)
    predicted = integers("predicted", predicted, labels.shape)
    weights = sample_weights(weights, labels.shape, jnp.float32)
    valid = in_range("labels", labels, INT32.max, weights)
    # Any that `integers` has not cut off.
    valid &= in_range("predicted", predicted, INT32.max, weights, start=-INT32.max)
    return share_of_hits(labels, predicted, weights, valid)


@jax.jit
def share_of_hits(labels: Array, predicted: Array, weights: Array, *valid: Array) -> Array:
    """`accuracy` of checked arrays; rows count that are valid in every respect."""
    hits = (labels == predicted).astype(weights.dtype)
    return weighted_mean(hits, poisoned(weights, reduce(jnp.logical_and, valid)))


def confusion_matrix(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    weights: ArrayLike | None = None,
) -> Array:
    """Total weight of every pair of a true and a predicted class.

    Args:
        labels: true classes [n], integers in [0, num_classes), or booleans for 2 classes.
        predicted: predicted classes [n], likewise.
        num_classes: number of classes (static).
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero may hold any
            class. None means equal weights.

    Returns:
        [num_classes, num_classes], rows are true and columns predicted classes; float32 or the
        wider dtype of `weights`. All NaN if a traced class of positive weight is out of range.

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes out of range or negative weights.
    """
    num_classes = checks.positive_int("num_classes", num_classes)
    labels = integers("labels", labels)
    predicted = integers("predicted", predicted, labels.shape)
    weights = sample_weights(weights, labels.shape, jnp.float32)
    valid = in_range("labels", labels, num_classes, weights)
    valid &= in_range("predicted", predicted, num_classes, weights)
    return _confusion_matrix(num_classes, labels, predicted, weights, valid)


@partial(jax.jit, static_argnums=0)
def _confusion_matrix(
    num_classes: int, labels: Array, predicted: Array, weights: Array, valid: Array
) -> Array:
    weights = poisoned(weights, valid)
    total = segment_sum(weights, labels * num_classes + predicted, num_classes**2)
    # NaN weights, see `poisoned`, of rows that may belong to no cell.
    total = jnp.where(jnp.isnan(row_sum(weights)), jnp.nan, total)
    return total.reshape(num_classes, num_classes)


def precision_recall_f1(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int | None = None,
    *,
    weights: ArrayLike | None = None,
) -> PrecisionRecallF1:
    """Precision, recall and F1 of every class; `macro_mean` averages them.

    Args:
        labels: true classes [n], integers in [0, num_classes). Without `num_classes` booleans or
            0/1, [n] (binary) or [n, num_labels] (multi-label).
        predicted: like `labels`.
        num_classes: number of classes (static), or None for binary and multi-label problems.
        weights: [n], or for multi-label problems also [n, num_labels]; >= 0, floats, counts or a
            boolean mask. Rows of weight zero are inert. None means equal weights.

    Returns:
        `PrecisionRecallF1` of [num_classes], [num_labels] or scalars of the positive class.

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes out of range or negative weights.
    """
    if num_classes is not None:
        matrix = confusion_matrix(labels, predicted, num_classes, weights=weights)
        return _scores_of_matrix(matrix)
    shape = np.shape(labels)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"labels must have shape [n] or [n, num_labels]; got {shape}")
    labels = integers("labels", labels, shape)
    predicted = integers("predicted", predicted, shape)
    common = len(shape) == 2 and (weights is None or np.ndim(weights) == 1)
    weights = sample_weights(weights, shape[:1] if common else shape, jnp.float32)
    of_entries = weights[:, None] if common else weights
    valid = in_range("labels", labels, 2, of_entries)
    valid &= in_range("predicted", predicted, 2, of_entries)
    scores = _scores_of_common_weights if common else _scores_of_rows
    return scores(labels, predicted, weights, valid)


@jax.jit
def _scores_of_matrix(matrix: Array) -> PrecisionRecallF1:
    return _class_scores(jnp.diagonal(matrix), jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0))


@jax.jit
def _scores_of_rows(
    labels: Array, predicted: Array, weights: Array, valid: Array
) -> PrecisionRecallF1:
    labels, predicted, weights = labels == 1, predicted == 1, poisoned(weights, valid)
    # A NaN weight, see `poisoned`, must also reach sums that its row is no part of.
    poison = 0 * row_sum(weights)
    true, actual, retrieved = (
        row_sum(jnp.where(mask, weights, 0)) + poison
        for mask in (labels & predicted, labels, predicted)
    )
    return _class_scores(true, actual, retrieved)


@jax.jit
def _scores_of_common_weights(
    labels: Array, predicted: Array, weights: Array, valid: Array
) -> PrecisionRecallF1:
    """As `_scores_of_rows` of labels that share their weights [n]."""
    labels, predicted = labels == 1, predicted == 1
    true, actual, retrieved, invalid = (
        masked_sums(weights, mask) for mask in (labels & predicted, labels, predicted, ~valid)
    )
    true, actual, retrieved = (
        jnp.where(invalid > 0, jnp.nan, total) for total in (true, actual, retrieved)
    )
    return _class_scores(true, actual, retrieved)


def _class_scores(true: Array, actual: Array, retrieved: Array) -> PrecisionRecallF1:
    return PrecisionRecallF1(
        _share(true, retrieved), _share(true, actual), _share(2 * true, actual + retrieved)
    )


def balanced_accuracy(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    weights: ArrayLike | None = None,
) -> MacroMean:
    """Mean recall over the classes that occur (Brodersen et al. 2010).

    Args:
        labels: true classes [n], integers in [0, num_classes), or booleans for 2 classes.
        predicted: predicted classes [n], likewise.
        num_classes: number of classes (static).
        weights: see `confusion_matrix`.

    Returns:
        `MacroMean` of scalars: the mean, and how many classes do not occur.

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes out of range or negative weights.
    """
    return macro_mean(precision_recall_f1(labels, predicted, num_classes, weights=weights).recall)


def matthews_correlation(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    weights: ArrayLike | None = None,
) -> Array:
    """Matthews correlation coefficient of two classifications (Gorodkin 2004 for > 2 classes).

    Args:
        labels: true classes [n], integers in [0, num_classes), or booleans for 2 classes.
        predicted: predicted classes [n], likewise.
        num_classes: number of classes (static).
        weights: see `confusion_matrix`.

    Returns:
        Scalar in [-1, 1]; NaN if only one class is true or only one is predicted (scikit-learn
        has 0).

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes out of range or negative weights.
    """
    return _matthews(confusion_matrix(labels, predicted, num_classes, weights=weights))


@jax.jit
def _matthews(matrix: Array) -> Array:
    matrix = _share(matrix, jnp.sum(matrix))
    # Covariances as sums of one-class determinants and p (1 - p), 1 - p being the sum of the
    # other classes: `total^2 - sum p^2` would cancel for a rare class.
    off_diagonal = jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix)
    false_negative, false_positive = jnp.sum(off_diagonal, axis=1), jnp.sum(off_diagonal, axis=0)
    true_negative = jnp.diagonal(sum_of_others(sum_of_others(matrix, 1), 0))
    joint = jnp.sum(jnp.diagonal(matrix) * true_negative - false_positive * false_negative)
    spread = [jnp.sum(p * sum_of_others(p, 0)) for p in (matrix.sum(axis=0), matrix.sum(axis=1))]
    return jnp.clip(_share(joint, jnp.sqrt(spread[0]) * jnp.sqrt(spread[1])), -1, 1)


def cohen_kappa(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    disagreement: Literal["nominal", "linear", "quadratic"] = "nominal",
    weights: ArrayLike | None = None,
) -> Array:
    """Cohen's kappa: agreement beyond chance (Cohen 1960; 1968 for ordered classes).

    Args:
        labels: true classes [n], integers in [0, num_classes), or booleans for 2 classes.
        predicted: predicted classes [n], likewise.
        num_classes: number of classes (static).
        disagreement: how much a pair (i, j) disagrees: "nominal" 1 if i != j, "linear" `|i - j|`,
            "quadratic" (i - j)^2.
        weights: see `confusion_matrix`.

    Returns:
        Scalar <= 1; NaN if both sides hold only one and the same class.

    Raises:
        TypeError: for classes that are not integers or booleans.
        ValueError: for shapes that do not match, classes out of range, negative weights or an
            unknown `disagreement`.
    """
    checks.option("disagreement", disagreement, ("nominal", "linear", "quadratic"))
    matrix = confusion_matrix(labels, predicted, num_classes, weights=weights)
    return _kappa(disagreement, matrix)


@partial(jax.jit, static_argnums=0)
def _kappa(disagreement: str, matrix: Array) -> Array:
    matrix = _share(matrix, jnp.sum(matrix))
    index = jnp.arange(len(matrix), dtype=matrix.dtype)
    distance = jnp.abs(index[:, None] - index[None, :])
    if disagreement == "nominal":
        distance = jnp.minimum(distance, 1)
    elif disagreement == "quadratic":
        distance = distance * distance
    chance = matrix.sum(axis=1)[:, None] * matrix.sum(axis=0)[None, :]
    return 1 - _share(jnp.sum(distance * matrix), jnp.sum(distance * chance))


def brier_score(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    """Mean squared error of predicted probabilities (Brier 1950).

    Args:
        labels: booleans or 0/1 [n] or [n, num_labels], or integer classes [n] for probabilities
            [n, num_classes].
        probabilities: floating point in [0, 1]: [n], [n, num_labels] or [n, num_classes].
        weights: [n], or of the shape of 0/1 `labels`; >= 0, floats, counts or a boolean mask.
            Rows of weight zero are inert. None means equal weights.

    Returns:
        Scalar (binary) or [num_labels] in [0, 1]. For classes a scalar in [0, 2]: the squared
        errors of all classes are added up. NaN if all weights are zero or a traced probability of
        positive weight is not in [0, 1].

    Raises:
        TypeError: for labels that are not integers or booleans, or probabilities not floats.
        ValueError: for shapes that do not match, values out of range or negative weights.
    """
    return _brier(*_checked_probabilities(labels, probabilities, weights))


@jax.jit
def _brier(target: Array, probabilities: Array, weights: Array, *valid: Array) -> Array:
    errors = (probabilities.astype(weights.dtype) - target.astype(weights.dtype)) ** 2
    every = reduce(jnp.logical_and, valid)
    if errors.ndim > weights.ndim:
        errors, every = jnp.sum(errors, axis=1), jnp.all(every, axis=1)
    return weighted_mean(errors, poisoned(weights, every))


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    bins: int = 15,
    weights: ArrayLike | None = None,
) -> Array:
    """Expected calibration error over bins of equal width (Guo et al. 2017).

    The mean over the rows of `|share of hits - mean confidence|` of their bin; bins are open on
    the left, (k / bins, (k + 1) / bins], and 0 belongs to the first one. For classes the
    confidence is the largest probability and a hit the true class; for binary and multi-label
    problems the confidence is the probability of the positive class and a hit a positive row.

    Args:
        labels: booleans or 0/1 [n] or [n, num_labels], or integer classes [n] for probabilities
            [n, num_classes].
        probabilities: floating point in [0, 1]: [n], [n, num_labels] or [n, num_classes].
        bins: number of bins (static).
        weights: [n], or of the shape of 0/1 `labels`; >= 0, floats, counts or a boolean mask.
            Rows of weight zero are inert. None means equal weights.

    Returns:
        Scalar, or [num_labels], in [0, 1]; NaN if all weights are zero or a traced probability of
        positive weight is not in [0, 1].

    Raises:
        TypeError: for labels that are not integers or booleans, or probabilities not floats.
        ValueError: for shapes that do not match, values out of range or negative weights.
    """
    bins = checks.positive_int("bins", bins)
    return _calibration_error(bins, *_checked_probabilities(labels, probabilities, weights))


@partial(jax.jit, static_argnums=0)
def _calibration_error(
    bins: int, hit: Array, confidence: Array, weights: Array, *valid: Array
) -> Array:
    if weights.ndim > 1:
        return jax.vmap(partial(_calibration_error, bins), 1)(hit, confidence, weights, *valid)
    confidence, every = confidence.astype(weights.dtype), reduce(jnp.logical_and, valid)
    if hit.ndim > 1:
        best = jnp.argmax(confidence, axis=1)[:, None]
        hit, confidence = (jnp.take_along_axis(a, best, axis=1)[:, 0] for a in (hit, confidence))
        every = jnp.all(every, axis=1)
    weights = poisoned(weights, every)
    confidence = jnp.where(weights == 0, 0, confidence)
    index = jnp.ceil(confidence * bins).astype(jnp.int32) - 1
    gap = weights * (hit.astype(weights.dtype) - confidence)
    gaps = jnp.abs(segment_sum(gap, jnp.clip(index, 0, bins - 1), bins))
    return _share(jnp.sum(gaps), row_sum(weights))


def _checked_probabilities(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, ...]:
    """(target, probabilities, weights, which labels are valid, which probabilities are)."""
    values = checks.float_array("probabilities", probabilities, (1, 2))
    classes = values.ndim == 2 and np.ndim(labels) == 1
    w = sample_weights(weights, values.shape[:1] if classes else values.shape, values.dtype)
    of_entries = w[:, None] if classes else w
    target, valid = targets(labels, values.shape, of_entries)
    wrong = (values < 0) | (values > 1)  # NaN makes the score NaN
    if checks.is_concrete(values, w) and np.any(wrong & (np.asarray(of_entries) != 0)):
        raise ValueError(
            "probabilities must be in [0, 1]; convert logits with jax.nn.softmax or jax.nn.sigmoid"
        )
    return target, values, w, valid, (values >= 0) & (values <= 1)


def _share(part: Array, whole: Array) -> Array:
    """`part / whole`; NaN where `whole` is zero or NaN."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), jnp.nan)
