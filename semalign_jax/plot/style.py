"""Style of figures, axes to draw on, and figures as the bytes of files."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches of a column of a paper.
COLUMN = 3.3
#: Without these a file would hold the time and the version it was written with.
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "semalign_jax",  # else the ids in the file are random
    "pdf.fonttype": 42,  # TrueType: journals refuse the Type 3 fonts of the default
}


@contextmanager
def style() -> Iterator[None]:
    """Our settings of matplotlib, whatever those of the user are."""
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


@contextmanager
def axes_of(ax: "Axes | None", height: float, legend: bool = True) -> Iterator["Axes"]:
    """The axes given, or those of a new figure of this height in our style; then their legend."""
    if ax is not None:
        yield ax
        if legend and ax.get_legend_handles_labels()[1]:
            ax.legend()
        return
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(COLUMN, height), layout="constrained")
        axes = figure.subplots()
        yield axes
        if legend:
            add_legend(figure, [axes])
        fix_layout(figure)


def log_anchors(axis: "Axes", counts: Sequence[int]) -> None:
    """Numbers of anchors along a log axis, with a tick for each count and no other."""
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axis.set_xlabel("anchors")


def add_legend(figure: "Figure", axes: Sequence["Axes"]) -> None:
    """Name what is on the axes, each name once, below all of them, where the figure grows."""
    found: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        inches = 0.056 * max(map(len, found)) + 0.5  # of a column
        rows = math.ceil(len(found) / max(1, int(figure.get_figwidth() / inches)))
        columns = math.ceil(len(found) / rows)
        figure.set_figheight(figure.get_figheight() + 0.16 * rows)
        options: Any = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1.0}
        figure.legend(list(found.values()), list(found), **options)


def fix_layout(figure: "Figure") -> None:
    """Lay out once: otherwise each drawing moves the axes a little, and no two are equal."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics.

    Nor does it leave names that begin with a low line out of legends.
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


@style()
def to_bytes(figure: "Figure | Axes", format: str = "png", *, dpi: int = 150) -> bytes:
    """Draw a figure as the bytes of a file, which are equal each time.

    Args:
        figure: the figure, or axes on it.
        format: "png", "svg" or "pdf".
        dpi: pixels per inch of a PNG.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for another format.
    """
    if format not in METADATA:
        raise ValueError(f"format must be one of {', '.join(METADATA)}; got {format!r}")
    whole: Any = figure.figure
    whole = whole.figure  # also of axes of a part of a figure
    buffer = io.BytesIO()
    whole.savefig(buffer, format=format, dpi=dpi, bbox_inches="tight", metadata=METADATA[format])
    return buffer.getvalue()
