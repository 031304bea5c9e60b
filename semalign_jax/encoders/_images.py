"""From images to the arrays that an encoder takes, as the checkpoint's own files say.

Image processors are those of transformers, in their form without PyTorch, read from the folder
alone: no network, no code of the checkpoint.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .._core.documents import read_json
from .._core.pictures import PictureError, read_picture, white_of
from ._encoder import IMAGE_INPUTS, Encoder
from ._hub import IMAGE_FILES
from ._preprocess import auto_class, fingerprint, unreadable
from ._transforms import (
    BIOVIL_SIZE,
    TIMM_SETTINGS,
    Transform,
    biovil_transform,
    dinov3_transform,
    open_clip_transform,
    timm_transform,
)

# Raised when the conversion of images below changes, so that stored embeddings are not mixed.
_IMAGE_RULES = 2


@dataclass(frozen=True)
class ImagePreprocessor:
    """Reads, resizes and normalises images for one encoder; safe to share between threads.

    Images with 8 bits a channel give what the checkpoint's processor of transformers gives
    (its PIL form), or the transform of open_clip, timm, BioViL or DINOv3. Before it:

    - grey images are repeated to three channels, or colours made grey (ITU-R 601) for a model of
      one channel;
    - grey values of more than 8 bits are scaled so that white becomes 255: the largest number of as
      many bits as the largest value has, 8 at least, unless the file says how many are used. So
      12-bit values in a file of 16 bits are not nearly black. Images in 32-bit integers count as
      16-bit ones, if their values are; floating-point images are refused, since their range is
      unknown, and so are 16-bit colours (of which Pillow keeps 8 bits) if they use fewer bits;
    - transparent pixels are blended with black;
    - palettes and CMYK are converted to RGB by Pillow, colour profiles ignored;
    - the orientation noted in EXIF is applied, as viewers and transformers' `load_image` do;
    - files of several frames are refused; of a JPEG with more pictures behind it (MPO, as phones
      write it) the first is read.

    `data.read_pixels` reads pictures by the same rules.

    Attributes:
        outline: shape and dtype of each input that the model gets of an image, by name.
        fingerprint: SHA-256 over all that determines the result: files and settings.
    """

    outline: Mapping[str, tuple[tuple[int, ...], Any]]
    fingerprint: str
    _channels: int = field(repr=False)
    _transform: Transform = field(repr=False)

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width of the result, or its patches and the values of each."""
        return self.outline["pixel_values"][0]

    def __call__(self, image: Any) -> np.ndarray:
        """Return the pixels of one image, float32 of the shape `size`; see `inputs`."""
        return self.inputs(image)["pixel_values"]

    def inputs(self, image: Any) -> dict[str, np.ndarray]:
        """Return what the model gets of one image: ``pixel_values``, and what patches come with.

        Args:
            image: path of a PNG, JPEG, TIFF, BMP or PNM file, such a file's bytes, a PIL image, or
                an array of uint8 or uint16, ``[height, width]`` or ``[height, width, channels]``
                with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is broken or of another format, or the array is empty or has
                another shape; names the file.
            TypeError: for other types of images or of values.
        """
        picture, name = _decode(image)
        picture = picture.convert("L" if self._channels == 1 else "RGB")
        try:
            return self._transform(picture)
        except ValueError as error:
            raise ValueError(f"{name}, {picture.width} x {picture.height}: {error}") from error


def image_preprocessor(encoder: Encoder) -> ImagePreprocessor:
    """Return the preprocessor of images that an encoder's folder describes.

    Args:
        encoder: one with images.

    Raises:
        FileNotFoundError: if the folder has no ``preprocessor_config.json``.
        ValueError: if the encoder has no images, or the processor does not give images of one size
            with the model's number of channels.
    """
    config, folder = encoder.config, encoder.folder
    family = config.family
    if family.image_size is None:
        raise ValueError(f"an encoder of the family {family.name} takes no images")
    channels, height, width = family.image_size(config.model)
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels; the model takes {channels}")
    rules: dict[str, Any] = {"rules": _IMAGE_RULES, "channels": channels, "size": [height, width]}
    files: Sequence[str] = ()
    if config.model_type == "open_clip":
        path = folder / "open_clip_config.json"
        settings = read_json(path, dict).get("preprocess_cfg", {})
        transform = open_clip_transform(settings, (height, width), path)
        rules["preprocess_cfg"] = settings
    elif config.model_type == "timm":
        path = folder / "config.json"
        settings = read_json(path, dict).get("pretrained_cfg") or {}
        settings = {key: settings[key] for key in TIMM_SETTINGS if key in settings}
        transform = timm_transform(settings, channels, (height, width), path)
        rules["pretrained_cfg"] = settings
    elif config.model_type in ("biovil", "biovil-t"):
        transform = biovil_transform((height, width))
        rules["biovil"] = BIOVIL_SIZE
    else:
        names = IMAGE_INPUTS if family.patches else IMAGE_INPUTS[:1]
        transform = _processor_transform(folder, channels, names)
        # Without the size, which the files say.
        rules = {"rules": _IMAGE_RULES, "channels": channels, "model_type": config.model_type}
        files = IMAGE_FILES
    values = family.patches(config.model)[1] if family.patches else None
    outline = _outline(transform, channels, values, folder)
    return ImagePreprocessor(outline, fingerprint(rules, folder, files), channels, transform)


def _processor_transform(folder: Path, channels: int, names: Sequence[str]) -> Transform:
    if not any((folder / name).is_file() for name in IMAGE_FILES):
        raise FileNotFoundError(
            f"{folder} has no {IMAGE_FILES[0]}, which says how images are resized and normalised. "
            "Copy it from the checkpoint's repository"
        )
    path = folder / IMAGE_FILES[0]
    settings = read_json(path, dict) if path.is_file() else {}
    if str(settings.get("image_processor_type")).startswith("DINOv3ViTImageProcessor"):
        return dinov3_transform(settings, channels, path)

    try:
        processor = auto_class("AutoImageProcessor").from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except ImportError:  # names the package to install
        raise
    except Exception as error:  # of many kinds: JSON, unknown classes, wrong options
        raise unreadable("image processor", folder, error) from error
    # The image comes in the right mode; the option would turn grey into three channels.
    options = {"do_convert_rgb": False} if channels == 1 else {}

    def transform(picture: Any) -> dict[str, np.ndarray]:
        found = processor(images=picture, return_tensors="np", **options)
        # The first are the pixels; the others, of patches, are whole numbers.
        dtypes = (np.float32, np.int32, np.int32)
        return {
            name: np.ascontiguousarray(found[name][0], dtype)
            for name, dtype in zip(names, dtypes, strict=False)
        }

    return transform


def _outline(
    transform: Transform, channels: int, values: int | None, folder: Path
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shapes and dtypes that two blank images of other proportions both get.

    `values` is the number in each patch, if images come as patches.
    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    try:
        wide, high = (transform(Image.new(mode, size)) for size in ((60, 40), (50, 90)))
    except Exception as error:  # of many kinds: the options of each processor are its own
        raise ValueError(
            f"the image processor in {folder} fails on images of {channels} channels: {error}"
        ) from error
    shapes = [pixels["pixel_values"].shape for pixels in (wide, high)]
    if values is not None and (shapes[0] != shapes[1] or shapes[0][1:] != (values,)):
        raise ValueError(
            f"the image processor in {folder} turns images into {shapes[0]} and {shapes[1]}; all "
            f"must get the same number of patches of {values} values: its patch_size is not that "
            "of the model"
        )
    if values is None and (
        shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][0] != channels
    ):
        raise ValueError(
            f"the image processor in {folder} turns images into {shapes[0]} and {shapes[1]}; all "
            f"must get one size and {channels} channels: set a crop (do_center_crop) or a fixed "
            "size there"
        )
    return {name: (pixels.shape, pixels.dtype) for name, pixels in wide.items()}


def _decode(image: Any) -> tuple[Any, str]:
    """Return an 8-bit PIL image, "L" or "RGB", and its name for messages."""
    from PIL import Image

    name = "image"
    try:
        if isinstance(image, np.ndarray):
            return _from_array(image), name
        if isinstance(image, bytes):
            picture, white = read_picture(io.BytesIO(image))
        elif isinstance(image, str | PathLike):
            name = str(image)
            with open(image, "rb") as file:
                picture, white = read_picture(file)
        elif isinstance(image, Image.Image):
            picture, white = read_picture(image)
        else:
            raise TypeError(
                "image must be a path, bytes, a PIL image or a NumPy array; got "
                f"{type(image).__name__}"
            )
    except PictureError as error:
        raise ValueError(f"{name} {error}") from error
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(_eight_bit(picture, white))
    return picture, name


def _eight_bit(values: np.ndarray, white: int) -> np.ndarray:
    """Return uint16 values with 255 for white, rounded; as white is odd, none lies half-way."""
    return ((values.astype(np.uint32) * 510 + white) // (2 * white)).astype(np.uint8)


def _from_array(values: np.ndarray) -> Any:
    """Return a PIL image, "L" or "RGB", of an array."""
    from PIL import Image

    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        raise TypeError(
            f"image must be an array of uint8 or uint16; got {values.dtype}. Scale it to 0..255 "
            "and convert it, e.g. image.astype(np.uint8)"
        )
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 3, 4) or not values.size:
        raise ValueError(
            "image must have the shape [height, width] or [height, width, 1, 3 or 4]; "
            f"got {values.shape}"
        )
    if values.dtype.itemsize == 2:
        parts = np.split(values, [3], axis=2) if channels == 4 else [values]  # alpha on its own
        values = np.concatenate([_eight_bit(part, white_of(part)) for part in parts], axis=-1)
    values = values.reshape(values.shape[:2]) if channels == 1 else values
    return read_picture(Image.fromarray(np.ascontiguousarray(values)))[0]
