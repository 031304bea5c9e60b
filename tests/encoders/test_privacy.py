"""Embeddings on disk hold ids and numbers, and messages hold no texts."""

import json
import logging
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from planted import BIRTH, NAME, NUMBER, files_of, leaks, said

from semalign_jax.encoders import embed, load_encoder
from semalign_jax.stores import open_store, verify_store

from . import harness
from .test_texts import write_tokenizer


@pytest.fixture(autouse=True)
def streams(capfd, caplog):
    """Nothing is printed or logged, by libraries in C either."""
    caplog.set_level(logging.DEBUG)
    yield
    printed = capfd.readouterr()
    assert not leaks(printed.out + printed.err)
    assert not leaks(caplog.text)


ONE = {"devices": jax.devices()[:1], "batch_size": 4}


def checkpoint(name, folder):
    config, shapes, *_ = harness.read_golden(name)
    harness.write_checkpoint(folder, config, shapes, harness.all_cases()[name])
    return load_encoder(folder)


def test_a_store_holds_ids_and_numbers(tmp_path):
    encoder = checkpoint("vit", tmp_path / "vit")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    hospital = tmp_path / f"{NAME} {BIRTH}"  # names of folders are no better than names in files
    hospital.mkdir()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", f"{NAME} {NUMBER}")
    paths = []
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 255, (40, 40)).astype(np.uint8)
        paths.append(hospital / f"{NUMBER}-{number}.png")
        Image.fromarray(values).save(paths[-1], pnginfo=notes)
    out = tmp_path / "store"
    embed(encoder, paths, ids=["image-0", "image-1", "image-2"], out=out, **ONE)
    assert len(open_store(out)) == 3
    for path, data in files_of(out).items():
        assert not leaks(path.name)
        assert not leaks(data), path
    assert verify_store(out) == []


def test_texts_do_not_get_into_stores_and_messages(tmp_path):
    encoder = checkpoint("bert", tmp_path / "bert")
    write_tokenizer(tmp_path / "bert")
    encoder = replace(encoder, folder=tmp_path / "bert")
    reports = [f"no acute finding, {NAME} {NUMBER}", f"effusion {BIRTH}"]
    embed(encoder, reports, out=tmp_path / "store", **ONE)
    for path, data in files_of(tmp_path / "store").items():
        assert not leaks(data), path
    broken = [*reports, f"{NAME} \ud800"]  # half a character
    text = said(lambda: embed(encoder, broken, **ONE), ValueError, TypeError)
    assert "items[2]" in text
    assert not leaks(text), text
