"""BERT and its descendants: BioBERT, ClinicalBERT, PubMedBERT, SapBERT, MiniLM, CXR-BERT.

Devlin et al. 2018, arXiv 1810.04805; CXR-BERT: Boecking et al. 2022, arXiv 2204.09817.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import Family
from .._layers import (
    ACTIVATIONS,
    Activation,
    Array,
    LayerNorm,
    Outputs,
    PostNormBlock,
    padding_mask,
)
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


class Bert(nn.Module):
    """Embeddings, layers and the pooler; relatives override what they have of their own.

    Attributes:
        config: sizes and options.
        block: of a layer, called with its sizes.
        embeddings_norm: whether there is a norm behind the embeddings.
        final_norm: whether there is one behind the last layer, which is of its hidden state, too.
    """

    config: BertConfig
    block: Callable[..., nn.Module] = PostNormBlock
    embeddings_norm: bool = True
    final_norm: bool = False

    def positions(self, ids: Array) -> Array | None:
        """Return rows of the table of positions, ``[1 or batch, tokens]``; None without a table."""
        return jnp.arange(ids.shape[1])[None]

    def embed(self, batch: dict[str, Array], width: int | None = None) -> Array:
        """Return the sum of the embeddings of words, segments and positions."""
        c, ids = self.config, batch["input_ids"]
        width = width or c.hidden_size
        x = nn.Embed(c.vocab_size, width, name="word_embeddings")(ids)
        if c.type_vocab_size:
            types = batch.get("token_type_ids", jnp.zeros_like(ids))
            x += nn.Embed(c.type_vocab_size, width, name="token_type_embeddings")(types)
        places = self.positions(ids)
        if places is not None:
            x += nn.Embed(c.max_position_embeddings, width, name="position_embeddings")(places)
        return LayerNorm(c.layer_norm_eps, name="embeddings_norm")(x) if self.embeddings_norm else x

    def attention_options(self, batch: dict[str, Array]) -> dict[str, Any]:
        """Return what each layer gets besides tokens and mask."""
        return {}

    def layers(self, x: Array, batch: dict[str, Array]) -> list[Array]:
        """Return the tokens in front of and behind each layer."""
        c, states = self.config, [x]
        mask, options = padding_mask(batch.get("attention_mask")), self.attention_options(batch)
        sizes = (c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
        for i in range(c.num_hidden_layers):
            states.append(self.block(*sizes, name=f"layer_{i}")(states[-1], mask, **options))
        return states

    def head(self, outputs: Outputs) -> Outputs:
        """Return the outputs with what follows the pooler."""
        return outputs

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        states = self.layers(self.embed(batch), batch)
        if self.final_norm:
            states[-1] = LayerNorm(self.config.layer_norm_eps, name="norm")(states[-1])
        pooled = None
        if self.config.has_pooler:
            pooled = jnp.tanh(nn.Dense(states[-1].shape[-1], name="pooler")(states[-1][:, 0]))
        return self.head(Outputs(tuple(states), states[-1], pooled=pooled))


class CxrBert(Bert):
    """BERT and a head from the first token into the space shared with images."""

    config: CxrBertConfig

    def head(self, outputs: Outputs) -> Outputs:
        """Return the outputs with the projection, if there is one."""
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
