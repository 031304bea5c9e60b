"""CLIP: Radford et al. 2021, arXiv 2103.00020. Both towers, or one of them."""

from dataclasses import replace

from .._config import ConfigReader
from .._family import Family
from .._towers import (
    TextTower,
    TextTowerConfig,
    TwoTowers,
    TwoTowersConfig,
    VisionTransformer,
    VisionTransformerConfig,
    image_options,
    layer_options,
)
from .._weights import Rule, embedding, linear, norm, patch_embedding, prefixed, scalar

#: The id that old configurations give for the end of a text, by mistake.
_WRONG_EOS = 2


def section(reader: ConfigReader, name: str) -> ConfigReader:
    """Return the reader of a tower; what old files say under ``*_dict`` replaces the section."""
    reader.neutral("text_config", "vision_config")
    old = reader.get(f"{name}_dict", None, dict)
    return reader.section(name if old is None else f"{name}_dict")


def text_tower(reader: ConfigReader) -> TextTowerConfig:
    """Read the text tower, without its projection."""
    eos = reader.get("eos_token_id", 49407)
    return TextTowerConfig(
        vocab_size=reader.get("vocab_size", 49408),
        max_tokens=reader.get("max_position_embeddings", 77),
        **layer_options(reader, 512, 8, "quick_gelu", 1e-5),
        hidden=reader.get("intermediate_size", 2048),
        causal=True,
        padding=True,
        # The end has the highest id of the original vocabulary.
        token="highest" if eos == _WRONG_EOS else "eos",
        eos_token_id=eos,
        projection=None,
    )


def vision_tower(reader: ConfigReader) -> VisionTransformerConfig:
    """Read the vision tower, without its projection."""
    return VisionTransformerConfig(
        **image_options(reader, 32),
        **layer_options(reader, 768, 12, "quick_gelu", 1e-5),
        hidden=reader.get("intermediate_size", 3072),
        pooling="cls",
        patch_bias=False,
        pre_norm=True,
        norm_tokens=False,
    )


def parse(reader: ConfigReader, tensors: frozenset[str]) -> TwoTowersConfig:
    """Read the configuration of both towers."""
    dimension = reader.get("projection_dim", 512)
    reader.neutral("logit_scale_init_value")
    text, vision = section(reader, "text_config"), section(reader, "vision_config")
    text.neutral("projection_dim")
    vision.neutral("projection_dim")
    return TwoTowersConfig(
        replace(text_tower(text), projection=dimension),
        replace(vision_tower(vision), projection=dimension),
    )


def parse_text(reader: ConfigReader, tensors: frozenset[str]) -> TextTowerConfig:
    """Read the configuration of a text tower alone."""
    dimension = reader.get("projection_dim", 512)
    projected = "text_projection.weight" in tensors
    return replace(text_tower(reader), projection=dimension if projected else None)


def parse_vision(reader: ConfigReader, tensors: frozenset[str]) -> VisionTransformerConfig:
    """Read the configuration of a vision tower alone."""
    dimension = reader.get("projection_dim", 512)
    projected = "visual_projection.weight" in tensors
    return replace(vision_tower(reader), projection=dimension if projected else None)


#: Of one layer, in either tower.
LAYER_RULES = (
    *linear("encoder.layers.*.self_attn.q_proj", "layer_*/attention/query"),
    *linear("encoder.layers.*.self_attn.k_proj", "layer_*/attention/key"),
    *linear("encoder.layers.*.self_attn.v_proj", "layer_*/attention/value"),
    *linear("encoder.layers.*.self_attn.out_proj", "layer_*/attention/out"),
    *norm("encoder.layers.*.layer_norm1", "layer_*/attention_norm"),
    *norm("encoder.layers.*.layer_norm2", "layer_*/mlp_norm"),
    *linear("encoder.layers.*.mlp.fc1", "layer_*/mlp/up"),
    *linear("encoder.layers.*.mlp.fc2", "layer_*/mlp/down"),
)
TEXT_RULES = (
    *embedding("embeddings.token_embedding", "token_embedding"),
    *embedding("embeddings.position_embedding", "position_embedding"),
    *LAYER_RULES,
    *norm("final_layer_norm", "norm"),
)
VISION_RULES = (
    Rule("embeddings.class_embedding", "class_token"),
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *patch_embedding("embeddings.patch_embedding", "patches/projection"),
    *norm("pre_layrnorm", "pre_norm"),
    *LAYER_RULES,
    *norm("post_layernorm", "norm"),
)
_IGNORED = ("*embeddings.position_ids",)

CLIP = Family(
    name="clip",
    parse=parse,
    build=lambda config: TwoTowers(TextTower(config.text), VisionTransformer(config.vision)),
    rules=(
        *prefixed(TEXT_RULES, "text_model.", "text/"),
        *prefixed(VISION_RULES, "vision_model.", "vision/"),
        *linear("text_projection", "text/projection"),
        *linear("visual_projection", "vision/projection"),
        Rule("logit_scale", "logit_scale", scalar),
    ),
    poolings=lambda config: ("projection", "pooler", "mean"),
    image_size=lambda config: (config.vision.num_channels, *config.vision.image_size),
    max_tokens=lambda config: config.text.max_tokens,
    prefixes=("clip.",),
    ignored=_IGNORED,
)


def _one_tower_poolings(config: TextTowerConfig | VisionTransformerConfig) -> tuple[str, ...]:
    token = "eos" if isinstance(config, TextTowerConfig) else "cls"
    return (*(["projection"] if config.projection is not None else []), "pooler", token, "mean")


CLIP_TEXT = Family(
    name="clip_text",
    parse=parse_text,
    build=TextTower,
    rules=(*TEXT_RULES, *linear("text_projection", "projection")),
    poolings=_one_tower_poolings,
    max_tokens=lambda config: config.max_tokens,
    prefixes=("text_model.",),
    ignored=_IGNORED,
)
CLIP_VISION = Family(
    name="clip_vision",
    parse=parse_vision,
    build=VisionTransformer,
    rules=(*VISION_RULES, *linear("visual_projection", "projection")),
    poolings=_one_tower_poolings,
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("vision_model.",),
    ignored=_IGNORED,
)
FAMILIES = {"clip": CLIP, "clip_text_model": CLIP_TEXT, "clip_vision_model": CLIP_VISION}
