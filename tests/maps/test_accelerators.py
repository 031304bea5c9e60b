"""What runs on accelerators, here on a CPU: branches of the solvers that a CPU does not take."""

import jax
import numpy as np
import pytest
from helpers import METHODS, anchors, half, reference, relative, some
from jax import lax

import semalign_jax as sa

PLATFORMS = ("cuda", "default")


@pytest.fixture(autouse=True, scope="module", params=PLATFORMS)
def accelerator(request):
    """The name of a platform whose branches are taken."""

    def branch(*args, default, **branches):
        return branches.get(request.param, default)(*args)

    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lax, "platform_dependent", branch)
        yield request.param
    jax.clear_caches()


@pytest.fixture
def dtype(accelerator):
    """What is of interest: on GPUs float32, where float64 is used within."""
    return "float32" if accelerator == "cuda" else "float64"


def sides(shape, dtype):
    return (a.astype(dtype) for a in anchors(*shape, cond=3))


def check(weight, method, x, y, dtype):
    """Compare with NumPy's in float64."""
    expected, _ = reference(method, x, y, normalize="center")
    np.testing.assert_allclose(weight, expected, atol=1e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize(
    ("method", "shape", "accelerator"),
    some(half(METHODS, [(3, 12, 12), (30, 12, 12), (9, 10, 12), (3, 12, 10)], PLATFORMS), 3),
    indirect=["accelerator"],
)
def test_the_same_maps(method, shape, dtype):
    x, y = sides(shape, dtype)
    fitted, info = sa.fit(method, x, y, normalize="center", info=True)
    check(fitted.weight, method, x, y, dtype)
    assert info.rank == min(shape[0] - 1, *shape[1:])


@pytest.mark.parametrize(
    ("method", "shape", "accelerator"),
    some(half(METHODS, [(16, 6, 6), (8, 12, 10), (8, 12, 12)], PLATFORMS)),
    indirect=["accelerator"],
)
def test_rows_of_weight_zero_leave_directions_undetermined(method, shape, dtype):
    x, y = sides(shape, dtype)
    fit = jax.jit(lambda x, y, w: sa.fit(method, x, y, weights=w, normalize="center").weight)
    for count in (3, shape[0]):
        active = np.random.default_rng(count).permutation(shape[0])[:count]
        weights = np.isin(np.arange(shape[0]), active)
        check(fit(x, y, weights), method, x[active], y[active], dtype)


def test_batches_of_masks(dtype):
    x, y = sides((8, 6, 6), dtype)
    masks = np.arange(8)[None, :] < np.array([3, 4, 8])[:, None]

    def fit(mask):
        return sa.fit_ortho(x, y, weights=mask, normalize="center").weight

    for n, weight in zip((3, 4, 8), np.asarray(jax.vmap(fit)(masks)), strict=True):
        check(weight, "ortho", x[:n], y[:n], dtype)


@pytest.mark.parametrize(
    ("method", "shape", "accelerator"),
    some(
        half(["l-ortho", "ortho"], [(1, 12, 12), (6, 12, 12), (6, 12, 10), (30, 12, 12)], PLATFORMS)
    ),
    indirect=["accelerator"],
)
def test_maps_of_dependent_anchors_are_orthogonal(method, shape):
    x, y = sides(shape, "float64")
    x[-1] = x[0]
    weight = np.asarray(sa.fit(method, x, y, normalize="center").weight)
    square = weight.T @ weight
    np.testing.assert_allclose(square, np.eye(len(square)), atol=1e-12)


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_a_batch_in_float32(condition):
    x, y = (
        np.stack(parts).astype(np.float32)
        for parts in zip(
            *(anchors(80, 40, 40, cond=condition, seed=i) for i in range(3)), strict=True
        )
    )
    weight = np.asarray(jax.vmap(lambda x, y: sa.fit_ortho(x, y).weight)(x, y), np.float64)
    for i in range(3):
        q = weight[i]
        assert np.abs(q.T @ q - np.eye(40)).max() < 5e-6
        cross = x[i].T.astype(np.float64) @ y[i]
        best = np.linalg.svd(cross, compute_uv=False).sum()
        assert 1 - np.sum(q * cross) / best < 1e-6


def test_products_alone_where_all_is_determined():
    """And an SVD where it is not: the answer does not depend on the algorithm."""
    x, y = sides((30, 12, 12), "float32")
    text = jax.jit(sa.fit_ortho).lower(x, y).compile().as_text() or ""
    calls = text.count("gesdd")
    x[:, 3] = x[:, 4]  # one direction is open
    weight = sa.fit_ortho(x, y).weight
    m = x.T.astype(np.float64) @ y
    u, _, vt = np.linalg.svd(m)
    # The open one is mapped to the open one, with the sign that is nearer to the identity.
    sign = np.sign(u[:, -1] @ vt[-1])
    expected = u[:, :-1] @ vt[:-1] + sign * np.outer(u[:, -1], vt[-1])
    np.testing.assert_allclose(weight, expected, atol=1e-4)
    assert calls >= 1  # compiled, within a condition


def test_sweeps_over_pairs():
    rng = np.random.default_rng(0)
    both = [dict(zip("ab", sides((n, 6, 6), "float32"), strict=True)) for n in (20, 9)]
    readouts = {
        name: sa.AffineMap.from_weight(rng.standard_normal((6, 4)).astype("f")) for name in "ab"
    }

    def scores(scores, _):
        return scores

    counts = (2, 5, 6, 12)
    found = sa.sweep_pairs(
        both[0], counts, orders=np.arange(20)[None], readouts=readouts, test=both[1],
        metrics={"scores": scores}, pairs=[("a", "b")],
    )  # fmt: skip
    for method, of_counts in zip(found.methods, found.values["scores"][0, :, :, 0], strict=True):
        for n, values in zip(counts, of_counts, strict=True):
            weight, bias = reference(method, both[0]["a"][:n], both[0]["b"][:n])
            expected = (both[1]["a"] @ weight + bias) @ np.asarray(readouts["b"].weight)
            assert relative(values, expected) < 1e-4, (method, n)
