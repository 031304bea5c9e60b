"""Settings of a study, as a file, a command line or Python code give them."""

import copy
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from .. import data
from .._core.checks import refuse_repeated
from .._core.documents import SUFFIXES, did_you_mean, read_document
from .._core.files import as_path
from ..data import ImageTextDataset
from ..maps.options import check_options
from ..sweeps.one_pair import SweepMethod

READERS: Mapping[str, Callable[..., ImageTextDataset]] = {
    "table": data.read_table,
    "mimic-cxr": data.read_mimic_cxr,
    "rsna": data.read_rsna,
    "vindr-cxr": data.read_vindr_cxr,
    "open-i": data.read_open_i,
    "chexpert": data.read_chexpert,
    "padchest": data.read_padchest,
}
#: The four maps, the orthogonal ones between spaces brought to one scale, which they cannot change
#: themselves; the affine map with a penalty, for fewer anchors than dimensions; and the map that
#: chooses its penalty by leave-one-out.
METHODS: dict[str, dict[str, Any]] = {
    "affine": {"method": "affine"},
    "linear": {"method": "linear"},
    "l-ortho": {"method": "l-ortho", "normalize": "isotropic"},
    "ortho": {"method": "ortho", "normalize": "isotropic"},
    "ridge": {"method": "affine", "ridge": 1.0, "ridge_unit": "gram"},
    "auto": {"method": "auto"},
}


def path_options(reader: str) -> set[str]:
    """Options of a reader that are paths."""
    parameters = inspect.signature(READERS[reader]).parameters
    return {name for name, one in parameters.items() if os.PathLike in get_args(one.annotation)}


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
Count: TypeAlias = Annotated[int, Field(ge=1)]
Names: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors.

    The docstrings below the fields are the help of the command line. Validators of the whole put
    names of fields between backticks: whoever typed options reads these, see `problem_text`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


class DatasetSettings(Settings):
    """A data set on disk."""

    reader: Literal["table", "mimic-cxr", "rsna", "vindr-cxr", "open-i", "chexpert", "padchest"]
    """The reader of the data set, one of `READERS`."""
    path: DataPath
    """Folder of the data set, or for "table" the CSV or Parquet file."""
    options: dict[str, Any] = {}
    """Keyword options of the reader, e.g. ``{"image": "path", "label": "finding"}``; paths among
    them start where `path` does."""

    @field_validator("options")
    @classmethod
    def _paths(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        reader = info.data.get("reader")
        if reader is None:  # a problem of its own
            return options
        paths = {
            name: str(_beside_the_settings(Path(options[name]), info))
            for name in path_options(reader) & options.keys()
            if isinstance(options[name], str)
        }
        return options | paths


class PatientSplit(Settings):
    """A split by patient, for data sets that come without one; see `data.patient_split`."""

    seed: int = Field(default=0, ge=0)
    """Seed of the split."""

    def fractions(self) -> dict[str, float]:
        """Parts and their fractions of the images."""
        raise NotImplementedError


def with_options(
    values: Any, key: str, usual: Mapping[str, Mapping[str, Any]] | None = None
) -> Any:
    """Names, or name -> name, as name -> options; what is neither is left to pydantic.

    Args:
        values: of the settings.
        key: of the options, under which a name stands.
        usual: name -> the options that it stands for, beside itself.
    """
    if isinstance(values, list | tuple) and all(isinstance(name, str) for name in values):
        refuse_repeated(values)
        values = {name: name for name in values}
    if not isinstance(values, Mapping):
        return values
    return {
        k: dict((usual or {}).get(v, {key: v})) if isinstance(v, str) else v
        for k, v in values.items()
    }


def check_each(
    values: Mapping[str, Mapping[str, Any]], check: Callable[[Mapping[str, Any]], Any]
) -> None:
    """Check the options of each name; an error begins with the name."""
    for name, options in values.items():
        try:
            check(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None


def sweep_method(options: Mapping[str, Any]) -> SweepMethod:
    """The line of a sweep, with its options checked as far as is possible without data."""
    options = dict(options)
    if "method" not in options:
        raise ValueError("the name of the map is missing, e.g. method: affine")
    line = SweepMethod(**options)
    check_options(line.method, (2, 2), **dict(line.options))
    hash(line)  # as compiled code is found by it
    return line


class StudySettings(Settings):
    """What all studies have."""

    title: str = "Study"
    """Title of the report."""
    counts: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 20, 50, 100, 200, 500, 1000)
    """Anchor counts of the curves."""
    seeds: int = Field(default=5, ge=1)
    """Number of draws of anchors."""
    seed: int = Field(default=0, ge=0)
    """Seed of anchors and resamples."""
    methods: dict[str, dict[str, Any]] = METHODS
    """Maps by name, each with options of `SweepMethod`. A list of names does too, and a name
    instead of options: it stands for those of the default of this name."""
    uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
    """What uncertain labels become: left out, 0 or 1 (see `data.binary_labels`)."""
    blank: Literal["ignore", "zeros"] = "ignore"
    """What missing labels become: left out, or 0."""
    trust: bool = True
    """Whether the anchors of each pair of encoders are diagnosed, at the largest count, see
    `maps.diagnose`."""

    @field_validator("*")
    @classmethod
    def _all_different(cls, values: Any) -> Any:
        if isinstance(values, tuple):
            refuse_repeated(values)
        return values

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_with_options(cls, values: Any) -> Any:
        return with_options(values, "method", METHODS)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        check_each(values, sweep_method)
        return values

    def sweep_methods(self) -> dict[str, SweepMethod]:
        """The lines of a sweep by name."""
        return {name: sweep_method(options) for name, options in self.methods.items()}

    def refuse_together(self, first: str, others: tuple[str, ...]) -> None:
        """Refuse other settings where the one called `first` is given."""
        given = [name for name in others if getattr(self, name)]
        if given:
            raise ValueError(f"`{first}` and `{given[0]}` cannot both be given")

    def need_all(self, names: tuple[str, ...], what: str) -> None:
        """Refuse settings without one of these; `what` says what to do."""
        lacking = [name for name in names if getattr(self, name) is None]
        if lacking:
            verb = "is" if len(lacking) == 1 else "are"
            shown = " and ".join(f"`{name}`" for name in lacking)
            raise ValueError(f"{shown} {verb} missing: {what}")

    def refuse_common_splits(self, *pairs: tuple[str, str]) -> None:
        """Refuse a split of the data set that is in both settings of a pair."""
        for first, second in pairs:
            both = set(getattr(self, first) or ()) & set(getattr(self, second) or ())
            if both:
                raise ValueError(f"`{first}` and `{second}` both have the split {min(both)!r}")


def load_settings(
    kind: type[S],
    path: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    base: Path | None = None,
    explain: Callable[[ValidationError], str] | None = None,
) -> S:
    """Read settings from a JSON or YAML file.

    Args:
        kind: what they are.
        path: the file; None for the defaults.
        overrides: values that go before those of the file, e.g. of a command line. Keys of inner
            objects are joined with dots.
        base: folder that relative paths start at; by default that of the file.
        explain: what is wrong in the words of the message; by default it names keys.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read, and for unknown, missing or wrong values; names
            the file and every key.
    """
    path = None if path is None else as_path(path)
    values = {} if path is None else read_document(path, "settings file")
    where = "settings" if path is None else str(path)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object of keys and values; got {values!r:.80}")
    for name, value in (overrides or {}).items():
        *outer, last = name.split(".")
        inner = values
        if outer and outer[0] not in values:  # the rest of the default stays, e.g. other methods
            field = kind.model_fields.get(outer[0])
            if field is not None and isinstance(field.default, dict):
                values[outer[0]] = copy.deepcopy(field.default)
        for key in outer:
            if inner.get(key) is None:  # also where the file says null
                inner[key] = {}
            inner = inner[key]
            if not isinstance(inner, dict):
                raise ValueError(f"{where}: {name} is given, but {key} is {inner!r:.80}")
        inner[last] = value
    try:
        return kind.model_validate(values, context={"base": base or (path and path.parent)})
    except ValidationError as error:
        if explain is not None:
            raise ValueError(explain(error)) from None
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'settings'}: {problem_text(kind, one)}"
            for one in problems_of(error)
        ]
        raise ValueError(f"{where}: {'; '.join(problems)}") from None


def problems_of(error: ValidationError) -> list[Any]:
    """What pydantic has found; not that a list is short of the items that are wrong."""
    found = error.errors(include_url=False)
    inner = {one["loc"][:-1] for one in found}
    return [one for one in found if one["type"] != "too_short" or one["loc"] not in inner]


def problem_text(
    kind: type[BaseModel] | None,
    problem: Mapping[str, Any],
    called: Callable[[str], str] = str,
) -> str:
    """What pydantic has found, in words for those who write the file or the command line.

    Args:
        kind: of the settings; None where no name can be unknown.
        problem: one of `problems_of`.
        called: a name of theirs -> what the reader calls it.
    """
    if problem["type"] == "tuple_type":  # a list, in files and on the command line
        value = problem["input"]
        write = f", write {json.dumps([value], ensure_ascii=False)}" * isinstance(value, str | int)
        return f"must be a list; got {value!r:.80}{write}"
    if problem["type"] == "dict_type":
        return f"must be names with values, or with options; got {problem['input']!r:.80}"
    if problem["type"] == "too_short":
        least, there = problem["ctx"]["min_length"], problem["ctx"]["actual_length"]
        return f"must have at least {least}; got {there}"
    if kind is None or problem["type"] != "extra_forbidden":
        text = problem["msg"].removeprefix("Value error, ")
        return re.sub("`(.+?)`", lambda name: called(name[1]), text)
    *outer, name = problem["loc"]
    for key in outer:
        field = kind.model_fields.get(str(key))
        inner = [] if field is None else [field.annotation, *get_args(field.annotation)]
        classes = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        if not classes:
            return "is not known here"
        kind = classes[0]
    return f"is not known here; {did_you_mean(name, kind.model_fields)}"


def resolved_settings(settings: BaseModel) -> dict[str, Any]:
    """Settings as JSON values, with absolute paths, so that they hold in any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.absolute())
        if isinstance(value, Mapping):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [absolute(inner) for inner in value]
        return value

    return absolute(settings.model_dump())
