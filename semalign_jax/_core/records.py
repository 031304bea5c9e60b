"""Results as records: dictionaries, data frames, and tables that notebooks show."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from .documents import did_you_mean
from .rows import metric_title, score_text, summarize


class Records:
    """What results of many scores have in common; a class gives `to_records`.

    A record is a dictionary with a "value", and what it is the value of.
    """

    def to_records(self) -> list[dict[str, Any]]:
        """A dictionary for each score."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """The records as a `pandas.DataFrame`.

        Raises:
            ModuleNotFoundError: without pandas; says how to install it.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "to_pandas needs pandas: pip install 'semalign_jax[pandas]'"
            ) from None
        return pandas.DataFrame(self.to_records())

    def select(self, **names: Any) -> list[dict[str, Any]]:
        """The records with these values, e.g. ``select(method="ortho", anchors=200)``.

        Raises:
            KeyError: for a name that records do not have, or a value that none has.
        """
        records = self.to_records()
        for name, value in names.items():
            known = list(dict.fromkeys(key for record in records for key in record))
            if name not in known:
                raise KeyError(f"records have no {name!r}; {did_you_mean(name, known)}")
            values = list(dict.fromkeys(record.get(name) for record in records))
            if value not in values:
                raise KeyError(f"no record has {name} {value!r}; there are {values}")
            records = [record for record in records if record.get(name) == value]
        return records

    def summary(self) -> list[dict[str, Any]]:
        """Mean and sample deviation over seeds (0 for one), with their number, of each cell."""
        return summarize(self.to_records())

    def _repr_html_(self) -> str:
        """A table for each metric, methods by anchor counts, as notebooks show it."""
        rows = self.summary()
        parts = [f"<p>{escape(repr(self))}</p>"]
        for metric in dict.fromkeys(row["metric"] for row in rows):
            parts.append(_table(metric, [row for row in rows if row["metric"] == metric]))
        return "".join(parts)


def _table(metric: str, rows: Sequence[dict[str, Any]]) -> str:
    counts = list(dict.fromkeys(row["anchors"] for row in rows if row["anchors"] is not None))
    lines: dict[str, dict[Any, str]] = {}
    for row in rows:
        names = (
            row.get(key) for key in ("protocol", "source", "target", "method", "normalization")
        )
        anchors = counts[0] if row["anchors"] is None and counts else row["anchors"]
        lines.setdefault(", ".join(filter(None, names)), {})[anchors] = score_text(row)
    title = escape(metric_title(metric))
    header = "".join(f"<th>{count}</th>" for count in counts or [title])
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        + "".join(f"<td>{cells.get(count, '')}</td>" for count in counts or [None])
        + "</tr>"
        for name, cells in lines.items()
    )
    return (
        f"<table><caption>{title}, mean and deviation over seeds</caption>"
        f"<tr><th>anchors</th>{header}</tr>{body}</table>"
    )


def cells_of(values: Any, *names: Sequence[Any]) -> Iterator[tuple[tuple[Any, ...], float]]:
    """(names and seed, value) of an array; nothing of what has other axes.

    Args:
        values: [of each of `names`, seeds], a `MacroMean` of such, or anything else.
        names: along the axes.
    """
    sizes, values = tuple(map(len, names)), getattr(values, "value", values)
    if getattr(values, "ndim", None) != len(sizes) + 1 or values.shape[:-1] != sizes:
        return
    for place, value in np.ndenumerate(np.asarray(values)):
        cell = (one[i] for one, i in zip(names, place, strict=False))
        yield (*cell, place[-1]), float(value)


def shown_counts(counts: Any) -> str:
    """Anchor counts in a few words, also traced ones."""
    if isinstance(counts, tuple) and counts:
        return f"anchors {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    return "traced anchor counts"
