"""Long runs that can be stopped and started again: finished cells are kept in a file.

The file has one JSON value per line. The first line holds the settings that all results rest on;
every other line holds a cell and its result. Lines are only ever added. Beside it stands a lock
file, of the same name with `.lock`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import filelock

from .._core.documents import parse_json
from .._core.files import format_header, format_problem, naming, write_atomically
from .._core.progress import Progress

FORMAT = "semalign_jax.cells"
VERSION = 1
Cell = TypeVar("Cell")


def run_cells(
    cells: Sequence[Cell],
    compute: Callable[[Cell], Any],
    path: Path,
    *,
    settings: Mapping[str, Any],
    description: str = "cells",
) -> list[Any]:
    """Compute each cell once, over as many runs as that takes.

    A result is on disk before the next cell starts. If a run dies while it writes, the broken last
    line is dropped at the next start. A progress bar is shown on stderr.

    Args:
        cells: what is to be computed: JSON values, for example `["vit", "bert", 100]`; no two
            alike. Cells of the file that are not among them stay there unused.
        compute: cell -> result, a JSON value.
        path: file of the results; made if it does not exist.
        settings: all that the results depend on besides the cell (options, versions, digests of
            input files): JSON values.
        description: text before the progress bar.

    Returns:
        The results in the order of `cells`, as JSON gives them back (tuples are lists).

    Raises:
        TypeError: if a cell, a result or the settings are no JSON values.
        ValueError: if two cells are alike, or the file is not of this format, is damaged elsewhere
            than in its last line, or was made with other settings (the message says which).
        RuntimeError: if another process is writing the file.
        OSError: if the file cannot be written.
    """
    keys = [_json("cells", cell) for cell in cells]
    twice = [key for key, number in Counter(keys).items() if number > 1]
    if twice:
        raise ValueError(f"cells: {twice[0]} is there more than once")
    path = Path(path)
    header = {**format_header(FORMAT, VERSION), "settings": dict(settings)}
    first = _json("settings", header) + "\n"
    with _locked(path):
        if not path.exists():
            write_atomically(path, first.encode())
        results = _read(path, json.loads(first)["settings"])
        left = [(key, cell) for key, cell in zip(keys, cells, strict=True) if key not in results]
        with (
            path.open("ab") as file,
            Progress(description, len(cells), len(cells) - len(left)) as progress,
        ):
            for key, cell in left:
                result = _json(f"the result of {key}", compute(cell))
                with naming(path):
                    file.write(f'{{"cell": {key}, "result": {result}}}\n'.encode())
                    file.flush()
                    os.fsync(file.fileno())
                results[key] = json.loads(result)
                progress.advance()
    return [results[key] for key in keys]


def _json(name: str, value: Any) -> str:
    """One line that is the same for equal values."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be of JSON values: {error}") from None


def _locked(path: Path) -> AbstractContextManager:
    try:
        return filelock.FileLock(f"{path}.lock").acquire(timeout=0)
    except filelock.Timeout:
        raise RuntimeError(f"{path}: another process is writing it; wait or end that one") from None


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results of the file by cell; a broken last line is cut off."""
    first, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    header = _parse(first, {"format", "format_version", "settings"}) or {}
    problem = format_problem(header, FORMAT, VERSION)
    if problem:
        raise ValueError(f"{path}, line 1, {problem}; or choose another name")
    differ = _differences(header["settings"], settings)
    if differ:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(differ)}): use the old ones, or "
            "another folder"
        )
    results = {}
    size = len(first)
    for number, line in enumerate(lines, start=2):
        entry = _parse(line, {"cell", "result"})
        if entry is not None:
            results[_json("cell", entry["cell"])] = entry["result"]
            size += len(line)
        elif number == len(lines) + 1:
            os.truncate(path, size)
        else:
            raise ValueError(f"{path}, line {number} is damaged; remove that line to compute again")
    return results


def _parse(line: bytes, names: set[str]) -> dict[str, Any] | None:
    """The object of a whole line, None if the line is broken."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = parse_json(line, "the line")
    except ValueError:
        return None
    return value if isinstance(value, dict) and set(value) == names else None


def _differences(old: Any, new: Any) -> list[str]:
    """What differs between two JSON values, one text for each place."""
    before, now = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{name}: {before.get(name, 'not set')} there, {now.get(name, 'not set')} now"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values; these as text, since NaN is not equal to itself."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value)
