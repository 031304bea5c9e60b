"""Metrics of scores with intervals, for one set of anchors or several at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..metrics import (
    accuracy,
    auroc_from_ranking,
    average_precision_from_ranking,
    balanced_accuracy,
    macro_mean,
    precision_recall_f1,
    predicted_classes,
)
from ..metrics.by_name import ScoreMetric, score_by_function
from ..metrics.intervals import BootstrapInterval, bootstrap, resamples_at_once
from ..metrics.ranking import rankings_of_draws
from ..metrics.samples import weights_of_known
from ._protocol_data import row_ids
from .scores import TASKS, Task, not_nan
from .thresholds import ThresholdRule, choose_threshold
from .truth import Truth, checked_truth


@by_value
class ScoreReport(NamedTuple):
    """Metrics of test scores.

    Attributes:
        intervals: `BootstrapInterval` whose fields are dicts metric -> value: "auroc",
            "average_precision", and for a single-label task "accuracy" and "balanced_accuracy",
            for a multi-label one "macro_f1"; means over the classes, undefined ones left out.
            Below "classes" those of every class [num_classes]: "auroc", "average_precision", and
            for a multi-label task "f1", "sensitivity" and "specificity" at the thresholds.
        thresholds: [num_classes] chosen on the validation part; NaN where undefined, and for a
            single-label task, which takes the best class.
        undefined_test: bool [num_classes], classes without positive or without negative test
            images: their AUROC is NaN.
        undefined_validation: bool [num_classes], the same of the validation part.
    """

    intervals: BootstrapInterval
    thresholds: Array
    undefined_test: Array
    undefined_validation: Array


@dataclass(frozen=True)
class _Statistic:
    """Metrics of scores of several seeds [seeds, n, num_classes], and their means."""

    task: Task
    num_classes: int
    functions: tuple[tuple[str, ScoreMetric], ...]

    def __call__(self, data: dict[str, Any], weights: Array) -> dict[str, Any]:
        # One ranking after the other: only then do the resamples of a bootstrap share its layout.
        seeds = data["predicted"].shape[0]
        rankings = jax.tree_util.tree_map(
            lambda leaf: leaf.reshape(-1, leaf.shape[-1]), data["ranking"]
        )
        values = {
            "auroc": auroc_from_ranking(rankings, weights),
            "average_precision": average_precision_from_ranking(rankings, weights),
        }
        if self.task == "multi-label":
            labels, predicted = (_columns(data[name], seeds) for name in ("labels", "predicted"))
            known = None if data["known"] is None else _columns(data["known"], seeds)
            counted = weights_of_known(weights, known)
            found = precision_recall_f1(labels, predicted, weights=counted)
            absent = precision_recall_f1(~labels, ~predicted, weights=counted)
            chosen = ~jnp.isnan(data["thresholds"].reshape(-1))
            for name, value in (
                ("f1", found.f1),
                ("sensitivity", found.recall),
                ("specificity", absent.recall),
            ):
                values[name] = jnp.where(chosen, value, jnp.nan)
        values = {name: value.reshape(seeds, self.num_classes) for name, value in values.items()}
        each: dict[str, Any] = {
            n: macro_mean(values[of]).value for n, of in _MACRO.items() if of in values
        }
        if self.task == "single-label":
            labels, predicted = data["labels"], data["predicted"]
            each["accuracy"] = jax.vmap(lambda p: accuracy(labels, p, weights=weights))(predicted)
            each["balanced_accuracy"] = jax.vmap(
                lambda p: balanced_accuracy(labels, p, self.num_classes, weights=weights).value
            )(predicted)
        for name, function in self.functions:
            score = score_by_function(name, function)
            labels, counted = data["labels"], weights_of_known(weights, data["known"])
            if labels.ndim > counted.ndim:
                counted = jnp.broadcast_to(counted[:, None], labels.shape)
            each[name] = jax.vmap(score, (0, None))(data["scores"], (labels, counted)).value
        each["classes"] = values
        means = jax.tree_util.tree_map(lambda values: jnp.mean(values, axis=0), each)
        return {"each": each, "mean": means}


def _columns(values: Array, seeds: int) -> Array:
    """[n, classes] or [seeds, n, classes] as [n, seeds * classes]."""
    if values.ndim == 2:
        values = jnp.broadcast_to(values, (seeds, *values.shape))
    return jnp.moveaxis(values, 0, 1).reshape(values.shape[1], -1)


#: Means over the classes, and of which of their scores.
_MACRO = {"auroc": "auroc", "average_precision": "average_precision", "macro_f1": "f1"}


# As public: the two parts, and one option for each choice of the evaluation.
def evaluate_scores(
    validation_labels: ArrayLike,
    validation_scores: ArrayLike,
    test_labels: ArrayLike,
    test_scores: ArrayLike,
    *,
    task: Task,
    key: Array,
    rule: ThresholdRule = "youden",
    patients: Any = None,
    validation_known: ArrayLike | None = None,
    test_known: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> ScoreReport:
    """Metrics of test scores with intervals; thresholds are chosen on the validation part.

    Args:
        validation_labels: classes [v] (single-label) or booleans or 0/1 [v, num_classes].
        validation_scores: [v, num_classes].
        test_labels: likewise [n] or [n, num_classes].
        test_scores: [n, num_classes].
        task: "single-label" or "multi-label".
        key: PRNG key of the bootstrap.
        rule: see `choose_threshold`.
        patients: of the test rows [n], text or whole numbers; the bootstrap draws patients. None
            means that every row is a unit.
        validation_known: of a multi-label task, bool [v, num_classes], which labels are known;
            the others count nowhere. None means all.
        test_known: likewise [n, num_classes].
        resamples: of the bootstrap.
        level: of the intervals.

    Returns:
        `ScoreReport`.

    Raises:
        TypeError: for scores that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match, labels outside of the classes or NaN scores.
    """
    arrays = []
    for name, value in (("validation_scores", validation_scores), ("test_scores", test_scores)):
        value = checks.float_array(name, value, 2)
        not_nan(name, value)
        arrays.append(value[None])
    classes = arrays[1].shape[-1]
    if arrays[0].shape[-1] != classes:
        raise ValueError(
            f"validation_scores and test_scores must have the same classes; got "
            f"{arrays[0].shape[-1]} and {classes}"
        )
    checks.option("task", task, TASKS)
    parts = [
        checked_truth(labels, known, scores.shape[1:], task, (f"{name}_labels", f"{name}_known"))
        for name, labels, known, scores in (
            ("validation", validation_labels, validation_known, arrays[0]),
            ("test", test_labels, test_known, arrays[1]),
        )
    ]
    clusters = None
    if patients is not None:
        clusters = cluster_numbers(row_ids("patients", patients, arrays[1].shape[1]))
    how = Evaluation(task, key, rule, clusters, resamples, level)
    intervals, thresholds = evaluate(parts[0], arrays[0], parts[1], arrays[1], how)
    mean = BootstrapInterval(*(part["mean"] for part in intervals))
    validation_undefined, test_undefined = (undefined(part, classes) for part in parts)
    return ScoreReport(mean, thresholds[0], test_undefined, validation_undefined)


def cluster_numbers(patients: np.ndarray) -> np.ndarray:
    """Numbers in the place of texts."""
    return np.unique(patients, return_inverse=True)[1]


@partial(jax.jit, static_argnums=1)
def undefined(truth: Truth, num_classes: int) -> Array:
    """Classes that all rows, or none, belong to."""
    labels, known = truth
    if labels.ndim == 1:
        labels = labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None, :]
    if known is None:
        return labels.all(axis=0) | ~labels.any(axis=0)
    return (labels | ~known).all(axis=0) | ~(labels & known).any(axis=0)


class Evaluation(NamedTuple):
    """How scores are evaluated; `clusters` are the numbers of the test rows' patients."""

    task: Task
    key: Array
    rule: ThresholdRule
    clusters: np.ndarray | None
    resamples: int
    level: float
    functions: tuple[tuple[str, ScoreMetric], ...] = ()


def evaluate(
    validation: Truth,
    validation_scores: Array,
    test: Truth,
    test_scores: Array,
    how: Evaluation,
) -> tuple[BootstrapInterval, Array]:
    """Intervals with the parts "each" [seeds, ...] and "mean", and thresholds [seeds, classes]."""
    seeds, rows, classes = test_scores.shape
    if how.task == "multi-label":
        thresholds = jax.vmap(
            lambda s: choose_threshold(validation.labels, s, rule=how.rule, known=validation.known)
        )(validation_scores)
        predicted = test_scores >= thresholds[:, None, :]
    else:
        thresholds = jnp.full((seeds, classes), jnp.nan, test_scores.dtype)
        predicted = predicted_classes(test_scores)
    data = {
        "labels": test.labels,
        "known": test.known,
        "predicted": predicted,
        "ranking": rankings_of_draws(test.labels, test_scores, test.known),
        "thresholds": thresholds,
    }
    if how.functions:
        data["scores"] = test_scores
    intervals = bootstrap(
        _Statistic(how.task, classes, how.functions),
        data,
        rows,
        how.key,
        resamples=how.resamples,
        level=how.level,
        clusters=how.clusters,
        batch_size=resamples_at_once(seeds * rows),
    )
    return intervals, thresholds
