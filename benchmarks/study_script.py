"""The command line that benchmarks/stitching.py and benchmarks/zero_shot.py share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import printing

from semalign_jax.studies import backend_settings, report
from semalign_jax.studies.settings import Settings, load_settings


def run_study(
    name: str,
    study: ModuleType,
    kind: type[Settings],
    doc: str,
    arguments: Sequence[str] | None,
) -> int:
    """Run a study on the demo or on a user's data, and print its tables.

    Args:
        name: of the script.
        study: a module of `semalign_jax.studies` with `demo_settings` and `run`.
        kind: its settings.
        doc: docstring of the script.
        arguments: of the command line; None for those of the process.

    Returns:
        The exit status.
    """
    summary, _, rest = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="settings (YAML or JSON) of own data")
    parser.add_argument("--quick", action="store_true", help="the demo with fewer counts and draws")
    parser.add_argument("--out", type=Path, help=f"folder of the files (default results/{name})")
    options = parser.parse_args(arguments)
    out = options.out or Path("results", f"{name}-quick" if options.quick else name)
    # Before JAX computes. The intervals of a whole study take longest and need optimised code.
    backend_settings.apply(quick_compile=options.quick)
    try:
        if options.config is None:
            settings = study.demo_settings(options.quick)
        elif options.quick:
            raise ValueError("--quick is for the demo: leave it or --config out")
        else:
            settings = load_settings(kind, options.config)
        report.prepare_directory(out)
        results = study.run(settings, out)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    printing.print_tables(results["rows"])
    for note in results["notes"]:
        print(f"- {note}")
    seconds, processor = results["seconds"], results["environment"]["processor"]
    print(f"\ncomputed in {seconds:.0f} s on {processor}; tables, figures and report are in {out}")
    return 0
