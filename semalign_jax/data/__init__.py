"""Chest X-ray data sets from disk: readers, pixels, splits by patient and anchor sets."""

from ._dataset import (
    BinaryLabels,
    Box,
    DatasetError,
    DatasetSummary,
    ImageTextDataset,
    Label,
    LabelCounts,
    binary_labels,
)
from ._reports import parse_sections, report_text
from .mimic import read_mimic_cxr
from .open_i import read_open_i
from .pixels import PixelError, PixelReader, read_many, read_pixels
from .rsna import read_rsna
from .splits import AnchorSample, PatientSplit, check_disjoint, patient_split, sample_anchors
from .tables import read_chexpert, read_padchest, read_table
from .vindr import read_vindr_cxr

__all__ = [
    "AnchorSample",
    "BinaryLabels",
    "Box",
    "DatasetError",
    "DatasetSummary",
    "ImageTextDataset",
    "Label",
    "LabelCounts",
    "PatientSplit",
    "PixelError",
    "PixelReader",
    "binary_labels",
    "check_disjoint",
    "parse_sections",
    "patient_split",
    "read_chexpert",
    "read_many",
    "read_mimic_cxr",
    "read_open_i",
    "read_padchest",
    "read_pixels",
    "read_rsna",
    "read_table",
    "read_vindr_cxr",
    "report_text",
    "sample_anchors",
]
