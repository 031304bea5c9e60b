"""BERT as Megatron trains it, with the norms before each part: GatorTron.

Shoeybi et al. 2019, arXiv 1909.08053; GatorTron: Yang et al. 2022, arXiv 2203.03540.
"""

from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp

from .._layers import Array, Outputs, PreNormBlock, layer_norm, padding_mask
from .._weights import embedding, linear, norm
from . import bert


class MegatronBert(nn.Module):
    """Embeddings without a norm, pre-norm layers, a final norm and the pooler.

    As in the reference, the last hidden state is after the final norm.
    """

    config: bert.BertConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        c = self.config
        positions = jnp.arange(batch["input_ids"].shape[1])[None]
        states = [bert.embed_without_norm(c, batch, positions)]
        mask = padding_mask(batch.get("attention_mask"))
        for i in range(c.num_hidden_layers):
            block = PreNormBlock(
                c.num_attention_heads,
                c.intermediate_size,
                c.hidden_act,
                c.layer_norm_eps,
                name=f"layer_{i}",
            )
            states.append(block(states[-1], mask))
        states[-1] = layer_norm(c.layer_norm_eps, "norm")(states[-1])
        return bert.outputs_of(c.has_pooler, states)


MEGATRON_BERT = replace(
    bert.BERT,
    name="megatron-bert",
    build=MegatronBert,
    rules=(
        *embedding("embeddings.word_embeddings", "word_embeddings"),
        *embedding("embeddings.position_embeddings", "position_embeddings"),
        *embedding("embeddings.token_type_embeddings", "token_type_embeddings"),
        *norm("encoder.layer.*.attention.ln", "layer_*/attention_norm"),
        *linear("encoder.layer.*.attention.self.query", "layer_*/attention/query"),
        *linear("encoder.layer.*.attention.self.key", "layer_*/attention/key"),
        *linear("encoder.layer.*.attention.self.value", "layer_*/attention/value"),
        *linear("encoder.layer.*.attention.output.dense", "layer_*/attention/out"),
        *norm("encoder.layer.*.ln", "layer_*/mlp_norm"),
        *linear("encoder.layer.*.intermediate.dense", "layer_*/mlp/up"),
        *linear("encoder.layer.*.output.dense", "layer_*/mlp/down"),
        *norm("encoder.ln", "norm"),
        *linear("pooler.dense", "pooler"),
    ),
)
FAMILIES = {"megatron-bert": MEGATRON_BERT}
