"""From a folder or hub id to a folder of files."""

from pathlib import Path


def resolve_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint."""
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return folder
