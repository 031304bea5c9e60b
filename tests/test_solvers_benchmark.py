"""The accuracy bounds of `benchmarks/solvers.py`, and its tables, at a small size."""

import json

import jax
import pytest
import solvers


@pytest.mark.parametrize("case", list(solvers.accuracy_cases(24)), ids=str)
def test_bounds_hold_in_float32(case):
    with jax.enable_x64(False):
        row = solvers.accuracy(case)
    assert not row.failures, row


def test_a_missed_bound_is_reported():
    case = next(solvers.accuracy_cases(8))
    row = solvers.accuracy(case)._replace(orthogonality=1e-3, linear=float("nan"))
    assert [text.split()[0] for text in row.failures] == ["orthogonality", "linear"]


def test_timings_are_written(tmp_path, capsys):
    arguments = ["--dims", "8", "--counts", "5", "20", "--seconds", "0.01", "--out", str(tmp_path)]
    assert solvers.main(arguments) == 0
    table = capsys.readouterr().out
    assert "| ortho | 5 | 8 | scipy |" in table
    results = json.loads((tmp_path / "solvers.json").read_text())
    assert {row["solver"] for row in results["timings"]} >= {"semalign_jax", "scipy", "numpy"}
    assert all(row["milliseconds"] > 0 for row in results["timings"])
    assert {row["solver"] for row in results["cold_starts"]} >= {"semalign_jax", "scipy"}
