"""How alike two sets of embeddings, or their geometries, are."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from .._core import checks
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    matmul,
    power_of_two_scale,
    safe_inverse,
    svd,
    transpose,
    unit_rows,
)
from .._core.typing import Array, ArrayLike
from .samples import poisoned, sample_weights, unsharded, weighted_mean

#: Rows whose similarities with all others are held at a time.
ROWS_AT_ONCE = 256


def normalize_rows(x: ArrayLike) -> Array:
    """Divide rows by their Euclidean norm; zero rows stay zero, with a finite derivative.

    A row that holds NaN or infinity becomes NaN.

    Args:
        x: [..., n, d], floating point; entries of any magnitude are handled without underflow.

    Raises:
        TypeError: if `x` is not floating point.
        ValueError: if it is a scalar or empty.
    """
    return unit_rows(checks.float_array("x", x, tuple(range(1, 9)), spread=True))


def without_nan(x: Array, y: Array) -> Array:
    """Which rows [n] of normalised `x` and `y` are numbers: a NaN is in the whole row."""
    return ~(jnp.isnan(x[:, 0]) | jnp.isnan(y[:, 0]))


def cosine_similarity(x: ArrayLike, y: ArrayLike) -> Array:
    """Cosine of every row of `x` with every row of `y`; 0 where a row is zero.

    Args:
        x: [..., n, d]; rows with NaN give NaN.
        y: [..., m, d], likewise.

    Returns:
        [..., n, m].

    Raises:
        TypeError: if one is not floating point.
        ValueError: if one has fewer than two axes or is empty, or their dimensions differ.
    """
    ranks = tuple(range(2, 9))
    rows, others = (checks.float_array(n, a, ranks, spread=True) for n, a in (("x", x), ("y", y)))
    if rows.shape[-1] != others.shape[-1]:
        raise ValueError(
            f"x and y must be in the same space; got x {rows.shape} and y {others.shape}. "
            f"Map one of them first"
        )
    return _cosines(rows, others)


@jax.jit
def _cosines(x: Array, y: Array) -> Array:
    x, y = unit_rows(x), unit_rows(y)
    if y.ndim == 2:
        y = unsharded(y)  # rows of both spread over one axis of a mesh have no product
    return matmul(x, transpose(y))


def matched_rows(
    x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, *, same_space: bool = False
) -> tuple[Array, Array, Array]:
    """Checked (x, y, weights [n])."""
    x, y = checks.pair(x, y)
    if same_space and x.shape != y.shape:
        raise ValueError(
            f"x and y must be in the same space; got x {x.shape} and y {y.shape}. "
            f"Map one of them first"
        )
    return x, y, sample_weights(weights, x.shape[:1], common_dtype(x.dtype, y.dtype))


def without_inert(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """`x` and `y` in the dtype of the weights, with zeros in the rows of weight zero."""
    active = (weights > 0)[:, None]
    x, y = (jnp.where(active, a.astype(weights.dtype), 0) for a in (x, y))
    return x, y


def mean_cosine(x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Mean cosine similarity of matched rows; a zero row has the cosine 0.

    Args:
        x: [n, d], e.g. mapped embeddings.
        y: [n, d], their counterparts in the target space.
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero are inert.
            None means equal weights.

    Returns:
        Scalar in [-1, 1]; NaN if all weights are zero or a row of positive weight holds NaN.

    Raises:
        TypeError: if `x` or `y` is not floating point.
        ValueError: for shapes that do not match or negative weights.
    """
    return _mean_cosine(*matched_rows(x, y, weights, same_space=True))


@jax.jit
def _mean_cosine(x: Array, y: Array, weights: Array) -> Array:
    x, y = map(normalize_rows, without_inert(x, y, weights))
    return weighted_mean(jnp.sum(x * y, axis=1), weights)


def linear_cka(
    x: ArrayLike, y: ArrayLike, *, debiased: bool = False, weights: ArrayLike | None = None
) -> Array:
    """Linear centred kernel alignment (Kornblith et al. 2019).

    ||x^T y||_F^2 / (||x^T x||_F ||y^T y||_F) of centred rows; invariant to rotations, offsets
    and isotropic scale of either side. This default is the biased estimator: of few rows it is
    far above 0 also for unrelated sides, about .67 for 32 rows of 64 normal numbers.

    Args:
        x: [n, d_x].
        y: [n, d_y], row i belongs to row i of `x`.
        debiased: instead take the unbiased estimators of Song et al. (2012) for the three
            products, as Nguyen et al. (2021) do: 0 on average for unrelated sides. They leave out
            the pairs of a row with itself. Static.
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero are inert.
            None means equal weights. If `debiased`, a row of weight 2 is not two rows: these
            would be a pair. It counts twice in its pairs with others, so that the values of
            bootstrap resamples are not biased either.

    Returns:
        Scalar in [0, 1], or [-1, 1] if `debiased`; NaN if a side is constant, all weights are
        zero or a row of positive weight holds NaN. If `debiased`, also of fewer than four rows of
        positive weight, or where one has half of the weight.

    Raises:
        TypeError: if `x` or `y` is not floating point or `debiased` no bool.
        ValueError: for shapes that do not match or negative weights.
    """
    x, y, weights = matched_rows(x, y, weights)
    return _linear_cka(x, y, weights, checks.flag("debiased", debiased))


def rbf_cka(
    x: ArrayLike,
    y: ArrayLike,
    *,
    bandwidth: float | Array = 0.5,
    debiased: bool = False,
    weights: ArrayLike | None = None,
) -> Array:
    """Centred kernel alignment with Gaussian kernels (Kornblith et al. 2019).

    The kernel is exp(-distance^2 / (2 sigma^2)); on either side sigma is `bandwidth` times the
    median distance of two different rows of positive weight, whose derivative is part of that of
    the score. Holds matrices [n, n]. The default is the biased estimator, see `linear_cka`.

    Args:
        x: [n, d_x].
        y: [n, d_y], row i belongs to row i of `x`.
        bandwidth: > 0, may be traced.
        debiased: see `linear_cka`.
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero are inert.
            None means equal weights. See `linear_cka`.

    Returns:
        Scalar in [0, 1], or [-1, 1] if `debiased`; NaN if half of the rows of a side coincide,
        and as in `linear_cka`.

    Raises:
        TypeError: if `x` or `y` is not floating point or `debiased` no bool.
        ValueError: for shapes that do not match, negative weights or a bandwidth that
            is not positive.
    """
    x, y, weights = matched_rows(x, y, weights)
    bandwidth = checks.scalar("bandwidth", bandwidth).astype(weights.dtype)
    if checks.is_concrete(bandwidth) and float(bandwidth) == 0:
        raise ValueError("bandwidth must be > 0; got 0")
    return _rbf_cka(x, y, bandwidth, weights, checks.flag("debiased", debiased))


def svcca(
    x: ArrayLike,
    y: ArrayLike,
    *,
    variance: float | Array = 0.99,
    weights: ArrayLike | None = None,
) -> Array:
    """Singular vector canonical correlation analysis (Raghu et al. 2017).

    Either side is reduced to its fewest principal directions that hold the share `variance` of
    its variance; the result is the mean canonical correlation of the two subspaces. Not
    differentiable: the derivative is zero.

    Args:
        x: [n, d_x].
        y: [n, d_y], row i belongs to row i of `x`.
        variance: in (0, 1], may be traced.
        weights: [n], >= 0, floats, counts or a boolean mask; rows of weight zero are inert.
            None means equal weights.

    Returns:
        Scalar in [0, 1]; NaN if a side is constant, all weights are zero or a row of positive
        weight holds NaN. With as many directions as rows it is 1 whatever the data.

    Raises:
        TypeError: if `x` or `y` is not floating point.
        ValueError: for shapes that do not match, negative weights or a variance not in (0, 1].
    """
    x, y, weights = matched_rows(x, y, weights)
    variance = checks.scalar("variance", variance).astype(weights.dtype)
    if checks.is_concrete(variance) and not 0 < float(variance) <= 1:
        raise ValueError(f"variance must be in (0, 1]; got {float(variance)}")
    return _svcca(x, y, variance, weights)


def mutual_knn(x: ArrayLike, y: ArrayLike, k: int, *, weights: ArrayLike | None = None) -> Array:
    """Mean share of the k nearest neighbours by cosine that both spaces have in common.

    The mutual nearest-neighbour alignment of Huh et al. (2024); a row is no neighbour of itself.
    Of equally near rows the earlier one is taken.

    Args:
        x: [n, d_x].
        y: [n, d_y], row i belongs to row i of `x`.
        k: number of neighbours, < n (static).
        weights: [n] of the mean, >= 0, floats, counts or a boolean mask; rows of weight zero are
            inert and no neighbours. None means equal weights. A row of weight 2 is not two rows,
            which would be neighbours of each other.

    Returns:
        Scalar in [0, 1]; NaN if at most k rows have a positive weight, or one of these holds NaN.

    Raises:
        TypeError: if `x` or `y` is not floating point or `k` no int.
        ValueError: for shapes that do not match, negative weights or k >= n.
    """
    x, y, weights = matched_rows(x, y, weights)
    k = checks.positive_int("k", k)
    if k >= x.shape[0]:
        raise ValueError(f"k must be less than the number of rows, {x.shape[0]}; got {k}")
    return _mutual_knn(x, y, k, weights)


def orthogonality_error(weight: ArrayLike) -> Array:
    """Largest absolute entry of Q^T Q - I, or of Q Q^T - I for more columns than rows.

    Args:
        weight: [d_in, d_out] of a map.

    Returns:
        Scalar >= 0, in the dtype of `weight`, at least float32; 0 for a semi-orthogonal matrix.

    Raises:
        TypeError: if `weight` is not floating point.
        ValueError: if it is not a matrix.
    """
    return _orthogonality_error(checks.float_array("weight", weight, 2))


@jax.jit
def _orthogonality_error(q: Array) -> Array:
    q = q.astype(compute_dtype(q.dtype))
    if q.shape[0] < q.shape[1]:
        q = transpose(q)
    return jnp.max(jnp.abs(matmul(transpose(q), q) - jnp.eye(q.shape[1], dtype=q.dtype)))


@partial(jax.jit, static_argnums=3)
def _linear_cka(x: Array, y: Array, weights: Array, debiased: bool) -> Array:
    x, y = without_inert(x, y, weights)
    shares = _shares(weights)
    sides = _centred(x, shares), _centred(y, shares)
    pairs = ((0, 1), (0, 0), (1, 1))
    products = [_squared_cross(sides[i], sides[j]) for i, j in pairs]
    if debiased:
        own = [jnp.sum(side * side, axis=1) for side in sides]
        products = [
            _product_of_pairs(product, own[i], own[j], shares)
            for product, (i, j) in zip(products, pairs, strict=True)
        ]
    return _alignment(*products)


@partial(jax.jit, static_argnums=4)
def _rbf_cka(x: Array, y: Array, bandwidth: Array, weights: Array, debiased: bool) -> Array:
    x, y = without_inert(x, y, weights)
    shares = _shares(weights)
    centre = _pairs_only if debiased else _centred_kernel
    a, b = (centre(_kernel(_centred(z, weights > 0), bandwidth, shares), shares) for z in (x, y))
    pairs = shares[:, None] * shares[None, :]
    return _alignment(jnp.sum(pairs * a * b), jnp.sum(pairs * a * a), jnp.sum(pairs * b * b))


@jax.jit
def _svcca(x: Array, y: Array, variance: Array, weights: Array) -> Array:
    x, y = without_inert(x, y, weights)
    bases = [_principal_basis(_centred(z, weights), variance) for z in (x, y)]
    correlations = svd(matmul(transpose(bases[0]), bases[1]))[1]
    # The columns of a basis are unit vectors or, beyond the kept directions, zero.
    rank = jnp.minimum(*(jnp.sum(jnp.any(basis != 0, axis=0)) for basis in bases))
    rank = rank.astype(correlations.dtype)
    total = jnp.sum(jnp.minimum(correlations, 1))
    return jnp.where(rank > 0, total / jnp.where(rank > 0, rank, 1), jnp.nan)


@partial(jax.jit, static_argnums=2)
def _mutual_knn(x: Array, y: Array, k: int, weights: Array) -> Array:
    x, y = map(normalize_rows, without_inert(x, y, weights))
    active = weights > 0

    def common(row):
        others = active & (jnp.arange(x.shape[0]) != row)
        near_x, near_y = (
            lax.top_k(jnp.where(others, matmul(z, z[row]), -jnp.inf), k)[1] for z in (x, y)
        )
        return jnp.sum(near_x[:, None] == near_y[None, :], dtype=jnp.int32)

    shared = lax.map(common, jnp.arange(x.shape[0]), batch_size=ROWS_AT_ONCE)
    weights = poisoned(weights, without_nan(x, y))
    overlap = weighted_mean(shared.astype(weights.dtype) / k, weights)
    return jnp.where(jnp.sum(active) > k, overlap, jnp.nan)


def _centred(x: Array, weights: Array) -> Array:
    """Rows minus their weighted mean, times the root of their weights, in a unit near 1.

    Rows of weight zero are zero; boolean `weights` select rows.
    """
    weights = weights.astype(x.dtype)
    x = x / power_of_two_scale(x)
    shares = _shares(weights)[None, :]
    for _ in range(2):  # the second time removes what rounding left of a large mean
        x = x - matmul(shares, x)
    x = jnp.where(weights[:, None] > 0, x, 0)
    # Constant rows leave nothing but rounding, which must not be scaled up.
    x = jnp.where(jnp.max(jnp.abs(x)) > jnp.finfo(x.dtype).eps, x, 0)
    x = x / power_of_two_scale(x)
    # The derivative of sqrt at zero is infinite.
    root = jnp.sqrt(jnp.where(weights > 0, weights, 1))
    return x * jnp.where(weights > 0, root, 0)[:, None]


def _squared_cross(a: Array, b: Array) -> Array:
    """||a^T b||_F^2 by the smaller of the two products that give it."""
    n = a.shape[0]
    if n * n < a.shape[1] * b.shape[1]:
        return jnp.sum(matmul(a, transpose(a)) * matmul(b, transpose(b)))
    cross = matmul(transpose(a), b)
    return jnp.sum(cross * cross)


def _alignment(cross: Array, first: Array, second: Array) -> Array:
    """Cross / sqrt(first * second), NaN where that is 0 / 0."""
    defined = (first > 0) & (second > 0)
    roots = [jnp.sqrt(jnp.where(defined, part, 1)) for part in (first, second)]
    return jnp.where(defined, cross / roots[0] / roots[1], jnp.nan)


def _shares(weights: Array) -> Array:
    """Weights [n] divided by their sum, or zeros."""
    total = jnp.sum(weights)
    return weights * safe_inverse(total, total > 0)


def _kernel(x: Array, bandwidth: Array, shares: Array) -> Array:
    """Gaussian kernel [n, n] of the rows; the median is of those that have a share."""
    squares = jnp.sum(x * x, axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * matmul(x, transpose(x))
    squared = jnp.maximum(squared, 0)
    active = shares > 0
    pairs = active[:, None] & active[None, :] & ~jnp.eye(x.shape[0], dtype=bool)
    # The derivative of sqrt at zero is infinite.
    distances = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    median = jnp.nanmedian(jnp.where(pairs, distances, jnp.nan)) ** 2
    # Median distances at the level of the rounding of `squared` mean that rows coincide.
    noise = 8 * jnp.finfo(x.dtype).eps * jnp.max(squares, initial=0)
    apart = median > noise
    kernel = jnp.exp(-squared / (2 * bandwidth**2 * jnp.where(apart, median, 1)))
    # Not before: for one row XLA knows that it is NaN, whose exp on a CPU is then anything.
    return jnp.where(apart, kernel, jnp.nan)


def _centred_kernel(kernel: Array, shares: Array) -> Array:
    """`kernel` [n, n] centred by the weights `shares`, which add up to 1."""
    means = matmul(kernel, shares)
    return kernel - means[:, None] - means[None, :] + jnp.sum(shares * means)


def _pairs_only(kernel: Array, shares: Array) -> Array:
    """`kernel` [n, n] without its diagonal, and without the best a_i + a_j of the other entries.

    With equal shares the sum of the products of two such kernels is n (n - 3) times the unbiased
    estimator of Song et al. (2012); with any, it is 0 on average if the sides are unrelated.
    """
    active = shares > 0
    different = active[:, None] & active[None, :] & ~jnp.eye(len(kernel), dtype=bool)
    kernel = jnp.where(different, kernel, 0)
    part = _additive_part(matmul(kernel, shares), shares)
    rest = jnp.where(different, kernel - part[:, None] - part[None, :], 0)
    # Of three rows, or equal distances, nothing is left but rounding.
    some = jnp.max(jnp.abs(rest)) > 32 * jnp.finfo(kernel.dtype).eps
    return jnp.where(some & (jnp.sum(active) > 3), rest, jnp.nan)


def _product_of_pairs(product: Array, p: Array, q: Array, shares: Array) -> Array:
    """The sum of the products of two linear kernels `_pairs_only`, without matrices [n, n].

    Args:
        product: the sum over all pairs of rows, with a row and itself.
        p: the part of each row with itself [n], in one kernel. As this is centred, the sum over
            the pairs with others is -p.
        q: the same of the other kernel.
        shares: weights [n] that add up to 1.
    """
    rest = product - jnp.sum(p * q) + 2 * jnp.sum(shares * _additive_part(-p, shares) * q)
    some = jnp.abs(rest) > 16 * jnp.finfo(rest.dtype).eps * product
    return jnp.where(some & (jnp.sum(shares > 0) > 3), rest, 0)


def _additive_part(sums: Array, shares: Array) -> Array:
    """The a [n] whose a_i + a_j (i != j) have the weighted row sums `sums` of the others."""
    others = 1 / (1 - 2 * shares)
    total = jnp.sum(shares * sums * others) / (1 + jnp.sum(shares * others))
    return (sums - total) * others


def _principal_basis(a: Array, variance: Array) -> Array:
    """Left singular vectors [n, k] that hold a share of the variance; zero columns beyond."""
    u, s, _ = svd(lax.stop_gradient(a))
    squares = jnp.where(s > 8 * jnp.finfo(s.dtype).eps * jnp.max(s), s, 0) ** 2
    before = jnp.cumsum(squares) - squares
    kept = (squares > 0) & (before < variance * jnp.sum(squares))
    return jnp.where(kept[None, :], u, 0)
