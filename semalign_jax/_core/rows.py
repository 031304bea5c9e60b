"""Rows of scores: what studies find, and figures and tables are of."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict, TypeVar

import numpy as np


class Row(TypedDict):
    """Mean and standard deviation (sample, over seeds) of the records of one cell.

    A script that computes a confidence interval adds its ends.
    """

    protocol: str
    source: str
    target: str
    method: str
    anchors: int | None
    metric: str
    mean: float
    std: float
    seeds: int
    lower: NotRequired[float]
    upper: NotRequired[float]


class ClassScore(TypedDict):
    """Score of one method on one class, with the ends of its confidence interval."""

    method: str
    label: str
    value: float
    lower: float
    upper: float


#: (protocol, source, target)
Pair: TypeAlias = tuple[str, str, str]
R = TypeVar("R", bound=Mapping[str, Any])
PAIR = ("protocol", "source", "target")
CELL = (*PAIR, "method", "anchors", "metric")


def row_of_draws(
    pair: Pair, method: str, anchors: int | None, metric: str, values: np.ndarray, **others: float
) -> Row:
    """A row of the scores of several draws; `others` are its interval, or replace the mean."""
    values = np.atleast_1d(np.asarray(values, np.float64))
    cell = dict(zip(CELL, (*pair, method, anchors, metric), strict=True))
    return Row(**{**cell, **_of_draws(values), **others})  # type: ignore[typeddict-item]


def summarize(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Rows of records: mean and deviation over their seeds, in the order of their appearance."""
    cells: dict[tuple, list[float]] = {}
    for record in records:
        cell = tuple((key, record[key]) for key in record if key not in ("seed", "value"))
        cells.setdefault(cell, []).append(record["value"])
    return [{**dict(cell), **_of_draws(np.array(values))} for cell, values in cells.items()]


def _of_draws(values: np.ndarray) -> dict[str, Any]:
    """Mean and sample deviation (0 for one) of scores, with their number."""
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "seeds": len(values)}


def score_text(row: Mapping[str, Any]) -> str:
    """Mean, and deviation if there are several draws; a dash where the score is undefined."""
    if math.isnan(row["mean"]):
        return "–"
    return f"{row['mean']:.3f}" + (f"±{row['std']:.3f}" if row["seeds"] > 1 else "")


def grouped(rows: Iterable[R], *keys: str) -> dict[tuple, list[R]]:
    """Rows by their values of some keys, in the order of their first appearance."""
    groups: dict[tuple, list[R]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def counts_of(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """The anchor counts in ascending order."""
    return sorted({row["anchors"] for row in rows if row["anchors"] is not None})


_TITLES = {
    "auroc": "macro AUROC",
    "average_precision": "macro AP",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
}
_CLASS_TITLES = {"auroc": "AUROC", "average_precision": "AP", "f1": "F1"}


def metric_title(metric: str, of_class: bool = False) -> str:
    """What people call a metric, e.g. "macro AUROC" for "auroc"; any other by its own name.

    Args:
        metric: as code calls it, see `metrics.by_name`.
        of_class: whether it is the score of a single class, not the mean over classes.
    """
    return (_CLASS_TITLES if of_class else _TITLES).get(metric, metric)


def metric_of(rows: Sequence[Row]) -> str:
    """The metric of the rows.

    Raises:
        ValueError: if there are no rows, or they have several metrics.
    """
    metrics = [metric for (metric,) in grouped(rows, "metric")]
    if len(metrics) != 1:
        found = f"several metrics ({', '.join(metrics)})" if metrics else "none"
        raise ValueError(f"rows must be those of one metric; got {found}")
    return metrics[0]
