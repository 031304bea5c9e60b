"""Embeddings on disk: a manifest and chunks that are whole or absent.

The manifest says what decides the embeddings (encoder, items, batches, devices) and every chunk
carries the hash of that part, its number and a checksum of its values. So a chunk that was cut,
changed, misplaced or written by another run is found when it is read.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ..io import write_atomically

MANIFEST, IDS = "manifest.json", "ids.json"
_LOCK = ".lock"
_FORMAT = "semalign_jax.embeddings"
_FORMAT_VERSION = 1
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
#: What a reader needs of a manifest's ``run``; the rest only identifies the run.
_RUN_KEYS = {"items": int, "dimension": int, "dtype": str, "chunk_size": int, "ids": str}


class Chunk(NamedTuple):
    """Consecutive items.

    Attributes:
        embeddings: ``[rows, dimension]``.
        truncated: number of texts that were cut.
    """

    embeddings: np.ndarray
    truncated: int


@dataclass(frozen=True)
class Store:
    """The chunks of one folder.

    Attributes:
        folder: where they are.
        run: all that decides their bytes; JSON values.
    """

    folder: Path
    run: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Hash of `run`."""
        return hashlib.sha256(_json(self.run)).hexdigest()

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.run["items"] // self.run["chunk_size"])

    def span(self, number: int) -> range:
        """Return the positions of a chunk's items."""
        start = number * self.run["chunk_size"]
        return range(start, min(start + self.run["chunk_size"], self.run["items"]))

    def path(self, number: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"chunk-{number:05d}.safetensors"

    def write(self, number: int, chunk: Chunk) -> None:
        """Write a chunk, in one step."""
        header = self._header(number, chunk.truncated)
        header["sha256"] = _checksum(header, chunk.embeddings)
        # One metadata entry: safetensors writes several in an order that differs between runs.
        metadata = {"chunk": _json(header).decode()}
        data = safetensors.numpy.save({"embeddings": chunk.embeddings}, metadata)
        write_atomically(self.path(number), data)

    def read(self, number: int) -> Chunk:
        """Read and verify a chunk.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is not whole, not as it was written, or of another run or place.
        """
        path = self.path(number)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the run was not finished, or the file was removed; run embed "
                "again with the same arguments to make it"
            )
        data = path.read_bytes()
        try:
            tensor = dict(safetensors.deserialize(data))["embeddings"]
            size = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["chunk"])
            found = (header["run"], header["chunk"])
            checksum, truncated = header.pop("sha256"), header["truncated"]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged or no chunk of embeddings: {error}") from None
        if found != (self.digest, number):
            raise ValueError(
                f"{path} is chunk {found[1]} of run {str(found[0])[:12]}; expected chunk {number} "
                f"of run {self.digest[:12]}, which {MANIFEST} describes"
            )
        dtype = self.run["dtype"]
        shape = [len(self.span(number)), self.run["dimension"]]
        if [tensor["dtype"], tensor["shape"]] != [_SAFETENSORS_NAMES.get(dtype), shape]:
            raise ValueError(f"{path} is damaged: its tensor is not {dtype} {shape}")
        embeddings = np.frombuffer(tensor["data"], jnp.dtype(dtype)).reshape(shape)
        if header != self._header(number, truncated) or checksum != _checksum(header, embeddings):
            raise ValueError(f"{path} is damaged: its contents do not have their sha256")
        return Chunk(embeddings, truncated)

    def _header(self, number: int, truncated: int) -> dict[str, Any]:
        return {"run": self.digest, "chunk": number, "truncated": truncated}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _checksum(header: Mapping[str, Any], embeddings: np.ndarray) -> str:
    total = hashlib.sha256(_json(header))
    total.update(np.ascontiguousarray(embeddings).tobytes())
    return total.hexdigest()


def _encoded_ids(ids: Sequence[str]) -> bytes:
    # ASCII, since names of files can hold bytes that are not UTF-8.
    return json.dumps(list(ids), indent=0).encode("ascii")


@contextmanager
def open_store(
    folder: Path, run: Mapping[str, Any], ids: Sequence[str], resume: bool
) -> Iterator[Store]:
    """Start a folder of embeddings or continue it; no other process can write while it is open.

    The lock belongs to the process, not to the file ``.lock``, which stays: it ends with the
    process, however that ends.

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
    encoded = _encoded_ids(ids)
    store = Store(folder, {**run, "ids": hashlib.sha256(encoded).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if others and not resume:
        raise FileExistsError(
            f"{folder} is not empty and resume is False: choose another folder or empty it"
        )
    if others and MANIFEST not in others:
        raise FileExistsError(
            f"{folder} holds {sorted(others)[0]} and no {MANIFEST}: it is no folder of "
            "embeddings; choose another"
        )
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RuntimeError(f"another process writes embeddings into {folder}") from None
    try:
        _prepare(store, encoded)
        yield store
    finally:
        lock.release()


def _prepare(store: Store, encoded_ids: bytes) -> None:
    folder = store.folder
    for name in (MANIFEST, IDS, "chunk-*.safetensors"):
        for left in folder.glob(f".{name}.*"):  # by a run that was killed while writing
            left.unlink()
    if (folder / MANIFEST).is_file():
        stored = read_manifest(folder)["run"]
        names = sorted(stored.keys() | store.run.keys())
        differing = [
            f"{name}: {stored.get(name)!r} there, {store.run.get(name)!r} now"
            for name in names
            if stored.get(name) != store.run.get(name)
        ]
        if differing:
            raise ValueError(
                f"{folder} holds embeddings of another run, so it cannot be continued; choose "
                "another folder. Different are\n  " + "\n  ".join(differing)
            )
    else:
        packages = ("semalign_jax", "jax", "jaxlib")
        manifest = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "run": store.run,
        }
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())
    if not (folder / IDS).is_file() or (folder / IDS).read_bytes() != encoded_ids:
        write_atomically(folder / IDS, encoded_ids)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of embeddings.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is malformed or of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no folder of embeddings")
    try:
        manifest = json.loads(path.read_bytes())
        found, version, run = (manifest[k] for k in ("format", "format_version", "run"))
        wrong = [key for key, kind in _RUN_KEYS.items() if not isinstance(run[key], kind)]
        wrong += [key for key, kind in _RUN_KEYS.items() if kind is int and run[key] < 1]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no manifest of embeddings: {error!r}") from None
    if found != _FORMAT or version != _FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {found!r} version {version!r}; this release reads {_FORMAT!r} "
            f"version {_FORMAT_VERSION}"
        )
    if wrong or run["dtype"] not in _SAFETENSORS_NAMES:
        raise ValueError(f"{path} is damaged: see {', '.join(wrong) or 'dtype'}")
    return manifest


def read_ids(store: Store) -> list[str]:
    """Read and verify the ids of a store.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not as it was written.
    """
    path = store.folder / IDS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run embed again with the same arguments")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != store.run["ids"]:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    return json.loads(data)


def read_embeddings(folder: str | Path) -> tuple[list[str], np.ndarray]:
    """Read what `embed` wrote into a folder, and verify all of it.

    Args:
        folder: the folder.

    Returns:
        The ids, and the embeddings ``[n, dimension]`` in the same order.

    Raises:
        FileNotFoundError: if the manifest, the ids or a chunk is missing; names the file.
        ValueError: if a file is damaged or belongs to another run; names the file.
    """
    folder = Path(folder)
    store = Store(folder, read_manifest(folder)["run"])
    ids = read_ids(store)
    known = {store.path(number) for number in range(store.count)}
    foreign = sorted(set(folder.glob("chunk-*")) - known)
    if foreign:
        raise ValueError(f"{foreign[0]} is no chunk of this run, which has {store.count}")
    run = store.run
    embeddings = np.empty((run["items"], run["dimension"]), jnp.dtype(run["dtype"]))
    for number in range(store.count):
        span = store.span(number)
        embeddings[span.start : span.stop] = store.read(number).embeddings
    return ids, embeddings
