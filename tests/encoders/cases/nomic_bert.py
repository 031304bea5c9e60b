from ..harness import Case, texts
from .bert import SMALL
from .roberta import of_base

LONG = texts(lengths=(14, 6, 1), types=2)


def own_code(config):
    """Write the configuration with the keys of the model's own code."""
    config = dict(config)
    names = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "n_inner",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "max_trained_positions",
    }
    rope = config.pop("rope_parameters")
    config.pop("head_dim")
    for name, old in names.items():
        config[old] = config.pop(name)
    return config | {"rotary_emb_base": rope["rope_theta"], "activation_function": "swiglu"}


CASES = (
    Case("nomic-bert", "NomicBertModel", "NomicBertConfig", SMALL, LONG),
    Case(
        "nomic-bert-own-keys",
        "NomicBertForMaskedLM",
        "NomicBertConfig",
        SMALL
        | {
            "layer_norm_eps": 1e-2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 30.0},
        },
        LONG,
        of_base("nomic_bert"),
        edit_config=own_code,
    ),
)
