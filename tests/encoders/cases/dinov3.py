from ..harness import Case, images

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 2,
    "num_register_tokens": 2,
}


def with_prefix(tensors):
    """Layers under the name that they have inside of the module."""
    stored = {}
    for name, value in tensors.items():
        stored[f"model.{name}" if name.startswith("layer.") else name] = value
    return stored


CASES = (
    Case("dinov3", "DINOv3ViTModel", "DINOv3ViTConfig", SMALL, images(8), edit=with_prefix),
    Case(
        "dinov3-gated-eps",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        SMALL
        | {
            "use_gated_mlp": True,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-2,
            "key_bias": True,
            "rope_theta": 10.0,
            "num_register_tokens": 0,
            "pos_embed_shift": 0.5,
            "pos_embed_jitter": 2.0,
        },
        images(8),
    ),
    Case(
        "dinov3-no-bias-grey",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        SMALL
        | {
            "query_bias": False,
            "value_bias": False,
            "proj_bias": False,
            "mlp_bias": False,
            "num_channels": 1,
            "num_attention_heads": 2,
            "image_size": (8, 12),
            "patch_size": (2, 4),
        },
        images(8, 12, channels=1),
    ),
    Case("dinov3-other-size", "DINOv3ViTModel", "DINOv3ViTConfig", SMALL, images(10, 7)),
)
