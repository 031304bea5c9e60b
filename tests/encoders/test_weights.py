"""Rules and the engine that fills parameters from safetensors files."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from semalign_jax.encoders import CheckpointError, Rule, load_encoder
from semalign_jax.encoders._weights import (
    canonical_names,
    checkpoint_files,
    flatten,
    linear,
    linear_kernel,
    list_tensors,
    load_params,
)

from .harness import all_cases, read_golden, write_checkpoint

BERT = all_cases()["bert"]


def save(folder, tensors, name="model.safetensors"):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / name)


def load(folder, rules, shapes, ignored=(), prefixes=(), dtype=jnp.float32):
    tensors = canonical_names(list_tensors(checkpoint_files(folder)), prefixes)
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    nested = {"layer": abstract} if "kernel" in abstract else abstract
    return load_params(tensors, rules, ignored, nested, dtype)


@pytest.fixture
def tiny_bert(tmp_path):
    config, shapes, batch, expected = read_golden("bert")
    write_checkpoint(tmp_path, config, shapes, BERT)
    return tmp_path


def test_numbers_in_names_and_transposes(tmp_path):
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    save(tmp_path, {"block.7.fc.weight": w, "block.7.fc.bias": w[:, 0]})
    rules = linear("block.*.fc", "layer_*/fc")
    tensors = list_tensors(checkpoint_files(tmp_path))
    abstract = {"layer_7": {"fc": {"kernel": np.empty((2, 3)), "bias": np.empty(3)}}}
    params = load_params(tensors, rules, (), abstract, jnp.float32)
    assert np.array_equal(params["layer_7"]["fc"]["kernel"], w.T)
    assert params["layer_7"]["fc"]["bias"].dtype == jnp.float32


def test_one_tensor_fills_several_parameters(tmp_path):
    w = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    save(tmp_path, {"qkv": w})
    rules = (Rule("qkv", ("q", "k", "v"), linear_kernel),)
    params = load(tmp_path, rules, dict.fromkeys("qkv", (5, 2)))
    assert all(np.array_equal(params[n], w[2 * i : 2 * i + 2].T) for i, n in enumerate("qkv"))


def test_all_problems_are_in_one_error(tmp_path):
    one = np.ones((2, 2), np.float32)
    save(tmp_path, {"a": one, "b": one, "c": one, "d": one, "odd": one[:, 0], "skip.me": one})
    rules = (
        Rule("a", "x"),
        Rule("b", "x"),
        Rule("c", "y"),
        Rule("c", "z"),
        Rule("odd", ("u", "v", "w"), linear_kernel),
        Rule("d", "shape"),
    )
    shapes = {"x": (2, 2), "y": (2, 2), "missing": (3,), "shape": (5, 2)}
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, rules, shapes, ignored=("skip.*",))
    message = str(error.value)
    for part in (
        "x is filled by ['a', 'b']",
        "c [2, 2]: 2 places in this model",
        "odd [2]: not 3 equal parts",
        "missing [3] is not filled",
        "d [2, 2]: shape should have the shape [5, 2], it would get [2, 2]",
    ):
        assert part in message, part
    assert "skip" not in message


def test_unknown_tensor_and_wrong_rank_are_refused(tmp_path):
    save(tmp_path, {"fc.weight": np.ones((2, 2, 2), np.float32), "extra": np.ones(1, np.float32)})
    rules = (Rule("fc.weight", "w", lambda w: w.transpose(1, 0)),)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, rules, {"w": (2, 2)})
    assert "fc.weight has the shape [2, 2, 2], of another rank" in str(error.value)
    assert "extra [1]: no place in this model" in str(error.value)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_stored_dtypes_are_cast(tmp_path, stored):
    w = np.random.default_rng(0).standard_normal((3, 2)).astype(stored)
    save(tmp_path, {"w": w})
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        params = load(tmp_path, (Rule("w", "w"),), {"w": (3, 2)}, dtype=dtype)
        assert params["w"].dtype == dtype
        expected = w.astype(np.float32).astype(dtype)
        assert np.array_equal(np.asarray(params["w"]), expected)


def test_shards_of_an_index(tiny_bert):
    whole = load_encoder(tiny_bert).params
    tensors = safetensors.numpy.load_file(tiny_bert / "model.safetensors")
    names = sorted(tensors)
    (tiny_bert / "model.safetensors").unlink()
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save(tiny_bert, {name: tensors[name] for name in part}, file)
        weight_map |= dict.fromkeys(part, file)
    index = tiny_bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    sharded = load_encoder(tiny_bert).params
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, sharded))

    (tiny_bert / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_encoder(tiny_bert)
    index.write_text(json.dumps({"weight_map": {"w": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"\.\./elsewhere"):
        load_encoder(tiny_bert)
    index.write_text("[")
    with pytest.raises(CheckpointError, match="not an index"):
        load_encoder(tiny_bert)


def test_pickled_checkpoint_is_not_opened_and_the_error_says_how_to_convert(tiny_bert):
    (tiny_bert / "model.safetensors").rename(tiny_bert / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin.*`semalign convert-checkpoint"):
        load_encoder(tiny_bert)
    (tiny_bert / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        load_encoder(tiny_bert)


def test_cut_file_is_refused(tiny_bert):
    path = tiny_bert / "model.safetensors"
    whole = path.read_bytes()
    for left in (whole[:-10], whole[:100], whole[:5], b""):
        path.write_bytes(left)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors"):
            load_encoder(tiny_bert)


def test_links_to_nothing_are_named(tiny_bert):
    """As in a cache of the hub whose blobs are gone."""
    (tiny_bert / "README.md").symlink_to("gone")  # not used
    load_encoder(tiny_bert)
    (tiny_bert / "1_Pooling").mkdir()
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        (tiny_bert / name).unlink(missing_ok=True)
        (tiny_bert / name).symlink_to("../blobs/0123")
        with pytest.raises(FileNotFoundError, match=rf"{name} is a link to \.\./blobs/0123, which"):
            load_encoder(tiny_bert)
        (tiny_bert / name).unlink()


@pytest.mark.parametrize(
    ("kind", "named"), [(np.int8, "I8"), (np.uint8, "U8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")]
)
def test_quantized_weights_are_refused(tiny_bert, kind, named):
    path = tiny_bert / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].astype(kind)
    tensors[name + "_scale"] = np.ones(1, np.float32)
    save(tiny_bert, tensors)
    message = rf"model\.safetensors has 1 weights of {named}, e\.g\. {name}: quantized"
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tiny_bert)


def test_two_names_of_one_tensor_are_refused(tmp_path):
    one = np.ones(2, np.float32)
    save(tmp_path, {"bert.LayerNorm.gamma": one, "LayerNorm.weight": one})
    with pytest.raises(CheckpointError, match="same tensor LayerNorm.weight"):
        canonical_names(list_tensors(checkpoint_files(tmp_path)), ("bert.",))


def test_a_head_may_have_a_name_of_the_model(tmp_path):
    save(tmp_path, {"beit.layernorm.bias": np.ones(2), "layernorm.bias": np.zeros(2)})
    tensors = list_tensors(checkpoint_files(tmp_path))
    for given in (tensors, dict(reversed(tensors.items()))):
        found = canonical_names(given, ("beit.",))
        assert [(name, one.key) for name, one in found.items()] == [
            ("layernorm.bias", "beit.layernorm.bias")
        ]


def test_paths_of_parameters():
    assert flatten({"a": {"b": {"c": 1}, "d": 2}}) == {"a/b/c": 1, "a/d": 2}


@pytest.mark.slow
def test_memory_peak_is_near_the_size_of_the_parameters(tiny_bert):
    tmp_path = tiny_bert / "large"
    tmp_path.mkdir()
    # Most of it is word embeddings, as in multilingual models: the hard case.
    config, _, _, _ = read_golden("bert")
    config |= {"vocab_size": 250_000, "hidden_size": 384, "num_attention_heads": 6}
    config |= {"num_hidden_layers": 4, "intermediate_size": 1536, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = json.loads(
        subprocess.run(  # Names and shapes of such a model, from its own rules.
            [sys.executable, "-c", SHAPES, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["embeddings.word_embeddings.weight"][:, 0] = np.arange(250_000)
    save(tmp_path, tensors)
    size = (tmp_path / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(tiny_bert)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    print(f"peak {(peak - before) / size:.2f} times the model")
    assert peak - before <= 1.3 * size, f"{(peak - before) / size:.2f} times the model"


SHAPES = """
import json, sys
from pathlib import Path
from semalign_jax.encoders import _encoder, _weights
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders.families import bert
values = json.loads((Path(sys.argv[1]) / "config.json").read_text())
config = bert.parse(ConfigReader(values, "config.json"), frozenset(["pooler.dense.weight"]))
abstract = _encoder.abstract_params(_encoder.EncoderConfig("bert", config, "cls"))
shapes = {k: list(v.shape) for k, v in _weights.flatten(abstract).items()}
found = {}
for path, shape in shapes.items():
    for rule in bert.RULES:
        name = rule.target.replace("layer_*", path.split("/")[0])
        if name == path:
            number = path.split("/")[0].removeprefix("layer_")
            linear = rule.transform is _weights.linear_kernel
            found[rule.source.replace("*", number)] = shape[::-1] if linear else shape
print(json.dumps(found))
"""
PEAK = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from semalign_jax.encoders import load_encoder, _encoder
import semalign_jax.encoders.families.bert
load_encoder(sys.argv[2])  # what tracing and compiling take is not the model's
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = peak()
encoder = load_encoder(sys.argv[1])
jax.block_until_ready(encoder.params)
table = encoder.params["word_embeddings"]["embedding"]
assert (table[:, 0] == jnp.arange(len(table))).all()
print(before, peak())
"""
