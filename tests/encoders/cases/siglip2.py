import jax
import numpy as np

from .. import harness, two_towers
from ..harness import Case
from . import siglip

VISION = {key: value for key, value in siglip.VISION.items() if key != "image_size"}
VISION |= {"num_patches": 16}


def patches(channels=3, shapes=((2, 6), (5, 3), (1, 1), (4, 4)), count=17):
    """Return a function that makes images of several sizes as patches, with padding."""

    def make():
        rng = np.random.default_rng(2)
        sizes = np.array(shapes, np.int32)
        mask = (np.arange(count) < np.prod(sizes, axis=1)[:, None]).astype(np.int32)
        values = rng.standard_normal((*mask.shape, channels * 64)).astype(np.float32)
        return {
            "pixel_values": values * mask[:, :, None],
            "pixel_attention_mask": mask,
            "spatial_shapes": sizes,
        }

    return make


NAMES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def reference(model, inputs):
    image = {name: inputs.pop(name) for name in NAMES}
    text = model.get_text_features(**inputs, output_hidden_states=True)
    image = model.get_image_features(**image, output_hidden_states=True)
    found = two_towers.tower(text, "text_") | two_towers.tower(image, "image_")
    found |= {"text_projected": text.pooler_output, "image_projected": image.pooler_output}
    scale, bias = model.logit_scale.detach(), model.logit_bias.detach()
    return found | {"logit_scale": scale, "logit_bias": bias}


def ours(encoder, batch):
    found = {
        "logit_scale": encoder.params["logit_scale"].reshape(1),
        "logit_bias": encoder.params["logit_bias"].reshape(1),
    }
    run = jax.jit(lambda params, part: dict(harness._named(encoder.config, params, part)))
    for tower, is_image in (("text", False), ("image", True)):
        part = {name: value for name, value in batch.items() if (name in NAMES) == is_image}
        outputs = run(encoder.params, part).items()
        found |= {f"{tower}_{name}": value for name, value in outputs}
    return found


CASES = (
    Case(
        "siglip2",
        "Siglip2Model",
        "Siglip2Config",
        {"text_config": siglip.TEXT, "vision_config": VISION},
        two_towers.both(siglip.unmasked, patches()),
        reference,
        ours,
    ),
    Case(
        "siglip2-vision-no-head",
        "Siglip2VisionModel",
        "Siglip2VisionConfig",
        VISION
        | {
            "vision_use_head": False,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-2,
            "num_channels": 1,
            "num_patches": 9,
        },
        patches(channels=1),
        siglip.projected,
    ),
)
