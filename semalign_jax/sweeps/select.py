"""Choosing which rows to match, from one side alone, and which layers of two encoders to map."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._core import checks
from .._core.linalg import (
    compute_dtype,
    eigh,
    in_batches,
    matmul,
    power_of_two_scale,
    transpose,
    unit_rows,
)
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..metrics import linear_cka, mutual_knn
from .anchors import anchor_order

Selection = Literal["random", "stratified", "k-medoids", "k-means++", "leverage", "farthest"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)

#: Rows whose cosines with all centres are held at a time.
ROWS_AT_ONCE = 4096
#: Rounds of k-means, which hardly moves after ten.
ROUNDS = 20


def select_anchors(
    x: ArrayLike,
    count: int,
    *,
    method: Selection = "k-medoids",
    key: Array,
    labels: ArrayLike | None = None,
) -> Array:
    """Choose rows of one side to match with the other, before anything is known of it.

    All but the first two look at the directions of the rows from their mean:

    - "random" and "stratified": see `anchor_order`;
    - "k-medoids": of each cluster of spherical k-means the row nearest to its centre. On the
      shipped data the only one that paid: docs/unpaired-data.md;
    - "k-means++": one row after the other, drawn by its squared distance to the nearest one that
      is chosen (Arthur and Vassilvitskii 2007);
    - "farthest": one row after the other, the farthest from all that are chosen; outliers first;
    - "leverage": drawn by ridge leverage scores of the centred rows, with a penalty of one mean
      diagonal entry of their Gram matrix.

    Compiles with `count` and `method` static; `jax.vmap` it over keys. Besides copies of `x` it
    holds 4096 x `count` numbers.

    Args:
        x: rows to choose from [n, d], e.g. all of the source space.
        count: how many to choose, in [1, n] (static).
        method: one of these six (static).
        key: PRNG key; all methods begin at random.
        labels: integer classes [n], for "stratified" only.

    Returns:
        int32 [count], distinct rows.

    Raises:
        TypeError: if `x` is not floating point, or for a `count`, `key` or `labels` of the wrong
            type.
        ValueError: if `x` is not a matrix or holds NaN or infinity, `count` is not in [1, n], for
            an unknown method, or labels that are missing or not asked for.
    """
    x = checks.float_array("x", x, 2)
    n, count = x.shape[0], checks.positive_int("count", count)
    if count > n:
        raise ValueError(f"count must be at most the number of rows of x, {n}; got {count}")
    checks.option("method", method, SELECTIONS)
    key = checks.prng_key("key", key)
    if (labels is not None) != (method == "stratified"):
        raise ValueError(
            f"labels are needed by method='stratified', and by no other; got method={method!r} "
            f"{'without' if labels is None else 'with'} labels"
        )
    if method in ("random", "stratified"):
        return anchor_order(key, n, size=count, labels=labels)
    if checks.is_concrete(x):
        checks.finite_rows("x", x)
    return _selected(method, count, x, key)


@partial(jax.jit, static_argnums=(0, 1))
def _selected(method: Selection, count: int, x: Array, key: Array) -> Array:
    x = x.astype(compute_dtype(x.dtype))
    x = x - jnp.mean(x, axis=0, keepdims=True)
    if method == "leverage":
        return _by_leverage(x, count, key)
    units = unit_rows(x)
    if method == "k-medoids":
        return _medoids(units, count, key)
    return _one_by_one(units, count, key, farthest=method == "farthest")


def _by_leverage(x: Array, count: int, key: Array) -> Array:
    x = x / power_of_two_scale(x)
    values, vectors = eigh(matmul(transpose(x), x))
    values = jnp.maximum(values, 0)
    penalty = jnp.mean(values)
    shrunk = values + jnp.where(penalty > 0, penalty, 1)

    def scores(rows: Array) -> Array:
        return jnp.sum(matmul(rows, vectors) ** 2 / shrunk[None, :], axis=1)

    # The largest of the logarithms with Gumbel noise are a draw without replacement.
    noise = jax.random.gumbel(key, (len(x),), jnp.float32)
    logits = _log(in_batches(scores, x, ROWS_AT_ONCE))
    return lax.top_k(logits + noise, count)[1].astype(jnp.int32)


def _one_by_one(units: Array, count: int, key: Array, *, farthest: bool) -> Array:
    """Rows far from all that are chosen: the farthest, or drawn by the squared distance."""

    def step(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, gap = state  # squared distance to the nearest that is chosen, over 2; -1 if chosen
        drawn = jax.random.categorical(
            jax.random.fold_in(key, index), jnp.where(gap < 0, -jnp.inf, _log(gap))
        )
        row = jnp.where(index > 0, jnp.argmax(gap), drawn) if farthest else drawn
        nearer = jnp.minimum(gap, jnp.maximum(1 - matmul(units, units[row]), 0))
        return chosen.at[index].set(row.astype(jnp.int32)), nearer.at[row].set(-1)

    begin = jnp.zeros(count, jnp.int32), jnp.full_like(units[:, 0], 2)
    return lax.fori_loop(0, count, step, begin)[0]


def _medoids(units: Array, count: int, key: Array) -> Array:
    """The row nearest to the centre of each cluster; of an empty one the row farthest from its."""

    def nearest(centres: Array) -> tuple[Array, Array]:
        def of_rows(rows: Array) -> tuple[Array, Array]:
            cosines = matmul(rows, transpose(centres))
            return jnp.argmax(cosines, axis=1), jnp.max(cosines, axis=1)

        return in_batches(of_rows, units, ROWS_AT_ONCE)

    def moved(_, centres: Array) -> Array:
        sums = jax.ops.segment_sum(units, nearest(centres)[0], count)
        return jnp.where(jnp.any(sums != 0, axis=1, keepdims=True), unit_rows(sums), centres)

    centres = units[_one_by_one(units, count, key, farthest=False)]
    cluster, cosine = nearest(lax.fori_loop(0, ROUNDS, moved, centres))
    best = jax.ops.segment_max(cosine, cluster, count)
    rows = jnp.arange(len(units))
    # The first of equally near rows.
    first = jax.ops.segment_min(jnp.where(cosine == best[cluster], rows, len(rows)), cluster, count)
    priority = jnp.where(rows == first[cluster], 2, -cosine)
    return lax.top_k(priority, count)[1].astype(jnp.int32)


def _log(values: Array) -> Array:
    """Logarithms, finite also where equal rows leave nothing, so that any of these can come.

    In float32, so that a key draws the same rows of `x` in any dtype.
    """
    values = values.astype(jnp.float32)
    return jnp.log(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))


@by_value
class LayerChoice(NamedTuple):
    """What `choose_layers` returns.

    Attributes:
        source: name of the source layer.
        target: name of the target layer.
        scores: of every source layer with every target layer [source layers, target layers], in
            the order of the mappings.
    """

    source: Any
    target: Any
    scores: np.ndarray


def choose_layers(
    x: Mapping[Any, ArrayLike],
    y: Mapping[Any, ArrayLike],
    *,
    measure: Literal["mutual-knn", "cka"] = "mutual-knn",
    k: int = 10,
) -> LayerChoice:
    """The two layers that see the anchors most alike (Gröger et al. 2025, arXiv 2506.16895).

    The last layers are often not the best to map between. Rows are the same anchors everywhere.

    Args:
        x: layer of the source encoder -> embeddings of the anchors [n, d], e.g. of `embed`
            with `layers=`.
        y: the same of the target encoder.
        measure: "mutual-knn", the share of nearest neighbours in common, or "cka", debiased linear
            CKA; see `metrics`.
        k: number of neighbours; at most n - 1 are taken.

    Raises:
        TypeError: if embeddings are not floating point.
        ValueError: if there are no layers, fewer than 2 rows (4 for "cka"), or numbers of rows that
            differ.
    """
    checks.option("measure", measure, ("mutual-knn", "cka"))
    k, least = checks.positive_int("k", k), 2 if measure == "mutual-knn" else 4
    for name, layers in (("x", x), ("y", y)):
        if not layers:
            raise ValueError(f"{name} has no layers")
        for key, rows in layers.items():
            if np.ndim(rows) == 2 and np.shape(rows)[0] < least:
                raise ValueError(
                    f"{name}[{key!r}] needs at least {least} rows; got {np.shape(rows)}"
                )

    def score(a: ArrayLike, b: ArrayLike) -> float:
        if measure == "cka":
            return float(linear_cka(a, b, debiased=True))
        return float(mutual_knn(a, b, min(k, np.shape(a)[0] - 1)))

    scores = np.array([[score(a, b) for b in y.values()] for a in x.values()])
    best = np.unravel_index(np.argmax(np.nan_to_num(scores, nan=-np.inf)), scores.shape)
    return LayerChoice([*x][best[0]], [*y][best[1]], scores)
