"""How well do class prompts classify images of encoders that never saw a text?

Without arguments on the shipped embeddings: emoji (9 categories) under two image encoders, their
names and class prompts under a text encoder. With --config on your own stores of embeddings; see
docs/zero-shot.md. A run that was stopped goes on where it was.

Examples:
    python benchmarks/zero_shot.py
    python benchmarks/zero_shot.py --quick --out results/quick
    python benchmarks/zero_shot.py --config run.yaml --out results/chest
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from semalign_jax.studies import backend_settings, inputs, report, zero_shot


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="settings (YAML or JSON) of own data")
    parser.add_argument("--quick", action="store_true", help="the demo with fewer counts and draws")
    parser.add_argument("--out", type=Path, help="folder of the files (default results/zero_shot)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    options = parse_arguments(arguments)
    out = options.out or Path("results", "zero_shot-quick" if options.quick else "zero_shot")
    # Before JAX computes. The intervals take longest, and need optimised code.
    backend_settings.apply(quick_compile=options.quick)
    try:
        if options.config is None:
            settings = zero_shot.demo_settings(options.quick)
        elif options.quick:
            raise ValueError("--quick is for the demo: leave it or --config out")
        else:
            settings = inputs.load_settings(zero_shot.ZeroShotSettings, options.config)
        report.prepare_directory(out)
        results = zero_shot.run(settings, out)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"zero_shot: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    report.print_tables(results["rows"])
    for note in results["notes"]:
        print(f"- {note}")
    seconds, processor = results["seconds"], results["environment"]["processor"]
    print(f"\ncomputed in {seconds:.0f} s on {processor}; tables, figures and report are in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
