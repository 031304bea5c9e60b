"""Classification heads on embeddings: logistic regression, linear SVM and a small MLP."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._core import checks
from .._core.linalg import (
    cholesky,
    compute_dtype,
    matmul,
    one_by_one_on_cpu,
    qr,
    safe_inverse,
    solve_upper,
    transpose,
)
from .._core.samples import in_range, integers, poisoned, targets
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from ..maps.mlp_head import ACTIVATIONS, Activation, MlpHead

#: What a head minimises, see `fit_head`.
Loss: TypeAlias = Literal["multinomial", "binary", "hinge"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


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


# --- linear heads ------------------------------------------------------------------------------


@overload
def fit_head(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
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
    num_classes: int,
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
    num_classes: int,
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
    offset and unit of the embeddings, nor on those of single features.

    Safe under `jit`, `vmap` (e.g. over `weights`, `l2` or `x`) and `jax.shard_map`. The head is
    differentiable, in forward and reverse mode, with respect to `x`, `weights` and `l2`: by the
    implicit function theorem, so that the derivative is as accurate as the optimum (choose a
    small tolerance) and takes about as long as the search. It needs l2 > 0, or classes that are
    not separable.

    Args:
        x: embeddings [n, d].
        labels: classes [n], integers in [0, num_classes); for "binary", and where wanted for
            "hinge", booleans or 0/1 [n, num_classes].
        num_classes: number of classes or labels (static).
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
    """
    data = _checked_data(x, labels, num_classes, loss, weights, known)
    if penalize_intercept is None:
        penalize_intercept = loss == "hinge"
    static = (
        loss,
        data.num_classes,
        checks.flag("penalize_intercept", penalize_intercept),
        checks.positive_int("max_steps", max_steps),
    )
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    found = _fit_head(*static, data.x, data.labels, data.weights, *scalars)
    return found if checks.flag("info", info) else found[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fit_head(loss, num_classes, penalize_intercept, max_steps, x, labels, weights, l2, tolerance):
    rows = _rows(loss, num_classes, x, labels, weights)
    ones = jnp.where(rows.share > 0, 1, 0).astype(rows.x.dtype)
    offset = jnp.append(-rows.center, 1)
    problem = _LinearProblem(
        jnp.append(transpose(rows.x), ones[None, :], axis=0),
        rows.target,
        rows.weights,
        offset if penalize_intercept else jnp.zeros_like(offset),
        l2.astype(ones.dtype),
    )
    tolerance = jnp.maximum(tolerance.astype(ones.dtype), jnp.finfo(ones.dtype).eps)
    optimum = partial(_optimum, loss, max_steps)
    if loss == "multinomial" and num_classes == 2:
        # Of the difference of both classes: half of it for one, minus half of it for the other.
        difference = problem._replace(target=rows.target[1:], l2=problem.l2 / 2)
        v, fields = partial(_optimum, "binary", max_steps)(difference, tolerance)
        v, fields = jnp.concatenate([-v, v]) / 2, fields[None]
    elif loss == "multinomial":
        v, fields = optimum(problem, tolerance)
        fields = fields[None]
    else:
        columns = problem._replace(target=rows.target[:, None], weights=rows.weights[:, None])
        axes = _LinearProblem(*cast(Any, (None, 0, 0, None, None)))
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


class _LinearProblem(NamedTuple):
    """What a linear head `v` [k, d + 1] minimises; the last column is its intercept.

    It is sum(weights * losses(v x)) + l2/2 (||v without intercept||^2 + ||v offset||^2). The k
    classes are those of "multinomial"; of other losses each is a problem of its own, k = 1.
    Samples are columns: sums over classes then run along rows, which is several times as fast.

    Attributes:
        x: centred embeddings above a row of ones [d + 1, n], zero in columns without weight.
        target: booleans [k, n].
        weights: [1, n].
        offset: [d + 1], so that v offset is the intercept on embeddings that are not centred;
            zeros if that is not penalised.
        l2: scalar.
    """

    x: Array
    target: Array
    weights: Array
    offset: Array
    l2: Array


class _Terms(NamedTuple):
    """Losses and their derivatives by the logits.

    Attributes:
        loss: [1, n] of "multinomial", else [k, n].
        residual: first derivative [k, n].
        curvature: second derivative [k, n]; for "multinomial" probabilities instead, see `_curved`.
    """

    loss: Array
    residual: Array
    curvature: Array


def _terms(loss: Loss, logits: Array, target: Array) -> _Terms:
    if loss == "multinomial":
        # Relative to the true class: a loss of 1e-9 keeps its digits.
        logits = logits - jnp.sum(jnp.where(target, logits, 0), axis=0, keepdims=True)
        top = lax.stop_gradient(jnp.max(logits, axis=0, keepdims=True))
        powers = jnp.exp(logits - top)
        others = jnp.sum(jnp.where(target, 0, powers), axis=0, keepdims=True)
        total = others + jnp.exp(-top)
        p = powers / total
        losses = top + jnp.log1p(others + jnp.expm1(-top))
        return _Terms(losses, jnp.where(target, -others / total, p), p)
    sign = jnp.where(target, 1, -1).astype(logits.dtype)
    margin = sign * logits
    if loss == "binary":
        wrong = jax.nn.sigmoid(-margin)
        return _Terms(jax.nn.softplus(-margin), -sign * wrong, wrong * jax.nn.sigmoid(margin))
    short = jax.nn.relu(1 - margin)
    return _Terms(short**2, -2 * sign * short, jnp.where(short > 0, 2, 0).astype(logits.dtype))


def _curved(loss: Loss, problem: _LinearProblem, terms: _Terms, change: Array) -> Array:
    """Change of the residual by a change of the logits, to first order."""
    if loss != "multinomial":
        return terms.curvature * change
    change = change - jnp.sum(jnp.where(problem.target, change, 0), axis=0, keepdims=True)
    change = terms.curvature * change
    return change - terms.curvature * jnp.sum(change, axis=0, keepdims=True)


def _shrunk(problem: _LinearProblem, v: Array) -> Array:
    """Gradient of the penalty."""
    weight = jnp.where(jnp.arange(v.shape[1])[None, :] < v.shape[1] - 1, v, 0)
    offset = problem.offset[None, :]
    return problem.l2 * (weight + jnp.sum(v * offset, axis=1, keepdims=True) * offset)


def _objective(problem: _LinearProblem, v: Array, terms: _Terms) -> Array:
    return jnp.sum(problem.weights * terms.loss) + jnp.sum(v * _shrunk(problem, v)) / 2


def _gradient(problem: _LinearProblem, v: Array, terms: _Terms) -> Array:
    return _sum_over_rows(problem.weights * terms.residual, problem.x) + _shrunk(problem, v)


def _hessian(loss: Loss, problem: _LinearProblem, terms: _Terms, v: Array) -> Array:
    """Product of the Hessian with `v`."""
    curved = _curved(loss, problem, terms, matmul(v, problem.x))
    return _sum_over_rows(problem.weights * curved, problem.x) + _shrunk(problem, v)


def _sum_over_rows(values: Array, x: Array) -> Array:
    """`values @ x^T`; so written, XLA takes a ninth of the time on a CPU for one class."""
    return transpose(matmul(x, transpose(values)))


def _curved_rows(loss: Loss, problem: _LinearProblem, terms: _Terms) -> Array:
    """Columns of x times the roots of their curvatures, of the mean over the classes."""
    second = terms.curvature
    if loss == "multinomial":
        second = second * jnp.where(problem.target, -terms.residual, 1 - second)
    return problem.x * jnp.sqrt(jnp.mean(problem.weights * second, axis=0))[None, :]


def _diagonal_root(loss: Loss, problem: _LinearProblem, terms: _Terms) -> Array:
    """As `_inverse_root`, of the diagonal of the Hessian alone."""
    x, eye = _curved_rows(loss, problem, terms), jnp.eye(problem.x.shape[0], dtype=problem.x.dtype)
    diagonal = jnp.sum(x * x, axis=1) + jnp.diagonal(_shrunk(problem, eye))
    root = jnp.sqrt(safe_inverse(diagonal, diagonal > 0))[:, None] * eye
    return jnp.where(jnp.isfinite(diagonal).all(), root, eye)


def _inverse_root(loss: Loss, problem: _LinearProblem, terms: _Terms) -> Array:
    """`root` [d + 1, d + 1] such that root root^T is about the inverse Hessian of each class.

    Of the mean class, in which each row has the mean of its curvatures: exact for one class.
    """
    x = _curved_rows(loss, problem, terms)
    # One quarter is the transposed other one.
    first, last = jnp.split(x, [x.shape[0] // 2])
    left, corner = matmul(x, transpose(first)), matmul(last, transpose(last))
    right = jnp.concatenate([transpose(left[first.shape[0] :]), corner])
    eye = jnp.eye(x.shape[0], dtype=x.dtype)
    mean = jnp.concatenate([left, right], axis=1) + _shrunk(problem, eye)
    # Features of unit curvature; what rounding may have made negative is lifted.
    diagonal = jnp.diagonal(mean)
    scale = jnp.sqrt(safe_inverse(diagonal, diagonal > 0))
    mean = scale[:, None] * mean * scale[None, :] + len(eye) * jnp.finfo(x.dtype).eps * eye
    root = scale[:, None] * solve_upper(transpose(cholesky(mean)), eye)
    return jnp.where(jnp.isfinite(root).all(), root, eye)


def _conjugate_gradients(
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    b: Array,
    start: Array,
    accuracy: float,
    wanted: Array | bool = True,
) -> tuple[Array, Array]:
    """Solve product(x) = b.

    Args:
        product: with a symmetric, positive semi-definite matrix.
        precondition: product with about its inverse.
        b: right-hand side.
        start: precondition(b).
        accuracy: stop where the norm of the residual falls by this factor.
        wanted: if False, x is 0.

    Returns:
        (x, whether that accuracy was reached).
    """
    size = jnp.sum(b * start)
    goal = accuracy**2 * size

    def unfinished(carry):
        _, _, _, left, count = carry
        return wanted & (left > goal) & (count < 500)

    def step(carry):
        x, residual, direction, left, count = carry
        image = product(direction)
        curvature = jnp.sum(direction * image)
        length = left * safe_inverse(curvature, curvature > 0)
        residual = residual - length * image
        ahead = precondition(residual)
        now = jnp.sum(residual * ahead)
        turned = ahead + now * safe_inverse(left, left > 0) * direction
        return x + length * direction, residual, turned, now, count + 1

    # Made from `b`, so that it varies over the same axes of a mesh.
    carry = 0 * b, b, start, size, (0 * size).astype(jnp.int32)
    x, _, _, left, _ = lax.while_loop(unfinished, step, carry)
    return x, left <= goal


#: Steps that L-BFGS remembers.
_MEMORY = 10

#: What L-BFGS promises may be too small by this factor, as measured on real data; a Newton step
#: is tried where it promises so much less than the tolerance.
_CAUTION = 30


class _Search(NamedTuple):
    """State of the search.

    Attributes:
        v: the head [k, d + 1].
        logits: its own [k, n].
        terms: see `_Terms`.
        value: of the objective.
        gradient: of the objective [k, d + 1].
        steps: the last ones [memory, k, d + 1].
        changes: of the gradient by these.
        inverse: 1 / (step . change), zero where nothing is remembered [memory].
        root: see `_inverse_root`.
        age: steps with it.
        lifetime: steps after which it is renewed.
        count: steps in all.
        converged: whether the last step was to be the last.
        stuck: whether the last step found nothing better.
    """

    v: Array
    logits: Array
    terms: _Terms
    value: Array
    gradient: Array
    steps: Array
    changes: Array
    inverse: Array
    root: Array
    age: Array
    lifetime: Array
    count: Array
    converged: Array
    stuck: Array


def _search(
    loss: Loss, max_steps: int, problem: _LinearProblem, tolerance: Array
) -> tuple[Array, ...]:
    """Minimise a linear problem from zero: (v, value, count, converged) as in `_Search`."""
    x, target = problem.x, problem.target
    (k, _), (d, _) = target.shape, x.shape
    eps = jnp.finfo(x.dtype).eps

    def unfinished(now: _Search) -> Array:
        going = ~now.converged & ~now.stuck & jnp.isfinite(now.value)
        return going & (now.count < max_steps)

    def renewed(carry):
        # XLA would move out of the loop what does not depend on its state, and always do it.
        (_, age, lifetime, inverse), terms = lax.optimization_barrier(carry)
        root = _inverse_root(loss, problem, terms)
        if k == 1:  # it is the inverse Hessian: older steps could only spoil it
            return (root, 0 * age, lifetime, 0 * inverse), terms
        return (root, 0 * age, 1.5 * lifetime, inverse), terms

    def step(now: _Search) -> _Search:
        # A loop and not a condition, of which vmap would compute both sides.
        carry = (now.root, now.age, now.lifetime, now.inverse), now.terms
        carry = lax.while_loop(lambda carry: carry[0][1] >= carry[0][2], renewed, carry)
        root, age, lifetime, inverse = carry[0]
        newest = now.count - 1

        def precondition(vector: Array) -> Array:
            return matmul(matmul(vector, root), transpose(root))

        change = now.changes[newest % _MEMORY]
        scale = inverse[newest % _MEMORY] * jnp.sum(change * precondition(change))
        scale = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 1)

        def inverse_hessian(vector: Array) -> Array:
            """By L-BFGS (Nocedal 1980) from the scaled preconditioner."""

            def back(i, carry):
                vector, factors = carry
                j = (newest - i) % _MEMORY
                factor = inverse[j] * jnp.sum(now.steps[j] * vector)
                return vector - factor * now.changes[j], factors.at[j].set(factor)

            def forth(i, vector):
                j = (newest + 1 + i) % _MEMORY
                factor = inverse[j] * jnp.sum(now.changes[j] * vector)
                return vector + (factors[j] - factor) * now.steps[j]

            vector, factors = lax.fori_loop(0, _MEMORY, back, (vector, 0 * inverse))
            return lax.fori_loop(0, _MEMORY, forth, scale * precondition(vector))

        direction = inverse_hessian(-now.gradient)
        promised = -jnp.sum(direction * now.gradient) / 2
        ready = _CAUTION * promised <= tolerance * now.value
        if loss == "hinge":
            # Its curvature jumps, and old steps mislead. With a new preconditioner this is a Newton
            # step, and is believed.
            exact, renew = age == 0, ready
        else:
            newton, exact = _conjugate_gradients(
                partial(_hessian, loss, problem, now.terms),
                inverse_hessian,
                -now.gradient,
                direction,
                0.5,
                ready,
            )
            direction = jnp.where(ready, newton, direction)
            promised, renew = -jnp.sum(direction * now.gradient) / 2, False
        image = matmul(direction, x)

        def trial(length: Array) -> tuple[Any, ...]:
            v, logits = now.v + length * direction, now.logits + length * image
            terms = _terms(loss, logits, target)
            value = _objective(problem, v, terms)
            # Armijo's rule, but for rounding.
            enough = value <= (1 + 8 * eps) * now.value - 2e-4 * length * promised
            return length, v, logits, terms, value, enough

        def shorter(carry):
            (length, _, _, _, value, _), tries = carry
            # Least value of the parabola through this trial.
            above = value - now.value + 2 * length * promised
            best = length**2 * promised * safe_inverse(above, above > 0)
            return trial(jnp.clip(best, 0.1 * length, 0.5 * length)), tries + 1

        (_, v, logits, terms, value, enough), _ = lax.while_loop(
            lambda carry: ~carry[0][-1] & (carry[1] < 30),
            shorter,
            (trial(1 + 0 * now.value), 0 * now.count),
        )
        gradient = _gradient(problem, v, terms)
        taken, change = v - now.v, gradient - now.gradient
        curvature = jnp.sum(taken * change)
        place = now.count % _MEMORY
        return _Search(
            v,
            logits,
            terms,
            value,
            gradient,
            now.steps.at[place].set(taken),
            now.changes.at[place].set(change),
            inverse.at[place].set(safe_inverse(curvature, curvature > 0)),
            root,
            jnp.where(renew, lifetime, age + 1),
            lifetime,
            now.count + 1,
            ready & exact & enough & (promised <= tolerance * now.value),
            ~enough,
        )

    # All that is carried has to vary over the same axes of a mesh from the start.
    zero = 0 * (x[0, 0] + problem.weights[0, 0] + problem.l2 + tolerance)
    v = jnp.zeros((k, d), x.dtype) + zero
    logits = matmul(v, x)
    terms = _terms(loss, logits, target)
    history = jnp.zeros((_MEMORY, k, d), x.dtype) + zero
    # A new preconditioner costs about as much as half of these steps, as measured.
    lifetime = max(5.0, 2 * d / (40 + 2 * k)) + zero
    end = lax.while_loop(
        unfinished,
        step,
        _Search(
            v,
            logits,
            terms,
            _objective(problem, v, terms),
            _gradient(problem, v, terms),
            history,
            history,
            jnp.zeros(_MEMORY, x.dtype) + zero,
            _diagonal_root(loss, problem, terms) + zero,
            1 + zero,
            lifetime,
            zero.astype(jnp.int32),
            zero > 0,
            zero > 0,
        ),
    )
    return end.v, end.value, end.count, end.converged


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _optimum(
    loss: Loss, max_steps: int, problem: _LinearProblem, tolerance: Array
) -> tuple[Array, Array]:
    """The head of least loss [k, d + 1], and the fields of its `HeadInfo` as floats [4]."""
    # Under vmap on a CPU one after the other, which takes half the time.
    search = one_by_one_on_cpu(partial(_search, loss, max_steps))
    x, offset = problem.x[:-1], problem.offset
    if x.shape[0] > x.shape[1]:
        # Heads are combinations of the rows and, if it counts, their mean: n + 1 dimensions.
        basis, inner = qr(jnp.append(x, offset[:-1, None], axis=1))
        inner = problem._replace(
            x=jnp.append(inner[:, :-1], problem.x[-1:], axis=0),
            offset=jnp.append(inner[:, -1], offset[-1]),
        )
        v, value, count, converged = search(inner, tolerance)
        v = jnp.append(matmul(v[:, :-1], transpose(basis)), v[:, -1:], axis=1)
    else:
        v, value, count, converged = search(problem, tolerance)
    gradient = _gradient(problem, v, _terms(loss, matmul(v, problem.x), problem.target))
    inverse = _inverse(jnp.sum(problem.weights))
    fields = count, jnp.max(jnp.abs(gradient)) * inverse, value * inverse, converged
    return v, jnp.stack([a.astype(v.dtype) for a in fields])


@_optimum.defjvp
def _optimum_jvp(loss, max_steps, primals, tangents):
    """The gradient stays zero: the Hessian times the change of v undoes what else moves it."""
    v, fields = _optimum(loss, max_steps, *primals)
    problem = primals[0]

    def gradient(problem):
        return _gradient(problem, v, _terms(loss, matmul(v, problem.x), problem.target))

    _, moved = jax.jvp(gradient, (problem,), (tangents[0],))
    terms = _terms(loss, matmul(v, problem.x), problem.target)
    root = one_by_one_on_cpu(partial(_inverse_root, loss))(*lax.stop_gradient((problem, terms)))

    def precondition(vector):
        return matmul(matmul(vector, root), transpose(root))

    def solve(product, b):
        if loss == "multinomial":
            # The same vector added to all classes changes nothing, and never moves.
            b = b - jnp.mean(b, axis=0, keepdims=True)
        accuracy = float(jnp.finfo(b.dtype).eps) ** 0.75
        return _conjugate_gradients(product, precondition, b, precondition(b), accuracy)[0]

    product = partial(_hessian, loss, problem, terms)
    change = lax.custom_linear_solve(product, -moved, solve, symmetric=True)
    return (v, fields), (change, jnp.zeros_like(fields))


# --- MLP ---------------------------------------------------------------------------------------


@overload
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
    num_classes: int,
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
    num_classes: int,
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
        num_classes: number of classes or labels (static).
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
    data = _checked_data(x, labels, num_classes, loss, weights, known)
    static = (
        loss,
        data.num_classes,
        checks.positive_int("units", units),
        checks.option("activation", activation, ACTIVATIONS),
        checks.positive_int("max_steps", max_steps),
    )
    scalars = checks.scalar("l2", l2), checks.scalar("tolerance", tolerance)
    found = _fit_mlp_head(*static, key, data.x, data.labels, data.weights, *scalars)
    return found if checks.flag("info", info) else found[0]


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
    rows = _rows(loss_name, num_classes, x, labels, weights)
    inverse = _inverse(jnp.sum(rows.weights, axis=1, keepdims=True))
    penalty = l2.astype(inverse.dtype) * jnp.mean(inverse) / 2
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
        losses = _terms(loss_name, transpose(logits(params)), rows.target).loss
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
    known: ArrayLike | None,
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
    known = checked_known("known", known, labels)
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
    labels = checks.host_array(name, labels)
    columns = loss == "binary" or (loss == "hinge" and labels.ndim == 2)
    return integers(name, labels, (rows, num_classes) if columns else (rows,))


def checked_known(name: str, known: Any, labels: Array) -> Array | None:
    """A boolean mask of the shape of `labels`, or None."""
    if known is None:
        return None
    known = checks.host_array(name, known)
    if known.dtype != np.bool_:
        raise TypeError(f"{name} must be booleans, True for known labels; got dtype {known.dtype}")
    if known.shape != labels.shape:
        raise ValueError(
            f"{name} must have the shape of the labels {labels.shape}; got {known.shape}"
        )
    return jnp.asarray(known)


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


class _Rows(NamedTuple):
    """Prepared rows of a training set.

    Attributes:
        x: centred embeddings [n, d], zero in rows without weight.
        center: their mean [d].
        target: booleans [num_classes, n].
        weights: [1, n], or [num_classes, n] where classes are separate problems.
        share: weights of the rows that add up to 1 [n].
    """

    x: Array
    center: Array
    target: Array
    weights: Array
    share: Array


def _rows(loss: Loss, num_classes: int, x: Array, labels: Array, weights: Array) -> _Rows:
    work = compute_dtype(x.dtype)
    w = jnp.where(weights > 0, weights, 0).astype(work)
    if w.ndim == 1 and loss != "multinomial":
        w = jnp.broadcast_to(w[:, None], (len(w), num_classes))
    if loss == "multinomial":
        target, valid = targets(labels, (len(w), num_classes), w[:, None])
        valid, w = valid[:, :1], w[:, None]
    else:
        target, valid = targets(labels, w.shape, w)
    share = jnp.max(w, axis=1)
    active = (share > 0)[:, None]
    share = share * _inverse(jnp.sum(share))
    x = jnp.where(active, x.astype(work), 0)
    # Centring changes nothing but the intercept, and float32 keeps its digits.
    center = matmul(share, x)
    x = jnp.where(active, x - center[None, :], 0)
    return _Rows(x, center, transpose(target), transpose(poisoned(w, valid)), share)


def _inverse(total: Array) -> Array:
    return safe_inverse(total, total > 0)
