import json

import numpy as np

from .. import two_towers
from ..harness import Case, images, texts
from .clip import sentences

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 60, "width": 24, "heads": 3, "layers": 2}
BERT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
BERT_TEXT = {
    "hf_model_name": "tiny",
    "hf_tokenizer_name": "tiny",
    "context_length": 12,
    "hf_model_config": BERT,
}
TIMM = {
    "timm_model_name": "vit_tiny_patch16_32",
    "timm_model_pretrained": False,
    "timm_proj": "linear",
    "image_size": 32,
}


def module(config):
    from ..references.open_clip import OpenClip

    return OpenClip(config)


def reference(model, inputs):
    found = {
        "text": model.encode_text(inputs["input_ids"]),
        "image": model.encode_image(inputs["pixel_values"]),
    }
    named = {}
    for name, (states, last, pooled, projected) in found.items():
        named |= {f"{name}_hidden_{i}": state for i, state in enumerate(states)}
        named |= {f"{name}_last": last, f"{name}_pooled": pooled, f"{name}_projected": projected}
    return named | {"logit_scale": model.logit_scale.detach().reshape(1)}


def some(outputs):
    """Only what tells a long tower's layers apart, for the size of the golden file."""
    kept = {f"image_hidden_{i}": outputs[f"image_hidden_{i}"][:1, :4] for i in (0, 1, 6, 12)}
    return {k: v for k, v in outputs.items() if not k.startswith(("image_h", "image_l"))} | kept


def case(name, model, inputs, edit=None, long=False, weights="open_clip_model.safetensors"):
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    return Case(
        name,
        module,
        dict,
        config,
        inputs,
        (lambda model, inputs: some(reference(model, inputs))) if long else reference,
        (lambda encoder, batch: some(two_towers.ours(encoder, batch))) if long else two_towers.ours,
        edit=edit,
        files={"open_clip_config.json": json.dumps(config)},
        weights=weights,
    )


def published(tensors):
    """As BiomedCLIP's file is: a buffer of the ids of positions."""
    ids = np.arange(16, dtype="i8")[None]
    return tensors | {"text.transformer.embeddings.position_ids": ids}


def trained(tensors):
    """As training with several processes saves it."""
    return {f"module.{name}": value for name, value in tensors.items()}


CASES = (
    case(
        "open-clip",
        {"embed_dim": 14, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
        two_towers.both(sentences(pad=0), images(32)),
        edit=trained,
        weights="open_clip_pytorch_model.safetensors",
    ),
    case(
        "open-clip-options",
        {
            "embed_dim": 10,
            "custom_text": True,
            "init_logit_bias": -10,
            "nonscalar_logit_scale": True,
            "vision_cfg": VISION
            | {
                "mlp_ratio": 2.5,
                "ls_init_value": 0.1,
                "no_ln_pre": True,
                "pool_type": "avg",
                "final_ln_after_pool": True,
                "norm_kwargs": {"eps": 1e-2},
                "act_kwargs": {"approximate": "tanh"},
            },
            "text_cfg": TEXT
            | {
                "mlp_ratio": 1.5,
                "ls_init_value": 0.1,
                "no_causal_mask": True,
                "pool_type": "last",
                "proj_bias": True,
                "norm_kwargs": {"eps": 1e-2},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        two_towers.both(sentences(pad=0), images(32)),
    ),
    case(
        "open-clip-eos-mean",
        {
            "embed_dim": 24,
            "custom_text": True,
            "vision_cfg": VISION | {"layers": 1, "pool_type": "avg"},
            "text_cfg": TEXT | {"layers": 1, "pool_type": "eos", "eos_id": 57, "proj_type": "none"},
        },
        two_towers.both(sentences(eos=57, pad=59), images(32)),
    ),
    case(
        "open-clip-biomedclip",
        {
            "embed_dim": 10,
            "vision_cfg": TIMM | {"timm_pool": ""},
            "text_cfg": BERT_TEXT
            | {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"},
        },
        two_towers.both(texts(), images(32)),
        edit=published,
        long=True,
    ),
    case(
        "open-clip-bert-mean-timm-mean",
        {
            "embed_dim": 10,
            "vision_cfg": TIMM | {"timm_pool": "avg", "timm_proj_bias": True},
            "text_cfg": BERT_TEXT | {"hf_proj_type": "linear"},
        },
        two_towers.both(texts(), images(32)),
        long=True,
    ),
    # As OpenCLIP's SigLIP is.
    case(
        "open-clip-timm-siglip",
        {
            "embed_dim": 192,
            "vision_cfg": TIMM
            | {
                "timm_model_name": "vit_tiny_patch16_siglip_32",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": TEXT | {"layers": 1},
        },
        two_towers.both(sentences(pad=0), images(32)),
        long=True,
    ),
    case(
        "open-clip-timm-registers",
        {
            "embed_dim": 10,
            "vision_cfg": TIMM
            | {"timm_model_name": "vit_tiny_patch14_reg4_dinov2", "image_size": 28},
            "text_cfg": TEXT | {"layers": 1},
        },
        two_towers.both(sentences(pad=0), images(28)),
        long=True,
    ),
    case(
        "open-clip-bert-pooler",
        {
            "embed_dim": 10,
            "vision_cfg": VISION | {"layers": 1},
            "text_cfg": BERT_TEXT
            | {
                "hf_pooler_type": "cls_pooler",
                "hf_model_config": BERT | {"layer_norm_eps": 1e-2, "hidden_act": "relu"},
            },
        },
        two_towers.both(texts(), images(32)),
    ),
)
