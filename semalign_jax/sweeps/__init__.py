"""Many fits at once, over anchor counts, seeds and pairs of encoders; and choosing anchors."""

from .anchors import anchor_masks as anchor_masks
from .anchors import anchor_order as anchor_order
from .many_pairs import PairSweepResult as PairSweepResult
from .many_pairs import sweep_pairs as sweep_pairs
from .one_pair import SweepMethod as SweepMethod
from .one_pair import SweepResult as SweepResult
from .one_pair import anchor_sweep as anchor_sweep
from .select import LayerChoice as LayerChoice
from .select import choose_layers as choose_layers
from .select import select_anchors as select_anchors

__all__ = [
    "LayerChoice",
    "PairSweepResult",
    "SweepMethod",
    "SweepResult",
    "anchor_masks",
    "anchor_order",
    "anchor_sweep",
    "choose_layers",
    "select_anchors",
    "sweep_pairs",
]
