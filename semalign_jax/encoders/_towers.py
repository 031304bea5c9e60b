"""Transformers that families share: of images, and of the texts of two-tower models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ._config import ConfigReader
from ._layers import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    Array,
    LayerNorm,
    Mlp,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    attention,
    padding_mask,
    resize_positions,
    resize_smoothly,
)


@dataclass(frozen=True)
class TextTowerConfig:
    """Sizes and options of a text tower.

    Attributes:
        vocab_size, max_tokens, width, layers, heads, activation, eps: as their names say.
        hidden: width inside the MLP.
        causal: whether a token sees only itself and those before it.
        padding: whether ``attention_mask`` is used; without, padding is read like text.
        token: which one stands for the text: "eos" (the first `eos_token_id`, the first token
            without one), "highest" (the largest id), "first" or "last" (of the batch's width,
            even if it is padding).
        eos_token_id: for "eos".
        projection: dimension of the shared space; None without a projection.
        projection_bias: whether the projection has a bias.
        layer_scale: see `PreNormBlock`.
    """

    vocab_size: int
    max_tokens: int
    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    causal: bool
    padding: bool
    token: str
    eos_token_id: int | None
    projection: int | None
    projection_bias: bool = False
    layer_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Sizes and options of a vision transformer.

    Attributes:
        num_channels, image_size, patch_size, width, layers, heads, activation, eps: as their names
            say.
        hidden: width inside the MLP.
        pooling: what stands for the image: "cls" (class token), "mean" (of the patches),
            "attention" (a learned query) or None.
        pooler: width and activation of a linear layer behind the pooling; None without one.
        projection: dimension of the shared space; None without a projection.
        projection_bias: whether the projection has a bias.
        class_token: whether there is one.
        registers: number of register tokens, which stand behind the class token.
        positions: whether there are learned position embeddings.
        placed: of how many class and register tokens, too.
        interpolate: whether images of other sizes are taken.
        smooth: whether the positions are interpolated with antialiasing.
        patch_bias: whether the embedding of patches has a bias.
        pre_norm: whether the embeddings are normalised.
        norm_tokens: whether the final norm is that of every token, before pooling, or only that
            of the pooled vector.
        bias, layer_scale, gated, mlp_bias: see `PreNormBlock`.
    """

    num_channels: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    pooling: str | None
    pooler: tuple[int, str] | None = None
    projection: int | None = None
    projection_bias: bool = False
    class_token: bool = True
    registers: int = 0
    positions: bool = True
    placed: int = 1
    interpolate: bool = True
    smooth: bool = False
    patch_bias: bool = True
    pre_norm: bool = False
    norm_tokens: bool = True
    bias: tuple[bool, bool, bool, bool] = (True, True, True, True)
    layer_scale: bool = False
    gated: bool = False
    mlp_bias: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of images of `image_size`."""
        return self.grid_of(self.image_size)

    def grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of patches of images of another size."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]


def layer_options(
    reader: ConfigReader, width: int, heads: int, activation: str, eps: float
) -> dict[str, Any]:
    """Read what describes the layers of a transformer; the arguments are its defaults."""
    return dict(
        width=reader.get("hidden_size", width),
        layers=reader.get("num_hidden_layers", 12),
        heads=reader.get("num_attention_heads", heads),
        activation=reader.get("hidden_act", activation, str, ACTIVATION_NAMES),
        eps=reader.get("layer_norm_eps", eps, float),
    )


def image_options(reader: ConfigReader, patch: int) -> dict[str, Any]:
    """Read what describes the images of a transformer; `patch` is the default of their patches."""
    return dict(
        num_channels=reader.get("num_channels", 3),
        image_size=reader.pair("image_size", 224),
        patch_size=reader.pair("patch_size", patch),
    )


def reads_padding(config: Any) -> bool:
    """Whether an embedding depends on how far its text is padded."""
    if not isinstance(config, TextTowerConfig):
        return False
    return config.token == "last" or not (config.causal or config.padding)


class TextTower(nn.Module):
    """Embeddings, pre-norm layers, final norm; one token, projected, stands for the text."""

    config: TextTowerConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and optional ``attention_mask``."""
        c = self.config
        ids = batch["input_ids"]
        tokens = ids.shape[1]
        x = nn.Embed(c.vocab_size, c.width, name="token_embedding")(ids)
        place = nn.Embed(c.max_tokens, c.width, name="position_embedding")
        states = [x + place(jnp.arange(tokens))[None]]
        mask = padding_mask(batch.get("attention_mask")) if c.padding else None
        if c.causal:
            earlier = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
            mask = earlier if mask is None else mask & earlier
        for i in range(c.layers):
            block = PreNormBlock(
                c.heads,
                c.hidden,
                c.activation,
                c.eps,
                layer_scale=c.layer_scale,
                name=f"layer_{i}",
            )
            states.append(block(states[-1], mask))
        last = LayerNorm(c.eps, name="norm")(states[-1])
        if c.token == "eos":
            position = jnp.argmax(ids == c.eos_token_id, axis=1)
        elif c.token == "highest":
            position = jnp.argmax(ids, axis=1)
        else:
            position = jnp.full(len(ids), 0 if c.token == "first" else tokens - 1)
        pooled = projected = jnp.take_along_axis(last, position[:, None, None], axis=1)[:, 0]
        if c.projection is not None:
            projected = nn.Dense(c.projection, use_bias=c.projection_bias, name="projection")(
                pooled
            )
        return Outputs(tuple(states), last, pooled=pooled, projected=projected, eos=position)


class AttentionPool(nn.Module):
    """One vector per image by the attention of a learned query, then an MLP with a residual."""

    heads: int
    hidden: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Pool ``[batch, tokens, width]``; the mask is that of `attention`."""
        count, tokens, width = x.shape
        probe = self.param("probe", nn.initializers.zeros, (1, 1, width), jnp.float32)
        query, key, value = (
            nn.Dense(width, name=name)(source).reshape(*source.shape[:2], self.heads, -1)
            for name, source in (("query", probe), ("key", x), ("value", x))
        )
        query = jnp.broadcast_to(query, (count, *query.shape[1:]))
        x = nn.Dense(width, name="out")(
            attention(query, key, value, mask=mask).reshape(count, width)
        )
        mlp = Mlp(self.hidden, self.activation, name="mlp")
        return x + mlp(LayerNorm(self.eps, name="norm")(x))


class VisionTransformer(nn.Module):
    """Patches, optional class and register tokens, pre-norm layers, pooling, projection."""

    config: VisionTransformerConfig

    def attention_options(self, batch: dict[str, Array]) -> list[dict[str, Any]]:
        """Return what each layer gets besides tokens and mask."""
        return [{}] * self.config.layers

    def embed(self, batch: dict[str, Array]) -> Array:
        """Return the tokens in front of the first layer, ``[batch, tokens, width]``."""
        c = self.config
        zeros = nn.initializers.zeros
        pixels = batch["pixel_values"]
        if pixels.shape[2:] != c.image_size and not c.interpolate:
            raise ValueError(
                f"pixel_values has images of {pixels.shape[2:]}, and this model takes "
                f"{c.image_size} alone: resize them"
            )
        x = PatchEmbedding(c.width, c.patch_size, c.patch_bias, name="patches")(pixels)
        count, rows, columns, width = x.shape
        front = []
        if c.class_token:
            front.append(self.param("class_token", zeros, (width,), jnp.float32)[None])
        if c.registers:
            front.append(self.param("registers", zeros, (c.registers, width), jnp.float32))
        if c.positions:
            learned = c.grid
            shape = (c.placed + learned[0] * learned[1], width)
            table = self.param("position_embedding", zeros, shape, jnp.float32)
            places = table[c.placed :].reshape(*learned, width)
            if (rows, columns) != learned:
                resize = resize_smoothly if c.smooth else resize_positions
                places = resize(places, (rows, columns))
            x = x + places[None]
            if c.placed:
                tokens = jnp.concatenate(front)
                front = [tokens[: c.placed] + table[: c.placed], tokens[c.placed :]]
        front = [jnp.broadcast_to(tokens, (count, *tokens.shape)) for tokens in front]
        return jnp.concatenate([*front, x.reshape(count, rows * columns, width)], axis=1)

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``, and with ``pixel_attention_mask`` if images are padded."""
        c = self.config
        x = self.embed(batch)
        if c.pre_norm:
            x = LayerNorm(c.eps, name="pre_norm")(x)
        states = [x]
        mask = padding_mask(batch.get("pixel_attention_mask"))
        for i, options in enumerate(self.attention_options(batch)):
            block = PreNormBlock(
                c.heads,
                c.hidden,
                c.activation,
                c.eps,
                bias=c.bias,
                layer_scale=c.layer_scale,
                gated=c.gated,
                mlp_bias=c.mlp_bias,
                name=f"layer_{i}",
            )
            states.append(block(states[-1], mask, **options))
        norm = LayerNorm(c.eps, name="norm")
        last = norm(states[-1]) if c.norm_tokens else states[-1]
        prefix = int(c.class_token) + c.registers
        pooled = None
        if c.pooling == "attention":
            pool = AttentionPool(c.heads, c.hidden, c.activation, c.eps, name="pool")
            pooled = pool(last[:, prefix:], mask)
        elif c.pooling is not None:
            pooled = last[:, 0] if c.pooling == "cls" else jnp.mean(last[:, prefix:], axis=1)
        if pooled is not None and not c.norm_tokens:
            pooled = norm(pooled)
        if c.pooler is not None:
            size, activation = c.pooler
            pooled = ACTIVATIONS[activation](nn.Dense(size, name="pooler")(pooled))
        projected = pooled
        if c.projection is not None:
            projected = nn.Dense(c.projection, use_bias=c.projection_bias, name="projection")(
                pooled
            )
        return Outputs(tuple(states), last, prefix, pooled, projected)


@dataclass(frozen=True)
class TwoTowersConfig:
    """A text tower, a vision tower and whether logits have a bias."""

    text: Any
    vision: VisionTransformerConfig
    logit_bias: bool = False


class TwoTowers(nn.Module):
    """Two towers and the scale of their logits, which are ``exp(logit_scale) * cosine + bias``.

    The towers do not use the scale and the bias; they are there for who wants the logits.
    """

    text: nn.Module
    vision: nn.Module
    logit_bias: bool = False

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run the tower whose input is there; with both inputs, both, and return the images'."""
        for name in ("logit_scale", *(["logit_bias"] if self.logit_bias else [])):
            self.param(name, nn.initializers.zeros, (), jnp.float32)
        inputs = (("input_ids", self.text), ("pixel_values", self.vision))
        outputs = [tower(batch) for name, tower in inputs if name in batch]
        return outputs[-1]
