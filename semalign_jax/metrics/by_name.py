"""Scores of classifiers by name, from logits: what sweeps and studies take as `metrics`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from .._core import checks
from .._core.typing import Array
from .classification import accuracy, balanced_accuracy, precision_recall_f1, predicted_classes
from .ranking import auroc, average_precision
from .samples import (
    MacroMean,
    in_range,
    integers,
    macro_mean,
    poisoned,
    sum_of_others,
    targets,
    weighted_mean,
)

#: A score of one's own: `(scores [n, c], data) -> scalar`, traceable; sweeps hand on their
#: `eval_data`, studies (labels, weights). Sweeps take any pytree of arrays that it returns.
ScoreMetric: TypeAlias = Callable[[Array, Any], Any]
#: What there is by name.
HeadMetric: TypeAlias = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision"
]
HEAD_METRICS: tuple[HeadMetric, ...] = get_args(HeadMetric)


def named_metrics(
    metrics: Sequence[HeadMetric] | Mapping[str, HeadMetric | Callable[..., Any]],
) -> dict[str, HeadMetric | Callable[..., Any]]:
    """Metrics by their labels, at least one; each is a name of `HEAD_METRICS` or a function."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a list of names; got {metrics!r}, write [{metrics!r}]")
    if not isinstance(metrics, Iterable):
        raise TypeError(f"metrics must be a list of names or a mapping; got {metrics!r}")
    if not isinstance(metrics, Mapping):
        names = list(metrics)
        for name in names:
            if callable(name):
                mine = f"{{'mine': {name!r:.60}}}"
                raise TypeError(f"metrics: functions go by names of yours, {mine}")
        checks.refuse_repeated(names, "metrics: ")
        metrics = {name: name for name in names}
    found = dict(metrics)
    if not found:
        raise ValueError("metrics is empty: give at least one, a name or label -> function")
    for metric in found.values():
        if not callable(metric):
            checks.option("metrics", metric, HEAD_METRICS)
    return found


@cache
def score_by_function(name: str, function: ScoreMetric) -> Callable[..., MacroMean]:
    """A score of one's own as those of `score_by_name`, with no class left out."""

    def of_scores(scores: Array, truth: tuple[Array, Array]) -> MacroMean:
        found = function(scores, truth)
        value = jnp.asarray(getattr(found, "value", found))
        if value.shape:
            raise ValueError(f"metrics[{name!r}] must return a scalar; got the shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.float32)
        return MacroMean(value, jnp.zeros((), jnp.int32))

    return of_scores


@cache  # one function for each, as compiled code is found by it
def score_by_name(name: HeadMetric, softmax: bool, num_classes: int) -> Callable[..., MacroMean]:
    """The score of that name: `(scores [n, num_classes], (labels, weights)) -> MacroMean`.

    Args:
        name: of `HEAD_METRICS`. That of classes is the macro mean, of labels that over the labels.
        softmax: whether classes are ranked by their softmax and not by their scores.
        num_classes: number of classes or labels.
    """

    def of_scores(scores: Array, truth: tuple[Array, Array]) -> MacroMean:
        labels, weights = truth
        if name in ("auroc", "average_precision"):
            if softmax and labels.ndim == 1:
                scores = log_odds(scores)
            score = auroc if name == "auroc" else average_precision
            return macro_mean(score(labels, scores, weights=weights))
        if labels.ndim == 2:
            return _of_labels(name, scores, labels, weights)
        return _of_classes(name, num_classes, scores, labels, weights)

    return of_scores


def _of_classes(
    name: HeadMetric, num_classes: int, scores: Array, labels: Array, weights: Array
) -> MacroMean:
    labels = integers("labels", labels, scores.shape[:1])
    valid = in_range("labels", labels, num_classes, weights)
    # A NaN would be the largest score, and so a class.
    weights = poisoned(weights, valid & ~jnp.isnan(scores).any(axis=-1))
    predicted = predicted_classes(scores)
    if name == "accuracy":
        return macro_mean(accuracy(labels, predicted, weights=weights)[None])
    if name == "balanced_accuracy":
        return balanced_accuracy(labels, predicted, num_classes, weights=weights)
    return macro_mean(precision_recall_f1(labels, predicted, num_classes, weights=weights).f1)


@jax.jit
def log_odds(logits: Array) -> Array:
    """Log of p / (1 - p) of the softmax, in the order of p but not tied where p rounds to 1."""
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    top = jax.nn.one_hot(predicted_classes(logits), logits.shape[-1], dtype=bool)
    # Next to the largest one, the powers of all others may be too small for the dtype.
    beside_top = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=-1, keepdims=True)
    others = jnp.log(jnp.where(top, 1, sum_of_others(jnp.exp(logits), -1)))
    return logits - jnp.where(top, beside_top, others)


def _of_labels(name: HeadMetric, scores: Array, labels: Array, weights: Array) -> MacroMean:
    truth, valid = targets(labels, scores.shape, weights)
    weights = poisoned(weights, valid & ~jnp.isnan(scores))
    predicted = scores > 0
    if name == "accuracy":
        return macro_mean(weighted_mean((truth == predicted).astype(weights.dtype), weights))
    positive = precision_recall_f1(truth, predicted, weights=weights)
    if name == "macro_f1":
        return macro_mean(positive.f1)
    negative = precision_recall_f1(~truth, ~predicted, weights=weights)
    return macro_mean((positive.recall + negative.recall) / 2)
