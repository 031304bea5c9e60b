"""`benchmarks/data_speed.py` at a tiny size."""

import contextlib
import io
import json
import shutil

import data_speed as benchmark
import numpy as np
import pytest

from semalign_jax.data import read_many
from semalign_jax.stores import open_store

pytestmark = pytest.mark.slow  # scripts, as they are run


@pytest.fixture
def small(monkeypatch):
    """Few dimensions, and no other processes."""
    monkeypatch.setattr(benchmark, "DIMENSION", 8)
    monkeypatch.setattr(benchmark, "CHUNK_ROWS", 100)

    def in_this_process(*arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert benchmark.main([str(a) for a in arguments]) == 0
        return json.loads(printed.getvalue().splitlines()[-1])

    def threads(paths, *, processes=False, **options):
        return read_many(paths, **options)

    monkeypatch.setattr(benchmark, "in_a_process", in_this_process)
    monkeypatch.setattr(benchmark, "read_many", threads)


def test_a_tiny_run_is_printed_and_written(small, tmp_path, capsys):
    work, docs = tmp_path / "work", tmp_path / "docs" / "data.md"
    arguments = ["--quick", "--rows", "450", "--peer-rows", "300", "--images", "7"]
    arguments += ["--folder", str(work), "--out", str(tmp_path), "--docs", str(docs)]
    assert benchmark.main(arguments) == 0
    assert docs.read_text().partition("\n\n")[2] == capsys.readouterr().out
    assert list(work.iterdir()) == []
    results = json.loads((tmp_path / "data_speed.json").read_text())
    decoding = {row["format"]: row for row in results["decoding"]}
    assert len(decoding) == 7
    for row in decoding.values():
        assert row["difference"] <= 0.5 + 1e-9
        assert min(row["peer"], row["one"], row["threads"]) > 0
    sizes = [decoding[f"DICOM, {name}"]["megabytes"] for name in ("uncompressed", "JPEG-LS")]
    assert sizes[1] < 0.7 * sizes[0]
    ours, *peers = results["streaming"]
    assert ours["rows"] == 450
    assert [row["rows"] for row in peers] == [300, 300]
    assert peers[0]["difference"] < 1e-12
    assert peers[1]["difference"] < 1e-5
    assert 0 < ours["private"] <= ours["peak"]
    assert set(results["seconds"]) == {"open", "match", "statistics", "fit"}
    assert results["products"] > 0


def test_stores_have_the_ids_in_common_that_were_asked_for(small, tmp_path):
    benchmark.write_stores(tmp_path, 250)
    x, y = open_store(tmp_path / "x"), open_store(tmp_path / "y")
    assert (len(x), len(y)) == (252, 252)
    assert x.ids[2:] == y.ids[:-2]
    residual = (
        y.rows(range(250))
        - x.rows(range(2, 252))
        @ np.linalg.lstsq(x.rows(range(2, 252)), y.rows(range(250)), rcond=None)[0]
    )
    assert 0.08 < residual.std() < 0.12  # the noise


def test_a_worker_in_a_process_of_its_own(tmp_path, monkeypatch):
    assert benchmark.in_a_process("--worker", "rate", "--folder", tmp_path) > 1e8
    monkeypatch.setattr(benchmark.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="failed; see above"):
        benchmark.in_a_process("--worker", "ours", "--folder", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "768"], "--rows and --peer-rows need more than 768"),
        (["--images", "3"], "--images 6"),
        (["--out", "{file}"], "--out"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, message):
    file = tmp_path / "file"
    file.write_text("")
    arguments = [argument.replace("{file}", str(file)) for argument in arguments]
    assert benchmark.main(["--quick", *arguments]) == 2
    assert message in capsys.readouterr().err
