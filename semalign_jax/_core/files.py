"""Files that are written whole or not at all, say what they are, and are known by a hash."""

import hashlib
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a hidden file beside `path` to write to, which then takes its place in one step.

    If that fails, the old file stays. Synced before the step and after it, so that it counts even
    if the power fails. What a killed process of this machine has left is removed.
    """
    path = Path(path)
    stem = f".{path.name[:100]}.{socket.gethostname()[:50]}-"
    with os.scandir(path.parent) as entries:  # quick also where a store has many files
        others = [entry for entry in entries if entry.name.startswith(stem)]
    for left in others:
        if not _is_running(left.name.removeprefix(stem).partition("-")[0]):
            Path(left).unlink(missing_ok=True)
    temporary = path.with_name(f"{stem}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # of a full disk, the system says only that it is full
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


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # other systems have no handle of a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
