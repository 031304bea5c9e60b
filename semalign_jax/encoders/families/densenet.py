"""DenseNet: Huang et al. 2016, arXiv 1608.06993.

The tensors have the names of torchvision's DenseNet, which torchxrayvision and CheXNet use too.
There is no common ``config.json`` for them; ours has ``"model_type": "densenet"`` and the options
of `DenseNetConfig` under torchvision's names. DenseNet-121 is the default; the chest X-ray models
of torchxrayvision have ``"in_channels": 1`` and pixels from -1024 to 1024.

Hidden states are the feature maps behind the stem and behind each dense block, reshaped to
``[batch, rows * columns, channels]``.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import Family
from .._layers import Array, Outputs
from .._maps import BatchNorm, Conv, ConvNorm, channels_last, flatten_map, global_average, stem_pool
from .._weights import batch_norm, conv, conv_norm


@dataclass(frozen=True)
class DenseNetConfig:
    """Sizes, with the defaults of DenseNet-121."""

    growth_rate: int = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int = 4
    in_channels: int = 3
    image_size: tuple[int, int] = (224, 224)


def parse(reader: ConfigReader, tensors: frozenset[str]) -> DenseNetConfig:
    """Read the configuration."""
    reader.neutral("num_classes", "memory_efficient")
    return reader.read(DenseNetConfig)


def halve(x: Array) -> Array:
    """Means of 2 x 2 places of feature maps, in float32 inside; an odd last place is left out."""
    b, rows, columns, channels = x.shape
    rows, columns = rows // 2, columns // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(b, rows, 2, columns, 2, channels)
    return jnp.mean(x.astype(jnp.float32), axis=(2, 4)).astype(x.dtype)


class DenseLayer(nn.Module):
    """Norm, relu and 1 x 1 convolution, then norm, relu and 3 x 3 convolution."""

    growth_rate: int
    bn_size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the `growth_rate` new channels of feature maps."""
        x = nn.relu(BatchNorm(name="norm")(x))
        x = ConvNorm(self.bn_size * self.growth_rate, 1, activation="relu", name="narrow")(x)
        return Conv(self.growth_rate, 3, name="conv")(x)


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between them, norm, relu, global average."""

    config: DenseNetConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = channels_last(batch["pixel_values"])
        x = ConvNorm(c.num_init_features, 7, 2, "relu", name="stem")(x)
        x = stem_pool(x)
        states = [flatten_map(x)]
        # Blocks and layers are numbered from 1, as the tensors are.
        for block, depth in enumerate(c.block_config, 1):
            for i in range(1, depth + 1):
                layer = DenseLayer(c.growth_rate, c.bn_size, name=f"block_{block}_layer_{i}")
                x = jnp.concatenate([x, layer(x)], axis=-1)
            states.append(flatten_map(x))
            if block < len(c.block_config):
                x = nn.relu(BatchNorm(name=f"transition_{block}_norm")(x))
                width = x.shape[-1] // 2
                x = Conv(width, 1, name=f"transition_{block}_conv")(x)
                x = halve(x)
        x = nn.relu(BatchNorm(name="norm")(x))
        return Outputs(tuple(states), flatten_map(x), pooled=global_average(x))


_LAYER = "features.denseblock*.denselayer*"
RULES = (
    *conv_norm("features.conv0", "features.norm0", "stem"),
    *batch_norm(f"{_LAYER}.norm1", "block_*_layer_*/norm"),
    *conv_norm(f"{_LAYER}.conv1", f"{_LAYER}.norm2", "block_*_layer_*/narrow"),
    *conv(f"{_LAYER}.conv2", "block_*_layer_*/conv"),
    # torchvision's first files have a dot in these names.
    *batch_norm(f"{_LAYER}.norm.1", "block_*_layer_*/norm"),
    *conv_norm(f"{_LAYER}.conv.1", f"{_LAYER}.norm.2", "block_*_layer_*/narrow"),
    *conv(f"{_LAYER}.conv.2", "block_*_layer_*/conv"),
    *batch_norm("features.transition*.norm", "transition_*_norm"),
    *conv("features.transition*.conv", "transition_*_conv"),
    *batch_norm("features.norm5", "norm"),
)

DENSENET = Family(
    name="densenet",
    parse=parse,
    build=DenseNet,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.in_channels, *config.image_size),
    # As CheXNet's files have it, saved from within a data-parallel wrapper.
    prefixes=("module.densenet121.", "densenet121.", "module."),
    # The thresholds of torchxrayvision calibrate its labels.
    ignored=("*.num_batches_tracked", "classifier.*", "op_threshs"),
)
FAMILIES = {"densenet": DENSENET}
