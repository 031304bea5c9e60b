"""CheXpert, PadChest, and any table with an image column."""

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._core import checks
from .._core.files import as_path, reading
from .._core.ids import id_text
from ._dataset import DatasetError, ImageTextDataset, Label, Problems, Rows, codes_of
from ._files import (
    cell,
    files_without_rows,
    find_files,
    folder,
    id_cell,
    known_text,
    label_codes,
    note_once,
    quoted,
    read_csv,
    read_header,
    refuse_missing,
    stem_index,
    table_path,
)

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_CHEXPERT_PATH = re.compile(
    r"^(?:CheXpert-v1\.0[^/]*/)?(?P<rest>.*?(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"(?:view\d+_(?P<view>frontal|lateral))?[^/]+)$"
)
_CHEXPERT_VIEWS = ("AP/PA", "Frontal/Lateral")
_PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def read_chexpert(
    root: str | os.PathLike,
    *,
    tables: Mapping[str, str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read CheXpert (Irvin et al. 2019, arXiv 1901.07031), in either image size.

    The folder holds train.csv and valid.csv and the images that their column Path names, e.g.
    CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; its first part may be the
    folder itself. There are no reports. Views are AP, PA, LL, RL or "Lateral"; where the table
    does not say, as that of the test set, "Frontal" or "Lateral" by the name of the file.

    Args:
        root: folder of the data set.
        tables: split name to file name, e.g. {"test": "test_labels.csv"} for the images read by
            radiologists; None for train.csv ("train") and valid.csv ("valid").
        on_error: "raise", or "skip" rows without images, doubled paths, unknown label values,
            and images without rows (if `tables` are given, in the folders that they name), and
            list them in `skipped`.

    Raises:
        FileNotFoundError: if the folder or a table is missing.
        DatasetError: if a table lacks columns or is not UTF-8, or for the problems above.
    """
    root = folder(root, "CheXpert")
    chosen = {"train": "train.csv", "valid": "valid.csv"} if tables is None else tables
    problems = Problems("CheXpert", on_error)
    found = find_files(root, (".jpg", ".jpeg", ".png"))
    present, named, seen, folders = set(found), set(), set(), set()
    rows = Rows("CheXpert", CHEXPERT_LABELS)
    for split, table in chosen.items():
        path = table_path([root], table)
        views = [name for name in _CHEXPERT_VIEWS if name in read_header(path)]
        for where, row in read_csv(path, ("Path", *views, *CHEXPERT_LABELS)):
            try:
                match = _CHEXPERT_PATH.match(cell(row, "Path", where))
                if match is None:
                    raise DatasetError(f"{where}: Path has no folders of patient and study")
                image_id = match["rest"]
                image = str(root / image_id)
                named.add(image)
                folders.add(Path(image_id).parts[0])
                note_once(seen, image_id, "Path", where)
                if image not in present:
                    raise DatasetError(f"{where}: no image {image}", "without image")
                rows.add(
                    id=image_id,
                    patient=match["patient"],
                    study=f"{match['patient']}/{match['study']}",
                    image=image,
                    split=split,
                    view=next((row[name] for name in views if row[name]), None)
                    or (match["view"] or "").capitalize(),
                    labels=label_codes(row, CHEXPERT_LABELS, where),
                )
            except DatasetError as error:
                problems.add(error)
    if tables is not None:  # what is in other folders is of other tables
        found = [path for path in found if Path(path).relative_to(root).parts[0] in folders]
    files_without_rows(found, named, f"the tables of {root}", problems)
    return rows.build(problems)


def read_padchest(
    root: str | os.PathLike,
    *,
    table: str = _PADCHEST,
    absent: Literal["negative", "blank"] = "negative",
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read PadChest (Bustos et al. 2020, Medical Image Analysis 66; arXiv 1901.07441).

    The folder holds the table and the images ImageDir/ImageID, in any folders. The table lists
    the findings of an image, by physicians or, where MethodLabel says so, by a network. The
    reports are Spanish, in lower case and stemmed. There are no published splits.

    Args:
        root: folder of the data set.
        table: name of the table, perhaps with .gz.
        absent: what a finding is that an image's list does not have. Where there is no list,
            every label is blank.
        on_error: "raise", or "skip" rows without images, doubled ids, label lists that cannot
            be read, and images without rows, and list them in `skipped`.

    Raises:
        FileNotFoundError: if the folder or the table is missing.
        DatasetError: if the table lacks columns or is not UTF-8, or for the problems above.
        ValueError: for another option.
    """
    checks.option("absent", absent, ("negative", "blank"))
    root = folder(root, "PadChest")
    problems = Problems("PadChest", on_error)
    path = table_path([root], table.removesuffix(".gz"))
    suffixes = (".png", ".jpg", ".jpeg")
    found = find_files(root, suffixes)
    files = stem_index(found, suffixes, problems)
    columns = ("ImageID", "StudyID", "PatientID", "Projection", "Report", "Labels")
    kept: list[tuple[dict[str, str], list[str] | None]] = []
    named, seen = [], set()
    for where, row in read_csv(path, columns):
        try:
            image_id = cell(row, "ImageID", where)
            stem = Path(image_id).stem
            if stem in files:
                named.append(files[stem])
            if stem in seen:
                raise DatasetError(f"{where}: ImageID {image_id} occurs twice", "with doubled id")
            seen.add(stem)
            if stem not in files:
                raise DatasetError(f"{where}: no image {image_id} below {root}", "without image")
            cell(row, "PatientID", where)
            kept.append((row, _finding_list(row["Labels"], where)))
        except DatasetError as error:
            problems.add(error)
    names = sorted({name for _, findings in kept for name in findings or ()})
    other = Label.NEGATIVE if absent == "negative" else Label.BLANK
    rows = Rows("PadChest", names)
    for row, findings in kept:
        rows.add(
            id=row["ImageID"],
            patient=id_text(row["PatientID"]),
            study=id_text(row["StudyID"]),
            image=files[Path(row["ImageID"]).stem],
            text=" ".join(row["Report"].split()),
            view=row["Projection"],
            labels=codes_of(findings, names, other),
        )
    files_without_rows(files.values(), named, path, problems)
    return rows.build(problems)


def _finding_list(text: str, where: str) -> list[str] | None:
    """A list written as in Python, e.g. "['normal', 'scoliosis ']"; None if there is none."""
    if not text:
        return None
    try:
        value = ast.literal_eval(text)  # literals only, nothing is run
        # Python joins names without a comma between them, as NumPy writes them.
        joined = re.search(r"""['"]\s+['"]""", text)
        if joined or not isinstance(value, list) or not all(isinstance(n, str) for n in value):
            raise ValueError
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise DatasetError(
            f"{where}: Labels is not a list of names {quoted(text)}", "with unknown label values"
        ) from None
    return [name.strip() for name in value if name.strip()] or None


def read_table(
    path: str | os.PathLike,
    *,
    image: str | None = None,
    label: str | Sequence[str] = (),
    text: str | None = None,
    patient: str | None = None,
    split: str | None = None,
    view: str | None = None,
    id: str | None = None,
    study: str | None = None,
    root: str | os.PathLike | None = None,
    name: str | None = None,
    encoding: str = "utf-8-sig",
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read a CSV file (perhaps .gz), or a Parquet file, with one row for each image.

    Cells that spell a missing value (NA, N/A, NaN, None, null, <NA>, in any case) are empty. Ids,
    patients, studies, splits, views and class names that are written as whole floats are those of
    the integers: 7.0 is "7".

    Args:
        path: the table. Parquet needs the extra "parquet".
        image: column of the image paths, relative to `root` or absolute; None if there are only
            texts or embeddings, which then need `id`.
        label: a column of class names, which become one label each (positive for its rows,
            negative for the others, blank where the cell is empty); or a list of one or several
            columns of 1 or True (positive), 0 or False (negative), -1 (uncertain) and blank.
        text: column of the texts. An empty text is a problem.
        patient: column of the patient ids; None if every image stands for a patient.
        split: column of the split names.
        view: column of the view positions.
        id: column of the image ids; None for the image column.
        study: column of the study ids; None if every image is a study.
        root: folder of the images; None for the table's.
        name: of the data set; None for the file's name.
        encoding: of a CSV file.
        on_error: "raise", or "skip" rows without image, doubled ids, empty texts or patients,
            and unknown label values, and list them in `skipped`.

    Raises:
        FileNotFoundError: if the table or the folder is missing.
        ModuleNotFoundError: for a Parquet file without the extra "parquet".
        ValueError: if neither `image` nor `id` is given.
        DatasetError: if columns are missing, the encoding is another, or for the problems above.
    """
    path = as_path(path)
    key_column = id or image
    if key_column is None:
        raise ValueError("image and id: at least one must name a column")
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: there is no such file")
    base = folder(path.parent if root is None else root, "images")
    title = path.name if name is None else name
    problems = Problems(title, on_error)
    columns = [label] if isinstance(label, str) else list(label)
    wanted = [*columns, *(c for c in (image, text, patient, split, view, id, study) if c)]
    if path.suffix == ".parquet":
        found = _read_parquet(path, wanted)
    else:
        found = read_csv(path, wanted, encoding=encoding)
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for where, row in found:
        try:
            file = base / cell(row, image, where) if image else None
            key = id_cell(row, key_column, where)
            note_once(seen, key, key_column, where)
            if file is not None and not file.is_file():
                raise DatasetError(f"{where}: no image {file}", "without image")
            kept.append(
                {
                    "id": key,
                    "patient": id_cell(row, patient, where) if patient else key,
                    "study": id_text(row[study]) if study else "",
                    "image": "" if file is None else str(file),
                    "text": cell(row, text, where) if text else "",
                    "split": id_text(row[split]) if split else "",
                    "view": id_text(row[view]) if view else "",
                    "labels": id_text(row[label])
                    if isinstance(label, str)
                    else label_codes(row, columns, where),
                }
            )
        except DatasetError as error:
            problems.add(error)
    if isinstance(label, str):
        columns = sorted({row["labels"] for row in kept} - {""})
        if "-1" in columns and {"-1", "0", "1"}.issuperset(columns):
            raise DatasetError(
                f"{path}: column {label} holds 1, 0 and -1, so that uncertain would be a class "
                f'of its own; give label as a list, ["{label}"]'
            )
        for row in kept:
            row["labels"] = codes_of([row["labels"]] if row["labels"] else None, columns)
    rows = Rows(title, columns)
    for row in kept:
        rows.add(**row)
    return rows.build(problems)


def _read_parquet(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Like `read_csv`, with rows counted from 1 and values as text."""
    try:
        from pyarrow import parquet, types
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pyarrow is needed to read Parquet: pip install 'semalign_jax[parquet]'"
        ) from None
    try:
        with reading(path, "whole Parquet file"):
            file = parquet.ParquetFile(path)
            refuse_missing(path, file.schema_arrow.names, required)
            # Floats come as Python's, which do not say how many digits the column has.
            digits = {
                column.name: np.finfo(column.type.to_pandas_dtype()).nmant + 1
                for column in file.schema_arrow
                if types.is_floating(column.type)
            }
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(required))):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    yield (
                        where,
                        {k: _parquet_cell(v, k, where, digits.get(k, 53)) for k, v in row.items()},
                    )
    except ValueError as error:
        raise DatasetError(str(error)) from None


def _parquet_cell(value: Any, column: str, where: str, digits: int) -> str:
    if isinstance(value, list | dict):
        raise DatasetError(f"{where}: {column} is a {type(value).__name__}, not text or a number")
    if isinstance(value, bytes) or (isinstance(value, float) and value.is_integer()):
        try:
            value = id_text(value, digits)
        except ValueError as error:
            raise DatasetError(f"{where}: {column}: {error}") from None
    return "" if value is None else known_text(str(value))
