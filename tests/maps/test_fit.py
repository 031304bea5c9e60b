import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import METHODS, anchors, latin, polar, relative, rotation, some
from hypothesis import given
from hypothesis import strategies as st

import semalign_jax as sa


@pytest.mark.parametrize(
    ("n", "d_in", "d_out"), [(2, 8, 8), (2, 8, 6), (2, 6, 9), (5, 7, 7), (4, 6, 9)]
)
def test_completion_is_the_limit_of_a_pull_to_the_identity(n, d_in, d_out):
    x, y = anchors(n, d_in, d_out, cond=3)
    weight = np.asarray(sa.fit_ortho(x, y).weight)
    cross = x.T @ y / np.linalg.norm(x.T @ y)
    d = max(d_in, d_out)  # the smaller space is padded by zeros
    square = np.pad(cross, ((0, d - d_in), (0, d - d_out)))
    limit = polar(square + 1e-8 * np.eye(d))[:d_in, :d_out]
    np.testing.assert_allclose(weight, limit, atol=1e-5)
    partial = np.asarray(sa.fit_ortho(x, y, completion="partial").weight)
    u, _, vt = np.linalg.svd(cross)
    np.testing.assert_allclose(partial, u[:, :n] @ vt[:n], atol=1e-8)


@pytest.mark.parametrize(
    ("method", "precision"), latin(METHODS, ["x64", "x32"]), indirect=["precision"]
)
def test_common_offset_costs_no_digits(method, precision):
    dtype = np.float64 if precision == "x64" else np.float32
    x, y = (a.astype(dtype) for a in anchors(200, 16, 16, cond=10, offset=1e4))
    plain = sa.fit(method, x, y, normalize="center")
    reference = sa.fit(
        method, x.astype(np.float64) - 1e4, y.astype(np.float64) + 1e4, normalize="center"
    )
    tolerance = 1e-9 if precision == "x64" else 1e-3
    np.testing.assert_allclose(plain.weight, reference.weight, atol=tolerance)


def test_ridge_solves_the_normal_equations():
    for n in (5, 40):
        x, y = anchors(n, 8, 6)
        expected = np.linalg.solve(x.T @ x + 0.3 * np.eye(8), x.T @ y)
        np.testing.assert_allclose(sa.fit_linear(x, y, ridge=0.3).weight, expected, atol=1e-9)
        gram = sa.fit_linear(x, y, ridge=0.5, ridge_unit="gram").weight
        penalty = 0.5 * np.trace(x.T @ x) / 8
        np.testing.assert_allclose(gram, sa.fit_linear(x, y, ridge=penalty).weight, atol=1e-9)


@pytest.mark.parametrize("method", some(METHODS))
def test_weights_are_replicated_rows(method):
    x, y = anchors(20, 6, 6)
    weights = (np.arange(20) + 2) % 3
    assert weights.sum() == 20  # one shape, which compiles once
    rows = np.repeat(np.arange(20), weights)
    one = sa.fit(method, x, y, weights=weights.astype(float), normalize="center")
    two = sa.fit(method, x[rows], y[rows], normalize="center")
    np.testing.assert_allclose(one.weight, two.weight, atol=1e-8)
    np.testing.assert_allclose(one.bias, two.bias, atol=1e-8)


@pytest.mark.parametrize("method", some(METHODS))
def test_masked_rows_are_exactly_inert_and_equal_the_unpadded_fit(method):
    x, y = anchors(16, 20, 20, cond=3)
    mask = np.arange(16) < 10
    x[10:], y[10:] = np.nan, np.inf
    padded = sa.fit(method, x, y, weights=mask)
    x[10:], y[10:] = 7.0, -3.0
    np.testing.assert_array_equal(padded.weight, sa.fit(method, x, y, weights=mask).weight)
    unpadded = sa.fit(method, x[:10], y[:10])
    np.testing.assert_allclose(padded.weight, unpadded.weight, atol=1e-7)


def test_rank_deficient_linear_is_minimum_norm(precision):
    x = np.arange(1.0, 10).reshape(3, 3)
    expected = [[0.8333, 0.3333, -0.1667], [0.3333] * 3, [-0.1667, 0.3333, 0.8333]]
    np.testing.assert_allclose(sa.fit_linear(x, x).weight, expected, atol=1e-4)


def test_rotation_only():
    x = np.array([[1.0, 0], [0, 2], [-1, -2]])
    y = x * [1, -1]
    np.testing.assert_allclose(sa.fit_ortho(x, y).weight, np.diag([1, -1]), atol=1e-12)
    expected = [[-0.83205, -0.55470], [0.55470, -0.83205]]
    turned = sa.fit_ortho(x, y, rotation_only=True)
    np.testing.assert_allclose(turned.weight, expected, atol=1e-5)
    few = sa.fit_ortho(*anchors(2, 5, 5), rotation_only=True).weight
    assert np.linalg.det(few) == pytest.approx(1)


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_scale_is_recovered_in_any_unit(precision, factor):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 5))
    q = rotation(5, rng)
    fitted = sa.fit_ortho(x * factor, 3 * (x * factor) @ q, scale=True)
    np.testing.assert_allclose(fitted.weight, 3 * q, atol=1e-4)
    plain = sa.fit_ortho(x * factor, 3 * (x * factor) @ q)
    np.testing.assert_allclose(plain.weight, q, atol=1e-5)


@pytest.mark.parametrize("method", ["ortho", "l-ortho"])
def test_orthogonal_maps_do_not_depend_on_the_units_of_either_side(precision, method):
    x, y = anchors(30, 5, 5, cond=3)
    plain = sa.fit(method, x, y).weight
    for unit_x, unit_y in ((8.0, 0.25), (3.0, 700.0)):
        other = sa.fit(method, unit_x * x, unit_y * y).weight
        np.testing.assert_allclose(other, plain, atol=1e-4)


def test_constant_column_standardises_to_zero_and_targets_keep_their_units(precision):
    x, y = anchors(1000, 4, 4, cond=3)
    x = x.astype(np.float32)
    x[:, 1] = 14.62
    fitted = sa.fit_ortho(x, y.astype(np.float32), normalize="standard")
    assert np.asarray(fitted.source_offset)[1] == np.float32(14.62)
    assert np.isfinite(fitted.weight).all()
    exact = sa.fit_linear(x, 5 * x + 2, normalize="standard")
    np.testing.assert_allclose(exact(x), 5 * x + 2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "dtype"), latin(METHODS, [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
)
def test_dtype_is_kept(method, dtype):
    x, y = (a.astype(dtype) for a in anchors(30, 4, 4, cond=3))
    fitted = sa.fit(method, x, y)
    assert fitted.weight.dtype == fitted(x).dtype == dtype


def test_adam_approaches_the_closed_form():
    x, y = anchors(200, 4, 4, cond=2)
    exact = sa.fit_affine(x, y)
    gaps = [
        relative(
            sa.fit_affine(
                x, y, solver="adam", steps=n, learning_rate=1e-2, key=jax.random.key(0)
            ).weight,
            np.asarray(exact.weight),
        )
        for n in (100, 2000)
    ]
    assert gaps[1] < 1e-3 < gaps[0]


@given(st.integers(0, 2**31))
def test_rotating_the_target_rotates_the_map(seed):
    x, y = anchors(20, 5, 5, seed=seed)
    q = rotation(5, np.random.default_rng(seed + 1))
    for method in METHODS:
        turned = sa.fit(method, x, y @ q).weight
        plain = np.asarray(sa.fit(method, x, y).weight)
        np.testing.assert_allclose(turned, plain @ q, atol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, 0.0]))
def test_rows_of_weight_zero_are_exactly_inert(seed, garbage):
    x, y = anchors(12, 5, 4, seed=seed)
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 2, 12) * (rng.random(12) < 0.6)
    weights[rng.integers(12)] = 1.0
    other_x, other_y = (np.where(weights[:, None] > 0, a, garbage) for a in (x, y))
    for method in METHODS:
        one = sa.fit(method, x, y, weights=weights, normalize="center")
        two = sa.fit(method, other_x, other_y, weights=weights, normalize="center")
        for leaf, same in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(leaf, same)


@given(st.integers(0, 2**31))
def test_no_perturbation_within_the_class_lowers_the_loss(seed):
    x, y = anchors(20, 5, 5, seed=seed)
    rng = np.random.default_rng(seed)

    def loss(weight):
        return np.sum((x @ weight - y) ** 2)

    linear = np.asarray(sa.fit_linear(x, y).weight)
    assert loss(linear) <= loss(linear + 1e-3 * rng.standard_normal((5, 5)))
    ortho = np.asarray(sa.fit_ortho(x, y).weight)
    skew = 1e-2 * rng.standard_normal((5, 5))
    assert loss(ortho) <= loss(ortho @ scipy.linalg.expm(skew - skew.T)) + 1e-12


def test_polar_factor_has_finite_derivatives():
    def score(m):
        return sa.polar_factor(m)[0, 1]

    def gradient(m):
        slope = jax.grad(score)(m)
        return slope, slope

    hessian_and_gradient = jax.jit(jax.jacfwd(gradient, has_aux=True))
    for m in (np.eye(3), np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 1, 2])):
        for derivative in hessian_and_gradient(m):
            assert np.isfinite(derivative).all()


BAD = [
    (dict(x=np.zeros(3)), ValueError, "x must have 2 dimensions"),
    (dict(x=np.zeros((4, 2))), ValueError, "same number of rows"),
    (dict(x=np.zeros((0, 2))), ValueError, "x is empty"),
    (dict(x=np.zeros((3, 2), int)), TypeError, "x must have a floating-point dtype"),
    (dict(y=np.zeros((3, 2), object)), TypeError, "y must have a floating-point dtype"),
    (dict(x=np.full((3, 2), np.nan)), ValueError, "x holds NaN"),
    (dict(weights=np.array([1.0, -1, 1])), ValueError, "row 1 has -1"),
    (dict(weights=np.zeros(3)), ValueError, "weights are all zero"),
    (dict(weights=np.full(3, 1e-310)), ValueError, "weights are all zero"),  # in JAX they are
    (dict(weights=np.ones(2)), ValueError, "weights must have shape"),
    (dict(normalize="unit"), ValueError, "normalize must be one of"),
    (dict(completion="any"), ValueError, "completion must be one of"),
    (dict(ridge=-1.0), ValueError, "ridge must be finite"),
    (dict(rotation_only=True, y=np.ones((3, 4))), ValueError, "rotation_only needs equal"),
    (dict(scale=1), TypeError, "scale must be True or False"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_input_is_named(change, kind, message):
    arguments = dict(x=np.ones((3, 2)), y=np.ones((3, 2))) | change
    with pytest.raises(kind, match=message):
        sa.fit_ortho(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_unknown_method_or_option_is_named():
    with pytest.raises(ValueError, match="method must be one of"):
        sa.fit("procrustes", np.ones((3, 2)), np.ones((3, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale is not an option of method 'linear'"):
        sa.fit("linear", np.ones((3, 2)), np.ones((3, 2)), scale=True)
    with pytest.raises(ValueError, match="key is needed"):
        sa.fit_affine(np.ones((3, 2)), np.ones((3, 2)), solver="adam")


def test_info_reports_rank_and_orthogonality():
    x, y = anchors(4, 8, 8, cond=3)
    # The squares of these weights are out of range.
    _, info = sa.fit("ortho", x, y, info=True, weights=1e-200 * np.array([1.0, 1, 1, 0]))
    assert int(info.rank) == 3
    assert float(info.n_effective) == pytest.approx(3)
    assert float(info.orthogonality_error) < 1e-12
