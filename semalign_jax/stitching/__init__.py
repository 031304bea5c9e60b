"""Stitching: a head trained on one encoder reads another one through a map.

Heads are trained here (`fit_head`, `fit_mlp_head`), folded into maps and scored, for one pair or
for the whole matrix of encoder by decoder. Class prompts as heads are in `zeroshot`.
"""

from ..maps.mlp_head import Head as Head
from ..maps.mlp_head import MlpHead as MlpHead
from .evaluate import StitchingScores as StitchingScores
from .evaluate import evaluate_stitching as evaluate_stitching
from .evaluate import head_accuracy as head_accuracy
from .evaluate import stitch as stitch
from .heads import HeadInfo as HeadInfo
from .heads import fit_head as fit_head
from .matrix import StitchingMatrix as StitchingMatrix
from .matrix import evaluate_stitching_pairs as evaluate_stitching_pairs
from .mlp import fit_mlp_head as fit_mlp_head

__all__ = [
    "Head",
    "HeadInfo",
    "MlpHead",
    "StitchingMatrix",
    "StitchingScores",
    "evaluate_stitching",
    "evaluate_stitching_pairs",
    "fit_head",
    "fit_mlp_head",
    "head_accuracy",
    "stitch",
]
