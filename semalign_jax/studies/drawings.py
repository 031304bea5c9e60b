"""Which figures a study has, drawn as the bytes of files."""

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .._core.checks import counted
from ..plot.looks import Look, looks
from ..plot.scores import UPPER_BOUND as UPPER_BOUND
from ..plot.spaces import learning_curve
from ..plot.style import to_bytes
from . import figures
from .tables import (
    PAIR,
    ClassRow,
    Row,
    classes_over_pairs,
    counts_of,
    grouped,
    metric_title,
    over_pairs,
)
from .trust import TrustRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Scores of guessing, where they do not depend on the data.
CHANCE = {"auroc": 0.5}
INSTALL = "install matplotlib (pip install 'semalign_jax[plot]')"
_Looks = Mapping[str, Look]
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


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def drawn(
    rows: Sequence[Row], classes: Sequence[ClassRow], trust: Sequence[TrustRow] = ()
) -> Iterator[Drawing]:
    """The figures; none without matplotlib, which one line on stderr says."""
    if not can_draw():
        print(f"no figures: {INSTALL}", file=sys.stderr)
        return
    names: list[str] = []
    found = chain(study_figures(rows, classes), _learning_curves(trust))
    for kind, protocol, details, caption, figure in found:
        names = distinct([*names, slug(kind, protocol, *details)], "-")

        def pdf(figure: "Figure" = figure) -> bytes:
            return to_bytes(figure, "pdf")

        yield Drawing(names[-1], protocol, caption, to_bytes(figure), pdf)


#: Kind, protocol, what else its name says, caption, figure.
_Found = tuple[str, str, tuple[str, ...], str, "Figure"]


def study_figures(rows: Sequence[Row], classes: Sequence[ClassRow]) -> Iterator[_Found]:
    """Curves of each metric, a matrix of each protocol, classes; over all pairs first."""
    every = looks([*rows, *classes], ("chance",))  # a method looks alike in all figures
    for (protocol, metric), here in grouped(rows, "protocol", "metric").items():
        yield from _curves(protocol, metric, here, every)
    for (protocol,), here in grouped(rows, "protocol").items():
        yield from _matrices(protocol, here)
    yield from _overall_classes(classes, every)
    yield from _classes(classes, every)


def _learning_curves(trust: Sequence[TrustRow]) -> Iterator[_Found]:
    """What the anchors alone say more of them would bring, of the first pairs."""
    for (protocol,), rows in grouped(trust, "protocol").items():
        curves: Any = {
            f"{row['source']} → {row['target']}": SimpleNamespace(
                counts=row["counts"], curve=row["curve"]
            )
            for row in rows[:PAIRS_PER_FIGURE]
        }
        axes = learning_curve(curves)
        caption = (
            f"{protocol}: leave-one-out cosine of the map that chooses its penalty, by the anchors "
            "alone. Where it still rises, more anchors should help."
        )
        yield "trust", protocol, (), caption, cast("Figure", axes.figure)


def _curves(protocol: str, metric: str, rows: Sequence[Row], every: _Looks) -> Iterator[_Found]:
    """A panel for all pairs, as Figure 3 of Di Folco et al. (2025), and one for each."""
    if not counts_of(rows):
        return
    pairs, title = len(grouped(rows, *PAIR)), metric_title(metric)
    references = {"chance": CHANCE[metric]} if metric in CHANCE else None
    if pairs >= FEWEST_PAIRS:
        about = f"{protocol}: {title}, all pairs of encoders"
        caption = f"{about}; mean over the {pairs} pairs and all draws of anchors."
        over = over_pairs(rows)
        figure = figures.anchor_curves(over, title=about, references=references, looks=every)
        yield "overall", protocol, (metric,), caption, figure
    parts = {("",): list(rows)}
    if pairs > PAIRS_PER_FIGURE:
        parts = grouped(rows, "target")
    for (target,), here in parts.items():
        about = f"{protocol}: {title} against the number of anchors"
        about += f", decoder {target}" if target else ""
        figure = figures.anchor_curves(here, title=about, references=references, looks=every)
        yield "curves", protocol, (metric, target), f"{about}; mean over draws of anchors.", figure


def _matrices(protocol: str, rows: Sequence[Row]) -> Iterator[_Found]:
    """Encoder by decoder, of each method at its largest count, in the first metric."""
    metric = rows[0]["metric"]
    rows = [row for row in rows if row["metric"] == metric]
    if len(grouped(rows, *PAIR)) < 2 or not figures.matrix_methods(rows):
        return
    own = any(row["method"] == UPPER_BOUND for row in rows)
    title = metric_title(metric)
    caption = f"{protocol}: {title} of each method at its largest count, encoder by decoder"
    caption += "; on the diagonal the decoder on its own encoder." if own else "."
    about = f"{protocol}: {title}, encoder by decoder"
    figure = figures.score_matrices(rows, title=about)
    yield "matrices", protocol, (metric,), caption, figure


def _overall_classes(classes: Sequence[ClassRow], every: _Looks) -> Iterator[_Found]:
    """Each class over all pairs, multimodal models among them, as Figure 4 there."""
    for (protocol, metric), rows in grouped(classes, "protocol", "metric").items():
        pairs = len(grouped(rows, *PAIR))
        overall = classes_over_pairs(rows)
        if pairs < FEWEST_PAIRS or not overall:
            continue
        title = metric_title(metric, of_class=True)
        about = f"{protocol}: {title}, all pairs of encoders{_at(overall)}"
        caption = f"{about}; mean over {pairs} pairs, line: from the lowest to the highest."
        figure = _drawn_classes(overall, metric, about, every)
        yield "overall-classes", protocol, (metric,), caption, figure


def _classes(classes: Sequence[ClassRow], every: _Looks) -> Iterator[_Found]:
    cells = grouped(classes, *PAIR, "metric")
    for protocol, source, target, metric in list(cells)[:CLASS_FIGURES]:
        rows = cells[protocol, source, target, metric]
        defined = [row for row in rows if math.isfinite(row["value"])]
        if not defined:
            continue
        about = f"{source} → {target}{_at(rows)}"
        title = metric_title(metric, of_class=True)
        caption = f"{about}: {title} of each class, line: its confidence interval."
        figure = _drawn_classes(defined, metric, about, every)
        yield "classes", protocol, (metric, source, target), caption, figure


def _drawn_classes(rows: Sequence[ClassRow], metric: str, title: str, every: _Looks) -> "Figure":
    chance = CHANCE.get(metric)
    return figures.class_scores(rows, metric=metric, title=title, chance=chance, looks=every)


def _at(rows: Sequence[ClassRow]) -> str:
    counts = counts_of(rows)
    return f", {counted(counts[-1], 'anchor')}" if counts else ""
