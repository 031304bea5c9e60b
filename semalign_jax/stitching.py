"""Stitching: a classification head of one encoder runs on mapped embeddings of another."""

from typing import NamedTuple, overload

from ._core.typing import Array
from .heads import Head, MlpHead
from .maps.affine_map import AffineMap, identity_map
from .metrics import accuracy, predicted_classes


class StitchingScores(NamedTuple):
    """Accuracy of a head with and without alignment; scalars in [0, 1].

    Attributes:
        naive: the head on the source embeddings, dimensions padded or cut.
        aligned: the head on the mapped source embeddings.
        upper_bound: the head on its own encoder's embeddings.
    """

    naive: Array
    aligned: Array
    upper_bound: Array


@overload
def stitch(head: AffineMap, mapping: AffineMap) -> AffineMap: ...


@overload
def stitch(head: MlpHead, mapping: AffineMap) -> MlpHead: ...


def stitch(head: Head, mapping: AffineMap) -> Head:
    """Fold a map into a head: `stitch(head, mapping)(x)` are the logits `head(mapping(x))`.

    Args:
        head: head of the target encoder [d_out, classes]; of an `MlpHead` the first layer
            takes up the map.
        mapping: map from the source to the target space [d_in, d_out].

    Returns:
        A head [d_in, classes] of the same type for the source encoder.

    Raises:
        TypeError: if `head` is no head, or `mapping` no `AffineMap`.
        ValueError: if the map does not end in the head's space.
    """
    if not isinstance(head, AffineMap | MlpHead):
        raise TypeError(f"head must be an AffineMap or MlpHead; got {type(head).__name__}")
    if not isinstance(mapping, AffineMap):
        raise TypeError(f"mapping must be an AffineMap; got {type(mapping).__name__}")
    return mapping >> head


def head_accuracy(head: Head, x: Array, labels: Array, *, weights: Array | None = None) -> Array:
    """Accuracy of a head's argmax on embeddings `x` [n, d] with classes `labels` [n]."""
    return accuracy(labels, predicted_classes(head(x)), weights=weights)


def evaluate_stitching(
    head: Head, mapping: AffineMap, x: Array, y: Array, labels: Array
) -> StitchingScores:
    """Score a stitched head between its two references.

    Args:
        head: head trained on the target encoder.
        mapping: fitted map from the source to the target space.
        x: test embeddings of the source encoder [m, d_in].
        y: test embeddings of the target encoder for the same items [m, d_out].
        labels: their classes [m], integers.

    Returns:
        `StitchingScores` (naive, aligned, upper_bound).
    """
    naive = identity_map(mapping.d_in, mapping.d_out, dtype=mapping.weight.dtype)
    return StitchingScores(
        naive=head_accuracy(stitch(head, naive), x, labels),
        aligned=head_accuracy(stitch(head, mapping), x, labels),
        upper_bound=head_accuracy(head, y, labels),
    )
