"""`semalign recipe` on small trees in the layouts of the data sets, with tiny encoders."""

import json
import shutil
import sys
from types import SimpleNamespace

import clinical_trees as trees
import numpy as np
import pytest
import yaml
from cli_cases import error_of, image_encoder, run, text_encoder, two_tower_encoder, values_of

import semalign_jax as sa
from semalign_jax.cli import _recipes
from semalign_jax.cli._settings import RecipeSettings

PATIENTS = 24
QUICK = ("--set", "counts=[5,12]", "--set", "seeds=2", "--set", "resamples=5")
QUICK += ("--set", 'methods=["ortho"]', "--set", 'baselines=["naive"]')


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They are drawn where outputs of studies are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data sets and encoders below one folder."""
    root = tmp_path_factory.mktemp("recipes")
    found = [trees.patients(PATIENTS, seed) for seed in range(4)]
    trees.write_mimic_cxr(
        root / "mimic-cxr-jpg", found[0], {"train": 0.75, "validate": 0.125, "test": 0.125}
    )
    shutil.copytree(
        root / "mimic-cxr-jpg", root / "mimic-cxr", ignore=shutil.ignore_patterns("*.jpg", "*.csv")
    )
    trees.write_rsna(root / "rsna", found[1])
    trees.write_vindr_cxr(root / "vindr-cxr", found[2], found[3])
    encoders = {
        "vit": image_encoder(root / "vit"),
        "bert": text_encoder(root / "bert"),
        "clip": two_tower_encoder(root / "clip"),
    }
    return SimpleNamespace(root=root, **encoders)


def words(world, name, *more, out, encoders):
    given = [word for pair in encoders.items() for word in ("--encoder", "=".join(map(str, pair)))]
    only = [word for key in encoders for word in ("--only", key)]
    return ("recipe", name, "--data", world.root, "--out", out, *given, *only, *more)


def rsna(world, out, *more):
    encoders = {"ViT": world.vit, "MPNet": world.bert, "CLIP": world.clip, "SigLIP": world.clip}
    return words(world, "rsna-zero-shot", *QUICK, *more, out=out, encoders=encoders)


@pytest.mark.parametrize("name", _recipes.shipped_recipes())
def test_shipped_recipes_are_whole(name, tmp_path):
    settings = RecipeSettings(name=name, data=tmp_path, out=tmp_path)
    loaded = _recipes.load_recipe(settings)
    plan = _recipes.plan_of(loaded, tmp_path, tmp_path)
    assert len({job.out for _, job in plan.jobs}) == len(plan.jobs)
    known = {key for group in _recipes.ENCODERS for key in getattr(loaded, group)}
    assert {key for key, _ in plan.jobs} == known
    assert loaded.description
    assert loaded.dataset.path.parent == tmp_path
    assert name in run("recipe", "--help").stdout


# --- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "rsna"
    return out, values_of(*rsna(world, out))


def test_a_recipe_ends_in_the_study_of_its_stores(zero_shot, world):
    out, found = zero_shot
    rows = {(row["method"], row["anchors"]) for row in found["rows"]}
    assert {("ortho", 5), ("ortho", 12), ("CLIP", None), ("SigLIP", None)} <= rows
    # One model under two names.
    of_model = [[r["mean"] for r in found["rows"] if r["method"] == m] for m in ("CLIP", "SigLIP")]
    assert of_model[0] == of_model[1]
    assert (out / "results" / "report.html").is_file()
    store = sa.stores.open_store(out / "stores" / "vit-target-images")
    assert len(store) == PATIENTS
    texts = sa.stores.open_store(out / "stores" / "mpnet-anchors-texts")
    assert len(texts) == PATIENTS * 3 // 4


def test_a_second_run_makes_only_what_is_missing(zero_shot, world):
    out, found = zero_shot
    stores = {path: path.stat().st_mtime_ns for path in out.glob("stores/*/chunk*")}
    lost = out / "stores" / "mpnet-prompts"
    shutil.rmtree(lost)
    again = run(*rsna(world, out), "--json")
    assert json.loads(again.stdout)["rows"] == found["rows"]
    changed = {p for p, time in stores.items() if p.stat().st_mtime_ns != time}
    assert {path.parent for path in changed} == {lost}
    assert again.stderr.count(" is done") == len({path.parent for path in stores}) - 1


def test_a_dry_run_checks_shows_and_writes_nothing(world, tmp_path):
    found = values_of(*rsna(world, tmp_path / "out", "--limit", "12", "--dry-run"))
    assert not (tmp_path / "out").exists()
    by_store = {step["store"].rpartition("/")[2]: step for step in found["steps"]}
    assert by_store["vit-target-images"]["items"] == 12
    assert by_store["vit-target-images"]["disk"] == 12 * 24 * 4
    assert by_store["clip-prompts"]["items"] == 10
    assert all(step["seconds"] > 0 and step["download"] == 0 for step in found["steps"])
    shown = run(*rsna(world, tmp_path / "out", "--limit", "12", "--dry-run")).stdout
    assert "all that was checked fits" in shown
    assert "embedding takes about" in shown


def test_the_same_items_of_every_encoder_are_in_a_limit(world, tmp_path):
    for name, content in (("vit", "--images"), ("bert", "--texts")):
        run(
            "embed", getattr(world, name), "--dataset", "mimic-cxr", "--path",
            world.root / "mimic-cxr-jpg", "--option", f"reports={world.root / 'mimic-cxr'}",
            content, "--limit", 7, "--out", tmp_path / name,
        )  # fmt: skip
    vit, bert = (sa.stores.open_store(tmp_path / name) for name in ("vit", "bert"))
    assert vit.ids == bert.ids
    assert len(vit) == 7


@pytest.mark.slow
def test_texts_are_stitched_without_any_image(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world.root / "mimic-cxr", data / "mimic-cxr")
    shutil.copytree(
        world.root / "mimic-cxr-jpg", data / "mimic-cxr-jpg", ignore=shutil.ignore_patterns("files")
    )
    bare = SimpleNamespace(root=data)
    encoders = {"MiniLM-L6": world.bert, "BERT": world.bert}
    more = ("--set", "counts=[5]", "--set", "seeds=1", "--set", 'methods=["ortho"]')
    more += ("--set", "intervals=null", "--set", 'labels=["Cardiomegaly","Pleural Effusion"]')
    # One of three patients of the tree is tested.
    more += ("--set", 'test=["test","validate"]')
    found = values_of(
        *words(bare, "mimic-text-stitching", *more, out=tmp_path / "out", encoders=encoders)
    )
    values = {(row["source"], row["method"]): row["mean"] for row in found["rows"]}
    assert ("MiniLM-L6", "ortho") in values
    assert np.isfinite(values["BERT", "upper bound"])


@pytest.mark.slow
def test_images_are_stitched(world, tmp_path):
    encoders = {"DINOv2": world.vit, "RAD-DINO": world.vit}
    more = ("--set", "counts=[5]", "--set", "seeds=1", "--set", 'methods=["ortho"]')
    more += ("--set", "intervals=null")
    found = values_of(
        *words(world, "rsna-vision-stitching", *more, out=tmp_path, encoders=encoders)
    )
    # One encoder under two names: nothing has to be mapped.
    scores = {row["mean"] for row in found["rows"] if row["method"] in ("naive", "upper bound")}
    assert len(scores) == 2  # of two metrics


@pytest.mark.slow
def test_vindr_is_read_with_all_its_findings(world, tmp_path):
    encoders = {"DINOv2": world.vit, "MPNet": world.bert}
    found = values_of(
        *words(world, "vindr-zero-shot", *QUICK, out=tmp_path, encoders=encoders, ),
        "--set", "class_metrics=[]",
    )  # fmt: skip
    assert {row["source"] for row in found["rows"]} == {"DINOv2"}
    assert any("left out of macro means" in note for note in found["notes"])


def test_a_migration_embeds_a_sample_by_the_new_encoder(world, tmp_path, monkeypatch):
    monkeypatch.setattr(_recipes, "NEW_SEARCHED", 4)
    encoders = {"old": world.bert, "new": world.bert}
    more = ("--set", "sample=10", "--set", "search_rows=20")
    message = error_of(*words(world, "migrate", *more, out=tmp_path / "few", encoders=encoders))
    assert "at least 100 are needed" in message
    monkeypatch.setattr(_recipes, "NEW_SEARCHED", 20)
    more = ("--set", "sample=2", "--set", "search_rows=20")
    monkeypatch.setattr("semalign_jax.cli.migrate.SEARCHED", 5)
    found = values_of(*words(world, "migrate", *more, out=tmp_path / "out", encoders=encoders))
    assert (found["rows"], found["sample"]) == (PATIENTS, 2)
    assert len(sa.stores.open_store(tmp_path / "out/stores/new-all-texts")) == 22
    assert np.load(tmp_path / "out/results/vectors.npy").shape == (PATIENTS, 24)


def test_a_recipe_is_written_edited_and_run(world, tmp_path):
    encoders = {"DINOv2": world.vit, "RAD-DINO": world.vit}
    base = words(world, "rsna-vision-stitching", out=tmp_path / "out", encoders=encoders)
    path = tmp_path / "run.yaml"
    run(*base, "--set", "seeds=2", "--set", "intervals=null", "--write", path)
    assert not (tmp_path / "out").exists()
    values = yaml.safe_load(path.read_text())
    assert list(values["encoders"]) == ["DINOv2", "RAD-DINO"]
    assert values["settings"]["seeds"] == 2
    assert values["dataset"]["path"] == str(world.root / "rsna")
    assert values["settings"]["intervals"] is None  # what is said stays, also where it is nothing
    values["settings"] |= {"counts": [4], "methods": ["ortho"]}
    path.write_text(yaml.safe_dump(values))
    found = values_of("recipe", path, "--dry-run")
    assert {step["items"] for step in found["steps"]} == {PATIENTS}
    assert found["recipe"]["settings"]["counts"] == [4]


# --- bad input ---------------------------------------------------------------------------------


def refusals(world):
    usual = {"ViT": world.vit, "MPNet": world.bert}

    def rsna_of(*more, encoders=usual, data=world):
        return lambda out: words(data, "rsna-zero-shot", *QUICK, *more, out=out, encoders=encoders)

    return {
        "name": (lambda out: ("recipe", "rsna", "--out", out), "there is no recipe 'rsna'"),
        "aim": (lambda out: ("recipe", "rsna-zero-shot"), "--out"),
        "data": (rsna_of(data=SimpleNamespace(root=world.root / "vit")), "rsna"),
        "encoder": (rsna_of("--encoder", "Vit=x"), "did you mean 'ViT'"),
        "one encoder": (
            lambda out: words(
                world, "rsna-vision-stitching", out=out, encoders={"DINOv2": world.vit}
            ),
            "at least two are needed",
        ),
        "no texts": (rsna_of(encoders={"ViT": world.vit}), "text_encoders"),
        "modality": (rsna_of(encoders={"ViT": world.bert, "MPNet": world.bert}), "ViT"),
        "missing": (rsna_of(encoders={"ViT": "nowhere/", "MPNet": world.bert}), "ViT"),
        "missing in a dry run": (
            rsna_of("--dry-run", encoders={"ViT": "nowhere/", "MPNet": world.bert}),
            "encoder 'ViT': there is no folder",
        ),
        "sample": (
            lambda out: words(
                world,
                "migrate",
                "--set",
                "sample=many",
                out=out,
                encoders={"old": world.bert, "new": world.bert},
            ),
            "sample",
        ),
        "labels": (rsna_of("--set", "label_names={}"), "has no label 'Pneumonia'"),
        "counts": (rsna_of("--set", "counts=[5000]"), "counts"),
        "setting": (rsna_of("--set", "sedes=3"), "sedes"),
        "prompts": (rsna_of("--set", "prompts=rsna"), "there is no prompt set"),
    }


NAMES = ("name", "aim", "data", "encoder", "one encoder", "no texts", "modality", "missing")
NAMES += ("missing in a dry run", "sample", "labels", "counts", "setting", "prompts")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_told_before_anything_is_embedded(name, world, tmp_path):
    line, message = refusals(world)[name]
    assert message in error_of(*line(tmp_path / "out"))
    assert not (tmp_path / "out" / "stores").exists()


def test_all_folders_that_are_not_there_are_named_at_once(world, tmp_path):
    message = error_of("recipe", "rsna-zero-shot", "--data", tmp_path, "--dry-run")
    for name in ("rsna", "mimic-cxr-jpg", "mimic-cxr"):
        assert str(tmp_path / name) in message
    assert "Needs the RSNA challenge in rsna" in message


def test_files_of_a_recipe_start_where_it_lies(world, tmp_path):
    prompts = json.dumps(
        {
            "name": "own", "task": "multi-label",
            "classes": [{"name": "Pneumonia", "positive": ["no"], "negative": ["acute"]}],
        }
    )  # fmt: skip
    (tmp_path / "own.json").write_text(prompts)
    base = rsna(world, tmp_path / "out", "--set", "prompts=own.json")
    path = tmp_path / "run.yaml"
    run(*base, "--write", path)
    values = yaml.safe_load(path.read_text())
    assert values["settings"]["prompts"] == str(world.root / "own.json")
    values["settings"]["prompts"] = "own.json"  # now beside the recipe
    path.write_text(yaml.safe_dump(values))
    found = values_of("recipe", path, "--dry-run")
    by_store = {step["store"].rpartition("/")[2]: step for step in found["steps"]}
    assert by_store["mpnet-prompts"]["items"] == 2


def test_a_disk_that_is_too_small_is_told_first(world, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = error_of(*rsna(world, tmp_path / "out"), status=1)
    assert "the stores take" in message
    assert not (tmp_path / "out" / "stores").exists()


@pytest.mark.parity
def test_a_pickled_checkpoint_is_converted(world, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    folder = shutil.copytree(world.vit, tmp_path / "pickled")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, folder / "pytorch_model.bin")
    encoders = {"DINOv2": folder, "RAD-DINO": world.vit}
    more = ("--set", "counts=[5]", "--set", "seeds=1", "--set", 'methods=["ortho"]')
    more += ("--set", "intervals=null")
    line = words(world, "rsna-vision-stitching", *more, out=tmp_path / "out", encoders=encoders)
    planned = values_of(*line, "--dry-run")["steps"]
    assert [step["dimension"] for step in planned] == [None, 24]
    assert not (tmp_path / "out").exists()
    run(*line)
    one, two = (
        sa.stores.open_store(tmp_path / "out" / "stores" / f"{name}-all-images")
        for name in ("dinov2", "rad-dino")
    )
    np.testing.assert_array_equal(one.rows(slice(None)), two.rows(slice(None)))
