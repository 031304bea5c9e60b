"""MIMIC-CXR-JPG (Johnson et al. 2019, arXiv 1901.07042) with the reports of MIMIC-CXR."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .._core import checks
from ._dataset import DatasetError, ImageTextDataset, Label, Problems, Rows
from ._files import (
    cell,
    files_without_rows,
    find_files,
    folder,
    label_codes,
    quoted,
    read_csv,
    table_path,
)
from ._reports import Section, report_text

MIMIC_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
_SPLITS = ("train", "validate", "test")


def read_mimic_cxr(
    root: str | os.PathLike,
    *,
    reports: str | os.PathLike | None = None,
    labeler: Literal["chexpert", "negbio"] = "chexpert",
    section: Section = "both",
    keep_blanks: bool = True,
    views: Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read MIMIC-CXR-JPG: one entry for each image of the metadata file.

    The folder holds mimic-cxr-2.0.0-metadata.csv, -split.csv, and -chexpert.csv or -negbio.csv,
    each perhaps with .gz, and files/p10/p10000032/s50414267/<dicom_id>.jpg. Labels and reports
    belong to studies, so all images of a study share them. A few studies have no labels in the
    published files: theirs are blank.

    Args:
        root: folder of MIMIC-CXR-JPG.
        reports: folder of MIMIC-CXR with files/p10/p10000032/s50414267.txt; None for no texts.
        labeler: whose labels.
        section: what to take from a report; see `report_text`. Many reports lack a section:
            their texts are empty, and `has_text` tells which.
        keep_blanks: whether de-identified words stay in texts as "___".
        views: keep only these ViewPosition values, e.g. ("PA", "AP").
        on_error: "raise", or "skip" rows without image, split or report, empty reports, doubled
            ids, unknown label values, and images without row, and list them in `skipped`.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        DatasetError: if a table lacks columns or is not UTF-8, or for the problems above.
        ValueError: for another option.
    """
    checks.option("labeler", labeler, ("chexpert", "negbio"))
    report_text("", section)  # refuse a wrong section before hours of reading
    root = folder(root, "MIMIC-CXR-JPG")
    reports = None if reports is None else folder(reports, "MIMIC-CXR reports")
    problems = Problems("MIMIC-CXR", on_error)
    metadata = table_path([root], "mimic-cxr-2.0.0-metadata.csv")
    splits = _read_splits(table_path([root], "mimic-cxr-2.0.0-split.csv"), problems)
    labels = _read_labels(table_path([root], f"mimic-cxr-2.0.0-{labeler}.csv"), problems)
    blank = [Label.BLANK] * len(MIMIC_LABELS)
    found = find_files(root / "files", (".jpg", ".jpeg"))
    present = set(found)
    texts: dict[str, str | DatasetError] = {}
    rows, named, seen = Rows("MIMIC-CXR", MIMIC_LABELS), set(), set()
    for where, row in read_csv(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        try:
            image_id = cell(row, "dicom_id", where)
            subject, study = cell(row, "subject_id", where), cell(row, "study_id", where)
            place = os.path.join("files", f"p{subject[:2]}", f"p{subject}", f"s{study}")
            image = str(root / place / f"{image_id}.jpg")
            named.add(image)
            if image_id in seen:
                raise DatasetError(f"{where}: dicom_id {image_id} occurs twice")
            seen.add(image_id)
            view = row["ViewPosition"].upper()
            if views is not None and view not in views:
                continue
            if image not in present:
                raise DatasetError(f"{where}: no image {image}")
            if image_id not in splits:
                raise DatasetError(f"{where}: dicom_id {image_id} is not in the split table")
            split, key = splits[image_id]
            if key != (subject, study):
                raise DatasetError(
                    f"{where}: subject_id or study_id of {image_id} differs in the split table"
                )
            text = ""
            if reports is not None:
                if study not in texts:
                    texts[study] = _read_report(reports / f"{place}.txt", section, keep_blanks)
                text = texts[study]
                if isinstance(text, DatasetError):
                    raise DatasetError(f"{where}: {text}")
            codes = labels.get((subject, study), blank)
            if codes is None:
                raise DatasetError(f"{where}: the labels of study {study} cannot be read")
        except DatasetError as error:
            problems.add(error)
            continue
        rows.add(
            id=image_id,
            patient=subject,
            study=study,
            image=image,
            text=text,
            split=split,
            view=view,
            labels=codes,
        )
    files_without_rows(found, named, metadata, problems)
    return rows.build(problems)


def _read_splits(path: Path, problems: Problems) -> dict[str, tuple[str, tuple[str, str]]]:
    splits: dict[str, tuple[str, tuple[str, str]]] = {}
    for where, row in read_csv(path, ("dicom_id", "study_id", "subject_id", "split")):
        if row["dicom_id"] in splits:
            problems.add(f"{where}: dicom_id {row['dicom_id']} occurs twice")
        elif row["split"] not in _SPLITS:
            problems.add(
                f"{where}: unknown split {quoted(row['split'])}; expected {', '.join(_SPLITS)}"
            )
        else:
            splits[row["dicom_id"]] = row["split"], (row["subject_id"], row["study_id"])
    return splits


def _read_labels(path: Path, problems: Problems) -> dict[tuple[str, str], list[Label] | None]:
    """Codes by (subject, study); None where the row has an unknown value."""
    labels: dict[tuple[str, str], list[Label] | None] = {}
    for where, row in read_csv(path, ("subject_id", "study_id", *MIMIC_LABELS)):
        key = row["subject_id"], row["study_id"]
        try:
            if key in labels:
                raise DatasetError(f"{where}: study_id {key[1]} occurs twice")
            labels[key] = None
            labels[key] = label_codes(row, MIMIC_LABELS, where)
        except DatasetError as error:
            problems.add(error)
    return labels


def _read_report(path: Path, section: Section, keep_blanks: bool) -> str | DatasetError:
    """The wanted text, or what is wrong with the file."""
    try:
        report = path.read_text("utf-8")
    except FileNotFoundError:
        return DatasetError(f"no report {path}")
    except UnicodeDecodeError as error:
        return DatasetError(f"report {path} is not UTF-8: byte {error.start}")
    if not report.strip():
        return DatasetError(f"report {path} is empty")
    return report_text(report, section, keep_blanks=keep_blanks)
