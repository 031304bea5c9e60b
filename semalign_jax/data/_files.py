"""Tables and file trees on disk: strict, and with file and line in every message."""

import csv
import difflib
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from .._core.files import as_path
from .._core.ids import id_text
from ._dataset import DatasetError, Label, Problems

#: How programs spell a cell without a value, in lower case.
_MISSING = frozenset(("", "na", "n/a", "nan", "<na>", "none", "null"))
#: Characters of a cell; reports are longer than the 131072 of the csv module.
_LONGEST = 1 << 24


def folder(path: str | os.PathLike, what: str) -> Path:
    """`path` if it is a folder, else `FileNotFoundError`."""
    path = as_path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no {what} at {path}: there is no such folder")
    return path


def table_path(folders: Sequence[Path], name: str) -> Path:
    """The first of `name` or `name.gz` that is in one of the folders."""
    for place in folders:
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    places = " or ".join(str(place) for place in folders)
    raise FileNotFoundError(f"{name} (or {name}.gz) is not in {places}")


def read_csv(
    path: Path, required: Iterable[str], *, encoding: str = "utf-8-sig"
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, row) of a CSV file with a header, gzipped or not.

    Args:
        path: the file.
        required: columns that must be there.
        encoding: of the text; a byte order mark is dropped by default.

    Yields:
        `where` names file and line for messages; `row` maps columns to stripped cells, which are
        empty where they spell a missing value, e.g. NA.

    Raises:
        DatasetError: if required columns are missing or there twice, a row has another number of
            cells than the header, or the file is not text in this encoding.
    """
    rows = _csv_rows(path, encoding)
    _, header = next(rows)
    refuse_missing(path, header, required)
    for where, cells in rows:
        if len(cells) != len(header):
            raise DatasetError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        yield where, dict(zip(header, map(known_text, cells), strict=True))


def read_header(path: Path) -> list[str]:
    """The names of the columns of a CSV file."""
    return next(_csv_rows(path, "utf-8-sig"))[1]


def _csv_rows(path: Path, encoding: str) -> Iterator[tuple[str, list[str]]]:
    """Where and what: the header, then every line that is not blank."""
    opener = gzip.open if path.suffix == ".gz" else open
    line = 1
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    try:
        with opener(path, "rt", encoding=encoding, newline="") as file:
            reader = csv.reader(_bounded_lines(path, file), strict=True)
            yield f"{path}, line 1", [name.strip() for name in next(reader, [])]
            for cells in reader:
                # A quoted cell may span lines: the row is named by its last one.
                line = reader.line_num
                if cells:
                    yield f"{path}, line {line}", cells
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: not {encoding} text after line {line} ({error.reason}); convert the file"
        ) from None
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path}, after line {line}: not a whole CSV file: {error}") from None


def _bounded_lines(path: Path, file: TextIO) -> Iterator[str]:
    # A small archive can hold one line that fills memory.
    while line := file.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise DatasetError(f"{path} has a line of more than {_LONGEST} characters: no table")
        yield line


def known_text(value: str) -> str:
    """A cell without white space around it; empty if it spells a missing value."""
    value = value.strip()
    return "" if len(value) < 5 and value.lower() in _MISSING else value


def refuse_missing(path: Path, header: Sequence[str], required: Iterable[str]) -> None:
    """Raise `DatasetError` if a table lacks columns, or has one of them twice.

    What is no known column may be a patient: the first line of a file without header is data.
    """
    required = list(dict.fromkeys(required))
    missing = [name for name in required if name not in header]
    if not missing:
        doubled = [name for name in required if header.count(name) > 1]
        if doubled:
            raise DatasetError(
                f"{path}: the header names these columns twice: {', '.join(doubled)}"
            )
        return
    if len(missing) < len(required):
        there = f"the header has {', '.join(header)}"
    elif not header:
        there = "the header has nothing"
    else:
        lower = {name.lower(): name for name in header}
        alike = (difflib.get_close_matches(wanted.lower(), lower) for wanted in missing)
        close = {lower[name] for names in alike for name in names}
        there = f"its first line has {len(header)} other cells"
        similar = f", similar: {', '.join(sorted(close))}"
        there += similar if close else "; does it have a header, and commas between columns?"
    raise DatasetError(f"{path}: missing columns {', '.join(missing)}; {there}")


def quoted(value: str) -> str:
    """A cell for messages: small numbers as they are, of everything else only the length.

    In a column that is shifted or not what it was taken for there can be a patient's name.
    """
    if re.fullmatch(r"-?\d{1,2}(\.\d{1,2})?", value):
        return repr(value)
    return f"({len(value)} characters)"


def cell(row: dict[str, str], column: str, where: str) -> str:
    """A cell that must not be empty."""
    if not row[column]:
        raise DatasetError(f"{where}: {column} is empty", f"with empty {column}")
    return row[column]


def id_cell(row: dict[str, str], column: str, where: str) -> str:
    """An id, which must not be empty; see `id_text`."""
    return id_text(cell(row, column, where))


def note_once(seen: set[str], value: str, column: str, where: str) -> None:
    """Note an id of a table whose rows are images; refuse one that another row has."""
    if value in seen:
        raise DatasetError(f"{where}: {column} {value} occurs twice", "with doubled id")
    seen.add(value)


def label_codes(row: dict[str, str], columns: Iterable[str], where: str) -> list[Label]:
    """Codes of the cells 1, 0, -1, True, False and blank in some columns; 1.0 and 1.00 are 1."""
    codes = []
    for column in columns:
        code = _label_code(row[column])
        if code is None:
            raise DatasetError(
                f"{where}: unknown label value {quoted(row[column])} in column {column}; "
                f"expected 1, 0, -1 or blank",
                "with unknown label values",
            )
        codes.append(code)
    return codes


@lru_cache(1024)
def _label_code(value: str) -> Label | None:
    if not value:
        return Label.BLANK
    if value.lower() in ("true", "false"):
        return Label.POSITIVE if value.lower() == "true" else Label.NEGATIVE
    try:
        number = float(value)
    except ValueError:
        return None
    return Label(int(number)) if number in (1, 0, -1) else None


def find_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Paths below `root` with one of the suffixes (lower case), sorted; hidden files are left out.

    Links to folders are followed, except to one that holds the link.
    """
    found = []
    for place, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _leads_up(place, name)]
        # As pathlib writes them, so that they equal the paths that readers make.
        found += [
            str(Path(place, name))
            for name in names
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")
        ]
    return sorted(found)


def _leads_up(place: str, name: str) -> bool:
    path = os.path.join(place, name)
    if not os.path.islink(path):
        return False
    here, target = os.path.realpath(place), os.path.realpath(path)
    return os.path.commonpath([here, target]) == target


def stem_index(paths: Iterable[str], suffixes: Sequence[str], problems: Problems) -> dict[str, str]:
    """File by stem; of several suffixes the first one given, of one suffix twice is a problem."""
    rank = {suffix: i for i, suffix in enumerate(suffixes)}
    best: dict[str, tuple[int, str]] = {}
    for path in paths:
        stem, suffix = os.path.splitext(os.path.basename(path))
        entry = rank[suffix.lower()], path
        if stem in best and best[stem][0] == entry[0]:
            problems.add(
                f"{path}: the same file name as {best[stem][1]}", "with a doubled file name"
            )
        elif stem not in best or entry < best[stem]:
            best[stem] = entry
    return {stem: path for stem, (_, path) in best.items()}


def files_without_rows(
    found: Iterable[str], used: Iterable[str], table: Path | str, problems: Problems
) -> None:
    """Note the files that no row of a table names."""
    for path in sorted(set(found) - set(used)):
        problems.add(f"{path}: no row in {table}", "without row")
