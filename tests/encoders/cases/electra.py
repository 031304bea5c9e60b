import numpy as np

from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base


def with_buffer(tensors):
    return tensors | {"electra.embeddings.position_ids": np.arange(16)[None]}


CASES = (
    Case("electra", "ElectraModel", "ElectraConfig", SMALL | {"embedding_size": 10}, texts()),
    Case(
        "electra-one-width",
        "ElectraModel",
        "ElectraConfig",
        SMALL | {"embedding_size": 24, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"},
        texts(types=2),
    ),
    Case(
        "electra-discriminator",
        "ElectraForPreTraining",
        "ElectraConfig",
        SMALL | {"embedding_size": 32, "hidden_act": "relu", "type_vocab_size": 3},
        texts(types=3),
        of_base("electra"),
        edit=with_buffer,
    ),
    Case(
        "electra-generator",
        "ElectraForMaskedLM",
        "ElectraConfig",
        SMALL | {"embedding_size": 10},
        texts(),
        of_base("electra"),
    ),
)
