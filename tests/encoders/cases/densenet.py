import re

import numpy as np

from ..harness import Case, images
from ..references.maps import plain_maps

SMALL = {
    "model_type": "densenet",
    "growth_rate": 4,
    "block_config": [2, 3],
    "num_init_features": 6,
    "bn_size": 2,
}


def model(config):
    from ..references.densenet import DenseNet  # needs PyTorch

    return DenseNet(config)


def old_file(tensors):
    """As CheXNet's file is: torchvision's old names, a prefix; and torchxrayvision's buffer."""
    old = {
        "module.densenet121." + re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", name): value
        for name, value in tensors.items()
    }
    old["op_threshs"] = np.ones(2, np.float32)
    return old


def xray():
    """Pixels in torchxrayvision's range."""
    return {"pixel_values": 400 * images(49, channels=1)()["pixel_values"]}


CASES = (
    Case("densenet", model, dict, SMALL, images(32, 40), plain_maps),
    Case(
        "densenet-xray-old-names",
        model,
        dict,
        SMALL | {"in_channels": 1, "block_config": [1, 2, 1], "growth_rate": 6, "image_size": 49},
        xray,
        plain_maps,
        edit=old_file,
    ),
)
