"""Many fits at once, over anchor counts, seeds and pairs of encoders; and choosing anchors."""

from .anchors import anchor_masks, anchor_order
from .many_pairs import PairSweepResult, sweep_pairs
from .one_pair import SweepMethod, SweepResult, anchor_sweep
from .select import LayerChoice, choose_layers, select_anchors

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
