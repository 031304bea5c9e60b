"""Stitching: a classification head of one encoder runs on mapped embeddings of another."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import in_batches
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap, identity_map
from ..maps.mlp_head import Head, MlpHead, first_layer
from ..metrics.classification import predicted_classes, share_of_hits
from ..metrics.samples import in_range, integers, sample_weights


@by_value
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

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> head = sa.AffineMap.from_weight(x[:4, :2])  # of the space that is reached, two classes
        >>> mapping = sa.fit_affine(x, x[:, ::-1] + 3)
        >>> sa.stitch(head, mapping)(x).shape
        (20, 2)
    """
    _check_types(head, mapping)
    return mapping >> head


def refuse_batch(name: str, value: Head) -> None:
    """Refuse a batch of maps or heads, whose axis would be taken for that of the rows."""
    shape = first_layer(value).batch_shape
    if shape:
        raise ValueError(
            f"{name} must be a single one; got a batch {shape}: take one after the other, or use "
            f"jax.vmap"
        )


def _check_types(head: Any, mapping: Any = None) -> None:
    if not isinstance(head, AffineMap | MlpHead):
        raise TypeError(f"head must be an AffineMap or MlpHead; got {type(head).__name__}")
    if mapping is not None and not isinstance(mapping, AffineMap):
        raise TypeError(f"mapping must be an AffineMap; got {type(mapping).__name__}")


def head_accuracy(
    head: Head,
    x: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Array:
    """Weighted share of rows whose class has the largest score of a head, the first if several.

    Args:
        head: of c classes.
        x: embeddings [n, d], floating point.
        labels: their classes [n], integers in [0, c).
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero may hold
            anything. None means equal weights.
        batch_size: rows that are scored at a time; bounds the memory. None means all.

    Returns:
        Scalar in [0, 1], float32 or the wider dtype of `weights`; NaN if all weights are zero.
        Where values cannot be looked at (under `jit`), also NaN if a row of positive weight
        has a class out of range, or NaN or infinity in `x`, or scores that are NaN
        or overflow.

    Raises:
        TypeError: if `head` is no head, `x` is not floating point, or `labels` are not integers or
            booleans.
        ValueError: for shapes that do not match, negative weights, classes out of range, and
            rows of `x` or of the scores as above.
    """
    return _accuracy("x", head, x, labels, weights, batch_size)


def evaluate_stitching(
    head: Head, mapping: AffineMap, x: ArrayLike, y: ArrayLike, labels: ArrayLike
) -> StitchingScores:
    """Score a stitched head between its two references.

    Args:
        head: head trained on the target encoder, of c classes.
        mapping: fitted map from the source to the target space.
        x: test embeddings of the source encoder [m, d_in], floating point.
        y: test embeddings of the target encoder for the same items [m, d_out].
        labels: their classes [m], integers in [0, c).

    Returns:
        `StitchingScores` (naive, aligned, upper_bound); NaN as in `head_accuracy`.

    Raises:
        TypeError: see `head_accuracy` and `stitch`.
        ValueError: see `head_accuracy` and `stitch`.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> head, y = sa.AffineMap.from_weight(x[:4, :2]), x[:, ::-1] + 3
        >>> scores = sa.evaluate_stitching(head, sa.fit_affine(x, y), x, y, head(y).argmax(1))
        >>> print(scores.aligned, scores.upper_bound)
        1.0 1.0
    """
    _check_types(head, mapping)
    refuse_batch("mapping", mapping)
    naive = identity_map(mapping.d_in, mapping.d_out, dtype=mapping.weight.dtype)
    return StitchingScores(
        naive=_accuracy("x", stitch(head, naive), x, labels, None),
        aligned=_accuracy("x", stitch(head, mapping), x, labels, None),
        upper_bound=_accuracy("y", head, y, labels, None),
    )


def _accuracy(
    name: str,
    head: Head,
    x: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    batch_size: int | None = None,
) -> Array:
    """`head_accuracy` of an argument `name`."""
    _check_types(head)
    refuse_batch("head", head)
    x = checks.float_array(name, x, 2)
    labels = integers("labels", labels, x.shape[:1])
    weights = sample_weights(weights, x.shape[:1], jnp.float32)
    if checks.is_concrete(x, weights):
        checks.finite_rows(name, x, np.asarray(weights) > 0)
    valid = in_range("labels", labels, head.d_out, weights)
    predicted, defined = predictions(checks.batch_size(batch_size), head, x)
    if checks.is_concrete(defined, weights):
        bad = np.flatnonzero(~(np.asarray(defined) | (np.asarray(weights) == 0)))
        if bad.size:
            raise ValueError(
                f"head gives NaN or infinity for {bad.size} of {len(x)} rows of {name}, first for "
                f"row {bad[0]}: its parameters or those of the map are NaN, or the scores overflow"
            )
    return share_of_hits(labels, predicted, weights, valid, defined)


@partial(jax.jit, static_argnums=0)
def predictions(
    batch_size: int | None, head: Head, x: Array, allowed: Array | None = None
) -> tuple[Array, Array]:
    """The class of each row, and whether it has one; `allowed` classes alone, bool [classes]."""

    def of_rows(rows: Array) -> tuple[Array, Array]:
        scores = head(rows)
        if allowed is not None:
            scores = jnp.where(allowed[None, :], scores, -jnp.inf)
        # A NaN would be the largest score, and so a class; classes that overflow are tied.
        defined = jnp.isfinite(rows).all(axis=1) & jnp.isfinite(scores.max(axis=1))
        return predicted_classes(scores), defined

    return in_batches(of_rows, x, batch_size)
