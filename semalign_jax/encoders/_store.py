"""The folder that `embed` writes into; see `semalign_jax._chunks` for its format."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._chunks import (
    IDS,
    MANIFEST,
    ChunkFolder,
    encoded_ids,
    locked,
    read_manifest,
    refuse_other_contents,
    refuse_other_run,
    write_manifest,
)
from ..io import write_atomically


@contextmanager
def open_run(
    folder: Path, run: Mapping[str, Any], ids: Sequence[str], resume: bool
) -> Iterator[ChunkFolder]:
    """Start a folder of embeddings or continue it; no other process can write while it is open.

    Args:
        folder: made if missing.
        run: what decides the embeddings, as JSON values; the hash of the ids is added.
        ids: one per item.
        resume: whether a folder that is begun may be continued.

    Raises:
        FileExistsError: if the folder holds something else, or anything without `resume`.
        ValueError: if it holds another run; lists what differs.
        RuntimeError: if another process has it open.
    """
    encoded = encoded_ids(ids)
    chunks = ChunkFolder(folder, {**run, "ids": hashlib.sha256(encoded).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and resume is False: choose another folder or empty it"
        )
    refuse_other_contents(folder)
    with locked(folder):
        if (folder / MANIFEST).is_file():
            refuse_other_run(folder, read_manifest(folder)[0].run, chunks.run)
        else:
            write_manifest(chunks)
        if not (folder / IDS).is_file() or (folder / IDS).read_bytes() != encoded:
            write_atomically(folder / IDS, encoded)
        yield chunks


def read_embeddings(folder: str | Path) -> tuple[list[str], np.ndarray]:
    """Read a folder of embeddings into memory, and verify all of it.

    Args:
        folder: written by `embed` or with `create_store`.

    Returns:
        The ids, and the embeddings ``[n, dimension]`` in the same order.

    Raises:
        FileNotFoundError: if the manifest, the ids or a chunk is missing; names the file.
        ValueError: if a file is damaged or belongs to another run; names the file.
    """
    chunks, _ = read_manifest(Path(folder))
    ids = chunks.read_ids()
    foreign = chunks.foreign()
    if foreign:
        raise ValueError(f"{foreign[0]} is no chunk of this run, which has {chunks.count}")
    embeddings = np.empty((chunks.items, chunks.run["dimension"]), jnp.dtype(chunks.run["dtype"]))
    for number in range(chunks.count):
        span = chunks.span(number)
        embeddings[span.start : span.stop] = chunks.read(number).embeddings
    return ids, embeddings
