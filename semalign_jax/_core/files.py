"""Files that are written whole or not at all, say what they are, and are known by a hash."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the old file or the whole new one is there, never a part."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # of a full disk, the system says only that it is full
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
