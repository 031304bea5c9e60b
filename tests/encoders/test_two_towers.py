"""Models of two towers: published configurations, refusals, and logits against PyTorch."""

import json

import jax
import numpy as np
import pytest
from helpers import some

from semalign_jax import zero_shot_logits
from semalign_jax.encoders import ConfigError, EncoderConfig, encode, load_encoder
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders._encoder import abstract_params, read_config
from semalign_jax.encoders._family import family_of
from semalign_jax.encoders._weights import checkpoint_files

from .harness import all_cases, images, read_golden, write_checkpoint

CASES = all_cases()

#: What old files repeat in every section.
GENERATION = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
#: openai/clip-vit-base-patch32
CLIP = {
    "_name_or_path": "openai/clip-vit-base-patch32",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": GENERATION
    | {
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 512,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 512,
        "vocab_size": 49408,
    },
    "text_config_dict": None,
    "transformers_version": None,
    "vision_config": GENERATION
    | {
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dropout": 0.0,
        "eos_token_id": None,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": None,
        "patch_size": 32,
        "projection_dim": 512,
    },
    "vision_config_dict": None,
}
#: google/siglip-base-patch16-224
SIGLIP = {
    "architectures": ["SiglipModel"],
    "initializer_factor": 1.0,
    "model_type": "siglip",
    "text_config": {"model_type": "siglip_text_model"},
    "torch_dtype": "float32",
    "transformers_version": "4.37.0.dev0",
    "vision_config": {"model_type": "siglip_vision_model"},
}
#: google/siglip2-base-patch16-224: of the family of SigLIP
SIGLIP2_FIXED = SIGLIP | {"text_config": {"vocab_size": 256000}}
#: google/siglip2-base-patch16-naflex
_NAFLEX = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-06,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "torch_dtype": "float32",
}
NAFLEX = {
    "architectures": ["Siglip2Model"],
    "initializer_factor": 1.0,
    "model_type": "siglip2",
    "text_config": _NAFLEX
    | {
        "max_position_embeddings": 64,
        "model_type": "siglip2_text_model",
        "projection_size": 768,
        "vocab_size": 256000,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.49.0.dev0",
    "vision_config": _NAFLEX
    | {
        "model_type": "siglip2_vision_model",
        "num_channels": 3,
        "num_patches": 256,
        "patch_size": 16,
    },
}
#: microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
BIOMEDCLIP = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
}


def parsed(values, tensors=()):
    reader = ConfigReader(values, "config.json")
    model_type = values.get("model_type", "open_clip")
    model = family_of(model_type).parse(reader, frozenset(tensors))
    reader.finish()
    return EncoderConfig(model_type, model, "projection")


def changed(values, section, **options):
    """A configuration with other options in a section, given by its path."""
    values = json.loads(json.dumps(values))
    inner = values
    for name in section.split("."):
        inner = inner[name]
    inner.update(options)
    return values


# The counts are those of the PyTorch models.
@pytest.mark.parametrize(
    ("values", "tokens", "side", "parameters"),
    some(
        [
            (CLIP, 77, 224, 151_277_313),
            (SIGLIP, 64, 224, 203_155_970),
            (SIGLIP2_FIXED, 64, 224, 375_187_970),
            (NAFLEX, 64, 256, 375_234_050),
            (BIOMEDCLIP, 256, 224, 195_902_721),
        ],
        3,
    ),
    ids=["clip", "siglip", "siglip2", "siglip2-naflex", "biomedclip"],
)
def test_published_configurations_give_models_of_the_published_size(
    values, tokens, side, parameters
):
    config = parsed(values)
    family = config.family
    assert family.max_tokens is not None
    assert family.image_size is not None
    assert family.max_tokens(config.model) == tokens
    assert family.image_size(config.model) == (3, side, side)
    leaves = jax.tree.leaves(abstract_params(config))
    assert sum(leaf.size for leaf in leaves) == parameters


def test_the_eos_token_decides_the_rule():
    assert parsed(CLIP).model.text.token == "highest"
    assert parsed(changed(CLIP, "text_config", eos_token_id=49407)).model.text.token == "eos"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(CLIP, "text_config", is_decoder=True), "text_config.is_decoder"),
        (changed(CLIP, "text_config", eos_token_id=[1, 2]), "text_config.eos_token_id"),
        (changed(CLIP, "vision_config", hidden_act="mish"), "vision_config.hidden_act"),
        (changed(CLIP, "vision_config", novel=1), "vision_config.novel"),
        (changed(SIGLIP, "vision_config", vision_use_head=False), "vision_use_head"),
        (changed(NAFLEX, "vision_config", vision_use_head=False), "vision_use_head"),
        (changed(NAFLEX, "vision_config", num_patches=250), "num_patches must be a square"),
        (
            changed(BIOMEDCLIP, "model_cfg.vision_cfg", timm_model_name="vit_base_patch16_rpn_224"),
            "model_cfg.vision_cfg.timm_model_name",
        ),
        (changed(BIOMEDCLIP, "model_cfg.vision_cfg", image_size=384), "image_size"),
        (changed(BIOMEDCLIP, "model_cfg.vision_cfg", timm_pool="map"), "timm_pool"),
        (changed(BIOMEDCLIP, "model_cfg.vision_cfg", timm_proj="mlp"), "timm_proj"),
        (changed(BIOMEDCLIP, "model_cfg.text_cfg", hf_model_name="roberta-base"), "roberta-base"),
        (changed(BIOMEDCLIP, "model_cfg.text_cfg", hf_pooler_type="max_pooler"), "max_pooler"),
        (changed(BIOMEDCLIP, "model_cfg.text_cfg", hf_pooler_type="cls_pooler"), "needs"),
        (changed(BIOMEDCLIP, "model_cfg", multimodal_cfg={}), "model_cfg.multimodal_cfg"),
        (changed(BIOMEDCLIP, "model_cfg", vision_cfg={"layers": [3, 4, 6, 3]}), "layers"),
        (changed(BIOMEDCLIP, "model_cfg", vision_cfg={"attentional_pool": True}), "attentional"),
        (changed(BIOMEDCLIP, "model_cfg", text_cfg={"embed_cls": True}), "embed_cls"),
        (changed(BIOMEDCLIP, "model_cfg", text_cfg={"tokenizer_mode": "clips"}), "tokenizer_mode"),
        (changed(BIOMEDCLIP, "model_cfg", text_cfg={"pool_type": "none"}), "pool_type"),
        (changed(BIOMEDCLIP, "model_cfg", text_cfg={"qk_norm": True}), "text_cfg.qk_norm"),
        ({"model_cfg": {"embed_dim": 8}}, "vision_cfg is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        parsed(values)


def test_open_clip_files_have_names_of_their_own(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP))
    (tmp_path / "open_clip_pytorch_model.bin").touch()
    name = read_config(tmp_path)[2]
    assert name == "open_clip_model.safetensors"
    with pytest.raises(FileNotFoundError, match="semalign convert-checkpoint"):
        checkpoint_files(tmp_path, name)
    (tmp_path / "open_clip_pytorch_model.safetensors").touch()
    assert read_config(tmp_path)[2] == "open_clip_pytorch_model.safetensors"


def loaded(name, folder, **options):
    config, shapes, batch, expected = read_golden(name)
    write_checkpoint(folder, config, shapes, CASES[name])
    return load_encoder(folder, **options), batch, expected


@pytest.mark.parametrize("name", some(["clip", "siglip", "open-clip-bert-mean-timm-mean"], 3))
def test_half_precision_stays_near(name, tmp_path):
    encoder, batch, expected = loaded(name, tmp_path, dtype="bfloat16")
    pixels = {"pixel_values": batch.pop("pixel_values")}
    for kind, part in (("image", pixels), ("text", batch)):
        with jax.numpy_dtype_promotion("standard"):  # Flax's layer norm needs it
            found = encode(encoder.config, encoder.params, part)
        assert found.dtype == jax.numpy.bfloat16
        reference = expected[f"{kind}_projected"]
        scale = np.abs(reference).max()
        np.testing.assert_allclose(found.astype("float32"), reference, atol=0.1 * scale)


@pytest.mark.parametrize("name", some(["clip", "siglip", "open-clip-biomedclip"], 3))
def test_embeddings_are_by_default_in_the_shared_space(name, tmp_path):
    encoder, batch, expected = loaded(name, tmp_path)
    pixels = {"pixel_values": batch.pop("pixel_values")}
    image = encode(encoder.config, encoder.params, pixels)
    text = encode(encoder.config, encoder.params, batch)
    assert image.shape[1] == text.shape[1]
    np.testing.assert_allclose(image, expected["image_projected"], atol=2e-5)
    np.testing.assert_allclose(text, expected["text_projected"], atol=2e-5)
    with pytest.raises(ValueError, match="one kind"):
        encode(encoder.config, encoder.params, batch | pixels)
    with pytest.raises(ValueError, match="two towers"):
        load_encoder(tmp_path, layer=1)


def test_inputs_of_other_sizes_are_refused(tmp_path):
    encoder, _, _ = loaded("open-clip", tmp_path)
    with pytest.raises(ValueError, match="resize"):
        encode(encoder.config, encoder.params, images(40)())
    with pytest.raises(ValueError, match="longer than the 12 tokens"):
        encode(encoder.config, encoder.params, {"input_ids": np.ones((1, 13), np.int32)})


@pytest.mark.parity
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip-masked-gelu-eps"])
def test_zero_shot_logits_are_those_of_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    from . import reference

    module, _, _ = reference.build(CASES[name])
    encoder, batch, _ = loaded(name, tmp_path, normalize=True)
    inputs = {key: torch.from_numpy(value) for key, value in batch.items()}
    with torch.inference_mode():
        expected = module(**inputs, interpolate_pos_encoding=True).logits_per_image.numpy()
    image = encode(encoder.config, encoder.params, {"pixel_values": batch.pop("pixel_values")})
    text = encode(encoder.config, encoder.params, batch)
    logits = np.exp(encoder.params["logit_scale"]) * zero_shot_logits(image, text)
    logits = logits + encoder.params.get("logit_bias", np.float32(0))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fixed"),
    [("siglip", True), ("siglip2", True), ("clip", False), ("open-clip", False)],
)
def test_only_models_that_read_padding_get_texts_of_one_length(name, fixed, tmp_path):
    config, shapes, _, _ = read_golden(name)
    write_checkpoint(tmp_path, config, shapes, CASES[name])
    config = load_encoder(tmp_path).config
    length = config.family.fixed_length
    assert (length is not None and length(config.model)) is fixed
