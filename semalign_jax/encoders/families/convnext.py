"""ConvNeXt: Liu et al. 2022, arXiv 2201.03545.

Hidden states are the feature maps of the patches and behind each stage, reshaped to ``[batch, rows
* columns, channels]``. The final norm is of the average alone, so ``last`` is not normalised.
"""

from dataclasses import dataclass

import flax.linen as nn

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    ACTIVATION_NAMES,
    Array,
    Conv,
    LayerScale,
    Mlp,
    Outputs,
    PatchEmbedding,
    flatten_map,
    global_average,
    layer_norm,
)
from .._weights import Rule, conv, linear, norm, patch_embedding

#: Of the norms inside; ``layer_norm_eps`` is of the final one.
INNER_EPS = 1e-6


@dataclass(frozen=True)
class ConvNextConfig:
    """Sizes and options, named as in ``config.json``."""

    num_channels: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    hidden_act: str
    layer_norm_eps: float
    layer_scale: bool


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ConvNextConfig:
    """Read the configuration."""
    reader.neutral("out_features", "out_indices", "stage_names")
    hidden_sizes = reader.sizes("hidden_sizes", (96, 192, 384, 768))
    depths = reader.sizes("depths", (3, 3, 9, 3))
    stages = reader.get("num_stages", 4)
    if not stages == len(hidden_sizes) == len(depths):
        reader.problem("hidden_sizes and depths must have num_stages values")
    return ConvNextConfig(
        num_channels=reader.get("num_channels", 3),
        image_size=reader.pair("image_size", 224),
        patch_size=reader.pair("patch_size", 4),
        hidden_sizes=hidden_sizes,
        depths=depths,
        hidden_act=reader.get("hidden_act", "gelu", str, ACTIVATION_NAMES),
        layer_norm_eps=reader.get("layer_norm_eps", 1e-12, float),
        layer_scale=reader.get("layer_scale_init_value", 1e-6, float) > 0,
    )


class ConvNextLayer(nn.Module):
    """Depthwise convolution, norm, MLP, layer scale and the sum with the input."""

    activation: str
    layer_scale: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps ``[batch, rows, columns, channels]``."""
        width = x.shape[-1]
        depthwise = Conv(width, 7, depthwise=True, use_bias=True, name="depthwise")
        y = layer_norm(INNER_EPS, "norm")(depthwise(x))
        y = Mlp(4 * width, self.activation, name="mlp")(y)
        return x + (LayerScale(name="scale")(y) if self.layer_scale else y)


class ConvNext(nn.Module):
    """Patches, stages of layers, global average and its norm."""

    config: ConvNextConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        patches = PatchEmbedding(c.hidden_sizes[0], c.patch_size, name="patches")
        x = layer_norm(INNER_EPS, "patches_norm")(patches(batch["pixel_values"]))
        states = [flatten_map(x)]
        for stage, (features, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
            if stage > 0:
                x = layer_norm(INNER_EPS, f"stage_{stage}_norm")(x)
                none, name = ((0, 0), (0, 0)), f"stage_{stage}_halve"
                x = Conv(features, 2, 2, none, use_bias=True, name=name)(x)
            for i in range(depth):
                layer = ConvNextLayer(c.hidden_act, c.layer_scale, name=f"stage_{stage}_layer_{i}")
                x = layer(x)
            states.append(flatten_map(x))
        pooled = layer_norm(c.layer_norm_eps, "norm")(global_average(x))
        return Outputs(tuple(states), states[-1], pooled=pooled)


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

CONVNEXT = Family(
    name="convnext",
    modalities=(IMAGE,),
    parse=parse,
    build=ConvNext,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("convnext.",),
    ignored=("classifier.*",),
)
FAMILIES = {"convnext": CONVNEXT}
