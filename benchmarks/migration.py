"""What a search keeps when its index moves to another encoder by a map; docs/migration.md.

The shipped embeddings: MiniLM-L3 to L6 on glosses, EfficientNet-Lite0 to DINOv2-small on emoji. In
each draw some rows are searched among, by half of them as queries, and maps are fitted to others.
Recall@10 is the share of queries whose nearest row after a full re-embedding is among the first 10
of the mapped rows, overlap@10 the share of the first 10 that are the same; mean over draws.

Example:
    python benchmarks/migration.py
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import printing

import semalign_jax as sa
from semalign_jax.studies.demo import load_demo
from semalign_jax.studies.migration import search_kept

PAIRS = {
    "MiniLM-L3 to L6": ("glosses_minilm_l3", "glosses_minilm_l6", 1000, (100, 500, 2000)),
    "EfficientNet to DINOv2": (
        "emoji_efficientnet_lite0",
        "emoji_dinov2_small",
        900,
        (100, 500, 1000),
    ),
}
MAPS: dict[str, Callable[[np.ndarray, np.ndarray], sa.AffineMap]] = {
    "naive swap": lambda x, y: sa.identity_map(x.shape[1], y.shape[1]),
    "ortho": lambda x, y: sa.fit_ortho(x, y, normalize="isotropic"),
    "linear, ridge": lambda x, y: sa.fit_linear(x, y, ridge="loo"),
    "affine": sa.fit_affine,
    "affine, ridge": lambda x, y: sa.fit_affine(x, y, ridge="loo"),
    "auto": lambda x, y: sa.fit_auto(x, y)[0],
}


class Line(NamedTuple):
    """A row of the table."""

    pair: str
    sample: int
    map: str
    recall_at_1: float
    recall_at_10: float
    overlap_at_10: float


def lines(pair: str, draws: int) -> list[Line]:
    """All maps and samples of a pair of encoders."""
    old, new, searched, samples = PAIRS[pair]
    old, new = load_demo(old).values, load_demo(new).values
    found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(old))
        among, rest = order[:searched], order[searched:]
        own = np.arange(0, searched, 2)
        for sample in samples:
            x, y = old[rest[:sample]], new[rest[:sample]]
            kept = search_kept(
                {name: fit(x, y) for name, fit in MAPS.items()},
                old[among],
                new[among],
                new[among][own],
                jax.random.key(draw),
                own=own,
                ks=(1, 10),
                resamples=2,
            )
            for name in MAPS:
                mine = {one[1:3]: one.value for one in kept if one.method == name}
                values = mine["recall", 1], mine["recall", 10], mine["overlap", 10]
                found.setdefault((sample, name), []).append(values)
    return [
        Line(pair, *at, *np.round(np.mean(values, axis=0), 3).tolist())
        for at, values in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=5, help="draws of samples")
    options = parser.parse_args(arguments)
    if options.draws < 1:
        parser.error("--draws must be at least 1")
    print(printing.markdown([line for pair in PAIRS for line in lines(pair, options.draws)], 3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
