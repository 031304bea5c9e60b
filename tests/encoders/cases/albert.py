from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base

NARROW = SMALL | {"embedding_size": 8, "num_hidden_layers": 3}

CASES = (
    Case("albert", "AlbertModel", "AlbertConfig", NARROW, texts(types=2)),
    Case(
        "albert-groups-masked-lm",
        "AlbertForMaskedLM",
        "AlbertConfig",
        NARROW
        | {
            "hidden_act": "relu",
            "layer_norm_eps": 1e-2,
            "num_hidden_layers": 4,
            "num_hidden_groups": 2,
            "inner_group_num": 2,
        },
        texts(),
        of_base("albert"),
    ),
)
