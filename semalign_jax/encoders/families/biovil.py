"""Image encoders of BioViL and BioViL-T, chest radiographs in the space of CXR-BERT.

Boecking et al. 2022, arXiv 2204.09817; Bannur et al. 2023, arXiv 2301.04558. A ResNet-50 and a
projector, applied to each patch. BioViL-T narrows the patches and sets a vector that compares them
with those of a previous image beside each; without a previous image, as here, that is one learned
vector. Its transformer, which compares, is not used.

The tensors have the names of Microsoft's package hi-ml-multimodal; there is no common
``config.json`` for them, ours has ``"model_type": "biovil"`` or ``"biovil-t"`` and, for another
network than ResNet-50, the options of ``resnet``. ``last`` is the patches, before the projector.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .._config import ConfigReader
from .._family import Family
from .._layers import Array, Outputs, masked_mean
from .._maps import BatchNorm
from .._weights import Rule, batch_norm, patch_embedding, prefixed
from . import resnet, timm

#: Width of a patch, and of its comparison, in BioViL-T.
STATIC_WIDTH = 256


@dataclass(frozen=True)
class BioViLConfig:
    """The network and the sizes of images and of the shared space.

    Attributes:
        resnet: the network.
        image_size: height and width.
        projection: dimension of the shared space.
        temporal: whether it is BioViL-T.
    """

    resnet: resnet.ResNetConfig
    image_size: int
    projection: int
    temporal: bool


def parse(reader: ConfigReader, tensors: frozenset[str], *, temporal: bool) -> BioViLConfig:
    """Read the configuration."""
    return BioViLConfig(
        resnet=resnet.parse(reader, tensors),
        image_size=reader.get("image_size", 448 if temporal else 480),
        projection=reader.get("joint_feature_size", 128),
        temporal=temporal,
    )


class BioViL(nn.Module):
    """ResNet, the missing comparison (BioViL-T), projector."""

    config: BioViLConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``pixel_values``."""
        c = self.config
        outputs = resnet.ResNet(c.resnet, name="resnet")(batch)
        x = outputs.last
        if c.temporal:
            x = nn.Dense(STATIC_WIDTH, use_bias=False, name="static")(x)
            missing = self.param("missing", nn.initializers.zeros, (STATIC_WIDTH,), jnp.float32)
            x = jnp.concatenate([x, jnp.broadcast_to(missing, x.shape)], axis=-1)
        y = nn.Dense(c.projection, use_bias=False, name="hidden")(x)
        y = jax.nn.relu(BatchNorm(name="hidden_norm")(y))
        y = nn.Dense(c.projection, name="projection")(y)
        pooled, projected = masked_mean(x, None), masked_mean(y, None)
        return Outputs(outputs.hidden_states, x, pooled=pooled, projected=projected)


def rules(config: BioViLConfig) -> tuple[Rule, ...]:
    """Rules of the network and the projector."""
    return (
        *prefixed(timm.resnet_rules(config.resnet), "encoder.encoder.", "resnet/"),
        *patch_embedding("encoder.backbone_to_vit", "static"),
        Rule("encoder.missing_previous_emb", "missing", np.ravel),
        *patch_embedding("projector.model.0", "hidden"),
        *batch_norm("projector.model.1", "hidden_norm"),
        *patch_embedding("projector.model.3", "projection"),
    )


HEADS = ("*.num_batches_tracked", "encoder.encoder.fc.*", "classifier.*")
BIOVIL = Family(
    name="biovil",
    parse=partial(parse, temporal=False),
    build=BioViL,
    rules=rules,
    poolings=lambda config: ("projection", "pooler", "mean"),
    image_size=lambda config: (
        config.resnet.num_channels,
        config.image_size,
        config.image_size,
    ),
    ignored=HEADS,
)
BIOVIL_T = replace(
    BIOVIL,
    name="biovil-t",
    parse=partial(parse, temporal=True),
    ignored=(*HEADS, "encoder.vit_pooler.*"),
)
FAMILIES = {"biovil": BIOVIL, "biovil-t": BIOVIL_T}
