"""Open-i, the Indiana University chest X-rays (Demner-Fushman et al. 2016, JAMIA 23(2))."""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal, NamedTuple

from .._core import checks
from ._dataset import DatasetError, ImageTextDataset, Label, Problems, Rows, codes_of
from ._files import files_without_rows, find_files, folder, stem_index
from ._reports import Section, report_text, sections_text

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_NOT_INDEXED = "no indexing"


class _Report(NamedTuple):
    patient: str
    study: str
    text: str
    terms: tuple[str, ...] | None  # None: not indexed
    images: tuple[str, ...]


def read_open_i(
    root: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    section: Section = "both",
    absent: Literal["negative", "blank"] = "negative",
    on_error: Literal["raise", "skip"] = "raise",
) -> ImageTextDataset:
    """Read the reports `ecgen-radiology/*.xml` with their images.

    Labels are the manually coded MeSH terms of the reports (the element "major"), without their
    qualifiers: "Cardiomegaly/mild" is "Cardiomegaly". A report may have several images, which
    share its labels and text; a report without images gives no entry, and is counted. Reports are
    one per patient, so the report's id is the patient's. Views and splits are not published.

    Args:
        root: folder that holds ecgen-radiology, or the XML files.
        images: folder of the images; None for `root`.
        section: "findings", "impression", "both", or "all" (also indication and comparison).
            Some reports lack a section: their texts are empty, and `has_text` tells which.
        absent: what a term is that was not coded for an indexed report. Of reports that were
            not indexed, every label is blank.
        on_error: "raise", or "skip" broken or empty reports, images that are missing or that
            no report names, and doubled ids, and list them in `skipped`.

    Raises:
        FileNotFoundError: if a folder or every report is missing.
        DatasetError: for the problems above.
        ValueError: for another option.
    """
    report_text("", section)
    checks.option("absent", absent, ("negative", "blank"))
    root = folder(root, "Open-i data")
    problems = Problems("Open-i", on_error)
    place = root / "ecgen-radiology" if (root / "ecgen-radiology").is_dir() else root
    paths = find_files(place, (".xml",))
    if not paths:
        raise FileNotFoundError(f"no reports at {place}: there are no .xml files")
    image_root = folder(root if images is None else images, "Open-i images")
    found = find_files(image_root, _SUFFIXES)
    files = stem_index(found, _SUFFIXES, problems)
    reports: dict[str, _Report] = {}
    for path in paths:
        try:
            reports[path] = _read_report(Path(path), section)
        except DatasetError as error:
            problems.add(error)
    names = sorted({term for report in reports.values() for term in report.terms or ()})
    other = Label.NEGATIVE if absent == "negative" else Label.BLANK
    rows, seen, named = Rows("Open-i", names), {}, []
    for path, report in reports.items():
        codes = codes_of(report.terms, names, other)
        if not report.images:
            problems.left_out["reports without images"] += 1
        for image in report.images:
            if image in seen:
                problems.add(f"{path}: image {image} is also in {seen[image]}", "with doubled id")
            elif image not in files:
                problems.add(f"{path}: no image {image} in {image_root}", "without image")
            else:
                seen[image] = path
                named.append(files[image])
                rows.add(
                    id=image,
                    patient=report.patient,
                    study=report.study,
                    image=files[image],
                    text=report.text,
                    labels=codes,
                )
    files_without_rows(files.values(), named, f"the reports of {place}", problems)
    return rows.build(problems)


def _read_report(path: Path, section: Section) -> _Report:
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError) as error:
        raise DatasetError(f"{path}: not well-formed XML: {error}") from None
    element = tree.find(".//uId")
    report_id = "" if element is None else element.get("id", "")
    if not report_id:
        raise DatasetError(f"{path}: no uId, which names the report")
    sections: dict[str, str] = {}
    for part in tree.iter("AbstractText"):
        name = (part.get("Label") or "").lower()
        sections[name] = " ".join([sections.get(name, ""), *"".join(part.itertext()).split()])
        sections[name] = sections[name].strip()
    if not any(sections.values()):
        raise DatasetError(f"{path}: the report is empty", "with empty report")
    coded = [(term.text or "").split("/")[0].strip() for term in tree.iterfind(".//MeSH/major")]
    terms = tuple(dict.fromkeys(term for term in coded if term))
    indexed = terms and _NOT_INDEXED not in (term.lower() for term in terms)
    return _Report(
        patient=report_id,
        study=report_id,
        text=sections_text(sections, section),
        terms=terms if indexed else None,
        images=tuple(part.get("id") or "" for part in tree.iter("parentImage")),
    )
