"""Small data sets and DICOM files in the published layouts."""

import csv
import gzip
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def write_csv(path, header, rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_image(path, values=((0, 100), (200, 255))):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def dicom(values, *, photometric="MONOCHROME2", stored=None, syntax=ExplicitVRLittleEndian, **tags):
    """A data set with these pixels: [rows, columns] or [rows, columns, 3]."""
    values = np.asarray(values)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["semalign_jax"])
    header.SOPClassUID = SecondaryCaptureImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = photometric
    header.BitsAllocated = 8 * values.dtype.itemsize
    header.BitsStored = stored or header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(values.dtype.kind == "i")
    header.PixelData = values.tobytes()
    header["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(header, name, value)
    return header


def write_dicom(path, values=None, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array([[0, 100], [200, 255]], np.uint8) if values is None else values
    dicom(values, **options).save_as(path, enforce_file_format=True)
    return path


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough

 FINDINGS:

 The lungs are clear. Compared to ___, no change.

 IMPRESSION:  No acute process.
"""

MIMIC_HEADER = [
    "subject_id",
    "study_id",
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
]
#: (dicom_id, subject, study, view, split)
MIMIC_IMAGES = [
    ("aaaa-1", "10000032", "50414267", "PA", "train"),
    ("aaaa-2", "10000032", "50414267", "LATERAL", "train"),
    ("bbbb-1", "10000764", "57375967", "AP", "validate"),
    ("cccc-1", "11000001", "58888888", "", "test"),
]


def mimic_tree(root, gz=False):
    """Four images of three studies; study 58888888 has no labels, as some in the original."""
    end = ".csv.gz" if gz else ".csv"
    start = root / "mimic-cxr-2.0.0"
    write_csv(
        f"{start}-metadata{end}",
        ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"],
        [[i, p, s, "CHEST (PA AND LAT)", v] for i, p, s, v, _ in MIMIC_IMAGES],
    )
    write_csv(
        f"{start}-split{end}",
        ["dicom_id", "study_id", "subject_id", "split"],
        [[i, s, p, part] for i, p, s, _, part in MIMIC_IMAGES],
    )
    first = ["1.0", "0.0", "-1.0"] + [""] * 11
    second = ["-1.0"] * 2 + ["0.0"] * 12
    for name in ("chexpert", "negbio"):
        rows = [["10000032", "50414267", *first], ["10000764", "57375967", *second]]
        write_csv(f"{start}-{name}{end}", MIMIC_HEADER, rows)
        first = ["0.0"] * 14
    for image, patient, study, _, _ in MIMIC_IMAGES:
        folder = root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        write_image(folder / f"{image}.jpg")
        (folder.parent / f"s{study}.txt").write_text(REPORT)
    return root


def rsna_tree(root):
    """p1 with two boxes, p2 abnormal without opacity, p3 normal."""
    write_csv(
        root / "stage_2_train_labels.csv",
        ["patientId", "x", "y", "width", "height", "Target"],
        [
            ["p1", "10.0", "20.0", "30.0", "40.0", "1"],
            ["p1", "50.0", "20.0", "30.0", "40.0", "1"],
            ["p2", "", "", "", "", "0"],
            ["p3", "", "", "", "", "0"],
        ],
    )
    write_csv(
        root / "stage_2_detailed_class_info.csv",
        ["patientId", "class"],
        [
            ["p1", "Lung Opacity"],
            ["p1", "Lung Opacity"],
            ["p2", "No Lung Opacity / Not Normal"],
            ["p3", "Normal"],
        ],
    )
    for name in ("p1", "p2", "p3"):
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm")
    return root


VINDR_HEADER = [
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
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
]


def vindr_row(*positive):
    return [str(int(name in positive)) for name in VINDR_HEADER]


def vindr_tree(root, annotations="annotations"):
    """Train image a, on which the readers disagree, and b without finding; test image c."""
    place = root / annotations
    train = [
        ["a", "R1", *vindr_row("Cardiomegaly", "Pneumonia", "Edema")],
        ["a", "R2", *vindr_row("Cardiomegaly", "Pneumonia")],
        ["a", "R3", *vindr_row("Cardiomegaly")],
        *(["b", reader, *vindr_row("No finding")] for reader in ("R8", "R9", "R10")),
    ]
    write_csv(place / "image_labels_train.csv", ["image_id", "rad_id", *VINDR_HEADER], train)
    test_header = [name.replace("Other diseases", "Other disease") for name in VINDR_HEADER]
    write_csv(
        place / "image_labels_test.csv",
        ["image_id", *test_header],
        [["c", *vindr_row("Other diseases")]],
    )
    box = ["image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max"]
    write_csv(
        place / "annotations_train.csv",
        box,
        [
            ["a", "R1", "Cardiomegaly", "1", "2", "3", "4"],
            ["a", "R2", "Cardiomegaly", "1.5", "2", "3", "4"],
            ["b", "R8", "No finding", "", "", "", ""],
        ],
    )
    write_csv(place / "annotations_test.csv", [box[0], *box[2:]], [])
    write_dicom(root / "train" / "a.dicom")
    write_image(root / "train" / "b.png")
    write_dicom(root / "test" / "c.dicom")
    return root


def open_i_report(uid="CXR1", major=("Cardiomegaly/borderline", "Lung"), images=(), **sections):
    sections = sections or {"FINDINGS": "Heart is large.", "IMPRESSION": "Cardiomegaly."}
    parts = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in sections.items())
    terms = "".join(f"<major>{term}</major>" for term in major)
    pictures = "".join(f'<parentImage id="{name}"><caption/></parentImage>' for name in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="{uid}"/><MedlineCitation>'
        f"<Article><Abstract>{parts}</Abstract></Article></MedlineCitation>"
        f"<MeSH>{terms}<automatic>Heart</automatic></MeSH>{pictures}</eCitation>"
    )


def open_i_tree(root):
    """Report 1 with two images, report 2 normal, report 3 not indexed, report 4 without image."""
    place = root / "ecgen-radiology"
    place.mkdir(parents=True)
    reports = {
        "1": open_i_report(images=("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")),
        "2": open_i_report("CXR2", ("normal",), ("CXR2_IM-0652-1001",), FINDINGS="Clear."),
        "3": open_i_report("CXR3", ("No Indexing",), ("CXR3_IM-1384-1001",), INDICATION="Pain."),
        "4": open_i_report("CXR4"),
    }
    for name, text in reports.items():
        (place / f"{name}.xml").write_text(text)
    for image in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"):
        write_image(root / f"{image}.png")
    write_image(root / "CXR2_IM-0652-1001.png")
    write_image(root / "CXR3_IM-1384-1001.png")
    return root


CHEXPERT_HEADER = [
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
]


def chexpert_tree(root):
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_HEADER]
    rest = [""] * 11
    train = [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", ["1.0", "0.0", "-1.0"]),
        ("train/patient00001/study1/view2_lateral.jpg", "Lateral", "", ["1.0", "0.0", "-1.0"]),
    ]
    valid = [("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "PA", ["0.0"] * 3)]
    for name, rows in (("train", train), ("valid", valid)):
        write_csv(
            root / f"{name}.csv",
            header,
            [
                [f"CheXpert-v1.0-small/{path}", "Male", "50", side, view, *codes, *rest]
                for path, side, view, codes in rows
            ],
        )
        for path, *_ in rows:
            write_image(root / path)
    return root


PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def padchest_tree(root):
    header = ["", "ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report"]
    write_csv(
        root / PADCHEST,
        [*header, "MethodLabel", "Labels"],
        [
            [0, "a.png", "0", "s1", "pa", "PA", "torax normal .", "Physician", "['normal']"],
            [1, "b.png", "1", "s2", "pb", "L", "", "RNN_model", "['scoliosis ', 'nodule', '']"],
            [2, "c.png", "1", "s3", "pb", "PA", "x", "RNN_model", "nan"],
        ],
    )
    write_image(root / "0" / "a.png")
    write_image(root / "1" / "b.png")
    write_image(root / "1" / "c.png")
    return root
