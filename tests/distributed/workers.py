"""What each of two processes runs in test_distributed.py; imports little, for they start often."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from encoders.fakes import fake_preprocessors, texts

import semalign_jax as sa
from semalign_jax import distributed
from semalign_jax.distributed.processes import jointly
from semalign_jax.encoders import embed, load_encoder

CHUNK = {"batch_size": 4, "chunk_size": 4, "progress": True}
MANY = {"items": texts(50, longest=4), **CHUNK}


def error_of(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fail_within(really):
    with jointly("outer"):
        try:
            with jointly("inner"):
                if really:
                    raise ValueError("inner fails")
        except ValueError as error:
            raise ValueError("outer fails") from error


def work_together(coordinator, rank, folder, checkpoint):
    """With JAX's default settings; process 1 is killed in the end."""
    rank, folder = int(rank), Path(folder)
    distributed.initialize(coordinator, 2, rank, timeout=10)
    assert distributed.this_process() == (rank, 2)
    assert list(distributed.shard_rows(5)) == [[0, 1], [2, 3, 4]][rank]

    a, b = sa.stores.open_store(folder / "a"), sa.stores.open_store(folder / "b")
    batches = sa.stores.paired_batches(
        a, b, sa.stores.join_stores(a, b), 7, shard=distributed.this_process()
    )
    stats = distributed.accumulate_stats(batches)
    np.savez(folder / f"stats{rank}.npz", **stats._asdict())
    sa.save_map(sa.fit_from_stats("ortho", stats), folder / f"map{rank}.safetensors")
    first = distributed.merge_across_processes(stats if rank == 0 else None)
    assert all(map(np.array_equal, first, stats))

    fake_preprocessors(pytest.MonkeyPatch())
    encoder = load_encoder(checkpoint)
    for out in ("new", "begun"):
        result = embed(encoder, texts(), out=folder / out, **CHUNK)
        np.save(folder / f"{out}{rank}.npy", result.embeddings)

    x = np.ones((8, 2))
    broken = np.where(np.arange(8)[:, None] == 5, np.nan, x) if rank else x
    dtype = ("float32", "float16")[rank]
    # In the first chunk of process 1; process 0 has seven to make.
    items = [*MANY["items"][:4], "no number", *MANY["items"][5:]]
    wrong = {
        "arguments": lambda: embed(encoder, texts(), out=folder / "x", dtype=dtype, **CHUNK),
        "item": lambda: embed(encoder, items, out=folder / "y", **CHUNK),
        "nan": lambda: distributed.accumulate_stats([(broken, x)]),
        "shapes": lambda: distributed.merge_across_processes(sa.maps.init_stats(2 + rank, 3)),
        "nothing": lambda: distributed.merge_across_processes(None),
        "order": lambda: distributed.barrier(f"number {rank}"),
        "nested": lambda: fail_within(rank == 1),
        "after": lambda: distributed.barrier("after"),
    }
    errors = {name: error_of(call) for name, call in wrong.items()}
    (folder / f"errors{rank}.json").write_text(json.dumps(errors))
    embed_until_killed(encoder, folder / "killed", rank == 1)


def lose_the_first(coordinator, rank, folder, checkpoint):
    """Process 0 is killed while it embeds."""
    distributed.initialize(coordinator, 2, int(rank), timeout=10)
    fake_preprocessors(pytest.MonkeyPatch())
    embed_until_killed(load_encoder(checkpoint), Path(folder) / "killed", rank == "0")


def embed_until_killed(encoder, out, victim):
    """Embed; the victim is killed at its fourth write, when the file has its temporary name."""
    rename, count = os.replace, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == 4 and victim:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)

    os.replace = counted
    embed(encoder, out=out, **MANY)


def wait_for_others(coordinator, rank):
    """Process 1 never comes."""
    distributed.initialize(coordinator, 2, int(rank), start_timeout=2)
