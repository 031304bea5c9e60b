"""Data sets and their cards: made anew, written, and compared with those that are stored."""

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from semalign_jax import encoders
from semalign_jax._core.files import write_atomically
from semalign_jax.studies.demo import load_demo

from . import sources, weights
from .sources import CheckFailedError, MissingInputError

#: Of each data set, what its rows are.
ROWS = {
    "emoji_efficientnet_lite0": sources.emoji_image_rows,
    "emoji_dinov2_small": sources.emoji_image_rows,
    "emoji_captions_minilm_l6": sources.emoji_caption_rows,
    "emoji_prompts_minilm_l6": sources.emoji_prompt_rows,
    "glosses_minilm_l3": sources.gloss_rows,
    "glosses_minilm_l6": sources.gloss_rows,
}
LIBRARIES = ("semalign_jax", "jax", "transformers", "numpy", "pillow")
TOLERANCE_ULP = 2  # in float16 units in the last place at the file's largest magnitude


@functools.cache
def load_encoder(name: str) -> encoders.Encoder:
    """Load an encoder, once for all data sets that use it."""
    return encoders.load_encoder(weights.CHECKPOINTS[name]())


def make(card: dict[str, Any], archive: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Make one data set.

    Args:
        card: the stored one; what it says in words is kept.
        archive: of its source.

    Returns:
        Embeddings, float16 ``[rows, dimension]``, and their card.
    """
    rows = ROWS[card["name"]](archive)
    encoder = card["encoder"]
    embeddings = encoders.embed(load_encoder(encoder["name"]), rows.items, dtype="float16")[0]
    return embeddings, {
        **card,
        "encoder": {**encoder, "version": importlib.metadata.version(encoder["package"])},
        "dimension": embeddings.shape[1],
        "rows": embeddings.shape[0],
        "row_ids": rows.row_ids,
        "labels": rows.labels,
        "texts": rows.texts,
        "made_with": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "sha256": _sha256(embeddings),
    }


def _sha256(embeddings: np.ndarray) -> str:
    return hashlib.sha256(embeddings.astype("<f2").tobytes()).hexdigest()


def write(out: Path, embeddings: np.ndarray, card: dict[str, Any]) -> None:
    """Write a data set; the card has one line per key, so that a diff shows what changed."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(card[key], ensure_ascii=False)}" for key in card]
    content = safetensors.numpy.save({"embeddings": embeddings})
    write_atomically(out / f"{card['name']}.safetensors", content)
    write_atomically(out / f"{card['name']}.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def compare(out: Path, embeddings: np.ndarray, card: dict[str, Any]) -> str:
    """Compare a data set with the stored one; returns a line with the largest difference.

    Raises:
        MissingInputError: if a stored file is missing or does not fit its card.
        CheckFailedError: if it differs by more than rounding, or is not that of its card.
    """
    name = card["name"]
    try:
        stored = load_demo(name, out)
    except (OSError, ValueError) as error:
        raise MissingInputError(f"nothing to compare with: {error}") from None
    if _sha256(stored.values) != stored.card["sha256"]:
        raise CheckFailedError(f"{name}: the stored embeddings are not those of the stored card")
    # Other versions of the libraries may round differently; everything else must be equal.
    differing = [
        key
        for key in card.keys() | stored.card.keys()
        if key not in ("made_with", "sha256") and card.get(key) != stored.card.get(key)
    ]
    if differing:
        raise CheckFailedError(f"{name}: the card differs in {', '.join(sorted(differing))}")
    difference = np.abs(embeddings.astype(np.float32) - stored.values).max()
    largest = np.float16(np.abs(stored.values).max())
    tolerance = TOLERANCE_ULP * float(np.spacing(largest))
    line = f"{name}: max absolute difference {difference:.3g} (tolerance {tolerance:.3g})"
    if difference <= tolerance:
        return line
    raise CheckFailedError(line)
