"""RSNA Pneumonia Detection Challenge (Shih et al. 2019, Radiology: AI 1(1), e180041)."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from .._core.documents import parse_json
from .._core.ids import id_text
from ._dataset import Box, DatasetError, ImageTextDataset, Label, Problems, Rows, codes_of
from ._files import (
    files_without_rows,
    find_files,
    folder,
    id_cell,
    label_codes,
    quoted,
    read_csv,
    stem_index,
    table_path,
)

RSNA_LABELS = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
_SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")
_CORNERS = ("x", "y", "width", "height")


def read_rsna(
    root: str | os.PathLike,
    *,
    nih_mapping: str | os.PathLike | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read the training images of the RSNA challenge, stage 2; the test images have no labels.

    The folder holds stage_2_train_labels.csv (a row for each box), stage_2_detailed_class_info.csv
    and stage_2_train_images/<patientId>.dcm. The labels are the three classes, exactly one of
    which is positive; "Lung Opacity" is the challenge's Target, i.e. suspected pneumonia.

    The challenge's patientId stands for an image. The images come from NIH ChestX-ray14, where
    one patient may have many, so splits by patientId can share patients. The mapping file of the
    RSNA tells the NIH patient.

    Args:
        root: folder of the challenge.
        nih_mapping: JSON list of objects with subset_img_id (the patientId) and img_id (the NIH
            file, e.g. 00000001_000.png); patient ids are then those of NIH, without zeros in front,
            as in the column Patient ID of its own table: 1.
        on_error: "raise", or "skip" images with contradicting or missing rows, boxes that cannot be
            read, and files without rows, and list them in `skipped`.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        DatasetError: if a table lacks columns or is not UTF-8, or for the problems above.
    """
    root = folder(root, "RSNA data")
    problems = Problems("RSNA", on_error)
    labels_path = table_path([root], "stage_2_train_labels.csv")
    classes = _read_classes(table_path([root], "stage_2_detailed_class_info.csv"), problems)
    images = folder(root / "stage_2_train_images", "RSNA images")
    found = find_files(images, _SUFFIXES)
    files = stem_index(found, _SUFFIXES, problems)
    patients = None if nih_mapping is None else _nih_patients(Path(nih_mapping))
    targets: dict[str, tuple[str, Label]] = {}
    boxes: dict[str, list[Box]] = {}
    bad: set[str] = set()
    for where, row in read_csv(labels_path, ("patientId", *_CORNERS, "Target")):
        try:
            name = id_cell(row, "patientId", where)
            try:
                (target,) = label_codes(row, ("Target",), where)
                if target not in (Label.POSITIVE, Label.NEGATIVE):
                    raise DatasetError(
                        f"{where}: Target is not 1 or 0", "with unknown label values"
                    )
                if targets.setdefault(name, (where, target))[1] != target:
                    raise DatasetError(
                        f"{where}: patientId {name} has Target 0 and 1", "with contradicting rows"
                    )
            except DatasetError:
                bad.add(name)
                raise
            if target == Label.POSITIVE:
                boxes.setdefault(name, []).append(_box(row, where))
            elif any(row[corner] for corner in _CORNERS):
                raise DatasetError(f"{where}: a box, but Target is 0", "with contradicting rows")
        except DatasetError as error:
            problems.add(error)
    rows = Rows("RSNA", RSNA_LABELS)
    for name, (where, target) in targets.items():
        if name in bad:
            continue
        kind = classes.get(name)
        try:
            if name not in files:
                raise DatasetError(f"{where}: no image {images / name}.dcm", "without image")
            if kind is None:
                raise DatasetError(
                    f"{where}: patientId {name} has no class, or several, in the class table",
                    "without class",
                )
            if (kind == "Lung Opacity") != (target == Label.POSITIVE):
                raise DatasetError(
                    f"{where}: Target is {target:d}, but the class is {kind!r}",
                    "with contradicting rows",
                )
            if patients is not None and name not in patients:
                raise DatasetError(
                    f"{where}: patientId {name} is not in {nih_mapping}", "without NIH patient"
                )
        except DatasetError as error:
            problems.add(error)
            continue
        rows.add(
            id=name,
            patient=name if patients is None else patients[name],
            image=files[name],
            split="train",
            labels=codes_of([kind], RSNA_LABELS),
            boxes=boxes.get(name, ()),
        )
    for name in classes.keys() - targets.keys() - bad:
        problems.add(f"patientId {name} of the class table is not in {labels_path}", "without row")
    known = targets.keys() | bad
    named = [path for path in found if Path(path).stem in known]
    files_without_rows(found, named, labels_path, problems)
    return rows.build(problems)


def _read_classes(path: Path, problems: Problems) -> dict[str, str | None]:
    """Class by patientId; the table has a row for each box, so ids may repeat.

    None where a row has an unknown class, or rows contradict each other.
    """
    classes: dict[str, str | None] = {}
    for where, row in read_csv(path, ("patientId", "class")):
        name, kind = id_text(row["patientId"]), row["class"]
        if kind not in RSNA_LABELS:
            problems.add(
                f"{where}: unknown class {quoted(kind)}; expected {', '.join(RSNA_LABELS)}",
                "with unknown label values",
            )
            classes[name] = None
        elif classes.setdefault(name, kind) not in (kind, None):
            problems.add(
                f"{where}: patientId {name} has the classes {classes[name]!r}, {kind!r}",
                "with contradicting rows",
            )
            classes[name] = None
    return classes


def _box(row: dict[str, str], where: str) -> Box:
    try:
        x, y, width, height = (float(row[corner]) for corner in _CORNERS)
    except ValueError:
        raise DatasetError(
            f"{where}: Target is 1, but x, y, width, height are no box", "with a wrong box"
        ) from None
    if not (width > 0 and height > 0 and np.isfinite((x, y, width, height)).all()):
        raise DatasetError(
            f"{where}: a box of width {width} and height {height}", "with a wrong box"
        )
    return Box("Lung Opacity", "", x, y, x + width, y + height)


def _nih_patients(path: Path) -> dict[str, str]:
    try:
        entries = parse_json(path.read_bytes(), path)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    if not isinstance(entries, list):
        raise DatasetError(f"{path}: not a list of objects with subset_img_id and img_id")
    patients: dict[str, str] = {}
    for i, entry in enumerate(entries):
        try:
            patient = entry["img_id"].split("_")[0].lstrip("0") or "0"
            name = id_text(entry["subset_img_id"])
        except (TypeError, KeyError, AttributeError):
            raise DatasetError(
                f"{path}: entry {i} is not an object with subset_img_id and img_id"
            ) from None
        if patients.setdefault(name, patient) != patient:
            raise DatasetError(
                f"{path}: subset_img_id {name} is of the patients {patients[name]} and {patient}"
            )
    return patients
