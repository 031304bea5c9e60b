"""`semalign embed`: what is embedded under which ids, broken files, and interrupted runs."""

import json
import os

import numpy as np
import pytest
from cli_cases import WORDS, error_of, image_encoder, run, text_encoder, values_of
from data.trees import MIMIC_IMAGES, dicom, mimic_tree, write_csv, write_dicom, write_image

import semalign_jax as sa
from semalign_jax import encoders
from semalign_jax.cli import _sources
from semalign_jax.data import read_pixels


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return text_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return image_encoder(tmp_path_factory.mktemp("vit"))


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 32)).astype(np.uint8)


def rows_of(folder):
    store = sa.stores.open_store(folder)
    return dict(zip(store.ids, store.rows(slice(None)), strict=True))


def embedded(encoder, items):
    found = encoders.embed(encoders.load_encoder(encoder), items, progress=False)
    return found.embeddings


def test_lines_of_a_text_file(bert, tmp_path):
    (tmp_path / "texts.txt").write_text("no acute finding\n\n left finding \n" + "no " * 30 + "\n")
    found = values_of("embed", bert, tmp_path / "texts.txt", "--out", tmp_path / "store")
    assert found.pop("seconds") > 0
    assert found == {
        "store": str(tmp_path / "store"),
        "modality": "text",
        "rows": 3,
        "dimension": 24,
        "dtype": "float32",
        "truncated": 1,
        "without_text": 1,
        "left_out": "",
        "skipped": [],
    }
    rows = rows_of(tmp_path / "store")
    assert list(rows) == ["1", "3", "4"]
    expected = embedded(bert, ["no acute finding", "left finding", "no " * 14])
    np.testing.assert_allclose(np.stack(list(rows.values())), expected, atol=1e-5)
    saved = json.loads((tmp_path / "store" / "settings.json").read_text())
    assert (saved["encoder"], saved["batch_size"]) == (str(bert), 32)
    # The same again does nothing, other settings are refused.
    words = ("embed", "--config", tmp_path / "store" / "settings.json")
    assert values_of(*words)["truncated"] == 1
    assert "pooling: 'mean' there, 'cls' now" in error_of(*words, "--pooling", "cls")


def test_prompts_by_name(bert, tmp_path):
    import shutil

    encoder = shutil.copytree(bert, tmp_path / "bert")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (encoder / "pooling").mkdir()
    for name, values in {
        "modules.json": modules,
        "pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {"prompts": {"query": "no ", "document": "acute "}},
    }.items():
        (encoder / name).write_text(json.dumps(values))
    (tmp_path / "texts.txt").write_text("left finding\nno finding")
    texts = ["left finding", "no finding"]
    for name, used, text in [("query", "query", "no "), ("document", "document", "acute ")]:
        store = tmp_path / name
        words = ("embed", encoder, tmp_path / "texts.txt", "--out", store, "--prompt-name", name)
        values_of(*words)
        expected = embedded(encoder, [text + one for one in texts])
        np.testing.assert_allclose(list(rows_of(store).values()), expected, atol=1e-6)
        found = sa.stores.open_store(store).description["prompt"]
        assert found == {"name": used, "text": text}
    assert "prompt: " in error_of(*words[:-1], "query")  # another store's
    message = error_of(*words[:-1], "s2p")
    assert "no prompt 's2p'; there are 'query', 'document'" in message
    loaded = encoders.load_encoder(image_encoder(tmp_path / "vit"))
    with pytest.raises(ValueError, match="prompt_name must be None for images; got 'query'"):
        encoders.embed(loaded, [pixels(1)], prompt_name="query", progress=False)


def test_text_for_people(bert, tmp_path):
    (tmp_path / "texts.txt").write_text("no acute finding\n\n" + "no " * 30)
    result = run("embed", bert, tmp_path / "texts.txt", "--out", tmp_path / "s", "--quiet")
    assert result.stdout.splitlines()[1:] == [
        "1 text was cut to what the encoder reads",
        "1 item without a text left out",
    ]
    assert result.stderr == ""


def test_images_of_folders_files_and_patterns(vit, tmp_path):
    for name in ("a/1.png", "a/b/2.PNG", "c/3.png"):
        write_image(tmp_path / "all" / name, pixels(len(name)))
    (tmp_path / "all" / "a" / "notes.md").write_text("no image")
    inputs = (tmp_path / "all" / "a", tmp_path / "all" / "c" / "3.png")
    values_of("embed", vit, *inputs, "--out", tmp_path / "path")
    rows = rows_of(tmp_path / "path")
    assert list(rows) == ["1.png", "b/2.PNG", "3.png"]
    paths = [tmp_path / "all" / "a/1.png", tmp_path / "all" / "a/b/2.PNG", inputs[1]]
    np.testing.assert_allclose(np.stack(list(rows.values())), embedded(vit, paths), atol=1e-5)
    words = ("embed", vit, tmp_path / "all" / "**" / "*.png", "--id-from", "stem")
    assert values_of(*words, "--out", tmp_path / "stem")["rows"] == 2
    assert list(rows_of(tmp_path / "stem")) == ["1", "3"]
    write_image(tmp_path / "other" / "1.png", pixels(9))
    both = ("embed", vit, tmp_path / "all" / "a", tmp_path / "other", "--out", tmp_path / "both")
    assert "are both called '1.png': embed the folder above them" in error_of(*both)
    write_image(tmp_path / "all" / "d" / "1.png", pixels(9))
    assert "are both called '1': give --id-from path" in error_of(*words, "--out", tmp_path / "two")


def test_texts_and_images_of_a_data_set(bert, vit, tmp_path):
    root = mimic_tree(tmp_path / "mimic")
    source = ("--dataset", "mimic-cxr", "--path", root, "--option", f"reports={root}")
    texts = ("--option", "section=impression", "--texts")
    found = values_of("embed", bert, *source, *texts, "--out", tmp_path / "texts")
    assert found["rows"] == len(MIMIC_IMAGES)
    rows = rows_of(tmp_path / "texts")
    assert list(rows) == [image for image, *_ in MIMIC_IMAGES]
    expected = embedded(bert, ["No acute process."])
    np.testing.assert_allclose(rows["cccc-1"], expected[0], atol=1e-5)
    saved = json.loads((tmp_path / "texts" / "settings.json").read_text())
    assert saved["dataset"]["options"] == {"reports": str(root), "section": "impression"}
    words = ("embed", vit, *source, "--images", "--split", "train")
    values_of(*words, "--view", "PA", "--out", tmp_path / "views")
    assert list(rows_of(tmp_path / "views")) == ["aaaa-1"]
    values_of(*words, "--split", "validate", "--one-per-study", "--out", tmp_path / "studies")
    assert list(rows_of(tmp_path / "studies")) == ["aaaa-1", "bbbb-1"]
    message = error_of(*words, "--view", "LL", "--out", tmp_path / "none")
    assert message == "view 'LL': MIMIC-CXR has only 'AP', 'LATERAL', 'PA'"


def test_values_of_a_column_that_was_mistaken_for_splits_are_not_printed(bert, tmp_path):
    rows = [[f"k{i}", "left", f"Doe {i}"] for i in range(21)]
    write_csv(tmp_path / "t.csv", ["key", "report", "patient"], rows)
    words = ("embed", bert, "--dataset", "table", "--path", tmp_path / "t.csv", "--texts")
    words = (*words, "--option", "id=key", "--option", "text=report", "--option", "split=patient")
    message = error_of(*words, "--split", "train", "--out", tmp_path / "store")
    assert message == "split 'train': t.csv has only 21 different ones"


def test_a_table_with_texts_and_rows_without(bert, tmp_path):
    rows = [["k1", "no finding"], ["k2", ""], ["k1", "left"]]
    write_csv(tmp_path / "t.csv", ["key", "report"], rows)
    words = ("embed", bert, "--dataset", "table", "--path", tmp_path / "t.csv", "--texts")
    words = (*words, "--option", "id=key", "--option", "text=report", "--out", tmp_path / "store")
    assert "2 problems" in error_of(*words)
    none = error_of(*words[:9], *words[-2:], "--option", "on_error=skip")  # without text=report
    assert none.startswith("t.csv: no texts to embed are left; the option reports")
    found = values_of(*words, "--skip-broken", status=1)
    assert found["rows"] == 1
    why = "2 of 3 rows and files left out: 1 with empty report, 1 with doubled id"
    assert found["left_out"] == why
    assert ["line 3" in why or "line 4" in why for why in found["skipped"]] == [True, True]


def test_texts_of_a_prompt_set(bert, tmp_path):
    values_of("embed", bert, "--prompts", "rsna_pneumonia", "--out", tmp_path / "store")
    prompt_set = sa.zeroshot.load_prompts("rsna_pneumonia")
    texts = sa.zeroshot.prompt_texts(prompt_set)
    store = sa.stores.open_store(tmp_path / "store")
    assert store.ids[0] == "Pneumonia/positive/0"
    assert store.ids[-1] == f"Pneumonia/negative/{np.sum(~texts.positive) - 1}"
    rows = store.rows(slice(None))
    np.testing.assert_allclose(rows, embedded(bert, list(texts.texts)), atol=1e-5)


@pytest.fixture
def films(tmp_path):
    """DICOM files and a PNG, of which two cannot be read."""
    folder = tmp_path / "films"
    write_dicom(folder / "1.dcm", pixels(1))
    write_dicom(folder / "2.dcm", pixels(2), photometric="MONOCHROME1")
    write_image(folder / "3.png", pixels(3))
    write_image(folder / "4.png", pixels(4))
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:200])
    header = dicom(pixels(5), PatientName="Doe^Jane", PatientID="12345")
    del header.PixelData
    header.save_as(folder / "5.dcm", enforce_file_format=True)
    return folder


def test_broken_images_end_a_run_or_are_left_out(vit, films, tmp_path):
    words = ("embed", vit, films, "--out", tmp_path / "store")
    message = error_of(*words)
    assert str(films) in message
    assert message.endswith("; --skip-broken leaves such files out")
    words = (*words, "--skip-broken")  # the folder that was begun holds nothing yet
    result = run(*words, status=1)
    assert "2 were skipped:" in result.stdout
    assert f"{films}/4.png is a broken image" in result.stdout
    assert f"{films}/5.dcm: has no Pixel Data" in result.stdout
    assert "Doe" not in result.stdout + result.stderr
    assert "12345" not in result.stdout + result.stderr
    rows = rows_of(tmp_path / "store")
    assert list(rows) == ["1.dcm", "2.dcm", "3.png"]
    shown = [read_pixels(films / "1.dcm"), 255 - pixels(2), pixels(3)]
    np.testing.assert_allclose(np.stack(list(rows.values())), embedded(vit, shown), atol=1e-5)
    assert "read_pixels" in sa.stores.open_store(tmp_path / "store").description["reader"]
    # What was checked is not read again.
    (films / "4.png").unlink()
    write_image(films / "4.png", pixels(4))
    assert values_of(*words, status=1)["rows"] == 3


def test_processes_decode_the_same(films):
    paths = sorted(films.glob("[12].dcm"))
    with _sources.pixel_reader(paths, True, 1) as reader:
        assert reader is not None
        for path in paths:
            np.testing.assert_array_equal(reader(path), read_pixels(path))
        assert reader(films / "3.png") == films / "3.png"
    with _sources.pixel_reader([films / "3.png"], None, 4) as reader:
        assert reader is None


def test_nothing_is_left(vit, films, tmp_path):
    words = ("embed", vit, films / "4.png", "--skip-broken", "--out", tmp_path / "store")
    assert error_of(*words).startswith(f"no image can be embedded; the first: {films}/4.png")


@pytest.mark.parametrize(
    ("encoder", "name", "message"),
    [
        ("vit", "a.txt", "embeds images, but these are texts"),
        ("bert", "a.png", "embeds texts, but these are images"),
        ("vit", "none.png", "there is no such file or folder, and nothing matches"),
        ("vit", "empty", "no images in this folder"),
        ("bert", "latin.txt", "is no UTF-8 text: byte 0"),
        ("bert", "blank.txt", "holds no text"),
        ("none/of/these", "a.txt", "there is no folder 'none/of/these', and that is no id"),
    ],
)
def test_wrong_inputs(encoder, name, message, tmp_path, request):
    (tmp_path / "a.txt").write_text("no finding")
    write_image(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "blank.txt").write_text("\n \n")
    folder = encoder if "/" in encoder else request.getfixturevalue(encoder)
    assert message in error_of("embed", folder, tmp_path / name, "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_of_something_else_stays_as_it_is(vit, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    write_image(tmp_path / "a.png")
    words = ("embed", vit, tmp_path / "a.png", "--skip-broken", "--out", tmp_path / "mine")
    assert "it is no folder of embeddings; choose another" in error_of(*words)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_goes_on(bert, tmp_path, monkeypatch):
    """Runs that are killed are among the tests of `encoders.embed`."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(80)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    store = tmp_path / "store"
    words = ("embed", bert, tmp_path / "texts.txt", "--out", store, "--chunk-size", 4)
    rename = os.replace

    def interrupted(source, target):
        if str(target).endswith("chunk-00004.safetensors"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert run(*words, status=130).stderr.splitlines()[-1] == "semalign: interrupted"
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("chunk-*")}
    assert 3 < len(before) < 20
    assert run("verify", store, status=1).stdout.count("chunk-") == 20 - len(before)
    assert values_of(*words)["rows"] == 80
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("chunk-*")}
    assert len(after) == 20
    assert {name: after[name] for name in before} == before
    assert sa.stores.verify_store(store) == []
    rows = sa.stores.open_store(store).rows(slice(None))
    np.testing.assert_allclose(rows, embedded(bert, texts), atol=1e-5)
