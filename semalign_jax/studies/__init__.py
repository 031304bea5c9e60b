"""From embeddings to what goes into a manuscript: resumable runs, tables, figures, reports.

`stitching` and `zero_shot` are the two studies; `settings` and `inputs` are what they read, `study`
runs them, `outputs` writes and reads results with `tables`, `latex`, `figures` (drawn by `plot`)
and `html`. `demo` holds the shipped embeddings, `migration` measures what a search keeps that moves
to another encoder, `report` is for scripts, `backend_settings` make many short programs quick on a
CPU.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        backend_settings,
        demo,
        figures,
        html,
        inputs,
        latex,
        migration,
        outputs,
        report,
        settings,
        stitching,
        tables,
        zero_shot,
    )

__all__ = [
    "backend_settings",
    "demo",
    "figures",
    "html",
    "inputs",
    "latex",
    "migration",
    "outputs",
    "report",
    "settings",
    "stitching",
    "tables",
    "zero_shot",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    # Only what is used, since scripts apply `backend_settings` before all else.
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
