"""Anchor sweeps for one pair of encoders: every method at every anchor count and seed, compiled.

Sweeps over many pairs, which share work between them, are in `many_pairs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..maps.affine_map import AffineMap
from ..maps.fit import fit_anchors
from ..maps.options import check_method, check_options
from .anchors import anchor_order, check_counts

#: How a sweep gives a fit its anchors, see `anchor_sweep`.
Route: TypeAlias = Literal["auto", "masks", "prefixes"]
ROUTES: tuple[Route, ...] = ("auto", "masks", "prefixes")

#: On a CPU, masks are taken up to this product of seeds, rows and both dimensions. Each count that
#: prefixes compile takes 0.6 s a method; a masked fit of 1,000 rows and 384 dimensions takes 20 to
#: 100 ms more than one of few rows: 10 counts of four maps and one seed take 5 s instead of 27 the
#: first time, but five seeds of seven counts and six maps twice as long as by prefixes.
MASKED_WORK = 4 * 10**8


@dataclass(frozen=True, init=False)
class SweepMethod:
    """One line of a sweep: a map with options, or a control.

    Attributes:
        method: "affine", "linear", "l-ortho" or "ortho".
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
            **options: keyword options of that fit; hashable values, no `weights`.

        Raises:
            ValueError: for an unknown method or an option it does not have.
        """
        check_method(method, options)
        for name in ("weights", "validate", "key"):
            if name in options:
                raise ValueError(f"{name} cannot be an option of a SweepMethod")
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        object.__setattr__(self, "shuffled", checks.flag("shuffled", shuffled))

    def fit(self, x: Array, y: Array, weights: Array | None = None) -> AffineMap:
        """The map of this line, fitted to checked anchors; traceable."""
        options, values = check_options(self.method, (x.shape[1], y.shape[1]), **dict(self.options))
        return fit_anchors(options, x, y, weights, values)[0]


#: Fits a map to anchors: `(x [n, d_in], y [n, d_out]) -> AffineMap`.
Fitter: TypeAlias = Callable[[Array, Array], AffineMap]
#: Scores a map on evaluation data: `(map, eval_data) -> scalar`, or any pytree of arrays.
Metric: TypeAlias = Callable[[AffineMap, Any], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SweepResult:
    """Scores of a sweep.

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


def anchor_sweep(
    x: ArrayLike,
    y: ArrayLike,
    counts: Sequence[int] | Array,
    keys: Array | None = None,
    *,
    metrics: Mapping[str, Metric],
    eval_data: Any = None,
    methods: Sequence[Method] | Mapping[str, str | SweepMethod | Fitter] = METHODS,
    orders: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    eval_in_axes: Any = None,
    batch_size: int | None = None,
    route: Route = "auto",
) -> SweepResult:
    """Fit every method on nested anchor sets of every size and seed, and score the maps.

    One compiled function for all counts and seeds; it compiles once per combination of shapes,
    methods, metrics (and counts, if the route is "prefixes"). The callables are part of that key,
    so define them once, outside of loops. The same keys give the same result. Anchors are the
    first rows of a random order, so a smaller set is part of every larger one.

    Two routes give equal results up to rounding:

    - "prefixes": the fit of n anchors sees n rows. One fit is compiled a count, and few anchors
      cost little.
    - "masks": every fit sees as many rows as the largest count, with weight zero for those that
      are no anchors, and is vmapped over counts and seeds. One fit is compiled, whatever the number
      of counts, which may be a traced array.

    Args:
        x: source embeddings that anchors are drawn from [n, d_in].
        y: target embeddings [n, d_out], matched by row.
        counts: anchor counts, ints in [1, n]; a traced array of integers [counts] if the route
            is "masks".
        keys: PRNG keys [seeds], e.g. `jax.random.split(jax.random.key(0), 5)`.
        metrics: name -> function `(map, eval_data) -> scalar`; must be traceable. It may return
            a pytree of arrays too: `lambda fitted, _: fitted` gives the maps themselves.
        eval_data: any pytree of arrays, handed to the metrics.
        methods: names of maps, or label -> name, `SweepMethod` (a map with options) or function
            `(x, y) -> AffineMap` (with "prefixes" alone).
        orders: instead of `keys`: integer [seeds, m] row orders, m >= max(counts), whose prefixes
            are the anchors.
        labels: integer classes [n] to stratify the random anchors by.
        eval_in_axes: as `in_axes` of `jax.vmap`: which leaves of `eval_data` have a leading
            seeds axis; None means that all seeds share it.
        batch_size: how many fits of a method run at once (vmapped; with "prefixes" of one count
            and several seeds); bounds the memory. None means 1 on a CPU, where more brings
            nothing, and 8 elsewhere.
        route: "auto" takes "masks" on accelerators, for traced counts, and on CPUs for sweeps so
            small that compilation would take longer than the fits (seeds x largest count x d_in x
            d_out up to 4e8); else, and for methods that are functions, "prefixes".

    Returns:
        `SweepResult` with arrays [methods, counts, seeds].

    Raises:
        TypeError: for non-floating embeddings, counts that are not ints, or keys that are none.
        ValueError: for shapes that do not match, unknown methods, counts beyond n, a single key,
            or if not exactly one of `keys` and `orders` is given.
    """
    x, y = checks.pair(x, y)
    if not metrics:
        raise ValueError("metrics is empty: give at least one, name -> function(map, eval_data)")
    lines = checked_lines(methods)
    checks.option("route", route, ROUTES)
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else 8
    batch_size = checks.positive_int("batch_size", batch_size)
    checked, orders = _counts_and_orders(counts, x.shape[0], keys, orders, labels)
    work = orders.size * x.shape[1] * y.shape[1]
    route = _chosen_route(route, isinstance(checked, tuple), lines, work)
    scored = tuple(metrics.items())
    axes = _freeze_axes(eval_in_axes, eval_data)
    if route == "prefixes":
        assert isinstance(checked, tuple)
        values = _by_prefixes(lines, scored, axes, batch_size, checked, x, y, orders, eval_data)
    else:
        sizes = jnp.asarray(checked, jnp.int32)
        values = _by_masks(lines, scored, axes, batch_size, sizes, x, y, orders, eval_data)
    return SweepResult(values, checked, tuple(label for label, _ in lines))


# --- checks ------------------------------------------------------------------------------------


def checked_lines(
    methods: Sequence[Method] | Mapping[str, str | SweepMethod | Fitter],
) -> tuple[tuple[str, SweepMethod | Fitter], ...]:
    """The lines of a sweep with their labels."""
    if not isinstance(methods, Mapping):
        methods = {name: name for name in methods}
    if not methods:
        raise ValueError("methods is empty: give at least one")
    return tuple((label, _line(label, method)) for label, method in methods.items())


def _line(label: str, method: Any) -> SweepMethod | Fitter:
    if isinstance(method, SweepMethod):
        return method
    if callable(method):
        return cast(Fitter, method)
    checks.option(f"methods[{label!r}]", method, METHODS)
    return SweepMethod(method)


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
    counts: Sequence[int],
    rows: int,
    keys: Array | None,
    orders: ArrayLike | None,
    labels: ArrayLike | None,
) -> tuple[tuple[int, ...], Array]:
    """The anchor counts, and for each seed the order whose prefixes are the anchors."""
    checked, orders = _counts_and_orders(counts, rows, keys, orders, labels)
    if not isinstance(checked, tuple):
        raise ValueError("counts is traced: call this outside of jax.jit, or use anchor_sweep")
    return checked, orders


def _counts_and_orders(
    counts: Sequence[int] | Array,
    rows: int,
    keys: Array | None,
    orders: ArrayLike | None,
    labels: ArrayLike | None,
) -> tuple[tuple[int, ...] | Array, Array]:
    """As `checked_orders`; the counts may be traced."""
    if (keys is None) == (orders is None):
        raise ValueError("give exactly one of keys (random anchors) and orders (your own)")
    if orders is not None:
        orders = jnp.asarray(orders)
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
        checked = check_counts(cast(Sequence[int], counts), most)
        most = max(checked)
    else:
        checked = cast(Array, counts)
        if checked.ndim != 1 or not jnp.issubdtype(checked.dtype, jnp.integer):
            raise TypeError(
                f"counts must be integers [counts]; got {checked.dtype} {checked.shape}"
            )
    if orders is None:
        keys = checks.prng_key("keys", keys, ndim=1)
        orders = _orders(rows, most, keys, labels)
    return checked, orders[:, :most]


def _orders(rows: int, size: int, keys: Array, labels: ArrayLike | None) -> Array:
    return jax.vmap(partial(anchor_order, n=rows, size=size, labels=labels))(keys)


def _freeze_axes(axes: Any, data: Any) -> tuple[int | None, ...]:
    """One entry (0 or None) per leaf of `data`, hashable."""
    flat: list[int | None] = []

    def spread(axis: Any, part: Any) -> None:
        if axis is not None and axis != 0:
            raise ValueError(f"eval_in_axes: entries must be 0 or None; got {axis!r}")
        flat.extend([axis] * len(jax.tree.leaves(part)))

    try:
        jax.tree.map(spread, axes, data, is_leaf=lambda a: a is None)
    except TypeError as error:
        raise ValueError(f"eval_in_axes must be a tree prefix of eval_data: {error}") from None
    return tuple(flat)


# --- the two routes ----------------------------------------------------------------------------


def _own_data(axes: tuple[int | None, ...], data: Any) -> tuple[list[Array], Callable[[Any], Any]]:
    """The leaves of `data` with a seeds axis, and what puts those of one seed in their place."""
    leaves, structure = jax.tree.flatten(data)

    def of_seed(own: list[Array]) -> Any:
        rest = iter(own)
        return structure.unflatten(
            next(rest) if axis == 0 else leaf for leaf, axis in zip(leaves, axes, strict=True)
        )

    return [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0], of_seed


def _scores(metrics: tuple[tuple[str, Metric], ...], maps: Sequence[AffineMap], data: Any) -> Any:
    """Scores of every map, stacked [methods]."""
    found = [{name: metric(fitted, data) for name, metric in metrics} for fitted in maps]
    return _stacked(found, 0)


def _stacked(trees: Sequence[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _by_prefixes(lines, metrics, axes, batch_size, counts, x, y, orders, eval_data):
    own, of_seed = _own_data(axes, eval_data)

    def one_seed(order_and_own):
        order, own = order_and_own
        data, cells = of_seed(own), []
        for n in counts:
            source, target = x[order[:n]], y[order[:n]]
            maps = []
            for _, line in lines:
                if not isinstance(line, SweepMethod):
                    maps.append(line(source, target))
                elif line.shuffled:
                    maps.append(line.fit(source, jnp.roll(target, 1, axis=0)))
                else:
                    maps.append(line.fit(source, target))
            cells.append(_scores(metrics, maps, data))
        return _stacked(cells, 1)

    # A batch of one would still be vmapped.
    chunk = None if batch_size == 1 else min(batch_size, len(orders))
    values = jax.lax.map(one_seed, (orders, own), batch_size=chunk)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), values)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _by_masks(lines, metrics, axes, batch_size, counts, x, y, orders, eval_data):
    own, of_seed = _own_data(axes, eval_data)
    seeds, rows = orders.shape
    position = jnp.arange(rows, dtype=jnp.int32)

    def one_cell(cell):
        seed, n = cell
        order, data = orders[seed], of_seed([leaf[seed] for leaf in own])
        source, target, weights = x[order], y[order], position < n
        wrong = target[jnp.where(position > 0, position - 1, n - 1)]
        maps = [line.fit(source, wrong if line.shuffled else target, weights) for _, line in lines]
        return _scores(metrics, maps, data)

    cells = (jnp.repeat(jnp.arange(seeds), len(counts)), jnp.tile(counts, seeds))
    chunk = None if batch_size == 1 else min(batch_size, seeds * len(counts))
    values = jax.lax.map(one_cell, cells, batch_size=chunk)
    shape = seeds, len(counts)
    return jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(*shape, *leaf.shape[1:]), (0, 1), (2, 1)), values
    )
