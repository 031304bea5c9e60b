"""The protocols on the shipped embeddings: pairs of encoders, rows for anchors, rows to test."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from semalign_jax.studies import demo
from semalign_jax.sweeps import anchor_order

#: In the order of the report.
PROTOCOLS = ("text-stitching", "vision-stitching", "zero-shot", "zero-shot-unseen")
UNSEEN_CLASSES = 10


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
