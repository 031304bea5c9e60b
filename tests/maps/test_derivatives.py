"""First and second derivatives against finite differences, in both modes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, latin, some

import semalign_jax as sa


def each_part(many, few):
    """What the maps differ in, for many and for few anchors; orthogonal ones compile for seconds.

    Linear maps are the first part of l-ortho, and affine ones of centred anchors.
    """
    cases = [(many, "affine"), (few, "affine"), (many, "ortho"), (few, "l-ortho")]
    return some(cases, len(cases))


def check_derivatives(function, arguments, step=1e-5, tolerance=1e-6):
    """Compare derivatives of a random projection of `function` in a random direction."""
    rng = np.random.default_rng(0)
    probe = rng.standard_normal(jax.eval_shape(function, *arguments).shape)
    direction = tuple(np.array(rng.standard_normal(a.shape)) for a in arguments)
    numbers = tuple(range(len(arguments)))

    def score(*arguments):
        return jnp.vdot(function(*arguments), probe)

    @jax.jit
    def everything(*arguments):
        both = jax.value_and_grad(score, numbers)
        (value, gradient), push = jax.linearize(both, *arguments)
        forward_over_reverse = push(*direction)
        pull = jax.linear_transpose(push, *arguments)
        return value, gradient, forward_over_reverse, pull((jnp.zeros_like(value), direction))

    def at(t):
        moved = (a + t * d for a, d in zip(arguments, direction, strict=True))
        return jax.tree.map(np.asarray, everything(*moved))

    _, gradient, (forward, curvature), reverse_over_reverse = everything(*arguments)
    (plus, gradient_plus, *_), (minus, gradient_minus, *_) = at(step), at(-step)
    numeric = (plus - minus) / (2 * step)
    analytic = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    assert float(analytic) == pytest.approx(float(numeric), rel=tolerance)
    assert float(forward) == pytest.approx(float(analytic), rel=1e-9)
    second = [(p - m) / (2 * step) for p, m in zip(gradient_plus, gradient_minus, strict=True)]
    largest = max(np.abs(s).max() for s in second)
    for got in (curvature, reverse_over_reverse):
        for one, expected in zip(got, second, strict=True):
            np.testing.assert_allclose(one, expected, atol=tolerance * largest)


@pytest.mark.parametrize(("shape", "method"), each_part((12, 4, 3), (3, 5, 6)))
def test_fits_with_weights_and_ridge(shape, method):
    x, y = anchors(*shape, cond=3)
    weights = np.random.default_rng(1).uniform(0.5, 2, shape[0])

    def weight_of(x, y, weights, ridge):
        options: dict[str, Any] = dict(scale=True) if "ortho" in method else {}
        fitted = sa.fit(method, x, y, weights=weights, ridge=ridge, normalize="standard", **options)
        return fitted.weight

    check_derivatives(weight_of, (x, y, weights, np.array(0.3)))


@pytest.mark.parametrize(("n", "method"), each_part(9, 3))
def test_any_argument_alone(n, method):
    """CASES-2, 2: what is not differentiated is a constant, as users' anchors often are."""
    x, y = anchors(n, 4, 4, cond=3)
    weights, ridge = np.full(n, 0.7), np.array(0.3)
    arguments = (x, y, weights, ridge)

    def loss(x, y, weights, ridge):
        fitted = sa.fit(method, x, y, weights=weights, ridge=ridge)
        return jnp.sum(jnp.sin(fitted.weight)) + jnp.sum(fitted.bias)

    together = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arguments)

    @jax.jit
    def alone(*arguments: Any):
        found = []
        for i in range(4):

            def one(a, i=i):
                changed = [*arguments[:i], a, *arguments[i + 1 :]]
                return loss(*changed)

            batched = jax.vmap(jax.grad(one))(jnp.stack([arguments[i], arguments[i]]))
            forward = jax.jvp(one, (arguments[i],), (jnp.ones_like(arguments[i]),))[1]
            found.append((jax.grad(one)(arguments[i]), batched[1], forward))
        return found

    for expected, (gradient, batched, forward) in zip(together, alone(*arguments), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-10)
        np.testing.assert_allclose(batched, expected, atol=1e-10)
        np.testing.assert_allclose(forward, np.sum(expected), atol=1e-9)


@pytest.mark.parametrize(
    ("completion", "shape"), some(latin(["orthogonal", "partial"], [(3, 6, 6), (30, 4, 6)]))
)
def test_ortho_with_undetermined_directions(completion, shape):
    x, y = anchors(*shape, cond=3)
    check_derivatives(lambda x, y: sa.fit_ortho(x, y, completion=completion).weight, (x, y))


@pytest.mark.slow
def test_rotation_only():
    x, y = anchors(20, 4, 4, cond=3)
    if np.linalg.det(sa.fit_ortho(x, y).weight) > 0:
        y = y * [[-1.0, 1, 1, 1]]
    check_derivatives(lambda x, y: sa.fit_ortho(x, y, rotation_only=True).weight, (x, y))


@pytest.mark.parametrize(("rows", "columns"), some([(5, 3), (5, 5)]))
def test_polar_factor(rows, columns):
    m = np.random.default_rng(2).standard_normal((rows, columns))
    check_derivatives(sa.polar_factor, (m,))


def test_repeated_singular_values_have_the_right_derivative():
    # polar(I + t K) = exp(t K) + O(t^2) for skew K: autodiff through the SVD gives NaN here.
    skew = np.array([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]])
    derivative = jax.jit(lambda step: jax.jvp(sa.polar_factor, (np.eye(3),), (step,))[1])
    np.testing.assert_allclose(derivative(skew), skew, atol=1e-12)
    np.testing.assert_allclose(derivative(skew @ skew), np.zeros((3, 3)), atol=1e-12)


@pytest.mark.parametrize("method", some(METHODS))
def test_zero_weights_have_zero_gradients_and_stop_none(method):
    x, y = (np.array(a) for a in anchors(10, 4, 4, cond=3))
    x[7:], y[7:] = np.nan, np.inf
    weights = np.where(np.arange(10) < 7, 1.0, 0.0)

    def loss(x, weights):
        return jnp.sum(sa.fit(method, x, y, weights=weights).weight ** 3)

    by_x, by_weights = map(np.asarray, jax.jit(jax.grad(loss, (0, 1)))(x, weights))
    assert np.isfinite(by_x).all()
    assert not by_x[7:].any()
    assert not by_weights[7:].any()
    assert by_x[:7].any()
