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
    eigh,
    in_float64,
    matmul,
    safe_inverse,
    svd,
    transpose,
    unit_rows,
)
from .._core.typing import Array
from ._solvers.least_squares import gram_solve
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
    """Weighted rows `x` = basis * s @ vt; constants for differentiation.

    Attributes:
        basis: left singular vectors [n, r], zero for directions that do not count.
        rest: those that do not count, less the mean [n, r]; None for more rows than dimensions,
            which have others.
        outside: share of each row that neither the basis nor the mean has a part in [n].
        s: singular values [r].
        vt: directions [r, d].
        keep: which directions count [r].
        unit: mean diagonal of the Gram matrix, the unit of a strength.
    """

    basis: Array
    rest: Array | None
    outside: Array
    s: Array
    vt: Array
    keep: Array
    unit: Array

    def inverse(self, strength: Array) -> Array:
        """1 / (squared singular value + penalty) [r], zero where a direction does not count."""
        return safe_inverse(self.s**2 + strength * self.unit, self.keep)


def spectrum(x: Array, share: Array) -> Spectrum:
    """The SVD of weighted rows [n, d].

    Of float32 rows by the eigenvectors of a Gram matrix in float64, in a fifth of the time.

    Args:
        x: the rows, centred if `share` is not zero.
        share: of each row in the mean [n]; zeros for a fit without offset.
    """
    x = lax.stop_gradient(x)
    if x.dtype == jnp.float32:
        gram = in_float64(_by_gram)
        u, s, vt = lax.platform_dependent(x, cpu=gram, cuda=gram, default=svd)
    else:
        u, s, vt = svd(x)
    mean = jnp.sqrt(share)
    u = u - mean[:, None] * matmul(mean, u)[None, :]
    keep = counts(s)
    basis, rest = jnp.where(keep[None, :], u, 0), None
    if len(x) <= x.shape[1]:
        rest = jnp.where(keep[None, :], 0, u)
        outside = jnp.sum(rest**2, axis=1)
    else:
        outside = jnp.maximum(1 - share - jnp.sum(basis**2, axis=1), 0)
    return Spectrum(basis, rest, outside, s, vt, keep, jnp.sum(s * s) / x.shape[1])


def _by_gram(x: Array) -> tuple[Array, Array, Array]:
    wide = len(x) <= x.shape[1]
    values, vectors = eigh(matmul(x, transpose(x)) if wide else matmul(transpose(x), x))
    s = jnp.sqrt(jnp.maximum(values, 0))
    inverse = safe_inverse(s, s > 0)
    if wide:
        return vectors, s, inverse[:, None] * matmul(transpose(vectors), x)
    return matmul(x, vectors) * inverse[None, :], s, transpose(vectors)


def ridge_weight(of: Spectrum, rest: Array, strength: Array) -> Array:
    """The ridge solution [d, q] from the rows to `rest` [n, q]."""
    gain = of.s * of.inverse(strength)
    return matmul(transpose(of.vt), gain[:, None] * matmul(transpose(of.basis), rest))


def dual_inverse(of: Spectrum, x: Array, mean: Array, penalty: Array) -> tuple[Array, Array]:
    """`(x x^T + penalty)^-1` [n, n] for no more rows than dimensions, with derivatives.

    Times the penalty it is what the ridge leaves of each row. Of the mean of centred rows that
    would be all, next to which float32 loses what is left of the others: here the mean, a unit
    vector `mean` [n], has a power instead, that of all rows. Also returned is what the matrix is
    for the mean.
    """
    assert of.rest is not None  # no more rows than dimensions
    power = jnp.sum(x * x)
    of_mean = safe_inverse(power + penalty, power > 0)
    some = jnp.where(power > 0, power, 1)
    columns = jnp.concatenate([transpose(x), (jnp.sqrt(some) * mean)[None, :]])
    root = lax.stop_gradient(
        jnp.concatenate(
            [
                of.basis * jnp.sqrt(safe_inverse(of.s**2 + penalty, of.keep))[None, :],
                of.rest * jnp.sqrt(safe_inverse(penalty, penalty > 0)),
                (jnp.sqrt(of_mean) * mean)[:, None],
            ],
            axis=1,
        )
    )
    return gram_solve(root, columns, penalty, jnp.eye(len(x), dtype=x.dtype)), of_mean


def left_out(of: Spectrum, y: Array) -> Callable[[Array], Array]:
    """What ridges towards zero without each row predict of it [n, q], from the mean of all.

    A function of their strength. The residual, and one less the leverage, are sums over what the
    ridge leaves of each direction: with far fewer anchors than dimensions both are so small that
    nothing would be left of them as differences from `y` and 1.

    Args:
        of: the rows `x`.
        y: weighted rows [n, q], centred if `x` is.
    """
    cross = matmul(transpose(of.basis), y)
    if of.rest is None:
        beyond = y - matmul(of.basis, cross)
    else:
        beyond = matmul(of.rest, matmul(transpose(of.rest), y))

    def at(strength: Array) -> Array:
        remains = strength * of.unit * of.inverse(strength)
        residual = beyond + matmul(of.basis * remains[None, :], cross)
        free = of.outside + jnp.sum(of.basis**2 * remains[None, :], axis=1)
        return predicted(y, residual, free)

    return at


def predicted(y: Array, residual: Array, free: Array) -> Array:
    """`y` less the leave-one-out residual; zero for rows that nothing is left without."""
    defined = free > 0
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


def left_out_parts(of: Spectrum, x: Array, y: Array) -> Callable[[Array], tuple[Array, Array]]:
    """`left_out` as a function of the strength: that of prior 0, and what a prior of 1 adds.

    A prior adds its own prediction, less what the ridge, towards zero, makes of that.
    """
    plain = left_out(of, y)
    if x.shape != y.shape:
        return lambda strength: (plain(strength), jnp.zeros_like(y))
    own = same_length(x, y) * x
    of_own = left_out(of, own)
    return lambda strength: (plain(strength), own - of_own(strength))


def compared(
    of: Spectrum, x: Array, y: Array, tried: tuple[float, ...], judge: Callable
) -> tuple[Candidate, Any]:
    """All candidates, and what `judge` says of the left-out predictions of each.

    Args:
        of: the rows `x`.
        x: weighted, centred rows [n, d].
        y: weighted, centred rows [n, q].
        tried: strengths.
        judge: left-out predictions [n, q] -> arrays.
    """
    priors = jnp.asarray(PRIORS if x.shape == y.shape else PRIORS[:1], x.dtype)
    strengths, parts = jnp.asarray(tried, x.dtype), left_out_parts(of, x, y)

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
    tried = jnp.asarray(STRENGTHS, x.dtype)
    without = left_out(spectrum(x, shares(w) * (1.0 if center else 0.0)), y)
    scores = lax.map(lambda s: mean_cosine(without(s), y, w), tried)
    return tried[jnp.argmax(scores)]
