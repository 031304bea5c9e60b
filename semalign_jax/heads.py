"""Classification heads on embeddings: logistic regression, linear SVM and a small MLP."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._core import checks
from ._core.linalg import compute_dtype, matmul, safe_inverse
from ._core.typing import Array, ArrayLike
from ._samples import in_range, integers, poisoned, targets
from .maps.affine_map import AffineMap

#: What a head minimises, see `fit_head`.
Loss: TypeAlias = Literal["multinomial", "multilabel", "hinge"]
LOSSES: tuple[Loss, ...] = get_args(Loss)

#: What an MLP applies between its two layers.
Activation: TypeAlias = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


class HeadInfo(NamedTuple):
    """How the training of a head ended.

    Where classes or labels are separate problems ("multilabel" and "hinge" of `fit_head`), losses
    are added up, and each has to converge by its own tolerance.

    Attributes:
        steps: int32 scalar, L-BFGS steps taken.
        gradient: scalar, largest absolute entry of the gradient of the mean loss.
        loss: scalar, mean loss plus penalty.
        converged: bool scalar, whether `gradient` is within the tolerance.
    """

    steps: Array
    gradient: Array
    loss: Array
    converged: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MlpHead:
    """A head with one hidden layer, `output(activation(hidden(x)))`; a frozen pytree.

    Leading batch axes of both maps stand for many heads at once. `mapping >> head` folds an
    `AffineMap` into the hidden layer.

    Attributes:
        hidden: map [..., d, units].
        output: map [..., units, classes].
        activation: "relu", "tanh" or "gelu" (static).
    """

    hidden: AffineMap
    output: AffineMap
    activation: Activation = field(default="gelu", metadata={"static": True})

    @property
    def d_in(self) -> int:
        """Dimension of the embeddings."""
        return self.hidden.d_in

    @property
    def d_out(self) -> int:
        """Number of classes or labels."""
        return self.output.d_out

    def apply(self, x: ArrayLike) -> Array:
        """Logits [..., n, classes] of embeddings `x` [..., n, d], or of one, [d]."""
        return self.after_hidden(self.hidden(x))

    __call__ = apply

    def after_hidden(self, values: ArrayLike) -> Array:
        """Logits from the values of the hidden layer before the activation [..., n, units]."""
        return self.output(_ACTIVATIONS[self.activation](jnp.asarray(values)))

    def __rrshift__(self, mapping: AffineMap) -> "MlpHead":
        """`mapping >> self`: apply the map, then this head."""
        if not isinstance(mapping, AffineMap):
            return NotImplemented
        return MlpHead(mapping.then(self.hidden), self.output, self.activation)


#: What reads a space: an affine map, e.g. of `fit_head`, or an MLP.
Head: TypeAlias = AffineMap | MlpHead


def first_layer(head: Head) -> AffineMap:
    """The affine map that a head begins with: all of it, or the hidden layer of an MLP."""
    return head.hidden if isinstance(head, MlpHead) else head


def after_first_layer(head: Head, values: Array) -> Array:
    """Logits from what `first_layer` gives."""
    return head.after_hidden(values) if isinstance(head, MlpHead) else values


# --- linear heads ------------------------------------------------------------------------------


def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    penalize_intercept: bool | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> AffineMap:
    """A linear head, the decoder that is stitched.

    Minimises sum_i w_i loss(x_i W + b, label_i) + l2/2 ||W||^2 with L-BFGS, where `loss` is

    - "multinomial": cross-entropy of the softmax over all classes, scikit-learn's
      `LogisticRegression(C=1/l2)` (for two classes that has one weight vector instead of two
      opposite ones: `C=2/l2`);
    - "multilabel": binary cross-entropy, one independent sigmoid a label, `C=1/l2`;
    - "hinge": squared hinge loss max(0, 1 - s z)^2 with s = +1 in the class and -1 elsewhere,
      each class against the rest: scikit-learn's `LinearSVC(C=1/l2)` (Fan et al. 2008).

    The classes of "hinge" and the labels of "multilabel" are separate problems, side by side.

    Safe under `jit` and `vmap`, e.g. over `weights`, `l2` or `x`; the head is differentiable in
    the embeddings it is applied to, its training in forward mode only.

    Args:
        x: embeddings [n, d].
        labels: classes [n], integers in [0, num_classes); for "multilabel", and where wanted for
            "hinge", booleans or 0/1 [n, num_classes].
        num_classes: number of classes or labels (static).
        loss: "multinomial", "multilabel" or "hinge" (static).
        l2: penalty on the squared weights, >= 0; may be traced.
        weights: [n], >= 0, floats or a boolean mask; rows of weight zero are inert.
        mask: booleans of the shape of `labels`, which labels are known; others may hold
            anything. None means all.
        penalize_intercept: whether b is penalised like W (static). None means as in scikit-learn:
            only for "hinge".
        tolerance: stop when no entry of the gradient of the mean loss exceeds it, relative to
            the loss at zero (of each class or label, if these are separate problems).
        max_steps: stop after so many L-BFGS steps (static).

    Returns:
        The head as an `AffineMap` [d, num_classes] of kind "head"; `head(x)` are the logits or
        decision values. All NaN if a traced label of positive weight is out of range.

    Raises:
        TypeError: for embeddings that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match, labels out of range, an unknown loss; outside
            of `jit` also for NaN or infinite embeddings, bad weights, a class without rows, or a
            label that is the same in all rows (their intercepts have no finite optimum).
    """
    return fit_head_with_info(
        x,
        labels,
        num_classes,
        loss=loss,
        l2=l2,
        weights=weights,
        mask=mask,
        penalize_intercept=penalize_intercept,
        tolerance=tolerance,
        max_steps=max_steps,
    )[0]


def fit_head_with_info(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    penalize_intercept: bool | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> tuple[AffineMap, HeadInfo]:
    """Like `fit_head`, and report how the optimisation ended; see there."""
    data = _checked_data(x, labels, num_classes, loss, weights, mask)
    if penalize_intercept is None:
        penalize_intercept = loss == "hinge"
    static = (
        loss,
        data.num_classes,
        checks.flag("penalize_intercept", penalize_intercept),
        checks.positive_int("max_steps", max_steps),
    )
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    return _fit_head(*static, data.x, data.labels, data.weights, *scalars)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fit_head(
    loss_name, num_classes, penalize_intercept, max_steps, x, labels, weights, l2, tolerance
):
    dtype = x.dtype
    problem = _problem(loss_name, num_classes, x, labels, weights, l2)
    x, center, penalty = problem.x, problem.center, problem.penalty

    def loss(params):
        weight, bias = params
        squares = jnp.sum(weight * weight, axis=0)
        if penalize_intercept:
            squares = squares + (bias - matmul(center, weight)) ** 2
        logits = matmul(x, weight) + bias[None, :]
        mean = _mean_loss(loss_name, logits, problem.target, problem.share)
        return mean + jnp.sum(penalty * squares)

    def largest_of_columns(gradient):
        weight, bias = gradient
        return jnp.maximum(jnp.max(jnp.abs(weight), axis=0), jnp.abs(bias))

    # One search for all columns, also where they are separate problems: on their own (under vmap)
    # each would wait for the longest line search of any, ten times as long. But each must converge.
    size = _largest if loss_name == "multinomial" else largest_of_columns
    start = jnp.zeros((x.shape[1], num_classes), x.dtype), jnp.zeros(num_classes, x.dtype)
    (weight, bias), info = _minimize(loss, start, tolerance.astype(x.dtype), max_steps, size)
    head = AffineMap(weight.astype(dtype), center.astype(dtype), bias.astype(dtype), "head")
    return head, info


# --- MLP ---------------------------------------------------------------------------------------


def fit_mlp_head(
    key: Array,
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    units: int = 128,
    activation: Activation = "gelu",
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
) -> MlpHead:
    """A head with one hidden layer, trained on all rows at once with L-BFGS.

    Minimises sum_i w_i loss(z_i, label_i) + l2/2 (||W_1||^2 + ||W_2||^2) from a random start
    (He et al. 2015). Embeddings are centred and divided by one number, their root mean square,
    which is folded into the first layer; W_1 is the weight on these. Losses of several labels are
    added up. The problem is not convex: another key gives another head, about as good.

    Safe under `jit` and `vmap`, e.g. over `key` or `weights`.

    Args:
        key: PRNG key of the start.
        x: embeddings [n, d].
        labels: see `fit_head`.
        num_classes: number of classes or labels (static).
        units: width of the hidden layer (static).
        activation: "relu", "tanh" or "gelu" (static). At the kinks of "relu" the gradient does
            not vanish, so that the tolerance is rarely reached.
        loss: see `fit_head` (static).
        l2: penalty on the squared weights, >= 0; may be traced.
        weights: see `fit_head`.
        mask: see `fit_head`.
        tolerance: stop when no entry of the gradient of the mean loss exceeds it, relative to
            the start.
        max_steps: stop after so many L-BFGS steps (static).

    Returns:
        `MlpHead`; `head(x)` are the logits or decision values.

    Raises:
        TypeError: see `fit_head`.
        ValueError: see `fit_head`, and for an unknown activation.
    """
    return fit_mlp_head_with_info(
        key,
        x,
        labels,
        num_classes,
        units=units,
        activation=activation,
        loss=loss,
        l2=l2,
        weights=weights,
        mask=mask,
        tolerance=tolerance,
        max_steps=max_steps,
    )[0]


def fit_mlp_head_with_info(
    key: Array,
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    units: int = 128,
    activation: Activation = "gelu",
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
) -> tuple[MlpHead, HeadInfo]:
    """Like `fit_mlp_head`, and report how the optimisation ended; see there."""
    data = _checked_data(x, labels, num_classes, loss, weights, mask)
    static = (
        loss,
        data.num_classes,
        checks.positive_int("units", units),
        checks.option("activation", activation, _ACTIVATIONS),
        checks.positive_int("max_steps", max_steps),
    )
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    return _fit_mlp_head(*static, key, data.x, data.labels, data.weights, *scalars)


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
    problem = _problem(loss_name, num_classes, x, labels, weights, l2)
    x, penalty = problem.x, jnp.mean(problem.penalty)
    variance = jnp.sum(problem.rows * jnp.mean(x * x, axis=1))
    scale = jnp.sqrt(safe_inverse(variance, variance > 0))
    x = x * scale
    act = _ACTIVATIONS[activation]

    def logits(params):
        (first, first_bias), (second, second_bias) = params
        hidden = act(matmul(x, first) + first_bias[None, :])
        return matmul(hidden, second) + second_bias[None, :]

    def loss(params):
        squares = sum(jnp.sum(weight * weight) for weight, _ in params)
        mean = _mean_loss(loss_name, logits(params), problem.target, problem.share)
        return mean + penalty * squares

    def start(key, d_in, d_out, gain):
        weight = jax.random.normal(key, (d_in, d_out), x.dtype) * float(np.sqrt(gain / d_in))
        return weight, jnp.zeros(d_out, x.dtype)

    keys = jax.random.split(key)
    initial = start(keys[0], x.shape[1], units, 2), start(keys[1], units, num_classes, 1)
    layers, info = _minimize(loss, initial, tolerance.astype(x.dtype), max_steps, _largest)
    (first, first_bias), (second, second_bias) = jax.tree.map(lambda a: a.astype(dtype), layers)
    hidden = AffineMap(
        first * scale.astype(dtype), problem.center.astype(dtype), first_bias, "hidden"
    )
    return MlpHead(
        hidden, AffineMap.from_weight(second, second_bias, kind="head"), activation
    ), info


# --- common parts ------------------------------------------------------------------------------


class _Data(NamedTuple):
    """Checked arguments.

    Attributes:
        x: [n, d].
        labels: int32 [n] or [n, num_classes].
        weights: of the shape of `labels`, zero where these are not known.
        num_classes: as an int.
    """

    x: Array
    labels: Array
    weights: Array
    num_classes: int


def _checked_data(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    loss: Loss,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
) -> _Data:
    x = checks.float_array("x", x, 2)
    num_classes = checks.positive_int("num_classes", num_classes)
    checks.option("loss", loss, LOSSES)
    n = x.shape[0]
    labels = checked_labels("labels", labels, n, num_classes, loss)
    weights = jnp.ones(n) if weights is None else weights
    weights = checks.row_weights(weights, n)
    if checks.is_concrete(weights):
        checks.weight_values(weights)
    if labels.ndim == 2:
        weights = jnp.broadcast_to(weights[:, None], labels.shape)
    known = checked_mask("mask", mask, labels)
    if known is not None:
        weights = jnp.where(known, weights, 0)
    if checks.is_concrete(x, weights):
        rows = np.asarray(weights).reshape(n, -1).max(axis=1) > 0
        checks.finite_rows("x", x, rows)
    in_range("labels", labels, num_classes if labels.ndim == 1 else 2, weights)
    if checks.is_concrete(labels, weights):
        _check_present(np.asarray(labels), np.asarray(weights) > 0, num_classes)
    return _Data(x, labels, weights, num_classes)


def checked_labels(name: str, labels: Any, rows: int, num_classes: int, loss: Loss) -> Array:
    """Labels of a loss as int32, [rows] or [rows, num_classes]; values are not looked at."""
    columns = loss == "multilabel" or (loss == "hinge" and np.ndim(labels) == 2)
    return integers(name, labels, (rows, num_classes) if columns else (rows,))


def checked_mask(name: str, mask: Any, labels: Array) -> Array | None:
    """A boolean mask of the shape of `labels`, or None."""
    if mask is None:
        return None
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be booleans, True for known labels; got dtype {mask.dtype}")
    if mask.shape != labels.shape:
        raise ValueError(
            f"{name} must have the shape of the labels {labels.shape}; got {mask.shape}"
        )
    return jnp.asarray(mask)


def _check_present(labels: np.ndarray, active: np.ndarray, num_classes: int) -> None:
    """Refuse classes without rows, and labels that are the same everywhere."""
    if labels.ndim == 1:
        missing = np.setdiff1d(np.arange(num_classes), labels[active])
        if missing.size:
            raise ValueError(
                f"labels has no row of class {missing[0]} with a weight ({missing.size} such "
                f"classes of {num_classes}): leave these out and number the others from 0"
            )
        return
    positive = (active & (labels == 1)).sum(axis=0)
    negative = (active & (labels == 0)).sum(axis=0)
    constant = np.flatnonzero((positive == 0) | (negative == 0))
    if constant.size:
        column = constant[0]
        raise ValueError(
            f"labels must have positive and negative rows for every label; column {column} has "
            f"{positive[column]} positive and {negative[column]} negative known ones "
            f"({constant.size} such columns): leave these out"
        )


class _Problem(NamedTuple):
    """What is minimised: sum(share * loss) + penalty * squares, see `_problem`.

    Attributes:
        x: centred embeddings [n, d], zero in rows without weight.
        center: their mean [d].
        target: int32 classes [n], or booleans [n, num_classes].
        share: weights that add up to 1, of the shape of `target`.
        penalty: scalar or [num_classes].
        rows: weights of the rows that add up to 1 [n].
    """

    x: Array
    center: Array
    target: Array
    share: Array
    penalty: Array
    rows: Array


def _problem(loss_name, num_classes, x, labels, weights, l2) -> _Problem:
    work = compute_dtype(x.dtype)
    w = jnp.where(weights > 0, weights, 0).astype(work)
    if loss_name == "multinomial":
        valid = in_range("labels", labels, num_classes, w)
        target = jnp.where(w > 0, labels, 0)  # ignored ones may hold anything
    else:
        if w.ndim == 1:
            w = jnp.broadcast_to(w[:, None], (len(w), num_classes))
        target, valid = targets(labels, w.shape, w)
    rows = w if w.ndim == 1 else jnp.max(w, axis=1)
    active = (rows > 0)[:, None]
    rows = rows * _inverse(jnp.sum(rows))
    x = jnp.where(active, x.astype(work), 0)
    # Centring changes nothing but the intercept and conditions the problem far better.
    center = matmul(rows, x)
    x = jnp.where(active, x - center[None, :], 0)
    # Each label is divided by its own number of rows, as each is a problem of its own.
    inverse = _inverse(jnp.sum(w, axis=0, keepdims=True))
    share = poisoned(w * inverse, valid)
    return _Problem(x, center, target, share, l2.astype(work) * inverse[0] / 2, rows)


def _inverse(total: Array) -> Array:
    return safe_inverse(total, total > 0)


def _mean_loss(loss_name: Loss, logits: Array, target: Array, share: Array) -> Array:
    """Weighted mean loss; of columns [n, num_classes] the sum of their means."""
    if loss_name == "multinomial":
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    elif loss_name == "multilabel":
        losses = optax.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype))
    else:
        losses = jax.nn.relu(1 - jnp.where(target, logits, -logits)) ** 2
    return jnp.sum(share * losses)


def _largest(gradient: Any) -> Array:
    """Largest absolute entry."""
    return optax.tree.norm(gradient, ord=jnp.inf)


def _minimize(
    loss: Callable[[Any], Array],
    start: Any,
    tolerance: Array,
    max_steps: int,
    size: Callable[[Any], Array],
) -> tuple[Any, HeadInfo]:
    """Minimise `loss` by L-BFGS from `start`, a tuple of arrays.

    `size` measures a gradient by one or several numbers, each of which has to fall to `tolerance`
    times its value at the start.
    """
    optimizer = optax.lbfgs()
    # optax annotates losses as returning a Python float
    value_and_grad = optax.value_and_grad_from_state(cast(Callable[..., float], loss))
    # The gradient scales with the data: compare it with that of the start.
    bound = tolerance * size(jax.grad(loss)(start))

    def current_size(state):
        return size(optax.tree.get(state, "grad"))

    def unfinished(carry):
        _, state = carry
        step = optax.tree.get(state, "count")
        return (step == 0) | ((step < max_steps) & jnp.any(current_size(state) > bound))

    def step(carry):
        params, state = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        params, state = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start)))
    sizes = current_size(state)
    info = HeadInfo(
        optax.tree.get(state, "count"), jnp.max(sizes), loss(params), jnp.all(sizes <= bound)
    )
    return params, info
