"""The maps: `AffineMap`, the fits, statistics of anchors, and maps on disk.

Sweeps over many fits are in `sweeps`; what is done with a map in `stitching` and `zeroshot`.
"""

from .affine_map import AffineMap, identity_map
from .auto import AutoInfo, fit_auto, mismatch_scores
from .diagnose import Diagnosis, diagnose
from .fit import FitInfo, fit, fit_affine, fit_l_ortho, fit_linear, fit_ortho, polar_factor
from .fit_from_stats import fit_from_stats
from .hub import map_card, push_map
from .io import load_map, save_map, saved_diagnosis, saved_method
from .mlp_head import MlpHead
from .semi import SemiInfo, fit_semi
from .stats import (
    PairStats,
    accumulate_stats,
    init_stats,
    merge_stats,
    psum_stats,
    row_batches,
    update_stats,
)

__all__ = [
    "AffineMap",
    "AutoInfo",
    "Diagnosis",
    "FitInfo",
    "MlpHead",
    "PairStats",
    "SemiInfo",
    "accumulate_stats",
    "diagnose",
    "fit",
    "fit_affine",
    "fit_auto",
    "fit_from_stats",
    "fit_l_ortho",
    "fit_linear",
    "fit_ortho",
    "fit_semi",
    "identity_map",
    "init_stats",
    "load_map",
    "map_card",
    "merge_stats",
    "mismatch_scores",
    "polar_factor",
    "psum_stats",
    "push_map",
    "row_batches",
    "save_map",
    "saved_diagnosis",
    "saved_method",
    "update_stats",
]
