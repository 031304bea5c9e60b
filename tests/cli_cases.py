"""Tiny encoders, images and data sets for the tests of the command line."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest

import semalign_jax as sa
from semalign_jax.cli import main

#: Words that the tokenizer of `text_encoder` knows.
WORDS = ("no", "acute", "finding", "Left", "left")


class Result(NamedTuple):
    """What a command line has printed."""

    stdout: str
    stderr: str


def run(*words, status=0, debug=False):
    """Run a command line in this process."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    result = Result(out.buffer.getvalue().decode(), err.getvalue())  # pyright: ignore
    assert end.value.code == status, result
    assert debug or "Traceback" not in result.stderr
    return result


def values_of(*words, status=0):
    """The JSON object that a command prints."""
    return json.loads(run(*words, "--json", status=status).stdout)


def error_of(*words, status=2):
    """The one line on stderr of a command that fails."""
    result = run(*words, status=status)
    lines = [line for line in result.stderr.splitlines() if line.startswith("semalign: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0].removeprefix("semalign: error: ")


def text_encoder(folder):
    """A BERT of 24 dimensions that reads 16 tokens, special tokens included."""
    from encoders.test_texts import write_tokenizer

    _write_encoder(folder, "bert")
    write_tokenizer(folder)
    return folder


def image_encoder(folder):
    """A ViT of 24 dimensions for images of 32 x 32."""
    _write_encoder(folder, "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _write_encoder(folder, name):
    # Flax and transformers take seconds, and most commands need none.
    from encoders.harness import all_cases, read_golden, write_checkpoint

    config, shapes, *_ = read_golden(name)
    write_checkpoint(folder, config, shapes, all_cases()[name])


def pair_of_stores(folder, rows=60, dimensions=(6, 5), noise=0.05):
    """Two stores of related rows; 5 ids are only in the first, 3 only in the second."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((rows + 8, 4))
    stores = []
    for name, dimension, kept in (
        ("a", dimensions[0], range(rows + 5)),
        ("b", dimensions[1], [*range(rows), *range(rows + 5, rows + 8)]),
    ):
        values = latent @ rng.standard_normal((4, dimension)) + noise * rng.standard_normal(
            (rows + 8, dimension)
        )
        ids = [f"i{row}" for row in kept]
        order = rng.permutation(len(ids))
        store = sa.stores.create_store(
            folder / name, description={"made": name}, dimension=dimension
        )
        store.append([ids[k] for k in order], values[kept][order].astype(np.float32))
        stores.append(folder / name)
    return stores


def two_tower_encoder(folder):
    """A CLIP of 14 dimensions for texts and for images of 32 x 32."""
    from encoders.test_texts import write_tokenizer

    _write_encoder(folder, "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 3  # as the tokenizer has it
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
