"""What a family of encoders is, and the table of families."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from ._config import ConfigReader
from ._weights import Rule

TEXT, IMAGE = "text", "image"


@dataclass(frozen=True)
class Family:
    """One architecture: how to read its configuration, build it and fill it.

    Attributes:
        name: its name, unique.
        modalities: what it embeds: "text", "image" or both.
        parse: from the reader of ``config.json`` and the names of the checkpoint's tensors to a
            frozen, hashable configuration. The names tell what a checkpoint lacks (a pooler).
            The caller calls the reader's ``finish``.
        build: from that configuration to a Flax module. It is called with a batch, a dictionary
            with ``input_ids [batch, tokens]``, ``attention_mask [batch, tokens]`` (1 for tokens, 0
            for padding) and, for some, ``token_type_ids``, or with ``pixel_values [batch,
            channels, height, width]``, and returns `Outputs`. With `patches`, images are
            ``pixel_values [batch, patches, values]``, ``pixel_attention_mask [batch, patches]`` (1
            for patches, 0 for padding) and ``spatial_shapes [batch, 2]`` (rows and columns). A
            module of two towers gets a batch of either kind; it is initialised with both kinds in
            one batch.
        rules: from source tensors to parameters, or a function from the configuration to them.
        poolings: from the configuration to the poolings that it can have; the first is the
            default.
        image_size: from the configuration to ``(channels, height, width)``; None without images.
        max_tokens: from the configuration to the longest text, special tokens included; None
            without text.
        fixed_length: from the configuration to whether every text is padded to `max_tokens` and
            the padding is attended to, as in SigLIP, which pools the last position; None: never.
        patches: from the configuration to the usual number of patches and the values of each, of
            a model that takes images of any size as patches; None: images of one size.
        prefixes: that the tensors have inside of task models.
        ignored: shell patterns of tensors that the encoder does not use, or a function from the
            configuration to them.
    """

    name: str
    modalities: tuple[str, ...]
    parse: Callable[[ConfigReader, frozenset[str]], Any]
    build: Callable[[Any], nn.Module]
    rules: tuple[Rule, ...] | Callable[[Any], tuple[Rule, ...]]
    poolings: Callable[[Any], tuple[str, ...]]
    image_size: Callable[[Any], tuple[int, int, int]] | None = None
    max_tokens: Callable[[Any], int] | None = None
    fixed_length: Callable[[Any], bool] | None = None
    patches: Callable[[Any], tuple[int, int]] | None = None
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()


#: Module (under ``families``) by ``model_type``, imported when needed.
_BUILT_IN = {
    "albert": "albert",
    "beit": "beit",
    "bert": "bert",
    "biovil": "biovil",
    "biovil-t": "biovil",
    "camembert": "roberta",
    "clip": "clip",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "convnext": "convnext",
    "convnextv2": "convnext",
    "cxr-bert": "bert",
    "deberta-v2": "deberta",
    "deit": "vit",
    "densenet": "densenet",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_convnext": "convnext",
    "dinov3_vit": "dinov3",
    "distilbert": "distilbert",
    "efficientnet": "efficientnet",
    "efficientnet_lite": "efficientnet",
    "electra": "electra",
    "gemma3_text": "gemma3",
    "megatron-bert": "megatron_bert",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "nomic_bert": "nomic_bert",
    "open_clip": "open_clip",
    "qwen3": "qwen3",
    "resnet": "resnet",
    "roberta": "roberta",
    "siglip": "siglip",
    "siglip2": "siglip2",
    "siglip2_text_model": "siglip2",
    "siglip2_vision_model": "siglip2",
    "siglip_text_model": "siglip",
    "siglip_vision_model": "siglip",
    "swin": "swin",
    "swinv2": "swinv2",
    "timm": "timm",
    "vit": "vit",
    "vit_mae": "vit",
    "xlm-roberta": "roberta",
}
_registered: dict[str, Family] = {}


def register_encoder(model_type: str, family: Family) -> None:
    """Let `load_encoder` read checkpoints with this ``model_type`` in their ``config.json``.

    Args:
        model_type: the value in ``config.json``.
        family: how such checkpoints are read.

    Raises:
        ValueError: if the type is taken by another family.
        TypeError: if `family` is not a `Family`.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be a Family; got {type(family).__name__}")
    if model_type in _BUILT_IN or _registered.get(model_type, family) != family:
        raise ValueError(f"model_type {model_type!r} is taken by another family")
    _registered[model_type] = family


def model_types() -> tuple[str, ...]:
    """Return all values of ``model_type`` that can be loaded."""
    return tuple(sorted({*_BUILT_IN, *_registered}))


def family_of(model_type: str) -> Family:
    """Return the family of a ``model_type``.

    Raises:
        ValueError: if there is none; lists those that there are.
    """
    if model_type in _registered:
        return _registered[model_type]
    if model_type in _BUILT_IN:
        module = importlib.import_module(f".families.{_BUILT_IN[model_type]}", __package__)
        return module.FAMILIES[model_type]
    raise ValueError(
        f"model_type {model_type!r} is not supported; there are {', '.join(model_types())}. "
        "Add your own with register_encoder."
    )
