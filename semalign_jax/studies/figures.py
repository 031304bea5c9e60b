"""Figures of the benchmarks in the manner of a paper, as PNG, SVG or PDF bytes.

Needs matplotlib (the `plot` extra). Equal input gives equal bytes on one installation, whatever
the user's matplotlib settings. No global figure is made, so nothing has to be closed.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import PAIR, ClassScore, Row, counts_of, grouped, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours for all kinds of colour vision (Wong 2011, Nature Methods 8, 441), but
#: the yellow, which is too light for lines. Markers tell lines apart in print without colour.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", ":", "-.")
#: Without these a file would hold the time and the version it was written with.
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "semalign_jax",  # else the ids in the file are random
    "pdf.fonttype": 42,  # TrueType: journals refuse the Type 3 fonts of the default
}
#: Methods whose names begin like this are controls, fitted to wrong pairs.
CONTROL = "shuffled"
DOTTED = "shuffled (dotted)"
#: Bars of classes that need more inches are continued below.
WIDEST = 12.0
SLANTED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}


@contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "figures need matplotlib: pip install 'semalign_jax[plot]'", name="matplotlib"
        ) from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@_style()
def to_bytes(figure: "Figure", format: str = "png", *, dpi: int = 150) -> bytes:
    """Draw a figure as the bytes of a file.

    Args:
        figure: the figure.
        format: "png", "svg" or "pdf".
        dpi: pixels per inch of a PNG.

    Raises:
        ValueError: for another format.
    """
    if format not in METADATA:
        raise ValueError(f"format must be one of {', '.join(METADATA)}; got {format!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi, bbox_inches="tight", metadata=METADATA[format])
    return buffer.getvalue()


@_style()
def anchor_curves(rows: Sequence[Row], *, title: str = "", columns: int = 4) -> "Figure":
    """Score against anchor count on a log axis, one panel for each protocol and pair.

    The band is the interval of a row that has one, else one standard deviation to both sides.
    Methods without anchors are dashed horizontal lines. A method looks alike in all panels, and
    its control ("shuffled" and its name) is dotted in its colour.

    Args:
        rows: summary of one metric.
        title: over all panels.
        columns: panels side by side.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no rows or several metrics, or an anchor count is not positive.
    """
    from matplotlib.figure import Figure

    metric = metric_of(rows)
    counts = counts_of(rows)
    if counts and counts[0] < 1:
        raise ValueError(f"rows: anchors must be positive on a log axis; got {counts[0]}")
    pairs = grouped(rows, *PAIR)
    wide = min(columns, len(pairs))
    high = math.ceil(len(pairs) / wide)
    figure = Figure(figsize=(max(3.2 * wide, 4.2), 2.9 * high + 0.6), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False, sharey=True)
    looks = _looks(rows)
    several = len({protocol for protocol, _, _ in pairs}) > 1
    for axis, (pair, here) in zip(axes.flat, pairs.items(), strict=False):
        _draw_curves(axis, here, looks)
        protocol, source, target = pair
        name = f"{source} → {target}"
        axis.set_title(_plain(f"{protocol}\n{name}" if several else name), fontsize=9)
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts], minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.tick_params(axis="x", which="major", labelrotation=45 if len(counts) > 6 else 0)
        axis.grid(visible=True)
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(pairs) - wide, 0) : len(pairs)]:
        axis.set_xlabel("anchors")
    for axis in axes[:, 0]:
        axis.set_ylabel(_plain(metric))
    figure.suptitle(_plain(title))
    _add_legend(figure, list(axes.flat))
    _fix_layout(figure)
    return figure


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics."""
    return text.replace("$", r"\$")


def is_control(method: str) -> bool:
    """Whether a method is fitted to wrong pairs, by its name."""
    return method == CONTROL or method.startswith(f"{CONTROL} ")


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each method; grey for those without anchors.

    Controls have the colour of their method and no marker.
    """
    with_anchors = {row["method"]: None for row in rows if row["anchors"] is not None}
    controls = {
        name: name.removeprefix(f"{CONTROL} ")
        for name in with_anchors
        if is_control(name) and name.removeprefix(f"{CONTROL} ") in with_anchors.keys() - {name}
    }
    without = {row["method"]: None for row in rows if row["method"] not in with_anchors}
    looks: dict[str, dict[str, Any]] = {
        method: {"color": ("0.25", "0.6")[i % 2], "linestyle": ("--", ":")[i // 2 % 2]}
        for i, method in enumerate(without)
    }
    for i, method in enumerate(name for name in with_anchors if name not in controls):
        looks[method] = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i // len(PALETTE) % len(LINES)],
        }
    for control, method in controls.items():
        looks[control] = {"color": looks[method]["color"], "linestyle": ":", "label": DOTTED}
    return looks


def _draw_curves(axis: "Axes", rows: Sequence[Row], looks: Mapping[str, dict[str, Any]]) -> None:
    for (method,), mine in grouped(rows, "method").items():
        look = {"label": _plain(method), **looks[method]}
        if mine[0]["anchors"] is None:
            axis.axhline(mine[0]["mean"], linewidth=1, **look)
            continue
        mine.sort(key=lambda row: row["anchors"] or 0)
        counts = [row["anchors"] or 0 for row in mine]
        axis.plot(
            counts,
            [row["mean"] for row in mine],
            markersize=3.5,
            linewidth=1.2,
            **look,
        )
        if look["label"] == DOTTED:
            continue
        axis.fill_between(
            counts,
            [row.get("lower", row["mean"] - row["std"]) for row in mine],
            [row.get("upper", row["mean"] + row["std"]) for row in mine],
            color=look["color"],
            alpha=0.15,
            linewidth=0,
        )


def _add_legend(figure: "Figure", axes: Sequence["Axes"]) -> None:
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), 5)
    )


def _fix_layout(figure: "Figure") -> None:
    """Lay out once: otherwise each drawing moves the axes a little, and no two are equal."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


@_style()
def class_bars(
    scores: Sequence[ClassScore],
    *,
    metric: str,
    title: str = "",
    chance: float | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    references: Sequence[str] = (),
) -> "Figure":
    """Bars for each class, one per method side by side, with confidence intervals.

    Many classes are continued on further axes below.

    Args:
        scores: at most one for each method and class; a missing or NaN one leaves a gap.
        metric: label of the axis.
        title: over the axes.
        chance: score of guessing, drawn as a dashed line.
        limits: ends of the axis.
        references: methods in grey; the others have the colours that they have in
            `anchor_curves`, if their order is the same.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no scores, one is given twice, or an interval is upside down.
    """
    from matplotlib.figure import Figure

    cells = _checked(scores)
    methods = list(dict.fromkeys(method for method, _ in cells))
    labels = list(dict.fromkeys(label for _, label in cells))
    looks = _bar_looks(methods, references)
    inches = 0.16 * len(methods) + 0.25
    rows = math.ceil(len(labels) * inches / (WIDEST - 1))
    wide = math.ceil(len(labels) / rows)
    rows = math.ceil(len(labels) / wide)
    size = (max(4.2, wide * inches + 1), 3.4 if rows == 1 else 2.7 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, squeeze=False)[:, 0]
    for axis, start in zip(axes, range(0, len(labels), wide), strict=True):
        here = labels[start : start + wide]
        _draw_bars(axis, cells, here, looks)
        if chance is not None:
            axis.axhline(chance, color="0.35", linestyle="--", linewidth=1, label="chance")
        axis.set_ylim(limits)
        axis.set_xlim(-0.6, wide - 0.4)  # bars of one width in all rows
        slanted = SLANTED if wide > 4 else {}
        axis.set_xticks(range(len(here)), [_plain(label) for label in here], **slanted)
        axis.set_ylabel(_plain(metric))
        axis.grid(visible=True, axis="y")
    axes[0].set_title(_plain(title))
    _add_legend(figure, list(axes))
    _fix_layout(figure)
    return figure


def _checked(scores: Sequence[ClassScore]) -> dict[tuple[str, str], ClassScore]:
    """(method, label) -> score."""
    if not scores:
        raise ValueError("scores is empty: there is nothing to draw")
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


def _bar_looks(methods: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and hatch of each method, in the order of the methods."""
    others = iter(range(len(methods)))
    greys = iter(range(len(methods)))
    looks = {}
    for method in methods:
        if method in references:
            i = next(greys)
            looks[method] = {"color": ("0.45", "0.75")[i % 2], "hatch": ("", "///")[i // 2 % 2]}
        else:
            i = next(others)
            hatch = ("", "///", "...")[i // len(PALETTE) % 3]
            looks[method] = {"color": PALETTE[i % len(PALETTE)], "hatch": hatch}
    return looks


def _draw_bars(
    axis: "Axes",
    cells: Mapping[tuple[str, str], ClassScore],
    labels: Sequence[str],
    looks: Mapping[str, dict[str, Any]],
) -> None:
    width = 0.8 / len(looks)
    for number, (method, look) in enumerate(looks.items()):
        places = [i for i, label in enumerate(labels) if (method, label) in cells]
        mine = [cells[method, labels[i]] for i in places]
        middles = np.array(places) + (number - (len(looks) - 1) / 2) * width
        values = [score["value"] for score in mine]
        axis.bar(middles, values, width * 0.92, label=_plain(method), **look)
        # Not error bars: a bootstrap interval need not contain the estimate.
        lower, upper = ([score[end] for score in mine] for end in ("lower", "upper"))
        axis.vlines(middles, lower, upper, color="0.25", linewidth=1)


@_style()
def score_matrices(
    panels: Mapping[str, np.ndarray],
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    metric: str,
    title: str = "",
    limits: tuple[float, float] | None = None,
    digits: int = 2,
) -> "Figure":
    """Encoder-by-decoder matrices as heat maps with the scores in their cells, in one scale.

    Args:
        panels: name of a matrix -> scores [sources, targets]; NaN cells stay white.
        sources: names of the rows, the encoders of the embeddings.
        targets: names of the columns, the encoders of the heads.
        metric: label of the colour bar.
        title: over all panels.
        limits: scores at the ends of the colour bar; by default the extremes of all matrices.
        digits: decimals in the cells.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no panels, the shape of one is not that of the names, or no value
            is finite.
    """
    from matplotlib.figure import Figure

    matrices = _checked_panels(panels, (len(sources), len(targets)))
    every = np.stack(list(matrices.values()))
    low, high = limits or (np.nanmin(every), np.nanmax(every))
    width, height = max(1.2, 0.62 * len(targets) + 0.3), 0.45 * len(sources) + 0.7
    columns = max(1, min(len(matrices), int((WIDEST - 2.3) / width)))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(columns * width + 2.3, rows * height + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    axes = list(grid.flat[: len(matrices)])
    for axis in grid.flat[len(matrices) :]:
        axis.remove()
    for axis, (name, values) in zip(axes, matrices.items(), strict=True):
        _draw_matrix(axis, values, low, high, digits)
        axis.set_xticks(range(len(targets)), [_plain(name) for name in targets], **SLANTED)
        axis.set_yticks(range(len(sources)), [_plain(name) for name in sources])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(_plain(name), fontsize=9)
    for axis in axes[-columns:]:  # nothing is below them
        axis.tick_params(labelbottom=True)
    figure.supxlabel("decoder", fontsize=9)
    figure.supylabel("encoder", fontsize=9)
    figure.suptitle(_plain(title))
    figure.colorbar(axes[0].images[0], ax=axes, label=_plain(metric), aspect=20 * rows)
    _fix_layout(figure)
    return figure


def _checked_panels(
    panels: Mapping[str, np.ndarray], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The matrices, NaN where they are not finite."""
    if not panels:
        raise ValueError("panels is empty: give at least one matrix")
    matrices = {}
    for name, given in panels.items():
        values = np.asarray(given, float)
        if values.shape != shape:
            raise ValueError(
                f"panels[{name!r}] must have shape {shape}, as sources and targets; got "
                f"{values.shape}"
            )
        matrices[name] = np.where(np.isfinite(values), values, np.nan)
    if all(np.isnan(values).all() for values in matrices.values()):
        raise ValueError("panels: no score is finite, there is nothing to draw")
    return matrices


def _draw_matrix(axis: "Axes", values: np.ndarray, low: float, high: float, digits: int) -> None:
    # cividis was made to look alike with and without red-green deficiency (Nuñez et al. 2018).
    axis.imshow(values, "cividis", vmin=low, vmax=high)
    for row, column in np.argwhere(np.isfinite(values)):
        dark = values[row, column] <= (low + high) / 2
        text = f"{values[row, column]:.{digits}f}"
        color = "white" if dark else "black"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
