from ..harness import Case, images

# Maps of 9 x 9 and 5 x 5 patches, windows of 3 x 3 and a padded second stage.
SMALL = {
    "image_size": 36,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
}


def interpolated(model, inputs):
    outputs = model(**inputs, output_hidden_states=True, interpolate_pos_encoding=True)
    found = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    return found | {"last": outputs.last_hidden_state, "pooled": outputs.pooler_output}


def old_file(tensors):
    """As the first files are: a prefix, the index of each bias table, a mask token, a head."""
    old = {f"swin.{name}": value for name, value in tensors.items()}
    for name in list(old):
        if name.endswith("relative_position_bias_table"):
            index = name.replace("bias_table", "index")
            old[index] = old[name][:1].astype("i8")
    old["swin.embeddings.mask_token"] = old["swin.layernorm.weight"][None, None]
    old["classifier.weight"] = old["swin.layernorm.weight"][None]
    return old


def case(name, options, inputs, reference=None, **more):
    return Case(name, "SwinModel", "SwinConfig", SMALL | options, inputs, reference, **more)


CASES = (
    case("swin", {}, images(36)),
    case(
        "swin-absolute-no-bias",
        {
            "use_absolute_embeddings": True,
            "qkv_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
            "mlp_ratio": 1.7,
            "num_channels": 1,
        },
        images(36, channels=1),
    ),
    # Pixels padded to whole patches, windows of even size, a second stage of one window's height.
    case(
        "swin-odd-size",
        {"window_size": 4, "hidden_act": "relu", "depths": [2, 3]},
        images(30, 43),
        edit=old_file,
    ),
    case(
        "swin-other-size",
        {"use_absolute_embeddings": True},
        images(40, 28),
        interpolated,
    ),
)
