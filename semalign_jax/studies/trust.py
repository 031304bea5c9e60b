"""How far the maps of a study can be trusted, by its anchors alone: see `maps.diagnose`."""

from typing import TypedDict

import jax
import numpy as np

from ..maps.diagnose import diagnose
from ..sweeps.anchors import anchor_order
from .settings import StudySettings
from .tables import PAIR, Pair

#: A diagnosis takes about 60 fits: of more anchors, so many are looked at.
MOST_ANCHORS = 1000


class TrustRow(TypedDict):
    """A diagnosis of one draw of anchors.

    Its keys are those of `tables.PAIR` and `maps.Diagnosis.summary`, but `suspicious` is the number
    of these pairs; those that no page shows are left out here.
    """

    protocol: str
    source: str
    target: str
    anchors: int
    loo_cosine: float
    explained: float
    explained_back: float
    stability: float
    hubness: float
    suspicious: int
    counts: list[int]
    curve: list[float]
    advice: list[str]


def trust_rows(settings: StudySettings, pair: Pair, x: np.ndarray, y: np.ndarray) -> list[TrustRow]:
    """The diagnosis of the map between a pair of encoders, of the largest count of the study.

    Anchors are drawn from the rows of `x` and `y`. None if the study wants none, or has fewer than
    3 anchors.
    """
    count = min(max(settings.counts), MOST_ANCHORS, len(x))
    if count < 3 or not settings.trust:
        return []
    draw, resamples = jax.random.split(jax.random.key(settings.seed))
    rows = np.asarray(anchor_order(draw, len(x), size=count))
    found = diagnose(x[rows].astype(np.float32), y[rows].astype(np.float32), key=resamples)
    row = dict(zip(PAIR, pair, strict=True)) | found.summary()
    return [TrustRow(**{**row, "suspicious": len(found.suspicious)})]  # type: ignore[typeddict-item]
