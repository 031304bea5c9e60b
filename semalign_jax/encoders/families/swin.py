"""Swin transformer: attention within shifted windows. Liu et al. 2021, arXiv 2103.14030.

Hidden states are the patches and the output of each stage, after its merging of patches; their
number of tokens shrinks from stage to stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import (
    Activation,
    Array,
    LayerNorm,
    Mlp,
    Outputs,
    PatchEmbedding,
    SelfAttention,
    resize_positions,
)
from .._maps import flatten_map, global_average
from .._weights import Rule, linear, norm, patch_embedding

#: Of the norms of patches and of merged patches; ``layer_norm_eps`` is of the others.
PATCH_EPS = 1e-5
#: Added to the logits between parts of a shifted window that are no neighbours.
APART = -100.0


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Sizes and options, named as in ``config.json``."""

    num_channels: int = 3
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (4, 4)
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_act: Activation = "gelu"
    use_absolute_embeddings: bool = False
    layer_norm_eps: float = 1e-5


_Config = TypeVar("_Config", bound=SwinConfig)


def parse(
    reader: ConfigReader,
    tensors: frozenset[str],
    config: type[_Config] = SwinConfig,
    **own: Any,
) -> _Config:
    """Read the configuration of any version; `own` as in `ConfigReader.read`."""
    # The width and the number of stages follow from embed_dim and depths; path_norm is of the
    # first files and has no effect.
    reader.neutral("hidden_size", "num_layers", "path_norm", "encoder_stride")
    found = reader.read(config, **own)
    if len(found.num_heads) != len(found.depths):
        reader.problem("num_heads and depths must have one value a stage")
    return found


def relative_positions(window: int) -> np.ndarray:
    """Row of the bias table for each pair of places in a window, ``[window**2, window**2]``."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"))
    rows, columns = places.reshape(2, -1, 1) - places.reshape(2, 1, -1) + window - 1
    return rows * (2 * window - 1) + columns


def to_windows(x: Array, window: int) -> Array:
    """``[batch, rows, columns, width]`` to ``[batch * windows, window**2, width]``."""
    b, rows, columns, width = x.shape
    x = x.reshape(b, rows // window, window, columns // window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, width)


def from_windows(x: Array, window: int, rows: int, columns: int) -> Array:
    """Undo `to_windows`."""
    x = x.reshape(-1, rows // window, columns // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, x.shape[-1])


def shifted_mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """Added to the logits of each window of a shifted map, ``[windows, window**2, window**2]``.

    A shift moves the first rows and columns behind the last; windows there hold up to four parts
    that are not next to each other.
    """
    part_of_row, part_of_column = (
        (np.arange(n) >= n - window).astype(int) + (np.arange(n) >= n - shift)
        for n in (rows, columns)
    )
    parts = 3 * part_of_row[:, None] + part_of_column
    parts = parts.reshape(rows // window, window, columns // window, window)
    parts = parts.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(parts[:, :, None] == parts[:, None, :], 0.0, APART).astype(np.float32)


def in_windows(
    x: Array, window: int, shift: int, attend: Callable[[Array, Array | None], Array]
) -> Array:
    """Apply attention to windows of a map ``[batch, rows, columns, width]``.

    Args:
        x: the map, padded with zeros to whole windows.
        window: their size.
        shift: by how much they are shifted.
        attend: from tokens ``[batch * windows, window**2, width]`` and, of shifted windows, what is
            added to the logits, ``[batch * windows, 1, window**2, window**2]``.
    """
    batch, rows, columns, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, -rows % window), (0, -columns % window), (0, 0)))
    padded_rows, padded_columns = x.shape[1:3]
    bias = None
    if shift:
        mask = jnp.asarray(shifted_mask(padded_rows, padded_columns, window, shift), x.dtype)
        bias = jnp.tile(mask[:, None], (batch, 1, 1, 1))
    x = attend(to_windows(jnp.roll(x, (-shift, -shift), (1, 2)), window), bias)
    x = jnp.roll(from_windows(x, window, padded_rows, padded_columns), (shift, shift), (1, 2))
    return x[:, :rows, :columns]


class SwinLayer(nn.Module):
    """Attention within windows, which every second layer shifts by half a window, and an MLP."""

    config: SwinConfig
    stage: int
    index: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to ``[batch, rows, columns, width]``."""
        c, window, heads = self.config, self.config.window_size, self.config.num_heads[self.stage]
        _, rows, columns, width = x.shape
        if min(rows, columns) < window:
            raise ValueError(
                f"pixel_values are too small: a stage has {rows} x {columns} patches, fewer than "
                f"its windows of {window} x {window}; give larger images"
            )
        # A map of one window is not shifted.
        shift = window // 2 if self.index % 2 and min(rows, columns) > window else 0
        shape = ((2 * window - 1) ** 2, heads)
        table = self.param("position_bias", nn.initializers.zeros, shape, jnp.float32)
        places = table[relative_positions(window)].transpose(2, 0, 1)[None]
        projections = (c.qkv_bias, c.qkv_bias, c.qkv_bias, True)
        attention = SelfAttention(heads, projections, name="attention")

        def attend(tokens: Array, apart: Array | None) -> Array:
            return attention(tokens, bias=places if apart is None else places + apart)

        y = LayerNorm(c.layer_norm_eps, name="attention_norm")(x)
        x = x + in_windows(y, window, shift, attend)
        mlp = Mlp(int(c.mlp_ratio * width), c.hidden_act, name="mlp")
        return x + mlp(LayerNorm(c.layer_norm_eps, name="mlp_norm")(x))


def four_to_one(x: Array) -> Array:
    """Join four neighbouring patches, ``[batch, rows / 2, columns / 2, 4 * width]``, padded."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    b, rows, columns, width = x.shape
    x = x.reshape(b, rows // 2, 2, columns // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, rows // 2, columns // 2, 4 * width)


class PatchMerging(nn.Module):
    """Four neighbouring patches become one of twice the width."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to ``[batch, rows, columns, width]``."""
        x = LayerNorm(PATCH_EPS, name="norm")(four_to_one(x))
        return nn.Dense(x.shape[-1] // 2, use_bias=False, name="reduction")(x)


class Swin(nn.Module):
    """Patches, stages of layers with a merging between them, final norm, mean of the tokens.

    Attributes:
        config: sizes and options.
        layer: from the configuration, the stage and the place in it to a layer.
        merging: what joins patches between stages.
    """

    config: SwinConfig
    layer: Callable[..., nn.Module] = SwinLayer
    merging: Callable[..., nn.Module] = PatchMerging

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``, padded with zeros to whole patches."""
        c = self.config
        pixels = batch["pixel_values"]
        right = ((0, -n % p) for n, p in zip(pixels.shape[2:], c.patch_size, strict=True))
        pixels = jnp.pad(pixels, ((0, 0), (0, 0), *right))
        x = PatchEmbedding(c.embed_dim, c.patch_size, name="patches")(pixels)
        x = LayerNorm(PATCH_EPS, name="patches_norm")(x)
        if c.use_absolute_embeddings:
            learned = (c.image_size[0] // c.patch_size[0], c.image_size[1] // c.patch_size[1])
            shape = (1, learned[0] * learned[1], c.embed_dim)
            table = self.param("position_embeddings", nn.initializers.zeros, shape, jnp.float32)
            _, rows, columns, _ = x.shape
            x += resize_positions(table.reshape(*learned, -1), (rows, columns))[None]
        states = [flatten_map(x)]
        for stage, depth in enumerate(c.depths):
            for i in range(depth):
                x = self.layer(c, stage, i, name=f"stage_{stage}_layer_{i}")(x)
            if stage + 1 < len(c.depths):
                x = self.merging(name=f"stage_{stage}_merge")(x)
            states.append(flatten_map(x))
        x = LayerNorm(c.layer_norm_eps, name="norm")(x)
        return Outputs(tuple(states), flatten_map(x), pooled=global_average(x))


_LAYER = "encoder.layers.*.blocks.*"
#: All but those of the position bias.
COMMON_RULES = (
    *patch_embedding("embeddings.patch_embeddings.projection", "patches/projection"),
    *norm("embeddings.norm", "patches_norm"),
    Rule("embeddings.position_embeddings", "position_embeddings"),
    *norm(f"{_LAYER}.layernorm_before", "stage_*_layer_*/attention_norm"),
    *linear(f"{_LAYER}.attention.self.query", "stage_*_layer_*/attention/query"),
    *linear(f"{_LAYER}.attention.self.key", "stage_*_layer_*/attention/key"),
    *linear(f"{_LAYER}.attention.self.value", "stage_*_layer_*/attention/value"),
    *linear(f"{_LAYER}.attention.output.dense", "stage_*_layer_*/attention/out"),
    *norm(f"{_LAYER}.layernorm_after", "stage_*_layer_*/mlp_norm"),
    *linear(f"{_LAYER}.intermediate.dense", "stage_*_layer_*/mlp/up"),
    *linear(f"{_LAYER}.output.dense", "stage_*_layer_*/mlp/down"),
    *norm("encoder.layers.*.downsample.norm", "stage_*_merge/norm"),
    *linear("encoder.layers.*.downsample.reduction", "stage_*_merge/reduction"),
    *norm("layernorm", "norm"),
)
RULES = (
    *COMMON_RULES,
    Rule(f"{_LAYER}.attention.self.relative_position_bias_table", "stage_*_layer_*/position_bias"),
)
IGNORED = ("classifier.*", "decoder.*", "embeddings.mask_token", "*.relative_position_index")

SWIN = Family(
    name="swin",
    parse=parse,
    build=Swin,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("swin.",),
    ignored=IGNORED,
)
FAMILIES = {"swin": SWIN}
