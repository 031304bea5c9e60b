from ..harness import Case, images
from ..references.maps import maps
from .convnext import SMALL


def case(name, options, inputs, **more):
    return Case(name, "ConvNextV2Model", "ConvNextV2Config", SMALL | options, inputs, maps, **more)


CASES = (
    case("convnextv2", {}, images(32)),
    case(
        "convnextv2-eps-odd-size",
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2, "num_channels": 1},
        images(31, 46, channels=1),
    ),
)
