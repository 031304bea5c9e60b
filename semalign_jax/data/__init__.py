"""Chest X-ray data sets from disk: readers, pixels, splits by patient and anchor sets."""

from ._dataset import BinaryLabels as BinaryLabels
from ._dataset import Box as Box
from ._dataset import DatasetError as DatasetError
from ._dataset import DatasetSummary as DatasetSummary
from ._dataset import ImageTextDataset as ImageTextDataset
from ._dataset import Label as Label
from ._dataset import LabelCounts as LabelCounts
from ._dataset import binary_labels as binary_labels
from ._reports import parse_sections as parse_sections
from ._reports import report_text as report_text
from .mimic import read_mimic_cxr as read_mimic_cxr
from .open_i import read_open_i as read_open_i
from .pixels import PixelError as PixelError
from .pixels import PixelReader as PixelReader
from .pixels import read_many as read_many
from .pixels import read_pixels as read_pixels
from .rsna import read_rsna as read_rsna
from .splits import AnchorSample as AnchorSample
from .splits import PatientSplit as PatientSplit
from .splits import check_disjoint as check_disjoint
from .splits import patient_split as patient_split
from .splits import sample_anchors as sample_anchors
from .tables import read_chexpert as read_chexpert
from .tables import read_padchest as read_padchest
from .tables import read_table as read_table
from .vindr import read_vindr_cxr as read_vindr_cxr

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
