"""Anchor sweeps for one pair of encoders: every method at every anchor count and seed, compiled.

Sweeps over many pairs, which share work between them, are in `many_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.records import Records, cells_of, shown_counts
from .._core.trees import by_value, stacked
from .._core.typing import ALL_METHODS, METHODS, Array, ArrayLike, Method
from ..maps.affine_map import AffineMap
from ..maps.fit import compiled_fit
from ..maps.mlp_head import Head
from ..maps.options import check_method, check_options
from ..metrics.by_name import HeadMetric, named_metrics, score_by_name
from ..metrics.samples import host_copies
from .anchors import anchor_order, check_counts

#: How a sweep gives a fit its anchors, see `anchor_sweep`.
Route: TypeAlias = Literal["auto", "masks", "prefixes"]
ROUTES: tuple[Route, ...] = ("auto", "masks", "prefixes")

#: On a CPU, masks are taken up to this product of seeds, rows and both dimensions. Each count that
#: prefixes compile takes 0.6 s a method; a masked fit of 1,000 rows and 384 dimensions takes 20 to
#: 100 ms more than one of few rows: 10 counts of four maps and one seed take 5 s instead of 30 the
#: first time, but five seeds of seven counts and six maps twice as long as by prefixes.
MASKED_WORK = 4 * 10**8


@dataclass(frozen=True, init=False)
class SweepMethod:
    """One line of a sweep: a map with options, or a control.

    Attributes:
        method: "affine", "linear", "l-ortho", "ortho" or "auto".
        options: keyword options of the fit, as sorted pairs.
        shuffled: control: fit to wrong pairs, every anchor of `x` with the partner of the one
            before.
    """

    method: Method
    options: tuple[tuple[str, Any], ...]
    shuffled: bool

    def __init__(self, method: Method, *, shuffled: bool = False, **options: Any) -> None:
        """Describe a line.

        Args:
            method: name of the map.
            shuffled: whether to fit to wrong pairs.
            **options: keyword options of that fit; numbers and other hashable values, no
                `weights`.

        Raises:
            TypeError: for an option that is no constant number, text or bool.
            ValueError: for an unknown method or an option it does not have.
        """
        check_method(method, options)
        for name in ("weights", "validate", "key"):
            if name in options:
                raise ValueError(f"{name} cannot be an option of a SweepMethod")
        constants = {name: _hashable(name, value) for name, value in options.items()}
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", tuple(sorted(constants.items())))
        object.__setattr__(self, "shuffled", checks.flag("shuffled", shuffled))

    def fitter(self, d_in: int, d_out: int) -> Callable[..., AffineMap]:
        """The compiled fit `(x, y, weights or None) -> map` of checked anchors."""
        options, values = check_options(self.method, (d_in, d_out), **dict(self.options))
        return lambda x, y, weights: compiled_fit(options, False, x, y, weights, values)


def _hashable(name: str, value: Any) -> Any:
    """An option as compiled code can be found by it: a scalar array as a number."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and checks.is_concrete(value):
        return value.item()
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name} of a SweepMethod must be a constant number, text or bool; got {value!r}"
        ) from None
    return value


#: Fits a map to anchors: `(x [n, d_in], y [n, d_out]) -> AffineMap`.
Fitter: TypeAlias = Callable[[Array, Array], AffineMap]
#: Scores a map on evaluation data: `(map, eval_data) -> scalar`, or any pytree of arrays.
Metric: TypeAlias = Callable[[AffineMap, Any], Any]


@by_value
@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SweepResult(Records):
    """Scores of a sweep; `to_records`, `to_pandas`, `select` and `summary` give them by name.

    Attributes:
        values: for each metric an array [methods, counts, seeds]; if a metric returns a pytree of
            arrays, as an `AffineMap`, each of its leaves has these leading axes.
        counts: anchor counts along the second axis: a tuple of ints, or the array that was given
            if it was traced.
        methods: names along the first axis (static).
    """

    values: dict[str, Any]
    counts: tuple[int, ...] | Array
    methods: tuple[str, ...] = field(metadata={"static": True})

    def __repr__(self) -> str:
        names = f"{', '.join(self.values)} of {', '.join(self.methods)}"
        return f"<SweepResult: {names}, {shown_counts(self.counts)}>"

    def to_records(self) -> list[dict[str, Any]]:
        """A dictionary for each score: metric, method, anchors, seed, value.

        Metrics that return other things than a number, e.g. maps, are left out.
        """
        counts = [int(count) for count in self.counts]
        return [
            {"metric": name, "method": method, "anchors": count, "seed": seed, "value": value}
            for name, values in self.values.items()
            for (method, count, seed), value in cells_of(values, self.methods, counts)
        ]


def anchor_sweep(
    x: ArrayLike,
    y: ArrayLike,
    counts: Sequence[int] | Array,
    keys: Array | None = None,
    *,
    metrics: Sequence[HeadMetric] | Mapping[str, HeadMetric | Metric],
    eval_data: Any = None,
    methods: Sequence[Method] | Mapping[str, str | SweepMethod | Fitter] = METHODS,
    orders: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    eval_in_axes: Any = None,
    batch_size: int | None = None,
    route: Route = "auto",
) -> SweepResult:
    """Fit every method on nested anchor sets of every size and seed, and score the maps.

    The same keys give the same result. Anchors are the first rows of a random order, so a smaller
    set is part of every larger one. What is compiled is kept for later calls of the same shapes,
    with the callables as part of the key: define them once, outside of loops.

    Two routes give equal results up to rounding:

    - "prefixes": the fit of n anchors sees n rows, and few anchors cost little. One fit is compiled
      a count; later sweeps of other data of the same dimensions use it too.
    - "masks": every fit sees as many rows as the largest count, with weight zero for those that
      are no anchors, and is vmapped over counts and seeds. One fit is compiled, whatever the number
      of counts, which may be a traced array.

    Args:
        x: source embeddings that anchors are drawn from [n, d_in].
        y: target embeddings [n, d_out], matched by row.
        counts: anchor counts, ints in [1, n]; a traced array of integers [counts] if the route
            is "masks".
        keys: PRNG keys [seeds], e.g. `jax.random.split(jax.random.key(0), 5)`.
        metrics: names of scores of a head on mapped test rows, see `eval_data`: "accuracy",
            "balanced_accuracy", "macro_f1", "auroc", "average_precision". Or label -> such a name
            or a traceable function `(map, eval_data) -> scalar`, which may return a pytree of
            arrays too: `lambda fitted, _: fitted` gives the maps themselves.
        eval_data: any pytree of arrays, handed to the metrics; for metrics by name the triple
            (head of the target space, test rows of the source [t, d_in], labels [t] or booleans
            [t, c]); classes that the head does not have make a score NaN.
        methods: names of maps, or label -> name, `SweepMethod` (a map with options) or function
            `(x, y) -> AffineMap` (with "prefixes" alone).
        orders: instead of `keys`: integer [seeds, m] row orders, m >= max(counts), whose prefixes
            are the anchors.
        labels: integer classes [n] to stratify the random anchors by.
        eval_in_axes: as `in_axes` of `jax.vmap`: which leaves of `eval_data` have a leading
            seeds axis; None means that all seeds share it.
        batch_size: how many fits of a method run at once by masks (vmapped); bounds the memory.
            None means 1 on a CPU, where more brings nothing, and 8 elsewhere.
        route: "auto" takes "masks" on accelerators, for traced counts, and on CPUs for sweeps so
            small that compilation would take longer than the fits (seeds x largest count x d_in x
            d_out up to 4e8); else, and for methods that are functions, "prefixes".

    Returns:
        `SweepResult` with arrays [methods, counts, seeds].

    Raises:
        TypeError: for non-floating embeddings, counts that are not ints, or keys that are none.
        ValueError: for shapes that do not match, NaN or infinity (outside of `jit`), unknown
            methods, counts beyond n, a single key, `eval_data` with other rows than one a seed
            where `eval_in_axes` is 0, or if not exactly one of `keys` and `orders` is given.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> error = lambda mapping, data: abs(mapping(data[0]) - data[1]).mean()
        >>> y, keys = x[:, ::-1] + 3, jax.random.split(jax.random.key(1), 2)
        >>> metrics, methods = {"error": error}, ["ortho", "affine"]
        >>> found = sa.anchor_sweep(
        ...     x, y, (5, 20), keys, metrics=metrics, methods=methods, eval_data=(x, y)
        ... )
        >>> found.values["error"].shape  # methods, counts, keys
        (2, 2, 2)
    """
    x, y = map(checks.on_device, checks.pair(x, y))  # once, and not for every score
    for name, side in (("x", x), ("y", y)):
        if checks.is_concrete(side):
            checks.finite_rows(name, side)
    named = named_metrics(metrics)
    scored = tuple((k, one if callable(one) else _score_of_map(one)) for k, one in named.items())
    by_name = not all(map(callable, named.values()))
    if by_name and not (isinstance(eval_data, tuple) and len(eval_data) == 3):
        raise ValueError("metrics by name need eval_data=(head, test rows, labels)")
    lines = checked_lines(methods, functions=True)
    checks.option("route", route, ROUTES)
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else 8
    batch_size = checks.positive_int("batch_size", batch_size)
    checked, orders = checked_orders(counts, x.shape[0], keys, orders, labels, traced=True)
    work = orders.size * x.shape[1] * y.shape[1]
    route = _chosen_route(route, isinstance(checked, tuple), lines, work)
    eval_data = jax.tree.map(checks.on_device, host_copies("eval_data", eval_data))
    axes = _freeze_axes(eval_in_axes, eval_data, len(orders))
    if route == "prefixes":
        values = _by_prefixes(lines, scored, axes, checked, x, y, orders, eval_data)
    else:
        sizes = jnp.asarray(checked, jnp.int32)
        values = _by_masks(lines, scored, axes, batch_size, sizes, x, y, orders, eval_data)
    return SweepResult(values, checked, tuple(label for label, _ in lines))


# --- checks ------------------------------------------------------------------------------------


@cache  # one function for each name, as compiled code is found by it
def score_of_predictions(name: HeadMetric) -> Callable[[Array, Array], Array]:
    """The score of that name as a function of predictions [t, c] and labels."""

    def of_scores(scores: Array, labels: Array) -> Array:
        weights = jnp.ones(labels.shape, scores.dtype)
        return score_by_name(name, True, scores.shape[1])(scores, (labels, weights)).value

    return of_scores


@cache
def _score_of_map(name: HeadMetric) -> Metric:
    def of_map(fitted: AffineMap, data: tuple[Head, Array, Array]) -> Array:
        head, rows, labels = data
        return score_of_predictions(name)((fitted >> head)(rows), labels)

    return of_map


def checked_lines(
    methods: Sequence[Method] | Mapping[str, str | SweepMethod | Fitter], *, functions: bool = False
) -> tuple[tuple[str, Any], ...]:
    """The lines of a sweep with their labels: each a `SweepMethod`, or a function if allowed."""
    if not isinstance(methods, Mapping):
        if isinstance(methods, str) or not isinstance(methods, Iterable):
            raise TypeError(f"methods must be a list of names or a mapping; got {methods!r}")
        names = list(methods)
        checks.refuse_repeated(names, "methods: ")
        methods = {name: name for name in names}
    if not methods:
        raise ValueError("methods is empty: give at least one")
    lines = dict(methods)
    for label, line in lines.items():
        if callable(line) and not functions:
            raise ValueError(f"methods[{label!r}] must be a name or a SweepMethod; got {line!r}")
        if not callable(line) and not isinstance(line, SweepMethod):
            checks.option(f"methods[{label!r}]", line, ALL_METHODS)
            lines[label] = SweepMethod(cast(Method, line))
    return tuple(lines.items())


def _chosen_route(
    route: Route, static_counts: bool, lines: Sequence[tuple[str, Any]], work: int
) -> Route:
    functions = [label for label, line in lines if not isinstance(line, SweepMethod)]
    if route == "auto":
        small = jax.default_backend() != "cpu" or work <= MASKED_WORK
        route = "masks" if not static_counts or (small and not functions) else "prefixes"
    if route == "masks" and functions:
        raise ValueError(
            f"methods[{functions[0]!r}] is a function of the anchors alone, which needs "
            f"route='prefixes' and counts that are not traced"
        )
    if route == "prefixes" and not static_counts:
        raise ValueError("counts is traced, which needs route='masks'")
    return route


def checked_orders(
    counts: Sequence[int] | Array,
    rows: int,
    keys: Array | None,
    orders: ArrayLike | None,
    labels: ArrayLike | None,
    *,
    traced: bool = False,
) -> tuple[Any, Array]:
    """The anchor counts, and for each seed the order whose prefixes are the anchors.

    The counts are a tuple of ints; the array that was given if they are traced and may be.
    """
    if (keys is None) == (orders is None):
        raise ValueError("give exactly one of keys (random anchors) and orders (your own)")
    if orders is not None:
        orders = cast(Array, checks.host_array("orders", orders))  # JAX narrows 64-bit integers
        if orders.ndim != 2 or not jnp.issubdtype(orders.dtype, jnp.integer):
            raise ValueError(
                f"orders must be integers [seeds, m]; got {orders.dtype} {orders.shape}"
            )
        if checks.is_concrete(orders):
            host = np.asarray(orders)
            if host.size and not (0 <= host.min() and host.max() < rows):
                raise ValueError(f"orders must be rows from 0 to {rows - 1}; got others")
    most = rows if orders is None else orders.shape[1]
    if checks.is_concrete(counts):
        counts = check_counts(cast(Sequence[int], counts), most)
        most = max(counts)
    elif not traced:
        raise ValueError("counts is traced: call this outside of jax.jit, or use anchor_sweep")
    else:
        counts = cast(Array, counts)
        if counts.ndim != 1 or not jnp.issubdtype(counts.dtype, jnp.integer):
            raise TypeError(f"counts must be integers [counts]; got {counts.dtype} {counts.shape}")
    if orders is None:
        keys = checks.prng_key("keys", keys, ndim=1)
        orders = jax.vmap(partial(anchor_order, n=rows, size=most, labels=labels))(keys)
    if not orders.shape[0]:
        raise ValueError("keys or orders [seeds, ...] hold no seed: give at least one")
    return counts, checks.on_device(checks.owned(orders[:, :most]))


def _freeze_axes(axes: Any, data: Any, seeds: int) -> tuple[int | None, ...]:
    """One entry (0 or None) per leaf of `data`, hashable."""
    flat: list[int | None] = []

    def spread(axis: Any, part: Any) -> None:
        if axis is not None and axis != 0:
            raise ValueError(f"eval_in_axes: entries must be 0 or None; got {axis!r}")
        for leaf in jax.tree.leaves(part):
            if axis == 0 and leaf.shape[:1] != (seeds,):  # JAX would take another row instead
                raise ValueError(
                    f"eval_in_axes: arrays of eval_data with the entry 0 need one row for each of "
                    f"the {seeds} seeds; got shape {leaf.shape}"
                )
            flat.append(axis)

    try:
        jax.tree.map(spread, axes, data, is_leaf=lambda a: a is None)
    except TypeError as error:
        raise ValueError(f"eval_in_axes must be a tree prefix of eval_data: {error}") from None
    return tuple(flat)


# --- the two routes ----------------------------------------------------------------------------


def _of_seed(axes: tuple[int | None, ...], data: Any, seed: Array | int) -> Any:
    """`data` with what is that seed's of the leaves that have a seeds axis."""
    leaves, structure = jax.tree.flatten(data)
    pairs = zip(leaves, axes, strict=True)
    return structure.unflatten([leaf[seed] if axis == 0 else leaf for leaf, axis in pairs])


def _fitters(
    lines: Sequence[tuple[str, SweepMethod | Fitter]], d_in: int, d_out: int
) -> list[tuple[Callable[..., AffineMap], bool]]:
    """For each line the compiled fit `(x, y, weights) -> map`, and whether `y` is shuffled."""
    return [
        (line.fitter(d_in, d_out), line.shuffled)
        if isinstance(line, SweepMethod)
        else (partial(_fitted, line), False)
        for _, line in lines
    ]


def _by_prefixes(
    lines: Sequence[tuple[str, SweepMethod | Fitter]],
    metrics: tuple[tuple[str, Metric], ...],
    axes: tuple[int | None, ...],
    counts: tuple[int, ...],
    x: Array,
    y: Array,
    orders: Array,
    eval_data: Any,
) -> Any:
    """Each fit is a program of its own, which pairs of equal dimensions and later calls share."""
    fitters = _fitters(lines, x.shape[1], y.shape[1])

    def one_seed(cell: tuple[Array | int, Array]) -> Any:
        (seed, order), scores = cell, []
        data = _of_seed(axes, eval_data, seed)
        for n in counts:
            source, target, wrong = _anchors(n, order, x, y)
            maps = [fitter(source, wrong if roll else target, None) for fitter, roll in fitters]
            scores.append(_scores(metrics, tuple(maps), data))
        return stacked(scores)

    if checks.is_concrete(x, y, orders, *jax.tree.leaves(eval_data)):
        values = stacked([one_seed(cell) for cell in enumerate(orders)])
    else:  # inside of a transformation a loop would compile every seed
        values = jax.lax.map(one_seed, (jnp.arange(len(orders), dtype=jnp.int32), orders))
    return _methods_first(values)


@partial(jax.jit, static_argnums=0)
def _anchors(n: int, order: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """The first n rows of both sides, and those of `y` as wrong partners."""
    target = y[order[:n]]
    return x[order[:n]], target, jnp.roll(target, 1, axis=0)


@jax.jit
def _methods_first(values: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, (0, 1, 2), (2, 1, 0)), values)


@partial(jax.jit, static_argnums=0)
def _fitted(line: Fitter, source: Array, target: Array, weights: None) -> AffineMap:
    return line(source, target)


@partial(jax.jit, static_argnums=0)
def _scores(metrics: tuple[tuple[str, Metric], ...], maps: tuple[AffineMap, ...], data: Any) -> Any:
    """Scores of every map, stacked [maps]."""

    def score(fitted: AffineMap) -> Any:
        return {name: metric(fitted, data) for name, metric in metrics}

    # One after the other: the mapped rows of all of them may not fit in memory.
    return jax.lax.map(score, stacked(maps))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _by_masks(lines, metrics, axes, batch_size, counts, x, y, orders, eval_data):
    seeds, rows = orders.shape
    position = jnp.arange(rows, dtype=jnp.int32)

    def one_cell(cell):
        seed, n = cell
        order, data = orders[seed], _of_seed(axes, eval_data, seed)
        source, target, weights = x[order], y[order], position < n
        wrong = target[jnp.where(position > 0, position - 1, n - 1)]
        maps = [
            fitter(source, wrong if roll else target, weights)
            for fitter, roll in _fitters(lines, x.shape[1], y.shape[1])
        ]
        return _scores(metrics, tuple(maps), data)

    cells = (jnp.repeat(jnp.arange(seeds), len(counts)), jnp.tile(counts, seeds))
    chunk = None if batch_size == 1 else min(batch_size, seeds * len(counts))
    values = jax.lax.map(one_cell, cells, batch_size=chunk)
    shape = seeds, len(counts)
    return jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(*shape, *leaf.shape[1:]), (0, 1), (2, 1)), values
    )
