"""Sweeps over many pairs of encoders, with the work that pairs have in common done once.

An encoder's QR and conditioning serve all of its pairs and both directions; the polar factor of
one direction is the transposed one of the other; and what reads the target space (a head, or
class prompts) is multiplied into the map before any embedding is mapped.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import (
    INVERSE_LOSS,
    LSTSQ_RCOND_EPS,
    cholesky,
    common_dtype,
    compute_dtype,
    gram_matrix,
    matmul,
    times_upper,
    transpose,
    triangular_factor,
    upper_inverse,
    upper_times,
    upper_transposed_times,
)
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..heads import Head, after_first_layer, first_layer
from ..maps._solvers.float64 import LEAST_SHARE, WidePrefixes, wide_prefix_solutions, wide_prefixes
from ..maps._solvers.polar import (
    BasesForm,
    DenseForm,
    LowRankForm,
    ThinFactors,
    orthogonal_factor,
    polar_form,
    thin_polar_form,
)
from ..maps.fit import Side, check_options, fit_sides
from ..sweeps._nested import NestedRows, nested_rows
from ..sweeps.one_pair import SweepMethod, checked_lines, checked_orders

#: Scores predictions: `(scores [t, c], eval_data) -> scalar`, or any pytree of arrays.
ScoreMetric: TypeAlias = Callable[[Array, Any], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairSweepResult:
    """Scores of a sweep over pairs of encoders.

    Attributes:
        values: for each metric an array [pairs, methods, counts, seeds]; if a metric returns a
            pytree of arrays, each of its leaves has these leading axes.
        pairs: (source, target) names along the first axis (static).
        methods: names along the second axis (static).
        counts: anchor counts along the third axis (static).
    """

    values: dict[str, Any]
    pairs: tuple[tuple[str, str], ...] = field(metadata={"static": True})
    methods: tuple[str, ...] = field(metadata={"static": True})
    counts: tuple[int, ...] = field(metadata={"static": True})


class _Spec(NamedTuple):
    """What compiled code depends on besides shapes."""

    lines: tuple[tuple[str, SweepMethod], ...]
    metrics: tuple[tuple[str, ScoreMetric], ...]
    counts: tuple[int, ...]  # ascending
    dtype: Any
    wide: bool  # whether least squares of many anchors is in float64

    def shared(self, methods: Sequence[Method], center: bool) -> bool:
        """Whether there is a shared line of these methods that is centred, or one that is not."""
        return any(
            line.method in methods and _is_shared(line) and _center(line) == center
            for _, line in self.lines
        )

    def large(self, center: bool, d: int) -> list[int]:
        """Numbers of rows of the prefixes that have at least as many as dimensions."""
        return [n - center for n in self.counts if n - center >= d]

    def cuts(self, center: bool) -> list[float]:
        """Relative cut-offs of the shared least-squares lines."""
        lines = (line for _, line in self.lines if line.method in _LEAST_SQUARES)
        shared = (line for line in lines if _is_shared(line) and _center(line) == center)
        return sorted({self.cut(line) for line in shared})

    def cut(self, line: SweepMethod) -> float:
        """Relative cut-off for singular values of a shared line."""
        cut = dict(line.options).get("rcond")
        return LSTSQ_RCOND_EPS * float(jnp.finfo(self.dtype).eps) if cut is None else float(cut)


#: Where own fits are in float64, factors in float32 are shared up to this product of the machine
#: epsilon and a bound of the condition number: predictions err by up to a hundredth of it.
SHARED_LOSS = 0.05

#: Numbers of scores of a line that are kept until its last count; bounds the memory.
SCORES_TOGETHER = 2**26
_LEAST_SQUARES: tuple[Method, ...] = ("affine", "linear")


def sweep_pairs(
    embeddings: Mapping[str, ArrayLike],
    counts: Sequence[int],
    keys: Array | None = None,
    *,
    readouts: Mapping[str, Head],
    test: Mapping[str, ArrayLike],
    metrics: Mapping[str, ScoreMetric],
    eval_data: Any = None,
    methods: Sequence[Method] | Mapping[str, str | SweepMethod] = METHODS,
    pairs: Sequence[tuple[str, str]] | None = None,
    orders: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    max_encoders: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PairSweepResult:
    """Fit maps between many encoders on nested anchor sets and score the target's readout.

    For every ordered pair, method, count and seed: the map from `source` to `target` is fitted
    to the anchors, and `readouts[target]` is applied to the mapped `test[source]`. The results
    are those of independent fits up to rounding. Runs compiled functions one pair after the
    other, so call it outside of `jax.jit`; equal shapes compile once.

    Shared by the plain maps (options `normalize` "none" or "center", `completion`, `rcond` of
    affine, linear and l-ortho); lines with other options, and anchors so dependent that singular
    values have to be cut off, are fitted one by one.

    Args:
        embeddings: name -> embeddings [n, d] that anchors are drawn from; row i of all encoders
            is the same item.
        counts: anchor counts, ints in [1, n].
        keys: PRNG keys [seeds]; all pairs use the same anchors.
        readouts: name of a target -> affine map [d, c] of its space to scores: a head of
            `fit_head`, or `AffineMap.from_weight(class_embeddings.T)`, whose largest score is
            the largest cosine similarity. Or an `MlpHead`.
        test: name of a source -> test embeddings [t, d], rows matched.
        metrics: name -> function `(scores [t, c], eval_data) -> scalar` (or a pytree of
            arrays); must be traceable. Define it once: it is part of the key of compiled code.
        eval_data: any pytree of arrays, handed to the metrics, e.g. the test labels.
        methods: names of maps, or label -> name or `SweepMethod`.
        pairs: ordered (source, target) pairs; None means all of different encoders.
        orders: instead of `keys`: integer [seeds, m] row orders, m >= max(counts).
        labels: integer classes [n] to stratify the random anchors by.
        max_encoders: how many encoders are held prepared at once, at least 2; bounds the
            memory, at the price of preparing them several times. One takes about
            4 d (n + t) bytes in float32, n the largest count, and for each of centred and plain
            lines 4 n (d + c) + 8 d^2 l + 4 t k, for l-ortho another 4 n d + 8 d^2 l: l counts
            of at least d anchors, k the largest one below. None means all.
        workers: how many pairs run at once, in threads. On a CPU give each a single BLAS
            thread (`OPENBLAS_NUM_THREADS=1`).
        progress: called with (pairs done, pairs in all), counted over seeds.

    Returns:
        `PairSweepResult` with arrays [pairs, methods, counts, seeds].

    Raises:
        TypeError: for embeddings that are not floating point or counts that are not ints.
        ValueError: for unknown encoders or methods, rows or dimensions that do not match, counts
            beyond n, or if not exactly one of `keys` and `orders` is given.
    """
    if not metrics:
        raise ValueError("metrics is empty: give at least one, name -> function(scores, eval_data)")
    lines = checked_methods(methods)
    pairs = _checked_pairs(embeddings, pairs)
    data, tests = _checked_encoders(embeddings, test, readouts, pairs)
    rows = len(next(iter(data.values())))
    checked, orders = checked_orders(counts, rows, keys, orders, labels)
    if max_encoders is not None and checks.positive_int("max_encoders", max_encoders) < 2:
        raise ValueError("max_encoders must be at least 2: a pair has two")
    workers = checks.positive_int("workers", workers)
    dtype = compute_dtype(reduce(common_dtype, (a.dtype for a in data.values())))
    wide = dtype == jnp.float32 and jax.default_backend() in ("cpu", "gpu")
    spec = _Spec(lines, tuple(metrics.items()), tuple(sorted(set(checked))), dtype, wide)

    cells: dict[tuple[int, tuple[str, str]], Any] = {}
    with ThreadPoolExecutor(workers) as pool:

        def prepare(order: Array, names: Sequence[str]) -> dict[str, _Prepared]:
            def one(name: str) -> _Prepared:
                return _prepare(spec, data[name], order, tests.get(name), readouts.get(name))

            return dict(zip(names, pool.map(one, names), strict=True))

        for seed, order in enumerate(orders):
            for prepared, group in _batches(pairs, max_encoders, partial(prepare, order)):
                run = partial(_pair, spec, prepared, eval_data)
                for found in pool.map(run, group):
                    cells |= {(seed, pair): values for pair, values in found.items()}
                    if progress is not None:
                        progress(len(cells), len(orders) * len(pairs))
                del prepared, run  # before the next ones are prepared
    values = _stacked(
        [_stacked([cells[seed, pair] for pair in pairs], 0) for seed in range(len(orders))], 3
    )
    asked = np.searchsorted(spec.counts, checked)
    values = jax.tree.map(lambda leaf: leaf[:, :, asked], values)
    return PairSweepResult(values, tuple(pairs), tuple(label for label, _ in lines), checked)


def checked_methods(
    methods: Sequence[Method] | Mapping[str, str | SweepMethod],
) -> tuple[tuple[str, SweepMethod], ...]:
    """The lines of a sweep with their labels; functions are refused."""
    lines = []
    for label, line in checked_lines(methods):
        if not isinstance(line, SweepMethod):
            raise ValueError(f"methods[{label!r}] must be a name or a SweepMethod; got {line!r}")
        lines.append((label, line))
    return tuple(lines)


def _stacked(trees: Sequence[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def _checked_pairs(
    embeddings: Mapping[str, Any], pairs: Sequence[tuple[str, str]] | None
) -> list[tuple[str, str]]:
    if pairs is None:
        pairs = [(a, b) for a in embeddings for b in embeddings if a != b]
    if not pairs:
        raise ValueError("pairs is empty: give at least two encoders")
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"pairs must hold (source, target) names; got {pair!r}")
        for name in pair:
            if name not in embeddings:
                raise ValueError(
                    f"pairs has {name!r}, which is not among the embeddings: {list(embeddings)}"
                )
    return [(a, b) for a, b in dict.fromkeys(map(tuple, pairs))]


def _checked_encoders(
    embeddings: Mapping[str, ArrayLike],
    test: Mapping[str, ArrayLike],
    readouts: Mapping[str, Head],
    pairs: Sequence[tuple[str, str]],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The embeddings and test embeddings of all encoders in the pairs."""
    data, tests = {}, {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        data[name] = checks.float_array(f"embeddings[{name!r}]", embeddings[name], 2)
    for source in dict.fromkeys(source for source, _ in pairs):
        if source not in test:
            raise ValueError(f"test has no embeddings of the source {source!r}")
        tests[source] = checks.float_array(f"test[{source!r}]", test[source], 2)
        if tests[source].shape[1] != data[source].shape[1]:
            raise ValueError(
                f"test[{source!r}] has {tests[source].shape[1]} features, the embeddings "
                f"{data[source].shape[1]}"
            )
    for what, arrays in (("embeddings", data), ("test", tests)):
        if len({len(array) for array in arrays.values()}) > 1:
            rows = {name: len(array) for name, array in arrays.items()}
            raise ValueError(f"{what} must have the same rows for all encoders; got {rows}")
    for target in dict.fromkeys(target for _, target in pairs):
        if target not in readouts:
            raise ValueError(f"readouts has none of the target {target!r}")
        weight = first_layer(readouts[target]).weight
        if weight.shape[:-1] != data[target].shape[1:]:
            raise ValueError(
                f"readouts[{target!r}] takes {weight.shape[:-1]} features, the embeddings have "
                f"{data[target].shape[1:]}"
            )
    if checks.is_concrete(*data.values(), *tests.values()):
        for what, arrays in (("embeddings", data), ("test", tests)):
            for name, array in arrays.items():
                checks.finite_rows(f"{what}[{name!r}]", array, None)
    return data, tests


def _batches(
    pairs: Sequence[tuple[str, str]],
    max_encoders: int | None,
    prepare: Callable[[Sequence[str]], dict[str, "_Prepared"]],
) -> Iterator[tuple[dict[str, "_Prepared"], list[list[tuple[str, str]]]]]:
    """Groups of pairs and the encoders they need, at most `max_encoders` at a time.

    Both directions of a pair are together, in one list.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    size = len(names) if max_encoders is None else max_encoders // 2
    block = {name: i // size for i, name in enumerate(names)}
    groups: dict[tuple[int, int], dict[frozenset[str], list[tuple[str, str]]]] = {}
    for pair in pairs:
        first, second = sorted(block[name] for name in pair)
        groups.setdefault((first, second), {}).setdefault(frozenset(pair), []).append(pair)
    ready: dict[str, _Prepared] = {}
    for key in sorted(groups):
        needed = {name for both in groups[key] for name in both}
        ready = {name: found for name, found in ready.items() if block[name] in key}
        ready |= prepare([name for name in names if name in needed and name not in ready])
        yield ready, list(groups[key].values())


# --- what an encoder's pairs share -------------------------------------------------------------


class _Variant(NamedTuple):
    """An encoder's anchors, centred or not, ready for all of its pairs.

    Attributes:
        nested: rows and factors of the prefixes of less than d rows.
        means: what is subtracted from its embeddings at each count [counts, d].
        condition: bound of the condition number of the first 1 to k rows [k]; infinite where
            the factors cannot be trusted.
        test_q: test embeddings in the basis `nested.q` [t, k]; None if not needed.
        mean_q: `means` in that basis [counts, k].
        read: `nested.rows` times the weight of the readout's first layer [m, c]; None if not
            needed.
        large: for prefixes of d rows and more; None if there are none, or not needed.
        wide: likewise, in float64.
    """

    nested: NestedRows
    means: Array
    condition: Array
    test_q: Array | None
    mean_q: Array
    read: Array | None
    large: "_Large | None"
    wide: WidePrefixes | None


#: Cholesky factors of nearly orthonormal rows are trusted up to this bound of the condition.
LARGEST_WHITENED = 1e4


class _Large(NamedTuple):
    """Least squares over all prefixes of at least d rows.

    Attributes:
        z: rows in a basis where they are about orthonormal, `rows @ root` [m, d].
        whiten: for each such prefix, the inverse triangular factor of its `z` [large, d, d].
        inverse: that of its rows [large, d, d].
        condition: bound of the condition number of each such prefix [large]; infinite where
            the factors cannot be trusted.
    """

    z: Array
    whiten: Array
    inverse: Array
    condition: Array

    def solve(self, position: int, cross: Array) -> Array:
        """Least-squares solution from `cross = z^T b` of that prefix."""
        projected = upper_transposed_times(self.whiten[position], cross)
        return upper_times(self.inverse[position], projected)


class _Prepared(NamedTuple):
    """An encoder as source and target.

    Attributes:
        data: its anchors in order [n, d].
        variants: {whether centred: `_Variant`}.
        test: test embeddings [t, d], or None if it is never a source.
        readout: of its space, or None if it is never a target.
    """

    data: Array
    variants: dict[bool, _Variant]
    test: Array | None
    readout: Head | None


@partial(jax.jit, static_argnums=0)
def _prepare(
    spec: _Spec, data: Array, order: Array, test: Array | None, readout: Head | None
) -> _Prepared:
    data, test, readout = jax.tree.map(lambda a: a.astype(spec.dtype), (data, test, readout))
    data = data[order]
    variants = {
        center: _variant(spec, data, test, readout, center)
        for center in (False, True)
        if spec.shared(METHODS, center)
    }
    return _Prepared(data, variants, test, readout)


def _variant(
    spec: _Spec, data: Array, test: Array | None, readout: Head | None, center: bool
) -> _Variant:
    nested = nested_rows(data, spec.counts, center=center)
    means = jnp.zeros((len(spec.counts), data.shape[1]), data.dtype)
    if center:
        means = _prefix_means(data, spec.counts)
    squares = [jnp.cumsum(jnp.sum(a * a, axis=0)) for a in (nested.r, nested.inverse)]
    condition = jnp.sqrt(squares[0] * squares[1])
    usable = condition * jnp.finfo(condition.dtype).eps < INVERSE_LOSS
    least_squares = spec.shared(_LEAST_SQUARES, center)
    ends = spec.large(center, data.shape[1])
    whitened: tuple[Method, ...] = ("l-ortho",) if spec.wide else (*_LEAST_SQUARES, "l-ortho")
    return _Variant(
        nested,
        means,
        jnp.where(usable, condition, jnp.inf),  # NaN becomes infinite too
        matmul(test, nested.q) if least_squares and test is not None else None,
        matmul(means, nested.q),
        None
        if readout is None or not least_squares
        else matmul(nested.rows, first_layer(readout).weight),
        _large(nested, ends) if ends and spec.shared(whitened, center) else None,
        wide_prefixes(nested.rows, ends, spec.cuts(center))
        if ends and spec.wide and least_squares
        else None,
    )


def _prefix_means(data: Array, counts: Sequence[int]) -> Array:
    """Means of the first n rows for ascending counts n [counts, d]."""
    shifted = data - data[:1]  # so that a large common offset costs no digits
    total, start, means = jnp.zeros(data.shape[1], data.dtype), 0, []
    for n in counts:
        total = total + jnp.sum(shifted[start:n], axis=0)
        start = n
        means.append(total / n)
    return data[:1] + jnp.stack(means)


def _large(nested: NestedRows, lengths: Sequence[int]) -> _Large:
    """Factor prefixes of at least d rows by Cholesky, in a basis where that is safe.

    The triangular factor of a sample of 2 d rows makes all rows nearly orthonormal. So their
    Gram matrices, which add up from prefix to prefix, are well conditioned, and what the normal
    equations lose is not lost here.
    """
    rows = nested.rows
    d = rows.shape[1]
    sample = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 2 * d)).astype(int))
    triangle = triangular_factor(rows[sample])
    root = upper_inverse(triangle)
    z = times_upper(rows, root)
    # As large as the triangular factors of the prefixes, which are never formed.
    sizes = jnp.sqrt(jnp.cumsum(jnp.sum(rows * rows, axis=1)))
    gram, start = jnp.zeros((d, d), rows.dtype), 0
    whiten, inverse, condition = [], [], []
    for m in lengths:
        gram = gram + gram_matrix(z[start:m])
        start = m
        factor = transpose(cholesky(gram))
        whiten.append(upper_inverse(factor))
        inverse.append(upper_times(root, whiten[-1]))
        usable = _norm_product(factor, whiten[-1]) < LARGEST_WHITENED
        # Of the prefix's own factor: the product of both bounds would be far above it.
        bound = sizes[m - 1] * jnp.linalg.norm(inverse[-1])
        condition.append(jnp.where(usable, bound, jnp.inf))
    of_root = _norm_product(triangle, root)
    usable = of_root * jnp.finfo(of_root.dtype).eps < INVERSE_LOSS
    bounds = jnp.where(usable, jnp.stack(condition), jnp.inf)
    return _Large(z, jnp.stack(whiten), jnp.stack(inverse), bounds)


def _norm_product(factor: Array, inverse: Array) -> Array:
    """A bound of the condition number."""
    return jnp.linalg.norm(factor) * jnp.linalg.norm(inverse)


# --- one pair ----------------------------------------------------------------------------------


def _center(line: SweepMethod) -> bool:
    return line.method == "affine" or dict(line.options).get("normalize", "none") != "none"


def _is_shared(line: SweepMethod) -> bool:
    """Whether a line is fitted from shared factors; others go through `fit_sides`."""
    options = dict(line.options)
    allowed = {"normalize"}
    if line.method != "ortho":
        allowed |= {"rcond"}
    if line.method in ("l-ortho", "ortho"):
        allowed |= {"completion"}
    return (
        not line.shuffled
        and set(options) <= allowed
        and options.get("normalize", "none") in ("none", "center")
        and isinstance(options.get("rcond", 0), int | float | None)
    )


def _pair(
    spec: _Spec,
    prepared: Mapping[str, _Prepared],
    eval_data: Any,
    directions: Sequence[tuple[str, str]],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Scores [methods, counts] of one pair of encoders in one or both directions."""
    first, second = (prepared[name] for name in directions[0])
    found = _shared_cells(spec, len(directions) > 1, first, second, eval_data)
    results = {}
    for (source, target), (values, safe) in zip(directions, found, strict=True):
        trusted = np.asarray(safe)
        shared = iter(range(len(trusted)))
        rows = []
        for index, (_, line) in enumerate(spec.lines):
            row = next(shared) if _is_shared(line) else None
            cells = []
            for column, n in enumerate(spec.counts):
                if row is not None and trusted[row, column]:
                    cells.append(jax.tree.map(lambda a, at=(row, column): a[at], values))
                    continue
                sides = prepared[source], prepared[target]
                cells.append(_own_cell(spec, index, n, *sides, eval_data))
            rows.append(_stacked(cells, 0))
        results[source, target] = _stacked(rows, 0)
    return results


@partial(jax.jit, static_argnums=(0, 1, 2))
def _own_cell(
    spec: _Spec, index: int, n: int, source: _Prepared, target: _Prepared, eval_data: Any
) -> dict[str, Any]:
    """The scores of one line at one count, fitted on its own."""
    line = spec.lines[index][1]
    x, y = source.data[:n], target.data[:n]
    if line.shuffled:
        y = jnp.roll(y, 1, axis=0)
    static, options = check_options(line.method, (x.shape, y.shape), **dict(line.options))
    fitted, _ = fit_sides(
        static, Side(x, None, spec.dtype), Side(y, None, spec.dtype), options, spec.dtype
    )
    assert source.test is not None  # both checked with the arguments
    assert target.readout is not None
    scores = (fitted >> target.readout)(source.test)
    return {name: metric(scores, eval_data) for name, metric in spec.metrics}


@partial(jax.jit, static_argnums=(0, 1))
def _shared_cells(
    spec: _Spec, both: bool, first: _Prepared, second: _Prepared, eval_data: Any
) -> list[tuple[dict[str, Any], Array]]:
    """For each direction the scores of the shared lines, and which can be trusted."""
    sides = [(first, second), (second, first)][: 1 + both]
    directions = [_Direction(spec, *side, eval_data) for side in sides]
    found: list[list[tuple[dict[str, Any], Array]]] = [[] for _ in directions]
    for _, line in spec.lines:
        if not _is_shared(line):
            continue
        if line.method == "ortho":
            values = _ortho(directions, line)
        elif line.method == "l-ortho":
            values = [direction.l_ortho(line) for direction in directions]
        else:
            values = [direction.least_squares(line) for direction in directions]
        for cells, value in zip(found, values, strict=True):
            cells.append(value)
    size = len(spec.counts)
    empty = jnp.ones((0, size), bool)
    return [
        (_stacked([v for v, _ in cells], 0), jnp.stack([s for _, s in cells]))
        if cells
        else ({}, empty)
        for cells in found
    ]


class _Direction:
    """One direction of a pair; lives within one trace."""

    def __init__(self, spec: _Spec, source: _Prepared, target: _Prepared, eval_data: Any) -> None:
        self.spec, self.source, self.target, self.eval_data = spec, source, target, eval_data
        assert source.test is not None  # both checked with the arguments
        assert target.readout is not None
        self.test, self.head = source.test, target.readout
        self.readout = first_layer(self.head)

    def metrics(self, scores: Array) -> dict[str, Any]:
        """The metrics of scores [t, c]."""
        return {name: metric(scores, self.eval_data) for name, metric in self.spec.metrics}

    @property
    def together(self) -> bool:
        """Whether the scores of all counts are kept, and the metrics compiled once for them."""
        size = self.test.shape[0] * self.head.d_out
        return len(self.spec.counts) * size <= SCORES_TOGETHER

    def finished(self, cells: Any) -> dict[str, Any]:
        """The metrics at every count from what `cell` gave at each."""
        return jax.lax.map(self.metrics, cells) if self.together else cells

    def cell(self, center: bool, index: Any, mapped: Array, mean: Array) -> Any:
        """Scores [t, c], or their metrics, of a map already multiplied with the readout.

        Args:
            center: whether the anchors were centred.
            index: of the count.
            mapped: test embeddings times map times weight of the readout's first layer [t, c].
            mean: the mean of the source's anchors times the same [c].
        """
        offset = self.target.variants[center].means[index] - self.readout.source_offset
        shift = matmul(offset, self.readout.weight) + self.readout.target_offset - mean
        scores = after_first_layer(self.head, mapped + shift[None, :])
        return scores if self.together else self.metrics(scores)

    def of_weight(self, center: bool, index: Any, weight: Array) -> Any:
        """`cell` of the map `weight` [d_in, c], readout included."""
        mean = matmul(self.source.variants[center].means[index], weight)
        return self.cell(center, index, matmul(self.test, weight), mean)

    def _trusted(self, line: SweepMethod) -> Array:
        """Where no singular value is cut off, and the factors are accurate [counts]."""
        center, cut = _center(line), self.spec.cut(line)
        variant = self.source.variants[center]
        wide = self.spec.wide and line.method in _LEAST_SQUARES

        def by_bound(bound: Array) -> Array:
            return jnp.isfinite(bound) & (cut * bound < 1)

        lengths = [n - center for n in self.spec.counts]
        small = [m for m in lengths if 0 < m <= variant.condition.shape[0]]
        parts = [jnp.zeros(lengths.count(0), bool)]
        for m in small:
            bound = variant.condition[m - 1]
            trusted = by_bound(bound)
            if wide and m >= LEAST_SHARE * self.source.data.shape[1]:
                trusted &= jnp.finfo(bound.dtype).eps * bound < SHARED_LOSS
            parts.append(trusted[None])
        if wide and variant.wide is not None:
            parts.append(variant.wide.safe[self.spec.cuts(center).index(cut)])
        elif variant.large is not None:
            parts.append(by_bound(variant.large.condition))
        return jnp.concatenate(parts)

    def least_squares(self, line: SweepMethod) -> tuple[dict[str, Any], Array]:
        """Scores of the least-squares map at every count."""
        center = _center(line)
        source, target = self.source.variants[center], self.target.variants[center]
        units = target.nested.unit / source.nested.unit
        assert target.read is not None  # as of `test_q`
        b = units * target.read
        k = source.nested.q.shape[1]
        # Forward substitution: the unknowns of a prefix do not depend on later anchors.
        solved = matmul(transpose(source.nested.inverse), b[:k])
        assert source.test_q is not None
        mapped = jnp.zeros((self.test.shape[0], b.shape[1]), b.dtype)
        cells, done = [], 0
        for index, n in enumerate(self.spec.counts):
            m = n - center
            if m > k:
                break
            mapped = mapped + matmul(source.test_q[:, done:m], solved[done:m])
            done = m
            mean = matmul(source.mean_q[index, :m], solved[:m])
            cells.append(self.cell(center, index, mapped, mean))
        ends = self._ends(center)
        if ends:
            first = len(cells)
            if source.wide is None:
                weights = self._large_weights(center, b)
            else:
                weights = wide_prefix_solutions(source.wide, source.nested.rows, b, ends)
            for position, weight in enumerate(weights):
                cells.append(self.of_weight(center, first + position, weight))
        return self.finished(_stacked(cells, 0)), self._trusted(line)

    def _large_weights(self, center: bool, b: Array) -> list[Array]:
        """The least-squares solution [d, c] for each prefix of at least d rows."""
        variant, columns = self.source.variants[center], b.shape[1]
        large = variant.large
        assert large is not None
        crosses = self._large_products(center, b)
        weights = [large.solve(position, cross) for position, cross in enumerate(crosses)]
        # As in `_linalg.least_squares`: one step with the residual halves the error. A block of
        # rows is read once, for all prefixes that hold it.
        together = jnp.concatenate(weights, axis=1)
        steps = jnp.zeros_like(together)
        for position, block in enumerate(self._large_blocks(center)):
            held = together[:, position * columns :]
            residual = jnp.tile(b[block], (1, len(weights) - position))
            residual = residual - matmul(variant.nested.rows[block], held)
            step = matmul(transpose(large.z[block]), residual)
            steps = steps.at[:, position * columns :].add(step)
        parts = jnp.split(steps, len(weights), axis=1)
        return [w + large.solve(i, s) for i, (w, s) in enumerate(zip(weights, parts, strict=True))]

    def _large_products(self, center: bool, b: Array) -> list[Array]:
        """`z^T b` of each prefix of at least d rows."""
        large = self.source.variants[center].large
        assert large is not None
        parts = [
            matmul(transpose(large.z[block]), b[block]) for block in self._large_blocks(center)
        ]
        return list(accumulate(parts, operator.add))

    def _large_blocks(self, center: bool) -> list[slice]:
        """Rows of the first prefix of at least d rows, and what each later one adds."""
        return [slice(start, end) for start, end in pairwise([0, *self._ends(center)])]

    def _ends(self, center: bool) -> list[int]:
        """Lengths of the prefixes of at least d rows."""
        return self.spec.large(center, self.source.data.shape[1])

    def l_ortho(self, line: SweepMethod) -> tuple[dict[str, Any], Array]:
        """Scores of the polar factor of the least-squares map at every count."""
        center = _center(line)
        completion = dict(line.options).get("completion", "orthogonal")
        source, target = self.source.variants[center], self.target.variants[center]
        (x, _, q, _, inverse), y = source.nested, target.nested
        k = q.shape[1]
        cells: list[Any] = []
        for index, n in enumerate(self.spec.counts):
            m = n - center
            if m > k:
                break
            triangle = transpose(inverse[:m, :m])
            thin = None
            if 0 < m < min(x.shape[1], y.rows.shape[1]):
                inner = matmul(triangle, transpose(y.r[:m, :m]))
                thin = ThinFactors(q[:, :m], inner, y.q[:, :m])
                form = thin_polar_form(thin, completion)
                if form is not None:
                    weight = form.times(self.readout.weight)
                    cells.append(self.of_weight(center, index, weight))
                    continue
            linear = matmul(q[:, :m], matmul(triangle, y.rows[:m]))
            weight = orthogonal_factor(linear, thin=thin, row_bound=m, completion=completion)
            cells.append(self.of_weight(center, index, matmul(weight, self.readout.weight)))
        if source.large is not None:
            maps = [
                source.large.solve(position, cross)
                for position, cross in enumerate(self._large_products(center, y.rows))
            ]
            indices = jnp.arange(len(cells), len(self.spec.counts))

            def score(args):
                index, linear = args
                weight = polar_form(linear, completion).times(self.readout.weight)
                return self.of_weight(center, index, weight)

            large = jax.lax.map(score, (indices, jnp.stack(maps)))
            small = [_stacked(cells, 0)] if cells else []
            values = jax.tree.map(lambda *parts: jnp.concatenate(parts), *small, large)
        else:
            values = _stacked(cells, 0)
        return self.finished(values), self._trusted(line)


def _ortho(
    directions: Sequence[_Direction], line: SweepMethod
) -> list[tuple[dict[str, Any], Array]]:
    """Scores of orthogonal Procrustes: one polar factor for both directions."""
    center = _center(line)
    completion = dict(line.options).get("completion", "orthogonal")
    forward = directions[0]
    spec = forward.spec
    x, y = (side.variants[center].nested for side in (forward.source, forward.target))
    d_in, d_out = x.rows.shape[1], y.rows.shape[1]

    def score(index: Any, weight: LowRankForm | BasesForm | Array) -> list[Any]:
        form = DenseForm(weight) if isinstance(weight, Array) else weight
        both = (form, form.mT)
        return [
            direction.of_weight(center, index, way.times(direction.readout.weight))
            for direction, way in zip(directions, both, strict=False)
        ]

    cells, rest, cross, start = [], [], jnp.zeros((d_in, d_out), spec.dtype), 0
    for index, n in enumerate(spec.counts):
        m = n - center
        thin = None
        if 0 < m < min(d_in, d_out):
            inner = matmul(x.r[:m, :m], transpose(y.r[:m, :m]))
            thin = ThinFactors(x.q[:, :m], inner, y.q[:, :m])
            form = thin_polar_form(thin, completion)
            if form is not None:
                cells.append(score(index, form))
                continue
        cross = cross + matmul(transpose(x.rows[start:m]), y.rows[start:m])
        start = m
        if m < min(d_in, d_out):
            weight = orthogonal_factor(cross, thin=thin, row_bound=m, completion=completion)
            cells.append(score(index, weight))
        else:
            rest.append(cross)
    values = [_stacked(cells, 0)] if cells else []
    if rest:
        indices = jnp.arange(len(cells), len(spec.counts))
        # One compiled body for all of them.
        values.append(
            jax.lax.map(
                lambda args: score(args[0], polar_form(args[1], completion)),
                (indices, jnp.stack(rest)),
            )
        )
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *values)
    return [
        (direction.finished(cells), jnp.ones(len(spec.counts), bool))
        for direction, cells in zip(directions, joined, strict=True)
    ]
