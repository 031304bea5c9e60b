"""What the scripts print and write beyond the results of studies."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import threadpoolctl
from rich import table
from rich.console import Console
from rich.text import Text

from semalign_jax._core.files import write_atomically
from semalign_jax.studies.tables import Row, summary_tables


def blas_kernels() -> str:
    """The kernels that the loaded BLAS libraries chose for this processor, e.g. "Zen"."""
    return ", ".join(
        sorted({k for lib in threadpoolctl.threadpool_info() if (k := lib.get("architecture"))})
    )


def markdown(rows: Sequence[Any], digits: int = 2) -> str:
    """Named tuples of one kind as a Markdown table; None is left empty."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.{digits}g}"
        return str(value)

    fields = rows[0]._fields
    lines = ["| " + " | ".join(fields) + " |", "|" + "---|" * len(fields)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])


def write_page(path: Path, title: str, text: str) -> None:
    """Write what was printed as a page of the documentation, in one step, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"# {title}\n\n{text}".encode())


def print_tables(rows: Sequence[Row]) -> None:
    """Print a table for each protocol and pair: methods by anchor counts, mean and deviation."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for caption, header, body, *_ in summary_tables(rows):
        shown = table.Table(title=Text(caption), title_justify="left", box=None)
        for number, name in enumerate(header):
            shown.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in body:
            shown.add_row(*map(Text, row))
        console.print(shown)
        console.print()
