"""How well does each map align two encoders, as the number of anchors grows?

Runs, on the embeddings shipped in `semalign_jax/studies/demo_data`, four protocols after Di Folco
et al. 2025 (arXiv 2503.04478) and Maiorca et al. 2023 (arXiv 2311.00664):

- text-stitching: WordNet glosses, 26 supersenses, MiniLM-L3 to MiniLM-L6 and back;
- vision-stitching: emoji, 9 categories, EfficientNet-Lite0 to DINOv2-small and back;
- zero-shot: emoji, 9 categories, each image encoder mapped into the space of MiniLM-L6, where
  class prompts decide;
- zero-shot-unseen: as before, but the 10 subcategories to tell apart have no anchor.

The work is done by one call of `anchor_sweep` for each pair of encoders, see `run_pair`. For your
own embeddings there are `semalign stitch` and `semalign zeroshot`, or a `Pair` made of them.

Examples:
    python benchmarks/anchor_sweep.py --out results
    python benchmarks/anchor_sweep.py --quick
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import printing
from protocols import PROTOCOLS, Pair, demo_pairs

from semalign_jax import AffineMap, SweepMethod, anchor_sweep, fit_head, identity_map
from semalign_jax.stitching import head_accuracy
from semalign_jax.studies import backend_settings, drawings, report, settings
from semalign_jax.studies.tables import summarize, write_csv
from semalign_jax.zeroshot import evaluate_zero_shot

backend_settings.apply(quick_compile=True)  # before JAX computes

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
SEEDS = 5
SPLITS = 8

#: The four maps and the affine one with a penalty, as in the studies; and a control.
METHODS = {name: SweepMethod(**options) for name, options in settings.METHODS.items()}
METHODS["shuffled"] = SweepMethod(**settings.METHODS["ridge"], shuffled=True)


def stitching_accuracy(mapping: AffineMap, data: dict[str, Any]) -> jax.Array:
    """Accuracy of the target's head on mapped source embeddings."""
    return head_accuracy(mapping >> data["head"], data["x"], data["labels"])


def zero_shot_accuracy(
    mapping: AffineMap, data: dict[str, Any], *, centred: bool = True
) -> jax.Array:
    """Accuracy by cosine similarity to class prompts, both centred by the text anchors."""
    return evaluate_zero_shot(
        mapping,
        data["x"],
        data["labels"],
        data["prompts"],
        data["prompt_labels"],
        data["allowed"].shape[-1],
        center=mapping.target_offset if centred else None,
        weights=data["weights"],
        allowed=data["allowed"],
    )


#: A metric, its test data, and which of them have an axis of seeds.
Task = tuple[Callable[[AffineMap, Any], jax.Array], dict[str, Any], dict[str, Any]]


def stitching(pair: Pair) -> tuple[Task, dict[str, Any]]:
    """A head trained on the target reads mapped source rows; also the lines without anchors."""
    train, test = np.unique(pair.orders), pair.tests[0]
    head = fit_head(pair.y[train], pair.labels[train], int(pair.labels.max()) + 1)
    data = {"x": pair.x[test], "labels": pair.labels[test], "head": head}
    naive = identity_map(pair.x.shape[1], pair.y.shape[1], dtype=head.weight.dtype)
    return (stitching_accuracy, data, dict.fromkeys(data)), {
        "naive": stitching_accuracy(naive, data),
        "upper bound": head_accuracy(head, pair.y[test], pair.labels[test]),
    }


def zero_shot(pair: Pair) -> tuple[Task, dict[str, Any]]:
    """Anchors are (image, caption) pairs, prompts stand for the classes."""
    # Padded to one length, so that all seeds share compiled code.
    longest = max(map(len, pair.tests))
    rows = np.stack([np.resize(test, longest) for test in pair.tests])
    data = {
        "x": pair.x[rows],
        "labels": pair.labels[rows],
        "prompts": pair.prompts,
        "prompt_labels": pair.prompt_labels,
        "weights": np.stack([np.arange(longest) < len(test) for test in pair.tests]),
        "allowed": pair.allowed,
    }
    axes = {name: None if "prompt" in name else 0 for name in data}
    naive = identity_map(pair.x.shape[1], pair.y.shape[1], dtype=pair.x.dtype)
    # Upper bound: the images' own captions, centred like the prompts.
    center = jnp.asarray(pair.y[np.unique(pair.orders)].mean(axis=0))
    own = AffineMap(jnp.eye(pair.y.shape[1], dtype=pair.y.dtype), center, center)

    def of_seeds(mapping: AffineMap, data: dict[str, Any], centred: bool) -> jax.Array:
        score = partial(zero_shot_accuracy, mapping, centred=centred)
        return jax.jit(jax.vmap(score, in_axes=(axes,)))(data)

    return (zero_shot_accuracy, data, axes), {
        "naive": of_seeds(naive, data, False),
        "upper bound": of_seeds(own, data | {"x": pair.y[rows]}, True),
    }


def run_pair(
    pair: Pair, counts: Sequence[int], methods: Mapping[str, SweepMethod]
) -> list[dict[str, Any]]:
    """Score every method at every anchor count and seed."""
    started = time.perf_counter()
    task, references = stitching(pair) if pair.prompts is None else zero_shot(pair)
    metric, data, axes = task
    found: list[dict[str, Any]] = []
    for name, scores in references.items():
        if not np.ptp(scores):  # seeds with the same test rows
            scores = np.mean(scores)
        for seed, score in enumerate(np.atleast_1d(scores)):
            cell = dict(metric="accuracy", method=name, anchors=None)
            found.append(cell | dict(seed=seed if np.ndim(scores) else None, value=float(score)))
    counts = [count for count in counts if count <= pair.orders.shape[1]]
    if counts:
        result = anchor_sweep(
            pair.x,
            pair.y,
            counts,
            orders=pair.orders,
            methods=methods,
            metrics={"accuracy": metric},
            eval_data=data,
            eval_in_axes=axes,
        )
        found += result.to_records()
    seconds = time.perf_counter() - started
    print(f"{pair.protocol}: {pair.source} to {pair.target}, {seconds:.0f} s", file=sys.stderr)
    names = dict(protocol=pair.protocol, source=pair.source, target=pair.target)
    return [names | record for record in found]


def run_all(
    pairs: Sequence[Pair], counts: Sequence[int], methods: Mapping[str, SweepMethod] = METHODS
) -> list[dict[str, Any]]:
    """Run all pairs; those of equal dimensions, which share compiled fits, in one process."""

    def dims(index: int) -> tuple[int, int]:
        return pairs[index].x.shape[1], pairs[index].y.shape[1]

    order = sorted(range(len(pairs)), key=dims)
    groups = [list(group) for _, group in itertools.groupby(order, dims)]
    groups.sort(key=len, reverse=True)
    tasks = [([pairs[index] for index in group], counts, methods) for group in groups]
    if len(tasks) == 1 or jax.default_backend() != "cpu":  # a GPU serves one process
        done = [run_group(*task) for task in tasks]
    else:
        os.environ.setdefault("NPROC", "1")  # XLA's threads in each
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            done = list(pool.map(run_group, *zip(*tasks, strict=True)))
    found = dict(zip(sum(groups, []), sum(done, []), strict=True))
    return [record for index in range(len(pairs)) for record in found[index]]


def run_group(
    pairs: Sequence[Pair], counts: Sequence[int], methods: Mapping[str, SweepMethod]
) -> list[list[dict[str, Any]]]:
    """Run pairs one after the other."""
    return [run_pair(pair, counts, methods) for pair in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="directory for results.json, summary.csv, plots")
    parser.add_argument("--quick", action="store_true", help="fewer counts, seeds and splits")
    parser.add_argument("--counts", type=int, nargs="+", help=f"anchor counts (default {COUNTS})")
    parser.add_argument("--seeds", type=int, help=f"random anchor sets (default {SEEDS})")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        counts = sorted(set(options.counts or ((20, 200) if options.quick else COUNTS)))
        seeds = SEEDS if options.seeds is None else options.seeds
        seeds, splits = (min(seeds, 2), 2) if options.quick else (seeds, SPLITS)
        if counts[0] < 1 or seeds < 1:
            raise ValueError("--counts and --seeds must be at least 1")
        pairs = demo_pairs(options.protocols, seeds, splits)
        if options.out is not None:
            report.prepare_directory(options.out)
        records = run_all(pairs, counts)
        rows = summarize(records)
        printing.print_tables(rows)
        if options.out is not None:
            report.write_json(options.out / "results.json", records)
            write_csv(options.out / "summary.csv", rows)
            plots = list(drawings.drawn(rows, ()))
            for plot in plots:
                (options.out / f"{plot.name}.png").write_bytes(plot.png)
            elapsed = round(time.perf_counter() - started, 1)
            made = {"counts": counts, "seeds": seeds, "splits": splits, "seconds": elapsed}
            report.write_json(options.out / "run.json", made | report.environment())
            print(f"wrote results.json, summary.csv, run.json, {len(plots)} plots: {options.out}")
    except (ValueError, TypeError, OSError) as error:
        print(f"anchor_sweep: error: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.perf_counter() - started:.0f} s on {report.environment()['processor']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
