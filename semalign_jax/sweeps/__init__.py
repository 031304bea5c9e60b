"""Many fits at once: over anchor counts and seeds, and over pairs of encoders."""

from .anchors import anchor_masks as anchor_masks
from .anchors import anchor_order as anchor_order
from .many_pairs import PairSweepResult as PairSweepResult
from .many_pairs import sweep_pairs as sweep_pairs
from .one_pair import SweepMethod as SweepMethod
from .one_pair import SweepResult as SweepResult
from .one_pair import anchor_sweep as anchor_sweep

__all__ = [
    "PairSweepResult",
    "SweepMethod",
    "SweepResult",
    "anchor_masks",
    "anchor_order",
    "anchor_sweep",
    "sweep_pairs",
]
