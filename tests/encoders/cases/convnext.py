from ..harness import Case, images
from ..references.maps import maps

SMALL = {
    "hidden_sizes": [8, 12],
    "depths": [2, 1],
    "num_stages": 2,
    "image_size": 32,
}


def classifier(tensors):
    """As the task model has it: a prefix and a head."""
    old = {f"convnext.{name}": value for name, value in tensors.items()}
    old["classifier.weight"] = old["convnext.layernorm.weight"][None]
    old["classifier.bias"] = old["convnext.layernorm.bias"][:1]
    return old


def case(name, options, inputs, **more):
    return Case(name, "ConvNextModel", "ConvNextConfig", SMALL | options, inputs, maps, **more)


CASES = (
    case("convnext", {}, images(32)),
    case(
        "convnext-eps-grey-no-scale",
        {
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
            "layer_scale_init_value": 0.0,
            "num_channels": 1,
            "patch_size": [4, 2],
        },
        images(32, 20, channels=1),
    ),
    # Sizes that neither the patches nor the halving divide.
    case("convnext-odd-size", {"hidden_act": "relu"}, images(31, 46), edit=classifier),
)
