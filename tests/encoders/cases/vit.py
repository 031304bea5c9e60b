from ..harness import Case, images

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}


def interpolated(model, inputs):
    outputs = model(**inputs, output_hidden_states=True, interpolate_pos_encoding=True)
    return {"hidden_0": outputs.hidden_states[0], "last": outputs.last_hidden_state}


CASES = (
    Case("vit", "ViTModel", "ViTConfig", SMALL, images(32)),
    Case(
        "vit-no-bias-grey",
        "ViTModel",
        "ViTConfig",
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
    Case("vit-other-size", "ViTModel", "ViTConfig", SMALL, images(40, 27), interpolated),
)
