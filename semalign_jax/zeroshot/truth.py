"""What is true of images: their classes, or which findings they have."""

from typing import Any, NamedTuple

from .._core.typing import Array
from ..metrics.samples import checked_known, in_range, integers
from .scores import Task


class Truth(NamedTuple):
    """Labels of a task.

    Attributes:
        labels: int32 classes [n] of a single-label task, booleans [n, num_classes] of a multi-label
            one.
        known: of a multi-label task, bool [n, num_classes], which labels are known; None means all.
    """

    labels: Array
    known: Array | None


def checked_truth(
    labels: Any,
    known: Any,
    shape: tuple[int, int],
    task: Task,
    names: tuple[str, str] = ("labels", "known"),
) -> Truth:
    """Labels [rows, classes] or [rows] of a task; those that are not known may be anything."""
    of_labels, of_known = names
    if task == "single-label":
        if known is not None:
            raise ValueError(f"{of_known} must be None for a single-label task: leave images out")
        labels = integers(of_labels, labels, shape[:1])
        in_range(of_labels, labels, shape[1])
        return Truth(labels, None)
    labels = integers(of_labels, labels, shape)
    known = checked_known(of_known, known, labels)
    in_range(of_labels, labels, 2, known, known=of_known)
    return Truth(labels == 1, known)
