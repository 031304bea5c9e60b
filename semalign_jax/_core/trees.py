"""Pytrees of arrays, each function one compiled program, also where a call is not compiled."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .typing import Array


@partial(jax.jit, static_argnums=1)
def stacked(trees: Sequence[Any], axis: int = 0) -> Any:
    """Trees of one structure as one whose leaves have a new axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


@jax.jit
def entry(tree: Any, at: Array | int | tuple[int, ...]) -> Any:
    """`leaf[at]` of each leaf."""
    return jax.tree.map(lambda leaf: leaf[at], tree)
