"""`semalign stitch`, `zeroshot`, `report` and `demo`: that settings arrive and results come out."""

import numpy as np
import pytest
from cli_cases import error_of, run, values_of
from data.trees import write_csv

import semalign_jax as sa
from semalign_jax.studies import outputs, stitching

ENCODERS = {"one": 6, "two": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of 40 items with two labels, and two stores of them."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 2))
    parts = ["train" if row < 28 else "test" for row in range(40)]
    header = ["key", "person", "part", "A", "B"]
    rows = [[f"k{r}", f"p{r}", parts[r], *labels[r]] for r in range(40)]
    write_csv(folder / "items.csv", header, rows)
    latent = np.hstack([2.0 * labels - 1, rng.standard_normal((40, 2))])
    for name, dimension in ENCODERS.items():
        values = latent @ rng.standard_normal((4, dimension))
        values += 0.1 * rng.standard_normal(values.shape)
        store = sa.create_store(folder / name, description={"made": name}, dimension=dimension)
        store.append([f"k{row}" for row in range(40)], values.astype(np.float32))
    return folder


def source(folder):
    columns = ("id=key", "patient=person", "split=part", 'label=["A","B"]')
    options = [word for column in columns for word in ("--option", column)]
    return ("--dataset", "table", "--path", folder / "items.csv", *options)


def stitch_words(folder, out):
    stores = [word for name in ENCODERS for word in ("--store", f"{name}={folder / name}")]
    splits = ("--train", "train", "--test", "test")
    few = ("--anchors", "4,16", "--seeds", 1, "--set", 'methods=["ortho"]')
    more = ("--set", "control=false", "--set", 'metrics=["auroc"]', "--set", "intervals=null")
    return ("stitch", *source(folder), *stores, *splits, *few, *more, "--out", out)


@pytest.fixture(scope="module")
def stitched(folder, tmp_path_factory):
    """A study of the command line: its values and its folder."""
    out = tmp_path_factory.mktemp("results") / "stitching"
    return values_of(*stitch_words(folder, out)), out


def test_a_stitching_study(stitched, folder):
    values, out = stitched
    assert (values["kind"], values["out"]) == ("stitching", str(out))
    settings = values["settings"]
    assert settings["stores"] == {name: str(folder / name) for name in ENCODERS}
    assert (settings["counts"], settings["seeds"]) == ([4, 16], 1)
    assert (settings["intervals"], settings["control"]) == (None, False)
    scores = {r["method"]: r["mean"] for r in values["rows"] if r["anchors"] in (16, None)}
    assert scores["ortho"] > 0.8
    assert outputs.load_results(out)["rows"] == values["rows"]
    assert (out / "report.html").is_file()


def test_a_study_of_saved_settings_is_the_same(stitched, tmp_path, monkeypatch):
    values, out = stitched
    seen = []

    def run_study(settings, folder):
        seen.append((settings, folder))
        return outputs.load_results(out)

    monkeypatch.setattr(stitching, "run", run_study)
    words = ("stitch", "--config", out / "settings.json", "--out", tmp_path / "again")
    assert values_of(*words)["rows"] == values["rows"]
    assert outputs.resolved_settings(seen[0][0]) == values["settings"]
    assert seen[0][1] == tmp_path / "again"
    shown = run(*words, "--seeds", 3, "--set", "title=More").stdout
    assert (seen[1][0].seeds, seen[1][0].title) == (3, "More")
    assert "(auroc, mean ± std)" in shown


def test_a_study_is_quiet_if_asked(folder, tmp_path):
    assert run(*stitch_words(folder, tmp_path), "--quiet").stderr == ""


def test_a_report_of_several_studies(stitched, tmp_path):
    _, out = stitched
    file = tmp_path / "report.html"
    found = values_of("report", out, out / "results.json", "--out", file)
    assert [study["kind"] for study in found["studies"]] == ["stitching"] * 2
    assert file.read_text().count("<h2>Stitching") >= 2
    assert "no results at" in error_of("report", tmp_path, "--out", file)


def test_info_of_a_study(stitched):
    found = values_of("info", stitched[1])
    assert (found["kind"], found["format"]) == ("results", "semalign_jax.study")
    assert found["study"] == "stitching"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stitch",), "missing: --out, the folder of the results"),
        (("stitch", "--out", "o"), "dataset is missing: give dataset and stores, or demo"),
        (("stitch", "--out", "o", "--anchors", "few"), "--anchors 'few': expected numbers with"),
        (("stitch", "--out", "o", "--store", "one"), "--store 'one': expected KEY=VALUE"),
        (("stitch", "--out", "o", "--set", "tittle=A"), "tittle: Extra inputs are not permitted"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_settings(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(*words)
