"""How far the maps of a study can be trusted, by its anchors alone: see `maps.diagnose`."""

from typing import Any, TypeAlias

import jax
import numpy as np

from ..maps.diagnose import diagnose
from ..sweeps.anchors import anchor_order
from .tables import PAIR, Pair

#: A diagnosis takes about 60 fits: of more anchors, so many are looked at.
MOST_ANCHORS = 1000


#: A diagnosis of one draw of anchors: `PAIR`, and `maps.Diagnosis.summary` with the number of
#: suspicious pairs; JSON values.
TrustRow: TypeAlias = dict[str, Any]


def trust_rows(pair: Pair, x: np.ndarray, y: np.ndarray, count: int, seed: int) -> list[TrustRow]:
    """The diagnosis of the map between a pair of encoders; none of fewer than 3 anchors.

    `count` anchors are drawn from the rows of `x` and `y`.
    """
    count = min(count, MOST_ANCHORS, len(x))
    if count < 3:
        return []
    draw, resamples = jax.random.split(jax.random.key(seed))
    rows = np.asarray(anchor_order(draw, len(x), size=count))
    found = diagnose(x[rows].astype(np.float32), y[rows].astype(np.float32), key=resamples)
    return [
        dict(zip(PAIR, pair, strict=True)) | found.summary() | {"suspicious": len(found.suspicious)}
    ]
