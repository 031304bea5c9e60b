from ..harness import Case, images
from .vit import SMALL


def reference(model, inputs):
    """Nothing is masked, and the noise that shuffles the patches is increasing."""
    import torch

    model = getattr(model, "vit", model)
    size = inputs["pixel_values"].shape
    patches = size[2] // model.config.patch_size * (size[3] // model.config.patch_size)
    noise = torch.arange(patches).float().expand(size[0], -1)
    outputs = model(**inputs, noise=noise, interpolate_pos_encoding=True, output_hidden_states=True)
    found = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    return found | {"last": outputs.last_hidden_state}


OPTIONS = SMALL | {
    "mask_ratio": 0.0,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 20,
}


CASES = (
    Case("vit-mae", "ViTMAEModel", "ViTMAEConfig", OPTIONS, images(32), reference),
    Case(
        "vit-mae-pretraining-other-size",
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        OPTIONS | {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-2},
        images(40, 24),
        reference,
    ),
)
