"""Stitching: a head trained on one encoder reads another one through a map.

Heads are trained here (`fit_head`, `fit_mlp_head`), folded into maps and scored, for one pair or
for the whole matrix of encoder by decoder. Class prompts as heads are in `zeroshot`.
"""

from ..maps.mlp_head import Head, MlpHead
from .evaluate import StitchingScores, evaluate_stitching, head_accuracy, stitch
from .heads import HeadInfo, fit_head
from .matrix import StitchingMatrix, evaluate_stitching_pairs
from .mlp import fit_mlp_head

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
