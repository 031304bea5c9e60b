import functools
import io
import json
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from semalign_jax.data import read_pixels
from semalign_jax.encoders import load_encoder
from semalign_jax.encoders._images import image_preprocessor

from .harness import all_cases, read_golden, write_checkpoint

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
PLAIN = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": MEAN,
    "image_std": STD,
}
PROCESSORS = {
    "vit": PLAIN,
    "vit-of-first-releases": {"feature_extractor_type": "ViTFeatureExtractor", "size": 24},
    "vit-fast": PLAIN | {"image_processor_type": "ViTImageProcessorFast", "resample": 3},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 33, "width": 33},
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 0.00392156862745098,
    },
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 28, "crop_size": 28},
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 30, "width": 30},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.875,
    },
    "convnext-of-first-releases": {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "size": 384,
        "resample": 3,
    },
    "rad-dino": {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 37, "width": 37},
        "size": {"shortest_edge": 37},
        "image_mean": [0.5307] * 3,
        "image_std": [0.2583] * 3,
        "do_center_crop": True,
    },
}


@functools.cache
def vit(channels=3):
    """An encoder, whose folder is gone."""
    name = "vit-no-bias-grey" if channels == 1 else "vit"
    config, shapes, _, _ = read_golden(name)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), config, shapes, all_cases()[name])
        return load_encoder(folder)


def make(folder, processor=PLAIN, channels=3):
    folder.mkdir(exist_ok=True)
    text = processor if isinstance(processor, str) else json.dumps(processor)
    (folder / "preprocessor_config.json").write_text(text)
    return image_preprocessor(replace(vit(channels), folder=folder))


def picture(height=47, width=61, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_processor_bit_for_bit(name, tmp_path):
    preprocess = make(tmp_path, PROCESSORS[name])
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for height, width in [(47, 61), (90, 41), (32, 32), (3, 3), (8, 200)]:
        image = picture(height, width)
        expected = reference(image, return_tensors="np")["pixel_values"][0]
        found = preprocess(image)
        assert found.dtype == np.float32
        assert found.shape == preprocess.size == expected.shape
        np.testing.assert_array_equal(found, expected)


DINOV3 = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "crop_size": None,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 32, "width": 24},
}


def test_dinov3_resizes_values_that_are_not_rounded(tmp_path):
    preprocess = make(tmp_path, DINOV3)
    for height, width in [(47, 61), (3, 3), (8, 200)]:
        image = picture(height, width)
        unit = np.asarray(image, np.float32) / 255
        resized = np.asarray(jax.image.resize(unit, (32, 24, 3), "linear"))
        expected = np.transpose((resized - np.array(MEAN)) / np.array(STD), (2, 0, 1))
        np.testing.assert_allclose(preprocess(image), expected, atol=2e-4)
        assert preprocess(image).dtype == np.float32
    changed = {"size": {"shortest_edge": 32}, "do_center_crop": True, "resample": 1}
    with pytest.raises(ValueError, match=r"do_center_crop = True .*size = .*resample = 1"):
        make(tmp_path, DINOV3 | changed)


def test_a_nested_processor_file_is_read(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PLAIN}))
    assert image_preprocessor(replace(vit(), folder=tmp_path)).size == (3, 32, 32)


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_paths_bytes_pictures_and_arrays_are_the_same(tmp_path):
    preprocess = make(tmp_path)
    image = picture()
    expected = preprocess(image)
    path = tmp_path / "image.png"
    path.write_bytes(saved(image))
    for given in (path, str(path), path.read_bytes(), np.asarray(image), Image.open(path)):
        np.testing.assert_array_equal(preprocess(given), expected)
    jpeg = saved(image, "JPEG")
    np.testing.assert_array_equal(preprocess(jpeg), preprocess(Image.open(io.BytesIO(jpeg))))


GREY = np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65536, (40, 50), np.uint16)
SCALED = np.rint(DEEP * (255 / 65535)).astype(np.uint8)
ALPHA = np.random.default_rng(3).integers(0, 256, (40, 50), np.uint8)
COLOUR = np.random.default_rng(4).integers(0, 256, (40, 50, 3), np.uint8)


def stacked(*channels):
    return np.concatenate([c.reshape(40, 50, -1) for c in channels], axis=2)


def over_black(colour, alpha):
    return colour * (alpha[..., None] / 255)


def palette(**options):
    image = Image.fromarray(GREY % 3)
    image.putpalette([10, 20, 30, 100, 150, 200, 7, 70, 240])
    return saved(image, **options)


def palette_colours():
    return np.array([[10, 20, 30], [100, 150, 200], [7, 70, 240]])[GREY % 3]


FEW = DEEP >> 4
FEW_SCALED = np.rint(FEW * (255 / 4095)).astype(np.uint8)


def pgm(values, white):
    return b"P5 50 40 %d\n" % white + values.astype(">u2").tobytes()


def deep_png(values):
    """A PNG of 16-bit colours, which Pillow does not write."""

    def chunk(name, content):
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    height, width = values.shape[:2]
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


CASES = {
    "8-bit grey": (saved(Image.fromarray(GREY)), GREY),
    "1-bit": (
        saved(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)),
        (GREY > 127) * 255,
    ),
    "grey and alpha": (
        saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
        over_black(stacked(GREY, GREY, GREY), ALPHA),
    ),
    "colour and alpha": (
        saved(Image.fromarray(stacked(COLOUR, ALPHA))),
        over_black(COLOUR, ALPHA),
    ),
    "16-bit grey PNG": (saved(Image.fromarray(DEEP)), SCALED),
    "16-bit grey TIFF": (saved(Image.fromarray(DEEP), "TIFF"), SCALED),
    "16-bit big-endian": (Image.frombytes("I;16B", (50, 40), DEEP.astype(">u2").tobytes()), SCALED),
    "32-bit grey": (Image.fromarray(DEEP.astype(np.int32)), SCALED),
    "12 bits in a PNG": (saved(Image.fromarray(FEW)), FEW_SCALED),
    "12 bits in a TIFF": (saved(Image.fromarray(FEW), "TIFF"), FEW_SCALED),
    "12 bits in a PGM": (pgm(FEW, 65535), FEW_SCALED),
    "12 bits in a PGM of text": (
        b"P2 50 40 65535\n" + " ".join(map(str, FEW.ravel())).encode(),
        FEW_SCALED,
    ),
    "12 bits in a PGM that says so": (pgm(FEW // 2, 4095), np.rint(FEW // 2 / 4095 * 255)),
    "8 bits in a PNG of 16": (saved(Image.fromarray(GREY.astype(np.uint16))), GREY),
    "12 bits in an array": (FEW, FEW_SCALED),
    "12-bit colours in an array": (stacked(FEW, FEW, FEW), FEW_SCALED),
    "12-bit colours and alpha": (
        stacked(FEW, FEW, FEW, np.full((40, 50), 65535, np.uint16)),
        FEW_SCALED,
    ),
    "16-bit colours": (deep_png(stacked(DEEP, DEEP[::-1], DEEP)), None),
    "TIFF that counts from white": (
        saved(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0}),
        255 - SCALED,
    ),
    "16-bit transparent value": (
        saved(Image.fromarray(DEEP), transparency=int(DEEP[3, 4])),
        np.where(DEEP == DEEP[3, 4], 0, SCALED),
    ),
    "12 bits and a transparent value": (
        saved(Image.fromarray(np.where(GREY > 250, 65535, FEW).astype("u2")), transparency=65535),
        np.where(GREY > 250, 0, FEW_SCALED),
    ),
    "palette": (palette(), palette_colours()),
    "palette and transparent colour": (
        palette(transparency=1),
        np.where((GREY % 3 == 1)[..., None], 0, palette_colours()),
    ),
    "palette and alpha": (
        palette(transparency=bytes([255, 0, 100])),
        over_black(palette_colours(), np.array([255, 0, 100])[GREY % 3]),
    ),
    "array": (COLOUR, COLOUR),
    "array, grey": (GREY, GREY),
    "array, one channel": (GREY[..., None], GREY),
    "array, 16 bits": (DEEP, SCALED),
    "array, 16 bits, big-endian": (DEEP.astype(">u2"), SCALED),
    "array, 16 bits, colour": (stacked(DEEP, DEEP.T.reshape(40, 50), DEEP), None),
    "array with alpha": (stacked(COLOUR, ALPHA), over_black(COLOUR, ALPHA)),
    "array in another order of memory": (np.asfortranarray(COLOUR)[::-1], COLOUR[::-1]),
}


AS_IS = PLAIN | {
    "do_resize": False,
    "do_normalize": False,
    "crop_size": [40, 50],
    "image_processor_type": "CLIPImageProcessor",
}


@pytest.mark.parametrize("name", CASES)
def test_modes(name, tmp_path):
    given, expected = CASES[name]
    preprocess = make(tmp_path, AS_IS)
    if expected is None:
        deep = given if isinstance(given, np.ndarray) else stacked(DEEP, DEEP[::-1], DEEP)
        expected = np.rint(deep * (255 / 65535))
    if expected.ndim == 2:
        expected = stacked(expected, expected, expected)
    found = preprocess(given).transpose(1, 2, 0) * 255
    bound = 1.01 if "alpha" in name or name == "16-bit colours" else 1e-4
    np.testing.assert_allclose(found, expected, atol=bound)
    if isinstance(given, bytes):  # read_pixels reads the file alike
        (tmp_path / "image").write_bytes(given)
        pixels = read_pixels(tmp_path / "image")
        if pixels.ndim == 2:
            pixels = stacked(pixels, pixels, pixels)
        np.testing.assert_allclose(pixels, found, atol=1e-4)


def test_sixteen_bit_colours_that_use_fewer_bits_are_refused(tmp_path):
    preprocess = make(tmp_path)
    path = tmp_path / "scan.png"
    path.write_bytes(deep_png(stacked(FEW, FEW, FEW)))
    for read in (preprocess, read_pixels):
        with pytest.raises(ValueError, match=r"scan\.png:? has colours of 16 bits, .* fewer bits"):
            read(path)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF"])
def test_several_frames_are_refused(tmp_path, format):
    preprocess = make(tmp_path)
    path = tmp_path / "film"
    path.write_bytes(saved(picture(), format, save_all=True, append_images=[picture(seed=1)]))
    message = "formats are PNG" if format == "GIF" else "has 2 frames, and one is expected"
    for read in (preprocess, read_pixels):
        with pytest.raises(ValueError, match=f"film:? .*{message}"):
            read(path)
    with Image.open(path) as film, pytest.raises(ValueError, match="image has 2 frames"):
        preprocess(film)


def test_the_first_picture_of_a_phones_jpeg_is_read(tmp_path):
    preprocess = make(tmp_path)
    path = tmp_path / "phone.jpg"
    path.write_bytes(saved(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]))
    pixels = np.asarray(Image.open(io.BytesIO(saved(picture(), "JPEG"))))
    np.testing.assert_array_equal(read_pixels(path), pixels)
    np.testing.assert_array_equal(preprocess(path), preprocess(pixels))
    with Image.open(path) as opened:
        assert opened.format == "MPO"
        np.testing.assert_array_equal(preprocess(opened), preprocess(pixels))


def test_cmyk_is_converted_as_pillow_does(tmp_path):
    preprocess = make(tmp_path)
    image = picture().convert("CMYK")
    expected = preprocess(image.convert("RGB"))
    np.testing.assert_array_equal(preprocess(image), expected)
    np.testing.assert_array_equal(preprocess(saved(image, "TIFF")), expected)
    (tmp_path / "image").write_bytes(saved(image, "TIFF"))
    np.testing.assert_array_equal(read_pixels(tmp_path / "image"), np.asarray(image.convert("RGB")))


def test_grey_equals_three_equal_channels(tmp_path):
    preprocess = make(tmp_path)
    expected = preprocess(saved(Image.fromarray(stacked(GREY, GREY, GREY))))
    np.testing.assert_array_equal(preprocess(saved(Image.fromarray(GREY))), expected)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_orientation_is_applied(tmp_path, format, bits):
    if format == "JPEG" and bits == 16:
        return
    preprocess = make(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture() if bits == 8 else Image.fromarray(DEEP)
    path = tmp_path / "image"
    path.write_bytes(saved(image, format))
    upright = read_pixels(path)
    path.write_bytes(saved(image, format, exif=exif))
    turned = np.rot90(upright, -1)
    np.testing.assert_array_equal(read_pixels(path), turned)
    np.testing.assert_array_equal(preprocess(path), preprocess(np.ascontiguousarray(turned)))


ONE = PLAIN | {"image_mean": [0.5], "image_std": [1 / 2048], "do_convert_rgb": True}


def test_model_of_one_channel(tmp_path):
    preprocess = make(tmp_path, ONE, channels=1)
    assert preprocess.size == (1, 32, 32)
    found = preprocess(Image.fromarray(GREY))
    resized = np.asarray(Image.fromarray(GREY).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found[0], (resized / 255 * 2 - 1) * 1024, atol=1e-3)
    np.testing.assert_array_equal(preprocess(stacked(GREY, GREY, GREY)), found)
    # ITU-R 601
    white = preprocess(np.full((9, 9, 3), [250, 100, 30], np.uint8))
    np.testing.assert_allclose(white, (np.rint(136.87) / 255 * 2 - 1) * 1024, atol=1e-3)
    with pytest.raises(ValueError, match="fails on images of 1 channels: mean must have 1"):
        make(tmp_path, PLAIN, channels=1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (GREY / 255, TypeError, "uint8 or uint16; got float64"),
        (GREY.astype(np.int64), TypeError, "uint8 or uint16; got int64"),
        (GREY.astype(np.uint32), TypeError, "got uint32"),
        (GREY > 3, TypeError, "got bool"),
        (COLOUR.transpose(2, 0, 1), ValueError, r"got \(3, 40, 50\)"),
        (GREY[:0], ValueError, r"got \(0, 50\)"),
        (GREY[0], ValueError, r"got \(50,\)"),
        (stacked(GREY, GREY), ValueError, r"got \(40, 50, 2\)"),
        (Image.fromarray(GREY.astype(np.float32)), ValueError, "floating-point"),
        (Image.fromarray(DEEP.astype(np.int32) - 9000), ValueError, "scale them to 0..65535"),
        (None, TypeError, "got NoneType"),
        ([GREY], TypeError, "got list"),
        (b"", ValueError, "image cannot be read as an image; formats are PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", ValueError, "cannot be read"),
        (saved(Image.fromarray(GREY))[:600], ValueError, "image is a broken image"),
        (saved(Image.fromarray(COLOUR), "JPEG")[:900], ValueError, "broken image.*truncated"),
    ],
)
def test_refused_images(given, error, message, tmp_path):
    preprocess = make(tmp_path)
    with pytest.raises(error, match=message):
        preprocess(given)


def test_broken_files_are_named(tmp_path):
    preprocess = make(tmp_path)
    path = tmp_path / "scan.png"
    with pytest.raises(FileNotFoundError, match=r"scan\.png"):
        preprocess(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"scan\.png cannot be read as an image"):
        preprocess(path)
    whole = saved(picture())
    for damaged in (whole[:500], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"scan\.png is a broken image"):
            preprocess(path)


def test_decompression_bombs(tmp_path, monkeypatch):
    preprocess = make(tmp_path)
    path = tmp_path / "bomb.png"
    path.write_bytes(saved(picture()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png is too large.*MAX_IMAGE_PIXELS"):
        preprocess(path)


def test_folder_without_processor(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        image_preprocessor(replace(vit(), folder=tmp_path))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is damaged or no JSON"):
        make(tmp_path, "{")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_processor_type": "NoSuchImageProcessor"}', "cannot be read"),
        ('{"auto_map": {"AutoImageProcessor": "own.Own"}}', "asks for code of its own"),
        (json.dumps(PLAIN | {"do_resize": False}), r"turns images into .* must get one size"),
        (json.dumps(PLAIN | {"image_mean": [0.5]}), "fails on images of 3 channels"),
    ],
)
def test_unusable_processors(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)the image processor in .*{message}"):
        make(tmp_path, text)


def test_text_encoder_takes_no_images(tmp_path):
    config, shapes, _, _ = read_golden("bert")
    write_checkpoint(tmp_path, config, shapes, all_cases()["bert"])
    with pytest.raises(ValueError, match="bert takes no images"):
        image_preprocessor(load_encoder(tmp_path))


def test_fingerprint_follows_settings_alone(tmp_path):
    first = make(tmp_path / "a").fingerprint
    assert len(first) == 64
    assert make(tmp_path / "b").fingerprint == first
    assert make(tmp_path / "c", PLAIN | {"resample": 3}).fingerprint != first
    assert make(tmp_path / "d", ONE, channels=1).fingerprint != first


def open_clip(folder, settings, size=(32, 32)):
    """The preprocessor of an encoder of which there is only what images need."""
    family = replace(vit().config.family, image_size=lambda _: (3, *size))
    values = {"model_cfg": {}} | ({} if settings is None else {"preprocess_cfg": settings})
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    config = SimpleNamespace(family=family, model_type="open_clip", model=None)
    return image_preprocessor(replace(vit(), config=config, folder=folder))  # pyright: ignore


def test_open_clip_settings(tmp_path):
    settings = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    preprocess = open_clip(tmp_path, settings)
    assert preprocess.size == (3, 32, 32)
    for width, height, box in [(64, 32, (16, 0)), (71, 64, (2, 0)), (64, 71, (0, 2))]:
        image = picture(height, width)
        scale = 32 / min(width, height)
        small = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        small = small.crop((*box, box[0] + 32, box[1] + 32))
        pixels = np.asarray(small, np.float32) / np.float32(255)
        mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))
        np.testing.assert_array_equal(preprocess(image), ((pixels - mean) / std).transpose(2, 0, 1))
    squash = open_clip(tmp_path, settings | {"resize_mode": "squash", "interpolation": "bilinear"})
    assert squash.fingerprint != preprocess.fingerprint
    small = picture().resize((32, 32), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32) / np.float32(255)
    np.testing.assert_array_equal(squash(picture()).transpose(1, 2, 0), (pixels - mean) / std)


SIZE_32 = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def test_open_clip_defaults_and_refusals(tmp_path):
    usual = open_clip(tmp_path, None)
    clip = make(tmp_path / "clip", {"image_processor_type": "CLIPImageProcessor"} | SIZE_32)
    np.testing.assert_allclose(usual(picture(64, 66)), clip(picture(64, 66)), atol=1e-6)
    for settings, named in [
        ({"resize_mode": "longest"}, "resize_mode"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"mode": "L"}, "mode"),
        ({"mean": [1, 2]}, "mean and std"),
        ({"antialias": False}, "antialias"),
        ([], "object"),
    ]:
        with pytest.raises(ValueError, match=rf"open_clip_config\.json: preprocess_cfg.*{named}"):
            open_clip(tmp_path, settings)
    with pytest.raises(ValueError, match="'shortest' is not supported"):
        open_clip(tmp_path, {}, size=(32, 40))
