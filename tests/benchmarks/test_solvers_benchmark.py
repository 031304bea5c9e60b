"""The accuracy bounds of `benchmarks/solvers.py`, and its tables, at a small size."""

import json
from functools import partial

import jax
import pytest
import solver_sweeps
import solvers

pytestmark = pytest.mark.slow  # scripts, as they are run

CASES = [
    pytest.param(case, marks=pytest.mark.slow if number % 5 else [])
    for number, case in enumerate(solvers.accuracy_cases(24))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bounds_hold_in_float32(case):
    with jax.enable_x64(False):
        row = solvers.accuracy(case)
    assert not row.failures, row


def test_a_missed_bound_is_reported():
    case = next(solvers.accuracy_cases(8))
    row = solvers.accuracy(case)._replace(orthogonality=1e-3, linear=float("nan"))
    assert [text.split()[0] for text in row.failures] == ["orthogonality", "linear"]


@pytest.fixture
def small_sweeps(monkeypatch):
    monkeypatch.setattr(solver_sweeps, "COUNTS", (3, 20, 40))
    monkeypatch.setattr(solver_sweeps, "TEST_ROWS", 30)


def test_sweeps_in_a_process_of_their_own(small_sweeps):
    ours, *peers = solver_sweeps.in_new_process(["ortho"], 8, 2, 2)
    assert (ours.method, ours.solver, ours.threads) == ("ortho", "semalign_jax", 2)
    assert "scipy" in {row.solver for row in peers}


def test_timings_are_written(tmp_path, capsys, monkeypatch, small_sweeps):
    def in_this_process(methods, d, number, threads):
        counts, rows = solver_sweeps.COUNTS, solver_sweeps.TEST_ROWS
        encoders = solver_sweeps.make_encoders(number, d, counts, rows)
        return list(solver_sweeps.sweep_timings(methods, encoders, threads, repeats=1))

    monkeypatch.setattr(solver_sweeps, "in_new_process", in_this_process)
    started = {name: solvers.COLD_STARTS[name] for name in ("semalign_jax", "scipy")}
    monkeypatch.setattr(solvers, "COLD_STARTS", started)
    monkeypatch.setattr(solvers, "cold_starts", partial(solvers.cold_starts, repeats=1))
    arguments = ["--dims", "8", "--counts", "5", "20", "--seconds", "0.01", "--encoders", "2"]
    docs = tmp_path / "docs" / "speed.md"
    assert solvers.main([*arguments, "--out", str(tmp_path), "--docs", str(docs)]) == 0
    table = capsys.readouterr().out
    assert "| ortho | 5 | 8 | scipy |" in table
    assert docs.read_text().partition("\n\n")[2] == table
    results = json.loads((tmp_path / "solvers.json").read_text())
    assert {row["solver"] for row in results["timings"]} >= {"semalign_jax", "scipy", "numpy"}
    assert all(row["milliseconds"] > 0 for row in results["timings"])
    assert {row["solver"] for row in results["cold_starts"]} >= {"semalign_jax", "scipy"}
    sweeps = {(row["method"], row["solver"], row["threads"]): row for row in results["sweeps"]}
    solvers_of = {"ortho": "scipy", "linear": "numpy", "affine": "scikit-learn", "l-ortho": "numpy"}
    for method, peer in solvers_of.items():
        for threads in (1, 2):
            assert {(method, "semalign_jax", threads), (method, peer, threads)} <= set(sweeps)
    for (method, solver, _), row in sweeps.items():
        if solver == "semalign_jax":
            # Of so few dimensions the map itself, rounded to float32, errs by 1e-3.
            assert row["error"] is None or row["error"] < 1e-2, method
            assert row["orthogonality"] is None or row["orthogonality"] < 5e-6, method


def test_batch_is_compared_with_the_plain_svd(capsys):
    assert solvers.main(["--batch", "3", "--dims", "8", "--seconds", "0.01"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 |")]
    assert [row.split("|")[3].strip() for row in rows] == ["semalign_jax", "jax.numpy"]
