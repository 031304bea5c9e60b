from ..harness import Case, texts
from .roberta import of_base

SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 70.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}
LONG = texts(lengths=(17, 9, 1))


def four(config):
    """Write the configuration with the keys of transformers 4."""
    config = dict(config)
    assert config.pop("layer_types") == ["full_attention", "sliding_attention"] * 2
    rope = config.pop("rope_parameters")
    return config | {
        "global_attn_every_n_layers": 2,
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "layer_norm_eps": 0.5,
        "position_embedding_type": "absolute",
        "reference_compile": None,
        "repad_logits_with_grad": False,
    }


CASES = (
    Case("modernbert", "ModernBertModel", "ModernBertConfig", SMALL, LONG),
    Case(
        "modernbert-biases",
        "ModernBertModel",
        "ModernBertConfig",
        SMALL
        | {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_eps": 1e-2,
            "hidden_activation": "gelu_new",
            "local_attention": 5,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rope_parameters": ROPE,
        },
        LONG,
    ),
    Case(
        "modernbert-masked-lm",
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        SMALL
        | {
            "hidden_activation": "silu",
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": ROPE,
        },
        LONG,
        of_base("model"),
        edit_config=four,
    ),
)
