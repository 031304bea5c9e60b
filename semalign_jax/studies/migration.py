"""A search index that moves to another encoder: how much of the search mapped embeddings keep.

A map fitted to a sample that both encoders have embedded takes the old embeddings into the space of
the new encoder, so that queries of the new one search them without embedding everything again. The
measure of success is the search after a full re-embedding, found exactly.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from ..metrics import mutual_knn, nearest_neighbors
from ..metrics.intervals import bootstrap

#: "recall": share of queries whose nearest row after a full re-embedding is among the first k of
#: the mapped rows. "overlap": mean share of the first k that are the same.
Measure: TypeAlias = Literal["recall", "overlap"]
#: Mapped rows are compared with each other by so many neighbours.
NEIGHBORS = 10
#: Queries whose lists are compared at a time.
_AT_ONCE = 256


class Kept(NamedTuple):
    """How much of a search a map keeps.

    Attributes:
        method: name of the map.
        measure: see `Measure`, or "neighbours": the share of the 10 nearest rows that mapped rows
            have in common with re-embedded ones, without any query.
        k: length of the lists that are compared.
        value: in [0, 1].
        lower: of the percentile interval over queries; NaN for "neighbours".
        upper: as `lower`.
    """

    method: str
    measure: str
    k: int
    value: float
    lower: float
    upper: float


def search_kept(
    maps: Mapping[str, AffineMap],
    old: ArrayLike,
    new: ArrayLike,
    queries: ArrayLike,
    key: Array,
    *,
    own: ArrayLike | None = None,
    ks: Sequence[int] = (1, 10, 100),
    resamples: int = 2000,
    level: float = 0.95,
) -> list[Kept]:
    """Compare the search of mapped rows with that of the same rows embedded again.

    Args:
        maps: from the old space to the new one, by name; fitted to other rows than `old`.
        old: rows to be searched, by the old encoder [n, d_old].
        new: the same rows by the new encoder [n, d_new].
        queries: by the new encoder [q, d_new].
        key: PRNG key of the resamples.
        own: integers [q], rows of `new` that the queries are; see `nearest_neighbors`.
        ks: lengths of the lists that are compared.
        resamples: of the queries, for the intervals.
        level: of the intervals, in (0, 1).

    Returns:
        `Kept` for each map: recall and overlap at each of `ks`, and the neighbours in common.
        Fewer rows than a whole index are easier to search: the more rows, the closer to its value.

    Raises:
        TypeError: as `nearest_neighbors` and `bootstrap`.
        ValueError: as these; in particular for more neighbours than rows.
    """
    longest, ks = max(ks), tuple(ks)
    old, new = jnp.asarray(old), jnp.asarray(new)
    wanted = nearest_neighbors(queries, new, longest, own=own)
    mapped = {name: mapping(old) for name, mapping in maps.items()}
    found = (nearest_neighbors(queries, rows, longest, own=own) for rows in mapped.values())
    hits = jnp.stack([_hits(ks, wanted, rows) for rows in found], axis=1)
    interval = bootstrap(_means, hits, len(hits), key, resamples=resamples, level=level)
    kept = []
    for row, (name, rows) in enumerate(mapped.items()):
        for i, measure in enumerate(get_args(Measure)):
            for j, k in enumerate(ks):
                values = (float(values[row, i, j]) for values in interval[:3])
                kept.append(Kept(name, measure, k, *values))
        common = float(mutual_knn(rows, new, NEIGHBORS))
        kept.append(Kept(name, "neighbours", NEIGHBORS, common, math.nan, math.nan))
    return kept


def _means(hits: Array, weights: Array) -> Array:
    return jnp.tensordot(weights, hits, 1) / jnp.sum(weights)


@partial(jax.jit, static_argnums=0)
def _hits(ks: tuple[int, ...], wanted: Array, found: Array) -> Array:
    """Recall and overlap of each query, [q, 2, k]."""

    def of_query(lists: tuple[Array, Array]) -> Array:
        same = lists[0][:, None] == lists[1][None, :]
        recall = [jnp.any(same[0, :k]) for k in ks]
        overlap = [jnp.sum(same[:k, :k]) / k for k in ks]
        return jnp.array([recall, overlap], jnp.float32)

    return jax.lax.map(of_query, (wanted, found), batch_size=_AT_ONCE)
