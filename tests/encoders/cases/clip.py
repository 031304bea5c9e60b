import numpy as np

from .. import two_towers
from ..harness import Case, images, texts

TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "projection_dim": 10,
    "eos_token_id": 59,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 10,
}
BOTH = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 14}


def sentences(eos=59, pad=59):
    """Texts that end with `eos` and are padded; 58 is above every other id that is drawn."""

    def make():
        batch = texts(vocab=58, lengths=(9, 6, 2), pad=pad)()
        ends = batch["attention_mask"].sum(axis=1) - 1
        batch["input_ids"][np.arange(len(ends)), ends] = eos
        return batch

    return make


def reference(model, inputs):
    pixels = inputs.pop("pixel_values")
    text = model.text_model(**inputs, output_hidden_states=True)
    image = model.vision_model(
        pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True
    )
    found = two_towers.tower(text, "text_") | two_towers.tower(image, "image_")
    found |= {"text_pooled": text.pooler_output, "image_pooled": image.pooler_output}
    found["text_projected"] = model.get_text_features(**inputs).pooler_output
    found["image_projected"] = model.get_image_features(
        pixel_values=pixels, interpolate_pos_encoding=True
    ).pooler_output
    return found | {"logit_scale": model.logit_scale.detach().reshape(1)}


def one_tower(output):
    def reference(model, inputs):
        outputs = model(**inputs, output_hidden_states=True)
        return two_towers.tower(outputs) | {"projected": outputs[output]}

    return reference


def position_ids(tensors):
    """Buffers, as files had them before 2023."""
    ids = {
        f"{tower}_model.embeddings.position_ids": np.arange(5, dtype="i8")[None]
        for tower in ("text", "vision")
    }
    return tensors | ids


def config_dicts(config):
    """As the first files of CLIP: what counts stands under the older names."""
    old = {f"{name}_dict": config[name] for name in ("text_config", "vision_config")}
    return config | old | {"text_config": {"hidden_size": 7}, "vision_config": None}


def inside_text_model(tensors):
    return {f"text_model.{name}": value for name, value in tensors.items()}


CASES = (
    Case(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        BOTH,
        two_towers.both(sentences(), images(32)),
        reference,
        two_towers.ours,
    ),
    Case(
        "clip-wrong-eos-gelu-eps",
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": TEXT
            | {
                "eos_token_id": 2,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-2,
                "num_hidden_layers": 1,
            },
            "vision_config": VISION | {"hidden_act": "gelu", "layer_norm_eps": 1e-2},
            "projection_dim": 6,
        },
        # The tokenizer ends with the highest id, not with 2.
        two_towers.both(sentences(eos=58, pad=2), images(40, 27)),
        reference,
        two_towers.ours,
        edit=position_ids,
    ),
    Case(
        "clip-config-dicts",
        "CLIPModel",
        "CLIPConfig",
        BOTH | {"vision_config": VISION | {"num_channels": 1}},
        two_towers.both(sentences(pad=0), images(32, channels=1)),
        reference,
        two_towers.ours,
        edit_config=config_dicts,
    ),
    Case(
        "clip-text-projected",
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        TEXT,
        sentences(),
        one_tower("text_embeds"),
    ),
    Case(
        "clip-vision-projected",
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        VISION,
        images(32),
        one_tower("image_embeds"),
    ),
    Case(
        "clip-text-old-prefix",
        "CLIPTextModel",
        "CLIPTextConfig",
        TEXT,
        sentences(pad=0),
        edit=inside_text_model,
    ),
    Case("clip-vision", "CLIPVisionModel", "CLIPVisionConfig", VISION, images(32)),
)
