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
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import printing

from semalign_jax import AffineMap, SweepMethod, anchor_sweep, fit_head, identity_map
from semalign_jax.stitching import head_accuracy
from semalign_jax.studies import backend_settings, demo, drawings, report, settings
from semalign_jax.studies.tables import Record, summarize, write_csv
from semalign_jax.sweeps import anchor_order
from semalign_jax.zeroshot import evaluate_zero_shot

backend_settings.apply(quick_compile=True)  # before JAX computes

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
SEEDS = 5
SPLITS = 8
UNSEEN_CLASSES = 10

#: The four maps and the affine one with a penalty, as in the studies; and a control.
METHODS = {name: SweepMethod(**options) for name, options in settings.METHODS.items()}
METHODS["shuffled"] = SweepMethod(**settings.METHODS["ridge"], shuffled=True)

#: In the order of the report.
PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot", "zero-shot-unseen")


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


class Pair(NamedTuple):
    """One protocol on one ordered pair of encoders.

    Attributes:
        protocol: its name.
        source: name of the source encoder.
        target: name of the target encoder.
        x: source embeddings [n, d_in].
        y: target embeddings [n, d_out], matched by row.
        labels: class of each row [n].
        orders: rows to take anchors from, in order [seeds, m].
        tests: test rows for each seed.
        prompts: for zero-shot, class prompts in the target space [p, d_out].
        prompt_labels: class of each prompt [p].
        allowed: for zero-shot, which classes can be predicted [seeds, classes].
    """

    protocol: str
    source: str
    target: str
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    orders: np.ndarray
    tests: Sequence[np.ndarray]
    prompts: np.ndarray | None = None
    prompt_labels: np.ndarray | None = None
    allowed: np.ndarray | None = None


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


def run_pair(pair: Pair, counts: Sequence[int], methods: Mapping[str, SweepMethod]) -> list[Record]:
    """Score every method at every anchor count and seed."""
    started = time.perf_counter()
    task, references = stitching(pair) if pair.prompts is None else zero_shot(pair)
    metric, data, axes = task
    records: list[Record] = []

    def record(method: str, anchors: int | None, seed: int | None, value: Any) -> None:
        cell = dict(method=method, anchors=anchors, seed=seed, value=float(value))
        names = dict(protocol=pair.protocol, source=pair.source, target=pair.target)
        records.append(cast(Record, names | cell | dict(metric="accuracy")))

    for name, scores in references.items():
        if not np.ptp(scores):  # seeds with the same test rows
            scores = np.mean(scores)
        for seed, score in enumerate(np.atleast_1d(scores)):
            record(name, None, seed if np.ndim(scores) else None, score)
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
        for (m, c, s), score in np.ndenumerate(np.asarray(result.values["accuracy"])):
            record(result.methods[m], counts[c], s, score)
    seconds = time.perf_counter() - started
    print(f"{pair.protocol}: {pair.source} to {pair.target}, {seconds:.0f} s", file=sys.stderr)
    return records


def run_all(
    pairs: Sequence[Pair], counts: Sequence[int], methods: Mapping[str, SweepMethod] = METHODS
) -> list[Record]:
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
) -> list[list[Record]]:
    """Run pairs one after the other."""
    return [run_pair(pair, counts, methods) for pair in pairs]


#: rows -> (rows for anchors and heads, held-out test rows)
Split = Callable[[int], tuple[np.ndarray, np.ndarray]]


def split_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed split into rows for anchors and heads, and held-out test rows."""
    order = np.random.default_rng(0).permutation(n)
    cut = n - round(demo.TEST_SHARE * n)
    return np.sort(order[:cut]), np.sort(order[cut:])


def random_rows(n: int, seeds: int, split: Split) -> tuple[np.ndarray, list[np.ndarray]]:
    """Training rows in a random order for each seed [seeds, m], and the test rows of each."""
    train, test = split(n)
    keys = jax.random.split(jax.random.key(0), seeds)
    return train[np.asarray(jax.vmap(partial(anchor_order, n=len(train)))(keys))], [test] * seeds


def unseen_class_rows(labels: np.ndarray, num_classes: int, splits: int) -> tuple[Any, Any, Any]:
    """Orders, tests and allowed classes: in each split 10 classes to tell apart have no anchor.

    All images of these classes are tested; anchors are images of the other classes.
    """
    eligible = np.flatnonzero(np.bincount(labels, minlength=num_classes) >= UNSEEN_CLASSES)
    rng = np.random.default_rng(0)
    allowed = np.zeros((splits, num_classes), bool)
    orders, tests = [], []
    for split in range(splits):
        allowed[split, rng.choice(eligible, UNSEEN_CLASSES, replace=False)] = True
        unseen = allowed[split, labels]
        orders.append(rng.permutation(np.flatnonzero(~unseen)))
        tests.append(np.flatnonzero(unseen))
    shortest = min(map(len, orders))
    return np.stack([order[:shortest] for order in orders]), tests, allowed


def demo_pairs(
    protocols: Sequence[str], seeds: int, splits: int, split: Split = split_rows
) -> list[Pair]:
    """The chosen protocols on the shipped embeddings."""
    load = demo.load_demo
    pairs: list[Pair] = []
    texts = {f"MiniLM-L{n}": load(f"glosses_minilm_l{n}") for n in (3, 6)}
    senses = texts["MiniLM-L6"].labels("supersense")[0]
    rows = random_rows(len(senses), seeds, split)
    for a, b in itertools.permutations(texts, 2):
        pairs.append(Pair("text-stitching", a, b, texts[a].values, texts[b].values, senses, *rows))
    dino, captions = load("emoji_dinov2_small"), load("emoji_captions_minilm_l6")
    # The first of each group of equal rows: no test image may also be an anchor.
    kept = np.sort(np.unique(dino.values, axis=0, return_index=True)[1])
    images = {
        "EfficientNet-Lite0": load("emoji_efficientnet_lite0").values[kept],
        "DINOv2-small": dino.values[kept],
    }
    prompts = load("emoji_prompts_minilm_l6")
    labels = {kind: captions.labels(kind)[0][kept] for kind in ("category", "subcategory")}
    rows = random_rows(len(kept), seeds, split)
    for a, b in itertools.permutations(images, 2):
        pairs.append(
            Pair("vision-stitching", a, b, images[a], images[b], labels["category"], *rows)
        )
    number = len(prompts.values)  # classes are padded to the number of subcategories
    for protocol, kind in (("zero-shot", "category"), ("zero-shot-unseen", "subcategory")):
        if kind == "category":
            orders, tests, allowed = *rows, np.ones((seeds, number), bool)
        else:
            orders, tests, allowed = unseen_class_rows(labels[kind], number, splits)
        more = orders, tests, prompts.values, prompts.labels(kind)[0], allowed
        for name, x in images.items():
            sides = x, captions.values[kept], labels[kind]
            pairs.append(Pair(protocol, name, "MiniLM-L6", *sides, *more))
    return [pair for pair in pairs if pair.protocol in protocols]


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
