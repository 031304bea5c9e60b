"""From embeddings to what goes into a manuscript: resumable runs, tables, figures, reports.

`stitching` and `zero_shot` are the two studies, `common` is what they share, `inputs` reads their
settings, `outputs` and `report` write and read results, `demo` holds the shipped embeddings,
`backend_settings` make many short programs quick on a CPU.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import backend_settings as backend_settings
    from . import common as common
    from . import demo as demo
    from . import figures as figures
    from . import inputs as inputs
    from . import outputs as outputs
    from . import report as report
    from . import stitching as stitching
    from . import zero_shot as zero_shot

__all__ = [
    "backend_settings",
    "common",
    "demo",
    "figures",
    "inputs",
    "outputs",
    "report",
    "stitching",
    "zero_shot",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    # Only what is used, since scripts apply `backend_settings` before all else.
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
