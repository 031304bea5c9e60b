"""Which completion and normalisation serve the orthogonal and linear maps best?

The defaults of `fit_ortho` and the settings of `anchor_sweep.py` rest on this table. It never
sees the test rows of the demo: a quarter of the training rows is held out in their place.

Example:
    python benchmarks/defaults.py
"""

import argparse
from collections.abc import Sequence

import anchor_sweep
import numpy as np
import printing
from protocols import demo_pairs, split_rows

from semalign_jax import SweepMethod
from semalign_jax.studies.tables import summarize

COUNTS = (10, 50, 200, 800)
NORMALIZE = ("none", "center", "isotropic", "standard")
METHODS = {
    f"{method} {completion} {normalize}": SweepMethod(
        method, completion=completion, normalize=normalize
    )
    for method in ("ortho", "l-ortho")
    for completion in ("orthogonal", "partial")
    for normalize in NORMALIZE
} | {f"linear {normalize}": SweepMethod("linear", normalize=normalize) for normalize in NORMALIZE}


def validation_split(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the demo's training rows into rows for anchors and heads, and validation rows."""
    train, _ = split_rows(n)
    order = np.random.default_rng(1).permutation(train)
    cut = len(order) - len(order) // 4
    return np.sort(order[:cut]), np.sort(order[cut:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each protocol and pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="random anchor sets")
    seeds = parser.parse_args(arguments).seeds
    protocols = ("text-stitching", "vision-stitching", "zero-shot")
    pairs = demo_pairs(protocols, seeds, splits=1, split=validation_split)
    records = anchor_sweep.run_all(pairs, COUNTS, METHODS)
    printing.print_tables(summarize(records))


if __name__ == "__main__":
    main()
