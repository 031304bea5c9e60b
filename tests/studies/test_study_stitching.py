"""The stitching study on small stores, against its parts and scikit-learn; stops and mistakes."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stitching as script
import yaml
from sklearn import metrics as reference
from stores.test_store import fixed_store

import semalign_jax as sa
from semalign_jax.metrics import intervals
from semalign_jax.studies import inputs, outputs, stitching
from semalign_jax.studies.settings import METHODS as METHODS_OF_STUDIES
from semalign_jax.studies.settings import load_settings

N, T, D, K = 48, 30, 4, 3
PATIENTS = 26  # three images each
NAMES = ("dog", "cat", "owl")
ENCODERS = ("vit", "dino", "bert")
FINDINGS = ("edema", "mass", "nodule")
RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, K, N + T)
CODES = RNG.choice(["1", "0", "-1", ""], (N + T, K), p=[0.4, 0.4, 0.1, 0.1])
LATENT = 3 * np.eye(K)[CLASSES] + (CODES == "1") + RNG.standard_normal((N + T, K))
VIEWS = {
    name: (LATENT @ RNG.standard_normal((K, D)) + RNG.standard_normal((N + T, D)) / 2).astype("f")
    for name in ENCODERS
}
IDS = [f"image{i}" for i in range(N + T)]
OWNERS = [f"person{i // 3}" for i in range(N + T)]
PARTS = ["fit"] * (N // 2) + ["more"] * (N // 2) + ["final"] * T


def write_data(folder: Path, **columns: Any) -> None:
    """A table, and stores whose rows are in another order, with rows that the table lacks."""
    table = {"key": IDS, "person": OWNERS, "part": PARTS}
    table |= {"animal": [NAMES[c] for c in CLASSES]}
    table |= {name: CODES[:, k] for k, name in enumerate(FINDINGS)} | columns
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    for number, (name, values) in enumerate(VIEWS.items()):
        order = np.random.default_rng(number).permutation(N + T)
        store = sa.stores.create_store(folder / "stores" / name, description={}, dimension=D)
        store = store.append([IDS[i] for i in order], values[order])
        store.append([f"other{number}"], np.ones((1, D), np.float32))


OPTIONS = {"id": "key", "patient": "person", "split": "part"}
SETTINGS: dict[str, Any] = {
    "title": "Animals",
    "dataset": {
        "reader": "table",
        "path": "items.csv",
        "options": {**OPTIONS, "label": "animal"},
    },
    "stores": {name: f"stores/{name}" for name in ENCODERS},
    "train": ["fit", "more"],
    "test": ["final"],
    "labels": list(NAMES),
    "counts": [5, 20],
    "seeds": 2,
    "seed": 3,
    "methods": {"ortho": "ortho", "centred": {"method": "ortho", "normalize": "center"}},
    "metrics": ["auroc", "accuracy"],
    "l2": 0.5,
    "intervals": {"metrics": ["auroc", "f1"], "resamples": 20, "level": 0.9},
}
ORTHO = sa.SweepMethod("ortho", normalize="isotropic")  # what the name stands for
METHODS = {"ortho": ORTHO, "centred": sa.SweepMethod("ortho", normalize="center")}


def settings_of(folder: Path, **changes: Any) -> stitching.StitchingSettings:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}, sort_keys=False))
    return load_settings(stitching.StitchingSettings, path)


def data_of(settings):
    assert settings.dataset is not None
    stores = inputs.open_stores("stores", settings.stores)
    return stitching.parts_of(settings, stores)


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They are drawn where outputs are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


#: Programs that were compiled before each pair of the study, and after the last.
COMPILED: list[int] = []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with data, and the outputs and results of one study with them."""
    folder = tmp_path_factory.mktemp("study")
    write_data(folder)
    evaluate, number = stitching.evaluate_stitching_pairs, 0

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal number
        number += event == "/jax/core/compile/backend_compile_duration"

    def counted(*arguments: Any, **options: Any):
        COMPILED.append(number)
        return evaluate(*arguments, **options)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stitching, "evaluate_stitching_pairs", counted)
            results = stitching.run(settings_of(folder), folder / "out")
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    COMPILED.append(number)
    return folder, results


def scores_of(results) -> dict[tuple, Any]:
    """(source, target, method, anchors, metric) -> row."""
    keys = ("source", "target", "method", "anchors", "metric")
    return {tuple(row[k] for k in keys): row for row in results["rows"]}


def whole_matrix(**options: Any) -> sa.stitching.StitchingMatrix:
    """All encoders at once, as the library has it."""
    train, test = ({name: part(v) for name, v in VIEWS.items()} for part in (first, last))
    return sa.stitching.evaluate_stitching_pairs(
        train, counts=(5, 20), keys=jax.random.split(jax.random.key(3), 2), test=test,
        num_classes=K, methods=METHODS, metrics=("accuracy", "auroc"),
        head_options={"l2": 0.5}, **options,
    )  # fmt: skip


def first(values):
    return values[:N]


def last(values):
    return values[N:]


def check_rows(found, matrix):
    """Every row against the matrix."""
    expected = 0
    for i, source in enumerate(ENCODERS):
        for j, target in enumerate(ENCODERS):
            for metric in ("accuracy", "auroc"):
                if source == target:
                    continue
                pair = source, target
                cells: dict[tuple, Any] = {
                    (*pair, "naive", None, metric): matrix.naive[metric].value[i, j],
                    (*pair, "upper bound", None, metric): matrix.upper_bound[metric].value[j],
                }
                for before, field in (("", matrix.aligned), ("shuffled ", matrix.shuffled)):
                    for m, method in enumerate(METHODS):
                        for c, count in enumerate((5, 20)):
                            key = (*pair, before + method, count, metric)
                            cells[key] = field[metric].value[i, j, m, c]
                for key, values in cells.items():
                    values = np.atleast_1d(values)
                    row = found[key]
                    assert row["seeds"] == len(values)
                    assert row["mean"] == pytest.approx(np.mean(values), abs=1e-5)
                    std = np.std(values, ddof=1) if len(values) > 1 else 0
                    assert row["std"] == pytest.approx(std, abs=1e-5)
                expected += len(cells)
    assert len(found) == expected


def test_rows_are_those_of_all_pairs_at_once(study):
    labels = CLASSES.astype(np.int32)
    matrix = whole_matrix(labels=labels[:N], test_labels=labels[N:])
    check_rows(scores_of(study[1]), matrix)
    # The first metric that was asked for comes first: it is what figures show.
    shown = list(dict.fromkeys(row["metric"] for row in study[1]["rows"]))
    assert shown == ["auroc", "accuracy"]


def class_reference(logits, metric, label, resamples):
    """Score of a class, and the 5 % and 95 % quantiles, by scikit-learn."""
    truth = CLASSES[N:] == label
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[:, label]
    predicted = logits.argmax(1) == label
    values = []
    for weights in (np.ones(T), *resamples):
        if metric == "f1":
            values.append(reference.f1_score(truth, predicted, sample_weight=weights))
        else:
            values.append(reference.roc_auc_score(truth, p, sample_weight=weights))
    return values[0], values[1:]


@pytest.mark.parametrize("metric", ["auroc", "f1"])
@pytest.mark.parametrize("method", ["upper bound", "naive", "ortho"])
def test_classes_are_those_of_scikit_learn_with_patients_resampled(study, method, metric):
    labels = CLASSES.astype(np.int32)
    owners = np.unique(OWNERS[N:], return_inverse=True)[1]
    resamples = intervals.bootstrap_weights(jax.random.key(3), T, 20, clusters=owners)
    head = sa.fit_head(VIEWS["dino"][:N], labels[:N], K, l2=0.5)
    source = VIEWS["dino" if method == "upper bound" else "vit"]
    draws = [source[N:]]
    if method == "ortho":
        orders = [
            sa.sweeps.anchor_order(key, N, size=20)
            for key in jax.random.split(jax.random.key(3), 2)
        ]
        maps = [
            sa.fit_ortho(VIEWS["vit"][order], VIEWS["dino"][order], normalize="isotropic")
            for order in orders
        ]
        draws = [fitted(source[N:]) for fitted in maps]
    found = {
        row["label"]: row
        for row in study[1]["classes"]
        if (row["source"], row["target"], row["method"], row["metric"])
        == ("vit", "dino", method, metric)
    }
    assert list(found) == list(NAMES)
    for k, name in enumerate(NAMES):
        each = [class_reference(np.asarray(head(x)), metric, k, resamples) for x in draws]
        row = found[name]
        assert row["anchors"] == (20 if method == "ortho" else None)
        assert row["value"] == pytest.approx(np.mean([one[0] for one in each]), abs=1e-5)
        means = np.mean([one[1] for one in each], axis=0)
        ends = np.quantile(means, [0.05, 0.95])
        np.testing.assert_allclose([row["lower"], row["upper"]], ends, atol=1e-5)


def test_files_hold_no_ids_and_can_be_run_again(study):
    folder, results = study
    out = folder / "out"
    assert outputs.load_results(out) == json.loads(json.dumps(results))
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".pdf":
            text = path.read_bytes().decode(errors="replace")
            assert not re.search(r"(person|image)\d", text), path
    settings = load_settings(stitching.StitchingSettings, out / "settings.json")
    assert outputs.resolved_settings(settings) == results["settings"]
    note = "48 images of 16 patients to train on, 48 images of 16 patients to draw anchors from, "
    assert note + "30 images of 10 patients to test" in results["notes"][0]
    why = "The task is single-label, as each of the 78 images has exactly one of the 3 labels"
    assert results["notes"][1].startswith(why)
    # All is computed already: the same bytes, the time that was spent included.
    before = {path: path.read_bytes() for path in out.rglob("*.[jct]*")}
    stitching.run(settings, out)
    assert {path: path.read_bytes() for path in before} == before


def test_a_stopped_run_goes_on_to_the_same_results(study, monkeypatch):
    folder, results = study
    settings, out = settings_of(folder), folder / "stopped"
    evaluate, computed = stitching.evaluate_stitching_pairs, []

    def stopped_in_the_third(train, *arguments, **options):
        computed.append(tuple(train))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return evaluate(train, *arguments, **options)

    monkeypatch.setattr(stitching, "evaluate_stitching_pairs", stopped_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        stitching.run(settings, out)
    assert sorted(path.name for path in out.iterdir()) == ["cells.jsonl", "cells.jsonl.lock"]
    again = stitching.run(settings, out)
    assert computed == [("vit", "dino"), ("vit", "bert"), *[("dino", "bert")] * 2]
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    for name in ("settings.json", "summary.csv", "classes.csv", "tables.tex"):
        assert (out / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_pairs_of_equal_shapes_compile_once(study):
    before, second, third, after = COMPILED
    assert before < second == third
    # At most the files of the results, which are not computed with JAX.
    assert third == after


def test_other_data_or_settings_do_not_go_on_with_old_results(study, tmp_path):
    folder, _ = study
    with pytest.raises(ValueError, match="made with other settings .*l2: 0.5 there, 2.0 now"):
        stitching.run(settings_of(folder, l2=2.0), folder / "out")
    # A title is not what scores rest on; the rows of a store are.
    assert stitching.run(settings_of(folder, title="B"), folder / "out")["title"] == "B"
    write_data(tmp_path, animal=[NAMES[0], *(NAMES[c] for c in CLASSES[1:])])
    with pytest.raises(ValueError, match=r"other settings \(data\.stitching\.parts\.train: "):
        stitching.run(settings_of(tmp_path), folder / "out")
    found = set()
    for factor in (1, 2):  # of a store whose manifest does not tell which rows it has
        shutil.rmtree(tmp_path / "stores" / "vit")
        fixed_store(tmp_path / "stores" / "vit", factor * VIEWS["vit"], IDS)
        found.add(data_of(settings_of(tmp_path)).digests()["stores"]["stores"]["vit"])
    assert len(found) == 2


def hits(scores, truth):
    labels, weights = truth
    right = scores.argmax(-1).astype(labels.dtype) == labels
    return weights.sum(where=right) / weights.sum()


def test_metrics_of_ones_own(study, tmp_path):
    folder, _ = study
    settings = settings_of(folder, metrics=["accuracy"], control=False, intervals=None)
    found = scores_of(stitching.run(settings, tmp_path, metrics={"hits": hits}))
    assert {metric for *_, metric in found} == {"accuracy", "hits"}
    for (*cell, metric), row in found.items():
        if metric == "hits":
            named = found[(*cell, "accuracy")]
            assert (row["mean"], row["std"]) == pytest.approx((named["mean"], named["std"]))
    with pytest.raises(ValueError, match=r"other settings \(data\.metrics"):
        stitching.run(settings, tmp_path)
    with pytest.raises(ValueError, match="'accuracy' is one of the settings"):
        stitching.run(settings, metrics={"accuracy": hits})
    with pytest.raises(TypeError, match=r"metrics\['hits'\] must be a function"):
        stitching.run(settings, metrics={"hits": "accuracy"})  # type: ignore[dict-item]


def test_multilabel_with_unknown_labels_and_anchors_of_their_own(tmp_path):
    write_data(tmp_path)
    dataset = {**SETTINGS["dataset"], "options": {**OPTIONS, "label": list(FINDINGS)}}
    views = {name: VIEWS[name] for name in ("vit", "bert")}
    settings = settings_of(
        tmp_path, dataset=dataset, task="multi-label", labels=None, train=["fit"],
        anchors=["more"], uncertain="ones", control=False, intervals={"resamples": 10},
        counts=[20], methods=["ortho"], metrics=["auroc"],
        stores={name: f"stores/{name}" for name in views},
    )  # fmt: skip
    results = stitching.run(settings)
    labels = np.isin(CODES, ["1", "-1"]).astype(np.int32)
    known = CODES != ""
    fit, more = slice(N // 2), slice(N // 2, N)
    heads = {
        name: sa.fit_head(view[fit], labels[fit], K, loss="binary", l2=0.5, known=known[fit])
        for name, view in views.items()
    }
    matrix = sa.stitching.evaluate_stitching_pairs(
        {name: view[fit] for name, view in views.items()},
        labels[fit],
        {name: view[N:] for name, view in views.items()},
        labels[N:],
        K,
        (20,),
        jax.random.split(jax.random.key(3), 2),
        loss="binary",
        metrics=("auroc",),
        methods={"ortho": ORTHO},
        anchors={name: view[more] for name, view in views.items()},
        heads=heads,
        test_known=known[N:],
        control=False,
    )
    found = scores_of(results)
    assert not any("shuffled" in key[2] for key in found)
    for i, j in ((0, 1), (1, 0)):
        row = found[list(views)[i], list(views)[j], "ortho", 20, "auroc"]
        values = matrix.aligned["auroc"].value[i, j, 0, 0]
        assert row["mean"] == pytest.approx(float(np.mean(values)), abs=1e-5)
    for k, name in enumerate(FINDINGS):
        rows, test = known[N:, k], np.asarray(heads["bert"](VIEWS["bert"][N:]))
        expected = reference.roc_auc_score(labels[N:][rows, k], test[rows, k])
        (row,) = (
            row
            for row in results["classes"]
            if (row["source"], row["target"], row["method"], row["label"])
            == ("vit", "bert", "upper bound", name)
        )
        assert row["value"] == pytest.approx(expected, abs=1e-5)
        assert row["lower"] <= row["upper"]


def test_few_test_images_are_a_doubt(tmp_path):
    write_data(tmp_path)
    split = {"test": 0.1}
    data = data_of(settings_of(tmp_path, train=None, test=None, patient_split=split))
    few = len(data.parts["test"].ids)
    assert few < 30
    assert data.doubts[0] == f"Few test images ({few}): one is {1 / few:.0%} of them."
    number = len(data.anchors[0])
    every = settings_of(tmp_path, train=None, test=None, patient_split=split, counts=[5, number])
    assert data_of(every).doubts[0] == (
        f"{number} anchors are all there are: no draws, so no deviation."
    )


def test_a_split_by_patient(tmp_path):
    write_data(tmp_path)
    split = {"test": 0.4, "seed": 1}
    settings = settings_of(tmp_path, train=None, test=None, patient_split=split)
    data = data_of(settings)
    parts = sa.data.patient_split(OWNERS, {"train": 0.6, "test": 0.4}, 1).parts
    for name, view in VIEWS.items():
        for part, labelled in data.parts.items():
            values = data.embeddings("stores", name, labelled.ids)
            np.testing.assert_array_equal(values, view[parts[part]])
    np.testing.assert_array_equal(data.parts["train"].labels, CLASSES[parts["train"]])
    np.testing.assert_array_equal(data.anchors[0], data.parts["train"].ids)


def test_labels_that_the_test_part_lacks_are_noted(tmp_path):
    animals = [NAMES[c] for c in CLASSES]
    animals[N:] = [NAMES[i % 2] for i in range(T)]
    write_data(tmp_path, animal=animals)
    settings = settings_of(tmp_path)
    data = data_of(settings)
    (doubt,) = data.doubts
    assert "Classes with the same value in all test images" in doubt
    assert doubt.endswith(": owl.")


@pytest.mark.parametrize(
    ("columns", "changes", "task", "why"),
    [
        # One column of classes, as text or digits.
        ({"animal": [str(c) for c in CLASSES]}, {}, "single-label", "each of the 78 images has"),
        ({"animal": [f"{c}.0" for c in CLASSES]}, {}, "single-label", "of the 3 labels; the set"),
        # A column for each.
        (
            {name: [str(int(c == k)) for c in CLASSES] for k, name in enumerate(FINDINGS)},
            {"label": list(FINDINGS)},
            "single-label",
            "each of the 78 images has exactly one of the 3 labels",
        ),
        (
            {name: ["1" * int(c == k) for c in CLASSES] for k, name in enumerate(FINDINGS)},
            {"label": list(FINDINGS)},
            "single-label",
            "exactly one",
        ),
        # None, several or an uncertain one.
        (
            {"animal": ["", *[NAMES[c] for c in CLASSES[1:]]]},
            {},
            "multi-label",
            "1 of 78 images do not have exactly one of the 3 labels",
        ),
        (
            {
                name: [*[str(int(c == k)) for c in CLASSES[:-1]], "-1" if k == 0 else str(k - 1)]
                for k, name in enumerate(FINDINGS)
            },
            {"label": list(FINDINGS)},
            "multi-label",
            "as 1 of 78 images",
        ),
        ({}, {"label": list(FINDINGS)}, "multi-label", "images do not have exactly one of the 3"),
        # The setting goes before.
        ({}, {"task": "multi-label"}, "multi-label", "as its setting says: each of the 78 images"),
        ({}, {"task": "single-label"}, "single-label", "as its setting says: each of the 78"),
    ],
)
def test_the_task_is_that_of_the_labels(tmp_path, columns, changes, task, why):
    write_data(tmp_path, **columns)
    options = {**OPTIONS, "label": changes.get("label", "animal")}
    dataset = {**SETTINGS["dataset"], "options": options}
    data = data_of(settings_of(tmp_path, dataset=dataset, labels=None, task=changes.get("task")))
    assert data.task == task
    assert data.parts["test"].labels.ndim == (1 if task == "single-label" else 2)
    assert f"The task is {task}, as" in data.notes[1]
    assert why in data.notes[1]


def test_what_the_reader_left_out_is_noted(tmp_path):
    write_data(tmp_path, person=["", *OWNERS[1:]])
    dataset = {**SETTINGS["dataset"]}
    dataset["options"] = {**OPTIONS, "label": "animal", "on_error": "skip"}
    notes = data_of(settings_of(tmp_path, dataset=dataset)).notes
    assert notes[1] == "items.csv: 1 of 78 rows and files left out: 1 with empty person."


def changed(values, place, value):
    return [*values[:place], value, *values[place + 1 :]]


ANIMALS = [NAMES[c] for c in CLASSES]
MULTILABEL: dict[str, Any] = {
    "task": "multi-label",
    "labels": None,
    "dataset": {**SETTINGS["dataset"], "options": {**OPTIONS, "label": list(FINDINGS)}},
}


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (
            {"person": changed(OWNERS, N, OWNERS[0])},
            {},
            r"items\.csv: train and test have 1 patient in common: 'person0'",
        ),
        (
            {"person": changed(OWNERS, N, OWNERS[N - 1])},
            {"train": ["fit"], "anchors": ["more"]},
            "anchors and test have 1 patient",
        ),
        ({}, {"train": ["first"]}, r"train: .*items\.csv has no image of the split 'first'"),
        ({}, {"labels": ["dog", "pig"]}, r"labels: 'pig' is no label of .*items\.csv; it has cat"),
        (
            {},
            {"labels": ["dog", "cat"], "task": "single-label"},
            rf"items\.csv: {np.sum(CLASSES[:N] == 2)} images of train do not have exactly one of "
            r"the labels dog, cat.*with owl",
        ),
        (
            {"animal": changed(ANIMALS, 2, "")},
            {"task": "single-label"},
            "the first is 'image2' with no label",
        ),
        (
            {"animal": [*ANIMALS[:N], *["owl"] * T]},
            {},
            r"items\.csv: every label has the same value in all 30 test images",
        ),
        (
            {"animal": [*np.array(NAMES)[CLASSES[:N] % 2], *ANIMALS[N:]]},
            {},
            "all training images have the same value of owl",
        ),
        (
            {"edema": ["1"] * N + ["0"] * T},
            MULTILABEL,
            "all training images have the same value of edema",
        ),
        (
            {name: [*CODES[:N, k], *["0"] * T] for k, name in enumerate(FINDINGS)},
            MULTILABEL,
            "every label has the same value in all 30 test images",
        ),
        ({}, {"counts": [5, 49]}, r"counts: 49 anchors are more than the 48 images of .*items"),
        ({}, {"stores": {"vit": "stores/vit", "b": "stores/b"}}, r"stores\.b: there is no folder"),
        ({}, {"stores": {"vit": "stores/vit", "b": "stores"}}, "stores"),
        (
            {},
            {"train": None, "test": None, "patient_split": {"test": 0.01}, "counts": [79]},
            r"counts: 79 anchors are more than the 75 images",
        ),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_named(tmp_path, columns, changes, message):
    write_data(tmp_path, **columns)
    settings = settings_of(tmp_path, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stitching.run(settings, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tset": ["final"]}, "tset: is not known here"),
        ({"stores": {"vit": "stores/vit"}}, "stores must name at least two encoders"),
        ({"dataset": None}, "dataset is missing: give dataset and stores, or demo"),
        ({"test": None}, "test is missing: name splits"),
        ({"test": ["more"]}, "train and test both have the split 'more'"),
        ({"patient_split": {}}, "patient_split and train cannot both be given"),
        ({"demo": ["emoji"]}, "demo and dataset cannot both be given"),
        ({"train": "more"}, r'train: must be a list; got \'more\', write \["more"\]$'),
        ({"counts": 5}, r"counts: must be a list; got 5, write \[5\]$"),
        ({"counts": []}, "counts: must have at least 1; got 0$"),
        ({"counts": [5, 5]}, "counts: .*5 is there more than once"),
        ({"counts": [0]}, r"counts\.0: .*greater than or equal to 1"),
        ({"metrics": ["accuracy", "mcc"]}, r"metrics\.1: "),
        ({"metrics": ["mcc"]}, r"metrics\.0: [^;]*$"),
        ({"methods": ["ortho", "ortho"]}, "methods: .*'ortho' is there more than once"),
        ({"methods": [["ortho"]]}, "methods: must be names with values"),
        ({"methods": "ortho"}, "methods: must be names with values, .*got 'ortho'$"),
        ({"methods": {"x": {"ridge": 1.0}}}, "methods: .*x: the name of the map is missing"),
        ({"methods": {"x": {"method": "ortho", "rigde": 1.0}}}, "methods: .*x: .*rigde"),
        ({"methods": {"x": {"method": "affine", "solver": "lu"}}}, "methods: .*x: solver must be"),
        ({"methods": {"naive": "ortho"}}, "methods: .*'naive' is the name of a reference"),
        ({"methods": {"x": {"method": "ortho", "shuffled": True}}}, "methods: .*shuffled is no"),
        ({"intervals": {"level": 95}}, r"intervals\.level: "),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"run\.yaml: .*{message}"):
        settings_of(tmp_path, **changes)


def test_the_example_of_the_docs_has_the_defaults():
    text = (Path(script.__file__).parents[1] / "docs" / "stitching.md").read_text()
    example = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    settings = stitching.StitchingSettings(**example)
    needed = ("title", "dataset", "stores", "train", "test")
    assert settings == stitching.StitchingSettings(**{name: example[name] for name in needed})
    # Every setting is in it, those that exclude others as comments.
    for name in {*stitching.StitchingSettings.model_fields} - {"demo"}:
        assert name in example or f"\n# {name}: " in text


def test_methods_by_name():
    for given in (["ortho", "ridge"], {"ortho": "ortho", "ridge": "ridge"}):
        own: dict[str, Any] = {**SETTINGS, "methods": given}
        methods = stitching.StitchingSettings(**own).methods
        assert methods == {
            "ortho": {"method": "ortho", "normalize": "isotropic"},
            "ridge": {"method": "affine", "ridge": 1.0, "ridge_unit": "gram"},
        }


# The script and the demo


def test_the_script_prints_tables_and_one_line_for_a_mistake(study, capsys):
    folder, _ = study
    settings_of(folder)
    arguments = ["--config", str(folder / "run.yaml"), "--out", str(folder / "out")]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    for shown in ("vit → dino (accuracy", "shuffled centred", "upper bound", "Naive: "):
        assert shown in printed
    for wrong, message in (
        (["--quick"], "--quick is for the demo"),
        (["--config", str(folder / "none.yaml")], "none.yaml"),
        (["--out", str(folder / "items.csv")], "cannot make this directory"),
    ):
        assert script.main([*arguments, *wrong]) == 2
        *_, line = capsys.readouterr().err.splitlines()  # after the progress bar
        assert line.startswith("stitching: error: ")
        assert message in line


def test_demo_test_items_are_not_in_training():
    sizes: dict[stitching.DemoGroup, tuple[int, int]] = {
        "glosses": (3000, 26),
        "emoji": (1892, 9),
    }
    for group, (rows, classes) in sizes.items():
        data = stitching._demo_data(group)
        assert len(data.names) == classes
        for name in stitching.DEMO[group][1]:
            both = [data.embeddings("stores", name, part.ids) for part in data.parts.values()]
            both = np.concatenate(both)
            assert both.shape[0] == len(np.unique(both, axis=0)) == rows
        train, test = (set(data.parts[part].labels.tolist()) for part in ("train", "test"))
        assert test <= train


@pytest.mark.slow
def test_the_quick_demo_runs(tmp_path):
    quick = stitching.demo_settings(quick=True)
    assert quick.demo == ("glosses", "emoji")
    methods = {"ridge": METHODS_OF_STUDIES["ridge"]}
    changes: dict[str, Any] = {"demo": ("glosses",), "counts": (200,), "methods": methods}
    changes["intervals"] = stitching.IntervalSettings(resamples=10)
    changes["metrics"] = ("accuracy",)
    results = stitching.run(quick.model_copy(update=changes), tmp_path)
    found = scores_of(results)
    pair = ("MiniLM-L3", "MiniLM-L6")
    assert 0.6 < found[*pair, "upper bound", None, "accuracy"]["mean"] < 0.72
    assert 0.4 < found[*pair, "ridge", 200, "accuracy"]["mean"] < 0.6
    assert found[*pair, "shuffled ridge", 200, "accuracy"]["mean"] < 0.1
    assert len({row["label"] for row in results["classes"]}) == 26
    assert (tmp_path / "report.html").is_file()
