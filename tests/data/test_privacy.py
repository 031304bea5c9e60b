"""What tells who a patient is stays out of pixels' and readers' messages."""

import logging
import traceback
from functools import partial

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from planted import BIRTH, NAME, NUMBER, leaks, said
from pydicom import Dataset, Sequence, config
from pydicom.uid import JPEG2000Lossless, RLELossless

from semalign_jax.data import (
    DatasetError,
    PixelError,
    read_chexpert,
    read_many,
    read_mimic_cxr,
    read_open_i,
    read_padchest,
    read_pixels,
    read_rsna,
    read_table,
    read_vindr_cxr,
)

from . import trees

#: Elements that hospitals fill, with what must not get out.
IDENTITY = {
    "PatientName": NAME,
    "PatientID": NUMBER,
    "PatientBirthDate": BIRTH,
    "OtherPatientIDs": NUMBER,
    "PatientComments": f"{NAME} born {BIRTH}",
    "ReferringPhysicianName": NAME,
    "AccessionNumber": NUMBER,
    "InstitutionName": f"{NAME} Memorial",
    "StudyDescription": f"chest of {NAME}",
    "ImageComments": f"{NUMBER} {BIRTH}",
    "WindowCenterWidthExplanation": NAME,
}


@pytest.fixture(autouse=True)
def streams(capfd, caplog):
    """Nothing is printed or logged, by libraries in C either."""
    caplog.set_level(logging.DEBUG)
    yield
    printed = capfd.readouterr()
    assert not leaks(printed.out + printed.err)
    assert not leaks(caplog.text)


def identified(**tags):
    values = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    header = trees.dicom(values, **IDENTITY, **tags)
    header.add_new(0x00091001, "LO", NUMBER)  # private
    item = Dataset()
    item.PatientID = NUMBER
    header.OtherPatientIDsSequence = Sequence([item])
    return header


def broken_headers():
    """What goes wrong in files of hospitals, each with the identity in it."""

    def change(header, **tags):
        for name, value in tags.items():
            if value is None:
                delattr(header, name)
            else:
                setattr(header, name, value)
        return header

    yield change(identified(), PixelData=None)
    yield change(identified(), PixelRepresentation=None)
    yield change(identified(), NumberOfFrames=3)
    yield change(identified(), PhotometricInterpretation="HSV")
    yield change(identified(), Rows=4000)
    yield change(identified(), BitsStored=99)
    yield change(identified(), WindowCenter=[1, 2], WindowWidth=3)
    yield change(identified(), WindowCenter=1, WindowWidth=2, VOILUTFunction="CUBIC")
    for syntax in (JPEG2000Lossless, RLELossless):
        header = identified()
        header.compress(syntax)
        header.PixelData = header.PixelData[:40] + b"\x00" * 20
        yield header


def test_broken_dicom_files(tmp_path):
    paths = []
    for number, header in enumerate(broken_headers()):
        path = tmp_path / f"image-{number}.dcm"
        header.save_as(path, enforce_file_format=True)
        assert leaks(path.read_bytes())
        text = said(lambda path=path: read_pixels(path), PixelError)
        assert f"image-{number}.dcm" in text
        assert not leaks(text), text
        paths.append(path)
    reader = read_many(paths, workers=2, on_error="skip")
    assert not leaks(said(lambda: list(reader)))
    assert len(reader.skipped) == len(paths)
    assert not leaks(repr(reader.skipped))


def test_cut_and_mislabelled_dicom_files(tmp_path, monkeypatch):
    whole = tmp_path / "whole.dcm"
    identified(WindowCenter=100, WindowWidth=50).save_as(whole, enforce_file_format=True)
    assert read_pixels(whole).shape == (64, 64)
    data = whole.read_bytes()
    path = tmp_path / "image.dcm"
    for length in range(140, len(data), 157):
        path.write_bytes(data[:length])
        assert not leaks(said(lambda: read_pixels(path), PixelError))
    # The name under the tag of the number of frames, which is read.
    place = data.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(data[:place] + b"\x28\x00\x08\x00IS" + data[place + 6 :])
    # Otherwise pydicom itself warns, with the value: it cannot know.
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
    with pytest.raises(PixelError) as caught:
        read_pixels(path)
    assert "invalid literal for int()" in str(caught.value)
    assert not leaks("".join(traceback.format_exception(caught.value)))


def test_comments_in_pictures(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", f"{NAME} {NUMBER}")
    image = Image.fromarray(np.zeros((40, 40), np.uint8))
    image.save(tmp_path / "a.png", pnginfo=notes)
    exif = Image.Exif()
    exif[0x010E] = f"{NAME} {BIRTH}"
    image.save(tmp_path / "a.jpg", exif=exif, comment=NUMBER.encode())
    for path in (tmp_path / "a.png", tmp_path / "a.jpg"):
        data = path.read_bytes()
        assert leaks(data)
        for length in (len(data), len(data) // 2, len(data) - 20):
            path.write_bytes(data[:length])
            assert not leaks(said(lambda path=path: read_pixels(path), PixelError))


# Tables.


def edited(path, function):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(function(lines)) + "\n")


def with_identity(lines):
    """Further columns, as hospitals export them."""
    extra = ("name", "number", "birth"), (NAME, NUMBER, "1937-05-12")
    return [f"{line},{','.join(extra[number > 0])}" for number, line in enumerate(lines)]


def without_header(lines):
    return lines[1:]


def shifted(lines):
    """Cells of the last row moved to the right, those of ids stay."""
    cells = lines[-1].split(",")
    return [*lines[:-1], ",".join([*cells[:3], NAME, *cells[3:-1]])]


def named_labels(lines):
    """The patient where the last column has its label."""
    return [lines[0], *(",".join([*line.split(",")[:-1], NAME]) for line in lines[1:])]


def one_name_twice(lines):
    return [lines[0], *(f"{line},{NAME}" for line in lines[1:])]


DAMAGES = [without_header, shifted, named_labels, one_name_twice]


def mimic(root):
    trees.mimic_tree(root)
    tables = [root / f"mimic-cxr-2.0.0-{part}.csv" for part in ("metadata", "split", "chexpert")]
    return tables, lambda **options: read_mimic_cxr(root, reports=root, **options)


def rsna(root):
    trees.rsna_tree(root)
    for path in (root / "stage_2_train_images").glob("*.dcm"):
        identified().save_as(path, enforce_file_format=True)
    names = ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv")
    return [root / name for name in names], lambda **options: read_rsna(root, **options)


def vindr(root):
    trees.vindr_tree(root)
    for path in root.rglob("*.dicom"):
        identified().save_as(path, enforce_file_format=True)
    names = ("image_labels_train", "image_labels_test", "annotations_train")
    tables = [root / "annotations" / f"{name}.csv" for name in names]
    return tables, lambda **options: read_vindr_cxr(root, agreement="any", **options)


def chexpert(root):
    trees.chexpert_tree(root)
    return [root / "train.csv"], lambda **options: read_chexpert(root, **options)


def padchest(root):
    trees.padchest_tree(root)
    return [root / trees.PADCHEST], lambda **options: read_padchest(root, **options)


def table(root):
    names = [f"{n}.png" for n in "abc"]
    for name in names:
        trees.write_image(root / name)
    path = trees.write_csv(
        root / "table.csv", ["file", "edema", "nodule"], [[name, "1", "0"] for name in names]
    )
    columns = {"image": "file", "label": ("edema", "nodule")}
    return [path], lambda **options: read_table(path, **columns, **options)


@pytest.mark.parametrize("make", [chexpert, mimic, padchest, rsna, table, vindr])
def test_damaged_tables(tmp_path, make):
    tables, read = make(tmp_path)
    originals = {path: path.read_bytes() for path in tables}
    for path in tables:
        edited(path, with_identity)
        assert leaks(path.read_bytes())
        assert not leaks(said(read, DatasetError))
        for damage in DAMAGES:
            edited(path, damage)
            for on_error in ("raise", "skip"):
                text = said(partial(read, on_error=on_error), DatasetError)
                assert not leaks(text), (path.name, damage.__name__, text)
            path.write_bytes(originals[path])
            edited(path, with_identity)
        path.write_bytes(originals[path])
        for damage in (named_labels, without_header):
            if damage is named_labels and "metadata" in path.name:
                continue  # its last column is the view, whose values are counted by name
            edited(path, damage)
            text = said(read, DatasetError)
            assert not leaks(text), (path.name, damage.__name__, text)
            path.write_bytes(originals[path])


def test_a_first_line_that_is_no_header_is_not_shown(tmp_path):
    path = tmp_path / "export.csv"
    path.write_text(f"{NAME},{NUMBER},1937-05-12,a.png\n{NAME},{NUMBER},1937-05-12,b.png\n")
    with pytest.raises(DatasetError, match="missing columns file; its first line has 4 other"):
        read_table(path, image="file")
    path.write_text(f"file;{NAME}\na.png;{NUMBER}\n")
    with pytest.raises(DatasetError, match="1 other cells; does it have a header, and commas"):
        read_table(path, image="file")
    path.write_text(f"{NAME},{NAME},1937-05-12,a.png\n")  # twice
    assert not leaks(said(lambda: read_table(path, image="file"), DatasetError))
    path.write_text("FILE,Sex\na.png,F\n")
    with pytest.raises(DatasetError, match="missing columns file; .* 2 other cells, similar: FILE"):
        read_table(path, image="file")


def test_reports_that_cannot_be_read(tmp_path):
    root = tmp_path / "open-i"
    trees.open_i_tree(root)
    first = root / "ecgen-radiology" / "1.xml"
    text = first.read_text().replace("<MeSH>", f"<author>{NAME} {BIRTH}</author><MeSH>")
    for damaged in (text, text[: text.index("Zyxwvut")], text.replace("</author>", "</x>")):
        first.write_text(damaged)
        for on_error in ("raise", "skip"):
            read = said(partial(read_open_i, root, on_error=on_error), DatasetError)
            assert not leaks(read), read
    root = tmp_path / "mimic"
    trees.mimic_tree(root)
    for report in root.rglob("s*.txt"):
        report.write_bytes(f"INDICATION: {NAME}, {NUMBER}\n".encode() + b"\xff")
    assert not leaks(said(lambda: read_mimic_cxr(root, reports=root), DatasetError))
