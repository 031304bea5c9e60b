import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "anchor_sweep.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_demo_text_stitching_writes_its_results(tmp_path):
    done = run("--protocols", "text-stitching", "--counts", 50, "--seeds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "results.json").read_text())
    scores = {r["method"]: r["value"] for r in records}
    assert set(records[0]) == {
        "protocol",
        "source",
        "target",
        "method",
        "anchors",
        "seed",
        "metric",
        "value",
    }
    assert 0.6 < scores["upper bound"] < 0.72
    assert 0.25 < scores["ridge"] < 0.5
    assert scores["shuffled"] < 0.1
    assert (tmp_path / "summary.csv").is_file()
    assert (tmp_path / "text-stitching.png").is_file()


def test_own_embeddings_are_matched_by_id(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    x = rng.standard_normal((90, 6)) + 4 * np.eye(6)[labels]
    y = x @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    order = rng.permutation(90)
    arrays = {"a": x, "b": y[order], "l": labels, "i": np.arange(90), "j": order}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    path = {name: tmp_path / f"{name}.npy" for name in arrays}
    done = run(
        "--source",
        path["a"],
        "--target",
        path["b"],
        "--labels",
        path["l"],
        "--source-ids",
        path["i"],
        "--target-ids",
        path["j"],
        "--counts",
        30,
        "--seeds",
        1,
        "--out",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {r["method"]: r["value"] for r in records}["ortho"] > 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"junk", "not a readable"), (np.ones((3, 2), int), "floating-point")],
)
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, content, message):
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    out = tmp_path / "out"
    done = run("--source", path, "--target", path, "--labels", path, "--out", out)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
