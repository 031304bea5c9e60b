"""The folder that `embed` writes into; see `semalign_jax.stores.chunks` for its format.

Several processes write into one folder: process 0 holds its lock, writes the manifest and the ids,
and says which chunks are missing; these are dealt out in turn.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from .._core.files import as_path, content_hash, reading, write_atomically
from ..distributed.processes import Section
from ..stores.chunks import (
    IDS,
    MANIFEST,
    Chunk,
    ChunkFolder,
    differing,
    encoded_ids,
    locked,
    read_manifest,
    refuse_other_contents,
    refuse_other_run,
    write_manifest,
)

#: Seconds until a file that another machine has written must be visible here: networked file
#: systems remember for a while that it was not there.
_VISIBLE = 90.0


@contextmanager
def open_run(
    folder: Path, run: Mapping[str, Any], ids: Sequence[str], resume: bool, first: bool = True
) -> Iterator[ChunkFolder]:
    """Start a folder of embeddings or continue it; no other run can write while it is open.

    Args:
        folder: made if missing.
        run: what decides the embeddings, as JSON values; the hash of the ids is added.
        ids: one per item.
        resume: whether a folder that is begun may be continued.
        first: whether this is the first of the processes that write together; the others leave
            all to it.

    Raises:
        FileExistsError: if the folder holds something else, or anything without `resume`.
        ValueError: if it holds another run; lists what differs.
        RuntimeError: if another run has it open.
    """
    encoded = encoded_ids(ids)
    chunks = ChunkFolder(folder, {**run, "ids": content_hash([encoded])})
    if not first:
        yield chunks
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and resume is False: choose another folder or empty it"
        )
    refuse_other_contents(folder)
    with locked(folder):
        stored = read_manifest(folder)[0].run if (folder / MANIFEST).is_file() else None
        made = [*folder.glob("chunk-*"), *folder.glob(".begun-*")]
        if stored is not None and made:
            refuse_other_run(folder, stored, chunks.run)
        elif stored != chunks.run:  # also where another run ended, at a broken image, with nothing
            write_manifest(chunks)
        if not (folder / IDS).is_file() or (folder / IDS).read_bytes() != encoded:
            write_atomically(folder / IDS, encoded)
        yield chunks


def deal(chunks: ChunkFolder, whole: Sequence[int], section: Section) -> list[list[int]]:
    """Return the numbers of the chunks that each process is to make; those of process 0 are most.

    Args:
        chunks: of `open_run`.
        whole: the chunks that are there, as process 0 has found them.
        section: of the processes that write together.

    Raises:
        ValueError: if this process was started with other arguments than process 0.
        FileNotFoundError: if it does not see the folder of process 0.
    """
    missing = sorted(set(range(chunks.count)) - set(whole))
    plan = [chunks.run, missing] if section.index == 0 else None
    run, missing = section.exchange(plan)[0]
    lines = differing(run, chunks.run, "there", "here")
    if lines:
        raise ValueError(
            f"process {section.index} has other arguments than process 0, but both write into one "
            f"folder, {chunks.folder}. Different are:\n  " + "\n  ".join(lines)
        )
    if not _appears(chunks.folder / MANIFEST):
        raise FileNotFoundError(
            f"process {section.index} does not see {chunks.folder / MANIFEST}, which process 0 has "
            "written: out must be a folder that all processes share"
        )
    return [missing[process :: section.count] for process in range(section.count)]


def whole_chunks(chunks: ChunkFolder) -> Iterator[tuple[int, Chunk]]:
    """Yield the chunks that an earlier run has written; warn of those that are damaged."""
    for number in range(chunks.count):
        try:
            yield number, chunks.read(number)
        except FileNotFoundError:
            continue
        except ValueError as error:
            warnings.warn(f"{error}. The chunk is made again", stacklevel=3)


class Begun(NamedTuple):
    """A chunk of which a run was interrupted.

    Attributes:
        embeddings: ``[rows, dimension]``; undefined where not `done`.
        done: ``[rows]``, whether a row is there.
        truncated: number of texts that were cut so far.
    """

    embeddings: np.ndarray
    done: np.ndarray
    truncated: int


def _begun_path(chunks: ChunkFolder, number: int) -> Path:
    return chunks.folder / f".begun-{number:05d}.safetensors"


def _begun_header(chunks: ChunkFolder, number: int, begun: Begun) -> dict[str, str]:
    header = {"run": chunks.digest, "chunk": number, "truncated": begun.truncated}
    checksum = content_hash([json.dumps(header), begun.embeddings, begun.done])
    # One entry: safetensors writes several in an order that differs between runs.
    return {"begun": json.dumps({**header, "sha256": checksum})}


def save_begun(chunks: ChunkFolder, number: int, begun: Begun) -> None:
    """Keep what is done of a chunk, in a hidden file, until the chunk is written."""
    tensors = {"embeddings": begun.embeddings, "done": begun.done}
    data = safetensors.numpy.save(tensors, _begun_header(chunks, number, begun))
    write_atomically(_begun_path(chunks, number), data)


def read_begun(chunks: ChunkFolder, number: int) -> Begun | None:
    """What an interrupted run of these settings has kept of a chunk; None without a word if not."""
    path = _begun_path(chunks, number)
    if not path.is_file():
        return None
    try:
        with reading(path, "begun chunk"), safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            truncated = json.loads(metadata["begun"])["truncated"]
            begun = Begun(file.get_tensor("embeddings"), file.get_tensor("done"), truncated)
            whole = metadata == _begun_header(chunks, number, begun)
    except ValueError:  # it is made again
        return None
    return begun if whole else None


def drop_begun(chunks: ChunkFolder, number: int) -> None:
    """Remove what `save_begun` has kept."""
    _begun_path(chunks, number).unlink(missing_ok=True)


def chunks_of_others(chunks: ChunkFolder, own: set[int]) -> Iterator[tuple[int, Chunk]]:
    """Yield the chunks that other processes have written."""
    for number in range(chunks.count):
        if number not in own:
            _appears(chunks.path(number))
            yield number, chunks.read(number)


def _appears(path: Path) -> bool:
    until = time.monotonic() + _VISIBLE
    while not path.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


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
    chunks, _ = read_manifest(as_path(folder))
    ids = chunks.read_ids()
    foreign = chunks.foreign()
    if foreign:
        raise ValueError(f"{foreign[0]} is no chunk of this run, which has {chunks.count}")
    embeddings = np.empty((chunks.items, chunks.run["dimension"]), jnp.dtype(chunks.run["dtype"]))
    for number in range(chunks.count):
        span = chunks.span(number)
        embeddings[span.start : span.stop] = chunks.read(number).embeddings
    return ids, embeddings
