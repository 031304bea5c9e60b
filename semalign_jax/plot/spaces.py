"""Spaces before and after a map, how far mapped rows are from their targets, learning curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import checks
from .._core.typing import ArrayLike
from ..maps import Diagnosis
from .looks import PALETTE, Look
from .looks import looks as _looks
from .style import axes_of, log_anchors, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Wrong targets that each row is compared with.
UNMATCHED = 20


def similarity_histogram(
    mapped: ArrayLike,
    target: ArrayLike,
    *,
    bins: int = 40,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Cosines of mapped rows with their targets, against those with the targets of other rows.

    The further apart the two are, the better mapped rows find their targets. Of wrong targets each
    row is compared with up to 20, always the same.

    Args:
        mapped: rows that a map was not fitted to, mapped [n, d], n >= 2.
        target: their targets [n, d].
        bins: of the histogram.
        legend: whether there is one, with the medians.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        TypeError: for a non-floating dtype.
        ValueError: for shapes that do not match, non-finite values, or fewer than 2 rows.
    """
    a, b = (_unit(rows) for rows in _pair(mapped, target))
    # Rows beside each other may be alike, e.g. of one class.
    order = np.random.default_rng(0).permutation(len(a))
    shifts = range(1, min(UNMATCHED, len(a) - 1) + 1)
    wrong = [np.sum(a[order] * b[np.roll(order, -k)], axis=1) for k in shifts]
    cosines = {"matched": np.sum(a * b, axis=1), "unmatched": np.concatenate(wrong)}
    with axes_of(ax, 2.1, legend) as axis:
        _histograms(axis, cosines, bins, "cosine of mapped and target row")
        return axis


def residual_histogram(
    mapped: ArrayLike,
    target: ArrayLike,
    *,
    bins: int = 40,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Distances of mapped rows from their targets, against those of the targets' mean.

    Both are in units of the spread of the targets (root mean square distance from their mean). A
    map whose distances are not smaller than those of the mean predicts nothing.

    Args:
        mapped: rows that a map was not fitted to, mapped [n, d], n >= 2.
        target: their targets [n, d].
        bins: of the histogram.
        legend: whether there is one, with the medians.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        TypeError: for a non-floating dtype.
        ValueError: for shapes that do not match, non-finite values, fewer than 2 rows, or targets
            that are all equal.
    """
    a, b = _pair(mapped, target)
    from_mean = np.linalg.norm(b - b.mean(axis=0), axis=1)
    spread = np.sqrt(np.mean(from_mean**2))
    if not spread > 0:
        raise ValueError("target: all rows are equal, so that distances have no unit")
    distances = {"mapped": np.linalg.norm(a - b, axis=1) / spread}
    distances["mean of the targets"] = from_mean / spread
    with axes_of(ax, 2.1, legend) as axis:
        _histograms(axis, distances, bins, "distance from the target, in its spread")
        return axis


def _histograms(axis: "Axes", values: Mapping[str, np.ndarray], bins: int, label: str) -> None:
    """Densities of two kinds, apart in grey by hatch and outline."""
    bins = checks.positive_int("bins", bins)
    every = np.concatenate(list(values.values()))
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    hatches = ("", "////")
    for (name, numbers), color, hatch in zip(values.items(), PALETTE, hatches, strict=False):
        axis.hist(
            numbers, edges, density=True, histtype="stepfilled", linewidth=1.2, hatch=hatch,
            facecolor="none" if hatch else (color, 0.35), edgecolor=color,
            label=f"{name} (median {np.median(numbers):.2f})",
        )  # fmt: skip
    axis.set(xlabel=label, ylabel="density")


def learning_curve(
    diagnosis: Diagnosis | Mapping[str, Diagnosis],
    *,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Leave-one-out cosine against the number of anchors, from `maps.diagnose`.

    A curve that still rises says that more anchors should help. It is of the anchors alone; see
    `maps.Diagnosis` for what it does not tell.

    Args:
        diagnosis: of one pair, or several by name.
        legend: whether there is one, where there are several.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is none.
    """
    several = diagnosis if isinstance(diagnosis, Mapping) else {"": diagnosis}
    if not several:
        raise ValueError("diagnosis is empty: there is nothing to draw")
    looks = _looks([{"method": name} for name in several])
    counts = sorted({count for one in several.values() for count in one.counts})
    with axes_of(ax, 2.1, legend) as axis:
        for name, one in several.items():
            look = looks[name]
            options: Any = {"color": look.color, "marker": look.marker, "label": plain(name) or "_"}
            axis.plot(one.counts, one.curve, **options)
        log_anchors(axis, counts)
        axis.set_ylabel("leave-one-out cosine")
        axis.grid(visible=True)
        return axis


def spaces(
    rows: ArrayLike,
    target: ArrayLike,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    legend: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Rows and their targets in the first two principal components of the targets.

    Draw the source as it is on one axes and mapped on another, to see a space before and after.
    Rows of another dimension than the targets are padded with zeros or cut, as the naive reference
    of studies. Grey lines join a row and its target; a few hundred rows are enough. Two dimensions
    show little of a space: read the share of the variance that the axes name.

    Args:
        rows: source rows or mapped ones [n, d].
        target: their targets [n, d_out], n >= 3.
        labels: integer classes [n], in colours, where targets are hollow; by default rows have one
            colour and targets another.
        legend: whether there is one.
        ax: what is drawn on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
        TypeError: for a non-floating dtype.
        ValueError: for other numbers of rows or labels, non-finite values, or fewer than 3 rows.
    """
    x, y = _pair(rows, target, "rows", least=3)
    classes = np.zeros(len(y), int) if labels is None else np.asarray(labels)
    if classes.shape != (len(y),):
        raise ValueError(f"labels must have shape ({len(y)},); got {classes.shape}")
    padded = np.zeros_like(y)
    width = min(x.shape[1], y.shape[1])
    padded[:, :width] = x[:, :width]
    mean = y.mean(axis=0)
    _, scales, directions = np.linalg.svd(y - mean, full_matrices=False)
    at, goal = ((part - mean) @ directions[:2].T for part in (padded, y))
    if at.shape[1] == 1:  # a space of one dimension
        at, goal = (np.pad(part, ((0, 0), (0, 1))) for part in (at, goal))
    shares = np.pad(scales**2, (0, 1)) / max(float(np.sum(scales**2)), 1e-30)
    with axes_of(ax, 3.0, legend) as axis:
        axis.plot(*np.stack([at, goal]).transpose(2, 0, 1), color="0.6", linewidth=0.4, zorder=1)
        kinds = np.unique(classes)
        names = ["rows", "targets"] if labels is None else [f"class {kind}" for kind in kinds]
        looks = _looks([{"method": name} for name in names])
        for kind, name in zip(kinds, names, strict=False):
            here, other = classes == kind, "targets" if labels is None else name
            _draw_rows(axis, at[here], looks[name], name, filled=True)
            _draw_rows(axis, goal[here], looks[other], "targets" if labels is None else "_")
        if labels is not None:
            _draw_rows(axis, at[:0], looks[names[0]]._replace(color="0.2"), "hollow: targets")
        axis.set(xlabel=f"first component ({shares[0]:.0%})", ylabel=f"second ({shares[1]:.0%})")
        axis.set_aspect("equal")
        return axis


def _draw_rows(
    axis: "Axes", rows: np.ndarray, look: Look, label: str, filled: bool = False
) -> None:
    fill = look.color if filled else "none"
    options: Any = {"marker": look.marker, "facecolors": fill, "edgecolors": look.color}
    axis.scatter(*rows.T, s=9, linewidths=0.8, zorder=2, label=label, **options)


def _pair(
    rows: ArrayLike, target: ArrayLike, name: str = "mapped", least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their targets, checked, in float64."""
    arrays = checks.pair(rows, target, (name, "target"))
    checks.finite_rows(name, arrays[0])
    checks.finite_rows("target", arrays[1])
    x, y = (np.asarray(array, np.float64) for array in arrays)
    if len(x) < least:
        raise ValueError(
            f"{name} and target have {checks.counted(len(x), 'row')}; at least {least} are needed"
        )
    if name == "mapped" and x.shape != y.shape:
        raise ValueError(
            f"mapped and target must have the same shape; got {x.shape} and {y.shape}: map the rows"
        )
    return x, y


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
