"""Nested anchor sets: all prefixes of the same rows, with what their fits have in common.

- One QR of the transposed rows serves every prefix of less than d rows: its leading columns.
- Centring depends on the prefix. But with the successive contrasts h_j, row j + 1 against the
  mean of the first j rows, the centred products of the first n rows are those of the first n - 1
  contrasts (Helmert 1876; the running update of Welford 1962). So centred prefixes are plain
  prefixes of other rows.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from .._core.linalg import (
    in_float64,
    matmul,
    power_of_two_scale,
    thin_qr,
    transpose,
    upper_inverse,
    value_of,
)
from .._core.typing import Array
from ..maps.fit import Rows, Side, Static


class NestedRows(NamedTuple):
    """The rows that the closed forms work on, for all prefixes at once.

    Attributes:
        rows: [m, d], in units of `unit`: the anchors, or their contrasts if centred.
        unit: scalar power of two that keeps products in range.
        q: orthonormal columns [d, k]; k is the longest prefix of less than d rows that is needed.
        r: upper triangular [k, k], `rows[:k] = (q @ r)^T`.
        inverse: of `r` [k, k]; not finite if it is singular. Constants for differentiation, all
            three.
    """

    rows: Array
    unit: Array
    q: Array
    r: Array
    inverse: Array


def contrasts(data: Array) -> Array:
    """Every row but the first against the mean of the rows before it [n - 1, d], orthonormal.

    `contrasts(x)[:n - 1]^T @ contrasts(y)[:n - 1]` is the centred product of the first n rows.
    """
    shifted = data - data[:1]  # so that a large common offset costs no digits
    _, sums = lax.scan(lambda total, row: (total + row, total + row), shifted[0], shifted)
    count = jnp.arange(1, data.shape[0], dtype=data.dtype)[:, None]
    return (shifted[1:] - sums[:-1] / count) * jnp.sqrt(count / (count + 1))


def _exact_contrasts(data: Array) -> Array:
    """`contrasts`, whose sums over many rows would cost float32 digits."""
    if data.dtype != jnp.float32:
        return contrasts(data)
    wide = in_float64(contrasts)
    value = lax.platform_dependent(lax.stop_gradient(data), cpu=wide, cuda=wide, default=contrasts)
    return value_of(value, contrasts(data))


def nested_rows(data: Array, counts: tuple[int, ...], *, center: bool) -> NestedRows:
    """Prepare all prefixes of `data` [n, d] that have one of these lengths."""
    rows = _exact_contrasts(data) if center else data
    unit = power_of_two_scale(rows)
    rows = rows / unit
    small = [m for m in (n - center for n in counts) if m < data.shape[1]]
    longest = max(small, default=0)
    q, r = thin_qr(transpose(rows[:longest]))
    inverse = lax.stop_gradient(upper_inverse(r)) if longest else r
    return NestedRows(rows, unit, q, r, inverse)


class NestedSide:
    """One side of nested anchor sets; lives within one trace."""

    def __init__(self, data: Array, counts: tuple[int, ...], dtype) -> None:
        self.data = data.astype(dtype)
        self.counts = counts
        self._nested: dict[bool, NestedRows] = {}
        self._products: dict[Any, tuple[int, Array]] = {}

    def nested(self, center: bool) -> NestedRows:
        """The prepared rows of all prefixes."""
        if center not in self._nested:
            self._nested[center] = nested_rows(self.data, self.counts, center=center)
        return self._nested[center]

    def prefix(self, n: int) -> "Side":
        """The side of the first `n` anchors."""
        # A single anchor has no contrast; its centred fit is that of one row of zeros.
        return PrefixSide(self, n) if n > 1 else Side(self.data[:1], None, self.data.dtype)

    def product(self, other: "NestedSide", center: bool, m: int) -> Array:
        """`rows[:m]^T @ other.rows[:m]` [d, d'], added to that of the last shorter prefix."""
        x, y = self.nested(center).rows, other.nested(center).rows
        key = (id(other), center)
        start, total = self._products.get(key, (0, None))
        if total is None or start > m:
            start, total = 0, jnp.zeros((x.shape[1], y.shape[1]), x.dtype)
        total = total + matmul(transpose(x[start:m]), y[start:m])
        self._products[key] = (m, total)
        return total


class PrefixSide(Side):
    """As `Side` of the first n anchors, with the factorisations of all prefixes shared."""

    def __init__(self, whole: NestedSide, n: int) -> None:
        super().__init__(whole.data[:n], None, whole.data.dtype)
        self.whole = whole

    def _shared(self, static: Static) -> NestedRows | None:
        # Scaling each dimension by its deviation changes rows from prefix to prefix.
        if static.normalize in ("none", "center") and static.solver != "adam":
            return self.whole.nested(static.center)
        return None

    def _length(self, static: Static) -> int:
        return self.data.shape[0] - static.center

    def normalised(self, static: Static) -> Rows:
        """As of `Side`, in the units of the shared rows."""
        own, shared = super().normalised(static), self._shared(static)
        if shared is None:
            return own
        return own._replace(rows=own.rows * (own.unit / shared.unit), unit=shared.unit)

    def prepared(self, static: Static) -> Array:
        """As of `Side`; if centred, in another basis of the centred rows."""
        shared = self._shared(static)
        if shared is None:
            return super().prepared(static)
        return shared.rows[: self._length(static)]

    def qr(self, static: Static) -> tuple[Array, Array]:
        """`tall_qr` of the prepared rows."""
        shared, m = self._shared(static), self._length(static)
        if shared is None or m > shared.q.shape[1]:
            return super().qr(static)
        return shared.q[:, :m], shared.r[:m, :m]

    def triangular_inverse(self, static: Static) -> Array | None:
        """Inverse of the second part of `qr`, where it is known."""
        shared, m = self._shared(static), self._length(static)
        if shared is None or m > shared.q.shape[1]:
            return None
        return shared.inverse[:m, :m]

    def product(self, other: Side, static: Static) -> Array:
        """`prepared^T @ other.prepared`."""
        if self._shared(static) is None or not isinstance(other, PrefixSide):
            return super().product(other, static)
        return self.whole.product(other.whole, static.center, self._length(static))
