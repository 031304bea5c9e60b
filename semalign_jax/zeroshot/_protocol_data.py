"""The data of `zero_shot_protocol`, checked: anchors, labelled images, a multimodal model."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.ids import id_texts
from .._core.typing import Array
from ..data import check_disjoint
from ..metrics.samples import integers
from .scores import EmbeddedPrompts, Task


@dataclass(frozen=True, eq=False)
class AnchorPairs:
    """Matched samples that maps are fitted to, e.g. images and their reports.

    Attributes:
        ids: one a pair, text or whole numbers (7, 7.0 and "7" are one), all different.
        patients: patient of each pair, likewise.
        source: embeddings of the image encoder [n, d_in].
        target: embeddings of the text encoder [n, d_out], matched by row.

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: for lengths that do not match, ids that are missing, repeated or neither text
            nor whole numbers, NaN or infinity.
    """

    ids: Any
    patients: Any
    source: Any
    target: Any

    def __post_init__(self) -> None:
        source = checked_embeddings("source", self.source)
        target = checked_embeddings("target", self.target)
        if len(source) != len(target):
            raise ValueError(
                f"source and target must have the same rows; got {source.shape} and {target.shape}"
            )
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "target", target)
        _set_ids(self, len(source))


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        ids: one an image, text or whole numbers (7, 7.0 and "7" are one), all different.
        patients: patient of each image, likewise.
        embeddings: of the image encoder [n, d].
        labels: for a single-label task classes [n], as integers or names; for a multi-label one
            booleans or 0/1 [n, num_classes] in the order of the prompt set.
        known: of a multi-label task, bool [n, num_classes], which labels are known; the others
            may be 0 or 1 and count nowhere. None means all.

    Raises:
        TypeError: for embeddings that are not floating point, or `known` that is not boolean.
        ValueError: for lengths that do not match, ids that are missing, repeated or neither text
            nor whole numbers, NaN or infinity.
    """

    ids: Any
    patients: Any
    embeddings: Any
    labels: Any
    known: Any = None

    def __post_init__(self) -> None:
        embeddings = checked_embeddings("embeddings", self.embeddings)
        object.__setattr__(self, "embeddings", embeddings)
        _set_ids(self, len(embeddings))
        if len(np.asarray(self.labels)) != len(embeddings):
            raise ValueError(
                f"labels must have one entry for each of the {len(embeddings)} images; got "
                f"{np.shape(self.labels)}"
            )
        if self.known is not None and checks.host_array("known", self.known).dtype != np.bool_:
            raise TypeError(f"known must be booleans; got {np.asarray(self.known).dtype}")
        if self.known is not None and np.shape(self.known) != np.shape(self.labels):
            raise ValueError(
                f"known must have the shape of labels, {np.shape(self.labels)}; got "
                f"{np.shape(self.known)}"
            )


@dataclass(frozen=True, eq=False)
class Multimodal:
    """A multimodal model on the same images and prompt set.

    Attributes:
        validation: embeddings of the validation images [n, d], rows as there.
        test: embeddings of the test images [m, d], rows as there.
        prompts: the same prompt set under the model's text encoder [p, d].
    """

    validation: Any
    test: Any
    prompts: EmbeddedPrompts


def checked_embeddings(name: str, value: Any) -> Array:
    array = checks.float_array(name, value, 2)
    checks.finite_rows(name, array)
    return checks.on_device(array)


def _set_ids(part: AnchorPairs | Images, rows: int) -> None:
    for name in ("ids", "patients"):
        array = np.array(id_texts(name, getattr(part, name)), str)
        if array.shape != (rows,):
            raise ValueError(
                f"{name} must have one entry for each of the {rows} rows; got {array.shape}"
            )
        object.__setattr__(part, name, array)
    values, counts = np.unique(part.ids, return_counts=True)
    if (counts > 1).any():
        twice = checks.first_few(map(repr, values[counts > 1].tolist()))
        raise ValueError(f"ids must be all different; repeated: {twice}")


def checked_labels(name: str, labels: Any, names: tuple[str, ...], task: Task) -> Array:
    """Integer classes [n] or booleans [n, num_classes]."""
    array = np.asarray(checks.host_array(f"labels of {name}", labels))
    if array.dtype == object and all(isinstance(entry, str) for entry in array.flat):
        array = array.astype(str)
    if task == "multi-label":
        labels = integers(f"labels of {name}", array, (len(array), len(names)))
        bad = np.argwhere((array != 0) & (array != 1))
        if bad.size:
            row, column = bad[0].tolist()
            raise ValueError(
                f"labels of {name} must be 0 or 1; row {row} has {array[row, column]} for "
                f"{names[column]!r}"
            )
        return labels == 1
    if array.ndim != 1:
        raise ValueError(f"labels of {name} must be classes [n]; got shape {array.shape}")
    if array.dtype.kind == "U":
        unknown = np.unique(array[~np.isin(array, names)])
        if unknown.size:
            found = checks.first_few(map(repr, unknown.tolist()))
            raise ValueError(
                f"labels of {name} hold {found}, which the prompt set lacks; its classes are "
                f"{', '.join(names)}"
            )
        array = np.asarray([names.index(entry) for entry in array.tolist()], np.int32)
    labels = integers(f"labels of {name}", array)
    bad = np.flatnonzero((array < 0) | (array >= len(names)))
    if bad.size:
        raise ValueError(
            f"labels of {name} must be in [0, {len(names)}), the classes of the prompt set; row "
            f"{bad[0]} has {array[bad[0]]}"
        )
    return labels


class Truth(NamedTuple):
    """Labels as of `checked_labels`, and which are known, bool [n, num_classes]; None means all."""

    labels: Array
    known: Array | None


def checked_known(name: str, known: Any, labels: Array, task: Task) -> Array | None:
    if known is None:
        return None
    if task == "single-label":
        raise ValueError(f"{name}: leave out images whose class is not known; it must be None")
    array = np.asarray(known)
    if array.dtype != np.bool_ or array.shape != labels.shape:
        raise ValueError(f"{name} must be booleans {labels.shape}; got {array.dtype} {array.shape}")
    return jnp.asarray(array)


def truth_of(name: str, part: Images, prompts: EmbeddedPrompts) -> Truth:
    labels = checked_labels(name, part.labels, prompts.names, prompts.task)
    return Truth(labels, checked_known(f"known of {name}", part.known, labels, prompts.task))


def check_parts(
    anchors: AnchorPairs,
    validation: Images,
    test: Images,
    labelled: Images | None,
    prompts: EmbeddedPrompts,
) -> None:
    parts: dict[str, Images] = {"validation": validation, "test": test}
    check_disjoint({"anchors": anchors, **parts})
    if labelled is not None:
        # They may be images of the anchors, of which the labels are known too.
        parts["labelled"] = labelled
        check_disjoint(parts)
    for name, part in parts.items():
        if part.embeddings.shape[1] != anchors.source.shape[1]:
            raise ValueError(
                f"{name} images have {part.embeddings.shape[1]} features, the source anchors "
                f"{anchors.source.shape[1]}"
            )
    if prompts.embeddings.shape[1] != anchors.target.shape[1]:
        raise ValueError(
            f"prompts have {prompts.embeddings.shape[1]} features, the target anchors "
            f"{anchors.target.shape[1]}"
        )
