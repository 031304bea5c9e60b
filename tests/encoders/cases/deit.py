from ..harness import Case, images
from .vit import SMALL, interpolated


def interpolated_layers(model, inputs):
    outputs = model(**inputs, output_hidden_states=True, interpolate_pos_encoding=True)
    states = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    return states | interpolated(model, inputs)


def two_heads(tensors):
    """As DeiTForImageClassificationWithTeacher is stored: a prefix, no pooler, two heads."""
    stored = {f"deit.{k}": v for k, v in tensors.items() if not k.startswith("pooler.")}
    for head in ("cls_classifier", "distillation_classifier"):
        stored[f"{head}.weight"] = tensors["pooler.dense.weight"]
        stored[f"{head}.bias"] = tensors["pooler.dense.bias"]
    return stored


def without_pooler(model, inputs):
    outputs = model(**inputs, output_hidden_states=True)
    return {"hidden_1": outputs.hidden_states[1], "last": outputs.last_hidden_state}


CASES = (
    Case("deit", "DeiTModel", "DeiTConfig", SMALL, images(32)),
    Case(
        "deit-no-bias-eps",
        "DeiTModel",
        "DeiTConfig",
        SMALL
        | {
            "qkv_bias": False,
            "num_channels": 1,
            "layer_norm_eps": 1e-2,
            "hidden_act": "gelu_new",
            "pooler_act": "relu",
            "pooler_output_size": 10,
        },
        images(32, channels=1),
    ),
    Case("deit-other-size", "DeiTModel", "DeiTConfig", SMALL, images(40, 27), interpolated_layers),
    Case(
        "deit-two-heads",
        "DeiTModel",
        "DeiTConfig",
        SMALL,
        images(32),
        without_pooler,
        edit=two_heads,
    ),
)
