"""ALBERT, whose layers share their weights: Lan et al. 2019, arXiv 1909.11942."""

from dataclasses import dataclass, replace

import flax.linen as nn

from .._config import ConfigReader
from .._layers import Activation, Array, PostNormBlock, padding_mask
from .._weights import linear, norm
from . import bert


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(bert.BertConfig):
    """And the width of the embeddings and how layers share their weights.

    Attributes:
        num_hidden_groups: number of groups; consecutive layers are of one group.
        inner_group_num: number of blocks of a group, all applied in each layer.
    """

    hidden_act: Activation = "gelu_new"
    embedding_size: int = 128
    num_hidden_groups: int = 1
    inner_group_num: int = 1


def parse(reader: ConfigReader, tensors: frozenset[str]) -> AlbertConfig:
    """Read the configuration."""
    # Of the first files, without effect.
    reader.neutral("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")
    has_pooler = "pooler.weight" in tensors
    config = bert.parse(reader, tensors, AlbertConfig, has_pooler=has_pooler)
    groups = config.num_hidden_groups
    if not 1 <= groups <= config.num_hidden_layers:
        reader.problem(f"num_hidden_groups must be from 1 to num_hidden_layers; it is {groups}")
    return config


class Albert(bert.Bert):
    """Narrow embeddings, a projection to the width of the layers, shared layers, the pooler."""

    config: AlbertConfig

    def embed(self, batch: dict[str, Array]) -> Array:
        """Return the embeddings in the width of the layers."""
        x = super().embed(batch, self.config.embedding_size)
        return nn.Dense(self.config.hidden_size, name="embeddings_project")(x)

    def layers(self, x: Array, batch: dict[str, Array]) -> list[Array]:
        """Return the tokens in front of and behind each block."""
        c, states = self.config, [x]
        mask = padding_mask(batch.get("attention_mask"))
        sizes = (c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
        groups = [
            [PostNormBlock(*sizes, name=f"group_{k}_block_{i}") for i in range(c.inner_group_num)]
            for k in range(c.num_hidden_groups)
        ]
        for i in range(c.num_hidden_layers):
            for block in groups[int(i / (c.num_hidden_layers / c.num_hidden_groups))]:
                states.append(block(states[-1], mask))
        return states


_LAYER, _BLOCK = "encoder.albert_layer_groups.*.albert_layers.*", "group_*_block_*"
ALBERT = replace(
    bert.BERT,
    name="albert",
    parse=parse,
    build=Albert,
    rules=(
        *bert.EMBEDDING_RULES,
        *linear("encoder.embedding_hidden_mapping_in", "embeddings_project"),
        *linear(f"{_LAYER}.attention.query", f"{_BLOCK}/attention/query"),
        *linear(f"{_LAYER}.attention.key", f"{_BLOCK}/attention/key"),
        *linear(f"{_LAYER}.attention.value", f"{_BLOCK}/attention/value"),
        *linear(f"{_LAYER}.attention.dense", f"{_BLOCK}/attention/out"),
        *norm(f"{_LAYER}.attention.LayerNorm", f"{_BLOCK}/attention_norm"),
        *linear(f"{_LAYER}.ffn", f"{_BLOCK}/mlp/up"),
        *linear(f"{_LAYER}.ffn_output", f"{_BLOCK}/mlp/down"),
        *norm(f"{_LAYER}.full_layer_layer_norm", f"{_BLOCK}/mlp_norm"),
        *linear("pooler", "pooler"),
    ),
    prefixes=("albert.",),
    ignored=(*bert.IGNORED, "predictions.*", "sop_classifier.*"),
)
FAMILIES = {"albert": ALBERT}
