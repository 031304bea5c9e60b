"""Qwen3 and Qwen3-Embedding: Yang et al. 2025, arXiv 2505.09388; Zhang et al. 2025, 2506.05176.

The last token that the mask shows stands for a text. Rotary positions count from the left end of
the batch, as in the reference: what is said of a text depends on distances alone, so padding may be
on either side.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from .._config import ConfigReader
from .._family import Family
from .._layers import (
    ACTIVATION_NAMES,
    Array,
    GatedMlp,
    Outputs,
    RMSNorm,
    attention,
    padding_mask,
    rotate,
)
from .._weights import Rule, embedding, linear

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options, most named as in ``config.json``.

    Attributes:
        windows: per layer, at which distance a token is no longer attended to; None for none.
        thetas: per layer, the base of the rotary embedding.
        causal: whether a token sees only itself and those before it.
        scale: of the logits of attention.
        embedding_scale: factor of the embeddings.
        gemma: whether norms multiply by ``1 + weight`` and there is one behind each part, too.
    """

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool
    windows: tuple[int | None, ...]
    thetas: tuple[float, ...]
    scale: float
    causal: bool = True
    embedding_scale: float = 1.0
    gemma: bool = False


def layer_types(reader: ConfigReader, usual: list[str]) -> list[str]:
    """Return ``layer_types``, one for each layer of `usual`, which is the default."""
    kinds = reader.get("layer_types", None, list)
    if kinds is None:
        return usual
    if len(kinds) != len(usual) or not {FULL, SLIDING}.issuperset(kinds):
        reader.problem(
            f"layer_types must be {len(usual)} (num_hidden_layers) times {FULL!r} or {SLIDING!r}; "
            f"it is {kinds}"
        )
        return usual
    return kinds


def heads(reader: ConfigReader, queries: int, keys: int) -> dict[str, Any]:
    """Return the numbers of heads; these are the defaults."""
    queries = reader.get("num_attention_heads", queries)
    keys = reader.get("num_key_value_heads", keys)
    if keys < 1 or queries % max(keys, 1):
        reader.problem(
            f"num_attention_heads = {queries} must be a multiple of num_key_value_heads = {keys}"
        )
    return {"num_attention_heads": queries, "num_key_value_heads": keys}


def rope_theta(section: ConfigReader, default: float) -> float:
    """Return the base of a rotary embedding, whose ``section`` transformers 5 writes."""
    section.only("rope_type", "default")
    section.only("type", "default")
    return section.get("rope_theta", default, float)


def rope_thetas(reader: ConfigReader, kinds: list[str], **usual: float) -> tuple[float, ...]:
    """Return the base of each layer; `usual` are the defaults by kind."""
    rope = reader.section("rope_parameters")
    thetas = {kind: rope_theta(rope.section(kind), theta) for kind, theta in usual.items()}
    return tuple(thetas[kind] for kind in kinds)


def attended(padding: Array | None, tokens: int, window: int | None, causal: bool = False) -> Array:
    """Return the mask of a layer: what `padding_mask` shows, within a window (see the config)."""
    places = jnp.arange(tokens)
    distance = places[:, None] - places[None, :]
    shown = distance >= 0 if causal else jnp.ones_like(distance, bool)
    if window is not None:
        shown &= jnp.abs(distance) < window
    return shown[None, None] if padding is None else padding & shown[None, None]


def parse(reader: ConfigReader, tensors: frozenset[str]) -> DecoderConfig:
    """Read the configuration, with the keys of transformers 4 or 5."""
    reader.only("rope_scaling", None)
    layers = reader.get("num_hidden_layers", 32)
    sliding = reader.get("use_sliding_window", False, bool)
    first = reader.get("max_window_layers", 28)
    window = reader.get("sliding_window", None)
    usual = [SLIDING if sliding and window and i >= first else FULL for i in range(layers)]
    kinds = layer_types(reader, usual)
    if SLIDING in kinds and not (sliding and window):
        reader.problem(f"layer_types with {SLIDING!r} needs use_sliding_window and sliding_window")
    theta = reader.get("rope_theta", 10_000.0, float)
    theta = rope_theta(reader.section("rope_parameters"), theta)
    head_dim = reader.get("head_dim", 128)
    return DecoderConfig(
        vocab_size=reader.get("vocab_size", 151936),
        hidden_size=reader.get("hidden_size", 4096),
        **heads(reader, 32, 32),
        head_dim=head_dim,
        intermediate_size=reader.get("intermediate_size", 22016),
        hidden_act=reader.get("hidden_act", "silu", str, ACTIVATION_NAMES),
        max_position_embeddings=reader.get("max_position_embeddings", 32768),
        rms_norm_eps=reader.get("rms_norm_eps", 1e-6, float),
        attention_bias=reader.get("attention_bias", False, bool),
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        thetas=(theta,) * layers,
        scale=head_dim**-0.5,
    )


class DecoderAttention(nn.Module):
    """Attention whose heads share keys and values in groups, with normed queries and keys.

    Attributes:
        config: sizes and options.
        theta: base of the rotary embedding.
    """

    config: DecoderConfig
    theta: float

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Attend."""
        c = self.config
        groups = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
        q, k, v = (
            nn.Dense(heads * c.head_dim, use_bias=c.attention_bias, name=name)(x).reshape(
                *x.shape[:2], heads, c.head_dim
            )
            for name, heads in zip(("query", "key", "value"), groups, strict=True)
        )
        q, k = (
            rotate(RMSNorm(c.rms_norm_eps, float(c.gemma), name=f"{name}_norm")(y), self.theta)
            for name, y in (("query", q), ("key", k))
        )
        x = attention(q, k, v, mask=mask, scale=c.scale).reshape(*x.shape[:2], -1)
        return nn.Dense(c.hidden_size, use_bias=c.attention_bias, name="out")(x)


class DecoderBlock(nn.Module):
    """One layer: norms before each part and, in Gemma, behind it, too."""

    config: DecoderConfig
    theta: float

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Apply to tokens."""
        c = self.config
        normed = partial(RMSNorm, c.rms_norm_eps, float(c.gemma))
        y = normed(name="attention_norm")(x)
        y = DecoderAttention(c, self.theta, name="attention")(y, mask)
        x = x + (normed(name="attention_out_norm")(y) if c.gemma else y)
        y = normed(name="mlp_norm")(x)
        y = GatedMlp(c.intermediate_size, c.hidden_act, bias=False, name="mlp")(y)
        return x + (normed(name="mlp_out_norm")(y) if c.gemma else y)


class Decoder(nn.Module):
    """Word embeddings, pre-norm layers with rotary positions, and a final norm.

    As in the reference, the last hidden state is after the final norm.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and ``attention_mask``."""
        c = self.config
        ids = batch["input_ids"]
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word_embeddings")(ids)
        states = [x * jnp.asarray(c.embedding_scale, x.dtype)]
        padding = padding_mask(batch.get("attention_mask"))
        for i, (window, theta) in enumerate(zip(c.windows, c.thetas, strict=True)):
            mask = attended(padding, ids.shape[1], window, c.causal)
            states.append(DecoderBlock(c, theta, name=f"layer_{i}")(states[-1], mask))
        states[-1] = RMSNorm(c.rms_norm_eps, float(c.gemma), name="norm")(states[-1])
        return Outputs(tuple(states), states[-1])


_LAYER = "layers.*"
RULES = (
    *embedding("embed_tokens", "word_embeddings"),
    *linear(f"{_LAYER}.self_attn.q_proj", "layer_*/attention/query"),
    *linear(f"{_LAYER}.self_attn.k_proj", "layer_*/attention/key"),
    *linear(f"{_LAYER}.self_attn.v_proj", "layer_*/attention/value"),
    *linear(f"{_LAYER}.self_attn.o_proj", "layer_*/attention/out"),
    Rule(f"{_LAYER}.self_attn.q_norm.weight", "layer_*/attention/query_norm/scale"),
    Rule(f"{_LAYER}.self_attn.k_norm.weight", "layer_*/attention/key_norm/scale"),
    *linear(f"{_LAYER}.mlp.gate_proj", "layer_*/mlp/gate"),
    *linear(f"{_LAYER}.mlp.up_proj", "layer_*/mlp/up"),
    *linear(f"{_LAYER}.mlp.down_proj", "layer_*/mlp/down"),
    Rule(f"{_LAYER}.input_layernorm.weight", "layer_*/attention_norm/scale"),
    Rule("norm.weight", "norm/scale"),
)

QWEN3 = Family(
    name="qwen3",
    parse=parse,
    build=Decoder,
    rules=(*RULES, Rule(f"{_LAYER}.post_attention_layernorm.weight", "layer_*/mlp_norm/scale")),
    poolings=lambda config: ("eos", "mean"),
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("model.",),
    ignored=("lm_head.*", "score.*"),
)
FAMILIES = {"qwen3": QWEN3}
