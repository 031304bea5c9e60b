"""Rows of the results of sweeps."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .._core import checks
from .._core.rows import Row, row_of_draws
from ..sweeps import PairSweepResult, SweepResult

#: What scores are drawn of.
Scores: TypeAlias = Sequence[Row] | SweepResult | PairSweepResult


def sweep_rows(result: SweepResult | PairSweepResult) -> list[Row]:
    """Mean and deviation over the draws of anchors of each score of a sweep, as studies have them.

    Args:
        result: of `anchor_sweep` or `sweep_pairs`, not of a traced call.

    Returns:
        A row for each metric, pair, method and count, of the protocol "sweep".

    Raises:
        TypeError: for something else, or a traced result.
        ValueError: if a metric gave no numbers.
    """
    if not isinstance(result, SweepResult | PairSweepResult):
        raise TypeError(f"result must be that of a sweep; got {type(result).__name__}")
    pairs = getattr(result, "pairs", [("source", "target")])
    if not checks.is_concrete(*result.values.values(), result.counts):
        raise TypeError("result is traced: its scores are drawn outside of transformations")
    rows = []
    for metric, values in result.values.items():
        array = np.asarray(getattr(values, "value", values))
        if array.ndim == 3:  # of one pair
            array = array[None]
        if array.dtype.kind not in "fiub" or array.ndim != 4:
            raise ValueError(f"result: {metric!r} is not one number a fit, but {_kind(values)}")
        rows += [
            row_of_draws(("sweep", *pair), method, int(count), metric, array[p, m, c])
            for p, pair in enumerate(pairs)
            for m, method in enumerate(result.methods)
            for c, count in enumerate(np.asarray(result.counts))
        ]
    return rows


def _kind(values: Any) -> str:
    shape = getattr(values, "shape", None)
    return type(values).__name__ if shape is None else f"an array of shape {shape}"


def rows_of(scores: Scores, metric: str | None) -> list[Row]:
    """Rows of one metric, which must be named if there are several.

    Raises:
        ValueError: if there are no rows of it, or of several metrics.
    """
    rows = sweep_rows(scores) if isinstance(scores, SweepResult | PairSweepResult) else list(scores)
    names = list(dict.fromkeys(row["metric"] for row in rows))
    if not names:
        raise ValueError("scores is empty: there is nothing to draw")
    if metric is None and len(names) > 1:
        raise ValueError(f"metric must say which is drawn, one of {checks.first_few(names)}")
    found = [row for row in rows if metric in (None, row["metric"])]
    if not found:
        raise ValueError(f"metric {metric!r} is not in scores; they have {checks.first_few(names)}")
    return found
