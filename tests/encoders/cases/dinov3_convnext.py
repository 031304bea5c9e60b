from ..harness import Case, images
from ..references.maps import flat

SMALL = {"hidden_sizes": [8, 12, 16, 20], "depths": [2, 1, 1, 1], "image_size": 64}


def reference(model, inputs):
    """The first hidden state is the pixels, and the first of the last is the average."""
    outputs = model(**inputs, output_hidden_states=True)
    states = enumerate(outputs.hidden_states[1:], 1)
    found = {f"hidden_{i}": flat(state) for i, state in states}
    return found | {"last": outputs.last_hidden_state[:, 1:], "pooled": outputs.pooler_output}


def case(name, options, inputs):
    kind = "DINOv3ConvNextModel", "DINOv3ConvNextConfig"
    return Case(name, *kind, SMALL | options, inputs, reference)


CASES = (
    case("dinov3-convnext", {}, images(64)),
    case(
        "dinov3-convnext-eps-odd-size",
        {"hidden_act": "relu", "layer_norm_eps": 1e-2, "num_channels": 1},
        images(71, 46, channels=1),
    ),
)
