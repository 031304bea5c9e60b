"""Unimodal zero-shot classification: mapped image embeddings against class prompts.

Prompt files, scores, thresholds, baselines, and the protocol that puts all of them into one table,
by patient. Studies that write reports are in `studies`.
"""

from . import baselines
from ._protocol_data import AnchorPairs, Images, Multimodal
from ._protocol_metrics import ScoreReport, evaluate_scores
from .classifier import ZeroShotClassifier, zero_shot_classifier
from .prompts import (
    ClassPrompts,
    PromptSet,
    PromptTexts,
    embedded_prompts,
    load_prompts,
    prompt_texts,
    shipped_prompt_sets,
)
from .protocol import ZeroShotResult, zero_shot_protocol
from .scores import (
    AnchorSpace,
    EmbeddedPrompts,
    SpaceNormalization,
    Task,
    anchor_space,
    class_embeddings,
    evaluate_zero_shot,
    prompt_prototypes,
    prompt_scores,
    zero_shot_logits,
    zero_shot_predict,
    zero_shot_scores,
)
from .thresholds import ThresholdRule, choose_threshold

__all__ = [
    "AnchorPairs",
    "AnchorSpace",
    "ClassPrompts",
    "EmbeddedPrompts",
    "Images",
    "Multimodal",
    "PromptSet",
    "PromptTexts",
    "ScoreReport",
    "SpaceNormalization",
    "Task",
    "ThresholdRule",
    "ZeroShotClassifier",
    "ZeroShotResult",
    "anchor_space",
    "baselines",
    "choose_threshold",
    "class_embeddings",
    "embedded_prompts",
    "evaluate_scores",
    "evaluate_zero_shot",
    "load_prompts",
    "prompt_prototypes",
    "prompt_scores",
    "prompt_texts",
    "shipped_prompt_sets",
    "zero_shot_classifier",
    "zero_shot_logits",
    "zero_shot_predict",
    "zero_shot_protocol",
    "zero_shot_scores",
]
