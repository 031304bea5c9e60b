"""`embed` and its folders. Preprocessing is faked here: texts are token ids, images are arrays."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, GemmaTokenizer, Siglip2Tokenizer

from semalign_jax import AffineMap, save_map
from semalign_jax._core import progress
from semalign_jax.encoders import _embed, embed, encode, load_encoder, read_embeddings
from semalign_jax.encoders._items import modality_of
from semalign_jax.stores import open_store, verify_store

from .fakes import TEXTS, FakeImage, FakeText, fake_preprocessors, one_device, texts
from .harness import all_cases, read_golden, write_checkpoint


@pytest.fixture(autouse=True)
def faked(monkeypatch):
    fake_preprocessors(monkeypatch)


def load(name, folder):
    config, shapes, *_ = read_golden(name)
    write_checkpoint(folder, config, shapes, all_cases()[name])
    return load_encoder(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return load("vit", tmp_path_factory.mktemp("vit"))


def images(count=11):
    return list(np.random.default_rng(1).standard_normal((count, 3, 32, 32)).astype(np.float32))


def one_by_one(encoder, items):
    prepare = FakeText()
    found = []
    for item in items:
        if isinstance(item, str):
            rows = prepare.tokenize([item]).rows
            batch = prepare.pad(rows, prepare.max_tokens)
        else:
            batch = {"pixel_values": item[None]}
        found.append(np.asarray(encode(encoder.config, encoder.params, batch))[0])
    return np.stack(found)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_rows_are_those_of_single_items_in_order(kind, request):
    encoder = request.getfixturevalue(kind)
    items = texts() if kind == "bert" else images()
    expected = one_by_one(encoder, items)
    for options in (one_device(), one_device(batch_size=5, chunk_size=100, workers=1)):
        found = embed(encoder, items, **options)
        assert found.ids == [str(i) for i in range(len(items))]
        assert found.embeddings.dtype == np.float32
        np.testing.assert_allclose(found.embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_batch_spread_over_devices_is_that_of_one(kind, request):
    encoder = request.getfixturevalue(kind)
    items = texts() if kind == "bert" else images()
    assert len(jax.devices()) == 8
    spread = embed(encoder, items, batch_size=9)  # rounded up to 16
    np.testing.assert_allclose(
        spread.embeddings, embed(encoder, items, **one_device()).embeddings, atol=1e-5
    )


def programs():
    return encode._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def test_compiled_once_per_padded_length(bert, vit):
    before = programs()
    items = texts(60)
    options = one_device(batch_size=3)  # a shape of no other test
    embed(bert, items, **options)
    assert programs() == before + len(FakeText.buckets)
    embed(vit, images(), **options)
    assert programs() == before + len(FakeText.buckets) + 1
    embed(bert, items[:7], **options)
    assert programs() == before + len(FakeText.buckets) + 1


def test_batches_are_dispatched_before_the_last_is_fetched(vit, monkeypatch):
    events, loaded, early = [], [], []

    def load(self, image):
        loaded.append(image)
        return {"pixel_values": image}

    class Result:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.zeros((4, 24), np.float32)

    def dispatch(config, params, batch):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        early.append(len(loaded) - 4 * number)
        return Result(number)

    monkeypatch.setattr(_embed, "embedding_dimension", lambda encoder, modality: 24)
    monkeypatch.setattr(_embed, "encode", dispatch)
    embed(vit, images(), **one_device())  # batches of 4, 4, 2 and, in the second chunk, 1
    assert events == [
        *("dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "dispatch 3", "fetch 2"),
        "fetch 3",
    ]
    monkeypatch.setattr(FakeImage, "inputs", load)
    embed(vit, images(2) * 100, devices=jax.devices()[:1], batch_size=4, workers=2)
    assert len(loaded) == 200
    assert max(early) <= 4 * 4  # this batch and three more


def test_modality_is_that_of_the_items():
    def found(allowed, items, modality=None):
        return modality_of(allowed, items, modality)

    both, array, path = ("image", "text"), np.zeros((2, 2)), Path("a.png")
    assert found(both, ["a", "b"]) == "text"
    assert found(both, [path, b"png", array]) == "image"
    assert found(both, ["a.png", path], "image") == "image"
    assert found(("image",), ["a.png", array]) == "image"
    with pytest.raises(ValueError, match=r"items\[0\] is text, items\[1\] is image"):
        found(both, ["a", array])
    with pytest.raises(TypeError, match=r"items\[1\] must be a text \(str\); got ndarray"):
        found(("text",), ["a", array])
    with pytest.raises(TypeError, match=r"items\[0\] must be an image or a text .* got float"):
        found(both, [1.0])
    with pytest.raises(ValueError, match="modality must be one of 'text'"):
        found(("text",), ["a"], "image")


def test_ids_default_to_paths(vit, tmp_path):
    paths = []
    for i, image in enumerate(images(3)):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], image)
    items = [paths[0], str(paths[1]), images(3)[2]]
    found = embed(vit, items, **one_device())
    assert found.ids == [str(paths[0]), str(paths[1]), "2"]
    np.testing.assert_allclose(found.embeddings, one_by_one(vit, images(3)), atol=1e-5)
    assert embed(vit, items, ids=["a", 7, "3.0"], **one_device()).ids == ["a", "7", "3"]


@pytest.mark.parametrize(
    ("items", "options", "error", "message"),
    [
        ("4 5", {}, TypeError, "items must be a sequence"),
        ([], {}, ValueError, "items is empty"),
        (["4"], {"ids": ["a", "b"]}, ValueError, "ids must have one entry per item, 1; got 2"),
        (["4"], {"ids": [1.5]}, TypeError, r"ids\[0\] must be str or int"),
        (["4"], {"dtype": "float64"}, ValueError, "dtype must be one of"),
        (["4"], {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (["4"], {"devices": []}, ValueError, "devices is empty"),
        (["4", "x", "5"], {}, ValueError, r"items\[1\] cannot be embedded: invalid literal"),
        (["4", "4"], {"ids": "aa", "out": "out"}, ValueError, "items 0 and 1 have the same id 'a'"),
        (["4", "4"], {"ids": ["7.0", 7], "out": "out"}, ValueError, "have the same id '7'"),
    ],
)
def test_refusals(bert, items, options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        embed(bert, items, **options)


def test_a_broken_image_is_named(vit):
    items = images()
    items[7] = items[7][:, :5]
    ids = [f"scan {i}" for i in range(len(items))]
    with pytest.raises(ValueError, match=r"items\[7\] \(scan 7\) cannot be embedded: has shape"):
        embed(vit, items, ids=ids, **one_device())
    items[7] = np.full((3, 32, 32), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"items\[7\] cannot .* NaN or infinity in float32"):
        embed(vit, items, **one_device())


def test_cut_texts_are_counted_also_when_resumed(bert, tmp_path):
    items = [*texts(), " ".join(["5"] * 17), " ".join(["6"] * 30)]
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 25 texts are longer than the encoder reads"):
            found = embed(bert, items, out=tmp_path, **one_device())
        assert found.truncated == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_is_read_back(dtype, bert, tmp_path):
    ids = [f"text-\udcff{i}" for i in range(TEXTS)]  # as a name of a file may be
    found = embed(bert, texts(), ids=ids, out=tmp_path / "new" / "store", dtype=dtype)
    assert found.embeddings.dtype == jnp.dtype(dtype)
    stored_ids, stored = read_embeddings(tmp_path / "new" / "store")
    assert stored_ids == ids
    assert stored.dtype == jnp.dtype(dtype)
    assert stored.tobytes() == found.embeddings.tobytes()
    plain = embed(bert, texts()).embeddings
    np.testing.assert_array_equal(plain.astype(dtype), found.embeddings)


def test_with_the_preprocessors_of_a_folder(bert, vit, monkeypatch):
    monkeypatch.undo()  # the fakes
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (bert.folder / "vocab.txt").write_text("\n".join(words))
    (bert.folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    items = ["a b c", "f", "", "d e a b c d e f g h i j k", "c " * 40]
    with pytest.warns(UserWarning, match="1 of 5 texts"):
        found = embed(bert, items, **one_device()).embeddings
    # [CLS] a b c [SEP], without padding
    batch = {"input_ids": np.array([[2, 5, 6, 7, 3]]), "attention_mask": np.ones((1, 5), np.int32)}
    alone = np.asarray(encode(bert.config, bert.params, batch))
    np.testing.assert_allclose(found[:1], alone, atol=1e-5)

    (vit.folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}'
    )
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = Image.fromarray(array)
    path = vit.folder / "a.png"
    picture.save(path)
    items = [path, str(path), path.read_bytes(), picture, array]
    found = embed(vit, items, **one_device(ids="abcde", out=vit.folder / "store")).embeddings
    assert (found == found[0]).all()
    for broken, message in (
        (vit.folder / "b.png", r"items\[1\] \(.*b\.png\) cannot be embedded: .*No such file"),
        (path.read_bytes()[:300], r"items\[1\] cannot be embedded: image is a broken image"),
        (array.astype(np.float32), r"items\[1\] cannot be embedded: .*uint8 or uint16"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(vit, [array, broken], **one_device())


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    return load("siglip2", tmp_path_factory.mktemp("siglip2"))


def naflex(folder, **options):
    values = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 20, **options}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def test_images_of_any_size_come_as_patches(siglip2, monkeypatch):
    monkeypatch.undo()  # the fakes
    naflex(siglip2.folder, patch_size=8)
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (90, 20), (8, 8), (200, 3), (33, 34)]
    items = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    found = embed(siglip2, items, **one_device()).embeddings
    processor = AutoImageProcessor.from_pretrained(siglip2.folder, backend="pil")
    for item, row in zip(items, found, strict=True):
        batch = dict(processor(images=Image.fromarray(item), return_tensors="np"))
        assert batch["pixel_values"].shape == (1, 20, 192)
        whole = encode(siglip2.config, siglip2.params, batch)
        np.testing.assert_allclose(row, whole[0], atol=1e-5)
        # Padding is not seen.
        count = batch["pixel_attention_mask"].sum()
        short = {name: value[:, :count] for name, value in batch.items() if value.shape[1] > 2}
        short["spatial_shapes"] = batch["spatial_shapes"]
        alone = encode(siglip2.config, siglip2.params, short)
        np.testing.assert_allclose(row, alone[0], atol=1e-5)
    naflex(siglip2.folder, patch_size=4)
    with pytest.raises(ValueError, match="patches of 192 values: its patch_size is not that of"):
        embed(siglip2, items, **one_device())


@pytest.mark.parametrize("kind", [GemmaTokenizer, Siglip2Tokenizer])
def test_siglip2_reads_texts_with_the_tokenizer_of_gemma(kind, siglip2, monkeypatch):
    monkeypatch.undo()  # the fakes
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"act", "▁a", "at", "cat", "▁cat"]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [("▁", "a"), ("a", "t"), ("c", "at"), ("▁", "cat")]
    kind(vocab=vocabulary, merges=merges, padding_side="right").save_pretrained(siglip2.folder)
    found = embed(siglip2, ["a cat", "a"], **one_device()).embeddings
    ids = np.zeros((2, 12), np.int32)
    ids[0, :2], ids[1, 0] = [6, 12], 6
    # The padding is read, as the models were trained.
    whole = encode(siglip2.config, siglip2.params, {"input_ids": ids})
    np.testing.assert_allclose(found, whole, atol=1e-5)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def store(bert, tmp_path):
    """Three chunks, of 10, 10 and 3 texts."""
    embed(bert, texts(), out=tmp_path / "store", **one_device())
    return tmp_path / "store"


def test_only_what_is_missing_or_damaged_is_made_again(bert, store, monkeypatch):
    before = contents(store)
    calls = []

    def counted(*args):
        calls.append(args)
        return encode(*args)

    monkeypatch.setattr(_embed, "embedding_dimension", lambda encoder, modality: 24)
    monkeypatch.setattr(_embed, "encode", counted)
    embed(bert, texts(), out=store, **one_device())
    assert len(calls) == 0
    (store / "chunk-00001.safetensors").unlink()
    (store / "ids.json").unlink()
    (store / ".chunk-00002.safetensors.abc").write_bytes(b"left by a killed run")
    embed(bert, texts(), out=store, **one_device())
    assert len(calls) == 3
    assert contents(store) == before
    (store / "chunk-00002.safetensors").write_bytes(before["chunk-00002.safetensors"][:-1])
    with pytest.warns(UserWarning, match="chunk-00002.safetensors is damaged .* made again"):
        embed(bert, texts(), out=store, **one_device())
    assert contents(store) == before


def test_what_was_done_of_a_chunk_is_kept(bert, store, tmp_path, monkeypatch):
    calls = []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(_embed, "embedding_dimension", lambda encoder, modality: 24)
    monkeypatch.setattr(_embed, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(_embed, "encode", stopped)
    with pytest.raises(KeyboardInterrupt) as end:
        embed(bert, texts(), out=tmp_path / "again", **one_device(chunk_size=23))
    [note] = end.value.__notes__
    kept = int(note.split()[0])
    assert 0 < kept < TEXTS
    assert note == (
        f"{kept} of 23 items are kept in {tmp_path / 'again'}; the same call again goes on"
    )

    def counted(*args):
        calls.append(args)
        return encode(*args)

    monkeypatch.setattr(_embed, "encode", counted)
    embed(bert, texts(), out=tmp_path / "whole", **one_device(chunk_size=23))
    calls.clear()
    embed(bert, texts(), out=tmp_path / "again", **one_device(chunk_size=23))
    rows = sum(args[2]["input_ids"].shape[0] for args in calls)
    assert TEXTS - kept <= rows < TEXTS
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")  # the hidden one is gone


def test_another_run_is_not_continued(bert, vit, store, monkeypatch):
    before = contents(store)

    def differing(encoder, items, **options):
        with pytest.raises(ValueError, match="embeddings of another run") as caught:
            embed(encoder, items, **one_device(out=store, **options))
        return {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}

    items = texts()
    assert differing(bert, [*items[:-1], "5 5"]) == {"contents"}
    assert differing(bert, items, ids=range(1, TEXTS + 1)) == {"ids"}
    assert differing(bert, items, dtype="float16", batch_size=8) == {"dtype", "batch_size"}
    assert differing(bert, items[:-1]) == {"contents", "ids", "items"}
    other = replace(bert, config=replace(bert.config, pooling="cls", normalize=True))
    assert differing(other, items) == {"pooling", "normalize"}
    half = load_encoder(bert.folder, dtype="bfloat16")
    assert differing(half, items) == {"params", "computed_in"}
    trained = replace(bert, params=jax.tree.map(lambda p: p * 2, bert.params))
    assert differing(trained, items) == {"params"}
    monkeypatch.setattr(FakeText, "fingerprint", "other")
    assert differing(bert, items) == {"preprocessing"}
    found = differing(vit, images(TEXTS))
    assert {"model_type", "modality", "files", "params", "preprocessing", "contents"} <= found
    assert contents(store) == before


def test_folders_in_use_are_refused(bert, store, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty and resume is False"):
        embed(bert, texts(), out=store, resume=False, **one_device())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(FileExistsError, match=r"holds a\.png and no manifest\.json"):
        embed(bert, texts(), out=tmp_path / "photos", **one_device())
    assert os.listdir(tmp_path / "photos") == ["a.png"]
    with (
        filelock.FileLock(store / ".lock"),
        pytest.raises(RuntimeError, match="another process writes embeddings"),
    ):
        embed(bert, texts(), out=store, **one_device())


def test_a_folder_is_a_store(bert, store):
    opened = open_store(store)
    expected = embed(bert, texts(), **one_device())
    assert list(opened.ids) == expected.ids
    np.testing.assert_array_equal(opened.rows(slice(None)), expected.embeddings)
    assert {"model_type", "params", "pooling", "preprocessing"} <= opened.description.keys()
    assert verify_store(store) == []
    (store / "chunk-00001.safetensors").unlink()
    assert [problem.file for problem in verify_store(store)] == ["chunk-00001.safetensors"]


def test_every_flipped_bit_is_found(store):
    path = store / "chunk-00002.safetensors"
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    spaces = len(whole[8 : 8 + header]) - len(whole[8 : 8 + header].rstrip())
    rng = np.random.default_rng(0)
    for place in (*range(8 + header - spaces), *rng.integers(8 + header, len(whole), 20)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="chunk-00002"):
            read_embeddings(store)


def test_missing_and_foreign_files_are_named(bert, store, tmp_path):
    other = tmp_path / "other"
    embed(bert, texts(seed=1), out=other, **one_device())

    def refused(damage, error, message):
        copy = tmp_path / "copy"
        shutil.copytree(store, copy)
        damage(copy)
        with pytest.raises(error, match=message):
            read_embeddings(copy)
        shutil.rmtree(copy)

    first, second = "chunk-00000.safetensors", "chunk-00001.safetensors"
    refused(lambda c: (c / second).unlink(), FileNotFoundError, f"{second} is missing")
    refused(lambda c: shutil.copy(other / second, c), ValueError, f"{second} is chunk 1 of run")
    refused(lambda c: shutil.copy(c / first, c / second), ValueError, f"{second} is chunk 0 of run")
    refused(
        lambda c: shutil.copy(c / first, c / "chunk-00003.safetensors"),
        ValueError,
        "chunk-00003.safetensors is no chunk of this run, which has 3",
    )
    refused(lambda c: (c / second).write_bytes(b""), ValueError, f"{second} is damaged")
    refused(lambda c: save_map(identity(), c / second), ValueError, f"{second} is damaged")
    refused(lambda c: (c / "ids.json").unlink(), FileNotFoundError, "ids.json is missing")
    refused(lambda c: (c / "ids.json").write_text("[]"), ValueError, "ids.json is damaged")
    refused(lambda c: (c / "manifest.json").unlink(), FileNotFoundError, "has no manifest.json")
    refused(lambda c: (c / "manifest.json").write_text("{"), ValueError, "manifest.json is damaged")

    def newer(copy):
        path = copy / "manifest.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 3'))

    def unknown_dtype(copy):
        path = copy / "manifest.json"
        path.write_text(path.read_text().replace("float32", "float31"))

    refused(newer, ValueError, "version 3; this release reads")
    refused(unknown_dtype, ValueError, "manifest.json is damaged: see dtype")


def identity():
    return AffineMap(jnp.eye(2), jnp.zeros(2), jnp.zeros(2))


SCRIPT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from encoders.fakes import run_slowly
run_slowly(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


@pytest.mark.slow
def test_killed_runs_leave_the_same_files(bert, tmp_path):
    items, out = texts(50, longest=4), tmp_path / "killed"
    embed(bert, items, **one_device(out=tmp_path / "whole", chunk_size=4))
    tests = Path(__file__).parent.parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])

    def start(stop_at):
        command = [sys.executable, "-c", SCRIPT, str(bert.folder), str(out), str(stop_at)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})

    assert start(1).wait(timeout=120) == -signal.SIGKILL
    assert [name.startswith(".manifest.json.") for name in contents(out)] == [True]
    assert start(4).wait(timeout=120) == -signal.SIGKILL  # manifest, ids and a chunk, then this
    assert sum(name.startswith(".chunk-00001") for name in contents(out)) == 1
    process, until = start(0), time.monotonic() + 120
    while not (out / "chunk-00003.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = set(contents(out))
    assert "chunk-00012.safetensors" not in left
    with pytest.raises(FileNotFoundError, match="is missing: the run was not finished"):
        read_embeddings(out)
    embed(bert, items, **one_device(out=out, chunk_size=4))
    assert contents(out) == contents(tmp_path / "whole")


def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    for bar in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda bar=bar: bar)
        monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
        with progress.Progress("embed", 10, 4) as shown:
            shown.advance(3)
        line = capsys.readouterr().err
        assert "7/10" in line if bar else line.startswith("embed: 7 of 10 items, ")
    with progress.Progress("embed", 10, 4, show=False) as shown:
        shown.advance(6)
    assert capsys.readouterr().err == ""


def test_batches_of_long_texts_are_smaller():
    sizes = [_embed.rows_of_length(32, length) for length in (16, 64, 96, 128, 512, 8192)]
    assert sizes == [32, 32, 22, 16, 4, 1]
    assert _embed.rows_of_length(32, 512, devices=8) == 8
