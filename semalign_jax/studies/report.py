"""What studies hand over: JSON records, CSV summary, text, LaTeX and HTML."""

import base64
import csv
import io
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from .._core.files import write_atomically


class Record(TypedDict):
    """One score. `anchors` and `seed` are None for lines that use no anchors."""

    protocol: str
    source: str
    target: str
    method: str
    anchors: int | None
    seed: int | None
    metric: str
    value: float


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


CELL = ("protocol", "source", "target", "method", "anchors", "metric")


def summarize(records: Iterable[Record]) -> list[Row]:
    """Group records into cells, in the order of their first appearance."""
    cells: dict[tuple, list[float]] = {}
    for record in records:
        cells.setdefault(tuple(record[name] for name in CELL), []).append(record["value"])
    return [
        Row(  # type: ignore[typeddict-item]
            **dict(zip(CELL, cell, strict=True)),
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else 0.0,
            seeds=len(values),
        )
        for cell, values in cells.items()
    ]


def environment() -> dict[str, Any]:
    """Versions and hardware that the numbers were made with."""
    import jax

    return {
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("semalign_jax", "jax", "jaxlib", "numpy", "optax")
        },
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def prepare_directory(path: Path) -> None:
    """Make the output directory, before any work is done.

    Raises:
        ValueError: if it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path}: cannot make this directory ({error})") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"--out {path}: this directory cannot be written to")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON in one step."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the summary as CSV in one step."""
    text = io.StringIO()
    fields: list[str] = [*CELL, "mean", "std", "seeds"]
    if any("lower" in row for row in rows):
        fields += ["lower", "upper"]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{v:.6f}" if isinstance(v, float) else v for key, v in row.items()})
    write_atomically(path, text.getvalue().encode())


def pairs_of(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The (protocol, source, target) combinations in their order."""
    return list(dict.fromkeys(map(_pair, rows)))


def rows_of(rows: Sequence[Row], pair: tuple[str, str, str]) -> list[Row]:
    """The rows of one (protocol, source, target)."""
    return [row for row in rows if _pair(row) == pair]


def _pair(row: Row) -> tuple[str, str, str]:
    return row["protocol"], row["source"], row["target"]


def metric_of(rows: Sequence[Row]) -> str:
    """The metric of the rows.

    Raises:
        ValueError: if there are no rows, or they have several metrics.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    if len(metrics) != 1:
        found = f"several metrics ({', '.join(metrics)})" if metrics else "none"
        raise ValueError(f"rows must be those of one metric; got {found}")
    return metrics[0]


def _cell(row: Row | None, show: bool) -> str:
    if row is None or not show:
        return ""
    if row["seeds"] == 1:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f}±{row['std']:.3f}"


#: What LaTeX reads as commands, or does not know with its oldest font encoding. Brackets and stars
#: at the start of a line would be options of the line break before them.
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"[": "{[}", "]": "{]}", "*": "{*}", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    | {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    | {"|": r"\textbar{}", "→": r"$\rightarrow$", "±": r"$\pm$", "−": "$-$"}
)


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return " ".join(text.split()).translate(LATEX)


def latex_table(
    rows: Sequence[Row],
    *,
    spread: Literal["std", "interval", "none"] = "std",
    best: Literal["max", "min", "none"] = "max",
    scale: float = 1.0,
    digits: int = 3,
    caption: str | None = None,
    label: str | None = None,
) -> str:
    r"""A table in LaTeX (package booktabs): methods by anchor counts, a part for each pair.

    Best is what reads as best after rounding, so ties are all bold. Methods without anchors are
    references: they span the columns of the counts and are never bold, unless there is nothing
    else in the table. Small type and numbers without a leading zero let seven counts with
    deviations fit into the text width of the usual classes.

    Args:
        rows: summary of one metric.
        spread: what follows the mean: the deviation over seeds, the interval in brackets, nothing.
        best: which mean of each column and part is bold.
        scale: factor on all numbers, 100 for per cent.
        digits: decimals.
        caption: plain text above the table; it and `label` need a `table` environment, without
            both there is only the `tabular`, in type of the size around it.
        label: for `\ref`: letters, digits and `: . _ -`.

    Raises:
        ValueError: if there are no rows or several metrics, a row lacks its interval, or an option
            has another value.
    """
    _check_choice("spread", spread, ("std", "interval", "none"))
    _check_choice("best", best, ("max", "min", "none"))
    if label is not None and not re.fullmatch(r"[\w:.-]+", label, re.ASCII):
        raise ValueError(f"label must be of letters, digits and ': . _ -'; got {label!r}")
    metric = metric_of(rows)
    counts: list[int | None] = [*sorted({r["anchors"] for r in rows if r["anchors"] is not None})]
    heads = ["anchors", *map(str, counts)] if counts else ["method", latex_text(metric)]
    counts = counts or [None]
    width = len(counts) + 1
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(counts)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
    ]
    pairs = pairs_of(rows)
    for pair in pairs:
        here = rows_of(rows, pair)
        lines.append(r"\midrule")
        if len(pairs) > 1:
            name = latex_text("{}: {} → {}".format(*pair))
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{name}}}}} \\")
        winners = {count: _best(here, count, best, scale, digits) for count in counts}
        for method in dict.fromkeys(row["method"] for row in here):
            cells = {row["anchors"]: row for row in here if row["method"] == method}
            if None in cells and counts != [None]:
                text = _latex_cell(cells[None], spread, scale, digits)
                shown = [rf"\multicolumn{{{width - 1}}}{{c}}{{{text}}}"]
            else:
                shown = [
                    _latex_cell(cells[count], spread, scale, digits, winners[count])
                    if count in cells
                    else ""
                    for count in counts
                ]
            lines.append(" & ".join([latex_text(method), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption is not None or label is not None:
        head = [r"\begin{table}", r"\centering"]
        if caption is not None:
            head.append(rf"\caption{{{latex_text(caption)}}}")
        if label is not None:
            head.append(rf"\label{{{label}}}")
        head.append(r"\footnotesize\setlength{\tabcolsep}{2pt}")
        lines = [*head, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _best(
    rows: Sequence[Row], count: int | None, best: str, scale: float, digits: int
) -> str | None:
    """The best mean of a column as it is printed."""
    means = [r["mean"] for r in rows if r["anchors"] == count and math.isfinite(r["mean"])]
    if best == "none" or not means:
        return None
    return f"{(max if best == 'max' else min)(means) * scale:.{digits}f}"


def _latex_cell(row: Row, spread: str, scale: float, digits: int, winner: str | None = None) -> str:
    if not math.isfinite(row["mean"]):
        return "--"

    def number(value: float) -> str:
        text = f"{value * scale:.{digits}f}"
        return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text

    mean = number(row["mean"])
    best = f"{row['mean'] * scale:.{digits}f}" == winner
    text = rf"\textbf{{{mean}}}" if best else mean
    if spread == "std" and row["seeds"] > 1:
        text += rf"{{\tiny$\pm${number(row['std'])}}}"
    elif spread == "interval":
        if "lower" not in row or "upper" not in row:
            raise ValueError(
                f"rows: method {row['method']!r} has no lower and upper at {row['anchors']} "
                "anchors, which spread='interval' needs"
            )
        text += f" [{number(row['lower'])}, {number(row['upper'])}]"
    return text


class Table(NamedTuple):
    """A table of text: the first column heads its rows.

    Attributes:
        caption: above it.
        header: names of the columns.
        rows: cells, as many in each row as names.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A figure as the bytes of a PNG or SVG file.

    Attributes:
        caption: below it; also what readers hear who do not see it.
        data: the file.
    """

    caption: str
    data: bytes


class Section(NamedTuple):
    """A part of an HTML report.

    Attributes:
        title: its heading.
        text: paragraphs, parted by empty lines.
        tables: shown first.
        pictures: shown after the tables.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def summary_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each metric, protocol and pair: methods by anchor counts.

    Methods without anchors are in the first column alone, where others have counts.
    """
    tables = []
    for metric, pair in dict.fromkeys((r["metric"], _pair(r)) for r in rows):
        here = [r for r in rows if (r["metric"], _pair(r)) == (metric, pair)]
        counts = sorted({r["anchors"] for r in here if r["anchors"] is not None})
        body = []
        for method in dict.fromkeys(r["method"] for r in here):
            cells = {r["anchors"]: r for r in here if r["method"] == method}
            flat = cells.get(None)
            shown = (
                _cell(cells.get(count, flat), count == counts[0] or flat is None)
                for count in counts
            )
            body.append((method, *(shown if counts else [_cell(flat, True)])))
        caption = "{}: {} → {} ({}, mean ± std)".format(*pair, metric)
        header = ["anchors", *map(str, counts)] if counts else ["method", metric]
        tables.append(Table(caption, header, body))
    return tables


CSS = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #fff; --line: #c8c8c8; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --back: #161616; --line: #4a4a4a; --soft: #242424; }
}
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, .plain th, .plain td { text-align: left; }
thead th { border-bottom-width: 2px; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; background: #fff; }
@media print {
  body { font-size: .7rem; max-width: none; margin: 0; }
  .wide { overflow: visible; }
  h2, caption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
}
"""
#: The page may load nothing from elsewhere, and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_report(
    path: Path,
    title: str,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    sections: Sequence[Section],
    *,
    command: Sequence[str] | None = None,
) -> None:
    """Write one HTML file that holds all of a run: nothing else is needed to read it.

    Args:
        path: file to write, in one step.
        title: of the page.
        settings: options of the run; may be nested.
        environment: versions and hardware, as `environment()` gives them.
        sections: tables and figures in their order.
        command: the words of the command line that made it; by default that of this process.

    Raises:
        ValueError: if a picture is neither PNG nor SVG, or a table's rows do not fit its header.
        OSError: if the file cannot be written.
    """
    words = sys.orig_argv if command is None else command
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(_html_section(section) for section in sections),
        "<h2>How it was made</h2>",
        f"<pre><code>{escape(shlex.join(words))}</code></pre>",
    ]
    for caption, values in (("Settings", settings), ("Environment", environment)):
        table = Table(caption, ("name", "value"), list(_flat(values)))
        parts.append(_html_table(table, kind=' class="plain"'))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    # A file name on the command line need not be valid UTF-8.
    write_atomically(path, page.encode(errors="backslashreplace"))


def _html_section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [
        f"<p>{escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()
    ]
    parts += [_html_table(table) for table in section.tables]
    parts += [_html_picture(picture) for picture in section.pictures]
    return "\n".join(parts)


def _html_table(table: Table, kind: str = "") -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(
                f"table {table.caption!r}: row {row[0] if row else ''!r} has {len(row)} cells, the "
                f"header {len(table.header)}"
            )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="wide"><table{kind}>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _html_picture(picture: Picture) -> str:
    if picture.data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif picture.data.lstrip().startswith((b"<?xml", b"<svg")):
        kind = "svg+xml"
    else:
        raise ValueError(f"picture {picture.caption!r} is neither PNG nor SVG, as pages need")
    caption = escape(picture.caption)
    data = base64.b64encode(picture.data).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text, those of nested mappings with dots in their names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)
