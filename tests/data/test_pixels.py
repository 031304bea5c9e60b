"""`read_pixels` against pydicom's reference functions, on written and on pydicom's own files."""

import io
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from semalign_jax.data import PixelError, read_many, read_pixels

from .trees import dicom, write_dicom, write_image

GREY8 = np.array([[0, 100], [200, 255]], np.uint8)
RNG = np.random.default_rng(0)
GREY12 = RNG.integers(0, 4096, (7, 5)).astype(np.uint16)
SIGNED = RNG.integers(-2048, 2048, (7, 5)).astype(np.int16)
COLOUR = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)


def bundled(name):
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return path


def lut(entries, first=0, bits=16, kind="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", kind, [len(entries), first, bits])
    item.add_new("LUTData", kind, [int(e) for e in entries])
    return Sequence([item])


def reference(path, index=0, **options):
    """0..1 by pydicom: its output range is that of its own functions, given the extremes."""
    header = dcmread(path)
    values = apply_modality_lut(pixel_array(header), header)
    header_of_extremes = dcmread(path)
    limits = np.array([-1e9, 1e9])
    with np.errstate(over="ignore"):
        low, high = apply_voi_lut(limits, header_of_extremes, index, **options)
    unit = (apply_voi_lut(values, header, index, **options) - low) / (high - low)
    return 1 - unit if header.PhotometricInterpretation == "MONOCHROME1" else unit


def test_monochrome1_is_inverted_once(tmp_path):
    for extra in ({}, {"PresentationLUTShape": "INVERSE"}):
        path = write_dicom(tmp_path / "a.dcm", GREY8, photometric="MONOCHROME1", **extra)
        np.testing.assert_array_equal(read_pixels(path), [[255, 155], [55, 0]])
    plain = write_dicom(tmp_path / "b.dcm", np.arange(256, dtype=np.uint8).reshape(16, 16))
    np.testing.assert_array_equal(read_pixels(plain), np.arange(256).reshape(16, 16))
    assert read_pixels(plain).dtype == np.uint8


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("values", [GREY12, SIGNED], ids=["unsigned", "signed"])
@pytest.mark.parametrize("rescale", [(1, 0), (2.5, -1024)])
def test_windows_are_those_of_pydicom(tmp_path, photometric, function, values, rescale):
    tags = {"WindowCenter": [1000, 50.5], "WindowWidth": [1500, 300]}
    if function is not None:
        tags["VOILUTFunction"] = function
    slope, intercept = rescale
    path = write_dicom(
        tmp_path / "a.dcm",
        values,
        photometric=photometric,
        stored=12,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        **tags,
    )
    for index in (0, 1):
        expected = reference(path, index)
        got = read_pixels(path, window=index, dtype=np.float32)
        np.testing.assert_allclose(got, expected, atol=2e-7)
        np.testing.assert_array_equal(read_pixels(path, window=index), np.rint(255 * expected))
    assert not np.array_equal(read_pixels(path), read_pixels(path, window=1))


def test_narrowest_linear_window_is_a_step(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY8, WindowCenter=100.5, WindowWidth=1)
    np.testing.assert_array_equal(read_pixels(path), [[0, 0], [255, 255]])
    np.testing.assert_array_equal(read_pixels(path), np.rint(255 * reference(path)))


def test_windows_narrower_than_the_standard_allows(tmp_path):
    """Of values that a rescale makes fractions."""
    tags = {"RescaleSlope": 0.001, "RescaleIntercept": 0, "WindowCenter": 0.15}
    path = write_dicom(tmp_path / "a.dcm", GREY8, **tags, WindowWidth=0.21)
    with pytest.warns(UserWarning, match=r"a\.dcm: has the window width 0\.21.* as LINEAR_EXACT"):
        got = read_pixels(path, dtype=np.float32)
    np.testing.assert_allclose(got, np.clip((GREY8 / 1000 - 0.15) / 0.21 + 0.5, 0, 1), atol=1e-6)
    exact = write_dicom(
        tmp_path / "b.dcm", GREY8, **tags, WindowWidth=0.21, VOILUTFunction="LINEAR_EXACT"
    )
    np.testing.assert_array_equal(read_pixels(exact, dtype=np.float32), got)
    for function in ("LINEAR", "SIGMOID"):
        path = write_dicom(
            tmp_path / "c.dcm", GREY8, **tags, WindowWidth=0, VOILUTFunction=function
        )
        with pytest.warns(UserWarning, match=r"c\.dcm: has the window width 0; .* as if without"):
            np.testing.assert_array_equal(read_pixels(path), GREY8)


def without_preamble(path, header, **options):
    """Written as old scanners do: elements from the first byte on."""
    syntax = header.file_meta.TransferSyntaxUID
    del header.file_meta
    header.save_as(
        path,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=False,
        **options,
    )
    assert path.read_bytes()[128:132] != b"DICM"
    return path


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_files_without_preamble(tmp_path, syntax):
    values = GREY12.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    tags: dict[str, Any] = {"stored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    expected = read_pixels(write_dicom(tmp_path / "a.dcm", GREY12, **tags))
    path = without_preamble(tmp_path / "b.dcm", dicom(values, syntax=syntax, **tags))
    with pytest.warns(UserWarning, match=rf"b\.dcm: has no preamble .* read as {syntax.name}"):
        np.testing.assert_array_equal(read_pixels(path), expected)


def test_files_without_transfer_syntax(tmp_path):
    header = dicom(GREY8)
    del header.file_meta.TransferSyntaxUID
    path = tmp_path / "a.dcm"
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        write_file_meta_info(file, header.file_meta, enforce_standard=False)
        plain = without_preamble(tmp_path / "b.dcm", dicom(GREY8))
        file.write(plain.read_bytes())
    with pytest.warns(UserWarning, match=r"a\.dcm: has no transfer syntax; .* read as Explicit"):
        np.testing.assert_array_equal(read_pixels(path), GREY8)


def test_what_looks_like_dicom_without_preamble(tmp_path):
    path = tmp_path / "a.dcm"
    plain = without_preamble(path, dicom(GREY8)).read_bytes()
    path.write_bytes(plain[:200])
    with pytest.raises(PixelError, match=r"a\.dcm: has no preamble .* no image"):
        read_pixels(path)
    path.write_bytes(b"\x08\0" + bytes(range(1, 250)))
    with pytest.raises(PixelError, match=r"a\.dcm: neither a DICOM"):
        read_pixels(path)
    header = dicom(GREY8)
    header.compress(RLELossless)
    path = without_preamble(path, header)
    with pytest.raises(PixelError, match=r"a\.dcm: has no preamble .* pixels are compressed"):
        read_pixels(path)


def test_voi_lut_comes_before_windows_unless_told(tmp_path):
    table = np.linspace(0, 4095, 4096)[::-1].astype(int) // 2
    path = write_dicom(
        tmp_path / "a.dcm",
        GREY12,
        stored=12,
        photometric="MONOCHROME1",
        VOILUTSequence=lut(table, bits=12),
        WindowCenter=2000,
        WindowWidth=1000,
    )
    by_lut = 1 - table[GREY12] / 4095
    np.testing.assert_allclose(read_pixels(path, dtype=np.float32), by_lut, atol=1e-7)
    header = dcmread(path)
    np.testing.assert_array_equal(apply_voi_lut(pixel_array(header), header), table[GREY12])
    by_window = reference(path, prefer_lut=False)
    got = read_pixels(path, prefer_lut=False, dtype=np.float32)
    np.testing.assert_allclose(got, by_window, atol=2e-7)
    unwindowed = read_pixels(path, window=None, dtype=np.float32)
    np.testing.assert_allclose(unwindowed, 1 - GREY12 / 4095, atol=1e-7)


def test_voi_lut_of_eight_bits_does_not_wrap(tmp_path):
    table = np.arange(4096) // 16
    path = write_dicom(
        tmp_path / "a.dcm", GREY12, stored=12, VOILUTSequence=lut(table, first=8, bits=8)
    )
    expected = table[np.clip(GREY12.astype(int) - 8, 0, 4095)]
    np.testing.assert_array_equal(read_pixels(path), expected)


def test_voi_lut_after_rescale(tmp_path):
    table = np.arange(0, 1000, 10)
    path = write_dicom(
        tmp_path / "a.dcm",
        np.array([[0, 1], [50, 99]], np.uint16),
        RescaleSlope=1,
        RescaleIntercept=20,
        VOILUTSequence=lut(table, bits=10),
    )
    expected = np.rint(255 * table[[[20, 21], [70, 99]]] / 1023)
    np.testing.assert_array_equal(read_pixels(path), expected)


def test_modality_lut(tmp_path):
    table = np.arange(4096)[::-1] * 3
    path = write_dicom(
        tmp_path / "a.dcm", GREY12, stored=12, ModalityLUTSequence=lut(table, bits=16)
    )
    header = dcmread(path)
    expected = apply_modality_lut(pixel_array(header), header)
    np.testing.assert_array_equal(expected, table[GREY12])
    np.testing.assert_allclose(read_pixels(path, dtype=np.float32), expected / 65535, atol=1e-7)
    by_range = (expected - expected.min()) / np.ptp(expected)
    got = read_pixels(path, scale="minmax", dtype=np.float32)
    np.testing.assert_allclose(got, by_range, atol=1e-6)


def test_lut_data_in_bytes(tmp_path):
    table = np.arange(256, dtype="<u2")[::-1]
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", table.tobytes())
    path = write_dicom(tmp_path / "a.dcm", GREY8, VOILUTSequence=Sequence([item]))
    np.testing.assert_array_equal(read_pixels(path), 255 - GREY8)
    item["LUTData"].value = table.astype(np.uint8).tobytes()
    write_dicom(path, GREY8, VOILUTSequence=Sequence([item]))
    np.testing.assert_array_equal(read_pixels(path), 255 - GREY8)
    item["LUTData"].value = table[:4].tobytes()
    write_dicom(path, GREY8, VOILUTSequence=Sequence([item]))
    with pytest.raises(PixelError, match=r"a\.dcm: has a LUT of 8 entries.* says 256"):
        read_pixels(path)


#: Pixels, first value as written, as it is meant: with the sign of the pixels, or not.
SIGNS = [
    ([-3, -2, 0, 5], "i2", "US", 65534, -2),
    ([-3, -2, 0, 5], "i2", "SS", -2, -2),
    ([-3, -2, 0, 5], "i1", "US", 65534, -2),
    ([9, 10, 11, 13], "u2", "US", 10, 10),
    ([39999, 40000, 40001, 40003], "u2", "SS", 40000 - 2**16, 40000),
    ([65531, 65532, 65533, 65535], "u2", "SS", -4, 65532),
    ([0, 1, 2, 3], "u2", "SS", -2, -2),
    ([0, 1, 2, 3], "u1", "US", 65534, -2),
]
TABLE = np.array([0, 85, 170, 255])


@pytest.mark.parametrize(("values", "pixels", "kind", "written", "first"), SIGNS)
def test_first_value_of_a_lut_written_with_the_other_sign(
    tmp_path, values, pixels, kind, written, first
):
    values = np.array(values, pixels).reshape(2, 2)
    expected = TABLE[np.clip(values.astype(int) - first, 0, 3)]
    assert len(np.unique(expected)) > 1
    table = lut(TABLE, written, 8, kind)
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        path = write_dicom(tmp_path / "a.dcm", values, **{name: table})
        np.testing.assert_array_equal(read_pixels(path), expected)
    header = dicom(values, photometric="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        descriptor = [4, written, 8]
        header.add_new(f"{name}PaletteColorLookupTableDescriptor", kind, descriptor)
        segments = np.array([0, 4, *TABLE], np.uint8).tobytes()
        header.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", segments)
    header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_pixels(tmp_path / "b.dcm")[..., 1], expected)
    for name in ("Red", "Green", "Blue"):
        del header[f"Segmented{name}PaletteColorLookupTableData"]
        header.add_new(f"{name}PaletteColorLookupTableData", "OW", TABLE.astype("u1").tobytes())
    header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_pixels(tmp_path / "b.dcm")[..., 1], expected)


def test_lut_after_a_rescale_to_negative_values(tmp_path):
    """The sign is that of the rescaled values; in implicit VR it is read as that of the pixels."""
    values = np.array([[1021, 1022], [1024, 1029]], np.uint16)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        path = write_dicom(
            tmp_path / "a.dcm",
            values,
            syntax=syntax,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            VOILUTSequence=lut(TABLE, 65534, 8),
        )
        np.testing.assert_array_equal(read_pixels(path), [[0, 0], [170, 255]])


def test_entries_of_a_lut_written_as_signed(tmp_path):
    item = lut([0, 1, 2, 3], kind="SS")
    item[0]["LUTData"].value = [0, 0x5555, 0xAAAA - 2**16, -1]
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 1], [2, 3]]), VOILUTSequence=item)
    np.testing.assert_array_equal(read_pixels(path), TABLE.reshape(2, 2))
    many = lut(np.arange(40000) % 100, bits=8)
    many[0]["LUTDescriptor"].VR = "SS"
    many[0].add_new("LUTData", "OW", (np.arange(40000) % 100).astype("<u2").tobytes())
    path = write_dicom(tmp_path / "b.dcm", np.array([[0, 99], [100, 39998]]), VOILUTSequence=many)
    np.testing.assert_array_equal(read_pixels(path), [[0, 99], [0, 98]])


def test_luts_that_contradict_themselves(tmp_path):
    for bits, message in [(8, "entries up to 256, more than its 8 bits"), (0, "a LUT of 0 bits")]:
        table = lut([0, 256], bits=bits)
        path = write_dicom(tmp_path / "a.dcm", GREY8, VOILUTSequence=table)
        with pytest.raises(PixelError, match=rf"a\.dcm: has .*{message}"):
            read_pixels(path)


@pytest.mark.parametrize(
    ("pixels", "stored", "kind", "written", "meant"),
    [
        ("i2", 16, "US", 63536, -2000),
        ("i2", 12, "US", 63536, -2000),
        ("i2", 12, "US", 63488, -2048),
        ("i1", 8, "US", 128, -128),
        ("u2", 16, "SS", -1, 65535),
        ("u2", 16, "US", 65535, 65535),
        ("u1", 8, "SS", -1, 255),
    ],
)
def test_padding_written_with_the_other_sign(tmp_path, pixels, stored, kind, written, meant):
    values = np.array([[meant, 0], [50, 100]], pixels)
    header = dicom(values, stored=stored)
    header.add_new("PixelPaddingValue", kind, written)
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    got = read_pixels(tmp_path / "a.dcm", scale="minmax")
    np.testing.assert_array_equal(got, [[0, 0], [128, 255]])


@pytest.mark.parametrize("stored", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_span_black_to_white(tmp_path, stored, signed):
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    kind = np.dtype(f"{'int' if signed else 'uint'}{8 if stored == 8 else 16}")
    values = np.array([[low, high], [low + 1, high - 1]]).astype(kind)
    path = write_dicom(tmp_path / "a.dcm", values, stored=stored)
    step = 1 / (2**stored - 1)
    got = read_pixels(path, dtype=np.float32)
    np.testing.assert_allclose(got, [[0, 1], [step, 1 - step]], rtol=1e-6)
    assert got[1, 0] > 0  # 16 bits keep their order
    assert got[1, 1] < 1
    inverted = write_dicom(
        tmp_path / "b.dcm", values, stored=stored, RescaleSlope=-1, RescaleIntercept=5
    )
    np.testing.assert_allclose(read_pixels(inverted, dtype=np.float32), 1 - got, atol=1e-7)


def test_bits_above_the_stored_ones_are_dropped(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY12, stored=12)
    expected = read_pixels(path)
    overlay = GREY12 | np.uint16(0x8000)
    np.testing.assert_array_equal(
        read_pixels(write_dicom(tmp_path / "b.dcm", overlay, stored=12)), expected
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_stored_bits_may_be_the_upper_ones(tmp_path, syntax):
    """Where nothing is compressed, the place of the uppermost bit says which are stored."""
    rows = np.arange(-2048, 2048, 64).astype(np.int16).reshape(8, 8)
    for values in (rows, (rows + 2048).astype(np.uint16)):
        expected = read_pixels(write_dicom(tmp_path / "a.dcm", values, stored=12))
        upper = dicom(values if syntax == RLELossless else values << 4, stored=12, HighBit=15)
        if syntax == RLELossless:
            upper.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
        upper.save_as(tmp_path / "b.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(read_pixels(tmp_path / "b.dcm"), expected)


def test_scale_by_range(tmp_path):
    values = np.array([[100, 200], [150, 100]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", values)
    np.testing.assert_array_equal(read_pixels(path, scale="minmax"), [[0, 255], [128, 0]])
    constant = write_dicom(tmp_path / "b.dcm", np.full((2, 2), 7, np.uint16))
    np.testing.assert_array_equal(read_pixels(constant, scale="minmax"), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="scale must be one of 'bits', 'minmax'"):
        read_pixels(path, scale="auto")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_of_the_range(tmp_path, photometric):
    values = np.array([[-2000, -1990], [0, 100]], np.int16)
    options = {"photometric": photometric, "PixelPaddingValue": -2000}
    path = write_dicom(tmp_path / "a.dcm", values, **options, PixelPaddingRangeLimit=-1990)
    shown = [0, 255] if photometric == "MONOCHROME2" else [255, 0]
    np.testing.assert_array_equal(read_pixels(path, scale="minmax"), [[0, 0], shown])
    path = write_dicom(tmp_path / "b.dcm", values, **options)
    got = read_pixels(path)
    assert got[0, 0] == 0
    assert got[0, 1] > 0
    all_padding = write_dicom(tmp_path / "c.dcm", np.full((2, 2), -2000, np.int16), **options)
    np.testing.assert_array_equal(read_pixels(all_padding, scale="minmax"), np.zeros((2, 2)))


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_in_either_plane_order(tmp_path, planar):
    header = dicom(COLOUR, photometric="RGB")
    header.PlanarConfiguration = planar
    header.PixelData = (COLOUR.transpose(2, 0, 1) if planar else COLOUR).tobytes()
    header.WindowCenter, header.WindowWidth = 10, 5  # not for colour
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.dcm"), COLOUR)
    low, high = int(COLOUR.min()), int(COLOUR.max())
    np.testing.assert_array_equal(
        read_pixels(tmp_path / "a.dcm", scale="minmax"),
        np.rint((COLOUR.astype(float) - low) / (high - low) * 255),
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path, bits):
    entries = RNG.integers(0, 2**bits, (3, 256))
    tags = {}
    for name, plane in zip(("Red", "Green", "Blue"), entries, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = plane.astype(f"<u{bits // 8}").tobytes()
    path = write_dicom(tmp_path / "a.dcm", GREY8, photometric="PALETTE COLOR", **tags)
    header = dcmread(path)
    expected = apply_color_lut(pixel_array(header), header)
    got = read_pixels(path, dtype=np.float32)
    assert got.shape == (2, 2, 3)
    np.testing.assert_allclose(got, expected / (2**bits - 1), atol=1e-7)
    got = read_pixels(path, dtype=np.float32, scale="minmax")
    assert (got.min(), got.max()) == (0, 1)


def test_palettes_of_pydicom():
    path = bundled("examples_palette.dcm")
    header = dcmread(path)
    expected = apply_color_lut(pixel_array(header), header)
    white = np.iinfo(expected.dtype).max
    np.testing.assert_array_equal(read_pixels(path), np.rint(255 * (expected / white)))


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "ExplVR_BigEnd.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_jpeg2k.dcm",
        "examples_overlay.dcm",
        "image_dfl.dcm",
    ],
)
def test_files_of_pydicom_in_every_encoding(name):
    path = bundled(name)
    got = read_pixels(path, dtype=np.float32)
    header = dcmread(path)
    values = pixel_array(header)
    padding = values == header.get("PixelPaddingValue")
    if "WindowCenter" in header and header.SamplesPerPixel == 1:
        expected = reference(path)
    else:
        values = apply_modality_lut(values, header).astype(float)
        limits = [0, 2**header.BitsStored - 1]
        if header.PixelRepresentation:
            limits = [-(2 ** (header.BitsStored - 1)), 2 ** (header.BitsStored - 1) - 1]
        low, high = apply_modality_lut(np.array(limits), header)
        expected = (values - low) / (high - low)
    np.testing.assert_allclose(got, np.where(padding, 0, expected), atol=1e-6)
    assert got.max() > got.min()


def test_lossless_encodings_agree():
    plain = read_pixels(bundled("MR_small.dcm"))
    for name in ("RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless"):
        np.testing.assert_array_equal(read_pixels(bundled(f"MR_small_{name}.dcm")), plain)


def test_written_encodings(tmp_path):
    values = RNG.integers(0, 4096, (64, 48)).astype(np.uint16)
    plain = write_dicom(tmp_path / "a.dcm", values, stored=12)
    for syntax in (RLELossless, JPEG2000Lossless):
        header = dicom(values, stored=12)
        header.compress(syntax)
        header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(read_pixels(tmp_path / "b.dcm"), read_pixels(plain))
    implicit = write_dicom(tmp_path / "c.dcm", values, stored=12, syntax=ImplicitVRLittleEndian)
    np.testing.assert_array_equal(read_pixels(implicit), read_pixels(plain))
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=100)
    header = dicom(smooth, syntax=JPEGBaseline8Bit)
    header.PixelData = encapsulate([buffer.getvalue()])
    header["PixelData"].is_undefined_length = True
    header.save_as(tmp_path / "d.dcm", enforce_file_format=True)
    assert np.abs(read_pixels(tmp_path / "d.dcm").astype(int) - smooth).max() <= 2


def test_png_and_jpeg(tmp_path):
    png = write_image(tmp_path / "a.png", GREY8)
    np.testing.assert_array_equal(read_pixels(png), GREY8)
    np.testing.assert_allclose(read_pixels(png, dtype=np.float32), GREY8 / 255, rtol=1e-6)
    jpeg = write_image(tmp_path / "b.jpg", np.full((8, 8), 90))
    np.testing.assert_array_equal(read_pixels(jpeg), np.full((8, 8), 90))
    deep = np.array([[0, 1, 32768], [65534, 65535, 257]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "c.png"), [[0, 0, 128], [255, 255, 1]])
    got = read_pixels(tmp_path / "c.png", dtype=np.float32)
    np.testing.assert_allclose(got, deep / 65535, rtol=1e-6)
    assert got[1, 0] < got[1, 1]
    write_image(tmp_path / "d.png", COLOUR)
    np.testing.assert_array_equal(read_pixels(tmp_path / "d.png"), COLOUR)
    np.testing.assert_array_equal(
        read_pixels(write_image(tmp_path / "e.png", [[10, 20], [15, 10]]), scale="minmax"),
        [[0, 255], [128, 0]],
    )


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA"])
def test_other_png_modes(tmp_path, mode):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    got = read_pixels(tmp_path / "a.png")
    expected = np.array([[0, 255], [255, 0]])
    if mode in ("P", "RGBA"):
        expected = np.repeat(expected[..., None], 3, axis=-1)
    np.testing.assert_array_equal(got, expected)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.dcm.*no such file"):
        read_pixels(tmp_path / "none.dcm")
    text = tmp_path / "a.dcm"
    text.write_text("not an image")
    with pytest.raises(PixelError, match=r"a\.dcm: neither a DICOM .*; formats are PNG, JPEG"):
        read_pixels(text)
    text.write_bytes(b"")
    with pytest.raises(PixelError, match="neither"):
        read_pixels(text)
    with pytest.raises(PixelError, match=r"2frame\.dcm: has 2 frames.*extract a frame"):
        read_pixels(bundled("SC_rgb_rle_2frame.dcm"))
    with pytest.raises(PixelError, match=r"rtplan\.dcm: has no Pixel Data"):
        read_pixels(bundled("rtplan.dcm"))
    for name in ("MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"):
        with pytest.raises(PixelError, match=f"{name}: cannot be decoded"):
            read_pixels(bundled(name))
    png = write_image(tmp_path / "b.png", RNG.integers(0, 255, (64, 64)))
    png.write_bytes(png.read_bytes()[:-200])
    with pytest.raises(PixelError, match=r"b\.png: is a broken image"):
        read_pixels(png)
    for tags, message in [
        ({"WindowCenter": 5, "WindowWidth": -1}, "window width -1"),
        ({"WindowCenter": 5, "WindowWidth": float("nan")}, "center 5.0 and width nan"),
        ({"RescaleSlope": 0, "RescaleIntercept": 7}, "rescale slope 0.* and intercept 7"),
        ({"WindowCenter": [5, 6], "WindowWidth": 3}, "2 window centers but 1 window widths"),
        ({"WindowCenter": 5, "WindowWidth": 3, "VOILUTFunction": "CUBIC"}, "function CUBIC"),
        ({"photometric": "CMYK"}, "cannot be decoded|interpretation CMYK"),
        ({"PixelRepresentation": None}, "has no PixelRepresentation"),
    ]:
        path = write_dicom(tmp_path / "c.dcm", GREY8, **tags)
        with pytest.raises(PixelError, match=rf"c\.dcm: .*({message})"):
            read_pixels(path)


def test_options_are_checked(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY8, WindowCenter=[1, 2], WindowWidth=[3, 4])
    for index in (2, -1):
        with pytest.raises(PixelError, match=f"no window {index}: its 2 windows"):
            read_pixels(path, window=index)
    with pytest.raises(TypeError, match="window must be an index or None"):
        read_pixels(path, window=True)
    with pytest.raises(ValueError, match="dtype must be numpy.uint8 or numpy.float32; got float16"):
        read_pixels(path, dtype=np.float16)


def test_no_word_about_the_patient(tmp_path):
    """Values of elements that are not needed are never read, so they cannot show up."""
    path = tmp_path / "a.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the value is wrong on purpose
        header = dicom(GREY8, PatientName="Doe^Jane", PatientID="4711")
        header.add_new("PatientBirthDate", "DA", "Doe-born-yesterday")
        header.PixelData = b"1"
        header["PixelData"].VR = "OB"
        header.save_as(path, enforce_file_format=True)
    with pytest.raises(PixelError) as caught:
        read_pixels(path)
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_many_files_come_in_order(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png", np.full((2, 2), i)) for i in range(30)]
    seen = []
    found = list(read_many(paths, workers=3, progress=seen.append))
    assert [path for path, _ in found] == [str(path) for path in paths]
    assert [pixels[0, 0] for _, pixels in found] == list(range(30))
    assert seen == list(range(1, 31))
    (_, pixels), *_ = read_many(paths[:2], dtype=np.float32)
    assert pixels.dtype == np.float32
    assert list(read_many([])) == []


def test_broken_files_are_named_or_skipped(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png") for i in range(5)]
    paths[2].write_bytes(b"broken")
    paths[4].unlink()
    with pytest.raises(PixelError, match=r"2\.png: neither"):
        list(read_many(paths, workers=2))
    reader = read_many(paths, workers=2, on_error="skip")
    with pytest.warns(UserWarning, match=r"2 of 5 files were skipped: .*2\.png.*4\.png"):
        kept = [path for path, _ in reader]
    assert kept == [str(paths[i]) for i in (0, 1, 3)]
    assert [path for path, _ in reader.skipped] == [str(paths[2]), str(paths[4])]
    assert "neither" in reader.skipped[0][1]


def test_processes_read_the_same(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png", np.full((2, 2), i)) for i in range(4)]
    paths[1].write_bytes(b"broken")
    reader = read_many(paths, workers=1, processes=True, on_error="skip", dtype=np.float32)
    with pytest.warns(UserWarning, match=r"1 of 4 files were skipped: .*1\.png: neither"):
        found = list(reader)
    assert [path for path, _ in found] == [str(paths[i]) for i in (0, 2, 3)]
    np.testing.assert_allclose([pixels[0, 0] for _, pixels in found], np.array([0, 2, 3]) / 255)


def test_reading_stops_with_the_consumer(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png") for i in range(40)]
    asked = []

    def lazy():
        for path in paths:
            asked.append(path)
            yield path

    iterator = iter(read_many(lazy(), workers=2))
    next(iterator)
    assert len(asked) <= 6  # a bounded lead
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [t for t in threading.enumerate() if t.name.startswith("read_many")]


def test_read_many_options_are_checked():
    with pytest.raises(ValueError, match="on_error must be one of 'raise', 'skip'"):
        read_many([], on_error="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="workers must be at least 1"):
        read_many([], workers=0)
    with pytest.raises(TypeError, match="paths must be many files; got one, 'a.dcm'"):
        read_many("a.dcm")


def test_missing_extra_is_named(tmp_path, monkeypatch):
    png, dcm = write_image(tmp_path / "a.png"), write_dicom(tmp_path / "a.dcm", GREY8)
    for module, path in (("PIL.Image", png), ("pydicom.pixels", dcm)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'semalign_jax\[clinical\]'"):
            read_pixels(path)
