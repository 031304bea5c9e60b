"""The shipped embeddings; `benchmarks/demo_embeddings` makes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from .._core.trees import by_value

DATA = Path(__file__).parent / "demo_data"
#: Share of the rows that are tested.
TEST_SHARE = 0.3
#: Encoders of the emoji -> embeddings.
EMOJI = {"EfficientNet-Lite0": "emoji_efficientnet_lite0", "DINOv2-small": "emoji_dinov2_small"}


@by_value
@dataclass(frozen=True)
class Embeddings:
    """Embeddings of one encoder with their card.

    Attributes:
        values: float32 [rows, dimension].
        card: the JSON card: source, encoder, row ids, labels (see benchmarks/demo_embeddings).
    """

    values: np.ndarray
    card: dict

    @property
    def dimension(self) -> int:
        """Length of a row."""
        return self.values.shape[1]

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self.card["row_ids"])

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Some rows, as a store gives them."""
        return self.values[positions]

    def labels(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Class of every row (int32) and the class names."""
        entry = self.card["labels"][name]
        return np.asarray(entry["values"], np.int32), entry["names"]


def load_demo(name: str, directory: Path = DATA) -> Embeddings:
    """Load one of the shipped sets of embeddings by the name of its card.

    Raises:
        ValueError: if the file or its card is missing or they do not fit.
    """
    card_path = directory / f"{name}.json"
    if not card_path.is_file():
        raise ValueError(f"demo data: {card_path} is missing; run benchmarks/demo_embeddings")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    values = load_file(directory / f"{name}.safetensors")["embeddings"].astype(np.float32)
    if values.shape != (len(card["row_ids"]), card["dimension"]):
        raise ValueError(f"demo data: {name} has shape {values.shape}, unlike its card")
    return Embeddings(values, card)


def split_demo(sets: Mapping[str, Embeddings]) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to test, at random but always the same.

    Rows that repeat an earlier one under any encoder are in neither: nothing that is tested may be
    an anchor too.
    """
    rows = np.arange(len(next(iter(sets.values())).values))
    for one in sets.values():
        rows = np.intersect1d(rows, np.unique(one.values, axis=0, return_index=True)[1])
    order = np.random.default_rng(0).permutation(len(rows))
    cut = len(rows) - round(TEST_SHARE * len(rows))
    return rows[np.sort(order[:cut])], rows[np.sort(order[cut:])]
