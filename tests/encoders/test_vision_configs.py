"""Published configurations of vision transformers are read, and give models of the right size."""

import json
import math

import jax
import pytest
from helpers import some

from semalign_jax.encoders import ConfigError, EncoderConfig
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders._encoder import abstract_params
from semalign_jax.encoders._family import family_of

VIT = """{
  "_name_or_path": "google/vit-base-patch16-224-in21k",
  "architectures": ["ViTModel"],
  "attention_probs_dropout_prob": 0.0,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "image_size": 224,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "layer_norm_eps": 1e-12,
  "model_type": "vit",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "patch_size": 16,
  "qkv_bias": true,
  "transformers_version": "4.13.0.dev0"
}"""

DEIT = """{
  "architectures": ["DeiTForImageClassificationWithTeacher"],
  "attention_probs_dropout_prob": 0.0,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "image_size": 224,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "layer_norm_eps": 1e-12,
  "model_type": "deit",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "patch_size": 16,
  "qkv_bias": true,
  "transformers_version": "4.6.0.dev0"
}"""

VIT_MAE = """{
  "architectures": ["ViTMAEForPreTraining"],
  "attention_probs_dropout_prob": 0.0,
  "decoder_hidden_size": 512,
  "decoder_intermediate_size": 2048,
  "decoder_num_attention_heads": 16,
  "decoder_num_hidden_layers": 8,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "image_size": 224,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "layer_norm_eps": 1e-12,
  "mask_ratio": 0.75,
  "model_type": "vit_mae",
  "norm_pix_loss": false,
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "patch_size": 16,
  "qkv_bias": true,
  "torch_dtype": "float32",
  "transformers_version": "4.16.0.dev0"
}"""

DINOV2 = """{
  "architectures": ["Dinov2Model"],
  "attention_probs_dropout_prob": 0.0,
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "image_size": 518,
  "initializer_range": 0.02,
  "layer_norm_eps": 1e-06,
  "layerscale_value": 1.0,
  "mlp_ratio": 4,
  "model_type": "dinov2",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "patch_size": 14,
  "qkv_bias": true,
  "torch_dtype": "float32",
  "transformers_version": "4.31.0.dev0",
  "use_swiglu_ffn": false
}"""

DINOV2_WITH_REGISTERS = """{
  "apply_layernorm": true,
  "architectures": ["Dinov2WithRegistersModel"],
  "attention_probs_dropout_prob": 0.0,
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 384,
  "image_size": 518,
  "initializer_range": 0.02,
  "interpolate_antialias": true,
  "interpolate_offset": 0.0,
  "layer_norm_eps": 1e-06,
  "layerscale_value": 1.0,
  "mlp_ratio": 4,
  "model_type": "dinov2_with_registers",
  "num_attention_heads": 6,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "num_register_tokens": 4,
  "out_features": ["stage12"],
  "out_indices": [12],
  "patch_size": 14,
  "qkv_bias": true,
  "reshape_hidden_states": true,
  "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7",
    "stage8", "stage9", "stage10", "stage11", "stage12"],
  "torch_dtype": "float32",
  "transformers_version": "4.48.0.dev0",
  "use_swiglu_ffn": false
}"""

RAD_DINO = """{
  "apply_layernorm": true,
  "architectures": ["Dinov2Model"],
  "attention_probs_dropout_prob": 0.0,
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "image_size": 518,
  "initializer_range": 0.02,
  "layer_norm_eps": 1e-06,
  "layerscale_value": 1.0,
  "mlp_ratio": 4,
  "model_type": "dinov2",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "out_features": ["stage12"],
  "out_indices": [12],
  "patch_size": 14,
  "qkv_bias": true,
  "reshape_hidden_states": true,
  "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7",
    "stage8", "stage9", "stage10", "stage11", "stage12"],
  "torch_dtype": "float32",
  "transformers_version": "4.38.2",
  "use_swiglu_ffn": false
}"""

DINOV3 = """{
  "architectures": ["DINOv3ViTModel"],
  "attention_dropout": 0.0,
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_size": 384,
  "image_size": 224,
  "initializer_range": 0.02,
  "intermediate_size": 1536,
  "key_bias": false,
  "layer_norm_eps": 1e-05,
  "layerscale_value": 1.0,
  "mlp_bias": true,
  "model_type": "dinov3_vit",
  "num_attention_heads": 6,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "num_register_tokens": 4,
  "patch_size": 16,
  "pos_embed_jitter": null,
  "pos_embed_rescale": 2.0,
  "pos_embed_shift": null,
  "proj_bias": true,
  "query_bias": true,
  "rope_theta": 100.0,
  "torch_dtype": "float32",
  "transformers_version": "4.56.0.dev0",
  "use_gated_mlp": false,
  "value_bias": true
}"""

BEIT = """{
  "architectures": ["BeitForImageClassification"],
  "attention_probs_dropout_prob": 0.0,
  "auxiliary_channels": 256,
  "auxiliary_concat_input": false,
  "auxiliary_loss_weight": 0.4,
  "auxiliary_num_convs": 1,
  "drop_path_rate": 0.1,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "image_size": 224,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "layer_norm_eps": 1e-12,
  "layer_scale_init_value": 0.1,
  "model_type": "beit",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "out_indices": [3, 5, 7, 11],
  "patch_size": 16,
  "pool_scales": [1, 2, 3, 6],
  "semantic_loss_ignore_index": 255,
  "torch_dtype": "float32",
  "transformers_version": "4.11.0.dev0",
  "use_absolute_position_embeddings": false,
  "use_auxiliary_head": true,
  "use_mask_token": false,
  "use_mean_pooling": true,
  "use_relative_position_bias": true,
  "use_shared_relative_position_bias": false,
  "vocab_size": 8192
}"""

POOLERS = frozenset({"pooler.dense.weight", "pooler.layernorm.weight"})


def read(text: str, tensors: frozenset[str] = POOLERS, **changes) -> EncoderConfig:
    values = json.loads(text) | changes
    reader = ConfigReader(values, "config.json")
    model = family_of(values["model_type"]).parse(reader, tensors)
    reader.finish()
    pooling = family_of(values["model_type"]).poolings(model)[0]
    return EncoderConfig(values["model_type"], model, pooling)


# Number of parameters that PyTorch counts, without the mask token, which is not used.
@pytest.mark.parametrize(
    ("text", "tensors", "count"),
    some(
        [
            pytest.param(VIT, POOLERS, 86_389_248, id="vit"),
            pytest.param(DEIT, frozenset(), 85_800_192, id="deit"),
            pytest.param(VIT_MAE, frozenset(), 85_798_656, id="vit-mae"),
            pytest.param(DINOV2, POOLERS, 86_579_712, id="dinov2"),
            pytest.param(DINOV2_WITH_REGISTERS, POOLERS, 22_057_728, id="dinov2-with-registers"),
            pytest.param(RAD_DINO, POOLERS, 86_579_712, id="rad-dino"),
            pytest.param(DINOV3, POOLERS, 21_596_160, id="dinov3"),
            pytest.param(BEIT, POOLERS, 85_761_984, id="beit"),
        ],
        3,
    ),
)
def test_published_configuration_gives_its_number_of_parameters(text, tensors, count):
    params = abstract_params(read(text, tensors))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (VIT, {"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
        (DEIT, {"pooler_act": "mish"}, "pooler_act = 'mish' is not supported"),
        (DINOV2, {"num_register_tokens": 4}, "num_register_tokens = 4 is not known"),
        (DINOV2_WITH_REGISTERS, {"interpolate_antialias": False}, "interpolate_antialias = False"),
        (DINOV2_WITH_REGISTERS, {"interpolate_offset": 0.1}, "interpolate_offset = 0.1 is not"),
        (DINOV3, {"num_attention_heads": 64}, "hidden_size = 384 must be a multiple of 4"),
        (DINOV3, {"rope_scaling": {"factor": 2}}, "rope_scaling = .* is not known"),
        (BEIT, {"image_size": [224, 160]}, r"image_size = \(224, 160\) is not supported"),
        (BEIT, {"use_mean_pooling": 1}, "use_mean_pooling must be bool; it is 1"),
    ],
)
def test_option_that_is_not_supported_is_named(text, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(text, **changes)


@pytest.mark.parametrize(
    ("text", "changes", "size"),
    [
        (DINOV2, {}, 3072),
        # Of dinov2-giant: two thirds of 6144.
        (DINOV2, {"hidden_size": 1536, "use_swiglu_ffn": True}, 4096),
        # 40 * 2 / 3 is 26, and the next multiple of 8 is 32.
        (DINOV2, {"hidden_size": 40, "mlp_ratio": 1, "use_swiglu_ffn": True}, 32),
    ],
)
def test_width_of_the_mlp_of_dinov2(text, changes, size):
    assert read(text, **changes).model.hidden == size


def test_beit_offers_the_pooler_that_its_checkpoint_has():
    assert read(BEIT).pooling == "pooler"
    assert read(BEIT, frozenset()).pooling == "mean"
    assert read(BEIT, frozenset(), use_mean_pooling=False).pooling == "cls"
