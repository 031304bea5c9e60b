"""Align the embedding spaces of two frozen encoders with simple maps, in JAX."""

from importlib.metadata import version as _version

from . import intervals as intervals
from . import metrics as metrics
from ._fit import FitInfo as FitInfo
from ._fit import fit as fit
from ._fit import fit_affine as fit_affine
from ._fit import fit_l_ortho as fit_l_ortho
from ._fit import fit_linear as fit_linear
from ._fit import fit_ortho as fit_ortho
from ._fit import fit_with_info as fit_with_info
from ._fit_stats import fit_from_stats as fit_from_stats
from ._maps import AffineMap as AffineMap
from ._maps import identity_map as identity_map
from ._polar import polar_factor as polar_factor
from ._stats import PairStats as PairStats
from ._stats import accumulate_stats as accumulate_stats
from ._stats import init_stats as init_stats
from ._stats import merge_stats as merge_stats
from ._stats import psum_stats as psum_stats
from ._stats import row_batches as row_batches
from ._stats import update_stats as update_stats
from .anchors import anchor_masks as anchor_masks
from .anchors import anchor_order as anchor_order
from .heads import HeadInfo as HeadInfo
from .heads import MlpHead as MlpHead
from .heads import fit_head as fit_head
from .heads import fit_head_with_info as fit_head_with_info
from .heads import fit_mlp_head as fit_mlp_head
from .heads import fit_mlp_head_with_info as fit_mlp_head_with_info
from .io import load_map as load_map
from .io import save_map as save_map
from .pairs import PairSweepResult as PairSweepResult
from .pairs import sweep_pairs as sweep_pairs
from .stitching import StitchingScores as StitchingScores
from .stitching import evaluate_stitching as evaluate_stitching
from .stitching import head_accuracy as head_accuracy
from .stitching import stitch as stitch
from .stitching_pairs import StitchingMatrix as StitchingMatrix
from .stitching_pairs import evaluate_stitching_pairs as evaluate_stitching_pairs
from .sweep import SweepMethod as SweepMethod
from .sweep import SweepResult as SweepResult
from .sweep import anchor_sweep as anchor_sweep
from .zeroshot import class_embeddings as class_embeddings
from .zeroshot import evaluate_zero_shot as evaluate_zero_shot
from .zeroshot import zero_shot_logits as zero_shot_logits
from .zeroshot import zero_shot_predict as zero_shot_predict

__version__ = _version("semalign_jax")

__all__ = [
    "AffineMap",
    "FitInfo",
    "HeadInfo",
    "MlpHead",
    "PairStats",
    "PairSweepResult",
    "StitchingMatrix",
    "StitchingScores",
    "SweepMethod",
    "SweepResult",
    "accumulate_stats",
    "anchor_masks",
    "anchor_order",
    "anchor_sweep",
    "class_embeddings",
    "evaluate_stitching",
    "evaluate_stitching_pairs",
    "evaluate_zero_shot",
    "fit",
    "fit_affine",
    "fit_from_stats",
    "fit_head",
    "fit_head_with_info",
    "fit_l_ortho",
    "fit_linear",
    "fit_mlp_head",
    "fit_mlp_head_with_info",
    "fit_ortho",
    "fit_with_info",
    "head_accuracy",
    "identity_map",
    "init_stats",
    "intervals",
    "load_map",
    "merge_stats",
    "metrics",
    "polar_factor",
    "psum_stats",
    "row_batches",
    "save_map",
    "stitch",
    "sweep_pairs",
    "update_stats",
    "zero_shot_logits",
    "zero_shot_predict",
]
