"""The benchmark of the encoders runs, with tiny models."""

import json

import encoders
import numpy as np
import pytest


def test_lengths_are_real_and_mixed():
    lengths = encoders.text_lengths(128)
    assert len(lengths) == 128
    assert min(lengths) >= 7
    assert 20 < np.median(lengths) < 200
    assert max(lengths) > 100


def test_batches_of_mixed_texts():
    load = "128 mixed texts"
    tokens = {
        order: sum(
            batch["input_ids"].size for batch in encoders.inputs("bert-base", load, order)[0]
        )
        for order in ("given", "sorted", "buckets")
    }
    assert tokens["sorted"] < tokens["buckets"] < tokens["given"]
    for order in tokens:
        batches, count = encoders.inputs("bert-base", load, order)
        assert sum(len(batch["input_ids"]) for batch in batches) == count == 128
    widths = {
        batch["input_ids"].shape[1] for batch in encoders.inputs("bert-base", load, "buckets")[0]
    }
    assert widths <= set(encoders.BUCKETS)


def test_table_is_written(tmp_path, capsys):
    pytest.importorskip("torch", reason="needs the extra parity")
    arguments = [
        "--models",
        "bert-base",
        "vit-b16",
        "--tiny",
        "--batches",
        "1",
        "3",
        "--mixed",
        "40",
    ]
    docs = tmp_path / "docs" / "speed.md"
    arguments += ["--seconds", "0.01", "--out", str(tmp_path), "--docs", str(docs)]
    assert encoders.main(arguments) == 0
    printed = capsys.readouterr().out
    assert docs.read_text() == printed
    assert "| bert-base | 40 mixed texts, PyTorch sorted |" in printed
    results = json.loads((tmp_path / "encoders.json").read_text())
    differences = [row["difference"] for row in results["speeds"]]
    assert np.nanmax(differences) < 1e-5
    assert np.isfinite(differences).sum() >= 5
    assert {row["library"] for row in results["starts"]} == {"semalign_jax", "pytorch"}
