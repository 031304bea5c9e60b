"""Gemma 3 without images, causal or bidirectional as EmbeddingGemma.

Gemma Team 2025, arXiv 2503.19786; EmbeddingGemma: Vera et al. 2025, arXiv 2509.20354.
"""

from dataclasses import replace

from .._config import ConfigReader
from .._layers import ACTIVATION_NAMES
from .._weights import Rule
from .qwen3 import FULL, QWEN3, RULES, SLIDING, DecoderConfig, heads, layer_types, rope_thetas


def parse(reader: ConfigReader, tensors: frozenset[str]) -> DecoderConfig:
    """Read the configuration, with the keys of transformers 4 or 5."""
    reader.neutral("final_logit_softcapping")
    reader.only("attn_logit_softcapping", None)
    reader.only("rope_scaling", None)
    bidirectional = reader.get("use_bidirectional_attention", False, bool)
    # Files name the period of full layers in two ways, and layer_types counts if it is there.
    period = reader.get("_sliding_window_pattern", reader.get("sliding_window_pattern", 6))
    if period < 1:
        reader.problem(f"sliding_window_pattern must be positive; it is {period}")
    layers = range(reader.get("num_hidden_layers", 26))
    kinds = layer_types(reader, [SLIDING if (i + 1) % max(period, 1) else FULL for i in layers])
    window = reader.get("sliding_window", 4096)
    if bidirectional:  # it is that of both sides together
        window = window // 2 + 1
    thetas = rope_thetas(
        reader,
        kinds,
        full_attention=reader.get("rope_theta", 1_000_000.0, float),
        sliding_attention=reader.get("rope_local_base_freq", 10_000.0, float),
    )
    hidden_size = reader.get("hidden_size", 2304)
    return DecoderConfig(
        vocab_size=reader.get("vocab_size", 262_208),
        hidden_size=hidden_size,
        **heads(reader, 8, 4),
        head_dim=reader.get("head_dim", 256),
        intermediate_size=reader.get("intermediate_size", 9216),
        hidden_act=reader.get("hidden_activation", "gelu_pytorch_tanh", str, ACTIVATION_NAMES),
        max_position_embeddings=reader.get("max_position_embeddings", 131_072),
        rms_norm_eps=reader.get("rms_norm_eps", 1e-6, float),
        attention_bias=reader.get("attention_bias", False, bool),
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        thetas=thetas,
        scale=reader.get("query_pre_attn_scalar", 256) ** -0.5,
        causal=not bidirectional,
        embedding_scale=hidden_size**0.5,
        gemma=True,
    )


GEMMA3 = replace(
    QWEN3,
    name="gemma3_text",
    parse=parse,
    rules=(
        *RULES,
        Rule("layers.*.post_attention_layernorm.weight", "layer_*/attention_out_norm/scale"),
        Rule("layers.*.pre_feedforward_layernorm.weight", "layer_*/mlp_norm/scale"),
        Rule("layers.*.post_feedforward_layernorm.weight", "layer_*/mlp_out_norm/scale"),
    ),
    poolings=lambda config: ("eos", "mean") if config.causal else ("mean", "eos"),
)
FAMILIES = {"gemma3_text": GEMMA3}
