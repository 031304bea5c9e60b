"""`read_table`: any CSV or Parquet file."""

import gzip
from typing import Any

import numpy as np
import pytest

from semalign_jax.data import DatasetError, Label, read_table

from .trees import write_csv, write_image

P, N, U, B = Label.POSITIVE, Label.NEGATIVE, Label.UNCERTAIN, Label.BLANK
HEADER = ["file", "report", "patient", "part", "view", "kind", "edema", "nodule"]
ROWS = [
    ["a.png", "one, two", "p", "train", "PA", "sick", "1", ""],
    ["b.png", "two\nlines", "p", "train", "AP", "well", "0", "-1"],
    ["c.png", "three", "q", "test", "PA", "", "1.0", "0"],
]
COLUMNS: dict[str, Any] = {
    "image": "file",
    "text": "report",
    "patient": "patient",
    "split": "part",
    "view": "view",
}


@pytest.fixture
def root(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    write_csv(tmp_path / "table.csv", HEADER, ROWS)
    return tmp_path


def test_columns_of_codes(root):
    data = read_table(root / "table.csv", label=("edema", "nodule"), **COLUMNS)
    assert data.name == "table.csv"
    assert data.ids == ("a.png", "b.png", "c.png")
    assert data.images[0] == str(root / "a.png")
    assert data.texts == ("one, two", "two\nlines", "three")
    assert data.patients == ("p", "p", "q")
    assert data.splits == ("train", "train", "test")
    assert data.views == ("PA", "AP", "PA")
    assert data.label_names == ("edema", "nodule")
    np.testing.assert_array_equal(data.labels, [[P, B], [N, U], [P, N]])


def test_column_of_classes(root):
    data = read_table(root / "table.csv", image="file", label="kind", name="toy")
    assert (data.name, data.label_names) == ("toy", ("sick", "well"))
    np.testing.assert_array_equal(data.labels, [[P, N], [N, P], [B, B]])
    assert data.patients == data.ids
    assert data.texts == ("", "", "")


def test_only_images(root):
    data = read_table(root / "table.csv", image="file", id="report", study="patient")
    assert data.labels.shape == (3, 0)
    assert data.ids[2] == "three"
    assert data.studies == ("p", "p", "q")


def test_other_places_and_encodings(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("tables") / "table.csv.gz"
    other.write_bytes(gzip.compress((root / "table.csv").read_bytes()))
    data = read_table(other, root=root, **COLUMNS)
    assert data.images[0] == str(root / "a.png")
    marked = root / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + (root / "table.csv").read_bytes())
    assert read_table(marked, **COLUMNS).ids == data.ids
    latin = root / "latin.csv"
    latin.write_bytes("file,report\r\na.png,caf\xe9\r\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.csv: not utf-8-sig text after line 1"):
        read_table(latin, image="file", text="report")
    assert read_table(latin, image="file", text="report", encoding="latin-1").texts == ("caf\xe9",)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("file", "b.png", r"table\.csv, line 4: file b\.png occurs twice"),
        ("file", "d.png", r"line 5: no image .*d\.png"),
        ("file", "", "line 5: file is empty"),
        ("report", " ", "line 5: report is empty"),
        ("patient", "", "line 5: patient is empty"),
        (
            "edema",
            "yes",
            "line 5: unknown label value \\(3 characters\\) in column edema; expected 1, 0, -1",
        ),
    ],
)
def test_problems_name_the_line(root, column, value, message):
    rows = [list(row) for row in ROWS]
    rows[2][HEADER.index(column)] = value
    path = write_csv(root / "table.csv", HEADER, rows)
    options: dict[str, Any] = {"label": ("edema", "nodule"), **COLUMNS}
    # A cell with a line break makes the last row's line 5.
    with pytest.raises(DatasetError, match=message.replace("line 4", "line 5")):
        read_table(path, **options)
    data = read_table(path, on_error="skip", **options)
    assert data.ids == ("a.png", "b.png")
    assert len(data.skipped) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "missing columns file, report, patient, part, view; the header has nothing"),
        (b"file,report\n", "missing columns patient, part, view; the header has file, report"),
        (b"file,file,report,patient,part,view\n", "names these columns twice: file"),
        (b"file,report,patient,part,view\na.png,x\n", "line 2: 2 cells, but the header has 5"),
        (b'file,report,patient,part,view\na.png,"x,p,train,PA\n', "not a whole CSV file"),
        (b"file,report,patient,part,view\n", "no image was found"),
    ],
)
def test_damaged_tables(root, content, message):
    path = root / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_table(path, on_error="skip", **COLUMNS)


def test_damaged_gzip(root):
    path = root / "table.csv.gz"
    path.write_bytes(gzip.compress((root / "table.csv").read_bytes())[:-12])
    with pytest.raises(DatasetError, match="not a whole CSV file"):
        read_table(path, **COLUMNS)
    path.write_bytes(b"plain")
    with pytest.raises(DatasetError, match="not a whole CSV file"):
        read_table(path, **COLUMNS)


def test_missing_table_or_folder(root):
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_table(root / "none.csv", image="file")
    with pytest.raises(FileNotFoundError, match="no images at"):
        read_table(root / "table.csv", image="file", root=root / "none")


def test_parquet(root):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, list] = {name: [row[i] for row in ROWS] for i, name in enumerate(HEADER)}
    columns["edema"] = [1, 0, None]
    columns["nodule"] = [1.0, -1.0, 0.0]
    path = root / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    data = read_table(path, label=("edema", "nodule"), **COLUMNS)
    np.testing.assert_array_equal(data.labels, [[P, P], [N, U], [B, N]])
    assert data.texts == ("one, two", "two\nlines", "three")
    with pytest.raises(
        DatasetError, match=r"table\.parquet: missing columns age; the header has file"
    ):
        read_table(path, image="file", patient="age")
    columns["file"][2] = "d.png"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DatasetError, match=r"table\.parquet, row 3: no image"):
        read_table(path, **COLUMNS)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DatasetError, match="not a whole Parquet file"):
        read_table(path, **COLUMNS)
