"""Pictures that Pillow reads, by one rule for `data.read_pixels` and the encoders."""

from typing import Any

import numpy as np

#: Formats whose decoders only decode (that of EPS runs a program).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")


class PictureError(ValueError):
    """A picture cannot be used; the message goes on after the name of the file."""


def read_picture(source: Any) -> tuple[Any, int]:
    """Read one picture, turned as its EXIF orientation says.

    Transparent pixels are blended with black. Palettes and CMYK become RGB, 1 bit becomes 8, colour
    profiles are ignored.

    Args:
        source: an open file or a Pillow image, which stays as it is.

    Returns:
        A Pillow image, "L" or "RGB", and 255; or of a grey picture of more than 8 bits its uint16
        array ``[rows, columns]`` and the value of white, see `white_of`.

    Raises:
        PictureError: if it is broken, of another format, has several frames or values of unknown
            range.
    """
    from PIL import Image, ImageOps

    try:
        given = isinstance(source, Image.Image)
        picture: Any = source if given else Image.open(source, formats=FORMATS)
        frames = getattr(picture, "n_frames", 1)
        # The further ones of an MPO are what phones put behind a JPEG: a preview, a map of depth.
        if frames > 1 and picture.format != "MPO":
            raise PictureError(f"has {frames} frames, and one is expected: extract a frame")
        decoding = picture.tile[0] if getattr(picture, "tile", ()) else None
        picture.load()
        bits, cut = _bits(picture, decoding), _is_cut(picture, decoding)
        # Pillow heeds that a TIFF counts from white only in pictures of 8 bits.
        inverted = picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == 0
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"is too large: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except Image.UnidentifiedImageError:
        raise PictureError(
            f"cannot be read as an image; formats are {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # of many kinds: each decoder has its own
        raise PictureError(f"is a broken image: {error}") from error
    if picture.mode == "F":
        raise PictureError(
            "has floating-point values, whose range is unknown; scale them to 0..255 and convert "
            "to 8 bits"
        )
    if picture.mode.startswith("I"):
        return _deep(picture, bits, inverted)
    try:
        eight = _opaque(picture)
    except ValueError as error:
        raise PictureError(f"has the mode {picture.mode}: {error}") from error
    if cut and np.asarray(eight).max(initial=0) < 128:
        raise PictureError(
            "has colours of 16 bits, of which Pillow keeps the upper 8, but uses fewer bits: scale "
            "them to 0..255 and convert to 8 bits"
        )
    return eight, 255


def white_of(values: np.ndarray) -> int:
    """The value of white in unsigned integers of more than 8 bits, which few files state.

    It is the largest number of as many bits as the largest value has, 8 at least: 12-bit values in
    a file of 16 bits are not nearly black, and no picture is more than twice as bright as meant.
    """
    return 2 ** max(8, int(values.max(initial=0)).bit_length()) - 1


#: Tags of EXIF and TIFF.
_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274


def _bits(picture: Any, decoding: Any) -> int | None:
    """The number of bits that are used, where a file tells."""
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(_BITS, (16,))[0]
        return bits if bits < 16 else None
    # Pillow scales PNM to 16 bits.
    scaled = decoding is not None and decoding[0].startswith("ppm") and decoding[3][-1] != 65535
    return 16 if scaled else None


def _is_cut(picture: Any, decoding: Any) -> bool:
    """Whether colours of 16 bits were cut to 8."""
    if decoding is None or picture.format not in ("PNG", "TIFF", "PPM"):
        return False
    words = decoding[3] if isinstance(decoding[3], tuple) else (decoding[3],)
    return any(word == 65535 or ";16" in str(word) for word in words)


def _deep(picture: Any, bits: int | None, inverted: bool) -> tuple[np.ndarray, int]:
    values = np.asarray(picture)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise PictureError(
            f"has the values {values.min()} to {values.max()}; scale them to 0..65535"
        )
    hidden = values == picture.info.get("transparency", -1)
    values = np.where(hidden, 0, values).astype(np.uint16)
    white = white_of(values) if bits is None else 2**bits - 1
    return np.where(hidden, 0, white - values) if inverted else values, white


def _opaque(picture: Any) -> Any:
    """A Pillow image as "L" or "RGB", transparent pixels blended with black."""
    from PIL import Image

    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(black, picture)
    return picture if picture.mode == mode else picture.convert(mode)
