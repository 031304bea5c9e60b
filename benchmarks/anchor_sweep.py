"""How well does each map align two encoders, as the number of anchors grows?

Runs, on the embeddings shipped in `semalign_jax/studies/demo_data`, four protocols after Di Folco
et al. 2025 (arXiv 2503.04478) and Maiorca et al. 2023 (arXiv 2311.00664):

- text-stitching: WordNet glosses, 26 supersenses, MiniLM-L3 to MiniLM-L6;
- vision-stitching: emoji, 9 categories, EfficientNet-Lite0 to DINOv2-small and back;
- zero-shot: emoji, 9 categories, each image encoder mapped into the space of MiniLM-L6, where
  class prompts decide;
- zero-shot-unseen: as before, but the 10 subcategories to tell apart have no anchor.

With --source and --target it runs on your own embeddings instead.

Examples:
    python benchmarks/anchor_sweep.py --out results
    python benchmarks/anchor_sweep.py --quick
    python benchmarks/anchor_sweep.py --source a.npy --target b.npy --labels y.npy --out results
    python benchmarks/anchor_sweep.py --source images.npz:embeddings --target reports.npz \
        --labels y.npy --prompts prompts.npy --prompt-labels classes.npy
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from semalign_jax import (
    AffineMap,
    SweepMethod,
    anchor_order,
    anchor_sweep,
    evaluate_zero_shot,
    fit_head,
    head_accuracy,
    identity_map,
)
from semalign_jax.studies import backend_settings, demo, figures, files, report

backend_settings.apply(quick_compile=True)  # before JAX computes

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
SEEDS = 5
SPLITS = 8
UNSEEN_CLASSES = 10
TEST_SHARE = 0.3


#: All maps between centred spaces but the linear one, which has no offset by definition.
METHODS = {
    "affine": SweepMethod("affine"),
    "linear": SweepMethod("linear"),
    "l-ortho": SweepMethod("l-ortho", normalize="center"),
    "ortho": SweepMethod("ortho", normalize="center"),
    "ridge": SweepMethod("affine", ridge=1.0, ridge_unit="gram"),
    "shuffled": SweepMethod("affine", ridge=1.0, ridge_unit="gram", shuffled=True),
}


class Stitching(NamedTuple):
    """Test data of a stitching protocol: source embeddings, their classes, the target's head."""

    x: jax.Array
    labels: jax.Array
    head: AffineMap


class ZeroShot(NamedTuple):
    """Test data of a zero-shot protocol.

    Attributes:
        x: embeddings of the test images [m, d].
        labels: their classes [m].
        prompts: prompt embeddings [p, d_text].
        prompt_labels: class of each prompt [p].
        weights: which rows count, for the others are padding [m].
        allowed: which classes may be predicted [classes].
    """

    x: jax.Array
    labels: jax.Array
    prompts: jax.Array
    prompt_labels: jax.Array
    weights: jax.Array
    allowed: jax.Array


def stitching_accuracy(mapping: AffineMap, data: Stitching) -> jax.Array:
    """Accuracy of the target's head on mapped source embeddings."""
    return head_accuracy(mapping >> data.head, data.x, data.labels)


def zero_shot_accuracy(mapping: AffineMap, data: ZeroShot, *, centred: bool = True) -> jax.Array:
    """Accuracy by cosine similarity to class prompts, both centred by the text anchors."""
    return evaluate_zero_shot(
        mapping,
        data.x,
        data.labels,
        data.prompts,
        data.prompt_labels,
        data.allowed.shape[-1],
        center=mapping.target_offset if centred else None,
        weights=data.weights,
        allowed=data.allowed,
    )


def fitted_map(mapping: AffineMap, _: None) -> AffineMap:
    """The metric of a sweep that returns the maps themselves."""
    return mapping


@partial(jax.jit, static_argnums=0)
def score_maps(metric: Callable[[AffineMap, Any], jax.Array], maps: AffineMap, data: Any):
    """Score a batch of maps [methods]."""
    return jax.lax.map(lambda mapping: metric(mapping, data), maps)


@dataclass(frozen=True)
class Pair:
    """One protocol on one ordered pair of encoders, ready to run.

    Attributes:
        protocol: its name.
        source: name of the source encoder.
        target: name of the target encoder.
        x: source embeddings that anchors come from [n, d_in].
        y: target embeddings [n, d_out].
        orders: row orders [seeds, m], whose prefixes are the anchors.
        metric: `(map, data) -> accuracy`.
        data: seed -> test data of the metric.
        references: seed -> scores of the lines that use no anchors.
        references_vary: whether the references differ between seeds.
    """

    protocol: str
    source: str
    target: str
    x: jax.Array
    y: jax.Array
    orders: np.ndarray
    metric: Callable[[AffineMap, Any], jax.Array]
    data: Callable[[int], Any]
    references: Callable[[int], dict[str, jax.Array]]
    references_vary: bool = False

    def run(self, count: int, methods: Mapping[str, SweepMethod]) -> list[report.Record]:
        """Score every method at one anchor count, one seed after the other.

        The sweep returns the maps, and these are scored apart from it: so protocols between
        spaces of equal dimensions share the compiled fits.
        """
        records = []
        for seed, order in enumerate(self.orders):
            rows = order[:count]
            result = anchor_sweep(
                self.x[rows],
                self.y[rows],
                [count],
                orders=np.arange(count)[None],
                methods=methods,
                metrics={"map": fitted_map},
            )
            maps = jax.tree_util.tree_map(lambda leaf: leaf[:, 0, 0], result.values["map"])
            scores = score_maps(self.metric, maps, self.data(seed))
            records += [
                self._record(method, count, seed, score)
                for method, score in zip(result.methods, np.asarray(scores), strict=True)
            ]
        return records

    def run_references(self) -> list[report.Record]:
        """Score the lines that use no anchors."""
        seeds = range(len(self.orders)) if self.references_vary else [None]
        return [
            self._record(name, None, seed, score)
            for seed in seeds
            for name, score in self.references(seed or 0).items()
        ]

    def _record(self, method: str, anchors: int | None, seed: int | None, value) -> report.Record:
        return report.Record(
            protocol=self.protocol,
            source=self.source,
            target=self.target,
            method=method,
            anchors=anchors,
            seed=seed,
            metric="accuracy",
            value=float(value),
        )


#: rows -> (rows for anchors and heads, held-out test rows)
Split: TypeAlias = Callable[[int], tuple[np.ndarray, np.ndarray]]


def split_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed split into rows for anchors and heads, and held-out test rows."""
    order = np.random.default_rng(0).permutation(n)
    cut = n - round(TEST_SHARE * n)
    return np.sort(order[:cut]), np.sort(order[cut:])


def random_orders(rows: np.ndarray, seeds: int) -> np.ndarray:
    """A random order of `rows` for each seed [seeds, len(rows)]."""
    keys = jax.random.split(jax.random.key(0), seeds)
    return rows[np.asarray(jax.vmap(partial(anchor_order, n=len(rows)))(keys))]


def stitching_pair(
    protocol: str,
    names: tuple[str, str],
    x: np.ndarray,
    y: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seeds: int,
    split: Split = split_rows,
) -> Pair:
    """Stitching: a head trained on the target's training rows, tested on mapped source rows."""
    train, test = split(len(x))
    head = fit_head(y[train], labels[train], num_classes)
    data = Stitching(jnp.asarray(x[test]), jnp.asarray(labels[test]), head)
    naive = identity_map(x.shape[1], y.shape[1], dtype=head.weight.dtype)
    own = jnp.asarray(y[test])
    return Pair(
        protocol,
        *names,
        jnp.asarray(x),
        jnp.asarray(y),
        random_orders(train, seeds),
        stitching_accuracy,
        data=lambda seed: data,
        references=lambda seed: {
            "naive": stitching_accuracy(naive, data),
            "upper bound": head_accuracy(head, own, data.labels),
        },
    )


def zero_shot_pair(
    protocol: str,
    names: tuple[str, str],
    x: np.ndarray,
    y: np.ndarray,
    labels: np.ndarray,
    prompts: np.ndarray,
    prompt_labels: np.ndarray,
    orders: np.ndarray,
    tests: Sequence[np.ndarray],
    allowed: np.ndarray,
) -> Pair:
    """Zero-shot: anchors are (image, caption) pairs, prompts stand for the classes.

    Args:
        protocol: its name.
        names: source and target encoder.
        x: image embeddings [n, d_in].
        y: embeddings of the images' captions [n, d_out].
        labels: class of each image [n].
        prompts: prompt embeddings [p, d_out].
        prompt_labels: class of each prompt [p].
        orders: rows to take anchors from, in order [seeds, m].
        tests: rows of the test images, for all seeds or for each.
        allowed: which classes can be predicted [1, classes] or [seeds, classes].
    """
    images, captions = jnp.asarray(x), jnp.asarray(y)
    classes = jnp.asarray(prompts), jnp.asarray(prompt_labels)
    # Padded to one length, so that all seeds share compiled code.
    longest = max(map(len, tests))
    padded = np.stack([np.resize(rows, longest) for rows in tests])
    weights = np.stack([np.arange(longest) < len(rows) for rows in tests])
    # Upper bound: the images' own captions, centred like the prompts.
    own = AffineMap.from_weight(np.eye(y.shape[1], dtype=y.dtype))
    center = jnp.asarray(y[np.unique(orders)].mean(axis=0))
    own = replace(own, source_offset=center, target_offset=center)
    naive = identity_map(x.shape[1], y.shape[1], dtype=images.dtype)

    def data(seed: int, embeddings: jax.Array = images) -> ZeroShot:
        part = seed % len(tests)
        rows = padded[part]
        return ZeroShot(
            embeddings[rows],
            jnp.asarray(labels[rows]),
            *classes,
            jnp.asarray(weights[part]),
            jnp.asarray(allowed[part]),
        )

    def references(seed: int) -> dict[str, jax.Array]:
        return {
            "naive": zero_shot_accuracy(naive, data(seed), centred=False),
            "upper bound": zero_shot_accuracy(own, data(seed, captions)),
        }

    pair = (names[0], names[1], images, captions, orders, zero_shot_accuracy)
    return Pair(protocol, *pair, data, references, references_vary=len(tests) > 1)


def all_class_parts(n: int, num_classes: int, seeds: int, split: Split = split_rows) -> tuple:
    """Anchor orders, test rows and allowed classes of plain zero-shot."""
    train, test = split(n)
    return random_orders(train, seeds), [test], np.ones((1, num_classes), bool)


def unseen_class_parts(labels: np.ndarray, num_classes: int, splits: int) -> tuple:
    """The same for classes without anchors: in each split 10 classes to tell apart.

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


def distinct_rows(values: np.ndarray) -> np.ndarray:
    """The first of each group of equal rows: no test image may also be an anchor."""
    return np.sort(np.unique(values, axis=0, return_index=True)[1])


def demo_pairs(
    protocols: Sequence[str], seeds: int, splits: int, split: Split = split_rows
) -> list[list[Callable[[], Pair]]]:
    """The chosen protocols on the shipped embeddings; each call prepares one pair.

    Pairs in one inner list have equal dimensions and share compiled fits.
    """
    load = demo.load_demo
    l3, l6 = load("glosses_minilm_l3"), load("glosses_minilm_l6")
    senses, sense_names = l6.labels("supersense")
    dino, captions = load("emoji_dinov2_small"), load("emoji_captions_minilm_l6")
    rows = distinct_rows(dino.values)
    texts = captions.values[rows]
    images = {
        "EfficientNet-Lite0": load("emoji_efficientnet_lite0").values[rows],
        "DINOv2-small": dino.values[rows],
    }
    prompts = load("emoji_prompts_minilm_l6")
    categories, category_names = captions.labels("category")
    subcategories, _ = captions.labels("subcategory")
    categories, subcategories = categories[rows], subcategories[rows]
    prompt_categories, _ = prompts.labels("category")
    prompt_subcategories, _ = prompts.labels("subcategory")
    num_prompts = len(prompts.values)

    efficientnet, dino_small = images
    wide: list[Callable[[], Pair]] = []
    square: list[Callable[[], Pair]] = []
    back: list[Callable[[], Pair]] = []
    if "vision-stitching" in protocols:
        for names, group in ((tuple(images), wide), (tuple(images)[::-1], back)):
            embeddings = (images[names[0]], images[names[1]])
            pair = (*embeddings, categories, len(category_names), seeds, split)
            group.append(partial(stitching_pair, "vision-stitching", names, *pair))
    # Classes are padded to the number of subcategories, so that both protocols share code.
    seen = all_class_parts(len(rows), num_prompts, seeds, split)
    unseen = unseen_class_parts(subcategories, num_prompts, splits)
    for name, group in ((efficientnet, wide), (dino_small, square)):
        names, pair = (name, "MiniLM-L6"), (images[name], texts)
        if "zero-shot" in protocols:
            data = (*pair, categories, prompts.values, prompt_categories, *seen)
            group.append(partial(zero_shot_pair, "zero-shot", names, *data))
        if "zero-shot-unseen" in protocols:
            data = (*pair, subcategories, prompts.values, prompt_subcategories, *unseen)
            group.append(partial(zero_shot_pair, "zero-shot-unseen", names, *data))
    if "text-stitching" in protocols:
        pair = (l3.values, l6.values, senses, len(sense_names), seeds, split)
        names = ("MiniLM-L3", "MiniLM-L6")
        square.append(partial(stitching_pair, "text-stitching", names, *pair))
    return [group for group in (wide, square, back) if group]


#: In the order of the report; "stitching" is that of own embeddings.
DEMO_PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot", "zero-shot-unseen")
PROTOCOLS = ("stitching", *DEMO_PROTOCOLS)


def user_pairs(arguments: argparse.Namespace, seeds: int) -> list[list[Callable[[], Pair]]]:
    """The protocol for a user's own embeddings: zero-shot if prompts are given, else stitching."""
    for name in ("source", "target", "labels"):
        if getattr(arguments, name) is None:
            raise ValueError(
                f"--{name} is missing: own embeddings need --source, --target, --labels"
            )
    if (arguments.prompts is None) != (arguments.prompt_labels is None):
        raise ValueError("--prompts and --prompt-labels go together; one of them is missing")
    if (arguments.source_ids is None) != (arguments.target_ids is None):
        raise ValueError("--source-ids and --target-ids go together; one of them is missing")
    x = files.load_matrix("--source", arguments.source)
    y = files.load_matrix("--target", arguments.target)
    vector = files.load_vector
    labels = vector("--labels", arguments.labels, len(x), "--source")
    if arguments.source_ids is not None:
        rows, columns = files.match_rows(
            vector("--source-ids", arguments.source_ids, len(x), "--source"),
            vector("--target-ids", arguments.target_ids, len(y), "--target"),
        )
        missed = len(x) + len(y) - 2 * len(rows)
        if missed:
            print(f"{len(rows)} rows match by id; {missed} have no partner", file=sys.stderr)
        x, labels, y = x[rows], labels[rows], y[columns]
    elif len(x) != len(y):
        raise ValueError(
            f"--source has {len(x)} rows and --target {len(y)}: give both in the same order, or "
            f"--source-ids and --target-ids"
        )
    dtype = np.promote_types(x.dtype, y.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    names = (Path(arguments.source).stem, Path(arguments.target).stem)
    classes, labels = np.unique(labels, return_inverse=True)
    labels = labels.astype(np.int32)
    if len(classes) < 2:
        raise ValueError(f"--labels: needs at least two classes; got only {classes[0]!r}")
    if arguments.prompts is None:
        build = partial(stitching_pair, "stitching", names, x, y, labels, len(classes), seeds)
        return [[build]]
    prompts = files.load_matrix("--prompts", arguments.prompts).astype(dtype)
    if prompts.shape[1] != y.shape[1]:
        raise ValueError(
            f"--prompts: needs {y.shape[1]} dimensions, as --target; got {prompts.shape[1]}"
        )
    given = vector("--prompt-labels", arguments.prompt_labels, len(prompts), "--prompts")
    unknown = np.setdiff1d(given, classes)
    without = np.setdiff1d(classes, given)
    if unknown.size:
        raise ValueError(f"--prompt-labels: {unknown[0]!r} is not among the classes of --labels")
    if without.size:
        raise ValueError(f"--prompt-labels: class {without[0]!r} of --labels has no prompt")
    prompt_labels = np.searchsorted(classes, given).astype(np.int32)
    parts = all_class_parts(len(x), len(classes), seeds)
    data = (x, y, labels, prompts, prompt_labels, *parts)
    return [[partial(zero_shot_pair, "zero-shot", names, *data)]]


def run_all(
    groups: Sequence[Sequence[Callable[[], Pair]]],
    counts: Sequence[int],
    workers: int,
    methods: Mapping[str, SweepMethod] = METHODS,
) -> list[report.Record]:
    """Run all pairs at all counts, one on each core, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        task = progress.add_task("heads", total=None)
        flat = pool.map(lambda build: build(), [build for group in groups for build in group])
        built = [[next(flat) for _ in group] for group in groups]
        total = sum(1 + len(usable(pair, counts)) for group in built for pair in group)
        progress.update(task, description="anchor sweep", total=total)

        def run(pairs: Sequence[Pair], count: int | None) -> dict[int, list[report.Record]]:
            scored = {}
            for pair in pairs:
                if count is None:
                    scored[id(pair)] = pair.run_references()
                elif count in usable(pair, counts):
                    scored[id(pair)] = pair.run(count, methods)
                else:
                    continue
                progress.advance(task)
            return scored

        # The largest counts take longest and come first, so that no core waits at the end.
        jobs = [
            pool.submit(run, group, count)
            for count in (*sorted(counts, reverse=True), None)
            for group in built
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = [job.result() for job in reversed(jobs)]
    return [
        record
        for protocol in PROTOCOLS
        for group in built
        for pair in group
        if pair.protocol == protocol
        for result in results
        for record in result.get(id(pair), [])
    ]


def usable(pair: Pair, counts: Sequence[int]) -> list[int]:
    """The anchor counts that a pair has rows for."""
    return [count for count in counts if count <= pair.orders.shape[1]]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="directory for results.json, summary.csv, plots")
    parser.add_argument("--quick", action="store_true", help="fewer counts, seeds and splits")
    parser.add_argument("--counts", type=int, nargs="+", help=f"anchor counts (default {COUNTS})")
    parser.add_argument("--seeds", type=int, help=f"random anchor sets (default {SEEDS})")
    parser.add_argument(
        "--protocols", nargs="+", choices=DEMO_PROTOCOLS, help="only these protocols"
    )
    own = parser.add_argument_group("own embeddings (.npy, .npz or .safetensors; FILE:KEY)")
    own.add_argument("--source", help="source embeddings [n, d_in]")
    own.add_argument("--target", help="target embeddings [n, d_out]")
    own.add_argument("--labels", help="class of each source row, integers or text [n]")
    own.add_argument("--prompts", help="prompt embeddings [p, d_out]: zero-shot, not stitching")
    own.add_argument("--prompt-labels", help="class of each prompt [p]")
    own.add_argument("--source-ids", help="ids of the source rows, to match rows by id")
    own.add_argument("--target-ids", help="ids of the target rows")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse_arguments(arguments)
    started = time.perf_counter()
    try:
        counts = sorted(set(options.counts or ((20, 200) if options.quick else COUNTS)))
        seeds = options.seeds or (2 if options.quick else SEEDS)
        splits = 2 if options.quick else SPLITS
        if counts[0] < 1 or seeds < 1:
            raise ValueError("--counts and --seeds must be at least 1")
        own = any(
            getattr(options, name) is not None
            for name in ("source", "target", "labels", "prompts", "prompt_labels")
        )
        if own:
            groups = user_pairs(options, seeds)
        else:
            groups = demo_pairs(options.protocols or DEMO_PROTOCOLS, seeds, splits)
        if options.out is not None:
            report.prepare_directory(options.out)
        records = run_all(groups, counts, workers=os.cpu_count() or 1)
        rows = report.summarize(records)
        report.print_tables(rows)
        if options.out is not None:
            report.write_json(options.out / "results.json", records)
            report.write_csv(options.out / "summary.csv", rows)
            plots = figures.plot_protocols(options.out, rows)
            elapsed = round(time.perf_counter() - started, 1)
            settings = {"counts": counts, "seeds": seeds, "splits": splits, "seconds": elapsed}
            report.write_json(options.out / "run.json", settings | report.environment())
            print(
                f"wrote results.json, summary.csv, run.json and {len(plots)} plots to {options.out}"
            )
            if not plots:
                print("no plots: install matplotlib (the 'plot' extra)", file=sys.stderr)
    except (ValueError, TypeError, OSError) as error:
        print(f"anchor_sweep: error: {error}", file=sys.stderr)
        return 2
    print(f"done in {time.perf_counter() - started:.0f} s on {report.environment()['processor']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
