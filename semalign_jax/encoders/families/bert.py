"""BERT and its descendants: BioBERT, ClinicalBERT, PubMedBERT, SapBERT, MiniLM, CXR-BERT.

Devlin et al. 2018, arXiv 1810.04805; CXR-BERT: Boecking et al. 2022, arXiv 2204.09817.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import Family
from .._layers import ACTIVATIONS, Activation, Array, LayerNorm, Outputs, layers
from .._weights import embedding, linear, norm

_Config = TypeVar("_Config", bound="BertConfig")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes and options, named as in ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    has_pooler: bool


@dataclass(frozen=True, kw_only=True)
class CxrBertConfig(BertConfig):
    """And the width of the space shared with images; None without the head into it."""

    projection_size: int | None


def parse(
    reader: ConfigReader,
    tensors: frozenset[str],
    config: type[_Config] = BertConfig,
    **own: Any,
) -> _Config:
    """Read the configuration of BERT or of a relative; `own` as in `ConfigReader.read`."""
    reader.only("position_embedding_type", "absolute", None)
    reader.neutral("language", "name")
    return reader.read(config, **{"has_pooler": "pooler.dense.weight" in tensors} | own)


def parse_cxr(reader: ConfigReader, tensors: frozenset[str]) -> CxrBertConfig:
    """Read the configuration of CXR-BERT."""
    size = reader.get("projection_size", 128)
    has_head = "cls_projection_head.dense_to_output.weight" in tensors
    return parse(reader, tensors, CxrBertConfig, projection_size=size if has_head else None)


def embed_without_norm(
    config: BertConfig,
    batch: dict[str, Array],
    positions: Array | None = None,
    width: int | None = None,
) -> Array:
    """Sum of the embeddings of words, positions and segments, if the model has these.

    Called inside of a compact method, whose module gets the tables.

    Args:
        config: sizes.
        batch: with ``input_ids [batch, tokens]`` and optional ``token_type_ids``.
        positions: ``[batch, tokens]``; by default those of the batch.
        width: of the embeddings; by default ``hidden_size``.
    """
    width = width or config.hidden_size
    ids = batch["input_ids"]
    positions = jnp.arange(ids.shape[1])[None] if positions is None else positions
    x = nn.Embed(config.vocab_size, width, name="word_embeddings")(ids)
    if config.type_vocab_size:
        types = batch.get("token_type_ids", jnp.zeros_like(ids))
        x += nn.Embed(config.type_vocab_size, width, name="token_type_embeddings")(types)
    x += nn.Embed(config.max_position_embeddings, width, name="position_embeddings")(positions)
    return x


def embed(config: BertConfig, batch: dict[str, Array], **options: Any) -> Array:
    """Those embeddings and their norm; called likewise."""
    x = embed_without_norm(config, batch, **options)
    return LayerNorm(config.layer_norm_eps, name="embeddings_norm")(x)


def transform(config: BertConfig, x: Array, attention_mask: Array | None) -> Outputs:
    """Post-norm layers and the pooler; called likewise."""
    return outputs_of(config.has_pooler, layers(config, x, attention_mask))


def outputs_of(has_pooler: bool, states: list[Array]) -> Outputs:
    """The states of all layers, and the pooler (linear, tanh) of the first token of the last."""
    pooled = None
    if has_pooler:
        pooled = jnp.tanh(nn.Dense(states[-1].shape[-1], name="pooler")(states[-1][:, 0]))
    return Outputs(tuple(states), states[-1], pooled=pooled)


class Bert(nn.Module):
    """Embeddings, post-norm layers and the pooler."""

    config: BertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        x = embed(self.config, batch)
        return transform(self.config, x, batch.get("attention_mask"))


class CxrBert(nn.Module):
    """BERT and a head from the first token into the space shared with images."""

    config: CxrBertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        x = embed(self.config, batch)
        outputs = transform(self.config, x, batch.get("attention_mask"))
        size = self.config.projection_size
        if size is None:
            return outputs
        # The reference fixes the activation and the eps of this head.
        x = ACTIVATIONS["gelu"](nn.Dense(size, name="projection_hidden")(outputs.last[:, 0]))
        x = LayerNorm(1e-12, name="projection_norm")(x)
        return outputs._replace(projected=nn.Dense(size, name="projection_out")(x))


EMBEDDING_RULES = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.position_embeddings", "position_embeddings"),
    *embedding("embeddings.token_type_embeddings", "token_type_embeddings"),
    *norm("embeddings.LayerNorm", "embeddings_norm"),
)
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
RULES = (*EMBEDDING_RULES, *LAYER_RULES, *linear("pooler.dense", "pooler"))
CXR_RULES = (
    *RULES,
    *linear("cls_projection_head.dense_to_hidden", "projection_hidden"),
    *norm("cls_projection_head.LayerNorm", "projection_norm"),
    *linear("cls_projection_head.dense_to_output", "projection_out"),
)
#: Buffers and the heads of tasks.
IGNORED = ("embeddings.position_ids", "cls.*", "classifier.*", "qa_outputs.*")


def poolings(config: BertConfig) -> tuple[str, ...]:
    """Mean first, as sentence encoders use it."""
    return ("mean", "cls", "eos", *(["pooler"] if config.has_pooler else []))


def cxr_poolings(config: CxrBertConfig) -> tuple[str, ...]:
    """The projection first, as this model is trained for it."""
    return (*(["projection"] if config.projection_size else []), *poolings(config))


BERT = Family(
    name="bert",
    parse=parse,
    build=Bert,
    rules=RULES,
    poolings=poolings,
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("bert.",),
    ignored=IGNORED,
)
CXR_BERT = replace(
    BERT, name="cxr-bert", parse=parse_cxr, build=CxrBert, rules=CXR_RULES, poolings=cxr_poolings
)
FAMILIES = {"bert": BERT, "cxr-bert": CXR_BERT}
