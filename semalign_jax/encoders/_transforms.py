"""Transforms of images that transformers alone lacks: of open_clip, timm, BioViL and DINOv3.

They are torchvision's, each written from what the checkpoint's own files say.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: From a PIL image to the inputs of the model by name.
Transform = Callable[[Any], dict[str, np.ndarray]]

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: What timm's transform for evaluation reads in ``pretrained_cfg``.
TIMM_SETTINGS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
)
#: Shorter edge before the crop of BioViL.
BIOVIL_SIZE = 512


def open_clip_transform(settings: Any, size: tuple[int, int], path: Path) -> Transform:
    """Return open_clip's transform for evaluation.

    Args:
        settings: ``preprocess_cfg``.
        size: of the images that the model takes.
        path: for messages.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: preprocess_cfg must be an object; it is {settings!r}")
    mode = settings.get("resize_mode") or "shortest"
    problems = [
        f"{key} = {settings[key]!r} is not known"
        for key in settings
        if key not in ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    ]
    if mode not in ("shortest", "squash") or (mode == "shortest" and size[0] != size[1]):
        problems.append(f"resize_mode = {mode!r} is not supported for images of {size}")
    if settings.get("mode", "RGB") != "RGB":
        problems.append(f"mode = {settings['mode']!r} is not supported")
    where = f"{path}: preprocess_cfg"
    return _normalising(settings, _CLIP, 3, size, size, mode == "squash", problems, where)


def timm_transform(
    settings: Mapping[str, Any], channels: int, size: tuple[int, int], path: Path
) -> Transform:
    """Return timm's transform for evaluation.

    Args:
        settings: `TIMM_SETTINGS`.
        channels: of the model.
        size: of the images that the model is made for; ``input_size`` is preferred, unless the
            model takes no other.
        path: for messages.
    """
    mode = settings.get("crop_mode") or "center"
    fraction = settings.get("crop_pct") or 0.875
    if not settings.get("fixed_input_size"):
        _, *(height, width) = settings.get("input_size") or (channels, *size)  # as it was parsed
        size = (height, width)
    problems = []
    if mode not in ("center", "squash") or (mode == "center" and size[0] != size[1]):
        problems.append(f"crop_mode = {mode!r} is not supported for images of {size}")
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        problems.append(f"crop_pct must be above 0 and at most 1; it is {fraction!r}")
        fraction = 1
    scale = (math.floor(size[0] / fraction), math.floor(size[1] / fraction))
    where = f"{path}: pretrained_cfg"
    return _normalising(
        settings, _IMAGENET, channels, scale, size, mode == "squash", problems, where
    )


def _normalising(
    settings: Mapping[str, Any],
    usual: tuple[Sequence[float], Sequence[float]],
    channels: int,
    scale: tuple[int, int],
    size: tuple[int, int],
    squash: bool,
    problems: list[str],
    where: str,
) -> Transform:
    """Return what resizes to `scale`, crops to `size` and normalises; raise all `problems`.

    The settings are ``interpolation``, and ``mean`` and ``std``, of which `usual` has the defaults.
    """
    from PIL import Image

    interpolation = settings.get("interpolation") or "bicubic"
    if interpolation not in ("bicubic", "bilinear"):
        problems.append(f"interpolation = {interpolation!r} is not supported")
    try:
        mean, std = (
            np.broadcast_to(np.array(settings.get(key) or values, np.float32), channels)
            for key, values in zip(("mean", "std"), usual, strict=True)
        )
    except (ValueError, TypeError):
        problems.append(f"mean and std must be lists of {channels} numbers")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    resample = getattr(Image.Resampling, interpolation.upper())

    def transform(picture: Any) -> dict[str, np.ndarray]:
        pixels = _unit_range(_resized_and_cropped(picture, scale, size, resample, squash))
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        return {"pixel_values": np.ascontiguousarray(pixels)}

    return transform


def biovil_transform(size: tuple[int, int]) -> Transform:
    """Return the transform of hi-ml-multimodal: grey values from 0 to 1, in three channels.

    The darkest value becomes black and the brightest white before the image is resized.
    """
    from PIL import Image

    scale, resample = (BIOVIL_SIZE, BIOVIL_SIZE), Image.Resampling.BILINEAR

    def transform(picture: Any) -> dict[str, np.ndarray]:
        values = np.asarray(picture, np.float64)
        values = values - values.min()
        values = values / (values.max() or 1) * 255
        picture = Image.fromarray(values.astype(np.uint8)).convert("L")
        picture = _resized_and_cropped(picture, scale, size, resample, squash=False)
        return {"pixel_values": np.repeat(_unit_range(picture), 3, axis=0)}

    return transform


def dinov3_transform(settings: Mapping[str, Any], channels: int, path: Path) -> Transform:
    """Return the image processor of DINOv3: it resizes values from 0 to 1, which are not rounded.

    Args:
        settings: of ``preprocessor_config.json``.
        channels: of the model.
        path: for messages.

    Raises:
        ValueError: if there are other steps, or values that are not known; lists all.
    """
    from PIL import Image

    wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
    problems = [
        f"{key} = {settings[key]!r} is not supported"
        for key, usual in wanted.items()
        if settings.get(key) not in (None, usual)
    ]
    if abs(255 * (settings.get("rescale_factor") or 1 / 255) - 1) > 1e-6:
        problems.append("rescale_factor must be 1 / 255")
    size, number = settings.get("size") or 224, settings.get("resample")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if not isinstance(size, dict) or size.keys() != {"height", "width"}:
        problems.append(f"size = {size!r} is not supported: it must have a height and a width")
    if number not in (None, 2, 3):
        problems.append(f"resample = {number!r} is not supported")
    mean, std = (
        np.array(settings.get(key) or values, np.float32)
        for key, values in zip(("image_mean", "image_std"), _IMAGENET, strict=True)
    )
    if not mean.shape == std.shape == (channels,):
        problems.append(f"image_mean and image_std must be lists of {channels} numbers")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    resample = Image.Resampling(number or Image.Resampling.BILINEAR)
    shape = (size["width"], size["height"])

    def transform(picture: Any) -> dict[str, np.ndarray]:
        planes = (Image.fromarray(plane) for plane in _unit_range(picture))
        pixels = np.stack([np.asarray(plane.resize(shape, resample)) for plane in planes])
        return {"pixel_values": (pixels - mean[:, None, None]) / std[:, None, None]}

    return transform


def _resized_and_cropped(
    picture: Any, scale: tuple[int, int], size: tuple[int, int], resample: Any, squash: bool
) -> Any:
    """Resize to `scale`, or the shorter edge to its first number, and crop: as torchvision does."""
    height, width = size
    if squash:
        rows, columns = scale
    else:
        shortest = min(picture.size)
        # The longer edge is cut, not rounded.
        columns, rows = (int(scale[0] * edge / shortest) for edge in picture.size)
    picture = picture.resize((columns, rows), resample)
    left, top = round((columns - width) / 2), round((rows - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _unit_range(picture: Any) -> np.ndarray:
    """Return the pixels as float32 ``[channels, height, width]`` from 0 to 1."""
    pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
