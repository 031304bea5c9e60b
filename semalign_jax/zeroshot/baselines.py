"""What a fitted map is compared with: other ways to classify images by prompts.

Each takes `(source, target, images, prompts)` and gives scores [n, num_classes] as
`prompt_scores` does:

    source: source anchors [k, d_in], embeddings of the image encoder
    target: target anchors [k, d_out], embeddings of the text encoder, matched by row
    images: embeddings of the image encoder [n, d_in]
    prompts: class prompts in the text encoder's space [p, d_out]

All are pure and safe under `jit` and `vmap`. They raise TypeError for embeddings that are not
floating point and ValueError for shapes that do not match, NaN or infinity. The linear probe,
which learns from labels, is here as a reference. A multimodal model needs neither anchors nor a
map: `prompt_scores` of its own embeddings are its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    counts,
    eigh,
    matmul,
    safe_inverse,
    svd,
    transpose,
)
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap, identity_map
from ..metrics import cosine_similarity, normalize_rows
from ..metrics.samples import integers
from ..stitching.heads import fit_head
from .scores import (
    TASKS,
    TEMPERATURE,
    EmbeddedPrompts,
    Task,
    above_zero,
    prompt_prototypes,
    prompt_scores,
    prototype_scores,
)
from .truth import checked_truth

#: `(source, target, images, prompts) -> scores [n, num_classes]`.
Baseline: TypeAlias = Callable[[Array, Array, Array, EmbeddedPrompts], Array]


class CanonicalMaps(NamedTuple):
    """Projections of two spaces into their canonical coordinates.

    Attributes:
        source: affine map [d_in, r].
        target: affine map [d_out, r].
        correlations: canonical correlations [r], descending, in [0, 1].
    """

    source: AffineMap
    target: AffineMap
    correlations: Array


# --- no alignment ------------------------------------------------------------------------------


def naive_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """The images as they are, dimensions zero-padded or cut at the end; see `identity_map`.

    Args:
        source: source anchors [k, d_in], of which only the dimension matters.
        target: target anchors [k, d_out], likewise.
        images: [n, d_in].
        prompts: [p, d_out].
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _checked(source, target, images, prompts)
    naive = identity_map(source.shape[1], target.shape[1], dtype=images.dtype)
    return prompt_scores(naive(images), prompts, temperature=temperature)


# --- similarities to anchors -------------------------------------------------------------------


def relative_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    center: bool = False,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """Relative representations (Moschella et al. 2023, arXiv 2209.15430).

    Every embedding becomes the vector of its cosines with the anchors of its own side, [k]; these
    are compared by cosine. Invariant to rotations and isotropic scale of either space.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        center: whether the anchors' mean is subtracted on either side (static; not in the paper).
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts, center)
    texts = cosine_similarity(prompts.embeddings, target)
    return prompt_scores(
        cosine_similarity(images, source),
        replace(prompts, embeddings=texts),
        temperature=temperature,
    )


def asif_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    top: int = 50,
    exponent: float | Array = 8.0,
    center: bool = False,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """ASIF: sparse relative representations (Norelli et al. 2023, arXiv 2210.01738).

    Of the cosines with the anchors, the `top` largest are kept, raised to the power `exponent`
    and compared by cosine. The paper takes 800 and 8 with 1.6 million pairs; `top` of 10 to 50 did
    best on validation rows of the demo with 50 to 800 pairs. Negative cosines, which few anchors
    let through, count as zero here. Prompts of a class are averaged in the sparse space.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        top: how many anchors each embedding keeps, at least 1 (static); all of them if there are
            fewer.
        exponent: > 0, may be traced.
        center: whether the anchors' mean is subtracted on either side (static; not in the paper).
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts, center)
    top = min(checks.positive_int("top", top), source.shape[0])
    exponent = above_zero("exponent", exponent)
    texts = _sparse(cosine_similarity(prompts.embeddings, target), top, exponent)
    return prompt_scores(
        _sparse(cosine_similarity(images, source), top, exponent),
        replace(prompts, embeddings=texts),
        temperature=temperature,
    )


@partial(jax.jit, static_argnums=1)
def _sparse(similarity: Array, top: int, exponent: Array) -> Array:
    """The `top` largest of every row, without negative ones, to a power; zero elsewhere."""
    values, columns = jax.lax.top_k(similarity, top)
    # Powers of small cosines underflow in float32; the rows' scale is free.
    largest = values[:, :1]
    values = jnp.maximum(values, 0) * safe_inverse(largest, largest > 0)
    rows = jnp.arange(similarity.shape[0])[:, None]
    powers = values ** exponent.astype(similarity.dtype)
    return jnp.zeros_like(similarity).at[rows, columns].set(powers)


# --- canonical correlations --------------------------------------------------------------------


def fit_canonical(
    source: ArrayLike, target: ArrayLike, *, ridge: float | Array = 1.0, dims: int | None = None
) -> CanonicalMaps:
    """Regularised canonical correlation analysis of anchors (Hotelling 1936; Vinod 1976).

    Both sides are centred and whitened by (C + ridge tr(C) / d I)^(-1/2), C their covariance; the
    singular vectors and values of the whitened cross-covariance are the canonical directions and
    correlations.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        ridge: >= 0, in units of the mean variance of a side; may be traced. Without it, and with
            no more anchors than dimensions, all correlations are 1 and mean nothing. The default
            was chosen on validation rows of the demo, where 1 to 3 did far better than 0.1.
        dims: how many canonical coordinates to keep (static); None means all min(k, d_in, d_out).

    Returns:
        `CanonicalMaps`. Not differentiable.
    """
    source, target = checks.pair(source, target)
    limit = min(source.shape[0], source.shape[1], target.shape[1])
    dims = limit if dims is None else min(checks.positive_int("dims", dims), limit)
    return _canonical_maps(dims, source, target, checks.scalar("ridge", ridge))


@partial(jax.jit, static_argnums=0)
def _canonical_maps(dims: int, source: Array, target: Array, ridge: Array) -> CanonicalMaps:
    dtype = common_dtype(source.dtype, target.dtype)
    work = compute_dtype(dtype)
    ridge = ridge.astype(work)
    sides = [_whitened(a.astype(work), ridge) for a in (source, target)]
    (left, inverse_left, mean_left), (right, inverse_right, mean_right) = sides
    u, s, vt = svd(matmul(transpose(left), right))
    weights = matmul(inverse_left, u[:, :dims]), matmul(inverse_right, transpose(vt)[:, :dims])
    first, second = (
        AffineMap(w.astype(dtype), mean.astype(dtype), jnp.zeros(dims, dtype))
        for w, mean in zip(weights, (mean_left, mean_right), strict=True)
    )
    return CanonicalMaps(first, second, jnp.minimum(s[:dims], 1).astype(dtype))


def _whitened(rows: Array, ridge: Array) -> tuple[Array, Array, Array]:
    """Whitened anchors [k, r], the matrix [d, r] that whitens, and the mean [d]."""
    mean = jnp.mean(rows, axis=0)
    u, s, vt = svd(rows - mean[None, :])
    root = jnp.sqrt(s * s + ridge * jnp.sum(s * s) / rows.shape[1])
    inverse = safe_inverse(root, counts(s))
    return u * (s * inverse)[None, :], transpose(vt) * inverse[None, :], mean


def cca_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    ridge: float | Array = 1.0,
    dims: int | None = None,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """Cosine in canonical coordinates, in which all of them count the same.

    With all coordinates and equal dimensions this is also an orthogonal map between the whitened
    spaces.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        ridge: see `fit_canonical`; 0 is canonical correlation analysis without a penalty.
        dims: see `fit_canonical`.
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _checked(source, target, images, prompts)
    maps = fit_canonical(source, target, ridge=ridge, dims=dims)
    projected = replace(prompts, embeddings=maps.target(prompts.embeddings))
    return prompt_scores(maps.source(images), projected, temperature=temperature)


def csa_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    ridge: float | Array = 1.0,
    dims: int | None = None,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """Canonical similarity analysis (Li, Chinchali and Topcu 2025, arXiv 2410.07610).

    Both sides are projected on their canonical coordinates, and compared by the cosine in which
    coordinate i counts with its canonical correlation rho_i: sum_i rho_i u_i v_i for the unit
    vectors u and v. The paper has no penalty and so needs more anchors than dimensions; `ridge`
    allows fewer. Invariant to rotations, offsets and isotropic scale of either space.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        ridge: see `fit_canonical`.
        dims: see `fit_canonical`.
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _checked(source, target, images, prompts)
    temperature = above_zero("temperature", temperature)
    maps = fit_canonical(source, target, ridge=ridge, dims=dims)
    projected = replace(prompts, embeddings=maps.target(prompts.embeddings))
    units = normalize_rows(maps.source(images)) * maps.correlations[None, :]
    return prototype_scores(units, prompt_prototypes(projected), prompts.task, temperature)


# --- other regressions -------------------------------------------------------------------------


def kernel_ridge_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    ridge: float | Array = 0.1,
    bandwidth: float | Array = 1.0,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """Kernel ridge regression of the target on a Gaussian kernel of the source.

    The kernel is exp(-distance^2 / (2 bandwidth^2 m)), m the mean squared distance of two anchors.
    Targets are centred; compared are deviations from their mean.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        ridge: added to the diagonal of the kernel matrix, > 0; may be traced.
        bandwidth: > 0, may be traced.
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts)
    values = [above_zero(n, a) for n, a in (("ridge", ridge), ("bandwidth", bandwidth))]
    mapped = _kernel_ridge(source, target, images, *values)
    return prompt_scores(mapped, prompts, temperature=temperature)


@jax.jit
def _kernel_ridge(
    source: Array, target: Array, images: Array, ridge: Array, bandwidth: Array
) -> Array:
    ridge, bandwidth = (a.astype(source.dtype) for a in (ridge, bandwidth))
    # Of centred anchors the mean squared distance is twice the mean squared norm.
    spread = 4 * bandwidth**2 * jnp.mean(jnp.sum(source * source, axis=1))
    inverse = safe_inverse(spread, spread > 0)

    def kernel(rows: Array) -> Array:
        squares = [jnp.sum(a * a, axis=1) for a in (rows, source)]
        cross = matmul(rows, transpose(source))
        distances = squares[0][:, None] + squares[1][None, :] - 2 * cross
        return jnp.exp(-jnp.maximum(distances, 0) * inverse)

    values, vectors = eigh(kernel(source))
    dual = matmul(transpose(vectors), target) / (jnp.maximum(values, 0) + ridge)[:, None]
    return matmul(kernel(images), matmul(vectors, dual))


def reduced_rank_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    rank: int = 32,
    ridge: float | Array = 1.0,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """Reduced rank regression: the affine map of at most this rank with the least penalised error.

    (Izenman 1975; Mukherjee and Zhu 2011.) The ridge map, projected on the principal directions of
    what it fits; compared are deviations from the mean of the target.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        rank: >= 1 (static).
        ridge: in units of the mean diagonal of the Gram matrix, >= 0; may be traced.
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts)
    rank, ridge = checks.positive_int("rank", rank), checks.scalar("ridge", ridge)
    weight = _reduced_rank(rank, *_moments(source, target), ridge)
    return prompt_scores(matmul(images, weight), prompts, temperature=temperature)


def diagonal_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    rank: int = 32,
    ridge: float | Array = 1.0,
    rounds: int = 10,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """A diagonal and a matrix of low rank, each fitted in turn to what the other leaves.

    The form of adapters between versions of one encoder; for equal dimensions. Compared are
    deviations from the mean of the target.

    Args:
        source: source anchors [k, d].
        target: target anchors [k, d].
        images: [n, d].
        prompts: [p, d].
        rank: of the second matrix, >= 1 (static).
        ridge: on both, in units of the mean diagonal of the Gram matrix, >= 0; may be traced.
        rounds: how often both are fitted (static).
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts)
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"source and target must have equal dimensions for a diagonal; got {source.shape} and "
            f"{target.shape}"
        )
    rank, ridge = checks.positive_int("rank", rank), checks.scalar("ridge", ridge)
    rounds = checks.positive_int("rounds", rounds)
    weight = _diagonal_and_low_rank(rank, rounds, *_moments(source, target), ridge)
    return prompt_scores(matmul(images, weight), prompts, temperature=temperature)


def whitened_scores(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    *,
    ridge: float | Array = 1.0,
    temperature: float | Array = TEMPERATURE,
) -> Array:
    """The ridge map, compared in the target space whitened by its anchors.

    Args:
        source: source anchors [k, d_in].
        target: target anchors [k, d_out].
        images: [n, d_in].
        prompts: [p, d_out].
        ridge: of the map and of the whitening, in units of the mean diagonal of the Gram matrix
            and the mean variance, >= 0; may be traced.
        temperature: see `prompt_scores`.
    """
    source, target, images, prompts = _centred(source, target, images, prompts)
    ridge = checks.scalar("ridge", ridge)
    weight = _reduced_rank(target.shape[1], *_moments(source, target), ridge)
    _, whiten, _ = _whitened(target, ridge.astype(target.dtype))
    whitened = replace(prompts, embeddings=matmul(prompts.embeddings, whiten))
    mapped = matmul(images, matmul(weight, whiten))
    return prompt_scores(mapped, whitened, temperature=temperature)


@jax.jit
def _moments(source: Array, target: Array) -> tuple[Array, Array]:
    return matmul(transpose(source), source), matmul(transpose(source), target)


@partial(jax.jit, static_argnums=0)
def _reduced_rank(rank: int, gram: Array, cross: Array, ridge: Array) -> Array:
    """The weight from x^T x and x^T y of centred anchors."""
    values, vectors = eigh(gram)
    shrunk = jnp.maximum(values, 0) + ridge.astype(gram.dtype) * jnp.mean(values)
    kept = jnp.maximum(values, 0) > jnp.finfo(gram.dtype).eps * values[-1]
    inverse = safe_inverse(shrunk, kept & (shrunk > 0))
    turned = matmul(transpose(vectors), cross)
    weight = matmul(vectors, inverse[:, None] * turned)
    if rank >= min(cross.shape):
        return weight
    # W^T (x^T x + penalty) W: the directions are those of the fit, with the penalty as more rows.
    directions = eigh(matmul(transpose(turned), inverse[:, None] * turned))[1][:, -rank:]
    return matmul(matmul(weight, directions), transpose(directions))


@partial(jax.jit, static_argnums=(0, 1))
def _diagonal_and_low_rank(
    rank: int, rounds: int, gram: Array, cross: Array, ridge: Array
) -> Array:
    power = jnp.diagonal(gram)
    power = power + ridge.astype(gram.dtype) * jnp.mean(power)
    inverse = safe_inverse(power, power > 0)

    def better(weight: Array) -> tuple[Array, Array]:
        diagonal = jnp.diagonal(cross - matmul(gram, weight)) * inverse
        rest = cross - gram * diagonal[None, :]
        return _reduced_rank(rank, gram, rest, ridge), diagonal

    begin = jnp.zeros_like(gram), jnp.zeros_like(power)
    weight, diagonal = jax.lax.fori_loop(0, rounds, lambda _, state: better(state[0]), begin)
    return weight + jnp.diag(diagonal)


# --- labels ------------------------------------------------------------------------------------


def linear_probe_scores(
    embeddings: ArrayLike,
    labels: ArrayLike,
    images: ArrayLike,
    num_classes: int,
    *,
    task: Task,
    l2: float | Array = 1.0,
    known: ArrayLike | None = None,
) -> Array:
    """Logistic regression on labelled images: what the same number of labels would be worth.

    Args:
        embeddings: labelled images under the image encoder [k, d].
        labels: classes [k] in [0, num_classes) for a single-label task, else booleans or 0/1
            [k, num_classes].
        images: images to score [n, d].
        num_classes: number of classes (static).
        task: see `zeroshot.Task` (static); a multi-label one takes a regression a finding.
        l2: see `fit_head`, for unit-norm or other embeddings as they are. A finding is a problem of
            two classes: scikit-learn's `C=2/l2`.
        known: of a multi-label task, bool [k, num_classes], which labels are known; others may hold
            anything. None means all.

    Returns:
        Probabilities [n, num_classes].

    Raises:
        TypeError: for embeddings that are not floating point, labels that are not integers or
            `known` that is not boolean.
        ValueError: for shapes that do not match, labels out of range or `known` of a single-label
            task.
    """
    checks.option("task", task, TASKS)
    num_classes = checks.positive_int("num_classes", num_classes)
    embeddings = checks.float_array("embeddings", embeddings, 2)
    images = checks.float_array("images", images, 2)
    if images.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"images must have the {embeddings.shape[1]} features of embeddings; got {images.shape}"
        )
    embeddings, images = (a.astype(compute_dtype(a.dtype)) for a in (embeddings, images))
    truth = checked_truth(labels, known, (embeddings.shape[0], num_classes), task)
    if task == "single-label":
        head = fit_head(embeddings, truth.labels, num_classes, l2=l2)
        return jax.nn.softmax(head(images), axis=-1)
    known = np.ones(truth.labels.shape, bool) if truth.known is None else truth.known
    # As they came: of traced labels, those that are neither 0 nor 1 make the scores NaN.
    columns = integers("labels", labels, truth.labels.shape)

    def of_class(column: Array, weights: Array) -> AffineMap:
        return fit_head(embeddings, column, 2, l2=l2, weights=weights)

    heads = jax.vmap(of_class, in_axes=1)(columns, jnp.asarray(known))
    return _positive_shares(heads, images)


@jax.jit
def _positive_shares(heads: AffineMap, images: Array) -> Array:
    """Probabilities [n, findings] by heads of the two classes of each finding."""
    logits = heads(images)
    return transpose(jax.nn.sigmoid(logits[..., 1] - logits[..., 0]))


#: The baselines that need anchors and have no map, by name.
BASELINES: Mapping[str, Baseline] = {
    "relative": relative_scores,
    "asif": asif_scores,
    "csa": csa_scores,
}
#: More of them, which the protocol and studies run where they are asked for.
MORE_BASELINES: Mapping[str, Baseline] = {
    "cca": cca_scores,
    "kernel-ridge": kernel_ridge_scores,
    "reduced-rank": reduced_rank_scores,
    "diagonal": diagonal_scores,
    "whitened": whitened_scores,
}


def _checked(
    source: ArrayLike, target: ArrayLike, images: ArrayLike, prompts: EmbeddedPrompts
) -> tuple[Array, Array, Array, EmbeddedPrompts]:
    """The arguments of a baseline in one dtype that is computed with, see `prompt_scores`."""
    texts = prompts.embeddings
    arrays = {"source": source, "target": target, "images": images, "prompts": texts}
    checked = {name: checks.float_array(name, value, 2) for name, value in arrays.items()}
    for name, array in checked.items():
        if checks.is_concrete(array):
            checks.finite_rows(name, array)
    shapes = {name: array.shape for name, array in checked.items()}
    if shapes["source"][0] != shapes["target"][0]:
        raise ValueError(
            f"source and target must have the same number of rows; got {shapes['source']} and "
            f"{shapes['target']}"
        )
    for name, like in (("images", "source"), ("prompts", "target")):
        if shapes[name][1] != shapes[like][1]:
            raise ValueError(
                f"{name} must have the {shapes[like][1]} features of {like}; got {shapes[name]}"
            )
    dtype = compute_dtype(checked["source"].dtype)
    for array in checked.values():
        dtype = common_dtype(dtype, array.dtype)
    source, target, images, texts = (a.astype(dtype) for a in checked.values())
    return source, target, images, replace(prompts, embeddings=texts)


def _centred(
    source: ArrayLike,
    target: ArrayLike,
    images: ArrayLike,
    prompts: EmbeddedPrompts,
    center: bool = True,
) -> tuple[Array, Array, Array, EmbeddedPrompts]:
    """As `_checked`, as deviations from the anchors' means if wanted."""
    checked = _checked(source, target, images, prompts)
    return _without_means(*checked) if checks.flag("center", center) else checked


@jax.jit
def _without_means(
    source: Array, target: Array, images: Array, prompts: EmbeddedPrompts
) -> tuple[Array, Array, Array, EmbeddedPrompts]:
    """Deviations from the anchors' means."""
    first, second = (jnp.mean(a, axis=0, keepdims=True) for a in (source, target))
    texts = replace(prompts, embeddings=prompts.embeddings - second)
    return source - first, target - second, images - first, texts
