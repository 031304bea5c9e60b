"""DeBERTa v2 and v3, with disentangled attention.

He et al. 2020, arXiv 2006.03654; He et al. 2021, arXiv 2111.09543.
"""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import Activation, Array, LayerNorm, Mlp, Outputs, attention, padding_mask
from .._weights import Rule, linear, norm
from . import bert


@dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Sizes and options, most named as in ``config.json``.

    Attributes:
        max_relative_positions: distance beyond which all are the same.
        position_buckets: number of buckets of distances on each side; 0 for one a distance.
        content_to_position, position_to_content: which terms attention has besides that of
            content.
        share_att_key: whether queries and keys of positions have the projections of content.
        position_biased_input: whether absolute positions are added to the embeddings.
        norm_relative: whether the embeddings of distances are normalised.
    """

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    max_relative_positions: int
    position_buckets: int
    content_to_position: bool
    position_to_content: bool
    share_att_key: bool = False
    position_biased_input: bool = True
    norm_relative: bool

    @property
    def span(self) -> int:
        """Number of learned distances on each side."""
        return self.position_buckets or self.max_relative_positions


def parse(reader: ConfigReader, tensors: frozenset[str]) -> DebertaConfig:
    """Read the configuration."""
    reader.neutral("pooler_*", "legacy", "conv_act", "conv_groups")
    reader.only("conv_kernel_size", 0)
    if not reader.get("relative_attention", False, bool):
        reader.problem("relative_attention = False is not supported (supported: True)")
    terms = reader.get("pos_att_type", None, (str, list)) or []
    terms = [term.strip() for term in terms.lower().split("|")] if isinstance(terms, str) else terms
    if any(term not in ("c2p", "p2c") for term in terms):
        reader.problem(f"pos_att_type may have c2p and p2c; it is {terms}")
    norms = reader.get("norm_rel_ebd", "none", str, ("none", "layer_norm"))
    config = reader.read(
        DebertaConfig,
        max_relative_positions=reader.get("max_relative_positions", -1),
        position_buckets=max(reader.get("position_buckets", -1), 0),
        content_to_position="c2p" in terms,
        position_to_content="p2c" in terms,
        norm_relative=norms == "layer_norm",
    )
    reader.only("embedding_size", config.hidden_size)
    if config.max_relative_positions > 0:
        return config
    return replace(config, max_relative_positions=config.max_position_embeddings)


def relative_rows(config: DebertaConfig, tokens: int) -> np.ndarray:
    """Row of the table of distances for query - key = 1 - tokens, ..., tokens - 1.

    Up to half of the buckets, distances have one each; beyond, buckets grow in proportion to the
    distance.
    """
    distance = np.arange(1 - tokens, tokens)
    if config.position_buckets:
        middle = config.position_buckets // 2
        # In float32, as distances can lie on the border of two buckets.
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        growth = np.log(np.float32((config.max_relative_positions - 1) / middle))
        bucket = np.ceil(np.log(far) / growth * np.float32(middle - 1)) + middle
        bucket = np.sign(distance) * bucket.astype(int)
        distance = np.where(np.abs(distance) <= middle, distance, bucket)
    return np.clip(distance + config.span, 0, 2 * config.span - 1)


def by_offset(x: Array) -> Array:
    """From ``[..., n, 2 n - 1]``, one column for each offset 1 - n, ..., n - 1, to ``[..., n, n]``.

    Element (i, j) is that of the offset j - i in row i: the rows are shifted, nothing is gathered.
    """
    *lead, n, _ = x.shape
    flat = jnp.pad(x, ((0, 0),) * (len(lead) + 1) + ((0, 1),)).reshape(*lead, 2 * n * n)
    flat = flat[..., n - 1 : n - 1 + n * (2 * n - 1)]
    return flat.reshape(*lead, n, 2 * n - 1)[..., :n]


class DisentangledAttention(nn.Module):
    """Attention whose logits have terms of content and of relative position."""

    config: DebertaConfig

    @nn.compact
    def __call__(self, x: Array, relative: Array, mask: Array | None) -> Array:
        """Attend; `relative` are the embeddings of all distances, ``[2 span, width]``."""
        c = self.config
        tokens, width = x.shape[1:]
        own = c.share_att_key
        query, key, value = (nn.Dense(width, name=name) for name in ("query", "key", "value"))

        def split(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], c.num_attention_heads, -1)

        q, k, v = (split(part(x)) for part in (query, key, value))
        scale = (q.shape[-1] * (1 + c.content_to_position + c.position_to_content)) ** -0.5
        # Only those distances that occur are projected.
        rows, places = np.unique(relative_rows(c, tokens), return_inverse=True)
        relative = relative[rows]
        bias = None
        if c.content_to_position:
            part = key if own else nn.Dense(width, name="position_key")
            near = split(part(relative))[places[::-1]]
            bias = by_offset(jnp.einsum("bqhd,jhd->bhqj", q, near))
        if c.position_to_content:
            part = query if own else nn.Dense(width, name="position_query")
            near = split(part(relative))[places]
            term = by_offset(jnp.einsum("bkhd,jhd->bhkj", k, near)).swapaxes(-1, -2)
            bias = term if bias is None else bias + term
        bias = None if bias is None else bias * jnp.asarray(scale, bias.dtype)
        y = attention(q, k, v, mask=mask, bias=bias, scale=scale)
        return nn.Dense(width, name="out")(y.reshape(x.shape))


class DebertaBlock(nn.Module):
    """One layer, with the norms after the sums."""

    config: DebertaConfig

    @nn.compact
    def __call__(self, x: Array, relative: Array, mask: Array | None) -> Array:
        """Apply to tokens."""
        c = self.config
        attended = DisentangledAttention(c, name="attention")(x, relative, mask)
        x = LayerNorm(c.layer_norm_eps, name="attention_norm")(x + attended)
        mlp = Mlp(c.intermediate_size, c.hidden_act, name="mlp")(x)
        return LayerNorm(c.layer_norm_eps, name="mlp_norm")(x + mlp)


class Deberta(nn.Module):
    """Embeddings, which are zero where there is padding, and layers."""

    config: DebertaConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        c = self.config
        ids, shown = batch["input_ids"], batch.get("attention_mask")
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word_embeddings")(ids)
        if c.position_biased_input:
            place = nn.Embed(c.max_position_embeddings, c.hidden_size, name="position_embeddings")
            x += place(jnp.arange(ids.shape[1]))[None]
        if c.type_vocab_size:
            types = batch.get("token_type_ids", jnp.zeros_like(ids))
            x += nn.Embed(c.type_vocab_size, c.hidden_size, name="token_type_embeddings")(types)
        x = LayerNorm(c.layer_norm_eps, name="embeddings_norm")(x)
        mask = padding_mask(shown)
        if shown is not None and mask is not None:
            x *= shown[:, :, None].astype(x.dtype)
            mask = mask & mask.swapaxes(-1, -2)  # as the reference has it
        zeros = nn.initializers.zeros
        relative = self.param("relative", zeros, (2 * c.span, c.hidden_size), jnp.float32)
        if c.norm_relative:
            relative = LayerNorm(c.layer_norm_eps, name="relative_norm")(relative)
        states = [x]
        for i in range(c.num_hidden_layers):
            states.append(DebertaBlock(c, name=f"layer_{i}")(states[-1], relative, mask))
        return Outputs(tuple(states), states[-1])


_SELF = "encoder.layer.*.attention.self"
RULES = (
    *bert.EMBEDDING_RULES,
    *bert.LAYER_RULES,
    Rule("encoder.rel_embeddings.weight", "relative"),
    *norm("encoder.LayerNorm", "relative_norm"),
    *linear(f"{_SELF}.query_proj", "layer_*/attention/query"),
    *linear(f"{_SELF}.key_proj", "layer_*/attention/key"),
    *linear(f"{_SELF}.value_proj", "layer_*/attention/value"),
    *linear(f"{_SELF}.pos_query_proj", "layer_*/attention/position_query"),
    *linear(f"{_SELF}.pos_key_proj", "layer_*/attention/position_key"),
)


def ignored(config: DebertaConfig) -> tuple[str, ...]:
    """Buffers, the heads of tasks, and absolute positions that are only of the trained head."""
    heads = (*bert.IGNORED, "lm_predictions.*", "mask_predictions.*", "pooler.*")
    return heads if config.position_biased_input else (*heads, "embeddings.position_embeddings.*")


DEBERTA = Family(
    name="deberta-v2",
    parse=parse,
    build=Deberta,
    rules=RULES,
    poolings=lambda config: ("mean", "cls", "eos"),
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("deberta.",),
    ignored=ignored,
)
FAMILIES = {"deberta-v2": DEBERTA}
