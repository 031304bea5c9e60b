"""`semalign info`, `verify` and `convert`."""

import json
import os
import socket
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from cli_cases import error_of, image_encoder, pair_of_stores, run, text_encoder, values_of

import semalign_jax as sa


@pytest.fixture
def store(tmp_path):
    return pair_of_stores(tmp_path)[0]


def test_info_of_a_store(store):
    found = values_of("info", store)
    assert found["kind"] == "store"
    assert (found["rows"], found["dimension"], found["dtype"]) == (65, 6, "float32")
    assert found["description"] == {"made": "a"}
    (store / "chunk-00000.safetensors").unlink()
    text = run("info", store).stdout
    assert "chunks_missing: 1" in text
    assert "made: a" in text


def test_info_of_an_encoder(tmp_path):
    found = values_of("info", text_encoder(tmp_path / "bert"))
    assert found["kind"] == "encoder"
    assert (found["model_type"], found["modalities"]) == ("bert", ["text"])
    tensors = sa.encoders.load_encoder(tmp_path / "bert").params
    assert found["parameters"] >= sum(leaf.size for leaf in _leaves(tensors))
    image_encoder(tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"model_type": "new"}))
    assert values_of("info", tmp_path / "vit")["supported"] is False


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_info_of_prompts(tmp_path):
    found = values_of("info", "rsna_pneumonia")
    assert (found["kind"], found["task"], found["classes"]) == (
        "prompt set",
        "multi-label",
        ["Pneumonia"],
    )
    assert found["texts"] == len(
        sa.zeroshot.prompt_texts(sa.zeroshot.load_prompts("rsna_pneumonia")).texts
    )
    (tmp_path / "mine.json").write_text('{"name": "mine"}')
    assert "mine.json: the key 'task' is missing" in error_of("info", tmp_path / "mine.json")


def test_info_of_what_are_no_results(tmp_path):
    """Those of a sweep and of a study are looked at where these are run."""
    (tmp_path / "results.json").write_text("[]")
    assert "results.json must hold a JSON object" in error_of("info", tmp_path)


def test_info_of_rows_of_other_tools(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float16))
    found = values_of("info", tmp_path / "x.npy")
    assert (found["kind"], found["rows"], found["dimension"]) == ("rows", 3, 4)
    assert (found["dtype"], found["ids"]) == (
        "float16",
        "by position, as there is no x.ids.json",
    )
    (tmp_path / "x.ids.json").write_text('["a", "b", "c"]')
    assert values_of("info", tmp_path / "x.npy")["ids"] == "x.ids.json"


def test_info_refuses(tmp_path):
    assert "neither a store" in error_of("info", tmp_path)
    (tmp_path / "a.pt").write_bytes(b"")
    assert "files of .pt are not known here" in error_of("info", tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    assert "is damaged or no whole safetensors file" in error_of("info", tmp_path / "a.safetensors")


def test_verify_and_convert_say_what_a_file_is(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    assert "x.npy: is a file, no store" in error_of("verify", tmp_path / "x.npy")
    message = error_of("convert", tmp_path / "x.npy", tmp_path / "x.csv")
    assert "files of .csv are not known here" in message


def test_verify(store):
    assert run("verify", store).stdout == f"{store}: 65 rows, all whole\n"
    path = store / "chunk-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    result = run("verify", store, status=1)
    assert result.stdout.splitlines()[0] == f"{store}: 1 problem"
    assert "contents do not have their sha256" in result.stdout


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".h5"])
def test_convert_there_and_back(suffix, store, tmp_path):
    file = tmp_path / f"rows{suffix}"
    found = values_of("convert", store, file)
    assert (found["rows"], found["dimension"]) == (65, 6)
    values_of("convert", file, tmp_path / "back", "--describe", "encoder=vit")
    before, after = sa.stores.open_store(store), sa.stores.open_store(tmp_path / "back")
    assert after.ids == before.ids
    assert after.description == {"file": file.name, "encoder": "vit"}
    np.testing.assert_array_equal(after.rows(slice(None)), before.rows(slice(None)))


def test_convert_files_by_other_names(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", features=rows, names=np.array(list("abcd")))
    words = ("convert", tmp_path / "a.npz", tmp_path / "b.parquet")
    assert "has no 'embeddings'" in error_of(*words)
    values_of(*words, "--embeddings", "features", "--ids", "names")
    values_of("convert", tmp_path / "b.parquet", tmp_path / "c")
    np.testing.assert_array_equal(sa.stores.open_store(tmp_path / "c").rows(slice(None)), rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.parquet", "c"]


def test_convert_refuses(store, tmp_path):
    assert "a store becomes a file of .npy" in error_of("convert", store, tmp_path / "copy")
    assert "path must end in one of" in error_of("convert", __file__, tmp_path / "copy")
    assert "no such file or folder" in error_of("convert", tmp_path / "no.npz", tmp_path / "s")
    message = error_of("convert", store, tmp_path / "no" / "a.npz")
    assert message == f"{tmp_path}/no: there is no such folder for the file"


@pytest.mark.parity
def test_convert_checkpoint(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    from safetensors.numpy import load_file

    bert = text_encoder(tmp_path / "bert")
    weights = bert / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    torch.save(
        {name: torch.from_numpy(value) for name, value in tensors.items()},
        bert / "pytorch_model.bin",
    )
    message = error_of("embed", bert, "--prompts", "rsna_pneumonia", "--out", tmp_path / "store")
    assert f"`semalign convert-checkpoint {bert} --out FOLDER`" in message
    out = tmp_path / "out"
    found = values_of("convert-checkpoint", bert, "--out", out)
    assert found == {"out": str(out), "weights": ["model.safetensors"]}
    assert values_of("info", out)["supported"]
    assert sorted(load_file(out / "model.safetensors")) == sorted(tensors)
    assert "--overwrite" in error_of("convert-checkpoint", bert, "--out", out)


def test_characters_of_files_do_not_steer_a_terminal(tmp_path):
    store = sa.stores.create_store(
        tmp_path / "s", description={"made": "a\x1b[2J\u202e\rb"}, dimension=2
    )
    store.append(["i"], np.ones((1, 2), np.float32))
    text = run("info", tmp_path / "s").stdout
    assert r"made: a\x1b[2J\u202e\rb" in text
    assert text.replace("\n", "").isprintable()


def test_what_killed_runs_have_left_is_removed(tmp_path):
    pair_of_stores(tmp_path)
    here = socket.gethostname()[:50]
    left = [
        tmp_path / f".rows.npz.{here}-999999999-abcd1234",  # a process of this machine that is gone
        tmp_path / ".rows.npz.other-machine-17-abcd1234",  # of another one, a day ago
    ]
    left[0].mkdir()
    (left[0] / "chunk-00000.safetensors").write_bytes(b"rows")
    left[1].write_bytes(b"rows")
    os.utime(left[1], (0, 0))
    kept = [tmp_path / ".rows.npz.other-machine-18-abcd1234", tmp_path / ".rows.npz.mine"]
    for path in kept:
        path.write_bytes(b"of a run that may go on, or of the user")
    run("convert", tmp_path / "a", tmp_path / "rows.npz")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_the_doctor_tells_versions_devices_and_disks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = values_of("doctor")
    assert found["packages"]["jax"] == version("jax")
    assert found["extras"]["plot"]["matplotlib"] == version("matplotlib")
    assert found["variables"]["HF_HOME"] == str(tmp_path)
    assert found["devices"]
    assert min(found["threads"].values()) >= 1
    assert found["free_bytes"]["here"] > 0
    shown = run("doctor").stdout
    for line in (
        "semalign_jax: ",
        "devices: cpu",
        "threads: ",
        "extra plot: complete",
        "free disk: ",
    ):
        assert line in shown


def test_the_doctor_says_what_is_wrong(monkeypatch):
    usage = SimpleNamespace(free=10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = values_of("doctor", status=1)
    assert found["problems"] == ["only 0.0 GB are free where encoders go"]


def test_a_store_is_no_file_and_a_file_no_folder(tmp_path):
    old, new = pair_of_stores(tmp_path)
    sa.save_map(sa.identity_map(6, 5), tmp_path / "m.safetensors")
    words = ("apply", tmp_path / "m.safetensors", old, "--out")
    message = error_of(*words, tmp_path / "mapped.npy")
    assert "mapped.npy would be a folder" in message
    assert "semalign convert" in message
    assert not (tmp_path / "mapped.npy").exists()
    (tmp_path / "there.npy").mkdir()
    message = error_of("convert", new, tmp_path / "there.npy")
    assert message == f"{tmp_path / 'there.npy'} is a folder: choose another name for the file"
    np.save(tmp_path / "bare.npy", np.ones((3, 2)))
    message = error_of("convert", tmp_path / "bare.npy", tmp_path / "store")
    assert "bare.ids.json is missing: it must hold the ids of the rows, as a JSON list" in message
