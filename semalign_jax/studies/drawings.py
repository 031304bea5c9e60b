"""Which figures a study has, drawn as the bytes of files."""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import figures
from .tables import PAIR, ClassRow, Row, classes_over_pairs, counts_of, grouped, over_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The decoder on its own encoder, which is what a matrix has on its diagonal.
UPPER_BOUND = "upper bound"
#: Scores of guessing, where they do not depend on the data.
CHANCE = {"auroc": 0.5, "AUROC": 0.5}
#: More pairs than this do not fit on a page side by side: curves are then split by target.
PAIRS_PER_FIGURE = 12
#: Fewer pairs than this are seen side by side at once: they have no figure over all pairs.
FEWEST_PAIRS = 3
#: Of the figures of single classes, of which there may be one for each pair.
CLASS_FIGURES = 12


class Drawing(NamedTuple):
    """A figure of a protocol, as PNG, and what makes it as PDF."""

    name: str
    protocol: str
    caption: str
    png: bytes
    pdf: Callable[[], bytes]


def slug(*parts: str) -> str:
    """A file name without spaces and signs."""
    words = [re.sub(r"\W+", "-", part.lower()).strip("-") for part in parts]
    return "-".join(word for word in words if word)[:120]


def distinct(names: Sequence[str], before: str = " ") -> list[str]:
    """The names, with a number behind those that are there already."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name}{before}{number}"
        found.append(candidate)
    return found


def drawn(rows: Sequence[Row], classes: Sequence[ClassRow]) -> Iterator[Drawing]:
    """The figures; none without matplotlib, which one line on stderr says."""
    if find_spec("matplotlib") is None:
        print("no figures: install matplotlib (pip install 'semalign_jax[plot]')", file=sys.stderr)
        return
    names: list[str] = []
    for kind, protocol, details, caption, figure in study_figures(rows, classes):
        names = distinct([*names, slug(kind, protocol, *details)], "-")

        def pdf(figure: "Figure" = figure) -> bytes:
            return figures.to_bytes(figure, "pdf")

        yield Drawing(names[-1], protocol, caption, figures.to_bytes(figure), pdf)


#: Kind, protocol, what else its name says, caption, figure.
_Found = tuple[str, str, tuple[str, ...], str, "Figure"]


def study_figures(rows: Sequence[Row], classes: Sequence[ClassRow]) -> Iterator[_Found]:
    """Curves of each metric, a matrix of each protocol, bars of classes; over all pairs first."""
    for (protocol, metric), here in grouped(rows, "protocol", "metric").items():
        yield from _overall_curves(protocol, metric, here)
        yield from _curves(protocol, metric, here)
    for (protocol,), here in grouped(rows, "protocol").items():
        yield from _matrices(protocol, here)
    yield from _overall_bars(classes)
    yield from _bars(classes)


def _overall_curves(protocol: str, metric: str, rows: Sequence[Row]) -> Iterator[_Found]:
    """One panel for all pairs, as Figure 3 of Di Folco et al. (2025)."""
    pairs = len(grouped(rows, *PAIR))
    if pairs < FEWEST_PAIRS or not counts_of(rows):
        return
    about = f"{protocol}: {metric}, all pairs of encoders"
    caption = (
        f"{about}; mean over the {pairs} pairs and all draws of anchors, band: one standard "
        "deviation of these."
    )
    figure = figures.anchor_curves(over_pairs(rows), title=about)
    yield "overall", protocol, (metric,), caption, figure


def _overall_bars(classes: Sequence[ClassRow]) -> Iterator[_Found]:
    """Bars of each class over all pairs, multimodal models among them, as Figure 4 there."""
    for (protocol, metric), rows in grouped(
        [{"protocol": "", **row} for row in classes], "protocol", "metric"
    ).items():
        pairs = len(grouped(rows, *PAIR))
        overall = classes_over_pairs(rows)  # type: ignore[arg-type]
        if pairs < FEWEST_PAIRS or not overall:
            continue
        counts = counts_of(overall)
        about = f"{protocol}: {metric}, all pairs of encoders"
        about += f", {counts[-1]} anchors" if counts else ""
        caption = f"{about}; mean over {pairs} pairs, line: from the lowest to the highest."
        figure = _bars_of(overall, metric, about)
        yield "overall-classes", protocol, (metric,), caption, figure


def _bars_of(rows: Sequence[ClassRow], metric: str, title: str) -> "Figure":
    references = [row["method"] for row in rows if row["anchors"] is None]
    return figures.class_bars(
        rows, metric=metric, title=title, chance=CHANCE.get(metric), references=references
    )


def _curves(protocol: str, metric: str, rows: Sequence[Row]) -> Iterator[_Found]:
    if not counts_of(rows):
        return
    parts = {("",): list(rows)}
    if len(grouped(rows, *PAIR)) > PAIRS_PER_FIGURE:
        parts = grouped(rows, "target")
    for (target,), here in parts.items():
        about = f"{protocol}: {metric} against the number of anchors"
        about += f", decoder {target}" if target else ""
        band = "the interval" if any("lower" in row for row in here) else "one standard deviation"
        caption = f"{about}; mean over draws of anchors, band: {band}."
        if any(figures.is_control(row["method"]) for row in here):
            caption += " Dotted: fitted to anchors matched to wrong ones."
        figure = figures.anchor_curves(here, title=about)
        yield "curves", protocol, (metric, target), caption, figure


def _matrices(protocol: str, rows: Sequence[Row]) -> Iterator[_Found]:
    """Encoder by decoder, of each method at its largest count, in the first metric."""
    metric = rows[0]["metric"]
    rows = [row for row in rows if row["metric"] == metric]
    if len(grouped(rows, *PAIR)) < 2:
        return
    own = {row["target"]: row["mean"] for row in rows if row["method"] == UPPER_BOUND}
    sources = list(dict.fromkeys(row["source"] for row in rows))
    # Targets in the order of the sources, so that an encoder's own decoder is on the diagonal.
    targets = sorted(
        dict.fromkeys(row["target"] for row in rows), key=lambda name: [*sources, name].index(name)
    )
    panels = {}
    for (method,), here in grouped(rows, "method").items():
        counts = counts_of(here)
        if not counts or figures.is_control(method):
            continue
        values = np.full((len(sources), len(targets)), np.nan)
        for row in here:
            if row["anchors"] == counts[-1]:
                values[sources.index(row["source"]), targets.index(row["target"])] = row["mean"]
        for name in set(sources) & set(targets) & set(own):
            values[sources.index(name), targets.index(name)] = own[name]
        panels[f"{method}\n{counts[-1]} anchors"] = values
    if not any(np.isfinite(values).any() for values in panels.values()):
        return
    caption = f"{protocol}: {metric} of each method at its largest count, encoder by decoder"
    caption += "; on the diagonal the decoder on its own encoder." if own else "."
    about = f"{protocol}: {metric}, encoder by decoder"
    figure = figures.score_matrices(panels, sources, targets, metric=metric, title=about)
    yield "matrices", protocol, (metric,), caption, figure


def class_cells(classes: Sequence[ClassRow]) -> dict[tuple, list[ClassRow]]:
    """(protocol, source, target, metric) -> scores of classes: a figure each."""
    named: list[ClassRow] = [{"protocol": "", **row} for row in classes]  # type: ignore[misc]
    return grouped(named, *PAIR, "metric")


def _bars(classes: Sequence[ClassRow]) -> Iterator[_Found]:
    for cell, rows in list(class_cells(classes).items())[:CLASS_FIGURES]:
        protocol, source, target, metric = cell
        defined = [row for row in rows if math.isfinite(row["value"])]
        if not defined:
            continue
        counts = counts_of(rows)
        about = f"{source} → {target}"
        about += f", {counts[-1]} anchors" if counts else ""
        figure = _bars_of(defined, metric, about)
        caption = f"{about}: {metric} of each class with its confidence interval."
        yield "classes", protocol, (metric, source, target), caption, figure
