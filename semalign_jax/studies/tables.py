"""Rows of scores, and tables of them: text, Markdown, CSV."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._core.checks import counted
from .._core.files import write_atomically
from .._core.rows import CELL as CELL
from .._core.rows import PAIR as PAIR
from .._core.rows import ClassScore as ClassScore
from .._core.rows import Pair as Pair
from .._core.rows import Row as Row
from .._core.rows import counts_of as counts_of
from .._core.rows import grouped as grouped
from .._core.rows import metric_of as metric_of
from .._core.rows import metric_title as metric_title
from .._core.rows import row_of_draws as row_of_draws
from .._core.rows import score_text
from .._core.rows import summarize as summarize
from ..plot.looks import is_control


class ClassRow(ClassScore):
    """Which pair and metric the score of a class is of."""

    protocol: str
    metric: str
    source: str
    target: str
    anchors: int | None


def class_row(
    pair: Pair,
    method: str,
    anchors: int | None,
    metric: str,
    label: str,
    value: float,
    lower: float,
    upper: float,
) -> ClassRow:
    """A row of the score of one class."""
    cell = dict(zip(CELL, (*pair, method, anchors, metric), strict=True))
    return ClassRow(**cell, label=label, value=value, lower=lower, upper=upper)  # type: ignore[typeddict-item]


def over_pairs(rows: Iterable[Row]) -> list[Row]:
    """Rows over all pairs of encoders of a protocol: mean and deviation of all their draws."""
    found = []
    keys = ("protocol", "method", "anchors", "metric")
    for (protocol, method, anchors, metric), here in grouped(rows, *keys).items():
        sizes = [row["seeds"] for row in here]
        total = sum(sizes)
        mean = sum(n * row["mean"] for n, row in zip(sizes, here, strict=True)) / total
        # Squares within the draws of a pair, and between pairs.
        squares = sum(
            (n - 1) * row["std"] ** 2 + n * (row["mean"] - mean) ** 2
            for n, row in zip(sizes, here, strict=True)
        )
        pairs = counted(len({(row["source"], row["target"]) for row in here}), "pair")
        cell = dict(zip(CELL, (protocol, "all", pairs, method, anchors, metric), strict=True))
        std = math.sqrt(squares / (total - 1)) if total > 1 else 0.0
        found.append(Row(**cell, mean=mean, std=std, seeds=total))  # type: ignore[typeddict-item]
    return found


def classes_over_pairs(classes: Iterable[ClassRow]) -> list[ClassRow]:
    """Scores of classes over all pairs: their mean, from the lowest pair to the highest."""
    found = []
    keys = ("protocol", "method", "anchors", "metric", "label")
    for (protocol, method, anchors, metric, label), here in grouped(classes, *keys).items():
        values = [row["value"] for row in here if math.isfinite(row["value"])]
        if values:
            pair = protocol, "all", counted(len(here), "pair")
            ends = min(values), max(values)
            mean = statistics.fmean(values)
            found.append(class_row(pair, method, anchors, metric, label, mean, *ends))
    return found


class Table(NamedTuple):
    """A table of text: the first column heads its rows.

    Attributes:
        caption: above it.
        header: names of the columns.
        rows: cells, as many in each row as names.
        best: (row, column) of the cells that pages mark as best.
        note: the rule of this.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""


RULE = "Bold: the best of each column, and what cannot be told from it: {}. References and "
RULE += "controls are left out."
BY_INTERVAL = RULE.format("intervals that overlap")
BY_ERROR = RULE.format("means ± one standard error over draws that overlap")


def summary_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each metric, protocol and pair: methods by anchor counts.

    Methods without anchors are in the first column alone, where others have counts. The best of
    each column is that of all methods but these and controls; higher is better.
    """
    tables = []
    for (metric, *pair), here in grouped(rows, "metric", *PAIR).items():
        counts = counts_of(here)
        columns: list[int | None] = [*counts] or [None]
        body, best = [], set()
        methods = grouped(here, "method")
        rivals = [row for row in here if not is_control(row["method"])]
        by_interval = all("lower" in row for row in rivals if row["anchors"] in columns)
        for j, count in enumerate(columns, 1):
            winners = _best([r for r in rivals if r["anchors"] == count], by_interval)
            best |= {(i, j) for i, (method,) in enumerate(methods) if method in winners}
        for (method,), mine in methods.items():
            cells = {r["anchors"]: r for r in mine}
            flat = cells.get(None)
            shown = (
                _cell(cells.get(count, flat), count == counts[0] or flat is None)
                for count in counts
            )
            body.append((method, *(shown if counts else [_cell(flat, True)])))
        caption = "{}: {} → {} ({}, mean ± std)".format(*pair, metric_title(metric))
        header = ["anchors", *map(str, counts)] if counts else ["method", metric_title(metric)]
        note = BY_INTERVAL if by_interval else BY_ERROR
        tables.append(Table(caption, header, body, frozenset(best), note if best else ""))
    return tables


def _best(rows: Sequence[Row], by_interval: bool) -> set[str]:
    """The method with the highest mean, and those whose range overlaps that of its."""

    def ends(row: Row) -> tuple[float, float]:
        if by_interval:
            return row.get("lower", math.nan), row.get("upper", math.nan)
        error = row["std"] / math.sqrt(row["seeds"])
        return row["mean"] - error, row["mean"] + error

    finite = [row for row in rows if math.isfinite(row["mean"])]
    if not finite:
        return set()
    top = max(finite, key=lambda row: row["mean"])
    return {top["method"], *(r["method"] for r in finite if ends(r)[1] >= ends(top)[0])}


def _cell(row: Row | None, show: bool) -> str:
    return score_text(row) if show and row is not None else ""


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the summary as CSV in one step."""
    fields = [*CELL, "mean", "std", "seeds"]
    if any("lower" in row for row in rows):
        fields += ["lower", "upper"]
    _write(path, fields, rows)


def write_classes(path: Path, classes: Sequence[ClassRow]) -> None:
    """Write the scores of classes as CSV in one step."""
    _write(path, [*CELL, "label", "value", "lower", "upper"], classes)


def _csv_cell(value: Any) -> Any:
    """A cell of a CSV file, that no spreadsheet runs.

    Spreadsheets take a text that begins with one of these for a formula. A text that begins with
    the quote gets one more, so that who reads the file drops the first quote of any text.
    """
    if isinstance(value, float):
        # Scores of one's own may be small: errors, p-values.
        return f"{value:.6f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r'") else value


def _write(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _csv_cell(value) for key, value in row.items()})
    write_atomically(path, text.getvalue().encode())
