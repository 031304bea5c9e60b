"""How well does a head of one encoder read another encoder through each map?

Without arguments on the shipped embeddings: glosses (26 supersenses) under two text encoders, and
emoji (9 categories) under two image encoders. With --config on your own stores of embeddings; see
docs/stitching.md. A run that was stopped goes on where it was.

Examples:
    python benchmarks/stitching.py
    python benchmarks/stitching.py --quick --out results/quick
    python benchmarks/stitching.py --config run.yaml --out results/chest
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from semalign_jax.studies import backend_settings, inputs, report, stitching

backend_settings.apply(quick_compile=True)  # before JAX computes


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="settings (YAML or JSON) of own data")
    parser.add_argument("--quick", action="store_true", help="the demo with fewer counts and draws")
    parser.add_argument("--out", type=Path, help="folder of the files (default results/stitching)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    options = parse_arguments(arguments)
    out = options.out or Path("results", "stitching-quick" if options.quick else "stitching")
    try:
        if options.config is None:
            settings = stitching.demo_settings(options.quick)
        elif options.quick:
            raise ValueError("--quick is for the demo: leave it or --config out")
        else:
            settings = inputs.load_settings(stitching.StitchingSettings, options.config)
        report.prepare_directory(out)
        results = stitching.run(settings, out)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"stitching: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    report.print_tables(results["rows"])
    for note in results["notes"]:
        print(f"- {note}")
    seconds, processor = results["seconds"], results["environment"]["processor"]
    print(f"\ncomputed in {seconds:.0f} s on {processor}; tables, figures and report are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
