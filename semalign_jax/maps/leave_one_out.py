"""Ridge by leave-one-out: every strength from one SVD, without a second fit.

For weighted rows X and Y with the hat matrix H of a ridge, the residual of row i under the map that
is fitted to all others is its own residual over 1 - H_ii (Allen 1974; for a fixed penalty exact,
the intercept included). What is chosen is the largest mean cosine of predicted and true rows: the
squared error asks for strengths that are far too large where few anchors leave most of `y` open.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from .._core.linalg import counts, default_rcond, matmul, safe_inverse, svd, transpose, unit_rows
from .._core.typing import Array

#: Strengths that are tried, in units of the mean diagonal of the Gram matrix of the anchors `x`;
#: the small ones for anchors that are many or free of noise.
STRENGTHS = (1e-3, 1e-2, *(10.0 ** (k / 2) for k in range(-2, 7)))


class Spectrum(NamedTuple):
    """Weighted rows `x` = coordinates @ vt; constants for differentiation.

    Attributes:
        coordinates: of the rows [n, r].
        squares: squared singular values [r].
        vt: directions [r, d].
        keep: which directions count [r].
        unit: mean diagonal of the Gram matrix, the unit of a strength.
    """

    coordinates: Array
    squares: Array
    vt: Array
    keep: Array
    unit: Array

    def inverse(self, strength: Array) -> Array:
        """1 / (squared singular value + penalty) [r], zero where a direction does not count."""
        return safe_inverse(self.squares + strength * self.unit, self.keep)


def spectrum(x: Array) -> Spectrum:
    """The SVD of weighted rows [n, d]; the coordinates are products, exact for tiny rows too."""
    x = lax.stop_gradient(x)
    _, s, vt = svd(x)
    keep, squares = counts(s), s * s
    return Spectrum(matmul(x, transpose(vt)), squares, vt, keep, jnp.sum(squares) / x.shape[1])


def weight_at(of: Spectrum, rest: Array, strength: Array) -> Array:
    """The ridge solution [d, q] from the rows to `rest` [n, q]."""
    cross = matmul(transpose(of.coordinates), rest)
    return matmul(transpose(of.vt), of.inverse(strength)[:, None] * cross)


def left_out(of: Spectrum, y: Array, rest: Array, share: Array, strength: Array) -> Array:
    """What the fits without each row predict of it [n, q], as deviation from the mean of all.

    Args:
        of: the rows `x`.
        y: weighted rows [n, q], centred if `share` is not zero.
        rest: what is left of `y` after the prior's prediction [n, q].
        share: of each row in the mean [n]; zeros for a fit without offset.
        strength: of the ridge.
    """
    inverse = of.inverse(strength)
    fitted = matmul(of.coordinates * inverse[None, :], matmul(transpose(of.coordinates), rest))
    leverage = jnp.sum(of.coordinates**2 * inverse[None, :], axis=1) + share
    return predicted(y, rest - fitted, 1 - leverage)


def predicted(y: Array, residual: Array, free: Array) -> Array:
    """`y` less the leave-one-out residual; zero for rows that nothing is left without."""
    defined = free > default_rcond(y.dtype)
    left = y - residual * safe_inverse(free, defined)[:, None]
    return jnp.where(defined[:, None], left, 0)


def mean_cosine(predicted: Array, y: Array, w: Array) -> Array:
    """Weighted mean over rows of the cosine of prediction and target."""
    total = jnp.sum(w)
    cosines = jnp.sum(unit_rows(predicted) * unit_rows(y), axis=-1)
    return jnp.sum(w * cosines) * safe_inverse(total, total > 0)


def best_strength(x: Array, y: Array, w: Array, *, center: bool) -> Array:
    """The strength of the largest leave-one-out cosine, a constant for differentiation.

    Args:
        x: weighted rows [n, d].
        y: weighted rows [n, q].
        w: weights [n].
        center: whether the rows are deviations from means that a left-out row is part of.
    """
    x, y, w = lax.stop_gradient((x, y, w))
    of, strengths = spectrum(x), jnp.stack([jnp.full((), s, x.dtype) for s in STRENGTHS])
    total = jnp.sum(w)
    share = w * safe_inverse(total, total > 0) * (1.0 if center else 0.0)
    scores = lax.map(lambda s: mean_cosine(left_out(of, y, y, share, s), y, w), strengths)
    return strengths[jnp.argmax(scores)]
