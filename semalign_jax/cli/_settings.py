"""The settings of the commands: their options, and what a settings file may hold."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .._core.typing import METHODS, Completion, Method, Normalize, RidgeUnit
from ..maps.options import OPTIONS
from ..studies.report import write_json
from ..studies.settings import METHODS as STUDY_METHODS
from ..studies.settings import (
    Count,
    DataPath,
    DatasetSettings,
    EncoderName,
    PromptSetName,
    Settings,
)

Dtype = Literal["float32", "bfloat16", "float16"]


def _no_file(path: Path) -> Path:
    if path.suffix in (".npy", ".npz", ".parquet", ".h5", ".hdf5"):
        raise ValueError(
            f"{path.name} would be a folder: a store is written, of which `semalign convert` makes "
            f"a {path.suffix} file"
        )
    return path


#: A folder that a store is written to.
StorePath = Annotated[DataPath, AfterValidator(_no_file)]
#: The fewest rows that a search among them says something about.
SEARCHED = 20


class RunSettings(Settings):
    """Settings file and output."""

    config: DataPath | None = None
    """Read settings from this file (YAML or JSON), by the names of the options with _ for -. The
    command line goes before it."""
    as_json: bool = False
    """Print one JSON object on stdout, and nothing else."""
    quiet: bool = False
    """Show no progress."""
    debug: bool = False
    """Show where an error comes from."""


class ProcessSettings(Settings):
    """Several processes."""

    distributed: bool = False
    """Share the work with other processes that run this same command."""
    coordinator: str | None = None
    """Meet the others at this address HOST:PORT of process 0. By default SLURM, Open MPI,
    Kubernetes or the TPU pod are asked."""
    process_count: Count | None = None
    """Expect so many processes in all. By default SLURM and the like are asked."""
    process_id: Annotated[int, Field(ge=0)] | None = None
    """Be the process of this number, from 0. By default SLURM and the like are asked."""
    timeout: Count | None = None
    """Count a process as dead after so many seconds of silence. By default these are 100."""


class EmbedSettings(Settings):
    """What is embedded, with what and how."""

    encoder: EncoderName
    """The encoder is the folder of a checkpoint, or its id on the Hugging Face hub."""
    inputs: tuple[DataPath, ...] = ()
    """Embed a .txt file with a text a line; or images, folders of images and quoted patterns."""
    out: StorePath
    """Write the store to this folder."""
    dataset: DatasetSettings | None = None
    """Embed a data set instead of files."""
    content: Literal["images", "texts"] | None = None
    """Embed these of the data set."""
    prompts: PromptSetName | None = None
    """Embed the texts of this prompt set instead, a name or a file."""
    split: tuple[str, ...] = ()
    """Keep this split of the data set."""
    view: tuple[str, ...] = ()
    """Keep this view position of the data set, e.g. PA."""
    one_per_study: bool = False
    """Keep only the first item of each study."""
    limit: Count | None = None
    """Embed at most so many items, drawn by their ids: of any encoder the same."""
    id_from: Literal["path", "name", "stem"] = "path"
    """Call image files by the path below the folder that was given, by the name of the file or by
    its stem."""
    batch_size: Count = 32
    """Embed so many items a step."""
    chunk_size: Count = 4096
    """Write so many items a file of the store."""
    dtype: Dtype = "float32"
    """Write numbers of this type."""
    compute_dtype: Dtype = "float32"
    """Compute with numbers of this type."""
    pooling: str | None = None
    """Make a row of the tokens in this way: cls, mean, eos, pooler or projection. By default the
    encoder's own is taken."""
    layer: int | None = None
    """Pool this hidden layer, -1 is the last. By default the encoder's output is pooled."""
    normalize: bool | None = None
    """Bring rows to length 1. By default the encoder's folder says whether."""
    prompt_name: str | None = None
    """Put this prompt of the encoder's folder before each text, e.g. query or document. By default
    the folder's default prompt is taken, if it has one."""
    revision: str | None = None
    """Take this branch, tag or commit of the hub."""
    workers: Count | None = None
    """Decode images in so many threads. By default there is one a core, at most 16."""
    processes: bool | None = None
    """Decode DICOM files in processes. By default this is done from 1000 files on."""
    skip_broken: bool = False
    """Leave out what cannot be read, list it, and exit with 1."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        spellings = {"inputs": "files", "dataset": "--dataset", "prompts": "--prompts"}
        given = [spelling for name, spelling in spellings.items() if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give what to embed as one of files, a data set (--dataset) and a prompt set "
                f"(--prompts); got {' and '.join(given) or 'none'}"
            )
        if self.dataset is not None and self.content is None:
            raise ValueError("of a data set give --images or --texts")
        if self.dataset is None:
            content = f"--{self.content}" if self.content else ""
            extra = {"split": "--split", "view": "--view", "one_per_study": "--one-per-study"}
            wrong = [spelling for name, spelling in extra.items() if getattr(self, name)]
            for spelling in filter(None, (content, *wrong)):
                raise ValueError(
                    f"{spelling} needs a data set (--dataset); files are given without an option"
                )
        return self


#: Keyword options of the four fits.
_FIT_OPTIONS = (
    "normalize",
    "ridge",
    "ridge_unit",
    "rcond",
    "scale",
    "rotation_only",
    "completion",
)


class PairSettings(Settings):
    """Two stores."""

    source: DataPath
    """Rows of the source space are in this store, or .npy file, whose rows are matched by position
    unless NAME.ids.json is beside it."""
    target: DataPath
    """Rows of the target space are in this store or .npy file."""


class FitSettings(PairSettings):
    """A fit of two stores."""

    out: DataPath
    """Write the map to this file, which is replaced if it exists."""
    method: Method = "auto"
    """Fit this kind of map; auto chooses a ridge by leave-one-out, of anchors in memory."""
    anchors: Count | None = None
    """Fit to so many pairs. By default all are taken."""
    select: Literal["random", "k-medoids", "k-means++", "leverage", "farthest"] = "random"
    """Choose these anchors in this way, by the rows of the source."""
    seed: int = 0
    """Draw everything with this seed."""
    ids: DataPath | None = None
    """Fit only to the ids in this file, one a line or a JSON list."""
    normalize: Normalize | None = None
    """Normalise both spaces in this way before the fit. By default it is isotropic for the
    orthogonal maps, which match neither offset nor scale, and none for the others."""
    ridge: float | None = None
    """Penalise squared weights by so much. By default there is no penalty."""
    ridge_unit: RidgeUnit | None = None
    """Take the ridge in this unit. By default it is absolute."""
    rcond: float | None = None
    """Leave out singular values below this share of the largest."""
    scale: bool | None = None
    """Give an orthogonal map a scale."""
    rotation_only: bool | None = None
    """Exclude reflections from an orthogonal map."""
    completion: Completion | None = None
    """Fill directions that the anchors leave open in this way. By default an orthogonal map stays
    orthogonal."""
    batch_rows: Count = 4096
    """Read so many rows at once."""
    unpaired_source: DataPath | None = None
    """More rows of the source space, without a partner, are in this store or .npy file. With these
    the map is affine, with a penalty that is found."""
    unpaired_target: DataPath | None = None
    """More rows of the target space, without a partner, are in this store or .npy file."""
    unpaired_rows: Count = 10_000
    """Take at most so many rows of either of these stores, drawn at random."""

    @model_validator(mode="before")
    @classmethod
    def _affine_if_unpaired(cls, given: Any) -> Any:
        unpaired = isinstance(given, dict) and given.get("unpaired_source") is not None
        return {"method": "affine"} | given if unpaired else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.select != "random" and self.anchors is None:
            raise ValueError("--select needs the number of anchors (--anchors)")
        if self.method == "ortho" and self.ridge and not self.scale:
            raise ValueError(
                "--ridge changes nothing of an ortho map without --scale, as its length is fixed; "
                "leave it out"
            )
        options = [name for name in _FIT_OPTIONS if getattr(self, name) is not None]
        if self.method == "auto" and options:
            takes = [name for name in METHODS if options[0] in OPTIONS[name]]
            raise ValueError(
                f"--{options[0].replace('_', '-')} is not for --method auto, which finds its "
                f"penalty by itself; give --method {' or '.join(takes)}"
            )
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out {self.out.name}: a map is a .safetensors file")
        if (self.unpaired_source is None) != (self.unpaired_target is None):
            raise ValueError("--unpaired-source and --unpaired-target: give both of them")
        if self.unpaired_source is not None:
            for name in ([] if self.method == "affine" else ["method"]) + options:
                raise ValueError(
                    f"--{name.replace('_', '-')} and --unpaired-source: a fit with unpaired rows "
                    "is affine and finds its penalty by itself; leave one of them out"
                )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options of the fit; a method refuses those that it does not have."""
        fields = ((name, getattr(self, name)) for name in _FIT_OPTIONS)
        given = {name: value for name, value in fields if value is not None}
        return usual_options(self.method) | given


def usual_options(method: Method, normalize: Normalize | None = None) -> dict[str, Any]:
    """The options of a map in the commands, with this normalisation if one is given."""
    given = {} if normalize is None else {"normalize": normalize}
    return {k: v for k, v in STUDY_METHODS[method].items() if k != "method"} | given


class ApplySettings(Settings):
    """A map applied to a store."""

    map: DataPath
    """The map is in this file."""
    store: DataPath
    """Rows of the map's source space are in this store or .npy file."""
    out: StorePath
    """Write the new store to this folder."""
    dtype: Dtype | None = None
    """Write numbers of this type. By default it is that of the old store, at most float32."""
    chunk_size: Count = 16384
    """Write so many rows a file of the new store."""


class MigrateSettings(Settings):
    """A search index that moves to another encoder."""

    old: DataPath
    """All rows by the old encoder are in this store or .npy file."""
    new: DataPath
    """Rows by the new encoder are in this store or .npy file, of the sample at least."""
    out: StorePath
    """Write the map, the measurements and the mapped rows to this folder."""
    sample: Count = 2000
    """Fit the map to so many rows that both have, at most four fifths of them."""
    method: Method = "affine"
    """Fit this kind of map; the affine one chooses its ridge by leave-one-out."""
    queries: DataPath | None = None
    """Search with the rows of this store or .npy file, by the new encoder. By default rows that the
    map was not fitted to are searched with."""
    search_rows: Annotated[int, Field(ge=SEARCHED)] = 20_000
    """Search among so many of the rows that both have and the map was not fitted to."""
    search_queries: Count = 1000
    """Search with so many rows."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Recommend the mapped rows if recall@10 is surely at least this."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """Embedding 1000 rows costs so much, in any unit."""
    write: tuple[Literal["npy", "npz", "parquet", "h5"], ...] = ()
    """Write the mapped rows, of length 1, as files of these formats. By default they are not
    mapped."""
    seed: int = 0
    """Draw everything with this seed."""


class SweepSettings(PairSettings):
    """A sweep over methods, anchor counts and seeds for one pair of stores."""

    out: DataPath | None = None
    """Write the results to this folder. By default they are only shown."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = (*METHODS, "auto")
    """Fit these kinds of maps."""
    anchors: Annotated[tuple[Count, ...], Field(min_length=1)] = (50, 100, 200, 400)
    """Fit to so many anchors."""
    seeds: Count = 5
    """Draw anchors so many times."""
    normalize: Normalize | None = None
    """Normalise both spaces in this way before the fits. By default it is isotropic for the
    orthogonal maps and none for the others."""
    dataset: DatasetSettings | None = None
    """Take patients and splits from the data set of the pairs, so that no patient is on both
    sides."""
    test_split: str | None = None
    """Hold out this split of the data set. By default patients are drawn at random."""
    test_ids: DataPath | None = None
    """Hold out the ids of this file instead, one a line or a JSON list."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Hold out this share, if it is drawn."""
    test_rows: Annotated[int, Field(ge=2)] = 2000
    """Score at most so many held-out pairs."""
    seed: int = 0
    """Draw everything with this seed."""

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Self:
        if self.test_split is not None and self.dataset is None:
            raise ValueError("--test-split needs a data set (--dataset)")
        if self.test_ids is not None and self.dataset is not None:
            raise ValueError("--test-ids and --dataset: give one of them")
        return self


class StudySettings(Settings):
    """Results and other settings."""

    out: DataPath
    """Write the results to this folder; a run that was interrupted goes on there."""
    settings: dict[str, Any] = {}
    """Set anything, with dots for inner keys, e.g. methods.ridge.ridge=2.0; a value that is JSON is
    read as such."""


class ReportSettings(Settings):
    """A report of several studies."""

    results: Annotated[tuple[DataPath, ...], Field(min_length=1)]
    """Report these folders of results, or results.json files."""
    out: DataPath = Path("report.html")
    """Write this HTML file."""


class DemoSettings(Settings):
    """The demo."""

    out: DataPath = Path("semalign-demo")
    """Write the results to this folder."""
    full: bool = False
    """Take all anchor counts, draws and resamples, which takes longer."""


class RecipeSettings(Settings):
    """An experiment as a whole."""

    name: str
    """Run this recipe, by its name, or a file that --write wrote."""
    data: DataPath | None = None
    """The data sets are in this folder, by the names that the recipe has for theirs. By default it
    is the working directory, or the folder of the file."""
    out: DataPath | None = None
    """Write stores, results and the report to this folder; a run that was stopped goes on there."""
    encoder: dict[str, EncoderName] = {}
    """Take this folder of a checkpoint, or id on the hub, for an encoder of the recipe."""
    only: tuple[str, ...] = ()
    """Take only this encoder of the recipe."""
    limit: Count | None = None
    """Embed at most so many items of each data set, to try the recipe out."""
    dry_run: bool = False
    """Check everything that can be checked, and show the plan with downloads, disk and time."""
    write: DataPath | None = None
    """Write the recipe to this file (YAML or JSON), to edit and run it, and do nothing else."""
    settings: dict[str, Any] = {}
    """Set anything of the study, with dots for inner keys, e.g. counts=[50,100]."""

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if self.out is None and self.write is None and not self.dry_run:
            raise ValueError("give a folder for the results (--out), or --dry-run or --write")
        return self


class InfoSettings(Settings):
    """What is asked for."""

    path: str
    """Look at this file or folder, or at the shipped prompt set of this name."""


class DoctorSettings(Settings):
    """Nothing is asked for."""


class VerifySettings(Settings):
    """What is checked."""

    store: DataPath
    """The store is in this folder."""


class ConvertSettings(Settings):
    """A conversion."""

    source: DataPath
    """Read this store, or this file of embeddings."""
    out: DataPath
    """Write this file of embeddings, or a store in this folder."""
    embeddings: str = "embeddings"
    """The embeddings have this name in the file."""
    ids: str = "ids"
    """The ids have this name in the file."""
    describe: dict[str, Any] = {}
    """Keep in the store what made the embeddings."""


class ConvertCheckpointSettings(Settings):
    """A conversion of a checkpoint."""

    source: EncoderName
    """The pickled checkpoint is in this folder, or has this id on the Hugging Face hub."""
    out: DataPath | None = None
    """Write to this folder, with the small files of the checkpoint. By default the folder itself
    gets the safetensors files."""
    revision: str | None = None
    """Take this branch, tag or commit of the hub."""
    overwrite: bool = False
    """Replace safetensors files that are there."""


def save_settings(settings: Settings, path: Path) -> None:
    """Write resolved settings, to be used again with ``--config``."""
    write_json(path, settings.model_dump(mode="json"))
