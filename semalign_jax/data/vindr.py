"""VinDr-CXR (Nguyen et al. 2022, Scientific Data 9, 429; arXiv 2012.15029)."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from .._core import checks
from ._dataset import Box, DatasetError, ImageTextDataset, Label, Problems, Rows
from ._files import (
    cell,
    files_without_rows,
    find_files,
    folder,
    id_cell,
    label_codes,
    quoted,
    read_csv,
    read_header,
    refuse_missing,
    stem_index,
    table_path,
)

VINDR_LOCAL_LABELS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
VINDR_GLOBAL_LABELS = (
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
VINDR_LABELS = VINDR_LOCAL_LABELS + VINDR_GLOBAL_LABELS
_READERS = 3
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
_WRONG_BOX = "with a wrong box"
_EDGES = ("x_min", "y_min", "x_max", "y_max")
# The published tables differ in capitals and in one plural.
_KNOWN = {name.lower(): name for name in VINDR_LABELS} | {"other disease": "Other diseases"}


def read_vindr_cxr(
    root: str | os.PathLike,
    *,
    agreement: Literal["majority", "any", "all"],
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read VinDr-CXR: 22 local and 6 global labels.

    The folder holds train/ and test/ with <image_id>.dicom (or .dcm, .png, .jpg; the first of
    these if there are several), and, in it or in annotations/, image_labels_train.csv and
    image_labels_test.csv, annotations_train.csv and annotations_test.csv. Three readers labelled
    each training image; test labels are the consensus of five. Boxes are those of every reader.
    No patient ids are published: every image stands for a patient.

    Args:
        root: folder of the data set.
        agreement: when a training label is positive: if most of the three readers say so
            ("majority"), one of them ("any"), or all of them ("all").
        on_error: "raise", or "skip" images with doubled, missing or unknown labels, rows
            without images, boxes without labels, and files without rows, and list them in
            `skipped`.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        DatasetError: if a table lacks columns or is not UTF-8, or for the problems above.
        ValueError: for another `agreement`.
    """
    checks.option("agreement", agreement, ("majority", "any", "all"))
    root = folder(root, "VinDr-CXR")
    problems = Problems("VinDr-CXR", on_error)
    rows = Rows("VinDr-CXR", VINDR_LABELS)
    places = [root, root / "annotations"]
    for split in ("train", "test"):
        labels_path = table_path(places, f"image_labels_{split}.csv")
        boxes_path = table_path(places, f"annotations_{split}.csv")
        images = folder(root / split, "VinDr-CXR images")
        found = find_files(images, _SUFFIXES)
        files = stem_index(found, _SUFFIXES, problems)
        votes = _read_votes(labels_path, split, problems)
        boxes = _read_boxes(boxes_path, split, votes, problems)
        for image_id, (where, readers) in votes.items():
            if not readers:
                continue
            expected = _READERS if split == "train" else 1
            if len(readers) != expected:
                problems.add(
                    f"{where}: image_id {image_id} has {len(readers)} readers, expected {expected}",
                    "with doubled or missing labels",
                )
            elif image_id not in files:
                problems.add(f"{where}: no image {images / image_id}.dicom", "without image")
            else:
                share = np.mean([codes for codes in readers.values()], axis=0)
                positive = {"majority": share > 0.5, "any": share > 0, "all": share == 1}[agreement]
                rows.add(
                    id=image_id,
                    patient=image_id,
                    image=files[image_id],
                    split=split,
                    view="PA",
                    labels=[Label.POSITIVE if p else Label.NEGATIVE for p in positive],
                    boxes=boxes.get(image_id, ()),
                )
        named = [path for path in found if Path(path).stem in votes]
        files_without_rows(found, named, labels_path, problems)
    return rows.build(problems)


def _read_votes(
    path: Path, split: str, problems: Problems
) -> dict[str, tuple[str, dict[str, list[int]]]]:
    """Codes by image and reader, with the image's first line; none for images that are skipped."""
    votes: dict[str, tuple[str, dict[str, list[int]]]] = {}
    bad: set[str] = set()
    columns = _label_columns(path)
    names = ("image_id", *(("rad_id",) if split == "train" else ()))
    for where, row in read_csv(path, (*names, *columns.values())):
        try:
            image_id = id_cell(row, "image_id", where)
            reader = cell(row, "rad_id", where) if split == "train" else "consensus"
            _, readers = votes.setdefault(image_id, (where, {}))
            if reader in readers:
                bad.add(image_id)
                raise DatasetError(
                    f"{where}: image_id {image_id} occurs twice for {reader}",
                    "with doubled or missing labels",
                )
            try:
                codes = label_codes(row, (columns[name] for name in VINDR_LABELS), where)
                if not set(codes) <= {Label.POSITIVE, Label.NEGATIVE}:
                    raise DatasetError(
                        f"{where}: a label is neither 0 nor 1", "with unknown label values"
                    )
            except DatasetError:
                bad.add(image_id)
                raise
            readers[reader] = [int(code) for code in codes]
        except DatasetError as error:
            problems.add(error)
    for image_id in bad:
        votes[image_id][1].clear()
    return votes


def _label_columns(path: Path) -> dict[str, str]:
    """Column of each label; the label itself where there is none, which the table then lacks."""
    header = read_header(path)
    known = [_KNOWN.get(column.lower(), "") for column in header]
    refuse_missing(path, known, [name for name in VINDR_LABELS if name in known])
    found = {name: own for name, own in zip(known, header, strict=True) if name}
    return {name: name for name in VINDR_LABELS} | found


def _read_boxes(path: Path, split: str, votes: dict, problems: Problems) -> dict[str, list[Box]]:
    required = ("image_id", "class_name", *_EDGES, *(("rad_id",) if split == "train" else ()))
    boxes: dict[str, list[Box]] = {}
    for where, row in read_csv(path, required):
        try:
            image_id = id_cell(row, "image_id", where)
            name = _KNOWN.get(row["class_name"].lower())
            if name is None:
                raise DatasetError(
                    f"{where}: unknown class_name {quoted(row['class_name'])}", _WRONG_BOX
                )
            if image_id not in votes:
                raise DatasetError(f"{where}: image_id {image_id} has no image labels", _WRONG_BOX)
            if all(not row[edge] for edge in _EDGES):  # "No finding" and other global labels
                if name in VINDR_LOCAL_LABELS:
                    raise DatasetError(f"{where}: {name} without a box", _WRONG_BOX)
                continue
            try:
                edges = [float(row[edge]) for edge in _EDGES]
            except ValueError:
                raise DatasetError(
                    f"{where}: {', '.join(_EDGES)} are not all numbers", _WRONG_BOX
                ) from None
            if not (edges[0] < edges[2] and edges[1] < edges[3] and np.isfinite(edges).all()):
                raise DatasetError(f"{where}: the box is empty: {edges}", _WRONG_BOX)
            reader = row["rad_id"] if split == "train" else "consensus"
            boxes.setdefault(image_id, []).append(Box(name, reader, *edges))
        except DatasetError as error:
            problems.add(error)
    return boxes
