"""Align the embedding spaces of two frozen encoders with simple maps, in JAX."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import baselines as baselines
from . import distributed as distributed
from . import intervals as intervals
from . import metrics as metrics
from .heads import HeadInfo as HeadInfo
from .heads import MlpHead as MlpHead
from .heads import fit_head as fit_head
from .heads import fit_mlp_head as fit_mlp_head
from .maps.affine_map import AffineMap as AffineMap
from .maps.affine_map import identity_map as identity_map
from .maps.fit import FitInfo as FitInfo
from .maps.fit import fit as fit
from .maps.fit import fit_affine as fit_affine
from .maps.fit import fit_l_ortho as fit_l_ortho
from .maps.fit import fit_linear as fit_linear
from .maps.fit import fit_ortho as fit_ortho
from .maps.fit import polar_factor as polar_factor
from .maps.fit_from_stats import fit_from_stats as fit_from_stats
from .maps.io import load_map as load_map
from .maps.io import save_map as save_map
from .maps.stats import PairStats as PairStats
from .maps.stats import accumulate_stats as accumulate_stats
from .maps.stats import init_stats as init_stats
from .maps.stats import merge_stats as merge_stats
from .maps.stats import psum_stats as psum_stats
from .maps.stats import row_batches as row_batches
from .maps.stats import update_stats as update_stats
from .prompts import ClassPrompts as ClassPrompts
from .prompts import PromptSet as PromptSet
from .prompts import PromptTexts as PromptTexts
from .prompts import embedded_prompts as embedded_prompts
from .prompts import load_prompts as load_prompts
from .prompts import prompt_texts as prompt_texts
from .prompts import shipped_prompt_sets as shipped_prompt_sets
from .protocol import AnchorPairs as AnchorPairs
from .protocol import Images as Images
from .protocol import Multimodal as Multimodal
from .protocol import ScoreReport as ScoreReport
from .protocol import ZeroShotResult as ZeroShotResult
from .protocol import check_disjoint as check_disjoint
from .protocol import evaluate_scores as evaluate_scores
from .protocol import zero_shot_protocol as zero_shot_protocol
from .stitching import StitchingScores as StitchingScores
from .stitching import evaluate_stitching as evaluate_stitching
from .stitching import head_accuracy as head_accuracy
from .stitching import stitch as stitch
from .stitching_pairs import StitchingMatrix as StitchingMatrix
from .stitching_pairs import evaluate_stitching_pairs as evaluate_stitching_pairs
from .store import EmbeddingStore as EmbeddingStore
from .store import JoinedRows as JoinedRows
from .store import StoreProblem as StoreProblem
from .store import create_store as create_store
from .store import export_store as export_store
from .store import import_store as import_store
from .store import join_stores as join_stores
from .store import open_store as open_store
from .store import paired_batches as paired_batches
from .store import verify_store as verify_store
from .sweeps.anchors import anchor_masks as anchor_masks
from .sweeps.anchors import anchor_order as anchor_order
from .sweeps.many_pairs import PairSweepResult as PairSweepResult
from .sweeps.many_pairs import sweep_pairs as sweep_pairs
from .sweeps.one_pair import SweepMethod as SweepMethod
from .sweeps.one_pair import SweepResult as SweepResult
from .sweeps.one_pair import anchor_sweep as anchor_sweep
from .zeroshot import AnchorSpace as AnchorSpace
from .zeroshot import EmbeddedPrompts as EmbeddedPrompts
from .zeroshot import anchor_space as anchor_space
from .zeroshot import choose_threshold as choose_threshold
from .zeroshot import class_embeddings as class_embeddings
from .zeroshot import evaluate_zero_shot as evaluate_zero_shot
from .zeroshot import prompt_prototypes as prompt_prototypes
from .zeroshot import prompt_scores as prompt_scores
from .zeroshot import zero_shot_logits as zero_shot_logits
from .zeroshot import zero_shot_predict as zero_shot_predict
from .zeroshot import zero_shot_scores as zero_shot_scores

if _TYPE_CHECKING:
    from . import data as data
    from . import encoders as encoders

__version__ = _version("semalign_jax")

__all__ = [
    "AffineMap",
    "AnchorPairs",
    "AnchorSpace",
    "ClassPrompts",
    "EmbeddedPrompts",
    "EmbeddingStore",
    "FitInfo",
    "HeadInfo",
    "Images",
    "JoinedRows",
    "MlpHead",
    "Multimodal",
    "PairStats",
    "PairSweepResult",
    "PromptSet",
    "PromptTexts",
    "ScoreReport",
    "StitchingMatrix",
    "StitchingScores",
    "StoreProblem",
    "SweepMethod",
    "SweepResult",
    "ZeroShotResult",
    "accumulate_stats",
    "anchor_masks",
    "anchor_order",
    "anchor_space",
    "anchor_sweep",
    "baselines",
    "check_disjoint",
    "choose_threshold",
    "class_embeddings",
    "create_store",
    "data",
    "distributed",
    "embedded_prompts",
    "encoders",
    "evaluate_scores",
    "evaluate_stitching",
    "evaluate_stitching_pairs",
    "evaluate_zero_shot",
    "export_store",
    "fit",
    "fit_affine",
    "fit_from_stats",
    "fit_head",
    "fit_l_ortho",
    "fit_linear",
    "fit_mlp_head",
    "fit_ortho",
    "head_accuracy",
    "identity_map",
    "import_store",
    "init_stats",
    "intervals",
    "join_stores",
    "load_map",
    "load_prompts",
    "merge_stats",
    "metrics",
    "open_store",
    "paired_batches",
    "polar_factor",
    "prompt_prototypes",
    "prompt_scores",
    "prompt_texts",
    "psum_stats",
    "row_batches",
    "save_map",
    "shipped_prompt_sets",
    "stitch",
    "sweep_pairs",
    "update_stats",
    "verify_store",
    "zero_shot_logits",
    "zero_shot_predict",
    "zero_shot_protocol",
    "zero_shot_scores",
]


def __getattr__(name: str):
    # Flax and transformers are slow to import, and the maps do not need them.
    if name in ("data", "encoders"):
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
