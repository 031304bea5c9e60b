"""A process that fits to anchors of thousands of shapes, each of which is compiled."""

import os
import subprocess
import sys
from collections.abc import Iterator

#: As docs/reliability.md tells it: XLA ends a process that has no memory maps left.
_SCRIPT = """
import sys
import jax
import numpy as np
import semalign_jax as sa

x, y = np.random.default_rng(0).standard_normal((2, 10_000, 8)).astype(np.float32)
for shape in range(int(sys.argv[1])):
    sa.fit_ortho(x[: shape + 10], y[: shape + 10]).weight.block_until_ready()
    if shape % 200 == 199:
        maps = sum(1 for _ in open("/proc/self/maps"))
        jax.clear_caches()
        print(shape + 1, maps, flush=True)
"""


def run(count: int) -> Iterator[tuple[int, list[str]]]:
    """Fit to `count` shapes in one process; yield how many, and what went wrong.

    How many memory maps 200 shapes take is said on stderr.
    """
    words = [sys.executable, "-c", _SCRIPT, str(count)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            done, maps = map(int, line.split())
            print(f"{done} shapes; {maps} memory maps before the last clear", file=sys.stderr)
            yield done, []
    ended = f"{count} shapes in one process: it ends with {process.returncode}"
    yield count, [ended] if process.returncode else []
