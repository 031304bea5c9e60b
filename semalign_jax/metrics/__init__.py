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

from . import intervals as intervals
from .classification import PrecisionRecallF1 as PrecisionRecallF1
from .classification import accuracy as accuracy
from .classification import balanced_accuracy as balanced_accuracy
from .classification import brier_score as brier_score
from .classification import cohen_kappa as cohen_kappa
from .classification import confusion_matrix as confusion_matrix
from .classification import expected_calibration_error as expected_calibration_error
from .classification import matthews_correlation as matthews_correlation
from .classification import precision_recall_f1 as precision_recall_f1
from .classification import predicted_classes as predicted_classes
from .ranking import RankedScores as RankedScores
from .ranking import auroc as auroc
from .ranking import auroc_from_ranking as auroc_from_ranking
from .ranking import average_precision as average_precision
from .ranking import average_precision_from_ranking as average_precision_from_ranking
from .ranking import rank_scores as rank_scores
from .retrieval import RetrievalRanks as RetrievalRanks
from .retrieval import mean_reciprocal_rank as mean_reciprocal_rank
from .retrieval import median_rank as median_rank
from .retrieval import nearest_neighbors as nearest_neighbors
from .retrieval import recall_at_k as recall_at_k
from .retrieval import retrieval_ranks as retrieval_ranks
from .samples import MacroMean as MacroMean
from .samples import macro_mean as macro_mean
from .similarity import cosine_similarity as cosine_similarity
from .similarity import linear_cka as linear_cka
from .similarity import mean_cosine as mean_cosine
from .similarity import mutual_knn as mutual_knn
from .similarity import normalize_rows as normalize_rows
from .similarity import orthogonality_error as orthogonality_error
from .similarity import rbf_cka as rbf_cka
from .similarity import svcca as svcca

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
