"""What the benchmarks hand over: JSON records, CSV summary, text tables and plots."""

import csv
import io
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from semalign_jax.io import write_atomically


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
    """Mean and standard deviation (sample, over seeds) of the records of one cell."""

    protocol: str
    source: str
    target: str
    method: str
    anchors: int | None
    metric: str
    mean: float
    std: float
    seeds: int


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


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, its directory included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the summary as CSV in one step."""
    text = io.StringIO()
    fields: list[str] = [*CELL, "mean", "std", "seeds"]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "mean": f"{row['mean']:.6f}", "std": f"{row['std']:.6f}"})
    write_atomically(path, text.getvalue().encode())


def pairs_of(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The (protocol, source, target) combinations in their order."""
    return list(dict.fromkeys((r["protocol"], r["source"], r["target"]) for r in rows))


def print_tables(rows: Sequence[Row]) -> None:
    """Print a table for each protocol and pair: methods by anchor counts, mean and deviation."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for protocol, source, target in pairs_of(rows):
        here = [
            r
            for r in rows
            if (r["protocol"], r["source"], r["target"]) == (protocol, source, target)
        ]
        counts = sorted({r["anchors"] for r in here if r["anchors"] is not None})
        table = Table(
            title=f"{protocol}: {source} -> {target} ({here[0]['metric']}, mean ± std)",
            title_justify="left",
            box=None,
        )
        table.add_column("anchors", no_wrap=True)
        for count in counts:
            table.add_column(str(count), justify="right", no_wrap=True)
        for method in dict.fromkeys(r["method"] for r in here):
            cells = {r["anchors"]: r for r in here if r["method"] == method}
            flat = cells.get(None)
            table.add_row(
                method,
                *(
                    _cell(cells.get(count, flat), count == counts[0] or flat is None)
                    for count in counts
                ),
            )
        console.print(table)
        console.print()


def _cell(row: Row | None, show: bool) -> str:
    if row is None or not show:
        return ""
    if row["seeds"] == 1:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f}±{row['std']:.3f}"


def plot_protocols(directory: Path, rows: Sequence[Row]) -> list[Path]:
    """One PNG per protocol: score against anchor count, band of one standard deviation.

    Returns:
        The files written; empty if matplotlib (the `plot` extra) is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        pairs = [pair for pair in pairs_of(rows) if pair[0] == protocol]
        figure, axes = plt.subplots(
            1, len(pairs), figsize=(5.2 * len(pairs), 4.2), squeeze=False, sharey=True
        )
        for axis, (_, source, target) in zip(axes[0], pairs, strict=True):
            here = [
                r
                for r in rows
                if (r["protocol"], r["source"], r["target"]) == (protocol, source, target)
            ]
            _plot_lines(axis, here)
            axis.set_title(f"{source} → {target}", fontsize=10)
            axis.set_xlabel("anchors")
        axes[0][0].set_ylabel(rows[0]["metric"])
        axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
        figure.suptitle(protocol)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        path = directory / f"{protocol}.png"
        write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def _plot_lines(axis, rows: Sequence[Row]) -> None:
    for number, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
        mine = [r for r in rows if r["method"] == method]
        color = f"C{number}"
        if mine[0]["anchors"] is None:
            axis.axhline(mine[0]["mean"], label=method, color=color, linestyle="--", linewidth=1)
            continue
        counts = [r["anchors"] for r in mine]
        means = [r["mean"] for r in mine]
        axis.plot(counts, means, label=method, color=color, marker="o", markersize=3)
        axis.fill_between(
            counts,
            [r["mean"] - r["std"] for r in mine],
            [r["mean"] + r["std"] for r in mine],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    axis.set_xscale("log")
    axis.grid(visible=True, alpha=0.3)
