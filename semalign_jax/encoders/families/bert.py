"""BERT and its descendants: BioBERT, ClinicalBERT, PubMedBERT, SapBERT, MiniLM.

Devlin et al. 2018, arXiv 1810.04805.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import TEXT, Family
from .._layers import ACTIVATION_NAMES, Array, Outputs, PostNormBlock, layer_norm, padding_mask
from .._weights import embedding, linear, norm


@dataclass(frozen=True)
class BertConfig:
    """Sizes and options, named as in ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    has_pooler: bool


def parse(reader: ConfigReader, tensors: frozenset[str]) -> BertConfig:
    """Read the configuration."""
    reader.only("position_embedding_type", "absolute", None)
    reader.only("is_decoder", False)
    reader.only("add_cross_attention", False)
    reader.only("is_encoder_decoder", False)
    reader.only("pruned_heads", {}, None)
    return BertConfig(
        vocab_size=reader.get("vocab_size"),
        hidden_size=reader.get("hidden_size"),
        num_hidden_layers=reader.get("num_hidden_layers"),
        num_attention_heads=reader.get("num_attention_heads"),
        intermediate_size=reader.get("intermediate_size"),
        hidden_act=reader.get("hidden_act", "gelu", str, ACTIVATION_NAMES),
        max_position_embeddings=reader.get("max_position_embeddings", 512),
        type_vocab_size=reader.get("type_vocab_size", 2),
        layer_norm_eps=reader.get("layer_norm_eps", 1e-12, float),
        has_pooler="pooler.dense.weight" in tensors,
    )


class Bert(nn.Module):
    """Embeddings, post-norm layers and the pooler (linear, tanh) of the first token."""

    config: BertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        c = self.config
        ids = batch["input_ids"]
        types = batch.get("token_type_ids", jnp.zeros_like(ids))
        positions = jnp.arange(ids.shape[1])
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word_embeddings")(ids)
        x += nn.Embed(c.type_vocab_size, c.hidden_size, name="token_type_embeddings")(types)
        place = nn.Embed(c.max_position_embeddings, c.hidden_size, name="position_embeddings")
        x = layer_norm(c.layer_norm_eps, "embeddings_norm")(x + place(positions)[None])
        mask = padding_mask(batch.get("attention_mask"))
        states = [x]
        for i in range(c.num_hidden_layers):
            block = PostNormBlock(
                c.num_attention_heads,
                c.intermediate_size,
                c.hidden_act,
                c.layer_norm_eps,
                name=f"layer_{i}",
            )
            states.append(block(states[-1], mask))
        pooled = None
        if c.has_pooler:
            pooled = jnp.tanh(nn.Dense(c.hidden_size, name="pooler")(states[-1][:, 0]))
        return Outputs(tuple(states), states[-1], pooled=pooled)


#: Of one layer, under the name that BERT gives it.
LAYER_RULES = (
    *linear("encoder.layer.*.attention.self.query", "layer_*/attention/query"),
    *linear("encoder.layer.*.attention.self.key", "layer_*/attention/key"),
    *linear("encoder.layer.*.attention.self.value", "layer_*/attention/value"),
    *linear("encoder.layer.*.attention.output.dense", "layer_*/attention/out"),
    *norm("encoder.layer.*.attention.output.LayerNorm", "layer_*/attention_norm"),
    *linear("encoder.layer.*.intermediate.dense", "layer_*/mlp/up"),
    *linear("encoder.layer.*.output.dense", "layer_*/mlp/down"),
    *norm("encoder.layer.*.output.LayerNorm", "layer_*/mlp_norm"),
)
RULES = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *embedding("embeddings.token_type_embeddings", "token_type_embeddings"),
    *norm("embeddings.LayerNorm", "embeddings_norm"),
    *LAYER_RULES,
    *linear("pooler.dense", "pooler"),
)


def poolings(config: BertConfig) -> tuple[str, ...]:
    """Mean first, as sentence encoders use it."""
    return ("mean", "cls", "eos", *(["pooler"] if config.has_pooler else []))


BERT = Family(
    name="bert",
    modalities=(TEXT,),
    parse=parse,
    build=Bert,
    rules=RULES,
    poolings=poolings,
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("bert.",),
    ignored=("embeddings.position_ids", "cls.*", "classifier.*", "qa_outputs.*"),
)
FAMILIES = {"bert": BERT}
