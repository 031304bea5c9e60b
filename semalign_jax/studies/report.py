"""What scripts hand over: records and tables, files of them, and what they were made with."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .._core.documents import without_nan
from .._core.files import write_atomically


def environment() -> dict[str, Any]:
    """Versions and hardware that the numbers were made with."""
    import jax

    return {
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("semalign_jax", "jax", "jaxlib", "numpy", "optax")
        },
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def prepare_directory(path: Path) -> None:
    """Make the output directory, before any work is done.

    Raises:
        ValueError: if it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path}: cannot make this directory ({error})") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"--out {path}: this directory cannot be written to")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON in one step; NaN and infinity become null."""
    text = json.dumps(without_nan(content), indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
