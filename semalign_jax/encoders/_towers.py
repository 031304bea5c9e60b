"""Towers of the models that map texts and images into one space: CLIP, SigLIP, OpenCLIP.

Their transformers are alike; they differ in what stands for a text or an image and in the masks.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ._layers import (
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


@dataclass(frozen=True)
class VisionTowerConfig:
    """Sizes and options of a vision transformer as a tower.

    Attributes:
        channels, image_size, patch, width, layers, heads, activation, eps: as their names say.
        hidden: width inside the MLP.
        pooling: what stands for the image: "cls" (class token), "mean" (of the patches),
            "attention" (a learned query) or None.
        projection: dimension of the shared space; None without a projection.
        class_token: whether there is one.
        patch_bias: whether the embedding of patches has a bias.
        pre_norm: whether the embeddings are normalised.
        norm_tokens: whether the final norm is that of every token, before pooling, or only that
            of the pooled vector.
        interpolate: whether images of other sizes are taken.
        smooth: whether the positions are interpolated with antialiasing.
        projection_bias: whether the projection has a bias.
        layer_scale, gated: see `PreNormBlock`.
        qkv_bias: whether the projections of the attention to query, key and value have biases.
        registers: number of register tokens, which stand behind the class token.
        prefix_positions: whether class and register tokens have position embeddings.
    """

    channels: int
    image_size: tuple[int, int]
    patch: tuple[int, int]
    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    pooling: str | None
    projection: int | None
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True
    norm_tokens: bool = True
    interpolate: bool = False
    projection_bias: bool = False
    layer_scale: bool = False
    smooth: bool = False
    gated: bool = False
    qkv_bias: bool = True
    registers: int = 0
    prefix_positions: bool = True


def reads_padding(config: Any) -> bool:
    """Whether an embedding depends on how far its text is padded."""
    if not isinstance(config, TextTowerConfig):
        return False
    return config.token == "last" or not (config.causal or config.padding)


def token_position(kind: str, ids: Array, eos_token_id: int | None) -> Array:
    """Return where the token that stands for a text is, ``[batch]``; see `TextTowerConfig`."""
    if kind == "eos":
        return jnp.argmax(ids == eos_token_id, axis=1)
    if kind == "highest":
        return jnp.argmax(ids, axis=1)
    return jnp.full(ids.shape[0], 0 if kind == "first" else ids.shape[1] - 1)


class TextTower(nn.Module):
    """Embeddings, pre-norm layers, final norm; one token, projected, stands for the text."""

    config: TextTowerConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and optional ``attention_mask``."""
        c = self.config
        ids = batch["input_ids"]
        tokens = ids.shape[1]
        if tokens > c.max_tokens:
            raise ValueError(
                f"input_ids has {tokens} tokens and this model takes {c.max_tokens}: truncate"
            )
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
        position = token_position(c.token, ids, c.eos_token_id)
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


class VisionTower(nn.Module):
    """Patches, optional class and register tokens, pre-norm layers, pooling, projection."""

    config: VisionTowerConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        zeros = nn.initializers.zeros
        pixels = batch["pixel_values"]
        if pixels.shape[2:] != c.image_size and not c.interpolate:
            raise ValueError(
                f"pixel_values has images of {pixels.shape[2:]}, and this model takes "
                f"{c.image_size} alone: resize them"
            )
        x = PatchEmbedding(c.width, c.patch, c.patch_bias, name="patches")(pixels)
        count, rows, columns, width = x.shape
        learned = (c.image_size[0] // c.patch[0], c.image_size[1] // c.patch[1])
        prefix = int(c.class_token) + c.registers
        placed = prefix if c.prefix_positions else 0
        shape = (placed + learned[0] * learned[1], width)
        table = self.param("position_embedding", zeros, shape, jnp.float32)
        places = table[placed:].reshape(*learned, width)
        if (rows, columns) != learned:
            places = (resize_smoothly if c.smooth else resize_positions)(places, (rows, columns))
        x = (x + places[None]).reshape(count, rows * columns, width)
        tokens = []
        if c.class_token:
            tokens.append(self.param("class_token", zeros, (width,), jnp.float32)[None])
        if c.registers:
            tokens.append(self.param("registers", zeros, (c.registers, width), jnp.float32))
        if tokens:
            front = jnp.concatenate(tokens) + (table[:placed] if placed else 0)
            x = jnp.concatenate([jnp.broadcast_to(front, (count, *front.shape)), x], axis=1)
        if c.pre_norm:
            x = LayerNorm(c.eps, name="pre_norm")(x)
        states = [x]
        for i in range(c.layers):
            block = PreNormBlock(
                c.heads,
                c.hidden,
                c.activation,
                c.eps,
                bias=(c.qkv_bias, c.qkv_bias, c.qkv_bias, True),
                layer_scale=c.layer_scale,
                gated=c.gated,
                name=f"layer_{i}",
            )
            states.append(block(states[-1]))
        norm = LayerNorm(c.eps, name="norm")
        last = norm(states[-1]) if c.norm_tokens else states[-1]
        pooled = None
        if c.pooling == "attention":
            pool = AttentionPool(c.heads, c.hidden, c.activation, c.eps, name="pool")
            pooled = pool(last[:, prefix:])
        elif c.pooling is not None:
            pooled = last[:, 0] if c.pooling == "cls" else jnp.mean(last[:, prefix:], axis=1)
        if pooled is not None and not c.norm_tokens:
            pooled = norm(pooled)
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
    vision: VisionTowerConfig
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
