"""Mergeable statistics of matched anchors: fits to data that is streamed, sharded or too large.

The statistics are kept centred and merged pairwise (Chan, Golub and LeVeque, "Updating formulae
and a pairwise algorithm for computing sample variances", 1979), so a large common offset of the
embeddings costs no digits. They take O(d^2) memory, whatever the number of anchors.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from . import _checks
from ._linalg import compute_dtype, matmul, safe_inverse, transpose
from ._typing import Array, ArrayLike


class PairStats(NamedTuple):
    """What the four maps need to know of matched anchors `x` [n, d_in] and `y` [n, d_out].

    Attributes:
        weight_sum: scalar, sum of the weights.
        weight_square_sum: scalar, sum of the squared weights.
        mean_x: [d_in], weighted mean.
        mean_y: [d_out], weighted mean.
        cxx: [d_in, d_in], sum of w (x - mean_x)^T (x - mean_x).
        cxy: [d_in, d_out], sum of w (x - mean_x)^T (y - mean_y).
        cyy_diagonal: [d_out], sum of w (y - mean_y)^2.
    """

    weight_sum: Array
    weight_square_sum: Array
    mean_x: Array
    mean_y: Array
    cxx: Array
    cxy: Array
    cyy_diagonal: Array


def init_stats(d_in: int, d_out: int, *, dtype=jnp.float32) -> PairStats:
    """Statistics of no anchors.

    Args:
        d_in: source dimension, >= 1.
        d_out: target dimension, >= 1.
        dtype: floating dtype to accumulate in; half precision is raised to float32. Statistics
            hold squares: in float32, data below 1e-18 or above 1e18 has to be rescaled first.

    Raises:
        TypeError: if a dimension is not an int.
        ValueError: if a dimension is below 1.
    """
    d_in, d_out = _checks.positive_int("d_in", d_in), _checks.positive_int("d_out", d_out)
    zeros = partial(jnp.zeros, dtype=compute_dtype(dtype))
    shapes = ((), (), d_in, d_out, (d_in, d_in), (d_in, d_out), d_out)
    return PairStats(*map(zeros, shapes))


@jax.jit
def merge_stats(first: PairStats, second: PairStats) -> PairStats:
    """Statistics of the anchors of both; commutative and associative up to rounding.

    Args:
        first: statistics of some anchors.
        second: statistics of other anchors, of the same dimensions.
    """
    return _merge(first, second, jnp.outer)


def _merge(first: PairStats, second: PairStats, outer: Callable) -> PairStats:
    """Chan's formula for arrays of NumPy or JAX."""
    total = first.weight_sum + second.weight_sum
    share = second.weight_sum / (total + (total == 0).astype(total.dtype))
    between = first.weight_sum * share
    dx, dy = second.mean_x - first.mean_x, second.mean_y - first.mean_y
    return PairStats(
        total,
        first.weight_square_sum + second.weight_square_sum,
        first.mean_x + share * dx,
        first.mean_y + share * dy,
        first.cxx + second.cxx + between * outer(dx, dx),
        first.cxy + second.cxy + between * outer(dx, dy),
        first.cyy_diagonal + second.cyy_diagonal + between * dy * dy,
    )


def update_stats(
    stats: PairStats, x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None
) -> PairStats:
    """Add a batch of anchors; works on rows sharded over a mesh without gathering them.

    Args:
        stats: statistics so far, e.g. of `init_stats`.
        x: source anchors [n, d_in], floating point.
        y: target anchors [n, d_out], matched by row.
        weights: [n], >= 0, floats or a boolean mask; rows of weight zero are exactly inert.

    Returns:
        New statistics in the dtype of `stats`.

    Raises:
        TypeError: for anchors that are not floating point.
        ValueError: for shapes that do not match.
    """
    x, y = _checks.pair(x, y)
    shapes = (x.shape[1], y.shape[1])
    if shapes != stats.cxy.shape:
        raise ValueError(
            f"x and y must have {stats.cxy.shape[0]} and {stats.cxy.shape[1]} features, as the "
            f"statistics; got x {x.shape} and y {y.shape}"
        )
    if weights is not None:
        weights = _checks.row_weights(weights, x.shape[0])
    return _update(stats, x, y, weights)


@jax.jit
def _update(stats: PairStats, x: Array, y: Array, weights: Array | None) -> PairStats:
    dtype = stats.cxx.dtype
    w = jnp.ones(x.shape[0], dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    if weights is not None:
        w = jnp.where(weights > 0, weights.astype(dtype), 0)
        x, y = (jnp.where(w[:, None] > 0, a, 0) for a in (x, y))
    total = jnp.sum(w)
    share = w * safe_inverse(total, total > 0)
    mean_x, x = _centre(share, x)
    mean_y, y = _centre(share, y)
    weighted = transpose(x * w[:, None])
    batch = PairStats(
        total,
        jnp.sum(w * w),
        mean_x,
        mean_y,
        matmul(weighted, x),
        matmul(weighted, y),
        matmul(w, y * y),
    )
    return _merge(stats, batch, jnp.outer)


def _centre(share: Array, a: Array) -> tuple[Array, Array]:
    # The second pass removes the rounding error of the first mean.
    mean = matmul(share, a)
    rest = matmul(share, a - mean[None, :])
    return mean + rest, (a - mean[None, :]) - rest[None, :]


def psum_stats(stats: PairStats, axis_name: str | tuple[str, ...]) -> PairStats:
    """Merge the statistics of all devices along mesh axes, inside `jax.shard_map` or `pmap`.

    Args:
        stats: this device's statistics.
        axis_name: name or names of the axes over which the anchors are spread.

    Returns:
        The statistics of all anchors, the same on every device.
    """
    add = partial(jax.lax.psum, axis_name=axis_name)
    weight = stats.weight_sum
    total = add(weight)
    share = weight * safe_inverse(total, total > 0)

    def mean(own: Array) -> Array:
        # Relative to a common centre first, so that a large offset costs no digits.
        center = jax.lax.pmean(own, axis_name)
        return center + add(share * (own - center))

    mean_x, mean_y = mean(stats.mean_x), mean(stats.mean_y)
    dx, dy = stats.mean_x - mean_x, stats.mean_y - mean_y
    return PairStats(
        total,
        add(stats.weight_square_sum),
        mean_x,
        mean_y,
        add(stats.cxx + weight * jnp.outer(dx, dx)),
        add(stats.cxy + weight * jnp.outer(dx, dy)),
        add(stats.cyy_diagonal + weight * dy * dy),
    )


#: Rows that are converted to float64 at a time.
_HOST_ROWS = 4096


def accumulate_stats(
    batches: Iterable[tuple[Any, ...]], *, progress: Callable[[int], None] | None = None
) -> PairStats:
    """One pass over anchors that do not fit into memory, accumulated in float64 on the host.

    `fit_from_stats` then solves in float64 as well, whatever JAX's settings: float32 statistics
    resolve singular values of `x` down to about 1e-3 of the largest, these down to about 1e-7.

    Args:
        batches: `(x, y)` or `(x, y, weights)` with `x` [b, d_in], `y` [b, d_out], `weights` [b];
            b may vary. See `row_batches` for memory-mapped files.
        progress: called after every batch with the number of rows done so far.

    Returns:
        `PairStats` of float64 NumPy arrays.

    Raises:
        TypeError: for anchors that are not floating point.
        ValueError: for shapes that do not match, no batch at all, NaN or infinity in a row that
            counts, or bad weights; the message has the number of the row in the stream.
    """
    stats: PairStats | None = None
    done = 0
    for batch in batches:
        if len(batch) not in (2, 3):
            raise ValueError(f"batches must give (x, y) or (x, y, weights); got {len(batch)} parts")
        x, y = (np.asarray(a) for a in batch[:2])
        weights = None if len(batch) == 2 else np.asarray(batch[2], np.float64)
        _check_batch(x, y, weights, stats)
        for start in range(0, len(x), _HOST_ROWS):
            rows = slice(start, start + _HOST_ROWS)
            part = None if weights is None else weights[rows]
            update = _host_stats(x[rows], y[rows], part, done + start)
            stats = update if stats is None else _merge(stats, update, np.outer)
        done += len(x)
        if progress is not None:
            progress(done)
    if stats is None:
        raise ValueError("batches is empty: at least one batch of anchors is needed")
    if not stats.weight_sum > 0:
        raise ValueError("weights are all zero: at least one anchor needs a positive weight")
    return stats


def _check_batch(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, stats: PairStats | None
) -> None:
    for name, array in (("x", x), ("y", y)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must have a floating-point dtype; got {array.dtype}")
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(f"{name} must be [rows, features]; got shape {array.shape}")
    if len(x) != len(y) or (weights is not None and weights.shape != (len(x),)):
        got = "none" if weights is None else weights.shape
        raise ValueError(
            f"a batch must have as many rows in x, y and weights; got {x.shape}, {y.shape}, {got}"
        )
    if stats is not None and (x.shape[1], y.shape[1]) != stats.cxy.shape:
        raise ValueError(
            f"all batches must have {stats.cxy.shape[0]} and {stats.cxy.shape[1]} features; got "
            f"x {x.shape} and y {y.shape}"
        )


def _host_stats(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, first_row: int
) -> PairStats:
    if weights is None:
        w = np.ones(len(x))
    else:
        bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
        if bad.size:
            raise ValueError(f"weights must be finite and >= 0; row {first_row + bad[0]} is not")
        active = weights > 0
        x, y, w = x[active], y[active], weights[active]
    x, y = np.array(x, np.float64), np.array(y, np.float64)  # copies, changed below
    total = w.sum()
    with np.errstate(invalid="ignore", over="ignore"):
        mean_x, mean_y = (w @ a / (total or 1) for a in (x, y))
    if not (np.isfinite(mean_x).all() and np.isfinite(mean_y).all()):  # else every entry is
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            row = row if weights is None else np.flatnonzero(weights > 0)[row]
            raise ValueError(
                f"x or y holds NaN or infinity, first in row {first_row + row}; drop such rows "
                f"or give them weight 0"
            )
    x -= mean_x
    y -= mean_y
    if weights is not None:
        root = np.sqrt(w)[:, None]
        x *= root
        y *= root
    # Most of the time goes into x^T x, of which BLAS computes one half, and x^T y. NumPy arrays
    # stand in for JAX arrays.
    squares = (w * w).sum()
    fields = (total, squares, mean_x, mean_y, x.T @ x, x.T @ y, np.einsum("ij,ij->j", y, y))
    return PairStats(*(cast(Any, np.asarray(field)) for field in fields))


def row_batches(
    x: Any, y: Any, batch_size: int, *, weights: Any = None
) -> Iterator[tuple[Any, ...]]:
    """Consecutive row blocks of two array-likes, e.g. of `numpy.load(path, mmap_mode="r")`.

    Args:
        x: [n, d_in], anything that can be sliced.
        y: [n, d_out].
        batch_size: rows in a block.
        weights: [n] or None.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    batch_size = _checks.positive_int("batch_size", batch_size)
    columns = (x, y) if weights is None else (x, y, weights)
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"x, y and weights differ in rows: {[len(c) for c in columns]}")
    return (
        tuple(column[start : start + batch_size] for column in columns)
        for start in range(0, len(x), batch_size)
    )
