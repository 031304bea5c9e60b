import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from semalign_jax.encoders import CheckpointError, encode, load_encoder
from semalign_jax.encoders._hub import resolve_checkpoint

from .harness import all_cases, read_golden, write_checkpoint
from .hub_server import hub as hub

MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Files of a small BERT with much that is not needed."""
    folder = tmp_path_factory.mktemp("bert")
    config, shapes, _, _ = read_golden("bert")
    write_checkpoint(folder, config, shapes, all_cases()["bert"])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    needed = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentence_bert_config.json")
    files |= {name: json.dumps({name: {}}).encode() for name in needed}
    files["modules.json"] = json.dumps(MODULES).encode()
    files["1_Pooling/config.json"] = b'{"pooling_mode_cls_token": true}'
    unneeded = (
        "README.md",
        ".gitattributes",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.fp16.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "onnx/model.onnx",
        "onnx/config.json",
        "onnx/tokenizer.json",
        "openvino/openvino_model.bin",
        "training_args.bin",
        "own_code.py",
    )
    return files | dict.fromkeys(unneeded, b"not needed")


NEEDED = [
    "1_Pooling/config.json",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
]


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_only_what_is_used_is_downloaded(hub, model):
    commit = hub.add("owner/bert", model)
    folder = resolve_checkpoint("owner/bert")
    assert folder.name == commit
    assert names(folder) == hub.downloads() == NEEDED
    _, _, batch, _ = read_golden("bert")
    encoder = load_encoder("owner/bert")
    assert encoder.config.pooling == "cls"
    assert np.isfinite(encode(encoder.config, encoder.params, batch)).all()


def test_shards(hub, model):
    shards = {f"model-0000{i}-of-00002.safetensors": b"shard" for i in (1, 2)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": {}}).encode()}
    hub.add("owner/shards", {"config.json": model["config.json"], **shards, **index})
    assert names(resolve_checkpoint("owner/shards")) == sorted(["config.json", *shards, *index])


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], 0),
        (["open_clip_pytorch_model.safetensors", "model.safetensors"], 0),
        (["model.safetensors", "open_clip_model.safetensors", "config.json"], 0),
    ],
)
def test_open_clip(hub, files, wanted):
    hub.add("owner/clip", dict.fromkeys(["open_clip_config.json", "vocab.txt", *files], b"{}"))
    found = names(resolve_checkpoint("owner/clip"))
    assert [name for name in found if name.endswith(".safetensors")] == [files[wanted]]


def test_pinned_revision(hub, model):
    first = hub.add("owner/bert", model)
    second = hub.add("owner/bert", model | {"vocab.txt": b"changed"})
    hub.add("owner/bert", model | {"vocab.txt": b"other"}, branch="other")
    assert resolve_checkpoint("owner/bert").name == second
    folder = resolve_checkpoint("owner/bert", first)
    assert folder.name == first
    assert (folder / "vocab.txt").read_bytes() == model["vocab.txt"]
    assert (resolve_checkpoint("owner/bert", "other") / "vocab.txt").read_bytes() == b"other"
    with pytest.raises(
        ValueError, match=r"revision 'v9' is no branch, tag or commit of owner/bert"
    ):
        resolve_checkpoint("owner/bert", "v9")


def test_cache_is_used_without_a_connection(hub, model, monkeypatch):
    commit = hub.add("owner/bert", model)
    folder = resolve_checkpoint("owner/bert")
    resolve_checkpoint("owner/bert", commit)
    hub.log.clear()
    assert resolve_checkpoint("owner/bert") == folder
    assert hub.downloads() == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    hub.log.clear()
    assert resolve_checkpoint("owner/bert") == folder
    assert resolve_checkpoint("owner/bert", commit) == folder
    with pytest.raises(FileNotFoundError, match=r"owner/other is not .* in the cache.*reached: "):
        resolve_checkpoint("owner/other")
    with pytest.raises(FileNotFoundError, match="owner/bert at v2 is not"):
        resolve_checkpoint("owner/bert", "v2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_checkpoint("owner/bert") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"owner/bert has no model\.safetensors"):
        resolve_checkpoint("owner/bert")
    assert hub.log == []


def test_unfinished_cache_is_not_used_offline(hub, model, monkeypatch):
    hub.add("owner/bert", model)
    folder = resolve_checkpoint("owner/bert")
    (folder / "vocab.txt").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not wholly"):
        resolve_checkpoint("owner/bert")


def test_settings_of_the_environment(hub, model, tmp_path):
    hub.add("owner/bert", model)
    script = (
        "from semalign_jax.encoders._hub import resolve_checkpoint\n"
        "print(resolve_checkpoint('owner/bert'))\n"
    )
    settings = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | settings,
        check=True,
        capture_output=True,
        text=True,
    )
    folder = Path(run.stdout.strip().splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "home")
    assert names(folder) == NEEDED


def test_broken_connection_is_resumed(hub, model):
    hub.add("owner/bert", model)
    hub.dropped["model.safetensors"] = 1
    folder = resolve_checkpoint("owner/bert")
    assert (folder / "model.safetensors").read_bytes() == model["model.safetensors"]
    asked = [line for line in hub.log if line.startswith("GET") and "model.safe" in line]
    assert len(asked) == 2


def test_half_a_file_is_never_taken(hub, model, monkeypatch):
    hub.add("owner/bert", model)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.dropped["model.safetensors"] = 10**6
    with pytest.raises(ConnectionError, match="owner/bert could not be downloaded"):
        resolve_checkpoint("owner/bert")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached"):
        resolve_checkpoint("owner/bert")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.dropped.clear()
    folder = resolve_checkpoint("owner/bert")
    assert (folder / "model.safetensors").read_bytes() == model["model.safetensors"]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
@pytest.mark.parametrize(("damage", "what"), [(flipped, "hash"), (lambda c: c[:-1], "bytes")])
def test_damaged_files_are_named_and_fetched_again(hub, model, name, damage, what):
    hub.add("owner/bert", model)
    hub.sent[name] = damage(model[name])
    with pytest.raises((CheckpointError, ConnectionError), match=f"{name}|bert could not") as info:
        resolve_checkpoint("owner/bert")
    assert name in str(info.value)
    assert what in str(info.value) or "size" in str(info.value)
    hub.sent.clear()
    folder = resolve_checkpoint("owner/bert")
    assert (folder / name).read_bytes() == model[name]


def test_file_cut_on_the_hub_itself(hub, model):
    hub.add("owner/bert", model | {"model.safetensors": model["model.safetensors"][:-100]})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors"):
        load_encoder("owner/bert")


def test_file_cut_in_the_cache(hub, model):
    hub.add("owner/bert", model)
    path = resolve_checkpoint("owner/bert") / "model.safetensors"
    path.resolve().write_bytes(model["model.safetensors"][:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has been damaged"):
        resolve_checkpoint("owner/bert")
    assert resolve_checkpoint("owner/bert")
    assert path.read_bytes() == model["model.safetensors"]


def test_pickled_checkpoints_say_how_to_convert(hub, model):
    hub.add("owner/old", {"config.json": b"{}", "pytorch_model.bin": b"", "README.md": b""})
    hub.add("owner/clip", {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b""})
    for name, file in [
        ("owner/old", "pytorch_model.bin but no model.safetensors"),
        ("owner/clip", "open_clip_pytorch_model.bin but no open_clip_model.safetensors"),
    ]:
        how = f"never opened.*`semalign convert-checkpoint {name} --out FOLDER`"
        with pytest.raises(FileNotFoundError, match=f"{name} has {file}.*{how}"):
            load_encoder(name)
    assert hub.downloads() == []


def test_pickled_weights_are_downloaded_where_they_are_meant(hub, model, monkeypatch):
    small = {"config.json": b"{}", "vocab.txt": b"a", "training_args.bin": b"", "a/b.bin": b""}
    shards = {f"pytorch_model-0000{i}-of-00002.bin": b"shard" for i in (1, 2)}
    index = {"pytorch_model.bin.index.json": b"{}"}
    hub.add("owner/one", {**small, "pytorch_model.bin": b"pickle", "model.safetensors": b""})
    hub.add("owner/many", {**small, **shards, **index})
    kept = ["config.json", "vocab.txt"]
    for _ in range(2):  # from the hub, and from the cache
        one, many = (resolve_checkpoint(f"owner/{name}", pickled=True) for name in ("one", "many"))
        assert names(one) == sorted([*kept, "pytorch_model.bin"])
        assert names(many) == sorted([*kept, *shards, *index])
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


def test_repositories_that_cannot_be_used(hub, tmp_path):
    hub.add("owner/empty", {"README.md": b""})
    hub.add("owner/bare", {"config.json": b"{}"})
    hub.gated.add("owner/gated")
    hub.commits["owner/gated"] = {}
    with pytest.raises(FileNotFoundError, match="no config.json and no open_clip_config.json"):
        resolve_checkpoint("owner/empty")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="there is one in its folder model"):
        load_encoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="owner/bare has no model.safetensors"):
        resolve_checkpoint("owner/bare")
    with pytest.raises(PermissionError, match=r"owner/gated is gated: accept .*/owner/gated"):
        resolve_checkpoint("owner/gated")
    for name in ("owner/unknown", "no-such-model", "owner/a..b"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}' here, and no repository"):
            resolve_checkpoint(name)


def test_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="revision must be None for a folder; got 'main'"):
        resolve_checkpoint(tmp_path, "main")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        resolve_checkpoint(tmp_path / "file")
    for name in (tmp_path / "none", Path("owner/name"), "./name", "a/b/c", "../a", "~/model", ""):
        with pytest.raises(FileNotFoundError, match="no folder .* no id of a repository"):
            resolve_checkpoint(name)
