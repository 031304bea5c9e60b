"""Pytrees of arrays: equality by value; entries and stacks, each by one compiled program."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .typing import Array

_T = TypeVar("_T")


def by_value(cls: type[_T]) -> type[_T]:
    """Let named tuples and dataclasses of arrays be equal if shapes, dtypes and values are.

    Their own `==` asks for the truth value of an array, which is an error. As arrays they have no
    hash, and NaN is not equal to NaN.
    """
    names = getattr(cls, "_fields", None) or [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def __eq__(self: Any, other: Any) -> bool:
        """Whether the other is of this class, with equal shapes, dtypes and values."""
        if type(other) is not type(self):
            return NotImplemented
        sides = ([getattr(one, name) for name in names] for one in (self, other))
        (ours, structure), (theirs, of_theirs) = map(jax.tree.flatten, sides)
        return structure == of_theirs and all(map(_equal, ours, theirs))

    def __ne__(self: Any, other: Any) -> bool:
        """The opposite of `==`."""
        return not self == other

    methods = {"__eq__": __eq__, "__ne__": __ne__, "__hash__": None}
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if not checks.is_concrete(a, b):
        return bool(jnp.array_equal(a, b))  # JAX says how values can be compared under jit
    if not isinstance(a, np.ndarray | jax.Array) or not isinstance(b, np.ndarray | jax.Array):
        return bool(a == b)
    return a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))


@partial(jax.jit, static_argnums=1)
def stacked(trees: Sequence[Any], axis: int = 0) -> Any:
    """Trees of one structure as one whose leaves have a new axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


@jax.jit
def entry(tree: Any, at: Array | int | tuple[int, ...]) -> Any:
    """`leaf[at]` of each leaf."""
    return jax.tree.map(lambda leaf: leaf[at], tree)
