"""Inputs that broke other libraries, with the right values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, rotation, some

import semalign_jax as sa


def test_gradient_through_a_polar_decomposition_with_repeated_singular_values():
    # ||Q Q^T A||_F = ||A||_F, whose gradient is A / ||A||_F.
    a = jnp.diag(jnp.asarray([1.0, 1, 2, 3]))

    def norm(a):
        q = sa.polar_factor(a)
        return jnp.linalg.norm(q @ (q.T @ a))

    expected = np.diag([0.2582, 0.2582, 0.5164, 0.7746])
    np.testing.assert_allclose(jax.grad(norm)(a), expected, atol=1e-4)
    singular = a.at[0, 0].set(0.0).at[1, 1].set(0.0)
    assert np.isfinite(jax.grad(norm)(singular)).all()


def test_gradient_through_square_least_squares_is_the_implicit_one():
    x, y = map(jnp.asarray, anchors(5, 5, 3, cond=3))
    probe = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)))
    gradient = jax.grad(lambda x: jnp.vdot(sa.fit_linear(x, y).weight, probe))(x)
    # W = x^-1 y, so dW = -x^-1 dx W.
    weight = np.linalg.solve(x, y)
    expected = -np.linalg.inv(np.asarray(x)).T @ np.asarray(probe) @ weight.T
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize("method", some(METHODS))
def test_gradients_of_rank_deficient_anchors_are_finite(method):
    x = jnp.asarray(np.arange(1.0, 10).reshape(3, 3))
    for anchors_x in (x, jnp.zeros((3, 3)), jnp.ones((3, 3))):
        gradient = jax.grad(lambda a: sa.fit(method, a, x).weight[0, 1])(anchors_x)
        assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_many_rows_take_no_memory_beyond_the_rows():
    x = np.random.default_rng(0).standard_normal((300_000, 50), dtype=np.float32)
    memory = jax.jit(lambda x: sa.fit_linear(x, x).weight).lower(x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 8 * x.nbytes
    np.testing.assert_allclose(sa.fit_linear(x, 3 * x).weight, 3 * np.eye(50), atol=1e-4)


def test_products_are_not_rounded_to_tf32():
    a = jnp.asarray([[1.1111111, 2.2222222], [3.3333333, 4.4444444]], jnp.float32)
    mapping = sa.AffineMap.from_weight(a.T)
    expected = [[6.172839, 13.580245], [13.580245, 30.864195]]
    np.testing.assert_allclose(mapping(a), expected, rtol=1e-6)
    text = jax.jit(sa.fit_ortho).lower(a, a).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def test_rotation_only_costs_the_known_residual():
    x = np.array([[1.0, 0], [0, 2], [-1, -2]])
    y = x * [1, -1]
    assert np.linalg.norm(sa.fit_ortho(x, y)(x) - y) == pytest.approx(0, abs=1e-12)
    turned = sa.fit_ortho(x, y, rotation_only=True)
    assert np.linalg.norm(turned(x) - y) == pytest.approx(2.3617, abs=1e-4)


def test_argument_order_and_transpose():
    rng = np.random.default_rng(0)
    wide = rotation(5, rng)[:3]
    for method in METHODS:
        q = wide.T if method == "linear" else wide
        x = rng.standard_normal((40, q.shape[0]))
        np.testing.assert_allclose(sa.fit(method, x, x @ q).weight, q, atol=1e-9)


@pytest.mark.parametrize("normalize", ["none", "center", "standard", "isotropic"])
def test_a_map_applies_the_scale_and_offset_it_was_fitted_with(normalize):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)) * 3
    q = rotation(4, rng)
    before = x.copy()
    y = 2.5 * x @ q
    if normalize != "none":
        y = y + 7
    copy = y.copy()
    method = "affine" if normalize == "standard" else "ortho"
    options: dict[str, Any] = {} if normalize == "standard" else {"scale": True}
    fitted = sa.fit(method, x, y, normalize=normalize, **options)
    np.testing.assert_allclose(fitted(x), y, atol=1e-9)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(y, copy)


def test_padded_anchors_compile_once_for_all_counts():
    x, y = map(jnp.asarray, anchors(16, 6, 6, cond=3))
    traces = []

    @jax.jit
    def weight_of(count):
        traces.append(count)
        return sa.fit_ortho(x, y, weights=jnp.arange(16) < count).weight

    for count in (3, 10, 16):
        expected = sa.fit_ortho(x[:count], y[:count]).weight
        np.testing.assert_allclose(weight_of(count), expected, atol=1e-7)
    assert len(traces) == 1


def test_untruncated_least_squares_of_singular_anchors_still_predicts(precision):
    # Square and of condition 1e9 and more: in float32 a triangular inverse alone errs 1000-fold.
    dtype = np.float64 if precision == "x64" else np.float32
    x, y = (a.astype(dtype) for a in anchors(64, 64, 64, cond=1e8))
    fitted = sa.fit_linear(x, y, rcond=0.0)
    predicted = x.astype(np.float64) @ np.asarray(fitted.weight, np.float64)
    assert np.linalg.norm(predicted - y) < 0.6 * np.linalg.norm(y)


def test_drawing_few_anchors_sorts_nothing():
    key = jax.random.key(0)
    text = str(jax.make_jaxpr(lambda key: sa.sweeps.anchor_order(key, 10_000, size=500))(key))
    assert "top_k" in text
    assert " sort[" not in text
    drawn = np.asarray(sa.sweeps.anchor_order(key, 10_000, size=500))
    assert len(set(drawn.tolist())) == 500
    np.testing.assert_array_equal(drawn, sa.sweeps.anchor_order(key, 10_000)[:500])
    # Every row is drawn equally often: 2,000 draws of 5 of 20 rows, 500 expected of each.
    keys = jax.random.split(key, 2000)
    often = np.bincount(
        np.asarray(jax.vmap(lambda k: sa.sweeps.anchor_order(k, 20, size=5))(keys)).ravel()
    )
    assert np.abs(often - 500).max() < 6 * np.sqrt(500 * 0.75)
