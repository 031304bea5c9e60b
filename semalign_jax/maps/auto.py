"""One map without options, for tens to hundreds of anchors: the ridge chosen by leave-one-out.

`y - mean` is predicted by `prior + ridge`: the ridge fits what a prior, zero or between spaces of
equal dimensions some of the identity, leaves over. Prior and strength are those of the
largest leave-one-out cosine, in closed form over one SVD (`leave_one_out`). Shrinkage shortens
predictions; their length is restored, since a head weighs a short row too little against its own
offset.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._core import checks
from .._core.linalg import (
    common_dtype,
    compute_dtype,
    default_rcond,
    matmul,
    replace_value,
    safe_inverse,
    transpose,
    unit_rows,
)
from .._core.trees import by_value, entry
from .._core.typing import Array, ArrayLike
from ._solvers.least_squares import least_squares
from .affine_map import AffineMap
from .leave_one_out import (
    STRENGTHS,
    Candidate,
    Spectrum,
    compared,
    dual_inverse,
    left_out_parts,
    mean_cosine,
    predicted,
    ridge_weight,
    same_length,
    spectrum,
)
from .mlp_head import Head
from .options import check_anchors
from .sides import (
    Anchors,
    centred_anchors,
    effective_number,
    mean_direction,
    row_weights,
    shares,
)

#: Predictions are made longer by 1 + LENGTHENING (1 - cosine^2) / n: the means of few anchors err
#: in what is not explained, and a head reads that error as it reads the row. Chosen on validation
#: rows of the shipped data, where 20 to 60 are alike.
LENGTHENING = 30.0
#: The factor grows no more below so many anchors.
FEWEST = 10.0
#: Rounds of the mixture that finds wrong pairs, and the least that it leaves of a weight.
ROUNDS = 6
_LEAST = 1e-6


@by_value
class AutoInfo(NamedTuple):
    """How `fit_auto` chose; all fields are arrays, so it passes through `jit` and `vmap`.

    Attributes:
        priors: [candidates], what the ridge shrinks to: 0 to 1 times the identity, at the length
            of the target; 0 alone between spaces of unequal dimensions.
        strengths: [candidates], of the ridge, in units of the mean diagonal of the Gram matrix.
        cosine: [candidates], leave-one-out cosine of predicted and target anchors, both as
            deviations from the mean of the target.
        score: [candidates], what was maximised: `cosine`, with a readout plus that of its scores.
        chosen: int32 scalar, the candidate that was taken.
        gamma: scalar, what the map was multiplied by to restore the length of its rows.
        effective_rank: scalar, exp of the entropy of the singular values of the centred anchors
            `x` (Roy and Vetterli 2007).
        weights: [n], of the anchors, after those that look mismatched were weighed down.
    """

    priors: Array
    strengths: Array
    cosine: Array
    score: Array
    chosen: Array
    gamma: Array
    effective_rank: Array
    weights: Array

    def __repr__(self) -> str:
        if not checks.is_concrete(*self):
            return "AutoInfo(traced)"
        if self.chosen.ndim:
            return f"AutoInfo(of {self.chosen.shape} maps)"
        chosen = f"prior={float(self.prior):.3g}, strength={float(self.strength):.3g}"
        chosen += f", loo_cosine={float(self.loo_cosine):.4f}, gamma={float(self.gamma):.3g}"
        return f"AutoInfo({chosen})"

    @property
    def prior(self) -> Array:
        """Prior of the chosen candidate."""
        return entry(self.priors, self.chosen)

    @property
    def strength(self) -> Array:
        """Strength of the chosen candidate."""
        return entry(self.strengths, self.chosen)

    @property
    def loo_cosine(self) -> Array:
        """Leave-one-out cosine of the chosen candidate."""
        return entry(self.cosine, self.chosen)


def prior_in_words(prior: float) -> str:
    """What a ridge of this prior shrinks to."""
    return f"{prior:g} times the identity" if prior else "zero"


class Choice(NamedTuple):
    """The candidates for some anchors and what was taken; constants for differentiation."""

    of: Spectrum
    candidates: Candidate
    cosine: Array
    score: Array
    chosen: Array
    left_out: Array

    @property
    def best(self) -> Candidate:
        """The candidate that was taken."""
        return jax.tree.map(lambda values: values[self.chosen], self.candidates)


def fit_auto(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    readout: Head | None = None,
    robust: bool = False,
    restore_norm: bool = True,
    validate: bool = True,
) -> tuple[AffineMap, AutoInfo]:
    """The map that leave-one-out finds best, without an option to set.

    A ridge towards zero, or between spaces of equal dimensions towards 0 to 1 times the identity
    in quarters, at one of 8 strengths. All candidates are compared by the mean cosine of each
    target anchor with its prediction by the map of all other anchors: in closed form (Allen 1974),
    the offset included. No test labels and no held-out rows are needed.

    Exact copies of an anchor are no independent test of it: the leave-one-out cosine is then too
    high and the ridge too weak. Give each pair once, with `weights` for how often it counts.

    Derivatives are those of the chosen candidate; the choice is piecewise constant.

    Args:
        x: source anchors [n, d_in], floating point, n >= 1; row i matches row i of `y`.
        y: target anchors [n, d_out], floating point.
        weights: [n], >= 0, floats or a boolean mask; None means equal weights. Rows of weight zero
            are inert. A row is left out with its whole weight.
        readout: a head of the target space, if the map is for this head alone: the choice then
            counts the cosine of its centred scores of prediction and target as much as that of the
            rows.
        robust: whether pairs that look mismatched are weighed down, see `mismatch_scores`; takes
            n x n numbers of memory and 7 times as long. From about 100 anchors on.
        restore_norm: whether to multiply by `gamma`, which gives mapped rows the length of target
            rows, and for few anchors of unlike spaces more: by 1 + 30 (1 - c^2)/n, with the
            leave-one-out cosine c and n at least 10. Directions from the mean of the target do not
            change by it; without it the squared error is smaller.
        validate: whether to check values when called outside of a transformation.

    Returns:
        `AffineMap` in the common dtype of `x` and `y`, and its `AutoInfo`.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for shapes that do not match, non-finite anchors, negative or all-zero weights,
            or a readout of another space.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> mapping, info = sa.fit_auto(x, x[:, ::-1] + 3)
        >>> print(f"{info.loo_cosine:.2f}")
        1.00
    """
    x, y, weights = check_anchors(x, y, weights, validate)
    if readout is not None and readout.d_in != y.shape[1]:
        raise ValueError(
            f"readout takes {readout.d_in} features, but y has {y.shape[1]}: give a head of the "
            "target space"
        )
    flags = checks.flag("robust", robust), checks.flag("restore_norm", restore_norm)
    return _compiled(*flags, x, y, weights, readout)


def mismatch_scores(
    x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None, validate: bool = True
) -> Array:
    """How suspicious each pair is: higher means more likely that its rows do not belong together.

    Each anchor is predicted from all others as in `fit_auto`. In the matrix of cosines of all
    predictions with all targets, a true pair stands out of its row and its column. The score is
    the negative sum of its deviation in both, in units of their standard deviations: about normal
    with mean 0 and variance 2 for wrong pairs, and below it for true ones.

    The score ranks pairs; where to cut is for someone who looks at them. It takes n x n numbers of
    memory, and tells little with fewer than 100 anchors.

    Args:
        x: source anchors [n, d_in].
        y: target anchors [n, d_out].
        weights: [n], >= 0; rows of weight zero get NaN.
        validate: whether to check values when called outside of a transformation.

    Returns:
        [n] in the dtype of the computation.

    Raises:
        TypeError: for a non-floating dtype.
        ValueError: for shapes that do not match, non-finite anchors or bad weights.
    """
    return _mismatch(*check_anchors(x, y, weights, validate))


@jax.jit
def _mismatch(x: Array, y: Array, weights: Array | None) -> Array:
    w, _ = row_weights(weights, len(x), compute_dtype(common_dtype(x.dtype, y.dtype)))
    return trust(x, y, w)[1]


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    robust: bool,
    restore_norm: bool,
    x: Array,
    y: Array,
    weights: Array | None,
    readout: Head | None,
) -> tuple[AffineMap, AutoInfo]:
    fitted, info, _ = auto_map(x, y, weights, readout, robust=robust, restore_norm=restore_norm)
    return fitted, info


def auto_map(
    x: Array,
    y: Array,
    weights: Array | None,
    readout: Head | None = None,
    *,
    robust: bool = False,
    restore_norm: bool = True,
) -> tuple[AffineMap, AutoInfo, Array]:
    """`fit_auto` of checked anchors; also the weighted, centred anchors `x`."""
    dtype = common_dtype(x.dtype, y.dtype)
    anchors = centred_anchors(x, y, weights)
    if robust:
        anchors = centred_anchors(x, y, anchors.w * trust(x, y, anchors.w)[0])
    choice = choose(anchors, readout)
    fitted, gamma = chosen_map(anchors, choice, restore_norm=restore_norm)
    info = AutoInfo(
        *choice.candidates,
        choice.cosine,
        choice.score,
        choice.chosen,
        gamma,
        effective_rank(choice.of.s),
        anchors.w,
    )
    return jax.tree.map(lambda a: a.astype(dtype), fitted), info, anchors.x.rows


def chosen_map(
    anchors: Anchors, choice: Choice, *, restore_norm: bool = True
) -> tuple[AffineMap, Array]:
    """The map of the chosen candidate in the dtype of the solvers, and its gamma."""
    weight, gamma = _solution(anchors, choice)
    if not restore_norm:
        gamma = jnp.ones_like(gamma)
    return anchors.map_of(weight * (gamma * (anchors.y.unit / anchors.x.unit))), gamma


def effective_rank(s: Array) -> Array:
    """Exp of the entropy of singular values [k] (Roy and Vetterli 2007); 0 if all are zero."""
    total = jnp.sum(s)
    p = s * safe_inverse(total, total > 0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def choose(
    anchors: Anchors, readout: Head | None = None, strengths: tuple[float, ...] = STRENGTHS
) -> Choice:
    """Compare candidates of these strengths, and take the best."""
    anchors, readout = lax.stop_gradient((anchors, readout))
    x, y = anchors.x.rows, anchors.y.rows

    def judge(found: Array) -> tuple[Array, Array]:
        cosine = mean_cosine(found, y, anchors.w)
        if readout is None:
            return cosine, cosine
        scores = _centred_scores(readout, anchors, _length(anchors, found) * found)
        target = _centred_scores(readout, anchors, y)
        return cosine, cosine + mean_cosine(scores, target, anchors.w)

    of = spectrum(x, shares(anchors.w))
    candidates, (cosine, score) = compared(of, x, y, strengths, judge)
    chosen = jnp.argmax(score).astype(jnp.int32)
    found, more = left_out_parts(of, x, y)(candidates.strength[chosen])
    found = found + candidates.prior[chosen] * more
    return lax.stop_gradient(Choice(of, candidates, cosine, score, chosen, found))


def _centred_scores(readout: Head, anchors: Anchors, rows: Array) -> Array:
    """Scores of weighted deviations `rows` [n, q] less the mean score of each row."""
    side, root = anchors.y, anchors.root
    deviations = rows * safe_inverse(root, root > 0)[:, None] * side.unit
    scores = readout(side.mean[None, :] + deviations).astype(rows.dtype)
    return scores - jnp.mean(scores, axis=1, keepdims=True)


def _length(anchors: Anchors, left_out: Array) -> Array:
    """What gives left-out predictions the length of the targets, with `LENGTHENING`."""
    power, wanted = jnp.sum(left_out**2), jnp.sum(anchors.y.rows**2)
    usable = (power > 0) & (wanted > 0)
    ratio = wanted * safe_inverse(power, usable)
    ratio = jnp.where(usable, jnp.sqrt(jnp.where(usable, ratio, 1)), 1)
    effective = effective_number(anchors.w)
    cosine = jnp.maximum(mean_cosine(left_out, anchors.y.rows, anchors.w), 0)
    return ratio * (1 + LENGTHENING * (1 - cosine**2) / jnp.maximum(effective, FEWEST))


def _solution(anchors: Anchors, choice: Choice) -> tuple[Array, Array]:
    """The weight [d_in, d_out] and gamma, differentiable for the candidate that was chosen."""
    x, y = anchors.x.rows, anchors.y.rows
    best, equal = choice.best, x.shape == y.shape
    base = best.prior * same_length(x, y)
    rest = y - base * x if equal else y
    value = ridge_weight(choice.of, lax.stop_gradient(rest), best.strength)
    gamma = _length(lax.stop_gradient(anchors), choice.left_out)
    # The same with derivatives; only computed for these.
    ridge = best.strength * jnp.sum(x * x) / x.shape[1]
    if choice.of.rest is None:
        inverse = least_squares(x, jnp.eye(len(x), dtype=x.dtype), ridge)
        exact = matmul(inverse, rest)
        residual = rest - matmul(x, exact)
        free = 1 - jnp.sum(x * transpose(inverse), axis=1) - shares(anchors.w)
        free = jnp.where(free > default_rcond(y.dtype), free, 0)
    else:
        dual, of_mean = dual_inverse(choice.of, x, mean_direction(anchors.w, anchors.root), ridge)
        exact = matmul(transpose(x), matmul(dual, rest))
        residual = ridge * matmul(dual, rest)
        free = ridge * (jnp.diagonal(dual) - of_mean * shares(anchors.w))
    exact_left = predicted(y, residual, free)
    weight = replace_value(exact, value)
    gamma = replace_value(_length(anchors, exact_left), gamma)
    if equal:
        weight = weight + base * jnp.eye(x.shape[1], dtype=x.dtype)
    return weight, gamma


# --- mismatched pairs --------------------------------------------------------------------------


def _agreement(left_out: Array, y: Array, w: Array) -> Array:
    """Z [n]: by how much each prediction is nearest to its own target, seen from both sides."""
    similarity = matmul(unit_rows(left_out), transpose(unit_rows(y)))
    own = jnp.diagonal(similarity)
    active = (w > 0).astype(y.dtype)
    share = active / jnp.sum(active)

    def deviation(rows: Array) -> Array:
        mean = matmul(rows, share)
        spread = jnp.sqrt(jnp.maximum(matmul((rows - mean[:, None]) ** 2, share), 0))
        return (own - mean) * safe_inverse(spread, spread > 0)

    return deviation(similarity) + deviation(transpose(similarity))


def trust(x: Array, y: Array, w: Array) -> tuple[Array, Array]:
    """For each pair the probability that it is a true one, and its mismatch score; constants."""

    def again(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        anchors = centred_anchors(x, y, w * state[0])
        z = _agreement(choose(anchors).left_out, anchors.y.rows, w)
        return jnp.maximum(_probability(z, w), _LEAST), z

    x, y, w = lax.stop_gradient((x, y, w))
    probability, z = lax.fori_loop(0, ROUNDS, again, (jnp.ones_like(w), jnp.zeros_like(w)))
    return probability, jnp.where(w > 0, -z, jnp.nan)


def _probability(z: Array, w: Array) -> Array:
    """That each z is of a true pair: normal mixture by EM, the wrong pairs being N(0, 2)."""
    active = w > 0
    total = jnp.sum(active).astype(z.dtype)
    high = active & (z > 0)
    mean = jnp.sum(jnp.where(high, z, 0)) / jnp.maximum(jnp.sum(high).astype(z.dtype), 1)

    def posterior(share: Array, mean: Array, variance: Array) -> Array:
        true = jnp.log(share) - (z - mean) ** 2 / (2 * variance) - jnp.log(variance) / 2
        wrong = jnp.log1p(-share) - z**2 / 4 - jnp.log(2.0).astype(z.dtype) / 2
        return jax.nn.sigmoid(true - wrong)

    def step(_, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        p = jnp.where(active, posterior(*state), 0)
        n = jnp.maximum(jnp.sum(p), 1e-3)
        mean = jnp.maximum(jnp.sum(p * z) / n, 0)
        variance = jnp.maximum(jnp.sum(p * (z - mean) ** 2) / n, 0.5)
        # Never sure: a share of 1 could not be left again.
        return jnp.clip(n / total, 0.02, 0.98), mean, variance

    start = (jnp.full_like(mean, 0.8), mean, jnp.full_like(mean, 2.0))
    state = lax.fori_loop(0, 30, step, start)
    z = jnp.maximum(z, 0)  # a broad component would call the lowest z true again
    return posterior(*state)
