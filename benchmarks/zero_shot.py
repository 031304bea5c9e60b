"""How well do class prompts classify images of encoders that never saw a text?

Without arguments on the shipped embeddings: emoji (9 categories) under two image encoders, their
names and class prompts under a text encoder. With --config on your own stores of embeddings; see
docs/zero-shot.md. A run that was stopped goes on where it was.

Examples:
    python benchmarks/zero_shot.py
    python benchmarks/zero_shot.py --quick --out results/quick
    python benchmarks/zero_shot.py --config run.yaml --out results/chest
"""

import sys
from collections.abc import Sequence

import study_script

from semalign_jax.studies import zero_shot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    return study_script.run_study(
        "zero_shot", zero_shot, zero_shot.ZeroShotSettings, __doc__ or "", arguments
    )


if __name__ == "__main__":
    sys.exit(main())
