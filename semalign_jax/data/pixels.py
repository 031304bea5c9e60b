"""Pixels of DICOM files and pictures, the way a viewer shows them.

The grey-scale steps are those of DICOM PS3.3: modality LUT (C.11.1), VOI LUT or window (C.11.2),
then the inversion of MONOCHROME1 (C.7.6.3.1.2). Needs the extra "clinical".
"""

import multiprocessing
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .._core import checks
from .._core.files import as_path
from .._core.pictures import PictureError, read_picture

if TYPE_CHECKING:
    from pydicom import Dataset

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
#: Only these elements are read, so that no message can hold a patient's name or number.
_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
)
# The first import of pydicom's decoders is not safe from several threads at once.
_IMPORTING = threading.Lock()


class PixelError(ValueError):
    """A file has no pixels that can be read; the message names the file and says why."""


def read_pixels(
    path: str | os.PathLike,
    *,
    window: int | None = 0,
    prefer_lut: bool = True,
    scale: Literal["bits", "minmax"] = "bits",
    dtype: Any = np.uint8,
) -> np.ndarray:
    """Pixels of one DICOM file or picture; what it is shows in its first bytes.

    Grey-scale DICOM: modality LUT or rescale, then VOI LUT or window (LINEAR, LINEAR_EXACT or
    SIGMOID), then inversion if MONOCHROME1; so low is black in every result. All steps are
    computed in float64, whatever the stored bits. Pixels in the padding range become 0, black.
    Colour: YBR is converted to RGB, palettes are looked up, and no window is applied.

    What breaks the standard and is still clear is read: elements of a sign that the pixels do not
    have, a DICOM file without preamble (with a warning), a linear window narrower than 1 (as
    LINEAR_EXACT) and a window of width 0 (as none), both with a warning.

    Pictures are PNG, JPEG, TIFF, BMP and PNM, read as `encoders.ImagePreprocessor` reads them:
    palettes and CMYK become RGB, transparent pixels are blended with black, the EXIF orientation
    is applied. White in grey values of more than 8 bits is the largest number of as many bits as
    the largest value has, 8 at least, unless the file says how many are used.

    Args:
        path: the file.
        window: which of several windows, or items of the VOI LUT sequence, to apply; None for
            none of them.
        prefer_lut: whether the VOI LUT sequence is taken where a file has windows, too.
        scale: what becomes black and white where no window applies: "bits" is the range of the
            stored bits (after rescale), which leaves 8-bit images as they are and makes equal
            values equal between DICOM files; "minmax" is the range of this image, padding
            excluded, for files that use a small part of their bits. A constant image is then 0.
        dtype: `numpy.uint8`, 0 to 255, rounded; or `numpy.float32`, 0 to 1, which keeps the
            order of 16-bit values (float16 would not).

    Returns:
        [rows, columns], or [rows, columns, 3] for colour.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the extra "clinical" is not installed.
        PixelError: if the file is broken, has several frames, no or unusual pixels, or no
            window with this index.
        TypeError: if `window` is not an integer or None.
        ValueError: for another `scale` or `dtype`.
    """
    path = as_path(path)
    checks.option("scale", scale, ("bits", "minmax"))
    checks.flag("prefer_lut", prefer_lut)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise TypeError(f"window must be an index or None; got {window!r}")
    kind = np.dtype(dtype)
    if kind not in (np.uint8, np.float32):
        raise ValueError(f"dtype must be numpy.uint8 or numpy.float32; got {kind}")
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(132)
        file.seek(0)
        shade = _to_uint8 if kind == np.uint8 else _to_float32
        try:
            if is_dicom(start):
                return _read_dicom(path, window, prefer_lut, scale, shade)
            return _read_image(file, scale, shade)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # decoders raise many kinds on broken files
            why = " ".join(str(error).split())
            if isinstance(error, PictureError):
                why = why.replace("cannot be read as an image", "neither a DICOM nor an image file")
            elif not isinstance(error, PixelError):
                # Values of elements are quoted: in a damaged header they can be those of others.
                why = re.sub(r"(['\"]).*\1", "'...'", why)
                why = f"cannot be decoded: {type(error).__name__}: {why}"
            raise PixelError(f"{path}: {why}") from None


def is_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM file.

    Some have no preamble: they begin with an element of group 2 or 8, which is then a short one or
    has one of the usual types.
    """
    if start[128:132] == b"DICM":
        return True
    order: Literal["little", "big"] = "big" if start[:1] == b"\0" else "little"
    group, number = (int.from_bytes(start[at : at + 2], order) for at in (0, 2))
    if len(start) < 132 or group not in (2, 8) or number > 0x2000:
        return False
    typed = start[4:6] in (b"UL", b"UI", b"CS", b"SH", b"LO", b"DA", b"OB")
    return typed or int.from_bytes(start[4:8], order) <= 256


_Function = Callable[[np.ndarray], np.ndarray]
#: Pixels that are looked up at a time.
_BLOCK = 1 << 16


def _to_uint8(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * 255).astype(np.uint8)


def _to_float32(unit: np.ndarray) -> np.ndarray:
    return unit.astype(np.float32)


def _require(module: str) -> None:
    with _IMPORTING:
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error.name} is needed to read these pixels: pip install 'semalign_jax[clinical]'"
            ) from None


def _pointwise(values: np.ndarray, function: _Function) -> np.ndarray:
    """`function` of integer values, computed once for each value that may occur."""
    low, high = int(values.min()), int(values.max())
    if high - low >= max(values.size, 2**16):
        return function(values)
    # Indices of the narrow unsigned types need no copy.
    index = values if values.dtype in (np.uint8, np.uint16) else values.astype(np.int64) - low
    start = 0 if index is values else low
    table = function(np.arange(start, high + 1))
    index = index.reshape(-1)
    found = np.empty(values.size, table.dtype)
    for first in range(0, found.size, _BLOCK):  # NumPy makes 64-bit indices: few at a time
        block = slice(first, first + _BLOCK)
        np.take(table, index[block], out=found[block], mode="clip")
    return found.reshape(values.shape)


def _unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..1 and clip; all zeros if the range is empty."""
    if high <= low:
        return np.zeros(values.shape)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


# Pictures.


def _read_image(file: Any, scale: str, shade: _Function) -> np.ndarray:
    _require("PIL.Image")
    picture, white = read_picture(file)
    values = np.array(picture)
    if scale == "bits" and white == 255 and shade is _to_uint8 and values.dtype == np.uint8:
        return values
    low, high = (0, white) if scale == "bits" else (int(values.min()), int(values.max()))
    return _pointwise(values, lambda v: shade(_unit(v, low, high)))


# DICOM.


def _read_dicom(
    path: Path, window: int | None, prefer_lut: bool, scale: str, shade: _Function
) -> np.ndarray:
    _require("pydicom.pixels")
    from pydicom import dcmread

    header = dcmread(path, force=True, specific_tags=list(_TAGS))
    if header.preamble is None or "TransferSyntaxUID" not in header.file_meta:
        _guess_syntax(header, path)
    if "PixelData" not in header:
        raise PixelError("has no Pixel Data of integers: not an image, or one of floats")
    for name in ("PhotometricInterpretation", "BitsStored", "PixelRepresentation"):
        if header.get(name) is None:
            raise PixelError(f"has no {name}, which images need")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise PixelError(f"has {frames} frames, and one image is expected: extract a frame first")
    photometric = header.PhotometricInterpretation
    values, white = _values(header), 2 ** int(header.BitsStored) - 1
    if photometric == "PALETTE COLOR":
        values, white = _palette(values, header)
    if values.ndim == 3:
        low, high = (0, white) if scale == "bits" else (int(values.min()), int(values.max()))
        return _pointwise(values, lambda v: shade(_unit(v, low, high)))
    if photometric not in _MONOCHROME:
        raise PixelError(f"has the photometric interpretation {photometric}, which is not handled")
    padding = _padding(values, header)
    voi = _voi_choice(header, window, prefer_lut, path)
    if scale == "minmax" and not padding.all():
        # A modality LUT need not be monotonic: map every value that occurs, then look.
        used = _modality(np.unique(values[~padding]), header)
        limits = float(used.min()), float(used.max())
    else:
        limits = _modality_limits(header)

    def show(stored: np.ndarray) -> np.ndarray:
        modality = _modality(stored, header)
        unit = _voi(modality, header, voi)
        if unit is None:
            unit = _unit(modality, *limits)
        return shade(1 - unit if photometric == "MONOCHROME1" else unit)

    pixels = _pointwise(values, show)
    pixels[padding] = 0
    return pixels


def _values(header: "Dataset") -> np.ndarray:
    """Stored values; YBR comes as RGB, any planes as [rows, columns, 3].

    pydicom clears the bits above the stored ones, which it takes for the lowest. In old files that
    are not compressed they may lie higher: HighBit is the place of the uppermost.
    """
    from pydicom.pixels.utils import pixel_array

    stored, used = int(header.BitsStored), int(header.get("HighBit") or 0) + 1
    compressed = header.file_meta.TransferSyntaxUID.is_compressed
    if compressed or not stored < used <= int(header.BitsAllocated):
        return pixel_array(header)
    header.BitsStored = used
    values = pixel_array(header) >> (used - stored)
    header.BitsStored = stored
    return values


def _stored_limits(header: "Dataset") -> tuple[int, int]:
    stored = int(header.BitsStored)
    if header.PixelRepresentation == 0:
        return 0, 2**stored - 1
    return -(2 ** (stored - 1)), 2 ** (stored - 1) - 1


def _guess_syntax(header: "Dataset", path: Path) -> None:
    """Give a file without preamble the transfer syntax that its elements look like."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    lack = 'preamble ("DICM")' if header.preamble is None else "transfer syntax"
    if "PixelData" not in header:
        raise PixelError(f"has no {lack}, and no image can be found without it")
    if "TransferSyntaxUID" not in header.file_meta:
        if header["PixelData"].is_undefined_length:
            raise PixelError(f"has no {lack} and does not say how its pixels are compressed")
        implicit, little = header.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    syntax = header.file_meta.TransferSyntaxUID.name
    warnings.warn(f"{path}: has no {lack}; it is read as {syntax}", stacklevel=4)


def _padding(values: np.ndarray, header: "Dataset") -> np.ndarray:
    """Pixels outside of the image (PS3.3 C.7.5.1.1.2): bool, of the shape of `values`.

    Limits may be written with the wrong sign, e.g. 63536 for -2000, where pixels are signed.
    """
    first = header.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = _stored_limits(header)
    turns = [sign * 2**bits for bits in (16, int(header.BitsAllocated)) for sign in (-1, 1)]

    def meant(value: int) -> int:
        return next((v for t in (0, *turns) if low <= (v := value + t) <= high), value)

    low, high = sorted(meant(int(v)) for v in (first, first if limit is None else limit))
    return (low <= values) & (values <= high)


_Range = tuple[float, float]


def _descriptor(descriptor: Any, limits: _Range) -> tuple[int, int, int]:
    """Number of entries of a LUT, the value of the first and the bits of an entry.

    All are 16 bits, the second is signed where input values can be negative (PS3.3 C.11.1.1,
    C.11.2.1.1, C.7.6.3.1.5). Some files write it with the other sign, e.g. 65534 for -2: what is
    not written as it should be is read so that the table covers more of the input, and what is, so
    that it covers any. The limits are those of the input.
    """
    count, written, bits = (int(part) for part in descriptor)
    count = count % 2**16 or 2**16
    low, high = limits

    def covered(first: int) -> float:
        return min(high, first + count - 1) - max(low, first) + 1

    unsigned = written % 2**16
    signed = unsigned - 2**16 if unsigned >= 2**15 else unsigned
    usual, other = (signed, unsigned) if low < 0 else (unsigned, signed)
    if written == usual:
        first = other if covered(usual) <= 0 < covered(other) else usual
    else:
        first = other if covered(other) >= covered(usual) else usual
    if not 1 <= bits <= 16:
        raise PixelError(f"has a LUT of {bits} bits, which must be 1 to 16")
    return count, first, bits


def _look_up(
    values: np.ndarray, descriptor: Any, data: Any, header: "Dataset", limits: _Range
) -> np.ndarray:
    """Values through a LUT (PS3.3 C.11.1.1.1); its first and last entry hold outside of it.

    pydicom's own look-ups count in the type of the table or of the pixels, which wraps around,
    e.g. in a table of 4096 entries of 8 bits.
    """
    count, first, bits = _descriptor(descriptor, limits)
    if isinstance(data, bytes):
        # Read with the byte order of the file; entries of 8 bits may lie one or two to a word.
        wide = "<u2" if header.original_encoding[1] is not False else ">u2"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else wide)
    table = np.atleast_1d(data)[:count].astype(np.int64) % 2**16  # unsigned, however written
    if table.size < count:
        raise PixelError(f"has a LUT of {table.size} entries, but its descriptor says {count}")
    if table.max() >= 2**bits:
        raise PixelError(f"has a LUT with entries up to {table.max()}, more than its {bits} bits")
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)]


def _palette(values: np.ndarray, header: "Dataset") -> tuple[np.ndarray, int]:
    """Colours [rows, columns, 3] and the value of white."""
    from pydicom.pixels.processing import apply_color_lut

    descriptor, limits = header.RedPaletteColorLookupTableDescriptor, _stored_limits(header)
    count, first, bits = _descriptor(descriptor, limits)
    if "RedPaletteColorLookupTableData" in header:
        planes = [
            _look_up(
                values,
                header[f"{colour}PaletteColorLookupTableDescriptor"].value,
                header[f"{colour}PaletteColorLookupTableData"].value,
                header,
                limits,
            )
            for colour in ("Red", "Green", "Blue")
        ]
        colours = np.stack(planes, axis=-1)
    else:  # segmented
        entries = np.clip(values.astype(np.int64) - first, 0, count - 1) + int(descriptor[1])
        colours = apply_color_lut(entries, header)[..., :3]
    return colours, 2**bits - 1


def _modality(stored: np.ndarray, header: "Dataset") -> np.ndarray:
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        limits = _stored_limits(header)
        return _look_up(stored, item.LUTDescriptor, item.LUTData, header, limits)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    if not slope or not np.isfinite([float(slope), float(intercept)]).all():
        raise PixelError(f"has the rescale slope {slope} and intercept {intercept}")
    return stored.astype(np.float64) * float(slope) + float(intercept)


def _modality_limits(header: "Dataset") -> _Range:
    if header.get("ModalityLUTSequence"):
        descriptor = header.ModalityLUTSequence[0].LUTDescriptor
        return 0, 2 ** _descriptor(descriptor, _stored_limits(header))[2] - 1
    ends = _modality(np.array(_stored_limits(header)), header)
    return float(ends.min()), float(ends.max())


class _Window(NamedTuple):
    center: float
    width: float
    function: str


def _voi_choice(
    header: "Dataset", window: int | None, prefer_lut: bool, path: Path
) -> "Dataset | _Window | None":
    """The VOI LUT or window to apply, or None if the file has none."""
    if window is None:
        return None
    luts = header.get("VOILUTSequence") or ()
    centers, widths = (_floats(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if len(centers) != len(widths):
        raise PixelError(f"has {len(centers)} window centers but {len(widths)} window widths")
    if not luts and not centers:
        return None
    use_lut = bool(luts) and (prefer_lut or not centers)
    count = len(luts) if use_lut else len(centers)
    if not 0 <= window < count:
        raise PixelError(f"has no window {window}: its {count} windows count from 0")
    if use_lut:
        return luts[window]
    width = widths[window]
    if not np.isfinite([centers[window], width]).all():
        raise PixelError(f"has the window center {centers[window]} and width {width}")
    function = (header.get("VOILUTFunction") or "LINEAR").upper()
    if width == 0:
        warnings.warn(f"{path}: has the window width 0; it is read as if without", stacklevel=4)
        return None
    if function == "LINEAR" and 0 < width < 1:
        function = "LINEAR_EXACT"
        warnings.warn(
            f"{path}: has the window width {width}, which LINEAR does not allow; it is read as "
            "LINEAR_EXACT",
            stacklevel=4,
        )
    return _Window(centers[window], width, function)


def _voi(
    values: np.ndarray, header: "Dataset", voi: "Dataset | _Window | None"
) -> np.ndarray | None:
    """Values in 0..1 through the VOI LUT or window, or None without one."""
    if voi is None:
        return None
    if isinstance(voi, _Window):
        return _window_values(values, *voi)
    limits = _modality_limits(header)
    white = 2 ** _descriptor(voi.LUTDescriptor, limits)[2] - 1
    return _unit(_look_up(values, voi.LUTDescriptor, voi.LUTData, header, limits), 0, white)


def _floats(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(part) for part in (value if hasattr(value, "__len__") else (value,))]


def _window_values(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Modality values in 0..1 through a VOI window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    x = values.astype(np.float64)
    function = function.upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        raise PixelError(f"has the window width {width}, which {function} does not allow")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
        if width == 0:
            return (x > center).astype(np.float64)
    elif function == "SIGMOID":
        with np.errstate(over="ignore"):  # exp of a large number is infinity, which gives 0
            return 1 / (1 + np.exp(-4 * (x - center) / width))
    elif function != "LINEAR_EXACT":
        raise PixelError(f"has the VOI LUT function {function}, which is not handled")
    return np.clip((x - center) / width + 0.5, 0, 1)


class PixelReader:
    """Iterates over (path, pixels) in order while workers decode ahead; see `read_many`.

    Attributes:
        skipped: (path, why) of the files that could not be read so far.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike],
        workers: int,
        processes: bool,
        skip: bool,
        progress: Callable[[int], Any] | None,
        options: dict[str, Any],
    ) -> None:
        self.skipped: list[tuple[str, str]] = []
        self._paths = iter(paths)
        self._workers = workers
        self._processes = processes
        self._skip = skip
        self._progress = progress
        self._options = options

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        self.skipped = []
        waiting: deque[tuple[str, Future]] = deque()
        done = 0
        if self._processes:  # spawned: JAX has threads, which a fork would break
            pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
        else:
            pool = ThreadPoolExecutor(self._workers, thread_name_prefix="read_many")
        try:
            for path in self._paths:
                waiting.append((os.fspath(path), pool.submit(read_pixels, path, **self._options)))
                # A bounded lead: memory does not grow if the consumer is slow.
                if len(waiting) > 2 * self._workers:
                    yield from self._finish(*waiting.popleft())
                    done = self._report(done)
            while waiting:
                yield from self._finish(*waiting.popleft())
                done = self._report(done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if self.skipped:
            reasons = [why for _, why in self.skipped]
            warnings.warn(
                f"{len(reasons)} of {done} files were skipped: {checks.first_few(reasons)}",
                stacklevel=2,
            )

    def _finish(self, path: str, future: Future) -> Iterator[tuple[str, np.ndarray]]:
        try:
            pixels = future.result()
        except (PixelError, OSError) as error:
            if not self._skip:
                raise
            self.skipped.append((path, str(error)))
        else:
            yield path, pixels

    def _report(self, done: int) -> int:
        if self._progress is not None:
            self._progress(done + 1)
        return done + 1


def read_many(
    paths: Iterable[str | os.PathLike],
    *,
    workers: int | None = None,
    processes: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> PixelReader:
    """Read many files in parallel, in order, with bounded memory.

    Args:
        paths: the files, e.g. `data.images`.
        workers: how many decode at a time; None for the number of processors, at most 16.
        processes: whether the workers are processes, not threads. Threads are enough for PNG,
            JPEG and uncompressed DICOM; decoders of compressed DICOM hold Python's lock, so
            threads do not speed them up. Processes take seconds to start, and the calling
            script needs `if __name__ == "__main__":`.
        on_error: "raise" stops at the first broken file; "skip" leaves broken files out, lists
            them in `skipped`, and in one warning at the end.
        progress: called in the consumer's thread with the number of files done so far.
        options: of `read_pixels`.

    Returns:
        an iterable, once, of (path, pixels).

    Raises:
        PixelError, OSError: while iterating, with the name of the broken file.
        TypeError: if `workers` is not an int, or `paths` is one path.
        ValueError: if `workers` < 1 or for another `on_error`.
    """
    checks.option("on_error", on_error, ("raise", "skip"))
    if isinstance(paths, str | os.PathLike):  # a str has characters, which would be the files
        raise TypeError(f"paths must be many files; got one, {str(paths)!r}: put it in a list")
    count = min(os.cpu_count() or 1, 16) if workers is None else workers
    checks.positive_int("workers", count)
    processes = checks.flag("processes", processes)
    return PixelReader(paths, count, processes, on_error == "skip", progress, options)
