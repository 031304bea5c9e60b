"""ConvNeXt, ConvNeXt V2 and the ConvNeXt of DINOv3.

Liu et al. 2022, arXiv 2201.03545; Woo et al. 2023, arXiv 2301.00808; Siméoni et al. 2025,
arXiv 2508.10104.

Hidden states are the feature maps of the patches and behind each stage, reshaped to ``[batch, rows
* columns, channels]``. The final norm is of the average alone, so ``last`` is not normalised,
except in DINOv3. There the reference puts the average in front of ``last``, as a class token; here
it is the pooler alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import Activation, Array, LayerNorm, LayerScale, Mlp, Outputs, PatchEmbedding
from .._maps import Conv, flatten_map, global_average
from .._weights import Rule, conv, linear, norm, patch_embedding

#: Of the norms inside, except in DINOv3; ``layer_norm_eps`` is of the final one.
INNER_EPS = 1e-6


@dataclass(frozen=True)
class ConvNextConfig:
    """Sizes and options, most named as in ``config.json``.

    Attributes:
        inner_eps: of the norms inside.
        layer_scale: whether layers have a learned factor per channel.
        response_norm: whether their MLPs have a global response norm.
        norm_tokens: whether the final norm is of the feature map, too.
    """

    num_channels: int = 3
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (4, 4)
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    inner_eps: float = INNER_EPS
    layer_scale: bool = True
    response_norm: bool = False
    norm_tokens: bool = False


def _read(reader: ConfigReader, **own: Any) -> ConvNextConfig:
    """Read what all have in common; `own` are the fields of one of them."""
    usual = dict(inner_eps=INNER_EPS, layer_scale=True, response_norm=False, norm_tokens=False)
    config = reader.read(ConvNextConfig, **usual | own)
    stages = reader.get("num_stages", 4)
    if not stages == len(config.hidden_sizes) == len(config.depths):
        reader.problem("hidden_sizes and depths must have num_stages values")
    return config


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ConvNextConfig:
    """Read the configuration of ConvNeXt."""
    return _read(reader, layer_scale=reader.get("layer_scale_init_value", 1e-6, float) > 0)


def parse_v2(reader: ConfigReader, tensors: frozenset[str]) -> ConvNextConfig:
    """Read the configuration of ConvNeXt V2."""
    return _read(reader, layer_scale=False, response_norm=True)


def parse_dinov3(reader: ConfigReader, tensors: frozenset[str]) -> ConvNextConfig:
    """Read the configuration of DINOv3's ConvNeXt."""
    reader.neutral("layer_scale_init_value")
    eps = reader.get("layer_norm_eps", 1e-6, float)
    config = _read(reader, layer_norm_eps=eps, inner_eps=eps, norm_tokens=True)
    if len(config.depths) != 4:
        reader.problem(f"depths must have 4 values; it is {list(config.depths)}")
    return config


class ConvNextLayer(nn.Module):
    """Depthwise convolution, norm, MLP, layer scale and the sum with the input."""

    config: ConvNextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps ``[batch, rows, columns, channels]``."""
        c, width = self.config, x.shape[-1]
        depthwise = Conv(width, 7, depthwise=True, use_bias=True, name="depthwise")
        y = LayerNorm(c.inner_eps, name="norm")(depthwise(x))
        y = Mlp(4 * width, c.hidden_act, response_norm=c.response_norm, name="mlp")(y)
        return x + (LayerScale(name="scale")(y) if c.layer_scale else y)


class ConvNext(nn.Module):
    """Patches, stages of layers, global average and its norm."""

    config: ConvNextConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        patches = PatchEmbedding(c.hidden_sizes[0], c.patch_size, name="patches")
        x = LayerNorm(c.inner_eps, name="patches_norm")(patches(batch["pixel_values"]))
        states = [flatten_map(x)]
        for stage, (features, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
            if stage > 0:
                x = LayerNorm(c.inner_eps, name=f"stage_{stage}_norm")(x)
                none, name = ((0, 0), (0, 0)), f"stage_{stage}_halve"
                x = Conv(features, 2, 2, none, use_bias=True, name=name)(x)
            for i in range(depth):
                x = ConvNextLayer(c, name=f"stage_{stage}_layer_{i}")(x)
            states.append(flatten_map(x))
        norm = LayerNorm(c.layer_norm_eps, name="norm")
        last = norm(states[-1]) if c.norm_tokens else states[-1]
        return Outputs(tuple(states), last, pooled=norm(global_average(x)))


_LAYER = "encoder.stages.*.layers.*"
RULES = (
    *patch_embedding("embeddings.patch_embeddings", "patches/projection"),
    *norm("embeddings.layernorm", "patches_norm"),
    *norm("encoder.stages.*.downsampling_layer.0", "stage_*_norm"),
    *conv("encoder.stages.*.downsampling_layer.1", "stage_*_halve"),
    *conv(f"{_LAYER}.dwconv", "stage_*_layer_*/depthwise"),
    *norm(f"{_LAYER}.layernorm", "stage_*_layer_*/norm"),
    *linear(f"{_LAYER}.pwconv1", "stage_*_layer_*/mlp/up"),
    *linear(f"{_LAYER}.pwconv2", "stage_*_layer_*/mlp/down"),
    Rule(f"{_LAYER}.layer_scale_parameter", "stage_*_layer_*/scale/gamma"),
    *norm("layernorm", "norm"),
)

_STAGE = "stages.*.layers.*"
#: The first stage begins with the patches, which the others do not have.
DINOV3_RULES = (
    *patch_embedding("stages.0.downsample_layers.0", "patches/projection"),
    *norm("stages.0.downsample_layers.1", "patches_norm"),
    *(
        rule
        for i in (1, 2, 3)
        for rule in (
            *norm(f"stages.{i}.downsample_layers.0", f"stage_{i}_norm"),
            *conv(f"stages.{i}.downsample_layers.1", f"stage_{i}_halve"),
        )
    ),
    *conv(f"{_STAGE}.depthwise_conv", "stage_*_layer_*/depthwise"),
    *norm(f"{_STAGE}.layer_norm", "stage_*_layer_*/norm"),
    *linear(f"{_STAGE}.pointwise_conv1", "stage_*_layer_*/mlp/up"),
    *linear(f"{_STAGE}.pointwise_conv2", "stage_*_layer_*/mlp/down"),
    Rule(f"{_STAGE}.gamma", "stage_*_layer_*/scale/gamma"),
    *norm("layer_norm", "norm"),
)

CONVNEXT = Family(
    name="convnext",
    parse=parse,
    build=ConvNext,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("convnext.",),
    ignored=("classifier.*",),
)
CONVNEXT_V2 = replace(
    CONVNEXT,
    name="convnextv2",
    parse=parse_v2,
    rules=(
        *RULES,
        Rule(f"{_LAYER}.grn.weight", "stage_*_layer_*/mlp/response_norm/scale", np.ravel),
        Rule(f"{_LAYER}.grn.bias", "stage_*_layer_*/mlp/response_norm/bias", np.ravel),
    ),
    prefixes=("convnextv2.",),
)
DINOV3_CONVNEXT = replace(
    CONVNEXT, name="dinov3_convnext", parse=parse_dinov3, rules=DINOV3_RULES, prefixes=("model.",)
)
FAMILIES = {
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT_V2,
    "dinov3_convnext": DINOV3_CONVNEXT,
}
