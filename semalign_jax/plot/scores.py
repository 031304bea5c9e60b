"""Scores: against anchors, of pairs of encoders, of classes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import checks
from .._core.rows import PAIR, ClassScore, Row, counts_of, grouped, metric_title
from .looks import DOTTED, HOLLOW, Look, checked_looks, is_control, label_of
from .rows import Scores, of_metric, rows_of
from .style import axes_of, log_anchors, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The decoder on its own encoder, which is what a matrix has on its diagonal.
UPPER_BOUND = "upper bound"
#: Inches of a method of a class, and of the space between classes.
METHOD_INCHES, CLASS_INCHES = 0.075, 0.1


def anchor_curves(
    scores: Scores,
    *,
    metric: str | None = None,
    references: Mapping[str, float] | None = None,
    looks: Mapping[str, Look] | None = None,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Score against the number of anchors, on a log axis, for one pair of encoders.

    Methods without anchors and references are grey horizontal lines. The legend says what bands
    are: the intervals that rows have, else one standard deviation over draws to both sides.
    Controls ("shuffled" and what begins so) are dotted and hollow, in the colour of their method,
    and have no band.

    Args:
        scores: rows of a study, or any result with a `summary`.
        metric: the one that is drawn, if there are several.
        references: scores that need no anchors by their names, e.g. {"chance": 0.5}.
        looks: of methods and references, by `plot.looks`; by default of these.
        legend: whether there is one.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no rows, those of several metrics or pairs, two of a method and
            count, an anchor count that is not positive, or a look is missing.
    """
    rows = rows_of(scores, metric)
    _check_cells(rows)
    counts = counts_of(rows)
    if counts and counts[0] < 1:
        raise ValueError(f"scores: anchors must be positive on a log axis; got {counts[0]}")
    references = references or {}
    looked = checked_looks(looks, rows, tuple(references))
    with axes_of(ax, 2.4, legend) as axis:
        for name, value in references.items():
            axis.axhline(value, linewidth=1, label=plain(name), **_line(looked[name]))
        for (method,), mine in grouped(rows, "method").items():
            _draw_curve(axis, mine, looked[method], label_of(method, looked[method]))
        if any(looked[row["method"]].control for row in rows):
            axis.plot([], [], ":", color="0.2", label=DOTTED)
        if counts and (band := _band(rows)):
            axis.plot([], [], color="0.2", alpha=0.25, linewidth=5, label=band)
        log_anchors(axis, counts)
        axis.tick_params(axis="x", which="major", labelrotation=45 if len(counts) > 6 else 0)
        axis.set_ylabel(plain(metric_title(rows[0]["metric"])))
        axis.grid(visible=True)
        return axis


def _check_one_pair(rows: Sequence[Any]) -> None:
    pairs = grouped(rows, *PAIR)
    if len(pairs) > 1:
        names = checks.first_few(f"{source} → {target}" for _, source, target in pairs)
        raise ValueError(
            f"scores must be those of one pair of encoders; got {len(pairs)}: {names}. Choose rows "
            "by protocol, source and target, e.g. by `result.select(source=..., target=...)`"
        )


def _check_cells(rows: Sequence[Row]) -> None:
    _check_one_pair(rows)
    for (method, count), here in grouped(rows, "method", "anchors").items():
        if len(here) > 1:
            raise ValueError(f"scores: method {method!r} has two rows of {count} anchors")


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.color, "linestyle": look.linestyle}


def _draw_curve(axis: "Axes", rows: list[Row], look: Look, label: str) -> None:
    line = {**_line(look), "label": label}
    if rows[0]["anchors"] is None:
        axis.axhline(rows[0]["mean"], linewidth=1, **line)
        return
    rows = sorted(rows, key=lambda row: row["anchors"] or 0)
    counts = [row["anchors"] or 0 for row in rows]
    means = [row["mean"] for row in rows]
    fill = "white" if look.control else look.color
    axis.plot(counts, means, marker=look.marker, markerfacecolor=fill, **line)
    if not look.control:
        lower, upper = (
            [row.get(end, row["mean"] + sign * row["std"]) for row in rows]
            for end, sign in (("lower", -1), ("upper", 1))
        )
        axis.fill_between(counts, lower, upper, color=look.color, alpha=0.15, linewidth=0)
        if len(counts) == 1:  # a band without width
            axis.vlines(counts, lower, upper, color=look.color, linewidth=1)


def _band(rows: Sequence[Row]) -> str:
    """What the bands are, by the rows that have one."""
    banded = [r for r in rows if r["anchors"] is not None and not is_control(r["method"])]
    kinds = ["interval"] if any("lower" in row for row in banded) else []
    kinds += ["± 1 std"] if any("lower" not in row and row["std"] > 0 for row in banded) else []
    return "band: " + " or ".join(kinds) if kinds else ""


def score_matrix(
    scores: Scores,
    method: str | None = None,
    *,
    anchors: int | None = None,
    metric: str | None = None,
    limits: tuple[float, float] | None = None,
    digits: int = 2,
    colorbar: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Scores of a method for all pairs, encoder by decoder, as a heat map with its numbers.

    Where rows have an "upper bound", it is on the diagonal: the decoder on its own encoder.

    Args:
        scores: rows of a study of one protocol, or the result of `sweep_pairs`.
        method: the one that is drawn, if there are several with anchors.
        anchors: their number; by default the largest of the method.
        metric: the one that is drawn, if there are several.
        limits: scores at the ends of the colours; by default the extremes of the matrix.
        digits: decimals in the cells.
        colorbar: whether there is one.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no rows, those of several metrics or protocols, no rows of the
            method and count, or no score is finite.
    """
    rows = rows_of(scores, metric)
    values, sources, targets, count = matrix_of(rows, method, anchors)
    if not np.isfinite(values).any():
        raise ValueError("scores: none is finite, there is nothing to draw")
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    with axes_of(ax, 0.45 * len(sources) + 1.3, legend=False) as axis:
        # cividis was made to look alike with and without red-green deficiency (Nuñez et al. 2018).
        image = axis.imshow(values, "cividis", vmin=low, vmax=high)
        for row, column in np.argwhere(np.isfinite(values)):
            dark = values[row, column] <= (low + high) / 2
            text = f"{values[row, column]:.{digits}f}"
            options: Any = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
            axis.text(column, row, text, **options)
        slanted: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(targets)), [plain(name) for name in targets], **slanted)
        axis.set_yticks(range(len(sources)), [plain(name) for name in sources])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="decoder", ylabel="encoder")
        axis.set_title(plain(f"{method or rows[0]['method']}\n{checks.counted(count, 'anchor')}"))
        if colorbar:
            axis.figure.colorbar(image, ax=axis, label=plain(metric_title(rows[0]["metric"])))
        return axis


def matrix_of(
    rows: Sequence[Row], method: str | None = None, anchors: int | None = None
) -> tuple[np.ndarray, list[str], list[str], int]:
    """Scores [sources, targets] of a method, the names of both, and the anchor count."""
    if len(grouped(rows, "protocol")) > 1:
        raise ValueError("scores must be those of one protocol; got several")
    anchored = [row for row in rows if row["anchors"] is not None]
    names = list(dict.fromkeys(row["method"] for row in anchored))
    if method is None and len(names) != 1:
        raise ValueError(f"method must say which is drawn, one of {checks.first_few(names)}")
    mine = [row for row in anchored if method in (None, row["method"])]
    counts = counts_of(mine)
    if not mine or anchors not in (None, *counts):
        what = f"{method!r}" if not mine else f"{method!r} with {anchors} anchors"
        there = f"methods are {checks.first_few(names)}" if not mine else f"counts are {counts}"
        raise ValueError(f"scores have no {what}; {there}")
    count = counts[-1] if anchors is None else anchors
    sources = list(dict.fromkeys(row["source"] for row in rows))
    # Targets in the order of the sources, so that an encoder's own decoder is on the diagonal.
    targets = sorted(
        dict.fromkeys(row["target"] for row in rows), key=lambda name: [*sources, name].index(name)
    )
    values = np.full((len(sources), len(targets)), np.nan)
    for row in mine:
        if row["anchors"] == count and math.isfinite(row["mean"]):
            values[sources.index(row["source"]), targets.index(row["target"])] = row["mean"]
    for row in rows:
        if row["method"] == UPPER_BOUND and row["target"] in sources:
            at = sources.index(row["target"]), targets.index(row["target"])
            values[at] = row["mean"]
    return values, sources, targets, count


def class_scores(
    scores: Sequence[ClassScore],
    *,
    metric: str | None = None,
    chance: float | None = None,
    limits: tuple[float, float] | None = None,
    looks: Mapping[str, Look] | None = None,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Scores of classes as points with their intervals, a group of methods for each class.

    Classes go down, so that any number of them and their names have room; a new figure is as high
    as they need. Controls are hollow.

    Args:
        scores: at most one for each method and class; a missing or NaN one leaves a gap.
        metric: which is drawn, if the scores name several; of scores that name none, what they are.
        chance: score of guessing, a grey line.
        limits: ends of the axis; by default those of scores and intervals.
        looks: of methods and references, by `plot.looks`; by default of these.
        legend: whether there is one.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no scores of the metric, or several metrics and none is named; if
            one is given twice, an interval is upside down, or a look is missing.
    """
    named: list[Any] = [{"metric": metric or "score", **score} for score in scores]
    named = of_metric(named, metric)
    cells = _checked(named)
    methods = list(dict.fromkeys(method for method, _ in cells))
    labels = list(dict.fromkeys(label for _, label in cells))
    guessing = () if chance is None else ("chance",)
    looked = checked_looks(looks, named, guessing)
    inches = METHOD_INCHES * len(methods) + CLASS_INCHES
    with axes_of(ax, inches * len(labels) + 0.6, legend) as axis:
        step = METHOD_INCHES / inches
        for number, method in enumerate(methods):
            mine = [(i, cells[method, x]) for i, x in enumerate(labels) if (method, x) in cells]
            places = [i + (number - (len(methods) - 1) / 2) * step for i, _ in mine]
            _draw_points(axis, places, [score for _, score in mine], method, looked[method])
        if any(looked[method].control for method in methods):
            options: Any = {"marker": "o", "linestyle": "", "markerfacecolor": "none"}
            axis.plot([], [], color="0.2", label=HOLLOW, **options)
        if chance is not None:
            axis.axvline(chance, linewidth=1, label="chance", **_line(looked["chance"]))
        for i in range(0, len(labels), 2):  # which points are of which class
            axis.axhspan(i - 0.5, i + 0.5, color="0.5", alpha=0.1, linewidth=0)
        axis.set_yticks(range(len(labels)), [plain(label) for label in labels])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(labels) - 0.5, -0.5)
        if limits is not None:
            axis.set_xlim(limits)
        axis.set_xlabel(plain(metric_title(named[0]["metric"], of_class=True)))
        axis.grid(visible=True, axis="x")
        return axis


def _checked(scores: Sequence[ClassScore]) -> dict[tuple[str, str], ClassScore]:
    """(method, label) -> score."""
    _check_one_pair([score for score in scores if set(PAIR) <= set(score)])
    cells: dict[tuple[str, str], ClassScore] = {}
    for score in scores:
        cell = score["method"], score["label"]
        if cell in cells:
            raise ValueError(f"scores: method {cell[0]!r} has two values for class {cell[1]!r}")
        if score["lower"] > score["upper"]:
            raise ValueError(
                f"scores: method {cell[0]!r}, class {cell[1]!r}: lower {score['lower']} is above "
                f"upper {score['upper']}"
            )
        cells[cell] = score
    return cells


def _draw_points(
    axis: "Axes", places: Sequence[float], scores: Sequence[ClassScore], method: str, look: Look
) -> None:
    # Not error bars: a bootstrap interval need not contain the estimate.
    lower, upper = ([score[end] for score in scores] for end in ("lower", "upper"))
    axis.hlines(places, lower, upper, color=look.color, linewidth=0.9)
    axis.plot(
        [score["value"] for score in scores],
        places,
        linestyle="",
        marker=look.marker,
        color=look.color,
        markerfacecolor="white" if look.control else look.color,
        label=label_of(method, look),
    )
