"""Small chest X-ray data sets in the layouts in which the real ones are published.

Films are drawn and reports are written from what a patient has, so that images, reports and labels
belong together, and encoders that never saw them can tell findings apart. What would tell who a
patient is stands wherever real files have it (`IDENTITY`): none of it may get any further.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semalign_jax.data.mimic import MIMIC_LABELS
from semalign_jax.data.vindr import VINDR_LABELS

IDENTITY = {
    "PatientName": "Quorrasson^Zyxwvut",
    "PatientID": "MRN8675309",
    "PatientBirthDate": "19370512",
    "ReferringPhysicianName": "Vexley^Brontibald",
    "AccessionNumber": "ACC5550123",
    "InstitutionName": "Hospital of Lower Wuffington",
}
#: Parts of it in lower case, to look for.
SECRETS = ("quorrasson", "zyxwvut", "8675309", "19370512", "vexley", "5550123", "wuffington")

FINDINGS = ("Cardiomegaly", "Lung Opacity", "Pleural Effusion")
SIZE = 256
#: Sentences of a report where a finding is there, and where it is not.
SENTENCES = {
    "Cardiomegaly": (
        ("The heart is markedly enlarged.", "There is cardiomegaly.", "Large cardiac silhouette."),
        ("Heart size is normal.", "The cardiac silhouette is unremarkable."),
    ),
    "Lung Opacity": (
        (
            "There is a dense consolidation in the {side} lung, concerning for pneumonia.",
            "Patchy airspace opacity of the {side} lung, compatible with pneumonia.",
        ),
        ("The lungs are clear.", "No focal consolidation.", "No airspace opacity."),
    ),
    "Pleural Effusion": (
        ("There is a moderate {side} pleural effusion.", "Layering {side} effusion is seen."),
        ("No pleural effusion.", "Costophrenic angles are sharp."),
    ),
}


class Patient(NamedTuple):
    """What one film and one report show.

    Attributes:
        findings: which of `FINDINGS`.
        side: of the lung, "left" or "right".
        seed: of the drawing and the words.
    """

    findings: tuple[str, ...]
    side: str
    seed: int


def patients(count: int, seed: int) -> list[Patient]:
    """Patients, about half of whom have each finding; all combinations occur in any eight."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        present = tuple(name for bit, name in enumerate(FINDINGS) if number >> bit & 1)
        side = "left" if rng.random() < 0.5 else "right"
        found.append(Patient(present, side, int(rng.integers(2**32))))
    return found


def chest_film(
    shape: tuple[int, int], seed: int, findings: Sequence[str] = (), side: str = "left"
) -> np.ndarray:
    """A film as it is looked at, bone bright and air dark: float32 of 0 to 1, with noise."""
    rng = np.random.default_rng(seed)
    row, column = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    column = column / rng.uniform(0.9, 1.05) + rng.uniform(-0.04, 0.04)

    def inside(distance: np.ndarray, sharpness: float) -> np.ndarray:
        return 1 / (1 + np.exp(sharpness * (distance - 1)))

    def ellipse(x: float, y: float, width: float, height: float, sharpness: float) -> np.ndarray:
        return inside(np.hypot((column - x) / width, (row - y) / height), sharpness)

    body = inside(np.abs(column) + 0.1 * row + 0.1, 12)
    lungs = ellipse(-0.42, 0, 0.32, 0.65, 18) + ellipse(0.42, 0, 0.32, 0.65, 18)
    ribs = np.sin(38 * (row + 0.35 * np.abs(column)) + rng.uniform(0, 6)) * lungs
    air = lungs * 0.62
    large = "Cardiomegaly" in findings
    heart = ellipse(0.1, 0.3, 0.52 if large else 0.24, 0.42 if large else 0.3, 14)
    x = 0.42 if side == "left" else -0.42  # the left lung is on the right of a film
    fluid = np.zeros(shape)
    if "Lung Opacity" in findings:
        for _ in range(3):
            at = x + rng.uniform(-0.12, 0.12), rng.uniform(-0.4, 0.1)
            fluid = np.maximum(fluid, 0.85 * ellipse(*at, 0.16, 0.14, 6))
    if "Pleural Effusion" in findings:
        level = inside((0.25 - row + 1) + 0.4 * np.abs(column - x), 25)
        fluid = np.maximum(fluid, level * ellipse(x, 0, 0.36, 0.75, 18))
    shown = 0.12 + 0.75 * body - air * (1 - np.maximum(0.85 * heart, fluid)) + 0.05 * ribs
    shown = shown + 0.02 * rng.standard_normal(shape, np.float32)
    return np.clip(shown, 0, 1).astype(np.float32)


def report(patient: Patient) -> str:
    """A report in the style of MIMIC-CXR."""
    rng = np.random.default_rng(patient.seed)
    words = []
    for name in FINDINGS:
        choices = SENTENCES[name][0 if name in patient.findings else 1]
        words.append(choices[int(rng.integers(len(choices)))].format(side=patient.side))
    names = ", ".join(name.lower() for name in patient.findings)
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n"
        " INDICATION:  ___ year old patient with cough.\n\n COMPARISON:  ___.\n\n"
        f" FINDINGS:\n\n {' '.join(words)}\n\n"
        f" IMPRESSION:  {f'Findings of {names}.' if names else 'No acute process.'}\n"
    )


def write_table(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, identity: bool = False
) -> None:
    """Write a CSV file; with `identity` it has columns that nobody asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = list(IDENTITY) if identity else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *extra])
        writer.writerows([*row, *(IDENTITY[name] for name in extra)] for row in rows)


def dicom(values: np.ndarray, bits: int, **elements: Any) -> Any:
    """A grey-scale DICOM data set of pydicom with these stored values.

    Args:
        values: [rows, columns], uint8 or uint16.
        bits: that are used.
        elements: by their keywords.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import (
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
        generate_uid,
    )

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID = generate_uid(entropy_srcs=[sha256(values.tobytes()).hexdigest()])
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.Rows, header.Columns = values.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = 8 * values.dtype.itemsize
    header.BitsStored, header.HighBit = bits, bits - 1
    header.PixelRepresentation = 0
    for name, value in elements.items():
        setattr(header, name, value)
    header.PixelData = values.tobytes()
    header["PixelData"].VR = "OW" if header.BitsAllocated > 8 else "OB"
    return header


def write_dicom(path: Path, patient: Patient, *, inverted: bool) -> None:
    """Write a film, as VinDr-CXR has them if `inverted` (MONOCHROME1, 12 bits, a window)."""
    film = chest_film((SIZE, SIZE), patient.seed, patient.findings, patient.side)
    path.parent.mkdir(parents=True, exist_ok=True)
    if inverted:
        values = np.rint((1 - film) * 3000 + 500).astype(np.uint16)
        window = {"WindowCenter": 2000, "WindowWidth": 3001}
        header = dicom(values, 12, PhotometricInterpretation="MONOCHROME1", **window, **IDENTITY)
    else:
        header = dicom(np.rint(film * 255).astype(np.uint8), 8, **IDENTITY)
    header.save_as(path, enforce_file_format=True)


def write_picture(path: Path, patient: Patient) -> None:
    """Write a film as PNG or JPEG, with a comment."""
    from PIL import Image, PngImagePlugin

    film = chest_film((SIZE, SIZE), patient.seed, patient.findings, patient.side)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.rint(film * 255).astype(np.uint8))
    words = " ".join(IDENTITY.values())
    if path.suffix == ".png":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", words)
        image.save(path, pnginfo=notes)
    else:
        image.save(path, quality=95, comment=words.encode())


def write_mimic_cxr(root: Path, found: Sequence[Patient], splits: Mapping[str, float]) -> None:
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR in the same folders; two studies a patient.

    Args:
        root: the folder.
        found: what the studies show.
        splits: fraction of each of the published splits, "train", "validate" and "test".
    """
    metadata, parts, labels = [], [], []
    ends = np.cumsum(list(splits.values())) * len(found)
    for number, one in enumerate(found):
        subject, study = f"1{number // 2:07d}", f"5{number:07d}"
        # Both studies of a patient are in the split of the first.
        split = list(splits)[int(np.searchsorted(ends, number // 2 * 2, side="right"))]
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        digest = sha256(str(one.seed).encode()).hexdigest()
        image = "-".join(digest[8 * i : 8 * i + 8] for i in range(5))
        write_picture(folder / f"{image}.jpg", one)
        (folder.parent / f"s{study}.txt").write_text(report(one), encoding="utf-8")
        metadata.append([image, subject, study, "PA" if number % 4 else "AP"])
        parts.append([image, study, subject, split])
        codes = {name: "1.0" if name in one.findings else "0.0" for name in FINDINGS}
        codes["No Finding"] = "" if one.findings else "1.0"
        labels.append([subject, study, *(codes.get(name, "") for name in MIMIC_LABELS)])
    start = root / "mimic-cxr-2.0.0"
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition"]
    write_table(Path(f"{start}-metadata.csv"), columns, metadata, identity=True)
    columns = ["dicom_id", "study_id", "subject_id", "split"]
    write_table(Path(f"{start}-split.csv"), columns, parts)
    columns = ["subject_id", "study_id", *MIMIC_LABELS]
    write_table(Path(f"{start}-chexpert.csv"), columns, labels)


def write_rsna(root: Path, found: Sequence[Patient]) -> None:
    """The RSNA challenge: DICOM of 8 bits, three classes, boxes."""
    boxes, classes = [], []
    for one in found:
        name = sha256(str(one.seed).encode()).hexdigest()[:36]
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", one, inverted=False)
        if "Lung Opacity" in one.findings:
            left = 0.55 if one.side == "left" else 0.15
            corners = [left * SIZE, 0.3 * SIZE, 0.3 * SIZE, 0.3 * SIZE]
            boxes.append([name, *corners, 1])
            classes.append([name, "Lung Opacity"])
        else:
            boxes.append([name, "", "", "", "", 0])
            classes.append([name, "No Lung Opacity / Not Normal" if one.findings else "Normal"])
    columns = ["patientId", "x", "y", "width", "height", "Target"]
    write_table(root / "stage_2_train_labels.csv", columns, boxes, identity=True)
    write_table(root / "stage_2_detailed_class_info.csv", ["patientId", "class"], classes)


#: What the findings are called in VinDr-CXR.
VINDR_NAMES = {
    "Cardiomegaly": "Cardiomegaly",
    "Lung Opacity": "Lung Opacity",
    "Pleural Effusion": "Pleural effusion",
}


def write_vindr_cxr(root: Path, train: Sequence[Patient], test: Sequence[Patient]) -> None:
    """VinDr-CXR: DICOM of 12 bits, three readers of each training image, of whom one may err."""
    place = root / "annotations"
    for split, found in (("train", train), ("test", test)):
        rows, boxes = [], []
        for number, one in enumerate(found):
            name = sha256(f"vindr {one.seed}".encode()).hexdigest()[:32]
            write_dicom(root / split / f"{name}.dicom", one, inverted=True)
            positive = [VINDR_NAMES[finding] for finding in one.findings] or ["No finding"]
            if "Lung Opacity" in positive:
                positive.append("Pneumonia")
            codes = [int(label in positive) for label in VINDR_LABELS]
            for reader in ("R1", "R2", "R3") if split == "train" else ("",):
                key = [name, reader] if reader else [name]
                given = list(codes)
                if reader == "R3" and number % 5 == 0:
                    given[VINDR_LABELS.index("Emphysema")] = 1
                rows.append([*key, *given])
                if "Cardiomegaly" in positive:
                    edges = [0.25 * SIZE, 0.45 * SIZE, 0.8 * SIZE, 0.85 * SIZE]
                    boxes.append([*key, "Cardiomegaly", *edges])
        by = ["rad_id"] if split == "train" else []
        columns = ["image_id", *by, *VINDR_LABELS]
        write_table(place / f"image_labels_{split}.csv", columns, rows, identity=True)
        columns = ["image_id", *by, "class_name", "x_min", "y_min", "x_max", "y_max"]
        write_table(place / f"annotations_{split}.csv", columns, boxes)


def write_open_i(root: Path, found: Sequence[Patient]) -> None:
    """Open-i: reports as XML, images as PNG."""
    (root / "ecgen-radiology").mkdir(parents=True)
    for number, one in enumerate(found, start=1):
        image = f"CXR{number}_IM-{number:04d}-1001"
        write_picture(root / f"{image}.png", one)
        text = report(one)
        findings = " ".join(text.partition("FINDINGS:")[2].partition("IMPRESSION:")[0].split())
        impression = text.partition("IMPRESSION:")[2].strip()
        terms = [name if name != "Lung Opacity" else "Opacity/lung" for name in one.findings]
        majors = "".join(f"<major>{term}</major>" for term in terms or ["normal"])
        (root / "ecgen-radiology" / f"{number}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/>'
            f"<note>{' '.join(IDENTITY.values())}</note><MedlineCitation><Article><Abstract>"
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
            f"</Abstract></Article></MedlineCitation><MeSH>{majors}</MeSH>"
            f'<parentImage id="{image}"><caption/></parentImage></eCitation>',
            encoding="utf-8",
        )


def write_hospital_table(root: Path, found: Sequence[Patient]) -> None:
    """A CSV file of one's own, with PNG images: films.csv with file, report, case, part, labels."""
    rows = []
    for number, one in enumerate(found):
        name = f"films/{number:03d}.png"
        write_picture(root / name, one)
        codes = [int(finding in one.findings) for finding in FINDINGS]
        part = "test" if number % 3 == 0 else "train"
        words = " ".join(report(one).partition("FINDINGS:")[2].split())
        rows.append([name, words, f"case-{number // 2}", part, *codes])
    columns = ["file", "report", "case", "part", *FINDINGS]
    write_table(root / "films.csv", columns, rows, identity=True)
