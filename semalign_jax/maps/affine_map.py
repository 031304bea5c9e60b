"""`AffineMap`: the at most affine map between two embedding spaces, as a pytree."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import common_dtype, compute_dtype, in_batches, matmul
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ._solvers.least_squares import least_squares


@by_value
class AffineMap(NamedTuple):
    """The map `y = (x - source_offset) @ weight + target_offset`; rows are samples.

    Written so, and not as `x @ weight + bias`, because a common offset of the embeddings would
    cost float32 its digits; `bias` gives the usual form. A named tuple of arrays, so it is a
    pytree: it goes through `jit`, `vmap`, `grad` and `lax.cond`, `flax.serialization`, Orbax and
    `jax.export` as it is, maps of equal shapes can be stacked with `jax.tree.map`, and leading
    batch axes stand for many maps at once.

    Attributes:
        weight: [..., d_in, d_out].
        source_offset: [..., d_in], subtracted from the input.
        target_offset: [..., d_out], added to the output.

    Example:
        >>> import jax.numpy as jnp, semalign_jax as sa
        >>> double = sa.AffineMap.from_weight(2 * jnp.eye(2), jnp.ones(2))
        >>> print(double(jnp.array([[3.0, 4.0]])), (double >> double).bias)
        [[7. 9.]] [3. 3.]
    """

    weight: Array
    source_offset: Array
    target_offset: Array

    @classmethod
    def from_weight(cls, weight: ArrayLike, bias: ArrayLike | None = None) -> AffineMap:
        """Make the map `x @ weight + bias`.

        Args:
            weight: [..., d_in, d_out], floating point.
            bias: [..., d_out]; None means zero.

        Raises:
            TypeError: if an array is not floating point.
            ValueError: if the shapes do not fit.
        """
        weight = checks.float_array("weight", weight, tuple(range(2, 9)))
        *batch, d_in, d_out = weight.shape
        if bias is None:
            bias = np.zeros((*batch, d_out), weight.dtype)
        bias = checks.float_array("bias", bias, tuple(range(1, 8)))
        if bias.shape != (*batch, d_out):
            raise ValueError(
                f"bias must have shape {(*batch, d_out)} to fit weight {weight.shape}; "
                f"got {bias.shape}"
            )
        return cls(*map(checks.on_device, (weight, np.zeros((*batch, d_in), weight.dtype), bias)))

    def __repr__(self) -> str:
        """One line, e.g. `AffineMap(float32[384,768])`."""
        weight = self.weight
        shape = ",".join(map(str, getattr(weight, "shape", ())))
        return f"AffineMap({getattr(weight, 'dtype', type(weight).__name__)}[{shape}])"

    @property
    def bias(self) -> Array:
        """The `bias` [..., d_out] of the form `y = x @ weight + bias`."""
        return _bias(self)

    @property
    def d_in(self) -> int:
        """Dimension of the source space."""
        return self.weight.shape[-2]

    @property
    def d_out(self) -> int:
        """Dimension of the target space."""
        return self.weight.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes: the shape of the array of maps; () for a single map."""
        return self.weight.shape[:-2]

    def apply(self, x: ArrayLike, *, batch_size: int | None = None) -> Array:
        """Map embeddings from the source into the target space.

        Args:
            x: [..., n, d_in], or [d_in] for a single map. Leading axes broadcast against
                `batch_shape`, so one set of embeddings can go through many maps.
            batch_size: rows of `x` [n, d_in] that are mapped at a time, for one map; bounds the
                memory of what is computed besides the result. None means all.

        Returns:
            [..., n, d_out] in the common dtype of `x` and the map.

        Raises:
            TypeError: if `x` is not floating point or `batch_size` no int.
            ValueError: if the last axis of `x` is not d_in, a batch of maps gets a vector, or
                `batch_size` is given with batches of maps or embeddings.
        """
        if batch_size is not None:
            if self.batch_shape:
                raise ValueError("batch_size is for one map and x [n, d_in]; leave it None")
            return apply_in_batches(self, x, batch_size)
        x = checks.float_array("x", x, tuple(range(1, 9)))
        _check_features(x, self.d_in)
        if x.ndim == 1 and self.batch_shape:
            raise ValueError(
                f"x must be [n, {self.d_in}] for a batch of maps {self.batch_shape}; got a vector"
            )
        return _applied(self, x)

    __call__ = apply

    def inverse(self, *, rcond: Array | float | None = None) -> AffineMap:
        """The map back, by the pseudo-inverse of `weight`.

        Exact where `weight` is square and regular; otherwise the least-squares inverse of
        minimum norm (for a semi-orthogonal weight its transpose).

        Args:
            rcond: relative cut-off for singular values, >= 0; None means 8 machine epsilons.

        Raises:
            TypeError: if `rcond` is not a number.
            ValueError: if it is no scalar, negative or not finite.
        """
        rcond = None if rcond is None else checks.scalar("rcond", rcond)
        return _inverse(self, rcond)

    def then(self, other: AffineMap) -> AffineMap:
        """The map that applies `self` and then `other`; also written `self >> other`.

        Raises:
            TypeError: if `other` is not an `AffineMap`.
            ValueError: if the target space of `self` is not the source space of `other`.
        """
        if not isinstance(other, AffineMap):
            raise TypeError(f"other must be an AffineMap; got {type(other).__name__}")
        if self.d_out != other.d_in:
            raise ValueError(
                f"cannot compose: this map ends in {self.d_out} dimensions and other starts "
                f"from {other.d_in}"
            )
        return _composed(self, other)

    def __rshift__(self, other: AffineMap) -> AffineMap:
        """`self >> other`: apply `self`, then `other`."""
        if not isinstance(other, AffineMap):
            return NotImplemented
        return self.then(other)


jax.export.register_namedtuple_serialization(AffineMap, serialized_name="semalign_jax.AffineMap")


# Compiled as one program each, also for a call that is not in a compiled function.


@jax.jit
def _bias(mapping: AffineMap) -> Array:
    offset = mapping.source_offset[..., None, :]
    return mapping.target_offset - matmul(offset, mapping.weight)[..., 0, :]


@jax.jit
def _inverse(mapping: AffineMap, rcond: Array | None) -> AffineMap:
    if mapping.batch_shape:
        return jax.vmap(_inverse, (0, None))(mapping, rcond)
    weight = mapping.weight.astype(compute_dtype(mapping.weight.dtype))
    back = least_squares(weight, jnp.eye(mapping.d_in, dtype=weight.dtype), None, rcond)
    return AffineMap(
        back.astype(mapping.weight.dtype), mapping.target_offset, mapping.source_offset
    )


@jax.jit
def _applied(mapping: AffineMap, x: Array) -> Array:
    dtype = common_dtype(x.dtype, mapping.weight.dtype)
    work = compute_dtype(dtype)
    weight, source, target = (a.astype(work) for a in mapping)
    if x.ndim > 1:
        source, target = source[..., None, :], target[..., None, :]
        # Aligned by hand, since users may forbid implicit broadcasting.
        extra = x.ndim - weight.ndim
        x = jnp.expand_dims(x, tuple(range(-extra)))
        source, target = (jnp.expand_dims(a, tuple(range(extra))) for a in (source, target))
    return (matmul(x.astype(work) - source, weight) + target).astype(dtype)


@jax.jit
def _composed(first: AffineMap, second: AffineMap) -> AffineMap:
    dtype = common_dtype(first.weight.dtype, second.weight.dtype)
    work = compute_dtype(dtype)
    first, second = (jax.tree.map(lambda a: a.astype(work), m) for m in (first, second))
    middle = (first.target_offset - second.source_offset)[..., None, :]
    target = matmul(middle, second.weight)[..., 0, :] + second.target_offset
    weight = matmul(first.weight, second.weight)
    source = jnp.broadcast_to(first.source_offset, (*weight.shape[:-2], first.d_in))
    return AffineMap(weight.astype(dtype), source.astype(dtype), target.astype(dtype))


def identity_map(d_in: int, d_out: int, *, dtype=jnp.float32) -> AffineMap:
    """The naive reference: no alignment, dimensions zero-padded or cut at the end.

    Args:
        d_in: source dimension, >= 1.
        d_out: target dimension, >= 1.
        dtype: floating dtype of the map.

    Raises:
        TypeError: if a dimension is not an int.
        ValueError: if a dimension is below 1.

    Example:
        >>> import jax.numpy as jnp, semalign_jax as sa
        >>> print(sa.identity_map(2, 3)(jnp.array([[4.0, 5.0]])))
        [[4. 5. 0.]]
    """
    d_in, d_out = checks.positive_int("d_in", d_in), checks.positive_int("d_out", d_out)
    return _identity(d_in, d_out, np.dtype(dtype))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _identity(d_in: int, d_out: int, dtype: np.dtype) -> AffineMap:
    weight = jnp.eye(d_in, d_out, dtype=dtype)
    return AffineMap(weight, jnp.zeros(d_in, dtype), jnp.zeros(d_out, dtype))


def _check_features(x: Array, d_in: int) -> None:
    if x.shape[-1] != d_in:
        raise ValueError(
            f"x must have {d_in} features in its last axis, as the map's source space; got shape "
            f"{x.shape}"
        )


def apply_in_batches(function: Any, x: ArrayLike, batch_size: int) -> Array:
    """`function(x)` of rows `x` [n, d], a pytree such as a map or a head, in batches of rows."""
    x = checks.float_array("x", x, (1, 2))
    if x.ndim != 2:
        raise ValueError(f"batch_size is for x [n, d_in]; leave it None for shape {x.shape}")
    _check_features(x, function.d_in)  # here, where the shape is that of all rows
    return _apply_in_batches(checks.batch_size(batch_size), function, x)


@partial(jax.jit, static_argnums=0)
def _apply_in_batches(batch_size: int | None, function: Any, x: Array) -> Array:
    return in_batches(function, x, batch_size)
