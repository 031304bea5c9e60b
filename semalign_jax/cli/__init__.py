"""The `semalign` command; `semalign --help` lists what it does.

What a command needs is imported when it runs, so that help is quick.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from ._app import app as _app
from ._console import Console as _Console

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        words: of the command line, without "semalign"; None for those of this process.
    """
    given = list(sys.argv[1:] if words is None else words)
    console = _Console(given)
    status = console.run(
        lambda: _app.main(given or ["--help"], "semalign", standalone_mode=False, obj=console)
    )
    sys.exit(status)
