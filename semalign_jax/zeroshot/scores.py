"""Unimodal zero-shot classification: mapped image embeddings against class prompts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    in_batches,
    matmul,
    safe_inverse,
    svd,
    transpose,
)
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from ..metrics import normalize_rows, predicted_classes
from ..metrics.classification import share_of_hits
from ..metrics.samples import in_range, integers, sample_weights
from ..stitching.evaluate import predictions, refuse_batch, stitch

#: "single-label": one of the classes; "multi-label": each finding is present or not.
Task: TypeAlias = Literal["single-label", "multi-label"]
#: What is done to the text space, and to the images mapped into it, before cosines are taken.
SpaceNormalization: TypeAlias = Literal["none", "center", "whiten"]

TASKS: tuple[Task, ...] = get_args(Task)
SPACE_NORMALIZATIONS: tuple[SpaceNormalization, ...] = get_args(SpaceNormalization)

#: As CheXzero (Tiu et al. 2022). Rankings and decisions are those of any other, but small ones let
#: probabilities saturate in float32, which ties them: 0.07 ties cosines that differ by more than 1.
TEMPERATURE = 1.0


@by_value
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmbeddedPrompts:
    """Class prompts in the space of a text encoder; made by `prompts.embedded_prompts`.

    Attributes:
        embeddings: [p, d].
        classes: int32 [p], class of each prompt.
        positive: bool [p], whether a prompt speaks for the class or against it.
        names: of the classes (static).
        task: see `Task` (static).
    """

    embeddings: Array
    classes: Array
    positive: Array
    names: tuple[str, ...] = field(metadata={"static": True})
    task: Task = field(metadata={"static": True})

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)


class Prototypes(NamedTuple):
    """One unit vector a class and polarity; zero where there are no prompts.

    Attributes:
        positive: [num_classes, d].
        negative: [num_classes, d].
    """

    positive: Array
    negative: Array


@by_value
class AnchorSpace(NamedTuple):
    """What the anchors say of both spaces, for `zero_shot_scores`.

    Attributes:
        source_mean: [d_in], mean of the source anchors.
        target_mean: [d_out], mean of the target anchors.
        whitening: [d_out, d_out], symmetric inverse root of the target anchors' covariance.
    """

    source_mean: Array
    target_mean: Array
    whitening: Array


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
        [num_classes, d], at least float32; zero for a class without prompts, NaN if a prompt holds
        NaN or infinity.

    Raises:
        TypeError: for prompts that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match or labels outside [0, num_classes).
    """
    prompts = checks.float_array("prompts", prompts, 2)
    num_classes = checks.positive_int("num_classes", num_classes)
    labels = integers("prompt_labels", prompt_labels, prompts.shape[:1])
    in_range("prompt_labels", labels, num_classes)
    center = _checked_center(center, prompts.shape[1])
    return _class_embeddings(num_classes, prompts, labels, center)


def _checked_center(center: ArrayLike | None, dimension: int) -> Array | None:
    if center is None:
        return None
    row = checks.float_array("center", center, 1)
    if row.shape != (dimension,):
        raise ValueError(f"center must have shape ({dimension},), as a row; got {row.shape}")
    return row


def _checked_allowed(allowed: ArrayLike | None, num_classes: int) -> Array | None:
    if allowed is None:
        return None
    mask = checks.host_array("allowed", allowed)
    if mask.dtype != np.bool_ or mask.shape != (num_classes,):
        raise ValueError(
            f"allowed must be booleans of shape ({num_classes},), True for classes that may be "
            f"predicted; got {mask.dtype} {mask.shape}"
        )
    if checks.is_concrete(mask) and not np.asarray(mask).any():
        raise ValueError("allowed is False for every class: at least one must be True")
    return mask


@partial(jax.jit, static_argnums=0)
def _class_embeddings(num_classes: int, prompts: Array, labels: Array, center: Any) -> Array:
    prompts = prompts.astype(compute_dtype(prompts.dtype))
    if center is not None:
        prompts = prompts - center[None, :].astype(prompts.dtype)
    member = jax.nn.one_hot(labels, num_classes, axis=0, dtype=prompts.dtype)
    means = matmul(member, _units(prompts))
    return _units(means)


def _score_dtype(images: Array, texts: Array) -> Any:
    """That of scores: half precision would tie classes, and images, that it can tell apart."""
    return compute_dtype(common_dtype(images.dtype, texts.dtype))


def _units(rows: Array) -> Array:
    """Rows of length 1; NaN where they hold NaN or infinity, which would pass for zero."""
    finite = jnp.isfinite(rows).all(axis=1, keepdims=True)
    return jnp.where(finite, normalize_rows(rows), jnp.nan)


def zero_shot_logits(
    embeddings: ArrayLike,
    classes: Array,
    *,
    center: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Array:
    """Cosine similarity of mapped image embeddings with class embeddings.

    Args:
        embeddings: images in the text encoder's space [n, d].
        classes: unit vectors [num_classes, d] from `class_embeddings`.
        center: [d] subtracted from the images; give the one that `classes` were made with.
        batch_size: images that are scored at a time; bounds the memory. None means all.

    Returns:
        [n, num_classes] in [-1, 1], at least float32; NaN for images that hold NaN or infinity.

    Raises:
        TypeError: for embeddings or classes that are not floating point.
        ValueError: if the dimensions differ, or classes hold infinity.

    Example:
        >>> import jax.numpy as jnp, semalign_jax as sa
        >>> print(sa.zero_shot_logits(jnp.array([[3.0, 4.0]]), jnp.eye(2)).round(3))
        [[0.6 0.8]]
    """
    embeddings = checks.float_array("embeddings", embeddings, 2)
    classes = checks.float_array("classes", classes, 2)
    if checks.is_concrete(classes) and np.isinf(np.asarray(classes)).any():
        raise ValueError("classes holds infinity: these must be unit vectors of class_embeddings")
    if embeddings.shape[1] != classes.shape[1]:
        raise ValueError(
            f"embeddings must live in the space of the classes, {classes.shape[1]} dimensions; "
            f"got {embeddings.shape}: map them first"
        )
    center = _checked_center(center, classes.shape[1])
    return _logits(checks.batch_size(batch_size), embeddings, classes, center)


@partial(jax.jit, static_argnums=0)
def _logits(batch_size: int | None, embeddings: Array, classes: Array, center: Any) -> Array:
    dtype = _score_dtype(embeddings, classes)

    def of_rows(rows: Array) -> Array:
        rows = rows.astype(dtype)
        rows = rows if center is None else rows - center[None, :].astype(dtype)
        return matmul(_units(rows), transpose(classes.astype(dtype)))

    return in_batches(of_rows, embeddings, batch_size)


def zero_shot_predict(
    embeddings: ArrayLike,
    classes: Array,
    *,
    center: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Array:
    """The class of the largest cosine similarity, int [n]; see `zero_shot_logits`.

    It is -1 where no similarity is defined, of images that hold NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, semalign_jax as sa
        >>> print(sa.zero_shot_predict(jnp.array([[3.0, 4.0]]), jnp.eye(2)))
        [1]
    """
    logits = zero_shot_logits(embeddings, classes, center=center, batch_size=batch_size)
    return class_of(logits)


@jax.jit
def class_of(logits: Array) -> Array:
    """The class of the largest of each row, -1 for rows that hold NaN."""
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, predicted_classes(logits))


def evaluate_zero_shot(
    mapping: AffineMap,
    images: ArrayLike,
    labels: ArrayLike,
    prompts: ArrayLike,
    prompt_labels: ArrayLike,
    num_classes: int,
    *,
    center: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Array:
    """Accuracy of unimodal zero-shot classification.

    Args:
        mapping: map from the image encoder's into the text encoder's space.
        images: embeddings of the image encoder [n, d_in].
        labels: true classes [n], integers in [0, num_classes).
        prompts: text embeddings of the prompts [p, d_out].
        prompt_labels: class of each prompt [p], integers.
        num_classes: number of classes (static).
        center: [d_out] subtracted from mapped images and prompts, e.g. `mapping.target_offset`
            of a map fitted with a normalisation, which is the mean of the text anchors.
        weights: [n], >= 0, floats or a boolean mask over the images.
        allowed: booleans [num_classes], which classes may be predicted, at least one; None means
            all.
        batch_size: images that are scored at a time; bounds the memory. None means all.

    Returns:
        Scalar accuracy in [0, 1]; NaN if all weights are zero, or an image of positive weight holds
        NaN or infinity, or has a traced label out of range, or no class is `allowed` (traced).

    Raises:
        TypeError: for embeddings that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match, labels out of range, negative weights or `allowed`
            without a class.
    """
    refuse_batch("mapping", mapping)
    classes = class_embeddings(prompts, prompt_labels, num_classes, center=center)
    images = checks.float_array("images", images, 2)
    truth = integers("labels", labels, images.shape[:1])
    w = sample_weights(weights, truth.shape, jnp.float32)
    valid = in_range("labels", truth, num_classes, w)
    allowed = _checked_allowed(allowed, num_classes)
    static = checks.batch_size(batch_size)
    predicted, defined = _predictions(static, mapping, classes, center, images, allowed)
    return share_of_hits(truth, predicted, w, valid, defined)


@partial(jax.jit, static_argnums=0)
def _predictions(
    batch_size: int | None,
    mapping: AffineMap,
    classes: Array,
    center: Any,
    images: Array,
    allowed: Array | None,
) -> tuple[Array, Array]:
    """The class of each image, and whether it has one."""
    # The norm of an image does not change which class is nearest to it; without it, the prompts
    # fold into the map like a head.
    head = AffineMap.from_weight(transpose(classes))
    if center is not None:
        head = head._replace(source_offset=jnp.asarray(center))
    return predictions(batch_size, stitch(head, mapping), images, allowed)


# --- prompt sets -------------------------------------------------------------------------------


def prompt_prototypes(prompts: EmbeddedPrompts) -> Prototypes:
    """Ensembles of the prompts: see `class_embeddings`, for either polarity."""
    count = prompts.num_classes
    index = prompts.classes + jnp.where(prompts.positive, 0, count).astype(prompts.classes.dtype)
    both = class_embeddings(prompts.embeddings, index, 2 * count)
    return Prototypes(both[:count], both[count:])


def prompt_scores(
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    temperature: float | Array = TEMPERATURE,
    batch_size: int | None = None,
) -> Array:
    """Scores of images that are in the space of the prompts.

    Single-label tasks: the cosine similarity with the class's ensemble of positive prompts.
    Multi-label tasks: the softmax of the cosines with the positive and the negative ensemble over
    the temperature, i.e. the probability of the finding; this is the decision of BioViL (Boecking
    et al. 2022), positive above negative, made graded.

    Args:
        images: [n, d].
        prompts: of the same d.
        temperature: > 0, of the softmax; may be traced. It changes neither rankings nor
            decisions, except that small ones tie scores (see `TEMPERATURE`).
        batch_size: images that are scored at a time; bounds the memory. None means all.

    Returns:
        [n, num_classes], at least float32; NaN for images that hold NaN or infinity.

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: if the dimensions differ or the temperature is not positive.
    """
    images = checks.float_array("images", images, 2)
    if images.shape[1] != prompts.embeddings.shape[1]:
        raise ValueError(
            f"images must live in the space of the prompts, {prompts.embeddings.shape[1]} "
            f"dimensions; got {images.shape}: map them first"
        )
    temperature = above_zero("temperature", temperature)
    return _prompt_scores(checks.batch_size(batch_size), images, prompts, temperature)


@partial(jax.jit, static_argnums=0)
def _prompt_scores(
    batch_size: int | None, images: Array, prompts: EmbeddedPrompts, temperature: Array
) -> Array:
    dtype = _score_dtype(images, prompts.embeddings)
    prompts = replace(prompts, embeddings=prompts.embeddings.astype(dtype))
    prototypes = prompt_prototypes(prompts)

    def of_rows(rows: Array) -> Array:
        units = _units(rows.astype(dtype))
        return prototype_scores(units, prototypes, prompts.task, temperature)

    return in_batches(of_rows, images, batch_size)


def prototype_scores(
    images: Array, prototypes: Prototypes, task: Task, temperature: Array
) -> Array:
    """`prompt_scores` of unit vectors [n, d] (or unit vectors with weighted dimensions)."""
    positive = matmul(images, transpose(prototypes.positive))
    if task == "single-label":
        return positive
    negative = matmul(images, transpose(prototypes.negative))
    return jax.nn.sigmoid((positive - negative) / temperature.astype(positive.dtype))


def above_zero(name: str, value: float | Array) -> Array:
    """A scalar, refused unless it is above zero."""
    value = checks.scalar(name, value)
    if checks.is_concrete(value) and not float(value) > 0:
        raise ValueError(f"{name} must be > 0; got {float(value)}")
    return value


def anchor_space(
    source: ArrayLike, target: ArrayLike, *, shrinkage: float | Array | None = None
) -> AnchorSpace:
    """Means and covariance of anchors, by which `zero_shot_scores` normalises the text space.

    The covariance S of the target anchors is shrunk, (1 - a) S + a tr(S) / d I, since there are
    often fewer anchors than dimensions.

    Args:
        source: source anchors [n, d_in].
        target: target anchors [n, d_out], matched by row.
        shrinkage: a in [0, 1], may be traced; None means the estimate of Ledoit and Wolf (2004).
            Without shrinkage, directions in which the anchors do not vary are dropped.

    Returns:
        `AnchorSpace`. Not differentiable. If the target anchors do not vary at all, e.g. a single
        one, `whitening` is the identity.

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: for rows that do not match or a shrinkage outside of [0, 1].
    """
    source, target = checks.pair(source, target, ("source", "target"))
    return _anchor_space(source, target, checked_shrinkage(shrinkage))


def checked_shrinkage(shrinkage: float | Array | None) -> Array | None:
    """A shrinkage, refused unless it is in [0, 1]; None means an estimate."""
    if shrinkage is None:
        return None
    part = checks.scalar("shrinkage", shrinkage)
    if checks.is_concrete(part) and float(part) > 1:
        raise ValueError(f"shrinkage must be in [0, 1]; got {float(part)}")
    return part


@jax.jit
def _anchor_space(source: Array, target: Array, shrinkage: Array | None) -> AnchorSpace:
    source, target = (a.astype(compute_dtype(a.dtype)) for a in (source, target))
    n, d = target.shape
    mean = jnp.mean(target, axis=0)
    rows = target - mean[None, :]
    _, s, vt = svd(rows)
    values = s * s / n
    average = jnp.sum(values) / d
    if shrinkage is None:
        # Ledoit and Wolf (2004), section 3.2, with the Frobenius norm over d.
        squares = jnp.sum(values * values)
        error = (jnp.sum(jnp.sum(rows * rows, axis=1) ** 2) / n - squares) / (n * d)
        spread = squares / d - average * average
        part = jnp.clip(error * safe_inverse(spread, spread > 0), 0, 1)
        shrinkage = jnp.where(spread > 0, part, 1)
    else:
        shrinkage = shrinkage.astype(target.dtype)
    rest = shrinkage * average
    inverse = _inverse_root((1 - shrinkage) * values + rest, average)
    outside = _inverse_root(rest, average)
    whitening = matmul(transpose(vt) * (inverse - outside)[None, :], vt)
    whitening = whitening + outside * jnp.eye(d, dtype=target.dtype)
    whitening = jnp.where(average > 0, whitening, jnp.eye(d, dtype=target.dtype))
    return AnchorSpace(jnp.mean(source, axis=0), mean, whitening)


def _inverse_root(values: Array, average: Array) -> Array:
    """1 / sqrt(values), or 0 where a value is zero next to the average."""
    root = jnp.sqrt(values)
    cut = 8 * jnp.finfo(values.dtype).eps * jnp.sqrt(average)
    return safe_inverse(root, root > cut)


def zero_shot_scores(
    mapping: AffineMap,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    normalization: SpaceNormalization = "none",
    space: AnchorSpace | None = None,
    temperature: float | Array = TEMPERATURE,
    batch_size: int | None = None,
) -> Array:
    """Scores of unimodal zero-shot classification.

    The mapped space can be normalised before cosines are taken: "center" subtracts the mean of
    the target anchors from the prompts and that of the mapped source anchors from the mapped
    images (for a least-squares map with bias both are the same); "whiten" also multiplies both by
    `space.whitening`, so that cosines become those of a Mahalanobis geometry.

    Args:
        mapping: map from the image encoder's into the text encoder's space.
        images: embeddings of the image encoder [n, d_in].
        prompts: in the text encoder's space [p, d_out].
        normalization: "none", "center" or "whiten" (static).
        space: of the anchors that `mapping` was fitted to, from `anchor_space`; needed unless
            `normalization` is "none".
        temperature: see `prompt_scores`.
        batch_size: images that are mapped and scored at a time; bounds the memory. None means
            all.

    Returns:
        [n, num_classes], see `prompt_scores`.

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: if dimensions differ, for an unknown normalisation or one without `space`.
    """
    refuse_batch("mapping", mapping)
    checks.option("normalization", normalization, SPACE_NORMALIZATIONS)
    images = checks.float_array("images", images, 2)
    if normalization != "none" and space is None:
        raise ValueError(f"normalization {normalization!r} needs space: give anchor_space(...)")
    static = checks.batch_size(batch_size), normalization
    temperature = above_zero("temperature", temperature)
    return _zero_shot_scores(*static, mapping, images, prompts, space, temperature)


@partial(jax.jit, static_argnums=(0, 1))
def _zero_shot_scores(
    batch_size: int | None,
    normalization: SpaceNormalization,
    mapping: AffineMap,
    images: Array,
    prompts: EmbeddedPrompts,
    space: AnchorSpace | None,
    temperature: Array,
) -> Array:
    def of_rows(rows: Array) -> Array:
        mapped = mapping.apply(rows.astype(compute_dtype(rows.dtype)))
        if space is None or normalization == "none":
            return prompt_scores(mapped, prompts, temperature=temperature)
        dtype = _score_dtype(mapped, prompts.embeddings)
        mean = mapping.apply(space.source_mean[None, :])
        mapped = mapped.astype(dtype) - mean.astype(dtype)
        texts = prompts.embeddings.astype(dtype) - space.target_mean[None, :].astype(dtype)
        if normalization == "whiten":
            mapped, texts = (matmul(a, space.whitening.astype(dtype)) for a in (mapped, texts))
        return prompt_scores(mapped, replace(prompts, embeddings=texts), temperature=temperature)

    return in_batches(of_rows, images, batch_size)


def not_nan(name: str, scores: Array) -> None:
    """Refuse NaN in concrete scores [n] or [n, classes]."""
    if not checks.is_concrete(scores):
        return
    bad = np.argwhere(np.isnan(np.asarray(scores)))
    if bad.size:
        raise ValueError(
            f"{name} holds NaN in {checks.counted(len(bad), 'entry', 'entries')}, first at "
            f"{tuple(bad[0].tolist())}; check the embeddings that it comes from"
        )
