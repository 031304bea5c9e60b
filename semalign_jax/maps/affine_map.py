"""`AffineMap`: the at most affine map between two embedding spaces, as a pytree."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from .._core.checks import float_array, positive_int
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    least_squares,
    least_squares_factors,
    matmul,
    tall_qr,
)
from .._core.typing import Array, ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AffineMap:
    """The map `y = (x - source_offset) @ weight + target_offset`; rows are samples.

    Written so, and not as `x @ weight + bias`, because a common offset of the embeddings would
    cost float32 its digits; `bias` gives the usual form. A frozen pytree: it can be passed
    through `jit`, `vmap` and `grad`, and leading batch axes stand for many maps at once.

    Attributes:
        weight: [..., d_in, d_out].
        source_offset: [..., d_in], subtracted from the input.
        target_offset: [..., d_out], added to the output.
        kind: how the map was estimated, e.g. "ortho" (static).
    """

    weight: Array
    source_offset: Array
    target_offset: Array
    kind: str = field(default="affine", metadata={"static": True})

    @classmethod
    def from_weight(
        cls, weight: ArrayLike, bias: ArrayLike | None = None, *, kind: str = "affine"
    ) -> "AffineMap":
        """Make the map `x @ weight + bias`.

        Args:
            weight: [..., d_in, d_out], floating point.
            bias: [..., d_out]; None means zero.
            kind: a name for it.

        Raises:
            TypeError: if an array is not floating point.
            ValueError: if the shapes do not fit.
        """
        weight = float_array("weight", weight, tuple(range(2, 9)))
        *batch, d_in, d_out = weight.shape
        if bias is None:
            bias = jnp.zeros((*batch, d_out), weight.dtype)
        bias = float_array("bias", bias, tuple(range(1, 8)))
        if bias.shape != (*batch, d_out):
            raise ValueError(
                f"bias must have shape {(*batch, d_out)} to fit weight {weight.shape}; "
                f"got {bias.shape}"
            )
        return cls(weight, jnp.zeros((*batch, d_in), weight.dtype), bias, kind)

    @property
    def bias(self) -> Array:
        """The `bias` [..., d_out] of the form `y = x @ weight + bias`."""
        offset = self.source_offset[..., None, :]
        return self.target_offset - matmul(offset, self.weight)[..., 0, :]

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

    def apply(self, x: ArrayLike) -> Array:
        """Map embeddings from the source into the target space.

        Args:
            x: [..., n, d_in], or [d_in] for a single map. Leading axes broadcast against
                `batch_shape`, so one set of embeddings can go through many maps.

        Returns:
            [..., n, d_out] in the common dtype of `x` and the map.

        Raises:
            TypeError: if `x` is not floating point.
            ValueError: if the last axis of `x` is not d_in, or a batch of maps gets a vector.
        """
        x = float_array("x", x, tuple(range(1, 9)))
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"x must have {self.d_in} features in its last axis, as the map's source space; "
                f"got shape {x.shape}"
            )
        if x.ndim == 1 and self.batch_shape:
            raise ValueError(
                f"x must be [n, {self.d_in}] for a batch of maps {self.batch_shape}; got a vector"
            )
        dtype = common_dtype(x.dtype, self.weight.dtype)
        work = compute_dtype(dtype)
        weight, source, target = (
            a.astype(work) for a in (self.weight, self.source_offset, self.target_offset)
        )
        if x.ndim > 1:
            source, target = source[..., None, :], target[..., None, :]
            # Aligned by hand, since users may forbid implicit broadcasting.
            extra = x.ndim - weight.ndim
            x = jnp.expand_dims(x, tuple(range(-extra)))
            source, target = (jnp.expand_dims(a, tuple(range(extra))) for a in (source, target))
        return (matmul(x.astype(work) - source, weight) + target).astype(dtype)

    __call__ = apply

    def inverse(self, *, rcond: Array | float | None = None) -> "AffineMap":
        """The map back, by the pseudo-inverse of `weight`.

        Exact where `weight` is square and regular; otherwise the least-squares inverse of
        minimum norm (for a semi-orthogonal weight its transpose).

        Args:
            rcond: relative cut-off for singular values; None means 8 machine epsilons.
        """
        if self.batch_shape:
            return jax.vmap(lambda m: m.inverse(rcond=rcond))(self)
        weight = self.weight.astype(compute_dtype(self.weight.dtype))
        identity = jnp.eye(self.d_in, dtype=weight.dtype)
        factors = least_squares_factors(tall_qr(weight), rcond=rcond)
        back = least_squares(factors, weight, identity)
        back = back.astype(self.weight.dtype)
        return AffineMap(back, self.target_offset, self.source_offset, "inverse")

    def then(self, other: "AffineMap") -> "AffineMap":
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
        dtype = common_dtype(self.weight.dtype, other.weight.dtype)
        work = compute_dtype(dtype)
        first, second = (jax.tree_util.tree_map(lambda a: a.astype(work), m) for m in (self, other))
        middle = (first.target_offset - second.source_offset)[..., None, :]
        target = matmul(middle, second.weight)[..., 0, :] + second.target_offset
        weight = matmul(first.weight, second.weight)
        source = jnp.broadcast_to(first.source_offset, (*weight.shape[:-2], self.d_in))
        kind = other.kind if other.kind == "head" else "composite"
        return AffineMap(weight.astype(dtype), source.astype(dtype), target.astype(dtype), kind)

    def __rshift__(self, other: "AffineMap") -> "AffineMap":
        """`self >> other`: apply `self`, then `other`."""
        if not isinstance(other, AffineMap):
            return NotImplemented
        return self.then(other)


def identity_map(d_in: int, d_out: int, *, dtype=jnp.float32) -> AffineMap:
    """The naive reference: no alignment, dimensions zero-padded or cut at the end.

    Args:
        d_in: source dimension, >= 1.
        d_out: target dimension, >= 1.
        dtype: floating dtype of the map.

    Raises:
        TypeError: if a dimension is not an int.
        ValueError: if a dimension is below 1.
    """
    d_in, d_out = positive_int("d_in", d_in), positive_int("d_out", d_out)
    weight = jnp.eye(d_in, d_out, dtype=dtype)
    return AffineMap(weight, jnp.zeros(d_in, dtype), jnp.zeros(d_out, dtype), "identity")
