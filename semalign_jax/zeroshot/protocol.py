"""Unimodal zero-shot as a study reports it: maps and baselines in one table.

Data carry the ids of items and patients, so that no patient is in two parts; thresholds come from
the validation part; scores of the test part have intervals, with patients as the resampled units.

    prompt_set = load_prompts("vindr_cxr")
    prompts = embedded_prompts(prompt_set, encode(prompt_texts(prompt_set).texts))
    result = zero_shot_protocol(
        AnchorPairs(pair_ids, pair_patients, pair_images, pair_reports),
        Images(validation_ids, validation_patients, validation_images, validation_labels),
        Images(test_ids, test_patients, test_images, test_labels),
        prompts,
        counts=(50, 200, 1000),
        key=jax.random.key(0),
    )
    for row in result.rows(["macro AUROC"]):
        print(row)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import common_dtype
from .._core.samples import integers
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..data import check_disjoint
from ..maps.affine_map import AffineMap, identity_map
from ..metrics import (
    accuracy,
    auroc_from_ranking,
    average_precision_from_ranking,
    balanced_accuracy,
    macro_mean,
    precision_recall_f1,
    predicted_classes,
    rank_scores,
)
from ..metrics.intervals import BootstrapInterval, bootstrap
from ..metrics.ranking import ranking_of_known
from ..sweeps.anchors import anchor_order, check_counts
from ..sweeps.one_pair import Fitter, SweepMethod, anchor_sweep
from .baselines import BASELINES, Baseline, linear_probe_scores, multimodal_scores
from .scores import (
    SPACE_NORMALIZATIONS,
    TASKS,
    TEMPERATURE,
    THRESHOLD_RULES,
    AnchorSpace,
    EmbeddedPrompts,
    SpaceNormalization,
    Task,
    ThresholdRule,
    anchor_space,
    choose_threshold,
    not_nan,
    zero_shot_scores,
)

#: Numbers that the maps of a batch of seeds may hold.
MAP_NUMBERS = 2**27
#: Numbers that a batch of resamples may hold for one score; bounds the memory of the bootstrap.
BOOTSTRAP_NUMBERS = 2**24


# --- data --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnchorPairs:
    """Matched samples that maps are fitted to, e.g. images and their reports.

    Attributes:
        ids: one a pair, text or integers, all different.
        patients: patient of each pair, text or integers.
        source: embeddings of the image encoder [n, d_in].
        target: embeddings of the text encoder [n, d_out], matched by row.

    Raises:
        TypeError: for embeddings that are not floating point, ids that are neither text nor
            integers.
        ValueError: for lengths that do not match, repeated ids, NaN or infinity.
    """

    ids: Any
    patients: Any
    source: Any
    target: Any

    def __post_init__(self) -> None:
        source = _embeddings("source", self.source)
        target = _embeddings("target", self.target)
        if len(source) != len(target):
            raise ValueError(
                f"source and target must have the same rows; got {source.shape} and {target.shape}"
            )
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)
        _set_ids(self, len(source))


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        ids: one an image, text or integers, all different.
        patients: patient of each image, text or integers.
        embeddings: of the image encoder [n, d].
        labels: for a single-label task classes [n], as integers or names; for a multi-label one
            booleans or 0/1 [n, num_classes] in the order of the prompt set.
        known: of a multi-label task, bool [n, num_classes], which labels are known; the others
            may be 0 or 1 and count nowhere. None means all.

    Raises:
        TypeError: for embeddings that are not floating point, ids that are neither text nor
            integers, or `known` that is not boolean.
        ValueError: for lengths that do not match, repeated ids, NaN or infinity.
    """

    ids: Any
    patients: Any
    embeddings: Any
    labels: Any
    known: Any = None

    def __post_init__(self) -> None:
        embeddings = _embeddings("embeddings", self.embeddings)
        object.__setattr__(self, "embeddings", embeddings)
        _set_ids(self, len(embeddings))
        if len(np.asarray(self.labels)) != len(embeddings):
            raise ValueError(
                f"labels must have one entry for each of the {len(embeddings)} images; got "
                f"{np.shape(self.labels)}"
            )
        if self.known is not None and np.asarray(self.known).dtype != np.bool_:
            raise TypeError(f"known must be booleans; got {np.asarray(self.known).dtype}")
        if self.known is not None and np.shape(self.known) != np.shape(self.labels):
            raise ValueError(
                f"known must have the shape of labels, {np.shape(self.labels)}; got "
                f"{np.shape(self.known)}"
            )


@dataclass(frozen=True, eq=False)
class Multimodal:
    """A multimodal model on the same images and prompt set.

    Attributes:
        validation: embeddings of the validation images [n, d], rows as there.
        test: embeddings of the test images [m, d], rows as there.
        prompts: the same prompt set under the model's text encoder [p, d].
    """

    validation: Any
    test: Any
    prompts: EmbeddedPrompts


def _embeddings(name: str, value: Any) -> Array:
    array = checks.float_array(name, value, 2)
    checks.finite_rows(name, array)
    return array


def _set_ids(part: AnchorPairs | Images, rows: int) -> None:
    for name in ("ids", "patients"):
        array = np.asarray(getattr(part, name))
        if array.dtype == object and all(isinstance(entry, str) for entry in array):
            array = array.astype(str)
        if array.dtype.kind not in "iuU":
            raise TypeError(f"{name} must be text or integers; got dtype {array.dtype}")
        if array.shape != (rows,):
            raise ValueError(
                f"{name} must have one entry for each of the {rows} rows; got {array.shape}"
            )
        object.__setattr__(part, name, array)
    values, counts = np.unique(part.ids, return_counts=True)
    if (counts > 1).any():
        twice = checks.first_few(map(repr, values[counts > 1].tolist()))
        raise ValueError(f"ids must be all different; repeated: {twice}")


def _labels(name: str, labels: Any, names: tuple[str, ...], task: Task) -> Array:
    """Integer classes [n] or booleans [n, num_classes]."""
    array = np.asarray(labels)
    if array.dtype == object and all(isinstance(entry, str) for entry in array.flat):
        array = array.astype(str)
    if task == "multi-label":
        labels = integers(f"labels of {name}", array, (len(array), len(names)))
        bad = np.argwhere((array != 0) & (array != 1))
        if bad.size:
            row, column = bad[0].tolist()
            raise ValueError(
                f"labels of {name} must be 0 or 1; row {row} has {array[row, column]} for "
                f"{names[column]!r}"
            )
        return labels == 1
    if array.ndim != 1:
        raise ValueError(f"labels of {name} must be classes [n]; got shape {array.shape}")
    if array.dtype.kind == "U":
        unknown = np.unique(array[~np.isin(array, names)])
        if unknown.size:
            found = checks.first_few(map(repr, unknown.tolist()))
            raise ValueError(
                f"labels of {name} hold {found}, which the prompt set lacks; its classes are "
                f"{', '.join(names)}"
            )
        array = np.asarray([names.index(entry) for entry in array.tolist()], np.int32)
    labels = integers(f"labels of {name}", array)
    bad = np.flatnonzero((array < 0) | (array >= len(names)))
    if bad.size:
        raise ValueError(
            f"labels of {name} must be in [0, {len(names)}), the classes of the prompt set; row "
            f"{bad[0]} has {array[bad[0]]}"
        )
    return labels


class _Truth(NamedTuple):
    """Labels as of `_labels`, and which are known, bool [n, num_classes]; None means all."""

    labels: Array
    known: Array | None


def _known(name: str, known: Any, labels: Array, task: Task) -> Array | None:
    if known is None:
        return None
    if task == "single-label":
        raise ValueError(f"{name}: leave out images whose class is not known; it must be None")
    array = np.asarray(known)
    if array.dtype != np.bool_ or array.shape != labels.shape:
        raise ValueError(f"{name} must be booleans {labels.shape}; got {array.dtype} {array.shape}")
    return jnp.asarray(array)


# --- evaluation of scores ----------------------------------------------------------------------


class ScoreReport(NamedTuple):
    """Metrics of test scores.

    Attributes:
        intervals: `BootstrapInterval` whose fields are dicts metric -> value. Scalars: "macro
            AUROC", "macro AP", and for a single-label task "accuracy" and "balanced accuracy",
            for a multi-label one "macro F1". Of every class [num_classes]: "AUROC", "AP", and for
            a multi-label task "F1", "sensitivity" and "specificity" at the thresholds. Macro
            means leave undefined classes out.
        thresholds: [num_classes] chosen on the validation part; NaN where undefined, and for a
            single-label task, which takes the best class.
        undefined_test: bool [num_classes], classes without positive or without negative test
            images: their AUROC is NaN.
        undefined_validation: bool [num_classes], the same of the validation part.
    """

    intervals: BootstrapInterval
    thresholds: Array
    undefined_test: Array
    undefined_validation: Array


@dataclass(frozen=True)
class _Statistic:
    """Metrics of scores of several seeds [seeds, n, num_classes], and their means."""

    task: Task
    num_classes: int

    def __call__(self, data: dict[str, Any], weights: Array) -> dict[str, Any]:
        # One ranking after the other: only then do the resamples of a bootstrap share its layout.
        seeds = data["predicted"].shape[0]
        rankings = jax.tree_util.tree_map(
            lambda leaf: leaf.reshape(-1, leaf.shape[-1]), data["ranking"]
        )
        values = {
            "AUROC": auroc_from_ranking(rankings, weights),
            "AP": average_precision_from_ranking(rankings, weights),
        }
        if self.task == "multi-label":
            labels, predicted = (_columns(data[name], seeds) for name in ("labels", "predicted"))
            if data["known"] is not None:
                weights = weights[:, None] * _columns(data["known"], seeds).astype(weights.dtype)
            found = precision_recall_f1(labels, predicted, weights=weights)
            absent = precision_recall_f1(~labels, ~predicted, weights=weights)
            chosen = ~jnp.isnan(data["thresholds"].reshape(-1))
            for name, value in (
                ("F1", found.f1),
                ("sensitivity", found.recall),
                ("specificity", absent.recall),
            ):
                values[name] = jnp.where(chosen, value, jnp.nan)
        values = {name: value.reshape(seeds, self.num_classes) for name, value in values.items()}
        each = {f"macro {n}": macro_mean(values[n]).value for n in values if n in _MACRO}
        if self.task == "single-label":
            score = partial(self._of_predictions, data["labels"], weights)
            each |= jax.vmap(score)(data["predicted"])
        each |= values
        means = jax.tree_util.tree_map(lambda values: jnp.mean(values, axis=0), each)
        return {"each": each, "mean": means}

    def _of_predictions(self, labels: Array, weights: Array, predicted: Array) -> dict[str, Array]:
        balanced = balanced_accuracy(labels, predicted, self.num_classes, weights=weights)
        return {
            "accuracy": accuracy(labels, predicted, weights=weights),
            "balanced accuracy": balanced.value,
        }


def _columns(values: Array, seeds: int) -> Array:
    """[n, classes] or [seeds, n, classes] as [n, seeds * classes]."""
    if values.ndim == 2:
        values = jnp.broadcast_to(values, (seeds, *values.shape))
    return jnp.moveaxis(values, 0, 1).reshape(values.shape[1], -1)


_MACRO = ("AUROC", "AP", "F1")


def evaluate_scores(
    validation_labels: ArrayLike,
    validation_scores: ArrayLike,
    test_labels: ArrayLike,
    test_scores: ArrayLike,
    *,
    task: Task,
    key: Array,
    rule: ThresholdRule = "youden",
    patients: Any = None,
    validation_known: ArrayLike | None = None,
    test_known: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> ScoreReport:
    """Metrics of test scores with intervals; thresholds are chosen on the validation part.

    Args:
        validation_labels: classes [v] (single-label) or booleans or 0/1 [v, num_classes].
        validation_scores: [v, num_classes].
        test_labels: likewise [n] or [n, num_classes].
        test_scores: [n, num_classes].
        task: "single-label" or "multi-label".
        key: PRNG key of the bootstrap.
        rule: see `choose_threshold`.
        patients: of the test rows [n], text or integers; the bootstrap draws patients. None means
            that every row is a unit.
        validation_known: of a multi-label task, bool [v, num_classes], which labels are known;
            the others count nowhere. None means all.
        test_known: likewise [n, num_classes].
        resamples: of the bootstrap.
        level: of the intervals.

    Returns:
        `ScoreReport`.

    Raises:
        TypeError: for scores that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match, labels outside of the classes or NaN scores.
    """
    arrays = []
    for name, value in (("validation_scores", validation_scores), ("test_scores", test_scores)):
        value = checks.float_array(name, value, 2)
        not_nan(name, value)
        arrays.append(value[None])
    classes = arrays[1].shape[-1]
    if arrays[0].shape[-1] != classes:
        raise ValueError(
            f"validation_scores and test_scores must have the same classes; got "
            f"{arrays[0].shape[-1]} and {classes}"
        )
    checks.option("task", task, TASKS)
    names = tuple(str(i) for i in range(classes))
    truth = [
        _labels(name, value, names, task)
        for name, value in (("validation", validation_labels), ("test", test_labels))
    ]
    for name, labels, scores in zip(("validation", "test"), truth, arrays, strict=True):
        if len(labels) != scores.shape[1]:
            raise ValueError(
                f"{name}_labels must have one row for each of the {scores.shape[1]} rows of "
                f"{name}_scores; got {len(labels)}"
            )
    parts = [
        _Truth(labels, _known(f"{name}_known", mask, labels, task))
        for name, labels, mask in zip(
            ("validation", "test"), truth, (validation_known, test_known), strict=True
        )
    ]
    clusters = None if patients is None else _cluster_numbers(patients, len(truth[1]))
    intervals, thresholds = _evaluate(
        parts[0], arrays[0], parts[1], arrays[1], task, key, rule, clusters, resamples, level
    )
    mean = BootstrapInterval(*(part["mean"] for part in intervals))
    validation_undefined, test_undefined = (_undefined(part, classes) for part in parts)
    return ScoreReport(mean, thresholds[0], test_undefined, validation_undefined)


def _cluster_numbers(patients: Any, rows: int) -> np.ndarray:
    array = np.asarray(patients)
    if array.shape != (rows,):
        raise ValueError(f"patients must have one entry for each of {rows} rows; got {array.shape}")
    return np.unique(array, return_inverse=True)[1].astype(np.int32)


def _undefined(truth: _Truth, num_classes: int) -> Array:
    """Classes that all rows, or none, belong to."""
    labels, known = truth
    if labels.ndim == 1:
        labels = labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None, :]
    if known is None:
        return labels.all(axis=0) | ~labels.any(axis=0)
    return (labels | ~known).all(axis=0) | ~(labels & known).any(axis=0)


def _evaluate(
    validation: _Truth,
    validation_scores: Array,
    test: _Truth,
    test_scores: Array,
    task: Task,
    key: Array,
    rule: ThresholdRule,
    clusters: np.ndarray | None,
    resamples: int,
    level: float,
) -> tuple[BootstrapInterval, Array]:
    """Intervals with the parts "each" [seeds, ...] and "mean", and thresholds [seeds, classes]."""
    seeds, rows, classes = test_scores.shape
    if task == "multi-label":
        thresholds = jax.vmap(
            lambda s: choose_threshold(validation.labels, s, rule=rule, known=validation.known)
        )(validation_scores)
        predicted = test_scores >= thresholds[:, None, :]
    else:
        thresholds = jnp.full((seeds, classes), jnp.nan, test_scores.dtype)
        predicted = predicted_classes(test_scores)
    data = {
        "labels": test.labels,
        "known": test.known,
        "predicted": predicted,
        "ranking": _ranked(test, test_scores),
        "thresholds": thresholds,
    }
    intervals = bootstrap(
        _Statistic(task, classes),
        data,
        rows,
        key,
        resamples=resamples,
        level=level,
        clusters=clusters,
        batch_size=max(1, min(128, BOOTSTRAP_NUMBERS // (seeds * rows))),
    )
    return intervals, thresholds


@jax.jit
def _ranked(truth: _Truth, scores: Array) -> Any:
    """Rankings [seeds, classes, n] of scores [seeds, n, classes]."""
    rankings = jax.vmap(lambda s: rank_scores(truth.labels, s))(scores)
    if truth.known is None:
        return rankings
    known = jnp.broadcast_to(truth.known.T, rankings.order.shape)
    return ranking_of_known(rankings, known)


# --- protocol ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Scores and metrics of all lines at all anchor counts and seeds.

    Attributes:
        scores: of the test images [lines, counts, seeds, n, num_classes]. Lines that need no
            anchors are repeated over counts and seeds.
        intervals: of every seed: `ScoreReport.intervals` with leaves [lines, counts, seeds, ...].
        seed_means: of the means over the seeds, with leaves [lines, counts, ...]. The intervals
            are those of test patients at these anchors.
        thresholds: [lines, counts, seeds, num_classes]; see `ScoreReport`.
        lines: (method, normalisation of the mapped space) along the first axis; the second is ""
            for methods without a map.
        counts: anchor counts; for the linear probe, labelled images.
        names: the classes.
        undefined_test: names of classes with NaN AUROC, see `ScoreReport`.
        undefined_validation: names of classes for which the validation part has no threshold.
    """

    scores: np.ndarray
    intervals: BootstrapInterval
    seed_means: BootstrapInterval
    thresholds: np.ndarray
    lines: tuple[tuple[str, str], ...]
    counts: tuple[int, ...]
    names: tuple[str, ...]
    undefined_test: tuple[str, ...]
    undefined_validation: tuple[str, ...]

    def rows(self, metrics: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The table: one dict a line, count and metric.

        Args:
            metrics: names of scalar metrics; None means all.

        Returns:
            Dicts with the keys method, normalization, anchors, metric, mean over the seeds and
            their standard deviation (divided by their number, so 0 for one), lower and upper end
            of the mean's interval, undefined_classes.

        Raises:
            ValueError: for a metric that there is not, or that is not a scalar.
        """
        estimates = self.intervals.estimate
        scalars = [name for name, value in estimates.items() if value.ndim == 3]
        for name in metrics or ():
            checks.option("metrics", name, scalars)
        return [
            {
                "method": method,
                "normalization": normalization,
                "anchors": count,
                "metric": name,
                "mean": float(self.seed_means.estimate[name][i, c]),
                "deviation": float(np.std(np.asarray(estimates[name][i, c]))),
                "lower": float(self.seed_means.lower[name][i, c]),
                "upper": float(self.seed_means.upper[name][i, c]),
                "undefined_classes": len(self.undefined_test),
            }
            for i, (method, normalization) in enumerate(self.lines)
            for c, count in enumerate(self.counts)
            for name in metrics or scalars
        ]


def naive_map(x: Array, y: Array) -> AffineMap:
    """The naive reference as a method of `zero_shot_protocol`: no alignment."""
    return identity_map(x.shape[1], y.shape[1], dtype=common_dtype(x.dtype, y.dtype))


#: The maps of a protocol by default.
PROTOCOL_METHODS: Mapping[str, Method | Fitter] = {"naive": naive_map, **{m: m for m in METHODS}}


def zero_shot_protocol(
    anchors: AnchorPairs,
    validation: Images,
    test: Images,
    prompts: EmbeddedPrompts,
    counts: Sequence[int],
    *,
    key: Array,
    seeds: int = 5,
    methods: Mapping[str, Method | SweepMethod | Fitter] = PROTOCOL_METHODS,
    normalizations: Sequence[SpaceNormalization] = SPACE_NORMALIZATIONS,
    baselines: Mapping[str, Baseline] = BASELINES,
    labelled: Images | None = None,
    multimodal: Multimodal | None = None,
    temperature: float = TEMPERATURE,
    shrinkage: float | None = None,
    l2: float = 1.0,
    rule: ThresholdRule = "youden",
    resamples: int = 1000,
    level: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> ZeroShotResult:
    """Evaluate maps and baselines as unimodal zero-shot classifiers, in one table.

    Anchors are drawn at random, nested over the counts; all lines see the same ones, and all
    intervals the same resamples of test patients. Compiles once for all counts, but for every
    count what depends on its anchors alone.

    Args:
        anchors: pairs that anchors are drawn from.
        validation: images that thresholds are chosen on.
        test: images that are scored.
        prompts: in the space of the target anchors.
        counts: anchor counts, ints in [1, number of pairs].
        key: PRNG key of anchors and resamples.
        seeds: how many sets of anchors of each count.
        methods: label -> name of a map, `SweepMethod` or function `(x, y) -> AffineMap`.
        normalizations: of the mapped space, see `zero_shot_scores`; each makes a line a method.
        baselines: label -> function as in `baselines`; define it once, it is part of the key of
            compiled code.
        labelled: images for the linear probe, which takes as many as there are anchors; at least
            max(counts). None leaves the line out.
        multimodal: a multimodal model on the same images. None leaves the line out.
        temperature: see `prompt_scores`.
        shrinkage: see `anchor_space`.
        l2: of the linear probe, see `fit_head`.
        rule: see `choose_threshold`.
        resamples: of the bootstrap.
        level: of the intervals.
        progress: called with (lines evaluated, lines in all), counted over anchor counts.

    Returns:
        `ZeroShotResult`; `scores` takes lines * counts * seeds * n * num_classes numbers.

    Raises:
        TypeError: for options of the wrong type, or ids that cannot be compared.
        ValueError: if an item or patient is in two of anchors, validation and test, or in
            labelled and validation or test; for dimensions that do not match, labels outside of
            the class set, counts beyond the data, unknown methods or scores that are NaN.
    """
    _check_parts(anchors, validation, test, labelled, prompts)
    truth = [_truth(name, p, prompts) for name, p in (("validation", validation), ("test", test))]
    checked = check_counts(counts, len(anchors.ids))
    for normalization in normalizations:
        checks.option("normalizations", normalization, SPACE_NORMALIZATIONS)
    checks.option("rule", rule, THRESHOLD_RULES)
    seeds = checks.positive_int("seeds", seeds)
    anchor_key, label_key, bootstrap_key = jax.random.split(key, 3)
    orders = _orders(anchor_key, len(anchors.ids), seeds, max(checked))

    split = len(validation.embeddings)
    dtype = common_dtype(validation.embeddings.dtype, test.embeddings.dtype)
    images = jnp.concatenate([a.embeddings.astype(dtype) for a in (validation, test)])
    lines = [(name, how) for name in methods for how in normalizations]
    lines += [(name, "") for name in baselines]
    warmth = jnp.asarray(temperature)
    parts = []
    if methods and normalizations:
        parts.append(
            _map_scores(
                anchors, orders, checked, images, prompts, tuple(normalizations), methods,
                warmth, shrinkage,
            )
        )  # fmt: skip
    if baselines:
        score = partial(_baseline_scores, tuple(baselines.values()), anchors.source, anchors.target)
        found = [np.asarray(score(orders[:, :count], images, prompts, warmth)) for count in checked]
        parts.append(np.stack(found, axis=1))
    if not parts:
        raise ValueError("methods and baselines are empty: give at least one line")
    scores = np.concatenate([part.astype(parts[0].dtype) for part in parts])
    if labelled is not None:
        check_counts(checked, len(labelled.ids))
        given = _truth("labelled", labelled, prompts)
        label_orders = _orders(label_key, len(labelled.ids), seeds, max(checked))
        probe = partial(_probe_scores, prompts.task, prompts.num_classes)
        found = [
            probe(labelled.embeddings, given, label_orders[:, :count], images, jnp.asarray(l2))
            for count in checked
        ]
        scores = np.concatenate([scores, np.stack([np.asarray(f) for f in found])[None]])
        lines.append(("linear probe", ""))
    if multimodal is not None:
        rows = split, len(test.ids)
        found = np.asarray(_multimodal_scores(multimodal, prompts, rows, temperature))
        scores = np.concatenate([scores, np.broadcast_to(found, (1, *scores.shape[1:]))])
        lines.append(("multimodal", ""))

    return _report(
        scores, split, truth, lines, checked, prompts, bootstrap_key, rule, test.patients,
        resamples, level, progress,
    )  # fmt: skip


def _truth(name: str, part: Images, prompts: EmbeddedPrompts) -> _Truth:
    labels = _labels(name, part.labels, prompts.names, prompts.task)
    return _Truth(labels, _known(f"known of {name}", part.known, labels, prompts.task))


def _check_parts(
    anchors: AnchorPairs,
    validation: Images,
    test: Images,
    labelled: Images | None,
    prompts: EmbeddedPrompts,
) -> None:
    parts: dict[str, Images] = {"validation": validation, "test": test}
    check_disjoint({"anchors": anchors, **parts})
    if labelled is not None:
        # They may be images of the anchors, of which the labels are known too.
        parts["labelled"] = labelled
        check_disjoint(parts)
    for name, part in parts.items():
        if part.embeddings.shape[1] != anchors.source.shape[1]:
            raise ValueError(
                f"{name} images have {part.embeddings.shape[1]} features, the source anchors "
                f"{anchors.source.shape[1]}"
            )
    if prompts.embeddings.shape[1] != anchors.target.shape[1]:
        raise ValueError(
            f"prompts have {prompts.embeddings.shape[1]} features, the target anchors "
            f"{anchors.target.shape[1]}"
        )


def _orders(key: Array, rows: int, seeds: int, size: int) -> Array:
    """A random order for each seed [seeds, size]."""
    return jax.vmap(partial(anchor_order, n=rows, size=size))(jax.random.split(key, seeds))


def _map_scores(
    anchors: AnchorPairs,
    orders: Array,
    counts: tuple[int, ...],
    images: Array,
    prompts: EmbeddedPrompts,
    normalizations: tuple[SpaceNormalization, ...],
    methods: Mapping[str, Method | SweepMethod | Fitter],
    temperature: Array,
    shrinkage: float | None,
) -> np.ndarray:
    """Scores of the maps [methods * normalizations, counts, seeds, n, classes].

    The maps of all counts are fitted by one program, since they share factorisations, and scored
    by another that knows no counts.
    """
    source, target = anchors.source, anchors.target
    numbers = len(methods) * len(counts) * source.shape[1] * target.shape[1]
    batch = max(1, MAP_NUMBERS // numbers)
    batches = []
    for start in range(0, len(orders), batch):
        here = orders[start : start + batch]
        swept = anchor_sweep(
            source, target, counts, orders=here, methods=methods, metrics={"map": fitted_map}
        )
        maps = swept.values["map"]
        cells = []
        for c, count in enumerate(counts):
            space = None
            if any(how != "none" for how in normalizations):
                space = _spaces(source, target, here[:, :count], shrinkage)
            own = jax.tree_util.tree_map(lambda leaf, c=c: leaf[:, c], maps)
            scores = _scores_of_maps(normalizations, own, space, images, prompts, temperature)
            cells.append(np.asarray(scores))
        batches.append(np.stack(cells, axis=1))
    return np.concatenate(batches, axis=2)


def fitted_map(mapping: AffineMap, _: Any) -> AffineMap:
    """The metric of a sweep that gives the maps themselves."""
    return mapping


@partial(jax.jit, static_argnums=0)
def _scores_of_maps(
    normalizations: tuple[SpaceNormalization, ...],
    maps: AffineMap,
    spaces: AnchorSpace | None,
    images: Array,
    prompts: EmbeddedPrompts,
    temperature: Array,
) -> Array:
    """Scores [methods * normalizations, seeds, n, classes] of maps [methods, seeds, ...]."""

    def one(mapping: AffineMap, space: AnchorSpace | None) -> Array:
        return jnp.stack(
            [
                zero_shot_scores(
                    mapping,
                    images,
                    prompts,
                    normalization=normalization,
                    space=space,
                    temperature=temperature,
                )
                for normalization in normalizations
            ]
        )

    # Nested loops, so that the methods of a seed share its space without copies.
    scores = jax.lax.map(
        lambda seed: jax.lax.map(lambda mapping: one(mapping, seed[1]), seed[0]),
        (jax.tree_util.tree_map(lambda leaf: jnp.moveaxis(leaf, 1, 0), maps), spaces),
    )
    scores = jnp.moveaxis(scores, 0, 2)  # [methods, normalizations, seeds, n, classes]
    return scores.reshape(-1, *scores.shape[2:])


@jax.jit
def _spaces(source: Array, target: Array, orders: Array, shrinkage: Any) -> AnchorSpace:
    return jax.lax.map(
        lambda order: anchor_space(source[order], target[order], shrinkage=shrinkage), orders
    )


@partial(jax.jit, static_argnums=0)
def _baseline_scores(baselines, source, target, orders, images, prompts, temperature) -> Array:
    def one_seed(order):
        arguments = source[order], target[order], images, prompts
        return jnp.stack([score(*arguments, temperature=temperature) for score in baselines])

    return jnp.moveaxis(jax.lax.map(one_seed, orders), 0, 1)


@partial(jax.jit, static_argnums=(0, 1))
def _probe_scores(task, num_classes, embeddings, truth, orders, images, l2) -> Array:
    """Scores [seeds, n, classes] of linear probes."""

    def one_seed(order):
        known = None if truth.known is None else truth.known[order]
        labels = truth.labels[order]
        return linear_probe_scores(
            embeddings[order], labels, images, num_classes, task=task, l2=l2, known=known
        )

    return jax.lax.map(one_seed, orders)


def _multimodal_scores(
    model: Multimodal, prompts: EmbeddedPrompts, rows: tuple[int, int], temperature: float
) -> Array:
    """Scores of the validation and test images, of which there are so many."""
    if (model.prompts.names, model.prompts.task) != (prompts.names, prompts.task):
        raise ValueError("multimodal: its prompts are of another set than those of the maps")
    scores = []
    for name, value, expected in (
        ("validation", model.validation, rows[0]),
        ("test", model.test, rows[1]),
    ):
        value = _embeddings(f"multimodal.{name}", value)
        if len(value) != expected:
            raise ValueError(
                f"multimodal.{name} must have a row for each of the {expected} {name} images; got "
                f"{len(value)}"
            )
        scores.append(multimodal_scores(value, model.prompts, temperature=temperature))
    return jnp.concatenate(scores)


def _report(
    scores: np.ndarray,
    split: int,
    truth: Sequence[_Truth],
    lines: Sequence[tuple[str, str]],
    counts: tuple[int, ...],
    prompts: EmbeddedPrompts,
    key: Array,
    rule: ThresholdRule,
    patients: np.ndarray,
    resamples: int,
    level: float,
    progress: Callable[[int, int], None] | None,
) -> ZeroShotResult:
    """Thresholds, metrics and intervals of scores [lines, counts, seeds, v + n, classes]."""
    clusters = _cluster_numbers(patients, len(patients))
    cells: list[tuple[BootstrapInterval, Array]] = []
    for i, (line, how) in enumerate(lines):
        for c, count in enumerate(counts):
            if c and np.array_equal(scores[i, c], scores[i, c - 1]):
                cells.append(cells[-1])  # a line without anchors, e.g. a multimodal model
            else:
                own = jnp.asarray(scores[i, c])
                not_nan(f"scores of {' '.join(filter(None, (line, how)))} at {count} anchors", own)
                validation, test = own[:, :split], own[:, split:]
                found = _evaluate(
                    truth[0], validation, truth[1], test, prompts.task, key, rule, clusters,
                    resamples, level,
                )  # fmt: skip
                cells.append(jax.device_get(found))
            if progress is not None:
                progress(len(cells), len(lines) * len(counts))

    def stacked(*leaves):
        return np.stack(leaves).reshape(len(lines), len(counts), *np.shape(leaves[0]))

    intervals, thresholds = jax.tree_util.tree_map(stacked, *cells)

    def undefined(part):
        flags = np.asarray(_undefined(part, prompts.num_classes))
        return tuple(name for name, flag in zip(prompts.names, flags, strict=True) if flag)

    return ZeroShotResult(
        scores[..., split:, :],
        BootstrapInterval(*(part["each"] for part in intervals)),
        BootstrapInterval(*(part["mean"] for part in intervals)),
        thresholds,
        tuple(lines),
        counts,
        prompts.names,
        undefined(truth[1]),
        undefined(truth[0]),
    )
