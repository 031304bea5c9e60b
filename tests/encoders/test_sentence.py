import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from semalign_jax.encoders import CheckpointError, convert_checkpoint, encode, load_encoder
from semalign_jax.encoders._sentence import SentenceSettings, sentence_settings

from .harness import all_cases, read_golden, write_checkpoint

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


def write(folder, pooling, *, modules=("Transformer", "Pooling"), package=OLD, files=()):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listing = [
        {"idx": i, "name": str(i), "path": paths.get(kind, f"{i}_{kind}"), "type": package + kind}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, values in dict(files).items():
        (folder / name).write_text(json.dumps(values))


def test_plain_folder_says_nothing(tmp_path):
    assert sentence_settings(tmp_path) == SentenceSettings(None, False, None, False)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"word_embedding_dimension": 4, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "eos"),
        ({"embedding_dimension": 4, "pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "eos"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
        ({}, "mean"),
    ],
)
@pytest.mark.parametrize("package", [OLD, NEW])
def test_poolings(tmp_path, pooling, expected, package):
    write(tmp_path, pooling, package=package)
    assert sentence_settings(tmp_path) == SentenceSettings(expected)


def test_all_settings(tmp_path):
    write(
        tmp_path,
        {"pooling_mode_cls_token": True},
        modules=("Transformer", "Pooling", "Normalize"),
        files={
            "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": True},
            "config_sentence_transformers.json": {
                "__version__": {},
                "prompts": {"query": "query: ", "document": ""},
                "default_prompt_name": "query",
                "similarity_fn_name": "cosine",
            },
        },
    )
    prompts = {"query": "query: ", "document": ""}
    assert sentence_settings(tmp_path) == SentenceSettings("cls", True, 12, True, "query", prompts)


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "'cls', 'mean'"),
        ({"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
        ({"pooling_mode": 3}, "3"),
        ({"pooling_mode": [["cls"]]}, r"the pooling \[\['cls'\]\] is not supported"),
        ({"pooling_mode_cls_token": True, "include_prompt": None}, "include_prompt"),
        ({"pooling_mode_cls_token": True, "new_option": 1}, "new_option"),
    ],
)
def test_other_poolings_are_refused_by_name(tmp_path, pooling, named):
    write(tmp_path, pooling)
    with pytest.raises(ValueError, match=r"(?s)1_Pooling.config.json.*" + named):
        sentence_settings(tmp_path)


@pytest.mark.parametrize(
    ("modules", "package", "named"),
    [
        (("Transformer", "Pooling", "WordWeights", "Normalize"), OLD, "WordWeights"),
        (("Transformer", "Pooling", "Normalize", "Dense"), OLD, "Normalize, Dense"),
        (("Transformer",), OLD, "Transformer; supported"),
        (("CLIPModel",), OLD, "CLIPModel"),
        (("Transformer", "Pooling"), "custom_st.", "custom_st.Transformer"),
        (("Transformer", "Normalize", "Pooling"), OLD, "Normalize, Pooling"),
        ((), OLD, "none"),
    ],
)
def test_other_modules_are_refused_by_name(tmp_path, modules, package, named):
    write(tmp_path, {"pooling_mode_cls_token": True}, modules=modules, package=package)
    with pytest.raises(ValueError, match=f"(?s)modules.json.*{named}.*without modules.json"):
        sentence_settings(tmp_path)


def test_transformer_in_a_sub_folder(tmp_path):
    listing = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": OLD + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": OLD + "Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"0_Transformer: load that folder with pooling="):
        sentence_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("modules.json", "[", "no JSON"),
        ("modules.json", "{}", "JSON list"),
        ("modules.json", "[1]", "type and path"),
        ("modules.json", '[{"type": 1, "path": ""}]', "type and path"),
        ("modules.json", '[{"type": "a.B", "path": "../x"}]', "outside"),
        ("1_Pooling/config.json", "{", "no JSON"),
        ("1_Pooling/config.json", "[]", "JSON object"),
        ("sentence_bert_config.json", "nothing", "no JSON"),
        ("sentence_bert_config.json", '{"max_seq_length": "12"}', "max_seq_length"),
        ("sentence_bert_config.json", '{"max_seq_length": 0}', "max_seq_length"),
        ("sentence_bert_config.json", '{"do_lower_case": 1}', "do_lower_case"),
        ("sentence_bert_config.json", '{"query_length": 32}', "query_length"),
        ("sentence_bert_config.json", '{"transformer_task": "fill-mask"}', "transformer_task"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q"}', "'q'"),
        ("config_sentence_transformers.json", '{"default_prompt_name": ["q"]}', "'q'"),
        ("config_sentence_transformers.json", '{"truncate_dim": 4}', "truncate_dim"),
        ("config_sentence_transformers.json", '{"prompts": ["a"]}', "prompts must be texts"),
        ("config_sentence_transformers.json", '{"prompts": {"a": 1}}', "prompts must be texts"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, text, named):
    write(tmp_path, {"pooling_mode_cls_token": True})
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"(?s){name.rpartition('/')[2]}.*{named}"):
        sentence_settings(tmp_path)


def with_prompts(folder, prompts, default=None, pooling=None):
    values = {"prompts": prompts, "default_prompt_name": default}
    files = {"config_sentence_transformers.json": values}
    write(folder, pooling or {"pooling_mode": "mean"}, files=files)
    return sentence_settings(folder)


ALL = {"corpus": "c: ", "passage": "p: ", "document": "d: ", "query": "q: ", "s2p": "s: "}


@pytest.mark.parametrize(
    ("prompts", "default", "name", "used"),
    [
        (ALL, None, None, None),
        (ALL, "s2p", None, "s2p"),
        (ALL, "s2p", "query", "query"),
        (ALL, "s2p", "document", "document"),
        (ALL, "s2p", "corpus", "corpus"),
        ({"corpus": "c: ", "passage": "p: "}, None, "document", None),
        ({"s2p": "s: "}, "s2p", "document", None),
        ({"s2p": "s: "}, "s2p", "query", None),
        ({"s2p": "s: "}, None, "query", None),
        ({}, None, "document", None),
        ({"query": "q: ", "document": ""}, "query", "document", "document"),
    ],
)
def test_prompts_by_name(tmp_path, prompts, default, name, used):
    settings = with_prompts(tmp_path, prompts, default)
    expected = used, "" if used is None else prompts[used]
    assert settings.chosen_prompt(name, tmp_path) == expected


def test_unknown_prompts_list_the_known(tmp_path):
    settings = with_prompts(tmp_path, {"s2p": "s: ", "query": "q: "})
    with pytest.raises(
        ValueError, match="no prompt 'passage'; there are 'query', 'document', 's2p'"
    ):
        settings.chosen_prompt("passage", tmp_path)


def test_prompts_that_are_not_pooled(tmp_path):
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    settings = with_prompts(tmp_path, {"query": "q: ", "document": ""}, pooling=pooling)
    for name in (None, "document"):
        assert settings.chosen_prompt(name, tmp_path)[1] == ""
    with pytest.raises(ValueError, match="include_prompt is false.*'query'"):
        settings.chosen_prompt("query", tmp_path)


def test_missing_pooling_file(tmp_path):
    write(tmp_path, {})
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="1_Pooling"):
        sentence_settings(tmp_path)


def test_encoder_follows_the_folder_and_the_caller_overrides_it(tmp_path):
    config, shapes, batch, _ = read_golden("bert")
    write_checkpoint(tmp_path, config, shapes, all_cases()["bert"])
    write(
        tmp_path,
        {"pooling_mode_cls_token": True},
        modules=("Transformer", "Pooling", "Normalize"),
    )
    encoder = load_encoder(tmp_path)
    assert (encoder.config.pooling, encoder.config.normalize) == ("cls", True)
    vectors = encode(encoder.config, encoder.params, batch)
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    other = load_encoder(tmp_path, pooling="mean", normalize=False).config
    assert (other.pooling, other.normalize) == ("mean", False)


TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def with_dense(folder, *layers, normalize=True):
    """A tiny BERT with these layers behind its mean pooling; returns a batch and its outputs."""
    config, shapes, batch, outputs = read_golden("bert")
    write_checkpoint(folder, config, shapes, all_cases()["bert"])
    modules = ("Transformer", "Pooling", *["Dense"] * len(layers), *["Normalize"] * normalize)
    write(folder, {"pooling_mode": "mean"}, modules=modules)
    for place, (values, tensors) in enumerate(layers, 2):
        (folder / f"{place}_Dense").mkdir()
        (folder / f"{place}_Dense" / "config.json").write_text(json.dumps(values))
        safetensors.numpy.save_file(tensors, folder / f"{place}_Dense" / "model.safetensors")
    return batch, outputs


def dense(inputs, outputs, activation, bias):
    rng = np.random.default_rng(inputs)
    values = {"in_features": inputs, "out_features": outputs, "activation_function": activation}
    tensors = {"linear.weight": rng.standard_normal((outputs, inputs), np.float32) / 5}
    if bias:
        tensors["linear.bias"] = rng.standard_normal(outputs, np.float32)
    return values | {"bias": bias}, tensors


LAYERS = (dense(24, 10, TANH, True), dense(10, 6, IDENTITY, False))


def test_dense_layers_follow_the_pooling(tmp_path):
    batch, outputs = with_dense(tmp_path, *LAYERS)
    mask = batch["attention_mask"][:, :, None]
    mean = (outputs["last"] * mask).sum(1) / mask.sum(1)
    (_, first), (_, second) = LAYERS
    expected = np.tanh(mean @ first["linear.weight"].T + first["linear.bias"])
    expected = expected @ second["linear.weight"].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    encoder = load_encoder(tmp_path)
    found = encode(encoder.config, encoder.params, batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    names = [path.relative_to(tmp_path).as_posix() for path in encoder.weight_files]
    assert names == [f"{place}model.safetensors" for place in ("", "2_Dense/", "3_Dense/")]
    same = load_encoder(tmp_path, pooling="mean", dtype="bfloat16")
    half = encode(same.config, same.params, batch).astype(jnp.float32)
    np.testing.assert_allclose(half, expected, atol=0.1)
    # They are those of this pooling of the last layer alone.
    for pooling, layer in (("cls", None), (None, -1)):
        encoder = load_encoder(tmp_path, normalize=False, pooling=pooling, layer=layer)
        assert encoder.config.dense == ()
        assert "dense" not in encoder.params
        assert encode(encoder.config, encoder.params, batch).shape == (3, 24)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_features": 0}, "in_features and out_features must be positive"),
        ({"out_features": None}, "out_features must be int; it is None"),
        ({"bias": 1}, "bias must be bool; it is 1"),
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation.Mish' is not"),
        ({"activation_function": "own.Tanh"}, "'own.Tanh' is not supported .*Identity', .*Tanh'"),
        ({"gate": True}, "gate = True is not known"),
    ],
)
def test_options_of_dense_layers_are_refused_by_name(tmp_path, changes, named):
    with_dense(tmp_path, (LAYERS[0][0] | changes, LAYERS[0][1]))
    with pytest.raises(ValueError, match=f"(?s)2_Dense.config.json .*{named}"):
        sentence_settings(tmp_path)


def test_weights_of_dense_layers_must_fit(tmp_path):
    with_dense(tmp_path, (LAYERS[0][0] | {"bias": False}, LAYERS[0][1]))
    with pytest.raises(
        CheckpointError, match=r"(?s)2_Dense.*linear\.bias \[10\]: the model has no"
    ):
        load_encoder(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"2_Dense.*convert-checkpoint"):
        load_encoder(tmp_path)
    (tmp_path / "2_Dense" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="2_Dense.*says that it has a Dense layer"):
        load_encoder(tmp_path)


@pytest.mark.parity
def test_pickled_dense_layers_are_converted_with_the_checkpoint(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    folder = tmp_path / "pickled"
    with_dense(folder, *LAYERS)
    paths = list(folder.rglob("model.safetensors"))
    params = load_encoder(folder).params
    assert len(paths) == 3
    for path in paths:
        tensors = safetensors.numpy.load_file(path)
        tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
        torch.save(tensors, path.with_name("pytorch_model.bin"))
        path.unlink()
    found = load_encoder(convert_checkpoint(folder, tmp_path / "out")).params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
