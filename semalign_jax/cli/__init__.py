"""The `semalign` command; `semalign --help` lists what it does.

What a command needs is imported when it runs, so that help is quick.
"""

from . import embed as _embed  # noqa: F401
from . import files as _files  # noqa: F401
from . import maps as _maps  # noqa: F401
from . import studies as _studies  # noqa: F401
from . import sweeps as _sweeps  # noqa: F401
from ._app import app as app

__all__ = ["app", "main"]


def main() -> None:
    """Run a command line: that of this process."""
    app()
