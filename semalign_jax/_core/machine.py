"""What this machine has: cores and free disk."""

import os
import shutil
from pathlib import Path


def core_count() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_space(folder: Path) -> int:
    """Free bytes of the disk of a folder; it or one above it exists."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse, before any work, what would not fit on the disk of a folder.

    Args:
        folder: that will be written to; it or one above it exists.
        needed: bytes.
        what: will be written, for the message.
    """
    free = free_space(folder)
    if free < needed:
        raise OSError(
            f"{folder}: {what} take {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of the "
            "disk are free"
        )
