"""Residual networks: He et al. 2015, arXiv 1512.03385.

Hidden states are the feature maps behind the stem and behind each stage, reshaped to ``[batch,
rows * columns, channels]``.
"""

from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn

from .._config import ConfigReader
from .._family import Family
from .._layers import ACTIVATIONS, Activation, Array, Outputs
from .._maps import ConvNorm, channels_last, flatten_map, global_average, stem_pool
from .._weights import conv_norm

#: A bottleneck has this fraction of the channels of its layer.
REDUCTION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes and options, named as in ``config.json``."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Annotated[str, ("basic", "bottleneck")] = "bottleneck"
    hidden_act: Activation = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ResNetConfig:
    """Read the configuration."""
    config = reader.read(ResNetConfig)
    if len(config.hidden_sizes) != len(config.depths):
        reader.problem("hidden_sizes and depths must have one value a stage")
    return config


class ResNetLayer(nn.Module):
    """Two convolutions (basic) or three (bottleneck) and the sum with the input."""

    config: ResNetConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps."""
        c, stride = self.config, self.stride
        if c.layer_type == "basic":
            # Width, kernel and stride of each convolution.
            plan = ((self.features, 3, stride), (self.features, 3, 1))
        else:
            narrow = self.features // REDUCTION
            first, second = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
            plan = ((narrow, 1, first), (narrow, 3, second), (self.features, 1, 1))
        y = x
        for i, (features, kernel, step) in enumerate(plan):
            # Between the convolutions it is always relu, whatever hidden_act is.
            activation = "relu" if i + 1 < len(plan) else None
            y = ConvNorm(features, kernel, step, activation, name=f"conv_{i}")(y)
        if x.shape[-1] != self.features or stride != 1:
            x = ConvNorm(self.features, 1, stride, name="shortcut")(x)
        return ACTIVATIONS[c.hidden_act](x + y)


class ResNet(nn.Module):
    """Stem, stages of layers, global average."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = channels_last(batch["pixel_values"])
        x = ConvNorm(c.embedding_size, 7, 2, c.hidden_act, name="stem")(x)
        x = stem_pool(x)
        states = [flatten_map(x)]
        for stage, (features, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
            for i in range(depth):
                halve = i == 0 and (stage > 0 or c.downsample_in_first_stage)
                name = f"stage_{stage}_layer_{i}"
                x = ResNetLayer(c, features, 2 if halve else 1, name=name)(x)
            states.append(flatten_map(x))
        return Outputs(tuple(states), states[-1], pooled=global_average(x))


_LAYER = "encoder.stages.*.layers.*"
RULES = (
    *conv_norm("embedder.embedder.convolution", "embedder.embedder.normalization", "stem"),
    *conv_norm(
        f"{_LAYER}.layer.*.convolution",
        f"{_LAYER}.layer.*.normalization",
        "stage_*_layer_*/conv_*",
    ),
    *conv_norm(
        f"{_LAYER}.shortcut.convolution",
        f"{_LAYER}.shortcut.normalization",
        "stage_*_layer_*/shortcut",
    ),
)

RESNET = Family(
    name="resnet",
    parse=parse,
    build=ResNet,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.num_channels, 224, 224),
    prefixes=("resnet.",),
    ignored=("*.num_batches_tracked", "classifier.*"),
)
FAMILIES = {"resnet": RESNET}
