"""What runs on accelerators, here on a CPU: branches of the solvers that a CPU does not take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors
from jax import lax

import semalign_jax as sa


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch):
    def default_branch(*args, default, **branches):
        assert branches
        return default(*args)

    jax.clear_caches()
    monkeypatch.setattr(lax, "platform_dependent", default_branch)
    yield
    monkeypatch.undo()
    jax.clear_caches()


def by_svd(method, x, y, **options):
    if method in ("affine", "linear", "l-ortho", "ortho"):
        options["solver"] = "svd"
    return sa.fit(method, x, y, **options).weight


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 12, 10), (9, 10, 12), (30, 12, 12)], ids=str)
def test_the_same_maps(method, shape):
    x, y = anchors(*shape, cond=3)
    weight = sa.fit(method, x, y, normalize="center").weight
    np.testing.assert_allclose(weight, by_svd(method, x, y, normalize="center"), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 12, 12), (8, 12, 10), (16, 6, 6)], ids=str)
def test_rows_of_weight_zero_leave_directions_undetermined(method, shape):
    x, y = anchors(*shape, cond=3)
    fit = jax.jit(lambda x, y, w: sa.fit(method, x, y, weights=w, normalize="center").weight)
    for count in (3, shape[0]):
        active = np.random.default_rng(count).permutation(shape[0])[:count]
        weights = jnp.zeros(shape[0]).at[active].set(1.0)
        expected = by_svd(method, x[active], y[active], normalize="center")
        np.testing.assert_allclose(fit(x, y, weights), expected, atol=1e-9)


def test_batches_of_masks():
    x, y = anchors(8, 6, 6, cond=3)
    masks = jnp.arange(8)[None, :] < jnp.array([2, 4, 8])[:, None]
    weights = jax.vmap(lambda mask: sa.fit_ortho(x, y, weights=mask).weight)(masks)
    for n, weight in zip((2, 4, 8), weights, strict=True):
        np.testing.assert_allclose(weight, by_svd("ortho", x[:n], y[:n]), atol=1e-9)


@pytest.mark.parametrize("method", ["l-ortho", "ortho"])
@pytest.mark.parametrize("shape", [(1, 12, 12), (6, 12, 12), (6, 12, 10), (30, 12, 12)], ids=str)
def test_maps_of_dependent_anchors_are_orthogonal(method, shape):
    x, y = anchors(*shape, cond=3)
    x[-1] = x[0]
    weight = np.asarray(sa.fit(method, x, y, normalize="center").weight)
    square = weight.T @ weight
    np.testing.assert_allclose(square, np.eye(len(square)), atol=1e-12)


def test_derivatives():
    x, y = (jnp.asarray(a) for a in anchors(8, 6, 6, cond=3))
    mask = jnp.arange(8) < 4

    def loss(x, solver, weights):
        return jnp.sum(sa.fit_ortho(x, y, solver=solver, weights=weights).weight[0])

    for weights in (None, mask):
        expected = jax.grad(loss)(x, "svd", weights)
        np.testing.assert_allclose(jax.grad(loss)(x, "auto", weights), expected, atol=1e-9)
