from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base

CASES = (
    Case("megatron-bert", "MegatronBertModel", "MegatronBertConfig", SMALL, texts(types=2)),
    Case(
        "megatron-bert-masked-lm",
        "MegatronBertForMaskedLM",
        "MegatronBertConfig",
        SMALL | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2, "type_vocab_size": 3},
        texts(types=3),
        of_base("bert"),
    ),
)
