"""DistilBERT: Sanh et al. 2019, arXiv 1910.01108."""

from dataclasses import replace

from .._config import ConfigReader
from .._layers import ACTIVATION_NAMES
from .._weights import linear, norm
from . import bert


def parse(reader: ConfigReader, tensors: frozenset[str]) -> bert.BertConfig:
    """Read the configuration, which is that of a BERT without segments and pooler."""
    # Only how training starts: sinusoidal positions are a table in the checkpoint, too.
    reader.neutral("sinusoidal_pos_embds", "language", "name")
    return bert.BertConfig(
        vocab_size=reader.get("vocab_size", 30522),
        hidden_size=reader.get("dim", 768),
        num_hidden_layers=reader.get("n_layers", 6),
        num_attention_heads=reader.get("n_heads", 12),
        intermediate_size=reader.get("hidden_dim", 3072),
        hidden_act=reader.get("activation", "gelu", str, ACTIVATION_NAMES),
        max_position_embeddings=reader.get("max_position_embeddings", 512),
        type_vocab_size=0,
        layer_norm_eps=1e-12,  # the reference fixes it
        has_pooler=False,
    )


RULES = (
    *bert.EMBEDDING_RULES,
    *linear("transformer.layer.*.attention.q_lin", "layer_*/attention/query"),
    *linear("transformer.layer.*.attention.k_lin", "layer_*/attention/key"),
    *linear("transformer.layer.*.attention.v_lin", "layer_*/attention/value"),
    *linear("transformer.layer.*.attention.out_lin", "layer_*/attention/out"),
    *norm("transformer.layer.*.sa_layer_norm", "layer_*/attention_norm"),
    *linear("transformer.layer.*.ffn.lin1", "layer_*/mlp/up"),
    *linear("transformer.layer.*.ffn.lin2", "layer_*/mlp/down"),
    *norm("transformer.layer.*.output_layer_norm", "layer_*/mlp_norm"),
)

DISTILBERT = replace(
    bert.BERT,
    name="distilbert",
    parse=parse,
    rules=RULES,
    prefixes=("distilbert.",),
    ignored=(*bert.IGNORED, "vocab_*", "pre_classifier.*"),
)
FAMILIES = {"distilbert": DISTILBERT}
