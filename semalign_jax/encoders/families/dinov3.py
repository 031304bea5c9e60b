"""DINOv3 vision transformers: Siméoni et al. 2025, arXiv 2508.10104."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import IMAGE, Family
from .._layers import (
    Activation,
    Array,
    LayerNorm,
    Outputs,
    PatchEmbedding,
    PreNormBlock,
    behind_tokens,
    layers,
)
from .._weights import Rule, linear, norm, patch_embedding


@dataclass(frozen=True)
class Dinov3Config:
    """Sizes and options, named as in ``config.json``."""

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-5
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    num_register_tokens: int = 0
    rope_theta: float = 100.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    use_gated_mlp: bool = False


def parse(reader: ConfigReader, tensors: frozenset[str]) -> Dinov3Config:
    """Read the configuration."""
    reader.neutral("return_class_token", "layerscale_value")
    # Augmentations of the coordinates in training.
    reader.neutral("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    config = reader.read(Dinov3Config)
    width, heads = config.hidden_size, config.num_attention_heads
    if heads < 1 or width % (4 * heads):
        reader.problem(
            f"hidden_size = {width} must be a multiple of 4 * num_attention_heads (= 4 * {heads}), "
            "as each head rotates pairs of channels by two coordinates"
        )
    return config


def patch_angles(rows: int, columns: int, head_width: int, theta: float) -> np.ndarray:
    """Angles ``[rows * columns, head_width / 2]`` by which the pairs of channels are rotated.

    The centres of the patches have coordinates from -1 to 1 whatever their number. The first half
    of the angles is of the row, the second of the column, each at ``head_width / 4`` frequencies.
    """
    frequencies = 2 * np.pi / theta ** np.arange(0, 1, 4 / head_width)
    centres = [2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)]
    coordinates = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    return (coordinates[:, :, None] * frequencies).reshape(rows * columns, head_width // 2)


def rotate_patches(x: Array, angles: np.ndarray) -> Array:
    """Rotate queries or keys ``[batch, tokens, heads, width]`` of the patches.

    Channel i pairs with channel i + width / 2. The tokens in front of the patches stay.
    """
    prefix = x.shape[1] - angles.shape[0]
    cos, sin = (jnp.asarray(f(angles)[None, :, None], x.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x[:, prefix:], 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([x[:, :prefix], jnp.concatenate(rotated, axis=-1)], axis=1)


class Dinov3(nn.Module):
    """Class token, registers and patches; pre-norm layers with rotary positions; final norm."""

    config: Dinov3Config

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        x = PatchEmbedding(c.hidden_size, c.patch_size, name="patches")(batch["pixel_values"])
        _, rows, columns, width = x.shape
        x = behind_tokens(self, x, cls_token=1, register_tokens=c.num_register_tokens)
        angles = patch_angles(rows, columns, width // c.num_attention_heads, c.rope_theta)
        kind = partial(
            PreNormBlock,
            bias=(c.query_bias, c.key_bias, c.value_bias, c.proj_bias),
            layer_scale=True,
            gated=c.use_gated_mlp,
            mlp_bias=c.mlp_bias,
        )
        states = layers(c, x, None, kind, rotate=partial(rotate_patches, angles=angles))
        last = LayerNorm(c.layer_norm_eps, name="norm")(states[-1])
        return Outputs(
            tuple(states), last, prefix_tokens=1 + c.num_register_tokens, pooled=last[:, 0]
        )


RULES = (
    Rule("embeddings.cls_token", "cls_token"),
    Rule("embeddings.register_tokens", "register_tokens"),
    *patch_embedding("embeddings.patch_embeddings", "patches/projection"),
    *linear("layer.*.attention.q_proj", "layer_*/attention/query"),
    *linear("layer.*.attention.k_proj", "layer_*/attention/key"),
    *linear("layer.*.attention.v_proj", "layer_*/attention/value"),
    *linear("layer.*.attention.o_proj", "layer_*/attention/out"),
    *norm("layer.*.norm1", "layer_*/attention_norm"),
    *norm("layer.*.norm2", "layer_*/mlp_norm"),
    Rule("layer.*.layer_scale1.lambda1", "layer_*/attention_scale/gamma"),
    Rule("layer.*.layer_scale2.lambda1", "layer_*/mlp_scale/gamma"),
    *linear("layer.*.mlp.gate_proj", "layer_*/mlp/gate"),
    *linear("layer.*.mlp.up_proj", "layer_*/mlp/up"),
    *linear("layer.*.mlp.down_proj", "layer_*/mlp/down"),
    *norm("norm", "norm"),
)

DINOV3 = Family(
    name="dinov3",
    modalities=(IMAGE,),
    parse=parse,
    build=Dinov3,
    rules=RULES,
    poolings=lambda config: ("cls", "mean", "pooler"),
    image_size=lambda config: (config.num_channels, *config.image_size),
    # The second is that of the encoder inside of today's modules.
    prefixes=("dinov3_vit.", "model."),
    ignored=("embeddings.mask_token", "classifier.*"),
)
FAMILIES = {"dinov3_vit": DINOV3}
