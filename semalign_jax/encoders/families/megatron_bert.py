"""BERT as Megatron trains it, with the norms before each part: GatorTron.

Shoeybi et al. 2019, arXiv 1909.08053; GatorTron: Yang et al. 2022, arXiv 2203.03540.
"""

from dataclasses import replace

import flax.linen as nn

from .._layers import Array, LayerNorm, Outputs, PreNormBlock, layers
from .._weights import norm
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
        x = bert.embed_without_norm(c, batch)
        states = layers(c, x, batch.get("attention_mask"), PreNormBlock)
        states[-1] = LayerNorm(c.layer_norm_eps, name="norm")(states[-1])
        return bert.outputs_of(c.has_pooler, states)


MEGATRON_BERT = replace(
    bert.BERT,
    name="megatron-bert",
    build=MegatronBert,
    rules=(
        *bert.RULES,
        *norm("encoder.layer.*.attention.ln", "layer_*/attention_norm"),
        *norm("encoder.layer.*.ln", "layer_*/mlp_norm"),
        *norm("encoder.ln", "norm"),
    ),
)
FAMILIES = {"megatron-bert": MEGATRON_BERT}
