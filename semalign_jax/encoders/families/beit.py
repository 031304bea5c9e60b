"""BEiT, and DiT, a BEiT of documents.

Bao et al. 2021, arXiv 2106.08254; Li et al. 2022, arXiv 2203.02378. For other image sizes the
relative positions are interpolated as in Birkl et al. 2023, arXiv 2307.14460.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import Array
from .._towers import VisionTransformer, VisionTransformerConfig, image_options, layer_options
from .._weights import Rule, norm
from . import vit


@dataclass(frozen=True, kw_only=True)
class BeitConfig(VisionTransformerConfig):
    """And which biases by relative position there are: one of each layer, one of all."""

    own_bias: bool
    shared_bias: bool


def parse(reader: ConfigReader, tensors: frozenset[str]) -> BeitConfig:
    """Read the configuration.

    With mean pooling the output has no final norm: it is in the pooler, after the mean.
    """
    # Of masked image modelling and of segmentation.
    reader.neutral("vocab_size", "use_mask_token", "segmentation_indices", "add_fpn", "pool_scales")
    reader.neutral("use_auxiliary_head", "auxiliary_*", "semantic_loss_ignore_index")
    pools_mean = reader.get("use_mean_pooling", True, bool)
    pooling = "mean" if "pooler.layernorm.weight" in tensors else None
    config = BeitConfig(
        **image_options(reader, 16),
        **layer_options(reader, 768, 12, "gelu", 1e-12),
        hidden=reader.get("intermediate_size", 3072),
        pooling=pooling if pools_mean else "cls",
        positions=reader.get("use_absolute_position_embeddings", False, bool),
        norm_tokens=not pools_mean,
        bias=(True, False, True, True),
        layer_scale=reader.get("layer_scale_init_value", 0.1, float) > 0,
        own_bias=reader.get("use_relative_position_bias", False, bool),
        shared_bias=reader.get("use_shared_relative_position_bias", False, bool),
    )
    rows, columns = config.grid
    # The reference reads the table of such a model with rows and columns exchanged.
    if (config.own_bias or config.shared_bias) and rows != columns:
        reader.problem(
            f"image_size = {config.image_size} is not supported with relative positions "
            "(supported: as many rows as columns of patches)"
        )
    return config


def relative_index(rows: int, columns: int) -> np.ndarray:
    """Index ``[1 + patches, 1 + patches]`` into a table of relative positions.

    Each offset between two patches has an entry; the last three are of class to patch, patch to
    class and class to class.
    """
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    places = places.reshape(2, rows * columns)
    down, across = places[:, :, None] - places[:, None, :]
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = np.zeros((1 + rows * columns, 1 + rows * columns), np.int32)
    index[1:, 1:] = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
    index[0] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class RelativePositionBias(nn.Module):
    """Learned bias of attention by the offset of two patches.

    Attributes:
        heads: number of heads.
        learned: rows and columns of patches that it was learned for.
    """

    heads: int
    learned: tuple[int, int]

    @nn.compact
    def __call__(self, size: tuple[int, int], index: Array) -> Array:
        """Return the bias ``[1, heads, tokens, tokens]`` for another grid and its index."""
        old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (self.learned, size))
        offsets = old[0] * old[1]
        shape = (offsets + 3, self.heads)
        table = self.param("table", nn.initializers.zeros, shape, jnp.float32)
        if new != old:
            grid = table[:offsets].reshape(*old, self.heads).astype(jnp.float32)
            grid = jax.image.resize(grid, (*new, self.heads), "linear", antialias=False)
            grid = grid.reshape(new[0] * new[1], self.heads).astype(table.dtype)
            table = jnp.concatenate([grid, table[offsets:]])
        return table[index].transpose(2, 0, 1)[None]


class Beit(VisionTransformer):
    """A vision transformer whose attention has biases by relative position."""

    config: BeitConfig

    def attention_options(self, batch: dict[str, Array]) -> list[dict[str, Any]]:
        """Return the bias of each layer, or None."""
        c = self.config
        rows, columns = c.grid_of(batch["pixel_values"].shape[2:])
        # One constant for all layers.
        index = jnp.asarray(relative_index(rows, columns))

        def relative_bias(name: str) -> Array:
            module = RelativePositionBias(c.heads, c.grid, name=name)
            return module((rows, columns), index)

        shared = relative_bias("position_bias") if c.shared_bias else None
        biases = [shared] * c.layers
        if c.own_bias:
            biases = [relative_bias(f"position_bias_{i}") for i in range(c.layers)]
            biases = biases if shared is None else [shared + own for own in biases]
        return [{"bias": bias} for bias in biases]


_TABLE = "relative_position_bias.relative_position_bias_table"
RULES = (
    *vit.COMMON_RULES,
    *vit.BLOCK_RULES,
    Rule(f"encoder.{_TABLE}", "position_bias/table"),
    Rule(f"encoder.layer.*.attention.attention.{_TABLE}", "position_bias_*/table"),
    Rule("encoder.layer.*.lambda_1", "layer_*/attention_scale/gamma"),
    Rule("encoder.layer.*.lambda_2", "layer_*/mlp_scale/gamma"),
    *norm("pooler.layernorm", "norm"),
)


def poolings(config: BeitConfig) -> tuple[str, ...]:
    """What the classifier of the model reads first: the mean of patches or the class token."""
    if config.pooling == "cls":
        return ("cls", "mean", "pooler")
    return (*(["pooler"] if config.pooling else []), "mean", "cls")


def ignored(config: BeitConfig) -> tuple[str, ...]:
    """Heads, and the norm that a mean-pooling model has only in its masked image modelling head."""
    return (
        "*.relative_position_index",
        "embeddings.mask_token",
        "classifier.*",
        "lm_head.*",
        "decode_head.*",
        "auxiliary_head.*",
        "fpn1.*",
        "fpn2.*",
        *([] if config.norm_tokens else ["layernorm.*"]),
    )


BEIT = Family(
    name="beit",
    parse=parse,
    build=Beit,
    rules=RULES,
    poolings=poolings,
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("beit.",),
    ignored=ignored,
)
FAMILIES = {"beit": BEIT}
