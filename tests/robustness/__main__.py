"""Run the bench, e.g. `python -m tests.robustness --calls 5000 --files 3000 --kills 200`."""

import argparse
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers of the tests

from tests.robustness import calls, files, kills, shapes


def _bombs(root: Path) -> Iterator[tuple[int, list[str]]]:
    faults: list[str] = []
    for number, (name, (path, read)) in enumerate(files.bombs(root).items(), 1):
        found = files.refusal(name, path, read)
        faults += [found] if found else []
        yield number, faults


def main() -> int:
    """Run the bench; the exit status is 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    for name, default in (("calls", 5000), ("files", 3000), ("kills", 200), ("shapes", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"how many, {default}")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    all_faults: list[str] = []
    print(f"{'what':36} {'tried':>6} {'held':>6} {'faults':>6} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        parts: list[tuple[str, Callable[[], Iterator[tuple[int, list[str]]]]]] = [
            ("wrong arguments", lambda: calls.run(wanted.calls, wanted.seed)),
            ("damaged files", lambda: files.run(root / "files", wanted.files, wanted.seed)),
            ("files that declare too much", lambda: _bombs(root / "bombs")),
            ("killed and interrupted runs", lambda: kills.run(root, wanted.kills, wanted.seed)),
            ("shapes in one process", lambda: shapes.run(wanted.shapes)),
        ]
        for what, part in parts:
            began = time.monotonic()
            *_, (tried, faults) = [(0, []), *part()]
            seconds = time.monotonic() - began
            line = f"{what:36} {tried:6} {tried - len(faults):6} {len(faults):6} {seconds:8.0f}"
            print(line, flush=True)
            all_faults += faults
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"largest process: {max(usage.ru_maxrss for usage in usages) / 1e6:.2f} GB")
    for fault in all_faults:
        print(f"- {fault}")
    return 1 if all_faults else 0


if __name__ == "__main__":
    sys.exit(main())
