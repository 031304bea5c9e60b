"""Argument checks: shapes and dtypes while tracing, values at the host boundary.

Every message names the argument, says what came and what to do about it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .typing import Array

#: Bytes. XLA on a CPU copies arrays that do not begin at a multiple of this.
ALIGNMENT = 64


def is_concrete(*arrays: Any) -> bool:
    """Whether all values can be looked at, i.e. none is a tracer."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def namespace(*arrays: Any) -> Any:
    """NumPy if all arrays are of it, else jax.numpy."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


def option(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value` if it is one of `allowed`, else raise `ValueError`."""
    allowed = tuple(allowed)
    if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
        choices = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is a Python or NumPy bool, else raise `TypeError`."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False (a static bool); got {value!r}")
    return bool(value)


def first_few(items: Iterable[Any], count: int = 5) -> str:
    """The first few of many items and how many more there are, for messages."""
    items = list(items)
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number of things, in the singular if it is one; by default other numbers get an s."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def refuse_repeated(values: Iterable[Any], where: str = "") -> None:
    """Raise `ValueError` for a value that is there more than once; `where` begins the message."""
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{where}{value!r} is there more than once")


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an `int` if it is a whole number above zero."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int; got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return int(value)


def batch_size(value: Any) -> int | None:
    """Return the argument `batch_size` as an `int` if it is a whole number above zero, or None."""
    return None if value is None else positive_int("batch_size", value)


def shard_rows(rows: int, index: int, count: int) -> range:
    """Return the `index`-th of `count` consecutive parts of `rows` rows; sizes differ by 1."""
    count = positive_int("number of shards", count)
    if not isinstance(index, int | np.integer) or isinstance(index, bool):
        raise TypeError(f"index of the shard must be an int; got {index!r}")
    if not 0 <= index < count:
        raise ValueError(f"index of the shard must be from 0 to {count - 1}; got {index}")
    return range(rows * int(index) // count, rows * (int(index) + 1) // count)


def float_array(
    name: str, value: Any, ndim: int | tuple[int, ...], *, spread: bool = False
) -> Array:
    """Check that `value` is a non-empty floating-point array of a given rank.

    It stays where it is: a NumPy array goes into compiled code as it is, where `jnp.asarray` would
    compile a copy for every shape. What is kept, or goes into several programs, is put
    `on_device`.

    Args:
        name: argument name used in messages.
        value: anything NumPy understands as a numeric array, or a JAX array.
        ndim: allowed number of dimensions.
        spread: whether it may be spread over an Explicit mesh.

    Raises:
        TypeError: for integer, boolean, complex, text, object, masked, big-endian or
            extended-precision data.
        ValueError: for another rank or an empty array, for values that JAX narrows to infinity, or
            if it is spread over an Explicit mesh and may not be.
    """
    value = host_array(name, value)
    dtype = value.dtype
    if dtype == np.longdouble and dtype.itemsize > 8:
        raise TypeError(
            f"{name} is {dtype}, which JAX has not; convert it with .astype(np.float64)"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} must have a floating-point dtype; got {dtype}. "
            f"Convert it, e.g. {name}.astype(np.float32)"
        )
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if value.ndim not in allowed:
        ranks = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {ranks} dimensions; got shape {value.shape}")
    if value.size == 0:
        raise ValueError(f"{name} is empty: shape {value.shape}; every dimension must be >= 1")
    _refuse_beyond_float32(name, value)
    array = owned(value)
    return array if spread else _on_auto_axes(name, array)


def owned(array: Any) -> Any:
    """A NumPy array as a copy in the dtype that JAX takes it as; JAX arrays as they are.

    JAX reads NumPy arrays after a call has returned, when the caller may have changed them. The
    copy begins where XLA on a CPU uses it in place, without another copy.
    """
    if isinstance(array, jax.Array):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    memory = np.empty(array.size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    copy = memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy


def on_device(array: Any) -> Array:
    """A JAX array; of an `owned` one without another copy, and without a program for its shape."""
    return jax.device_put(array) if isinstance(array, np.ndarray) else jnp.asarray(array)


def _refuse_beyond_float32(name: str, value: Any) -> None:
    """Look at values before JAX casts them, which makes infinity of what float32 has not."""
    narrowed = value.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
    if not narrowed or isinstance(value, jax.Array):
        return
    largest = np.finfo(np.float32).max
    for block in _row_blocks(np.atleast_1d(value)):
        beyond = np.isfinite(block) & ((block > largest) | (block < -largest))
        if beyond.any():
            raise ValueError(
                f"{name} holds {block[beyond][0]:.3g}, which is infinity in float32: scale it, or "
                "set jax_enable_x64"
            )


def _row_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, at least one block: answers about all values would take memory, too."""
    return (rows[start : start + 4096] for start in range(0, max(len(rows), 1), 4096))


def host_array(name: str, value: Any) -> Any:
    """`value` as it is if it is a JAX array, else as a NumPy array that JAX can take as it is.

    Raises:
        TypeError: if it is masked or has another byte order than this machine.
        ValueError: if nested lists are ragged.
    """
    if isinstance(value, jax.Array):
        return value
    refuse_masked(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise ValueError(f"{name} is not a rectangular array: {error}") from None
    if not array.dtype.isnative:
        raise TypeError(
            f"{name} has the byte order of another machine ({array.dtype.str}); convert it with "
            f"{name}.astype({name}.dtype.newbyteorder('='))"
        )
    return array


def refuse_masked(name: str, value: Any) -> None:
    """Raise `TypeError` for a masked array, of which NumPy and JAX take the values alone."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; leave masked rows out, or give "
            f"them weight 0 and pass {name}.filled(0)"
        )


def _on_auto_axes(name: str, array: Array) -> Array:
    """Refuse arrays spread over Explicit axes of a mesh, where sums over rows are ambiguous."""
    if any(axis is not None for axis in jax.typeof(array).sharding.spec):
        raise ValueError(
            f"{name} is spread over Explicit axes of a mesh ({jax.typeof(array)}). Make the mesh "
            f"with axis_types=(jax.sharding.AxisType.Auto,), wrap the call in "
            f"jax.sharding.auto_axes(..., out_sharding=jax.P()), or gather it first: "
            f"jax.sharding.reshard({name}, jax.P())"
        )
    return array


def prng_key(name: str, key: Any, ndim: int = 0) -> Array:
    """Check that `key` is a PRNG key, or with `ndim` = 1 an array of keys [seeds]."""
    if not isinstance(key, jax.Array):
        try:
            key = jnp.asarray(key)
        except (TypeError, ValueError):  # of a text or None, for example
            kind = type(key).__name__
            raise TypeError(f"{name} must be made by jax.random.key; got {kind}") from None
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (key.dtype != jnp.uint32 or key.ndim == 0 or key.shape[-1] != 2):
        raise TypeError(f"{name} must be made by jax.random.key; got {key.dtype} {key.shape}")
    dimensions = key.ndim - (0 if typed else 1)
    if dimensions != ndim:
        wanted = (
            "an array of keys [seeds], e.g. of jax.random.split(key, seeds)" if ndim else "one key"
        )
        got = f"keys {[*key.shape[:dimensions]]}" if dimensions else "one key"
        raise ValueError(f"{name} must be {wanted}; got {got}")
    return key


def pair(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Array, Array]:
    """Check that `x` [n, d_in] and `y` [n, d_out] are matched anchor rows."""
    one, two = names
    x, y = float_array(one, x, 2), float_array(two, y, 2)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{one} and {two} must have the same number of rows (row i of {one} matches row i of "
            f"{two}); got {one} {x.shape} and {two} {y.shape}"
        )
    return x, y


def row_weights(weights: Any, rows: int) -> Array:
    """Check `weights` [rows]; booleans and integers count as 0/1/2... weights."""
    array = host_array("weights", weights)
    if array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(np.float32)  # before JAX takes 64-bit integers modulo 2^32
    array = float_array("weights", array, 1)
    if array.shape != (rows,):
        raise ValueError(f"weights must have shape ({rows},), one per row of x; got {array.shape}")
    return array


def scalar(name: str, value: Any) -> Array:
    """Check that `value` is a real scalar, traced or not; negative concrete values are refused."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    if array.ndim != 0:
        raise ValueError(f"{name} must be a scalar; got shape {array.shape}")
    if is_concrete(array) and not (np.isfinite(float(array)) and float(array) >= 0):
        raise ValueError(f"{name} must be finite and >= 0; got {float(array)}")
    if not isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(np.float64)  # before JAX takes 64-bit integers modulo 2^32
    return owned(array)


def weight_values(weights: Array) -> None:
    """Refuse negative, non-finite or all-zero concrete weights."""
    host = np.asarray(weights)
    bad = np.flatnonzero(~np.isfinite(host) | (host < 0))
    if bad.size:
        raise ValueError(
            f"weights must be finite and >= 0; row {bad[0]} has {host[bad[0]]} "
            f"({counted(bad.size, 'such row')})"
        )
    if not np.any(host >= jnp.finfo(host.dtype).tiny):  # smaller ones are zero in JAX
        raise ValueError("weights are all zero: at least one anchor needs a positive weight")


def finite_rows(name: str, value: Array, active: np.ndarray | None = None) -> None:
    """Refuse NaN or infinity in the rows of a concrete `value` that are `active`.

    Without `active` rows have no weights, and the message does not advise any.
    """
    on_host = not isinstance(value, jax.Array) or (
        value.is_fully_addressable and all(d.platform == "cpu" for d in value.devices())
    )
    values = tuple(range(1, value.ndim))
    if on_host:  # NumPy reads it in place, and takes a third of the time
        blocks = _row_blocks(np.asarray(value))
        finite = np.concatenate([np.isfinite(block).all(axis=values) for block in blocks])
    else:
        finite = np.asarray(jnp.isfinite(value).all(axis=values))
    if active is not None:
        finite = finite | ~active
    bad = np.flatnonzero(~finite)
    if bad.size:
        raise ValueError(
            f"{name} holds NaN or infinity in {bad.size} of {finite.size} rows, first in row "
            f"{bad[0]}; drop these rows{'' if active is None else ' or give them weight 0'}"
        )
