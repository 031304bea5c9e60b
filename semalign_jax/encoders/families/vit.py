"""Vision transformers ViT, DeiT and the encoder of masked autoencoders (MAE).

Dosovitskiy et al. 2020, arXiv 2010.11929; Touvron et al. 2020, arXiv 2012.12877; He et al. 2021,
arXiv 2111.06377. DeiT without distillation is a ViT, also by its ``model_type``. MAE sees all
patches in their order: nothing is masked.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    Activation,
    Array,
    LayerNorm,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    behind_tokens,
    layers,
    with_positions,
)
from .._weights import Rule, linear, norm, patch_embedding


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and options, named as in ``config.json``."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_act: str | None
    pooler_output_size: int | None
    distilled: bool


def parse(reader: ConfigReader, tensors: frozenset[str], *, distilled: bool) -> ViTConfig:
    """Read the configuration, of a model with or without a distillation token."""
    reader.neutral("encoder_stride")
    pooler_act = reader.get("pooler_act", "tanh", str, ACTIVATION_NAMES)
    return reader.read(
        ViTConfig,
        pooler_act=pooler_act if "pooler.dense.weight" in tensors else None,
        pooler_output_size=reader.get("pooler_output_size", None),
        distilled=distilled,
    )


def parse_mae(reader: ConfigReader, tensors: frozenset[str]) -> ViTConfig:
    """Read the configuration of a masked autoencoder."""
    reader.neutral("decoder_*", "mask_ratio", "norm_pix_loss")
    return parse(reader, tensors, distilled=False)


class ViT(nn.Module):
    """Class token, distillation token (DeiT) and patches, pre-norm layers, norm, pooler."""

    config: ViTConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = PatchEmbedding(c.hidden_size, c.patch_size, name="patches")(batch["pixel_values"])
        _, rows, columns, width = x.shape
        prefix = ("cls_token", "distillation_token") if c.distilled else ("cls_token",)
        x = behind_tokens(self, x, **dict.fromkeys(prefix, 1))
        x = with_positions(self, x, len(prefix), c, (rows, columns))
        kind = partial(PreNormBlock, bias=(c.qkv_bias, c.qkv_bias, c.qkv_bias, True))
        states = layers(c, x, None, kind)
        last = LayerNorm(c.layer_norm_eps, name="norm")(states[-1])
        pooled = None
        if c.pooler_act is not None:
            pooled = nn.Dense(c.pooler_output_size or width, name="pooler")(last[:, 0])
            pooled = ACTIVATIONS[c.pooler_act](pooled)
        return Outputs(tuple(states), last, prefix_tokens=len(prefix), pooled=pooled)


#: What DINOv2 has, too, and then BEiT.
COMMON_RULES = (
    Rule("embeddings.cls_token", "cls_token"),
    Rule("embeddings.position_embeddings", "position_embeddings"),
    *patch_embedding("embeddings.patch_embeddings.projection", "patches/projection"),
    *linear("encoder.layer.*.attention.attention.query", "layer_*/attention/query"),
    *linear("encoder.layer.*.attention.attention.key", "layer_*/attention/key"),
    *linear("encoder.layer.*.attention.attention.value", "layer_*/attention/value"),
    *linear("encoder.layer.*.attention.output.dense", "layer_*/attention/out"),
    *norm("layernorm", "norm"),
)
BLOCK_RULES = (
    *norm("encoder.layer.*.layernorm_before", "layer_*/attention_norm"),
    *norm("encoder.layer.*.layernorm_after", "layer_*/mlp_norm"),
    *linear("encoder.layer.*.intermediate.dense", "layer_*/mlp/up"),
    *linear("encoder.layer.*.output.dense", "layer_*/mlp/down"),
)
RULES = (
    *COMMON_RULES,
    *BLOCK_RULES,
    Rule("embeddings.distillation_token", "distillation_token"),
    *linear("pooler.dense", "pooler"),
)


def poolings(config: ViTConfig) -> tuple[str, ...]:
    """The class token first."""
    return ("cls", "mean", *(["pooler"] if config.pooler_act is not None else []))


HEADS = ("classifier.*", "embeddings.mask_token", "decoder.*")
VIT = Family(
    name="vit",
    modalities=(IMAGE,),
    parse=partial(parse, distilled=False),
    build=ViT,
    rules=RULES,
    poolings=poolings,
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("vit.",),
    ignored=HEADS,
)
DEIT = replace(
    VIT,
    name="deit",
    parse=partial(parse, distilled=True),
    prefixes=("deit.",),
    ignored=(*HEADS, "cls_classifier.*", "distillation_classifier.*"),
)
MAE = replace(VIT, name="vit_mae", parse=parse_mae)
FAMILIES = {"vit": VIT, "deit": DEIT, "vit_mae": MAE}
