import numpy as np

from ..harness import Case, texts
from .roberta import of_base

SMALL = {
    "vocab_size": 60,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 16,
}


def legacy(tensors):
    """As the first DistilBERT files are: gamma and beta, position ids, a tied decoder."""
    words = tensors["distilbert.embeddings.word_embeddings.weight"]
    old = {
        name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta"): value
        for name, value in tensors.items()
    }
    assert "distilbert.transformer.layer.0.sa_layer_norm.gamma" in old
    position_ids = {"distilbert.embeddings.position_ids": np.arange(16)[None]}
    return old | position_ids | {"vocab_projector.weight": words.copy()}


CASES = (
    Case("distilbert", "DistilBertModel", "DistilBertConfig", SMALL, texts(lengths=(16, 6, 1))),
    Case(
        "distilbert-relu-sinusoidal",
        "DistilBertModel",
        "DistilBertConfig",
        SMALL | {"activation": "relu", "sinusoidal_pos_embds": True},
        texts(),
    ),
    Case(
        "distilbert-masked-lm",
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        SMALL | {"activation": "gelu_new"},
        texts(),
        of_base("distilbert"),
        edit=legacy,
    ),
    Case(
        "distilbert-classifier",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        SMALL,
        texts(),
        of_base("distilbert"),
    ),
)
