"""Scores as pure functions of arrays, safe under `jit` and `vmap`.

Every score takes `weights`: floats, counts or a boolean mask. Rows of weight zero are inert,
whatever they hold, and resampling a data set is nothing but other weights (see `intervals`). A
score that is undefined, e.g. the AUROC of a class without rows, is NaN; `macro_mean` leaves such
classes out and counts them. NaN in a row that counts makes a score NaN. Cosines and CKA are also
differentiable.

Classes are integers of any dtype, whose values are looked at before JAX narrows them. Only
`jax.jit` around a score, where 64-bit types are off, wraps larger integers of NumPy before. Masked
arrays, whose mask would be lost, and arrays in another byte order are refused.

Scores also run in `jax.shard_map`, of replicated rows or of the rows that each device has. On a
mesh with Explicit axes, labels and weights are gathered; scores and embeddings that are spread are
refused: gather them first, or wrap the call in `jax.sharding.auto_axes`.
"""

from . import intervals
from .classification import (
    PrecisionRecallF1,
    accuracy,
    balanced_accuracy,
    brier_score,
    cohen_kappa,
    confusion_matrix,
    expected_calibration_error,
    matthews_correlation,
    precision_recall_f1,
    predicted_classes,
)
from .ranking import (
    RankedScores,
    auroc,
    auroc_from_ranking,
    average_precision,
    average_precision_from_ranking,
    rank_scores,
)
from .retrieval import (
    RetrievalRanks,
    mean_reciprocal_rank,
    median_rank,
    nearest_neighbors,
    recall_at_k,
    retrieval_ranks,
)
from .samples import MacroMean, macro_mean
from .similarity import (
    cosine_similarity,
    linear_cka,
    mean_cosine,
    mutual_knn,
    normalize_rows,
    orthogonality_error,
    rbf_cka,
    svcca,
)

__all__ = [
    "MacroMean",
    "PrecisionRecallF1",
    "RankedScores",
    "RetrievalRanks",
    "accuracy",
    "auroc",
    "auroc_from_ranking",
    "average_precision",
    "average_precision_from_ranking",
    "balanced_accuracy",
    "brier_score",
    "cohen_kappa",
    "confusion_matrix",
    "cosine_similarity",
    "expected_calibration_error",
    "intervals",
    "linear_cka",
    "macro_mean",
    "matthews_correlation",
    "mean_cosine",
    "mean_reciprocal_rank",
    "median_rank",
    "mutual_knn",
    "nearest_neighbors",
    "normalize_rows",
    "orthogonality_error",
    "precision_recall_f1",
    "predicted_classes",
    "rank_scores",
    "rbf_cka",
    "recall_at_k",
    "retrieval_ranks",
    "svcca",
]
