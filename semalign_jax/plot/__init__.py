"""Figures for a paper: scores against anchors, matrices, classes, and the spaces themselves.

Each function draws on the axes `ax`, under the matplotlib settings in force; without `ax` it makes
a figure of the width of a column, in a style that does not depend on them. It returns the axes;
`ax.figure.savefig(...)` writes the figure, `to_bytes(ax)` makes equal bytes each time. Rows
are those of studies (`studies.tables.Row`), or any result with a `summary`.

Colours are apart for all kinds of colour vision, and markers or hatches tell the same in grey.
Dotted lines are controls, fitted to wrong pairs, and nothing else; grey ones use no anchors.

Needs matplotlib (the `plot` extra). No global figure is made, so nothing has to be closed.
"""

from .looks import Look, looks
from .scores import anchor_curves, class_scores, score_matrix
from .spaces import learning_curve, residual_histogram, similarity_histogram, spaces
from .style import to_bytes

__all__ = [
    "Look",
    "anchor_curves",
    "class_scores",
    "learning_curve",
    "looks",
    "residual_histogram",
    "score_matrix",
    "similarity_histogram",
    "spaces",
    "to_bytes",
]
