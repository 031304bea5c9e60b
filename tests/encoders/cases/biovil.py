import numpy as np

from ..harness import Case, images
from ..references.maps import flat

SMALL = {"hidden_sizes": [16, 24, 24, 32], "depths": [1, 2, 1, 1]}


def biovil(config):
    from ..references.biovil import BioViL  # needs PyTorch

    return BioViL(config)


def biovil_t(config):
    return biovil(config)


def outputs(module, inputs):
    states, last, pooled, projected = module(**inputs)
    found = {f"hidden_{i}": flat(state) for i, state in enumerate(states)}
    return found | {"last": flat(last), "pooled": pooled, "projected": projected}


def published(tensors):
    """As the file of BioViL-T is, with the transformer that a second image needs."""
    more = {"encoder.vit_pooler.type_embed": np.zeros((2, 1, 256), np.float32)}
    return tensors | more


CASES = (
    Case("biovil", biovil, dict, {"model_type": "biovil"} | SMALL, images(48, 64), outputs),
    Case(
        "biovil-t",
        biovil_t,
        dict,
        {"model_type": "biovil-t"} | SMALL,
        images(64),
        outputs,
        edit=published,
    ),
)
