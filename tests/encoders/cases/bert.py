from ..harness import Case, texts

SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


def legacy(tensors):
    """As the first BERT files are: a prefix, gamma and beta, position ids, a head."""
    old = {}
    for name, value in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["bert.embeddings.position_ids"] = old["bert.pooler.dense.bias"][:1].astype("i8")
    old["cls.predictions.bias"] = old["bert.pooler.dense.bias"]
    return old


CASES = (
    Case("bert", "BertModel", "BertConfig", SMALL, texts(types=2)),
    Case(
        "bert-gelu-new-eps",
        "BertModel",
        "BertConfig",
        SMALL | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        texts(),
    ),
    Case(
        "bert-relu-legacy-names",
        "BertModel",
        "BertConfig",
        SMALL | {"hidden_act": "relu", "type_vocab_size": 3},
        texts(types=3),
        edit=legacy,
    ),
)
