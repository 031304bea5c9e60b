"""Every algorithm gives the same map, and each is what it says."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, polar, rotation
from hypothesis import given
from hypothesis import strategies as st

import semalign_jax as sa
from semalign_jax._core import linalg as _linalg
from semalign_jax.maps._solvers.polar import (
    BasesForm,
    LowRankForm,
    ThinFactors,
    orthogonal_factor,
    polar_form,
    thin_polar_form,
)

SHAPES = [(4, 12, 12), (8, 12, 12), (11, 12, 12), (30, 12, 12), (3, 12, 10), (8, 10, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["ortho", "l-ortho"])
@pytest.mark.parametrize("completion", ["orthogonal", "partial"])
def test_forced_solvers_of_orthogonal_maps_agree(shape, method, completion):
    x, y = anchors(*shape, cond=3)
    options: dict[str, Any] = dict(completion=completion, normalize="center", ridge=0.1)
    solvers = ("auto", "svd", "qr", "iterative")
    if completion == "partial" and shape[0] - 1 >= min(shape[1:]):
        solvers = solvers[:3]  # of full rank, and not of interest
    first, *others = (sa.fit(method, x, y, solver=solver, **options).weight for solver in solvers)
    for solver, other in zip(solvers[1:], others, strict=True):
        np.testing.assert_allclose(other, first, atol=1e-9, err_msg=solver)


@pytest.mark.parametrize("shape", [(1, 12, 12), (6, 12, 12), (6, 12, 10), (3, 10, 12)], ids=str)
@pytest.mark.parametrize("completion", ["orthogonal", "partial"])
def test_dependent_anchors_without_singular_values_of_their_core(shape, completion):
    x, y = anchors(*shape, cond=3)
    x[-1] = x[0]  # and if this is all, centring leaves nothing
    options: dict[str, Any] = dict(completion=completion, normalize="center")
    weight = sa.fit_l_ortho(x, y, solver="iterative", **options).weight
    # The same without the repeated row: of full rank, so that no rounding decides.
    weights = np.ones(max(1, len(x) - 1))
    if len(x) > 1:
        weights[0], y[0] = 2, (y[0] + y[-1]) / 2
    x, y = x[: len(weights)], y[: len(weights)]
    expected = sa.fit_l_ortho(x, y, weights=weights, solver="svd", **options).weight
    np.testing.assert_allclose(weight, expected, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_forced_solvers_of_least_squares_agree(shape, ridge):
    x, y = anchors(*shape, cond=3)
    for method in ("affine", "linear"):
        first, *others = (
            sa.fit(method, x, y, solver=solver, ridge=ridge).weight
            for solver in ("auto", "svd", "qr")
        )
        for other in others:
            np.testing.assert_allclose(other, first, atol=1e-9)


def spread(d_in, d_out, condition, seed=0):
    """A matrix with geometric singular values from 1 to 1 / condition."""
    rng = np.random.default_rng(seed)
    k = min(d_in, d_out)
    u, v = rotation(d_in, rng)[:, :k], rotation(d_out, rng)[:, :k]
    return (u * np.geomspace(1, 1 / condition, k)) @ v.T


@pytest.mark.parametrize("solver", ["svd", "iterative"])
@pytest.mark.parametrize("condition", [1, 1e2, 1e6, 1e8, 1e12])
def test_polar_factor_bounds_in_float32(solver, condition):
    with jax.enable_x64(False):
        for shape in ((48, 48), (64, 24), (24, 64), (200, 200)):
            for scale in (1e-20, 1.0, 1e20):
                m = jnp.asarray(scale * spread(*shape, condition), jnp.float32)
                q = np.asarray(sa.polar_factor(m, solver=solver), np.float64)
                q = q if shape[0] >= shape[1] else q.T
                assert np.abs(q.T @ q - np.eye(q.shape[1])).max() < 5e-6
                wide = np.asarray(m, np.float64)
                singular = np.linalg.svd(wide, compute_uv=False)
                best = singular.sum()
                # What the completion of undetermined directions may give up on purpose.
                given_up = 2 * singular[singular <= 1.1 * 8 * 2.0**-23 * singular[0]].sum() / best
                wide = wide if shape[0] >= shape[1] else wide.T
                assert 1 - np.sum(q * wide) / best < 1e-6 + given_up


@pytest.mark.parametrize("solver", ["svd", "iterative"])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_undetermined_directions_are_the_identity(solver, shape, precision):
    del precision
    eye = np.eye(*shape, dtype=np.float32)
    for m in (np.zeros(shape, np.float32), 1e-30 * eye, eye * (np.arange(shape[1]) < 2)):
        q = sa.polar_factor(jnp.asarray(m, jnp.float32), solver=solver)
        np.testing.assert_allclose(q, eye, atol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from([(5, 5), (6, 3), (3, 6)]))
def test_iteration_equals_the_svd_in_float64(seed, shape):
    m = np.random.default_rng(seed).standard_normal(shape)
    if np.linalg.cond(m) < 1e4:
        np.testing.assert_allclose(
            sa.polar_factor(jnp.asarray(m), solver="iterative"), polar(m), atol=1e-10
        )


def test_iteration_under_vmap_and_its_derivative():
    m = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4)))
    one = partial(sa.polar_factor, solver="iterative")
    np.testing.assert_allclose(jax.vmap(one)(m)[1], one(m[1]), atol=1e-12)
    jacobian = jax.jacobian(one)(m[0])
    np.testing.assert_allclose(jacobian, jax.jacobian(sa.polar_factor)(m[0]), atol=1e-9)


def primitives(jaxpr):
    """Names of all primitives in a jaxpr and those within it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


FACTORISATIONS = {"svd", "qr", "geqrf", "householder_product", "eigh", "cholesky", "schur", "lu"}


def test_the_iteration_is_made_of_matrix_products():
    m = jnp.ones((4, 4))
    found = set(primitives(jax.make_jaxpr(partial(sa.polar_factor, solver="iterative"))(m).jaxpr))
    assert "dot_general" in found
    assert not found & FACTORISATIONS
    found = set(primitives(jax.make_jaxpr(partial(sa.polar_factor, solver="svd"))(m).jaxpr))
    assert "svd" in found


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_factorisation_of_the_whole_matrix_on_accelerators(platform):
    x = jnp.ones((20, 6), jnp.float32)
    lowered = jax.jit(sa.fit_ortho).trace(x, x).lower(lowering_platforms=(platform,))
    text = lowered.as_text().lower()
    assert "dot_general" in text
    for name in ("custom_call", "svd", "syev", "geqrf"):
        assert name not in text, name


def test_singular_values_on_gpus_are_those_of_float64():
    x = jnp.ones((20, 6), jnp.float32)
    fit = jax.jit(partial(sa.fit_ortho, solver="svd"))
    with jax.enable_x64(False):
        for platform, wide in (("cuda", True), ("cpu", False), ("tpu", False)):
            text = fit.trace(x, x).lower(lowering_platforms=(platform,)).as_text()
            assert ("xf64>" in text) == wide, platform


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_the_completion_of_few_anchors_by_its_definition(kept):
    rng = np.random.default_rng(kept)
    left, right = (rotation(12, rng)[:, :5] for _ in range(2))
    a, b = rotation(5, rng)[:, :kept], rotation(5, rng)[:, :kept]
    inner = (a * np.geomspace(1, 1e-3, kept)) @ b.T
    u, v = left @ a, right @ b
    # Twice the determined part, which stays apart from what is between the others.
    rest = (np.eye(12) - u @ u.T) @ (np.eye(12) - v @ v.T)
    thin = ThinFactors(*(jnp.asarray(part) for part in (left, inner, right)))
    form = thin_polar_form(thin, "orthogonal")
    assert isinstance(form, BasesForm)
    np.testing.assert_allclose(form.dense(), polar(2 * u @ v.T + rest), atol=1e-9)


def test_low_rank_forms_multiply_as_their_matrix():
    rng = np.random.default_rng(0)
    for d_in, d_out in ((12, 12), (12, 9), (9, 12)):
        u, v = (jnp.asarray(rotation(d, rng)[:, :3]) for d in (d_in, d_out))
        thin = ThinFactors(u, jnp.asarray(rng.standard_normal((3, 3))), v)
        for completion in ("orthogonal", "partial"):
            form = thin_polar_form(thin, completion)
            assert isinstance(form, LowRankForm | BasesForm)
            whole = np.asarray(form.dense())
            if completion == "orthogonal":
                square = whole @ whole.T if d_in < d_out else whole.T @ whole
                np.testing.assert_allclose(square, np.eye(min(d_in, d_out)), atol=1e-12)
            for way, matrix in ((form, whole), (form.mT, whole.T)):
                b = rng.standard_normal((matrix.shape[1], 2))
                np.testing.assert_allclose(way.times(jnp.asarray(b)), matrix @ b, atol=1e-12)


polar_by_svd = jax.jit(partial(sa.polar_factor, rcond=1e-10, solver="svd"))
polars_by_svd = jax.jit(jax.vmap(polar_by_svd))


@pytest.mark.parametrize("missing", [0, 1, 3, 4, 6, 7, 9, 10, 12])
def test_completion_of_any_number_of_directions(missing):
    # 12 directions: the second SVD has 3, 6, 9 or 12.
    rng = np.random.default_rng(missing)
    u, v = rotation(12, rng), rotation(12, rng)
    u, v = u[:, : 12 - missing], v[:, : 12 - missing]
    m = jnp.asarray((u * np.geomspace(1, 1e-3, 12 - missing)) @ v.T)
    determined = u @ v.T
    rest = (np.eye(12) - u @ u.T) @ (np.eye(12) - v @ v.T)
    # The polar factor keeps apart what has no direction in common.
    expected = polar(2 * determined + rest)
    np.testing.assert_allclose(polar_by_svd(m), expected, atol=1e-9)
    batch = polars_by_svd(jnp.stack([m, 2 * m]))
    np.testing.assert_allclose(batch, np.stack([expected] * 2), atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 12), (12, 7), (7, 12)], ids=str)
@pytest.mark.parametrize("completion", ["orthogonal", "partial"])
def test_polar_forms_multiply_as_their_matrix(shape, completion):
    rng = np.random.default_rng(0)
    for rank in (min(shape), 4):
        m = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
        m = jnp.asarray(m, jnp.float32)
        form = polar_form(m, completion)
        expected = orthogonal_factor(m, completion=completion)
        b = jnp.asarray(rng.standard_normal((shape[1], 2)), jnp.float32)
        np.testing.assert_allclose(form.times(b), np.asarray(expected) @ np.asarray(b), atol=2e-5)
        np.testing.assert_allclose(form.mT.dense(), expected.T, atol=2e-5)


@pytest.mark.parametrize("d", [1, 64, 65, 130])
def test_triangular_inverses_in_blocks(d):
    rng = np.random.default_rng(d)
    r = np.array(np.linalg.qr(rng.standard_normal((2 * d, d)), mode="r"))
    lower_is_ignored = jnp.asarray(r + np.tril(np.ones((d, d)), -1))
    inverse = np.asarray(_linalg.upper_inverse(lower_is_ignored))
    np.testing.assert_allclose(inverse, np.linalg.inv(r), atol=1e-11)
    assert not np.tril(inverse, -1).any()
    both = jax.vmap(_linalg.upper_inverse)(jnp.stack([jnp.asarray(r), 2 * jnp.asarray(r)]))
    np.testing.assert_allclose(both, np.stack([inverse, inverse / 2]), atol=1e-11)
    r[d // 2, d // 2] = 0  # a singular one has no finite inverse: callers test for that
    assert not np.isfinite(_linalg.upper_inverse(jnp.asarray(r))).all()


@pytest.mark.parametrize("d", [1, 11, 12, 17])
def test_products_with_triangles_in_blocks(d, monkeypatch):
    monkeypatch.setattr(_linalg, "TRIANGLE_BLOCK", 4)
    rng = np.random.default_rng(d)
    r = jnp.asarray(np.triu(rng.standard_normal((d, d))))
    b = jnp.asarray(rng.standard_normal((d, 3)))
    np.testing.assert_allclose(_linalg.upper_times(r, b), r @ b, atol=1e-12)
    np.testing.assert_allclose(_linalg.upper_transposed_times(r, b), r.T @ b, atol=1e-12)
    np.testing.assert_allclose(_linalg.times_upper(b.T, r), b.T @ r, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 1), (7, 2), (3, 5), (40, 33)])
def test_gram_matrix(n, d):
    a = np.random.default_rng(0).standard_normal((n, d))
    found = np.asarray(_linalg.gram_matrix(jnp.asarray(a)))
    np.testing.assert_allclose(found, a.T @ a, atol=1e-12)
    np.testing.assert_array_equal(found[: d // 2, d // 2 :], found[d // 2 :, : d // 2].T)


def by_factors(x, y, rcond):
    """As `fit_linear` on accelerators."""
    factors = _linalg.least_squares_factors(_linalg.tall_qr(x), rcond=rcond)
    return _linalg.least_squares(factors, x, y)


def by_auto(x, y, rcond):
    return sa.fit_linear(x, y, rcond=rcond).weight


@pytest.mark.parametrize("n", [6, 12, 60])
@pytest.mark.parametrize("solve", [by_auto, by_factors])
def test_ill_conditioned_least_squares_takes_the_safe_branch(solve, n):
    """In float32, by the QR where that holds and by singular values where it does not."""
    rng = np.random.default_rng(n)
    y = jnp.asarray(rng.standard_normal((n, 12)), jnp.float32)
    rank = min(n, 12)
    for condition in (1e2, 1e9):
        spectrum = np.geomspace(1, 1 / condition, rank)
        x = jnp.asarray(
            (rotation(n, rng)[:, :rank] * spectrum) @ rotation(12, rng)[:, :rank].T, jnp.float32
        )
        by_svd, by_qr = (
            np.asarray(sa.fit_linear(x, y, solver=solver, rcond=1e-6).weight)
            for solver in ("svd", "qr")
        )
        auto = np.asarray(solve(x, y, 1e-6))
        best = np.linalg.lstsq(np.float64(x), np.float64(y), rcond=1e-6)[0]
        size = np.abs(best).max()
        error, of_svd, of_qr = (np.abs(w - best).max() / size for w in (auto, by_svd, by_qr))
        assert error < (1e-5 if condition < 1e3 else 2e-2)
        assert error <= 2 * of_svd + 1e-5
        if condition > 1e3:  # the QR cuts nothing off
            assert of_qr > 1


@pytest.mark.parametrize("n", [5, 30])
def test_the_value_is_that_of_the_differentiated_fit(n):
    x, y = anchors(n, 12, 12, cond=1e3)
    fit = partial(sa.fit_linear, validate=False)
    value = fit(x, y).weight
    primal, _ = jax.jvp(lambda x: fit(x, y).weight, (x,), (x,))
    np.testing.assert_allclose(primal, value, atol=1e-10 * np.abs(value).max())
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(value, best, atol=1e-9 * np.abs(best).max())


def test_a_step_of_refinement_halves_the_error_in_float32():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 40))
    x, y = np.float32(x), np.float32(x @ rotation(40, rng))
    expected = x @ np.linalg.lstsq(np.float64(x), np.float64(y), rcond=1e-14)[0]
    q, r = np.linalg.qr(x)
    plain = np.linalg.inv(r) @ (q.T @ y)
    fitted = np.asarray(by_factors(jnp.asarray(x), jnp.asarray(y), 0.0))
    error, without = (np.linalg.norm(np.float64(x) @ w - expected) for w in (fitted, plain))
    assert error < 0.7 * without


def test_solvers_that_do_not_apply_are_refused():
    x = np.ones((3, 2))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (
            "linear",
            dict(solver="iterative"),
            "solver must be one of 'auto', 'cholesky', 'qr'",
        ),
        ("ortho", dict(solver="iterative", rotation_only=True), "rotation_only needs an SVD"),
        ("ortho", dict(solver="iterative", rcond=0.1), "rcond needs singular values"),
    ]
    for method, options, message in cases:
        with pytest.raises(ValueError, match=message):
            sa.fit(method, x, x, **options)
    with pytest.raises(ValueError, match="solver must be one of"):
        sa.polar_factor(jnp.ones((2, 2)), solver="qr")


def test_sizes_that_suit_the_cache_badly_lose_no_rank():
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-2, 3, shape) for shape in ((256, 32), (32, 256)))
    m = jnp.asarray(left @ right, jnp.float32)  # exactly of rank 32
    u, s, vt = _linalg.svd(m)
    expected = np.linalg.svd(np.asarray(m), compute_uv=False)
    np.testing.assert_allclose(s, expected, atol=1e-5 * expected[0])
    kept = [int(np.sum(a > np.finfo(np.float32).eps * a[0])) for a in (np.asarray(s), expected)]
    assert abs(kept[0] - kept[1]) <= 16
    for q in (np.asarray(u), np.asarray(vt).T):
        assert np.abs(q.T @ q - np.eye(256)).max() < 5e-6
    np.testing.assert_allclose((u * s[None, :]) @ vt, m, atol=1e-5 * expected[0])


@pytest.mark.parametrize("scales", [(1e-25, 1e-25), (1e25, 1e25), (1e30, 1e-30), (1e-18, 1.0)])
def test_cross_products_out_of_range(scales):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(scale * rng.standard_normal((50, 6)), jnp.float32) for scale in scales)
    product = jax.jit(_linalg.cross_product)(x, y)
    exact = np.asarray(x, np.float64).T @ np.asarray(y, np.float64)
    np.testing.assert_allclose(
        product / np.abs(product).max(), exact / np.abs(exact).max(), atol=1e-6
    )
    batched = jax.vmap(_linalg.cross_product)(jnp.stack([x, 2 * x]), jnp.stack([y, y]))
    np.testing.assert_allclose(batched[0], product, atol=1e-6 * np.abs(product).max())
