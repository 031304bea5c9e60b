"""What a study is made of: its settings, a data set, and embeddings matched to it by id."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from .. import data
from .._core.documents import SUFFIXES, read_document
from ..data import ImageTextDataset
from ..stores.store import EmbeddingStore, open_store

READERS: Mapping[str, Callable[..., ImageTextDataset]] = {
    "table": data.read_table,
    "mimic-cxr": data.read_mimic_cxr,
    "rsna": data.read_rsna,
    "vindr-cxr": data.read_vindr_cxr,
    "open-i": data.read_open_i,
    "chexpert": data.read_chexpert,
    "padchest": data.read_padchest,
}
_SHOWN = 5


def _beside_the_settings(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path.expanduser() if base is None else base / path.expanduser()


#: A path of the settings; a relative one starts at the folder of the settings file.
DataPath = Annotated[Path, AfterValidator(_beside_the_settings)]


def _folder_or_id(value: str, info: ValidationInfo) -> str:
    folder = _beside_the_settings(Path(value), info)
    return str(folder.absolute()) if folder.is_dir() else value


def _file_or_name(value: str, info: ValidationInfo) -> str:
    if Path(value).suffix not in SUFFIXES:
        return value
    return str(_beside_the_settings(Path(value), info).absolute())


#: An encoder: a folder, found as a `DataPath` is; what is none is an id on the Hugging Face hub.
EncoderName = Annotated[str, AfterValidator(_folder_or_id)]
#: A prompt set: a file, found as a `DataPath` is, or the name of one of `shipped_prompt_sets`.
PromptSetName = Annotated[str, AfterValidator(_file_or_name)]


class Settings(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


class DatasetSettings(Settings):
    """A data set on disk.

    Attributes:
        reader: which of `READERS`.
        path: its folder, or for "table" the CSV or Parquet file.
        options: keyword options of the reader, e.g. ``{"image": "path", "label": "finding"}``;
            paths among them start where `path` does.
    """

    reader: Literal["table", "mimic-cxr", "rsna", "vindr-cxr", "open-i", "chexpert", "padchest"]
    path: DataPath
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _paths(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        reader = info.data.get("reader")
        if reader is None:  # a problem of its own
            return options
        parameters = inspect.signature(READERS[reader]).parameters
        return {
            name: str(_beside_the_settings(Path(value), info))
            if isinstance(value, str)
            and name in parameters
            and os.PathLike in get_args(parameters[name].annotation)
            else value
            for name, value in options.items()
        }


def load_settings(
    kind: type[S], path: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> S:
    """Read settings from a JSON or YAML file.

    Args:
        kind: what they are.
        path: the file; None for the defaults.
        overrides: values that go before those of the file, e.g. of a command line. Keys of inner
            objects are joined with dots.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read, and for unknown, missing or wrong values; names
            the file and every key.
    """
    values = {} if path is None else read_document(path, "settings file")
    where = "settings" if path is None else str(path)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object of keys and values; got {values!r:.80}")
    for name, value in (overrides or {}).items():
        *outer, last = name.split(".")
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    try:
        return kind.model_validate(values, context={"base": path.parent if path else None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise ValueError(f"{where}: {'; '.join(problems)}") from None


def read_dataset(settings: DatasetSettings) -> ImageTextDataset:
    """Read a data set.

    Raises:
        ValueError: for an option that the reader does not have. Otherwise as the readers of
            `semalign_jax.data`.
    """
    reader = READERS[settings.reader]
    known = list(inspect.signature(reader).parameters)[1:]
    unknown = [name for name in settings.options if name not in known]
    if unknown:
        raise ValueError(
            f"dataset.options: {unknown[0]!r} is no option of {settings.reader!r}; it has "
            f"{', '.join(known)}"
        )
    try:
        return reader(settings.path, **settings.options)
    except TypeError as error:  # a required option is missing
        raise ValueError(f"dataset.options of {settings.reader!r}: {error}") from None


class Matched(NamedTuple):
    """What `match_stores` returns.

    Attributes:
        data: the images that all stores have.
        embeddings: store name -> ``[n, d]``, float32 (or float64), row i belongs to image i.
        left_out: how many images of the data set have no row in some store.
    """

    data: ImageTextDataset
    embeddings: dict[str, np.ndarray]
    left_out: int


def match_stores(dataset: ImageTextDataset, stores: Mapping[str, Path]) -> Matched:
    """Read the embeddings of a data set's images, by id.

    Args:
        dataset: the images.
        stores: name -> folder of embeddings, see `open_store`. Rows of other ids are not read.

    Raises:
        FileNotFoundError: if a store is missing.
        ValueError: if an id occurs twice in a store, or no image is in all of them.
    """
    opened = {name: open_store(folder) for name, folder in stores.items()}
    places = {name: _places(name, store) for name, store in opened.items()}
    kept = [
        number
        for number, key in enumerate(dataset.ids)
        if all(key in place for place in places.values())
    ]
    if not kept:
        firsts = {name: list(store.ids[:_SHOWN]) for name, store in opened.items()}
        raise ValueError(
            f"no image of {dataset.name} is in all stores: its ids begin with "
            f"{list(dataset.ids[:_SHOWN])}, those of the stores with {firsts}"
        )
    selected = dataset.select(np.array(kept))
    embeddings = {}
    for name, store in opened.items():
        rows = store.rows(np.array([places[name][key] for key in selected.ids]))
        embeddings[name] = rows if rows.dtype == np.float64 else rows.astype(np.float32)
    return Matched(selected, embeddings, len(dataset) - len(kept))


def _places(name: str, store: EmbeddingStore) -> dict[str, int]:
    places = {key: row for row, key in enumerate(store.ids)}
    if len(places) < len(store):
        twice = next(key for row, key in enumerate(store.ids) if places[key] != row)
        raise ValueError(f"{name}: {store.folder} has the id {twice!r} twice")
    return places
