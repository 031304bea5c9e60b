from ..harness import Case, images, our_outputs
from ..references.maps import plain_maps

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": [32, 32]}


def vit(config):
    from ..references import timm  # needs PyTorch

    return timm.VisionTransformer(ARCHITECTURES[config["architecture"]] | config["model_args"])


def resnet(config):
    from ..references import timm

    kind = "basic" if config["architecture"] == "resnet18" else "bottleneck"
    return timm.ResNet(kind, **config["model_args"])


def convnext(config):
    from ..references import timm

    return timm.ConvNext(**config["model_args"])


def efficientnet(config):
    from ..references import timm

    name = config["architecture"]
    factors = {"b0": (1.0, 1.0), "b2": (1.1, 1.2)}[name[-2:]]
    return timm.EfficientNet(*factors, name.startswith("tf_"))


# timm's arguments of an architecture, besides the sizes.
ARCHITECTURES = {
    "vit_base_patch16_224": {"patch_size": 16},
    "vit_large_patch16_224": {"patch_size": 16},
    "vit_huge_patch14_224": {"patch_size": 14},
    "vit_small_patch14_reg4_dinov2": {
        "patch_size": 14,
        "init_values": 1e-5,
        "reg_tokens": 4,
        "no_embed_class": True,
    },
    "vit_base_patch32_clip_quickgelu_224": {
        "patch_size": 32,
        "pre_norm": True,
        "act_layer": "quick_gelu",
        "eps": 1e-5,
    },
    "vit_base_patch16_siglip_224": {
        "patch_size": 16,
        "class_token": False,
        "global_pool": "map",
    },
    "deit3_small_patch16_224": {"patch_size": 16, "no_embed_class": True, "init_values": 1e-6},
}


def tokens(module, inputs):
    states, last, pooled = module(**inputs)
    found = {f"hidden_{i}": state for i, state in enumerate(states)} | {"last": last}
    return found if pooled is None else found | {"pooled": pooled}


def some(outputs):
    """Only what tells the blocks apart, for the size of the golden file."""
    return {
        name: value[:, :2, :40] if value.ndim == 3 else value
        for name, value in outputs.items()
        if name in ("last", "pooled") or int(name.split("_")[1]) % 5 == 0
    }


def maps_of_some(module, inputs):
    return some(plain_maps(module, inputs))


def our_some(encoder, batch):
    return some(our_outputs(Case("", None, None, {}, dict), encoder, batch))


def case(name, architecture, args, inputs, model=vit, reference=tokens, **more):
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": 24,
        "global_pool": "token",
        "model_args": args,
        "pretrained_cfg": {"tag": "tiny", "input_size": [3, 32, 32], "crop_pct": 0.9},
    }
    return Case(f"timm-{name}", model, dict, config, inputs, reference, **more)


CASES = (
    # As UNI is: other sizes of images, layer scale.
    case(
        "vit-uni",
        "vit_large_patch16_224",
        TINY | {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
        images(32),
    ),
    case(
        "vit-uni-other-size",
        "vit_large_patch16_224",
        TINY
        | {"init_values": 1e-5, "dynamic_img_size": True, "img_size": [64, 48], "patch_size": 8},
        images(40, 72),
    ),
    # As Virchow2 and UNI2-h are: registers, a packed gated MLP.
    case(
        "vit-virchow2",
        "vit_huge_patch14_224",
        TINY
        | {
            "img_size": [28, 42],
            "init_values": 1e-5,
            "reg_tokens": 4,
            "mlp_ratio": 5.3375,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "silu",
            "global_pool": "",
        },
        images(28, 42),
    ),
    # As H-optimus and DINOv2 with registers are.
    case("vit-dinov2", "vit_small_patch14_reg4_dinov2", TINY | {"img_size": [28, 28]}, images(28)),
    case(
        "vit-dinov2-other-size",
        "vit_small_patch14_reg4_dinov2",
        TINY | {"img_size": [42, 42], "dynamic_img_size": True},
        images(28, 70),
    ),
    case(
        "vit-mean-no-bias",
        "vit_base_patch16_224",
        TINY
        | {"global_pool": "avg", "qkv_bias": False, "act_layer": "gelu_tanh", "num_classes": 3},
        images(32),
    ),
    case(
        "vit-mean-of-normed",
        "deit3_small_patch16_224",
        TINY | {"global_pool": "avg", "fc_norm": False, "in_chans": 1},
        images(32, channels=1),
    ),
    case(
        "vit-clip", "vit_base_patch32_clip_quickgelu_224", TINY | {"img_size": [64, 64]}, images(64)
    ),
    case("vit-siglip", "vit_base_patch16_siglip_224", TINY, images(32)),
    case(
        "resnet-basic",
        "resnet18",
        {"layers": [1, 2, 1, 1], "channels": [64, 12, 8, 8]},
        images(33),
        model=resnet,
        reference=plain_maps,
    ),
    case(
        "resnet",
        "resnet50",
        {"layers": [1, 2, 1, 1], "channels": [4, 6, 6, 8]},
        images(32, 40),
        model=resnet,
        reference=plain_maps,
    ),
    case(
        "convnext",
        "convnext_tiny",
        {"depths": [2, 1, 1, 1], "dims": [8, 12, 8, 8]},
        images(66, 46),
        model=convnext,
        reference=plain_maps,
    ),
    case(
        "efficientnet",
        "efficientnet_b0",
        {},
        images(50, 64, count=1),
        model=efficientnet,
        reference=maps_of_some,
        outputs=our_some,
    ),
    case(
        "efficientnet-tf",
        "tf_efficientnet_b2",
        {},
        images(50, 63, count=1),
        model=efficientnet,
        reference=maps_of_some,
        outputs=our_some,
    ),
)
