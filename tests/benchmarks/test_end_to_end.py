"""From files in published layouts to reports, by the command line, with real encoders.

Skipped without the packages of ``benchmarks/weights.txt`` and onnx.
"""

import json
import subprocess
import sys

import clinical_trees as trees
import end_to_end
import pytest

from semalign_jax.maps.io import saved_method
from semalign_jax.stores import open_store, verify_store

pytestmark = pytest.mark.slow  # scripts, as they are run

MISSING = end_to_end.missing_packages()
PATIENTS = 16


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder after all commands, and what was printed."""
    if MISSING:
        pytest.skip(f"needs {', '.join(MISSING)}: see benchmarks/weights.txt")
    work = tmp_path_factory.mktemp("end-to-end") / "work"
    docs = work.parent / "docs.md"
    arguments = ["--patients", str(PATIENTS), "--pixels", "168"]
    arguments += ["--folder", str(work), "--docs", str(docs)]
    ended = subprocess.run(
        [sys.executable, end_to_end.__file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert docs.read_text().partition("\n\n")[2] == ended.stdout
    return work, ended.stdout + ended.stderr


def scores(folder, metric):
    """(source, target) -> (method, anchors) -> mean."""
    found = {}
    for row in json.loads((folder / "results.json").read_text())["rows"]:
        if row["metric"] == metric:
            of = found.setdefault((row["source"], row["target"]), {})
            of[row["method"], row["anchors"]] = row["mean"]
    return found


def test_every_layout_is_embedded(done):
    work, _ = done
    train = 2 * PATIENTS * 3 // 4
    rows = {
        "mimic-images": train,
        "mimic-reports": train,
        "rsna": PATIENTS,
        "rsna-mapped": PATIENTS,
        "vindr": 2 * PATIENTS,
        "vindr-mean": 2 * PATIENTS,
        "open-i-images": PATIENTS,
        "open-i-reports": PATIENTS,
        "hospital-images": PATIENTS,
        "hospital-reports": PATIENTS,
    }
    for name, count in rows.items():
        store = open_store(work / "stores" / name)
        assert (len(store), store.dimension) == (count, 384), name
        assert verify_store(store.folder) == []
    pairs = [open_store(work / "stores" / f"hospital-{kind}") for kind in ("images", "reports")]
    assert pairs[0].ids == pairs[1].ids
    assert saved_method(work / "image-to-text.safetensors") == "auto"


def test_what_films_show_is_found(done):
    work, _ = done
    stitched = scores(work / "results/stitching", "auroc")
    assert len(stitched) == 2
    for pair, found in stitched.items():
        assert found["ridge", PATIENTS] > 0.85 > found["shuffled ridge", PATIENTS], pair
        assert found["upper bound", None] > 0.85, pair
    for study in ("rsna", "vindr"):
        ((_, found),) = scores(work / "results" / study, "auroc").items()
        assert found["ridge", PATIENTS] > 0.8, (study, found)


def test_reports_are_whole(done):
    work, _ = done
    page = (work / "report.html").read_text()
    for title in ("Stitching", "Zero-shot classification", "VinDr-CXR by prompts"):
        assert title in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for study in ("stitching", "rsna", "vindr"):
        there = {path.name for path in (work / "results" / study).iterdir()}
        assert {"results.json", "settings.json", "summary.csv", "report.html"} <= there


def test_no_patient_gets_out(done):
    work, said = done
    planted = (work / "mimic-cxr" / "mimic-cxr-2.0.0-metadata.csv").read_text().lower()
    assert all(secret in planted for secret in trees.SECRETS)
    assert not [secret for secret in trees.SECRETS if secret in said.lower()]
    written = [work / "report.html", *work.glob("*.safetensors"), *work.glob("*.settings.json")]
    written += [*(work / "stores").rglob("*"), *(work / "results").rglob("*")]
    for path in (path for path in written if path.is_file()):
        content = path.read_bytes().decode("latin-1").lower()
        found = [secret for secret in trees.SECRETS if secret in content]
        assert not found, path
        # Ids of patients and studies are in no file, those of images in stores alone.
        assert "10000000" not in content or "safetensors" in path.name, path
        if path.is_relative_to(work / "results"):
            assert not any(name in content for name in open_store(work / "stores/rsna").ids), path
