"""The shipped embeddings of real data; `benchmarks/demo_embeddings` makes them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

DATA = Path(__file__).parent / "demo_data"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of one encoder with their card.

    Attributes:
        values: float32 [rows, dimension].
        card: the JSON card: source, encoder, row ids, labels (see `benchmarks/demo_embeddings`).
    """

    values: np.ndarray
    card: dict

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
