"""DistilBERT: Sanh et al. 2019, arXiv 1910.01108."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import TEXT, Family
from .._layers import Activation, Array, LayerNorm, Outputs, PostNormBlock, padding_mask
from .._weights import embedding, linear, norm

#: The reference fixes it.
EPS = 1e-12


@dataclass(frozen=True)
class DistilBertConfig:
    """Sizes and options, named as in ``config.json``."""

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: Activation = "gelu"
    max_position_embeddings: int = 512


def parse(reader: ConfigReader, tensors: frozenset[str]) -> DistilBertConfig:
    """Read the configuration."""
    # Only how training starts: sinusoidal positions are a table in the checkpoint, too.
    reader.neutral("sinusoidal_pos_embds", "language", "name")
    return reader.read(DistilBertConfig)


class DistilBert(nn.Module):
    """Embeddings without segments and post-norm layers."""

    config: DistilBertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and ``attention_mask``."""
        c = self.config
        ids = batch["input_ids"]
        positions = jnp.arange(ids.shape[1])[None]
        x = nn.Embed(c.vocab_size, c.dim, name="word_embeddings")(ids)
        x += nn.Embed(c.max_position_embeddings, c.dim, name="position_embeddings")(positions)
        states = [LayerNorm(EPS, name="embeddings_norm")(x)]
        mask = padding_mask(batch.get("attention_mask"))
        for i in range(c.n_layers):
            block = PostNormBlock(c.n_heads, c.hidden_dim, c.activation, EPS, name=f"layer_{i}")
            states.append(block(states[-1], mask))
        return Outputs(tuple(states), states[-1])


RULES = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *norm("embeddings.LayerNorm", "embeddings_norm"),
    *linear("transformer.layer.*.attention.q_lin", "layer_*/attention/query"),
    *linear("transformer.layer.*.attention.k_lin", "layer_*/attention/key"),
    *linear("transformer.layer.*.attention.v_lin", "layer_*/attention/value"),
    *linear("transformer.layer.*.attention.out_lin", "layer_*/attention/out"),
    *norm("transformer.layer.*.sa_layer_norm", "layer_*/attention_norm"),
    *linear("transformer.layer.*.ffn.lin1", "layer_*/mlp/up"),
    *linear("transformer.layer.*.ffn.lin2", "layer_*/mlp/down"),
    *norm("transformer.layer.*.output_layer_norm", "layer_*/mlp_norm"),
)

DISTILBERT = Family(
    name="distilbert",
    modalities=(TEXT,),
    parse=parse,
    build=DistilBert,
    rules=RULES,
    poolings=lambda config: ("mean", "cls", "eos"),
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("distilbert.",),
    ignored=(
        "embeddings.position_ids",
        "vocab_*",
        "pre_classifier.*",
        "classifier.*",
        "qa_outputs.*",
    ),
)
FAMILIES = {"distilbert": DISTILBERT}
