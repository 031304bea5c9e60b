"""Checkpoints of timm (PyTorch Image Models), whose ``config.json`` names an ``architecture``.

Its vision transformers, ResNets, ConvNeXts and EfficientNets, on modules of other families.
``architecture`` says the sizes, ``model_args`` changes them, with timm's own names; the arguments
that a model's card passes to ``timm.create_model`` belong there too, classes by name
(``"mlp_layer": "SwiGLUPacked", "act_layer": "silu"``).

``pooler`` is what timm's model returns without classes.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._towers import VisionTransformer, VisionTransformerConfig
from .._weights import Rule, conv, conv_norm, first, linear, norm, packed, patch_embedding, prefixed
from .convnext import ConvNext, ConvNextConfig
from .efficientnet import (
    HEAD_WIDTH,
    STEM_WIDTH,
    Block,
    EfficientNet,
    EfficientNetConfig,
    read_stages,
    round_width,
)
from .resnet import ResNet, ResNetConfig

Config = VisionTransformerConfig | ResNetConfig | ConvNextConfig | EfficientNetConfig

#: Width, layers, heads and ratio of the MLP of vision transformers.
_VIT_SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "medium": (512, 12, 8, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
    "gigantic": (1664, 48, 16, 64 / 13),
    "so400m": (1152, 27, 16, 3.7362),
}
#: What a kind changes in them, by the names of timm's arguments.
_VIT_KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "dinov2": {"init_values": 1e-5},
    "reg4_dinov2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "clip": {"pre_norm": True, "eps": 1e-5},
    "clip_quickgelu": {"pre_norm": True, "eps": 1e-5, "act_layer": "quick_gelu"},
    "siglip": {"class_token": False, "global_pool": "map"},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
}
_GIANT_DINOV2 = {
    "embed_dim": 1536,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": "silu",
}
_VIT_NAME = re.compile(
    rf"(?P<first>vit|deit|deit3)_(?P<size>{'|'.join(_VIT_SIZES)})_patch(?P<patch>\d+)"
    r"(?:_(?P<kind>dinov2|reg4_dinov2|clip|clip_quickgelu|siglip))?(?:_(?P<image>\d+))?"
)
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_MLPS = ("Mlp", "SwiGLUPacked")
VIT_POOLINGS = {"": None, "token": "cls", "avg": "mean", "map": "attention"}

_RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet26": ("bottleneck", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
_CONVNEXTS = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
#: Coefficients of width and depth, with and without ``tf_``, which is TensorFlow's padding.
_EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
    "efficientnet_b8": (2.2, 3.6),
}
SUPPORTED_VITS = (
    "vit_SIZE_patchN_N, deit_SIZE_patchN_N, deit3_SIZE_patchN_N, and vit_SIZE_patchN_ with dinov2, "
    "reg4_dinov2, clip_N, clip_quickgelu_N or siglip_N, where SIZE is "
    f"{', '.join(_VIT_SIZES)}"
)
SUPPORTED = (
    f"{SUPPORTED_VITS}; {', '.join((*_RESNETS, *_CONVNEXTS))}; efficientnet_b0 to efficientnet_b8 "
    "and tf_efficientnet_b0 to tf_efficientnet_b8"
)


def vit_arguments(name: str) -> dict[str, Any] | None:
    """Return timm's arguments of a vision transformer by its name; None for another name."""
    match = _VIT_NAME.fullmatch(name)
    if match is None:
        return None
    first, size, patch, kind, image = match.groups()
    kind = "deit3" if first == "deit3" else kind or ""
    width, layers, heads, ratio = _VIT_SIZES[size]
    found: dict[str, Any] = {
        "patch_size": int(patch),
        "embed_dim": width,
        "depth": layers,
        "num_heads": heads,
        "mlp_ratio": ratio,
        **_VIT_KINDS[kind],
    }
    if image is not None:
        found["img_size"] = int(image)
    if size == "giant" and kind.endswith("dinov2"):
        found |= _GIANT_DINOV2
    tanh = (size, patch) in (("base", "32"), ("so400m", "16")) or (size, image) == ("large", "512")
    if kind == "siglip" and tanh:  # those of SigLIP 2 alone
        found["act_layer"] = "gelu_tanh"
    return found


def parse_vit(
    args: ConfigReader, usual: Mapping[str, Any], channels: int, image_size: Any
) -> VisionTransformerConfig:
    """Read the arguments of a vision transformer.

    Args:
        args: the arguments that are given.
        usual: those of its name, `vit_arguments`.
        channels: of images, unless the arguments say it.
        image_size: likewise, one number or ``[height, width]``.
    """
    args.neutral("num_classes", "weight_init", "fix_init", "strict_img_size")
    for name, only in (
        ("qk_norm", (False,)),
        ("scale_attn_norm", (False,)),
        ("scale_mlp_norm", (False,)),
        ("proj_bias", (True,)),
        ("pos_embed", ("learn",)),
        ("final_norm", (True,)),
        ("pool_include_prefix", (False,)),
        ("dynamic_img_pad", (False,)),
        ("norm_layer", (None,)),
        ("embed_norm_layer", (None,)),
        ("block_fn", (None, "Block")),
        ("attn_layer", (None, "", "attn")),
    ):
        args.only(name, *only)

    def get(name: str, default: Any, kind: Any, choices: Any = None) -> Any:
        return args.get(name, usual.get(name, default), kind, choices)

    width = get("embed_dim", 768, int)
    hidden = int(width * get("mlp_ratio", 4.0, float))
    gated = get("mlp_layer", "Mlp", str, _MLPS) == "SwiGLUPacked"
    pooling = get("global_pool", "token", str, tuple(VIT_POOLINGS))
    class_token = get("class_token", True, bool)
    if pooling == "token" and not class_token:
        args.problem("global_pool = 'token' needs class_token")
    pre_norm = get("pre_norm", False, bool)
    norm_pooled = args.get("fc_norm", None, bool)
    layer_scale = get("init_values", None, float)
    bias = get("qkv_bias", True, bool)
    registers = get("reg_tokens", 0, int)
    return VisionTransformerConfig(
        num_channels=args.get("in_chans", channels),
        image_size=args.pair("img_size", image_size),
        patch_size=args.pair("patch_size", usual["patch_size"]),
        width=width,
        layers=get("depth", 12, int),
        heads=get("num_heads", 12, int),
        hidden=hidden // 2 if gated else hidden,
        activation=_ACTIVATIONS.get(get("act_layer", "gelu", str, tuple(_ACTIVATIONS)), "gelu"),
        eps=usual.get("eps", 1e-6),
        pooling=VIT_POOLINGS.get(pooling),
        class_token=class_token,
        patch_bias=not pre_norm,
        pre_norm=pre_norm,
        norm_tokens=not (pooling == "avg" if norm_pooled is None else norm_pooled),
        interpolate=get("dynamic_img_size", False, bool),
        smooth=True,
        layer_scale=bool(layer_scale),  # timm makes none for 0 either
        gated=gated,
        bias=(bias, bias, bias, True),
        registers=registers,
        placed=0 if get("no_embed_class", False, bool) else class_token + registers,
    )


def parse_resnet(args: ConfigReader, name: str, channels: int) -> ResNetConfig:
    """Read the arguments of a ResNet."""
    kind, depths = _RESNETS[name]
    depths = args.sizes("layers", depths)
    widths = args.sizes("channels", (64, 128, 256, 512))
    if not len(widths) == len(depths) == 4:
        args.problem("channels and layers must have four values")
    return ResNetConfig(
        num_channels=args.get("in_chans", channels),
        hidden_sizes=tuple(n * (4 if kind == "bottleneck" else 1) for n in widths),
        depths=depths,
        layer_type=kind,
    )


def parse_convnext(
    args: ConfigReader, name: str, channels: int, image_size: tuple[int, int]
) -> ConvNextConfig:
    """Read the arguments of a ConvNeXt."""
    for key, only in (
        ("conv_mlp", (False,)),
        ("use_grn", (False,)),
        ("head_norm_first", (False,)),
        ("head_hidden_size", (None,)),
        ("stem_type", ("patch",)),
        ("kernel_sizes", (7,)),
        ("conv_bias", (True,)),
        ("norm_eps", (None, 1e-6)),
    ):
        args.only(key, *only)
    args.neutral("head_init_scale")
    args.get("ls_init_value", 1e-6, float)  # null would be a network without layer scale
    depths, widths = _CONVNEXTS[name]
    depths, widths = args.sizes("depths", depths), args.sizes("dims", widths)
    if not len(widths) == len(depths) == 4:
        args.problem("dims and depths must have four values")
    return ConvNextConfig(
        num_channels=args.get("in_chans", channels),
        image_size=image_size,
        patch_size=args.pair("patch_size", 4),
        hidden_sizes=widths,
        depths=depths,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        layer_scale=True,
    )


def parse_efficientnet(
    args: ConfigReader, name: str, channels: int, image_size: tuple[int, int]
) -> EfficientNetConfig:
    """Read the arguments of an EfficientNet."""
    like_tensorflow = name.startswith("tf_")
    width, depth = _EFFICIENTNETS[name.removeprefix("tf_")]
    inner, blocks = round_width(STEM_WIDTH, width, 8), []
    for stage in read_stages(ConfigReader({}, "")):
        features, half = round_width(stage.features, width, 8), stage.kernel // 2
        padding = "same" if like_tensorflow else ((half, half), (half, half))
        for i in range(math.ceil(depth * stage.repeats)):
            stride, squeeze = stage.stride if i == 0 else 1, int(inner / 4)
            blocks.append(
                Block(features, stage.kernel, stride, padding, stage.expansion, squeeze, i > 0)
            )
            inner = features
    return EfficientNetConfig(
        num_channels=args.get("in_chans", channels),
        image_size=image_size,
        stem=round_width(STEM_WIDTH, width, 8),
        stem_padding="same" if like_tensorflow else ((1, 1), (1, 1)),
        blocks=tuple(blocks),
        head=round_width(HEAD_WIDTH, width, 8),
        hidden_act="swish",
        batch_norm_eps=1e-3 if like_tensorflow else 1e-5,
        pooling_type="mean",
    )


def parse(reader: ConfigReader, tensors: frozenset[str]) -> Config:
    """Read the configuration."""
    # Of training, or copied from the arguments; timm does not read them.
    reader.neutral("num_classes", "num_features", "global_pool", "label_*", "license", "source")
    name = reader.get("architecture", kind=str)
    name = name.split(".")[0] if isinstance(name, str) else ""
    data, args = reader.section("pretrained_cfg"), reader.section("model_args")
    data.neutral("*")  # of the files and of images, which the preprocessing reads
    args.neutral("num_classes")
    size = data.get("input_size", [3, 224, 224], (list, tuple))
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        data.problem(f"input_size must be [channels, height, width]; it is {size!r}")
        size = [3, 224, 224]
    channels, image_size = size[0], (size[1], size[2])
    usual = vit_arguments(name)
    if usual is not None:
        given = data.get("global_pool", None, str)
        return parse_vit(
            args, usual if given is None else {"global_pool": given} | usual, channels, image_size
        )
    args.only("global_pool", "avg")
    data.only("global_pool", None, "avg")
    if name in _RESNETS:
        return parse_resnet(args, name, channels)
    if name in _CONVNEXTS:
        return parse_convnext(args, name, channels, image_size)
    if name.removeprefix("tf_") in _EFFICIENTNETS:
        return parse_efficientnet(args, name, channels, image_size)
    reader.problem(f"architecture = {name!r} is not supported (supported: {SUPPORTED})")
    args.neutral("*")
    return parse_resnet(ConfigReader({}, ""), "resnet18", channels)


_BLOCK = "blocks.*"


def vit_rules(config: VisionTransformerConfig) -> tuple[Rule, ...]:
    """Rules of a vision transformer."""
    if config.gated:
        up = packed(f"{_BLOCK}.mlp.fc1.", "layer_*/mlp", ("gate", "up"))
    else:
        up = linear(f"{_BLOCK}.mlp.fc1", "layer_*/mlp/up")
    return (
        Rule("cls_token", "class_token", np.ravel),
        Rule("reg_token", "registers", first),
        Rule("pos_embed", "position_embedding", first),
        *patch_embedding("patch_embed.proj", "patches/projection"),
        *norm("norm_pre", "pre_norm"),
        *norm(f"{_BLOCK}.norm1", "layer_*/attention_norm"),
        *packed(f"{_BLOCK}.attn.qkv.", "layer_*/attention"),
        *linear(f"{_BLOCK}.attn.proj", "layer_*/attention/out"),
        Rule(f"{_BLOCK}.ls1.gamma", "layer_*/attention_scale/gamma"),
        *norm(f"{_BLOCK}.norm2", "layer_*/mlp_norm"),
        *up,
        *linear(f"{_BLOCK}.mlp.fc2", "layer_*/mlp/down"),
        Rule(f"{_BLOCK}.ls2.gamma", "layer_*/mlp_scale/gamma"),
        *norm("norm" if config.norm_tokens else "fc_norm", "norm"),
        Rule("attn_pool.latent", "pool/probe"),
        *linear("attn_pool.q", "pool/query"),
        *packed("attn_pool.kv.", "pool", ("key", "value")),
        *linear("attn_pool.proj", "pool/out"),
        *norm("attn_pool.norm", "pool/norm"),
        *linear("attn_pool.mlp.fc1", "pool/mlp/up"),
        *linear("attn_pool.mlp.fc2", "pool/mlp/down"),
    )


def resnet_rules(config: ResNetConfig) -> tuple[Rule, ...]:
    """Rules of a ResNet, whose names torchvision's have too."""
    convolutions = 2 if config.layer_type == "basic" else 3
    rules = [*conv_norm("conv1", "bn1", "stem")]
    for stage in range(len(config.depths)):
        source, target = f"layer{stage + 1}.*", f"stage_{stage}_layer_*"
        for i in range(convolutions):
            rules += conv_norm(f"{source}.conv{i + 1}", f"{source}.bn{i + 1}", f"{target}/conv_{i}")
        downsample = f"{source}.downsample"
        rules += conv_norm(f"{downsample}.0", f"{downsample}.1", f"{target}/shortcut")
    return tuple(rules)


_STAGE = "stages.*"
CONVNEXT_RULES = (
    *patch_embedding("stem.0", "patches/projection"),
    *norm("stem.1", "patches_norm"),
    *norm(f"{_STAGE}.downsample.0", "stage_*_norm"),
    *conv(f"{_STAGE}.downsample.1", "stage_*_halve"),
    *conv(f"{_STAGE}.blocks.*.conv_dw", "stage_*_layer_*/depthwise"),
    *norm(f"{_STAGE}.blocks.*.norm", "stage_*_layer_*/norm"),
    *linear(f"{_STAGE}.blocks.*.mlp.fc1", "stage_*_layer_*/mlp/up"),
    *linear(f"{_STAGE}.blocks.*.mlp.fc2", "stage_*_layer_*/mlp/down"),
    Rule(f"{_STAGE}.blocks.*.gamma", "stage_*_layer_*/scale/gamma"),
    *norm("head.norm", "norm"),
)


def efficientnet_rules(config: EfficientNetConfig) -> tuple[Rule, ...]:
    """Rules of an EfficientNet; timm counts blocks by stage, where the first adds no input."""
    rules = [*conv_norm("conv_stem", "bn1", "stem"), *conv_norm("conv_head", "bn2", "head")]
    stage, place = -1, 0
    for number, block in enumerate(config.blocks):
        stage, place = (stage, place + 1) if block.residual else (stage + 1, 0)
        names = ("conv_pw", "conv_dw", "conv_pwl")
        parts = ("expansion", "depthwise", "projection")
        if block.expansion == 1:
            names, parts = ("conv_dw", "conv_pw"), parts[1:]
        inner = []
        for i, (name, part) in enumerate(zip(names, parts, strict=True), 1):
            inner += conv_norm(name, f"bn{i}", part)
        for name in ("reduce", "expand"):
            inner += patch_embedding(f"se.conv_{name}", f"squeeze_excite/{name}")
        rules += prefixed(inner, f"blocks.{stage}.{place}.", f"block_{number}/")
    return tuple(rules)


#: Module and rules of each kind of network.
_NETWORKS: dict[type, tuple[Callable[[Any], nn.Module], Callable[[Any], tuple[Rule, ...]]]] = {
    VisionTransformerConfig: (VisionTransformer, vit_rules),
    ResNetConfig: (ResNet, resnet_rules),
    ConvNextConfig: (ConvNext, lambda config: CONVNEXT_RULES),
    EfficientNetConfig: (EfficientNet, efficientnet_rules),
}


def poolings(config: Config) -> tuple[str, ...]:
    """What timm's model returns first."""
    if not isinstance(config, VisionTransformerConfig):
        return ("pooler", "mean")
    own = () if config.pooling is None else ("pooler",)
    return (*own, "cls", "mean") if config.class_token else (*own, "mean")


def image_size(config: Config) -> tuple[int, int, int]:
    """Channels, height and width; a ResNet has no size of its own."""
    if isinstance(config, ResNetConfig):
        return (config.num_channels, 224, 224)
    return (config.num_channels, *config.image_size)


TIMM = Family(
    name="timm",
    parse=parse,
    build=lambda config: _NETWORKS[type(config)][0](config),
    rules=lambda config: _NETWORKS[type(config)][1](config),
    poolings=poolings,
    image_size=image_size,
    # The classifiers.
    ignored=(
        "*.num_batches_tracked",
        "head.weight",
        "head.bias",
        "head.fc.*",
        "fc.*",
        "classifier.*",
    ),
)
FAMILIES = {"timm": TIMM}
