"""`encode`: pooling, purity, dtypes, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_cases import WORDS, text_encoder
from helpers import some

from semalign_jax.encoders import _encoder, embed, encode, load_encoder, read_embeddings
from semalign_jax.encoders._encoder import forward
from semalign_jax.encoders._layers import masked_mean

from .harness import all_cases, read_golden, write_checkpoint


def checkpoint(name, folder):
    config, shapes, batch, expected = read_golden(name)
    write_checkpoint(folder, config, shapes, all_cases()[name])
    return batch, expected


@pytest.fixture
def text(tmp_path):
    return tmp_path, *checkpoint("bert", tmp_path)


def embeddings(folder, batch, **options):
    encoder = load_encoder(folder, **options)
    return np.asarray(encode(encoder.config, encoder.params, batch))


def test_poolings_of_text(text):
    folder, batch, expected = text
    last, lengths = expected["last"], batch["attention_mask"].sum(1)
    for pooling, value in {
        "cls": last[:, 0],
        "mean": np.stack([row[:n].mean(0) for row, n in zip(last, lengths, strict=True)]),
        "eos": np.stack([row[n - 1] for row, n in zip(last, lengths, strict=True)]),
        "pooler": expected["pooled"],
    }.items():
        assert np.abs(embeddings(folder, batch, pooling=pooling) - value).max() < 1e-5, pooling
    unmasked = {k: v for k, v in batch.items() if k != "attention_mask"}
    unmasked["input_ids"] = unmasked["input_ids"][:1]  # the row without padding
    unmasked["token_type_ids"] = unmasked["token_type_ids"][:1]
    for pooling in ("mean", "eos"):
        whole = embeddings(folder, batch, pooling=pooling)[:1]
        assert np.abs(embeddings(folder, unmasked, pooling=pooling) - whole).max() < 1e-5


def test_wrong_pooling_changes_the_result(text):
    folder, batch, expected = text
    found = [embeddings(folder, batch, pooling=p) for p in ("cls", "mean", "eos", "pooler")]
    for i, a in enumerate(found):
        assert all(np.abs(a - b).max() > 1e-2 for b in found[:i])


def test_hidden_layers_and_length(text):
    folder, batch, expected = text
    for layer in (0, 1, 2, -1, -3):
        value = embeddings(folder, batch, pooling="cls", layer=layer)
        assert np.abs(value - expected[f"hidden_{layer % 3}"][:, 0]).max() < 1e-5
    assert load_encoder(folder, layer=1).config.pooling == "mean"
    shown = repr(load_encoder(folder, layer=1))
    assert shown.startswith("<Encoder: bert, mean, float32, 0.")
    assert len(shown) < 200 + len(str(folder))
    unit = embeddings(folder, batch, normalize=True)
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < 1e-6
    with pytest.raises(ValueError, match="layer must be from -3 to 2; got 3"):
        load_encoder(folder, layer=3)
    with pytest.raises(ValueError, match="pooler.*layer must be None"):
        load_encoder(folder, pooling="pooler", layer=1)
    with pytest.raises(ValueError, match="pooling 'projection' is not one"):
        load_encoder(folder, pooling="projection")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_encoder(folder, dtype="int8")


def test_several_layers_come_in_one_pass(tmp_path):
    encoder = load_encoder(text_encoder(tmp_path / "bert"), pooling="mean", normalize=True)
    items = list(WORDS)
    found = embed(encoder, items, layers=[-1, 0], out=tmp_path / "out", progress=False)
    assert found.embeddings.shape == (len(items), 2, 24)
    for i, layer in enumerate((-1, 0)):
        one = load_encoder(tmp_path / "bert", pooling="mean", normalize=True, layer=layer)
        expected = embed(one, items, progress=False).embeddings
        np.testing.assert_allclose(found.embeddings[:, i], expected, atol=1e-6)
    rows = read_embeddings(tmp_path / "out")[1]
    np.testing.assert_array_equal(rows, found.embeddings.reshape(len(items), -1))
    for layers, message in (([], "at least one"), ([1, 1], "different"), ([9], "must be from")):
        with pytest.raises(ValueError, match=message):
            embed(encoder, items, layers=layers, progress=False)


def test_rows_without_tokens_are_zeros(text):
    folder, batch, _ = text
    batch = batch | {"attention_mask": np.zeros_like(batch["attention_mask"])}
    for pooling in ("mean", "eos"):  # as in sentence-transformers
        assert not np.any(embeddings(folder, batch, pooling=pooling))
    assert np.all(np.isfinite(embeddings(folder, batch, pooling="cls")))
    x, mask = np.full((1, 2, 3), np.nan), np.zeros((1, 2), np.int32)
    assert not np.any(jax.jit(masked_mean)(x, mask))


def test_padding_does_not_change_a_row(text):
    folder, batch, _ = text
    wide = {k: np.pad(v, [(0, 0), (0, 5)], constant_values=3) for k, v in batch.items()}
    wide["token_type_ids"] = np.minimum(wide["token_type_ids"], 1)
    wide["attention_mask"][:, -5:] = 0
    for pooling in ("cls", "mean", "eos"):
        narrow = embeddings(folder, batch, pooling=pooling)
        assert np.abs(embeddings(folder, wide, pooling=pooling) - narrow).max() < 1e-5


def test_poolings_of_images(tmp_path):
    batch, expected = checkpoint("vit", tmp_path)
    mean = embeddings(tmp_path, batch, pooling="mean")
    assert np.abs(mean - expected["last"][:, 1:].mean(1)).max() < 1e-5
    assert np.abs(embeddings(tmp_path, batch) - expected["last"][:, 0]).max() < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), some([("bfloat16", 2e-3), ("float16", 2e-5)]))
@pytest.mark.parametrize(
    "name",
    [
        *("bert", "vit"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("swinv2", "convnextv2", "qwen3", "albert", "nomic-bert")
        ),
    ],
)
def test_half_precision_is_near(name, dtype, bound, tmp_path):
    batch, _ = checkpoint(name, tmp_path)
    exact = embeddings(tmp_path, batch)
    encoder = load_encoder(tmp_path, dtype=dtype)
    assert encoder.dtype == jnp.dtype(dtype)
    assert all(leaf.dtype == jnp.dtype(dtype) for leaf in jax.tree.leaves(encoder.params))
    half = encode(encoder.config, encoder.params, batch)
    assert half.dtype == jnp.dtype(dtype)
    half = np.asarray(half, np.float32)
    cosine = np.sum(exact * half, 1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert 1 - cosine.min() < bound


def test_a_pure_function_of_plain_arrays(text):
    folder, batch, _ = text
    encoder = load_encoder(folder)
    assert isinstance(hash(encoder.config), int)
    # Same inputs, another order of keys: nothing is compiled again.
    value = encode(encoder.config, encoder.params, batch)
    cache_size = encode._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    count = cache_size()
    encode(dataclasses.replace(encoder.config), encoder.params, dict(reversed(batch.items())))
    assert cache_size() == count
    # Several sets of parameters at once, and derivatives with respect to them.
    twice = jax.tree.map(lambda p: np.stack([p, np.float32(1.01) * p]), encoder.params)
    many = jax.vmap(lambda params: encode(encoder.config, params, batch))(twice)
    assert np.abs(np.asarray(many)[0] - np.asarray(value)).max() < 1e-5
    slope = jax.jit(jax.grad(lambda p: jnp.sum(encode(encoder.config, p, batch) ** 2)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope(encoder.params)))
    # Layers behind the chosen one are not computed.
    first = dataclasses.replace(encoder.config, layer=0, pooling="cls")
    text_of = jax.jit(encode, static_argnums=0).lower(first, encoder.params, batch).compile()
    assert "dot" not in (text_of.as_text() or "dot")


def test_large_batches_are_embedded_in_parts_in_their_order(text):
    folder, batch, _ = text
    encoder = load_encoder(folder, pooling="mean")
    tokens = np.random.default_rng(0).integers(5, 20, (303, 10), np.int32)
    mask = (np.arange(10) < np.random.default_rng(1).integers(1, 11, (303, 1))).astype(np.int32)
    large = {"input_ids": tokens, "attention_mask": mask}
    assert 303 * 10 > _encoder.PART_TOKENS

    @jax.jit
    def at_once(params, batch):
        outputs = forward(encoder.config, params, batch)
        return _encoder.pool(encoder.config, params, outputs, batch["attention_mask"])

    whole = np.asarray(at_once(encoder.params, large))
    found = encode(encoder.config, encoder.params, large)
    assert np.abs(np.asarray(found) - whole).max() < 1e-6
    even = {name: values[:296] for name, values in large.items()}
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("rows"))
    sharded = encode(encoder.config, encoder.params, jax.device_put(even, rows))
    assert np.abs(np.asarray(sharded) - whole[:296]).max() < 1e-6


def test_batches_of_another_kind_are_refused(text):
    folder, batch, _ = text
    encoder = load_encoder(folder)
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    for wrong in ({"pixel_values": pixels}, batch | {"pixel_values": pixels}, {}):
        with pytest.raises(ValueError, match="batch must have input_ids"):
            encode(encoder.config, encoder.params, wrong)


def test_longer_texts_than_the_model_has_positions_for_are_refused(text):
    folder, _, _ = text
    encoder = load_encoder(folder)
    assert encode(encoder.config, encoder.params, {"input_ids": np.ones((1, 16), np.int32)}).size
    with pytest.raises(ValueError, match="longer than the 16 tokens"):
        encode(encoder.config, encoder.params, {"input_ids": np.ones((1, 17), np.int32)})


def test_activation_eps_and_bias_matter(text):
    # The comparisons above can see such mistakes: each moves outputs by more than their bound.
    folder, batch, expected = text
    encoder = load_encoder(folder)
    for change in ({"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-3}):
        model = dataclasses.replace(encoder.config.model, **change)
        config = dataclasses.replace(encoder.config, model=model)
        last = jax.jit(forward, static_argnums=0)(config, encoder.params, batch).last
        assert np.abs(np.asarray(last) - expected["last"]).max() > 5e-5, change
