"""The maps: `AffineMap`, the fits, statistics of anchors, and maps on disk.

Sweeps over many fits are in `sweeps`; what is done with a map in `stitching` and `zeroshot`.
"""

from .affine_map import AffineMap as AffineMap
from .affine_map import identity_map as identity_map
from .auto import AutoInfo as AutoInfo
from .auto import fit_auto as fit_auto
from .auto import mismatch_scores as mismatch_scores
from .diagnose import Diagnosis as Diagnosis
from .diagnose import diagnose as diagnose
from .fit import FitInfo as FitInfo
from .fit import fit as fit
from .fit import fit_affine as fit_affine
from .fit import fit_l_ortho as fit_l_ortho
from .fit import fit_linear as fit_linear
from .fit import fit_ortho as fit_ortho
from .fit import polar_factor as polar_factor
from .fit_from_stats import fit_from_stats as fit_from_stats
from .hub import map_card as map_card
from .hub import push_map as push_map
from .io import load_map as load_map
from .io import save_map as save_map
from .io import saved_diagnosis as saved_diagnosis
from .io import saved_method as saved_method
from .mlp_head import MlpHead as MlpHead
from .semi import SemiInfo as SemiInfo
from .semi import fit_semi as fit_semi
from .stats import PairStats as PairStats
from .stats import accumulate_stats as accumulate_stats
from .stats import init_stats as init_stats
from .stats import merge_stats as merge_stats
from .stats import psum_stats as psum_stats
from .stats import row_batches as row_batches
from .stats import update_stats as update_stats

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
