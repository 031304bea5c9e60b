from ..harness import Case, texts
from .qwen3 import SMALL as DECODER
from .roberta import of_base

SMALL = DECODER | {
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 12,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LONG = texts(lengths=(17, 9, 1))


def four(config):
    """Write the configuration with the keys of transformers 4."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    return config | {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "rope_scaling": None,
        "_sliding_window_pattern": 2,
    }


CASES = (
    Case(
        "gemma3",
        "Gemma3TextModel",
        "Gemma3TextConfig",
        SMALL | {"use_bidirectional_attention": True},
        LONG,
    ),
    Case(
        "gemma3-causal",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SMALL
        | {
            "attention_bias": True,
            "rms_norm_eps": 1e-2,
            "hidden_activation": "silu",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 70.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
        LONG,
        of_base("model"),
        edit_config=four,
    ),
)
