"""Ridge by leave-one-out: every strength and prior from one SVD, without a second fit.

For weighted rows X and Y with the hat matrix H of a ridge, the residual of row i under the map that
is fitted to all others is its own residual over 1 - H_ii (Allen 1974; for a fixed penalty exact,
the intercept included). What is chosen is the largest mean cosine of predicted and true rows: the
squared error asks for strengths that are far too large where few anchors leave most of `y` open.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._core.linalg import (
    counts,
    default_rcond,
    eigh,
    in_float64,
    matmul,
    safe_inverse,
    svd,
    transpose,
    unit_rows,
)
from .._core.typing import Array
from .sides import shares

#: Strengths that are tried, in units of the mean diagonal of the Gram matrix of the anchors `x`;
#: the small ones for anchors that are many or free of noise. No larger ones: between unlike spaces
#: 10 anchors cannot tell them from the best, and then the map would be its prior alone.
STRENGTHS = (1e-3, 1e-2, *(10.0 ** (k / 2) for k in range(-2, 4)))
#: What the ridge shrinks to, in multiples of the identity that gives the source the length of the
#: target; all but zero between spaces of equal dimensions alone. Few anchors of texts ask for all
#: of it, some hundred for a part: with none the directions that they leave open would be lost.
PRIORS = (0.0, 0.25, 0.5, 0.75, 1.0)


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
    """The SVD of weighted rows [n, d]; the coordinates are products, exact for tiny rows too.

    Of float32 rows by the eigenvectors of a Gram matrix in float64, in a fifth of the time.
    """
    x = lax.stop_gradient(x)
    if x.dtype == jnp.float32:
        gram = in_float64(_by_gram)
        s, vt = lax.platform_dependent(x, cpu=gram, cuda=gram, default=_by_svd)
    else:
        s, vt = _by_svd(x)
    keep, squares = counts(s), s * s
    return Spectrum(matmul(x, transpose(vt)), squares, vt, keep, jnp.sum(squares) / x.shape[1])


def _by_svd(x: Array) -> tuple[Array, Array]:
    _, s, vt = svd(x)
    return s, vt


def _by_gram(x: Array) -> tuple[Array, Array]:
    if len(x) > x.shape[1]:
        values, vectors = eigh(matmul(transpose(x), x))
        return jnp.sqrt(jnp.maximum(values, 0)), transpose(vectors)
    values, vectors = eigh(matmul(x, transpose(x)))
    s = jnp.sqrt(jnp.maximum(values, 0))
    return s, safe_inverse(s, s > 0)[:, None] * matmul(transpose(vectors), x)


def crossed(of: Spectrum, rest: Array) -> Array:
    """Products [r, q] of the coordinates with `rest` [n, q], which all strengths share."""
    return matmul(transpose(of.coordinates), rest)


def ridge_weight(of: Spectrum, rest: Array, strength: Array) -> Array:
    """The ridge solution [d, q] from the rows to `rest` [n, q]."""
    return matmul(transpose(of.vt), of.inverse(strength)[:, None] * crossed(of, rest))


def left_out(of: Spectrum, y: Array, cross: Array, share: Array, strength: Array) -> Array:
    """What ridges towards zero without each row predict of it [n, q], from the mean of all.

    Args:
        of: the rows `x`.
        y: weighted rows [n, q], centred if `share` is not zero.
        cross: `crossed` of these.
        share: of each row in the mean [n]; zeros for a fit without offset.
        strength: of the ridge.
    """
    inverse = of.inverse(strength)
    fitted = matmul(of.coordinates * inverse[None, :], cross)
    leverage = jnp.sum(of.coordinates**2 * inverse[None, :], axis=1) + share
    return predicted(y, y - fitted, 1 - leverage)


def predicted(y: Array, residual: Array, free: Array) -> Array:
    """`y` less the leave-one-out residual; zero for rows that nothing is left without."""
    defined = free > default_rcond(y.dtype)
    left = y - residual * safe_inverse(free, defined)[:, None]
    return jnp.where(defined[:, None], left, 0)


def mean_cosine(predicted: Array, y: Array, w: Array) -> Array:
    """Weighted mean over rows of the cosine of prediction, of squares in range, and target."""
    total, squares = jnp.sum(w), jnp.sum(predicted * predicted, axis=-1)
    some = squares > 0
    length = jnp.sqrt(jnp.where(some, squares, 1))
    cosines = jnp.sum(predicted * unit_rows(y), axis=-1) * safe_inverse(length, some)
    return jnp.sum(w * cosines) * safe_inverse(total, total > 0)


def same_length(x: Array, y: Array) -> Array:
    """The factor that gives centred rows `x` the length of `y`; 0 if one of them has none."""
    power_x, power_y = jnp.sum(x * x), jnp.sum(y * y)
    usable = (power_x > 0) & (power_y > 0)
    ratio = power_y * safe_inverse(power_x, usable)
    return jnp.where(usable, jnp.sqrt(jnp.where(usable, ratio, 1)), 0)


class Candidate(NamedTuple):
    """A ridge: `strength` in mean diagonals of the Gram matrix, towards `prior` of `PRIORS`."""

    prior: Array
    strength: Array


def left_out_parts(
    of: Spectrum, x: Array, y: Array, share: Array
) -> Callable[[Array], tuple[Array, Array]]:
    """`left_out` as a function of the strength: that of prior 0, and what a prior of 1 adds.

    A prior adds its own prediction, less what the ridge, towards zero, makes of that.
    """
    cross = crossed(of, y)
    if x.shape != y.shape:
        return lambda strength: (left_out(of, y, cross, share, strength), jnp.zeros_like(y))
    own = same_length(x, y) * x
    cross_of_own = crossed(of, own)
    return lambda strength: (
        left_out(of, y, cross, share, strength),
        own - left_out(of, own, cross_of_own, share, strength),
    )


def compared(
    of: Spectrum, x: Array, y: Array, share: Array, tried: tuple[float, ...], judge: Callable
) -> tuple[Candidate, Any]:
    """All candidates, and what `judge` says of the left-out predictions of each.

    Args:
        of: the rows `x`.
        x: weighted, centred rows [n, d].
        y: weighted, centred rows [n, q].
        share: of each row in the mean [n].
        tried: strengths.
        judge: left-out predictions [n, q] -> arrays.
    """
    priors = jnp.asarray(PRIORS if x.shape == y.shape else PRIORS[:1], x.dtype)
    strengths, parts = jnp.asarray(tried, x.dtype), left_out_parts(of, x, y, share)

    def of_strength(strength: Array) -> Any:
        found, more = parts(strength)
        return lax.map(lambda prior: judge(found + prior * more), priors)

    judged = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), lax.map(of_strength, strengths))
    every = jnp.tile(priors, len(strengths)), jnp.repeat(strengths, len(priors))
    return Candidate(*every), judged


def best_strength(x: Array, y: Array, w: Array, *, center: bool) -> Array:
    """The strength of the largest leave-one-out cosine, a constant for differentiation.

    Args:
        x: weighted rows [n, d].
        y: weighted rows [n, q].
        w: weights [n].
        center: whether the rows are deviations from means that a left-out row is part of.
    """
    x, y, w = lax.stop_gradient((x, y, w))
    of, tried = spectrum(x), jnp.asarray(STRENGTHS, x.dtype)
    share = shares(w) * (1.0 if center else 0.0)
    cross = crossed(of, y)
    scores = lax.map(lambda s: mean_cosine(left_out(of, y, cross, share, s), y, w), tried)
    return tried[jnp.argmax(scores)]
