"""What takes the place of preprocessing, for processes of tests too, which start often.

Texts are token ids, images are arrays. transformers, and with it PyTorch, is not imported.
"""

import os
import signal
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from semalign_jax.encoders import _embed, embed, load_encoder

TEXTS = 23


class Tokens(NamedTuple):
    rows: list
    types: None
    truncated: int


class FakeText:
    max_tokens, buckets, fingerprint = 16, (4, 8, 16), "text"

    def tokenize(self, texts):
        rows = [[int(word) for word in text.split()] for text in texts]
        return Tokens([row[:16] for row in rows], None, sum(len(row) > 16 for row in rows))

    def bucket(self, length):
        return next(size for size in self.buckets if size >= length)

    def pad(self, rows, length, types=None):
        mask = np.arange(length) < np.array([[len(row)] for row in rows])
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(rows)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int32)}


class FakeImage:
    outline, fingerprint = {"pixel_values": ((3, 32, 32), np.float32)}, "image"

    def inputs(self, image):
        if isinstance(image, str | os.PathLike):
            return {"pixel_values": np.load(image)}
        if image.shape != (3, 32, 32):
            raise ValueError(f"has shape {image.shape}")
        return {"pixel_values": image}


def fake_preprocessors(patch):
    patch.setattr(_embed, "text_preprocessor", lambda encoder, **_: FakeText())
    patch.setattr(_embed, "image_preprocessor", lambda encoder: FakeImage())


def texts(count=TEXTS, longest=16, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count, endpoint=True)
    return [" ".join(map(str, rng.integers(4, 60, length))) for length in lengths]


def one_device(**options):
    return {"devices": jax.devices()[:1], "batch_size": 4, "chunk_size": 10, **options}


def run_slowly(checkpoint, out, stop_at):
    """Embed; be killed at the `stop_at`-th write of a file, when it has its temporary name."""
    fake_preprocessors(pytest.MonkeyPatch())
    rename, count = os.replace, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)
        time.sleep(0.05)

    os.replace = counted
    embed(load_encoder(checkpoint), texts(50, longest=4), **one_device(out=out, chunk_size=4))
