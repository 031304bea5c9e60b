from ..harness import Case, images
from .swin import SMALL


def case(name, options, inputs):
    return Case(name, "Swinv2Model", "Swinv2Config", SMALL | options, inputs)


CASES = (
    case("swinv2", {}, images(36)),
    case(
        "swinv2-pretrained-windows-no-bias",
        {
            "pretrained_window_sizes": [4, 0],
            "qkv_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
            "mlp_ratio": 1.7,
            "num_channels": 1,
        },
        images(36, channels=1),
    ),
    # A second stage smaller than the windows, pixels padded to whole patches.
    case("swinv2-odd-size", {"window_size": 6, "depths": [2, 3]}, images(30, 43)),
    case("swinv2-other-size", {}, images(40, 28)),
)
