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

from ._classification import PrecisionRecallF1 as PrecisionRecallF1
from ._classification import accuracy as accuracy
from ._classification import balanced_accuracy as balanced_accuracy
from ._classification import brier_score as brier_score
from ._classification import cohen_kappa as cohen_kappa
from ._classification import confusion_matrix as confusion_matrix
from ._classification import expected_calibration_error as expected_calibration_error
from ._classification import matthews_correlation as matthews_correlation
from ._classification import precision_recall_f1 as precision_recall_f1
from ._classification import predicted_classes as predicted_classes
from ._ranking import RankedScores as RankedScores
from ._ranking import auroc as auroc
from ._ranking import auroc_from_ranking as auroc_from_ranking
from ._ranking import average_precision as average_precision
from ._ranking import average_precision_from_ranking as average_precision_from_ranking
from ._ranking import rank_scores as rank_scores
from ._retrieval import RetrievalRanks as RetrievalRanks
from ._retrieval import mean_reciprocal_rank as mean_reciprocal_rank
from ._retrieval import median_rank as median_rank
from ._retrieval import recall_at_k as recall_at_k
from ._retrieval import retrieval_ranks as retrieval_ranks
from ._samples import MacroMean as MacroMean
from ._samples import macro_mean as macro_mean
from ._similarity import cosine_similarity as cosine_similarity
from ._similarity import linear_cka as linear_cka
from ._similarity import mean_cosine as mean_cosine
from ._similarity import mutual_knn as mutual_knn
from ._similarity import normalize_rows as normalize_rows
from ._similarity import orthogonality_error as orthogonality_error
from ._similarity import rbf_cka as rbf_cka
from ._similarity import svcca as svcca

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
    "linear_cka",
    "macro_mean",
    "matthews_correlation",
    "mean_cosine",
    "mean_reciprocal_rank",
    "median_rank",
    "mutual_knn",
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
