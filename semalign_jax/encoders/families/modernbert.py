"""ModernBERT: Warner et al. 2024, arXiv 2412.13663."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn

from .._config import ConfigReader
from .._family import Family
from .._layers import Activation, Array, LayerNorm, Outputs, PreNormBlock, padding_mask, rotate
from .._weights import embedding, linear, norm, packed
from .qwen3 import FULL, SLIDING, attended, layer_types, rope_thetas


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """Sizes and options, named as in ``config.json``.

    Attributes:
        windows, thetas: see `DecoderConfig`.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    hidden_activation: Activation = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int | None, ...]
    thetas: tuple[float, ...]


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ModernBertConfig:
    """Read the configuration, with the keys of transformers 4 or 5."""
    reader.neutral(
        "classifier_*",
        "decoder_bias",
        "deterministic_flash_attn",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred*",
        # Files have these two, too, but the model does not: norm_eps and rotary positions count.
        "layer_norm_eps",
        "position_embedding_type",
    )
    reader.only("rope_scaling", None)
    layers = reader.get("num_hidden_layers", 22)
    # Of both forms of a setting the newer one counts, as in the reference.
    period = reader.get("global_attn_every_n_layers", 3)
    if period < 1:
        reader.problem(f"global_attn_every_n_layers must be positive; it is {period}")
    kinds = layer_types(reader, [SLIDING if i % max(period, 1) else FULL for i in range(layers)])
    local_attention = reader.get("local_attention", 128)
    if local_attention < 0:
        reader.problem(f"local_attention must not be negative; it is {local_attention}")
    window = local_attention // 2 + 1  # local_attention is that of both sides together
    return reader.read(
        ModernBertConfig,
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        thetas=rope_thetas(
            reader,
            kinds,
            full_attention=reader.get("global_rope_theta", 160_000.0, float),
            sliding_attention=reader.get("local_rope_theta", 10_000.0, float),
        ),
    )


class ModernBert(nn.Module):
    """Word embeddings, pre-norm layers with rotary positions and gated MLPs, and a final norm.

    Layers are global or local. The first has no norm before its attention, as it would follow that
    of the embeddings. As in the reference, the last hidden state is after the final norm.
    """

    config: ModernBertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and ``attention_mask``."""
        c = self.config

        def normed(x: Array, name: str) -> Array:
            return LayerNorm(c.norm_eps, use_bias=c.norm_bias, name=name)(x)

        ids = batch["input_ids"]
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word_embeddings")(ids)
        states = [normed(x, "embeddings_norm")]
        padding = padding_mask(batch.get("attention_mask"))
        has = c.attention_bias
        for i, (window, theta) in enumerate(zip(c.windows, c.thetas, strict=True)):
            mask = attended(padding, ids.shape[1], window)
            block = PreNormBlock(
                c.num_attention_heads,
                c.intermediate_size,
                c.hidden_activation,
                c.norm_eps,
                bias=(has, has, has, has),
                gated=True,
                mlp_bias=c.mlp_bias,
                norm_bias=c.norm_bias,
                first_norm=i > 0,
                name=f"layer_{i}",
            )
            turn = partial(rotate, theta=theta)
            states.append(block(states[-1], mask, rotate=turn))
        states[-1] = normed(states[-1], "norm")
        return Outputs(tuple(states), states[-1])


RULES = (
    *embedding("embeddings.tok_embeddings", "word_embeddings"),
    *norm("embeddings.norm", "embeddings_norm"),
    *norm("layers.*.attn_norm", "layer_*/attention_norm"),
    *packed("layers.*.attn.Wqkv.", "layer_*/attention"),
    *linear("layers.*.attn.Wo", "layer_*/attention/out"),
    *norm("layers.*.mlp_norm", "layer_*/mlp_norm"),
    *packed("layers.*.mlp.Wi.", "layer_*/mlp", ("gate", "up")),
    *linear("layers.*.mlp.Wo", "layer_*/mlp/down"),
    *norm("final_norm", "norm"),
)

MODERNBERT = Family(
    name="modernbert",
    parse=parse,
    build=ModernBert,
    rules=RULES,
    poolings=lambda config: ("mean", "cls", "eos"),
    max_tokens=lambda config: config.max_position_embeddings,
    prefixes=("model.",),
    ignored=("head.*", "decoder.*", "classifier.*"),
)
FAMILIES = {"modernbert": MODERNBERT}
