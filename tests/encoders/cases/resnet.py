from ..harness import Case, images
from ..references.maps import maps

SMALL = {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [2, 2]}


def classifier(tensors):
    """As the task model has it: a prefix and a head."""
    old = {f"resnet.{name}": value for name, value in tensors.items()}
    old["classifier.1.weight"] = old["resnet.embedder.embedder.normalization.weight"][None]
    old["classifier.1.bias"] = old["resnet.embedder.embedder.normalization.bias"][:1]
    return old


def case(name, options, inputs, **more):
    return Case(name, "ResNetModel", "ResNetConfig", SMALL | options, inputs, maps, **more)


CASES = (
    case("resnet", {}, images(32, 40)),
    case("resnet-basic", {"layer_type": "basic"}, images(33), edit=classifier),
    case(
        "resnet-gelu-downsample",
        {
            "hidden_act": "gelu",
            "downsample_in_first_stage": True,
            "downsample_in_bottleneck": True,
            "num_channels": 1,
            "hidden_sizes": [8, 8, 16],
            "depths": [1, 2, 1],
        },
        images(47, channels=1),
    ),
)
