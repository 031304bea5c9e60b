"""What are unpaired rows and the choice of anchors worth? The tables of docs/unpaired-data.md.

On validation rows of the shipped embeddings, protocols as in `anchor_sweep.py`: accuracy with the
map of the anchors alone and with unpaired rows, at most 600 of either side; and with 50 anchors
chosen in each way, the map of the anchors alone.

Examples:
    python benchmarks/unpaired.py
    python benchmarks/unpaired.py --seeds 2 --counts 50
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

import anchor_sweep
import defaults
import jax
import numpy as np

import semalign_jax as sa
from semalign_jax.sweeps import select_anchors

PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot")
SELECTIONS = ("random", "k-medoids", "k-means++", "leverage", "farthest")
COUNTS = (10, 50, 200)
POOL = 600
CHOSEN = 50


def scorer(pair: anchor_sweep.Pair) -> Callable[[sa.AffineMap, int], float]:
    """Accuracy of a map, by the test data of a seed."""
    task, _ = (anchor_sweep.stitching if pair.prompts is None else anchor_sweep.zero_shot)(pair)
    metric, data, axes = task
    score = jax.jit(metric)

    def of_seed(mapping: sa.AffineMap, seed: int) -> float:
        own = {k: v if axes[k] is None else v[seed] for k, v in data.items()}
        return float(score(mapping, own))

    return of_seed


def alone(x: np.ndarray, y: np.ndarray) -> sa.AffineMap:
    """The map that `fit_semi` falls back to, here since two rows are far from all others."""
    return sa.fit_semi(x, y, x[:2], y[:2] + 1e3)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "the map is of the anchors alone")
    for pair in anchor_sweep.demo_pairs(PROTOCOLS, options.seeds, 1, defaults.validation_split):
        score, title = scorer(pair), f"{pair.protocol}, {pair.source} to {pair.target}"
        for count in options.counts:
            found = []
            for seed, order in enumerate(pair.orders):
                rows, rest = order[:count], order[count:]
                half = min(POOL, len(rest) // 2)
                p, q = pair.x[rest[:half]], pair.y[rest[half : 2 * half]]
                x, y = pair.x[rows], pair.y[rows]
                mapping, info = sa.fit_semi(x, y, p, q)
                found.append((score(alone(x, y), seed), score(mapping, seed), info.used))
            one, two, used = np.mean(found, axis=0)
            print(f"{title}: {count} anchors {one:.3f}, with unpaired {two:.3f} (used {used:.0%})")
        for method in SELECTIONS:
            found = []
            for seed, order in enumerate(pair.orders):
                key = jax.random.key(seed)
                rows = order[select_anchors(pair.x[order], CHOSEN, method=method, key=key)]
                found.append(score(alone(pair.x[rows], pair.y[rows]), seed))
            print(f"{title}: {CHOSEN} anchors by {method} {np.mean(found):.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
