"""What the preprocessing of texts and of images have in common."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._core.files import content_hash


def auto_class(name: str) -> Any:
    """Return a class of transformers; it is slow to import, and not needed to encode."""
    # Or it prints that PyTorch is not there, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return getattr(transformers, name)


def fingerprint(rules: Mapping[str, Any], folder: Path, names: Sequence[str]) -> str:
    """Return a SHA-256 over settings and those of the named files that the folder has."""
    parts: list[str | bytes] = [json.dumps(rules, sort_keys=True)]
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            parts += [f"\0{name}\0{len(content)}\0", content]
    return content_hash(parts)


def unreadable(what: str, folder: Path, error: Exception) -> ValueError:
    """Return the error of a tokenizer or an image processor that transformers cannot make."""
    if "trust_remote_code" in str(error):
        reason = (
            "it asks for code of its own (auto_map), which is never run here. If one of the "
            "classes of transformers does the same, name that one in the file instead"
        )
        return ValueError(f"the {what} in {folder} cannot be used: {reason}")
    return ValueError(f"the {what} in {folder} cannot be read: {error}")
