"""The data of `zero_shot_protocol`, checked: anchors, labelled images, a multimodal model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core import checks
from .._core.ids import id_texts
from .._core.typing import Array
from ..data import check_disjoint
from ..metrics.samples import checked_known
from .scores import EmbeddedPrompts
from .truth import Truth, checked_truth


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
            may be anything and count nowhere. None means all.

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
        labels = checks.host_array("labels", self.labels)
        if len(labels) != len(embeddings):
            raise ValueError(
                f"labels must have one entry for each of the {len(embeddings)} images; got "
                f"{labels.shape}"
            )
        checked_known("known", self.known, labels)


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


def row_ids(name: str, values: Any, rows: int) -> np.ndarray:
    """The texts of ids, one a row."""
    array = np.array(id_texts(name, values), str)
    if array.shape != (rows,):
        raise ValueError(
            f"{name} must have one entry for each of the {rows} rows; got {array.shape}"
        )
    return array


def _set_ids(part: AnchorPairs | Images, rows: int) -> None:
    for name in ("ids", "patients"):
        object.__setattr__(part, name, row_ids(name, getattr(part, name), rows))
    values, counts = np.unique(part.ids, return_counts=True)
    if (counts > 1).any():
        twice = checks.first_few(map(repr, values[counts > 1].tolist()))
        raise ValueError(f"ids must be all different; repeated: {twice}")


def truth_of(name: str, part: Images, prompts: EmbeddedPrompts) -> Truth:
    """The labels of a part, whose classes may be names."""
    names = f"labels of {name}", f"known of {name}"
    labels = checks.host_array(names[0], part.labels)
    if prompts.task == "single-label":
        labels = _class_numbers(names[0], labels, prompts.names)
    shape = len(part.ids), prompts.num_classes
    return checked_truth(labels, part.known, shape, prompts.task, names)


def _class_numbers(name: str, labels: Any, classes: tuple[str, ...]) -> Any:
    """Labels as they are, and names as their places among the classes."""
    if labels.dtype == object and all(isinstance(entry, str) for entry in labels.flat):
        labels = labels.astype(str)
    if labels.dtype.kind != "U":
        return labels
    unknown = np.unique(labels[~np.isin(labels, classes)])
    if unknown.size:
        raise ValueError(
            f"{name} hold {checks.first_few(map(repr, unknown.tolist()))}, which the prompt set "
            f"lacks; its classes are {', '.join(classes)}"
        )
    places = [classes.index(entry) for entry in labels.flat]
    return np.asarray(places, np.int32).reshape(labels.shape)


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
