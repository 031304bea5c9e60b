"""Flax modules that several families share. Tokens are ``[batch, tokens, width]``.

Linen modules are used because they are what `encode` needs: a frozen, hashable description whose
``apply`` is a pure function of a plain dictionary of arrays, so that parameters can be sharded,
cast, donated and saved by any JAX code without a library's own wrapper types.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Outputs(NamedTuple):
    """What a tower computes, before pooling.

    Attributes:
        hidden_states: per layer ``[batch, tokens, width]``; the first is the embeddings.
        last: ``[batch, tokens, width]``, after the final norm.
        prefix_tokens: number of class and register tokens in front of image patches, which a mean
            leaves out; 0 for text, whose special tokens count.
        pooled: ``[batch, width]`` of the model's own pooler, if it has one.
        projected: ``[batch, dimension]`` in the space shared with another tower, if there is one.
        eos: ``[batch]`` position of the token that stands for the text, if that is not the last
            one that the mask shows.
    """

    hidden_states: tuple[Array, ...]
    last: Array
    prefix_tokens: int = 0
    pooled: Array | None = None
    projected: Array | None = None
    eos: Array | None = None


def quick_gelu(x: Array) -> Array:
    """Sigmoid form of GELU, as in the first CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


#: By the names that configurations use. The forms of GELU differ by 1e-3.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
ACTIVATION_NAMES = tuple(ACTIVATIONS)


def layer_norm(eps: float, name: str | None = None, **options: Any) -> nn.LayerNorm:
    """Layer norm with the two-pass variance that PyTorch has; moments in float32."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, name=name, **options)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Softmax attention of ``[batch, tokens, heads, width]`` arrays.

    Half precision on an Nvidia GPU takes cuDNN's fused kernel, where its head width allows.

    Args:
        q, k, v: queries, keys and values.
        mask: boolean, broadcastable to ``[batch, heads, queries, keys]``; True is attended.
        bias: added to the logits, broadcastable likewise.
        scale: of the logits; by default 1 / sqrt(width).
    """
    return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections ``query``, ``key``, ``value``, ``out``.

    Attributes:
        heads: number of heads; they split the width evenly.
        bias: which projections have a bias.
    """

    heads: int
    bias: tuple[bool, bool, bool, bool] = (True, True, True, True)

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        rotate: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Attend; `rotate` is a rotary position embedding of queries and keys."""
        *batch, width = x.shape
        split = (*batch, self.heads, width // self.heads)
        q, k, v = (
            nn.Dense(width, use_bias=use_bias, name=name)(x).reshape(split)
            for name, use_bias in zip(("query", "key", "value"), self.bias, strict=False)
        )
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        x = attention(q, k, v, mask=mask, bias=bias).reshape(x.shape)
        return nn.Dense(width, use_bias=self.bias[3], name="out")(x)


class Mlp(nn.Module):
    """Two linear layers ``up`` and ``down`` with an activation between them."""

    hidden: int
    activation: str
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        width = x.shape[-1]
        x = ACTIVATIONS[self.activation](nn.Dense(self.hidden, use_bias=self.bias, name="up")(x))
        return nn.Dense(width, use_bias=self.bias, name="down")(x)


class GatedMlp(nn.Module):
    """``down(activation(gate(x)) * up(x))``."""

    hidden: int
    activation: str
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        width = x.shape[-1]
        gate = ACTIVATIONS[self.activation](
            nn.Dense(self.hidden, use_bias=self.bias, name="gate")(x)
        )
        x = gate * nn.Dense(self.hidden, use_bias=self.bias, name="up")(x)
        return nn.Dense(width, use_bias=self.bias, name="down")(x)


class PostNormBlock(nn.Module):
    """Transformer layer with the norms after the sums, as in BERT."""

    heads: int
    hidden: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, bias: Array | None = None) -> Array:
        """Apply to tokens."""
        attended = SelfAttention(self.heads, name="attention")(x, mask, bias)
        x = layer_norm(self.eps, "attention_norm")(x + attended)
        mlp = Mlp(self.hidden, self.activation, name="mlp")(x)
        return layer_norm(self.eps, "mlp_norm")(x + mlp)


class LayerScale(nn.Module):
    """A learned factor per channel, parameter ``gamma``."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return x * jnp.expand_dims(gamma, range(x.ndim - 1))


class PreNormBlock(nn.Module):
    """Transformer layer with the norms before each part, as in vision transformers.

    Attributes:
        heads, hidden, activation, eps: as their names say; `hidden` is the width inside the MLP.
        bias: which of the projections query, key, value, out have a bias.
        layer_scale: whether each part is multiplied by a learned factor per channel.
        gated: whether the MLP is gated (SwiGLU).
        mlp_bias: whether its layers have biases.
    """

    heads: int
    hidden: int
    activation: str
    eps: float
    bias: tuple[bool, bool, bool, bool] = (True, True, True, True)
    layer_scale: bool = False
    gated: bool = False
    mlp_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        rotate: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Apply to tokens."""
        attend = SelfAttention(self.heads, self.bias, name="attention")
        part = attend(layer_norm(self.eps, "attention_norm")(x), mask, bias, rotate)
        x = x + (LayerScale(name="attention_scale")(part) if self.layer_scale else part)
        kind = GatedMlp if self.gated else Mlp
        mlp = kind(self.hidden, self.activation, self.mlp_bias, name="mlp")
        part = mlp(layer_norm(self.eps, "mlp_norm")(x))
        return x + (LayerScale(name="mlp_scale")(part) if self.layer_scale else part)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each mapped linearly: one product instead of a convolution."""

    features: int
    patch: tuple[int, int]
    use_bias: bool = True

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """Map pixels ``[batch, channels, height, width]`` to ``[batch, rows, columns, features]``.

        Pixels beyond the last whole patch are left out, as a strided convolution does.
        """
        b, c, height, width = pixels.shape
        (p, q), (rows, columns) = self.patch, (height // self.patch[0], width // self.patch[1])
        x = pixels[:, :, : rows * p, : columns * q]
        x = x.reshape(b, c, rows, p, columns, q).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape(b, rows, columns, c * p * q)
        return nn.Dense(self.features, use_bias=self.use_bias, name="projection")(x)


def _cubic_weights(size: int, new_size: int, scale: float) -> np.ndarray:
    """Matrix ``[new_size, size]`` of cubic convolution (a = -0.75) with clamped borders."""
    a = -0.75
    centre = (np.arange(new_size) + 0.5) * scale - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new_size, size))
    for offset in range(-1, 3):
        t = np.abs(centre - (first + offset))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        column = np.clip(first + offset, 0, size - 1)
        np.add.at(weights, (np.arange(new_size), column), np.where(t <= 1, near, far))
    return weights


def resize_positions(grid: Array, size: tuple[int, int]) -> Array:
    """Interpolate position embeddings ``[rows, columns, width]`` to another grid, bicubic.

    The same function as PyTorch's ``interpolate(mode="bicubic", align_corners=False)``, which
    vision transformers use; `jax.image.resize` has another cubic kernel. Computed in float32.
    """
    rows, columns, _ = grid.shape
    if (rows, columns) == size:
        return grid
    down = jnp.asarray(_cubic_weights(rows, size[0], rows / size[0]), jnp.float32)
    across = jnp.asarray(_cubic_weights(columns, size[1], columns / size[1]), jnp.float32)
    resized = jnp.einsum(
        "ir,jc,rcd->ijd", down, across, grid.astype(jnp.float32), precision="highest"
    )
    return resized.astype(grid.dtype)


def padding_mask(attention_mask: Array | None) -> Array | None:
    """Attention mask ``[batch, 1, 1, keys]`` from a mask of tokens ``[batch, tokens]``."""
    return None if attention_mask is None else attention_mask[:, None, None, :].astype(bool)
