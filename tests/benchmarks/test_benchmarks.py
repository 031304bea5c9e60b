import json
import subprocess
import sys
from pathlib import Path

import anchor_sweep
import beyond
import defaults
import few_anchors
import migration
import protocols
import pytest

from semalign_jax.studies import report

pytestmark = pytest.mark.slow  # scripts, as they are run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "anchor_sweep.py"


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
    assert (tmp_path / "curves-text-stitching-accuracy.png").is_file()


def test_bad_counts_are_named(capsys):
    for arguments in (["--counts", "0"], ["--seeds", "0"]):
        assert anchor_sweep.main(arguments) == 2
        assert "at least 1" in capsys.readouterr().err


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


def test_beyond_puts_every_line_next_to_the_best_of_four(tmp_path, capsys):
    arguments = ["--quick", "--protocols", "vision-stitching", "--out", str(tmp_path)]
    assert beyond.main(arguments) == 0
    printed = capsys.readouterr().out
    for line in ("best of the four", *beyond.LINES):
        assert printed.count(f"\n{line} ") == 2  # both directions
    results = json.loads((tmp_path / "results.json").read_text())
    four = results["four"]["vision-stitching EfficientNet-Lite0 DINOv2-small"]
    lines = results["lines"]["vision-stitching EfficientNet-Lite0 DINOv2-small"]
    best = max(sum(scores[1]) / 2 for scores in four)
    assert sum(lines["auto"][1]) / 2 > best + 0.01  # at 200 anchors
    assert (tmp_path / "beyond.png").stat().st_size > 20_000


def test_tables_of_few_anchors():
    split = defaults.validation_split
    pair = protocols.demo_pairs(("text-stitching",), 1, 1, split)[0]
    score = few_anchors.scorer(pair)
    chosen = few_anchors.selections(pair, "texts", score)
    assert chosen.pair == "texts"
    assert all(0.4 < accuracy < 0.6 for accuracy in chosen[1:])
    wrong = few_anchors.wrong_pairs(pair, "texts", score)
    assert wrong.auroc > 0.99
    assert wrong.wrong < wrong.wrong_robust - 0.01
    assert wrong.clean_robust > wrong.clean - 0.01
    pools = few_anchors.pools(pair, "texts", score)
    assert max(pools.disjoint, pools.anchors_alone) < pools.same_classes - 0.02


def test_the_table_of_migrations(monkeypatch):
    pair = "MiniLM-L3 to L6"
    monkeypatch.setitem(migration.PAIRS, pair, (*migration.PAIRS[pair][:3], (500,)))
    found = {line.map: line for line in migration.lines(pair, 1)}
    assert found.keys() == migration.MAPS.keys()
    assert found["naive swap"].recall_at_10 < 0.65 < 0.8 < found["affine, ridge"].recall_at_10
    assert found["affine"].overlap_at_10 < 0.4 < 0.5 < found["ortho"].overlap_at_10
