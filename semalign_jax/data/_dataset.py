"""The one type that all readers return, its summary, and the policies for its labels."""

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from .._core import checks
from .._core.ids import id_texts
from .._core.trees import by_value

_SHOWN = 10  # problems or ids in one message
_GROUPS = 20  # names of splits or views in a summary
#: Fields of a data set with a text for each image.
_COLUMNS = ("ids", "patients", "studies", "images", "texts", "splits", "views")


class DatasetError(ValueError):
    """A data set on disk is not as documented; the message names file and row.

    Attributes:
        reason: what rows and files with this problem are counted as, e.g. "without image".
    """

    def __init__(self, message: object, reason: str = "that cannot be read") -> None:
        super().__init__(message)
        self.reason = reason


class Label(enum.IntEnum):
    """Codes of a label table. The first three are those of the CheXpert labeller."""

    POSITIVE = 1
    NEGATIVE = 0
    UNCERTAIN = -1
    BLANK = -2  # not mentioned, or not labelled


def codes_of(
    found: Collection[str] | None, names: Iterable[str], absent: Label = Label.NEGATIVE
) -> list[Label]:
    """Codes of labels of which those `found` are positive; all are blank if that is not known."""
    if found is None:
        return [Label.BLANK for _ in names]
    return [Label.POSITIVE if name in found else absent for name in names]


class Box(NamedTuple):
    """A rectangle around a finding, in pixels of the stored image.

    Attributes:
        label: the finding.
        reader: who drew it; empty if that is not known.
        x_min: left edge.
        y_min: upper edge.
        x_max: right edge.
        y_max: lower edge.
    """

    label: str
    reader: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float


class LabelCounts(NamedTuple):
    """How many images have each code of one label."""

    positive: int
    negative: int
    uncertain: int
    blank: int


class DatasetSummary(NamedTuple):
    """Counts of a data set; `str` gives a table.

    Attributes:
        name: of the data set.
        images: number of images.
        patients: number of distinct patients.
        studies: number of distinct studies.
        texts: number of images with a text.
        boxes: number of boxes.
        splits: images of each split.
        views: images of each view.
        labels: counts of each label.
        skipped: number of rows and files that were left out because of a problem.
        left_out: why rows and files were left out -> how many.
    """

    name: str
    images: int
    patients: int
    studies: int
    texts: int
    boxes: int
    splits: dict[str, int]
    views: dict[str, int]
    labels: dict[str, LabelCounts]
    skipped: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {checks.counted(self.images, 'image')}, "
            f"{checks.counted(self.studies, 'study', 'studies')}, "
            f"{checks.counted(self.patients, 'patient')}, "
            f"{checks.counted(self.texts, 'image with text', 'images with text')}, "
            f"{checks.counted(self.boxes, 'box', 'boxes')}, {self.skipped} skipped"
        ]
        if self.left_out:
            lines.append(left_out_sentence(self.images, self.left_out))
        for title, counts in (("splits", self.splits), ("views", self.views)):
            parts = ", ".join(f"{name or 'unknown'} {count}" for name, count in counts.items())
            # Of a column that was mistaken for this one, the values are not shown.
            many = len(counts) > _GROUPS
            lines.append(f"{title}: {f'{len(counts)} different ones' if many else parts}")
        if self.labels:
            width = max(len(name) for name in self.labels)
            lines.append(
                f"{'label':{width}} {'positive':>9} {'negative':>9} {'uncertain':>9} {'blank':>9}"
            )
            for name, counts in self.labels.items():
                lines.append(f"{name:{width}} " + " ".join(f"{count:9}" for count in counts))
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageTextDataset:
    """Images with patients, texts and labels; entry i of every field belongs to image i.

    Attributes:
        name: of the data set.
        ids: n image ids, all different.
        patients: n patient ids. Ids of images, patients and studies are text; what other programs
            write as 7.0 is "7".
        studies: n study ids; images of one study share a report.
        images: n paths of image files.
        texts: n texts; empty where there is none.
        splits: n names of the data set's own splits; empty where there is none.
        views: n view positions; empty where unknown.
        labels: int8 [n, len(label_names)] of `Label` codes, read-only.
        label_names: names of the columns of `labels`.
        boxes: n tuples of boxes, or empty if the data set has none.
        skipped: what was left out while reading because of a problem, one message each.
        left_out: why rows and files were left out -> how many, those that `skipped` lists and
            those that were not asked for.

    Raises:
        DatasetError: if lengths do not agree, an id is not unique, a patient id is empty, an id is
            neither text nor a whole number, or `labels` are not integer codes of `Label`.
        TypeError: if `labels` are a masked array, or of another byte order.
    """

    name: str
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    studies: tuple[str, ...]
    images: tuple[str, ...]
    texts: tuple[str, ...]
    splits: tuple[str, ...]
    views: tuple[str, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...] = ()
    skipped: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ids", "patients", "studies"):
            try:
                texts = id_texts(name, getattr(self, name), empty=True)
            except ValueError as error:
                raise DatasetError(error) from None
            object.__setattr__(self, name, tuple(texts))
        n = len(self.ids)
        for name in (*_COLUMNS, "boxes"):
            length = len(getattr(self, name))
            if length != n and not (name == "boxes" and length == 0):
                raise DatasetError(
                    f"{name} has {checks.counted(length, 'entry', 'entries')}; expected {n}, one "
                    "per id"
                )
        labels = np.asarray(checks.host_array("labels", self.labels))
        if labels.shape != (n, len(self.label_names)):
            raise DatasetError(
                f"labels must have shape ({n}, {len(self.label_names)}), one row per id and one "
                f"column per name; got {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or not np.isin(labels, list(Label)).all():
            raise DatasetError("labels must be the integer codes of Label: 1, 0, -1 or -2")
        if len(set(self.label_names)) != len(self.label_names):
            raise DatasetError("label_names are not all different")
        if len(set(self.ids)) != n:
            twice = [name for name, count in Counter(self.ids).items() if count > 1]
            raise DatasetError(
                f"{checks.counted(len(twice), 'id is', 'ids are')} not unique: "
                f"{checks.first_few(twice)}"
            )
        if "" in self.patients:
            index = self.patients.index("")
            raise DatasetError(f"image {self.ids[index]} has no patient id")
        labels = labels.astype(np.int8)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {checks.counted(len(self), 'image')}, "
            f"{checks.counted(len(self.label_names), 'label')}>"
        )

    @property
    def has_text(self) -> np.ndarray:
        """Which images have a text: bool [n]."""
        return np.array([bool(text) for text in self.texts], bool)

    def select(self, rows: Any) -> "ImageTextDataset":
        """The images of some rows, in that order.

        Args:
            rows: integer indices, or a boolean mask [n].

        Raises:
            TypeError: if `rows` are neither integers nor booleans.
            ValueError: if a mask has another length than n.
            IndexError: if an index is out of range.
        """
        n = len(self)
        index = np.asarray(rows)
        if index.size == 0 and index.dtype != np.bool_:
            index = index.astype(np.int64)
        if index.dtype == np.bool_:
            if index.shape != (n,):
                raise ValueError(f"rows must be a mask of shape ({n},); got {index.shape}")
            index = np.flatnonzero(index)
        if not np.issubdtype(index.dtype, np.integer) or index.ndim != 1:
            raise TypeError(f"rows must be a list of integers or a boolean mask; got {index.dtype}")
        if index.size and not (0 <= index.min() and index.max() < n):
            raise IndexError(f"rows must be in 0..{n - 1}; got {index.min()}..{index.max()}")
        picked = index.tolist()
        changes: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in picked) for name in _COLUMNS
        }
        if self.boxes:
            changes["boxes"] = tuple(self.boxes[i] for i in picked)
        return replace(self, labels=self.labels[index], **changes)

    def summary(self) -> DatasetSummary:
        """Counts of images, patients, splits, views and label codes."""
        order = (Label.POSITIVE, Label.NEGATIVE, Label.UNCERTAIN, Label.BLANK)
        return DatasetSummary(
            name=self.name,
            images=len(self),
            patients=len(set(self.patients)),
            studies=len(set(self.studies)),
            texts=sum(map(bool, self.texts)),
            boxes=sum(map(len, self.boxes)),
            splits=dict(sorted(Counter(self.splits).items())),
            views=dict(sorted(Counter(self.views).items())),
            labels={
                name: LabelCounts(*(int((column == code).sum()) for code in order))
                for name, column in zip(self.label_names, self.labels.T, strict=True)
            },
            skipped=len(self.skipped),
            left_out=dict(self.left_out),
        )


@by_value
class BinaryLabels(NamedTuple):
    """Labels for training or scoring.

    Attributes:
        labels: int32 [n, labels], 1 or 0; 0 where unknown.
        known: bool [n, labels], which entries count; usable as weights of a metric.
    """

    labels: np.ndarray
    known: np.ndarray


def binary_labels(
    data: ImageTextDataset,
    policy: Literal["ignore", "zeros", "ones"],
    *,
    blank: Literal["ignore", "zeros"] = "ignore",
) -> BinaryLabels:
    """Turn label codes into zeros and ones with a mask.

    The policies for uncertain labels are U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019,
    "CheXpert" (arXiv 1901.07031).

    Args:
        data: the data set.
        policy: what an uncertain label becomes: "ignore" masks it, "zeros" makes it negative,
            "ones" positive.
        blank: what a label that was not mentioned becomes. With "ignore" few negatives are
            left in labels of the CheXpert kind, since reports seldom name what is absent;
            "zeros" takes silence as absence.

    Raises:
        ValueError: for another policy.
    """
    checks.option("policy", policy, ("ignore", "zeros", "ones"))
    checks.option("blank", blank, ("ignore", "zeros"))
    codes = data.labels
    positive = codes == Label.POSITIVE
    if policy == "ones":
        positive = positive | (codes == Label.UNCERTAIN)
    known = np.ones(codes.shape, bool)
    if policy == "ignore":
        known &= codes != Label.UNCERTAIN
    if blank == "ignore":
        known &= codes != Label.BLANK
    return BinaryLabels(positive.astype(np.int32), known)


def known_groups(values: Iterable[str]) -> str:
    """The different splits or views, for messages; of a column mistaken for them, a count."""
    found = sorted(set(values) - {""})
    if len(found) > _GROUPS:
        return f"{len(found)} different ones"
    return ", ".join(map(repr, found)) or "none"


def left_out_sentence(kept: int, left_out: Mapping[str, int]) -> str:
    """How many rows and files were left out, and why."""
    number = sum(left_out.values())
    return f"{number} of {kept + number} rows and files left out: {_counts(left_out)}"


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


class Problems:
    """Collects what is wrong with rows and files, so that one error can name many of them.

    Attributes:
        left_out: why rows and files are left out -> how many; also what was not asked for.
    """

    def __init__(self, name: str, on_error: str) -> None:
        self._name = name
        self._raise = checks.option("on_error", on_error, ("raise", "skip")) == "raise"
        self._messages: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, problem: DatasetError | str, reason: str = "") -> None:
        """Note one problem, with the reason of a `DatasetError` or the one that is given."""
        self._messages.append(str(problem))
        self.left_out[problem.reason if isinstance(problem, DatasetError) else reason] += 1

    def finish(self) -> tuple[str, ...]:
        """Raise if there are problems and none may be skipped, else return them."""
        if self._messages and self._raise:
            count = len(self._messages)
            lines = "\n".join(f"  {message}" for message in self._messages[:_SHOWN])
            more = f"\n  and {count - _SHOWN} more" if count > _SHOWN else ""
            raise DatasetError(
                f"{self._name}: {checks.counted(count, 'problem')}; on_error='skip' leaves these "
                f"rows and files out: {_counts(self.left_out)}\n{lines}{more}"
            )
        return tuple(self._messages)


class Rows:
    """Fields of an `ImageTextDataset`, filled image by image."""

    def __init__(self, name: str, label_names: Sequence[str]) -> None:
        self._name = name
        self._label_names = tuple(label_names)
        self._rows: list[tuple[str, ...]] = []
        self._labels: list[Sequence[int]] = []
        self._boxes: list[tuple[Box, ...]] = []

    def add(
        self,
        *,
        id: str,
        patient: str,
        image: str,
        labels: Sequence[int],
        study: str = "",
        text: str = "",
        split: str = "",
        view: str = "",
        boxes: Sequence[Box] = (),
    ) -> None:
        """Add one image; without a study id it is a study of its own."""
        self._rows.append((id, patient, study or id, image, text, split, view))
        self._labels.append(labels)
        self._boxes.append(tuple(boxes))

    def build(self, problems: Problems) -> ImageTextDataset:
        """The data set, or `DatasetError` if there are problems or no image is left."""
        skipped = problems.finish()
        if not self._rows:
            why = f"; skipped: {checks.first_few(skipped)}" if skipped else ""
            why += f"; left out: {_counts(problems.left_out)}" if problems.left_out else ""
            raise DatasetError(f"{self._name}: no image was found{why}")
        labels = np.array(self._labels, np.int8).reshape(len(self._rows), len(self._label_names))
        return ImageTextDataset(
            name=self._name,
            **dict(zip(_COLUMNS, zip(*self._rows, strict=True), strict=True)),
            labels=labels,
            label_names=self._label_names,
            boxes=tuple(self._boxes) if any(self._boxes) else (),
            skipped=skipped,
            left_out=dict(problems.left_out),
        )
