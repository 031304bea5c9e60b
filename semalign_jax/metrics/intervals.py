"""Confidence intervals and tests of scores: bootstrap, DeLong, paired comparisons.

A resample of the rows is a vector of weights, the number of times that each row was drawn. So
every score that takes weights can be bootstrapped by one compiled function, in chunks of
`batch_size` resamples, which bounds the memory.

A statistic is a function `(data, weights [n]) -> scalar, array or pytree of scores`, traceable
by JAX. It is part of the key under which compiled code is kept: define it once, outside of
loops, and hand over arrays as `data`. Example, the AUROC of many labels from one sort:

    ranking = metrics.rank_scores(labels, scores)
    bootstrap(metrics.auroc_from_ranking, ranking, len(labels), jax.random.key(0))

Strata and clusters may be numbered by any integers of 64 bits, whatever types JAX has switched on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr, ndtri

from .._core import checks
from .._core.linalg import compute_dtype
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .delong import DeLongInterval, DeLongTest, delong_interval, delong_test, tail_of
from .samples import (
    host_copies,
    integer_array,
    row_sum,
    sample_weights,
    unsharded,
    weighted_mean,
)

__all__ = [
    "BootstrapInterval",
    "DeLongInterval",
    "DeLongTest",
    "PairedBootstrap",
    "PermutationTest",
    "Statistic",
    "bootstrap",
    "bootstrap_weights",
    "delong_interval",
    "delong_test",
    "paired_bootstrap_test",
    "paired_permutation_test",
]


def __dir__() -> list[str]:
    return __all__


Statistic: TypeAlias = Callable[[Any, Array], Any]

#: Numbers that a batch of resamples may hold; bounds the memory.
_NUMBERS_AT_ONCE = 2**24
#: Replicates within so many machine epsilons of a value count as equal to it.
TIE_EPS = 8


@by_value
class BootstrapInterval(NamedTuple):
    """Bootstrap of a statistic; every field has the structure of its result.

    Attributes:
        estimate: the statistic of the data.
        lower: end of the interval.
        upper: end of the interval.
        standard_error: standard deviation of the resamples.
        undefined: int32, resamples in which the statistic is NaN; they are left out.
    """

    estimate: Any
    lower: Any
    upper: Any
    standard_error: Any
    undefined: Any


@by_value
class PairedBootstrap(NamedTuple):
    """Paired bootstrap of a difference; every field has the structure of the statistic.

    Attributes:
        difference: first minus second method.
        lower: end of the percentile interval of the difference.
        upper: end of the percentile interval of the difference.
        standard_error: standard deviation of the resampled differences.
        p_value: two-sided, of no difference.
        undefined: int32, resamples in which the difference is NaN; they are left out.
    """

    difference: Any
    lower: Any
    upper: Any
    standard_error: Any
    p_value: Any
    undefined: Any


@by_value
class PermutationTest(NamedTuple):
    """Paired permutation test; every field has the structure of the statistic.

    Attributes:
        difference: first minus second method.
        p_value: two-sided, of exchangeable methods.
        undefined: int32, permutations in which the difference is NaN; they are left out.
    """

    difference: Any
    p_value: Any
    undefined: Any


class _Plan(NamedTuple):
    """What is drawn: units (clusters, or rows) within strata; unused slots at the end.

    Attributes:
        weights: of the rows [n].
        unit: int32 [n], the unit of each row.
        stratum: int32 [n], of each unit; n for units without weight.
        member: int32 [n], units sorted by stratum.
        start: int32 [n], position of the first member of the stratum of each sorted unit.
        size: int32 [n], number of units in this stratum.
    """

    weights: Array
    unit: Array
    stratum: Array
    member: Array
    start: Array
    size: Array


def bootstrap_weights(
    key: Array,
    rows: int,
    resamples: int,
    *,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """Weights of bootstrap resamples, those that `bootstrap` uses with the same arguments.

    Args:
        key: PRNG key.
        rows: number of rows n (static).
        resamples: how many (static).
        strata: integers [n]; within each stratum as many units are drawn as it has.
        clusters: integers [n] of any size, e.g. patients: all rows of a cluster are drawn together.
        weights: [n], see `bootstrap`.

    Returns:
        An array [resamples, n], the number of times that each row was drawn, times `weights`.

    Raises:
        TypeError: for a `key` that is none, `strata` or `clusters` that are not integers.
        ValueError: for shapes that do not match, negative weights or a cluster in two strata.
    """
    plan = _plan(rows, strata, clusters, weights)
    key = checks.prng_key("key", key)
    keys = jax.random.split(key, checks.positive_int("resamples", resamples))
    return _all_drawn_weights(plan, keys)


def bootstrap(
    statistic: Statistic,
    data: Any,
    rows: int,
    key: Array,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    batch_size: int = 128,
) -> BootstrapInterval:
    """Bootstrap confidence interval of a statistic (Efron and Tibshirani 1993).

    Args:
        statistic: `(data, weights [n]) -> scores`, see the top of this module.
        data: any pytree of arrays, handed to `statistic` as it is.
        rows: number of rows n (static).
        key: PRNG key; the same key gives the same resamples.
        resamples: how many (static).
        level: of the interval, in (0, 1).
        method: "percentile" or "bca", bias-corrected and accelerated (Efron 1987), which also
            takes n evaluations with one unit left out each.
        strata: integers [n], e.g. classes: every resample draws as many units from each stratum
            as it has.
        clusters: integers [n], e.g. patients: the units that are drawn are whole clusters. Each
            must lie in one stratum. None means that every row is a unit.
        weights: [n], >= 0, floats, counts or a boolean mask, which multiply the counts of a
            resample. Rows of weight zero are not drawn. None means ones.
        batch_size: resamples evaluated at a time (static).

    Returns:
        `BootstrapInterval`. NaN where the statistic, or every resample, is undefined; with
        "bca" also where all resamples lie on one side of the estimate.

    Raises:
        TypeError: for options of the wrong type, `strata` or `clusters` that are not integers.
        ValueError: for shapes that do not match, options out of range, negative weights, a
            cluster in two strata or `data` with integers that JAX would wrap around.
    """
    checks.option("method", method, ("percentile", "bca"))
    tail = tail_of(level)
    data = host_copies("data", data)
    draws = _draws(rows, strata, clusters, weights, key, batch_size, resamples=resamples)
    estimate, replicates = _replicates(statistic, data, *draws)
    if method == "bca":
        plan, *_, batch_size = draws
        left_out = _left_out(statistic, data, plan, batch_size)
        return _by_score(partial(_bca, plan.stratum, tail), estimate, replicates, left_out)
    return _by_score(partial(_percentile, tail), estimate, replicates)


def paired_bootstrap_test(
    statistic: Statistic,
    first: Any,
    second: Any,
    rows: int,
    key: Array,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    batch_size: int = 128,
) -> PairedBootstrap:
    """Bootstrap of the difference between two methods on the same rows.

    Both methods see the same resamples. The p-value is the share of resampled differences d*
    with `|d* - d| >= |d|`, where d is the observed one, counting the data themselves as one more
    resample (Efron and Tibshirani 1993, chapter 16).

    Args:
        statistic: `(data, weights [n]) -> scores`, see the top of this module.
        first: data of the first method.
        second: data of the second method.
        rows: number of rows n (static).
        key: PRNG key.
        resamples: how many (static).
        level: of the interval, in (0, 1).
        strata: see `bootstrap`.
        clusters: see `bootstrap`.
        weights: see `bootstrap`.
        batch_size: resamples evaluated at a time (static).

    Returns:
        `PairedBootstrap`; NaN where the difference is undefined.

    Raises:
        TypeError: for options of the wrong type, `strata` or `clusters` that are not integers.
        ValueError: for shapes that do not match, options out of range, negative weights, a
            cluster in two strata or data with integers that JAX would wrap around.
    """
    tail = tail_of(level)
    first, second = host_copies("first", first), host_copies("second", second)
    draws = _draws(rows, strata, clusters, weights, key, batch_size, resamples=resamples)
    both, replicates = _replicates(_Both(statistic), (first, second), *draws)
    return _by_score(partial(_paired_bootstrap, tail), both, replicates)


def paired_permutation_test(
    statistic: Statistic,
    first: Any,
    second: Any,
    rows: int,
    key: Array,
    *,
    permutations: int = 2000,
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    batch_size: int = 128,
) -> PermutationTest:
    """Test whether two methods are exchangeable: swap their outputs row by row at random.

    The outputs must be on a common scale, e.g. probabilities, or ranks for AUROC. The p-value is
    the share of permutations whose difference is at least as large as the observed one, counting
    the data themselves as one more permutation (Phipson and Smyth 2010).

    Args:
        statistic: `(data, weights [n]) -> scores`, see the top of this module.
        first: data of the first method: a pytree of arrays [n, ...], one entry a row, e.g.
            `(labels, scores)`.
        second: data of the second method, of the same structure and shapes.
        rows: number of rows n (static).
        key: PRNG key.
        permutations: how many (static).
        clusters: integers [n]; the rows of a cluster are swapped together.
        weights: [n], >= 0, floats, counts or a boolean mask, handed to `statistic`; None means
            ones.
        batch_size: permutations evaluated at a time (static).

    Returns:
        `PermutationTest`; NaN where the difference is undefined.

    Raises:
        TypeError: for options of the wrong type or `clusters` that are not integers.
        ValueError: for shapes that do not match, options out of range, negative weights or data
            with integers that JAX would wrap around.
    """
    first, second = host_copies("first", first), host_copies("second", second)
    draws = _draws(rows, None, clusters, weights, key, batch_size, permutations=permutations)
    first, second = jax.tree.map(lambda leaf: unsharded(jnp.asarray(leaf)), (first, second))
    structures = [jax.tree.structure(data) for data in (first, second)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"first and second must have the same structure; got {structures[0]} and "
            f"{structures[1]}"
        )
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        if a.shape != b.shape or a.shape[:1] != (rows,):
            raise ValueError(
                f"first and second must hold arrays with one entry for each of the {rows} rows; "
                f"got {a.shape} and {b.shape}"
            )
    both, replicates = _permuted(statistic, first, second, *draws)
    return _by_score(_paired_permutation, both, replicates)


@dataclass(frozen=True)
class _Both:
    """The statistic of two data, stacked [2, ...]; equal, as a static argument must, if it is."""

    statistic: Statistic

    def __call__(self, data: tuple[Any, Any], weights: Array) -> Any:
        results = [_floats(self.statistic(d, weights)) for d in data]
        return jax.tree.map(lambda *scores: jnp.stack(scores), *results)


def _draws(
    rows: int, strata: Any, clusters: Any, weights: Any, key: Any, batch_size: int, **number: int
) -> tuple[_Plan, Array, int, int]:
    """The checked plan, key, number of draws (by the name of its argument) and batch size."""
    plan = _plan(rows, strata, clusters, weights)
    [(name, count)] = number.items()
    key, count = checks.prng_key("key", key), checks.positive_int(name, count)
    return plan, key, count, checks.positive_int("batch_size", batch_size)


def _plan(
    rows: int, strata: ArrayLike | None, clusters: ArrayLike | None, weights: ArrayLike | None
) -> _Plan:
    rows = checks.positive_int("rows", rows)
    weights = sample_weights(weights, (rows,), jnp.float32)
    index = np.arange(rows, dtype=np.int32)
    unit = index if clusters is None else _compact("clusters", clusters, rows)
    layer = np.zeros_like(index) if strata is None else _compact("strata", strata, rows)
    if clusters is not None and strata is not None:
        _check_nested(unit, layer, weights)
    return _planned(unit, layer, weights)


@jax.jit
def _planned(unit: Array, layer: Array, weights: Array) -> _Plan:
    rows = unit.shape[0]
    # Units without weight, and numbers that no cluster has, form a stratum of their own.
    layer = jnp.where(weights > 0, layer, -1)
    stratum = jnp.full(rows, -1, jnp.int32).at[unit].max(layer)
    stratum = jnp.where(stratum < 0, rows, stratum)
    member = jnp.argsort(stratum).astype(jnp.int32)
    ordered = stratum[member]
    start = jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    stop = jnp.searchsorted(ordered, ordered, side="right").astype(jnp.int32)
    return _Plan(weights, unit, stratum, member, start, stop - start)


def _compact(name: str, value: ArrayLike, rows: int) -> Array | np.ndarray:
    """Integers [rows] renumbered 0, 1, ... without gaps."""
    array = integer_array(name, value, (rows,))
    if checks.is_concrete(array):
        # By NumPy, since JAX may wrap 64-bit integers around, so that two clusters become one.
        return np.unique(np.asarray(array), return_inverse=True)[1].astype(np.int32)
    array = unsharded(array)
    return jnp.unique(array, return_inverse=True, size=rows)[1].astype(jnp.int32)


def _check_nested(unit: Any, layer: Any, weights: Any) -> None:
    if not checks.is_concrete(unit, layer, weights):
        return
    active = np.asarray(weights) > 0
    pairs = np.unique(np.stack([np.asarray(unit)[active], np.asarray(layer)[active]]), axis=1)
    split = len(pairs[0]) - len(np.unique(pairs[0]))
    if split:
        raise ValueError(
            f"strata split {split} of the clusters: every cluster must lie in one stratum. "
            f"Stratify by something that is the same for all rows of a cluster"
        )


@jax.jit
def _all_drawn_weights(plan: _Plan, keys: Array) -> Array:
    return jax.vmap(partial(_drawn_weights, plan))(keys)


def resamples_at_once(numbers: int) -> int:
    """How many resamples of so many numbers each fit into bounded memory, as `batch_size`."""
    return max(1, min(128, _NUMBERS_AT_ONCE // numbers))


def _drawn_weights(plan: _Plan, key: Array) -> Array:
    """Row weights [n] of one resample."""
    rows = plan.weights.shape[0]
    # `jax.random.randint` draws twice the bits to be unbiased; so probabilities differ by at most
    # size / 2^32, relatively.
    bits = jax.random.bits(key, (rows,), jnp.uint32)
    position = plan.start + (bits % plan.size.astype(jnp.uint32)).astype(jnp.int32)
    drawn = (plan.stratum[plan.member] < rows).astype(plan.weights.dtype)
    counts = jnp.zeros_like(plan.weights).at[plan.member[position]].add(drawn)
    return plan.weights * counts[plan.unit]


def _floats(scores: Any) -> Any:
    """Scores such as counts as floats, so that they have quantiles and can be NaN."""

    def of_score(value: Array) -> Array:
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.floating):
            return value.astype(compute_dtype(value.dtype))
        return value.astype(jnp.float32)

    return jax.tree.map(of_score, scores)


def _mapped(function: Callable[[Any], Any], cases: Any, batch_size: int) -> Any:
    """`lax.map` in even batches; the last one is filled up, since a rest would compile anew."""
    total = len(jax.tree.leaves(cases)[0])
    batches = -(-total // batch_size)
    even = -(-total // batches)
    missing = even * batches - total
    cases = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:missing]]), cases)
    found = lax.map(function, cases, batch_size=even)
    return jax.tree.map(lambda leaf: leaf[:total], found)


def _with_itself(of_key: Callable[[Array, Array], Any], key: Array, draws: int, batch_size: int):
    """`of_key(drawn, key)` where nothing is drawn, and [draws, ...]; by one program for both."""
    keys = jax.random.split(key, draws)
    cases = jnp.arange(draws + 1) > 0, jnp.concatenate([keys[:1], keys])
    found = _mapped(lambda case: of_key(*case), cases, batch_size)
    itself = jax.tree.map(lambda leaf: leaf[0], found)
    return itself, jax.tree.map(lambda leaf: leaf[1:], found)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _replicates(statistic, data, plan, key, resamples, batch_size):
    """The statistic of the data, and of resamples [resamples, ...]."""

    def evaluate(drawn, key):
        return _floats(statistic(data, jnp.where(drawn, _drawn_weights(plan, key), plan.weights)))

    return _with_itself(evaluate, key, resamples, batch_size)


@partial(jax.jit, static_argnums=(0, 3))
def _left_out(statistic, data, plan, batch_size):
    """The statistic [n, ...] without each unit in turn."""

    def evaluate(unit):
        return _floats(statistic(data, jnp.where(plan.unit == unit, 0, plan.weights)))

    units = jnp.arange(plan.unit.shape[0], dtype=jnp.int32)
    return _mapped(evaluate, units, batch_size)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _permuted(statistic, first, second, plan, key, permutations, batch_size):
    """Both statistics [2, ...], and those with rows swapped [permutations, 2, ...]."""
    both = _Both(statistic)
    rows = plan.unit.shape[0]

    def evaluate(drawn, key):
        swap = drawn & jax.random.bernoulli(key, shape=(rows,))[plan.unit]

        def pick(a, b):
            return jnp.where(swap.reshape(rows, *(1,) * (a.ndim - 1)), b, a)

        swapped = jax.tree.map(pick, first, second), jax.tree.map(pick, second, first)
        return both(swapped, plan.weights)

    return _with_itself(evaluate, key, permutations, batch_size)


@jax.jit
def _percentile(tail: float, estimate: Array, replicates: Array) -> BootstrapInterval:
    """The interval of a score by its replicates [resamples, ...]."""
    shares = (jnp.full(estimate.shape, share).astype(estimate.dtype) for share in (tail, 1 - tail))
    return _interval(estimate, replicates, *shares)


@jax.jit
def _bca(
    stratum: Array, tail: float, estimate: Array, replicates: Array, left_out: Array
) -> BootstrapInterval:
    """Like `_percentile` with corrected shares; `left_out` [units, ...] lacks a unit each."""
    tie = TIE_EPS * jnp.finfo(estimate.dtype).eps * jnp.abs(estimate)
    side = jnp.where(
        jnp.abs(replicates - estimate[None]) <= tie[None],
        0.5,
        (replicates < estimate[None]).astype(estimate.dtype),
    )
    below = weighted_mean(side, (~jnp.isnan(replicates)).astype(estimate.dtype))
    bias = ndtri(below)
    acceleration = _acceleration(stratum, left_out)
    shares = []
    for share in (tail, 1 - tail):
        shifted = bias + ndtri(jnp.asarray(share).astype(estimate.dtype))
        shares.append(ndtr(bias + shifted / (1 - acceleration * shifted)))
    return _interval(estimate, replicates, *shares)


def _acceleration(stratum: Array, left_out: Array) -> Array:
    """Skewness constant by the jackknife, several samples as in Davison and Hinkley (1997)."""
    units = stratum.shape[0]
    valid = (stratum < units).reshape(units, *(1,) * (left_out.ndim - 1)) & ~jnp.isnan(left_out)

    def of_stratum(values):  # sums over the units of each stratum, spread to its units
        sums = jnp.zeros((units + 1, *values.shape[1:]), values.dtype).at[stratum].add(values)
        return sums[stratum]

    size = jnp.maximum(of_stratum(valid.astype(left_out.dtype)), 1)
    # Differences to the overall mean keep the digits that a float32 sum of scores would lose.
    origin = jnp.nanmean(left_out, axis=0, keepdims=True)
    offset = jnp.where(valid, left_out - origin, 0)
    influence = jnp.where(valid, (size - 1) / size * (of_stratum(offset) / size - offset), 0)
    # Relative to the largest, so that cubes of small numbers do not underflow.
    largest = jnp.max(jnp.abs(influence), axis=0, keepdims=True)
    influence = influence / jnp.where(largest > 0, largest, 1)
    squares, cubes = row_sum(influence**2), row_sum(influence**3)
    return jnp.where(squares > 0, cubes / (6 * jnp.where(squares > 0, squares, 1) ** 1.5), 0)


def _interval(estimate: Array, replicates: Array, *shares: Array) -> BootstrapInterval:
    """Between the quantiles of the replicates at two shares."""
    defined = ~jnp.isnan(replicates)
    count = jnp.sum(defined, axis=0, dtype=jnp.int32)
    weights = defined.astype(estimate.dtype)
    mean = weighted_mean(replicates, weights)
    variance = weighted_mean((replicates - mean[None]) ** 2, weights)
    total = count.astype(estimate.dtype)
    error = jnp.where(count > 1, jnp.sqrt(variance * total / jnp.maximum(total - 1, 1)), jnp.nan)
    lower, upper = (
        jnp.where(jnp.isnan(estimate), jnp.nan, bound) for bound in _quantiles(replicates, *shares)
    )
    return BootstrapInterval(estimate, lower, upper, error, replicates.shape[0] - count)


def _quantiles(replicates: Array, *shares: Array) -> list[Array]:
    """Quantiles [...] of the defined replicates [resamples, ...], linearly interpolated."""
    ordered = jnp.sort(replicates, axis=0)  # NaN comes last
    count = jnp.sum(~jnp.isnan(ordered), axis=0, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)
    found = []
    for share in shares:
        defined = (count > 0) & ~jnp.isnan(share)
        position = jnp.where(defined, share * last.astype(share.dtype), 0)
        below = jnp.floor(position).astype(jnp.int32)
        above = jnp.minimum(below + 1, last)
        low, high = (jnp.take_along_axis(ordered, i[None], axis=0)[0] for i in (below, above))
        part = position - below.astype(position.dtype)
        # Not 0 * inf, nor inf - inf: a ratio may be infinite in some resamples.
        between = jnp.where((part == 0) | (low == high), low, low + part * (high - low))
        found.append(jnp.where(defined, between, jnp.nan))
    return found


@jax.jit
def _paired_bootstrap(tail: float, both: Array, replicates: Array) -> PairedBootstrap:
    """Of scores [2, ...] and [resamples, 2, ...]."""
    difference, differences = both[0] - both[1], replicates[:, 0] - replicates[:, 1]
    _, lower, upper, error, undefined = _percentile(tail, difference, differences)
    p_value = _p_value(both, differences - difference[None])
    return PairedBootstrap(difference, lower, upper, error, p_value, undefined)


@jax.jit
def _paired_permutation(both: Array, replicates: Array) -> PermutationTest:
    """Of scores [2, ...] and [permutations, 2, ...]."""
    differences = replicates[:, 0] - replicates[:, 1]
    undefined = jnp.sum(jnp.isnan(differences), axis=0, dtype=jnp.int32)
    return PermutationTest(both[0] - both[1], _p_value(both, differences), undefined)


def _p_value(both: Array, null: Array) -> Array:
    """Two-sided, of scores [2, ...] and differences under the null hypothesis [resamples, ...]."""
    difference = both[0] - both[1]
    # Equal up to the rounding of the scores is as extreme.
    tie = TIE_EPS * jnp.finfo(both.dtype).eps * jnp.max(jnp.abs(both), axis=0)
    extreme = jnp.abs(null) >= (jnp.abs(difference) - tie)[None]
    defined = jnp.sum(~jnp.isnan(null), axis=0, dtype=jnp.int32)
    count = jnp.sum(extreme, axis=0, dtype=jnp.int32)
    share = (count + 1).astype(difference.dtype) / (defined + 1).astype(difference.dtype)
    return jnp.where(jnp.isnan(difference) | (defined == 0), jnp.nan, share)


def _by_score(function: Callable[..., Any], scores: Any, *others: Any) -> Any:
    """`function` of each score of a tree; the fields of its results become trees like that."""
    results = jax.tree.map(function, scores, *others)
    return jax.tree.transpose(jax.tree.structure(scores), None, results)
