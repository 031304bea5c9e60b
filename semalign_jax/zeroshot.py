"""Unimodal zero-shot classification: mapped image embeddings against class prompts."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from . import _checks
from ._linalg import matmul, transpose
from ._maps import AffineMap
from ._samples import in_range, integers
from ._typing import Array, ArrayLike
from .metrics import accuracy, normalize_rows
from .stitching import stitch


def class_embeddings(
    prompts: ArrayLike,
    prompt_labels: ArrayLike,
    num_classes: int,
    *,
    center: ArrayLike | None = None,
) -> Array:
    """One unit vector a class: each prompt normalised, averaged, normalised again.

    Args:
        prompts: text embeddings of the prompts [p, d].
        prompt_labels: class of each prompt [p], integers in [0, num_classes).
        num_classes: number of classes (static).
        center: [d] subtracted from the prompts first, e.g. the mean of the target anchors.

    Returns:
        [num_classes, d]; zero for a class without prompts.

    Raises:
        TypeError: for prompts that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match or labels outside [0, num_classes).
    """
    prompts = _checks.float_array("prompts", prompts, 2)
    num_classes = _checks.positive_int("num_classes", num_classes)
    labels = integers("prompt_labels", prompt_labels, prompts.shape[:1])
    in_range("prompt_labels", labels, num_classes)
    if center is not None:
        prompts = prompts - jnp.asarray(center)[None, :]
    member = jax.nn.one_hot(labels, num_classes, axis=0, dtype=prompts.dtype)
    return normalize_rows(matmul(member, normalize_rows(prompts)))


def zero_shot_logits(
    embeddings: ArrayLike, classes: Array, *, center: ArrayLike | None = None
) -> Array:
    """Cosine similarity of mapped image embeddings with class embeddings.

    Args:
        embeddings: images in the text encoder's space [n, d].
        classes: unit vectors [num_classes, d] from `class_embeddings`.
        center: [d] subtracted from the images; give the one that `classes` were made with.

    Returns:
        [n, num_classes] in [-1, 1].

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: if the dimensions differ.
    """
    embeddings = _checks.float_array("embeddings", embeddings, 2)
    if embeddings.shape[1] != classes.shape[1]:
        raise ValueError(
            f"embeddings must live in the space of the classes, {classes.shape[1]} dimensions; "
            f"got {embeddings.shape}: map them first"
        )
    if center is not None:
        embeddings = embeddings - jnp.asarray(center)[None, :]
    return matmul(normalize_rows(embeddings), transpose(classes))


def zero_shot_predict(
    embeddings: ArrayLike, classes: Array, *, center: ArrayLike | None = None
) -> Array:
    """The class of the largest cosine similarity, int [n]; see `zero_shot_logits`."""
    return jnp.argmax(zero_shot_logits(embeddings, classes, center=center), axis=-1)


def evaluate_zero_shot(
    mapping: AffineMap,
    images: ArrayLike,
    labels: Array,
    prompts: ArrayLike,
    prompt_labels: ArrayLike,
    num_classes: int,
    *,
    center: ArrayLike | None = None,
    weights: Array | None = None,
    allowed: Array | None = None,
) -> Array:
    """Accuracy of unimodal zero-shot classification.

    Args:
        mapping: map from the image encoder's into the text encoder's space.
        images: embeddings of the image encoder [n, d_in].
        labels: true classes [n], integers.
        prompts: text embeddings of the prompts [p, d_out].
        prompt_labels: class of each prompt [p], integers.
        num_classes: number of classes (static).
        center: [d_out] subtracted from mapped images and prompts, e.g. `mapping.target_offset`
            of a map fitted with a normalisation, which is the mean of the text anchors.
        weights: [n], >= 0, floats or a boolean mask over the images.
        allowed: boolean [num_classes], which classes may be predicted; None means all.

    Returns:
        Scalar accuracy in [0, 1]; NaN if all weights are zero.
    """
    classes = class_embeddings(prompts, prompt_labels, num_classes, center=center)
    # The norm of an image does not change which class is nearest to it; without it, the prompts
    # fold into the map like a head.
    head = AffineMap.from_weight(transpose(classes), kind="head")
    if center is not None:
        head = replace(head, source_offset=jnp.asarray(center))
    logits = stitch(head, mapping).apply(images)
    if allowed is not None:
        logits = jnp.where(allowed[None, :], logits, -jnp.inf)
    return accuracy(labels, jnp.argmax(logits, axis=-1), weights=weights)
