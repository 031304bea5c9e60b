"""Scores of single classes with bootstrap intervals, from logits of several draws of anchors."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.rows import Pair
from .._core.typing import Array
from ..metrics import (
    auroc_from_ranking,
    average_precision_from_ranking,
    precision_recall_f1,
    predicted_classes,
)
from ..metrics.by_name import log_odds
from ..metrics.intervals import bootstrap, resamples_at_once
from ..metrics.ranking import rankings_of_draws
from ..metrics.samples import weights_of_known
from .inputs import Part
from .stitching_settings import ClassMetric, IntervalSettings
from .tables import ClassRow, class_row


class Line(NamedTuple):
    """Logits [draws, n, classes] of one method, and its anchor count."""

    method: str
    anchors: int | None
    logits: Array


def class_rows(
    pair: Pair,
    lines: Sequence[Line],
    part: Part,
    names: Sequence[str],
    intervals: IntervalSettings,
    *,
    clusters: np.ndarray | None,
    seed: int,
    workers: int = 1,
) -> list[ClassRow]:
    """Means over the draws of anchors, with intervals over the images of a part.

    Resamples draw `clusters` of the images, int [n], or images; they are equal for all lines and
    pairs. `workers` bootstraps run side by side.
    """
    labels = jnp.asarray(part.labels)
    known = None if part.known is None or part.known.all() else jnp.asarray(part.known)

    def scores(line: Line) -> np.ndarray:
        found = bootstrap(
            _ClassScores(intervals.metrics, len(names)),
            {"labels": labels, "known": known, **_prepared(line.logits, labels, known)},
            len(part.labels),
            jax.random.key(seed),
            resamples=intervals.resamples,
            level=intervals.level,
            clusters=clusters,
            batch_size=resamples_at_once(line.logits.size),
        )
        return np.stack([found.estimate, found.lower, found.upper], axis=-1)

    with ThreadPoolExecutor(workers) as pool:
        scored = list(pool.map(scores, lines))
    return [
        class_row(pair, line.method, line.anchors, metric, label, *of_metric[k].tolist())
        for line, of_line in zip(lines, scored, strict=True)
        for metric, of_metric in zip(intervals.metrics, of_line, strict=True)
        for k, label in enumerate(names)
    ]


@jax.jit
def _prepared(logits: Array, labels: Array, known: Array | None) -> dict[str, Any]:
    """Rankings and predictions of logits [draws, n, classes]."""
    if labels.ndim == 1:
        odds = log_odds(logits)
        predicted = predicted_classes(logits)
    else:
        odds, predicted = logits, logits > 0
    return {"ranking": rankings_of_draws(labels, odds, known), "predicted": predicted}


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
        labels, counted = values["labels"], weights_of_known(weights, values["known"])
        number = self.classes if labels.ndim == 1 else None
        found: dict[ClassMetric, Callable[[], Array]] = {
            "auroc": lambda: auroc_from_ranking(values["ranking"], weights),
            "average_precision": lambda: average_precision_from_ranking(values["ranking"], weights),
            "f1": lambda: (
                precision_recall_f1(labels, values["predicted"], number, weights=counted).f1
            ),
        }
        return jnp.stack([found[name]() for name in self.metrics])
