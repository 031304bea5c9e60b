"""Settings of a zero-shot study."""

import inspect
from collections.abc import Mapping
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from ..metrics.by_name import HeadMetric
from ..plot.looks import CONTROL, is_control
from ..zeroshot.baselines import BASELINES, MORE_BASELINES, Baseline, naive_scores
from ..zeroshot.scores import TEMPERATURE, SpaceNormalization
from ..zeroshot.thresholds import ThresholdRule
from . import settings as shared
from .settings import (
    DataPath,
    DatasetSettings,
    EncoderName,
    Names,
    PatientSplit,
    PromptSetName,
    Settings,
    StudySettings,
    check_each,
    with_options,
)

ClassMetric: TypeAlias = Literal["auroc", "average_precision", "f1", "sensitivity", "specificity"]

#: As in the stitching study, and a control that is fitted to wrong pairs.
METHODS: dict[str, dict[str, Any]] = {
    **shared.METHODS,
    "shuffled": {**shared.METHODS["ridge"], "shuffled": True},
}
NAIVE, PROBE = "naive", "probe"
SCORES: Mapping[str, Baseline] = {NAIVE: naive_scores, **BASELINES, **MORE_BASELINES}


class PromptSource(Settings):
    """Where embeddings of prompts come from: a store, or an encoder that is run."""

    store: DataPath | None = None
    """Folder of embeddings, one for each text of `prompt_texts`. Its ids are "<class>/<positive or
    negative>/<number from 0>", the positions "0", "1", ... of the texts, or the texts
    themselves."""
    encoder: EncoderName | None = None
    """Folder of a checkpoint that is run instead, or its id on the Hugging Face hub."""
    pooling: str | None = None
    """Pooling of that encoder, see `encoders.load_encoder`. By default that of the reports' store,
    if it says."""
    layer: int | None = None
    """Layer of that encoder that is pooled. By default that of the reports' store."""
    normalize: bool | None = None
    """Whether that encoder's rows get length 1. By default as in the reports' store."""
    revision: str | None = None
    """Branch, tag or commit of that encoder on the hub."""

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
    """A multimodal model (CLIP and the like) on the same images and prompts, as a reference."""

    images: DataPath
    """Folder of the model's embeddings of the images that are evaluated."""
    prompts: PromptSource
    """Embeddings of the prompts by the model's text encoder."""


class ImageSplitSettings(PatientSplit):
    """A split by patient, for images that come without one; see `data.patient_split`.

    What is left is `labelled`; anchors of the same data set are drawn from it too.
    """

    validation: float = Field(default=0.3, gt=0, lt=1)
    """Fraction of the images that thresholds are chosen on."""
    test: float = Field(default=0.7, gt=0, lt=1)
    """Fraction of the images that are tested."""

    def fractions(self) -> dict[str, float]:
        """Parts and their fractions of the images."""
        parts = {"validation": self.validation, "test": self.test}
        rest = 1 - self.validation - self.test
        return parts | ({"labelled": rest} if rest > 1e-9 else {})

    @model_validator(mode="after")
    def _at_most_all(self) -> "ImageSplitSettings":
        if self.validation + self.test > 1 + 1e-9:
            raise ValueError(
                f"validation and test must be at most 1 together; got {self.validation} and "
                f"{self.test}"
            )
        return self


class ZeroShotSettings(StudySettings):
    """Settings of a zero-shot study.

    Either `demo`, or `images`, `image_stores`, `text_stores`, `prompts`, `prompt_embeddings` and
    `validation` and `test` (or `patient_split`). What all studies have: `StudySettings`.
    """

    title: str = "Zero-shot classification"
    demo: bool = False
    """Whether the shipped embeddings are taken instead of own ones."""
    images: DatasetSettings | None = None
    """The data set of the images that are evaluated, with labels and patients."""
    image_stores: dict[str, DataPath] = {}
    """Folder of each image encoder's embeddings of these images, by the encoder's name."""
    validation: Names | None = None
    """Names of the data set's splits that thresholds are chosen on."""
    test: Names | None = None
    """Names of the splits that are tested."""
    labelled: Names | None = None
    """Names of the splits that the linear probe learns from."""
    patient_split: ImageSplitSettings | None = None
    """A split of the images by patient instead, no patient in two parts."""
    anchors: DatasetSettings | None = None
    """The data set of images and reports that anchors are drawn from. By default that of
    `images`."""
    anchor_splits: Names | None = None
    """Names of its splits that anchors are drawn from. By default all of another data set, and the
    part `labelled` of the same one."""
    anchor_stores: dict[str, DataPath] = {}
    """Folder of each image encoder's embeddings of the anchors' images, by the encoder's name. It
    may be left out if `anchors` is."""
    text_stores: dict[str, DataPath] = {}
    """Folder of each text encoder's embeddings of the anchors' reports, by the encoder's name,
    under the ids of their images."""
    prompts: PromptSetName | None = None
    """The prompt set, a file or one of `shipped_prompt_sets`."""
    prompt_embeddings: dict[str, PromptSource] = {}
    """Embeddings of the prompts by each text encoder, by the encoder's name."""
    label_names: dict[str, str] = {}
    """Label of the images for each class of the prompt set, where the names differ."""
    ignored_labels: tuple[str, ...] = ()
    """Labels of the images that have no prompts, on purpose."""
    methods: dict[str, dict[str, Any]] = METHODS
    baselines: dict[str, dict[str, Any]] = {
        name: {"baseline": name} for name in (NAIVE, *BASELINES)
    }
    """Baselines by name with their options; the key `baseline` says which: "naive", "relative",
    "asif" or "csa" (see `zeroshot.baselines`), or "probe", a linear probe on as many labelled
    images as there are anchors (option `l2`). A list of these names does too. Not run unless named:
    "cca", "kernel-ridge", "reduced-rank", "diagonal" and "whitened"."""
    normalizations: Annotated[tuple[SpaceNormalization, ...], Field(min_length=1)] = ("center",)
    """Normalisations of the mapped space, see `zero_shot_scores`. With several each map has several
    lines, and the notes compare them."""
    multimodal: dict[str, MultimodalSettings] = {}
    """Multimodal models as references, by name."""
    temperature: float = Field(default=TEMPERATURE, gt=0)
    """Temperature of the softmax of multi-label scores, see `prompt_scores`."""
    shrinkage: float | None = Field(default=None, ge=0, le=1)
    """Shrinkage of the anchors' covariance, see `anchor_space`."""
    rule: ThresholdRule = "youden"
    """How thresholds are chosen on the validation images."""
    metrics: Annotated[tuple[HeadMetric, ...], Field(min_length=1)] | None = None
    """Scores, by default all that the task has. Figures of pairs show the first."""
    class_metrics: tuple[ClassMetric, ...] = ("auroc",)
    """Scores of single classes, at the largest count."""
    resamples: int = Field(default=1000, ge=1)
    """Number of resamples of the bootstrap, which draws test patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""

    @field_validator("methods")
    @classmethod
    def _controls_are_named(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        # Figures and tables tell controls by their names.
        for name, options in values.items():
            if bool(options.get("shuffled")) != is_control(name):
                raise ValueError(
                    f'{name!r}: a method is named "{CONTROL} ..." where its shuffled is true, and '
                    "only there"
                )
        return values

    @field_validator("baselines", mode="before")
    @classmethod
    def _baselines_with_options(cls, values: Any) -> Any:
        return with_options(values, "baseline")

    @field_validator("baselines")
    @classmethod
    def _known_baselines(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        check_each(values, baseline)
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "ZeroShotSettings":
        names = [*self.methods, *self.baselines, *self.multimodal]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} names two of `methods`, `baselines` and `multimodal`")
        probes = [name for name, o in self.baselines.items() if o["baseline"] == PROBE]
        if not self.methods and len(probes) == len(self.baselines):
            raise ValueError("`methods` is empty, and so are `baselines` that need anchors")
        if len(probes) > 1:
            raise ValueError("`baselines`: there can be only one probe")
        if self.demo:
            own = (
                "images", "image_stores", "validation", "test", "labelled", "patient_split",
                "anchors", "anchor_splits", "anchor_stores", "text_stores", "prompts",
                "prompt_embeddings", "label_names", "ignored_labels", "multimodal",
            )  # fmt: skip
            self.refuse_together("demo", own)
        else:
            self._check_own()
        return self

    @property
    def probe(self) -> str | None:
        """What the linear probe is called; None if there is none."""
        return next((n for n, o in self.baselines.items() if o["baseline"] == PROBE), None)

    def store_folders(self) -> dict[str, dict[str, Path]]:
        """Setting -> name -> folder of the stores, without those of prompts."""
        return {
            "image_stores": self.image_stores,
            "anchor_stores": self.anchor_stores or self.image_stores,
            "text_stores": self.text_stores,
            "multimodal": {name: model.images for name, model in self.multimodal.items()},
        }

    def _check_own(self) -> None:
        needed = ("images", "image_stores", "text_stores", "prompts", "prompt_embeddings")
        missing = [name for name in needed if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"`{missing[0]}` is missing: give it, or `demo` for a run on the shipped data"
            )
        parts = ("validation", "test", "labelled")
        if self.patient_split is not None:
            self.refuse_together("patient_split", parts)
        else:
            self.need_all(("validation", "test"), "name splits of images, or give `patient_split`")
        self.refuse_common_splits(*combinations(parts, 2))
        if self.anchors is not None or self.anchor_stores:
            self._same_names("anchor_stores", "image_stores")
        self._same_names("prompt_embeddings", "text_stores")
        if self.anchors is None and not (self.anchor_splits or self.labelled or self.patient_split):
            raise ValueError(
                "`anchor_splits` is missing: anchors are of the same data set as `images`"
            )

    def _same_names(self, *both: str) -> None:
        for one, other in permutations(both):
            for name in getattr(self, other):
                if name not in getattr(self, one):
                    raise ValueError(f"`{one}` lacks {name!r}, which is in `{other}`")


def baseline(options: Mapping[str, Any]) -> Baseline | None:
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
        baselines={name: {"baseline": name} for name in (NAIVE, *BASELINES, PROBE)},
        metrics=("accuracy", "auroc"),
        **(small if quick else {}),
    )
