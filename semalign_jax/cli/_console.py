"""How commands speak: results, progress, notes, errors and exit statuses.

A command returns an `Outcome`, which is printed here: as one JSON object or for people. Progress,
warnings and errors go to stderr. Exit statuses: 0; 1 if a run failed or found problems; 2 for bad
input; 130 if it was interrupted, 143 if it was terminated.
"""

import json
import os
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ._signals import Interrupted

if TYPE_CHECKING:
    from .._core.progress import Progress
    from ..studies.tables import Table

#: What the library raises for bad input; the rest is a failure of the run.
_BAD_INPUT = (
    TypeError,
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ModuleNotFoundError,
)


class Outcome(NamedTuple):
    """What a command has done.

    Attributes:
        values: for ``--json``; JSON values.
        text: for people.
        tables: for people, after the text.
        status: exit status.
    """

    values: Mapping[str, Any]
    text: str = ""
    tables: Sequence["Table"] = ()
    status: int = 0


class Console:
    """What the user of one command line sees.

    Args:
        words: of the command line; before they are parsed, since errors of that are shown as well.
    """

    def __init__(self, words: Sequence[str]):
        options = list(words[: words.index("--")] if "--" in words else words)
        self._json, self.quiet, self._debug = (
            f"--{name}" in options for name in ("json", "quiet", "debug")
        )
        self._command = next((word for word in options if not word.startswith("-")), "")
        self._help = not options or bool({"--help", "-h"} & set(options))
        self._stderr = sys.stderr
        self._silent = False
        self._stdout: int | None = None  # a copy of the descriptor, while libraries cannot reach it

    def run(self, command: Callable[[], Outcome | int | None]) -> int:
        """Run a command, print its outcome or its error, and return the exit status."""
        # Whatever a library prints: stdout is for the result alone.
        aside = redirect_stdout(sys.stderr) if self._json and not self._help else nullcontext()
        with aside, warnings.catch_warnings():
            warnings.showwarning = self._show_warning
            try:
                found = command()
                # Help and the like end with a status instead.
                outcome = found if isinstance(found, Outcome) else None
                status = found.status if isinstance(found, Outcome) else found or 0
            except (Exception, Interrupted) as error:
                outcome, status = self._failed(error)
        if self._stdout is not None:
            os.dup2(self._stdout, 1)
            os.close(self._stdout)
        self._print(outcome)
        return status

    def _failed(self, error: BaseException) -> tuple[Outcome, int]:
        if self._debug:
            traceback.print_exception(error)
        if isinstance(error, click.Abort):  # of a library that asks for Ctrl-C itself
            error = Interrupted(signal.SIGINT)
        if isinstance(error, Interrupted):
            message = one_line("; ".join([str(error), *getattr(error, "__notes__", ())]))
            self._line(message)
            return Outcome({"error": message}), error.status
        if isinstance(error, click.UsageError):
            from ._app import COMMANDS  # which imports this module

            own = [self._command] if self._command in COMMANDS else []
            where = error.ctx.command_path if error.ctx else " ".join(["semalign", *own])
            message, status = f"{error.format_message()} (see {where} --help)", 2
        else:
            message, status = _message(error), 2 if isinstance(error, _BAD_INPUT) else 1
        message = one_line(message)
        self._line(f"error: {message}")
        return Outcome({"error": message}), status

    def _show_warning(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self._line(f"warning: {one_line(str(message))}")

    def _line(self, text: str) -> None:
        print(f"semalign: {text}", file=self._stderr, flush=True)

    def _print(self, outcome: Outcome | None) -> None:
        from .._core.documents import without_nan

        if outcome is None or self._silent:
            return
        try:
            if self._json:
                print(json.dumps(without_nan(outcome.values), allow_nan=False))
            elif outcome.text or outcome.tables:
                _print_for_people(outcome)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def note(self, text: str) -> None:
        """Tell people what is going on, on stderr."""
        if not self.quiet:
            self._line(one_line(text))

    def progress(self, name: str, total: int, done: int = 0) -> "Progress":
        """A progress bar on stderr, unless none is wanted."""
        from .._core.progress import Progress

        return Progress(name, total, done, show=not self.quiet)

    def print_errors_only(self) -> None:
        """Leave the result to another process."""
        self._silent = True

    def keep_libraries_off_stdout(self) -> None:
        """Send to stderr what libraries that are not written in Python print, until the result."""
        sys.stdout.flush()
        self._stdout = os.dup(1)
        os.dup2(2, 1)

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Hide what others show on stderr, if no progress is wanted; `note` and warnings stay."""
        if not self.quiet:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
            yield


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = str(error)
    if isinstance(error, _BAD_INPUT) or (text and isinstance(error, OSError | RuntimeError)):
        return text or type(error).__name__
    return f"unexpected {type(error).__name__}: {text}; --debug shows where"


def one_line(text: str) -> str:
    """Several lines of a message as one, without characters that steer a terminal."""
    first, *rest = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    for line in rest:
        first += f" {line}" if first.endswith((":", ";", ".")) or line[0] == "(" else f"; {line}"
    return printable(first)


def printable(text: str) -> str:
    """A text whose other lines and characters cannot steer a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _print_for_people(outcome: Outcome) -> None:
    from rich import table
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if outcome.text:
        console.print(Text(printable(outcome.text)), soft_wrap=True)
    for caption, header, rows, *_ in outcome.tables:
        shown = table.Table(box=None)
        for number, name in enumerate(header):
            side = "right" if number else "left"
            shown.add_column(Text(printable(name)), justify=side, no_wrap=True)
        for row in rows:
            shown.add_row(*(Text(printable(cell)) for cell in row))
        console.print(Text(f"\n{printable(caption)}"), soft_wrap=True)
        console.print(shown)


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A text in lines, words whole."""
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def write_rows(
    formatter: click.HelpFormatter, rows: Iterable[tuple[str, str]], column: int = 30
) -> None:
    """Names with their sentences, as click writes them but no name is broken at a hyphen."""
    for name, text in rows:
        first = f"  {name:{column - 4}}  "
        if len(first) > column:
            formatter.write(f"  {name}\n")
            first = " " * column
        lines = wrapped(text, formatter.width - column).split("\n")
        formatter.write(f"\n{' ' * column}".join([first + lines[0], *lines[1:]]).rstrip() + "\n")
