"""Stitching between all encoders: the matrix of encoder by decoder of the literature.

As in Maiorca et al. 2023 (arXiv 2311.00664): every decoder is a head trained on one encoder's
embeddings and read by every other encoder through a map that few anchors determine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.records import Records, cells_of, shown_counts
from .._core.trees import stacked
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..maps.affine_map import identity_map
from ..maps.mlp_head import Head, first_layer
from ..metrics import MacroMean
from ..metrics.by_name import (
    HeadMetric,
    ScoreMetric,
    named_metrics,
    score_by_function,
    score_by_name,
)
from ..metrics.samples import checked_known, in_range
from ..sweeps.many_pairs import sweep_pairs
from ..sweeps.one_pair import SweepMethod, checked_lines, checked_orders
from .evaluate import stitch
from .heads import HeadInfo, fit_head
from .training_data import LOSSES, Loss, checked_labels


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class StitchingMatrix(Records):
    """Scores of every encoder with every decoder; see `SweepResult` for what gives them by name.

    Each of the four has for every metric a `MacroMean`: the score (`value`), and how many classes
    or labels were left out of its mean because their scores are undefined (`undefined`), e.g. the
    AUROC of a label that no test row has.

    Attributes:
        aligned: the decoder on mapped embeddings, [encoders, decoders, methods, counts, seeds];
            on the diagonal, where nothing is fitted, NaN and none undefined.
        shuffled: control, the same with every anchor matched to a wrong one; None if not wanted.
        naive: the decoder on embeddings as they are, dimensions padded or cut, [encoders,
            decoders]; on the diagonal these are the encoder's own.
        upper_bound: the decoder on its own encoder's embeddings [decoders].
        heads: name -> the decoder.
        head_info: name -> how its training ended; empty if the heads were given.
        names: of the encoders, which are also the decoders, along the first two axes (static).
        methods: names along the third axis (static).
        counts: anchor counts along the fourth axis (static).
    """

    aligned: dict[str, MacroMean]
    shuffled: dict[str, MacroMean] | None
    naive: dict[str, MacroMean]
    upper_bound: dict[str, MacroMean]
    heads: dict[str, Head]
    head_info: dict[str, HeadInfo]
    names: tuple[str, ...] = field(metadata={"static": True})
    methods: tuple[str, ...] = field(metadata={"static": True})
    counts: tuple[int, ...] = field(metadata={"static": True})

    def __repr__(self) -> str:
        names = f"{', '.join(self.aligned)} of {', '.join(self.names)}"
        return f"<StitchingMatrix: {names}, {', '.join(self.methods)}, {shown_counts(self.counts)}>"

    def to_records(self) -> list[dict[str, Any]]:
        """A dictionary for each score: metric, source, target, method, anchors, seed, value.

        Methods are the maps, their controls ("shuffled ..."), "naive" and "upper bound"; the last
        two have neither anchors nor seed. An encoder with its own decoder is the upper bound.
        """
        keys = ("metric", "source", "target", "method", "anchors", "seed", "value")
        found: list[tuple] = []
        fields = [("", self.aligned)]
        if self.shuffled is not None:
            fields.append(("shuffled ", self.shuffled))
        for metric in self.aligned:
            own = np.asarray(self.upper_bound[metric].value)
            naive = np.asarray(self.naive[metric].value)
            for (i, source), (j, target) in permutations(enumerate(self.names), 2):
                found.append((metric, source, target, "naive", None, None, float(naive[i, j])))
                for before, field_ in fields:
                    cells = cells_of(field_[metric].value[i, j], self.methods, self.counts)
                    for (method, count, seed), value in cells:
                        cell = metric, source, target, before + method, count, seed, value
                        found.append(cell)
            for j, target in enumerate(self.names):
                found.append((metric, target, target, "upper bound", None, None, float(own[j])))
        return [dict(zip(keys, cell, strict=True)) for cell in found]


def evaluate_stitching_pairs(
    train: Mapping[str, ArrayLike],
    labels: ArrayLike | Mapping[str, ArrayLike],
    test: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    num_classes: int,
    counts: Sequence[int],
    keys: Array | None = None,
    *,
    loss: Loss = "multinomial",
    metrics: Sequence[HeadMetric] | Mapping[str, HeadMetric | ScoreMetric] = ("accuracy",),
    methods: Sequence[Method] | Mapping[str, str | SweepMethod] = METHODS,
    anchors: Mapping[str, ArrayLike] | None = None,
    orders: ArrayLike | None = None,
    anchor_labels: ArrayLike | None = None,
    known: ArrayLike | Mapping[str, ArrayLike] | None = None,
    test_known: ArrayLike | None = None,
    heads: Mapping[str, Head] | None = None,
    head_options: Mapping[str, Any] | None = None,
    control: bool = True,
    control_key: Array | None = None,
    max_encoders: int | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> StitchingMatrix:
    """Stitch every encoder to the head of every other one, between two references and a control.

    Heads are fitted once an encoder and the maps by `sweep_pairs`, which shares factorisations
    between pairs and folds the heads in; equal shapes compile once. The control takes the same
    way, with the rows of one side permuted. Runs compiled functions one after the other, so call
    it outside of `jax.jit`.

    Args:
        train: name -> embeddings [n, d] that heads are trained on. The dimension may differ
            between encoders.
        labels: their classes or labels, see `fit_head`; or name -> these, if they differ.
        test: name -> test embeddings [t, d]; row i of all encoders is the same item.
        test_labels: classes [t], or labels [t, num_classes].
        num_classes: number of classes or labels.
        counts: anchor counts, ints in [1, n].
        keys: PRNG keys [seeds] to draw nested anchors with; all pairs use the same anchors.
        loss: of the heads, see `fit_head`: "multinomial", "binary" or "hinge". It also says
            what the labels are, and what heads of your own mean.
        metrics: some of "accuracy", "balanced_accuracy", "macro_f1", "auroc" and
            "average_precision". For classes the last two are means over the classes, each against
            the rest, ranked by the odds of its softmax probability for "multinomial". For labels
            all are means over the labels, predicted where the logit is positive. Or label ->
            name or function `(scores [t, num_classes], (test_labels, weights)) -> scalar`,
            traceable, with weights of the shape of the labels: 1, or 0 where one is not known.
        methods: names of maps, or label -> name or `SweepMethod`.
        anchors: name -> embeddings to draw anchors from, rows matched between encoders; None
            means `train`, which then has to match.
        orders: instead of `keys`: row indices [seeds, m] of these embeddings, m >= max(counts);
            their prefixes are the anchors.
        anchor_labels: integer classes [n] of the anchors to stratify the draw by.
        known: booleans of the shape of `labels`, which are known; or name -> these.
        test_known: the same for `test_labels`.
        heads: name -> decoder, to use instead of fitting linear ones; `AffineMap` or `MlpHead`.
        head_options: keyword options of `fit_head`, e.g. `{"l2": 0.1}`.
        control: whether to compute the shuffled control, which doubles the work.
        control_key: PRNG key of its permutations; None means `jax.random.key(0)`. Each seed's
            candidate anchors are permuted in one cycle, so that none keeps its partner.
        max_encoders: see `sweep_pairs`. With the control an encoder counts twice.
        workers: see `sweep_pairs`.
        progress: called with (stage, done, in all); the stages are "heads", "references" and
            "pairs" (counted over seeds, control included).

    Returns:
        `StitchingMatrix`.

    Raises:
        TypeError: for embeddings that are not floating point, labels that are not integers or
            arguments that are no mappings.
        ValueError: for names, rows or dimensions that do not match, labels out of range, NaN or
            infinite embeddings, unknown or repeated metrics and methods, counts beyond n; the
            message names the encoder. For the training of heads see `fit_head`.
    """
    checks.option("loss", loss, LOSSES)
    num_classes = checks.positive_int("num_classes", num_classes)
    scores = _score_metrics(metrics, loss, num_classes)
    lines = checked_lines(methods)
    control = checks.flag("control", control)
    encoders = _embeddings("train", train)
    names = tuple(encoders)
    if len(names) < 2:
        raise ValueError(f"train must have at least two encoders; got {list(names)}")
    tests = _embeddings("test", test, like=encoders)
    _same_rows("test", tests)
    source = encoders if anchors is None else _embeddings("anchors", anchors, like=encoders)
    _same_rows("train" if anchors is None else "anchors", source)
    rows = len(source[names[0]])
    checked, orders = checked_orders(counts, rows, keys, orders, anchor_labels)
    if control and orders.shape[1] < 2:
        raise ValueError(
            "control needs at least 2 candidate anchors to permute: give larger counts, or "
            "control=False"
        )
    control_key = (
        jax.random.key(0) if control_key is None else checks.prng_key("control_key", control_key)
    )
    truth = _test_data(test_labels, test_known, len(tests[names[0]]), num_classes, loss)

    def report(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    decoders, info = {}, {}
    if heads is None:
        for done, name in enumerate(names):
            own = _of("labels", labels, name), _of("known", known, name)
            decoders[name], info[name] = _fitted(
                name, encoders[name], *own, num_classes, loss, dict(head_options or {})
            )
            report("heads", done + 1, len(names))
    else:
        if head_options is not None:
            raise ValueError("head_options are those of fitted heads: leave heads or these out")
        decoders = {name: _given(heads, name, encoders[name], num_classes) for name in names}

    upper, naive = {}, {}
    for done, target in enumerate(names):
        upper[target] = _score(scores, decoders[target], tests[target], truth)
        for name in names:
            naive[name, target] = upper[target]
            if name != target:
                dims = tests[name].shape[1], tests[target].shape[1]
                through = identity_map(*dims, dtype=tests[name].dtype)
                through = stitch(decoders[target], through)
                naive[name, target] = _score(scores, through, tests[name], truth)
        report("references", done + 1, len(names))

    numbered = list(permutations(enumerate(names), 2))
    jobs = [((a, False), (b, False)) for (_, a), (_, b) in numbered]
    if control:
        # The permuted encoder is always the later one of a pair, so that both directions of a pair
        # share its factorisation and the polar factor.
        jobs += [((a, i > j), (b, j > i)) for (i, a), (j, b) in numbered]

    def of_side(values: Mapping[str, Any]) -> dict[str, Any]:
        return {_side(name, flag): values[name] for name in names for flag in (False, True)}

    def of_seed(seed: int, order: Array) -> dict[str, Any]:
        data, before = of_side(source), seed * len(jobs)
        if control:
            wrong = _cycle(jax.random.fold_in(control_key, seed), order)
            for name in names[1:]:
                data[_side(name, True)] = _permuted(source[name], order, wrong)
        return sweep_pairs(
            data,
            checked,
            orders=order[None],
            methods=dict(lines),
            metrics=dict(scores),
            readouts=of_side(decoders),
            test=of_side(tests),
            eval_data=truth,
            pairs=[(_side(*a), _side(*b)) for a, b in jobs],
            max_encoders=max_encoders,
            workers=workers,
            progress=lambda done, _: report("pairs", before + done, len(orders) * len(jobs)),
        ).values

    found = [of_seed(seed, order) for seed, order in enumerate(orders)]
    pairs = np.array(list(permutations(range(len(names)), 2)))
    return StitchingMatrix(
        aligned=_matrix(len(names), 0, pairs, found),
        shuffled=_matrix(len(names), 1, pairs, found) if control else None,
        naive=stacked([stacked([naive[a, b] for b in names]) for a in names]),
        upper_bound=stacked([upper[name] for name in names]),
        heads=decoders,
        head_info=info,
        names=names,
        methods=tuple(label for label, _ in lines),
        counts=checked,
    )


def _side(name: str, permuted: bool) -> str:
    """Name of an encoder within the sweep, where it occurs plain and with permuted rows."""
    return f"{name}, permuted" if permuted else f"{name}, plain"


@jax.jit
def _cycle(key: Array, order: Array) -> Array:
    """The rows of `order` such that no one is in its place: one random cycle."""
    m = order.shape[0]
    walk = jax.random.permutation(key, m)
    return order[jnp.zeros(m, walk.dtype).at[walk].set(jnp.roll(walk, 1))]


@jax.jit
def _permuted(data: Array, order: Array, wrong: Array) -> Array:
    return data.at[order].set(data[wrong])


@partial(jax.jit, static_argnums=(0, 1))
def _matrix(size: int, part: int, pairs: Array, found: Sequence[Any]) -> Any:
    """Values of all seeds, of a part of the jobs, as a matrix without diagonal.

    From [parts * pairs, methods, counts, 1] of each seed to [encoders, decoders, methods, counts,
    seeds]; `pairs` [pairs, 2] are the numbers of encoder and decoder.
    """
    row, column = pairs.T
    own = slice(part * len(pairs), (part + 1) * len(pairs))

    def spread(*seeds: Array) -> Array:
        leaf = jnp.concatenate(seeds, axis=3)[own]
        fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
        empty = jnp.full((size, size, *leaf.shape[1:]), fill, leaf.dtype)
        return empty.at[row, column].set(leaf)

    return jax.tree.map(spread, *found)


# --- checks ------------------------------------------------------------------------------------


def _embeddings(
    what: str, values: Mapping[str, ArrayLike], like: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Embeddings by name, finite; of the encoders and dimensions of `like` if that is given."""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{what} must be a mapping, name -> embeddings; got {type(values).__name__}"
        )
    for name in like or ():
        if name not in values:
            raise ValueError(f"{what} has no embeddings of {name!r}, which is in train")
    found = {}
    for name in values if like is None else like:
        array = checks.float_array(f"{what}[{name!r}]", values[name], 2)
        if like is not None and array.shape[1] != like[name].shape[1]:
            raise ValueError(
                f"{what}[{name!r}] has {array.shape[1]} features, train[{name!r}] "
                f"{like[name].shape[1]}"
            )
        checks.finite_rows(f"{what}[{name!r}]", array)
        found[name] = checks.on_device(array)
    return found


def _same_rows(what: str, values: Mapping[str, Array]) -> None:
    first, rows = next((name, len(array)) for name, array in values.items())
    for name, array in values.items():
        if len(array) != rows:
            raise ValueError(
                f"{what}[{name!r}] has {checks.counted(len(array), 'row')}, {what}[{first!r}] "
                f"{rows}: row i must be the same item for all encoders"
            )


def _of(what: str, values: Any, name: str) -> Any:
    """What belongs to one encoder, if each has its own."""
    if not isinstance(values, Mapping):
        return values
    if name not in values:
        raise ValueError(f"{what} has none of {name!r}, which is in train")
    return values[name]


def _fitted(
    name: str, x: Array, labels: Any, known: Any, num_classes: int, loss: Loss, options: dict
) -> tuple[Head, HeadInfo]:
    try:
        return fit_head(x, labels, num_classes, loss=loss, known=known, **options, info=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"head of {name!r}: {error}") from None


def _given(heads: Mapping[str, Head], name: str, x: Array, num_classes: int) -> Head:
    if name not in heads:
        raise ValueError(f"heads has none of {name!r}, which is in train")
    head = heads[name]
    expected = (x.shape[1], num_classes)
    if (head.d_in, head.d_out) != expected or first_layer(head).batch_shape:
        raise ValueError(
            f"heads[{name!r}] must be one head of {expected[0]} features and {expected[1]} "
            f"classes; got {head.d_in} and {head.d_out}, batch {first_layer(head).batch_shape}"
        )
    return head


def _test_data(
    labels: ArrayLike, known: ArrayLike | None, rows: int, num_classes: int, loss: Loss
) -> tuple[Array, Array]:
    """Labels, and their weights of the same shape: 1, or 0 where they are not known."""
    truth = checked_labels("test_labels", labels, rows, num_classes, loss)
    known = checked_known("test_known", known, truth)
    weights = jnp.ones(truth.shape, jnp.float32)
    if known is not None:
        weights = known.astype(jnp.float32)
    stop = num_classes if truth.ndim == 1 else 2
    in_range("test_labels", truth, stop, weights, known="test_known")
    return truth, weights


# --- scores ------------------------------------------------------------------------------------


def _score_metrics(
    metrics: Sequence[HeadMetric] | Mapping[str, HeadMetric | ScoreMetric],
    loss: Loss,
    num_classes: int,
) -> tuple[tuple[str, ScoreMetric], ...]:
    softmax = loss == "multinomial"
    return tuple(
        (
            label,
            score_by_function(label, metric)
            if callable(metric)
            else score_by_name(metric, softmax, num_classes),
        )
        for label, metric in named_metrics(metrics).items()
    )


@partial(jax.jit, static_argnums=0)
def _score(
    metrics: tuple[tuple[str, ScoreMetric], ...], head: Head, x: Array, truth: tuple[Array, Array]
) -> dict[str, MacroMean]:
    scores = head(x)
    return {name: metric(scores, truth) for name, metric in metrics}
