"""The `semalign` command; `semalign --help` lists what it does.

What a command needs is imported when it runs, so that help is quick and signals are answered from
the first moment on.
"""

import sys as _sys
from collections.abc import Sequence as _Sequence
from typing import NoReturn as _NoReturn

from . import _signals

__all__ = ["main"]


def main(words: _Sequence[str] | None = None) -> _NoReturn:
    """Run a command line and exit.

    Args:
        words: of the command line, without "semalign"; None for those of this process.
    """
    given = list(_sys.argv[1:] if words is None else words)
    try:
        with _signals.interruptible(own=words is None):
            from ._app import app
            from ._console import Console

            console = Console(given)
            options = {"standalone_mode": False, "obj": console}
            status = console.run(lambda: app.main(given or ["--help"], "semalign", **options))
    except _signals.Interrupted as error:  # while something was imported or printed
        print(f"semalign: {error}", file=_sys.stderr)
        status = error.status
    if words is None and status > 128:
        _signals.leave(status)
    _sys.exit(status)
