"""SigLIP 2 with images of any size (NaFlex): Tschannen et al. 2025, arXiv 2502.14786.

An image is resized to as many whole patches as fit in a limit, its proportions kept, and comes as
those patches, padded; the learned positions are resized to the grid of each image.
"""

import math
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._layers import Array
from .._towers import TextTower, TwoTowers, VisionTransformer, VisionTransformerConfig
from .._weights import linear
from . import siglip


def parse_vision(reader: ConfigReader, tensors: frozenset[str]) -> VisionTransformerConfig:
    """Read the configuration of a vision tower."""
    patches = reader.get("num_patches", 256)
    side = int(max(patches, 0) ** 0.5)
    if side < 1 or side * side != patches:
        reader.problem(f"num_patches must be a square number; it is {patches}")
    config = siglip.parse_vision(reader, tensors)
    return replace(config, image_size=(side * config.patch_size[0], side * config.patch_size[1]))


def resized_positions(table: Array, shapes: Array, count: int) -> Array:
    """Interpolate learned positions to the grid of each image, ``[batch, count, width]``.

    Bilinear with antialiasing, as PyTorch's ``interpolate(antialias=True)``; in float32.

    Args:
        table: ``[rows, rows, width]``.
        shapes: rows and columns of each image, ``[batch, 2]``.
        count: patches of an image, padding included, which gets the position of the first patch.
    """
    size = table.shape[0]
    rows, columns = shapes[:, :1], shapes[:, 1:]
    place = jnp.arange(count, dtype=shapes.dtype)[None]
    place = jnp.where(place < rows * columns, place, 0)

    def weights(index: Array, sizes: Array) -> Array:
        scale = (size / sizes.astype(jnp.float32))[..., None]
        centre = (index.astype(jnp.float32)[..., None] + 0.5) * scale - 0.5
        distance = jnp.abs(jnp.arange(size, dtype=jnp.float32)[None, None] - centre)
        near = jnp.maximum(1 - distance / jnp.maximum(scale, 1), 0)
        return near / jnp.sum(near, axis=-1, keepdims=True)

    down, across = weights(place // columns, rows), weights(place % columns, columns)
    both = (down[..., :, None] * across[..., None, :]).reshape(*down.shape[:2], size * size)
    resized = both @ table.reshape(size * size, -1).astype(jnp.float32)
    return resized.astype(table.dtype)


class Naflex(VisionTransformer):
    """A vision transformer of padded patches, with positions resized to each image's grid."""

    def embed(self, batch: dict[str, Array]) -> Array:
        """Return the patches, of ``pixel_values`` and ``spatial_shapes``."""
        c = self.config
        shape = (math.prod(c.grid), c.width)
        table = self.param("position_embedding", nn.initializers.zeros, shape, jnp.float32)
        x = nn.Dense(c.width, name="patches")(batch["pixel_values"])
        places = table.reshape(*c.grid, c.width)
        return x + resized_positions(places, batch["spatial_shapes"], x.shape[1])


def patches(config: VisionTransformerConfig) -> tuple[int, int]:
    """Number of patches of the learned grid and of values of each."""
    return math.prod(config.grid), config.num_channels * math.prod(config.patch_size)


VISION_RULES = (*siglip.COMMON_VISION_RULES, *linear("embeddings.patch_embedding", "patches"))

SIGLIP2 = replace(
    siglip.SIGLIP,
    name="siglip2",
    parse=partial(siglip.parse, parse_vision=parse_vision),
    build=lambda config: TwoTowers(
        TextTower(config.text), Naflex(config.vision), config.logit_bias
    ),
    rules=siglip.two_tower_rules(VISION_RULES),
    patches=lambda config: patches(config.vision),
)
SIGLIP2_VISION = replace(
    siglip.SIGLIP_VISION,
    name="siglip2_vision",
    parse=parse_vision,
    build=Naflex,
    rules=VISION_RULES,
    patches=patches,
)
FAMILIES = {
    "siglip2": SIGLIP2,
    "siglip2_text_model": replace(siglip.SIGLIP_TEXT, name="siglip2_text"),
    "siglip2_vision_model": SIGLIP2_VISION,
}
