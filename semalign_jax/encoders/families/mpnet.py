"""MPNet: Song et al. 2020, arXiv 2004.09297; relative positions: Raffel et al. 2020, 1910.10683."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._layers import Array, positions_past_padding
from .._weights import embedding, linear, norm
from . import bert

#: The reference fixes them, whatever the configuration says.
PAD, BUCKETS, MAX_DISTANCE = 1, 32, 128


@dataclass(frozen=True, kw_only=True)
class MPNetConfig(bert.BertConfig):
    """That of BERT with other defaults."""

    vocab_size: int = 30527
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072


def parse(reader: ConfigReader, tensors: frozenset[str]) -> MPNetConfig:
    """Read the configuration."""
    reader.only("relative_attention_num_buckets", BUCKETS)
    has_pooler = "pooler.dense.weight" in tensors
    return reader.read(MPNetConfig, type_vocab_size=0, has_pooler=has_pooler)


def relative_buckets(tokens: int) -> np.ndarray:
    """Return which of the learned biases a query and a key share, ``[tokens, tokens]``.

    Half of the buckets are for keys after the query. Of each half, the first half holds one
    distance each, the rest ranges that grow in proportion to the distance.
    """
    offset = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    distance = np.abs(offset)
    half = BUCKETS // 2
    exact = half // 2
    # In float32, as distances of a power of two lie on the border of two ranges.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = growth / np.float32(np.log(MAX_DISTANCE / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(int), half - 1)
    return np.where(distance < exact, distance, far) + half * (offset > 0)


class MPNet(bert.Bert):
    """BERT without segments, whose layers share a bias by relative position."""

    config: MPNetConfig

    def positions(self, ids: Array) -> Array:
        """Return the positions; padding has its own."""
        return positions_past_padding(ids, PAD)

    def attention_options(self, batch: dict[str, Array]) -> dict[str, Any]:
        """Return the bias."""
        biases = nn.Embed(BUCKETS, self.config.num_attention_heads, name="relative_attention_bias")
        buckets = jnp.asarray(relative_buckets(batch["input_ids"].shape[1]))
        return {"bias": biases(buckets).transpose(2, 0, 1)[None]}


RULES = (
    *bert.RULES,
    *embedding("encoder.relative_attention_bias", "relative_attention_bias"),
    *linear("encoder.layer.*.attention.attn.q", "layer_*/attention/query"),
    *linear("encoder.layer.*.attention.attn.k", "layer_*/attention/key"),
    *linear("encoder.layer.*.attention.attn.v", "layer_*/attention/value"),
    *linear("encoder.layer.*.attention.attn.o", "layer_*/attention/out"),
    *norm("encoder.layer.*.attention.LayerNorm", "layer_*/attention_norm"),
)

MPNET = replace(
    bert.BERT,
    name="mpnet",
    parse=parse,
    build=MPNet,
    rules=RULES,
    max_tokens=lambda config: config.max_position_embeddings - PAD - 1,
    prefixes=("mpnet.",),
    ignored=(*bert.IGNORED, "lm_head.*"),
)
FAMILIES = {"mpnet": MPNET}
