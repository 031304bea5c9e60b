import numpy as np

from ..harness import Case, texts
from .bert import SMALL

#: The longest text: positions of a table of 16 from that of padding on.
LONGEST = texts(pad=1, lengths=(14, 6, 1))


def pad_inside():
    """A padding id that the mask shows is not counted either."""
    batch = texts(pad=3, types=2)()
    batch["input_ids"][0, 4] = 3
    return batch


def of_base(name):
    """Return the hidden states of the model inside of a task model."""

    def reference(model, inputs):
        outputs = getattr(model, name)(**inputs, output_hidden_states=True)
        states = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
        return states | {"last": outputs.last_hidden_state}

    return reference


def with_buffers(prefix, table="word_embeddings"):
    """Return a function that adds what older files have: position ids and a tied decoder."""

    def edit(tensors):
        words = tensors[f"{prefix}.embeddings.{table}.weight"]
        return tensors | {
            f"{prefix}.embeddings.position_ids": np.arange(16)[None],
            "lm_head.decoder.weight": words.copy(),
        }

    return edit


CASES = (
    Case("roberta", "RobertaModel", "RobertaConfig", SMALL | {"type_vocab_size": 1}, LONGEST),
    Case(
        "roberta-pad-3",
        "RobertaModel",
        "RobertaConfig",
        SMALL | {"pad_token_id": 3, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"},
        pad_inside,
    ),
    Case(
        "roberta-masked-lm",
        "RobertaForMaskedLM",
        "RobertaConfig",
        SMALL | {"hidden_act": "relu", "layer_norm_eps": 1e-5},
        texts(pad=1),
        of_base("roberta"),
        edit=with_buffers("roberta"),
    ),
    Case("xlm-roberta", "XLMRobertaModel", "XLMRobertaConfig", SMALL, texts(pad=1, types=2)),
    Case(
        "camembert-masked-lm",
        "CamembertForMaskedLM",
        "CamembertConfig",
        SMALL | {"type_vocab_size": 1},
        texts(pad=1),
        of_base("roberta"),
    ),
)
