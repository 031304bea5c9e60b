"""DINOv3 vision transformers: Siméoni et al. 2025, arXiv 2508.10104."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import Array
from .._towers import VisionTransformer, VisionTransformerConfig, image_options, layer_options
from .._weights import Rule, first, linear, norm, patch_embedding


@dataclass(frozen=True, kw_only=True)
class Dinov3Config(VisionTransformerConfig):
    """And the base of the rotary positions."""

    rope_theta: float


def parse(reader: ConfigReader, tensors: frozenset[str]) -> Dinov3Config:
    """Read the configuration."""
    reader.neutral("return_class_token", "layerscale_value")
    # Augmentations of the coordinates in training.
    reader.neutral("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    layers = layer_options(reader, 384, 6, "gelu", 1e-5)
    width, heads = layers["width"], layers["heads"]
    if heads < 1 or width % (4 * heads):
        reader.problem(
            f"hidden_size = {width} must be a multiple of 4 * num_attention_heads (= 4 * {heads}), "
            "as each head rotates pairs of channels by two coordinates"
        )
    return Dinov3Config(
        **image_options(reader, 16),
        **layers,
        hidden=reader.get("intermediate_size", 1536),
        pooling="cls",
        registers=reader.get("num_register_tokens", 0),
        positions=False,
        bias=(
            reader.get("query_bias", True, bool),
            reader.get("key_bias", False, bool),
            reader.get("value_bias", True, bool),
            reader.get("proj_bias", True, bool),
        ),
        layer_scale=True,
        gated=reader.get("use_gated_mlp", False, bool),
        mlp_bias=reader.get("mlp_bias", True, bool),
        rope_theta=reader.get("rope_theta", 100.0, float),
    )


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


class Dinov3(VisionTransformer):
    """A vision transformer whose layers rotate queries and keys by the place of the patch."""

    config: Dinov3Config

    def attention_options(self, batch: dict[str, Array]) -> list[dict[str, Any]]:
        """Return the rotation, the same in each layer."""
        c = self.config
        grid = c.grid_of(batch["pixel_values"].shape[2:])
        angles = patch_angles(*grid, c.width // c.heads, c.rope_theta)
        return [{"rotate": partial(rotate_patches, angles=angles)}] * c.layers


RULES = (
    Rule("embeddings.cls_token", "class_token", np.ravel),
    Rule("embeddings.register_tokens", "registers", first),
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
