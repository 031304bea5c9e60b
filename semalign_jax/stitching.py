"""Stitching: a classification head of one encoder runs on mapped embeddings of another."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _checks
from ._linalg import compute_dtype, matmul, safe_inverse
from ._maps import AffineMap, identity_map
from ._typing import Array, ArrayLike
from .metrics import accuracy


class HeadInfo(NamedTuple):
    """How the training of a head ended.

    Attributes:
        steps: int32 scalar, L-BFGS steps taken.
        gradient: scalar, largest absolute entry of the gradient of the mean loss.
        loss: scalar, mean cross-entropy plus penalty.
        converged: bool scalar, whether `gradient` is within the tolerance.
    """

    steps: Array
    gradient: Array
    loss: Array
    converged: Array


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


def class_labels(name: str, labels: ArrayLike, rows: int, num_classes: int) -> Array:
    """Check integer classes [rows] in [0, num_classes)."""
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer classes; got dtype {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},); got {array.shape}")
    if _checks.is_concrete(array):
        host = np.asarray(array)
        bad = np.flatnonzero((host < 0) | (host >= num_classes))
        if bad.size:
            raise ValueError(
                f"{name} must be in [0, {num_classes}); row {bad[0]} has {host[bad[0]]}"
            )
    return jnp.asarray(array, jnp.int32)


def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> AffineMap:
    """Multinomial logistic regression, the decoder that is stitched.

    Minimises sum_i w_i CE(x_i W + b, label_i) + l2/2 ||W||^2 with L-BFGS; the intercept is not
    penalised, so it equals scikit-learn's `LogisticRegression(C=1/l2)`.

    Args:
        x: embeddings [n, d].
        labels: classes [n], integers in [0, num_classes).
        num_classes: number of classes (static).
        l2: penalty on the squared weights, >= 0; may be traced.
        weights: [n], >= 0, floats or a boolean mask; rows of weight zero are inert.
        tolerance: stop when no entry of the gradient of the mean loss exceeds it, relative to
            the loss at zero.
        max_steps: stop after so many L-BFGS steps (static).

    Returns:
        The head as an `AffineMap` [d, num_classes] of kind "head"; `head(x)` are the logits.

    Raises:
        TypeError: for embeddings that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match or labels outside [0, num_classes).
    """
    return fit_head_with_info(
        x,
        labels,
        num_classes,
        l2=l2,
        weights=weights,
        tolerance=tolerance,
        max_steps=max_steps,
    )[0]


def fit_head_with_info(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> tuple[AffineMap, HeadInfo]:
    """Like `fit_head`, and report how the optimisation ended; see there."""
    x = _checks.float_array("x", x, 2)
    num_classes = _checks.positive_int("num_classes", num_classes)
    labels = class_labels("labels", labels, x.shape[0], num_classes)
    max_steps = _checks.positive_int("max_steps", max_steps)
    weights = jnp.ones(x.shape[0]) if weights is None else weights
    weights = _checks.row_weights(weights, x.shape[0])
    scalars = _checks.scalar("l2", l2), _checks.scalar("tolerance", tolerance)
    return _fit_head(num_classes, max_steps, x, labels, weights, *scalars)


@partial(jax.jit, static_argnums=(0, 1))
def _fit_head(num_classes, max_steps, x, labels, weights, l2, tolerance):
    dtype = x.dtype
    work = compute_dtype(dtype)
    w = jnp.where(weights > 0, weights, 0).astype(work)
    x = jnp.where(w[:, None] > 0, x.astype(work), 0)
    total = jnp.sum(w)
    share = w * safe_inverse(total, total > 0)
    # Centring changes nothing but the intercept and conditions the problem far better.
    center = matmul(share, x)
    x = jnp.where(w[:, None] > 0, x - center[None, :], 0)
    penalty = l2.astype(work) * safe_inverse(total, total > 0) / 2

    def loss(params):
        weight, bias = params
        losses = optax.softmax_cross_entropy_with_integer_labels(
            matmul(x, weight) + bias[None, :], labels
        )
        return matmul(share, losses) + penalty * jnp.sum(weight * weight)

    optimizer = optax.lbfgs()
    # optax annotates losses as returning a Python float
    value_and_grad = optax.value_and_grad_from_state(cast(Callable[..., float], loss))
    start = (jnp.zeros((x.shape[1], num_classes), work), jnp.zeros(num_classes, work))
    # The gradient scales with the data: compare it with that of the start.
    initial = jax.grad(loss)(start)
    bound = tolerance.astype(work) * optax.tree.norm(initial, ord=jnp.inf)

    def gradient_size(state):
        return optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)

    def unfinished(carry):
        _, state = carry
        step = optax.tree.get(state, "count")
        return (step == 0) | ((step < max_steps) & (gradient_size(state) > bound))

    def step(carry):
        params, state = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return cast(tuple[Array, Array], optax.apply_updates(params, updates)), state

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        params, state = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start)))
    weight, bias = params
    size = gradient_size(state)
    info = HeadInfo(optax.tree.get(state, "count"), size, loss(params), size <= bound)
    head = AffineMap(weight.astype(dtype), center.astype(dtype), bias.astype(dtype), "head")
    return head, info


def stitch(head: AffineMap, mapping: AffineMap) -> AffineMap:
    """Fold a map into a head: `stitch(head, mapping)(x)` are the logits `head(mapping(x))`.

    Args:
        head: head of the target encoder [d_out, classes].
        mapping: map from the source to the target space [d_in, d_out].

    Returns:
        A head [d_in, classes] for the source encoder, as an `AffineMap` of kind "head".

    Raises:
        ValueError: if the map does not end in the head's space.
    """
    return mapping.then(head)


def head_accuracy(
    head: AffineMap, x: Array, labels: Array, *, weights: Array | None = None
) -> Array:
    """Accuracy of a head's argmax on embeddings `x` [n, d] with classes `labels` [n]."""
    return accuracy(labels, jnp.argmax(head(x), axis=-1), weights=weights)


def evaluate_stitching(
    head: AffineMap, mapping: AffineMap, x: Array, y: Array, labels: Array
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
