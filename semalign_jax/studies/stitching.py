"""Stitching between a user's encoders, from embeddings on disk to tables and figures.

Every encoder gets a head on the training images; it reads the test images of every other encoder
through maps that few anchors determine, between no map ("naive"), its own encoder's embeddings
("upper bound") and maps fitted to wrongly matched anchors ("shuffled ..."): the protocol of Maiorca
et al. 2023 (arXiv 2311.00664) in `evaluate_stitching_pairs`, one pair of encoders after the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import data as datasets
from .._core.checks import counted, first_few
from .._core.typing import Array
from ..maps.affine_map import identity_map
from ..maps.mlp_head import Head
from ..metrics.by_name import HeadMetric, ScoreMetric
from ..stitching.evaluate import stitch
from ..stitching.heads import HeadInfo, fit_head
from ..stitching.matrix import evaluate_stitching_pairs
from ..stitching.training_data import Loss
from ..sweeps.many_pairs import sweep_pairs
from . import inputs
from .class_scores import Line, class_rows
from .demo import EMOJI, load_demo, split_demo
from .doubts import doubts_of_parts
from .drawings import UPPER_BOUND
from .inputs import Part, StudyData, functions_digest
from .outputs import StudyResults
from .settings import DatasetSettings
from .stitching_settings import NAIVE, DemoGroup, StitchingSettings
from .stitching_settings import IntervalSettings as IntervalSettings
from .stitching_settings import PatientSplitSettings as PatientSplitSettings
from .stitching_settings import demo_settings as demo_settings
from .study import Study, run_study
from .tables import PAIR, summarize
from .trust import trust_rows

#: What heads are trained with.
LOSS_OF_TASK: dict[str, Loss] = {"single-label": "multinomial", "multi-label": "binary"}
#: Label of the demo groups, and their encoders.
DEMO: dict[DemoGroup, tuple[str, dict[str, str]]] = {
    "glosses": (
        "supersense",
        {"MiniLM-L3": "glosses_minilm_l3", "MiniLM-L6": "glosses_minilm_l6"},
    ),
    "emoji": ("category", EMOJI),
}
#: All settings that scores rest on; not where the data lie.
SCORED = (
    "task", "counts", "seeds", "seed", "methods", "metrics", "control", "l2", "intervals", "trust",
)  # fmt: skip


# --- data --------------------------------------------------------------------------------------


def _demo_data(group: DemoGroup) -> StudyData:
    label, files = DEMO[group]
    sets = {name: load_demo(file) for name, file in files.items()}
    first = next(iter(sets.values()))
    ids, (classes, names) = np.array(first.ids), first.labels(label)
    train, test = split_demo(sets)
    left_out = len(classes) - len(train) - len(test)
    note = f"{group}: {len(train)} items to train on and draw anchors from, {len(test)} to test."
    note += f" {left_out} that repeat an earlier item are left out." if left_out else ""
    return StudyData(
        names=tuple(names),
        task="single-label",
        parts={
            name: Part(ids[at], ids[at], classes[at], None)
            for name, at in (("train", train), ("test", test))
        },
        anchors=(ids[train], ids[train]),
        stores={"stores": sets},
        notes=(note,),
        doubts=(),
    )


def parts_of(
    settings: StitchingSettings,
    stores: Mapping[str, Any],
    read: Callable[[DatasetSettings], datasets.ImageTextDataset] = inputs.read_dataset,
) -> StudyData:
    """The data of a user, checked; of the stores by name only the ids are looked at."""
    assert settings.dataset is not None
    where = str(settings.dataset.path)
    dataset = read(settings.dataset)
    names = settings.labels or dataset.label_names
    columns = _columns(dataset, names, where)
    kept = inputs.in_all_stores(dataset, stores, where)
    rows = inputs.rows_of_parts(
        kept,
        np.arange(len(kept)),
        {"train": settings.train, "test": settings.test, "anchors": settings.anchors},
        settings.patient_split,
        where,
    )
    images = {name: kept.select(at) for name, at in rows.items()}
    anchors = images.pop("anchors", images["train"])  # may be images that heads are trained on
    try:
        datasets.check_disjoint(images)
        datasets.check_disjoint({"anchors": anchors, "test": images["test"]})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    task, why = _task(images, columns, settings)
    parts = {
        name: inputs.labelled(name, part, columns, task, settings, where)
        for name, part in images.items()
    }
    lacking = inputs.one_valued(parts["train"], names)
    if lacking:
        raise ValueError(
            f"{where}: all training images have the same value of {first_few(lacking)}: leave it "
            "out by listing the others as labels"
        )
    inputs.check_tested(parts["test"], names, where)
    what = f"images of {where} that they are drawn from"
    inputs.check_anchor_counts(settings.counts, len(anchors), what)
    sizes = [
        inputs.size(images["train"], "to train on"),
        inputs.size(anchors, "to draw anchors from"),
        inputs.size(images["test"], "to test"),
    ]
    note = f"{', '.join(sizes)}; no patient is tested and used otherwise."
    left_out = len(dataset) - len(kept)
    if left_out:
        note += f" {counted(left_out, 'image is', 'images are')} not in all stores."
    return StudyData(
        names=names,
        task=task,
        parts=parts,
        anchors=(np.array(anchors.ids), np.array(anchors.patients)),
        stores={"stores": stores},
        notes=(
            note,
            *inputs.note_of_left_out(dataset),
            why,
        ),
        doubts=list(doubts_of_parts(settings, len(anchors), parts, names)),
    )


def _task(
    images: Mapping[str, datasets.ImageTextDataset],
    columns: Sequence[int],
    settings: StitchingSettings,
) -> tuple[str, str]:
    """The task, and a note on why it is that."""
    number = sum(map(len, images.values()))
    several = sum(inputs.not_of_one_label(part, columns, settings) for part in images.values())
    found = f"{several} of {number} images do not have exactly one of the {len(columns)} labels"
    if not several:
        found = f"each of the {number} images has exactly one of the {len(columns)} labels"
    if settings.task is not None:
        return settings.task, f"The task is {settings.task}, as its setting says: {found}."
    task = "multi-label" if several else "single-label"
    return task, f"The task is {task}, as {found}; the setting task chooses another."


def _columns(dataset: datasets.ImageTextDataset, names: Sequence[str], where: str) -> list[int]:
    for name in names:
        if name not in dataset.label_names:
            raise ValueError(
                f"labels: {name!r} is no label of {where}; it has {first_few(dataset.label_names)}"
            )
    if len(names) < 2:
        raise ValueError(
            f"{where} has {counted(len(names), 'label')}, at least 2 are needed: see the option "
            "label of its reader"
        )
    return [dataset.label_names.index(name) for name in names]


# --- scores of a pair --------------------------------------------------------------------------


def raw_scores(scores: Array, _: Any) -> Array:
    """The metric of a sweep that returns the scores themselves."""
    return scores


class _Group:
    """Encoders of one data set; heads are trained when they are first needed."""

    def __init__(
        self,
        protocol: str,
        data: StudyData,
        settings: StitchingSettings,
        metrics: Mapping[str, HeadMetric | ScoreMetric],
    ) -> None:
        self.metrics = metrics
        self.protocol, self.data, self.settings = protocol, data, settings
        self.rows, self.head = cache(self._rows_of), cache(self._head)
        self.loss: Loss = LOSS_OF_TASK[data.task]
        # What the sweeps of rows and of logits have in common. On a CPU two directions, controls
        # or bootstraps run side by side.
        self.keys = jax.random.split(jax.random.key(settings.seed), settings.seeds)
        self.workers = 2 if jax.default_backend() == "cpu" else 1
        self.methods = settings.sweep_methods()
        self.clusters = None  # every row of the demo is a unit
        if not settings.demo:
            patients = data.parts["test"].patients
            self.clusters = np.unique(patients, return_inverse=True)[1].astype(np.int32)

    def _rows_of(self, name: str) -> dict[str, np.ndarray]:
        """Embeddings of the parts by an encoder."""
        ids = {part: own.ids for part, own in self.data.parts.items()}
        if self.settings.anchors:
            ids["anchors"] = self.data.anchors[0]
        return {
            part: self.data.embeddings("stores", name, of_part) for part, of_part in ids.items()
        }

    def _head(self, name: str) -> tuple[Head, HeadInfo]:
        part, data = self.data.parts["train"], self.data
        try:
            return fit_head(
                self.rows(name)["train"],
                part.labels,
                len(data.names),
                loss=self.loss,
                known=part.known,
                l2=self.settings.l2,
                info=True,
            )
        except ValueError as error:
            raise ValueError(f"head of stores.{name}: {error}") from None

    def pair(self, a: str, b: str) -> dict[str, Any]:
        """All scores of two encoders in both directions."""
        settings, data, parts = self.settings, self.data, self.data.parts
        fitted = {name: self.head(name) for name in (a, b)}
        heads = {name: head for name, (head, _) in fitted.items()}

        def both(part: str) -> dict[str, np.ndarray]:
            return {name: self.rows(name)[part] for name in (a, b)}

        train, test = both("train"), both("test")
        pool = both("anchors") if settings.anchors else train
        matrix = evaluate_stitching_pairs(
            train,
            parts["train"].labels,
            test,
            parts["test"].labels,
            len(data.names),
            settings.counts,
            self.keys,
            loss=self.loss,
            metrics=self.metrics,
            methods=self.methods,
            anchors=pool,
            test_known=parts["test"].known,
            heads=heads,
            control=settings.control,
            workers=self.workers,
        )
        lines = {} if settings.intervals is None else self._logits(pool, test, heads)
        rows, classes, trust = [], [], []
        records = matrix.to_records()
        for source, target in ((a, b), (b, a)):
            pair = self.protocol, source, target
            rows += summarize(
                record | dict(zip(PAIR, pair, strict=True))
                for metric in self.metrics  # the first is shown most; JAX sorts them by name
                for record in records
                # One by the target itself is the upper bound.
                if record["metric"] == metric and record["target"] == target
            )
            if settings.intervals is not None:
                classes += class_rows(
                    pair,
                    lines[source, target],
                    parts["test"],
                    data.names,
                    settings.intervals,
                    clusters=self.clusters,
                    seed=settings.seed,
                    workers=self.workers,
                )
            trust += trust_rows(settings, pair, pool[source], pool[target])
        return {
            "rows": rows,
            "classes": classes,
            "trust": trust,
            "converged": {name: bool(info.converged) for name, (_, info) in fitted.items()},
        }

    def _logits(
        self,
        anchors: Mapping[str, np.ndarray],
        test: Mapping[str, np.ndarray],
        heads: Mapping[str, Head],
    ) -> dict[tuple[str, str], list[Line]]:
        """The logits of both directions, at the largest count."""
        largest = max(self.settings.counts)
        a, b = heads
        directions = [(a, b), (b, a)]
        swept = sweep_pairs(
            anchors,
            [largest],
            self.keys,
            readouts=heads,
            test=test,
            metrics={"scores": raw_scores},
            methods=self.methods,
            pairs=directions,
            workers=self.workers,
        ).values["scores"]  # [pairs, methods, 1, draws, t, classes]
        found = {}
        for scores, (source, target) in zip(swept, directions, strict=True):
            x, y = (jnp.asarray(test[name]) for name in (source, target))
            naive = stitch(heads[target], identity_map(x.shape[1], y.shape[1], dtype=x.dtype))
            lines = [Line(NAIVE, None, naive(x)[None])]
            lines += [Line(name, largest, scores[m, 0]) for m, name in enumerate(self.methods)]
            found[source, target] = [*lines, Line(UPPER_BOUND, None, heads[target](y)[None])]
        return found


# --- study -------------------------------------------------------------------------------------

_REFERENCES = (
    "Naive: the decoder on the other encoder's embeddings as they are, dimensions padded or cut. "
    "Upper bound: the decoder on its own encoder's embeddings."
)
_CONTROL = "Shuffled: the map fitted to anchors none of which has its partner."


def run(
    settings: StitchingSettings,
    out: Path | None = None,
    *,
    metrics: Mapping[str, ScoreMetric] | None = None,
) -> StudyResults:
    """Run the study, or go on where it was stopped, and write its files.

    Each pair of encoders is computed once, over as many runs as that takes; what is done is kept
    in `out`/cells.jsonl, with digests of all that it rests on.

    Args:
        settings: of the study.
        out: folder for the files, see `write_outputs`; None writes none.
        metrics: scores of your own besides those of the settings, label -> function, see
            `evaluate_stitching_pairs`.

    Returns:
        The results.

    Raises:
        FileNotFoundError: if a store or the data set is missing.
        ValueError: if a patient is in test and elsewhere; for names of splits and labels that
            there are not, labels that do not fit the task, too few anchors, a part with one class
            only, NaN, or if `out` holds cells of other settings or data. Otherwise as the readers
            of `semalign_jax.data`, `fit_head` and `evaluate_stitching_pairs`.
        RuntimeError: if another process is running it in the same folder.
    """
    return run_study(settings, out, lambda _: _study(settings, metrics or {}))


def _study(settings: StitchingSettings, functions: Mapping[str, ScoreMetric]) -> Study:
    if settings.dataset is None:
        data = {str(group): _demo_data(group) for group in settings.demo}
    else:
        stores = inputs.open_stores("stores", settings.stores)
        data = {"stitching": parts_of(settings, stores)}
    encoders = {protocol: list(one.stores["stores"]) for protocol, one in data.items()}
    metrics = {**{name: name for name in settings.metrics}, **functions}
    groups = {protocol: _Group(protocol, one, settings, metrics) for protocol, one in data.items()}
    return Study(
        kind="stitching",
        cells=[[p, *pair] for p, names in encoders.items() for pair in combinations(names, 2)],
        compute=lambda protocol, a, b: groups[protocol].pair(a, b),
        pairs=[(p, *pair) for p, names in encoders.items() for pair in permutations(names, 2)],
        data={
            **{protocol: one.digests() for protocol, one in data.items()},
            **functions_digest(functions, settings.metrics),
        },
        scored=SCORED,
        notes=lambda _: _notes(settings, data.values()),
        doubts=lambda found: _doubts(data.values(), found),
        dimensions={k: d for one in data.values() for k, d in one.dimensions("stores").items()},
    )


def _notes(settings: StitchingSettings, data: Iterable[StudyData]) -> list[str]:
    notes = [note for one in data for note in one.notes]
    notes.append(f"{_REFERENCES} {_CONTROL}" if settings.control else _REFERENCES)
    if settings.intervals is not None:
        level, resamples = settings.intervals.level, settings.intervals.resamples
        units = "items" if settings.demo else "patients"
        notes.append(
            f"Classes: {100 * level:g} % percentile intervals of {counted(resamples, 'resample')} "
            f"of the test {units}, at {counted(max(settings.counts), 'anchor')}."
        )
    return notes


def _doubts(data: Iterable[StudyData], found: Sequence[dict[str, Any]]) -> list[str]:
    doubts = [doubt for one in data for doubt in one.doubts]
    stopped = sorted({k for cell in found for k, done in cell["converged"].items() if not done})
    if stopped:
        doubts.append(f"Heads that did not converge to their tolerance: {', '.join(stopped)}.")
    return doubts
