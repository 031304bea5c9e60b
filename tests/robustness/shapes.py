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
        jax.clear_caches()
        print(shape + 1, flush=True)
"""


def run(count: int) -> Iterator[tuple[int, list[str]]]:
    """Fit to `count` shapes in one process; yield how many, and what went wrong."""
    words = [sys.executable, "-c", _SCRIPT, str(count)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield int(line), []
    if process.returncode:
        yield count, [f"{count} shapes in one process: it ends with {process.returncode}"]
    else:
        yield count, []
