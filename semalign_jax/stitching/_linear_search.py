"""The best linear head: losses and their derivatives, the search, and the derivative of its end."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._core.linalg import (
    cholesky,
    matmul,
    one_by_one_on_cpu,
    qr,
    safe_inverse,
    solve_upper,
    transpose,
)
from .._core.typing import Array
from .training_data import Loss, inverse_or_zero


class LinearProblem(NamedTuple):
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


def terms_of(loss: Loss, logits: Array, target: Array) -> _Terms:
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


def _curved(loss: Loss, problem: LinearProblem, terms: _Terms, change: Array) -> Array:
    """Change of the residual by a change of the logits, to first order."""
    if loss != "multinomial":
        return terms.curvature * change
    change = change - jnp.sum(jnp.where(problem.target, change, 0), axis=0, keepdims=True)
    change = terms.curvature * change
    return change - terms.curvature * jnp.sum(change, axis=0, keepdims=True)


def _shrunk(problem: LinearProblem, v: Array) -> Array:
    """Gradient of the penalty."""
    weight = jnp.where(jnp.arange(v.shape[1])[None, :] < v.shape[1] - 1, v, 0)
    offset = problem.offset[None, :]
    return problem.l2 * (weight + jnp.sum(v * offset, axis=1, keepdims=True) * offset)


def _objective(problem: LinearProblem, v: Array, terms: _Terms) -> Array:
    return jnp.sum(problem.weights * terms.loss) + jnp.sum(v * _shrunk(problem, v)) / 2


def _gradient(problem: LinearProblem, v: Array, terms: _Terms) -> Array:
    return _sum_over_rows(problem.weights * terms.residual, problem.x) + _shrunk(problem, v)


def _hessian(loss: Loss, problem: LinearProblem, terms: _Terms, v: Array) -> Array:
    """Product of the Hessian with `v`."""
    curved = _curved(loss, problem, terms, matmul(v, problem.x))
    return _sum_over_rows(problem.weights * curved, problem.x) + _shrunk(problem, v)


def _sum_over_rows(values: Array, x: Array) -> Array:
    """`values @ x^T`; so written, XLA takes a ninth of the time on a CPU for one class."""
    return transpose(matmul(x, transpose(values)))


def _curved_rows(loss: Loss, problem: LinearProblem, terms: _Terms) -> Array:
    """Columns of x times the roots of their curvatures, of the mean over the classes."""
    second = terms.curvature
    if loss == "multinomial":
        second = second * jnp.where(problem.target, -terms.residual, 1 - second)
    return problem.x * jnp.sqrt(jnp.mean(problem.weights * second, axis=0))[None, :]


def _diagonal_root(loss: Loss, problem: LinearProblem, terms: _Terms) -> Array:
    """As `_inverse_root`, of the diagonal of the Hessian alone."""
    x, eye = _curved_rows(loss, problem, terms), jnp.eye(problem.x.shape[0], dtype=problem.x.dtype)
    diagonal = jnp.sum(x * x, axis=1) + jnp.diagonal(_shrunk(problem, eye))
    root = jnp.sqrt(safe_inverse(diagonal, diagonal > 0))[:, None] * eye
    return jnp.where(jnp.isfinite(diagonal).all(), root, eye)


def _inverse_root(loss: Loss, problem: LinearProblem, terms: _Terms) -> Array:
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
    """Solve product(x) = b for a symmetric, positive semi-definite matrix, from x = 0.

    `precondition` is about its inverse, and `start` precondition(b). Stops where the norm of the
    residual has fallen by the factor `accuracy`, and says whether it has; at once if not `wanted`.
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
    loss: Loss, max_steps: int, problem: LinearProblem, tolerance: Array
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

        def trial(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            """Of the whole step, then of shorter ones."""
            length, _, _, _, value, _, tries = carry
            # Least value of the parabola through the last trial.
            above = value - now.value + 2 * length * promised
            best = length**2 * promised * safe_inverse(above, above > 0)
            shorter = jnp.clip(best, 0.1 * length, 0.5 * length)
            length = jnp.where(tries == 0, length, shorter)
            v, logits = now.v + length * direction, now.logits + length * image
            terms = terms_of(loss, logits, target)
            value = _objective(problem, v, terms)
            # Armijo's rule, but for rounding.
            enough = value <= (1 + 8 * eps) * now.value - 2e-4 * length * promised
            return length, v, logits, terms, value, enough, tries + 1

        _, v, logits, terms, value, enough, _ = lax.while_loop(
            lambda carry: ~carry[-2] & (carry[-1] < 31),
            trial,
            (1 + 0 * now.value, *now[:4], now.stuck, 0 * now.count),
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
    terms = terms_of(loss, logits, target)
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
def optimum_of(
    loss: Loss, max_steps: int, problem: LinearProblem, tolerance: Array
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
    gradient = _gradient(problem, v, terms_of(loss, matmul(v, problem.x), problem.target))
    inverse = inverse_or_zero(jnp.sum(problem.weights))
    fields = count, jnp.max(jnp.abs(gradient)) * inverse, value * inverse, converged
    return v, jnp.stack([a.astype(v.dtype) for a in fields])


@optimum_of.defjvp
def _optimum_jvp(loss, max_steps, primals, tangents):
    """The gradient stays zero: the Hessian times the change of v undoes what else moves it."""
    v, fields = optimum_of(loss, max_steps, *primals)
    problem = primals[0]

    def gradient(problem):
        return _gradient(problem, v, terms_of(loss, matmul(v, problem.x), problem.target))

    _, moved = jax.jvp(gradient, (problem,), (tangents[0],))
    terms = terms_of(loss, matmul(v, problem.x), problem.target)
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
