"""Rows that figures are drawn of."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from .._core import checks
from .._core.records import Records
from .._core.rows import R, Row

#: What scores are drawn of: rows, or what has them as its `summary`.
Scores: TypeAlias = Sequence[Mapping[str, Any]] | Records
#: Of rows that name no pair, as those of a sweep of one.
_PAIR = {"protocol": "", "source": "source", "target": "target"}


def rows_of(scores: Scores, metric: str | None) -> list[Row]:
    """Rows of one metric, which must be named if there are several."""
    rows = scores.summary() if isinstance(scores, Records) else scores
    if not all(isinstance(row, Mapping) for row in rows):
        kind = type(scores).__name__
        raise TypeError(f"scores must be a result or its rows, of to_records(); got {kind}")
    return of_metric([cast(Row, {**_PAIR, **row}) for row in rows], metric)


def of_metric(rows: Sequence[R], metric: str | None) -> list[R]:
    """As `rows_of`, of rows that have all their keys."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    if not names:
        raise ValueError("scores is empty: there is nothing to draw")
    if metric is None and len(names) > 1:
        raise ValueError(f"metric must say which is drawn, one of {checks.first_few(names)}")
    found = [row for row in rows if metric in (None, row["metric"])]
    if not found:
        raise ValueError(f"metric {metric!r} is not in scores; they have {checks.first_few(names)}")
    return found
