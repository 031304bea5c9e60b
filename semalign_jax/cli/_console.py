"""What all commands share: options, output, errors and exit statuses.

A command returns an `Outcome`, which is printed here: as one JSON object or for people. Progress,
warnings and errors go to stderr. Exit statuses: 0; 1 if a run failed or found problems; 2 for bad
input; 130 if it was interrupted.
"""

import functools
import inspect
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from .._core.progress import Progress
    from ..studies.inputs import Settings
    from ..studies.report import Table

#: Base of all errors in the words of a command line; typer does not export it.
_UsageError: Any = typer.BadParameter.__bases__[0]
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
_INTERRUPTED = 130
_ORDER = (
    "embed",
    "fit",
    "apply",
    "sweep",
    "stitch",
    "zeroshot",
    "report",
    "demo",
    "info",
    "verify",
    "convert",
)

S = TypeVar("S", bound="Settings")


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


@dataclass
class _Mode:
    """What was asked for on the command line that is now carried out."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    silent: bool = False
    stdout: int | None = None  # a copy of the descriptor, while libraries cannot reach it
    stderr: TextIO = sys.stderr


_mode = _Mode()


class Commands(TyperGroup):
    """The group of all commands: prints outcomes and turns exceptions into a line and a status."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which they are used."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any):
        """Run a command line and exit."""
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        options = words[: words.index("--")] if "--" in words else words
        _mode.json, _mode.quiet, _mode.debug = (
            f"--{name}" in options for name in ("json", "quiet", "debug")
        )
        _mode.silent = False
        _mode.stderr = sys.stderr
        # Whatever a library prints: stdout is for the result alone.
        aside = redirect_stdout(sys.stderr) if _mode.json and "--help" not in options else None
        extra["standalone_mode"] = False
        with aside or nullcontext(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                found = super().main(words, prog_name or "semalign", **extra)
                # Help and the like end with a status instead.
                outcome = found if isinstance(found, Outcome) else None
                status = found if isinstance(found, int) else outcome.status if outcome else 0
                if status == _INTERRUPTED:
                    _line("interrupted")
            except (Exception, KeyboardInterrupt) as error:
                outcome, status = _failed(error)
        if _mode.stdout is not None:
            os.dup2(_mode.stdout, 1)
            os.close(_mode.stdout)
            _mode.stdout = None
        _print(outcome)
        sys.exit(status)


def _failed(error: Any) -> tuple[Outcome, int]:
    if _mode.debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        message, status = "interrupted", _INTERRUPTED
    elif isinstance(error, _UsageError):
        where = error.ctx.command_path if error.ctx else "semalign"
        message, status = f"{error.format_message()} (see {where} --help)", 2
    else:
        status = 2 if isinstance(error, _BAD_INPUT) else 1
        message = _message(error)
    message = one_line(message)
    _line(f"error: {message}" if status != _INTERRUPTED else message)
    return Outcome({"error": message}), status


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
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in first)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _line(f"warning: {one_line(str(message))}")


def _line(text: str) -> None:
    print(f"semalign: {text}", file=_mode.stderr, flush=True)


def note(text: str) -> None:
    """Tell people what is going on, on stderr."""
    if not _mode.quiet:
        _line(one_line(text))


def _print(outcome: Outcome | None) -> None:
    if outcome is None or _mode.silent:
        return
    try:
        if _mode.json:
            print(json.dumps(_without_nan(outcome.values), allow_nan=False))
        elif outcome.text or outcome.tables:
            _print_for_people(outcome)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_for_people(outcome: Outcome) -> None:
    from rich import table
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if outcome.text:
        console.print(Text(outcome.text), soft_wrap=True)
    for caption, header, rows in outcome.tables:
        shown = table.Table(box=None)
        for number, name in enumerate(header):
            shown.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(Text(f"\n{caption}"), soft_wrap=True)
        console.print(shown)


def progress(name: str, total: int, done: int = 0) -> "Progress":
    """A progress bar on stderr, unless none is wanted."""
    from .._core.progress import Progress

    return Progress(name, total, done, show=not _mode.quiet)


def quiet() -> bool:
    """Whether no progress is wanted."""
    return _mode.quiet


def print_errors_only() -> None:
    """Leave the result to another process."""
    _mode.silent = True


def keep_libraries_off_stdout() -> None:
    """Send to stderr what libraries that are not written in Python print, until the result."""
    sys.stdout.flush()
    if _mode.stdout is None:
        _mode.stdout = os.dup(1)
        os.dup2(2, 1)


@contextmanager
def hushed() -> Iterator[None]:
    """Hide what others show on stderr, if no progress is wanted; `note` and warnings stay."""
    if not _mode.quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name what was written in errors of the system that do not: a full disk, for example."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


_COMMON = {
    "json": "Print one JSON object on stdout, and nothing else.",
    "quiet": "Show no progress.",
    "debug": "Show where an error comes from.",
}


def command(app: typer.Typer, name: str, *, examples: Sequence[str]) -> Callable:
    """Make a function a command; adds ``--json``, ``--quiet`` and ``--debug``.

    Args:
        app: the commands.
        name: of this one.
        examples: command lines for its help.
    """

    def decorate(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        @functools.wraps(function)
        def run(**options: Any) -> Outcome:
            # `Commands.main` has looked for these itself.
            return function(**{k: v for k, v in options.items() if k not in _COMMON})

        common = [
            inspect.Parameter(
                word,
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=Annotated[bool, typer.Option(f"--{word}", help=text)],
            )
            for word, text in _COMMON.items()
        ]
        signature = inspect.signature(function)
        parameters = [*signature.parameters.values(), *common]
        run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        heading = "Example:" if len(examples) == 1 else "Examples:"
        app.command(name, epilog="\n\n".join((heading, *examples)))(run)
        return function

    return decorate


def settings_of(
    kind: type[S], flags: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> S:
    """The settings of a command: from the file of ``--config``, with what was given before it.

    Args:
        kind: of the settings.
        flags: parameters of the command: ``config``, and values by the names of the settings; None
            and an empty list count as not given.
        extra: further values, where None is a value.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for settings that are missing or wrong.
    """
    from ..studies.inputs import load_settings

    flags = dict(flags)
    config = flags.pop("config")
    given = {k: _absolute(v) for k, v in flags.items() if v is not None and v != []}
    given |= extra or {}
    try:
        return load_settings(kind, config and here(config), given)
    except ValueError as error:
        message = str(error).removeprefix("settings: ").replace("Value error, ", "")
        missing = re.findall(r"(\S+): Field required", message)
        if missing:
            rest = [part for part in message.split("; ") if not part.endswith("Field required")]
            names = ", ".join(missing)
            where = "give it on the command line, or in the file of --config"
            message = "; ".join((f"missing: {names} ({where})", *rest))
        raise ValueError(message) from None


def here(path: str | Path) -> Path:
    """A path of the command line in full: it starts here, others at their settings file."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return here(value) if isinstance(value, Path) else value


def keys_and_values(name: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read ``key=value`` options; values that are JSON are read as such, others are text.

    Raises:
        ValueError: for an option without a key or a value.
    """
    found = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise ValueError(f"--{name} {pair!r}: expected KEY=VALUE")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def save_settings(settings: "Settings", path: Path) -> None:
    """Write resolved settings, to be used again with ``--config``."""
    from ..studies.report import write_json

    write_json(path, settings.model_dump(mode="json"))


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings (YAML or JSON) by the names of the options; the command line goes before.",
    ),
]
