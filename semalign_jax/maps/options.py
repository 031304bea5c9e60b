"""The options of the fits: what there is, what is allowed together, and how it is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.typing import (
    ALL_METHODS,
    COMPLETIONS,
    NORMALIZE,
    RIDGE_UNITS,
    SOLVERS,
    Array,
    Completion,
    Method,
    Normalize,
    RidgeUnit,
    Solver,
)


class FitOptions(NamedTuple):
    """The options that a compiled fit depends on, besides shapes and dtypes; hashable."""

    method: Method
    normalize: Normalize = "none"
    ridge_unit: RidgeUnit = "absolute"
    scale: bool = False
    rotation_only: bool = False
    completion: Completion = "orthogonal"
    solver: Solver = "auto"
    steps: int = 300
    ridge_by_loo: bool = False
    robust: bool = False
    restore_norm: bool = True

    @property
    def center(self) -> bool:
        """Whether the anchors are centred."""
        return self.method == "affine" or self.normalize != "none"


class FitValues(NamedTuple):
    """The options of a fit that may be traced."""

    ridge: Array | None = None
    rcond: Array | None = None
    learning_rate: Array | None = None
    key: Array | None = None

    def astype(self, dtype) -> FitValues:
        """The numbers in the dtype that the solvers work in."""
        numbers = jax.tree.map(lambda a: a.astype(dtype), self._replace(key=None))
        return numbers._replace(key=self.key)


_COMMON = ("weights", "normalize", "ridge", "ridge_unit", "rcond", "validate")
_ORTHO = (*_COMMON, "scale", "rotation_only", "completion")
#: The keyword options of each method.
OPTIONS: dict[Method, tuple[str, ...]] = {
    "affine": (*_COMMON, "solver", "steps", "learning_rate", "key"),
    "linear": _COMMON,
    "l-ortho": _ORTHO,
    "ortho": _ORTHO,
    "auto": ("weights", "robust", "restore_norm", "validate"),
}


def check_method(method: Any, options: Iterable[str]) -> None:
    """Check the name of a method and that it has all of these options."""
    checks.option("method", method, ALL_METHODS)
    for name in options:
        if name not in OPTIONS[method]:
            raise ValueError(
                f"{name} is not an option of method {method!r}; it takes "
                f"{', '.join(OPTIONS[method])}"
            )


def check_options(
    method: Method,
    dimensions: tuple[int, int],
    *,
    ridge: Any = 0.0,
    rcond: Any = None,
    learning_rate: Any = 1e-3,
    key: Array | None = None,
    **static: Any,
) -> tuple[FitOptions, FitValues]:
    """Check the options of a fit between spaces of these dimensions (d_in, d_out)."""
    options = FitOptions(method, **static)
    checks.option("normalize", options.normalize, NORMALIZE)
    checks.option("ridge_unit", options.ridge_unit, RIDGE_UNITS)
    checks.option("completion", options.completion, COMPLETIONS)
    checks.option("solver", options.solver, SOLVERS)
    flags = ("scale", "rotation_only", "robust", "restore_norm")
    options = options._replace(
        **{name: checks.flag(name, getattr(options, name)) for name in flags},
        steps=checks.positive_int("steps", options.steps),
    )
    d_in, d_out = dimensions
    if options.rotation_only and d_in != d_out:
        raise ValueError(
            f"rotation_only needs equal dimensions: x has {d_in}, y has {d_out}; pad the smaller "
            f"side with zeros, or leave rotation_only=False"
        )
    if options.rotation_only and options.completion == "partial":
        raise ValueError(
            "rotation_only needs completion='orthogonal': a partial isometry is no rotation"
        )
    adam = options.solver == "adam"
    if isinstance(ridge, str):
        if ridge != "loo" or method == "ortho":
            raise ValueError(
                f"ridge must be a number, or 'loo' for affine, linear and l-ortho; got {ridge!r} "
                f"for {method}"
            )
        if adam:
            raise ValueError("ridge is not part of the gradient form; use solver='auto' with it")
        options, ridge = options._replace(ridge_by_loo=True), None
    ridge = _optional("ridge", ridge, zero_is_none=True)
    rcond = _optional("rcond", rcond, zero_is_none=False)
    if not adam:
        return options, FitValues(ridge, rcond)
    if key is None:
        raise ValueError("key is needed with solver='adam', e.g. jax.random.key(0)")
    if ridge is not None or rcond is not None:
        raise ValueError(
            "ridge and rcond are not part of the gradient form; use solver='auto' with them"
        )
    rate = checks.scalar("learning_rate", learning_rate)
    return options, FitValues(learning_rate=rate, key=checks.prng_key("key", key))


def _optional(name: str, value: Any, *, zero_is_none: bool) -> Array | None:
    if value is None or (zero_is_none and isinstance(value, int | float) and value == 0):
        return None
    value = checks.scalar(name, value)
    return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.integer) else value


def check_anchors(x: Any, y: Any, weights: Any, validate: Any) -> tuple[Array, Array, Array | None]:
    """Check anchors and their weights; the values too, if they can be looked at and `validate`."""
    x, y = checks.pair(x, y)
    if weights is not None:
        weights = checks.row_weights(weights, x.shape[0])
    if checks.flag("validate", validate) and checks.is_concrete(x, y, weights):
        active = np.ones(len(x), bool)
        if weights is not None:
            checks.weight_values(weights)
            active = np.asarray(weights) > 0
        checks.finite_rows("x", x, active)
        checks.finite_rows("y", y, active)
    return x, y, weights
