"""`semalign recipe`."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .. import encoders
from .._core.checks import counted
from .._core.documents import read_json
from .._core.files import write_atomically
from .._core.machine import check_space
from ..data import ImageTextDataset
from ..encoders import Encoder, convert_checkpoint
from ..encoders._encoder import embedding_dimension
from ..encoders._hub import download_size
from ..encoders._weights import PickledCheckpointError
from ..stores.chunks import refuse_other_contents
from ..studies import stitching, zero_shot_data
from ..studies.drawings import slug
from ..studies.inputs import read_dataset
from ..studies.report import write_json
from ..studies.settings import DatasetSettings, path_options
from ..studies.tables import Table
from ..zeroshot.prompts import load_prompts
from ._console import Console, Outcome, one_line
from ._options import command
from ._recipes import ENCODERS, Plan, Recipe, base_of, load_recipe, plan_of
from ._settings import EmbedSettings, RecipeSettings
from ._sources import IMAGE, Source, pixel_reader, read_source
from .embed import embed_source, load_for
from .migrate import check_rows, migrate
from .studies import run_study


@command(
    RecipeSettings,
    arguments=("name",),
    examples=(
        "semalign recipe rsna-zero-shot --data /data --dry-run",
        "semalign recipe rsna-zero-shot --data /data --out results/rsna",
        "semalign recipe vindr-zero-shot --data /data --encoder RAD-DINO=checkpoints/rad-dino "
        "--limit 500 --set counts=[50,100] --out results/try",
        "semalign recipe mimic-text-stitching --data /data --write run.yaml",
    ),
)
def recipe(console: Console, settings: RecipeSettings) -> Outcome:
    """Run one of the paper's experiments as a whole: embed, study, report.

    Recipes: mimic-text-stitching, rsna-vision-stitching, rsna-zero-shot, vindr-zero-shot and
    migrate. All that can be checked is checked first: data sets, labels and prompts, encoders and
    their weights, the disk. Run the same command again to go on after an interruption.
    """
    loaded = load_recipe(settings)
    if settings.write is not None:
        return _written(loaded, settings.write)
    out = settings.out or Path.cwd() / settings.name
    plan = plan_of(loaded, out, base_of(settings))
    encoder_count = sum(len(getattr(loaded, name)) for name in ENCODERS)
    console.note(
        f"{loaded.title}: {counted(len(plan.jobs), 'store')} of {counted(encoder_count, 'encoder')}"
    )
    steps = _checked(console, loaded, plan, settings, out)
    if settings.dry_run:
        return _shown(loaded, steps)
    return _run(console, loaded, plan, steps, out)


def _written(recipe: Recipe, path: Path) -> Outcome:
    # What a recipe leaves out stays out; what it says stays, be it null or empty.
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    if path.suffix == ".json":
        write_json(path, values)
    elif path.suffix in (".yaml", ".yml"):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomically(path, text.encode())
    else:
        raise ValueError(f"--write {path}: the file must end in .yaml or .json")
    run = f"semalign recipe {shlex.quote(str(path))} --out DIR"
    return Outcome({"recipe": str(path)}, f"{path}: run it with `{run}`")


# --- checks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A store to be made.

    Attributes:
        settings: of `semalign embed`.
        source: what is embedded.
        dimension: of a row; None where the encoder has to be downloaded first.
        download: bytes to download; None if that is not known.
        seconds: that an item takes; None if it was not measured.
    """

    settings: EmbedSettings
    source: Source
    dimension: int | None
    download: int | None
    seconds: float | None

    @property
    def disk(self) -> int:
        """Bytes that the store takes, as far as that is known."""
        return 4 * len(self.source.ids) * (self.dimension or 0)

    @property
    def is_done(self) -> bool:
        """Whether these settings have made the store, to its end."""
        kept = self.settings.out / "settings.json"
        return kept.is_file() and read_json(kept, dict) == self.settings.model_dump(mode="json")


def _checked(
    console: Console, recipe: Recipe, plan: Plan, settings: RecipeSettings, out: Path
) -> list[_Step]:
    """All that can go wrong, before anything takes long."""
    _check_folders(recipe)
    data: dict[str, ImageTextDataset] = {}
    sources: dict[Path, Source] = {}

    def read(settings: DatasetSettings) -> ImageTextDataset:
        """Each data set once."""
        key = settings.model_dump_json()
        if key not in data:
            console.note(f"reading {settings.path}")
            data[key] = read_dataset(settings)
        return data[key]

    for _, job in plan.jobs:
        if job.out.is_dir():
            refuse_other_contents(job.out)
        sources[job.out] = read_source(job, read)
    _check_study(recipe, plan, sources, read)
    encoders = _Encoders(console, out, settings.dry_run)
    steps = [encoders.step(name, job, sources[job.out]) for name, job in plan.jobs]
    check_space(out, sum(step.disk for step in steps if not step.is_done), "the stores")
    return steps


def _check_folders(recipe: Recipe) -> None:
    """Name all folders of data sets that are not there, and what the recipe needs."""
    data = [one for one in (recipe.dataset, recipe.anchors) if one is not None]
    folders = [one.path for one in data]
    for one in data:
        of_paths = path_options(one.reader)
        folders += [Path(value) for name, value in one.options.items() if name in of_paths]
    missing = [str(folder) for folder in dict.fromkeys(folders) if not folder.exists()]
    if missing:
        needs = f". {recipe.description.strip()}" if recipe.description else ""
        raise FileNotFoundError(f"not there: {', '.join(missing)}{needs}")


def _check_study(
    recipe: Recipe,
    plan: Plan,
    sources: Mapping[Path, Source],
    read: Callable[[DatasetSettings], ImageTextDataset],
) -> None:
    """Refuse data, labels and prompts that the study would refuse once all is embedded."""
    study: Any = plan.study

    def planned(folders: Mapping[str, Path]) -> dict[str, Source]:
        return {name: sources[folder] for name, folder in folders.items()}

    if recipe.study == "stitching":
        stitching.parts_of(study, planned(study.stores), read)
    elif recipe.study == "zero-shot":
        stores = {kind: planned(folders) for kind, folders in study.store_folders().items()}
        zero_shot_data.parts_of(study, load_prompts(study.prompts), stores, read)
    else:
        check_rows(study, len(sources[study.new].ids))


class _Encoders:
    """Loads each encoder once, to see that it can be."""

    def __init__(self, console: Console, out: Path, measure: bool):
        self._console, self._out, self._measure = console, out, measure
        self._download = cache(download_size)
        self._found: dict[tuple[str, str], _Step] = {}

    def step(self, name: str, job: EmbedSettings, source: Source) -> _Step:
        """A step, with what is known of its encoder; errors name it."""
        key = name, source.modality
        try:
            download = self._download(str(job.encoder), job.revision) if self._measure else 0
            if download != 0:
                return _Step(job, source, None, download, None)
            if key not in self._found:
                self._console.note(f"loading {name}")
                self._found[key] = self._loaded(name, job, source)
        except ValueError as error:
            raise ValueError(f"encoder {name!r}: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"encoder {name!r}: {error}") from error
        found = self._found[key]  # perhaps of other items
        where = {"encoder": found.settings.encoder, "revision": found.settings.revision}
        return replace(found, settings=job.model_copy(update=where), source=source)

    def _loaded(self, name: str, job: EmbedSettings, source: Source) -> _Step:
        converted = self._out / "checkpoints" / slug(name)
        if converted.is_dir():
            job = job.model_copy(update={"encoder": str(converted), "revision": None})
        try:
            encoder = load_for(job, source.modality)
        except PickledCheckpointError:
            if find_spec("torch") is None:
                raise
            if self._measure:  # it is converted when it is needed
                return _Step(job, source, None, 0, None)
            self._console.note(f"converting {job.encoder} into {converted}")
            convert_checkpoint(job.encoder, converted, revision=job.revision, overwrite=True)
            job = job.model_copy(update={"encoder": str(converted), "revision": None})
            encoder = load_for(job, source.modality)
        dimension = embedding_dimension(encoder, source.modality)
        seconds = _seconds_of_item(encoder, job, source) if self._measure else None
        return _Step(job, source, dimension, 0, seconds)


def _seconds_of_item(encoder: Encoder, job: EmbedSettings, source: Source) -> float:
    """How long an item takes, measured on a batch that was embedded before."""
    step = max(1, len(source.items) // job.batch_size)
    items = list(source.items)[::step][: job.batch_size]
    paths = [Path(item) for item in items] if source.modality == IMAGE else []
    with pixel_reader(paths, False, 1) as reader:
        for _ in range(2):
            start = time.perf_counter()
            encoders.embed(
                encoder,
                items,
                batch_size=job.batch_size,
                modality=source.modality,
                ids=range(len(items)),
                progress=False,
                reader=reader,
                prompt_name=job.prompt_name,
            )
    return (time.perf_counter() - start) / len(items)


# --- the plan, and its run ---------------------------------------------------------------------


def _shown(recipe: Recipe, steps: Sequence[_Step]) -> Outcome:
    """What would be done."""
    rows, values = [], []
    for step in steps:
        items, done = len(step.source.ids), step.is_done
        seconds = None if step.seconds is None or done else step.seconds * items
        values.append(
            {
                "store": str(step.settings.out),
                "encoder": step.settings.encoder,
                "items": items,
                "done": done,
                "dimension": step.dimension,
                "disk": step.disk if step.dimension else None,
                "download": step.download,
                "seconds": seconds,
            }
        )
        time_needed = "done" if done else "?" if seconds is None else _duration(seconds)
        download = "?" if step.download is None else _size(step.download) if step.download else ""
        disk = _size(step.disk) if step.dimension else "?"
        name = step.settings.out.name
        rows.append([name, step.settings.encoder, f"{items}", disk, download, time_needed])
    known = [one["seconds"] for one in values if one["seconds"] is not None]
    unknown = sum(one["seconds"] is None and not one["done"] for one in values)
    total = f"embedding takes about {_duration(sum(known))} on this machine"
    if unknown:
        total += f", and {counted(unknown, 'store')} of encoders to be downloaded or converted"
    lines = [
        f"{recipe.title}: all that was checked fits",
        *([recipe.description.strip()] if recipe.description else []),
        f"{total}; then the {recipe.study} study",
    ]
    header = ["store", "encoder", "items", "disk", "download", "time"]
    result = {"recipe": recipe.model_dump(mode="json"), "steps": values}
    return Outcome(result, "\n".join(lines), [Table("plan", header, rows)])


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _run(
    console: Console, recipe: Recipe, plan: Plan, steps: Sequence[_Step], out: Path
) -> Outcome:
    skipped = []
    for number, step in enumerate(steps, 1):
        if step.is_done:
            console.note(f"{step.settings.out} is done")
            continue
        console.note(f"store {number} of {len(steps)}: {step.settings.out.name}")
        done = embed_source(console, step.settings, step.source)
        skipped += done.values["skipped"]
    results = out / "results"
    if recipe.study == "migrate":
        found = migrate.function(console, plan.study)
    else:
        name = "stitching" if recipe.study == "stitching" else "zeroshot"
        found = run_study(name, plan.study, results, console)
    if not skipped:
        return found
    text = f"{found.text}\n{counted(len(skipped), 'image')} left out that could not be read, first:"
    text += f" {one_line(skipped[0])}"
    return Outcome({**found.values, "skipped": skipped}, text, found.tables)
