"""Files that are written whole or not at all, say what they are, and are known by a hash."""

import errno
import hashlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: Seconds after which what another machine has left counts as left by a killed process.
_OLD = 24 * 3600.0


def as_path(path: str | os.PathLike) -> Path:
    """A path as users write it: `~` is the home folder, as in a shell."""
    return Path(path).expanduser()


def beside(path: Path) -> Path:
    """A hidden name beside `path` that no other process takes, for what will take its place.

    What a killed process has left under such a name is removed: at once if it ran on this machine,
    after a day without a change if on another.
    """
    name = path.name.encode(errors="surrogateescape")[:100]  # systems limit bytes
    stem = f".{name.decode(errors='ignore')}."
    here = f"{socket.gethostname()[:50]}-"
    with os.scandir(path.parent) as entries:  # quick also where a store has many files
        others = [entry for entry in entries if entry.name.startswith(stem)]
    for left in others:
        host, dash, process = left.name.removeprefix(stem).rpartition("-")[0].rpartition("-")
        if not dash or not process.isdecimal():
            continue  # not a name of ours
        if _is_running(process) if f"{host}-" == here else _changed(left) > time.time() - _OLD:
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)  # another process may be quicker
        else:
            Path(left).unlink(missing_ok=True)
    return path.with_name(f"{stem}{here}{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not: of a full disk, for example."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a hidden file beside `path` to write to, which then takes its place in one step.

    If that fails, the old file stays. Synced before the step and after it, so that it counts even
    if the power fails. What a killed process has left is removed, see `beside`.
    """
    temporary = beside(path)
    try:
        with naming(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the old file or the whole new one is there, never a part."""
    with replaced(path) as temporary:
        temporary.write_bytes(data)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return time.time()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # other systems have no handle of a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Say of whatever a library raises for a file's contents that the file is damaged or foreign.

    What the system says (no permission, too many open files) stays as it is, and so does a message
    that names the file already.

    Args:
        path: of the file.
        what: it should be, for the message, e.g. "Parquet file".

    Raises:
        ValueError: names the file.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds
        # A seek to a place that a file gives can be invalid.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            error.filename = error.filename or str(path)
            raise
        if str(path) in str(error):
            raise
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or no {what}: {why}") from None


def format_header(name: str, version: int) -> dict[str, Any]:
    """What each file of ours begins with, so that it is known for what it is."""
    return {"format": name, "format_version": version}


def format_problem(header: Any, name: str, *versions: int) -> str:
    """What is wrong with the header of a file that is read, to be said after its path, or "".

    Args:
        header: of the file, what `format_header` gave if it is one of ours.
        name: of the format that is expected.
        *versions: of it that this release reads.
    """
    found = header.get("format") if isinstance(header, Mapping) else None
    if found != name:
        return f"has format {found!r}, expected {name!r}: it is another file"
    version = header.get("format_version")
    # Metadata of safetensors are text.
    if version not in (*versions, *map(str, versions)):
        known = " and ".join(map(str, versions))
        return f"has {name!r} version {version!r}; this release reads {known}: update semalign_jax"
    return ""


def content_hash(parts: Iterable[bytes | str | np.ndarray | None]) -> str:
    """The SHA-256 of texts, bytes and arrays (with their dtypes and shapes), as 64 hex digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).tobytes())
        elif part is None:
            total.update(b"none")
        else:
            data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
            total.update(data)
    return total.hexdigest()
