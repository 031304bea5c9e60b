"""What `semalign embed` embeds: texts and images from files, data sets and prompt sets."""

import glob
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._core.files import content_hash
from ..data import ImageTextDataset, read_pixels
from ..data._dataset import known_groups, left_out_sentence
from ..data._files import find_files
from ..data.pixels import is_dicom
from ..distributed.processes import jointly
from ..studies.cells import run_cells
from ..studies.inputs import read_dataset
from ..studies.settings import DatasetSettings
from ..zeroshot.prompts import load_prompts, prompt_ids, prompt_texts
from ._settings import EmbedSettings
from ._signals import starting_processes

TEXT, IMAGE = "text", "image"
_TEXT_SUFFIXES = (".txt",)
_TABLE_SUFFIXES = (".csv", ".gz", ".parquet")
#: Of files that the encoders' preprocessing reads itself.
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm")
_DICOM = (".dcm", ".dicom")
#: From so many DICOM files on, processes that decode are worth their start of some seconds.
_MANY = 1000
#: Images that are checked at a time.
_CHECKED = 64


@dataclass(frozen=True)
class Source:
    """What is to be embedded.

    Attributes:
        modality: "text" or "image".
        items: n texts or paths.
        ids: n ids.
        skipped: what could not be read so far, a message each.
        left_out: number of items without a text.
        why: what the reader of the data set left out, a sentence.
    """

    modality: str
    items: Sequence[str | Path]
    ids: Sequence[str]
    skipped: Sequence[str] = ()
    left_out: int = 0
    why: str = ""


def read_source(
    settings: EmbedSettings,
    read: Callable[[DatasetSettings], ImageTextDataset] = read_dataset,
) -> Source:
    """Find the items that the settings name; `read` reads a data set."""
    if settings.prompts is not None:
        prompt_set = load_prompts(settings.prompts)
        return Source(TEXT, prompt_texts(prompt_set).texts, prompt_ids(prompt_set))
    if settings.dataset is not None:
        return _of_dataset(settings, read(_how_to_read(settings, settings.dataset)))
    return _limited(_files(settings.inputs, settings.id_from), settings.limit)


def _limited(source: Source, limit: int | None) -> Source:
    """At most so many items, those of the smallest hashes of their ids."""
    if limit is None:
        return source
    order = sorted(range(len(source.ids)), key=lambda row: content_hash([source.ids[row]]))
    rows = sorted(order[:limit])
    items, ids = ([values[row] for row in rows] for values in (source.items, source.ids))
    return replace(source, items=items, ids=ids)


def _how_to_read(settings: EmbedSettings, dataset: DatasetSettings) -> DatasetSettings:
    if not settings.skip_broken:
        return dataset
    options = {"on_error": "skip", **dataset.options}
    return dataset.model_copy(update={"options": options})


def _of_dataset(settings: EmbedSettings, data: ImageTextDataset) -> Source:
    kept = np.ones(len(data), bool)
    for name, values, wanted in (
        ("split", data.splits, settings.split),
        ("view", data.views, settings.view),
    ):
        missing = [value for value in wanted if value not in values]
        if missing:
            raise ValueError(f"{name} {missing[0]!r}: {data.name} has only {known_groups(values)}")
        if wanted:
            kept &= np.isin(values, wanted)
    texts = settings.content == "texts"
    has = data.has_text if texts else np.array([bool(image) for image in data.images])
    left_out = int((kept & ~has).sum())
    kept &= has
    if settings.one_per_study:
        first: dict[str, int] = {}
        for row in np.flatnonzero(kept).tolist():
            first.setdefault(data.studies[row], row)
        kept = np.isin(np.arange(len(data)), list(first.values()))
    if not kept.any():
        option = "; the option reports (of mimic-cxr) or text (of table) says where they are"
        hint = option if texts and not data.has_text.any() else ""
        raise ValueError(f"{data.name}: no {settings.content} to embed are left{hint}")
    why = left_out_sentence(len(data), data.left_out) if data.left_out else ""
    data = data.select(kept)
    items = data.texts if texts else [Path(image) for image in data.images]
    found = Source(TEXT if texts else IMAGE, items, data.ids, data.skipped, left_out, why)
    return _limited(found, settings.limit)


def _files(inputs: Sequence[Path], id_from: str) -> Source:
    if any(path.suffix.lower() in _TABLE_SUFFIXES for path in inputs):
        raise ValueError(
            f"{inputs[0]} is a table: give it as --dataset table --path {inputs[0]} with "
            "--option id=COLUMN and --option text=COLUMN or image=COLUMN"
        )
    if any(path.suffix.lower() in _TEXT_SUFFIXES for path in inputs):
        if len(inputs) > 1:
            raise ValueError("give one text file alone: its lines are called by their numbers")
        return _lines(inputs[0])
    found = dict(pair for path in inputs for pair in _images(path, id_from))
    called: dict[str, Path] = {}
    above = "embed the folder above them, whose paths differ"
    for file, name in found.items():
        if called.setdefault(name, file) != file:
            advice = above if id_from == "path" else "give --id-from path"
            raise ValueError(f"{called[name]} and {file} are both called {name!r}: {advice}")
    return Source(IMAGE, list(found), list(found.values()))


def _lines(path: Path) -> Source:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: byte {error.start}") from None
    numbered = [(str(n), line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no text")
    ids, texts = zip(*numbered, strict=True)
    return Source(TEXT, texts, ids, left_out=len(lines) - len(texts))


def _images(path: Path, id_from: str) -> Iterator[tuple[Path, str]]:
    """Files and what they are called."""
    if path.is_dir():
        files = [Path(name) for name in find_files(path, (*_PICTURES, *_DICOM))]
        if not files:
            raise ValueError(f"{path}: no images in this folder ({', '.join(_PICTURES + _DICOM)})")
        base = path
    elif path.is_file():
        files, base = [path], path.parent
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"{path}: there is no such file or folder, and nothing matches")
        base = _fixed_part(path)
    for file in files:
        names = {"path": file.relative_to(base).as_posix(), "name": file.name, "stem": file.stem}
        yield file, names[id_from]


def _fixed_part(pattern: Path) -> Path:
    """The folder of a pattern above its first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


# Images.


@dataclass(frozen=True)
class DicomReader:
    """Reads DICOM files as a viewer shows them; leaves others to the encoder's preprocessing.

    Attributes:
        decode: from a path to pixels.
        fingerprint: says that a store was made so.
    """

    decode: Callable[[Path], np.ndarray] = field(repr=False)
    fingerprint: str = "DICOM by semalign_jax.data.read_pixels, 8 bits, rules 2"

    def __call__(self, path: Path) -> Any:
        """Pixels, or the path itself."""
        with open(path, "rb") as file:
            start = file.read(132)
        return self.decode(path) if is_dicom(start) else path


@contextmanager
def pixel_reader(
    images: Sequence[Path], processes: bool | None, workers: int
) -> Iterator[DicomReader | None]:
    """What reads images before they are preprocessed; None if the preprocessing reads them all.

    Args:
        images: paths.
        processes: whether other processes decode DICOM files, which hold Python's lock meanwhile;
            None: if there are many.
        workers: number of these.
    """
    others = [path for path in images if path.suffix.lower() not in _PICTURES]
    if not others:
        yield None
        return
    if processes is None:
        processes = workers > 1 and len(others) >= _MANY
    if not processes:
        yield DicomReader(read_pixels)
        return
    # Spawned: JAX has threads, which a fork would break.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        with starting_processes():  # each call starts one, as long as none is idle
            for _ in range(workers):
                pool.submit(os.getpid)
        yield DicomReader(lambda path: _told_here(*pool.submit(_decode, path).result()))


def _decode(path: Path) -> tuple[np.ndarray, list[str]]:
    """Pixels and the warnings about them, which belong on the stderr of the command."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        return read_pixels(path), [str(one.message) for one in found]


def _told_here(pixels: np.ndarray, messages: Sequence[str]) -> np.ndarray:
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return pixels


def find_broken(
    source: Source, prepare: Any, reader: DicomReader | None, out: Path, workers: int
) -> dict[int, str]:
    """Read all images once, each in one of the processes, and find those that cannot be embedded.

    A store knows its items before the first is written, so this goes before. What was checked is
    kept in a hidden file of the store's folder, one of each process: an interrupted run of as many
    processes does not check it again.

    Args:
        source: the images.
        prepare: the encoder's preprocessing.
        reader: of `pixel_reader`.
        out: folder of the store.
        workers: number of threads.

    Returns:
        Row -> why it cannot be embedded, in ascending order.
    """

    def why(row: int) -> str | None:
        item = source.items[row]
        try:
            prepare(item if reader is None else reader(Path(item)))
        except ModuleNotFoundError:  # the file is not to blame
            raise
        except Exception as error:  # decoders raise many kinds
            message = str(error) or type(error).__name__
            return message if str(item) in message else f"{item}: {message}"
        return None

    names = "\n".join(f"{key}\0{item}" for key, item in zip(source.ids, source.items, strict=True))
    digest = content_hash([names])
    settings = {"images": digest, "preprocessing": prepare.fingerprint}
    out.mkdir(parents=True, exist_ok=True)
    count = len(source.items)
    with (
        jointly("the check of the images") as section,
        ThreadPoolExecutor(workers, thread_name_prefix="check") as pool,
    ):

        def check(start: int) -> list[list[Any]]:
            rows = range(start, min(start + _CHECKED, count))
            return [[r, w] for r, w in zip(rows, pool.map(why, rows), strict=True) if w is not None]

        of_process = f"-{section.index}-of-{section.count}" if section.count > 1 else ""
        blocks = run_cells(
            list(range(0, count, _CHECKED))[section.index :: section.count],
            check,
            out / f".checked{of_process}.jsonl",
            settings=settings,
            description="check images",
        )
        own = [found for block in blocks for found in block]
        lists = section.exchange(own)
    return dict(sorted(found for one in lists for found in one))
