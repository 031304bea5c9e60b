import numpy as np

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


def cxr(config):
    from ..references.cxr_bert import CxrBert

    return CxrBert(config)


def with_head(tensors):
    """The head of masked tokens, whose decoder older files repeat."""
    width = tensors["bert.embeddings.LayerNorm.bias"].shape[0]
    words = tensors["bert.embeddings.word_embeddings.weight"]
    dense = tensors["bert.encoder.layer.0.attention.output.dense.weight"]
    return tensors | {
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.bias": np.zeros(len(words), np.float32),
        "cls.predictions.decoder.weight": words.copy(),
        "cls.predictions.transform.dense.weight": dense.copy(),
        "cls.predictions.transform.LayerNorm.weight": np.ones(width, np.float32),
    }


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
    Case(
        "cxr-bert",
        cxr,
        "BertConfig",
        SMALL | {"projection_size": 10, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"},
        texts(types=2),
        reference=lambda module, inputs: module(inputs),
        edit=with_head,
        edit_config=lambda config: config | {"model_type": "cxr-bert"},
    ),
)
