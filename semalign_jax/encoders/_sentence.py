"""The settings of sentence-transformers that a folder may have: pooling and normalisation."""

from pathlib import Path
from typing import NamedTuple


class SentenceSettings(NamedTuple):
    """Of ``modules.json``: None where it says nothing."""

    pooling: str | None = None
    normalize: bool = False
    max_tokens: int | None = None


def sentence_settings(folder: Path) -> SentenceSettings:
    """Read the settings of a folder."""
    return SentenceSettings()
