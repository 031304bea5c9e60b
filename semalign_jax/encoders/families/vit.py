"""Vision transformers ViT, DeiT and the encoder of masked autoencoders (MAE).

Dosovitskiy et al. 2020, arXiv 2010.11929; Touvron et al. 2020, arXiv 2012.12877; He et al. 2021,
arXiv 2111.06377. DeiT without distillation is a ViT, also by its ``model_type``. MAE sees all
patches in their order: nothing is masked.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import ACTIVATION_NAMES
from .._towers import VisionTransformer, VisionTransformerConfig, image_options, layer_options
from .._weights import Rule, first, linear, norm, patch_embedding


def parse(
    reader: ConfigReader, tensors: frozenset[str], *, distilled: bool
) -> VisionTransformerConfig:
    """Read the configuration, of a model with or without a distillation token."""
    reader.neutral("encoder_stride")
    layers = layer_options(reader, 768, 12, "gelu", 1e-12)
    bias = reader.get("qkv_bias", True, bool)
    pooler = (
        reader.get("pooler_output_size", None) or layers["width"],
        reader.get("pooler_act", "tanh", str, ACTIVATION_NAMES),
    )
    has_pooler = "pooler.dense.weight" in tensors
    return VisionTransformerConfig(
        **image_options(reader, 16),
        **layers,
        hidden=reader.get("intermediate_size", 3072),
        pooling="cls" if has_pooler else None,
        pooler=pooler if has_pooler else None,
        registers=int(distilled),
        placed=1 + distilled,
        bias=(bias, bias, bias, True),
    )


def parse_mae(reader: ConfigReader, tensors: frozenset[str]) -> VisionTransformerConfig:
    """Read the configuration of a masked autoencoder."""
    reader.neutral("decoder_*", "mask_ratio", "norm_pix_loss")
    return parse(reader, tensors, distilled=False)


#: What DINOv2 has, too, and then BEiT.
COMMON_RULES = (
    Rule("embeddings.cls_token", "class_token", np.ravel),
    Rule("embeddings.position_embeddings", "position_embedding", first),
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
    Rule("embeddings.distillation_token", "registers", first),
    *linear("pooler.dense", "pooler"),
)


HEADS = ("classifier.*", "embeddings.mask_token", "decoder.*")
VIT = Family(
    name="vit",
    parse=partial(parse, distilled=False),
    build=VisionTransformer,
    rules=RULES,
    poolings=lambda config: ("cls", "mean", *(["pooler"] if config.pooler else [])),
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
