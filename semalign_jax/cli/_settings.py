"""The settings of the commands: what a settings file may hold, with the defaults."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .._core.typing import METHODS, Completion, Method, Normalize, RidgeUnit
from ..studies import common
from ..studies.inputs import DataPath, DatasetSettings, EncoderName, PromptSetName, Settings


def _listed(value: Any) -> Any:
    """A list, also if it is written with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed), Field(min_length=1)
]
Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class EmbedSettings(Settings):
    """What is embedded, with what and how.

    Attributes:
        encoder: folder, or id on the Hugging Face hub.
        out: folder of the store.
        inputs: a text file, one text a line; or images, folders of images and patterns.
        dataset: instead: a data set.
        content: "texts" or "images" of the data set.
        prompts: instead: the texts of a prompt set, a name or a file.
        split: keep these splits of the data set.
        view: keep these view positions.
        one_per_study: keep the first item of each study.
        id_from: what images of `inputs` are called: "path" (below the folder that was given),
            "name" of the file or its "stem".
        batch_size: items a step.
        chunk_size: items a file of the store.
        dtype: of the store.
        compute_dtype: of the encoder.
        pooling: see `load_encoder`; None for the encoder's own.
        layer: that is pooled; None for the last.
        normalize: whether rows get length 1; None for what the encoder's folder says.
        revision: on the hub.
        workers: threads that decode images; None for one a core.
        processes: whether processes decode DICOM files; None: if there are many.
        skip_broken: whether what cannot be read is left out.
    """

    encoder: EncoderName
    out: DataPath
    inputs: tuple[DataPath, ...] = ()
    dataset: DatasetSettings | None = None
    content: Literal["texts", "images"] | None = None
    prompts: PromptSetName | None = None
    split: Names = ()
    view: Names = ()
    one_per_study: bool = False
    id_from: Literal["path", "name", "stem"] = "path"
    batch_size: Count = 32
    chunk_size: Count = 4096
    dtype: Dtype = "float32"
    compute_dtype: Dtype = "float32"
    pooling: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    revision: str | None = None
    workers: Count | None = None
    processes: bool | None = None
    skip_broken: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "EmbedSettings":
        given = [name for name in ("inputs", "dataset", "prompts") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give what to embed as one of files, a data set (--dataset) and a prompt set "
                f"(--prompts); got {' and '.join(given) or 'none'}"
            )
        if self.dataset is not None and self.content is None:
            raise ValueError("of a data set give --images or --texts")
        if self.dataset is None:
            extra = ("content", "split", "view", "one_per_study")
            wrong = [name for name in extra if getattr(self, name)]
            if wrong:
                raise ValueError(f"{wrong[0]} needs a data set (--dataset)")
        return self


class FitSettings(Settings):
    """A fit of two stores.

    Attributes:
        source: store of the source space.
        target: store of the target space.
        out: file of the map.
        method: of the four maps.
        anchors: how many pairs, drawn at random; None for all.
        seed: of the draw.
        ids: file of the ids to fit to, one a line or a JSON list; None for all.
        normalize: of both spaces before the fit; None for "isotropic" of the orthogonal maps, which
            match neither offset nor scale, and "none" of the others.
        ridge: penalty of the squared weights.
        ridge_unit: of `ridge`.
        rcond: relative cut-off of singular values.
        scale: whether an orthogonal map gets a scale.
        rotation_only: whether reflections are excluded.
        completion: of an orthogonal map where the anchors leave directions undecided.
        batch_rows: rows that are read at once.
    """

    source: DataPath
    target: DataPath
    out: DataPath
    method: Method = "ortho"
    anchors: Count | None = None
    seed: int = 0
    ids: DataPath | None = None
    normalize: Normalize | None = None
    ridge: float | None = None
    ridge_unit: RidgeUnit | None = None
    rcond: float | None = None
    scale: bool | None = None
    rotation_only: bool | None = None
    completion: Completion | None = None
    batch_rows: Count = 4096

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options of the fit; a method refuses those that it does not have."""
        names = (
            "normalize",
            "ridge",
            "ridge_unit",
            "rcond",
            "scale",
            "rotation_only",
            "completion",
        )
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"normalize": usual_normalization(self.method)} | given


def usual_normalization(method: Method) -> Normalize:
    """What the commands normalise by if nothing is said."""
    return common.METHODS[method].get("normalize", "none")


class ApplySettings(Settings):
    """A map applied to a store.

    Attributes:
        map: file of the map.
        store: that is mapped.
        out: folder of the new store.
        dtype: of the new store; None for that of the old one, at most float32.
        chunk_size: rows a file of the new store.
    """

    map: DataPath
    store: DataPath
    out: DataPath
    dtype: Dtype | None = None
    chunk_size: Count = 16384


class SweepSettings(Settings):
    """A sweep over methods, anchor counts and seeds for one pair of stores.

    Attributes:
        source: store of the source space.
        target: store of the target space.
        out: folder of the results; None for none.
        methods: of the four maps.
        anchors: how many anchors.
        seeds: how many draws of anchors.
        normalize: of both spaces before the fits; None as in `FitSettings`.
        dataset: of the pairs, so that no patient is on both sides.
        test_split: split of the data set that is held out; None for patients drawn at random.
        test_ids: instead: file of the ids that are held out.
        test_fraction: share that is held out, if it is drawn.
        test_rows: at most so many held-out pairs count.
        seed: of all draws.
    """

    source: DataPath
    target: DataPath
    out: DataPath | None = None
    methods: Annotated[tuple[Method, ...], BeforeValidator(_listed), Field(min_length=1)] = METHODS
    anchors: Counts = (50, 100, 200, 400)
    seeds: Count = 5
    normalize: Normalize | None = None
    dataset: DatasetSettings | None = None
    test_split: str | None = None
    test_ids: DataPath | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_rows: Annotated[int, Field(ge=2)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> "SweepSettings":
        if self.test_split is not None and self.dataset is None:
            raise ValueError("test_split needs a data set (--dataset)")
        if self.test_ids is not None and self.dataset is not None:
            raise ValueError("test_ids and dataset: give one of them")
        return self
