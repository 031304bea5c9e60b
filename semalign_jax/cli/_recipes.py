"""Recipes: what an experiment embeds, and the settings of its study."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from .._core.documents import SUFFIXES, did_you_mean
from ..studies.drawings import slug
from ..studies.settings import (
    DatasetSettings,
    EncoderName,
    Settings,
    load_settings,
    problem_text,
    with_options,
)
from ..studies.stitching_settings import StitchingSettings
from ..studies.zero_shot_settings import ZeroShotSettings
from ._settings import Count, Dtype, EmbedSettings, MigrateSettings, RecipeSettings

#: Of a recipe, what holds encoders.
ENCODERS = ("encoders", "text_encoders", "multimodal")
#: Rows beyond the sample that the new encoder of a migration embeds, to be searched.
NEW_SEARCHED = 3000
#: What of a data set is embedded.
_CHOICES = {"split", "view", "one_per_study", "limit"}
#: The recipes that come with the library.
SHIPPED = resources.files("semalign_jax.cli") / "recipes"
_STUDIES: dict[str, type[Settings]] = {
    "stitching": StitchingSettings,
    "zero-shot": ZeroShotSettings,
    "migrate": MigrateSettings,
}


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the library."""
    return tuple(sorted(Path(entry.name).stem for entry in SHIPPED.iterdir()))


class RecipeEncoder(Settings):
    """An encoder, and how it is run: see these fields of `EmbedSettings`."""

    encoder: EncoderName
    pooling: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    revision: str | None = None
    batch_size: Count = 32
    compute_dtype: Dtype = "float32"


class RecipeDataset(DatasetSettings):
    """A data set, and what of it is embedded: see these fields of `EmbedSettings`."""

    split: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    one_per_study: bool = False
    limit: Count | None = None

    def settings(self) -> DatasetSettings:
        """The data set itself."""
        return DatasetSettings(**self.model_dump(exclude=_CHOICES))


class Recipe(Settings):
    """An experiment."""

    title: str
    """Of the report."""
    description: str = ""
    """What it shows, and what it needs."""
    study: Literal["stitching", "zero-shot", "migrate"]
    """What is run on the embeddings."""
    dataset: RecipeDataset
    """The data set that is classified, or whose texts or images are searched."""
    content: Literal["images", "texts"] = "images"
    """What of it is embedded; of a zero-shot study the images."""
    anchors: RecipeDataset | None = None
    """The data set of pairs of a zero-shot study. By default `dataset`."""
    encoders: dict[str, RecipeEncoder]
    """The encoders by name: those that are stitched, the image encoders of a zero-shot study, or
    the two called old and new of a migration."""
    text_encoders: dict[str, RecipeEncoder] = {}
    """The text encoders of a zero-shot study."""
    multimodal: dict[str, RecipeEncoder] = {}
    """Two-tower models of a zero-shot study, as references."""
    settings: dict[str, Any] = {}
    """Of the study; stores, data sets and prompts of encoders come from the recipe."""

    @field_validator("settings")
    @classmethod
    def _paths_in_full(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        base = (info.context or {}).get("base")
        files = {
            name: str(base / Path(value).expanduser())
            for name, value in values.items()
            if base is not None
            and isinstance(value, str)
            # A prompt set may be one that is shipped.
            and (name == "queries" or name == "prompts" and Path(value).suffix in SUFFIXES)
        }
        return values | files

    @field_validator(*ENCODERS, mode="before")
    @classmethod
    def _encoders_with_options(cls, values: Any) -> Any:
        return with_options(values, "encoder")

    @model_validator(mode="after")
    def _has_encoders(self) -> Self:
        if self.study == "zero-shot":
            if not self.encoders or not self.text_encoders:
                raise ValueError("a zero-shot study needs encoders and text_encoders")
            if "prompts" not in self.settings:
                raise ValueError("settings: prompts is missing, a prompt set")
            return self
        for name in ("anchors", "text_encoders", "multimodal"):
            if getattr(self, name):
                raise ValueError(f"{name} is of a zero-shot study")
        if self.study == "migrate" and set(self.encoders) != {"old", "new"}:
            raise ValueError("encoders of a migration are called old and new")
        if len(self.encoders) < 2:
            raise ValueError("encoders: at least two are needed")
        return self

    @model_validator(mode="after")
    def _distinct_folders(self) -> Self:
        names = [*self.encoders, *self.text_encoders, *self.multimodal]
        folders = [slug(name) for name in names]
        for name, folder in zip(names, folders, strict=True):
            if not folder or folders.count(folder) > 1:
                raise ValueError(f"encoders: {name!r} gives no folder name of its own; rename it")
        return self


def load_recipe(settings: RecipeSettings) -> Recipe:
    """A recipe with its data in place, and with what the command line changes."""
    path, base = Path(settings.name).expanduser(), base_of(settings)
    changes = {f"settings.{key}": value for key, value in settings.settings.items()}
    if path.suffix in SUFFIXES:
        return _changed(load_settings(Recipe, path, changes, base=base), settings)
    if settings.name not in shipped_recipes():
        hint = did_you_mean(settings.name, shipped_recipes())
        raise FileNotFoundError(
            f"there is no recipe {settings.name!r}, and it is no .yaml or .json file; {hint}"
        )
    with resources.as_file(SHIPPED / f"{settings.name}.yaml") as shipped:
        return _changed(load_settings(Recipe, shipped, changes, base=base), settings)


def base_of(settings: RecipeSettings) -> Path:
    """The folder, in full, that relative paths of a recipe start at."""
    path = Path(settings.name).expanduser()
    beside = path.parent if path.suffix in SUFFIXES else Path()
    return (settings.data or beside).absolute()


def _changed(recipe: Recipe, settings: RecipeSettings) -> Recipe:
    groups = {name: dict(getattr(recipe, name)) for name in ENCODERS}
    known = [name for group in groups.values() for name in group]
    for name in (*settings.encoder, *settings.only):
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{name!r} is no encoder of {settings.name}; {hint}")
    for group in groups.values():
        for name in list(group):
            if settings.only and name not in settings.only:
                del group[name]
            elif name in settings.encoder:
                new = {"encoder": settings.encoder[name], "revision": None}
                group[name] = group[name].model_copy(update=new)
    values: dict[str, Any] = {**dict(recipe), **groups}
    for name in ("dataset", "anchors"):
        if settings.limit is not None and values[name] is not None:
            values[name] = values[name].model_copy(update={"limit": settings.limit})
    try:
        return Recipe(**values)
    except ValidationError as error:  # too few encoders are left
        text = problem_text(Recipe, error.errors(include_url=False)[0])
        raise ValueError(f"{settings.name}: {text}") from None


# --- what is made ------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What a recipe makes.

    Attributes:
        study: settings of the study, of the class that `Recipe.study` says.
        jobs: encoder and settings of each store, as of `semalign embed`.
    """

    study: Settings
    jobs: list[tuple[str, EmbedSettings]]


def plan_of(recipe: Recipe, out: Path, base: Path) -> Plan:
    """The stores of a recipe in a folder, and the settings of its study.

    Paths in `Recipe.settings` start at `base`.
    """
    made: list[tuple[str, str, RecipeEncoder, dict[str, Any]]] = []

    def folder(name: str, what: str) -> Path:
        return out / "stores" / f"{slug(name)}-{what}"

    def data(
        encoders: Mapping[str, RecipeEncoder], what: str, of: RecipeDataset, content: str
    ) -> dict[str, Path]:
        source = {"dataset": of.settings(), **of.model_dump(include=_CHOICES), "content": content}
        source["skip_broken"] = content == "images"
        what = f"{what}-{content}"
        made.extend((name, what, one, source) for name, one in encoders.items())
        return {name: folder(name, what) for name in encoders}

    def prompts(encoders: Mapping[str, RecipeEncoder]) -> dict[str, dict[str, Path]]:
        made.extend((name, "prompts", one, {}) for name, one in encoders.items())
        return {name: {"store": folder(name, "prompts")} for name in encoders}

    target, anchors = recipe.dataset, recipe.anchors or recipe.dataset
    values: dict[str, Any] = {"title": recipe.title}
    if recipe.study == "zero-shot":
        values["images"] = target.settings()
        if recipe.anchors is not None:
            values["anchors"] = anchors.settings()
        values["image_stores"] = data(recipe.encoders, "target", target, "images")
        if recipe.anchors is not None:
            values["anchor_stores"] = data(recipe.encoders, "anchors", anchors, "images")
        values["text_stores"] = data(recipe.text_encoders, "anchors", anchors, "texts")
        values["prompt_embeddings"] = prompts(recipe.text_encoders)
        of_images = data(recipe.multimodal, "target", target, "images")
        of_prompts = prompts(recipe.multimodal)
        values["multimodal"] = {
            name: {"images": of_images[name], "prompts": of_prompts[name]}
            for name in recipe.multimodal
        }
    else:
        stores = data(recipe.encoders, "all", target, recipe.content)
        if recipe.study == "stitching":
            values |= {"dataset": target.settings(), "stores": stores}
        else:
            values = {**stores, "out": out / "results"}
    study = load_settings(_STUDIES[recipe.study], None, {**recipe.settings, **values}, base=base)
    texts = getattr(study, "prompts", None)  # in full, if it is a file
    jobs = []
    for name, what, one, source in made:
        source = source or {"prompts": texts}
        if isinstance(study, MigrateSettings) and name == "new":
            rows = [source["limit"], study.sample + NEW_SEARCHED]
            source = source | {"limit": min(one for one in rows if one is not None)}
        settings = {**one.model_dump(), **source, "out": folder(name, what)}
        jobs.append((name, EmbedSettings(**settings)))
    return Plan(study, jobs)
