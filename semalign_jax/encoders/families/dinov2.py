"""DINOv2, also with register tokens; RAD-DINO, which is a DINOv2 of chest radiographs.

Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv 2309.16588; Pérez-García et al. 2024,
arXiv 2401.10815.
"""

from dataclasses import replace
from functools import partial

from .._config import ConfigReader
from .._family import Family
from .._towers import VisionTransformer, VisionTransformerConfig, image_options, layer_options
from .._weights import Rule, first, linear, norm, packed
from . import vit


def parse(
    reader: ConfigReader, tensors: frozenset[str], *, registers: bool
) -> VisionTransformerConfig:
    """Read the configuration, of the model with or without register tokens."""
    reader.neutral("use_mask_token", "layerscale_value")
    if registers:
        reader.only("interpolate_antialias", True)
        reader.only("interpolate_offset", 0.0, None)
    layers = layer_options(reader, 768, 12, "gelu", 1e-6)
    hidden = int(layers["width"] * reader.get("mlp_ratio", 4.0, float))
    gated = reader.get("use_swiglu_ffn", False, bool)
    if gated:
        # It has two thirds of the width, in multiples of 8, and this activation, whatever the
        # file says.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        layers["activation"] = "silu"
    bias = reader.get("qkv_bias", True, bool)
    return VisionTransformerConfig(
        **image_options(reader, 16 if registers else 14),
        **layers,
        hidden=hidden,
        pooling="cls",
        registers=reader.get("num_register_tokens", 4) if registers else 0,
        smooth=registers,
        bias=(bias, bias, bias, True),
        layer_scale=True,
        gated=gated,
    )


RULES = (
    *vit.COMMON_RULES,
    Rule("embeddings.register_tokens", "registers", first),
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
    parse=partial(parse, registers=False),
    build=VisionTransformer,
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
