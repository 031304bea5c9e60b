"""Anchor sweeps: every method at every anchor count and seed in one compiled function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp

from .._core import checks
from .._core.linalg import common_dtype, compute_dtype
from .._core.typing import METHODS, Array, ArrayLike, Method
from ..maps.affine_map import AffineMap
from ..maps.fit import Options, Static, check_method, check_options, fit_sides
from ..sweeps._nested import NestedSide
from ..sweeps.anchors import anchor_order, check_counts


@dataclass(frozen=True, init=False)
class SweepMethod:
    """One line of a sweep: a map with options, or a control.

    Several of these share what they have in common at the same anchors (normalisation,
    factorisations), which callables cannot.

    Attributes:
        method: "affine", "linear", "l-ortho" or "ortho".
        options: keyword options of the fit, as sorted pairs.
        shuffled: control: fit to wrong pairs, every anchor of `x` with the partner of the next.
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
            arrays, each of its leaves has these leading axes.
        methods: names along the first axis (static).
        counts: anchor counts along the second axis (static).
    """

    values: dict[str, Any]
    methods: tuple[str, ...] = field(metadata={"static": True})
    counts: tuple[int, ...] = field(metadata={"static": True})


def anchor_sweep(
    x: ArrayLike,
    y: ArrayLike,
    counts: Sequence[int],
    keys: Array | None = None,
    *,
    metrics: Mapping[str, Metric],
    eval_data: Any = None,
    methods: Sequence[Method] | Mapping[str, str | SweepMethod | Fitter] = METHODS,
    orders: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    eval_in_axes: Any = None,
    batch_size: int | None = None,
) -> SweepResult:
    """Fit every method on nested anchor sets of every size and seed, and score the maps.

    One traced function: anchors are prefixes of a random order (so shapes are static and sets
    nested), seeds are vmapped in chunks. It compiles once per combination of shapes, counts,
    methods and metrics; the callables are part of that key, so define them once, outside of
    loops. The same keys give the same result.

    Args:
        x: source embeddings that anchors are drawn from [n, d_in].
        y: target embeddings [n, d_out], matched by row.
        counts: anchor counts, ints in [1, n].
        keys: PRNG keys [seeds], e.g. `jax.random.split(jax.random.key(0), 5)`.
        metrics: name -> function `(map, eval_data) -> scalar`; must be traceable. It may return
            a pytree of arrays too: `lambda fitted, _: fitted` gives the maps themselves.
        eval_data: any pytree of arrays, handed to the metrics.
        methods: names of maps, or label -> name, `SweepMethod` (a map with options) or function
            `(x, y) -> AffineMap`.
        orders: instead of `keys`: integer [seeds, m] row orders, m >= max(counts), whose prefixes
            are the anchors.
        labels: integer classes [n] to stratify the random anchors by.
        eval_in_axes: as `in_axes` of `jax.vmap`: which leaves of `eval_data` have a leading
            seeds axis; None means that all seeds share it.
        batch_size: how many seeds run at once (vmapped); bounds the memory. None means 1 on a
            CPU, where more brings nothing, and 8 elsewhere.

    Returns:
        `SweepResult` with arrays [methods, counts, seeds].

    Raises:
        TypeError: for non-floating embeddings or counts that are not ints.
        ValueError: for shapes that do not match, unknown methods, counts beyond n, or if not
            exactly one of `keys` and `orders` is given.
    """
    x, y = checks.pair(x, y)
    if not metrics:
        raise ValueError("metrics is empty: give at least one, name -> function(map, eval_data)")
    lines = checked_lines(methods)
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else 8
    batch_size = checks.positive_int("batch_size", batch_size)
    checked, orders = checked_orders(counts, x.shape[0], keys, orders, labels)
    values = _sweep(
        lines,
        tuple(metrics.items()),
        checked,
        _freeze_axes(eval_in_axes, eval_data),
        batch_size,
        x,
        y,
        orders,
        eval_data,
    )
    return SweepResult(values, tuple(label for label, _ in lines), checked)


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


def checked_orders(
    counts: Sequence[int],
    rows: int,
    keys: Array | None,
    orders: ArrayLike | None,
    labels: ArrayLike | None,
) -> tuple[tuple[int, ...], Array]:
    """The anchor counts, and for each seed the order whose prefixes are the anchors."""
    if (keys is None) == (orders is None):
        raise ValueError("give exactly one of keys (random anchors) and orders (your own)")
    if keys is not None:
        checked = check_counts(counts, rows)
        draw = partial(anchor_order, n=rows, size=max(checked), labels=labels)
        return checked, jax.vmap(draw)(keys)
    orders = jnp.asarray(orders)
    if orders.ndim != 2 or not jnp.issubdtype(orders.dtype, jnp.integer):
        raise ValueError(f"orders must be integers [seeds, m]; got {orders.dtype} {orders.shape}")
    checked = check_counts(counts, orders.shape[1])
    return checked, orders[:, : max(checked)]


def _freeze_axes(axes: Any, data: Any) -> tuple[int | None, ...]:
    """One entry (0 or None) per leaf of `data`, hashable."""
    flat: list[int | None] = []

    def spread(axis: Any, part: Any) -> None:
        if axis is not None and axis != 0:
            raise ValueError(f"eval_in_axes: entries must be 0 or None; got {axis!r}")
        flat.extend([axis] * len(jax.tree_util.tree_leaves(part)))

    try:
        jax.tree_util.tree_map(spread, axes, data, is_leaf=lambda a: a is None)
    except TypeError as error:
        raise ValueError(f"eval_in_axes must be a tree prefix of eval_data: {error}") from None
    return tuple(flat)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sweep(
    methods: tuple[tuple[str, SweepMethod | Fitter], ...],
    metrics: tuple[tuple[str, Metric], ...],
    counts: tuple[int, ...],
    axes: tuple[int | None, ...],
    batch_size: int,
    x: Array,
    y: Array,
    orders: Array,
    eval_data: Any,
) -> dict[str, Any]:
    leaves, structure = jax.tree_util.tree_flatten(eval_data)
    own = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

    def one_seed(order_and_own):
        order, own = order_and_own
        own = iter(own)
        data = structure.unflatten(
            next(own) if axis == 0 else leaf for leaf, axis in zip(leaves, axes, strict=True)
        )
        cells = []
        dtype = common_dtype(x.dtype, y.dtype)
        work = compute_dtype(dtype)
        source, target = (NestedSide(a[order], counts, work) for a in (x, y))
        for n in counts:
            maps = _fit_all([method for _, method in methods], source, target, n, dtype)
            cells.append(
                {name: _stack([metric(m, data) for m in maps], 0) for name, metric in metrics}
            )
        return _stack(cells, 1)

    seeds = orders.shape[0]
    # A batch of one would still be vmapped, which turns conditionals into doing both branches.
    chunk = None if batch_size == 1 else min(batch_size, seeds)
    values = jax.lax.map(one_seed, (orders, own), batch_size=chunk)
    return jax.tree_util.tree_map(lambda leaf: jnp.moveaxis(leaf, 0, 2), values)


def _stack(trees: Sequence[Any], axis: int) -> Any:
    # The kinds of maps are static and differ between methods: stack leaves, keep the first kind.
    leaves = [jax.tree_util.tree_leaves(tree) for tree in trees]
    structure = jax.tree_util.tree_structure(trees[0])
    return structure.unflatten(jnp.stack(parts, axis) for parts in zip(*leaves, strict=True))


def _fit_all(
    methods: Sequence[SweepMethod | Fitter], xs: NestedSide, ys: NestedSide, n: int, dtype: Any
) -> list[AffineMap]:
    """Fit every method to the first n anchors, with the common parts traced once."""
    source, target = xs.prefix(n), ys.prefix(n)
    wrong = NestedSide(jnp.roll(target.data, 1, axis=0), (n,), target.data.dtype).prefix(n)
    checked: dict[Any, tuple[Static, Options]] = {}
    maps = []
    for method in methods:
        if not isinstance(method, SweepMethod):
            maps.append(method(source.data.astype(dtype), target.data.astype(dtype)))
            continue
        # Equal options give the same arrays, by which shared factors are found.
        key = (method.method, method.options)
        if key not in checked:
            shapes = (source.data.shape, target.data.shape)
            checked[key] = check_options(method.method, shapes, **dict(method.options))
        side = wrong if method.shuffled else target
        maps.append(fit_sides(checked[key][0], source, side, checked[key][1], dtype)[0])
    return maps
