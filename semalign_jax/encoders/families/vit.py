"""Vision transformer, ViT and DeiT without distillation: Dosovitskiy et al. 2020, arXiv 2010.11929."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    Array,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    layer_norm,
    resize_positions,
)
from .._weights import Rule, linear, norm, patch_embedding


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and options, named as in ``config.json``."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int
    qkv_bias: bool
    pooler_act: str | None
    pooler_output_size: int


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ViTConfig:
    """Read the configuration."""
    reader.neutral("encoder_stride")
    hidden_size = reader.get("hidden_size", 768)
    pooler_act = reader.get("pooler_act", "tanh", str, ACTIVATION_NAMES)
    return ViTConfig(
        hidden_size=hidden_size,
        num_hidden_layers=reader.get("num_hidden_layers", 12),
        num_attention_heads=reader.get("num_attention_heads", 12),
        intermediate_size=reader.get("intermediate_size", 3072),
        hidden_act=reader.get("hidden_act", "gelu", str, ACTIVATION_NAMES),
        layer_norm_eps=reader.get("layer_norm_eps", 1e-12, float),
        image_size=reader.pair("image_size", 224),
        patch_size=reader.pair("patch_size", 16),
        num_channels=reader.get("num_channels", 3),
        qkv_bias=reader.get("qkv_bias", True, bool),
        pooler_act=pooler_act if "pooler.dense.weight" in tensors else None,
        pooler_output_size=reader.get("pooler_output_size", None) or hidden_size,
    )


class ViT(nn.Module):
    """Patches and a class token, pre-norm layers, final norm, optional pooler."""

    config: ViTConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        zeros = nn.initializers.zeros
        x = PatchEmbedding(c.hidden_size, c.patch_size, name="patches")(batch["pixel_values"])
        count, rows, columns, width = x.shape
        learned = (c.image_size[0] // c.patch_size[0], c.image_size[1] // c.patch_size[1])
        cls = self.param("cls_token", zeros, (1, 1, width), jnp.float32)
        shape = (1, 1 + learned[0] * learned[1], width)
        table = self.param("position_embeddings", zeros, shape, jnp.float32)
        patches = resize_positions(table[0, 1:].reshape(*learned, width), (rows, columns))
        x = x.reshape(count, rows * columns, width) + patches.reshape(1, rows * columns, width)
        x = jnp.concatenate([jnp.broadcast_to(cls + table[:, :1], (count, 1, width)), x], axis=1)
        states = [x]
        for i in range(c.num_hidden_layers):
            block = PreNormBlock(
                c.num_attention_heads,
                c.intermediate_size,
                c.hidden_act,
                c.layer_norm_eps,
                bias=(c.qkv_bias, c.qkv_bias, c.qkv_bias, True),
                name=f"layer_{i}",
            )
            states.append(block(states[-1]))
        last = layer_norm(c.layer_norm_eps, "norm")(states[-1])
        pooled = None
        if c.pooler_act is not None:
            pooled = nn.Dense(c.pooler_output_size, name="pooler")(last[:, 0])
            pooled = ACTIVATIONS[c.pooler_act](pooled)
        return Outputs(tuple(states), last, prefix_tokens=1, pooled=pooled)


RULES = (
    Rule("embeddings.cls_token", "cls_token"),
    Rule("embeddings.position_embeddings", "position_embeddings"),
    *patch_embedding("embeddings.patch_embeddings.projection", "patches/projection"),
    *linear("encoder.layer.*.attention.attention.query", "layer_*/attention/query"),
    *linear("encoder.layer.*.attention.attention.key", "layer_*/attention/key"),
    *linear("encoder.layer.*.attention.attention.value", "layer_*/attention/value"),
    *linear("encoder.layer.*.attention.output.dense", "layer_*/attention/out"),
    *norm("encoder.layer.*.layernorm_before", "layer_*/attention_norm"),
    *norm("encoder.layer.*.layernorm_after", "layer_*/mlp_norm"),
    *linear("encoder.layer.*.intermediate.dense", "layer_*/mlp/up"),
    *linear("encoder.layer.*.output.dense", "layer_*/mlp/down"),
    *norm("layernorm", "norm"),
    *linear("pooler.dense", "pooler"),
)


def poolings(config: ViTConfig) -> tuple[str, ...]:
    """The class token first."""
    return ("cls", "mean", *(["pooler"] if config.pooler_act is not None else []))


VIT = Family(
    name="vit",
    modalities=(IMAGE,),
    parse=parse,
    build=ViT,
    rules=RULES,
    poolings=poolings,
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("vit.",),
    ignored=("classifier.*", "embeddings.mask_token", "decoder.*"),
)
FAMILIES = {"vit": VIT}
