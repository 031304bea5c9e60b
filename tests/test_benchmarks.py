import json
import subprocess
import sys
from pathlib import Path

import anchor_sweep
import numpy as np
import pytest

from semalign_jax.studies import report

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "anchor_sweep.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_demo_text_stitching_writes_its_results(tmp_path):
    done = run("--protocols", "text-stitching", "--counts", 50, "--seeds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "results.json").read_text())
    scores = {r["method"]: r["value"] for r in records if r["source"] == "MiniLM-L3"}
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


def save(directory, **arrays):
    paths = {}
    for name, array in arrays.items():
        paths[name] = directory / f"{name}.npy"
        np.save(paths[name], array)
    return paths


def mistakes():
    x = np.ones((6, 2), np.float32)
    labels = np.arange(6) % 2
    ids = np.arange(6)
    return {
        "rows do not match": (dict(source=x, target=x[:5], labels=labels), "--target 5"),
        "labels too short": (dict(source=x, target=x, labels=labels[:4]), "--labels"),
        "one class": (dict(source=x, target=x, labels=0 * labels), "at least two classes"),
        "a vector": (dict(source=x[:, 0], target=x, labels=labels), "--source"),
        "empty": (dict(source=x[:0], target=x[:0], labels=labels[:0]), "--source"),
        "NaN": (dict(source=x, target=x * np.nan, labels=labels), "NaN or infinity"),
        "no common ids": (
            dict(source=x, target=x, labels=labels, source_ids=ids, target_ids=ids + 9),
            "no id in common",
        ),
        "repeated id": (
            dict(source=x, target=x, labels=labels, source_ids=0 * ids, target_ids=ids),
            "more than once",
        ),
        "prompts of another space": (
            dict(
                source=x,
                target=x,
                labels=labels,
                prompts=np.ones((2, 3), np.float32),
                prompt_labels=np.arange(2),
            ),
            "needs 2 dimensions",
        ),
        "class without prompt": (
            dict(source=x, target=x, labels=labels, prompts=x[:1], prompt_labels=ids[:1]),
            "has no prompt",
        ),
        "pickled": (dict(source=np.array([{}, {}], object), target=x, labels=labels), "readable"),
    }


@pytest.mark.parametrize("case", mistakes())
def test_bad_embeddings_are_named(tmp_path, case, capsys):
    arrays, message = mistakes()[case]
    flags = []
    for name, path in save(tmp_path, **arrays).items():
        flags += [f"--{name.replace('_', '-')}", str(path)]
    out = tmp_path / "out"
    status = anchor_sweep.main([*flags, "--out", str(out)])
    assert status == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_damaged_files_and_missing_arguments_are_named(tmp_path, capsys):
    x = np.ones((6, 2), np.float32)
    paths = save(tmp_path, source=x, labels=np.arange(6) % 2)
    whole = paths["source"].read_bytes()
    damaged = tmp_path / "damaged.npy"
    damaged.write_bytes(whole[:-7])
    foreign = tmp_path / "table.csv"
    foreign.write_text("1,2\n")
    labels = ["--labels", str(paths["labels"])]
    for arguments, message in (
        (["--source", str(damaged), "--target", str(damaged), *labels], "not a readable .npy"),
        (["--source", str(foreign), "--target", str(foreign), *labels], "unknown type '.csv'"),
        (["--source", str(paths["source"]), *labels], "--target is missing"),
        (["--counts", "0"], "--counts"),
    ):
        assert anchor_sweep.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_out_must_be_a_directory(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert anchor_sweep.main(["--quick", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_results_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    report.write_json(path, [1])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
