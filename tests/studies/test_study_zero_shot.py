"""The zero-shot study: against direct computations, interrupted, and with bad input."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import zero_shot as script
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import semalign_jax as sa
from semalign_jax.data.rsna import RSNA_LABELS
from semalign_jax.data.vindr import VINDR_LABELS
from semalign_jax.studies import demo, outputs, prompt_stores, zero_shot, zero_shot_data
from semalign_jax.studies.settings import load_settings
from semalign_jax.zeroshot import baselines
from semalign_jax.zeroshot.prompts import prompt_ids

CLASSES = ("mass", "edema", "fracture")
LABELS = ("Mass", "edema", "fracture", "device")
D_IMAGE = {"vit": 6, "dino": 6}  # equal, so that the pairs share compiled code
D_TEXT = 24  # as the tiny BERT has
SPLITS = {"validation": 24, "test": 30, "labelled": 26}
UNKNOWN = [("test", 3, 0), ("test", 8, 2), ("validation", 5, 1), ("labelled", 2, 1)]


def prompt_file(folder, task="multi-label", **changes):
    side = {"positive": ["{} is present", "{}"], "negative": ["no {}"]}
    classes = [
        {"name": name, **{k: [t.format(name) for t in v] for k, v in side.items()}}
        for name in CLASSES
    ]
    path = folder / "prompts.json"
    path.write_text(json.dumps({"name": "own", "task": task, "classes": classes, **changes}))
    return path


def write_store(folder, ids, rows, **description):
    store = sa.stores.create_store(folder, description=description, dimension=rows.shape[1])
    store.append(list(ids), rows.astype(np.float32))
    return np.asarray(rows, np.float32)


def write_table(path, header, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")


def make_world(folder):
    """Stores, tables and a prompt file of a small study, and the arrays in them."""
    rng = np.random.default_rng(0)
    count, pairs = sum(SPLITS.values()), 40
    latent = rng.standard_normal((count + pairs, 4))
    labels = (latent[:count, :3] + 0.5 * rng.standard_normal((count, 3)) > 0.3).astype(int)
    splits = np.repeat(list(SPLITS), list(SPLITS.values()))
    codes = labels.astype(object)
    for split, row, column in UNKNOWN:
        codes[np.flatnonzero(splits == split)[row], column] = ("", -1)[row % 2]
    ids = [f"i{n}" for n in range(count)]
    write_table(
        folder / "images.csv",
        ["id", "person", "part", *LABELS],
        [[i, f"p{n // 2}", splits[n], *codes[n], 1] for n, i in enumerate(ids)],
    )
    anchor_ids = [f"a{n}" for n in range(pairs)]
    write_table(
        folder / "anchors.csv",
        ["id", "person", "part"],
        [[i, f"q{n // 2}", "train"] for n, i in enumerate(anchor_ids)] + [["z", "z", "train"]],
    )
    order = rng.permutation(count + pairs)
    arrays = {}
    for name, d in D_IMAGE.items():
        rows = latent @ rng.standard_normal((4, d)) + 0.1 * rng.standard_normal((len(latent), d))
        # One store of all, in another order than the tables.
        everything = np.array(ids + anchor_ids)
        write_store(folder / name, everything[order], rows[order], encoder=name)
        arrays[name] = rows.astype(np.float32)
    decode = rng.standard_normal((4, D_TEXT))
    reports = latent[count:] @ decode + 0.1 * rng.standard_normal((pairs, D_TEXT))
    arrays["reports"] = write_store(folder / "reports", anchor_ids, reports, pooling="mean")
    axes = np.concatenate([np.stack([a, a, -a]) for a in np.eye(4)[:3]])
    texts = axes @ decode + 0.1 * rng.standard_normal((9, D_TEXT))
    prompt_set = sa.zeroshot.load_prompts(prompt_file(folder))
    arrays["texts"] = write_store(folder / "texts", prompt_ids(prompt_set), texts)
    return SimpleNamespace(
        folder=folder, arrays=arrays, labels=labels, codes=codes, splits=splits, ids=ids,
        prompt_set=prompt_set, count=count,
    )  # fmt: skip


def table_options(**more):
    return {"id": "id", "patient": "person", "split": "part", **more}


def config(**changes: Any) -> dict[str, Any]:
    values = {
        "title": "A small study",
        "images": {
            "reader": "table",
            "path": "images.csv",
            "options": table_options(label=list(LABELS)),
        },
        "image_stores": {"vit": "vit", "dino": "dino"},
        "validation": ["validation"],
        "test": ["test"],
        "labelled": ["labelled"],
        "anchors": {"reader": "table", "path": "anchors.csv", "options": table_options()},
        "anchor_splits": ["train"],
        "anchor_stores": {"vit": "vit", "dino": "dino"},
        "text_stores": {"bert": "reports"},
        "prompts": "prompts.json",
        "prompt_embeddings": {"bert": {"store": "texts"}},
        "label_names": {"mass": "Mass"},
        "ignored_labels": ["device"],
        "counts": [8, 20],
        "seeds": 2,
        "methods": {"ortho": {"method": "ortho", "normalize": "center"}},
        "baselines": ["naive", "relative", "probe"],
        "normalizations": ["none", "center"],
        "class_metrics": ["auroc", "f1"],
        "resamples": 20,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def load(folder, **changes):
    path = folder / "run.yaml"
    path.write_text(json.dumps(config(**changes)))  # JSON is YAML
    return load_settings(zero_shot.ZeroShotSettings, path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They are drawn where outputs are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


@pytest.fixture(scope="module")
def study(world):
    out = world.folder / "out"
    return out, zero_shot.run(load(world.folder), out)


def direct(world, image):
    """The same by `zero_shot_protocol`."""
    known = np.array([[code in (0, 1) for code in row] for row in world.codes])
    labels = np.where(known, world.labels, 0)
    patients = np.array([f"p{n // 2}" for n in range(world.count)])
    parts = {
        split: sa.zeroshot.Images(
            np.array(world.ids)[rows],
            patients[rows],
            world.arrays[image][: world.count][rows],
            labels[rows],
            known[rows],
        )
        for split in SPLITS
        for rows in [np.flatnonzero(world.splits == split)]
    }
    pairs = len(world.arrays["reports"])
    anchors = sa.zeroshot.AnchorPairs(
        [f"a{n}" for n in range(pairs)],
        [f"q{n // 2}" for n in range(pairs)],
        world.arrays[image][world.count :],
        world.arrays["reports"],
    )
    return sa.zeroshot.zero_shot_protocol(
        anchors,
        parts["validation"],
        parts["test"],
        sa.zeroshot.embedded_prompts(world.prompt_set, world.arrays["texts"]),
        (8, 20),
        key=jax.random.key(0),
        seeds=2,
        methods={"ortho": sa.SweepMethod("ortho", normalize="center")},
        normalizations=("none", "center"),
        baselines={
            "naive": baselines.naive_scores,
            "relative": baselines.relative_scores,
        },
        labelled=parts["labelled"],
        resamples=20,
    ), parts


def test_the_study_equals_the_protocol_and_scikit_learn(world, study):
    _, results = study
    expected, parts = direct(world, "dino")
    names = ["ortho (none)", "ortho (center)", "naive", "relative", "probe"]
    assert len(results["rows"]) == 2 * 3 * (4 * 2 + 1)
    for row in results["rows"]:
        if row["source"] != "dino":
            continue
        place = names.index(row["method"]), {None: 0, 8: 0, 20: 1}[row["anchors"]]
        for key in ("mean", "lower", "upper"):
            values = getattr(expected.seed_means, {"mean": "estimate"}.get(key, key))
            assert row[key] == pytest.approx(values[row["metric"]][place], abs=1e-6)
        scores = expected.intervals.estimate[row["metric"]][place]
        if row["method"] == "naive":
            assert (row["anchors"], row["seeds"], row["std"]) == (None, 1, 0.0)
        else:
            assert row["std"] == pytest.approx(np.std(scores, ddof=1), abs=1e-6)
    test, validation = parts["test"], parts["validation"]
    scores = expected.scores[1, 1]  # [seeds, n, classes], unlike what is ranked in the study
    thresholds = expected.thresholds[1, 1]
    found = {
        (row["metric"], row["label"]): row["value"]
        for row in results["classes"]
        if (row["source"], row["method"]) == ("dino", "ortho (center)")
    }
    macro = []
    for c, name in enumerate(CLASSES):
        kept = test.known[:, c]
        truth, mine = test.labels[kept, c], scores[:, kept, c]
        auroc = np.mean([roc_auc_score(truth, s) for s in mine])
        assert found["auroc", name] == pytest.approx(auroc, abs=1e-6)
        f1 = [f1_score(truth, s >= t) for s, t in zip(mine, thresholds[:, c], strict=True)]
        assert found["f1", name] == pytest.approx(np.mean(f1), abs=1e-6)
        macro.append(np.mean([average_precision_score(truth, s) for s in mine]))
    row = next(
        r
        for r in results["rows"]
        if (r["source"], r["method"], r["anchors"], r["metric"])
        == ("dino", "ortho (center)", 20, "average_precision")
    )
    assert row["mean"] == pytest.approx(np.mean(macro), abs=1e-6)
    assert not validation.known.all()


def total(scores, truth):
    return scores.sum() / truth[1].sum()


def test_metrics_of_ones_own(world):
    settings = load(world.folder, image_stores={"dino": "dino"}, anchor_stores={"dino": "dino"})
    results = zero_shot.run(settings, metrics={"total": total})
    assert {row["metric"] for row in results["rows"]} == {
        "auroc", "average_precision", "macro_f1", "total",
    }  # fmt: skip
    with pytest.raises(ValueError, match="'auroc' is one of the settings"):
        zero_shot.run(settings, metrics={"auroc": total})


def test_files_and_notes(study):
    out, results = study
    assert outputs.load_results(out)["rows"] == results["rows"]
    assert load_settings(zero_shot.ZeroShotSettings, out / "settings.json") == load(out.parent)
    notes = " ".join(results["notes"])
    assert "1 image of anchors" in notes
    assert "40 pairs of 20 patients" in notes
    assert "30 images of 15 patients to test" in notes
    assert "2 labels of test images are unknown" in notes
    assert "Normalisation of the mapped space: macro AUROC at 20 anchors" in notes
    assert (out / "report.html").is_file()


def test_a_run_that_was_stopped_goes_on(world, study, monkeypatch):
    real, calls = zero_shot.zero_shot_protocol, []

    def counted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(zero_shot, "zero_shot_protocol", counted)
    out = world.folder / "stopped"
    with pytest.raises(KeyboardInterrupt):
        zero_shot.run(load(world.folder), out)
    results = zero_shot.run(load(world.folder), out)
    assert len(calls) == 3  # the first pair once
    for name in ("rows", "classes", "notes"):
        assert results[name] == study[1][name]
    with pytest.raises(ValueError, match="other settings .*resamples: 20 there, 21 now"):
        zero_shot.run(load(world.folder, resamples=21), out)


def test_one_data_set_split_by_patient_with_a_single_label(tmp_path):
    rng = np.random.default_rng(1)
    latent = rng.standard_normal((120, 4))
    kinds = latent[:, :3].argmax(axis=1)
    names = np.array([*CLASSES, "other"])
    shown = np.where(np.arange(120) % 10 == 9, 3, kinds)
    rows = [[f"i{n}", f"p{n // 2}", names[shown[n]]] for n in range(120)]
    write_table(tmp_path / "images.csv", ["id", "person", "kind"], rows)
    ids = [row[0] for row in rows]
    write_store(tmp_path / "vit", ids[:118], latent[:118] @ rng.standard_normal((4, 6)))
    decode = rng.standard_normal((4, D_TEXT))
    write_store(tmp_path / "reports", ids, latent @ decode)
    prompt_file(tmp_path, "single-label")
    texts = np.repeat(np.eye(4)[:3], 2, axis=0) @ decode
    write_store(tmp_path / "texts", [str(n) for n in range(6)], texts)
    write_store(tmp_path / "clip", ids, latent)
    for name, axes in (("clip-texts", [0, 1, 2]), ("wrong-texts", [1, 2, 0])):
        rows = np.repeat(np.eye(4)[axes], 2, 0)
        write_store(tmp_path / name, [str(n) for n in range(6)], rows)
    settings = load(
        tmp_path,
        images={
            "reader": "table",
            "path": "images.csv",
            "options": {"id": "id", "patient": "person", "label": "kind"},
        },
        image_stores={"vit": "vit"},
        **dict.fromkeys(("validation", "test", "labelled", "label_names")),
        **dict.fromkeys(("anchors", "anchor_splits", "anchor_stores")),
        patient_split={"validation": 0.2, "test": 0.4},
        ignored_labels=["other"],
        counts=[12],
        baselines=[],
        normalizations=["center"],
        class_metrics=[],
        multimodal={
            "CLIP": {"images": "clip", "prompts": {"store": "clip-texts"}},
            "wrong": {"images": "clip", "prompts": {"store": "wrong-texts"}},
        },
    )
    results = zero_shot.run(settings)
    accuracy = {
        r["method"]: (r["mean"], r["anchors"]) for r in results["rows"] if r["metric"] == "accuracy"
    }
    assert accuracy["CLIP"][0] > 0.9
    assert accuracy["CLIP"][1] is None
    assert accuracy["wrong"][0] < 0.6
    assert accuracy["ortho"][0] > 0.6
    assert accuracy["ortho"][1] == 12
    notes = " ".join(results["notes"])
    assert "2 images" in notes
    assert "11 images of images" in notes  # of no class, among those that have embeddings
    assert results["classes"] == []


def test_prompts_are_embedded_as_the_reports_were(world, tmp_path):
    # These import PyTorch.
    from encoders.harness import all_cases, read_golden, write_checkpoint
    from encoders.test_texts import write_tokenizer

    folder = tmp_path / "bert"
    folder.mkdir()
    golden, shapes, *_ = read_golden("bert")
    write_checkpoint(folder, golden, shapes, all_cases()["bert"])
    write_tokenizer(folder)
    source = zero_shot.PromptSource(encoder=str(folder))
    reports = sa.stores.open_store(world.folder / "reports")  # says that its pooling is the mean
    found = prompt_stores.embed_prompts("p", source, world.prompt_set, tmp_path / "made", reports)
    from semalign_jax import encoders

    texts = sa.zeroshot.prompt_texts(world.prompt_set).texts
    encoder = encoders.load_encoder(folder, pooling="mean")
    expected = encoders.embed(encoder, texts, progress=False).embeddings
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)
    other = zero_shot.PromptSource(encoder=str(folder), pooling="cls")
    with pytest.raises(ValueError, match="p: the prompts were embedded with another pooling"):
        prompt_stores.embed_prompts("p", other, world.prompt_set, tmp_path / "cls", reports)


# --- bad input ---------------------------------------------------------------------------------


def fails(folder, message, **changes):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        zero_shot.run(load(folder, **changes))


WRONG = {
    "a class without a label": (
        {"label_names": None},
        r"images \(.*images.csv\) has no label 'mass' for the class 'mass' .* label_names",
    ),
    "a label without prompts": (
        {"ignored_labels": None},
        "images.csv.: the label 'device' has no prompts in the prompt set 'own'",
    ),
    "an unknown class": (
        {"label_names": {"mas": "Mass", "mass": "Mass"}},
        "label_names: 'mas' is no class of the prompt set 'own'",
    ),
    "an unknown ignored label": (
        {"ignored_labels": ["device", "dev"]},
        "ignored_labels: 'dev' is no label of images",
    ),
    "an unknown split": ({"test": ["tset"]}, "test: images .* no image of the split 'tset'"),
    "too many anchors": ({"counts": [41]}, "counts: 41 anchors are more than the 40 pairs"),
    "too few labelled images": (
        {"counts": [27]},
        "counts: 27 is more than the 26 labelled images",
    ),
    "one split for two parts": (
        {"labelled": ["validation"]},
        "run.yaml: .*validation and labelled both have the split 'validation'",
    ),
    "no labelled images": ({"labelled": None}, "baselines: the probe needs labelled images"),
    "no store": ({"text_stores": {"bert": "nothing"}}, "text_stores.bert: there is no folder"),
    "other prompts": (
        {"prompt_embeddings": {"bert": {"store": "vit"}}},
        "prompt_embeddings.bert: the prompts of .*vit have 6 dimensions, the reports of .* 24",
    ),
    "no prompts in the store": (
        {"prompt_embeddings": {"bert": {"store": "reports"}}},
        "prompt_embeddings.bert: .*reports lacks prompts of the set 'own', e.g. 'mass/positive/0'",
    ),
    "a score of another task": (
        {"metrics": ["accuracy"]},
        "metrics: 'accuracy' is no score of a multi-label task",
    ),
    "an unknown key": ({"sedes": 2}, "run.yaml: sedes: is not known here"),
    "an unknown option": (
        {"methods": {"m": {"method": "ortho", "ridg": 1.0}}},
        "run.yaml: methods: .*m: .*ridg",
    ),
    "a control without its name": (
        {"methods": {"wrong": {"method": "ortho", "shuffled": True}}},
        """methods: 'wrong': a method is named "shuffled ..." where its shuffled is true""",
    ),
    "a name of controls": (
        {"methods": {"shuffled ortho": {"method": "ortho"}}},
        "methods: 'shuffled ortho': .*, and only there",
    ),
    "an unknown baseline": (
        {"baselines": {"b": {"baseline": "asif", "tops": 3}}},
        "run.yaml: baselines: .*b: 'tops' is no option of asif; it has top, exponent, center",
    ),
    "two encoders for one": (
        {"prompt_embeddings": {"bert": {"store": "texts", "encoder": "x"}}},
        "run.yaml: prompt_embeddings.bert: .*exactly one of store and encoder",
    ),
    "names that differ": (
        {"anchor_stores": {"vit": "vit"}},
        "run.yaml: .*anchor_stores lacks 'dino', which is in image_stores",
    ),
    "demo and own data": ({"demo": True}, "run.yaml: .*demo and images cannot both be given"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_settings_are_named(world, case):
    changes, message = WRONG[case]
    fails(world.folder, message, **changes)


def edited(world, tmp_path, edit):
    """A copy of the table of images with its rows changed, as `images`."""
    lines = (world.folder / "images.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    edit(rows)
    write_table(tmp_path / "images.csv", lines[0].split(","), rows)
    path = str(tmp_path / "images.csv")
    options = table_options(label=list(LABELS))
    return {"reader": "table", "path": path, "options": options}


def test_overlapping_patients(world, tmp_path):
    def in_anchors(rows):
        rows[30][1], rows[31][1] = "q3", "q7"  # of the test part

    images = edited(world, tmp_path, in_anchors)
    message = (
        r"anchors of anchors .*anchors.csv\) and test of images .*have 2 patients .*'q3', 'q7'"
    )
    fails(world.folder, message, images=images)

    def in_validation(rows):
        rows[30][1] = "p0"

    images = edited(world, tmp_path, in_validation)
    fails(world.folder, "validation of .* and test of .* have 1 patient .*'p0'", images=images)


def test_a_test_part_of_one_class(world, tmp_path):
    def constant(rows):
        for row in rows:
            row[3:6] = ["1", "0", "1"] if row[2] == "test" else row[3:6]

    images = edited(world, tmp_path, constant)
    fails(world.folder, "images.csv.: every label has the same value in all 30 test", images=images)


def test_one_undefined_class_is_a_doubt(world, tmp_path):
    def constant(rows):
        for row in rows:
            row[4] = "0" if row[2] == "test" else row[4]

    settings = load(world.folder, images=edited(world, tmp_path, constant))
    task = zero_shot_data.own_data(settings, tmp_path)
    assert any("test images (no AUROC; left out of macro means): edema" in n for n in task.doubts)


def test_duplicate_ids_name_file_and_row(world, tmp_path):
    def twice(rows):
        rows[5][0] = "i4"

    images = edited(world, tmp_path, twice)
    fails(world.folder, "images.csv, line 7: id i4 occurs twice", images=images)


def test_prompt_files_name_the_key(world, tmp_path):
    path = prompt_file(tmp_path, langauge="en")
    message = "prompts.json: unknown key 'langauge'"
    fails(world.folder, message, prompts=str(path))
    path = prompt_file(tmp_path, classes=[{"name": "mass", "positive": [], "negative": ["no"]}])
    message = r"prompts.json: classes\[0\]: 'mass': positive holds no prompts"
    fails(world.folder, message, prompts=str(path))


def test_embeddings_with_nan_name_the_store_and_the_id(world, tmp_path):
    rows = world.arrays["reports"]
    ids = sa.stores.open_store(world.folder / "reports").ids
    write_store(tmp_path / "reports", ids, rows)
    chunk = next((tmp_path / "reports").glob("chunk-*"))
    with safe_open(chunk, framework="numpy") as file:
        metadata = file.metadata()
    rows = rows.copy()
    rows[17, 3] = np.nan
    save_file({"embeddings": rows}, chunk, metadata)
    stores = {"bert": str(tmp_path / "reports")}
    fails(world.folder, "text_stores.bert: .*NaN or infinity in 1 row.*'a17'", text_stores=stores)


# --- documentation, demo and script ------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_the_settings_in_the_documentation(tmp_path, number):
    text = (Path(__file__).parents[2] / "docs" / "zero-shot.md").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(text.split("```yaml\n")[number + 1].split("```")[0])
    settings = load_settings(zero_shot.ZeroShotSettings, path)
    reader = {"rsna": RSNA_LABELS, "vindr-cxr": VINDR_LABELS}
    assert settings.images is not None
    columns = zero_shot_data.label_columns(
        SimpleNamespace(label_names=reader[settings.images.reader]),  # type: ignore[arg-type]
        sa.zeroshot.load_prompts(settings.prompts or ""),
        settings,
        "images",
    )
    assert len(columns) == (1, 28)[number]


@pytest.mark.slow
def test_the_demo_in_small(tmp_path, capsys):
    small = {"counts": [50], "seeds": 1, "resamples": 10, "baselines": ["naive"]}
    small |= {"demo": True, "class_metrics": [], "metrics": ["accuracy"]}
    small["methods"] = {"ridge": zero_shot.METHODS["ridge"]}
    (tmp_path / "run.json").write_text(json.dumps(small))
    out = tmp_path / "out"
    assert script.main(["--config", str(tmp_path / "run.json"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "DINOv2-small" in printed
    assert "Emoji are no medical images" in printed
    rows = json.loads((out / "results.json").read_text())["rows"]
    scores = {(r["source"], r["method"]): r["mean"] for r in rows}
    assert scores["EfficientNet-Lite0", "ridge"] > 0.35
    assert scores["DINOv2-small", "ridge"] > 0.3
    assert max(scores[name, "naive"] for name in demo.EMOJI) < 0.2
    # A multimodal model, trained on all pairs: the same whatever the image encoder of the maps.
    assert {round(scores[name, "two towers"], 6) for name in demo.EMOJI} == {
        round(scores["DINOv2-small", "two towers"], 6)
    }
    assert scores["DINOv2-small", "two towers"] > 0.6


def test_the_quick_demo_is_a_part_of_the_demo():
    full, quick = zero_shot.demo_settings(), zero_shot.demo_settings(quick=True)
    same = {"counts", "seeds", "resamples"}
    assert full.model_dump(exclude=same) == quick.model_dump(exclude=same)
    assert quick.resamples < full.resamples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{folder}/none.yaml"], "none.yaml"),
        (["--config", "{folder}/run.yaml", "--quick"], "--quick is for the demo"),
        (["--config", "{folder}/bad.yaml"], "bad.yaml: .*images is missing"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, message):
    (tmp_path / "bad.yaml").write_text("title: x\n")
    given = [a.replace("{folder}", str(tmp_path)) for a in arguments]
    assert script.main([*given, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1

    assert re.search(message, lines[0])
