"""Nomic BERT, with rotary positions and gated MLPs: Nussbaum et al. 2024, arXiv 2402.01613."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn

from .._config import ConfigReader
from .._layers import ACTIVATION_NAMES, Array, PostNormBlock, rotate
from .._weights import embedding, linear, norm, packed
from . import bert
from .qwen3 import rope_theta


@dataclass(frozen=True, kw_only=True)
class NomicBertConfig(bert.BertConfig):
    """And the base of the rotary positions."""

    rope_theta: float


def parse(reader: ConfigReader, tensors: frozenset[str]) -> NomicBertConfig:
    """Read the configuration, with the keys of transformers or those of the model's own code."""
    # Of the model's own code: what only training or speed depends on, and what must be off.
    reader.neutral("*_pdrop", "summary_*", "fused_*", "use_flash_attn", "use_xentropy")
    reader.neutral(
        "dense_seq_output", "pad_vocab_size_multiple", "last_layer_subset", "n_positions"
    )
    reader.neutral("reorder_and_upcast_attn")
    for name in (
        "causal",
        "prenorm",
        "parallel_block",
        "parallel_block_tied_norm",
        "qkv_proj_bias",
        "mlp_fc1_bias",
        "mlp_fc2_bias",
        "rotary_emb_interleaved",
        "scale_attn_by_inverse_layer_idx",
        "use_rms_norm",
    ):
        reader.only(name, False)
    reader.only("rotary_emb_fraction", 1.0)
    reader.only("scale_attn_weights", True)
    for name in ("rotary_emb_scale_base", "rotary_scaling_factor", "rope_scaling"):
        reader.only(name, None)
    reader.only("activation_function", "swiglu")

    def get(name: str, old: str, default: Any, kind: type = int) -> Any:
        return reader.get(name, reader.get(old, default, kind), kind)

    theta = reader.get("rotary_emb_base", 1000.0, float)
    width = get("hidden_size", "n_embd", 768)
    heads = get("num_attention_heads", "n_head", 12)
    reader.only("head_dim", None, width // max(heads, 1))
    return NomicBertConfig(
        vocab_size=reader.get("vocab_size", 30528),
        hidden_size=width,
        num_hidden_layers=get("num_hidden_layers", "n_layer", 12),
        num_attention_heads=heads,
        intermediate_size=get("intermediate_size", "n_inner", 3072),
        hidden_act=reader.get("hidden_act", "silu", str, ACTIVATION_NAMES),
        # Beyond what was trained, the model's own code scales the positions, which is not done.
        max_position_embeddings=get("max_position_embeddings", "max_trained_positions", 2048),
        type_vocab_size=reader.get("type_vocab_size", 2),
        layer_norm_eps=get("layer_norm_eps", "layer_norm_epsilon", 1e-12, float),
        rope_theta=rope_theta(reader.section("rope_parameters"), theta),
        has_pooler="pooler.dense.weight" in tensors,
    )


class NomicBert(bert.Bert):
    """BERT with rotary positions and gated MLPs."""

    config: NomicBertConfig
    block: Callable[..., nn.Module] = partial(PostNormBlock, bias=False, gated=True)

    def positions(self, ids: Array) -> None:
        """There is no table."""

    def attention_options(self, batch: dict[str, Array]) -> dict[str, Any]:
        """Return the rotation."""
        return {"rotate": partial(rotate, theta=self.config.rope_theta)}


RULES = (
    *embedding("embeddings.word_embeddings", "word_embeddings"),
    *embedding("embeddings.token_type_embeddings", "token_type_embeddings"),
    *linear("pooler.dense", "pooler"),
    *norm("emb_ln", "embeddings_norm"),
    *packed("encoder.layers.*.attn.Wqkv.", "layer_*/attention"),
    *linear("encoder.layers.*.attn.out_proj", "layer_*/attention/out"),
    *norm("encoder.layers.*.norm1", "layer_*/attention_norm"),
    *linear("encoder.layers.*.mlp.fc11", "layer_*/mlp/up"),
    *linear("encoder.layers.*.mlp.fc12", "layer_*/mlp/gate"),
    *linear("encoder.layers.*.mlp.fc2", "layer_*/mlp/down"),
    *norm("encoder.layers.*.norm2", "layer_*/mlp_norm"),
)
NOMIC_BERT = replace(
    bert.BERT,
    name="nomic_bert",
    parse=parse,
    build=NomicBert,
    rules=RULES,
    prefixes=("nomic_bert.", "bert."),  # by transformers, and by the own code
    ignored=(*bert.IGNORED, "lm_head.*", "*.inv_freq"),
)
FAMILIES = {"nomic_bert": NOMIC_BERT}
