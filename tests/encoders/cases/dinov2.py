from ..harness import Case, images

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 12,
    "patch_size": 2,
}
OTHER = {"qkv_bias": False, "num_channels": 1, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"}


def classifier(tensors):
    """As Dinov2ForImageClassification is stored."""
    stored = {f"dinov2.{name}": value for name, value in tensors.items()}
    stored["classifier.bias"] = tensors["layernorm.bias"]
    return stored


CASES = (
    Case(
        "dinov2",
        "Dinov2Model",
        "Dinov2Config",
        SMALL | {"image_size": 8},
        images(8),
        edit=classifier,
    ),
    Case(
        "dinov2-swiglu",
        "Dinov2Model",
        "Dinov2Config",
        SMALL | {"image_size": 8, "mlp_ratio": 3, "use_swiglu_ffn": True},
        images(8),
    ),
    Case(
        "dinov2-no-bias-eps",
        "Dinov2Model",
        "Dinov2Config",
        SMALL | OTHER | {"image_size": 8, "patch_size": (4, 2), "use_mask_token": False},
        images(8, channels=1),
    ),
    # Fewer rows and more columns than those that were learned.
    Case("dinov2-other-size", "Dinov2Model", "Dinov2Config", SMALL, images(6, 15)),
    Case(
        "dinov2-registers",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SMALL | {"image_size": 8},
        images(8),
    ),
    Case(
        "dinov2-registers-swiglu-eps",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SMALL
        | OTHER
        | {"image_size": 8, "mlp_ratio": 3, "use_swiglu_ffn": True, "num_register_tokens": 1},
        images(8, channels=1),
    ),
    Case(
        "dinov2-registers-other-size",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SMALL,
        images(6, 15),
    ),
    Case(
        "dinov2-registers-smaller",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SMALL,
        images(4, 8),
    ),
)
