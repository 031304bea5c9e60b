"""DINOv2, also with register tokens; RAD-DINO, which is a DINOv2 of chest radiographs.

Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv 2309.16588; Pérez-García et al. 2024,
arXiv 2401.10815.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    Activation,
    Array,
    LayerNorm,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    behind_tokens,
    layers,
    resize_positions,
    resize_smoothly,
    with_positions,
)
from .._weights import Rule, linear, norm, packed
from . import vit


@dataclass(frozen=True, kw_only=True)
class Dinov2Config:
    """Sizes and options, named as in ``config.json``."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int]
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    num_register_tokens: int | None

    @property
    def intermediate_size(self) -> int:
        """Width inside of the MLP; a gated one has two thirds, in multiples of 8."""
        size = int(self.hidden_size * self.mlp_ratio)
        return (int(size * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else size


def parse(reader: ConfigReader, tensors: frozenset[str], *, registers: bool) -> Dinov2Config:
    """Read the configuration, of the model with or without register tokens."""
    reader.neutral("use_mask_token", "layerscale_value")
    if registers:
        reader.only("interpolate_antialias", True)
        reader.only("interpolate_offset", 0.0, None)
    config = reader.read(
        Dinov2Config,
        patch_size=reader.pair("patch_size", 16 if registers else 14),
        num_register_tokens=reader.get("num_register_tokens", 4) if registers else None,
    )
    # A gated MLP has this activation, whatever the file says.
    return replace(config, hidden_act="silu") if config.use_swiglu_ffn else config


class Dinov2(nn.Module):
    """Class token, register tokens and patches; pre-norm layers with layer scale; final norm."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = PatchEmbedding(c.hidden_size, c.patch_size, name="patches")(batch["pixel_values"])
        count, rows, columns, width = x.shape
        x = behind_tokens(self, x, cls_token=1)
        resize = resize_positions if c.num_register_tokens is None else resize_smoothly
        x = with_positions(self, x, 1, c, (rows, columns), resize)
        if c.num_register_tokens is not None:
            shape = (1, c.num_register_tokens, width)
            zeros = nn.initializers.zeros
            registers = self.param("register_tokens", zeros, shape, jnp.float32)
            registers = jnp.broadcast_to(registers, (count, *shape[1:]))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        kind = partial(
            PreNormBlock,
            bias=(c.qkv_bias, c.qkv_bias, c.qkv_bias, True),
            layer_scale=True,
            gated=c.use_swiglu_ffn,
        )
        states = layers(c, x, None, kind)
        last = LayerNorm(c.layer_norm_eps, name="norm")(states[-1])
        prefix = 1 + (c.num_register_tokens or 0)
        return Outputs(tuple(states), last, prefix_tokens=prefix, pooled=last[:, 0])


RULES = (
    *vit.COMMON_RULES,
    Rule("embeddings.register_tokens", "register_tokens"),
    *norm("encoder.layer.*.norm1", "layer_*/attention_norm"),
    *norm("encoder.layer.*.norm2", "layer_*/mlp_norm"),
    Rule("encoder.layer.*.layer_scale1.lambda1", "layer_*/attention_scale/gamma"),
    Rule("encoder.layer.*.layer_scale2.lambda1", "layer_*/mlp_scale/gamma"),
    *linear("encoder.layer.*.mlp.fc1", "layer_*/mlp/up"),
    *linear("encoder.layer.*.mlp.fc2", "layer_*/mlp/down"),
    *packed("encoder.layer.*.mlp.weights_in.", "layer_*/mlp", ("gate", "up")),
    *linear("encoder.layer.*.mlp.weights_out", "layer_*/mlp/down"),
)

DINOV2 = Family(
    name="dinov2",
    modalities=(IMAGE,),
    parse=partial(parse, registers=False),
    build=Dinov2,
    rules=RULES,
    poolings=lambda config: ("cls", "mean", "pooler"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("dinov2.",),
    ignored=("embeddings.mask_token", "classifier.*"),
)
DINOV2_WITH_REGISTERS = replace(
    DINOV2,
    name="dinov2_with_registers",
    parse=partial(parse, registers=True),
    prefixes=("dinov2_with_registers.",),
)
FAMILIES = {"dinov2": DINOV2, "dinov2_with_registers": DINOV2_WITH_REGISTERS}
