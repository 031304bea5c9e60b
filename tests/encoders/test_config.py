"""Strict reading of configurations."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest

from semalign_jax.encoders import ConfigError, Family, load_encoder, register_encoder
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders.families import bert

from .harness import all_cases, read_golden, write_checkpoint

CONFIG = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 4}


def parse(**changes):
    reader = ConfigReader(CONFIG | changes, "config.json")
    config = bert.parse(reader, frozenset())
    reader.finish()
    return config


def test_defaults_are_those_of_the_reference():
    config = parse()
    assert (config.hidden_act, config.layer_norm_eps, config.type_vocab_size) == ("gelu", 1e-12, 2)
    assert config.max_position_embeddings == 512
    assert not config.has_pooler


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
        ({"hidden_size": "8"}, "hidden_size must be int; it is '8'"),
        ({"hidden_size": True}, "hidden_size must be int; it is True"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be float; it is None"),
        ({"use_rotary": True}, "use_rotary = True is not known"),
    ],
)
def test_unsupported_values_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as error:
        parse(**changes)
    assert message in str(error.value)


def test_missing_values_and_all_problems_in_one_error():
    reader = ConfigReader({"hidden_size": "8", "odd": 1}, "folder/config.json")
    bert.parse(reader, frozenset())
    reader.get("vocab_count")
    with pytest.raises(ConfigError) as error:
        reader.finish()
    message = str(error.value)
    for part in ("folder/config.json", "vocab_count is missing", "hidden_size must", "odd = 1"):
        assert part in message


@dataclass(frozen=True, kw_only=True)
class Read:
    layers: int
    eps: float = 1e-6
    size: tuple[int, int] = (8, 8)
    depths: tuple[int, ...]
    kind: Annotated[str, ("a", "b")] = "a"
    own: bool = False


def test_fields_are_read_by_their_annotations():
    reader = ConfigReader({"layers": 2, "eps": 1, "size": 4, "depths": [1, 2]}, "c")
    expected = Read(layers=2, eps=1.0, size=(4, 4), depths=(1, 2), own=True)
    assert reader.read(Read, own=True) == expected
    reader.finish()
    reader = ConfigReader({"size": "x", "depths": ["x"], "kind": "c", "own": True}, "c")
    reader.read(Read, own=False)
    with pytest.raises(ConfigError) as error:
        reader.finish()
    for part in ("layers is missing", "size must", "depths must", "kind = 'c' is", "own = True is"):
        assert part in str(error.value)
    reader = ConfigReader({"layers": [2], "depths": 3}, "c")  # read on with, and then refused
    assert reader.read(Read) == Read(layers=0, depths=())
    with pytest.raises(ConfigError, match=r"layers must be int; it is \[2\]\n  depths must be"):
        reader.finish()


def test_numbers_sections_and_pairs():
    values = {"eps": 1, "size": [3, 4], "side": 5, "bad": [1], "inner": {"a": 1, "b": 2}, "no": 3}
    reader = ConfigReader(values, "c")
    assert isinstance(reader.get("eps", kind=float), float)
    assert (reader.pair("size"), reader.pair("side"), reader.pair("absent", 7)) == (
        (3, 4),
        (5, 5),
        (7, 7),
    )
    reader.pair("bad")
    inner, wrong = reader.section("inner"), reader.section("no")
    assert inner.get("a") == 1
    assert not wrong.has("a")
    reader.problem("both together")
    with pytest.raises(ConfigError) as error:
        reader.finish()
    for part in ("bad must be a size", "inner.b = 2 is not known", "no must be an object", "both"):
        assert part in str(error.value)


@pytest.fixture
def folder(tmp_path):
    config, shapes, _, _ = read_golden("bert")
    write_checkpoint(tmp_path, config, shapes, all_cases()["bert"])
    return tmp_path


def edit(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def test_keys_declared_harmless(folder):
    edit(folder, surprise=1)
    with pytest.raises(ConfigError, match="surprise = 1"):
        load_encoder(folder)
    load_encoder(folder, ignore_config_keys=["surp*"])


def test_folders_without_a_usable_configuration(folder):
    edit(folder, model_type="gpt-17")
    with pytest.raises(ValueError, match="'gpt-17' is not supported; there are .*bert.*register"):
        load_encoder(folder)
    for text, message in (("[", "no JSON"), ("[]", "JSON object"), ("{}", "no model_type")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_encoder(folder)


def test_an_adapter_is_not_left_out_without_a_word(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"an adapter .*adapter_config\.json.* merge it"):
        load_encoder(folder)


def test_a_user_adds_a_family(folder, monkeypatch):
    monkeypatch.setattr("semalign_jax.encoders._family._registered", {})
    edit(folder, model_type="my-bert")
    with pytest.raises(ValueError, match="my-bert"):
        load_encoder(folder)
    register_encoder("my-bert", bert.BERT)
    register_encoder("my-bert", bert.BERT)  # the same again is harmless
    assert load_encoder(folder).config.model_type == "my-bert"
    other = Family("other", bert.parse, bert.Bert, bert.RULES, bert.poolings)
    for name in ("my-bert", "bert"):
        with pytest.raises(ValueError, match="taken by another family"):
            register_encoder(name, other)
    with pytest.raises(TypeError, match="family must be a Family"):
        register_encoder("x", None)  # pyright: ignore[reportArgumentType]
