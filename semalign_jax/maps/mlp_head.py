"""`MlpHead`: an affine map, an activation and another affine map; and what any head has.

It is trained in `stitching`; sweeps read spaces by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from .._core.typing import Array, ArrayLike
from .affine_map import AffineMap, apply_in_batches

#: What an MLP applies between its two layers.
Activation: TypeAlias = Literal["relu", "tanh", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MlpHead:
    """A head with one hidden layer, `output(activation(hidden(x)))`; a frozen pytree.

    Leading batch axes of both maps stand for many heads at once. `mapping >> head` folds an
    `AffineMap` into the hidden layer.

    Attributes:
        hidden: map [..., d, units].
        output: map [..., units, classes].
        activation: "relu", "tanh" or "gelu" (static).
    """

    hidden: AffineMap
    output: AffineMap
    activation: Activation = field(default="gelu", metadata={"static": True})

    @property
    def d_in(self) -> int:
        """Dimension of the embeddings."""
        return self.hidden.d_in

    @property
    def d_out(self) -> int:
        """Number of classes or labels."""
        return self.output.d_out

    def apply(self, x: ArrayLike, *, batch_size: int | None = None) -> Array:
        """Logits [..., n, classes] of embeddings `x` [..., n, d], or of one, [d].

        `batch_size` bounds the memory, as in `AffineMap.apply`.
        """
        if batch_size is not None:
            return apply_in_batches(self, x, batch_size)
        return self.after_hidden(self.hidden(x))

    __call__ = apply

    def after_hidden(self, values: ArrayLike) -> Array:
        """Logits from the values of the hidden layer before the activation [..., n, units]."""
        return self.output(ACTIVATIONS[self.activation](jnp.asarray(values)))

    def __rrshift__(self, mapping: AffineMap) -> MlpHead:
        """`mapping >> self`: apply the map, then this head."""
        if not isinstance(mapping, AffineMap):
            return NotImplemented
        return MlpHead(mapping.then(self.hidden), self.output, self.activation)


#: What reads a space: an affine map, e.g. of `fit_head`, or an MLP.
Head: TypeAlias = AffineMap | MlpHead


def first_layer(head: Head) -> AffineMap:
    """The affine map that a head begins with: all of it, or the hidden layer of an MLP."""
    return head.hidden if isinstance(head, MlpHead) else head


def after_first_layer(head: Head, values: Array) -> Array:
    """Logits from what `first_layer` gives."""
    return head.after_hidden(values) if isinstance(head, MlpHead) else values
