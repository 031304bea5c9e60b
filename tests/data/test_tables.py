"""`read_table`: any CSV or Parquet file."""

import gzip
from typing import Any

import numpy as np
import pytest

from semalign_jax.data import DatasetError, Label, check_disjoint, read_table

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


def test_codes_are_no_classes(tmp_path):
    path = write_csv(tmp_path / "t.csv", ["id", "edema"], [["a", "1"], ["b", "-1.0"], ["c", ""]])
    with pytest.raises(DatasetError, match=r'give label as a list, \["edema"\]'):
        read_table(path, id="id", label="edema")
    assert read_table(path, id="id", label=["edema"]).labels.ravel().tolist() == [1, -1, -2]


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
        ("edema", "0.5", "line 5: unknown label value '0.5' in column edema"),
        ("edema", "2", "line 5: unknown label value '2' in column edema"),
        ("edema", "inf", "line 5: unknown label value"),
        ("edema", str(2**32), "line 5: unknown label value"),
        ("patient", "NaN", "line 5: patient is empty"),
        ("report", "N/A", "line 5: report is empty"),
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
        (b"file,report,patient,part,view,,view\n", "names these columns twice: view"),
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
    with pytest.raises(DatasetError, match="no whole Parquet file"):
        read_table(path, **COLUMNS)


SPELLINGS = {
    P: ["1", "1.0", "1.00", "1.", " 1 ", "+1", "True", "true", "TRUE"],
    N: ["0", "0.0", "0.", "0.00", "-0.0", "False", "false", "FALSE"],
    U: ["-1", "-1.0", "-1.00", "-1."],
    B: ["", " ", "NA", "nan", "NaN", "N/A", "n/a", "null", "NULL", "None", "none", "<NA>"],
}


def test_spellings_of_labels(tmp_path):
    cells = [(code, cell) for code, spellings in SPELLINGS.items() for cell in spellings]
    rows = [[number, cell] for number, (_, cell) in enumerate(cells)]
    path = write_csv(tmp_path / "table.csv", ["id", "edema"], rows)
    data = read_table(path, id="id", label=["edema"])
    np.testing.assert_array_equal(data.labels[:, 0], [code for code, _ in cells])


def test_what_is_left_out_is_counted(root):
    rows = [*ROWS, ["d.png", *ROWS[0][1:]], ["e.png", *ROWS[0][1:]], ["a.png", *ROWS[0][1:]]]
    rows[1] = [*rows[1][:6], "7", ""]
    path = write_csv(root / "table.csv", HEADER, rows)
    options: dict[str, Any] = {"label": ("edema", "nodule"), **COLUMNS}
    data = read_table(path, on_error="skip", **options)
    expected = {"with unknown label values": 1, "without image": 2, "with doubled id": 1}
    assert data.left_out == expected
    assert sum(expected.values()) == len(data.skipped)
    said = "1 with unknown label values, 2 without image, 1 with doubled id"
    assert f"4 of 6 rows and files left out: {said}" in str(data.summary())
    with pytest.raises(DatasetError, match=f"4 problems; .* leaves these .*: {said}"):
        read_table(path, **options)


def test_columns_that_are_not_needed_refuse_nothing(root):
    header = [*HEADER, "note", "note", "", ""]
    rows = [[*row, "x" * 200_000, "", "", "1"] for row in ROWS]
    path = write_csv(root / "table.csv", header, rows)
    assert read_table(path, **COLUMNS).ids == ("a.png", "b.png", "c.png")
    rows[0][1] = "long " * 50_000
    path = write_csv(root / "table.csv", header, rows)
    assert len(read_table(path, **COLUMNS).texts[0]) == 250_000 - 1
    with pytest.raises(DatasetError, match="names these columns twice: note"):
        read_table(path, image="file", text="note")


def test_one_id_in_csv_and_parquet(tmp_path):
    """What pandas writes of whole numbers with gaps, and without."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    options: dict[str, Any] = {"id": "id", "patient": "who", "split": "fold", "label": "digit"}
    keys = ["id", "who", "fold", "digit"]
    csv = tmp_path / "table.csv"
    csv.write_text("id,who,fold,digit\n1,7,0,3\n2,007,1,9\n")
    tables = [read_table(csv, **options)]
    csv.write_text("id,who,fold,digit\n1.0,7.0,0.0,3.0\n2.0,007,1.0,9.0\n")
    tables.append(read_table(csv, **options))
    for kind in (int, float, str, lambda v: str(v).encode()):
        columns: dict[str, list] = {key: [kind(v) for v in values] for key, values in
                   zip(keys, [(1, 2), (7, 8), (0, 1), (3, 9)], strict=True)}  # fmt: skip
        columns["odd"] = [{"a": [1]}, None]
        parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
        tables.append(read_table(tmp_path / "table.parquet", **options))
    for data in tables:
        assert data.ids == ("1", "2")
        assert data.patients[0] == "7"
        assert data.splits == ("0", "1")
        assert data.label_names == ("3", "9")
    assert tables[0].patients == tables[1].patients == ("7", "007")
    with pytest.raises(ValueError, match="csv and parquet have 1 patient in common: '7'"):
        check_disjoint({"csv": tables[0], "parquet": tables[3]})


def test_columns_of_odd_types(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    columns = {"id": ["a", "b"], "edema": [True, None], "list": [[1], [2]]}
    columns |= {"who": [1.0, float("nan")], "large": [1.0, 2.0**60], "half": [0.5, 1.0]}
    columns["single"] = np.array([2**24 - 1, 2**24 + 1], np.float32)
    parquet.write_table(pyarrow.table(columns), path)
    assert read_table(path, id="id", label=["edema"]).labels.tolist() == [[P], [B]]
    for changes, message in [
        ({"patient": "list"}, "row 1: list is a list, not text or a number"),
        ({"patient": "who"}, "row 2: who is empty"),
        ({"patient": "large"}, "row 2: large: .* lost its last digits"),
        ({"patient": "single"}, "row 2: single: 16777216.0 .* lost its last digits"),
        ({"label": ["half"]}, "row 1: unknown label value '0.5' in column half"),
    ]:
        with pytest.raises(DatasetError, match=message):
            read_table(path, **{"id": "id", **changes})
    twice = pyarrow.table([["a"], ["p"], ["q"], ["r"]], ["id", "who", "who", "id"])
    parquet.write_table(twice.select([0, 1, 2]), path)
    assert read_table(path, id="id").ids == ("a",)
    with pytest.raises(DatasetError, match="names these columns twice: who"):
        read_table(path, id="id", patient="who")
