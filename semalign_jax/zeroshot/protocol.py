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
    for row in result.rows(["auroc"]):
        print(row)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import common_dtype
from .._core.records import Records, cells_of, shown_counts
from .._core.typing import METHODS, Array, Method
from ..maps.affine_map import AffineMap, identity_map
from ..metrics.by_name import HeadMetric, ScoreMetric
from ..metrics.delong import tail_of
from ..metrics.intervals import BootstrapInterval
from ..sweeps.one_pair import Fitter, SweepMethod, checked_orders
from ._protocol_data import AnchorPairs, Images, Multimodal, check_parts, truth_of
from ._protocol_metrics import Evaluation, cluster_numbers, evaluate, undefined
from ._protocol_scores import (
    baseline_scores,
    map_scores,
    probe_scores,
    scores_of_multimodal,
)
from .baselines import BASELINES, Baseline
from .scores import (
    SPACE_NORMALIZATIONS,
    TEMPERATURE,
    EmbeddedPrompts,
    SpaceNormalization,
    above_zero,
    checked_shrinkage,
    not_nan,
)
from .thresholds import THRESHOLD_RULES, ThresholdRule
from .truth import Truth

#: The metrics of a task by name, the first ones those that tell most.
TASK_METRICS: Mapping[str, tuple[HeadMetric, ...]] = {
    "single-label": ("accuracy", "auroc", "balanced_accuracy", "average_precision"),
    "multi-label": ("auroc", "average_precision", "macro_f1"),
}
#: Name of the line of the linear probe.
PROBE_LINE = "linear probe"


@dataclass(frozen=True, eq=False, repr=False)
class ZeroShotResult(Records):
    """Scores and metrics of all lines at all anchor counts and seeds, by name by `to_records`.

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

    def __repr__(self) -> str:
        methods = ", ".join(dict.fromkeys(method for method, _ in self.lines))
        classes = checks.counted(len(self.names), "class", "classes")
        return f"<ZeroShotResult: {methods}, {classes}, {shown_counts(self.counts)}>"

    def to_records(self) -> list[dict[str, Any]]:
        """A dictionary for each score: metric, method, normalization, anchors, seed, value."""
        keys = ("metric", "method", "normalization", "anchors", "seed", "value")
        return [
            dict(zip(keys, (metric, *line, *rest, value), strict=True))
            for metric, values in self.intervals.estimate.items()
            for (line, *rest), value in cells_of(values, self.lines, self.counts)
        ]

    def rows(self, metrics: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The table: one dict a line, count and metric.

        Args:
            metrics: names of metrics; None means all but those of single classes.

        Returns:
            Dicts with the keys method, normalization, anchors, metric, mean over the seeds and
            their standard deviation (divided by their number, so 0 for one), lower and upper end
            of the mean's interval, undefined_classes.

        Raises:
            ValueError: for a metric that there is not.
        """
        estimates = self.intervals.estimate
        scalars = [name for name in estimates if name != "classes"]
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


# As public: one option for each thing that a study varies.
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
    multimodal: Mapping[str, Multimodal] | None = None,
    temperature: float = TEMPERATURE,
    shrinkage: float | None = None,
    l2: float = 1.0,
    rule: ThresholdRule = "youden",
    metrics: Mapping[str, ScoreMetric] | None = None,
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
        multimodal: label -> a multimodal model on the same images, a line each.
        temperature: see `prompt_scores`.
        shrinkage: see `anchor_space`.
        l2: of the linear probe, see `fit_head`.
        rule: see `choose_threshold`.
        metrics: further metrics, name -> function `(scores [n, num_classes], (labels, weights)) ->
            scalar`, traceable. Labels are classes [n] or booleans [n, num_classes]; weights, of
            the same shape, count how often a resample has the image, 0 where a label is not known.
            Define it once, as baselines.
        resamples: of the bootstrap.
        level: of the intervals.
        progress: called with (lines evaluated, lines in all), counted over anchor counts.

    Returns:
        `ZeroShotResult`; `scores` takes lines * counts * seeds * n * num_classes numbers.

    Raises:
        TypeError: for options of the wrong type, or ids that cannot be compared.
        ValueError: if an item or patient is in two of anchors, validation and test, or in
            labelled and validation or test; for dimensions that do not match, labels outside of
            the class set, counts beyond the data, a temperature that is not positive, a shrinkage
            outside of [0, 1], a level outside of (0, 1), unknown methods or scores that are NaN.
    """
    check_parts(anchors, validation, test, labelled, prompts)
    truth = [truth_of(name, p, prompts) for name, p in (("validation", validation), ("test", test))]
    for normalization in normalizations:
        checks.option("normalizations", normalization, SPACE_NORMALIZATIONS)
    checks.option("rule", rule, THRESHOLD_RULES)
    for name, function in (metrics or {}).items():
        if not callable(function):
            raise TypeError(f"metrics[{name!r}] must be a function; got {function!r}")
        if name in ("classes", *TASK_METRICS[prompts.task]):
            raise ValueError(f"metrics: {name!r} is the name of what there is already")
    if not (methods and normalizations or baselines):
        raise ValueError("methods and baselines are empty: give at least one line")
    anchor_key, label_key, bootstrap_key = jax.random.split(checks.prng_key("key", key), 3)
    seeds = checks.positive_int("seeds", seeds)
    keys = jax.random.split(anchor_key, seeds)
    checked, orders = checked_orders(counts, len(anchors.ids), keys, None, None)
    learnt = None  # what the linear probe learns from, and the orders in which it takes that
    if labelled is not None:
        keys = jax.random.split(label_key, seeds)
        _, own = checked_orders(checked, len(labelled.ids), keys, None, None)
        learnt = truth_of("labelled", labelled, prompts), own
    resamples, _ = checks.positive_int("resamples", resamples), tail_of(level)
    # Here, since they are traced where they are used.
    warmth, shrunk = above_zero("temperature", temperature), checked_shrinkage(shrinkage)
    penalty = checks.scalar("l2", l2)
    rows = len(validation.ids), len(test.ids)
    of_models = {
        name: np.asarray(scores_of_multimodal(name, model, prompts, rows, warmth))
        for name, model in (multimodal or {}).items()
    }
    dtype = common_dtype(validation.embeddings.dtype, test.embeddings.dtype)
    images = jnp.concatenate([a.embeddings.astype(dtype) for a in (validation, test)])
    lines = [(name, how) for name in methods for how in normalizations]
    lines += [(name, "") for name in baselines]
    parts = []
    if methods and normalizations:
        parts.append(
            map_scores(
                anchors, orders, checked, images, prompts, tuple(normalizations), methods,
                warmth, shrunk,
            )
        )  # fmt: skip
    if baselines:
        found = baseline_scores(baselines, anchors, orders, checked, images, prompts, warmth)
        parts.append(found.astype(parts[0].dtype) if parts else found)
    if labelled is not None and learnt is not None:
        parts.append(probe_scores(labelled, *learnt, checked, images, prompts, penalty))
        lines.append((PROBE_LINE, ""))
    for name, found in of_models.items():
        parts.append(np.broadcast_to(found, (1, *parts[0].shape[1:])))
        lines.append((name, ""))
    functions = tuple((metrics or {}).items())
    clusters = cluster_numbers(test.patients)
    how = Evaluation(prompts.task, bootstrap_key, rule, clusters, resamples, level, functions)
    return _result(np.concatenate(parts), lines, checked, prompts.names, truth, how, progress)


def _result(
    scores: np.ndarray,
    lines: Sequence[tuple[str, str]],
    counts: tuple[int, ...],
    names: tuple[str, ...],
    truth: Sequence[Truth],
    how: Evaluation,
    progress: Callable[[int, int], None] | None,
) -> ZeroShotResult:
    """Thresholds, metrics and intervals of scores [lines, counts, seeds, v + n, classes]."""
    split = len(truth[0].labels)
    cells: list[tuple[BootstrapInterval, Array]] = []
    for i, line in enumerate(lines):
        for c, count in enumerate(counts):
            if c and np.array_equal(scores[i, c], scores[i, c - 1]):
                cells.append(cells[-1])  # a line without anchors, e.g. a multimodal model
            else:
                own = scores[i, c]
                not_nan(f"scores of {' '.join(filter(None, line))} at {count} anchors", own)
                found = evaluate(truth[0], own[:, :split], truth[1], own[:, split:], how)
                cells.append(jax.device_get(found))
            if progress is not None:
                progress(len(cells), len(lines) * len(counts))

    def stacked(*leaves):
        return np.stack(leaves).reshape(len(lines), len(counts), *np.shape(leaves[0]))

    def lacking(part):
        flags = np.asarray(undefined(part, len(names)))
        return tuple(name for name, flag in zip(names, flags, strict=True) if flag)

    intervals, thresholds = jax.tree_util.tree_map(stacked, *cells)
    return ZeroShotResult(
        scores[..., split:, :],
        BootstrapInterval(*(part["each"] for part in intervals)),
        BootstrapInterval(*(part["mean"] for part in intervals)),
        thresholds,
        tuple(lines),
        counts,
        names,
        lacking(truth[1]),
        lacking(truth[0]),
    )
