"""Anchors of one side, normalised and weighted: what every fit begins with."""

from typing import NamedTuple

import jax.numpy as jnp

from .._core.linalg import (
    common_dtype,
    compute_dtype,
    matmul,
    power_of_two_scale,
    safe_inverse,
)
from .._core.typing import Array, Normalize
from .affine_map import AffineMap


class NormalizedSide(NamedTuple):
    """Anchors of one side: rows = root(w) (data - offset - rest) / scale / unit.

    Attributes:
        rows: [n, d]; rows of weight zero are zero.
        offset: [d], the mean rounded to the data's dtype; zero if the side is not centred.
        rest: [d], the remainder of the mean, so that offset + rest is exact; None if not centred.
        scale: [d], the normalising standard deviations (1 where not normalised).
        unit: scalar power of two that keeps products in range.
    """

    rows: Array
    offset: Array
    rest: Array | None
    scale: Array
    unit: Array

    @property
    def mean(self) -> Array:
        """What was subtracted [d], rounded once more."""
        return self.offset if self.rest is None else self.offset + self.rest

    def centred(self, rows: Array) -> Array:
        """Other rows [m, d] of the same space without the mean."""
        rows = rows - self.offset[None, :]
        return rows if self.rest is None else rows - self.rest[None, :]


def row_weights(weights: Array | None, n: int, dtype) -> tuple[Array, Array]:
    """The weights [n] as floats, ones if there are none, and their roots."""
    if weights is None:
        ones = jnp.ones(n, dtype)
        return ones, ones
    w = weights.astype(dtype)
    w = jnp.where(w > 0, w, 0)
    return w, jnp.where(w > 0, jnp.sqrt(jnp.where(w > 0, w, 1)), 0)


def shares(w: Array) -> Array:
    """What part each of the weights [n] has of their sum; zeros if that is zero."""
    total = jnp.sum(w)
    return w * safe_inverse(total, total > 0)


def mean_direction(w: Array, root: Array) -> Array:
    """The unit vector [n] that weighted, centred rows have no part in; `root` are roots of `w`."""
    total = jnp.sum(w)
    return root * safe_inverse(jnp.sqrt(total), total > 0)


def effective_number(w: Array) -> Array:
    """Kish's effective number of rows of weights [n], (sum w)^2 / sum w^2, in any unit of them."""
    squares = jnp.sum(shares(w) ** 2)
    return safe_inverse(squares, squares > 0)


class Anchors(NamedTuple):
    """Normalised, weighted anchors of both sides.

    Attributes:
        x: the source.
        y: the target.
        w: weights [n], zeros and positive.
        root: their roots [n].
    """

    x: NormalizedSide
    y: NormalizedSide
    w: Array
    root: Array

    def map_of(self, weight: Array, shift: Array | None = None) -> AffineMap:
        """The map of the data itself.

        Args:
            weight: [d_in, d_out], between both sides divided by their `scale`.
            shift: [d_out], of the target divided by its `scale` and `unit`; None means zero.
        """
        weight = weight * (self.y.scale[None, :] / self.x.scale[:, None])
        target = self.y.offset
        if self.x.rest is not None and self.y.rest is not None:
            target = target + (self.y.rest - matmul(self.x.rest, weight))
        if shift is not None:
            target = target + shift * (self.y.unit * self.y.scale)
        return AffineMap(weight, self.x.offset, target)


def normalized_anchors(
    x: Array, y: Array, weights: Array | None, *, center: bool, normalize: Normalize
) -> Anchors:
    """Normalise both sides of checked anchors in the dtype of the solvers."""
    work = compute_dtype(common_dtype(x.dtype, y.dtype))
    source, target = (
        normalized_side(side.astype(work), weights, center=center, normalize=normalize)
        for side in (x, y)
    )
    return Anchors(source, target, *row_weights(weights, len(x), work))


def centred_anchors(x: Array, y: Array, weights: Array | None) -> Anchors:
    """Checked anchors, centred and weighted in the dtype of the solvers."""
    return normalized_anchors(x, y, weights, center=True, normalize="center")


def normalized_side(
    data: Array, weights: Array | None, *, center: bool, normalize: Normalize
) -> NormalizedSide:
    """Normalise one side by the statistics of its own anchors.

    Args:
        data: [n, d] in the dtype of the solvers.
        weights: [n], >= 0; rows of weight zero may hold anything.
        center: whether to subtract the mean.
        normalize: see `fit_affine`.
    """
    n, d = data.shape
    w, root = row_weights(weights, n, data.dtype)

    def active(rows: Array) -> Array:
        return rows if weights is None else jnp.where(w[:, None] > 0, rows, 0)

    def weighted(rows: Array) -> Array:
        return rows if weights is None else rows * root[:, None]

    data = active(data)
    zero, one = jnp.zeros(d, data.dtype), jnp.ones(d, data.dtype)
    if not center:
        unit = power_of_two_scale(data)
        return NormalizedSide(weighted(data / unit), zero, None, one, unit)
    share = shares(w)
    # Taken relative to one of the rows: a constant column has exactly its value as the mean,
    # and a large common offset costs no digits.
    first = data[0] if weights is None else data[jnp.argmax(w > 0)]
    offset = first + matmul(share, active(data - first[None, :]))
    rows = active(data - offset[None, :])
    rest = matmul(share, rows)
    rows = active(rows - rest[None, :])
    scale, unit = one, power_of_two_scale(rows)
    if normalize in ("standard", "isotropic"):
        variance = matmul(share, (rows / unit) ** 2)
        scale = deviations(normalize, variance, offset / unit, unit)
        rows = rows / scale[None, :]
        unit = power_of_two_scale(rows)
    return NormalizedSide(weighted(rows / unit), offset, rest, scale, unit)


def deviations(
    normalize: Normalize, variance: Array, mean: Array, unit: Array | float = 1.0
) -> Array:
    """Standard deviations [d] to normalise by; 1 where values do not vary beyond rounding.

    Args:
        normalize: all are 1 if it is not "standard" or "isotropic".
        variance: of each dimension [d], in squares of `unit`.
        mean: of each dimension [d], in `unit`: rounding noise of a constant is not a deviation.
        unit: scalar.
    """
    if normalize not in ("standard", "isotropic"):
        return jnp.ones_like(variance)
    noise = (10 * jnp.finfo(variance.dtype).eps * mean) ** 2
    if normalize == "isotropic":
        variance, noise = (jnp.full_like(a, jnp.mean(a)) for a in (variance, noise))
    varies = variance > noise
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)) * unit, 1)


def without_mean_row(rows: Array, direction: Array) -> Array:
    """Rotate rows that are orthogonal to `direction` so that the first is zero, and drop it.

    Centred anchors have one linear dependency; this removes it without changing any product
    x^T y, so that n centred anchors are n - 1 independent rows. (A Householder reflection.)
    """
    if rows.shape[0] == 1:
        return jnp.zeros_like(rows)
    sign = jnp.where(direction[0] < 0, -1, 1).astype(rows.dtype)
    step = sign * direction[1:] / (1 + jnp.abs(direction[0]))
    return rows[1:] - step[:, None] * rows[:1]
