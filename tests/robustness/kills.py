"""Killed and interrupted runs: nothing that counted is lost, nothing left over, one line said.

Runs are processes that begin with everything imported, so that they are killed while they work.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import semalign_jax as sa

#: Hidden files that stay: locks belong to a process, and what was checked is not checked again.
_STAY = (".lock", ".checked")


def _stores(root: Path) -> None:
    sa.stores.import_store(root / "rows.npz", root / "out", description={}, chunk_rows=20)


def _exports(suffix: str) -> Callable[[Path], None]:
    def export(root: Path) -> None:
        (root / "out").mkdir(exist_ok=True)
        for _ in range(3):  # the second replaces the first
            sa.stores.export_store(sa.stores.open_store(root / "store"), root / f"out/rows{suffix}")

    return export


def _maps(root: Path) -> None:
    (root / "out").mkdir(exist_ok=True)
    for width in (300, 200, 100):
        sa.save_map(sa.identity_map(width, 300), root / "out/map.safetensors", method="naive")


def _cells(root: Path) -> None:
    from semalign_jax.studies.cells import run_cells

    def compute(cell: int) -> list[int]:
        return [cell] * 50

    with contextlib.redirect_stderr(io.StringIO()):
        (root / "out").mkdir(exist_ok=True)
        run_cells(list(range(60)), compute, root / "out/cells.jsonl", settings={})


def _embeds(root: Path) -> None:
    from semalign_jax.encoders import _embed

    _embed.KEEP_EVERY = 0.01
    encoder = sa.encoders.load_encoder(root / "encoder")
    texts = [f"{'no ' * (k % 9)}finding" for k in range(400)]
    options: dict[str, Any] = {"batch_size": 4, "chunk_size": 160, "progress": False}
    sa.encoders.embed(encoder, texts, out=root / "out", ids=range(400), **options)


def _converts(root: Path) -> None:
    _command(["convert", root / "rows.npz", root / "out" / "rows.parquet"], root)


def _applies(root: Path) -> None:
    words = ["apply", root / "map.safetensors", root / "store", "--out", root / "out"]
    _command([*words, "--chunk-size", 25], root)


def _command(words: list[Any], root: Path) -> None:
    """Run a command line as if it was this process's."""
    from semalign_jax.cli import main

    (root / "out").mkdir(exist_ok=True)
    sys.argv = ["semalign", *map(str, words), "--quiet"]
    os.dup2(os.open(root / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    main()


#: What is run and killed; those of commands also get signals.
RUNS: dict[str, Callable[[Path], None]] = {
    "import": _stores,
    "export npy": _exports(".npy"),
    "export npz": _exports(".npz"),
    "export parquet": _exports(".parquet"),
    "export h5": _exports(".h5"),
    "save a map": _maps,
    "cells": _cells,
    "embed": _embeds,
    "convert": _converts,
    "apply": _applies,
}
_COMMANDS = ("convert", "apply")


def prepare(root: Path) -> None:
    """Write what the runs read."""
    from cli_cases import text_encoder

    rng = np.random.default_rng(0)
    rows, ids = rng.standard_normal((400, 300)).astype(np.float32), [f"i{k}" for k in range(400)]
    np.savez(root / "rows.npz", embeddings=rows, ids=np.array(ids))
    store = sa.stores.create_store(root / "store", description={"a": 1}, dimension=300)
    store.append(ids[:200], rows[:200]).append(ids[200:], rows[200:])
    sa.save_map(
        sa.fit_linear(rows[:, :300], rows[:, ::-1][:, :150].copy()), root / "map.safetensors"
    )
    (root / "encoder").mkdir()
    text_encoder(root / "encoder")


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _left(folder: Path) -> list[str]:
    hidden = (path.name for path in folder.rglob(".*"))
    return [name for name in hidden if not name.startswith(_STAY)]


def _child(name: str, root: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    RUNS[name](root)


class _Runner:
    def __init__(self, root: Path):
        self._root = root
        self._context = multiprocessing.get_context("forkserver")
        modules = [
            "semalign_jax.cli._app",
            "semalign_jax.cli._stores",
            "semalign_jax.encoders",
            "semalign_jax.studies.cells",
            "pyarrow.parquet",
            "h5py",
            __name__,
        ]
        self._context.set_forkserver_preload(modules)

    def start(self, name: str) -> Any:
        process = self._context.Process(target=_child, args=(name, self._root))
        process.start()
        return process

    def finish(self, name: str) -> tuple[int | None, dict[str, str], float]:
        began = time.monotonic()
        process = self.start(name)
        process.join(60)
        process.kill()
        return process.exitcode, _digest(self._root / "out"), time.monotonic() - began

    def clear(self) -> None:
        shutil.rmtree(self._root / "out", ignore_errors=True)


def run(root: Path, count: int, seed: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Kill runs at many moments; yield how many, and the faults found, so far."""
    prepare(root)
    runner = _Runner(root)
    draw = random.Random(seed)
    faults: dict[str, None] = {}
    whole: dict[str, tuple[dict[str, str], float]] = {}
    for name in RUNS:
        runner.clear()
        runner.finish(name)  # what is slow once
        runner.clear()
        code, digest, seconds = runner.finish(name)
        if code != 0 or not digest:
            raise RuntimeError(f"{name} does not run: it ends with {code}")
        whole[name] = digest, seconds
    names = list(RUNS)
    for number in range(count):
        name = names[number % len(names)]
        if number % len(names) == 0:
            names = draw.sample(names, len(names))
        signals = [signal.SIGKILL]
        if name in _COMMANDS:
            signals += [signal.SIGINT, signal.SIGTERM]
        for fault in _killed(runner, root, name, draw.choice(signals), draw, *whole[name]):
            faults[f"{name}: {fault}"] = None
        yield number + 1, list(faults)


def _killed(
    runner: _Runner,
    root: Path,
    name: str,
    number: signal.Signals,
    draw: random.Random,
    digest: dict[str, str],
    seconds: float,
) -> Iterator[str]:
    runner.clear()
    (root / "stderr").unlink(missing_ok=True)
    process = runner.start(name)
    after = draw.uniform(0, 1.1 * seconds)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
    process.join(60)
    where = f"{number.name} after {after:.2f} of {seconds:.2f} s"
    if process.exitcode is None:
        process.kill()
        yield f"{where}: does not end"
    elif number != signal.SIGKILL and process.exitcode != 0 and (root / "stderr").exists():
        # Without that file the command had not begun.
        lines = (root / "stderr").read_text().splitlines()
        if process.exitcode != 128 + number or len(lines) != 1:
            yield f"{where}: ends with {process.exitcode} and says {lines}"
    code, again, _ = runner.finish(name)
    if code != 0:
        yield f"{where}: does not go on, ends with {code}"
    elif again != digest:
        yield f"{where}: gives other files"
    left = _left(root / "out")
    if left:
        yield f"{where}: leaves {left[:3]}"
