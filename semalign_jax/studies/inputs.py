"""What a study reads: labelled images of a data set in parts, and their embeddings by id."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import data
from .._core.checks import counted, first_few
from .._core.files import content_hash
from .._core.trees import by_value
from ..data import ImageTextDataset, Label
from ..data._dataset import known_groups, left_out_sentence
from ..metrics.by_name import ScoreMetric
from ..stores.store import EmbeddingStore, open_store
from .demo import Embeddings
from .settings import READERS, DatasetSettings, PatientSplit, StudySettings

#: Embeddings by row: of a user, or shipped ones.
Store: TypeAlias = EmbeddingStore | Embeddings


@by_value
class Part(NamedTuple):
    """One part of the images.

    Attributes:
        ids: of the images [n].
        patients: of the images [n].
        labels: classes [n], or 0/1 [n, labels].
        known: which labels are known [n, labels]; None for classes.
    """

    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    known: np.ndarray | None


@dataclass(frozen=True, eq=False)
class StudyData:
    """What encoders are compared on; embeddings are read when they are needed.

    Attributes:
        names: of the classes or labels.
        task: "single-label" or "multi-label".
        parts: labelled parts by name.
        anchors: ids and patients of what anchors are drawn from.
        stores: setting -> name of an encoder -> its embeddings.
        notes: what a reader should know.
        doubts: what a reader should doubt.
    """

    names: tuple[str, ...]
    task: str
    parts: Mapping[str, Part]
    anchors: tuple[np.ndarray, np.ndarray]
    stores: Mapping[str, Mapping[str, Store]]
    notes: Sequence[str]
    doubts: Sequence[str]

    def dimensions(self, setting: str) -> dict[str, int]:
        """Of the encoders of a setting."""
        return {name: store.dimension for name, store in self.stores[setting].items()}

    def embeddings(self, setting: str, name: str, ids: np.ndarray) -> np.ndarray:
        """Rows by id ``[n, d]``, float32 (or float64 if they are stored so).

        Raises:
            ValueError: if a row is not finite.
        """
        store = self.stores[setting][name]
        places = {key: row for row, key in enumerate(store.ids)}
        rows = store.rows(np.array([places[key] for key in ids]))
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{setting}.{name}: the store holds NaN or infinity in {counted(bad.size, 'row')}, "
                f"first in that of {str(ids[bad[0]])!r}: embed it again, or leave it out"
            )
        return rows if rows.dtype == np.float64 else rows.astype(np.float32)

    def digests(self) -> dict[str, Any]:
        """Of all that scores rest on; not of where the data lie."""

        def of(store: Store) -> str:
            return digest(store.values) if isinstance(store, Embeddings) else store.checksum[:16]

        return {
            "stores": {
                setting: {name: of(store) for name, store in stores.items()}
                for setting, stores in self.stores.items()
            },
            "parts": {name: digest(*part) for name, part in self.parts.items()},
            "anchors": digest(*self.anchors),
            "names": list(self.names),
        }


def functions_digest(
    metrics: Mapping[str, ScoreMetric], named: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """What kept scores of one's own metrics rest on: their source, where Python finds it.

    Args:
        metrics: name -> function.
        named: metrics that the settings name.

    Raises:
        TypeError: for what is no function.
        ValueError: for a name of `named`.
    """
    found = {}
    for name, function in metrics.items():
        if not callable(function):
            raise TypeError(f"metrics[{name!r}] must be a function; got {function!r}")
        if name in named:
            raise ValueError(f"metrics: {name!r} is one of the settings; call yours otherwise")
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):  # e.g. typed into a shell, or an object that is called
            text = getattr(function, "__qualname__", type(function).__qualname__)
        found[name] = digest(text.encode())
    return {"metrics": found} if found else {}


def digest(*parts: np.ndarray | bytes | None) -> str:
    """A short hash of arrays, their dtypes and shapes, and of bytes."""
    return content_hash(parts)[:16]


# --- data sets and stores ----------------------------------------------------------------------


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


def open_stores(key: str, folders: Mapping[str, Path]) -> dict[str, EmbeddingStore]:
    """Open folders of embeddings.

    Args:
        key: of the settings, for messages.
        folders: name -> folder.

    Raises:
        FileNotFoundError: if a folder is missing, or is no store.
        ValueError: if an id occurs twice in a store.
    """
    opened = {}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{key}.{name}: there is no folder {folder}")
        store = open_store(folder)
        if len(set(store.ids)) < len(store):
            twice = next(key for key, number in Counter(store.ids).items() if number > 1)
            raise ValueError(f"{key}.{name}: {folder} has the id {twice!r} twice")
        opened[name] = store
    return opened


def in_all_stores(
    dataset: ImageTextDataset, stores: Mapping[str, Any], where: str
) -> ImageTextDataset:
    """The images that have a row in all stores.

    Raises:
        ValueError: if there are none.
    """
    known = set(dataset.ids).intersection(*(store.ids for store in stores.values()))
    if not known:
        own = "; ".join(
            f"{name} has {first_few(map(repr, store.ids))}" for name, store in stores.items()
        )
        raise ValueError(
            f"no image of {where} is in all stores: its ids are "
            f"{first_few(map(repr, dataset.ids))}; {own}"
        )
    return dataset.select(np.array([key in known for key in dataset.ids], bool))


# --- parts -------------------------------------------------------------------------------------


def rows_of_parts(
    dataset: ImageTextDataset,
    usable: np.ndarray,
    splits: Mapping[str, Sequence[str] | None],
    patient_split: PatientSplit | None,
    where: str,
    *,
    stratify: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Rows of parts, which are splits of the data set or have no patient in common.

    Args:
        dataset: all images.
        usable: rows that can be used.
        splits: part, which is the name of a setting -> its splits; None leaves it out.
        patient_split: how patients are split instead.
        where: what the data set is called in messages.
        stratify: labels of the usable rows that a split of patients keeps balanced.

    Raises:
        ValueError: for a split without an image that can be used, and too few patients.
    """
    if patient_split is not None:
        patients = [dataset.patients[row] for row in usable]
        fractions, seed = patient_split.fractions(), patient_split.seed
        try:
            found = data.patient_split(patients, fractions, seed, stratify=stratify)
        except ValueError as error:
            raise ValueError(f"patient_split of {where}: {error}") from None
        return {name: usable[rows] for name, rows in found.parts.items()}
    there = np.array(dataset.splits)[usable]
    wanted = {name: chosen for name, chosen in splits.items() if chosen is not None}
    for name, chosen in wanted.items():
        for split in chosen:
            if split not in there:
                raise ValueError(
                    f"{name}: {where} has no image of the split {split!r} that can be used; its "
                    f"splits are {known_groups(dataset.splits)}"
                )
    return {name: usable[np.isin(there, chosen)] for name, chosen in wanted.items()}


def check_anchor_counts(counts: Sequence[int], number: int, what: str) -> None:
    """Refuse more anchors than there are."""
    if max(counts) > number:
        raise ValueError(f"counts: {max(counts)} anchors are more than the {number} {what}")


def note_of_left_out(dataset: ImageTextDataset) -> list[str]:
    """A note on what the reader of a data set left out, if anything."""
    left_out = dataset.left_out
    return [f"{dataset.name}: {left_out_sentence(len(dataset), left_out)}."] if left_out else []


def size(part: ImageTextDataset, purpose: str, what: str = "image") -> str:
    """Numbers of images and patients, for a note."""
    return f"{counted(len(part), what)} of {counted(len(set(part.patients)), 'patient')} {purpose}"


# --- labels ------------------------------------------------------------------------------------


def binary_labels(
    part: ImageTextDataset, columns: Sequence[int], settings: StudySettings
) -> data.BinaryLabels:
    """Labels of some columns, and which are known, [n, columns] each."""
    names = tuple(part.label_names[column] for column in columns)
    chosen = replace(part, labels=part.labels[:, columns], label_names=names)
    return data.binary_labels(chosen, settings.uncertain, blank=settings.blank)


def not_of_one_label(
    part: ImageTextDataset, columns: Sequence[int], settings: StudySettings
) -> int:
    """How many images have none, several or uncertain ones of the labels."""
    labels, known = binary_labels(part, columns, settings)
    uncertain = (part.labels[:, columns] == Label.UNCERTAIN) & ~known
    return int(((((labels == 1) & known).sum(axis=1) != 1) | uncertain.any(axis=1)).sum())


def labelled(
    name: str,
    part: ImageTextDataset,
    columns: Sequence[int],
    task: str,
    settings: StudySettings,
    where: str,
) -> Part:
    """The labels of a part.

    Raises:
        ValueError: if the task is "single-label" and an image has not exactly one of the labels.
    """
    ids, patients = np.array(part.ids), np.array(part.patients)
    labels, known = binary_labels(part, columns, settings)
    if task == "multi-label":
        return Part(ids, patients, labels, known)
    positive = (labels == 1) & known
    bad = np.flatnonzero(positive.sum(axis=1) != 1)
    if bad.size:
        wanted = first_few([part.label_names[column] for column in columns])
        # Also those outside of the chosen labels.
        has = np.flatnonzero(part.labels[bad[0]] == Label.POSITIVE)
        found = first_few([part.label_names[i] for i in has]) or "no label"
        raise ValueError(
            f"{where}: {counted(bad.size, f'image of {name} does', f'images of {name} do')} not "
            f"have exactly one of the labels {wanted}, as a single-label task needs; the first is "
            f"{part.ids[bad[0]]!r} with {found}. Leave these rows out, or take a multi-label task"
        )
    return Part(ids, patients, positive.argmax(axis=1).astype(np.int32), None)


def one_valued(part: Part, names: Sequence[str]) -> list[str]:
    """Labels that all known images of a part have, or none has."""
    labels, known = part.labels, part.known
    if labels.ndim == 1:
        labels = labels[:, None] == np.arange(len(names))
    known = np.ones(labels.shape, bool) if known is None else known
    both = ((labels == 1) & known).any(axis=0) & ((labels == 0) & known).any(axis=0)
    return [name for name, fine in zip(names, both, strict=True) if not fine]


def check_tested(part: Part, names: Sequence[str], where: str) -> None:
    """Refuse test images on which no score is defined."""
    if len(one_valued(part, names)) == len(names):
        raise ValueError(
            f"{where}: every label has the same value in all {len(part.ids)} test images, so that "
            "no score is defined: choose other splits or labels"
        )
