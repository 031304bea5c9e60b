"""Configurations of real convolutional models and Swin: read, built and counted; refusals."""

import json
import math

import pytest
from helpers import some

from semalign_jax.encoders import _encoder
from semalign_jax.encoders._config import ConfigError, ConfigReader
from semalign_jax.encoders._family import family_of
from semalign_jax.encoders._weights import flatten

RESNET_50 = """{
  "architectures": ["ResNetForImageClassification"],
  "depths": [3, 4, 6, 3],
  "downsample_in_first_stage": false,
  "embedding_size": 64,
  "hidden_act": "relu",
  "hidden_sizes": [256, 512, 1024, 2048],
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "layer_type": "bottleneck",
  "model_type": "resnet",
  "num_channels": 3,
  "torch_dtype": "float32",
  "transformers_version": "4.18.0.dev0"
}"""
CONVNEXT_TINY = """{
  "architectures": ["ConvNextForImageClassification"],
  "depths": [3, 3, 9, 3],
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_sizes": [96, 192, 384, 768],
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "image_size": 224,
  "initializer_range": 0.02,
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "layer_norm_eps": 1e-12,
  "layer_scale_init_value": 1e-06,
  "model_type": "convnext",
  "num_channels": 3,
  "num_stages": 4,
  "patch_size": 4,
  "torch_dtype": "float32",
  "transformers_version": "4.16.0.dev0"
}"""
SWIN_TINY = """{
  "architectures": ["SwinForImageClassification"],
  "attention_probs_dropout_prob": 0.0,
  "depths": [2, 2, 6, 2],
  "drop_path_rate": 0.1,
  "embed_dim": 96,
  "encoder_stride": 32,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "image_size": 224,
  "initializer_range": 0.02,
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "layer_norm_eps": 1e-05,
  "mlp_ratio": 4.0,
  "model_type": "swin",
  "num_channels": 3,
  "num_heads": [3, 6, 12, 24],
  "num_layers": 4,
  "patch_size": 4,
  "path_norm": true,
  "qkv_bias": true,
  "torch_dtype": "float32",
  "transformers_version": "4.16.0.dev0",
  "use_absolute_embeddings": false,
  "window_size": 7
}"""
CONVNEXT_V2_TINY = """{
  "architectures": ["ConvNextV2ForImageClassification"],
  "depths": [3, 3, 9, 3],
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_sizes": [96, 192, 384, 768],
  "image_size": 224,
  "initializer_range": 0.02,
  "layer_norm_eps": 1e-12,
  "model_type": "convnextv2",
  "num_channels": 3,
  "num_stages": 4,
  "out_features": ["stage4"],
  "out_indices": [4],
  "patch_size": 4,
  "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
  "torch_dtype": "float32",
  "transformers_version": "4.29.0.dev0"
}"""
DINOV3_CONVNEXT_TINY = """{
  "architectures": ["DINOv3ConvNextModel"],
  "depths": [3, 3, 9, 3],
  "drop_path_rate": 0.0,
  "hidden_act": "gelu",
  "hidden_sizes": [96, 192, 384, 768],
  "image_size": 224,
  "initializer_range": 0.02,
  "layer_norm_eps": 1e-06,
  "layer_scale_init_value": 1e-06,
  "model_type": "dinov3_convnext",
  "num_channels": 3,
  "torch_dtype": "float32",
  "transformers_version": "4.56.0.dev0"
}"""
SWIN_V2_TINY = """{
  "architectures": ["Swinv2ForImageClassification"],
  "attention_probs_dropout_prob": 0.0,
  "depths": [2, 2, 6, 2],
  "drop_path_rate": 0.1,
  "embed_dim": 96,
  "encoder_stride": 32,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 768,
  "image_size": 256,
  "initializer_range": 0.02,
  "layer_norm_eps": 1e-05,
  "mlp_ratio": 4.0,
  "model_type": "swinv2",
  "num_channels": 3,
  "num_heads": [3, 6, 12, 24],
  "num_layers": 4,
  "patch_size": 4,
  "path_norm": true,
  "pretrained_window_sizes": [0, 0, 0, 0],
  "qkv_bias": true,
  "torch_dtype": "float32",
  "transformers_version": "4.21.0.dev0",
  "use_absolute_embeddings": false,
  "window_size": 8
}"""
EFFICIENTNET_B0 = """{
  "architectures": ["EfficientNetForImageClassification"],
  "batch_norm_eps": 0.001,
  "batch_norm_momentum": 0.99,
  "depth_coefficient": 1.0,
  "depth_divisor": 8,
  "depthwise_padding": [],
  "drop_connect_rate": 0.2,
  "dropout_rate": 0.2,
  "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
  "hidden_act": "swish",
  "hidden_dim": 1280,
  "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
  "image_size": 224,
  "in_channels": [32, 16, 24, 40, 80, 112, 192],
  "initializer_range": 0.02,
  "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
  "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
  "model_type": "efficientnet",
  "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
  "num_channels": 3,
  "num_hidden_layers": 64,
  "out_channels": [16, 24, 40, 80, 112, 192, 320],
  "pooling_type": "mean",
  "squeeze_expansion_ratio": 0.25,
  "strides": [1, 2, 2, 2, 1, 2, 1],
  "torch_dtype": "float32",
  "transformers_version": "4.27.0.dev0",
  "width_coefficient": 1.0
}"""


def read(text, **changes):
    values = json.loads(text) | changes
    family = family_of(values["model_type"])
    reader = ConfigReader(values, "config.json")
    model = family.parse(reader, frozenset())
    reader.finish()
    return _encoder.EncoderConfig(values["model_type"], model, family.poolings(model)[0])


# The published numbers of parameters, without those of the head for 1000 classes.
@pytest.mark.parametrize(
    ("text", "count"),
    some(
        [
            (RESNET_50, 25_557_032 - 2049 * 1000),
            (CONVNEXT_TINY, 28_589_128 - 769 * 1000),
            (SWIN_TINY, 28_288_354 - 769 * 1000),
            (CONVNEXT_V2_TINY, 28_635_496 - 769 * 1000),
            # Without a head; as PyTorch counts them.
            (DINOV3_CONVNEXT_TINY, 27_820_128),
            (SWIN_V2_TINY, 27_578_154),
            (EFFICIENTNET_B0, 5_288_548 - 1281 * 1000),
            ('{"model_type": "efficientnet_lite"}', 4_652_008 - 1281 * 1000),
            ('{"model_type": "densenet"}', 7_978_856 - 1025 * 1000),
            # The defaults are those of B7.
            ('{"model_type": "efficientnet"}', 66_347_960 - 2561 * 1000),
        ],
        3,
    ),
    ids=[
        "resnet",
        "convnext",
        "swin",
        "convnextv2",
        "dinov3",
        "swinv2",
        "b0",
        "lite0",
        "densenet",
        "b7",
    ],
)
def test_real_configurations_have_the_published_size(text, count):
    leaves = flatten(_encoder.abstract_params(read(text)))
    moments = ("/mean", "/var")  # buffers in PyTorch
    sizes = [math.prod(a.shape) for path, a in leaves.items() if not path.endswith(moments)]
    assert sum(sizes) == count


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (RESNET_50, {"layer_type": "wide"}, "layer_type = 'wide' is not supported"),
        (RESNET_50, {"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
        (RESNET_50, {"depths": [3, 4]}, "hidden_sizes and depths must have one value a stage"),
        (RESNET_50, {"depths": [3, 4, 6, True]}, "depths must be a list of whole numbers"),
        (RESNET_50, {"avg_down": True}, "avg_down = True is not known"),
        (CONVNEXT_TINY, {"num_stages": 3}, "must have num_stages values"),
        (CONVNEXT_TINY, {"use_grn": True}, "use_grn = True is not known"),
        (SWIN_TINY, {"num_heads": [3]}, "num_heads and depths must have one value a stage"),
        (CONVNEXT_V2_TINY, {"layer_scale_init_value": 1e-6}, "layer_scale_init_value = 1e-06 is"),
        (DINOV3_CONVNEXT_TINY, {"depths": [3, 3, 9]}, "depths must have 4 values"),
        (SWIN_V2_TINY, {"pretrained_window_sizes": [12]}, "must have one value a stage"),
        (SWIN_V2_TINY, {"use_absolute_embeddings": True}, "use_absolute_embeddings = True"),
        (SWIN_TINY, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (EFFICIENTNET_B0, {"pooling_type": "sum"}, "pooling_type = 'sum' is not supported"),
        (EFFICIENTNET_B0, {"hidden_dim": 1024}, "hidden_dim must be 1280"),
        (EFFICIENTNET_B0, {"in_channels": [32] * 7}, "in_channels must be"),
        (EFFICIENTNET_B0, {"strides": [1, 2, 2, 3, 1, 2, 1]}, "strides = .* is not supported"),
        (EFFICIENTNET_B0, {"kernel_sizes": [3, 3, 4, 3, 5, 5, 3]}, "kernel_sizes = "),
        (EFFICIENTNET_B0, {"strides": [1, 2]}, "must have one value a stage"),
        ('{"model_type": "efficientnet_lite"}', {"hidden_act": "swish"}, "hidden_act = 'swish'"),
        ('{"model_type": "densenet"}', {"block_config": 4}, "block_config must be list or tuple"),
    ],
)
def test_what_is_not_supported_is_named(text, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(text, **changes)


def test_windows_larger_than_a_map_are_refused():
    with pytest.raises(ValueError, match="pixel_values are too small"):
        _encoder.abstract_params(read(SWIN_TINY, image_size=192))
