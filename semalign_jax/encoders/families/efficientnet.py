"""EfficientNet (Tan and Le 2019, arXiv 1905.11946) and EfficientNet-Lite.

Lite is the variant for edge devices: no squeeze-and-excitation, relu6, and a stem and a head that
do not grow with the model. Its tensors have the names of the package ``efficientnet-lite-pytorch``;
there is no common ``config.json`` for it, ours has ``"model_type": "efficientnet_lite"`` and
options as EfficientNet has them, by default those of Lite0.

Hidden states are the feature maps behind the stem and behind each block, reshaped to ``[batch,
rows * columns, channels]``; ``last`` is the head's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import Family
from .._layers import ACTIVATION_NAMES, ACTIVATIONS, Array, Outputs
from .._maps import ConvNorm, Padding, channels_last, flatten_map, global_average
from .._weights import conv_norm, patch_embedding

STEM_WIDTH, HEAD_WIDTH = 32, 1280


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck.

    Attributes:
        features: channels of its output.
        kernel, stride, padding: of its depthwise convolution.
        expansion: of the channels inside.
        squeeze: channels of squeeze-and-excitation; None without it.
        residual: whether the input is added.
    """

    features: int
    kernel: int
    stride: int
    padding: Padding
    expansion: int
    squeeze: int | None
    residual: bool


@dataclass(frozen=True)
class EfficientNetConfig:
    """The network that the coefficients of ``config.json`` give."""

    num_channels: int
    image_size: tuple[int, int]
    stem: int
    stem_padding: Padding
    blocks: tuple[Block, ...]
    head: int
    hidden_act: str
    batch_norm_eps: float
    pooling_type: str


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind, before scaling."""

    features: int
    kernel: int
    stride: int
    expansion: int
    repeats: int


def round_width(width: int, coefficient: float, divisor: int) -> int:
    """Scale a number of channels to a multiple of `divisor`, less than 10 % below."""
    scaled = width * coefficient
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def read_stages(reader: ConfigReader) -> tuple[Stage, ...]:
    """Read the stages; without them those of B0, which all sizes scale."""
    columns = (
        reader.sizes("out_channels", (16, 24, 40, 80, 112, 192, 320)),
        reader.sizes("kernel_sizes", (3, 3, 5, 3, 5, 5, 3)),
        reader.sizes("strides", (1, 2, 2, 2, 1, 2, 1)),
        reader.sizes("expand_ratios", (1, 6, 6, 6, 6, 6, 6)),
        reader.sizes("num_block_repeats", (1, 2, 2, 3, 3, 4, 1)),
    )
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        reader.problem(
            "out_channels, kernel_sizes, strides, expand_ratios and num_block_repeats must have "
            "one value a stage"
        )
        return ()
    if any(kernel < 3 or kernel % 2 == 0 for kernel in columns[1]):
        reader.problem(f"kernel_sizes = {columns[1]} is not supported (supported: 3, 5, 7, ...)")
    if any(stride not in (1, 2) for stride in columns[2]):
        reader.problem(f"strides = {columns[2]} is not supported (supported: 1, 2)")
    return tuple(Stage(*values) for values in zip(*columns, strict=True))


def parse(reader: ConfigReader, tensors: frozenset[str]) -> EfficientNetConfig:
    """Read the configuration of an EfficientNet; the defaults are those of B7."""
    reader.neutral("num_hidden_layers", "batch_norm_momentum", "drop_connect_rate")
    coefficient = reader.get("width_coefficient", 2.0, float)
    divisor = reader.get("depth_divisor", 8)
    depth = reader.get("depth_coefficient", 3.1, float)
    ratio = reader.get("squeeze_expansion_ratio", 0.25, float)
    centred = reader.sizes("depthwise_padding", ())
    in_channels = reader.sizes("in_channels", (32, 16, 24, 40, 80, 112, 192))

    stem = width = round_width(STEM_WIDTH, coefficient, divisor)
    widths, blocks = [], []
    for stage in read_stages(reader):
        widths.append(width)
        features = round_width(stage.features, coefficient, divisor)
        for i in range(math.ceil(depth * stage.repeats)):
            stride = stage.stride if i == 0 else 1
            after = stage.kernel // 2
            # TensorFlow's padding for even sizes, unless the block is listed as one of odd size.
            before = after - 1 if stride == 2 and len(blocks) not in centred else after
            squeeze = max(1, int(width * ratio))
            padding = ((before, after), (before, after))
            blocks.append(
                Block(features, stage.kernel, stride, padding, stage.expansion, squeeze, i > 0)
            )
            width = features
    if [round_width(n, coefficient, divisor) for n in in_channels] != widths:
        reader.problem("in_channels must be the stem's 32 and then out_channels without its last")
    head = round_width(HEAD_WIDTH, coefficient, divisor)
    if reader.get("hidden_dim", 2560) != head:
        reader.problem(f"hidden_dim must be {head}, which width_coefficient makes of {HEAD_WIDTH}")
    return EfficientNetConfig(
        num_channels=reader.get("num_channels", 3),
        image_size=reader.pair("image_size", 600),
        stem=stem,
        stem_padding=((0, 1), (0, 1)),
        blocks=tuple(blocks),
        head=head,
        hidden_act=reader.get("hidden_act", "swish", str, ACTIVATION_NAMES),
        batch_norm_eps=reader.get("batch_norm_eps", 1e-3, float),
        pooling_type=reader.get("pooling_type", "mean", str, ("mean", "max")),
    )


def same_padding(size: Sequence[int], kernel: int, stride: int) -> tuple[Padding, tuple[int, int]]:
    """TensorFlow's padding of a map of this size, and the size of the output."""
    output = tuple(-(-n // stride) for n in size)
    totals = [max((m - 1) * stride + kernel - n, 0) for n, m in zip(size, output, strict=True)]
    rows, columns = ((total // 2, total - total // 2) for total in totals)
    return (rows, columns), (output[0], output[1])


def parse_lite(reader: ConfigReader, tensors: frozenset[str]) -> EfficientNetConfig:
    """Read the configuration of an EfficientNet-Lite; the defaults are those of Lite0.

    The padding is that of images of ``image_size``, whatever the images are, as in the package.
    """
    reader.neutral("batch_norm_momentum", "drop_connect_rate", "num_classes")
    coefficient = reader.get("width_coefficient", 1.0, float)
    divisor = reader.get("depth_divisor", 8)
    depth = reader.get("depth_coefficient", 1.0, float)
    image_size = reader.pair("image_size", 224)
    stages = read_stages(reader)

    stem_padding, size = same_padding(image_size, 3, 2)
    blocks = []
    for number, stage in enumerate(stages):
        features = round_width(stage.features, coefficient, divisor)
        # The stages next to the stem and the head do not grow deeper.
        scaled = math.ceil(depth * stage.repeats)
        for i in range(stage.repeats if number in (0, len(stages) - 1) else scaled):
            stride = stage.stride if i == 0 else 1
            padding, size = same_padding(size, stage.kernel, stride)
            blocks.append(
                Block(features, stage.kernel, stride, padding, stage.expansion, None, i > 0)
            )
    return EfficientNetConfig(
        num_channels=reader.get("num_channels", 3),
        image_size=image_size,
        stem=STEM_WIDTH,
        stem_padding=stem_padding,
        blocks=tuple(blocks),
        head=HEAD_WIDTH,
        hidden_act=reader.get("hidden_act", "relu6", str, ("relu6",)),
        batch_norm_eps=reader.get("batch_norm_eps", 1e-3, float),
        pooling_type="mean",
    )


class SqueezeExcite(nn.Module):
    """Channels weighted by a function of their global averages."""

    squeeze: int
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps."""
        weights = nn.Dense(self.squeeze, name="reduce")(global_average(x))
        weights = nn.Dense(x.shape[-1], name="expand")(ACTIVATIONS[self.activation](weights))
        return x * nn.sigmoid(weights)[:, None, None]


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection."""

    block: Block
    activation: str
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps."""
        b, y = self.block, x
        inner = x.shape[-1] * b.expansion
        if b.expansion != 1:
            y = ConvNorm(inner, 1, 1, self.activation, self.eps, name="expansion")(y)
        depthwise = ConvNorm(
            inner,
            b.kernel,
            b.stride,
            self.activation,
            self.eps,
            depthwise=True,
            padding=b.padding,
            name="depthwise",
        )
        y = depthwise(y)
        if b.squeeze is not None:
            y = SqueezeExcite(b.squeeze, self.activation, name="squeeze_excite")(y)
        y = ConvNorm(b.features, 1, 1, None, self.eps, name="projection")(y)
        return x + y if b.residual else y


class EfficientNet(nn.Module):
    """Stem, blocks, head, global average or maximum."""

    config: EfficientNetConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        act, eps = c.hidden_act, c.batch_norm_eps
        x = channels_last(batch["pixel_values"])
        x = ConvNorm(c.stem, 3, 2, act, eps, padding=c.stem_padding, name="stem")(x)
        states = [flatten_map(x)]
        for i, block in enumerate(c.blocks):
            x = InvertedBottleneck(block, act, eps, name=f"block_{i}")(x)
            states.append(flatten_map(x))
        x = ConvNorm(c.head, 1, 1, act, eps, name="head")(x)
        pooled = global_average(x) if c.pooling_type == "mean" else jnp.max(x, axis=(1, 2))
        return Outputs(tuple(states), flatten_map(x), pooled=pooled)


_BLOCK = "encoder.blocks.*"
RULES = (
    *conv_norm("embeddings.convolution", "embeddings.batchnorm", "stem"),
    *conv_norm(
        f"{_BLOCK}.expansion.expand_conv", f"{_BLOCK}.expansion.expand_bn", "block_*/expansion"
    ),
    *conv_norm(
        f"{_BLOCK}.depthwise_conv.depthwise_conv",
        f"{_BLOCK}.depthwise_conv.depthwise_norm",
        "block_*/depthwise",
    ),
    # Convolutions of 1 x 1, which are linear layers here.
    *patch_embedding(f"{_BLOCK}.squeeze_excite.reduce", "block_*/squeeze_excite/reduce"),
    *patch_embedding(f"{_BLOCK}.squeeze_excite.expand", "block_*/squeeze_excite/expand"),
    *conv_norm(
        f"{_BLOCK}.projection.project_conv", f"{_BLOCK}.projection.project_bn", "block_*/projection"
    ),
    *conv_norm("encoder.top_conv", "encoder.top_bn", "head"),
)
LITE_RULES = (
    *conv_norm("_conv_stem", "_bn0", "stem"),
    *conv_norm("_blocks.*._expand_conv", "_blocks.*._bn0", "block_*/expansion"),
    *conv_norm("_blocks.*._depthwise_conv", "_blocks.*._bn1", "block_*/depthwise"),
    *conv_norm("_blocks.*._project_conv", "_blocks.*._bn2", "block_*/projection"),
    *conv_norm("_conv_head", "_bn1", "head"),
)


EFFICIENTNET = Family(
    name="efficientnet",
    parse=parse,
    build=EfficientNet,
    rules=RULES,
    poolings=lambda config: ("pooler", "mean"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("efficientnet.",),
    ignored=("*.num_batches_tracked", "classifier.*"),
)
EFFICIENTNET_LITE = replace(
    EFFICIENTNET,
    name="efficientnet_lite",
    parse=parse_lite,
    rules=LITE_RULES,
    prefixes=(),
    ignored=("*.num_batches_tracked", "_fc.*"),
)
FAMILIES = {"efficientnet": EFFICIENTNET, "efficientnet_lite": EFFICIENTNET_LITE}
