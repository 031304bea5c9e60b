"""Scores of single classes with bootstrap intervals, from logits of several draws of anchors."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._core.typing import Array
from ..metrics import (
    auroc_from_ranking,
    average_precision_from_ranking,
    precision_recall_f1,
    predicted_classes,
    rank_scores,
)
from ..metrics.by_name import log_odds
from ..metrics.intervals import bootstrap
from .inputs import Part
from .tables import ClassRow, Pair

ClassMetric: TypeAlias = Literal["auroc", "average_precision", "f1"]
#: Numbers that a batch of resamples may hold for one score; bounds the memory of the bootstrap.
BOOTSTRAP_NUMBERS = 2**24


class Line(NamedTuple):
    """Logits [draws, n, classes] of one method, and its anchor count."""

    method: str
    anchors: int | None
    logits: Array


class Intervals(NamedTuple):
    """Which scores, and how the bootstrap draws: rows if `clusters` is None, else clusters [n]."""

    metrics: tuple[ClassMetric, ...]
    resamples: int
    level: float
    seed: int
    clusters: np.ndarray | None


def class_rows(
    pair: Pair,
    lines: Sequence[Line],
    part: Part,
    names: Sequence[str],
    intervals: Intervals,
    *,
    workers: int = 1,
) -> list[ClassRow]:
    """Means over the draws of anchors, with intervals over the images of a part."""
    with ThreadPoolExecutor(workers) as pool:
        scored = list(pool.map(lambda line: _scores(line.logits, part, intervals), lines))
    cell = {"protocol": pair[0], "source": pair[1], "target": pair[2]}
    return [
        ClassRow(
            **cell,
            method=line.method,
            anchors=line.anchors,
            metric=metric,
            label=label,
            value=value,
            lower=lower,
            upper=upper,
        )
        for line, scores in zip(lines, scored, strict=True)
        for metric, of_metric in zip(intervals.metrics, scores, strict=True)
        for label, (value, lower, upper) in zip(names, of_metric, strict=True)
    ]


def _scores(logits: Array, part: Part, intervals: Intervals) -> list:
    """Estimate and ends of the interval [metrics, classes, 3], as nested lists."""
    labels = jnp.asarray(part.labels)
    known = None if part.known is None or part.known.all() else jnp.asarray(part.known)
    found = bootstrap(
        _ClassScores(intervals.metrics, logits.shape[-1]),
        {"labels": labels, "known": known, **_prepared(logits, labels)},
        len(part.labels),
        jax.random.key(intervals.seed),  # equal resamples for all lines and pairs
        resamples=intervals.resamples,
        level=intervals.level,
        clusters=intervals.clusters,
        batch_size=max(1, min(128, BOOTSTRAP_NUMBERS // logits.size)),
    )
    return np.stack([found.estimate, found.lower, found.upper], axis=-1).tolist()


@jax.jit
def _prepared(logits: Array, labels: Array) -> dict[str, Any]:
    """Rankings and predictions of logits [draws, n, classes]."""
    if labels.ndim == 1:
        odds = log_odds(logits)
        predicted = predicted_classes(logits)
    else:
        odds, predicted = logits, logits > 0
    return {"ranking": jax.vmap(lambda s: rank_scores(labels, s))(odds), "predicted": predicted}


@dataclass(frozen=True)
class _ClassScores:
    """Scores [metrics, classes] of several draws of anchors, means over these."""

    metrics: tuple[ClassMetric, ...]
    classes: int

    def __call__(self, values: dict[str, Any], weights: Array) -> Array:
        axes = {"labels": None, "known": None, "ranking": 0, "predicted": 0}
        one = jax.vmap(lambda part: self._one(part, weights), in_axes=(axes,))(values)
        return jnp.mean(one, axis=0)

    def _one(self, values: dict[str, Any], weights: Array) -> Array:
        labels, known = values["labels"], values["known"]
        if known is not None:
            weights = weights[:, None] * known.astype(weights.dtype)
        number = self.classes if labels.ndim == 1 else None
        found: dict[ClassMetric, Callable[[], Array]] = {
            "auroc": lambda: auroc_from_ranking(values["ranking"], weights),
            "average_precision": lambda: average_precision_from_ranking(values["ranking"], weights),
            "f1": lambda: (
                precision_recall_f1(labels, values["predicted"], number, weights=weights).f1
            ),
        }
        return jnp.stack([found[name]() for name in self.metrics])
