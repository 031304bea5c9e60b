import numpy as np

from ..harness import Case, texts
from .roberta import of_base

SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


def left():
    """Padding on the left."""
    batch = texts(lengths=(9, 6, 1))()
    return {name: np.ascontiguousarray(value[:, ::-1]) for name, value in batch.items()}


def four(config):
    """Write the configuration with the keys of transformers 4."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": None}


CASES = (
    Case("qwen3", "Qwen3Model", "Qwen3Config", SMALL, texts(lengths=(9, 6, 1))),
    Case(
        "qwen3-left-padding-windows",
        "Qwen3Model",
        "Qwen3Config",
        SMALL
        | {
            "attention_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-2,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
        left,
    ),
    Case(
        "qwen3-causal-lm",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        SMALL
        | {
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
            "tie_word_embeddings": True,
        },
        texts(),
        of_base("model"),
        edit_config=four,
    ),
)
