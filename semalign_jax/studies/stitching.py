"""Stitching between a user's encoders, from embeddings on disk to tables and figures.

Every encoder gets a head on the training images; it reads the test images of every other encoder
through maps that few anchors determine, between no map ("naive"), its own encoder's embeddings
("upper bound") and maps fitted to wrongly matched anchors ("shuffled ..."): the protocol of Maiorca
et al. 2023 (arXiv 2311.00664) in `evaluate_stitching_pairs`, one pair of encoders after the other.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, field_validator, model_validator

from .. import data
from .._core.checks import first_few
from .._core.typing import Array
from ..data import ImageTextDataset, Label
from ..maps.affine_map import identity_map
from ..maps.mlp_head import Head
from ..metrics import (
    MacroMean,
    auroc_from_ranking,
    average_precision_from_ranking,
    precision_recall_f1,
    predicted_classes,
    rank_scores,
)
from ..metrics.by_name import HeadMetric, log_odds
from ..metrics.intervals import bootstrap
from ..stitching.evaluate import stitch
from ..stitching.heads import HeadInfo, Loss, fit_head
from ..stitching.matrix import StitchingMatrix, evaluate_stitching_pairs
from ..sweeps.many_pairs import sweep_pairs
from .cells import run_cells
from .common import (
    DEMO_TEST_SHARE,
    METHODS,
    Count,
    all_different,
    check_splits,
    digest,
    run_in,
    sweep_method,
    with_options,
)
from .demo import load_demo
from .inputs import DataPath, DatasetSettings, Settings, match_stores, read_dataset
from .outputs import FORMAT, UPPER_BOUND, VERSION, ClassRow, StudyResults, resolved_settings
from .report import Row, environment

DemoGroup: TypeAlias = Literal["glosses", "emoji"]
ClassMetric: TypeAlias = Literal["auroc", "average_precision", "f1"]

NAIVE = "naive"
#: What heads are trained with.
LOSS_OF_TASK: dict[str, Loss] = {"single-label": "multinomial", "multi-label": "binary"}
#: Label of the demo groups, and their encoders.
DEMO: dict[DemoGroup, tuple[str, dict[str, str]]] = {
    "glosses": (
        "supersense",
        {"MiniLM-L3": "glosses_minilm_l3", "MiniLM-L6": "glosses_minilm_l6"},
    ),
    "emoji": (
        "category",
        {"EfficientNet-Lite0": "emoji_efficientnet_lite0", "DINOv2-small": "emoji_dinov2_small"},
    ),
}
#: Numbers that a batch of resamples may hold for one score; bounds the memory of the bootstrap.
BOOTSTRAP_NUMBERS = 2**24


# --- settings ----------------------------------------------------------------------------------


class PatientSplitSettings(Settings):
    """A split by patient, for data sets that come without one; see `data.patient_split`.

    Attributes:
        test: fraction of the images that are tested.
        seed: of the split.
    """

    test: float = Field(default=0.3, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class IntervalSettings(Settings):
    """Scores of single classes at the largest anchor count, with bootstrap intervals.

    Patients are the units that are drawn. Scores are means over the draws of anchors.

    Attributes:
        metrics: which scores.
        resamples: of the bootstrap.
        level: of the intervals.
    """

    metrics: tuple[ClassMetric, ...] = Field(default=("auroc",), min_length=1)
    resamples: int = Field(default=1000, ge=1)
    level: float = Field(default=0.95, gt=0, lt=1)


class StitchingSettings(Settings):
    """Settings of a stitching study.

    The data are either `demo` groups, or a `dataset` and `stores`; these have `train` and `test`
    splits, or are split by `patient_split`.

    Attributes:
        title: of the report.
        demo: shipped embeddings instead of own ones.
        dataset: images with labels and patients.
        stores: name of an encoder -> folder of its embeddings of these images, matched by id.
            Images that are not in all stores are left out.
        train: names of the data set's splits that heads are trained on and anchors come from.
        test: names of the splits that are tested.
        anchors: names of the splits that anchors come from instead.
        patient_split: split the images instead, no patient in both parts.
        task: "single-label" (each image has exactly one label) or "multi-label".
        labels: which labels of the data set, and their order; None for all.
        uncertain: what uncertain labels are, see `data.binary_labels`; of "multi-label".
        blank: what missing labels are; of "multi-label".
        counts: anchor counts.
        seeds: how many times anchors are drawn.
        seed: of anchors and resamples.
        methods: name -> options of `SweepMethod`. A list of names of maps does too, and a name of
            a map instead of options.
        metrics: scores, see `evaluate_stitching_pairs`; figures of pairs show the first.
        control: whether to also fit to wrongly matched anchors, which doubles the work.
        l2: penalty of the heads, see `fit_head`.
        intervals: of single classes; None leaves them out.
    """

    title: str = "Stitching"
    demo: tuple[DemoGroup, ...] = ()
    dataset: DatasetSettings | None = None
    stores: dict[str, DataPath] = {}
    train: tuple[str, ...] | None = Field(default=None, min_length=1)
    test: tuple[str, ...] | None = Field(default=None, min_length=1)
    anchors: tuple[str, ...] | None = Field(default=None, min_length=1)
    patient_split: PatientSplitSettings | None = None
    task: Literal["single-label", "multi-label"] = "multi-label"
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
    blank: Literal["ignore", "zeros"] = "ignore"
    counts: tuple[Count, ...] = Field(default=(10, 20, 50, 100, 200, 500, 1000), min_length=1)
    seeds: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    methods: dict[str, dict[str, Any]] = Field(default=METHODS, min_length=1)
    metrics: tuple[HeadMetric, ...] = Field(default=("auroc", "accuracy"), min_length=1)
    control: bool = True
    l2: float = Field(default=1.0, ge=0)
    intervals: IntervalSettings | None = IntervalSettings()

    @field_validator("demo", "train", "test", "anchors", "labels", "counts", "metrics")
    @classmethod
    def _all_different(cls, values: tuple | None) -> tuple | None:
        return all_different(values)

    @field_validator("methods", mode="before")
    @classmethod
    def _with_options(cls, values: Any) -> Any:
        return with_options(values, "method")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in values.items():
            if name in (NAIVE, UPPER_BOUND) or name.startswith("shuffled"):
                raise ValueError(f"{name!r} is the name of a reference; choose another")
            if "shuffled" in options:
                raise ValueError(
                    f"{name}: shuffled is no option here; control says whether it is computed"
                )
            try:
                sweep_method(options)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from None
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "StitchingSettings":
        own = ("dataset", "stores", "train", "test", "anchors", "patient_split", "labels")
        if self.demo:
            wrong = [name for name in own if getattr(self, name)]
            if wrong:
                raise ValueError(f"demo and {wrong[0]} cannot both be given")
            if self.task != "single-label":
                raise ValueError("task must be single-label for the demo")
            return self
        if self.dataset is None:
            raise ValueError("dataset is missing: give dataset and stores, or demo")
        if len(self.stores) < 2:
            raise ValueError(f"stores must name at least two encoders; got {list(self.stores)}")
        if self.patient_split is not None:
            wrong = [name for name in ("train", "test", "anchors") if getattr(self, name)]
            if wrong:
                raise ValueError(f"patient_split and {wrong[0]} cannot both be given")
        elif self.train is None or self.test is None:
            raise ValueError(
                "train and test are missing: name splits of the data set, or give patient_split"
            )
        else:
            for name in ("train", "anchors"):
                both = set(getattr(self, name) or ()) & set(self.test)
                if both:
                    raise ValueError(f"{name} and test both have the split {min(both)!r}")
        return self


def demo_settings(quick: bool = False) -> StitchingSettings:
    """Settings of the demo: glosses under two text encoders, emoji under two image encoders.

    Args:
        quick: fewer anchor counts, draws and resamples.
    """
    small: dict[str, Any] = {"counts": (20, 200), "seeds": 2}
    return StitchingSettings(
        title="Demo: stitching of text and of image encoders",
        demo=("glosses", "emoji"),
        task="single-label",
        metrics=("accuracy", "auroc"),
        intervals=IntervalSettings(resamples=50 if quick else 1000),
        **(small if quick else {}),
    )


# --- data --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    """Embeddings and labels of one group of encoders, ready to run.

    Attributes:
        protocol: name of the group.
        names: of the classes or labels.
        train: encoder -> [n, d].
        labels: classes [n], or 0/1 [n, labels].
        known: which labels are known [n, labels]; None for classes.
        test: encoder -> [t, d].
        test_labels: like `labels`.
        test_known: like `known`.
        anchors: encoder -> [m, d] to draw anchors from; None for `train`.
        patients: int32 [t], patient of each test row; None if every row is a unit.
        notes: what a reader should know.
    """

    protocol: str
    names: tuple[str, ...]
    train: dict[str, np.ndarray]
    labels: np.ndarray
    known: np.ndarray | None
    test: dict[str, np.ndarray]
    test_labels: np.ndarray
    test_known: np.ndarray | None
    anchors: dict[str, np.ndarray] | None
    patients: np.ndarray | None
    notes: tuple[str, ...]

    def digests(self) -> dict[str, Any]:
        """What the scores rest on: of each encoder, and of all else."""
        parts = (self.train, self.test, self.anchors or {})
        rest = (self.labels, self.known, self.test_labels, self.test_known, self.patients)
        return {
            "encoders": {
                name: digest(*(part[name] for part in parts if name in part)) for name in self.train
            },
            "labels": digest(*rest, np.array(self.names)),
        }


def _distinct_rows(embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows that repeat no earlier one under any encoder: no test item may be in training too."""
    rows = np.arange(len(next(iter(embeddings.values()))))
    for values in embeddings.values():
        rows = np.intersect1d(rows, np.unique(values, axis=0, return_index=True)[1])
    return rows


def _demo_task(group: DemoGroup) -> _Task:
    label, files = DEMO[group]
    sets = {name: load_demo(file) for name, file in files.items()}
    classes, names = next(iter(sets.values())).labels(label)
    kept = _distinct_rows({name: one.values for name, one in sets.items()})
    order = np.random.default_rng(0).permutation(len(kept))
    cut = len(kept) - round(DEMO_TEST_SHARE * len(kept))
    train, test = kept[np.sort(order[:cut])], kept[np.sort(order[cut:])]
    left_out = len(classes) - len(kept)
    note = f"{group}: {len(train)} items to train on and draw anchors from, {len(test)} to test."
    note += f" {left_out} that repeat an earlier item are left out." if left_out else ""
    return _Task(
        protocol=group,
        names=tuple(names),
        train={name: one.values[train] for name, one in sets.items()},
        labels=classes[train],
        known=None,
        test={name: one.values[test] for name, one in sets.items()},
        test_labels=classes[test],
        test_known=None,
        anchors=None,
        patients=None,
        notes=(note,),
    )


def _own_task(settings: StitchingSettings, source: DatasetSettings) -> _Task:
    where = str(source.path)
    for name, folder in settings.stores.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"stores.{name}: there is no folder {folder}")
    dataset = read_dataset(source)
    names = _label_names(dataset, settings.labels, where)
    matched = match_stores(dataset, settings.stores)
    rows = _split(matched.data, settings, where)
    part = {name: matched.data.select(index) for name, index in rows.items()}
    try:
        for name in ("train", "anchors"):  # anchors may be images that heads are trained on
            data.check_disjoint({name: part[name], "test": part["test"]})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    labels, known = _labels(part["train"], names, settings, "train", where)
    test_labels, test_known = _labels(part["test"], names, settings, "test", where)
    _check_training_labels(names, labels, known, where)
    notes = [_size_note(part, matched.left_out)]
    notes += _test_label_notes(names, test_labels, test_known, where)
    if max(settings.counts) > len(rows["anchors"]):
        raise ValueError(
            f"counts: {max(settings.counts)} anchors are more than the {len(rows['anchors'])} "
            f"images of {where} that they are drawn from"
        )

    def embeddings(name: str) -> dict[str, np.ndarray]:
        return {encoder: values[rows[name]] for encoder, values in matched.embeddings.items()}

    return _Task(
        protocol="stitching",
        names=names,
        train=embeddings("train"),
        labels=labels,
        known=known,
        test=embeddings("test"),
        test_labels=test_labels,
        test_known=test_known,
        anchors=embeddings("anchors") if settings.anchors else None,
        patients=np.unique(part["test"].patients, return_inverse=True)[1].astype(np.int32),
        notes=tuple(notes),
    )


def _label_names(
    dataset: ImageTextDataset, labels: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    names = dataset.label_names if labels is None else tuple(labels)
    for name in names:
        if name not in dataset.label_names:
            raise ValueError(
                f"labels: {name!r} is no label of {where}; it has {first_few(dataset.label_names)}"
            )
    if len(names) < 2:
        raise ValueError(
            f"{where} has {len(names)} labels, at least 2 are needed: see the option label of its "
            "reader"
        )
    return names


def _split(
    dataset: ImageTextDataset, settings: StitchingSettings, where: str
) -> dict[str, np.ndarray]:
    """Rows of the parts "train", "anchors" and "test"."""
    if settings.patient_split is not None:
        share = settings.patient_split.test
        fractions = {"train": 1 - share, "test": share}
        try:
            split = data.patient_split(dataset.patients, fractions, settings.patient_split.seed)
        except ValueError as error:
            raise ValueError(f"patient_split of {where}: {error}") from None
        return {**split.parts, "anchors": split.parts["train"]}
    found = np.array(dataset.splits)
    rows = {}
    for name in ("train", "anchors", "test"):
        wanted = getattr(settings, name) or settings.train or ()
        check_splits(name, wanted, dataset, found, where, "is in all stores")
        rows[name] = np.flatnonzero(np.isin(found, wanted))
    return rows


def _labels(
    part: ImageTextDataset,
    names: tuple[str, ...],
    settings: StitchingSettings,
    name: str,
    where: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes [n], or labels and which are known [n, labels]."""
    codes = part.labels[:, [part.label_names.index(label) for label in names]]
    if settings.task == "multi-label":
        chosen = replace(part, labels=codes, label_names=names)
        binary = data.binary_labels(chosen, settings.uncertain, blank=settings.blank)
        return binary.labels, binary.known
    positive = codes == Label.POSITIVE
    bad = np.flatnonzero(positive.sum(axis=1) != 1)
    if bad.size:
        # Also those outside of the chosen labels.
        has = np.flatnonzero(part.labels[bad[0]] == Label.POSITIVE)
        found = first_few([part.label_names[i] for i in has]) or "no label"
        raise ValueError(
            f"{where}: {bad.size} images of {name} do not have exactly one of the labels "
            f"{first_few(names)}, as task: single-label needs; the first is {part.ids[bad[0]]!r} "
            f"with {found}. Leave these rows out, or use task: multi-label"
        )
    return positive.argmax(axis=1).astype(np.int32), None


def _size_note(part: Mapping[str, ImageTextDataset], left_out: int) -> str:
    sizes = [
        f"{len(part[name])} images of {len(set(part[name].patients))} patients {purpose}"
        for name, purpose in (
            ("train", "to train on"),
            ("anchors", "to draw anchors from"),
            ("test", "to test"),
        )
    ]
    note = f"{', '.join(sizes)}; no patient is tested and used otherwise."
    return note + (f" {left_out} images are not in all stores." if left_out else "")


def _both_values(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which labels have known rows of both values."""
    return ((labels == 1) & known).any(axis=0) & ((labels == 0) & known).any(axis=0)


def _check_training_labels(
    names: Sequence[str], labels: np.ndarray, known: np.ndarray | None, where: str
) -> None:
    if known is None:
        good = np.isin(np.arange(len(names)), labels)
        what = "no training image has the label"
    else:
        good = _both_values(labels, known)
        what = "all training images have the same value of"
    lacking = [name for name, fine in zip(names, good, strict=True) if not fine]
    if lacking:
        raise ValueError(
            f"{where}: {what} {first_few(lacking)}: leave it out by listing the others as labels"
        )


def _test_label_notes(
    names: Sequence[str], labels: np.ndarray, known: np.ndarray | None, where: str
) -> list[str]:
    if known is None:
        found = np.unique(labels)
        if len(found) < 2:
            raise ValueError(
                f"{where}: all test images have the label {names[found[0]]!r}, which no score can "
                "tell from others: choose other splits or labels"
            )
        good = np.isin(np.arange(len(names)), found)
        what = "without test images"
    else:
        good = _both_values(labels, known)
        what = "with the same value in all test images"
        if not good.any():
            raise ValueError(
                f"{where}: every label has the same value in all test images, so that no score is "
                "defined: choose other splits or labels"
            )
    lacking = [name for name, fine in zip(names, good, strict=True) if not fine]
    if not lacking:
        return []
    return [
        f"Labels {what}, left out of means where their score is undefined: {first_few(lacking)}."
    ]


# --- scores of a pair --------------------------------------------------------------------------


def raw_scores(scores: Array, _: Any) -> Array:
    """The metric of a sweep that returns the scores themselves."""
    return scores


@dataclass(frozen=True)
class _ClassScores:
    """Scores [metrics, classes] of logits of several draws of anchors, means over these."""

    metrics: tuple[ClassMetric, ...]
    classes: int

    def __call__(self, values: dict[str, Any], weights: Array) -> Array:
        axes = {"labels": None, "known": None, "ranking": 0, "predicted": 0}
        one = jax.vmap(lambda part: self._one(part, weights), in_axes=(axes,))(values)
        return jnp.mean(one, axis=0)

    def _one(self, values: dict[str, Any], weights: Array) -> Array:
        labels, known = values["labels"], values["known"]
        if known is not None:
            weights = weights[:, None] * known.astype(weights.dtype)
        number = self.classes if labels.ndim == 1 else None
        found: dict[ClassMetric, Callable[[], Array]] = {
            "auroc": lambda: auroc_from_ranking(values["ranking"], weights),
            "average_precision": lambda: average_precision_from_ranking(values["ranking"], weights),
            "f1": lambda: (
                precision_recall_f1(labels, values["predicted"], number, weights=weights).f1
            ),
        }
        return jnp.stack([found[name]() for name in self.metrics])


@jax.jit
def _prepared(logits: Array, labels: Array) -> dict[str, Any]:
    """Rankings and predictions of logits [draws, t, classes]."""
    if labels.ndim == 1:
        odds = log_odds(logits)
        predicted = predicted_classes(logits)
    else:
        odds, predicted = logits, logits > 0
    return {"ranking": jax.vmap(lambda s: rank_scores(labels, s))(odds), "predicted": predicted}


class _Line(NamedTuple):
    """Logits [draws, t, classes] of one method, and its anchor count."""

    method: str
    anchors: int | None
    logits: Array


class _Runner:
    """Computes the cells of a task; heads are trained when they are first needed."""

    def __init__(self, task: _Task, settings: StitchingSettings) -> None:
        self.task, self.settings = task, settings
        self.methods = {name: sweep_method(o) for name, o in settings.methods.items()}
        self.keys = jax.random.split(jax.random.key(settings.seed), settings.seeds)
        self.head = cache(self._head)
        # On a CPU two directions, controls or bootstraps run side by side.
        self.workers = 2 if jax.default_backend() == "cpu" else 1

    def _head(self, name: str) -> tuple[Head, HeadInfo]:
        task = self.task
        try:
            return fit_head(
                task.train[name],
                task.labels,
                len(task.names),
                loss=LOSS_OF_TASK[self.settings.task],
                known=task.known,
                l2=self.settings.l2,
                info=True,
            )
        except ValueError as error:
            raise ValueError(f"head of stores.{name}: {error}") from None

    def cell(self, a: str, b: str) -> dict[str, Any]:
        """All scores of the encoders `a` and `b`, in both directions; JSON values."""
        start = time.perf_counter()
        task, settings = self.task, self.settings
        fitted = {name: self.head(name) for name in (a, b)}
        heads = {name: head for name, (head, _) in fitted.items()}

        def both(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[name] for name in (a, b)}

        anchors = None if task.anchors is None else both(task.anchors)
        matrix = evaluate_stitching_pairs(
            both(task.train),
            task.labels,
            both(task.test),
            task.test_labels,
            len(task.names),
            settings.counts,
            self.keys,
            loss=LOSS_OF_TASK[settings.task],
            metrics=settings.metrics,
            methods=self.methods,
            anchors=anchors,
            test_known=task.test_known,
            heads=heads,
            control=settings.control,
            workers=self.workers,
        )
        pairs = ((a, b), (b, a))
        rows = [row for pair in pairs for row in self._rows(matrix, pair)]
        classes: list[ClassRow] = []
        if settings.intervals is not None:
            draw = both(task.train) if anchors is None else anchors
            for pair, logits in zip(pairs, self._logits(draw, heads), strict=True):
                classes += self._classes(pair, logits, settings.intervals)
        return {
            "rows": rows,
            "classes": classes,
            "converged": {name: bool(info.converged) for name, (_, info) in fitted.items()},
            "seconds": time.perf_counter() - start,
        }

    def _rows(self, matrix: StitchingMatrix, pair: tuple[str, str]) -> list[Row]:
        i, j = (matrix.names.index(name) for name in pair)
        found: list[tuple[str, int | None, dict[str, MacroMean], tuple]] = [
            (NAIVE, None, matrix.naive, (i, j))
        ]
        fields = [("", matrix.aligned)]
        if matrix.shuffled is not None:
            fields.append(("shuffled ", matrix.shuffled))
        for before, field in fields:
            found += [
                (before + method, count, field, (i, j, m, c))
                for m, method in enumerate(matrix.methods)
                for c, count in enumerate(matrix.counts)
            ]
        found.append((UPPER_BOUND, None, matrix.upper_bound, (j,)))
        return [
            self._row(pair, method, count, metric, np.asarray(field[metric].value)[place])
            for metric in self.settings.metrics
            for method, count, field, place in found
        ]

    def _row(
        self, pair: tuple[str, str], method: str, count: int | None, metric: str, values: np.ndarray
    ) -> Row:
        values = np.atleast_1d(np.asarray(values, np.float64))
        return Row(
            protocol=self.task.protocol,
            source=pair[0],
            target=pair[1],
            method=method,
            anchors=count,
            metric=metric,
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            seeds=len(values),
        )

    def _logits(self, draw: dict[str, np.ndarray], heads: dict[str, Head]) -> list[list[_Line]]:
        """The logits of both directions, at the largest count."""
        largest = max(self.settings.counts)
        tests = {name: self.task.test[name] for name in heads}
        (a, b), pairs = heads, []
        swept = sweep_pairs(
            draw,
            [largest],
            self.keys,
            readouts=heads,
            test=tests,
            metrics={"scores": raw_scores},
            methods=self.methods,
            pairs=[(a, b), (b, a)],
            workers=self.workers,
        ).values["scores"]  # [pairs, methods, 1, draws, t, classes]
        for number, (source, target) in enumerate(((a, b), (b, a))):
            x, y = (jnp.asarray(tests[name]) for name in (source, target))
            through = stitch(heads[target], identity_map(x.shape[1], y.shape[1], dtype=x.dtype))
            lines = [_Line(NAIVE, None, through(x)[None])]
            lines += [
                _Line(method, largest, swept[number, m, 0]) for m, method in enumerate(self.methods)
            ]
            pairs.append([*lines, _Line(UPPER_BOUND, None, heads[target](y)[None])])
        return pairs

    def _classes(
        self, pair: tuple[str, str], lines: Sequence[_Line], intervals: IntervalSettings
    ) -> list[ClassRow]:
        with ThreadPoolExecutor(self.workers) as pool:
            scored = list(pool.map(lambda line: self._class_scores(line, intervals), lines))
        return [
            ClassRow(
                protocol=self.task.protocol,
                source=pair[0],
                target=pair[1],
                method=line.method,
                anchors=line.anchors,
                metric=metric,
                label=label,
                value=value,
                lower=lower,
                upper=upper,
            )
            for line, scores in zip(lines, scored, strict=True)
            for metric, of_metric in zip(intervals.metrics, scores, strict=True)
            for label, (value, lower, upper) in zip(self.task.names, of_metric, strict=True)
        ]

    def _class_scores(self, line: _Line, intervals: IntervalSettings) -> list:
        """Estimate and ends of the interval [metrics, classes, 3], as nested lists."""
        task = self.task
        labels = jnp.asarray(task.test_labels)
        known = None
        if task.test_known is not None and not task.test_known.all():
            known = jnp.asarray(task.test_known)
        scores = bootstrap(
            _ClassScores(intervals.metrics, len(task.names)),
            {"labels": labels, "known": known, **_prepared(line.logits, labels)},
            len(task.test_labels),
            jax.random.key(self.settings.seed),  # equal resamples for all lines and pairs
            resamples=intervals.resamples,
            level=intervals.level,
            clusters=task.patients,
            batch_size=max(1, min(128, BOOTSTRAP_NUMBERS // line.logits.size)),
        )
        return np.stack([scores.estimate, scores.lower, scores.upper], axis=-1).tolist()


# --- study -------------------------------------------------------------------------------------

_REFERENCES = (
    "Naive: the decoder on the other encoder's embeddings as they are, dimensions padded or cut. "
    "Upper bound: the decoder on its own encoder's embeddings."
)
_CONTROL = "Shuffled: the map fitted to anchors none of which has its partner."


def run(settings: StitchingSettings, out: Path | None = None) -> StudyResults:
    """Run the study, or go on where it was stopped, and write its files.

    Each pair of encoders is computed once, over as many runs as that takes; what is done is kept
    in `out`/cells.jsonl, with digests of all that it rests on.

    Args:
        settings: of the study.
        out: folder for the files, see `write_outputs`; None writes none.

    Returns:
        The results.

    Raises:
        FileNotFoundError: if a store or the data set is missing.
        ValueError: if a patient is in test and elsewhere; for names of splits and labels that
            there are not, labels that do not fit the task, too few anchors, a part with one class
            only, or if `out` holds cells of other settings or data. Otherwise as the readers of
            `semalign_jax.data`, `match_stores`, `fit_head` and `evaluate_stitching_pairs`.
        RuntimeError: if another process is running it in the same folder.
    """
    return run_in(out, partial(_run, settings))


def _run(settings: StitchingSettings, folder: Path) -> StudyResults:
    if settings.dataset is None:
        tasks = [_demo_task(group) for group in settings.demo]
    else:
        tasks = [_own_task(settings, settings.dataset)]
    runners = {task.protocol: _Runner(task, settings) for task in tasks}
    names = {task.protocol: tuple(task.train) for task in tasks}
    cells = [
        [protocol, a, b]
        for protocol, encoders in names.items()
        for i, a in enumerate(encoders)
        for b in encoders[i + 1 :]
    ]
    # All that scores rest on; not where the data lie.
    kept = {"task", "counts", "seeds", "seed", "methods", "metrics", "control", "l2", "intervals"}
    rests_on = {
        "study": "stitching",
        "semalign_jax": version("semalign_jax"),
        "data": {task.protocol: task.digests() for task in tasks},
        **settings.model_dump(mode="json", include=kept),
    }
    found = run_cells(
        cells,
        lambda cell: runners[cell[0]].cell(*cell[1:]),
        folder / "cells.jsonl",
        settings=rests_on,
        description="pairs of encoders",
    )
    return _results(settings, tasks, found)


def _results(
    settings: StitchingSettings, tasks: Sequence[_Task], found: Sequence[dict[str, Any]]
) -> StudyResults:
    order = {(task.protocol, a, b): None for task in tasks for a in task.train for b in task.train}
    place = {pair: number for number, pair in enumerate(order)}

    def in_order(name: str) -> list[Any]:
        rows = [row for cell in found for row in cell[name]]
        return sorted(rows, key=lambda r: place[r["protocol"], r["source"], r["target"]])

    notes = [note for task in tasks for note in task.notes]
    notes.append(f"{_REFERENCES} {_CONTROL}" if settings.control else _REFERENCES)
    if settings.intervals is not None:
        level, resamples = settings.intervals.level, settings.intervals.resamples
        units = "items" if settings.demo else "patients"
        notes.append(
            f"Classes: {100 * level:g} % percentile intervals of {resamples} resamples of the test "
            f"{units}, at {max(settings.counts)} anchors."
        )
    stopped = sorted({k for cell in found for k, done in cell["converged"].items() if not done})
    if stopped:
        notes.append(f"Heads that did not converge to their tolerance: {', '.join(stopped)}.")
    return StudyResults(
        format=FORMAT,
        format_version=VERSION,
        kind="stitching",
        title=settings.title,
        settings=resolved_settings(settings),
        environment=environment(),
        seconds=math.fsum(cell["seconds"] for cell in found),
        rows=in_order("rows"),
        classes=in_order("classes"),
        notes=notes,
    )
