"""The format of embeddings on disk: a manifest and chunks that are whole or absent.

There are two kinds of folders. Version 1 is written by `encoders.embed`: all ids are known from the
start, in one file, and chunks are of one size. Version 2 grows: each chunk has a file of ids, and
the manifest lists the chunks, so that an append counts when the manifest is replaced.

The manifest's ``run`` says what decides the embeddings, and every chunk carries the hash of it, its
number and a checksum of its values. So a chunk that was cut, changed, misplaced or written by
another run is found when it is read.
"""

import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from .._core.checks import counted
from .._core.documents import parse_json
from .._core.files import content_hash, format_header, format_problem, reading, write_atomically
from .._core.trees import by_value

MANIFEST, IDS = "manifest.json", "ids.json"
_LOCK = ".lock"
_FORMAT = "semalign_jax.embeddings"
FIXED, GROWING = 1, 2
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
#: What a store can hold.
DTYPES = tuple(_SAFETENSORS_NAMES)
#: What a reader needs of a manifest's ``run``; the rest only identifies the run.
_RUN_KEYS = {
    FIXED: {"items": int, "dimension": int, "dtype": str, "chunk_size": int, "ids": str},
    GROWING: {"description": dict, "dimension": int, "dtype": str},
}
_HASHED_BYTES = 1 << 20
_MOST_ROWS = 1 << 40  # of a chunk; beyond it sums of them do not fit into 64 bits


@by_value
class Chunk(NamedTuple):
    """Consecutive items.

    Attributes:
        embeddings: ``[rows, dimension]``.
        truncated: number of texts that were cut.
    """

    embeddings: np.ndarray
    truncated: int


class Part(NamedTuple):
    """What the manifest of a growing folder says of a chunk.

    Attributes:
        rows: number of rows, at least 1.
        ids: sha256 of the chunk's file of ids.
        sha256: checksum of the chunk.
    """

    rows: int
    ids: str
    sha256: str


class IdFile(NamedTuple):
    """What the manifest says of a file of ids."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class ChunkFolder:
    """The chunks of one folder.

    Attributes:
        folder: where they are.
        run: all that decides their bytes; JSON values.
        parts: the chunks of a folder that grows, else None.
    """

    folder: Path
    run: Mapping[str, Any]
    parts: tuple[Part, ...] | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of `run`."""
        return content_hash([_json(self.run)])

    @cached_property
    def checksum(self) -> str:
        """Hash of the chunks' checksums, which stand in their headers: no values are read."""
        if self.parts is not None:
            return content_hash(part.sha256 for part in self.parts)
        return content_hash(self._open(number)[1]["sha256"] for number in range(self.count))

    @cached_property
    def ends(self) -> np.ndarray:
        """For each chunk the position after its last item, ``[count]``."""
        if self.parts is not None:
            return np.cumsum([part.rows for part in self.parts], dtype=np.int64)
        items, size = self.items, self.run["chunk_size"]
        return np.minimum(np.arange(1, -(-items // size) + 1) * size, items)

    @property
    def count(self) -> int:
        """Number of chunks."""
        return len(self.ends)

    @property
    def items(self) -> int:
        """Number of items."""
        if self.parts is None:
            return self.run["items"]
        return sum(part.rows for part in self.parts)

    @cached_property
    def id_files(self) -> list[IdFile]:
        """The files of ids, in order."""
        if self.parts is None:
            return [IdFile(IDS, self.items, self.run["ids"])]
        return [IdFile(ids_name(n), part.rows, part.ids) for n, part in enumerate(self.parts)]

    def span(self, number: int) -> range:
        """Return the positions of a chunk's items."""
        return range(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def path(self, number: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"chunk-{number:05d}.safetensors"

    def foreign(self) -> list[Path]:
        """Return the files that are named like chunks or their ids and do not belong here.

        What an append has left that was killed before it counted belongs here: the next overwrites
        it.
        """
        known = {self.path(number) for number in range(self.count)}
        known |= {self.folder / file.name for file in self.id_files}
        if self.parts is not None:
            known |= {self.path(self.count), self.folder / ids_name(self.count)}
        found = [*self.folder.glob("chunk-*"), *self.folder.glob("ids-*.json")]
        return sorted(set(found) - known)

    def write(self, number: int, chunk: Chunk) -> str:
        """Write a chunk, in one step, and return its checksum."""
        header = self._header(number, chunk.truncated)
        header["sha256"] = _checksum(header, chunk.embeddings)
        # One metadata entry: safetensors writes several in an order that differs between runs.
        metadata = {"chunk": _json(header).decode()}
        data = safetensors.numpy.save({"embeddings": chunk.embeddings}, metadata)
        write_atomically(self.path(number), data)
        return header["sha256"]

    def read(self, number: int) -> Chunk:
        """Read a chunk, mapped from its file; refuses what is not as it was written, or foreign."""
        embeddings, header = self._open(number)
        checksum = header.pop("sha256")
        if checksum != _checksum(header, embeddings):
            raise ValueError(
                f"{self.path(number)} is damaged: its contents do not have their sha256"
            )
        return Chunk(embeddings, header["truncated"])

    def view(self, number: int) -> np.ndarray:
        """Map a chunk's ``[rows, dimension]`` into memory; as `read`, but looks at no values."""
        return self._open(number)[0]

    def read_ids(self) -> list[str]:
        """Read and verify the ids."""
        return [name for file in self.id_files for name in self.read_id_file(file)]

    def read_id_file(self, file: IdFile) -> list[str]:
        """Read and verify one of `id_files`."""
        path = self.folder / file.name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {self._remedy}")
        data = path.read_bytes()
        if content_hash([data]) != file.sha256:
            raise ValueError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
        ids = parse_json(data, path)
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise ValueError(f"{path} must hold a JSON list of ids, which are texts")
        if len(ids) != file.rows:
            raise ValueError(
                f"{path} holds {counted(len(ids), 'id')}; {MANIFEST} says "
                f"{counted(file.rows, 'item')}"
            )
        return ids

    def _open(self, number: int) -> tuple[np.ndarray, dict[str, Any]]:
        path = self.path(number)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {self._remedy}")
        with reading(path, "chunk of embeddings"):
            path.open("rb").close()  # safetensors calls a file missing that the system refuses
            with safetensors.safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                header = parse_json((file.metadata() or {})["chunk"], path)
                tensor = file.get_slice("embeddings")
                found = [names, tensor.get_dtype(), list(tensor.get_shape())]
            origin = (header["run"], header["chunk"])
            truncated, checksum = header["truncated"], header["sha256"]
        if origin != (self.digest, number):
            raise ValueError(
                f"{path} is chunk {origin[1]} of run {str(origin[0])[:12]}; expected chunk "
                f"{number} of run {self.digest[:12]}, which {MANIFEST} describes"
            )
        name, shape = self.run["dtype"], [len(self.span(number)), self.run["dimension"]]
        if found != [["embeddings"], _SAFETENSORS_NAMES[name], shape]:
            raise ValueError(f"{path} is damaged: its tensor is not {name} {shape}")
        if header != {**self._header(number, truncated), "sha256": checksum} or (
            self.parts is not None and checksum != self.parts[number].sha256
        ):
            raise ValueError(f"{path} is damaged: its contents do not have their sha256")
        dtype = jnp.dtype(name)
        # safe_open has checked that the one tensor fills the file after the header.
        offset = path.stat().st_size - shape[0] * shape[1] * dtype.itemsize
        return np.memmap(path, dtype, "r", offset, (shape[0], shape[1])), header

    def _header(self, number: int, truncated: int) -> dict[str, Any]:
        header = {"run": self.digest, "chunk": number, "truncated": truncated}
        if self.parts is not None:  # otherwise run has the hash of all ids
            header["ids"] = self.parts[number].ids
        return header

    @property
    def _remedy(self) -> str:
        if self.parts is None:
            return (
                "the run was not finished, or the file was removed; run embed again with the same "
                "arguments to make it"
            )
        return "it was removed; restore it from a copy, or make the folder again"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _checksum(header: Mapping[str, Any], embeddings: np.ndarray) -> str:
    rows = max(1, _HASHED_BYTES // (embeddings.itemsize * embeddings.shape[1]))
    parts = (
        np.ascontiguousarray(embeddings[start : start + rows]).tobytes()
        for start in range(0, len(embeddings), rows)
    )
    return content_hash(itertools.chain([_json(header)], parts))


def ids_name(number: int) -> str:
    """Return the name of the file of a chunk's ids, in a folder that grows."""
    return f"ids-{number:05d}.json"


def encoded_ids(ids: Sequence[str]) -> bytes:
    """Return the bytes of a file of ids."""
    # ASCII, since names of files can hold bytes that are not UTF-8.
    return json.dumps(list(ids), indent=0).encode("ascii")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder; also removes what killed writers left.

    The lock belongs to the process, not to the file ``.lock``, which stays: it ends with the
    process, however that ends.
    """
    import filelock  # only who writes needs it

    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RuntimeError(f"another process writes embeddings into {folder}") from None
    try:
        for name in (MANIFEST, "ids*.json", "chunk-*.safetensors"):
            for left in folder.glob(f".{name}.*"):
                left.unlink()
        yield
    finally:
        lock.release()


def refuse_other_contents(folder: Path) -> None:
    """Raise FileExistsError if a folder holds anything but embeddings."""
    others = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if others and MANIFEST not in others:
        raise FileExistsError(
            f"{folder} holds {sorted(others)[0]} and no {MANIFEST}: it is no folder of "
            "embeddings; choose another"
        )


def refuse_other_run(folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError if two runs differ; lists what differs."""
    lines = differing(stored, now, "there", "now")
    if lines:
        raise ValueError(
            f"{folder} holds embeddings of another run, so it cannot be continued; choose "
            "another folder. Different are:\n  " + "\n  ".join(lines)
        )


def differing(
    one: Mapping[str, Any], two: Mapping[str, Any], where_one: str, where_two: str
) -> list[str]:
    """Return a line for each key whose values differ."""
    return [
        f"{name}: {one.get(name)!r} {where_one}, {two.get(name)!r} {where_two}"
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]


def write_manifest(chunks: ChunkFolder, versions: Mapping[str, str] | None = None) -> None:
    """Write the manifest in one step, with the versions of packages, by default those installed."""
    if versions is None:
        packages = ("semalign_jax", "jax", "jaxlib")
        versions = {name: importlib.metadata.version(name) for name in packages}
    manifest = {
        **format_header(_FORMAT, FIXED if chunks.parts is None else GROWING),
        "versions": versions,
        "run": chunks.run,
    }
    if chunks.parts is not None:
        manifest["chunks"] = [part._asdict() for part in chunks.parts]
    data = json.dumps(manifest, indent=2, sort_keys=True).encode()
    write_atomically(chunks.folder / MANIFEST, data)


def read_manifest(folder: Path) -> tuple[ChunkFolder, dict[str, str]]:
    """Return what the manifest of a folder of embeddings says, and the versions of packages."""
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.exists():
            raise FileNotFoundError(f"no embeddings at {folder}: there is no such folder")
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: it is no folder of embeddings"
            + "; import_store or `semalign convert` makes one of it" * folder.is_file()
        )
    with reading(path, "manifest of embeddings"):
        manifest = parse_json(path.read_bytes(), path)
        version, run = manifest["format_version"], manifest["run"]
        problem = format_problem(manifest, _FORMAT, FIXED, GROWING)
        keys = {} if problem else _RUN_KEYS[version]
        wrong = [key for key, kind in keys.items() if not isinstance(run[key], kind)]
        wrong += [key for key, kind in keys.items() if kind is int and run[key] < 1]
        parts = None
        if version == GROWING:
            parts = tuple(Part(**entry) for entry in manifest["chunks"])
            wrong += ["chunks"] * (
                not all(type(p.rows) is int and 0 < p.rows < _MOST_ROWS for p in parts)
            )
        versions = dict(manifest["versions"])
    if problem:
        raise ValueError(f"{path} {problem}")
    if wrong or run["dtype"] not in _SAFETENSORS_NAMES:
        raise ValueError(f"{path} is damaged: see {', '.join(wrong) or 'dtype'}")
    ids = folder / IDS
    # An id takes three characters at least: a wrong number must not decide how much memory is asked
    # for.
    if parts is None and ids.is_file() and run["items"] > max(1, ids.stat().st_size // 3):
        raise ValueError(
            f"{path} says {counted(run['items'], 'item')}, more than {ids} can hold: {MANIFEST} or "
            f"{IDS} is damaged"
        )
    return ChunkFolder(folder, run, parts), versions
