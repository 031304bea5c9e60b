"""The benchmark of the encoders runs, with tiny models."""

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from semalign_jax.encoders._texts import _buckets

pytestmark = pytest.mark.slow  # scripts, as they are run

# By its path: the tests of the encoders are a package of the same name.
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encoders.py"
SPEC = importlib.util.spec_from_file_location("encoders_benchmark", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
benchmark = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = benchmark
SPEC.loader.exec_module(benchmark)


def test_lengths_are_real_and_mixed():
    lengths = benchmark.text_lengths(128)
    assert len(lengths) == 128
    assert min(lengths) >= 7
    assert 20 < np.median(lengths) < 200
    assert max(lengths) > 100


def test_batches_of_mixed_texts():
    load = "128 mixed texts"
    tokens = {
        order: sum(
            batch["input_ids"].size for batch in benchmark.inputs("bert-base", load, order)[0]
        )
        for order in ("given", "sorted", "buckets")
    }
    assert tokens["buckets"] < tokens["sorted"] < tokens["given"]
    for order in tokens:
        batches, count = benchmark.inputs("bert-base", load, order)
        rows = sum(len(batch["input_ids"]) for batch in batches)
        assert rows == count == 128 or (order == "buckets" and 128 <= rows < 160)
    widths = {
        batch["input_ids"].shape[1] for batch in benchmark.inputs("bert-base", load, "buckets")[0]
    }
    assert widths <= set(benchmark.BUCKETS)
    assert _buckets(512) == benchmark.BUCKETS


@pytest.fixture
def one_process(monkeypatch):
    """One of the workers in a process of its own, the others in this one, which has imported."""
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    # Threads wait for each other in tiny models.
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    run = benchmark.subprocess.run

    def here(command, **options):
        if {"semalign_jax", "vit-b16"} < set(command):
            return run(command, **options)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), jax.enable_x64(False):
            status = benchmark.main(command[2:])
        return subprocess.CompletedProcess(command, status, printed.getvalue(), "")

    monkeypatch.setattr(benchmark.subprocess, "run", here)


def test_table_is_written(tmp_path, capsys, one_process):
    arguments = [
        "--models",
        "bert-base",
        "vit-b16",
        "siglip2-base-naflex",
        "convnext_tiny",
        "--tiny",
        "--batches",
        "1",
        "3",
        "--mixed",
        "40",
    ]
    docs = tmp_path / "docs" / "speed.md"
    arguments += ["--seconds", "0.01", "--out", str(tmp_path), "--docs", str(docs)]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    assert docs.read_text().partition("\n\n")[2] == printed
    assert "| bert-base | 40 mixed texts, PyTorch sorted |" in printed
    results = json.loads((tmp_path / "encoders.json").read_text())
    differences = [row["difference"] for row in results["speeds"]]
    known = [value for value in differences if value is not None]
    assert len(known) == len(differences) - 1
    assert max(known) < 1e-5
    assert {row["library"] for row in results["starts"]} == {"semalign_jax", "pytorch"}
    assert all(0 < row["floor"] <= row["peak"] for row in results["starts"])
