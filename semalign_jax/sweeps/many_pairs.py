"""Sweeps over many pairs of encoders, with the work that pairs have in common done once.

What is shared, and how, is in `_shared`; sweeps of one pair are in `one_pair`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import common_dtype, compute_dtype
from .._core.records import Records, cells_of, shown_counts
from .._core.trees import by_value, entry, stacked
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..maps.affine_map import AffineMap
from ..maps.mlp_head import Head, after_first_layer, first_layer
from ..metrics.by_name import HeadMetric, ScoreMetric, named_metrics
from ..metrics.samples import host_copies
from ._shared import Plan, Variant, is_shared, prepare, shared_heads
from .one_pair import (
    SweepMethod,
    checked_lines,
    checked_orders,
    score_of_predictions,
)


@by_value
@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class PairSweepResult(Records):
    """Scores of a sweep over pairs of encoders; see `SweepResult` for what gives them by name.

    Attributes:
        values: for each metric an array [pairs, methods, counts, seeds]; if a metric returns a
            pytree of arrays, each of its leaves has these leading axes.
        pairs: (source, target) names along the first axis (static).
        methods: names along the second axis (static).
        counts: anchor counts along the third axis (static).
    """

    values: dict[str, Any]
    pairs: tuple[tuple[str, str], ...] = field(metadata={"static": True})
    methods: tuple[str, ...] = field(metadata={"static": True})
    counts: tuple[int, ...] = field(metadata={"static": True})

    def __repr__(self) -> str:
        names = f"{', '.join(self.values)} of {', '.join(self.methods)}"
        pairs = checks.counted(len(self.pairs), "pair") + " of encoders"
        return f"<PairSweepResult: {names}, {pairs}, {shown_counts(self.counts)}>"

    def to_records(self) -> list[dict[str, Any]]:
        """A dictionary for each score: metric, source, target, method, anchors, seed, value."""
        keys = ("metric", "source", "target", "method", "anchors", "seed", "value")
        return [
            dict(zip(keys, (name, *pair, *rest, value), strict=True))
            for name, values in self.values.items()
            for (pair, *rest), value in cells_of(values, self.pairs, self.methods, self.counts)
        ]


def sweep_pairs(
    embeddings: Mapping[str, ArrayLike],
    counts: Sequence[int],
    keys: Array | None = None,
    *,
    readouts: Mapping[str, Head],
    test: Mapping[str, ArrayLike],
    metrics: Sequence[HeadMetric] | Mapping[str, HeadMetric | ScoreMetric],
    eval_data: Any = None,
    methods: Sequence[Method] | Mapping[str, str | SweepMethod] = METHODS,
    pairs: Sequence[tuple[str, str]] | None = None,
    orders: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    max_encoders: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PairSweepResult:
    """Fit maps between many encoders on nested anchor sets and score the target's readout.

    For every ordered pair, method, count and seed: the map from `source` to `target` is fitted
    to the anchors, and `readouts[target]` is applied to the mapped `test[source]`. The results
    are those of independent fits up to rounding. Runs compiled functions one pair after the
    other, so call it outside of `jax.jit`; equal shapes compile once.

    Shared by the plain maps (options `normalize` "none", "center" or "isotropic", `completion`,
    and `rcond` of affine, linear and l-ortho); lines with other options, and anchors so dependent
    that singular values have to be cut off, are fitted one by one.

    Args:
        embeddings: name -> embeddings [n, d] that anchors are drawn from; row i of all encoders
            is the same item.
        counts: anchor counts, ints in [1, n].
        keys: PRNG keys [seeds]; all pairs use the same anchors.
        readouts: name of a target -> affine map [d, c] of its space to scores: a head of
            `fit_head`, or `AffineMap.from_weight(class_embeddings.T)`, whose largest score is
            the largest cosine similarity. Or an `MlpHead`.
        test: name of a source -> test embeddings [t, d], rows matched.
        metrics: names of scores ("accuracy", "balanced_accuracy", "macro_f1", "auroc",
            "average_precision"; `eval_data` is then the test labels, [t] or booleans [t, c]), or
            label -> such a name or a traceable function `(scores [t, c], eval_data) -> scalar`
            (or a pytree of arrays). Define it once: it is part of the key of compiled code.
        eval_data: any pytree of arrays, handed to the metrics, e.g. the test labels.
        methods: names of maps, or label -> name or `SweepMethod`.
        pairs: ordered (source, target) pairs; None means all of different encoders.
        orders: instead of `keys`: integer [seeds, m] row orders, m >= max(counts).
        labels: integer classes [n] to stratify the random anchors by.
        max_encoders: how many encoders are held prepared at once, at least 2; bounds the
            memory, at the price of preparing them several times. One takes, for each of centred
            and plain lines, about 4 n d bytes in float32, n the largest count, and 8 d^2 bytes for
            each count of at least d anchors. None means all.
        workers: how many pairs run at once, in threads. On a CPU give each a single BLAS
            thread (`OPENBLAS_NUM_THREADS=1`).
        progress: called with (pairs done, pairs in all), counted over seeds.

    Returns:
        `PairSweepResult` with arrays [pairs, methods, counts, seeds].

    Raises:
        TypeError: for embeddings that are not floating point or counts that are not ints.
        ValueError: for unknown encoders or methods, rows or dimensions that do not match, counts
            beyond n, or if not exactly one of `keys` and `orders` is given.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> spaces, keys = {"a": x, "b": x[:, ::-1] + 3}, jax.random.split(jax.random.key(1), 2)
        >>> heads = {name: sa.AffineMap.from_weight(x[:4, :2]) for name in spaces}
        >>> scored = {"metrics": ["accuracy"], "eval_data": x[:, 0] > 0, "methods": ["affine"]}
        >>> found = sa.sweep_pairs(spaces, (5, 20), keys, readouts=heads, test=spaces, **scored)
        >>> found.values["accuracy"].shape  # pairs, methods, counts, keys
        (2, 1, 2, 2)
    """
    named = named_metrics(metrics)
    if eval_data is None and not all(map(callable, named.values())):
        raise ValueError("metrics by name need eval_data, the labels of the test rows")
    lines = checked_lines(methods)
    pairs = _checked_pairs(embeddings, pairs)
    data, tests = _checked_encoders(embeddings, test, readouts, pairs)
    rows = len(next(iter(data.values())))
    checked, orders = checked_orders(counts, rows, keys, orders, labels)
    if max_encoders is not None and checks.positive_int("max_encoders", max_encoders) < 2:
        raise ValueError("max_encoders must be at least 2: a pair has two")
    workers = checks.positive_int("workers", workers)
    dtype = compute_dtype(reduce(common_dtype, (a.dtype for a in data.values())))
    # Heads may be more or less precise than the embeddings.
    data, tests, readouts = jax.tree.map(
        lambda a: jnp.asarray(a).astype(dtype), (data, tests, dict(readouts))
    )
    ascending = tuple(sorted(set(checked)))
    shared = dict.fromkeys(line for _, line in lines if is_shared(line))
    eval_data = host_copies("eval_data", eval_data)
    plan = Plan(tuple(shared), ascending, dtype == jnp.float32)
    score = partial(
        _score, tuple((k, m if callable(m) else score_of_predictions(m)) for k, m in named.items())
    )

    def of_encoder(order: Array, name: str) -> _Encoder:
        ordered = jnp.take(data[name], order, axis=0)
        with jax.enable_x64(True):
            return _Encoder(ordered, prepare(plan, ordered))

    def of_pair(prepared: dict[str, _Encoder], directions: Sequence[tuple[str, str]]) -> Any:
        heads = _heads_of_pair(plan, lines, prepared, readouts, directions)
        return {(a, b): score(heads[a, b], readouts[b], tests[a], eval_data) for a, b in directions}

    cells: dict[tuple[int, tuple[str, str]], Any] = {}
    with ThreadPoolExecutor(workers) as pool:
        for seed, order in enumerate(orders):

            def prepare_all(names: Sequence[str], order: Array = order) -> dict[str, _Encoder]:
                return dict(zip(names, pool.map(partial(of_encoder, order), names), strict=True))

            for prepared, group in _batches(pairs, max_encoders, prepare_all):
                for found in pool.map(partial(of_pair, prepared), group):
                    cells |= {(seed, pair): values for pair, values in found.items()}
                    if progress is not None:
                        progress(len(cells), len(orders) * len(pairs))
                del prepared  # before the next ones are prepared
    seeds = range(len(orders))
    values = stacked([stacked([cells[seed, pair] for pair in pairs], 0) for seed in seeds], 3)
    asked = np.searchsorted(ascending, checked)
    values = jax.tree.map(lambda leaf: jnp.take(leaf, asked, axis=2), values)
    return PairSweepResult(values, tuple(pairs), tuple(label for label, _ in lines), checked)


class _Encoder(NamedTuple):
    """An encoder's anchors in order [n, d], and what `prepare` makes of them."""

    anchors: Array
    variants: dict[bool, Variant]


def _heads_of_pair(
    plan: Plan,
    lines: Sequence[tuple[str, SweepMethod]],
    prepared: Mapping[str, _Encoder],
    readouts: Mapping[str, Head],
    directions: Sequence[tuple[str, str]],
) -> dict[tuple[str, str], list[AffineMap]]:
    """For each direction of a pair and each line, maps [counts] with the readout's first layer."""
    first, second = (prepared[name].variants for name in directions[0])
    layers = tuple(first_layer(readouts[target]) for _, target in directions)
    with jax.enable_x64(True):
        shared = shared_heads(plan, first, second, layers)
    found = {}
    for pair, of_lines, layer in zip(directions, shared, layers, strict=True):
        x, y = (prepared[name].anchors for name in pair)
        made = dict(zip(plan.lines, of_lines, strict=True))
        maps = []
        for _, line in lines:
            heads, trusted = made.get(line, (None, [False] * len(plan.counts)))
            of_counts = []
            for at, (n, exact) in enumerate(zip(plan.counts, np.asarray(trusted), strict=True)):
                of_counts.append(entry(heads, at) if exact else _own_head(line, n, x, y, layer))
            maps.append(stacked(of_counts))
        found[pair] = maps
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _own_head(line: SweepMethod, n: int, x: Array, y: Array, layer: AffineMap) -> AffineMap:
    """The map of one line at one count, fitted on its own."""
    target = jnp.roll(y[:n], 1, axis=0) if line.shuffled else y[:n]
    return line.fitter(x.shape[1], y.shape[1])(x[:n], target, None) >> layer


@partial(jax.jit, static_argnums=0)
def _score(metrics, of_lines, readout, test, eval_data):
    """Scores [lines, counts]; of each map the predictions are made and forgotten in turn."""

    def one(head: AffineMap) -> dict[str, Any]:
        scores = after_first_layer(readout, head(test))
        return {name: metric(scores, eval_data) for name, metric in metrics}

    return jax.lax.map(lambda heads: jax.lax.map(one, heads), stacked(of_lines, 0))


# --- checks and batches ------------------------------------------------------------------------


def _checked_pairs(
    embeddings: Mapping[str, Any], pairs: Sequence[tuple[str, str]] | None
) -> list[tuple[str, str]]:
    if pairs is None:
        pairs = [(a, b) for a in embeddings for b in embeddings if a != b]
    if not pairs:
        raise ValueError("pairs is empty: give at least two encoders")
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"pairs must hold (source, target) names; got {pair!r}")
        for name in pair:
            if name not in embeddings:
                raise ValueError(
                    f"pairs has {name!r}, which is not among the embeddings: {list(embeddings)}"
                )
    return [(a, b) for a, b in dict.fromkeys(map(tuple, pairs))]


def _checked_encoders(
    embeddings: Mapping[str, ArrayLike],
    test: Mapping[str, ArrayLike],
    readouts: Mapping[str, Head],
    pairs: Sequence[tuple[str, str]],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The embeddings and test embeddings of all encoders in the pairs."""
    data, tests = {}, {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        data[name] = checks.float_array(f"embeddings[{name!r}]", embeddings[name], 2)
    for source in dict.fromkeys(source for source, _ in pairs):
        if source not in test:
            raise ValueError(f"test has no embeddings of the source {source!r}")
        tests[source] = checks.float_array(f"test[{source!r}]", test[source], 2)
        if tests[source].shape[1] != data[source].shape[1]:
            raise ValueError(
                f"test[{source!r}] has {tests[source].shape[1]} features, the embeddings "
                f"{data[source].shape[1]}"
            )
    for what, arrays in (("embeddings", data), ("test", tests)):
        if len({len(array) for array in arrays.values()}) > 1:
            rows = {name: len(array) for name, array in arrays.items()}
            raise ValueError(f"{what} must have the same rows for all encoders; got {rows}")
    for target in dict.fromkeys(target for _, target in pairs):
        if target not in readouts:
            raise ValueError(f"readouts has none of the target {target!r}")
        weight = first_layer(readouts[target]).weight
        if weight.shape[:-1] != data[target].shape[1:]:
            raise ValueError(
                f"readouts[{target!r}] takes {weight.shape[:-1]} features, the embeddings have "
                f"{data[target].shape[1:]}"
            )
    if checks.is_concrete(*data.values(), *tests.values()):
        for what, arrays in (("embeddings", data), ("test", tests)):
            for name, array in arrays.items():
                checks.finite_rows(f"{what}[{name!r}]", array, None)
    return data, tests


def _batches(
    pairs: Sequence[tuple[str, str]],
    max_encoders: int | None,
    prepare: Callable[[Sequence[str]], dict[str, _Encoder]],
) -> Iterator[tuple[dict[str, _Encoder], list[list[tuple[str, str]]]]]:
    """Groups of pairs and the encoders they need, at most `max_encoders` at a time.

    Both directions of a pair are together, in one list.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    size = len(names) if max_encoders is None else max_encoders // 2
    block = {name: i // size for i, name in enumerate(names)}
    groups: dict[tuple[int, int], dict[frozenset[str], list[tuple[str, str]]]] = {}
    for pair in pairs:
        first, second = sorted(block[name] for name in pair)
        groups.setdefault((first, second), {}).setdefault(frozenset(pair), []).append(pair)
    ready: dict[str, _Encoder] = {}
    for key in sorted(groups):
        needed = {name for both in groups[key] for name in both}
        ready = {name: found for name, found in ready.items() if block[name] in key}
        ready |= prepare([name for name in names if name in needed and name not in ready])
        yield ready, list(groups[key].values())
