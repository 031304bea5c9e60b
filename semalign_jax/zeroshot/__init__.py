"""Unimodal zero-shot classification: mapped image embeddings against class prompts.

Prompt files, scores, thresholds, baselines, and the protocol that puts all of them into one table,
by patient. Studies that write reports are in `studies`.
"""

from . import baselines as baselines
from ._protocol_data import AnchorPairs as AnchorPairs
from ._protocol_data import Images as Images
from ._protocol_data import Multimodal as Multimodal
from ._protocol_metrics import ScoreReport as ScoreReport
from ._protocol_metrics import evaluate_scores as evaluate_scores
from .classifier import ZeroShotClassifier as ZeroShotClassifier
from .classifier import zero_shot_classifier as zero_shot_classifier
from .prompts import ClassPrompts as ClassPrompts
from .prompts import PromptSet as PromptSet
from .prompts import PromptTexts as PromptTexts
from .prompts import embedded_prompts as embedded_prompts
from .prompts import load_prompts as load_prompts
from .prompts import prompt_texts as prompt_texts
from .prompts import shipped_prompt_sets as shipped_prompt_sets
from .protocol import ZeroShotResult as ZeroShotResult
from .protocol import zero_shot_protocol as zero_shot_protocol
from .scores import AnchorSpace as AnchorSpace
from .scores import EmbeddedPrompts as EmbeddedPrompts
from .scores import SpaceNormalization as SpaceNormalization
from .scores import Task as Task
from .scores import anchor_space as anchor_space
from .scores import class_embeddings as class_embeddings
from .scores import evaluate_zero_shot as evaluate_zero_shot
from .scores import prompt_prototypes as prompt_prototypes
from .scores import prompt_scores as prompt_scores
from .scores import zero_shot_logits as zero_shot_logits
from .scores import zero_shot_predict as zero_shot_predict
from .scores import zero_shot_scores as zero_shot_scores
from .thresholds import ThresholdRule as ThresholdRule
from .thresholds import choose_threshold as choose_threshold

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
