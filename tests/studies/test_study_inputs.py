"""Settings files, data sets by name, and embeddings matched to items by id."""

import json

import numpy as np
import pytest

import semalign_jax as sa
from semalign_jax.studies import inputs
from semalign_jax.studies.settings import (
    METHODS,
    DataPath,
    DatasetSettings,
    EncoderName,
    PromptSetName,
    Settings,
    StudySettings,
    load_settings,
)


class Inner(Settings):
    """Settings within settings."""

    count: int = 1
    folder: DataPath | None = None


class Outer(Settings):
    """Settings of the tests."""

    name: str
    inner: Inner = Inner()


def table(folder, rows):
    lines = ["key,person,part,finding", *rows]
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    options = {"id": "key", "patient": "person", "split": "part", "label": "finding"}
    return DatasetSettings(reader="table", path=folder / "items.csv", options=options)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_settings_from_a_file_and_a_command_line(tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    path.write_text(json.dumps({"name": "a", "inner": {"count": 3, "folder": "x/y"}}))
    settings = load_settings(Outer, path, {"inner.count": 4})
    assert settings == Outer(name="a", inner=Inner(count=4, folder=tmp_path / "x/y"))
    assert load_settings(Outer, None, {"name": "b"}) == Outer(name="b")
    path.write_text(json.dumps({"name": "a", "inner": None}))
    assert load_settings(Outer, path, {"inner.count": 4}).inner == Inner(count=4)
    with pytest.raises(ValueError, match="name.count is given, but name is 'a'"):
        load_settings(Outer, path, {"name.count": 4})


def test_what_is_not_set_of_a_default_stays():
    found = load_settings(StudySettings, None, {"methods.ridge.ridge": 2.0, "methods.new": "ortho"})
    ridge = {**METHODS["ridge"], "ridge": 2.0}
    assert found.methods == {**METHODS, "ridge": ridge, "new": METHODS["ortho"]}
    assert METHODS["ridge"]["ridge"] == 1.0


def test_paths_of_a_data_set_start_at_the_settings(tmp_path):
    class Study(Settings):
        dataset: DatasetSettings
        encoder: EncoderName = "owner/model"
        prompts: PromptSetName = "rsna_pneumonia"

    (tmp_path / "bert").mkdir()
    options = {"reports": "reports", "section": "impression"}
    dataset = {"reader": "mimic-cxr", "path": "jpg", "options": options}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"dataset": dataset, "encoder": "bert", "prompts": "own.json"}))
    found = load_settings(Study, path)
    assert found.dataset.path == tmp_path / "jpg"
    assert found.dataset.options == {"reports": str(tmp_path / "reports"), "section": "impression"}
    assert (found.encoder, found.prompts) == (str(tmp_path / "bert"), str(tmp_path / "own.json"))
    names = load_settings(Study, None, {"dataset": dataset})
    assert (names.encoder, names.prompts) == ("owner/model", "rsna_pneumonia")
    assert names.dataset.options == options


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "name: Field required"),
        ({"name": "a", "nmae": 1}, "nmae: is not known here"),
        (
            {"name": "a", "inner": {"count": "many"}},
            "inner.count: Input should be a valid int",
        ),
        ([1], "expected an object"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        load_settings(Outer, path)


def test_tables_without_images(tmp_path):
    data = inputs.read_dataset(table(tmp_path, ["a,p1,train,x", "b,p2,test,y"]))
    assert data.ids == ("a", "b")
    assert data.patients == ("p1", "p2")
    assert data.images == ("", "")
    assert data.label_names == ("x", "y")


def test_unknown_and_missing_options_of_a_reader(tmp_path):
    settings = table(tmp_path, [])
    wrong = settings.model_copy(update={"options": {"labels": "finding"}})
    with pytest.raises(ValueError, match="'labels' is no option of 'table'; it has image, label"):
        inputs.read_dataset(wrong)
    wrong = settings.model_copy(update={"reader": "vindr-cxr", "options": {}})
    with pytest.raises(ValueError, match="options of 'vindr-cxr': .*agreement"):
        inputs.read_dataset(wrong)


def test_embeddings_are_matched_by_id(tmp_path):
    data = inputs.read_dataset(table(tmp_path, [f"{c},p,train,x" for c in "abcd"]))
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(3, 2)).astype(np.float16)
    for name, ids, rows in (("one", "zcba", first), ("two", "bcd", second)):
        store = sa.stores.create_store(
            tmp_path / name, description={}, dimension=rows.shape[1], dtype=rows.dtype
        )
        store.append(list(ids), rows)
    stores = inputs.open_stores("stores", {name: tmp_path / name for name in ("one", "two")})
    matched = inputs.in_all_stores(data, stores, "items.csv")
    assert matched.ids == ("b", "c")
    ids = np.array(matched.ids)
    read = inputs.StudyData(
        (), "multi-label", {}, (ids, ids), {"stores": stores}, (), ()
    ).embeddings
    one, two = (read("stores", name, ids) for name in stores)
    np.testing.assert_array_equal(one, first[[2, 1]])
    np.testing.assert_array_equal(two, second[:2])
    assert (one.dtype, two.dtype) == (np.float64, np.float32)

    other = sa.stores.create_store(tmp_path / "other", description={}, dimension=2)
    other = other.append(["q"], np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="no image of items.csv is in all stores"):
        inputs.in_all_stores(data, {"other": other}, "items.csv")
    with pytest.raises(FileNotFoundError, match="stores.none: there is no folder"):
        inputs.open_stores("stores", {"none": tmp_path / "none"})
