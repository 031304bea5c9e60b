"""MIMIC-CXR-JPG (Johnson et al. 2019, arXiv 1901.07042) with the reports of MIMIC-CXR."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .._core import checks
from .._core.ids import id_text
from ._dataset import DatasetError, ImageTextDataset, Label, Problems, Rows
from ._files import (
    cell,
    files_without_rows,
    find_files,
    folder,
    id_cell,
    label_codes,
    note_once,
    quoted,
    read_csv,
    read_header,
    table_path,
)
from ._reports import Section, named_section, report_text, sections_text, without_blanks

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
_LABELERS = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}
#: Other names of labels in the radiologist's table.
_OTHER_NAMES = {"Lung Opacity": "Airspace Opacity"}
# Notes of the MIMIC-CXR code repository on odd studies, by study id: the section that holds the
# text, ...
_ODD_SECTIONS = {
    "50913680": "recommendations",
    "59363654": "examination",
    "59279892": "technique",
    "59768032": "recommendations",
    "57936451": "indication",
    "50058765": "indication",
    "53356173": "examination",
    "53202765": "technique",
    "50808053": "technique",
    "51966317": "indication",
    "50743547": "examination",
    "56451190": "note",
    "59067458": "recommendations",
    "59215320": "examination",
    "55124749": "indication",
    "54365831": "indication",
    "59087630": "recommendations",
    "58157373": "recommendations",
    "56482935": "recommendations",
    "58375018": "recommendations",
    "54654948": "indication",
    "55157853": "examination",
    "51491012": "history",
}
# ... or its first character and the one after its last; ...
_ODD_RANGES = {
    "50525523": (201, 349),
    "57564132": (233, 554),
    "59982525": (313, 717),
    "53488209": (149, 475),
    "54875119": (234, 988),
    "50196495": (59, 399),
    "56579911": (59, 218),
    "52648681": (292, 631),
    "59889364": (172, 453),
    "53514462": (73, 377),
    "59505494": (59, 450),
    "53182247": (59, 412),
    "51410602": (47, 320),
    "56412866": (522, 822),
    "54986978": (59, 306),
    "59003148": (262, 505),
    "57150433": (61, 394),
    "56760320": (219, 457),
    "59562049": (158, 348),
    "52674888": (145, 296),
    "55258338": (192, 568),
    "59330497": (140, 655),
    "52119491": (179, 454),
    # ... these hold none.
    **dict.fromkeys(
        ("58235663", "50798377", "54168089", "53071062", "56724958", "54231141", "53607029"),
        (0, 0),
    ),
}


def read_mimic_cxr(
    root: str | os.PathLike,
    *,
    reports: str | os.PathLike | None = None,
    labeler: Literal["chexpert", "negbio", "radiologist"] = "chexpert",
    section: Section = "both",
    keep_blanks: bool = True,
    views: Sequence[str] | None = None,
    need_images: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read MIMIC-CXR-JPG: one entry for each image of the metadata file.

    The folder holds mimic-cxr-2.0.0-metadata.csv, -split.csv, and the table of the `labeler`, each
    perhaps with .gz, and files/p10/p10000032/s50414267/<dicom_id>.jpg. Labels and reports
    belong to studies, so all images of a study share them. A few studies have no labels in the
    published files: theirs are blank.

    Args:
        root: folder of MIMIC-CXR-JPG.
        reports: folder of MIMIC-CXR with files/p10/p10000032/s50414267.txt; None for no texts.
        labeler: whose labels. "radiologist" reads mimic-cxr-2.1.0-test-set-labeled.csv, and keeps
            only images of its studies; its "Airspace Opacity" is "Lung Opacity" here, and labels
            that it lacks are blank.
        section: what to take from a report; see `report_text`. Many reports lack a section:
            their texts are empty, and `has_text` tells which. Of some studies of odd format the
            MIMIC-CXR code repository notes where the text is: it is taken for "both".
        keep_blanks: whether de-identified words stay in texts as "___".
        views: keep only these ViewPosition values, e.g. ("PA", "AP"); `left_out` counts the others.
        need_images: whether each row must have an image. If not, those that are not there are
            empty paths: for work on reports alone, the tables of MIMIC-CXR-JPG are enough.
        on_error: "raise", or "skip" rows without image, split or report, empty reports, doubled
            ids, unknown label values, and images without row, and list them in `skipped`. Of a
            doubled id one row is kept if all are equal, none if they contradict each other.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        DatasetError: if a table lacks columns or is not UTF-8, or for the problems above.
        TypeError: if `views` is one string.
        ValueError: for another option.
    """
    checks.option("labeler", labeler, _LABELERS)
    report_text("", section)  # refuse a wrong section before hours of reading
    root = folder(root, "MIMIC-CXR-JPG")
    reports = None if reports is None else folder(reports, "MIMIC-CXR reports")
    problems = Problems("MIMIC-CXR", on_error)
    metadata = table_path([root], "mimic-cxr-2.0.0-metadata.csv")
    splits = _read_splits(table_path([root], "mimic-cxr-2.0.0-split.csv"), problems)
    labels = _read_labels(table_path([root], _LABELERS[labeler]), labeler, problems)
    blank = [Label.BLANK] * len(MIMIC_LABELS)
    checks.flag("need_images", need_images)
    if isinstance(views, str):  # every view that is a part of the word would be kept, and ""
        raise TypeError(f'views must be a list of names; got {views!r}, write ["{views}"]')
    found = find_files(root / "files", (".jpg", ".jpeg"))
    present = set(found)
    texts: dict[str, str | DatasetError] = {}
    rows, named, seen = Rows("MIMIC-CXR", MIMIC_LABELS), set(), set()
    for where, row in read_csv(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        try:
            image_id = cell(row, "dicom_id", where)
            subject, study = id_cell(row, "subject_id", where), id_cell(row, "study_id", where)
            place = os.path.join("files", f"p{subject[:2]}", f"p{subject}", f"s{study}")
            image = str(root / place / f"{image_id}.jpg")
            named.add(image)
            note_once(seen, image_id, "dicom_id", where)
            view = row["ViewPosition"].upper()
            if views is not None and view not in views:
                problems.left_out["of other views"] += 1
                continue
            if labeler == "radiologist" and study not in labels:
                problems.left_out[f"of studies that are not in {_LABELERS[labeler]}"] += 1
                continue
            if image not in present and need_images:
                raise DatasetError(f"{where}: no image {image}", "without image")
            if image_id not in splits:
                raise DatasetError(
                    f"{where}: dicom_id {image_id} is not in the split table", "without split"
                )
            if (found_split := splits[image_id]) is None:
                raise DatasetError(
                    f"{where}: the split of dicom_id {image_id} cannot be read", "without split"
                )
            split, key = found_split
            if key != (subject, study):
                raise DatasetError(
                    f"{where}: subject_id or study_id of {image_id} differs in the split table",
                    "with contradicting rows",
                )
            text = ""
            if reports is not None:
                if study not in texts:
                    path = reports / f"{place}.txt"
                    texts[study] = _read_report(path, study, section, keep_blanks)
                text = texts[study]
                if isinstance(text, DatasetError):
                    raise DatasetError(f"{where}: {text}", text.reason)
            codes = labels.get(study, blank)
            if codes is None:
                raise DatasetError(
                    f"{where}: the labels of study {study} cannot be read",
                    "with unknown label values",
                )
        except DatasetError as error:
            problems.add(error)
            continue
        rows.add(
            id=image_id,
            patient=subject,
            study=study,
            image=image if image in present else "",
            text=text,
            split=split,
            view=view,
            labels=codes,
        )
    files_without_rows(found, named, metadata, problems)
    return rows.build(problems)


def _read_splits(path: Path, problems: Problems) -> dict[str, tuple[str, tuple[str, str]] | None]:
    """Split, and subject and study, by image; None where it is unknown or rows contradict."""
    splits: dict[str, tuple[str, tuple[str, str]] | None] = {}
    for where, row in read_csv(path, ("dicom_id", "study_id", "subject_id", "split")):
        name = row["dicom_id"]
        if row["split"] not in _SPLITS:
            splits[name] = None
            problems.add(
                f"{where}: unknown split {quoted(row['split'])}; expected {', '.join(_SPLITS)}",
                "with unknown split",
            )
            continue
        found = row["split"], (id_text(row["subject_id"]), id_text(row["study_id"]))
        if name in splits:
            problems.add(f"{where}: dicom_id {name} occurs twice", "with doubled id")
        if splits.setdefault(name, found) != found:
            splits[name] = None
    return splits


def _read_labels(path: Path, labeler: str, problems: Problems) -> dict[str, list[Label] | None]:
    """Codes by study; None where a row has an unknown value, or rows contradict each other."""
    columns = {name: name for name in MIMIC_LABELS}
    if labeler == "radiologist":
        header = read_header(path)
        columns = {
            name: name if name in header else _OTHER_NAMES.get(name, name) for name in MIMIC_LABELS
        }
        columns = {name: own for name, own in columns.items() if own in header} or columns
    labels: dict[str, list[Label] | None] = {}
    for where, row in read_csv(path, ("study_id", *columns.values())):
        study = None
        try:
            study = id_cell(row, "study_id", where)
            if study in labels:
                problems.add(f"{where}: study_id {study} occurs twice", "with doubled id")
            own = dict(zip(columns, label_codes(row, columns.values(), where), strict=True))
            codes = [own.get(name, Label.BLANK) for name in MIMIC_LABELS]
            if labels.setdefault(study, codes) != codes:
                labels[study] = None
        except DatasetError as error:
            if study is not None:
                labels[study] = None
            problems.add(error)
    return labels


def _read_report(path: Path, study: str, section: Section, keep_blanks: bool) -> str | DatasetError:
    """The wanted text, or what is wrong with the file."""
    try:
        report = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return DatasetError(f"no report {path}", "without report")
    except UnicodeDecodeError as error:
        return DatasetError(f"report {path} is not UTF-8: byte {error.start}")
    if not report.strip():
        return DatasetError(f"report {path} is empty", "with empty report")
    if section == "all" or study not in _ODD_SECTIONS.keys() | _ODD_RANGES.keys():
        return report_text(report, section, keep_blanks=keep_blanks)
    if study in _ODD_SECTIONS:
        text = named_section(report, _ODD_SECTIONS[study])
    else:
        text = report_text(report[slice(*_ODD_RANGES[study])], "all")
    # Whether it is of the findings or the impression is not known, as of a last paragraph.
    text = sections_text({"last_paragraph": text}, section)
    return text if keep_blanks else without_blanks(text)
