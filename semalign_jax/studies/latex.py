"""Tables of scores in LaTeX.

Ours: pandas' Styler writes cells and rules alone, so references that span the counts, ties of
rounded means, deviations, intervals and escaped names would be strings made here all the same.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from .._core import checks
from ..plot.looks import is_control
from .tables import PAIR, Row, counts_of, grouped, metric_of, metric_title

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
    references: they span the counts and are never bold, unless there is nothing else. Controls
    ("shuffled" and what begins so) are never bold. Small type and no leading zeros let seven counts
    with deviations fit into the usual text width.

    Args:
        rows: summary of one metric.
        spread: what follows the mean: the deviation over seeds, the interval in brackets, nothing.
        best: which mean of each column and part is bold.
        scale: factor on all numbers, 100 for per cent.
        digits: decimals.
        caption: plain text above the table; without it and `label` there is only the `tabular`.
        label: for `\ref`: letters, digits and `: . _ -`.

    Raises:
        ValueError: if there are no rows or several metrics, a row lacks its interval, or an option
            has another value.
    """
    checks.option("spread", spread, ("std", "interval", "none"))
    checks.option("best", best, ("max", "min", "none"))
    if label is not None and not re.fullmatch(r"[\w:.-]+", label, re.ASCII):
        raise ValueError(f"label must be of letters, digits and ': . _ -'; got {label!r}")

    def number(value: float) -> str:
        text = f"{value * scale:.{digits}f}"
        return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text

    metric = metric_of(rows)
    counts: list[int | None] = [*counts_of(rows)]
    heads = (
        ["anchors", *map(str, counts)] if counts else ["method", latex_text(metric_title(metric))]
    )
    counts = counts or [None]
    body = []
    pairs = grouped(rows, *PAIR)
    for pair, here in pairs.items():
        body.append(r"\midrule")
        if len(pairs) > 1:
            name = latex_text("{}: {} → {}".format(*pair))
            body.append(rf"\multicolumn{{{len(counts) + 1}}}{{l}}{{\emph{{{name}}}}} \\")
        body += _lines(here, counts, spread, best, number)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(counts)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if caption is not None or label is not None:
        head = [r"\begin{table}", r"\centering"]
        head += [] if caption is None else [rf"\caption{{{latex_text(caption)}}}"]
        head += [] if label is None else [rf"\label{{{label}}}"]
        head.append(r"\footnotesize\setlength{\tabcolsep}{2pt}")
        lines = [*head, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"


def _lines(
    rows: Sequence[Row],
    counts: Sequence[int | None],
    spread: str,
    best: str,
    number: Callable[[float], str],
) -> Iterator[str]:
    """The lines of one pair, a method each."""
    rivals = [row for row in rows if not is_control(row["method"])]
    winners = {count: _best(rivals, count, best, number) for count in counts}
    for (method,), here in grouped(rows, "method").items():
        cells = {row["anchors"]: row for row in here}
        winning = {} if is_control(method) else winners
        if None in cells and counts != [None]:
            text = _latex_cell(cells[None], spread, number)
            shown = [rf"\multicolumn{{{len(counts)}}}{{c}}{{{text}}}"]
        else:
            shown = [
                _latex_cell(cells[count], spread, number, winning.get(count))
                if count in cells
                else ""
                for count in counts
            ]
        yield " & ".join([latex_text(method), *shown]) + r" \\"


def _best(
    rows: Sequence[Row], count: int | None, best: str, number: Callable[[float], str]
) -> str | None:
    """The best mean of a column as it is printed."""
    means = [r["mean"] for r in rows if r["anchors"] == count and math.isfinite(r["mean"])]
    if best == "none" or not means:
        return None
    return number(max(means) if best == "max" else min(means))


def _latex_cell(
    row: Row, spread: str, number: Callable[[float], str], winner: str | None = None
) -> str:
    if not math.isfinite(row["mean"]):
        return "--"
    text = number(row["mean"])
    if text == winner:
        text = rf"\textbf{{{text}}}"
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
