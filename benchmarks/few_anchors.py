"""Which anchors, wrong pairs, pools that do not match, and what `fit_auto` costs.

Accuracies are of validation rows of the shipped embeddings, protocols as in `protocols.py`; the
gains over the four maps are in `beyond.py`. Tables of docs/few-anchors.md and
docs/unpaired-data.md:

- selection: `fit_auto` of 50 anchors that `select_anchors` chose in each way;
- wrong pairs: 200 anchors of which a fifth is shuffled; AUROC is of `mismatch_scores`;
- pools: `fit_semi` of 50 anchors with pools of the same classes, and of disjoint ones;
- trust: over pairs of encoders and counts, the rank correlation of the leave-one-out cosine with
  the accuracy;
- cost: time of a compiled fit of 200 anchors of 768 dimensions, over that of `fit_affine`.

Example:
    python benchmarks/few_anchors.py
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anchor_sweep
import defaults
import jax
import numpy as np
import printing
from protocols import Pair, demo_pairs
from scipy.stats import spearmanr

import semalign_jax as sa
from semalign_jax.maps import mismatch_scores
from semalign_jax.metrics import auroc
from semalign_jax.sweeps import select_anchors

PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot")
COUNTS = (10, 20, 50, 100, 200, 500)
POOL = 600
WRONG = 0.2


class Selected(NamedTuple):
    """A row of the table of selections."""

    pair: str
    random: float
    k_medoids: float
    k_means: float
    leverage: float
    farthest: float


class Wrong(NamedTuple):
    """A row of the table of wrong pairs."""

    pair: str
    clean: float
    clean_robust: float
    wrong: float
    wrong_robust: float
    auroc: float


class Pools(NamedTuple):
    """A row of the table of pools."""

    pair: str
    anchors_alone: float
    same_classes: float
    disjoint: float
    shift_same: str
    shift_disjoint: str
    used_disjoint: str


def scorer(pair: Pair) -> Callable[[sa.AffineMap, int], float]:
    """Accuracy of a map, by the test data of a seed."""
    task, _ = (anchor_sweep.stitching if pair.prompts is None else anchor_sweep.zero_shot)(pair)
    metric, data, axes = task
    score = jax.jit(metric)

    def of_seed(mapping: sa.AffineMap, seed: int) -> float:
        own = {k: v if axes[k] is None else v[seed] for k, v in data.items()}
        return float(score(mapping, own))

    return of_seed


def selections(pair: Pair, title: str, score: Any) -> Selected:
    """Accuracies by the way in which 50 anchors were chosen."""
    means = []
    for method in ("random", "k-medoids", "k-means++", "leverage", "farthest"):
        found = []
        for seed, order in enumerate(pair.orders):
            key = jax.random.key(seed)
            rows = order[np.asarray(select_anchors(pair.x[order], 50, method=method, key=key))]
            found.append(score(sa.fit_auto(pair.x[rows], pair.y[rows])[0], seed))
        means.append(float(np.mean(found)))
    return Selected(title, *means)


def wrong_pairs(pair: Pair, title: str, score: Any) -> Wrong:
    """Accuracies with and without a fifth of wrong pairs, weighed down or not."""
    found = []
    for seed, order in enumerate(pair.orders):
        x, y = pair.x[order[:200]], pair.y[order[:200]]
        wrong = np.arange(200) < WRONG * 200
        shuffled = y.copy()
        shuffled[wrong] = np.roll(y[wrong], 1, axis=0)
        maps = (
            sa.fit_auto(x, side, robust=robust)[0]
            for side in (y, shuffled)
            for robust in (False, True)
        )
        ranked = float(auroc(wrong, mismatch_scores(x, shuffled)))
        found.append([*(score(one, seed) for one in maps), ranked])
    return Wrong(title, *np.mean(found, axis=0).tolist())


def pools(pair: Pair, title: str, score: Any) -> Pools:
    """`fit_semi` with pools of the same classes, and with each class in one of them alone."""
    found, shifts, used = [], [], []
    for seed, order in enumerate(pair.orders):
        x, y, rest = pair.x[order[:50]], pair.y[order[:50]], order[50:]
        half = min(POOL, len(rest) // 2)
        even = pair.labels[rest] % 2 == 0
        sides = (rest[:half], rest[half : 2 * half]), (rest[even][:half], rest[~even][:half])
        fits = [sa.fit_semi(x, y, pair.x[p], pair.y[q]) for p, q in sides]
        maps = (sa.fit_auto(x, y)[0], *(fitted for fitted, _ in fits))
        found.append([score(one, seed) for one in maps])
        shifts.append([float(info.shift) for _, info in fits])
        used.append(bool(fits[1][1].used))
    low, high = np.min(shifts, axis=0), np.max(shifts, axis=0)
    ranges = [f"{a:.1f} to {b:.1f}" for a, b in zip(low, high, strict=True)]
    taken = f"{sum(used)} of {len(used)}"
    alone, same, disjoint = np.mean(found, axis=0).tolist()
    return Pools(title, alone, same, disjoint, ranges[0], ranges[1], taken)


def trust(pairs: Sequence[Pair], scores: Sequence[Any], protocol: str) -> float:
    """Rank correlation of leave-one-out cosine and accuracy over pairs, counts and seeds."""
    found = []
    for pair, score in zip(pairs, scores, strict=True):
        if pair.protocol.endswith(protocol):
            for seed, order in enumerate(pair.orders):
                for rows in (order[:count] for count in COUNTS):
                    mapping, info = sa.fit_auto(pair.x[rows], pair.y[rows])
                    found.append((float(info.loo_cosine), score(mapping, seed)))
    return float(np.asarray(spearmanr(np.array(found))[0]))


def costs() -> dict[str, float]:
    """Time of a fit over that of `fit_affine`, the least of ten each."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((200, 768)).astype(np.float32) for _ in range(2))
    fits: dict[str, Callable[[], Any]] = {
        "fit_affine": lambda: sa.fit_affine(x, y),
        "fit_ortho": lambda: sa.fit_ortho(x, y),
        "fit_auto": lambda: sa.fit_auto(x, y),
        "fit_auto(robust=True)": lambda: sa.fit_auto(x, y, robust=True),
    }
    times = dict.fromkeys(fits, np.inf)
    for name in list(fits) * 11:
        started = time.perf_counter()
        jax.block_until_ready(fits[name]())
        times[name] = min(times[name], time.perf_counter() - started)
    return {name: seconds / times["fit_affine"] for name, seconds in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="draws of anchors")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "the map is of the anchors alone")
    pairs = demo_pairs(PROTOCOLS, options.seeds, 1, defaults.validation_split)
    scores = [scorer(pair) for pair in pairs]
    named = [
        (pair, f"{pair.protocol}, {pair.source} to {pair.target}", score)
        for pair, score in zip(pairs, scores, strict=True)
    ]
    for table in (selections, wrong_pairs, pools):
        print(f"\n{table.__name__.replace('_', ' ')}\n", flush=True)
        print(printing.markdown([table(*one) for one in named], 3), flush=True)
    for protocol in ("stitching", "zero-shot"):
        print(f"\ntrust, {protocol}: rank correlation {trust(pairs, scores, protocol):.2f}")
    print("\ncost:", ", ".join(f"{name} {ratio:.1f}" for name, ratio in costs().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
