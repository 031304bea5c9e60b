"""Settings of a stitching study."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from ..metrics.by_name import HeadMetric
from .drawings import UPPER_BOUND
from .settings import (
    METHODS,
    DataPath,
    DatasetSettings,
    Names,
    PatientSplit,
    Settings,
    StudySettings,
)

ClassMetric: TypeAlias = Literal["auroc", "average_precision", "f1"]
DemoGroup: TypeAlias = Literal["glosses", "emoji"]

NAIVE = "naive"


class PatientSplitSettings(PatientSplit):
    """A split by patient, for data sets that come without one; see `data.patient_split`."""

    test: float = Field(default=0.3, gt=0, lt=1)
    """Fraction of the images that are tested."""

    def fractions(self) -> dict[str, float]:
        """Parts and their fractions of the images."""
        return {"train": 1 - self.test, "test": self.test}


class IntervalSettings(Settings):
    """Scores of single classes at the largest anchor count, with bootstrap intervals.

    Patients are the units that are drawn. Scores are means over the draws of anchors.
    """

    metrics: tuple[ClassMetric, ...] = Field(default=("auroc",), min_length=1)
    """Scores of single classes."""
    resamples: int = Field(default=1000, ge=1)
    """Number of resamples of the bootstrap, which draws test patients."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""


class StitchingSettings(StudySettings):
    """Settings of a stitching study.

    The data are either `demo` groups, or a `dataset` and `stores`; these have `train` and `test`
    splits, or are split by `patient_split`. What all studies have: `StudySettings`.
    """

    title: str = "Stitching"
    demo: tuple[DemoGroup, ...] = ()
    """Groups of the shipped embeddings, instead of own ones."""
    dataset: DatasetSettings | None = None
    """The data set of images with labels and patients."""
    stores: dict[str, DataPath] = {}
    """Folder of each encoder's embeddings of these images, by the encoder's name. Rows are matched
    by id, and images that are not in all stores are left out."""
    train: Names | None = None
    """Names of the data set's splits that heads are trained on and anchors come from."""
    test: Names | None = None
    """Names of the splits that are tested."""
    anchors: Names | None = None
    """Names of the splits that anchors come from instead."""
    patient_split: PatientSplitSettings | None = None
    """A split of the images by patient instead, no patient in both parts."""
    task: Literal["single-label", "multi-label"] | None = None
    """Whether each image has exactly one label ("single-label") or any number of them
    ("multi-label"). By default single-label if each labelled image has exactly one; a note of the
    results says which it is, and why."""
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    """The labels that count, in this order. By default all of the data set."""
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = METHODS
    metrics: tuple[HeadMetric, ...] = Field(default=("auroc", "accuracy"), min_length=1)
    """Scores as of `evaluate_stitching_pairs`. Figures of pairs show the first."""
    control: bool = True
    """Whether maps are also fitted to wrongly matched anchors, which doubles the work."""
    l2: float = Field(default=1.0, ge=0)
    """Penalty of the heads, see `fit_head`."""
    intervals: IntervalSettings | None = IntervalSettings()
    """Scores of single classes with intervals. None leaves them out."""

    @field_validator("methods")
    @classmethod
    def _no_references(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in values.items():
            if name in (NAIVE, UPPER_BOUND) or name.startswith("shuffled"):
                raise ValueError(f"{name!r} is the name of a reference; choose another")
            if "shuffled" in options:
                raise ValueError(
                    f"{name}: shuffled is no option here; control says whether it is computed"
                )
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "StitchingSettings":
        splits = ("train", "test", "anchors")
        if self.demo:
            self.refuse_together("demo", ("dataset", "stores", *splits, "patient_split", "labels"))
            if self.task == "multi-label":
                raise ValueError("`task` must be single-label for the demo")
            return self
        if self.dataset is None:
            raise ValueError("`dataset` is missing: give `dataset` and `stores`, or `demo`")
        if len(self.stores) < 2:
            raise ValueError(f"`stores` must name at least two encoders; got {list(self.stores)}")
        if self.patient_split is not None:
            self.refuse_together("patient_split", splits)
        else:
            self.need_all(("train", "test"), "name splits of the data set, or give `patient_split`")
        self.refuse_common_splits(("train", "test"), ("anchors", "test"))
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
