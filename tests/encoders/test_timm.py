"""Checkpoints of timm and BioViL: their configurations, refusals and images."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import some
from PIL import Image

from semalign_jax.encoders import (
    CheckpointError,
    ConfigError,
    EncoderConfig,
    convert_checkpoint,
    image_preprocessor,
    load_encoder,
)
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders._encoder import abstract_params
from semalign_jax.encoders._family import family_of
from semalign_jax.encoders._weights import flatten

from .harness import all_cases, our_outputs, read_golden, write_checkpoint

#: The arguments that the cards of UNI2-h and Virchow2 give besides.
PACKED = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
UNI = ("vit_large_patch16_224", {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True})
UNI2 = (
    "vit_giant_patch14_224",
    PACKED
    | {
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "num_classes": 0,
        "no_embed_class": True,
        "reg_tokens": 8,
        "dynamic_img_size": True,
    },
)
VIRCHOW2 = (
    "vit_huge_patch14_224",
    PACKED | {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": ""},
)
GIGAPATH = (
    "vit_giant_patch14_dinov2",
    {
        "img_size": 224,
        "in_chans": 3,
        "patch_size": 16,
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "init_values": 1e-5,
        "mlp_ratio": 5.33334,
        "num_classes": 0,
    },
)
OPTIMUS = ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5})


def config(architecture, args=None, **data):
    size = {"input_size": [3, 224, 224]} | data
    return {"architecture": architecture, "model_args": args or {}, "pretrained_cfg": size}


def read(values, model_type="timm"):
    family = family_of(model_type)
    reader = ConfigReader(values, "config.json")
    model = family.parse(reader, frozenset())
    reader.finish()
    return EncoderConfig(model_type, model, family.poolings(model)[0])


# The numbers of parameters that timm 1.0.31 counts, without classes, and what it returns.
@pytest.mark.parametrize(
    ("values", "count", "pooling"),
    some(
        [
            pytest.param(config(*UNI), 303_350_784, "pooler", id="uni"),
            pytest.param(config(*UNI2), 681_394_176, "pooler", id="uni2"),
            pytest.param(config(*VIRCHOW2), 631_239_424, "cls", id="virchow2"),
            pytest.param(config(*GIGAPATH), 1_134_953_984, "pooler", id="gigapath"),
            pytest.param(config(*OPTIMUS), 1_134_774_272, "pooler", id="optimus"),
            pytest.param(
                config("vit_base_patch16_224.augreg_in21k"), 85_798_656, "pooler", id="b16"
            ),
            pytest.param(
                config("vit_so400m_patch14_siglip_384", input_size=[3, 384, 384]),
                428_225_600,
                "pooler",
                id="siglip",
            ),
            pytest.param(config("resnet18"), 11_176_512, "pooler", id="resnet18"),
            pytest.param(config("resnet50"), 23_508_032, "pooler", id="resnet50"),
            pytest.param(config("convnext_tiny"), 27_820_128, "pooler", id="convnext"),
            pytest.param(config("efficientnet_b0"), 4_007_548, "pooler", id="b0"),
            pytest.param(config("tf_efficientnet_b7"), 63_786_960, "pooler", id="tf-b7"),
        ],
        4,
    ),
)
def test_architectures_have_the_size_that_timm_counts(values, count, pooling):
    found = read(values)
    assert found.pooling == pooling
    moments = ("/mean", "/var")  # buffers in PyTorch
    leaves = flatten(abstract_params(found))
    assert sum(leaf.size for path, leaf in leaves.items() if not path.endswith(moments)) == count


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (config("swin_tiny_patch4_window7_224"), "architecture = 'swin_tiny_.* is not supported"),
        (config("vit_base_patch16_rpn_224"), "architecture = 'vit_base_patch16_rpn_224' is not"),
        (config("deit_base_distilled_patch16_224"), "architecture = 'deit_base_distilled"),
        (config("resnet50d"), "architecture = 'resnet50d' is not supported"),
        ({"architecture": 3}, "architecture must be str; it is 3"),
        (config(UNI[0], {"qk_norm": True}), r"model_args\.qk_norm = True is not supported"),
        (config(UNI[0], {"final_norm": False}), r"model_args\.final_norm = False"),
        (config(UNI[0], {"mlp_layer": "GluMlp"}), r"model_args\.mlp_layer = 'GluMlp'"),
        (config(UNI[0], {"act_layer": "mish"}), r"model_args\.act_layer = 'mish'"),
        (config(UNI[0], {"global_pool": "avgmax"}), r"model_args\.global_pool = 'avgmax'"),
        (config(UNI[0], {"class_token": False}), "global_pool = 'token' needs class_token"),
        (config(UNI[0], {"rope": True}), r"model_args\.rope = True is not known"),
        (config("resnet50", {"layers": [3, 4]}), "channels and layers must have four values"),
        (config("resnet50", {"block_args": {}}), r"model_args\.block_args = .* is not known"),
        (config("resnet50", {"global_pool": "max"}), r"model_args\.global_pool = 'max'"),
        (config("convnext_tiny", {"conv_mlp": True}), r"model_args\.conv_mlp = True"),
        (config("convnext_tiny", {"ls_init_value": None}), r"ls_init_value must be float"),
        (config("convnext_tiny", {"dims": [8]}), "dims and depths must have four values"),
        (config("efficientnet_b0", {"act_layer": "relu"}), r"model_args\.act_layer = 'relu'"),
        (config(UNI[0], input_size=[224, 224]), r"input_size must be \[channels, height, width\]"),
    ],
)
def test_what_is_not_supported_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        read(values)


def checkpoint(folder, name, **changes):
    values, shapes, batch, expected = read_golden(name)
    write_checkpoint(folder, values | changes, shapes, all_cases()[name])
    return batch, expected


def test_classes_by_name_are_needed_for_packed_layers(tmp_path):
    values, *_ = read_golden("timm-vit-virchow2")
    args = {name: value for name, value in values["model_args"].items() if name not in PACKED}
    checkpoint(tmp_path, "timm-vit-virchow2", model_args=args)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc2\.weight .* should have"):
        load_encoder(tmp_path)


def timm_preprocessor(folder, encoder, settings):
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": settings}))
    return image_preprocessor(replace(encoder, folder=folder))


def picture(height, width, channels=3):
    shape = (height, width, channels)[: 3 if channels == 3 else 2]
    return Image.fromarray(np.random.default_rng(0).integers(3, 200, shape, np.uint8))


def test_images_of_timm(tmp_path):
    checkpoint(tmp_path, "timm-vit-uni")
    encoder = load_encoder(tmp_path)
    settings = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "license": "of no effect",
    }
    mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))
    preprocess = timm_preprocessor(tmp_path, encoder, settings)
    assert preprocess.size == (3, 32, 32)
    # The shorter edge becomes 35, which is 32 / 0.9 cut, then the middle is taken.
    for size, small, box in [((70, 50), (49, 35), (8, 2)), ((50, 71), (35, 49), (2, 8))]:
        image = picture(*size[::-1])
        expected = image.resize(small, Image.Resampling.BICUBIC)
        expected = expected.crop((*box, box[0] + 32, box[1] + 32))
        pixels = (np.asarray(expected, np.float32) / np.float32(255) - mean) / std
        np.testing.assert_array_equal(preprocess(image), pixels.transpose(2, 0, 1))
    squash = timm_preprocessor(
        tmp_path, encoder, settings | {"crop_mode": "squash", "interpolation": "bilinear"}
    )
    assert squash.fingerprint != preprocess.fingerprint
    expected = picture(50, 70).resize((35, 35), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    pixels = (np.asarray(expected, np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(squash(picture(50, 70)), pixels.transpose(2, 0, 1))
    # Without settings ImageNet's, at the size of the model.
    usual = timm_preprocessor(tmp_path, encoder, {"license": "other"})
    assert usual.size == (3, 32, 32)
    other = settings | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    other = timm_preprocessor(tmp_path, encoder, other | {"crop_pct": 0.875})
    np.testing.assert_array_equal(usual(picture(50, 70)), other(picture(50, 70)))
    for wrong, named in [
        ({"interpolation": "random"}, "interpolation = 'random'"),
        ({"crop_mode": "border"}, "crop_mode = 'border'"),
        ({"input_size": [3, 32, 40]}, "crop_mode = 'center' is not supported for images of"),
        ({"crop_pct": 1.2}, "crop_pct must be above 0 and at most 1"),
        ({"mean": [1, 2]}, "mean and std must be lists of 3 numbers"),
    ]:
        with pytest.raises(ValueError, match=rf"config\.json: pretrained_cfg: .*{named}"):
            timm_preprocessor(tmp_path, encoder, settings | wrong)


def test_grey_images_of_timm(tmp_path):
    checkpoint(tmp_path, "timm-vit-mean-of-normed")
    encoder = load_encoder(tmp_path)
    settings = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.25], "crop_pct": 1.0}
    preprocess = timm_preprocessor(tmp_path, encoder, settings)
    pixels = np.asarray(picture(32, 32, 1), np.float32) / np.float32(255)
    np.testing.assert_array_equal(preprocess(picture(32, 32, 1)), (pixels[None] - 0.5) / 0.25)


def test_fixed_models_take_images_of_their_own_size(tmp_path):
    checkpoint(tmp_path, "timm-vit-dinov2")  # of 28 x 28, whatever input_size says
    encoder = load_encoder(tmp_path)
    settings = {"input_size": [3, 32, 32], "fixed_input_size": True}
    assert timm_preprocessor(tmp_path, encoder, settings).size == (3, 28, 28)
    with pytest.raises(ValueError, match="this model takes"):
        our_outputs(
            all_cases()["timm-vit-dinov2"], encoder, {"pixel_values": np.ones((1, 3, 32, 32))}
        )


def test_images_of_biovil(tmp_path):
    checkpoint(tmp_path, "biovil", image_size=448)
    preprocess = image_preprocessor(load_encoder(tmp_path))
    assert preprocess.size == (3, 448, 448)
    grey = picture(600, 700, 1)
    values = np.asarray(grey, np.float64)
    values = (values - values.min()) / (values.max() - values.min()) * 255
    expected = Image.fromarray(values.astype(np.uint8))
    expected = expected.resize((597, 512), Image.Resampling.BILINEAR)  # 512 * 700 / 600, cut
    expected = expected.crop((74, 32, 74 + 448, 32 + 448))
    pixels = np.asarray(expected, np.float32) / np.float32(255)
    np.testing.assert_array_equal(preprocess(grey), np.stack([pixels] * 3))
    assert not preprocess(Image.new("L", (500, 500), 7)).any()


@pytest.mark.parity
def test_biovil_is_converted_from_its_own_file(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    checkpoint(tmp_path, "biovil-t")
    encoder = load_encoder(tmp_path)
    assert encoder.config.pooling == "projection"
    import safetensors.torch

    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "biovil_t_image_model_proj_size_128.pt")
    convert_checkpoint(tmp_path)
    found = load_encoder(tmp_path).params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, encoder.params))


def test_biovil_t_is_not_read_as_biovil(tmp_path):
    checkpoint(tmp_path, "biovil-t", model_type="biovil")
    with pytest.raises(CheckpointError, match=r"encoder\.vit_pooler\.type_embed .*: no place"):
        load_encoder(tmp_path)
