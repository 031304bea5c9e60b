"""What a family of encoders is, and the table of families."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it embeds: "text", "image" or both."""
        sizes = {TEXT: self.max_tokens, IMAGE: self.image_size}
        return tuple(kind for kind, size in sizes.items() if size is not None)


_registered: dict[str, Family] = {}


@cache
def _built_in() -> dict[str, Family]:
    """Return the families of the modules in ``families``, which are imported when needed."""
    package = importlib.import_module(".families", __package__)
    names = [info.name for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    tables = [importlib.import_module(name).FAMILIES for name in names]
    return {model_type: family for table in tables for model_type, family in table.items()}


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
    if model_type in _built_in() or _registered.get(model_type, family) != family:
        raise ValueError(f"model_type {model_type!r} is taken by another family")
    _registered[model_type] = family


def model_types() -> tuple[str, ...]:
    """Return all values of ``model_type`` that can be loaded."""
    return tuple(sorted({*_built_in(), *_registered}))


def family_of(model_type: str) -> Family:
    """Return the family of a ``model_type``.

    Raises:
        ValueError: if there is none; lists those that there are.
    """
    families = _built_in() | _registered
    if model_type not in families:
        raise ValueError(
            f"model_type {model_type!r} is not supported; there are {', '.join(model_types())}. "
            "Add your own with register_encoder."
        )
    return families[model_type]
