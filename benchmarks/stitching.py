"""How well does a head of one encoder read another encoder through each map?

Without arguments on the shipped embeddings: glosses (26 supersenses) under two text encoders, and
emoji (9 categories) under two image encoders. With --config on your own stores of embeddings; see
docs/stitching.md. A run that was stopped goes on where it was.

Examples:
    python benchmarks/stitching.py
    python benchmarks/stitching.py --quick --out results/quick
    python benchmarks/stitching.py --config run.yaml --out results/chest
"""

import sys
from collections.abc import Sequence

import study_script

from semalign_jax.studies import stitching


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    return study_script.run_study(
        "stitching", stitching, stitching.StitchingSettings, __doc__ or "", arguments
    )


if __name__ == "__main__":
    sys.exit(main())
