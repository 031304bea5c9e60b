from ..harness import Case, images

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 2,
}


def interpolated(model, inputs):
    outputs = model(**inputs, output_hidden_states=True, interpolate_pos_encoding=True)
    states = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    return states | {"last": outputs.last_hidden_state, "pooled": outputs.pooler_output}


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
    Case("deit", "DeiTModel", "DeiTConfig", SMALL, images(8)),
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
        images(8, channels=1),
    ),
    Case("deit-other-size", "DeiTModel", "DeiTConfig", SMALL, images(10, 7), interpolated),
    Case(
        "deit-two-heads",
        "DeiTModel",
        "DeiTConfig",
        SMALL,
        images(8),
        without_pooler,
        edit=two_heads,
    ),
)
