"""Swin transformer V2: cosine attention, continuous position bias, norms behind each part.

Liu et al. 2021, arXiv 2111.09883. Windows and shifts are those of ``image_size``, as in the
reference, whatever the size of the images.
"""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._layers import Array, LayerNorm, Mlp, attention, unit_length
from .._weights import Rule, linear
from . import swin
from .swin import (
    COMMON_RULES,
    IGNORED,
    PATCH_EPS,
    SWIN,
    Swin,
    SwinConfig,
    four_to_one,
    in_windows,
    relative_positions,
)

#: Width inside the network of the position bias.
BIAS_WIDTH = 512


@dataclass(frozen=True, kw_only=True)
class SwinV2Config(SwinConfig):
    """And the sizes of the windows, per stage, that the position bias was trained for; 0: these."""

    pretrained_window_sizes: tuple[int, ...]


def parse(reader: ConfigReader, tensors: frozenset[str]) -> SwinV2Config:
    """Read the configuration."""
    # The reference fails with them: its table has one position too many.
    reader.only("use_absolute_embeddings", False)
    config = swin.parse(reader, tensors, SwinV2Config, pretrained_window_sizes=())
    sizes = reader.sizes("pretrained_window_sizes", (0,) * len(config.depths))
    if len(sizes) < len(config.depths):
        reader.problem("pretrained_window_sizes must have one value a stage, as depths has")
    return replace(config, pretrained_window_sizes=sizes)


def log_places(window: int, pretrained: int) -> np.ndarray:
    """Offsets between places of a window, ``[(2 window - 1)**2, 2]``, on a logarithmic scale."""
    offset = np.arange(1 - window, window) / max((pretrained or window) - 1, 1) * 8
    offset = np.sign(offset) * np.log2(np.abs(offset) + 1) / 3
    return np.stack(np.meshgrid(offset, offset, indexing="ij"), -1).reshape(-1, 2)


class CosineAttention(nn.Module):
    """Attention by the cosine of queries and keys, with a learned scale of each head.

    Attributes:
        heads: number of heads.
        bias: whether queries and values have a bias.
        window: size of the windows.
        pretrained: that for which the position bias was trained; 0: the same.
    """

    heads: int
    bias: bool
    window: int
    pretrained: int

    @nn.compact
    def __call__(self, x: Array, apart: Array | None) -> Array:
        """Attend within windows ``[windows, tokens, width]``; `apart` is added to the logits."""
        width = x.shape[-1]
        zeros = nn.initializers.zeros
        q, k, v = (
            nn.Dense(width, use_bias=use_bias, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name, use_bias in (("query", self.bias), ("key", False), ("value", self.bias))
        )
        q, k = unit_length(q), unit_length(k)
        scale = self.param("logit_scale", zeros, (self.heads,), jnp.float32)
        scale = jnp.exp(jnp.minimum(scale, jnp.asarray(np.log(100), scale.dtype)))
        q = q * scale.reshape(1, 1, -1, 1)
        places = jnp.asarray(log_places(self.window, self.pretrained), x.dtype)
        table = nn.relu(nn.Dense(BIAS_WIDTH, name="bias_up")(places))
        table = nn.Dense(self.heads, use_bias=False, name="bias_down")(table)
        bias = 16 * nn.sigmoid(table[relative_positions(self.window)].transpose(2, 0, 1)[None])
        # The reference adds it twice.
        bias = bias if apart is None else bias + 2 * apart
        x = attention(q, k, v, bias=bias, scale=1.0).reshape(x.shape)
        return nn.Dense(width, name="out")(x)


class SwinV2Layer(nn.Module):
    """Attention within windows, which every second layer shifts by half a window, and an MLP."""

    config: SwinV2Config
    stage: int
    index: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to ``[batch, rows, columns, width]``."""
        c, stage = self.config, self.stage
        rows = c.image_size[0] // c.patch_size[0] // 2**stage
        window = min(rows, c.window_size)
        shift = window // 2 if self.index % 2 and rows > window else 0
        attend = CosineAttention(
            c.num_heads[stage],
            c.qkv_bias,
            window,
            c.pretrained_window_sizes[stage],
            name="attention",
        )
        y = in_windows(x, window, shift, attend)
        x = x + LayerNorm(c.layer_norm_eps, name="attention_norm")(y)
        y = Mlp(int(c.mlp_ratio * x.shape[-1]), c.hidden_act, name="mlp")(x)
        return x + LayerNorm(c.layer_norm_eps, name="mlp_norm")(y)


class PatchMergingV2(nn.Module):
    """Four neighbouring patches become one of twice the width, which is normalised."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to ``[batch, rows, columns, width]``."""
        x = four_to_one(x)
        x = nn.Dense(x.shape[-1] // 2, use_bias=False, name="reduction")(x)
        return LayerNorm(PATCH_EPS, name="norm")(x)


_SOURCE = "encoder.layers.*.blocks.*.attention.self"
_TARGET = "stage_*_layer_*/attention"
SWIN_V2 = replace(
    SWIN,
    name="swinv2",
    parse=parse,
    build=lambda config: Swin(config, SwinV2Layer, PatchMergingV2),
    rules=(
        *COMMON_RULES,
        Rule(f"{_SOURCE}.logit_scale", f"{_TARGET}/logit_scale", np.ravel),
        *linear(f"{_SOURCE}.continuous_position_bias_mlp.0", f"{_TARGET}/bias_up"),
        *linear(f"{_SOURCE}.continuous_position_bias_mlp.2", f"{_TARGET}/bias_down"),
    ),
    prefixes=("swinv2.",),
    ignored=(*IGNORED, "*.relative_coords_table"),
)
FAMILIES = {"swinv2": SWIN_V2}
