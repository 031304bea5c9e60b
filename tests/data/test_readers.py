"""Readers on small trees in the published layouts, whole and damaged."""

import json
import re

import numpy as np
import pytest

from semalign_jax.data import (
    DatasetError,
    Label,
    binary_labels,
    check_disjoint,
    patient_split,
    read_chexpert,
    read_many,
    read_mimic_cxr,
    read_open_i,
    read_padchest,
    read_pixels,
    read_rsna,
    read_vindr_cxr,
    sample_anchors,
)

from .trees import (
    CHEXPERT_HEADER,
    MIMIC_HEADER,
    PADCHEST,
    VINDR_HEADER,
    chexpert_tree,
    mimic_tree,
    open_i_report,
    open_i_tree,
    padchest_tree,
    rsna_tree,
    vindr_row,
    vindr_tree,
    write_csv,
    write_image,
)

P, N, U, B = Label.POSITIVE, Label.NEGATIVE, Label.UNCERTAIN, Label.BLANK


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def append(path, line):
    with path.open("a", newline="") as file:
        file.write(line + "\r\n")


def fails(read, *patterns, skipped=1, left=None):
    """The reader names the problem, and skips it if told; returns what is left."""
    with pytest.raises(DatasetError) as caught:
        read()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), caught.value
    data = read(on_error="skip")
    assert len(data.skipped) == skipped, data.skipped
    if left is not None:
        assert len(data) == left
    return data


# MIMIC-CXR


@pytest.mark.parametrize("gz", [False, True])
def test_mimic(tmp_path, gz):
    root = mimic_tree(tmp_path, gz)
    data = read_mimic_cxr(root, reports=root)
    assert data.ids == ("aaaa-1", "aaaa-2", "bbbb-1", "cccc-1")
    assert data.patients == ("10000032", "10000032", "10000764", "11000001")
    assert data.studies == ("50414267", "50414267", "57375967", "58888888")
    assert data.views == ("PA", "LATERAL", "AP", "")
    assert data.splits == ("train", "train", "validate", "test")
    assert data.images[2] == str(root / "files/p10/p10000764/s57375967/bbbb-1.jpg")
    assert read_pixels(data.images[2]).shape == (2, 2)
    expected = "The lungs are clear. Compared to ___, no change. No acute process."
    assert set(data.texts) == {expected}
    assert data.label_names == tuple(MIMIC_HEADER[2:])
    first = [P, N, U, *[B] * 11]
    np.testing.assert_array_equal(data.labels, [first, first, [U, U, *[N] * 12], [B] * 14])
    assert data.skipped == ()
    assert data.summary().labels["Consolidation"] == (0, 1, 2, 1)


def test_mimic_options(tmp_path):
    root = mimic_tree(tmp_path)
    frontal = read_mimic_cxr(root, views=("PA", "AP"))
    assert frontal.ids == ("aaaa-1", "bbbb-1")
    assert frontal.texts == ("", "")
    data = read_mimic_cxr(root, reports=root, section="impression", labeler="negbio")
    assert set(data.texts) == {"No acute process."}
    np.testing.assert_array_equal(data.labels[0], [N] * 14)
    assert frontal.left_out == {"of other views": 2}
    assert frontal.skipped == ()
    assert "2 of 4 rows and files left out: 2 of other views" in str(frontal.summary())
    with pytest.raises(TypeError, match="views must be a list of names; got 'PA'"):
        read_mimic_cxr(root, views="PA")  # "" and "A" are parts of it
    with pytest.raises(ValueError, match="labeler must be one of 'chexpert', 'negbio', 'radiol"):
        read_mimic_cxr(root, labeler="reader")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="section must be one of"):
        read_mimic_cxr(root, section="history")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="on_error must be one of"):
        read_mimic_cxr(root, on_error="warn")  # pyright: ignore[reportArgumentType]


def test_mimic_missing_files(tmp_path):
    root = mimic_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match="no MIMIC-CXR-JPG at"):
        read_mimic_cxr(tmp_path / "nowhere")

    def read(**options):
        return read_mimic_cxr(root, reports=root, **options)

    folder = root / "files/p10/p10000764/s57375967"
    (folder / "bbbb-1.jpg").rename(folder / "bbbb-9.jpg")
    fails(
        read,
        r"metadata\.csv, line 4: no image .*bbbb-1\.jpg",
        r"bbbb-9\.jpg: no row in .*metadata\.csv",
        skipped=2,
        left=3,
    )
    (folder / "bbbb-9.jpg").rename(folder / "bbbb-1.jpg")
    report = root / "files/p10/p10000032/s50414267.txt"
    report.write_bytes(b"FINDINGS: caf\xe9")
    data = fails(read, r"line 2: report .*s50414267\.txt is not UTF-8: byte 13", skipped=2)
    assert data.ids == ("bbbb-1", "cccc-1")
    report.write_text(" \n")
    fails(read, r"line 2: report .*s50414267\.txt is empty", skipped=2, left=2)
    report.unlink()
    fails(read, r"line 2: no report .*s50414267\.txt", skipped=2, left=2)
    report.write_text("FINAL REPORT\n TECHNIQUE: AP.\n")  # without sections: an empty text
    assert read().texts[:2] == ("", "")
    np.testing.assert_array_equal(read().has_text, [False, False, True, True])
    (root / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"mimic-cxr-2\.0\.0-split\.csv \(or .*\.gz\)"):
        read()


def test_mimic_damaged_tables(tmp_path):
    root = mimic_tree(tmp_path)

    def read(**options):
        return read_mimic_cxr(root, **options)

    metadata, split, labels = (
        root / f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split", "chexpert")
    )
    whole = {path: path.read_bytes() for path in (metadata, split, labels)}

    def restore():
        for path, content in whole.items():
            path.write_bytes(content)

    edit(labels, "Pneumonia", "Pneumo")
    with pytest.raises(DatasetError, match=r"chexpert\.csv: missing columns Pneumonia; the header"):
        read()
    restore()
    edit(labels, "-1.0", "2.0")
    fails(
        read,
        r"chexpert\.csv, line 2: unknown label value '2\.0' in column Consolidation",
        r"metadata\.csv, line 2: the labels of study 50414267 cannot be read",
        skipped=3,
        left=2,
    )
    restore()
    append(labels, "10000764,57375967" + ",0.0" * 14)
    fails(
        read,
        r"chexpert\.csv, line 4: study_id 57375967 occurs twice",
        r"line 4: the labels of study 57375967 cannot be read",
        skipped=2,
        left=3,
    )
    restore()
    append(labels, labels.read_text().splitlines()[-1])
    fails(read, r"chexpert\.csv, line 4: study_id 57375967 occurs twice", left=4)
    restore()
    append(metadata, "bbbb-1,10000764,57375967,,AP")
    fails(read, r"metadata\.csv, line 6: dicom_id bbbb-1 occurs twice", left=4)
    restore()
    edit(split, "bbbb-1", "bbbb-2")
    fails(read, r"line 4: dicom_id bbbb-1 is not in the split table", left=3)
    restore()
    edit(split, "validate", "val")
    fails(
        read,
        r"split\.csv, line 4: unknown split \(3 characters\); expected train",
        skipped=2,
        left=3,
    )
    restore()
    edit(split, "bbbb-1,57375967,10000764", "bbbb-1,57375967,10000765")
    fails(read, r"line 4: subject_id or study_id of bbbb-1 differs in the split table", left=3)
    restore()
    append(split, "bbbb-1,57375967,10000764,test")
    said = r"line 4: the split of dicom_id bbbb-1 cannot be read"
    fails(read, r"split\.csv, line 6: dicom_id bbbb-1 occurs twice", said, skipped=2, left=3)
    restore()
    append(split, "bbbb-1,57375967,10000764,validate")
    fails(read, r"split\.csv, line 6: dicom_id bbbb-1 occurs twice", left=4)
    restore()
    edit(metadata, "bbbb-1,10000764", "bbbb-1,")
    fails(read, r"metadata\.csv, line 4: subject_id is empty", skipped=2, left=3)
    restore()
    append(metadata, "x,y")
    with pytest.raises(DatasetError, match=r"line 6: 2 cells, but the header has 5"):
        read()


def test_mimic_labels_of_a_radiologist(tmp_path):
    root = mimic_tree(tmp_path)
    table = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    table.write_text("study_id,Airspace Opacity,Edema\n50414267.0,1.0,-1.0\n58888888,,0.0\n")
    data = read_mimic_cxr(root, reports=root, labeler="radiologist")
    assert data.ids == ("aaaa-1", "aaaa-2", "cccc-1")
    assert data.left_out == {f"of studies that are not in {table.name}": 1}
    assert data.skipped == ()
    for row, known in zip(data.labels, [{7: P, 3: U}] * 2 + [{3: N}], strict=True):
        np.testing.assert_array_equal(row, [known.get(i, B) for i in range(14)])
    table.write_text("study_id,Atelectasis,Lung Opacity,Airspace Opacity\n50414267,1,0,1\n")
    assert read_mimic_cxr(root, labeler="radiologist").labels[0, [0, 7]].tolist() == [P, N]
    table.write_text("subject_id,label\n50414267,1\n")
    with pytest.raises(DatasetError, match=r"labeled\.csv: missing columns study_id, Atelectasis"):
        read_mimic_cxr(root, labeler="radiologist")


def test_mimic_tables_that_went_through_pandas(tmp_path):
    """Ids as floats, and other spellings of labels."""
    root = mimic_tree(tmp_path)
    expected = read_mimic_cxr(root, reports=root)
    for name in ("metadata", "split", "chexpert", "negbio"):
        path = root / f"mimic-cxr-2.0.0-{name}.csv"
        text = re.sub(r"\b(1[01]\d{6}|5\d{7})\b", r"\1.0", path.read_text())
        text = text.replace(",-1.0", ",-1").replace(",0.0", ",False").replace(",1.0,", ",TRUE,")
        path.write_text(re.sub(",(?=,|\n)", ",NaN", text))
    data = read_mimic_cxr(root, reports=root)
    for name in ("ids", "patients", "studies", "texts", "views"):
        assert getattr(data, name) == getattr(expected, name)
    np.testing.assert_array_equal(data.labels, expected.labels)


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ("50913680", "Take this."),
        ("56451190", "Nor this. Of a range."),
        ("50525523", "Of a range."),
        ("58235663", ""),
    ],
)
def test_mimic_studies_of_odd_format(tmp_path, study, text):
    """The section, range or nothing that the MIMIC-CXR code repository notes."""
    root = mimic_tree(tmp_path)
    for path in root.glob("*.csv"):
        path.write_text(path.read_text().replace("57375967", study))
    folder = root / "files/p10/p10000764"
    (folder / "s57375967").rename(folder / f"s{study}")
    report = " FINDINGS:  Wrong.\n RECOMMENDATIONS:\n Take ___ this.\n NOTE:  Nor this.\n"
    report = f"{report:<201}Of a range.\n{'':<135}\n FINDINGS:  Wrong.\n"
    (folder / f"s{study}.txt").write_text(report)
    data = read_mimic_cxr(root, reports=root, keep_blanks=False)
    assert data.texts[2] == text
    assert data.texts[0].startswith("The lungs are clear.")
    assert read_mimic_cxr(root, reports=root, section="findings").texts[2] == ""
    assert "Wrong." in read_mimic_cxr(root, reports=root, section="all").texts[2]


def test_relative_and_linked_folders(tmp_path, monkeypatch):
    root = mimic_tree(tmp_path / "real")
    expected = read_mimic_cxr(root).ids
    monkeypatch.chdir(root)
    for place in (".", "../real", "./"):
        assert read_mimic_cxr(place).ids == expected
    linked = tmp_path / "linked"
    (linked / "files").mkdir(parents=True)
    for path in root.glob("*.csv"):
        (linked / path.name).symlink_to(path)
    for name in ("p10", "p11"):
        (linked / "files" / name).symlink_to(root / "files" / name)
    (linked / "files" / "loop").symlink_to(linked)
    assert read_mimic_cxr(linked).ids == expected


def test_many_problems_are_counted(tmp_path):
    root = mimic_tree(tmp_path)
    for i in range(15):
        write_image(root / f"files/extra-{i:02}.jpg")
    with pytest.raises(DatasetError, match=r"15 problems; on_error='skip'[\s\S]*and 5 more"):
        read_mimic_cxr(root)
    (root / "files/p11/p11000001/s58888888/cccc-1.jpg").unlink()
    with pytest.raises(DatasetError, match="rows and files out: 1 without image, 15 without row\n"):
        read_mimic_cxr(root)
    data = read_mimic_cxr(root, on_error="skip")
    assert data.left_out == data.select([0]).left_out == {"without image": 1, "without row": 15}
    assert (
        "16 of 19 rows and files left out: 1 without image, 15 without row"
        in str(data.summary()).splitlines()
    )


# RSNA


def test_rsna(tmp_path):
    data = read_rsna(rsna_tree(tmp_path))
    assert data.ids == data.patients == ("p1", "p2", "p3")
    assert data.label_names == ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
    np.testing.assert_array_equal(data.labels, np.eye(3))
    assert [len(boxes) for boxes in data.boxes] == [2, 0, 0]
    assert data.boxes[0][0] == ("Lung Opacity", "", 10, 20, 40, 60)
    assert set(data.splits) == {"train"}
    np.testing.assert_array_equal(read_pixels(data.images[0]), [[0, 100], [200, 255]])


def test_rsna_patients_of_nih(tmp_path):
    root = rsna_tree(tmp_path)
    mapping = tmp_path / "mapping.json"
    entries = [
        {"subset_img_id": f"p{i}", "img_id": f"{i // 2:08}_000.png", "orig_labels": []}
        for i in (1, 2, 3)
    ]
    mapping.write_text(json.dumps(entries))
    assert read_rsna(root, nih_mapping=mapping).patients == ("0", "1", "1")
    mapping.write_text(json.dumps(entries[:2]))
    fails(
        lambda **options: read_rsna(root, nih_mapping=mapping, **options),
        r"line 5: patientId p3 is not in .*mapping\.json",
        left=2,
    )
    other = json.dumps([*entries, {"subset_img_id": "p3", "img_id": "00000007_001.png"}])
    for text, message in [
        (other, "subset_img_id p3 is of the patients 1 and 7"),
        ("{", "no JSON"),
        ("{}", "not a list"),
        ("[1]", "entry 0 is not an object"),
        ('[{"img_id": "a"}]', "entry 0 is not an object"),
    ]:
        mapping.write_text(text)
        with pytest.raises(DatasetError, match=rf"mapping\.json.*{message}"):
            read_rsna(root, nih_mapping=mapping)


@pytest.mark.parametrize(
    ("table", "old", "new", "message", "left"),
    [
        ("train_labels", "p2,,,,,0", "p2,,,,,2", "line 4: unknown label value '2'", 2),
        (
            "train_labels",
            "p2,,,,,0",
            "p2,,,,,0\np2,1,1,1,1,1",
            "line 5: .*p2 has Target 0 and 1",
            2,
        ),
        ("train_labels", "50.0,20.0,30.0", "50.0,20.0,", "line 3: Target is 1, but .* no box", 3),
        ("train_labels", "50.0,20.0,30.0", "50.0,20.0,-3", "line 3: a box of width -3.0", 3),
        ("train_labels", "50.0,20.0,30.0", "50.0,20.0,inf", "line 3: a box of width inf", 3),
        ("train_labels", "50.0,20.0,30.0", "50.0,20.0,NA", "line 3: Target is 1, but .* no box", 3),
        ("train_labels", "p2,,,,,0", "p2,,,,,-1", "line 4: Target is not 1 or 0", 2),
        ("train_labels", "p2,,,,,0", "p2,,,,,", "line 4: Target is not 1 or 0", 2),
        ("train_labels", "p2,,", "p2,3,", "line 4: a box, but Target is 0", 3),
        (
            "detailed_class_info",
            "p3,Normal",
            "p3,Fine",
            "line 5: unknown class \\(4 characters\\)",
            2,
        ),
        (
            "detailed_class_info",
            "p3,Normal",
            "p3,Normal\np3,Fine",
            "line 6: unknown class \\(4 characters\\)",
            2,
        ),
        ("detailed_class_info", "p3,Normal", "p3,Lung Opacity", "Target is 0, but the class", 2),
        ("detailed_class_info", "p3,Normal", "p3,Normal\np4,Normal", "p4 of the class table", 3),
        ("detailed_class_info", "p1,Lung Opacity", "p1,Normal", "p1 has the classes 'Normal'", 2),
    ],
)
def test_rsna_damaged_tables(tmp_path, table, old, new, message, left):
    root = rsna_tree(tmp_path)
    edit(root / f"stage_2_{table}.csv", old, new)
    skipped = 2 if "Fine" in new or message.startswith("p1") else 1
    fails(lambda **o: read_rsna(root, **o), message, skipped=skipped, left=left)


def test_rsna_tables_that_went_through_pandas(tmp_path):
    root = rsna_tree(tmp_path)
    table = root / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace("p2,,,,,0", "p2,NaN,NaN,NaN,NaN,0.0"))
    edit(table, ",1\n", ",True\n")
    data = read_rsna(root)
    np.testing.assert_array_equal(data.labels, np.eye(3))
    assert [len(boxes) for boxes in data.boxes] == [2, 0, 0]


def test_rsna_missing_files(tmp_path):
    root = rsna_tree(tmp_path)
    images = root / "stage_2_train_images"
    (images / "p2.dcm").rename(images / "p9.dcm")
    fails(
        lambda **o: read_rsna(root, **o),
        r"line 4: no image .*p2\.dcm",
        r"p9\.dcm: no row in .*train_labels\.csv",
        skipped=2,
        left=2,
    )
    edit(root / "stage_2_train_labels.csv", "Target", "Label")
    with pytest.raises(DatasetError, match="missing columns Target; the header has patientId, x"):
        read_rsna(root)


# VinDr-CXR


@pytest.mark.parametrize("place", ["annotations", "."])
def test_vindr(tmp_path, place):
    data = read_vindr_cxr(vindr_tree(tmp_path, place), agreement="majority")
    assert data.ids == data.patients == ("a", "b", "c")
    assert data.splits == ("train", "train", "test")
    assert set(data.views) == {"PA"}
    assert data.label_names == tuple(VINDR_HEADER)
    assert len(data.label_names) == 22 + 6
    assert [len(boxes) for boxes in data.boxes] == [2, 0, 0]
    assert data.boxes[0][1] == ("Cardiomegaly", "R2", 1.5, 2, 3, 4)
    for path in data.images:
        assert read_pixels(path).shape == (2, 2)


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        ("majority", {"Cardiomegaly", "Pneumonia"}),
        ("any", {"Cardiomegaly", "Pneumonia", "Edema"}),
        ("all", {"Cardiomegaly"}),
    ],
)
def test_vindr_agreement(tmp_path, agreement, expected):
    data = read_vindr_cxr(vindr_tree(tmp_path), agreement=agreement)

    def positive(i):
        codes = zip(data.label_names, data.labels[i], strict=True)
        return {name for name, code in codes if code == P}

    assert positive(0) == expected
    assert positive(1) == {"No finding"}
    assert positive(2) == {"Other diseases"}
    assert set(np.unique(data.labels)) == {P, N}


def test_vindr_agreement_is_explicit(tmp_path):
    with pytest.raises(TypeError, match="agreement"):
        read_vindr_cxr(tmp_path)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="agreement must be one of 'majority', 'any', 'all'"):
        read_vindr_cxr(tmp_path, agreement="first")  # pyright: ignore[reportArgumentType]


def test_vindr_damaged_tables(tmp_path):
    root = vindr_tree(tmp_path)

    def read(**options):
        return read_vindr_cxr(root, agreement="any", **options)

    labels = root / "annotations/image_labels_train.csv"
    boxes = root / "annotations/annotations_train.csv"
    whole = {path: path.read_bytes() for path in (labels, boxes)}

    def restore():
        for path, content in whole.items():
            path.write_bytes(content)

    append(labels, ",".join(["a", "R3", *vindr_row()]))
    fails(read, r"train\.csv, line 8: image_id a occurs twice for R3", left=2)
    restore()
    edit(labels, "b,R10," + ",".join(vindr_row("No finding")), "a,R10," + ",".join(vindr_row()))
    fails(read, "image_id a has 4 readers, expected 3", "b has 2 readers", skipped=2, left=1)
    restore()
    edit(labels, "b,R8,0", "b,R8,7")
    fails(read, "line 5: unknown label value '7' in column Aortic enlargement", left=2)
    restore()
    edit(labels, "b,R8,0", "b,R8,-1")
    fails(read, "line 5: a label is neither 0 nor 1", left=2)
    restore()
    edit(labels, "Edema", "Oedema")
    with pytest.raises(DatasetError, match=r"image_labels_train\.csv: missing columns Edema"):
        read()
    restore()
    edit(labels, "Edema", "Atelectasis")
    with pytest.raises(DatasetError, match=r"train\.csv: the header names .* twice: Atelectasis"):
        read()
    restore()
    for other in ("Edema", "EDEMA"):
        first, *rest = labels.read_text().splitlines()
        labels.write_text("\n".join([f"{first},{other}", *(f"{line},0" for line in rest)]))
        with pytest.raises(DatasetError, match=r"train\.csv: the header names .* twice: Edema"):
            read()
        restore()
    restore()
    edit(labels, "b,R8,0", "b,R8,NA")
    fails(read, "line 5: a label is neither 0 nor 1", left=2)
    restore()
    edit(labels, "b,R8,0", "b,R8,0.00")
    assert read().skipped == ()
    restore()
    edit(labels, "rad_id", "reader")
    with pytest.raises(DatasetError, match=r"image_labels_train\.csv: missing columns rad_id"):
        read()
    restore()
    for line, message in [
        ("a,R1,Oedema,1,2,3,4", "line 5: unknown class_name \\(6 characters\\)"),
        ("z,R1,Edema,1,2,3,4", "line 5: image_id z has no image labels"),
        ("a,R1,Edema,,,,", "line 5: Edema without a box"),
        ("a,R1,Edema,1,2,,4", "line 5: x_min, y_min, x_max, y_max are not all numbers"),
        ("a,R1,Edema,3,2,1,4", "line 5: the box is empty"),
        ("a,R1,Edema,1,2,inf,4", "line 5: the box is empty"),
        ("a,R1,Edema,NaN,nan,NA,", "line 5: Edema without a box"),
    ]:
        append(boxes, line)
        fails(read, message, left=3)
        restore()
    (root / "train/a.dicom").rename(root / "train/z.dicom")
    fails(
        read,
        r"line 2: no image .*a\.dicom",
        r"z\.dicom: no row in .*image_labels_train\.csv",
        skipped=2,
        left=2,
    )


def test_vindr_prefers_dicom(tmp_path):
    root = vindr_tree(tmp_path)
    write_image(root / "train/a.png")
    data = read_vindr_cxr(root, agreement="all")
    assert data.images[0].endswith("a.dicom")


# Open-i


def test_open_i(tmp_path):
    data = read_open_i(open_i_tree(tmp_path))
    first = "CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"
    assert data.ids == (*first, "CXR2_IM-0652-1001", "CXR3_IM-1384-1001")
    assert data.patients == data.studies == ("CXR1", "CXR1", "CXR2", "CXR3")
    assert data.texts == (*["Heart is large. Cardiomegaly."] * 2, "Clear.", "")
    assert data.label_names == ("Cardiomegaly", "Lung", "normal")
    np.testing.assert_array_equal(data.labels, [[P, P, N], [P, P, N], [N, N, P], [B, B, B]])
    blank = read_open_i(tmp_path, absent="blank", section="all")
    np.testing.assert_array_equal(blank.labels[2], [B, B, P])
    assert blank.texts[3] == "Pain."
    assert blank.left_out == {"reports without images": 1}
    assert blank.skipped == ()


def test_open_i_damaged(tmp_path):
    root = open_i_tree(tmp_path)

    def read(**options):
        return read_open_i(root, **options)

    report = root / "ecgen-radiology/2.xml"
    whole = report.read_text()
    image = "CXR2_IM-0652-1001.png"
    report.write_text(whole[:-9])
    fails(read, r"2\.xml: not well-formed XML", f"{image}: no row in", skipped=2, left=3)
    report.write_bytes(whole.replace("Clear", "Cl\xe9ar").encode("latin-1"))
    fails(read, r"2\.xml: not well-formed XML", skipped=2, left=3)
    report.write_text(whole.replace("Clear.", " "))
    fails(read, r"2\.xml: the report is empty", skipped=2, left=3)
    report.write_text(whole.replace('<uId id="CXR2"/>', ""))
    fails(read, r"2\.xml: no uId", skipped=2, left=3)
    report.write_text(open_i_report("CXR2", ("normal",), ("CXR3_IM-1384-1001", "lost")))
    fails(
        read,
        r"3\.xml: image CXR3_IM-1384-1001 is also in .*2\.xml",
        r"2\.xml: no image lost in",
        f"{image}: no row in the reports of",
        skipped=3,
        left=3,
    )
    with pytest.raises(FileNotFoundError, match=r"no reports at .*there are no \.xml files"):
        read_open_i(write_image(tmp_path / "empty/a.png").parent)


def test_open_i_twice_the_same_image(tmp_path):
    root = open_i_tree(tmp_path)
    write_image(root / "copy/CXR2_IM-0652-1001.png")
    fails(lambda **o: read_open_i(root, **o), "the same file name as", left=4)


# CheXpert and PadChest


def test_chexpert(tmp_path):
    data = read_chexpert(chexpert_tree(tmp_path))
    assert data.ids[0] == "train/patient00001/study1/view1_frontal.jpg"
    assert data.patients == ("patient00001", "patient00001", "patient64541")
    assert data.studies == ("patient00001/study1", "patient00001/study1", "patient64541/study1")
    assert data.views == ("AP", "Lateral", "PA")
    assert data.splits == ("train", "train", "valid")
    assert data.label_names == tuple(CHEXPERT_HEADER)
    np.testing.assert_array_equal(data.labels[0], [P, N, U, *[B] * 11])
    assert read_pixels(data.images[0]).shape == (2, 2)
    valid = read_chexpert(tmp_path, tables={"a": "valid.csv"})
    assert (valid.splits, valid.skipped) == (("a",), ())
    write_image(tmp_path / "valid/patient7/study1/view1_frontal.jpg")
    fails(
        lambda **o: read_chexpert(tmp_path, tables={"a": "valid.csv"}, **o),
        r"patient7.*: no row in",
        left=1,
    )
    (tmp_path / "valid/patient7/study1/view1_frontal.jpg").unlink()
    check_disjoint({"two": data.select([0, 1]), "one": data.select([2])})


def test_chexpert_labels_of_radiologists(tmp_path):
    """The test set: a table of paths and labels alone, beside other splits."""
    root = chexpert_tree(tmp_path)
    paths = [f"test/patient64741/study1/view{n}.jpg" for n in ("1_frontal", "2_lateral", "3")]
    codes = ["1.0", "0.0", "1"] + ["0"] * 11
    write_csv(root / "test_labels.csv", ["Path", *CHEXPERT_HEADER], [[p, *codes] for p in paths])
    for path in paths:
        write_image(root / path)
    data = read_chexpert(root, tables={"test": "test_labels.csv"})
    assert data.ids == tuple(paths)
    assert set(data.patients) == {"patient64741"}
    assert data.views == ("Frontal", "Lateral", "")
    assert set(data.splits) == {"test"}
    assert data.skipped == ()
    np.testing.assert_array_equal(data.labels[0], [P, N, P, *[N] * 11])
    edit(root / "test_labels.csv", "Path", "Study")
    with pytest.raises(DatasetError, match="missing columns Path; the header has Study"):
        read_chexpert(root, tables={"test": "test_labels.csv"})


def test_chexpert_damaged(tmp_path):
    root = chexpert_tree(tmp_path)
    table = root / "valid.csv"
    whole = table.read_bytes()
    line = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"

    def read(**options):
        return read_chexpert(root, **options)

    edit(table, line, "view1.jpg")
    fails(read, r"line 2: Path has no folders of patient and study", skipped=2, left=2)
    table.write_bytes(whole)
    edit(table, line, line.replace("view1", "view7"))
    fails(read, r"line 2: no image .*view7_frontal\.jpg", skipped=2, left=2)
    table.write_bytes(whole)
    append(table, table.read_text().splitlines()[1])
    fails(read, r"valid\.csv, line 3: Path .*view1_frontal\.jpg occurs twice", left=3)
    table.write_bytes(whole)
    edit(table, "0.0", "maybe")
    fails(read, r"line 2: unknown label value \(5 characters\) in column No Finding", left=2)


def test_padchest(tmp_path):
    data = read_padchest(padchest_tree(tmp_path))
    assert data.ids == ("a.png", "b.png", "c.png")
    assert data.patients == ("pa", "pb", "pb")
    assert data.studies == ("s1", "s2", "s3")
    assert data.views == ("PA", "L", "PA")
    assert data.texts == ("torax normal .", "", "x")
    assert data.label_names == ("nodule", "normal", "scoliosis")
    np.testing.assert_array_equal(data.labels, [[N, P, N], [P, N, P], [B, B, B]])
    edit(tmp_path / PADCHEST, ",nan", ",None")
    edit(tmp_path / PADCHEST, ",pb,", ",7.0,")
    edit(tmp_path / PADCHEST, ",pb,", ",7,")
    assert read_padchest(tmp_path).patients == ("pa", "7", "7")
    blank = read_padchest(tmp_path, absent="blank")
    np.testing.assert_array_equal(blank.labels[0], [B, P, B])


def test_padchest_damaged(tmp_path):
    root = padchest_tree(tmp_path)
    table = root / PADCHEST
    whole = table.read_bytes()

    def read(**options):
        return read_padchest(root, **options)

    for bad in ("__import__('os')", "['normal'", "{'normal'}", "[1]", "['normal' 'x']"):
        edit(table, "['normal']", f'"{bad}"')
        fails(read, "line 2: Labels is not a list of names", left=2)
        table.write_bytes(whole)
    edit(table, "a.png", "b.png")
    fails(read, r"line 3: ImageID b\.png occurs twice", r"a\.png: no row in", skipped=2, left=2)
    table.write_bytes(whole)
    edit(table, ",pa,", ",,")
    fails(read, "line 2: PatientID is empty", left=2)
    table.write_bytes(whole)
    (root / "0/a.png").unlink()
    assert fails(read, r"line 2: no image a\.png below", left=2).left_out == {"without image": 1}
    table.write_bytes(whole.replace(b"torax", b"t\xf3rax"))
    with pytest.raises(DatasetError, match=r"160K_01\.02\.19\.csv: not utf-8-sig text after line"):
        read(on_error="skip")


def test_nothing_left(tmp_path):
    root = padchest_tree(tmp_path)
    for path in root.glob("*/*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"PadChest: no image was found; skipped: .*line 2"):
        read_padchest(root, on_error="skip")


def test_documented_example(tmp_path):
    """From files to anchors and labels, as in docs/data.md."""
    root = mimic_tree(tmp_path)
    data = read_mimic_cxr(root, reports=root, section="impression", views=("PA", "LATERAL", "AP"))
    split = patient_split(data.patients, {"train": 0.5, "test": 0.5}, seed=0)
    test = data.select(split.parts["test"])
    anchors = sample_anchors(data.select(data.has_text), 1, seed=0, exclude_patients=test)
    check_disjoint({"anchors": anchors, "test": test})
    labels, known = binary_labels(test, "ignore", blank="zeros")
    assert labels.shape == known.shape == (len(test), 14)
    assert [path for path, _ in read_many(test.images)] == list(test.images)
