from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base, with_buffers

CASES = (
    Case("mpnet", "MPNetModel", "MPNetConfig", SMALL, texts(pad=1, lengths=(14, 6, 1))),
    Case(
        "mpnet-all-distances",
        "MPNetModel",
        "MPNetConfig",
        {
            "vocab_size": 60,
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "intermediate_size": 8,
            "max_position_embeddings": 140,
            "layer_norm_eps": 1e-2,
            "hidden_act": "gelu_new",
        },
        texts(pad=1, lengths=(138,)),
    ),
    Case(
        "mpnet-masked-lm",
        "MPNetForMaskedLM",
        "MPNetConfig",
        SMALL | {"hidden_act": "relu", "layer_norm_eps": 1e-5},
        texts(pad=1),
        of_base("mpnet"),
        edit=with_buffers("mpnet"),
    ),
)
