from .. import two_towers
from ..harness import Case, images, texts

TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def unmasked():
    """Padded to the longest text, no mask: as the models were trained."""
    return {"input_ids": texts(lengths=(12, 7, 1), pad=1)()["input_ids"]}


def reference(model, inputs):
    pixels = inputs.pop("pixel_values")
    text = model.get_text_features(**inputs, output_hidden_states=True)
    image = model.get_image_features(
        pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True
    )
    found = two_towers.tower(text, "text_") | two_towers.tower(image, "image_")
    found |= {"text_projected": text.pooler_output, "image_projected": image.pooler_output}
    scale, bias = model.logit_scale.detach(), model.logit_bias.detach()
    return found | {"logit_scale": scale, "logit_bias": bias}


def ours(encoder, batch):
    return two_towers.ours(encoder, batch) | {"logit_bias": encoder.params["logit_bias"].reshape(1)}


def projected(model, inputs):
    outputs = model(**inputs, output_hidden_states=True)
    found = two_towers.tower(outputs)
    if outputs.pooler_output is not None:
        found["projected"] = outputs.pooler_output
    return found


CASES = (
    Case(
        "siglip",
        "SiglipModel",
        "SiglipConfig",
        {"text_config": TEXT, "vision_config": VISION},
        two_towers.both(unmasked, images(32)),
        reference,
        ours,
    ),
    Case(
        "siglip-masked-gelu-eps",
        "SiglipModel",
        "SiglipConfig",
        {
            "text_config": TEXT
            | {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "projection_size": 20},
            "vision_config": VISION
            | {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "hidden_size": 20, "num_channels": 1},
        },
        two_towers.both(texts(lengths=(9, 6, 1), pad=1), images(41, 26, channels=1)),
        reference,
        ours,
    ),
    Case("siglip-text", "SiglipTextModel", "SiglipTextConfig", TEXT, unmasked, projected),
    Case(
        "siglip-vision-no-head",
        "SiglipVisionModel",
        "SiglipVisionConfig",
        VISION | {"vision_use_head": False, "image_size": 27},
        images(27),
        projected,
    ),
    Case("siglip-vision", "SiglipVisionModel", "SiglipVisionConfig", VISION, images(32), projected),
)
