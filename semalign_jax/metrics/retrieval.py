"""Retrieval: ranks of matched rows in both directions, optionally with CSLS, and neighbours."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._core import checks
from .._core.linalg import matmul
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .samples import in_range, integers, sample_weights, weighted_mean
from .similarity import (
    ROWS_AT_ONCE,
    matched_rows,
    normalize_rows,
    without_inert,
    without_nan,
)

#: Cosines that differ by at most so many machine epsilons count as tied: equal rows get slightly
#: different products.
TIE_EPS = 8


@by_value
class RetrievalRanks(NamedTuple):
    """Ranks of the matching rows among all candidates; 1 is the best.

    Attributes:
        x_to_y: [n], rank of row i of `y` when row i of `x` is the query; NaN for weight zero.
        y_to_x: [n], the other way round.
    """

    x_to_y: Array
    y_to_x: Array


def retrieval_ranks(
    x: ArrayLike,
    y: ArrayLike,
    *,
    csls_neighbors: int | None = None,
    weights: ArrayLike | None = None,
) -> RetrievalRanks:
    """Rank of every matching row by cosine similarity, in both directions.

    Tied candidates share their mean rank, so that constant embeddings do not look perfect:
    1 + number of better candidates + half the number of equal ones. Memory grows with n only.

    Args:
        x: [n, d], e.g. mapped embeddings.
        y: [n, d], row i matches row i of `x`.
        csls_neighbors: None, or the number of neighbours (static) of cross-domain similarity
            local scaling, 2 cos(x, y) - r(x) - r(y), where r is the mean cosine with the nearest
            neighbours on the other side (Conneau et al. 2018); it corrects for hubs.
        weights: [n]; rows of weight zero are neither queries nor candidates. None keeps all.

    Returns:
        `RetrievalRanks`; see `recall_at_k`, `mean_reciprocal_rank` and `median_rank`. All NaN if
        a row of positive weight holds NaN.

    Raises:
        TypeError: if `x` or `y` is not floating point or `csls_neighbors` no int.
        ValueError: for shapes that do not match, negative weights or too many neighbours.
    """
    x, y, weights = matched_rows(x, y, weights, same_space=True)
    if csls_neighbors is not None:
        csls_neighbors = checks.positive_int("csls_neighbors", csls_neighbors)
        if csls_neighbors > len(x):
            raise ValueError(
                f"csls_neighbors is {csls_neighbors}, more than {checks.counted(len(x), 'row')}"
            )
    return _both_ranks(x, y, weights, csls_neighbors)


def recall_at_k(ranks: ArrayLike, k: int | Array, *, weights: ArrayLike | None = None) -> Array:
    """Share of the queries whose match is among the first k candidates.

    Args:
        ranks: [n], >= 1, of `retrieval_ranks`.
        k: integer scalar, may be traced.
        weights: of the queries [n], >= 0, floats, counts or a boolean mask; give at least the
            mask that the ranks were made with. None means equal weights.

    Returns:
        Scalar in [0, 1]; NaN if all weights are zero or the rank of a query that counts is NaN.

    Raises:
        TypeError: if `ranks` is not floating point or `k` no integer.
        ValueError: for shapes that do not match or negative weights.
    """
    ranks, weights = _queries(ranks, weights)
    return _recall(ranks, integers("k", k, ()), weights)


@jax.jit
def _recall(ranks: Array, k: Array, weights: Array) -> Array:
    ranks = ranks.astype(weights.dtype)
    hit = (ranks <= k.astype(ranks.dtype)).astype(ranks.dtype)
    return weighted_mean(jnp.where(jnp.isnan(ranks), jnp.nan, hit), weights)


def mean_reciprocal_rank(ranks: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Mean of 1 / rank.

    Args:
        ranks: [n], >= 1, of `retrieval_ranks`.
        weights: of the queries [n]; see `recall_at_k`.

    Returns:
        Scalar in (0, 1]; NaN as in `recall_at_k`.

    Raises:
        TypeError: if `ranks` is not floating point.
        ValueError: for shapes that do not match or negative weights.
    """
    return _reciprocal(*_queries(ranks, weights))


@jax.jit
def _reciprocal(ranks: Array, weights: Array) -> Array:
    return weighted_mean(1 / ranks.astype(weights.dtype), weights)


def median_rank(ranks: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    """Weighted median of the ranks: the mean of the lower and the upper one where they differ.

    Args:
        ranks: [n], >= 1, of `retrieval_ranks`.
        weights: of the queries [n]; see `recall_at_k`.

    Returns:
        Scalar >= 1; NaN as in `recall_at_k`.

    Raises:
        TypeError: if `ranks` is not floating point.
        ValueError: for shapes that do not match or negative weights.
    """
    return _median(*_queries(ranks, weights))


@jax.jit
def _median(ranks: Array, weights: Array) -> Array:
    order = jnp.argsort(ranks)
    ranks, weights = ranks.astype(weights.dtype)[order], weights[order]
    total = jnp.cumsum(weights)
    # Half of the weights but for rounding, e.g. of weights 1 / n. Positions of weight zero must not
    # be hit, not even where the sum is exactly half.
    over = total - total[-1] / 2
    margin = 8 * jnp.finfo(total.dtype).eps * total[-1]
    upper = jnp.argmax((over > margin) & (weights > 0))
    lower = jnp.argmax((over >= -margin) & (weights > 0))
    undefined = (total[-1] == 0) | jnp.any(jnp.isnan(ranks) & (weights > 0))
    return jnp.where(undefined, jnp.nan, (ranks[lower] + ranks[upper]) / 2)


def nearest_neighbors(
    queries: ArrayLike, candidates: ArrayLike, k: int, *, own: ArrayLike | None = None
) -> Array:
    """The k nearest candidates of every query by cosine similarity, found exactly.

    Memory grows with the numbers of rows, not with their product.

    Args:
        queries: [q, d].
        candidates: [n, d].
        k: number of neighbours (static).
        own: integers [q], the row of `candidates` that is the query itself and no neighbour of
            its own; None if the queries are not among the candidates.

    Returns:
        Rows of `candidates`, int32 [q, k], the nearest first; of equally near rows the earlier one.

    Raises:
        TypeError: if the rows are not floating point, `own` no integers or `k` no int.
        ValueError: for dimensions that differ, rows of `own` out of range, more neighbours than
            candidates, or, outside of `jit`, NaN or infinity.
    """
    queries = checks.float_array("queries", queries, 2)
    candidates = checks.float_array("candidates", candidates, 2)
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"queries and candidates must have the same dimension; got {queries.shape} and "
            f"{candidates.shape}"
        )
    if checks.is_concrete(queries, candidates):
        checks.finite_rows("queries", queries)
        checks.finite_rows("candidates", candidates)
    k = checks.positive_int("k", k)
    others = len(candidates) - (own is not None)
    if k > others:
        raise ValueError(f"k is {k}, but a query has only {checks.counted(others, 'candidate')}")
    if own is None:
        own = np.full(len(queries), -1, np.int32)
    else:
        own = integers("own", own, (len(queries),))
        in_range("own", own, len(candidates))
    return _nearest(queries, candidates, k, own)


@partial(jax.jit, static_argnums=2)
def _nearest(queries: Array, candidates: Array, k: int, own: Array) -> Array:
    queries, candidates = normalize_rows(queries), normalize_rows(candidates)
    rows = jnp.arange(len(candidates), dtype=jnp.int32)

    def of_query(query: tuple[Array, Array]) -> Array:
        cosines = jnp.where(rows == query[1], -jnp.inf, matmul(candidates, query[0]))
        return lax.top_k(cosines, k)[1]

    return lax.map(of_query, (queries, own), batch_size=ROWS_AT_ONCE)


def _queries(ranks: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    ranks = checks.float_array("ranks", ranks, 1)
    return ranks, sample_weights(weights, ranks.shape, ranks.dtype)


@partial(jax.jit, static_argnums=3)
def _both_ranks(x: Array, y: Array, weights: Array, k: int | None) -> RetrievalRanks:
    x, y = map(normalize_rows, without_inert(x, y, weights))
    active = weights > 0
    local_x = local_y = jnp.zeros_like(x[:, 0])
    if k is not None:
        # Only the candidates' part matters for ranks; half of it fits the cosine itself.
        local_x = _local_similarity(x, y, active, k) / 2
        local_y = _local_similarity(y, x, active, k) / 2
    ranks = RetrievalRanks(_ranks(x, y, local_y, active), _ranks(y, x, local_x, active))
    defined = active & jnp.all(without_nan(x, y) | ~active)
    return RetrievalRanks(*(jnp.where(defined, r.astype(x.dtype), jnp.nan) for r in ranks))


def _local_similarity(x: Array, y: Array, active: Array, k: int) -> Array:
    """Mean cosine of every row of `x` with its k nearest active rows of `y`; fewer if need be."""

    def of_row(row):
        nearest = lax.top_k(jnp.where(active, matmul(y, row), -jnp.inf), k)[0]
        return weighted_mean(nearest, jnp.isfinite(nearest).astype(nearest.dtype))

    return lax.map(of_row, x, batch_size=ROWS_AT_ONCE)


def _ranks(queries: Array, candidates: Array, penalty: Array, active: Array) -> Array:
    """Mean ranks [n] of the matching row by cosine minus `penalty` [n] of the candidate."""
    margin = TIE_EPS * jnp.finfo(queries.dtype).eps

    def of_query(row):
        lead = matmul(candidates, queries[row]) - penalty
        lead = lead - lead[row]
        better = jnp.sum(active & (lead > margin), dtype=jnp.int32)
        tied = jnp.sum(active & (jnp.abs(lead) <= margin), dtype=jnp.int32) - 1  # itself
        return (2 * better + tied + 2).astype(queries.dtype) / 2

    rows = jnp.arange(queries.shape[0], dtype=jnp.int32)
    return lax.map(of_query, rows, batch_size=ROWS_AT_ONCE)
