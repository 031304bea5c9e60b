"""`semalign stitch`, `zeroshot`, `report` and `demo`: that settings arrive and results come out."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from cli_cases import error_of, run, values_of
from data.trees import write_csv
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve
from studies.test_study_zero_shot import CLASSES, D_IMAGE, LABELS, make_world

import semalign_jax as sa
from semalign_jax.studies import outputs, stitching, zero_shot
from semalign_jax.zeroshot.scores import TEMPERATURE

ENCODERS = ("one", "two")
D = 6  # of both, so that the pairs share compiled code


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
    for name in ENCODERS:
        values = latent @ rng.standard_normal((4, D))
        values += 0.1 * rng.standard_normal(values.shape)
        store = sa.stores.create_store(folder / name, description={"made": name}, dimension=D)
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
    """A study of the command line, which is quiet: its values and its folder."""
    out = tmp_path_factory.mktemp("results") / "stitching"
    result = run(*stitch_words(folder, out), "--json", "--quiet")
    assert result.stderr == ""
    return json.loads(result.stdout), out


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


def settings_that_arrive(study, stitched, monkeypatch):
    """A list of the settings that `study` is then run with; its results are those of `stitched`."""
    seen = []

    def run_study(settings, folder):
        seen.append((settings, folder))
        return outputs.load_results(stitched[1])

    monkeypatch.setattr(study, "run", run_study)
    return seen


def test_a_study_of_saved_settings_is_the_same(stitched, tmp_path, monkeypatch):
    values, out = stitched
    seen = settings_that_arrive(stitching, stitched, monkeypatch)
    words = ("stitch", "--config", out / "settings.json", "--out", tmp_path / "again")
    assert values_of(*words)["rows"] == values["rows"]
    assert outputs.resolved_settings(seen[0][0]) == values["settings"]
    assert seen[0][1] == tmp_path / "again"
    shown = run(*words, "--seeds", 3, "--set", "title=More").stdout
    assert (seen[1][0].seeds, seen[1][0].title) == (3, "More")
    assert "(macro AUROC, mean ± std)" in shown


def test_a_file_with_the_command_line_before_it(stitched, tmp_path, monkeypatch):
    """Options of a reader are added; names of stores and paths go instead."""
    seen = settings_that_arrive(stitching, stitched, monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    written = {
        "dataset": {"reader": "table", "path": "items.csv", "options": {"id": "key"}},
        "stores": {"one": "one", "two": "two"},
        "train": ["a"],
        "test": ["b"],
        "intervals": {"level": 0.5},
    }
    (tmp_path / "stitch.json").write_text(json.dumps(written))
    words = ("stitch", "--config", "../stitch.json", "--out", "out", "--option", "patient=person")
    values_of(*words, "--store", "v1.5=three", "--store", "v2=four",
        "--methods", '{"r": {"method": "affine"}}', "--train", "x,y", "--train", "z",
        "--anchors", "3,4", "--anchors", "[5]",
        "--set", "methods.r.ridge=2", "--intervals.resamples", 7, "--no-control")  # fmt: skip
    found = seen[0][0]
    assert found.dataset.path == tmp_path / "items.csv"
    assert found.dataset.options == {"id": "key", "patient": "person"}
    here = tmp_path / "here"
    assert found.stores == {"v1.5": here / "three", "v2": here / "four"}
    assert found.methods == {"r": {"method": "affine", "ridge": 2}}
    assert (found.train, found.test, found.counts) == (("x,y", "z"), ("b",), (3, 4, 5))
    assert (found.intervals.level, found.intervals.resamples, found.control) == (0.5, 7, False)


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
    rows = outputs.load_results(stitched[1])["rows"]
    most = max(row["anchors"] for row in rows if row["anchors"] is not None)
    expected = {
        row["method"]: row["mean"]
        for row in rows
        if row["anchors"] in (None, most)
        and (row["source"], row["target"], row["metric"]) == (*ENCODERS, "auroc")
    }
    assert found["scores"][f"{' to '.join(ENCODERS)}, macro AUROC, {most} anchors"] == expected
    assert "naive" in expected
    line = run("info", stitched[1]).stdout
    assert f"naive {expected['naive']:.4g}" in line


def zeroshot_words(world, out):
    """The same as `config` of the study's own tests, in words."""
    table = ("id=id", "patient=person", "split=part")
    options = [word for column in table for word in ("--option", column)]
    anchors = [word for column in table for word in ("--anchor-option", column)]
    stores = [
        word
        for name in D_IMAGE
        for kind in ("image", "anchor")
        for word in (f"--{kind}-store", f"{name}={world / name}")
    ]
    return (
        *("zeroshot", "--dataset", "table", "--path", world / "images.csv", *options),
        *("--option", f"label={json.dumps(LABELS)}", "--validation", "validation"),
        *("--test", "test", "--anchor-dataset", "table", "--anchor-path", world / "anchors.csv"),
        *(*anchors, "--anchor-split", "train", *stores),
        *("--text-store", f"bert={world / 'reports'}", "--prompts", world / "prompts.json"),
        *("--prompt-store", f"bert={world / 'texts'}", "--anchors", "40", "--seeds", 1),
        *("--set", 'label_names={"mass":"Mass"}', "--set", 'ignored_labels=["device"]'),
        *("--set", 'methods=["ortho"]', "--set", "baselines={}", "--set", "resamples=5"),
        *("--set", 'class_metrics=["auroc","f1"]', "--out", out),
    )


def units(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def recomputed(world, encoder):
    """(metric, class or None for their mean) -> score, in float64 by NumPy and scikit-learn."""
    rows, y, texts = (world.arrays[n].astype(np.float64) for n in (encoder, "reports", "texts"))
    images, x = rows[: world.count], rows[world.count :]
    source, target = x.mean(axis=0), y.mean(axis=0)
    u, _, vt = np.linalg.svd((x - source).T @ (y - target), full_matrices=False)
    mapped = units((images - source) @ u @ vt)
    prompts = units(texts - target).reshape(3, 3, -1)  # two for each class, one against it
    ensembles = units(prompts[:, :2].mean(axis=1)) - units(prompts[:, 2])
    scores = expit(mapped @ ensembles.T / TEMPERATURE)
    found = {}
    for c, name in enumerate(CLASSES):
        known = np.array([code in (0, 1) for code in world.codes[:, c]])
        kept = {part: known & (world.splits == part) for part in ("validation", "test")}
        tuned, tested = ((world.labels[k, c], scores[k, c]) for k in kept.values())
        absent, present, thresholds = roc_curve(*tuned, drop_intermediate=False)
        found["auroc", name] = roc_auc_score(*tested)
        found["average_precision", name] = average_precision_score(*tested)
        chosen = tested[1] >= thresholds[np.argmax(present - absent)]
        found["f1", name] = f1_score(tested[0], chosen)
    for metric, mean in (("auroc", "auroc"), ("average_precision",) * 2, ("f1", "macro_f1")):
        found[mean, None] = np.mean([found[metric, name] for name in CLASSES])
    return found


def test_a_zero_shot_study(tmp_path):
    world = make_world(tmp_path)
    found = values_of(*zeroshot_words(tmp_path, tmp_path / "out"))
    assert found["kind"] == "zero-shot"
    settings = found["settings"]
    assert settings["image_stores"] == {name: str(tmp_path / name) for name in D_IMAGE}
    assert settings["prompt_embeddings"]["bert"]["store"] == str(tmp_path / "texts")
    assert settings["images"]["options"]["label"] == list(LABELS)
    assert (settings["counts"], settings["resamples"]) == ([40], 5)
    assert {row["anchors"] for row in found["rows"]} == {40}  # all, in whatever order
    assert (len(found["rows"]), len(found["classes"])) == (2 * 3, 2 * 2 * 3)
    expected = {encoder: recomputed(world, encoder) for encoder in D_IMAGE}
    for row in found["rows"]:
        score = expected[row["source"]][row["metric"], None]
        assert row["mean"] == pytest.approx(score, abs=1e-6)
    for row in found["classes"]:
        score = expected[row["source"]][row["metric"], row["label"]]
        assert row["value"] == pytest.approx(score, abs=1e-6)
    assert outputs.load_results(tmp_path / "out")["rows"] == found["rows"]


def test_prompts_and_a_reference_under_encoders_that_are_run(stitched, tmp_path, monkeypatch):
    seen = settings_that_arrive(zero_shot, stitched, monkeypatch)
    monkeypatch.chdir(tmp_path)
    words = list(zeroshot_words(tmp_path, tmp_path / "out"))
    place = words.index("--prompt-store")
    words[place : place + 2] = ["--prompt-encoder", "bert=owner/bert"]
    more = ("--prompt-embeddings.layer", "bert=-2", "--prompt-embeddings.normalize", "bert=no")
    reference = ("--multimodal.images", "clip=clip", "--multimodal.prompts.store", "clip=texts")
    values_of(*words, *more, *reference)
    source = seen[0][0].prompt_embeddings["bert"]
    assert (source.encoder, source.layer, source.normalize) == ("owner/bert", -2, False)
    assert seen[0][0].multimodal["clip"].prompts.store == tmp_path / "texts"


class Inline:
    """A pool of processes that are not there."""

    def __init__(self, workers, context, *, initializer):
        assert (workers, context.get_start_method()) == (2, "spawn")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *words):
        future = Future()
        try:
            future.set_result(function(*words))
        except Exception as error:
            future.set_exception(error)
        return future


def test_the_demo_runs_both_studies(stitched, tmp_path, monkeypatch):
    """Which takes a minute, so each writes what is there already."""
    seen = []
    results = outputs.load_results(stitched[1])

    def study(kind):
        def run_study(settings, out):
            seen.append((settings, out))
            out.mkdir(parents=True)
            written = {**results, "kind": kind, "title": settings.title}
            (out / "results.json").write_text(json.dumps(written))

        return run_study

    monkeypatch.setattr("semalign_jax.cli.studies.ProcessPoolExecutor", Inline)
    monkeypatch.setattr(stitching, "run", study("stitching"))
    monkeypatch.setattr(zero_shot, "run", study("zero-shot"))
    found = values_of("demo", "--out", tmp_path / "demo")
    assert [settings for settings, _ in seen] == [
        stitching.demo_settings(quick=True),
        zero_shot.demo_settings(quick=True),
    ]
    assert [one["kind"] for one in found["studies"]] == ["stitching", "zero-shot"]
    report = (tmp_path / "demo" / "report.html").read_text()
    assert all(one["title"] in report for one in found["studies"])

    def fail(settings, out):
        raise ValueError("demo data: a card is missing")

    monkeypatch.setattr(zero_shot, "run", fail)
    words = ("demo", "--full", "--out", tmp_path / "none")
    assert error_of(*words) == "demo data: a card is missing"
    assert seen[2][0] == stitching.demo_settings()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("zeroshot",), "missing: --out (give it on the command line)"),
        (("zeroshot", "--out", "o"), "--dataset is missing: give it, or --demo for a run on the"),
        (("zeroshot", "--out", "o", "--demo", "--image-store", "a=b"),
         "--demo and --image-store cannot both be given"),
        (("stitch",), "missing: --out (give it on the command line)"),
        (("stitch", "--out", "o"), "--dataset is missing: give --dataset and --store, or --demo"),
        (("stitch", "--out", "o", "--config", "run.yaml", "--store", "a=b"),
         "demo and --store cannot both be given"),
        (("stitch", "--out", "o", "--anchors", "few"), "--anchors 'few': Input should be a valid"),
        (("stitch", "--out", "o", "--store", "one"), "--store 'one': expected NAME=PATH"),
        (("stitch", "--out", "o", "--set", "tittle=A"), "--set tittle: is not known here"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_settings(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("demo: [emoji]")
    assert message in error_of(*words)
