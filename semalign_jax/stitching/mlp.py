"""Heads with one hidden layer on embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._core import checks
from .._core.linalg import matmul, safe_inverse, transpose
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from ..maps.mlp_head import ACTIVATIONS, Activation, MlpHead
from ._linear_search import terms_of
from .heads import HeadInfo
from .training_data import Loss, checked_data, inverse_or_zero, prepared_rows


@overload
def fit_mlp_head(
    key: Array,
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    units: int = 128,
    activation: Activation = "gelu",
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    info: Literal[False] = False,
) -> MlpHead: ...


@overload
def fit_mlp_head(
    key: Array,
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    units: int = 128,
    activation: Activation = "gelu",
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    info: Literal[True],
) -> tuple[MlpHead, HeadInfo]: ...


def fit_mlp_head(
    key: Array,
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    units: int = 128,
    activation: Activation = "gelu",
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    info: bool = False,
) -> MlpHead | tuple[MlpHead, HeadInfo]:
    """A head with one hidden layer, trained on all rows at once with L-BFGS.

    Minimises sum_i w_i loss(z_i, label_i) + l2/2 (||W_1||^2 + ||W_2||^2) from a random start
    (He et al. 2015). Embeddings are centred and divided by one number, their root mean square,
    which is folded into the first layer; W_1 is the weight on these. Losses of several labels are
    added up. The problem is not convex: another key gives another head, about as good.

    Safe under `jit` and `vmap`, e.g. over `key` or `weights`. Its training can be differentiated
    in forward mode only.

    Args:
        key: PRNG key of the start.
        x: embeddings [n, d].
        labels: see `fit_head`.
        num_classes: number of classes or labels (static). None means as many as concrete labels
            have.
        units: width of the hidden layer (static).
        activation: "relu", "tanh" or "gelu" (static). At the kinks of "relu" the gradient does
            not vanish, so that the tolerance is rarely reached.
        loss: see `fit_head` (static).
        l2: penalty on the squared weights, >= 0; may be traced.
        weights: see `fit_head`.
        known: see `fit_head`.
        tolerance: stop when no entry of the gradient of the mean loss exceeds it, relative to
            the start.
        max_steps: stop after so many L-BFGS steps (static).
        info: whether to return, too, how the training ended (static).

    Returns:
        `MlpHead`; `head(x)` are the logits or decision values. With `info` a pair of it and a
        `HeadInfo`.

    Raises:
        TypeError: see `fit_head`.
        ValueError: see `fit_head`, and for an unknown activation.
    """
    key = checks.prng_key("key", key)
    data = checked_data(x, labels, num_classes, loss, weights, known)
    static = (
        loss,
        data.num_classes,
        checks.positive_int("units", units),
        checks.option("activation", activation, ACTIVATIONS),
        checks.positive_int("max_steps", max_steps),
    )
    info = checks.flag("info", info)
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    found = _fit_mlp_head(*static, key, data.x, data.labels, data.weights, *scalars)
    return found if info else found[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _fit_mlp_head(
    loss_name,
    num_classes,
    units,
    activation,
    max_steps,
    key,
    x,
    labels,
    weights,
    l2,
    tolerance,
):
    dtype = x.dtype
    rows = prepared_rows(loss_name, num_classes, x, labels, weights)
    # One unit for all labels, which share the hidden layer: else rarely known ones count for more.
    inverse = inverse_or_zero(jnp.mean(jnp.sum(rows.weights, axis=1)))
    penalty = l2.astype(inverse.dtype) * inverse / 2
    variance = jnp.sum(rows.share * jnp.mean(rows.x * rows.x, axis=1))
    scale = jnp.sqrt(safe_inverse(variance, variance > 0))
    x = rows.x * scale
    act = ACTIVATIONS[activation]

    def logits(params):
        (first, first_bias), (second, second_bias) = params
        hidden = act(matmul(x, first) + first_bias[None, :])
        return matmul(hidden, second) + second_bias[None, :]

    def loss(params):
        squares = sum(jnp.sum(weight * weight) for weight, _ in params)
        losses = terms_of(loss_name, transpose(logits(params)), rows.target).loss
        return jnp.sum(rows.weights * inverse * losses) + penalty * squares

    def start(key, d_in, d_out, gain):
        weight = jax.random.normal(key, (d_in, d_out), x.dtype) * float(np.sqrt(gain / d_in))
        return weight, jnp.zeros(d_out, x.dtype)

    keys = jax.random.split(key)
    initial = start(keys[0], x.shape[1], units, 2), start(keys[1], units, num_classes, 1)
    layers, info = _minimize(loss, initial, tolerance.astype(x.dtype), max_steps)
    (first, first_bias), (second, second_bias) = jax.tree.map(lambda a: a.astype(dtype), layers)
    hidden = AffineMap(first * scale.astype(dtype), rows.center.astype(dtype), first_bias)
    return MlpHead(hidden, AffineMap.from_weight(second, second_bias), activation), info


def _minimize(
    loss: Callable[[Any], Array], start: Any, tolerance: Array, max_steps: int
) -> tuple[Any, HeadInfo]:
    """Minimise `loss` by L-BFGS from `start`, a pytree, until its gradient is small."""
    optimizer = optax.lbfgs()
    # optax annotates losses as returning a Python float
    value_and_grad = optax.value_and_grad_from_state(cast(Callable[..., float], loss))

    def size(gradient):
        return optax.tree.norm(gradient, ord=jnp.inf)

    # The gradient scales with the data: compare it with that of the start.
    bound = tolerance * size(jax.grad(loss)(start))

    def current_size(state):
        return size(optax.tree.get(state, "grad"))

    def unfinished(carry):
        _, state = carry
        step = optax.tree.get(state, "count")
        return (step == 0) | ((step < max_steps) & (current_size(state) > bound))

    def step(carry):
        params, state = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        params, state = lax.while_loop(unfinished, step, (start, optimizer.init(start)))
    left = current_size(state)
    return params, HeadInfo(optax.tree.get(state, "count"), left, loss(params), left <= bound)
