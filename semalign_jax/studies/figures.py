"""Figures of studies, of several axes that `plot` draws on, one look for all of them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import plot
from ..plot.looks import is_control
from ..plot.scores import CLASS_INCHES, METHOD_INCHES, UPPER_BOUND, matrix_of
from ..plot.style import COLUMN, add_legend, fix_layout, plain, style
from .tables import PAIR, ClassScore, Row, grouped, metric_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Classes that need more inches are continued in another column.
HIGHEST = 7.5
#: Matrices that need more inches are continued below.
WIDEST = 10.0


@style()
def anchor_curves(
    rows: Sequence[Row],
    *,
    title: str = "",
    columns: int = 4,
    references: Mapping[str, float] | None = None,
    looks: Mapping[str, plot.Look] | None = None,
) -> "Figure":
    """`plot.anchor_curves`, one panel for each protocol and pair.

    Args:
        rows: summary of one metric.
        title: over all panels.
        columns: panels side by side.
        references: as of `plot.anchor_curves`.
        looks: of the methods; by default of these rows.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no rows or several metrics, or an anchor count is not positive.
    """
    from matplotlib.figure import Figure

    pairs = grouped(rows, *PAIR)
    wide = max(min(columns, len(pairs)), 1)
    high = max(math.ceil(len(pairs) / wide), 1)
    figure = Figure(figsize=(max(2.9 * wide, COLUMN), 2.3 * high + 0.4), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False, sharey=True)
    looks = looks or plot.looks(rows, tuple(references or ()))
    several = len({protocol for protocol, _, _ in pairs}) > 1
    for axis, ((protocol, source, target), here) in zip(axes.flat, pairs.items(), strict=False):
        options = {"references": references, "looks": looks, "legend": False}
        plot.anchor_curves(here, ax=axis, **options)
        name = f"{source} → {target}"
        axis.set_title(plain(f"{protocol}\n{name}" if several else name))
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis in axes.flat[: max(len(pairs) - wide, 0)]:
        axis.set_xlabel("")  # there is one below
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    figure.suptitle(plain(title))
    add_legend(figure, list(axes.flat))
    fix_layout(figure)
    return figure


@style()
def class_scores(
    scores: Sequence[ClassScore],
    *,
    metric: str,
    title: str = "",
    chance: float | None = None,
    looks: Mapping[str, plot.Look] | None = None,
) -> "Figure":
    """`plot.class_scores`, many classes continued in further columns.

    Args:
        scores: at most one for each method and class.
        metric: label of the axis.
        title: over the axes.
        chance: score of guessing.
        looks: of the methods; by default of these scores.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: as `plot.class_scores`.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(score["label"] for score in scores))
    methods = len({score["method"] for score in scores})
    inches = METHOD_INCHES * methods + CLASS_INCHES
    columns = max(math.ceil(len(labels) * inches / HIGHEST), 1)
    high = math.ceil(len(labels) / columns)
    columns = max(math.ceil(len(labels) / max(high, 1)), 1)
    figure = Figure(figsize=(COLUMN * columns, high * inches + 0.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharex=True)[0]
    looks = looks or plot.looks(scores, ("chance",))
    for number, axis in enumerate(axes):
        here = labels[number * high : (number + 1) * high]
        mine = [score for score in scores if score["label"] in here]
        options = {"metric": metric, "chance": chance, "looks": looks, "legend": False}
        plot.class_scores(mine, ax=axis, **options)
        axis.set_ylim(high - 0.5, -0.5)  # points as far apart in all columns
    figure.suptitle(plain(title))
    add_legend(figure, list(axes))
    fix_layout(figure)
    return figure


@style()
def score_matrices(rows: Sequence[Row], *, title: str = "") -> "Figure":
    """`plot.score_matrix` of each method but controls at its largest count, in one scale.

    Args:
        rows: summary of one metric and protocol.
        title: over all of them.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if no method has anchors, or as `plot.score_matrix`.
    """
    from matplotlib.figure import Figure

    names = matrix_methods(rows)
    found = {name: matrix_of(rows, name) for name in names}
    if not found:
        raise ValueError("rows: no method but controls has anchors, there is nothing to draw")
    every = np.stack([values for values, *_ in found.values()])
    limits = float(np.nanmin(every)), float(np.nanmax(every))
    _, sources, targets, _ = next(iter(found.values()))
    width, height = max(1.2, 0.5 * len(targets) + 0.3), 0.4 * len(sources) + 0.7
    columns = max(1, min(len(names), int((WIDEST - 2.3) / width)))
    high = -(-len(names) // columns)
    figure = Figure(figsize=(columns * width + 2.3, high * height + 1.2), layout="constrained")
    grid = figure.subplots(high, columns, squeeze=False, sharex=True, sharey=True)
    axes = list(grid.flat[: len(names)])
    for axis in grid.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=True):
        plot.score_matrix(rows, name, limits=limits, colorbar=False, ax=axis)
        axis.set(xlabel="", ylabel="")
    for axis in axes[-columns:]:  # nothing is below them
        axis.tick_params(labelbottom=True)
    figure.supxlabel("decoder", fontsize=8)
    figure.supylabel("encoder", fontsize=8)
    figure.suptitle(plain(title))
    label = plain(metric_title(rows[0]["metric"]))
    figure.colorbar(axes[0].images[0], ax=axes, label=label, aspect=20 * high)
    fix_layout(figure)
    return figure


def matrix_methods(rows: Sequence[Row]) -> list[str]:
    """The methods that have a matrix: those with anchors and a finite score, but no controls."""
    finite = [row for row in rows if row["anchors"] is not None and math.isfinite(row["mean"])]
    names = dict.fromkeys(row["method"] for row in finite if row["method"] != UPPER_BOUND)
    return [name for name in names if not is_control(name)]
