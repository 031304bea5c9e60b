"""`convert_checkpoint`: from pickles of PyTorch to safetensors."""

import json
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from semalign_jax.encoders import CheckpointError, convert_checkpoint, load_encoder

from .harness import all_cases, read_golden, write_checkpoint

pytestmark = pytest.mark.parity

SMALL_FILES = {"vocab.txt": "a", "1_Pooling/config.json": "{}", "preprocessor_config.json": "{}"}
LEFT = {"README.md": "read", "own_code.py": "raise SystemExit", "training_args.bin": "left"}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the extra parity")


@pytest.fixture
def bert(tmp_path):
    """A folder with files besides the weights; returns it with its tensors and parameters."""
    folder = tmp_path / "bert"
    config, shapes, *_ = read_golden("bert")
    write_checkpoint(folder, config, shapes, all_cases()["bert"])
    params = load_encoder(folder).params
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "1_Pooling").mkdir()
    for name, text in {**SMALL_FILES, **LEFT}.items():
        (folder / name).write_text(text)
    return folder, tensors, params


def equal(folder, params):
    found = load_encoder(folder).params
    return jax.tree.all(jax.tree.map(np.array_equal, found, params))


@pytest.mark.parametrize("archive", [True, False])
def test_in_place_and_elsewhere(torch, bert, tmp_path, archive):
    folder, tensors, params = bert
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=archive)
    out = convert_checkpoint(folder, tmp_path / "a" / "out")
    assert equal(out, params)
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {"config.json", "model.safetensors", *SMALL_FILES}
    assert not (folder / "model.safetensors").exists()
    assert convert_checkpoint(str(folder)) == folder
    assert equal(folder, params)
    first = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="model.safetensors exists already"):
        convert_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    convert_checkpoint(folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == first


def test_tensors_that_share_memory_or_are_views(torch, bert):
    folder, tensors, params = bert
    found = {name: torch.from_numpy(value) for name, value in tensors.items()}
    table = "embeddings.word_embeddings.weight"
    assert table in found
    found["cls.predictions.decoder.weight"] = found[table]
    name = "encoder.layer.0.output.dense.weight"
    found[name] = found[name].T.contiguous().T
    torch.save(found, folder / "pytorch_model.bin")
    convert_checkpoint(folder)
    written = safetensors.numpy.load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(written["cls.predictions.decoder.weight"], tensors[table])
    np.testing.assert_array_equal(written[name], tensors[name])
    assert equal(folder, params)


def test_shards(torch, bert):
    folder, tensors, params = bert
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({n: torch.from_numpy(tensors[n]) for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    convert_checkpoint(folder)
    assert equal(folder, params)
    assert sorted(p.name for p in folder.glob("model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"index\.json names files that are not there: .*0002"
    ):
        convert_checkpoint(folder, overwrite=True)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json is not an index"):
        convert_checkpoint(folder, overwrite=True)


def test_open_clip_training_checkpoint(torch, tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    state = {"module.logit_scale": torch.ones(())}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "open_clip_pytorch_model.bin")
    convert_checkpoint(tmp_path)
    found = safetensors.numpy.load_file(tmp_path / "open_clip_model.safetensors")
    assert found == {"logit_scale": 1}


class Evil:
    def __reduce__(self):
        return (sys.exit, ("code was run",))


def test_what_is_no_file_of_tensors(torch, bert):
    folder, *_ = bert
    path = folder / "pytorch_model.bin"
    sparse = torch.ones(2, 2).to_sparse()
    for content, message in [
        ({"a": torch.ones(1), "b": 3}, "holds 'b', which is no tensor"),
        ([torch.ones(1)], "holds a list, not tensors by name"),
        ({}, "holds a dict, not tensors by name"),
        ({"a": sparse}, "cannot be converted"),
        ({"a": Evil()}, "is broken or holds more than tensors.*run code"),
    ]:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin {message}"):
            convert_checkpoint(folder)
    for content in (pickle.dumps(Evil()), b"", path.read_bytes()[:-50]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is broken or holds more"):
            convert_checkpoint(folder)
    assert not list(folder.glob("*.safetensors*"))
    assert not list(folder.glob(".*"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="bert has no pickled checkpoint"):
        convert_checkpoint(folder)


def test_a_repository_needs_a_folder_to_write_to(torch):
    with pytest.raises(ValueError, match=r"folder to write to \(out\): owner/bert is not a folder"):
        convert_checkpoint("owner/bert")


def test_without_pytorch(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (bert[0] / "pytorch_model.bin").touch()
    with pytest.raises(ModuleNotFoundError, match="PyTorch is needed .*: pip install torch"):
        convert_checkpoint(bert[0])
