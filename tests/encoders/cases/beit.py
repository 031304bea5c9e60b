from ..harness import Case, images

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 2,
}
ALL_POSITIONS = {
    "use_absolute_position_embeddings": True,
    "use_relative_position_bias": True,
    "use_shared_relative_position_bias": True,
}


def classifier(tensors):
    """As older files of BeitForImageClassification are: a prefix, index buffers, a head."""
    stored = {f"beit.{name}": value for name, value in tensors.items()}
    for i in range(2):
        name = f"beit.encoder.layer.{i}.attention.attention.relative_position_bias"
        stored[f"{name}.relative_position_index"] = stored[f"{name}.relative_position_bias_table"]
    stored["classifier.bias"] = tensors["pooler.layernorm.bias"]
    return stored


def masked_modelling(tensors):
    """As BeitForMaskedImageModeling is stored: no pooler, and a norm that is of the head."""
    stored = {f"beit.{k}": v for k, v in tensors.items() if not k.startswith("pooler.")}
    for name in ("weight", "bias"):
        stored[f"layernorm.{name}"] = tensors[f"pooler.layernorm.{name}"]
        stored[f"lm_head.{name}"] = tensors[f"pooler.layernorm.{name}"]
    return stored


def masked_modelling_of_class_token(tensors):
    """The same without mean pooling: the model and the head have each a norm."""
    stored = {f"beit.{name}": value for name, value in tensors.items()}
    for name in ("weight", "bias"):
        stored[f"layernorm.{name}"] = 2 + tensors[f"layernorm.{name}"]
        stored[f"lm_head.{name}"] = tensors[f"layernorm.{name}"]
    return stored


def without_pooler(model, inputs):
    outputs = model(**inputs, output_hidden_states=True)
    return {"hidden_1": outputs.hidden_states[1], "last": outputs.last_hidden_state}


CASES = (
    Case(
        "beit",
        "BeitModel",
        "BeitConfig",
        SMALL | {"use_relative_position_bias": True},
        images(8),
        edit=classifier,
    ),
    Case(
        "beit-shared-bias",
        "BeitModel",
        "BeitConfig",
        SMALL | {"use_shared_relative_position_bias": True, "use_mask_token": True},
        images(8),
        without_pooler,
        edit=masked_modelling,
    ),
    Case(
        "beit-class-token-eps",
        "BeitModel",
        "BeitConfig",
        SMALL
        | {
            "use_absolute_position_embeddings": True,
            "layer_scale_init_value": 0.0,
            "use_mean_pooling": False,
            "layer_norm_eps": 1e-2,
            "hidden_act": "gelu_new",
            "num_channels": 1,
        },
        images(8, channels=1),
        edit=masked_modelling_of_class_token,
    ),
    Case(
        "beit-all-positions",
        "BeitModel",
        "BeitConfig",
        SMALL | ALL_POSITIONS | {"layer_norm_eps": 1e-2},
        images(8),
    ),
    # Fewer rows and more columns than those that were learned.
    Case("beit-other-size", "BeitModel", "BeitConfig", SMALL | ALL_POSITIONS, images(6, 11)),
    Case(
        "beit-no-positions",
        "BeitModel",
        "BeitConfig",
        SMALL | {"layer_scale_init_value": 0.0},
        images(6, 11),
    ),
)
