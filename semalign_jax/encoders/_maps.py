"""Flax modules and functions of feature maps ``[batch, rows, columns, channels]``."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import ACTIVATIONS, Array

#: Of feature maps: before and after rows and columns; or "same".
Padding = tuple[tuple[int, int], tuple[int, int]] | Literal["same"]


def channels_last(pixels: Array) -> Array:
    """``[batch, channels, height, width]`` to ``[batch, height, width, channels]``."""
    return pixels.transpose(0, 2, 3, 1)


def flatten_map(x: Array) -> Array:
    """Feature maps ``[batch, rows, columns, channels]`` to tokens, row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def global_average(x: Array) -> Array:
    """Mean over rows and columns of feature maps, in float32 inside: ``[batch, channels]``."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2)).astype(x.dtype)


def stem_pool(x: Array) -> Array:
    """Maxima of 3 x 3 places of feature maps, at every second place."""
    borders = ((1, 1), (1, 1))
    return nn.max_pool(x, (3, 3), (2, 2), borders)  # pyright: ignore[reportArgumentType]


class BatchNorm(nn.Module):
    """Batch norm in inference; parameters ``scale``, ``bias`` and the stored ``mean``, ``var``.

    The moments are parameters, not a second collection as in Flax's own module, since nothing
    updates them here. Computed in float32 inside.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale, bias, mean, var = (
            self.param(name, init, (x.shape[-1],), jnp.float32).astype(jnp.float32)
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        factor = scale * jax.lax.rsqrt(var + self.eps)
        shift = bias - mean * factor
        last = (1,) * (x.ndim - 1) + (-1,)
        y = x.astype(jnp.float32) * factor.reshape(last) + shift.reshape(last)
        return y.astype(x.dtype)


class Conv(nn.Module):
    """Convolution of feature maps ``[batch, rows, columns, channels]``.

    Attributes:
        features: channels of the output.
        kernel, stride: the same for rows and columns.
        padding: zeros before and after rows and columns, or "same" for TensorFlow's, which depends
            on the size of the maps; by default half the kernel each.
        depthwise: whether each channel has its own filter.
        use_bias: whether there is a bias.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: Padding | None = None
    depthwise: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps."""
        half = (self.kernel // 2, self.kernel // 2)
        padding = self.padding or (half, half)
        if isinstance(padding, str):
            window, strides = (self.kernel,) * 2, (self.stride,) * 2
            padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding.upper())
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        if self.kernel == self.stride == 1 and not self.depthwise:
            x = jnp.pad(x, ((0, 0), *padding, (0, 0))) @ kernel[0, 0]
        elif self.depthwise and jax.default_backend() == "cpu":
            x = _sum_of_shifts(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel, self.stride)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1] if self.depthwise else 1,
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.reshape(1, 1, 1, -1)
        return x


def _sum_of_shifts(x: Array, kernel: Array, stride: int) -> Array:
    """Depthwise convolution of padded maps as a sum over the kernel's places.

    XLA's own convolution with a group per channel is many times slower on CPUs. The upper and the
    lower half are computed in a loop, which is not fused with what follows: each pass of a norm
    would compute the sum again.
    """
    size = len(kernel)
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    half, width = -(-rows // 2), (columns - 1) * stride + 1
    wide, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)

    def with_half(number: Array, maps: Array) -> Array:
        start = number * (rows - half)
        lines = jax.lax.dynamic_slice_in_dim(wide, start * stride, (half - 1) * stride + size, 1)
        terms = [
            lines[:, i : i + (half - 1) * stride + 1 : stride, j : j + width : stride]
            * kernel[i, j].reshape(1, 1, 1, -1)
            for i in range(size)
            for j in range(size)
        ]
        return jax.lax.dynamic_update_slice_in_dim(maps, sum(terms[1:], terms[0]), start, 1)

    empty = jnp.zeros((len(x), rows, columns, x.shape[3]), jnp.float32)
    return jax.lax.fori_loop(0, 2, with_half, empty).astype(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias (``conv``), batch norm (``norm``) and an activation.

    Attributes:
        features: channels of the output.
        kernel, stride: of the convolution, the same for rows and columns.
        activation: its name; None for none.
        eps: of the batch norm.
        depthwise: whether each channel has its own filter.
        padding: see `Conv`.
    """

    features: int
    kernel: int
    stride: int = 1
    activation: str | None = None
    eps: float = 1e-5
    depthwise: bool = False
    padding: Padding | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply to feature maps ``[batch, rows, columns, channels]``."""
        x = Conv(
            self.features, self.kernel, self.stride, self.padding, self.depthwise, name="conv"
        )(x)
        x = BatchNorm(self.eps, name="norm")(x)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)
