"""From texts and images to the arrays that an encoder takes, as the checkpoint's own files say.

Tokenizers and image processors are those of transformers, in their form without PyTorch. They are
read from the folder alone: no network, no code of the checkpoint.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._core.documents import read_json
from .._core.files import content_hash
from .._core.pictures import PictureError, read_picture, white_of
from ._encoder import IMAGE_INPUTS, Encoder
from ._hub import IMAGE_FILES, SENTENCEPIECE_FILES, TOKENIZER_FILES
from ._sentence import sentence_settings

# And from there on three in each doubling: few programs, little padding.
_SHORT_LENGTHS = (16, 32, 48, 64, 96, 128)
# Tokenizers without a limit report an enormous one.
_NO_LIMIT = 10**6

#: Where a checkpoint names a tokenizer class of its own that adds nothing to a known one.
_TOKENIZER_TYPES = {"cxr-bert": "bert"}

# Raised when the conversion of images below changes, so that stored embeddings are not mixed.
_IMAGE_RULES = 2

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Tokenized(NamedTuple):
    """Texts as token ids.

    Attributes:
        rows: token ids of each text, special tokens included, cut to ``max_tokens``.
        types: segment of each token; None for a model without segments.
        truncated: number of texts that were cut.
    """

    rows: list[list[int]]
    types: list[list[int]] | None
    truncated: int


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenizes and pads texts for one encoder; safe to share between threads.

    Attributes:
        max_tokens: longest row.
        buckets: padded lengths, increasing; the last is `max_tokens`. Few, because each is compiled
            once; only `max_tokens` for a model that always sees its full length.
        fingerprint: SHA-256 over all that determines the rows: files and settings.
        prompt: name and text of what is put before every text; None and "" for nothing.
    """

    max_tokens: int
    buckets: tuple[int, ...]
    fingerprint: str
    prompt: tuple[str | None, str]
    _tokenizer: Any = field(repr=False)
    _segments: bool = field(repr=False)
    _sees_padding: bool = field(repr=False)
    _vocab_size: int | None = field(repr=False)
    _lower_case: bool = field(repr=False)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return the token ids of some texts; an empty text has special tokens only.

        Args:
            texts: one string each.

        Raises:
            TypeError: if `texts` is one string, or an item is not a string; names its index.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings; got one string")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string; got {type(text).__name__}")
        if not len(texts):
            return Tokenized([], [] if self._segments else None, 0)
        given = [self.prompt[1] + text for text in texts]
        if self._lower_case:
            given = [text.lower() for text in given]
        batch = self._tokenizer(
            given,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=self._segments,
        )
        if batch.encodings is None:  # written in Python: it does not say what it cut
            whole = self._tokenizer(given, return_attention_mask=False, verbose=False)
            truncated = sum(len(row) > self.max_tokens for row in whole["input_ids"])
        else:
            truncated = sum(bool(encoding.overflowing) for encoding in batch.encodings)
        types = batch["token_type_ids"] if self._segments else None
        return Tokenized(batch["input_ids"], types, truncated)

    def bucket(self, length: int) -> int:
        """Return the shortest padded length that holds a row of `length` tokens."""
        for size in self.buckets:
            if length <= size:
                return size
        raise ValueError(f"length must be at most max_tokens = {self.max_tokens}; got {length}")

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        length: int,
        types: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return a batch for `encode`.

        Args:
            rows: token ids, `Tokenized.rows` or some of them.
            length: length to pad to, on the side that the tokenizer pads.
            types: their segments, `Tokenized.types`; None for a model without segments.

        Returns:
            ``input_ids`` and ``attention_mask``, int32 ``[rows, length]``, and ``token_type_ids``
            if `types` is given. The mask is 1 on tokens, and on padding too where the model attends
            to it (SigLIP).

        Raises:
            ValueError: if a row is longer than `length`, or has an id that the model lacks.
        """
        tokenizer = self._tokenizer
        longest = max(map(len, rows), default=0)
        if longest > length:
            raise ValueError(f"a row has {longest} tokens, which do not fit in length = {length}")
        right = tokenizer.padding_side == "right"

        def filled(values: Sequence[Sequence[int]], filling: int) -> np.ndarray:
            table = np.full((len(values), length), filling, np.int32)
            for line, value in zip(table, values, strict=True):
                place = slice(0, len(value)) if right else slice(length - len(value), length)
                line[place] = value
            return table

        ids = filled(rows, tokenizer.pad_token_id)
        if self._vocab_size is not None and ids.size and ids.max() >= self._vocab_size:
            raise ValueError(
                f"the tokenizer gives the id {ids.max()}, but the model has a vocabulary of "
                f"{self._vocab_size}: the folder's tokenizer is not this model's"
            )
        ones = [[1] * len(row) for row in rows]
        batch = {"input_ids": ids, "attention_mask": filled(ones, int(self._sees_padding))}
        if types is not None:
            batch["token_type_ids"] = filled(types, tokenizer.pad_token_type_id)
        return batch


@dataclass(frozen=True)
class ImagePreprocessor:
    """Reads, resizes and normalises images for one encoder; safe to share between threads.

    Images with 8 bits a channel give what the checkpoint's processor of transformers gives
    (its PIL form), or the transform of open_clip, timm or BioViL. Before it:

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
    - files of several frames are refused.

    `data.read_pixels` reads pictures by the same rules.

    Attributes:
        outline: shape and dtype of each input that the model gets of an image, by name.
        fingerprint: SHA-256 over all that determines the result: files and settings.
    """

    outline: Mapping[str, tuple[tuple[int, ...], Any]]
    fingerprint: str
    _channels: int = field(repr=False)
    _transform: Callable[[Any], dict[str, np.ndarray]] = field(repr=False)

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


def text_preprocessor(encoder: Encoder, *, prompt_name: str | None = None) -> TextPreprocessor:
    """Return the preprocessor of texts that an encoder's folder describes.

    Texts are cut at the smallest of the model's own limit, the tokenizer's, and the one of
    sentence-transformers if the folder has it. open_clip's repair of broken Unicode and of HTML
    entities is left to the caller.

    Args:
        encoder: one with texts.
        prompt_name: of the prompt that is put before every text, see `embed`.

    Raises:
        FileNotFoundError: if the folder has no tokenizer; says which files are expected.
        ValueError: if the encoder has no texts or no such prompt, or the tokenizer cannot be used.
    """
    config, folder = encoder.config, encoder.folder
    family = config.family
    if family.max_tokens is None:
        raise ValueError(f"an encoder of the family {family.name} takes no texts")
    settings = sentence_settings(folder)
    prompt = settings.chosen_prompt(prompt_name, folder)
    tokenizer = _tokenizer(folder, config.model_type)
    limits = [family.max_tokens(config.model), settings.max_tokens, tokenizer.model_max_length]
    max_tokens = int(min(limit for limit in limits if limit is not None and limit < _NO_LIMIT))
    if max_tokens <= tokenizer.num_special_tokens_to_add():
        raise ValueError(f"{folder}: max_tokens = {max_tokens} leaves no room for a text")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no padding token (pad_token)")
    segments = getattr(config.model, "type_vocab_size", 0) > 0
    segments = segments and "token_type_ids" in tokenizer.model_input_names
    fixed_length = family.fixed_length is not None and family.fixed_length(config.model)
    rules = {
        "model_type": config.model_type,
        "max_tokens": max_tokens,
        "fixed_length": fixed_length,
        "segments": segments,
        "lower_case": settings.lower_case,
        "prompt": prompt[1],
    }
    preprocessor = TextPreprocessor(
        max_tokens=max_tokens,
        buckets=(max_tokens,) if fixed_length else _buckets(max_tokens),
        fingerprint=_fingerprint(rules, folder, TOKENIZER_FILES),
        prompt=prompt,
        _tokenizer=tokenizer,
        _segments=segments,
        _sees_padding=fixed_length,
        _vocab_size=getattr(config.model, "vocab_size", None),
        _lower_case=settings.lower_case,
    )
    # The first call sets how texts are cut, which threads must not do at the same time.
    preprocessor.tokenize([""])
    return preprocessor


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
    rules: dict[str, Any] = {"rules": _IMAGE_RULES, "channels": channels}
    if config.model_type == "open_clip":
        path = folder / "open_clip_config.json"
        settings = read_json(path, dict).get("preprocess_cfg", {})
        transform = _open_clip_transform(settings, (height, width), path)
        rules |= {"preprocess_cfg": settings, "size": [height, width]}
        fingerprint = _fingerprint(rules, folder, ())
    elif config.model_type == "timm":
        path = folder / "config.json"
        settings = read_json(path, dict).get("pretrained_cfg") or {}
        settings = {key: settings[key] for key in _TIMM_SETTINGS if key in settings}
        transform = _timm_transform(settings, channels, (height, width), path)
        rules |= {"pretrained_cfg": settings, "size": [height, width]}
        fingerprint = _fingerprint(rules, folder, ())
    elif config.model_type in ("biovil", "biovil-t"):
        transform = _biovil_transform((height, width))
        rules |= {"biovil": _BIOVIL_SIZE, "size": [height, width]}
        fingerprint = _fingerprint(rules, folder, ())
    else:
        names = IMAGE_INPUTS if family.patches else IMAGE_INPUTS[:1]
        transform = _processor_transform(folder, channels, names)
        rules["model_type"] = config.model_type
        fingerprint = _fingerprint(rules, folder, IMAGE_FILES)
    values = family.patches(config.model)[1] if family.patches else None
    outline = _outline(transform, channels, values, folder)
    return ImagePreprocessor(outline, fingerprint, channels, transform)


def _fingerprint(rules: Mapping[str, Any], folder: Path, names: Sequence[str]) -> str:
    parts: list[str | bytes] = [json.dumps(rules, sort_keys=True)]
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            parts += [f"\0{name}\0{len(content)}\0", content]
    return content_hash(parts)


def _buckets(max_tokens: int) -> tuple[int, ...]:
    sizes = [*_SHORT_LENGTHS]
    while sizes[-1] < max_tokens:
        sizes += [sizes[-1] * 5 // 4, sizes[-1] * 3 // 2, sizes[-1] * 2]
    return (*(size for size in sizes if size < max_tokens), max_tokens)


def _tokenizer(folder: Path, model_type: str) -> Any:
    has = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not has & {"tokenizer.json", "vocab.txt", *SENTENCEPIECE_FILES} and not (
        {"vocab.json", "merges.txt"} <= has
    ):
        message = (
            f"{folder} has no tokenizer. It needs tokenizer.json, or vocab.txt, or vocab.json with "
            f"merges.txt, or one of {', '.join(SENTENCEPIECE_FILES)}"
        )
        if model_type == "open_clip":
            message += (
                "; open_clip does not store its own: put tokenizer.json and tokenizer_config.json "
                f"of {_open_clip_tokenizer(folder)} there"
            )
        raise FileNotFoundError(message)
    # Slow to import, and not needed to encode.
    from transformers import AutoTokenizer, PreTrainedConfig

    options: dict[str, Any] = {}
    if model_type in _TOKENIZER_TYPES:
        options["tokenizer_type"] = _TOKENIZER_TYPES[model_type]
    elif not (folder / "config.json").is_file():
        options["config"] = PreTrainedConfig()
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except ImportError:  # names the package to install
        raise
    except Exception as error:  # of many kinds: JSON, missing keys, the Rust library's own
        raise _unreadable("tokenizer", folder, error) from error


def _unreadable(what: str, folder: Path, error: Exception) -> ValueError:
    if "trust_remote_code" in str(error):
        reason = (
            "it asks for code of its own (auto_map), which is never run here. If one of the "
            "classes of transformers does the same, name that one in the file instead"
        )
        return ValueError(f"the {what} in {folder} cannot be used: {reason}")
    return ValueError(f"the {what} in {folder} cannot be read: {error}")


def _open_clip_tokenizer(folder: Path) -> str:
    text = read_json(folder / "open_clip_config.json", dict).get("model_cfg", {}).get("text_cfg")
    named = text.get("hf_tokenizer_name") if isinstance(text, dict) else None
    return named or "openai/clip-vit-base-patch32"


def _processor_transform(
    folder: Path, channels: int, names: Sequence[str]
) -> Callable[[Any], dict[str, np.ndarray]]:
    if not any((folder / name).is_file() for name in IMAGE_FILES):
        raise FileNotFoundError(
            f"{folder} has no {IMAGE_FILES[0]}, which says how images are resized and normalised. "
            "Copy it from the checkpoint's repository"
        )
    # Slow to import, and not needed to encode.
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except ImportError:  # names the package to install
        raise
    except Exception as error:  # of many kinds: JSON, unknown classes, wrong options
        raise _unreadable("image processor", folder, error) from error
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


def _open_clip_transform(
    settings: Any, size: tuple[int, int], path: Path
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return open_clip's evaluation transform, which is torchvision's on PIL images."""
    from PIL import Image

    if not isinstance(settings, dict):
        raise ValueError(f"{path}: preprocess_cfg must be an object; it is {settings!r}")
    mode = settings.get("resize_mode") or "shortest"
    interpolation = settings.get("interpolation") or "bicubic"
    problems = [
        f"{key} = {settings[key]!r} is not known"
        for key in settings
        if key not in ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    ]
    if mode not in ("shortest", "squash") or (mode == "shortest" and size[0] != size[1]):
        problems.append(f"resize_mode = {mode!r} is not supported for images of {size}")
    if interpolation not in ("bicubic", "bilinear"):
        problems.append(f"interpolation = {interpolation!r} is not supported")
    if settings.get("mode", "RGB") != "RGB":
        problems.append(f"mode = {settings['mode']!r} is not supported")
    try:
        mean, std = (
            np.broadcast_to(np.array(settings.get(key) or usual, np.float32), 3)[:, None, None]
            for key, usual in (("mean", _CLIP_MEAN), ("std", _CLIP_STD))
        )
    except (ValueError, TypeError):
        problems.append("mean and std must be lists of three numbers")
    if problems:
        raise ValueError(f"{path}: preprocess_cfg: {'; '.join(problems)}")
    resample = getattr(Image.Resampling, interpolation.upper())

    def transform(picture: Any) -> dict[str, np.ndarray]:
        picture = _resized_and_cropped(picture, size, size, resample, squash=mode == "squash")
        return {"pixel_values": np.ascontiguousarray((_unit_range(picture) - mean) / std)}

    return transform


def _resized_and_cropped(
    picture: Any, scale: tuple[int, int], size: tuple[int, int], resample: Any, *, squash: bool
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


#: What timm's transform for evaluation reads in ``pretrained_cfg``.
_TIMM_SETTINGS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _timm_transform(
    settings: Mapping[str, Any], channels: int, size: tuple[int, int], path: Path
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return timm's transform for evaluation.

    Args:
        settings: `_TIMM_SETTINGS`.
        channels: of the model.
        size: of the images that the model is made for; ``input_size`` is preferred, unless the
            model takes no other.
        path: for messages.
    """
    from PIL import Image

    interpolation = settings.get("interpolation") or "bicubic"
    mode = settings.get("crop_mode") or "center"
    fraction = settings.get("crop_pct") or 0.875
    if not settings.get("fixed_input_size"):
        _, *(height, width) = settings.get("input_size") or (channels, *size)  # as it was parsed
        size = (height, width)
    problems = []
    if interpolation not in ("bicubic", "bilinear"):
        problems.append(f"interpolation = {interpolation!r} is not supported")
    if mode not in ("center", "squash") or (mode == "center" and size[0] != size[1]):
        problems.append(f"crop_mode = {mode!r} is not supported for images of {size}")
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        problems.append(f"crop_pct must be above 0 and at most 1; it is {fraction!r}")
    try:
        mean, std = (
            np.broadcast_to(np.array(settings.get(key) or usual, np.float32), channels)
            for key, usual in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD))
        )
    except (ValueError, TypeError):
        problems.append(f"mean and std must be lists of {channels} numbers")
    if problems:
        raise ValueError(f"{path}: pretrained_cfg: {'; '.join(problems)}")
    scale = (math.floor(size[0] / fraction), math.floor(size[1] / fraction))
    resample = getattr(Image.Resampling, interpolation.upper())

    def transform(picture: Any) -> dict[str, np.ndarray]:
        picture = _resized_and_cropped(picture, scale, size, resample, squash=mode == "squash")
        pixels = (_unit_range(picture) - mean[:, None, None]) / std[:, None, None]
        return {"pixel_values": np.ascontiguousarray(pixels)}

    return transform


#: Shorter edge before the crop.
_BIOVIL_SIZE = 512


def _biovil_transform(size: tuple[int, int]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return the transform of hi-ml-multimodal: grey values from 0 to 1, in three channels.

    The darkest value becomes black and the brightest white before the image is resized.
    """
    from PIL import Image

    def transform(picture: Any) -> dict[str, np.ndarray]:
        values = np.asarray(picture, np.float64)
        values = values - values.min()
        values = values / (values.max() or 1) * 255
        picture = Image.fromarray(values.astype(np.uint8)).convert("L")
        scale = (_BIOVIL_SIZE, _BIOVIL_SIZE)
        picture = _resized_and_cropped(
            picture, scale, size, Image.Resampling.BILINEAR, squash=False
        )
        return {"pixel_values": np.repeat(_unit_range(picture), 3, axis=0)}

    return transform


def _outline(
    transform: Callable[[Any], dict[str, np.ndarray]],
    channels: int,
    values: int | None,
    folder: Path,
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shapes and dtypes that two blank images of other proportions both get.

    Args:
        transform: the preprocessing.
        channels: of the images.
        values: of each patch, if images come as patches.
        folder: for messages.
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
