"""BERT as Megatron trains it, with the norms before each part: GatorTron.

Shoeybi et al. 2019, arXiv 1909.08053; GatorTron: Yang et al. 2022, arXiv 2203.03540.
"""

from dataclasses import replace
from functools import partial

from .._layers import PreNormBlock
from .._weights import norm
from . import bert

MEGATRON_BERT = replace(
    bert.BERT,
    name="megatron-bert",
    build=partial(bert.Bert, block=PreNormBlock, embeddings_norm=False, final_norm=True),
    rules=(
        *bert.RULES,
        *norm("encoder.layer.*.attention.ln", "layer_*/attention_norm"),
        *norm("encoder.layer.*.ln", "layer_*/mlp_norm"),
        *norm("encoder.ln", "norm"),
    ),
)
FAMILIES = {"megatron-bert": MEGATRON_BERT}
