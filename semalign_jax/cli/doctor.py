"""`semalign doctor`."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import jax
import numpy  # noqa: F401 - loads its library of linear algebra
from huggingface_hub.constants import HF_HUB_CACHE
from threadpoolctl import threadpool_info

from .._core.machine import core_count, free_space
from ._console import Console, Outcome
from ._options import command
from ._settings import DoctorSettings

#: Variables that change what runs, or how fast.
_VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "XLA_FLAGS",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)
#: Extras of those who work on the package itself.
_OF_DEVELOPERS = ("dev", "docs", "parity", "test")
#: Least free bytes of a disk that encoders are downloaded to.
_LITTLE = 5e9


@command(DoctorSettings, examples=("semalign doctor", "semalign doctor --json"))
def doctor(console: Console, settings: DoctorSettings) -> Outcome:
    """Show versions, devices, extras, threads and disks, for a report of a fault.

    No data and no tokens are shown; look at the variables before you publish them.
    """
    devices, problems = _devices()
    needed, extras = _packages()
    problems += [f"{name} is not installed" for name, found in needed.items() if found is None]
    folders = {"here": Path.cwd(), "downloads": _downloads()}
    disks = {name: free_space(path) for name, path in folders.items()}
    if disks["downloads"] < _LITTLE:
        problems.append(f"only {disks['downloads'] / 1e9:.1f} GB are free where encoders go")
    values: dict[str, Any] = {
        "semalign_jax": version("semalign_jax"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "devices": devices,
        "cores": core_count(),
        "threads": _threads(),
        "packages": needed,
        "extras": extras,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "free_bytes": disks,
        "problems": problems,
    }
    return Outcome(values, "\n".join(_lines(values)), status=1 if problems else 0)


def _devices() -> tuple[list[str], list[str]]:
    """The devices that JAX has, and why it has none."""
    try:
        return [f"{one.platform}: {one.device_kind}" for one in jax.devices()], []
    except RuntimeError as error:
        return [], [f"JAX finds no device: {error}"]


def _packages() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Versions of the packages that are needed, and of those of each extra."""
    needed: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for line in requires("semalign_jax") or ():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if name is None or name[0].replace("-", "_") == "semalign_jax":
            continue
        if extra is not None and extra[1] in _OF_DEVELOPERS:
            continue
        place = needed if extra is None else extras.setdefault(extra[1], {})
        place[name[0]] = _version(name[0])
    return needed, extras


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _downloads() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    return Path(HF_HUB_CACHE)


def _threads() -> dict[str, int]:
    """Threads of each library of linear algebra that NumPy has loaded."""
    return {one["prefix"]: one["num_threads"] for one in threadpool_info()}


def _lines(values: dict[str, Any]) -> list[str]:
    shown = ("semalign_jax", "python", "system", "cores")
    lines = [f"{name}: {values[name]}" for name in shown]
    lines.append(f"devices: {', '.join(values['devices']) or 'none'}")
    threads = (f"{name} {number}" for name, number in values["threads"].items())
    lines.append(f"threads: {', '.join(threads)}")
    packages = (f"{name} {found or 'MISSING'}" for name, found in values["packages"].items())
    lines.append(f"packages: {', '.join(packages)}")
    for extra, of_extra in sorted(values["extras"].items()):
        missing = [name for name, found in of_extra.items() if found is None]
        state = f"not there: {', '.join(missing)}" if missing else "complete"
        lines.append(f"extra {extra}: {state}")
    lines += [f"{name}={value}" for name, value in values["variables"].items()]
    free = (f"{size / 1e9:.1f} GB {name}" for name, size in values["free_bytes"].items())
    lines.append(f"free disk: {', '.join(free)}")
    return lines + [f"PROBLEM: {problem}" for problem in values["problems"]]
