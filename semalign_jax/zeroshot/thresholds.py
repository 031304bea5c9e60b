"""From which score on a finding counts as present."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import compute_dtype
from .._core.typing import Array, ArrayLike
from ..metrics.samples import checked_known, in_range, integers
from .scores import not_nan

#: How a threshold is chosen: largest sensitivity + specificity - 1, or largest F1.
ThresholdRule: TypeAlias = Literal["youden", "f1"]

THRESHOLD_RULES: tuple[ThresholdRule, ...] = get_args(ThresholdRule)


def choose_threshold(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    rule: ThresholdRule = "youden",
    known: ArrayLike | None = None,
) -> Array:
    """The score from which on a finding counts as present, chosen on validation images.

    Args:
        labels: booleans or 0/1 [n] or [n, num_labels]. Never those of the test part.
        scores: of the same shape, floating point; higher is more likely.
        rule: "youden", the largest sensitivity + specificity - 1 (Youden 1950), or "f1". Of equal
            maxima, the highest threshold is taken.
        known: booleans of the shape of `labels`, which labels are known; the others may hold
            anything and count nowhere. None means all.

    Returns:
        Scalar or [num_labels]: one of the scores; `scores >= threshold` decides. NaN where the
        rule is undefined (a label without positive or, for "youden", without negative images)
        or, under `jit`, where a score is NaN.

    Raises:
        TypeError: for labels that are not integers or booleans, scores that are not floats, or
            `known` that is not boolean.
        ValueError: for shapes that do not match, labels that are not 0 or 1, or NaN scores.
    """
    checks.option("rule", rule, THRESHOLD_RULES)
    scores = checks.float_array("scores", scores, (1, 2))
    labels = integers("labels", labels, scores.shape)
    known = checked_known("known", known, labels)
    valid = in_range("labels", labels, 2, known, known="known")
    not_nan("scores", scores)
    if known is None:
        known = np.ones(labels.shape, bool)
    columns = (scores, labels, valid, known)
    if scores.ndim == 1:
        columns = tuple(a[:, None] for a in columns)
    thresholds = jax.vmap(partial(_threshold, rule), in_axes=1)(*columns)
    return thresholds[0] if scores.ndim == 1 else thresholds


@partial(jax.jit, static_argnums=0)
def _threshold(
    rule: ThresholdRule, scores: Array, labels: Array, valid: Array, known: Array
) -> Array:
    usable = (valid | ~known).all()
    # Below all others, rows that are not known can only repeat the last threshold.
    lowest = jnp.min(jnp.where(known, scores, jnp.inf))
    scores = jnp.where(known, scores, lowest)
    order = jnp.argsort(-scores)
    scores, known = scores[order], known[order]
    positive = labels[order] == 1
    true = jnp.cumsum(positive & known, dtype=jnp.int32)
    false = jnp.cumsum(~positive & known, dtype=jnp.int32)
    positives, negatives = true[-1], false[-1]
    # Only the last of equal scores is a threshold: those before it cannot be told apart from it.
    last = jnp.append(scores[1:] != scores[:-1], True)
    dtype = compute_dtype(scores.dtype)
    if rule == "youden":
        # In whole numbers where they fit, so that ties are ties.
        value = true.astype(dtype) * negatives.astype(dtype)
        value = value - false.astype(dtype) * positives.astype(dtype)
        defined = (positives > 0) & (negatives > 0)
    else:
        value = 2 * true.astype(dtype) / (positives + true + false).astype(dtype)
        defined = positives > 0
    best = scores[jnp.argmax(jnp.where(last, value, -jnp.inf))]
    defined &= usable & ~jnp.isnan(scores).any()
    return jnp.where(defined, best, jnp.nan)
