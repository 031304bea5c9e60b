"""A two-tower model of the demo's emoji and their names, trained when the demo runs.

The registries of packages hold no CLIP, so the demo has one of its own: a projection of each frozen
encoder, trained together on all pairs that anchors are drawn from. It is what multimodal models are
among the lines of a study, a reference that has seen many more pairs than the maps.
"""

from typing import cast

import jax
import jax.numpy as jnp
import optax

from .._core.typing import Array
from ..maps.affine_map import AffineMap
from ..metrics import normalize_rows

#: The steps and the temperature are the best on the validation rows of the demo, of four and three.
DIMENSION, STEPS, LEARNING_RATE, TEMPERATURE = 64, 30, 3e-3, 0.5


@jax.jit
def train_towers(images: Array, texts: Array) -> tuple[AffineMap, AffineMap]:
    """Projections of both sides to 64 dimensions, by the loss of CLIP (Radford et al. 2021).

    Args:
        images: embeddings of images [n, d_images].
        texts: embeddings of their texts [n, d_texts].
    """
    means = tuple(jnp.mean(side, axis=0) for side in (images, texts))
    sides = images - means[0][None], texts - means[1][None]
    keys = jax.random.split(jax.random.key(0))
    start = tuple(
        jax.random.normal(key, (side.shape[1], DIMENSION), side.dtype) * side.shape[1] ** -0.5
        for key, side in zip(keys, sides, strict=True)
    )
    optimizer = optax.adam(LEARNING_RATE)

    def loss(projections: tuple[Array, Array]) -> Array:
        one, two = (normalize_rows(a @ b) for a, b in zip(sides, projections, strict=True))
        logits = one @ two.T / TEMPERATURE
        own = jnp.arange(len(logits))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(entropy(logits, own)) + jnp.mean(entropy(logits.T, own))

    def step(state, _):
        projections, memory = state
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            updates, memory = optimizer.update(jax.grad(loss)(projections), memory)
        found = cast(tuple[Array, Array], optax.apply_updates(projections, updates))
        return (found, memory), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)
    zero = jnp.zeros(DIMENSION, images.dtype)
    return AffineMap(found[0], means[0], zero), AffineMap(found[1], means[1], zero)
