"""How far a map from few anchors can be trusted, measured on the anchors alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._core import checks
from .._core.linalg import matmul, safe_inverse, transpose, unit_rows
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .auto import (
    Choice,
    choose,
    chosen_map,
    effective_rank,
    prior_in_words,
    trust,
)
from .leave_one_out import mean_cosine
from .options import check_anchors
from .sides import Anchors, centred_anchors

#: Neighbours that hubness counts.
NEIGHBOURS = 10
#: Resamples of the anchors.
RESAMPLES = 20
#: The smallest count of the learning curve.
SMALLEST_COUNT = 10


@by_value
@dataclass(frozen=True)
class Diagnosis:
    """What the anchors say about the map of `fit_auto`; numbers, and sentences that follow.

    No number here is of test rows, and none is an interval: within one data set and count none of
    them tells good from bad draws of anchors. Between data sets and counts the leave-one-out cosine
    orders accuracies (docs/few-anchors.md).

    Attributes:
        anchors: number n of anchors with a weight.
        d_in: dimension of the source.
        d_out: dimension of the target.
        copies: anchors that repeat an earlier pair exactly. They vouch for each other, so that the
            leave-one-out cosine is too high and the ridge too weak.
        prior: what the ridge shrinks to, 0 to 1 times the identity; 0 between unequal dimensions.
        strength: of the ridge, in mean diagonals of the Gram matrix.
        loo_cosine: leave-one-out cosine of prediction and target, from the target's mean.
        explained: share of the target's variance that the leave-one-out predictions explain at
            their best length, a left-out redundancy index (Stewart and Love 1968).
        explained_back: the same of the source, predicted from the target. Unlike shares say that
            one side holds more of the other than the other way round.
        effective_ranks: of the centred anchors of both sides (Roy and Vetterli 2007).
        hubness: skewness of how often each target is among the 10 nearest of the predictions
            (Radovanović et al. 2010).
        stability: mean cosine of rows mapped by a bootstrapped map and by the map itself, of rows
            that the resample left out.
        counts: nested numbers of anchors, ascending.
        curve: leave-one-out cosine at these counts, each among its own anchors.
        mismatch: [n], of `mismatch_scores`.
        suspicious: rows that are more likely mismatched than not, most suspicious first.
        advice: sentences.
    """

    anchors: int
    d_in: int
    d_out: int
    copies: int
    prior: float
    strength: float
    loo_cosine: float
    explained: float
    explained_back: float
    effective_ranks: tuple[float, float]
    hubness: float
    stability: float
    counts: tuple[int, ...]
    curve: tuple[float, ...]
    mismatch: np.ndarray
    suspicious: tuple[int, ...]
    advice: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """All but the scores of single pairs, as JSON values."""
        values = asdict(self)
        del values["mismatch"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def diagnose(
    x: ArrayLike, y: ArrayLike, *, key: Array | None = None, validate: bool = True
) -> Diagnosis:
    """Measure how far the map of `fit_auto(x, y)` can be trusted.

    Takes about 60 fits and n x n numbers of memory; call it outside of transformations.

    Args:
        x: source anchors [n, d_in], floating point, n >= 3.
        y: target anchors [n, d_out].
        key: PRNG key of the resamples and of the order of the learning curve; None means key 0.
        validate: whether to check values.

    Returns:
        `Diagnosis`.

    Raises:
        TypeError: for a non-floating dtype, or under a transformation.
        ValueError: for shapes that do not match, non-finite anchors or fewer than 3.
    """
    x, y, _ = check_anchors(x, y, None, validate)
    n = len(x)
    if not checks.is_concrete(x, y):
        raise TypeError("x and y are traced: diagnose works on values, call it outside of jit")
    if n < 3:
        raise ValueError(
            f"x and y hold {checks.counted(n, 'anchor')}; a diagnosis needs at least 3"
        )
    order_key, draw_key = jax.random.split(
        jax.random.key(0) if key is None else checks.prng_key("key", key)
    )
    counts = [n]
    while counts[0] // 2 >= SMALLEST_COUNT:
        counts.insert(0, counts[0] // 2)
    place = np.argsort(np.asarray(jax.random.permutation(order_key, n)))
    nested = np.stack([place < count for count in counts])
    drawn = np.asarray(jax.random.randint(draw_key, (RESAMPLES, n), 0, n))
    resamples = np.stack([np.bincount(row, minlength=n) for row in drawn])
    found = jax.tree.map(np.asarray, _measured(x, y, np.concatenate([nested, resamples])))
    trusted, mismatch = found["trust"], found["mismatch"]
    order = np.argsort(-mismatch)
    values: dict[str, Any] = dict(
        anchors=n,
        d_in=x.shape[1],
        d_out=y.shape[1],
        copies=n - len(np.unique(np.concatenate([np.asarray(x), np.asarray(y)], axis=1), axis=0)),
        **{name: float(value) for name, value in found["numbers"].items()},
        effective_ranks=tuple(map(float, found["ranks"])),
        counts=tuple(counts),
        curve=tuple(map(float, found["curve"])),
        suspicious=tuple(int(row) for row in order if trusted[row] < 0.5),
    )
    return Diagnosis(**values, mismatch=mismatch, advice=tuple(_advice(values)))


@jax.jit
def _measured(x: Array, y: Array, parts: Array) -> dict[str, Any]:
    """All numbers; `parts` [counts + resamples, n] are weights of nested anchors and resamples."""
    anchors = centred_anchors(x, y, None)
    choice = choose(anchors)
    back = centred_anchors(y, x, None)
    back_choice = choose(back)
    trusted, mismatch = trust(x, y, anchors.w)

    def mapped(anchors: Anchors, choice: Choice) -> Array:
        fitted, _ = chosen_map(anchors, choice)
        return fitted(x.astype(anchors.w.dtype)) - fitted.target_offset[None, :]

    whole = mapped(anchors, choice)

    def of_weights(weights: Array) -> tuple[Array, Array]:
        """The leave-one-out cosine, and how alike the rows of weight zero are mapped."""
        other = centred_anchors(x, y, weights)
        found = choose(other)
        rows = unit_rows(mapped(other, found))
        alike = mean_cosine(rows, whole, (weights == 0).astype(whole.dtype))
        return found.cosine[found.chosen], alike

    cosines, alike = lax.map(of_weights, parts.astype(anchors.w.dtype))
    numbers = {
        **choice.best._asdict(),
        "loo_cosine": choice.cosine[choice.chosen],
        "explained": _explained(anchors, choice),
        "explained_back": _explained(back, back_choice),
        "hubness": _hubness(choice.left_out, anchors.y.rows),
        "stability": jnp.mean(alike[-RESAMPLES:]),
    }
    return {
        "numbers": numbers,
        "ranks": [effective_rank(c.of.s) for c in (choice, back_choice)],
        "curve": cosines[:-RESAMPLES],
        "trust": trusted,
        "mismatch": mismatch,
    }


def _explained(anchors: Anchors, choice: Choice) -> Array:
    """Share of the variance that left-out predictions explain at their best length."""
    y, left_out = anchors.y.rows, choice.left_out
    total = jnp.sum(y * y) * jnp.sum(left_out**2)
    return jnp.maximum(jnp.sum(y * left_out), 0) ** 2 * safe_inverse(total, total > 0)


def _hubness(left_out: Array, y: Array) -> Array:
    """Skewness of the k-occurrences of the targets among the nearest of the predictions."""
    similarity = matmul(unit_rows(left_out), transpose(unit_rows(y)))
    _, nearest = lax.top_k(similarity, min(NEIGHBOURS, len(y) - 1))
    occurrences = jnp.zeros(len(y), y.dtype).at[nearest.ravel()].add(1)
    deviation = occurrences - jnp.mean(occurrences)
    spread = jnp.sqrt(jnp.mean(deviation**2))
    return jnp.mean(deviation**3) * safe_inverse(spread**3, spread > 0)


def _advice(found: dict[str, Any]) -> list[str]:
    """Sentences that follow from the numbers, and from nothing else."""
    n, said = found["anchors"], []
    if found["copies"]:
        said.append(
            f"{found['copies']} of {n} anchors repeat another pair exactly, and copies vouch for "
            "each other: the leave-one-out cosine is too high. Give each pair once."
        )
    if n <= found["d_in"]:
        said.append(
            f"{n} anchors span at most {n - 1} of {found['d_in']} dimensions of the source: in the "
            f"others the map is its prior, {prior_in_words(found['prior'])}."
        )
    if found["loo_cosine"] < 0.2:
        said.append(
            f"Predictions of left-out anchors hardly point to their targets (cosine "
            f"{found['loo_cosine']:.2f}): the spaces are unlike, or there are too few anchors."
        )
    if len(found["curve"]) > 1:
        before, gain = found["counts"][-2], found["curve"][-1] - found["curve"][-2]
        # Below, all protocols of the benchmarks still gained; they have 384 dimensions and more.
        rising = gain > 0.02 or n < min(200, found["d_in"])
        more = "more anchors should help" if rising else "more of the same bring little"
        said.append(
            f"From {before} to {n} anchors the leave-one-out cosine changed by {gain:+.3f}: {more}."
        )
    if found["suspicious"] and n >= 100:
        rows = checks.first_few(found["suspicious"], 10)
        said.append(
            f"{len(found['suspicious'])} of {n} pairs look mismatched: look at rows {rows}, or fit "
            "with robust=True."
        )
    elif n < 100:
        said.append("With fewer than 100 anchors mismatched pairs can hardly be told.")
    if found["stability"] < 0.5:
        said.append(
            f"Other draws of the anchors give other maps (cosine {found['stability']:.2f} of rows "
            "they map)."
        )
    if found["explained_back"] - found["explained"] > 0.1:
        said.append(
            "The target holds much that the source does not tell: the other direction explains "
            f"{found['explained_back']:.0%} of the variance, this one {found['explained']:.0%}."
        )
    if found["hubness"] > 2:
        said.append(
            f"A few targets are near to many predictions (skewness {found['hubness']:.1f}): for "
            "retrieval try csls_neighbors of metrics.retrieval_ranks."
        )
    return said
