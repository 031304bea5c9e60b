"""Does `read_pixels` show the sample files of pydicom as pydicom's own functions do?

Each file of the folders is read with its window or VOI LUT, and with `window=None`. The reference
is `pixel_array`, `apply_modality_lut`, `apply_voi_lut` and `apply_color_lut`, in 0..1 by the range
of what they return, 0 in the padding, inverted if MONOCHROME1. "held" is at most 2e-6 from it.

Examples:
    python benchmarks/dicom_files.py  # the files in the package pydicom
    python benchmarks/dicom_files.py pydicom-data --docs docs/dicom-files.md  # others, too
"""

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from printing import markdown, write_page

from semalign_jax.data import PixelError, read_pixels

BOUND = 2e-6


class Found(NamedTuple):
    """Decodings of the files of one folder."""

    files: str
    decodings: int
    held: int
    differs: int
    refused: int
    no_reference: int


class Reason(NamedTuple):
    """Why files are refused, or what is shown that pydicom does not show."""

    decodings: int
    outcome: str
    why: str
    example: str


def reference(path: Path, windowed: bool) -> np.ndarray:
    """0..1 by pydicom."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ImplicitVRLittleEndian

    header = dcmread(path, force=True)  # without preamble
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    stored = pixel_array(header)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        big = header.original_encoding[1] is False
        if big and "RedPaletteColorLookupTableData" in header:  # pydicom reads it as little-endian
            for colour in ("Red", "Green", "Blue"):
                data = header[f"{colour}PaletteColorLookupTableData"]
                data.value = np.frombuffer(data.value, ">u2").astype("<u2").tobytes()
        colours = apply_color_lut(stored, header)[..., :3]
        return colours / (2 ** header.RedPaletteColorLookupTableDescriptor[2] - 1)
    if header.SamplesPerPixel > 1:
        return stored / (2**header.BitsStored - 1)
    values = apply_modality_lut(stored, header)
    signed = header.PixelRepresentation == 1
    ends = np.array([-1, 1] if signed else [0, 2]) * 2 ** (header.BitsStored - 1) - [0, 1]
    limits = apply_modality_lut(ends, header)
    if "ModalityLUTSequence" in header:
        limits = np.array([0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1])
    if windowed and header.get("VOILUTSequence"):
        values = apply_voi_lut(values, header)
        limits = np.array([0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1])
    elif windowed and header.get("WindowCenter") is not None:
        with np.errstate(over="ignore"):
            values, limits = (apply_voi_lut(v, header) for v in (values, np.array([-1e9, 1e9])))
    unit = (values.astype(float) - limits.min()) / (limits.max() - limits.min())
    unit = 1 - unit if header.PhotometricInterpretation == "MONOCHROME1" else unit
    if header.get("PixelPaddingValue") is not None:
        pads = header.PixelPaddingValue, header.get("PixelPaddingRangeLimit")
        pads = sorted(pad for pad in pads if pad is not None)
        unit[(pads[0] <= stored) & (stored <= pads[-1])] = 0
    return unit


def compare(path: Path, windowed: bool) -> tuple[str, str]:
    """The outcome and its reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = read_pixels(path, window=0 if windowed else None, dtype=np.float32)
        except PixelError as error:
            why = str(error).removeprefix(f"{path}: ")
            return "refused", re.sub(r"\d+", "N", why.partition(";")[0])[:110]
        try:
            theirs = reference(path, windowed)
        except Exception as error:  # of many kinds
            return "no_reference", " ".join(f"{type(error).__name__}: {error}".split())[:110]
    if ours.shape != theirs.shape:
        return "differs", f"{list(ours.shape)} instead of {list(theirs.shape)}"
    difference = float(np.abs(ours - theirs).max())
    return ("held", "") if difference <= BOUND else ("differs", f"by up to {difference:.2g}")


def dicom_files(folder: Path) -> list[Path]:
    """All files that are DICOM by name or by their first bytes."""

    def is_one(path: Path) -> bool:
        with path.open("rb") as file:
            return path.suffix == ".dcm" or file.read(132)[128:] == b"DICM"

    return sorted(path for path in folder.rglob("*") if path.is_file() and is_one(path))


def tables(folders: Sequence[tuple[str, Path]]) -> Iterator[list[Any]]:
    """The table of outcomes, and that of reasons."""
    rows: list[Any] = []
    reasons: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for name, folder in folders:
        files, outcomes = dicom_files(folder), Counter()
        for path in files:
            for windowed in (True, False):
                outcome, why = compare(path, windowed)
                outcomes[outcome] += 1
                if why:
                    reasons[outcome, why] += 1
                    examples.setdefault((outcome, why), path.name)
        counts = [outcomes[key] for key in Found._fields[2:]]
        rows.append(Found(f"{len(files)} of {name}", sum(counts), *counts))
    yield rows
    rows = [Reason(count, *key, examples[key]) for key, count in reasons.items()]
    yield sorted(rows, key=lambda row: (row.outcome, -row.decodings, row.why))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and write the page if asked; 1 if a decoding differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="read the files in these, too")
    parser.add_argument("--docs", type=Path, help="write the tables to this page")
    options = parser.parse_args(arguments)
    spec = find_spec("pydicom")
    assert spec is not None
    assert spec.origin is not None
    own = Path(spec.origin).parent / "data"
    folders = [("pydicom", own), *((folder.name, folder) for folder in options.folders)]
    found, reasons = tables(folders)
    held, differs = (sum(getattr(row, key) for row in found) for key in ("held", "differs"))
    text = f"{held} of {held + differs} decodings are those of pydicom.\n\n{markdown(found)}\n" + (
        f"\n{markdown(reasons)}\n" if reasons else ""
    )
    print(text)
    if options.docs is not None:
        command = " ".join(["python benchmarks/dicom_files.py", *(n for n, _ in folders[1:])])
        head = (
            f"Printed by `{command} --docs {options.docs}`, where\n`pydicom-data` is the folder of "
            "the wheel of that name on PyPI, unpacked. Each file counts twice: with its\nwindow or "
            "VOI LUT, and without. Refused files are mostly no images, or films."
        )
        write_page(options.docs, "DICOM files of others", f"{head}\n\n{text}")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
