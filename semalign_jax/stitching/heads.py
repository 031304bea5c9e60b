"""Linear classification heads on embeddings: logistic regression and linear SVM.

How the optimum is found is in `_linear_search`; heads with a hidden layer are in `mlp`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp

from .._core import checks
from .._core.linalg import transpose
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from ._linear_search import LinearProblem, optimum_of
from .training_data import Loss, checked_data, prepared_rows


@by_value
class HeadInfo(NamedTuple):
    """How the training of a head ended; constants for differentiation.

    Where classes or labels are separate problems ("binary" and "hinge" of `fit_head`), losses
    are added up, and each has to converge by its own tolerance.

    Attributes:
        steps: int32 scalar, steps taken.
        gradient: scalar, largest absolute entry of the gradient of the mean loss.
        loss: scalar, mean loss plus penalty.
        converged: bool scalar, whether the tolerance was reached, see `fit_head` and
            `fit_mlp_head`.
    """

    steps: Array
    gradient: Array
    loss: Array
    converged: Array


@overload
def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    penalize_intercept: bool | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
    info: Literal[False] = False,
) -> AffineMap: ...


@overload
def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    penalize_intercept: bool | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
    info: Literal[True],
) -> tuple[AffineMap, HeadInfo]: ...


def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None = None,
    *,
    loss: Loss = "multinomial",
    l2: float | Array = 1.0,
    weights: ArrayLike | None = None,
    known: ArrayLike | None = None,
    penalize_intercept: bool | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
    info: bool = False,
) -> AffineMap | tuple[AffineMap, HeadInfo]:
    """A linear head, the decoder that is stitched.

    Minimises sum_i w_i loss(x_i W + b, label_i) + l2/2 ||W||^2, where `loss` is

    - "multinomial": cross-entropy of the softmax over all classes, scikit-learn's
      `LogisticRegression(C=1/l2)` (for two classes that has one weight vector instead of two
      opposite ones: `C=2/l2`);
    - "binary": binary cross-entropy, one independent sigmoid a label, `C=1/l2`;
    - "hinge": squared hinge loss max(0, 1 - s z)^2 with s = +1 in the class and -1 elsewhere,
      each class against the rest: scikit-learn's `LinearSVC(C=1/l2)` (Fan et al. 2008).

    The classes of "hinge" and the labels of "binary" are separate problems, side by side.

    The search is L-BFGS whose first guess of the inverse Hessian is a weighted Gram matrix,
    renewed now and then, and the stopping rule is a decrease of the loss: neither depends on
    offset and unit of the embeddings, nor on those of single features (up to values of about 1e17
    in float32, whose squares have to be finite).

    Safe under `jit`, `vmap` (e.g. over `weights`, `l2` or `x`) and `jax.shard_map`. The head is
    differentiable, in forward and reverse mode, with respect to `x`, `weights` and `l2`: by the
    implicit function theorem, so that the derivative is as accurate as the optimum (choose a
    small tolerance) and takes about as long as the search. It needs l2 > 0, or classes that are
    not separable.

    Args:
        x: embeddings [n, d].
        labels: classes [n], integers in [0, num_classes), or names, of which class i is the i-th in
            alphabetical order; for "binary", and where wanted for "hinge", booleans or 0/1 [n,
            num_classes].
        num_classes: number of classes or labels (static). None means as many as concrete labels
            have.
        loss: "multinomial", "binary" or "hinge" (static).
        l2: penalty on the squared weights, >= 0; may be traced.
        weights: [n], >= 0, floats or a boolean mask; rows of weight zero are inert.
        known: booleans of the shape of `labels`, which labels are known; others may hold
            anything. None means all.
        penalize_intercept: whether b is penalised like W (static). None means as in scikit-learn:
            only for "hinge".
        tolerance: stop where a Newton step promises to lower the minimised sum (of each class or
            label, if these are separate problems) by at most this share of it. That step is still
            taken, so that the result is better. Values below the machine epsilon count as that.
        max_steps: stop after so many steps (static).
        info: whether to return, too, how the search ended (static).

    Returns:
        The head as an `AffineMap` [d, num_classes]; `head(x)` are the logits or decision values.
        All NaN if a traced label of positive weight is out of range. With `info` a pair of the
        head and a `HeadInfo`.

    Raises:
        TypeError: for embeddings that are not floating point or labels that are not integers.
        ValueError: for shapes that do not match, labels out of range, an unknown loss; outside
            of `jit` also for NaN or infinite embeddings, bad weights, a class without rows, or a
            label that is the same in all rows (their intercepts have no finite optimum).

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> labels = x[:, 0] > 0
        >>> head = sa.fit_head(x, labels, 2, l2=0.1)
        >>> print(((head(x).argmax(1) == 1) == labels).mean())
        1.0
    """
    data = checked_data(x, labels, num_classes, loss, weights, known)
    if penalize_intercept is None:
        penalize_intercept = loss == "hinge"
    static = (
        loss,
        data.num_classes,
        checks.flag("penalize_intercept", penalize_intercept),
        checks.positive_int("max_steps", max_steps),
    )
    info = checks.flag("info", info)
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    found = _fit_head(*static, data.x, data.labels, data.weights, *scalars)
    return found if info else found[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fit_head(loss, num_classes, penalize_intercept, max_steps, x, labels, weights, l2, tolerance):
    rows = prepared_rows(loss, num_classes, x, labels, weights)
    ones = jnp.where(rows.share > 0, 1, 0).astype(rows.x.dtype)
    offset = jnp.append(-rows.center, 1)
    problem = LinearProblem(
        jnp.append(transpose(rows.x), ones[None, :], axis=0),
        rows.target,
        rows.weights,
        offset if penalize_intercept else jnp.zeros_like(offset),
        l2.astype(ones.dtype),
    )
    tolerance = jnp.maximum(tolerance.astype(ones.dtype), jnp.finfo(ones.dtype).eps)
    optimum = partial(optimum_of, loss, max_steps)
    if loss == "multinomial" and num_classes == 2:
        # Of the difference of both classes: half of it for one, minus half of it for the other.
        difference = problem._replace(target=rows.target[1:], l2=problem.l2 / 2)
        v, fields = partial(optimum_of, "binary", max_steps)(difference, tolerance)
        v, fields = jnp.concatenate([-v, v]) / 2, fields[None]
    elif loss == "multinomial":
        v, fields = optimum(problem, tolerance)
        fields = fields[None]
    else:
        columns = problem._replace(target=rows.target[:, None], weights=rows.weights[:, None])
        axes = LinearProblem(*cast(Any, (None, 0, 0, None, None)))
        v, fields = jax.vmap(optimum, (axes, None))(columns, tolerance)
        v = v[:, 0]
    mean = jnp.sum(fields[:, 2])
    ended = HeadInfo(
        jnp.max(fields[:, 0]).astype(jnp.int32),
        jnp.max(fields[:, 1]),
        mean,
        jnp.all(fields[:, 3] > 0),
    )
    v = jnp.where(jnp.isfinite(mean), v, jnp.nan)
    weight, center, bias = transpose(v[:, :-1]), rows.center, v[:, -1]
    return AffineMap(*(a.astype(x.dtype) for a in (weight, center, bias))), ended
