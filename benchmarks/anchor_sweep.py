"""How well does each map align two encoders, as the number of anchors grows?

Runs, on the embeddings shipped in `semalign_jax/studies/demo_data`, four protocols after Di Folco
et al. 2025 (arXiv 2503.04478) and Maiorca et al. 2023 (arXiv 2311.00664):

- text-stitching: WordNet glosses, 26 supersenses, MiniLM-L3 to MiniLM-L6 and back;
- vision-stitching: emoji, 9 categories, EfficientNet-Lite0 to DINOv2-small and back;
- zero-shot: emoji, 9 categories, each image encoder mapped into the space of MiniLM-L6, where
  class prompts decide;
- zero-shot-unseen: as before, but the 10 subcategories to tell apart have no anchor.

With --source and --target it runs on your own embeddings instead. The work is done by one call of
`anchor_sweep` for each pair of encoders, see `Pair.run`.

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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

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

#: Orthogonal maps between spaces that are centred and brought to one scale: on their own they
#: match directions alone, and a map that is off in scale lets a head's bias decide.
METHODS = {
    "affine": SweepMethod("affine"),
    "linear": SweepMethod("linear"),
    "l-ortho": SweepMethod("l-ortho", normalize="isotropic"),
    "ortho": SweepMethod("ortho", normalize="isotropic"),
    "ridge": SweepMethod("affine", ridge=1.0, ridge_unit="gram"),
    "shuffled": SweepMethod("affine", ridge=1.0, ridge_unit="gram", shuffled=True),
}

#: In the order of the report; "stitching" is that of own embeddings.
DEMO_PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot", "zero-shot-unseen")


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
    """One protocol on one ordered pair of encoders, ready to run.

    Attributes:
        protocol: its name.
        source: name of the source encoder.
        target: name of the target encoder.
        x: source embeddings that anchors come from [n, d_in].
        y: target embeddings [n, d_out].
        orders: row orders [seeds, m], whose prefixes are the anchors.
        metric: `(map, data) -> accuracy`.
        data: test data of the metric.
        axes: which of them have an axis of seeds, as `eval_in_axes`.
        references: name -> accuracies of the lines that use no anchors, one or [seeds].
    """

    protocol: str
    source: str
    target: str
    x: np.ndarray
    y: np.ndarray
    orders: np.ndarray
    metric: Callable[[AffineMap, Any], jax.Array]
    data: dict[str, Any]
    axes: dict[str, Any]
    references: dict[str, Any]

    def run(self, counts: Sequence[int], methods: Mapping[str, Any]) -> list[report.Record]:
        """Score every method at every anchor count and seed, in one compiled function."""
        counts = [count for count in counts if count <= self.orders.shape[1]]
        records: list[report.Record] = []

        def record(method: str, anchors: int | None, seed: int | None, value: Any) -> None:
            cell = dict(method=method, anchors=anchors, seed=seed, value=float(value))
            pair = dict(protocol=self.protocol, source=self.source, target=self.target)
            records.append(cast(report.Record, pair | cell | dict(metric="accuracy")))

        for name, scores in self.references.items():
            for seed, score in enumerate(np.atleast_1d(scores)):
                record(name, None, seed if np.ndim(scores) else None, score)
        if counts:
            result = anchor_sweep(
                self.x,
                self.y,
                counts,
                orders=self.orders,
                methods=methods,
                metrics={"accuracy": self.metric},
                eval_data=self.data,
                eval_in_axes=self.axes,
            )
            for (m, c, s), score in np.ndenumerate(np.asarray(result.values["accuracy"])):
                record(result.methods[m], counts[c], s, score)
        return records


#: rows -> (rows for anchors and heads, held-out test rows)
Split = Callable[[int], tuple[np.ndarray, np.ndarray]]


def split_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed split into rows for anchors and heads, and held-out test rows."""
    order = np.random.default_rng(0).permutation(n)
    cut = n - round(TEST_SHARE * n)
    return np.sort(order[:cut]), np.sort(order[cut:])


def random_orders(rows: np.ndarray, seeds: int) -> np.ndarray:
    """A random order of `rows` for each seed [seeds, len(rows)]."""
    keys = jax.random.split(jax.random.key(0), seeds)
    return rows[np.asarray(jax.vmap(partial(anchor_order, n=len(rows)))(keys))]


def stitching_pair(protocol, names, x, y, labels, num_classes, seeds, split=split_rows) -> Pair:
    """Stitching: a head trained on the target's training rows, tested on mapped source rows."""
    train, test = split(len(x))
    head = fit_head(y[train], labels[train], num_classes)
    data = {"x": x[test], "labels": labels[test], "head": head}
    naive = identity_map(x.shape[1], y.shape[1], dtype=head.weight.dtype)
    references = {
        "naive": stitching_accuracy(naive, data),
        "upper bound": head_accuracy(head, y[test], labels[test]),
    }
    orders = random_orders(train, seeds)
    axes = dict.fromkeys(data)
    source, target = names
    return Pair(protocol, source, target, x, y, orders, stitching_accuracy, data, axes, references)


def zero_shot_pair(
    protocol, names, x, y, labels, prompts, prompt_labels, orders, tests, allowed
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
        tests: rows of the test images for each seed.
        allowed: which classes can be predicted [seeds, classes].
    """
    # Padded to one length, so that all seeds share compiled code.
    longest = max(map(len, tests))
    rows = np.stack([np.resize(test, longest) for test in tests])
    weights = np.stack([np.arange(longest) < len(test) for test in tests])
    data = {
        "x": x[rows],
        "labels": labels[rows],
        "prompts": prompts,
        "prompt_labels": prompt_labels,
        "weights": weights,
        "allowed": allowed,
    }
    axes = {name: None if "prompt" in name else 0 for name in data}
    # Upper bound: the images' own captions, centred like the prompts.
    center = jnp.asarray(y[np.unique(orders)].mean(axis=0))
    own = AffineMap(jnp.eye(y.shape[1], dtype=y.dtype), center, center)
    naive = identity_map(x.shape[1], y.shape[1], dtype=x.dtype)

    def of_seeds(mapping: AffineMap, data: dict[str, Any], centred: bool) -> jax.Array:
        score = partial(zero_shot_accuracy, mapping, centred=centred)
        return jax.jit(jax.vmap(score, in_axes=(axes,)))(data)

    references = {
        "naive": of_seeds(naive, data, False),
        "upper bound": of_seeds(own, data | {"x": y[rows]}, True),
    }
    if all(np.array_equal(test, tests[0]) for test in tests):
        references = {name: scores[0] for name, scores in references.items()}
    source, target = names
    return Pair(protocol, source, target, x, y, orders, zero_shot_accuracy, data, axes, references)


def all_class_parts(n: int, num_classes: int, seeds: int, split: Split = split_rows) -> tuple:
    """Anchor orders, test rows and allowed classes of plain zero-shot."""
    train, test = split(n)
    return random_orders(train, seeds), [test] * seeds, np.ones((seeds, num_classes), bool)


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


def demo_pairs(
    protocols: Sequence[str], seeds: int, splits: int, split: Split = split_rows
) -> list[Callable[[], Pair]]:
    """The chosen protocols on the shipped embeddings; each call prepares one pair."""
    load = demo.load_demo
    pairs: list[Callable[[], Pair]] = []
    if "text-stitching" in protocols:
        texts = {f"MiniLM-L{n}": load(f"glosses_minilm_l{n}") for n in (3, 6)}
        senses, names = texts["MiniLM-L6"].labels("supersense")
        for a, b in (("MiniLM-L3", "MiniLM-L6"), ("MiniLM-L6", "MiniLM-L3")):
            sides = texts[a].values, texts[b].values
            more = (senses, len(names), seeds, split)
            pairs.append(partial(stitching_pair, "text-stitching", (a, b), *sides, *more))
    dino, captions = load("emoji_dinov2_small"), load("emoji_captions_minilm_l6")
    # The first of each group of equal rows: no test image may also be an anchor.
    rows = np.sort(np.unique(dino.values, axis=0, return_index=True)[1])
    images = {
        "EfficientNet-Lite0": load("emoji_efficientnet_lite0").values[rows],
        "DINOv2-small": dino.values[rows],
    }
    prompts, kinds = load("emoji_prompts_minilm_l6"), {}
    for kind in ("category", "subcategory"):
        labels, names = captions.labels(kind)
        kinds[kind] = (labels[rows], len(names), prompts.labels(kind)[0])
    if "vision-stitching" in protocols:
        labels, classes, _ = kinds["category"]
        for a, b in (tuple(images), tuple(images)[::-1]):
            more = (labels, classes, seeds, split)
            pairs.append(
                partial(stitching_pair, "vision-stitching", (a, b), images[a], images[b], *more)
            )
    # Classes are padded to the number of subcategories.
    number = len(prompts.values)
    for protocol, kind in (("zero-shot", "category"), ("zero-shot-unseen", "subcategory")):
        labels, _, prompt_labels = kinds[kind]
        for name, x in images.items():
            if protocol in protocols:
                parts = (
                    all_class_parts(len(rows), number, seeds, split)
                    if kind == "category"
                    else unseen_class_parts(labels, number, splits)
                )
                sides = (x, captions.values[rows], labels, prompts.values, prompt_labels)
                pairs.append(partial(zero_shot_pair, protocol, (name, "MiniLM-L6"), *sides, *parts))
    return pairs


def user_pairs(arguments: argparse.Namespace, seeds: int) -> list[Callable[[], Pair]]:
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
        return [build]
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
    return [partial(zero_shot_pair, "zero-shot", names, *data)]


def run_all(
    builds: Sequence[Callable[[], Pair]],
    counts: Sequence[int],
    methods: Mapping[str, Any] = METHODS,
) -> list[report.Record]:
    """Run all pairs, one on each core, with a line on stderr for each."""

    def run(build: Callable[[], Pair]) -> list[report.Record]:
        started = time.perf_counter()
        pair = build()
        records = pair.run(counts, methods)
        seconds = time.perf_counter() - started
        print(f"{pair.protocol}: {pair.source} to {pair.target}, {seconds:.0f} s", file=sys.stderr)
        return records

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [record for records in pool.map(run, builds) for record in records]


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
            pairs = user_pairs(options, seeds)
        else:
            pairs = demo_pairs(options.protocols or DEMO_PROTOCOLS, seeds, splits)
        if options.out is not None:
            report.prepare_directory(options.out)
        records = run_all(pairs, counts)
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
