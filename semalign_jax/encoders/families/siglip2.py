"""SigLIP 2 with images of any size (NaFlex): Tschannen et al. 2025, arXiv 2502.14786.

An image is resized to as many whole patches as fit in a limit, its proportions kept, and comes as
those patches, padded; the learned positions are resized to the grid of each image.
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._layers import Array, LayerNorm, Outputs, PreNormBlock, padding_mask
from .._towers import AttentionPool, TextTower, TwoTowers, VisionTransformerConfig
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


class NaflexTower(nn.Module):
    """Patches with positions resized to each image's grid, pre-norm layers, attention pooling."""

    config: VisionTransformerConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``, ``pixel_attention_mask`` and ``spatial_shapes``."""
        c = self.config
        pixels = batch["pixel_values"]
        side = c.image_size[0] // c.patch_size[0]
        shape = (side * side, c.width)
        table = self.param("position_embedding", nn.initializers.zeros, shape, jnp.float32)
        x = nn.Dense(c.width, name="patches")(pixels)
        places = table.reshape(side, side, c.width)
        x = x + resized_positions(places, batch["spatial_shapes"], x.shape[1])
        mask = padding_mask(batch["pixel_attention_mask"])
        states = [x]
        for i in range(c.layers):
            block = PreNormBlock(c.heads, c.hidden, c.activation, c.eps, name=f"layer_{i}")
            states.append(block(states[-1], mask))
        last = LayerNorm(c.eps, name="norm")(states[-1])
        pooled = None
        if c.pooling is not None:
            pool = AttentionPool(c.heads, c.hidden, c.activation, c.eps, name="pool")
            pooled = pool(last, mask)
        return Outputs(tuple(states), last, pooled=pooled, projected=pooled)


def patches(config: VisionTransformerConfig) -> tuple[int, int]:
    """Number of patches of the learned grid and of values of each."""
    count = (
        config.image_size[0] * config.image_size[1] // (config.patch_size[0] * config.patch_size[1])
    )
    return count, config.num_channels * config.patch_size[0] * config.patch_size[1]


VISION_RULES = (*siglip.COMMON_VISION_RULES, *linear("embeddings.patch_embedding", "patches"))

SIGLIP2 = replace(
    siglip.SIGLIP,
    name="siglip2",
    parse=partial(siglip.parse, parse_vision=parse_vision),
    build=lambda config: TwoTowers(
        TextTower(config.text), NaflexTower(config.vision), config.logit_bias
    ),
    rules=siglip.two_tower_rules(VISION_RULES),
    patches=lambda config: patches(config.vision),
)
SIGLIP2_VISION = replace(
    siglip.SIGLIP_VISION,
    name="siglip2_vision",
    parse=parse_vision,
    build=NaflexTower,
    rules=VISION_RULES,
    patches=patches,
)
FAMILIES = {
    "siglip2": SIGLIP2,
    "siglip2_text_model": replace(siglip.SIGLIP_TEXT, name="siglip2_text"),
    "siglip2_vision_model": SIGLIP2_VISION,
}
