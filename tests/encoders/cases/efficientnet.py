from ..harness import Case, images
from ..references.maps import maps, plain_maps

SMALL = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.4,
    "hidden_dim": 320,
    "in_channels": [32, 16, 24, 40],
    "out_channels": [16, 24, 40, 48],
    "kernel_sizes": [3, 3, 5, 3],
    "strides": [1, 2, 2, 1],
    "num_block_repeats": [1, 2, 3, 5],
    "expand_ratios": [1, 4, 3, 2],
}
LITE = {
    "model_type": "efficientnet_lite",
    "width_coefficient": 0.25,
    "image_size": 16,
    "out_channels": [16, 24, 40],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 3, 2],
}


def lite_model(config):
    from ..references.efficientnet_lite import EfficientNetLite  # needs PyTorch

    return EfficientNetLite(config)


def classifier(tensors):
    """As the task model has it: a prefix and a head."""
    old = {f"efficientnet.{name}": value for name, value in tensors.items()}
    old["classifier.weight"] = old["efficientnet.encoder.top_bn.weight"][None]
    old["classifier.bias"] = old["efficientnet.encoder.top_bn.bias"][:1]
    return old


def case(name, options, inputs, **more):
    model, config = "EfficientNetModel", "EfficientNetConfig"
    return Case(name, model, config, SMALL | options, inputs, maps, **more)


CASES = (
    case("efficientnet", {}, images(28, 32, count=1), edit=classifier),
    case(
        "efficientnet-max-odd-size",
        {
            "hidden_act": "relu",
            "batch_norm_eps": 1e-2,
            "pooling_type": "max",
            # The blocks that halve maps of odd size.
            "depthwise_padding": [1, 2],
            "squeeze_expansion_ratio": 0.5,
            "num_channels": 1,
            "depth_divisor": 4,
            "depth_coefficient": 0.6,
        },
        images(27, 37, channels=1, count=1),
    ),
    Case("efficientnet-lite", lite_model, dict, LITE, images(16, count=1), plain_maps),
    # Padded as for the size of the configuration, not for that of the images.
    Case(
        "efficientnet-lite-deep-odd-size",
        lite_model,
        dict,
        LITE
        | {
            "image_size": [15, 9],
            "depth_coefficient": 1.4,
            "width_coefficient": 0.4,
            "batch_norm_eps": 1e-2,
            "num_channels": 1,
            "depth_divisor": 4,
        },
        images(12, 18, channels=1, count=1),
        plain_maps,
    ),
)
