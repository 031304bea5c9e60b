"""Flax modules that several families share. Tokens are ``[batch, tokens, width]``.

Linen modules are used because they are what `encode` needs: a frozen, hashable description whose
``apply`` is a pure function of a plain dictionary of arrays, so that parameters can be sharded,
cast, donated and saved by any JAX code without a library's own wrapper types.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .._core.trees import by_value

Array = jax.Array


@by_value
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


def gelu(x: Array) -> Array:
    """GELU by the error function, in float32 inside, as PyTorch computes it.

    `jax.nn.gelu` keeps more digits of values near 0 by erfc, in three times the time on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (wide * (0.5 * (1 + jax.lax.erf(wide * np.float32(0.5**0.5))))).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """Sigmoid form of GELU, as in the first CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


#: By the names that configurations use. The two forms of GELU differ by up to 5e-4.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
ACTIVATION_NAMES = tuple(ACTIVATIONS)
#: The type of a field that holds one of these names, see `ConfigReader.read`.
Activation = Annotated[str, ACTIVATION_NAMES]


class LayerNorm(nn.Module):
    """Layer norm over the last axis as PyTorch computes it: in float32, variance in two passes.

    Attributes:
        epsilon: added to the variance.
        use_scale, use_bias: which parameters there are.
    """

    epsilon: float
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis; the result has the dtype of `x`."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        value = centred * jax.lax.rsqrt(variance + self.epsilon)
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
            value *= scale.astype(jnp.float32).reshape(shape)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
            value += bias.astype(jnp.float32).reshape(shape)
        return value.astype(x.dtype)


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, in float32 inside.

    Attributes:
        epsilon: added to the mean square.
        offset: added to the parameter ``scale``: 1 in Gemma.
    """

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis; the result has the dtype of `x`."""
        wide = x.astype(jnp.float32)
        value = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        scale = self.offset + scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (value * scale).astype(x.dtype)


def rotate(x: Array, theta: float) -> Array:
    """Rotary position embedding of ``[batch, tokens, heads, width]``, computed in float32.

    Su et al. 2021, arXiv 2104.09864: the channels i and i + width / 2 of a token are turned by
    its position times ``theta ** (-2 i / width)``.
    """
    tokens, width = x.shape[1], x.shape[3]
    # Rounded twice, as in the reference: far positions multiply what the last bit says.
    periods = (theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
    speeds = jnp.asarray(np.float32(1) / periods)
    angles = jnp.arange(tokens, dtype=jnp.float32)[:, None] * speeds[None]
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Softmax attention; on an Nvidia GPU in half precision by cuDNN's fused kernel.

    Args:
        q: queries ``[batch, queries, heads, width]``.
        k: keys ``[batch, keys, groups, width]``: as many as heads, or each for equally many heads.
        v: values ``[batch, keys, groups, width]``.
        mask: boolean, broadcastable to ``[batch, heads, queries, keys]``; True is attended.
        bias: added to the logits, broadcastable likewise.
        scale: of the logits; by default 1 / sqrt(width).

    Returns:
        ``[batch, queries, heads, width]``. A query that attends to nothing gets a finite mean.
    """
    attend = partial(jax.nn.dot_product_attention, scale=scale)
    # The function is not written for strict promotion of half precision.
    with jax.numpy_dtype_promotion("standard"):
        if q.dtype.itemsize == 2 and jax.default_backend() == "gpu":
            # The kernel takes no masks that are broadcast along queries or keys.
            size = (q.shape[1], k.shape[1])
            full = None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], *size))
            wide = None if bias is None else jnp.broadcast_to(bias, (*bias.shape[:2], *size))
            try:
                return attend(q, k, v, wide, full, implementation="cudnn")
            except (NotImplementedError, RuntimeError, ValueError):
                pass  # a width, a card or a version of cuDNN without this kernel: found in tracing
        if q.dtype.itemsize == 2 and jax.default_backend() == "cpu":
            # Products of half-precision numbers with float32 sums are not there on CPUs.
            wide_q, wide_k, wide_v = (a.astype(jnp.float32) for a in (q, k, v))
            return attend(wide_q, wide_k, wide_v, bias, mask).astype(q.dtype)
        return attend(q, k, v, bias, mask)


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
        if width % self.heads:
            raise ValueError(f"the width {width} is not a multiple of {self.heads} attention heads")
        split = (*batch, self.heads, width // self.heads)
        q, k, v = (
            nn.Dense(width, use_bias=use_bias, name=name)(x).reshape(split)
            for name, use_bias in zip(("query", "key", "value"), self.bias, strict=False)
        )
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        x = attention(q, k, v, mask=mask, bias=bias).reshape(x.shape)
        return nn.Dense(width, use_bias=self.bias[3], name="out")(x)


class ResponseNorm(nn.Module):
    """Global response norm of feature maps ``[batch, rows, columns, channels]``.

    A channel is multiplied by its root of the sum of squares over all places, relative to the mean
    of all channels. Woo et al. 2023, arXiv 2301.00808. Computed in float32 inside.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply, and add the input."""
        zeros = nn.initializers.zeros
        scale, bias = (
            self.param(name, zeros, (x.shape[-1],), jnp.float32).astype(jnp.float32)
            for name in ("scale", "bias")
        )
        wide = x.astype(jnp.float32)
        size = jnp.sqrt(jnp.sum(wide * wide, axis=(1, 2), keepdims=True))
        relative = size / (jnp.mean(size, axis=-1, keepdims=True) + 1e-6)
        last = (1,) * (x.ndim - 1) + (-1,)
        y = wide * (1 + scale.reshape(last) * relative) + bias.reshape(last)
        return y.astype(x.dtype)


class Mlp(nn.Module):
    """Two linear layers ``up`` and ``down`` with an activation between them.

    Attributes:
        hidden: width between them.
        activation: its name.
        bias: whether the layers have biases.
        response_norm: whether a `ResponseNorm` follows the activation.
    """

    hidden: int
    activation: str
    bias: bool = True
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        width = x.shape[-1]
        x = ACTIVATIONS[self.activation](nn.Dense(self.hidden, use_bias=self.bias, name="up")(x))
        if self.response_norm:
            x = ResponseNorm(name="response_norm")(x)
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
    """Transformer layer with the norms after the sums, as in BERT.

    Attributes:
        heads, hidden, activation, eps: as their names say; `hidden` is the width inside the MLP.
        bias: whether linear layers have biases.
        gated: whether the MLP is gated (SwiGLU).
    """

    heads: int
    hidden: int
    activation: str
    eps: float
    bias: bool = True
    gated: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        rotate: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Apply to tokens."""
        has = self.bias
        attend = SelfAttention(self.heads, (has, has, has, has), name="attention")
        x = LayerNorm(self.eps, name="attention_norm")(x + attend(x, mask, bias, rotate))
        kind = GatedMlp if self.gated else Mlp
        mlp = kind(self.hidden, self.activation, self.bias, name="mlp")
        return LayerNorm(self.eps, name="mlp_norm")(x + mlp(x))


class LayerScale(nn.Module):
    """A learned factor per channel, parameter ``gamma``."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return x * jnp.expand_dims(gamma, tuple(range(x.ndim - 1)))


class PreNormBlock(nn.Module):
    """Transformer layer with the norms before each part, as in vision transformers.

    Attributes:
        heads, hidden, activation, eps: as their names say; `hidden` is the width inside the MLP.
        bias: which of the projections query, key, value, out have a bias.
        layer_scale: whether each part is multiplied by a learned factor per channel.
        gated: whether the MLP is gated (SwiGLU).
        mlp_bias: whether its layers have biases.
        norm_bias: whether the norms have biases.
        first_norm: whether there is a norm before the attention.
    """

    heads: int
    hidden: int
    activation: str
    eps: float
    bias: tuple[bool, bool, bool, bool] = (True, True, True, True)
    layer_scale: bool = False
    gated: bool = False
    mlp_bias: bool = True
    norm_bias: bool = True
    first_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        rotate: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Apply to tokens."""
        norm = partial(LayerNorm, self.eps, use_bias=self.norm_bias)
        part = norm(name="attention_norm")(x) if self.first_norm else x
        part = SelfAttention(self.heads, self.bias, name="attention")(part, mask, bias, rotate)
        x = x + (LayerScale(name="attention_scale")(part) if self.layer_scale else part)
        kind = GatedMlp if self.gated else Mlp
        mlp = kind(self.hidden, self.activation, self.mlp_bias, name="mlp")
        part = mlp(norm(name="mlp_norm")(x))
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


def resize_smoothly(grid: Array, size: tuple[int, int]) -> Array:
    """Interpolate position embeddings ``[rows, columns, width]``, bicubic with antialiasing.

    PyTorch's ``interpolate(mode="bicubic", antialias=True)``: its kernel is another (a = -0.5) than
    without antialiasing, also where the grid grows. Computed in float32.
    """
    wide = grid.astype(jnp.float32)
    return jax.image.resize(wide, (*size, grid.shape[-1]), "cubic").astype(grid.dtype)


def padding_mask(attention_mask: Array | None) -> Array | None:
    """Attention mask ``[batch, 1, 1, keys]`` from a mask of tokens ``[batch, tokens]``."""
    return None if attention_mask is None else attention_mask[:, None, None, :].astype(bool)


def unit_length(x: Array) -> Array:
    """Scale vectors of the last axis to length 1, in float32 inside; zeros stay."""
    wide = x.astype(jnp.float32)
    squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
    # The bound is inside of the root, whose derivative is not finite at 0.
    return (wide / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


def masked_mean(x: Array, mask: Array | None) -> Array:
    """Mean over tokens that the mask shows, in float32 inside; zeros if it shows none."""
    wide = x.astype(jnp.float32)
    if mask is None:
        return jnp.mean(wide, axis=1).astype(x.dtype)
    shown = mask[:, :, None] != 0
    count = jnp.maximum(jnp.sum(shown, axis=1, dtype=wide.dtype), 1)
    return (jnp.sum(jnp.where(shown, wide, 0), axis=1) / count).astype(x.dtype)


def positions_past_padding(ids: Array, pad: int) -> Array:
    """Positions ``[batch, tokens]`` counted over the tokens that are no padding, from `pad` + 1.

    Padding has the position `pad`, as in RoBERTa.
    """
    shown = (ids != pad).astype(ids.dtype)
    return jnp.cumsum(shown, axis=1, dtype=ids.dtype) * shown + pad
