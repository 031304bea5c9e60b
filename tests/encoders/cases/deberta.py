import numpy as np

from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base

THREE = SMALL | {
    "max_position_embeddings": 32,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
#: Distances beyond those that have a bucket of their own.
LONG = texts(lengths=(23, 9, 1))


def with_positions(tensors):
    """Files of version 3 keep absolute positions, which only the trained head used."""
    width = tensors["deberta.embeddings.LayerNorm.bias"].shape[0]
    positions = np.ones((32, width), np.float32)
    return tensors | {"deberta.embeddings.position_embeddings.weight": positions}


CASES = (
    Case("deberta", "DebertaV2Model", "DebertaV2Config", THREE, LONG),
    Case(
        "deberta-own-projections",
        "DebertaV2Model",
        "DebertaV2Config",
        THREE
        | {
            "share_att_key": False,
            "position_buckets": -1,
            "max_relative_positions": 6,
            "norm_rel_ebd": "none",
            "position_biased_input": True,
            "type_vocab_size": 2,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
        },
        texts(lengths=(23, 9, 1), types=2),
    ),
    Case(
        "deberta-one-term-masked-lm",
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        THREE | {"pos_att_type": ["p2c"], "legacy": False},
        LONG,
        of_base("deberta"),
        edit=with_positions,
    ),
)
