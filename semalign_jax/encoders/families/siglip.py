"""SigLIP: Zhai et al. 2023, arXiv 2303.15343; also SigLIP 2 with images of one size.

(SigLIP 2 with images of any size is ``siglip2``.)

The last position of the batch stands for a text, even if it is padding, and the models were
trained without a mask on texts padded to ``max_position_embeddings`` (64) tokens. As in
transformers, the batch decides: to get the published embeddings, pad every text to that length and
leave ``attention_mask`` out. With a mask, or with less padding, the embeddings are others.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from .._config import ConfigReader
from .._towers import (
    TextTower,
    TextTowerConfig,
    TwoTowers,
    TwoTowersConfig,
    VisionTransformer,
    VisionTransformerConfig,
    image_options,
    layer_options,
    reads_padding,
)
from .._weights import Rule, linear, norm, packed, patch_embedding, prefixed, scalar
from . import clip


def parse_text(reader: ConfigReader, tensors: frozenset[str]) -> TextTowerConfig:
    """Read the configuration of a text tower."""
    options = layer_options(reader, 768, 12, "gelu_pytorch_tanh", 1e-6)
    return TextTowerConfig(
        vocab_size=reader.get("vocab_size", 32000),
        max_tokens=reader.get("max_position_embeddings", 64),
        **options,
        hidden=reader.get("intermediate_size", 3072),
        causal=False,
        padding=True,
        token="last",
        eos_token_id=None,
        projection=reader.get("projection_size", None) or options["width"],
        projection_bias=True,
    )


def parse_vision(reader: ConfigReader, tensors: frozenset[str]) -> VisionTransformerConfig:
    """Read the configuration of a vision tower."""
    return VisionTransformerConfig(
        **image_options(reader, 16),
        **layer_options(reader, 768, 12, "gelu_pytorch_tanh", 1e-6),
        hidden=reader.get("intermediate_size", 3072),
        pooling="attention" if reader.get("vision_use_head", True, bool) else None,
        class_token=False,
        placed=0,
    )


def parse(
    reader: ConfigReader,
    tensors: frozenset[str],
    parse_vision: Callable[[ConfigReader, frozenset[str]], VisionTransformerConfig] = parse_vision,
) -> TwoTowersConfig:
    """Read the configuration of both towers."""
    text = parse_text(reader.section("text_config"), tensors)
    vision = parse_vision(reader.section("vision_config"), tensors)
    if vision.pooling is None:
        reader.problem("vision_config.vision_use_head = False leaves no embedding of an image")
        vision = replace(vision, pooling="attention")
    return TwoTowersConfig(text, vision, logit_bias=True)


TEXT_RULES = (*clip.TEXT_RULES, *linear("head", "projection"))
#: All but those of the patches.
COMMON_VISION_RULES = (
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *clip.LAYER_RULES,
    *norm("post_layernorm", "norm"),
    Rule("head.probe", "pool/probe"),
    *packed("head.attention.in_proj_", "pool"),
    *linear("head.attention.out_proj", "pool/out"),
    *norm("head.layernorm", "pool/norm"),
    *linear("head.mlp.fc1", "pool/mlp/up"),
    *linear("head.mlp.fc2", "pool/mlp/down"),
)
VISION_RULES = (
    *COMMON_VISION_RULES,
    *patch_embedding("embeddings.patch_embedding", "patches/projection"),
)


def two_tower_rules(vision: Iterable[Rule]) -> tuple[Rule, ...]:
    """Rules of both towers and the logits' scale and bias; `vision` are those of its tower."""
    return (
        *prefixed(TEXT_RULES, "text_model.", "text/"),
        *prefixed(vision, "vision_model.", "vision/"),
        Rule("logit_scale", "logit_scale", scalar),
        Rule("logit_bias", "logit_bias", scalar),
    )


SIGLIP = replace(
    clip.CLIP,
    name="siglip",
    parse=parse,
    build=lambda config: TwoTowers(
        TextTower(config.text), VisionTransformer(config.vision), config.logit_bias
    ),
    rules=two_tower_rules(VISION_RULES),
    poolings=lambda config: ("projection", "mean"),
    fixed_length=lambda config: reads_padding(config.text),
    prefixes=(),
)
SIGLIP_TEXT = replace(
    clip.CLIP_TEXT,
    name="siglip_text",
    parse=parse_text,
    rules=TEXT_RULES,
    poolings=lambda config: ("projection", "mean"),
    fixed_length=reads_padding,
)
SIGLIP_VISION = replace(
    clip.CLIP_VISION,
    name="siglip_vision",
    parse=parse_vision,
    rules=VISION_RULES,
    poolings=lambda config: ("mean",) if config.pooling is None else ("projection", "mean"),
)
FAMILIES = {
    "siglip": SIGLIP,
    "siglip_text_model": SIGLIP_TEXT,
    "siglip_vision_model": SIGLIP_VISION,
}
