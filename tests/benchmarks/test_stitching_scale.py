"""`benchmarks/stitching_scale.py` at a tiny size."""

import json

import pytest
import stitching_scale

pytestmark = pytest.mark.slow  # scripts, as they are run

TINY = ["--encoders", "2", "--dim", "4", "--seeds", "2", "--train-rows", "60", "--test-rows", "30"]
TINY += ["--labels", "2", "--methods", "linear", "ortho"]


def test_a_tiny_run_is_printed_and_written(tmp_path, capsys):
    docs = tmp_path / "docs" / "scale.md"
    arguments = [*TINY, "--counts", "3", "20", "--out", str(tmp_path), "--docs", str(docs)]
    assert stitching_scale.main(arguments) == 0
    printed = capsys.readouterr()
    assert docs.read_text().partition("\n\n")[2] == printed.out
    assert "8 of 8" in printed.err  # pairs, with control and seeds
    results = json.loads((tmp_path / "stitching_scale.json").read_text())
    seconds = results["seconds"]
    assert set(seconds) == {
        "embeddings", "heads", "references", "preparation", "pairs", "collecting", "compilation",
    }  # fmt: skip
    assert min(seconds.values()) >= 0
    added = sum(seconds.values()) - seconds["embeddings"]
    assert added == pytest.approx(results["total_seconds"], rel=1e-6)
    assert all(value > 0 for value in results["milliseconds_alone"].values())
    scores = {row[0]: row[1] for row in results["scores"]["auroc"]}
    assert scores["linear"] > scores["naive"]
    assert set(scores) == {"naive", "linear", "ortho", "upper bound"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--counts", "61"], "--counts has 61, but --train-rows is 60"),
        (["--counts", "3", "--encoders", "1"], "--encoders must be at least 2; got 1"),
        (["--counts", "3", "--out", "{file}"], "--out"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, message):
    file = tmp_path / "file"
    file.write_text("")
    arguments = [argument.replace("{file}", str(file)) for argument in arguments]
    assert stitching_scale.main([*TINY, *arguments]) == 2
    assert message in capsys.readouterr().err
