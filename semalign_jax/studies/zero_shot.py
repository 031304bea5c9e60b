"""Unimodal zero-shot classification of a user's own images, from embeddings on disk to a report.

Image encoders never saw a text and text encoders never saw an image; a map fitted to a few pairs of
images and reports lets class prompts classify images (Di Folco et al. 2025, arXiv 2503.04478).
Every image encoder is paired with every text encoder, and evaluated by `zero_shot_protocol`.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

import jax
import numpy as np
from pydantic import (
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from .. import data
from .._core.checks import first_few
from ..data import ImageTextDataset
from ..stores.store import EmbeddingStore, open_store
from ..zeroshot import AnchorPairs, Images, Multimodal, ZeroShotResult, zero_shot_protocol
from ..zeroshot.baselines import BASELINES, Baseline, naive_scores
from ..zeroshot.prompts import PromptSet, embedded_prompts, load_prompts, prompt_ids, prompt_texts
from ..zeroshot.scores import TEMPERATURE, EmbeddedPrompts, SpaceNormalization, ThresholdRule
from . import common
from .cells import run_cells
from .common import (
    DEMO_TEST_SHARE,
    Count,
    all_different,
    check_splits,
    digest,
    run_in,
    sweep_method,
    with_options,
)
from .demo import load_demo
from .inputs import (
    DataPath,
    DatasetSettings,
    EncoderName,
    PromptSetName,
    Settings,
    match_stores,
    read_dataset,
)
from .outputs import FORMAT, VERSION, ClassRow, StudyResults, resolved_settings
from .report import Row, environment

Metric: TypeAlias = Literal["macro AUROC", "macro AP", "macro F1", "accuracy", "balanced accuracy"]
ClassMetric: TypeAlias = Literal["AUROC", "AP", "F1", "sensitivity", "specificity"]
Names: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1)]

#: As in the stitching study, and a control that is fitted to wrong pairs.
METHODS: dict[str, dict[str, Any]] = {
    **common.METHODS,
    "shuffled": {**common.METHODS["ridge"], "shuffled": True},
}
NAIVE, PROBE = "naive", "probe"
SCORES: Mapping[str, Baseline] = {NAIVE: naive_scores, **BASELINES}
#: What `zero_shot_protocol` calls these lines.
_PROBE_LINE, _MULTIMODAL_LINE = "linear probe", "multimodal"
#: The scores of a task by default, and those it has.
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "single-label": ("accuracy", "macro AUROC", "balanced accuracy", "macro AP"),
    "multi-label": ("macro AUROC", "macro AP", "macro F1"),
}
CLASS_METRICS: Mapping[str, tuple[ClassMetric, ...]] = {
    "single-label": ("AUROC", "AP"),
    "multi-label": ("AUROC", "AP", "F1", "sensitivity", "specificity"),
}
PROTOCOL = "zero-shot"
DEMO_IMAGES = {
    "EfficientNet-Lite0": "emoji_efficientnet_lite0",
    "DINOv2-small": "emoji_dinov2_small",
}
DEMO_TEXTS = {"MiniLM-L6": ("emoji_captions_minilm_l6", "emoji_prompts_minilm_l6")}
DEMO_LABEL = "category"
DEMO_VALIDATION = 6  # one of so many other emoji
#: What of a store's description must be the same for reports and prompts.
_IDENTITY = ("model_type", "params", "pooling", "layer", "normalize")
_SHOWN = 5  # ids in one message
_USED = "can be used"


# --- settings ----------------------------------------------------------------------------------


class PromptSource(Settings):
    """Where embeddings of prompts come from: a store, or an encoder that is run.

    Attributes:
        store: folder of embeddings, one for each text of `prompt_texts`. Its ids are
            "<class>/<positive or negative>/<number from 0>", the positions "0", "1", ... of the
            texts, or the texts themselves.
        encoder: instead: folder of a checkpoint, or its id on the Hugging Face hub.
        pooling: of that encoder, see `encoders.load_encoder`. None for that of the reports' store,
            if it says.
        layer: likewise.
        normalize: likewise.
        revision: branch, tag or commit on the hub.
    """

    store: DataPath | None = None
    encoder: EncoderName | None = None
    pooling: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "PromptSource":
        if (self.store is None) == (self.encoder is None):
            raise ValueError("give exactly one of store and encoder")
        options = ("pooling", "layer", "normalize", "revision")
        given = [name for name in options if getattr(self, name) is not None]
        if self.store is not None and given:
            raise ValueError(f"{given[0]} is of an encoder that is run; a store has its own")
        return self


class MultimodalSettings(Settings):
    """A multimodal model (CLIP and the like) on the same images and prompts, as a reference.

    Attributes:
        images: folder of its embeddings of the images that are evaluated.
        prompts: the prompts under its text encoder.
        name: of its line.
    """

    images: DataPath
    prompts: PromptSource
    name: str = _MULTIMODAL_LINE


class ImageSplitSettings(Settings):
    """A split by patient, for images that come without one; see `data.patient_split`.

    What is left is `labelled`; anchors of the same data set are drawn from it too.

    Attributes:
        validation: fraction of the images that thresholds are chosen on.
        test: fraction of the images that are tested.
        seed: of the split.
    """

    validation: float = Field(default=0.3, gt=0, lt=1)
    test: float = Field(default=0.7, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _at_most_all(self) -> "ImageSplitSettings":
        if self.validation + self.test > 1 + 1e-9:
            raise ValueError(
                f"validation and test must be at most 1 together; got {self.validation} and "
                f"{self.test}"
            )
        return self


class ZeroShotSettings(Settings):
    """Settings of a zero-shot study.

    Either `demo`, or `images`, `image_stores`, `text_stores`, `prompts`, `prompt_embeddings` and
    `validation` and `test` (or `patient_split`).

    Attributes:
        title: of the report.
        demo: shipped embeddings instead of own ones.
        images: data set of the images that are evaluated, with labels and patients.
        image_stores: image encoder -> folder of its embeddings of these images.
        validation: names of the data set's splits that thresholds are chosen on.
        test: names of the splits that are tested.
        labelled: names of the splits that the linear probe learns from.
        patient_split: split the images instead, no patient in two parts.
        anchors: data set of images and reports that anchors are drawn from; None for `images`.
        anchor_splits: names of its splits that anchors are drawn from; None for all of another
            data set, and for the part `labelled` of the same one.
        anchor_stores: image encoder -> folder of its embeddings of the anchors' images. May be
            left out if `anchors` is.
        text_stores: text encoder -> folder of its embeddings of the anchors' reports, under the
            ids of their images.
        prompts: prompt set, a file or one of `shipped_prompt_sets`.
        prompt_embeddings: text encoder -> the same encoder's embeddings of the prompts.
        label_names: class of the prompt set -> label of the images, where the names differ.
        ignored_labels: labels of the images that have no prompts, on purpose.
        uncertain: what uncertain labels are, see `data.binary_labels`.
        blank: what missing labels are.
        counts: anchor counts.
        seeds: how many times anchors are drawn.
        seed: of anchors and resamples.
        methods: name -> options of `SweepMethod`. A list of names of maps does too, and a name of
            a map instead of options.
        baselines: name -> options of a baseline, the key `baseline` says of which: "naive",
            "relative", "asif" or "csa" (see `zeroshot.baselines`), or "probe", a linear probe on as
            many labelled images as there are anchors (option `l2`). A list of these names does too.
        normalizations: of the mapped space, see `zero_shot_scores`. With several each map has
            several lines, and the notes compare them.
        multimodal: a multimodal model as a reference.
        temperature: of the softmax of multi-label scores, see `prompt_scores`.
        shrinkage: of the anchors' covariance, see `anchor_space`.
        rule: how thresholds are chosen on the validation images.
        metrics: scores; None for all that the task has. Figures of pairs show the first.
        class_metrics: scores of single classes, at the largest count.
        resamples: of the bootstrap, which draws test patients.
        level: of the intervals.
    """

    title: str = "Zero-shot classification"
    demo: bool = False
    images: DatasetSettings | None = None
    image_stores: dict[str, DataPath] = {}
    validation: Names | None = None
    test: Names | None = None
    labelled: Names | None = None
    patient_split: ImageSplitSettings | None = None
    anchors: DatasetSettings | None = None
    anchor_splits: Names | None = None
    anchor_stores: dict[str, DataPath] = {}
    text_stores: dict[str, DataPath] = {}
    prompts: PromptSetName | None = None
    prompt_embeddings: dict[str, PromptSource] = {}
    label_names: dict[str, str] = {}
    ignored_labels: tuple[str, ...] = ()
    uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
    blank: Literal["ignore", "zeros"] = "ignore"
    counts: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 20, 50, 100, 200, 500, 1000)
    seeds: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    methods: dict[str, dict[str, Any]] = METHODS
    baselines: dict[str, dict[str, Any]] = {name: {"baseline": name} for name in SCORES}
    normalizations: Annotated[tuple[SpaceNormalization, ...], Field(min_length=1)] = ("center",)
    multimodal: MultimodalSettings | None = None
    temperature: float = Field(default=TEMPERATURE, gt=0)
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    rule: ThresholdRule = "youden"
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] | None = None
    class_metrics: tuple[ClassMetric, ...] = ("AUROC",)
    resamples: int = Field(default=1000, ge=1)
    level: float = Field(default=0.95, gt=0, lt=1)

    @field_validator(
        "validation", "test", "labelled", "anchor_splits", "ignored_labels", "counts",
        "normalizations", "metrics", "class_metrics",
    )  # fmt: skip
    @classmethod
    def _all_different(cls, values: tuple | None) -> tuple | None:
        return all_different(values)

    @field_validator("methods", "baselines", mode="wrap")
    @classmethod
    def _with_options(
        cls, values: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        key, check = ("method", sweep_method) if info.field_name == "methods" else (
            "baseline", _baseline,
        )  # fmt: skip
        checked = handler(with_options(values, key))
        for name, options in checked.items():
            try:
                check(options)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from None
        return checked

    @model_validator(mode="after")
    def _one_source(self) -> "ZeroShotSettings":
        names = [*self.methods, *self.baselines]
        names += [self.multimodal.name] if self.multimodal else []
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} names two of methods, baselines and multimodal")
        if not self.methods and all(o["baseline"] == PROBE for o in self.baselines.values()):
            raise ValueError("methods is empty, and so are baselines that need anchors")
        if sum(o["baseline"] == PROBE for o in self.baselines.values()) > 1:
            raise ValueError("baselines: there can be only one probe")
        if self.demo:
            self._check_demo()
        else:
            self._check_own()
        return self

    def _check_demo(self) -> None:
        own = (
            "images", "image_stores", "validation", "test", "labelled", "patient_split", "anchors",
            "anchor_splits", "anchor_stores", "text_stores", "prompts", "prompt_embeddings",
            "label_names", "ignored_labels", "multimodal",
        )  # fmt: skip
        given = [name for name in own if getattr(self, name)]
        if given:
            raise ValueError(f"demo and {given[0]} cannot both be given")

    def _check_own(self) -> None:
        needed = ("images", "image_stores", "text_stores", "prompts", "prompt_embeddings")
        missing = [name for name in needed if not getattr(self, name)]
        if missing:
            raise ValueError(f"{missing[0]} is missing; a run on the shipped data has demo: true")
        if self.patient_split is not None:
            given = [n for n in ("validation", "test", "labelled") if getattr(self, n)]
            if given:
                raise ValueError(f"patient_split and {given[0]} cannot both be given")
        elif self.validation is None or self.test is None:
            raise ValueError(
                "validation and test are missing: name splits of images, or give patient_split"
            )
        else:
            parts = ("validation", "test", "labelled")
            for i, first in enumerate(parts):
                for second in parts[i + 1 :]:
                    both = set(getattr(self, first) or ()) & set(getattr(self, second) or ())
                    if both:
                        raise ValueError(f"{first} and {second} both have the split {min(both)!r}")
        if self.anchors is not None or self.anchor_stores:
            _same_names("anchor_stores", self.anchor_stores, "image_stores", self.image_stores)
        _same_names("prompt_embeddings", self.prompt_embeddings, "text_stores", self.text_stores)
        if self.anchors is None and not (self.anchor_splits or self.labelled or self.patient_split):
            raise ValueError("anchor_splits is missing: anchors are of the same data set as images")


def _same_names(first: str, a: Mapping[str, Any], second: str, b: Mapping[str, Any]) -> None:
    for key in [*a, *b]:
        if (key in a) != (key in b):
            lacking, having = (first, second) if key in b else (second, first)
            raise ValueError(f"{lacking} lacks {key!r}, which is in {having}")


def _baseline(options: Mapping[str, Any]) -> Baseline | None:
    """The function of a baseline with its options; None for the linear probe."""
    options = dict(options)
    name = options.pop("baseline", None)
    if name not in (*SCORES, PROBE):
        raise ValueError(f"baseline must be one of {', '.join((*SCORES, PROBE))}; got {name!r}")
    known = ["l2"]
    if name != PROBE:
        parameters = inspect.signature(SCORES[name]).parameters.values()
        known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "temperature"]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option of {name}; it has {', '.join(known) or '-'}")
    if name == PROBE:
        return None
    return partial(SCORES[name], **options) if options else SCORES[name]


def demo_settings(quick: bool = False) -> ZeroShotSettings:
    """Settings of the demo: emoji under two image encoders, their names under a text encoder.

    Args:
        quick: fewer anchor counts, draws and resamples.
    """
    small: dict[str, Any] = {"counts": (20, 200), "seeds": 2, "resamples": 100}
    return ZeroShotSettings(
        title="Demo: zero-shot classification of emoji",
        demo=True,
        baselines={name: {"baseline": name} for name in (*SCORES, PROBE)},
        metrics=("accuracy", "macro AUROC"),
        **(small if quick else {}),
    )


# --- data --------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Rows of one part of the evaluated images: ids, patients and labels as of `Images`."""

    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    known: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Task:
    """All that a study needs of its data; embeddings are read when a pair is computed.

    Attributes:
        prompt_names: the classes.
        task: of the prompt set.
        parts: "validation", "test" and perhaps "labelled".
        anchors: ids and patients of the pairs.
        image_rows: image encoder -> part -> [n, d].
        anchor_rows: (image encoder, text encoder) -> both sides of the pairs.
        prompts: text encoder -> prompts.
        multimodal: validation and test images and prompts; None without such a model.
        encoders: names of the image and the text encoders.
        digests: of what scores rest on.
        notes: what a reader should know.
    """

    prompt_names: tuple[str, ...]
    task: str
    parts: dict[str, _Part]
    anchors: tuple[np.ndarray, np.ndarray]
    image_rows: Callable[[str], dict[str, np.ndarray]]
    anchor_rows: Callable[[str, str], tuple[np.ndarray, np.ndarray]]
    prompts: Callable[[str], EmbeddedPrompts]
    encoders: tuple[tuple[str, ...], tuple[str, ...]]
    digests: dict[str, Any]
    notes: list[str]
    multimodal: Callable[[], Multimodal] | None = field(default=None)


def _demo_task() -> _Task:
    """Emoji as in `benchmarks/anchor_sweep.py`, with a validation part out of its training rows."""
    sets = {name: load_demo(file) for name, file in DEMO_IMAGES.items()}
    # Some emoji look alike under an encoder: none may be tested and be an anchor too.
    values = sets["DINOv2-small"].values
    rows = np.sort(np.unique(values, axis=0, return_index=True)[1])
    order = np.random.default_rng(0).permutation(len(rows))
    cut = len(rows) - round(DEMO_TEST_SHARE * len(rows))
    train, test = rows[np.sort(order[:cut])], rows[np.sort(order[cut:])]
    validation = train[::DEMO_VALIDATION]
    train = np.setdiff1d(train, validation)
    texts = {
        name: (load_demo(captions), load_demo(prompts))
        for name, (captions, prompts) in DEMO_TEXTS.items()
    }
    captions, _ = next(iter(texts.values()))
    labels, names = captions.labels(DEMO_LABEL)
    ids = np.asarray(captions.card["row_ids"])

    def prompts(text: str) -> EmbeddedPrompts:
        found = texts[text][1]
        classes, _ = found.labels(DEMO_LABEL)
        return EmbeddedPrompts(
            jax.numpy.asarray(found.values),
            jax.numpy.asarray(classes),
            jax.numpy.ones(len(classes), bool),
            tuple(names),
            "single-label",
        )

    where = {"validation": validation, "test": test, "labelled": train}
    embeddings = {name: one.values for name, one in sets.items()}
    embeddings |= {name: one.values for name, (one, _) in texts.items()}
    embeddings |= {f"{name} prompts": one.values for name, (_, one) in texts.items()}
    note = (
        f"Demo: {len(train)} pairs of emoji and their names to draw anchors from, "
        f"{len(validation)} emoji for validation, {len(test)} to test; {len(values) - len(rows)} "
        "that look like another are left out. Emoji are no medical images."
    )
    return _Task(
        prompt_names=tuple(names),
        task="single-label",
        parts={n: _Part(ids[r], ids[r], labels[r], None) for n, r in where.items()},
        anchors=(ids[train], ids[train]),
        image_rows=lambda image: {n: sets[image].values[r] for n, r in where.items()},
        anchor_rows=lambda image, text: (sets[image].values[train], texts[text][0].values[train]),
        prompts=prompts,
        encoders=(tuple(sets), tuple(texts)),
        digests={
            "stores": {name: digest(values) for name, values in embeddings.items()},
            "parts": digest(*where.values(), labels),
        },
        notes=[note],
    )


def _own_task(settings: ZeroShotSettings, folder: Path) -> _Task:
    """The data of a user; `folder` keeps prompts that are embedded here."""
    assert settings.images is not None
    assert settings.prompts is not None
    prompt_set = load_prompts(settings.prompts)
    dataset = read_dataset(settings.images)
    image_stores = _opened("image_stores", settings.image_stores)
    extra = {}
    if settings.multimodal is not None:
        extra = _opened("multimodal", {"images": settings.multimodal.images})
    where = f"images ({settings.images.path})"
    columns = _columns(dataset, prompt_set, settings, where)
    kept = _in_all(dataset, {**image_stores, **extra}, where)
    notes = []
    if len(kept) < len(dataset):
        notes.append(f"{len(dataset) - len(kept)} images of {where} are not in all stores.")
    rows, single_label_note = _parts(kept, columns, prompt_set, settings, where)
    notes += single_label_note
    parts = {name: kept.select(index) for name, index in rows.items()}
    anchors, anchor_where, anchor_note = _anchors(settings, dataset, rows, kept)
    notes += anchor_note
    _refuse_overlaps(anchors, anchor_where, parts, where)
    if max(settings.counts) > len(anchors):
        raise ValueError(
            f"counts: {max(settings.counts)} anchors are more than the {len(anchors)} pairs of "
            f"{anchor_where}"
        )
    truth = {
        name: _truth(part, columns, prompt_set, settings, name, where)
        for name, part in parts.items()
    }
    _check_test(truth["test"], prompt_set, where)
    needs_labelled = any(o["baseline"] == PROBE for o in settings.baselines.values())
    if needs_labelled and "labelled" not in parts:
        raise ValueError(
            "baselines: the probe needs labelled images: name splits as labelled, or leave a part "
            "of patient_split"
        )
    if needs_labelled and max(settings.counts) > len(parts["labelled"]):
        raise ValueError(
            f"counts: {max(settings.counts)} is more than the {len(parts['labelled'])} labelled "
            f"images of {where} for the probe: leave it out of baselines, or counts"
        )
    notes += _size_notes(parts, anchors, truth, settings, prompt_set)
    anchor_stores = _opened("anchor_stores", settings.anchor_stores) or image_stores
    text_stores = _opened("text_stores", settings.text_stores)
    prompt_stores = {
        name: _prompt_store(
            f"prompt_embeddings.{name}",
            source,
            prompt_set,
            _folder(folder, name),
            text_stores[name],
        )
        for name, source in settings.prompt_embeddings.items()
    }
    opened = {
        "image": image_stores,
        "anchor": anchor_stores,
        "text": text_stores,
        "prompt": prompt_stores,
    }
    model, read_model = settings.multimodal, None
    if model is not None:
        place = "multimodal.prompts"
        own = _folder(folder / "multimodal", model.name)
        prompt_store = _prompt_store(place, model.prompts, prompt_set, own, None)
        opened |= {"multimodal": {"images": extra["images"], "prompts": prompt_store}}

        def read_multimodal() -> Multimodal:
            return Multimodal(
                _rows("multimodal.images", extra["images"], parts["validation"]),
                _rows("multimodal.images", extra["images"], parts["test"]),
                _prompts(place, prompt_store, prompt_set),
            )

        read_model = read_multimodal

    def image_rows(image: str) -> dict[str, np.ndarray]:
        place, store = f"image_stores.{image}", image_stores[image]
        return {name: _rows(place, store, part) for name, part in parts.items()}

    def anchor_rows(image: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        return (
            _rows(f"anchor_stores.{image}", anchor_stores[image], anchors),
            _rows(f"text_stores.{text}", text_stores[text], anchors),
        )

    return _Task(
        prompt_names=prompt_set.names,
        task=prompt_set.task,
        parts=truth,
        anchors=(np.array(anchors.ids), np.array(anchors.patients)),
        image_rows=image_rows,
        anchor_rows=anchor_rows,
        prompts=lambda text: _prompts(f"prompt_embeddings.{text}", prompt_stores[text], prompt_set),
        encoders=(tuple(image_stores), tuple(text_stores)),
        digests={
            "stores": {
                kind: {name: _store_digest(store) for name, store in stores.items()}
                for kind, stores in opened.items()
            },
            "parts": {name: digest(*part) for name, part in truth.items()},
            "anchors": digest(np.array(anchors.ids), np.array(anchors.patients)),
            "prompts": digest(np.array(prompt_texts(prompt_set).texts)),
        },
        notes=notes,
        multimodal=read_model,
    )


def _opened(key: str, stores: Mapping[str, Path]) -> dict[str, EmbeddingStore]:
    opened = {}
    for name, folder in stores.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{key}.{name}: there is no folder {folder}")
        store = open_store(folder)
        if len(set(store.ids)) < len(store):
            rows = {}
            twice = next(i for row, i in enumerate(store.ids) if rows.setdefault(i, row) != row)
            raise ValueError(f"{key}.{name}: {folder} has the id {twice!r} twice")
        opened[name] = store
    return opened


def _folder(base: Path, name: str) -> Path:
    """A folder of that name, whatever characters it has."""
    return base / f"of-{quote(name, safe='')}"


def _store_digest(store: EmbeddingStore) -> str:
    """Of the manifest, which identifies the rows: by what made them, or by their checksums."""
    return digest((store.folder / "manifest.json").read_bytes())


def _in_all(
    dataset: ImageTextDataset, stores: Mapping[str, EmbeddingStore], where: str
) -> ImageTextDataset:
    """The images that have a row in all stores."""
    known = set(dataset.ids).intersection(*(store.ids for store in stores.values()))
    if not known:
        firsts = {name: list(store.ids[:_SHOWN]) for name, store in stores.items()}
        raise ValueError(
            f"no image of {where} is in all stores: its ids begin with "
            f"{list(dataset.ids[:_SHOWN])}, those of the stores with {firsts}"
        )
    return dataset.select(np.array([key in known for key in dataset.ids], bool))


def _rows(place: str, store: EmbeddingStore, part: ImageTextDataset) -> np.ndarray:
    """Embeddings [n, d] of the images of a part, all of them finite."""
    rows = match_stores(part, {place: store.folder}).embeddings[place]
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{place}: {store.folder} holds NaN or infinity in {bad.size} rows, first in that of "
            f"{part.ids[bad[0]]!r}: embed it again, or leave it out"
        )
    return rows


def _columns(
    dataset: ImageTextDataset, prompt_set: PromptSet, settings: ZeroShotSettings, where: str
) -> list[int]:
    """The column of the data set's labels for each class."""
    has = f"it has {', '.join(dataset.label_names) or 'none'}"
    for key in settings.label_names:
        if key not in prompt_set.names:
            raise ValueError(
                f"label_names: {key!r} is no class of the prompt set {prompt_set.name!r}; it has "
                f"{', '.join(prompt_set.names)}"
            )
    for name in settings.ignored_labels:
        if name not in dataset.label_names:
            raise ValueError(f"ignored_labels: {name!r} is no label of {where}; {has}")
    labels = [settings.label_names.get(name, name) for name in prompt_set.names]
    for name, label in zip(prompt_set.names, labels, strict=True):
        if label not in dataset.label_names:
            raise ValueError(
                f"{where} has no label {label!r} for the class {name!r} of the prompt set "
                f"{prompt_set.name!r}; {has}. Name it in label_names"
            )
    without = [n for n in dataset.label_names if n not in (*labels, *settings.ignored_labels)]
    if without:
        raise ValueError(
            f"{where}: the label {without[0]!r} has no prompts in the prompt set "
            f"{prompt_set.name!r} ({len(without)} such labels: {', '.join(without)}). Add a class, "
            "name it in label_names, or list it in ignored_labels"
        )
    return [dataset.label_names.index(label) for label in labels]


def _binary(
    part: ImageTextDataset, columns: Sequence[int], prompt_set: PromptSet, s: ZeroShotSettings
) -> data.BinaryLabels:
    chosen = replace(part, labels=part.labels[:, columns], label_names=prompt_set.names)
    return data.binary_labels(chosen, s.uncertain, blank=s.blank)


def _parts(
    dataset: ImageTextDataset,
    columns: Sequence[int],
    prompt_set: PromptSet,
    settings: ZeroShotSettings,
    where: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of "validation", "test" and perhaps "labelled", and a note."""
    binary = _binary(dataset, columns, prompt_set, settings)
    usable = np.arange(len(dataset))
    notes = []
    if prompt_set.task == "single-label":
        usable = np.flatnonzero((binary.labels * binary.known).sum(axis=1) > 0)
        if len(usable) < len(dataset):
            notes.append(f"{len(dataset) - len(usable)} images of {where} are of no class.")
        if not len(usable):
            raise ValueError(f"{where}: no image has one of the classes of {prompt_set.name!r}")
    if settings.patient_split is not None:
        split = settings.patient_split
        fractions = {"validation": split.validation, "test": split.test}
        rest = 1 - split.validation - split.test
        if rest > 1e-9:
            fractions["labelled"] = rest
        patients = [dataset.patients[i] for i in usable]
        positive = binary.labels[usable] * binary.known[usable]
        try:
            found = data.patient_split(patients, fractions, split.seed, stratify=positive)
        except ValueError as error:
            raise ValueError(f"patient_split of {where}: {error}") from None
        return {name: usable[rows] for name, rows in found.parts.items()}, notes
    rows = {}
    splits = np.array(dataset.splits)[usable]
    for name in ("validation", "test", "labelled"):
        wanted = getattr(settings, name)
        if wanted is not None:
            check_splits(name, wanted, dataset, splits, where, _USED)
            rows[name] = usable[np.isin(splits, wanted)]
    return rows, notes


def _anchors(
    settings: ZeroShotSettings,
    images: ImageTextDataset,
    rows: Mapping[str, np.ndarray],
    kept: ImageTextDataset,
) -> tuple[ImageTextDataset, str, list[str]]:
    """The pairs that anchors are drawn from, where they are from, and a note."""
    if settings.anchors is None:
        assert settings.images is not None
        where = f"images ({settings.images.path})"
        chosen = images if settings.anchor_splits else kept.select(rows.get("labelled", ()))
        stores = settings.anchor_stores or settings.image_stores
    else:
        where = f"anchors ({settings.anchors.path})"
        chosen = read_dataset(settings.anchors)
        stores = settings.anchor_stores
    if settings.anchor_splits:
        splits = np.array(chosen.splits)
        check_splits("anchor_splits", settings.anchor_splits, chosen, splits, where, _USED)
        chosen = chosen.select(np.isin(splits, settings.anchor_splits))
    if not len(chosen):
        raise ValueError(
            f"anchors: no image of {where} is left for them: name their splits in anchor_splits, "
            "or leave a part of patient_split"
        )
    opened = _opened("anchor_stores", stores) | _opened("text_stores", settings.text_stores)
    pairs = _in_all(chosen, opened, where)
    left = len(chosen) - len(pairs)
    note = f"{left} images of {where} are not in all stores of anchors and reports."
    return pairs, where, [note] if left else []


def _refuse_overlaps(
    anchors: ImageTextDataset, anchor_where: str, parts: dict[str, ImageTextDataset], where: str
) -> None:
    named = {f"{name} of {where}": part for name, part in parts.items()}
    evaluated = {name: part for name, part in named.items() if not name.startswith("labelled")}
    data.check_disjoint(named)
    # They may be labelled images.
    data.check_disjoint({f"anchors of {anchor_where}": anchors, **evaluated})


def _truth(
    part: ImageTextDataset,
    columns: Sequence[int],
    prompt_set: PromptSet,
    settings: ZeroShotSettings,
    name: str,
    where: str,
) -> _Part:
    """Ids, patients and labels of a part."""
    ids, patients = np.array(part.ids), np.array(part.patients)
    labels, known = _binary(part, columns, prompt_set, settings)
    if prompt_set.task == "multi-label":
        return _Part(ids, patients, labels, None if known.all() else known)
    positive = (labels == 1) & known
    several = np.flatnonzero(positive.sum(axis=1) > 1)
    if several.size:
        has = [n for n, p in zip(prompt_set.names, positive[several[0]], strict=True) if p]
        raise ValueError(
            f"{where}: {several.size} images of {name} are of several classes, but the prompt set "
            f"{prompt_set.name!r} is single-label; the first is {ids[several[0]]!r} with "
            f"{first_few(has)}"
        )
    return _Part(ids, patients, positive.argmax(axis=1).astype(np.int32), None)


def _both_values(part: _Part, classes: int) -> np.ndarray:
    """Which classes have known images in them and out of them."""
    labels = part.labels
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(classes)
    known = np.ones(labels.shape, bool) if part.known is None else part.known
    return ((labels == 1) & known).any(axis=0) & ((labels == 0) & known).any(axis=0)


def _check_test(test: _Part, prompt_set: PromptSet, where: str) -> None:
    if not _both_values(test, len(prompt_set.names)).any():
        raise ValueError(
            f"{where}: every label has the same value in all {len(test.ids)} test images, so that "
            "no score is defined: choose other splits or labels"
        )


def _size_notes(
    parts: Mapping[str, ImageTextDataset],
    anchors: ImageTextDataset,
    truth: Mapping[str, _Part],
    settings: ZeroShotSettings,
    prompt_set: PromptSet,
) -> list[str]:
    purposes = {"validation": "for validation", "test": "to test", "labelled": "for the probe"}
    sizes = [f"{len(anchors)} pairs of {len(set(anchors.patients))} patients to draw anchors from"]
    sizes += [
        f"{len(part)} images of {len(set(part.patients))} patients {purposes[name]}"
        for name, part in parts.items()
        if name != "labelled" or any(o["baseline"] == PROBE for o in settings.baselines.values())
    ]
    notes = [f"{', '.join(sizes)}; no patient is tested and used otherwise."]
    if parts["test"].patients == parts["test"].ids:
        notes.append("Each test image stands for a patient: no other patient ids are known.")
    for name in ("test", "validation"):
        good = _both_values(truth[name], len(prompt_set.names))
        lacking = [n for n, fine in zip(prompt_set.names, good, strict=True) if not fine]
        effect = "no AUROC" if name == "test" else "no threshold"
        if lacking and (name == "test" or prompt_set.task == "multi-label"):
            notes.append(
                f"Classes with the same value in all {name} images ({effect}; left out of macro "
                f"means): {first_few(lacking)}."
            )
    unknown = truth["test"].known
    if unknown is not None:
        notes.append(f"{int((~unknown).sum())} labels of test images are unknown and not counted.")
    return notes


# --- prompts -----------------------------------------------------------------------------------


def _prompt_store(
    place: str,
    source: PromptSource,
    prompt_set: PromptSet,
    folder: Path,
    reports: EmbeddingStore | None,
) -> EmbeddingStore:
    """The store of the prompts, made in `folder` if an encoder is given."""
    description = {} if reports is None else reports.description
    if source.encoder is not None:
        from .. import encoders  # slow to import

        def chosen(name: str) -> Any:
            own = getattr(source, name)
            return description.get(name) if own is None else own

        encoder = encoders.load_encoder(
            source.encoder,
            pooling=chosen("pooling"),
            layer=chosen("layer"),
            normalize=chosen("normalize"),
            revision=source.revision,
        )
        texts = prompt_texts(prompt_set).texts
        encoders.embed(
            encoder,
            texts,
            modality="text",
            ids=prompt_ids(prompt_set),
            out=folder,
            progress=False,
        )
        store = open_store(folder)
    else:
        assert source.store is not None
        store = _opened(place, {"store": source.store})["store"]
    made = store.description
    for name in _IDENTITY if reports is not None else ():
        if name in made and name in description and made[name] != description[name]:
            raise ValueError(
                f"{place}: the prompts were embedded with another {name} than the reports of "
                f"{reports.folder if reports else ''}: {made[name]!r} and {description[name]!r}"
            )
    if reports is not None and store.dimension != reports.dimension:
        raise ValueError(
            f"{place}: the prompts of {store.folder} have {store.dimension} dimensions, the "
            f"reports of {reports.folder} {reports.dimension}: embed both with one encoder"
        )
    return store


def _prompts(place: str, store: EmbeddingStore, prompt_set: PromptSet) -> EmbeddedPrompts:
    texts = prompt_texts(prompt_set).texts
    readable = prompt_ids(prompt_set)
    found = {key: row for row, key in enumerate(store.ids)}
    for ids in (readable, [str(i) for i in range(len(texts))], list(texts)):
        if all(key in found for key in ids):
            values = store.rows([found[key] for key in ids])
            values = values if values.dtype == np.float64 else values.astype(np.float32)
            try:
                return embedded_prompts(prompt_set, values)
            except ValueError as error:
                raise ValueError(f"{place}: {store.folder}: {error}") from None
    lacking = [key for key in readable if key not in found]
    raise ValueError(
        f"{place}: {store.folder} lacks prompts of the set {prompt_set.name!r}, e.g. "
        f"{lacking[0]!r}; its ids begin with {list(store.ids[:_SHOWN])}. They must be like "
        f"{lacking[0]!r}, the positions of the texts, or the texts"
    )


# --- scores of a pair --------------------------------------------------------------------------


class _Runner:
    """Computes the cells of a task."""

    def __init__(self, task: _Task, settings: ZeroShotSettings) -> None:
        self.task, self.settings = task, settings
        self.methods = {name: sweep_method(o) for name, o in settings.methods.items()}
        found = {name: _baseline(o) for name, o in settings.baselines.items()}
        # Compiled code is found by these functions, so they are made once.
        self.baselines = {name: score for name, score in found.items() if score is not None}
        self.probe = next((name for name, score in found.items() if score is None), None)
        self.image_rows = cache(task.image_rows)
        self.multimodal = None if task.multimodal is None else cache(task.multimodal)

    def cell(self, image: str, text: str) -> dict[str, Any]:
        """All scores of a pair of encoders, as JSON values."""
        start = time.perf_counter()
        task, settings = self.task, self.settings
        rows = self.image_rows(image)
        parts = {
            name: Images(part.ids, part.patients, rows[name], part.labels, part.known)
            for name, part in task.parts.items()
        }
        options = {}
        if self.probe is not None:
            l2 = settings.baselines[self.probe].get("l2", 1.0)
            options = {"labelled": parts["labelled"], "l2": l2}
        result = zero_shot_protocol(
            AnchorPairs(*task.anchors, *task.anchor_rows(image, text)),
            parts["validation"],
            parts["test"],
            task.prompts(text),
            settings.counts,
            key=jax.random.key(settings.seed),
            seeds=settings.seeds,
            methods=self.methods,
            normalizations=settings.normalizations,
            baselines=self.baselines,
            multimodal=None if self.multimodal is None else self.multimodal(),
            temperature=settings.temperature,
            shrinkage=settings.shrinkage,
            rule=settings.rule,
            resamples=settings.resamples,
            level=settings.level,
            **options,
        )
        return {
            "rows": list(self._rows(result, (image, text))),
            "classes": list(self._classes(result, (image, text))),
            "seconds": time.perf_counter() - start,
        }

    def _name(self, line: tuple[str, str]) -> str:
        method, normalization = line
        if method == _PROBE_LINE and self.probe is not None:
            return self.probe
        if method == _MULTIMODAL_LINE and self.settings.multimodal is not None:
            return self.settings.multimodal.name
        if normalization and len(self.settings.normalizations) > 1:
            return f"{method} ({normalization})"
        return method

    def _uses_anchors(self, line: tuple[str, str]) -> bool:
        options = self.settings.baselines.get(line[0], {})
        return line[0] != _MULTIMODAL_LINE and options.get("baseline") != NAIVE

    def _rows(self, result: ZeroShotResult, pair: tuple[str, str]):
        metrics = self.settings.metrics or METRICS[self.task.task]
        means, each = result.seed_means, result.intervals.estimate
        for metric in metrics:
            for i, line in enumerate(result.lines):
                anchored = self._uses_anchors(line)
                for c, count in enumerate(result.counts if anchored else result.counts[:1]):
                    values = np.asarray(each[metric][i, c], np.float64)
                    values = values if anchored else values[:1]
                    yield Row(
                        protocol=PROTOCOL,
                        source=pair[0],
                        target=pair[1],
                        method=self._name(line),
                        anchors=count if anchored else None,
                        metric=metric,
                        mean=float(means.estimate[metric][i, c]),
                        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                        seeds=len(values),
                        lower=float(means.lower[metric][i, c]),
                        upper=float(means.upper[metric][i, c]),
                    )

    def _classes(self, result: ZeroShotResult, pair: tuple[str, str]):
        c = int(np.argmax(result.counts))
        means = result.seed_means
        for metric in self.settings.class_metrics:
            for i, line in enumerate(result.lines):
                for k, label in enumerate(result.names):
                    yield ClassRow(
                        protocol=PROTOCOL,
                        source=pair[0],
                        target=pair[1],
                        method=self._name(line),
                        anchors=result.counts[c] if self._uses_anchors(line) else None,
                        metric=metric,
                        label=label,
                        value=float(means.estimate[metric][i, c, k]),
                        lower=float(means.lower[metric][i, c, k]),
                        upper=float(means.upper[metric][i, c, k]),
                    )


# --- study -------------------------------------------------------------------------------------


def run(settings: ZeroShotSettings, out: Path | None = None) -> StudyResults:
    """Run the study, or go on where it was stopped, and write its files.

    Each pair of an image and a text encoder is computed once, over as many runs as that takes;
    what is done is kept in `out`/cells.jsonl, with digests of all that it rests on. Prompts that
    are embedded here are kept in `out`/prompts.

    Args:
        settings: of the study.
        out: folder for the files, see `write_outputs`; None writes none.

    Returns:
        The results.

    Raises:
        FileNotFoundError: if a store or a data set is missing.
        ValueError: if a patient is in two of anchors (or labelled images), validation and test;
            for names of splits, labels and classes that there are not, labels without prompts, too
            few anchors, test images of one class only, NaN, prompts and reports of different
            encoders, or if `out` holds cells of other settings or data. Otherwise as the readers
            of `semalign_jax.data`, `load_prompts`, `match_stores` and `zero_shot_protocol`.
        RuntimeError: if another process is running it in the same folder.
    """
    return run_in(out, partial(_run, settings))


def _run(settings: ZeroShotSettings, folder: Path) -> StudyResults:
    task = _demo_task() if settings.demo else _own_task(settings, folder / "prompts")
    for name, metrics, known in (
        ("metrics", settings.metrics or (), METRICS),
        ("class_metrics", settings.class_metrics, CLASS_METRICS),
    ):
        for metric in metrics:
            if metric not in known[task.task]:
                raise ValueError(
                    f"{name}: {metric!r} is no score of a {task.task} task; it has "
                    f"{', '.join(known[task.task])}"
                )
    runner = _Runner(task, settings)
    images, texts = task.encoders
    # All that scores rest on; not where the data lie.
    kept = {
        "counts", "seeds", "seed", "methods", "baselines", "normalizations", "temperature",
        "shrinkage", "rule", "metrics", "class_metrics", "resamples", "level",
    }  # fmt: skip
    rests_on = {
        "study": PROTOCOL,
        "semalign_jax": version("semalign_jax"),
        "data": task.digests,
        "multimodal": settings.multimodal.name if settings.multimodal else None,
        **settings.model_dump(mode="json", include=kept),
    }
    found = run_cells(
        [[image, text] for image in images for text in texts],
        lambda cell: runner.cell(*cell),
        folder / "cells.jsonl",
        settings=rests_on,
        description="pairs of encoders",
    )
    rows = [row for cell in found for row in cell["rows"]]
    return StudyResults(
        format=FORMAT,
        format_version=VERSION,
        kind="zero-shot",
        title=settings.title,
        settings=resolved_settings(settings),
        environment=environment(),
        seconds=math.fsum(cell["seconds"] for cell in found),
        rows=rows,
        classes=[row for cell in found for row in cell["classes"]],
        notes=[*task.notes, *_notes(settings, task, rows)],
    )


def _notes(settings: ZeroShotSettings, task: _Task, rows: Sequence[Row]) -> list[str]:
    units = "emoji" if settings.demo else "patients"
    notes = [
        f"Mean and deviation over {settings.seeds} draws of anchors; {100 * settings.level:g} % "
        f"percentile intervals of {settings.resamples} resamples of the test {units}. Scores of "
        f"classes are those at {max(settings.counts)} anchors."
    ]
    if task.task == "multi-label":
        notes.append(f"Thresholds: {settings.rule} on the validation images, for each class.")
    if any(options["baseline"] == PROBE for options in settings.baselines.values()):
        notes.append("The probe learns from as many labelled images as others have anchors.")
    undefined = sorted({row["metric"] for row in rows if math.isnan(row["mean"])})
    if undefined:
        notes.append(f"Some scores are undefined: {', '.join(undefined)}.")
    if len(settings.normalizations) > 1:
        notes.append(_effect(settings, rows))
    return notes


def _effect(settings: ZeroShotSettings, rows: Sequence[Row]) -> str:
    """What the normalisation of the mapped space changes, in the first metric."""
    maps = [n for n, o in settings.methods.items() if not o.get("shuffled")]
    metric, largest = rows[0]["metric"], max(settings.counts)
    parts = []
    for how in settings.normalizations:
        names = {f"{name} ({how})" for name in maps}
        values = [
            row["mean"]
            for row in rows
            if (row["metric"], row["anchors"]) == (metric, largest) and row["method"] in names
        ]
        parts.append(f"{how} {np.mean(values):.3f}" if values else f"{how} -")
    return (
        f"Normalisation of the mapped space: {metric} at {largest} anchors, mean over maps and "
        f"pairs of encoders: {', '.join(parts)}."
    )
