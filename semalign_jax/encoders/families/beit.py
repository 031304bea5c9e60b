"""BEiT, and DiT, a BEiT of documents.

Bao et al. 2021, arXiv 2106.08254; Li et al. 2022, arXiv 2203.02378. For other image sizes the
relative positions are interpolated as in Birkl et al. 2023, arXiv 2307.14460.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    Activation,
    Array,
    LayerNorm,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    behind_tokens,
    with_positions,
)
from .._weights import Rule, norm
from . import vit


@dataclass(frozen=True, kw_only=True)
class BeitConfig:
    """Sizes and options, named as in ``config.json``."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale: bool
    use_mean_pooling: bool = True
    has_pooler: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the positions were learned for."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


def parse(reader: ConfigReader, tensors: frozenset[str]) -> BeitConfig:
    """Read the configuration."""
    # Of masked image modelling and of segmentation.
    reader.neutral("vocab_size", "use_mask_token", "segmentation_indices", "add_fpn", "pool_scales")
    reader.neutral("use_auxiliary_head", "auxiliary_*", "semantic_loss_ignore_index")
    scale = reader.get("layer_scale_init_value", 0.1, float)
    has_pooler = "pooler.layernorm.weight" in tensors
    config = reader.read(BeitConfig, layer_scale=scale > 0, has_pooler=has_pooler)
    rows, columns = config.grid
    relative = config.use_relative_position_bias or config.use_shared_relative_position_bias
    # The reference reads the table of such a model with rows and columns exchanged.
    if relative and rows != columns:
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


class Beit(nn.Module):
    """Class token and patches; pre-norm layers with biases by relative position.

    With mean pooling the output has no final norm: it is in the pooler, after the mean.
    """

    config: BeitConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = PatchEmbedding(c.hidden_size, c.patch_size, name="patches")(batch["pixel_values"])
        _, rows, columns, _ = x.shape
        x = behind_tokens(self, x, cls_token=1)
        if c.use_absolute_position_embeddings:
            x = with_positions(self, x, 1, c, (rows, columns))

        # One constant for all layers.
        index = jnp.asarray(relative_index(rows, columns))

        def relative_bias(name: str) -> Array:
            module = RelativePositionBias(c.num_attention_heads, c.grid, name=name)
            return module((rows, columns), index)

        shared = relative_bias("position_bias") if c.use_shared_relative_position_bias else None
        states = [x]
        for i in range(c.num_hidden_layers):
            bias = shared
            if c.use_relative_position_bias:
                own = relative_bias(f"position_bias_{i}")
                bias = own if shared is None else shared + own
            block = PreNormBlock(
                c.num_attention_heads,
                c.intermediate_size,
                c.hidden_act,
                c.layer_norm_eps,
                bias=(True, False, True, True),
                layer_scale=c.layer_scale,
                name=f"layer_{i}",
            )
            states.append(block(states[-1], bias=bias))
        last, pooled = states[-1], None
        if not c.use_mean_pooling:
            last = LayerNorm(c.layer_norm_eps, name="norm")(last)
            pooled = last[:, 0]
        elif c.has_pooler:
            pooled = LayerNorm(c.layer_norm_eps, name="pooler_norm")(jnp.mean(last[:, 1:], axis=1))
        return Outputs(tuple(states), last, prefix_tokens=1, pooled=pooled)


_TABLE = "relative_position_bias.relative_position_bias_table"
RULES = (
    *vit.COMMON_RULES,
    *vit.BLOCK_RULES,
    Rule(f"encoder.{_TABLE}", "position_bias/table"),
    Rule(f"encoder.layer.*.attention.attention.{_TABLE}", "position_bias_*/table"),
    Rule("encoder.layer.*.lambda_1", "layer_*/attention_scale/gamma"),
    Rule("encoder.layer.*.lambda_2", "layer_*/mlp_scale/gamma"),
    *norm("pooler.layernorm", "pooler_norm"),
)


def poolings(config: BeitConfig) -> tuple[str, ...]:
    """What the classifier of the model reads first: the mean of patches or the class token."""
    if not config.use_mean_pooling:
        return ("cls", "mean", "pooler")
    return (*(["pooler"] if config.has_pooler else []), "mean", "cls")


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
        *(["layernorm.*"] if config.use_mean_pooling else []),
    )


BEIT = Family(
    name="beit",
    modalities=(IMAGE,),
    parse=parse,
    build=Beit,
    rules=RULES,
    poolings=poolings,
    image_size=lambda config: (config.num_channels, *config.image_size),
    prefixes=("beit.",),
    ignored=ignored,
)
FAMILIES = {"beit": BEIT}
