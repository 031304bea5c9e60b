"""Evaluated samples: checks of labels and weights, and sums over many rows that stay accurate.

The rules of every score: a row of weight zero is inert, whatever it holds; an undefined value
(no row, an empty class) is NaN. Where values cannot be looked at, a row of positive weight with
an invalid label or score makes the result NaN, since raising is impossible.

Values are looked at before they are cast: JAX itself wraps 64-bit integers that it narrows.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from .._core import checks
from .._core.linalg import common_dtype, compute_dtype, matmul, power_of_two_scale
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike

INT32 = np.iinfo(np.int32)


@by_value
class MacroMean(NamedTuple):
    """Mean over the classes (or labels) for which a score is defined.

    Attributes:
        value: mean of the defined entries [...]; NaN if there are none.
        undefined: int32 [...], how many entries were undefined and left out.
    """

    value: Array
    undefined: Array


def macro_mean(values: Array) -> MacroMean:
    """Mean of the last axis without its undefined (NaN) entries, which are counted.

    Args:
        values: one score a class [..., num_classes], e.g. of `auroc` or `precision_recall_f1`.

    Raises:
        TypeError: if `values` is not floating point.
        ValueError: if it is a scalar or empty.
    """
    values = checks.float_array("values", values, tuple(range(1, max(2, np.ndim(values) + 1))))
    return _macro_mean(values)


@jax.jit
def _macro_mean(values: Array) -> MacroMean:
    defined = ~jnp.isnan(values)
    value = weighted_mean(
        jnp.moveaxis(values, -1, 0),
        jnp.moveaxis(defined, -1, 0).astype(compute_dtype(values.dtype)),
    )
    return MacroMean(value, jnp.sum(~defined, axis=-1, dtype=jnp.int32))


# --- checks ------------------------------------------------------------------------------------


def sample_weights(weights: ArrayLike | None, shape: tuple[int, ...], dtype) -> Array:
    """Weights [n] or of `shape` as floats of `shape`; None means ones.

    They have the floating `dtype` or, if `weights` are more precise, theirs.
    """
    dtype = compute_dtype(dtype)
    if weights is None:
        return np.broadcast_to(np.ones((), dtype), shape)  # type: ignore[return-value]
    array = checks.host_array("weights", weights)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize <= 8:
        dtype = common_dtype(dtype, jax.dtypes.canonicalize_dtype(array.dtype))
    elif not (array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(
            f"weights must be floats of at most 64 bits, counts or a boolean mask; got dtype "
            f"{array.dtype}"
        )
    if array.shape not in (shape, shape[:1]):
        choices = " or ".join(str(s) for s in dict.fromkeys((shape[:1], shape)))
        raise ValueError(f"weights must have shape {choices}, one per row; got {array.shape}")
    if checks.is_concrete(array):
        host, limits = np.asarray(array, np.float64), jnp.finfo(dtype)
        usable = (host == 0) | (host >= float(limits.tiny)) & (host <= float(limits.max))
        bad = np.argwhere(~usable)
        if bad.size:
            where = tuple(bad[0].tolist())
            raise ValueError(
                f"weights must be finite and >= 0, and in the range of {dtype}; entry {where} is "
                f"{host[where]} ({checks.counted(len(bad), 'such entry', 'such entries')})"
            )
    array = unsharded(array.astype(dtype))
    if array.shape != shape:
        array = checks.namespace(array).broadcast_to(array[:, None], shape)
    return array


def integer_array(name: str, value: ArrayLike, shape: tuple[int, ...] | None = None) -> Any:
    """Integers or booleans in their own dtype, of `shape` or, if that is None, non-empty [n].

    Returns:
        A JAX array, or a NumPy array that may hold integers beyond what JAX can.
    """
    array = checks.host_array(name, value)
    if not (array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.integer)):
        hint = f"names are numbered by numpy.unique({name}, return_inverse=True)[1]"
        if jnp.issubdtype(array.dtype, jnp.floating):
            hint = f"whole numbers are integers after {name}.astype(int), yes or no is {name} > 0.5"
        raise TypeError(f"{name} must be integers or booleans; got dtype {array.dtype}: {hint}")
    if shape is None and (array.ndim != 1 or array.size == 0):
        raise ValueError(f"{name} must have shape [n] with n >= 1; got {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got {array.shape}")
    return array


def integers(name: str, value: ArrayLike, shape: tuple[int, ...] | None = None) -> Array:
    """`integer_array` as int32; what is beyond becomes its last value, which `in_range` refuses."""
    array = integer_array(name, value, shape)
    if array.dtype != np.bool_ and jnp.iinfo(array.dtype).max > INT32.max:
        clip = np.clip if isinstance(array, np.ndarray) else jnp.clip
        array = clip(array, max(INT32.min, jnp.iinfo(array.dtype).min), INT32.max)
    return unsharded(array.astype(np.int32))


def unsharded(array: Any) -> Any:
    """`array` with all rows on each device, if its type says how it lies on an Explicit mesh.

    Sorting and scattering rows that are spread is an error there; labels and weights are small.
    """
    if not isinstance(array, jax.Array):
        return array
    sharding = jax.typeof(array).sharding
    if all(axis is None for axis in sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def host_copies(name: str, data: Any) -> Any:
    """A pytree with `checks.owned` copies of its NumPy arrays, none of which JAX may wrap."""

    def of_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray | np.generic):
            return leaf
        taken = checks.owned(checks.host_array(name, leaf))
        if leaf.dtype.kind in "iu" and np.any(taken != leaf):
            raise ValueError(
                f"{name} holds {leaf.dtype} beyond the range of {taken.dtype}, as which JAX takes "
                f"them here: renumber them, e.g. by np.unique(..., return_inverse=True)"
            )
        return taken

    return jax.tree.map(of_leaf, data)


def in_range(
    name: str,
    labels: Array,
    stop: int,
    weights: Array | None = None,
    *,
    start: int = 0,
    known: str | None = None,
) -> Array:
    """Which of the `labels` of `integers` are in [start, stop); refuses others that have a weight.

    `weights` are of the shape of `labels`; None means that none is zero. `known` names the argument
    that says which labels count, where that is not the weights.
    """
    if not checks.is_concrete(labels, weights):
        return (labels >= start) & (labels < stop)
    host = np.asarray(labels)
    valid = (host >= start) & (host < stop)
    bad = np.argwhere(~valid if weights is None else ~valid & (np.asarray(weights) != 0))
    if bad.size:
        where = tuple(bad[0].tolist())
        value = int(host[where])
        hint = "" if weights is None else ". Give rows without a label the weight 0"
        if known is not None:
            hint = f". Labels that are not known are False in {known}"
        raise ValueError(
            f"{name} must be in [{start}, {stop}); entry {where} is "
            f"{'beyond 32 bits' if value in (INT32.min, INT32.max) else value}{hint}"
        )
    return cast(Array, valid)


def weights_of_known(weights: Array, known: Array | None) -> Array:
    """Weights of rows [n] as those of labels [n, c], zero where these are not `known`.

    They stay as they are if `known` is None, i.e. all are.
    """
    return weights if known is None else weights[:, None] * known.astype(weights.dtype)


def checked_known(name: str, known: Any, labels: Array) -> Array | None:
    """A boolean mask of the shape of `labels`, or None."""
    if known is None:
        return None
    known = checks.host_array(name, known)
    if known.dtype != np.bool_:
        raise TypeError(f"{name} must be booleans, True for known labels; got dtype {known.dtype}")
    if known.shape != labels.shape:
        raise ValueError(
            f"{name} must have the shape of the labels {labels.shape}; got {known.shape}"
        )
    return known


def poisoned(weights: Array, valid: Array) -> Array:
    """`weights` with NaN for invalid rows of positive weight, so that the score becomes NaN."""
    return jnp.where(valid | (weights == 0), weights, jnp.nan)


def targets(
    labels: ArrayLike, shape: tuple[int, ...], weights: Array | None = None
) -> tuple[Array, Array]:
    """True classes in the `shape` of the scores, one column a class, and which are valid.

    `labels` are booleans or 0/1 of this shape, or classes [n] for scores [n, num_classes];
    `weights` are of this shape, and None means that none is zero.
    """
    ndim = np.ndim(labels)
    if ndim not in (1, len(shape)):
        raise ValueError(
            f"labels must have the shape of the scores {shape}, or ({shape[0]},) for classes; "
            f"got {np.shape(labels)}"
        )
    if ndim == len(shape):
        labels = integers("labels", labels, shape)
        valid = in_range("labels", labels, 2, weights)
        return labels == 1, valid
    labels = integers("labels", labels, shape[:1])
    row_weights = None if weights is None else weights.max(axis=1)
    valid = in_range("labels", labels, shape[1], row_weights)
    classes = np.arange(shape[1], dtype=np.int32)[None, :]
    return labels[:, None] == classes, valid[:, None] & (classes >= 0)


# --- sums --------------------------------------------------------------------------------------


#: Rows that are added one after the other; float32 sums of more, e.g. of constants, drift.
BLOCK = 32


@jax.jit
def row_sum(values: Array) -> Array:
    """Sums over the first axis [n, ...], in short sums and a tree over these.

    How `jnp.sum` adds up depends on what XLA fuses it with; one after the other, 1e5 rows lose
    two digits.
    """
    blocks = -(-values.shape[0] // BLOCK)
    rest = [(0, 0)] * (values.ndim - 1)
    values = jnp.pad(values, [(0, blocks * BLOCK - values.shape[0]), *rest])
    return tree_sums(jnp.sum(values.reshape(BLOCK, blocks, *values.shape[1:]), axis=0))[-1]


def tree_sums(values: Array) -> Array:
    """Cumulative sums over the first axis, whose rounding grows with the log of its length."""
    return lax.associative_scan(jnp.add, values)


@jax.jit
def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of `values` [n, ...] over the first axis; NaN where all weights are zero.

    Entries of weight zero may hold anything. `weights` are of the same shape.
    """
    dtype = common_dtype(values.dtype, weights.dtype)
    values, weights = values.astype(dtype), weights.astype(dtype)
    total = row_sum(weights)
    mean = row_sum(weights * jnp.where(weights == 0, 0, values))
    # NaN weights, see `poisoned`, give NaN in either branch.
    return jnp.where(total > 0, mean / jnp.where(total > 0, total, 1), jnp.nan)


@partial(jax.jit, static_argnums=2)
def segment_sum(values: Array, segments: Array, num_segments: int) -> Array:
    """Sums of the `values` [n] of each segment, accurate for any n below 2^22.

    A scatter adds one value after the other, by which float32 would lose several digits. Values of
    `segments` [n] outside of [0, num_segments) are dropped.
    """
    segments = jnp.where(segments < 0, num_segments, segments)

    def total(part):
        return jnp.zeros(num_segments, part.dtype).at[segments].add(part, mode="drop")

    high, low = _high_and_low(values)
    return total(high) + total(low)


@jax.jit
def masked_sums(values: Array, mask: Array) -> Array:
    """Sums [c] of the `values` [n] in each column of the boolean `mask` [n, c], as accurate.

    A matrix product, so that many vectors of values with one mask are cheap.
    """
    return jnp.sum(matmul(jnp.stack(_high_and_low(values)), mask.astype(values.dtype)), axis=0)


def _high_and_low(values: Array) -> tuple[Array, Array]:
    """Multiples of a quantum, whose sums are exact in any order, and small remainders.

    Whole numbers whose sum is below 2^23 have no remainders.
    """
    eps = jnp.finfo(values.dtype).eps
    quantum = power_of_two_scale(jnp.sum(jnp.abs(values))) * jnp.asarray(2 * eps, values.dtype)
    quantum = jnp.maximum(quantum, jnp.finfo(values.dtype).tiny)
    high = jnp.round(values / quantum) * quantum
    return high, values - high


def sum_of_others(values: Array, axis: int) -> Array:
    """For every entry the sum of all others along an axis, without cancellation."""
    values = jnp.moveaxis(values, axis, -1)
    pad = [(0, 0)] * (values.ndim - 1)
    below = jnp.cumsum(values, axis=-1)[..., :-1]
    above = jnp.flip(jnp.cumsum(jnp.flip(values, -1), axis=-1)[..., :-1], -1)
    others = jnp.pad(below, [*pad, (1, 0)]) + jnp.pad(above, [*pad, (0, 1)])
    return jnp.moveaxis(others, -1, axis)
