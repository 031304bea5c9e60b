"""Stores: folders of embeddings that may be larger than memory.

A store is what `encoders.embed` wrote with ``out=``, or is made with `create_store` from embeddings
that come from elsewhere. Rows are read through memory maps; `paired_batches` streams the matched
rows of two stores into `accumulate_stats`, and `fit_from_stats` fits the maps.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.files import as_path, content_hash, write_atomically
from .._core.ids import id_text
from .._core.trees import by_value
from . import chunks as _chunks
from .chunks import Chunk, ChunkFolder, Part

#: Rows that are read at a time where all are.
ROWS_AT_ONCE = 4096
#: Ids that did not match and are kept for messages.
_SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingStore:
    """Embeddings on disk, see `open_store`.

    It shows the folder as it was when opened: rows that are appended later are not seen.

    Attributes:
        folder: where the files are.
        ids: one per row; what other programs write as 7.0 is "7".
        versions: of the packages that made the embeddings.
    """

    folder: Path
    ids: tuple[str, ...]
    versions: Mapping[str, str]
    _files: ChunkFolder

    def __len__(self) -> int:
        return self._files.items

    def __repr__(self) -> str:
        shape = f"{len(self)} x {self.dimension}"
        return f"EmbeddingStore({str(self.folder)!r}, {shape}, {self.dtype})"

    @property
    def dimension(self) -> int:
        """Length of a row."""
        return self._files.run["dimension"]

    @property
    def dtype(self) -> np.dtype:
        """Of the rows: bfloat16, float16, float32 or float64."""
        return jnp.dtype(self._files.run["dtype"])

    @property
    def description(self) -> dict[str, Any]:
        """What made the embeddings: what `create_store` was given.

        Of `encoders.embed`, what decided them: encoder, hash of the weights, pooling,
        preprocessing, batches and devices.
        """
        run = self._files.run
        if self._files.parts is not None:
            return dict(run["description"])
        return {k: v for k, v in run.items() if k not in ("items", "dimension", "dtype", "ids")}

    @property
    def checksum(self) -> str:
        """Of all rows and ids: that of a store that has others, or more, is another.

        It is read from the headers of the chunks, no row is; but of a .npy file all are.

        Raises:
            FileNotFoundError: if a chunk is missing; names the file.
            ValueError: if a chunk is not whole or foreign; names the file.
        """
        return self._files.checksum

    def rows(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read rows; only those are loaded, through memory maps of the chunks.

        What a chunk's header says is checked, its values are not: see `verify_store`.

        Args:
            index: a slice, or integers ``[k]`` in any order, from -n to n - 1 as in NumPy.

        Returns:
            ``[k, dimension]`` in the store's dtype.

        Raises:
            TypeError: if `index` is neither; a boolean mask is refused.
            IndexError: if a row is out of range; names it.
            FileNotFoundError: if a chunk is missing; names the file.
            ValueError: if a chunk is not whole or foreign; names the file.
        """
        positions = _positions(index, len(self))
        number = np.searchsorted(self._files.ends, positions, side="right")
        order = np.argsort(number, kind="stable")
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
        out = np.empty((len(positions), self.dimension), self.dtype)
        for where in np.split(order, starts[1:]):
            if where.size:
                chunk = int(number[where[0]])
                rows = positions[where] - self._files.span(chunk).start
                out[_as_slice(where)] = self._files.view(chunk)[_as_slice(rows)]
        return out

    def batches(self, batch_rows: int) -> Iterator[np.ndarray]:
        """Yield consecutive blocks ``[batch_rows, dimension]``, the last one maybe shorter.

        Raises:
            TypeError: if `batch_rows` is not an int.
            ValueError: if it is below 1, or as `rows`.
        """
        batch_rows = checks.positive_int("batch_rows", batch_rows)
        starts = range(0, len(self), batch_rows)
        return (self.rows(slice(start, start + batch_rows)) for start in starts)

    def append(
        self, ids: Sequence[str], rows: Any, *, description: Mapping[str, Any] | None = None
    ) -> "EmbeddingStore":
        """Add rows to a store of `create_store`, all or none of them.

        They become a chunk of their own, so give many at a time. They count when the manifest is
        replaced; what an interrupted append has left is overwritten by the next one.

        Args:
            ids: one per row, new.
            rows: ``[k, dimension]``, k >= 1, finite, in the store's dtype.
            description: of the rows, if it is to be compared with the store's.

        Returns:
            The store with the new rows; this one stays as it was.

        Raises:
            TypeError: if an id is not a str, or `rows` is a masked array.
            ValueError: if an id is in the store already or twice in `ids`; if the rows are of
                another dimension, dtype or description (lists what differs), not finite or not one
                per id; if the store was written by `encoders.embed`, or changed since it was
                opened.
            RuntimeError: if another process is writing.
        """
        checks.refuse_masked("rows", rows)
        rows = np.asarray(rows)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no store: import_store makes one of a file")
        if self._files.parts is None:
            raise ValueError(
                f"{self.folder} was written by embed, with all its items: append to a store of "
                "create_store"
            )
        self._check_append(ids, rows, description)
        rows = np.ascontiguousarray(rows, self.dtype)  # in the byte order of this machine
        with _chunks.locked(self.folder):
            current, _ = _chunks.read_manifest(self.folder)
            if current != self._files:
                raise ValueError(f"{self.folder} has changed since it was opened: open it again")
            number, encoded = current.count, _chunks.encoded_ids(ids)
            write_atomically(self.folder / _chunks.ids_name(number), encoded)
            part = Part(len(rows), content_hash([encoded]), "")
            grown = replace(current, parts=(*self._files.parts, part))
            part = part._replace(sha256=grown.write(number, Chunk(rows, 0)))
            grown = replace(current, parts=(*self._files.parts, part))
            _chunks.write_manifest(grown, self.versions)
        return replace(self, ids=(*self.ids, *map(id_text, ids)), _files=grown)

    def _check_append(
        self, ids: Sequence[str], rows: np.ndarray, description: Mapping[str, Any] | None
    ) -> None:
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"rows must be [k, dimension] with k >= 1; got shape {rows.shape}")
        now = {"dimension": rows.shape[1], "dtype": rows.dtype.name}
        now["description"] = self.description if description is None else _json_of(description)
        _refuse_other(self, now)
        _check_ids(ids)
        if len(ids) != len(rows):
            raise ValueError(
                f"ids must be one per row: got {checks.counted(len(ids), 'id')} and "
                f"{checks.counted(len(rows), 'row')}"
            )
        seen = set(self.ids)
        for row, name in enumerate(map(id_text, ids)):
            if name in seen:
                raise ValueError(
                    f"ids: {name!r} of row {row} is a duplicate, of a row before it or of one in "
                    f"{self.folder}; every id must be new"
                )
            seen.add(name)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(
                f"rows holds NaN or infinity in row {bad[0]} (id {ids[bad[0]]!r}; "
                f"{checks.counted(bad.size, 'such row')}): leave them out"
            )


def _positions(index: Any, count: int) -> np.ndarray:
    if isinstance(index, slice):
        return np.arange(count)[index]
    positions = np.asarray(index)
    if positions.size == 0 and positions.ndim == 1:
        return np.zeros(0, np.int64)
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        raise TypeError(
            "index must be a slice or a one-dimensional sequence of integers; got shape "
            f"{positions.shape} of {positions.dtype}. Of a mask use np.flatnonzero(mask)"
        )
    bad = positions[(positions < -count) | (positions >= count)]
    if bad.size:
        raise IndexError(
            f"index: row {bad[0]} is out of range, the store has {checks.counted(count, 'row')}"
        )
    positions = positions.astype(np.int64)
    return np.where(positions < 0, positions + count, positions)


def _as_slice(index: np.ndarray) -> np.ndarray | slice:
    """Consecutive numbers as a slice, with which rows are copied once and not twice."""
    if index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _check_ids(ids: Any) -> None:
    if isinstance(ids, str):
        raise TypeError("ids must be a sequence of str; got one str")
    for row, name in enumerate(ids):
        if not isinstance(name, str):
            raise TypeError(f"ids must be str; that of row {row} is {name!r}")


def _json_of(description: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(description, Mapping):
        raise TypeError(f"description must be a mapping; got {type(description).__name__}")
    try:
        return json.loads(json.dumps(dict(description), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"description must consist of JSON values: {error}") from None


def _refuse_other(store: EmbeddingStore, now: Mapping[str, Any]) -> None:
    # Keys of the description one by one, so that the message shows what differs.
    there = {"dimension": store.dimension, "dtype": store.dtype.name}
    description = {f"description[{k!r}]": v for k, v in store.description.items()}
    other = {f"description[{k!r}]": v for k, v in now["description"].items()}
    now = {k: v for k, v in now.items() if k != "description"}
    _chunks.refuse_other_run(store.folder, {**there, **description}, {**now, **other})


def open_store(folder: str | os.PathLike) -> EmbeddingStore:
    """Open a folder of embeddings; loads the ids, but no rows.

    Args:
        folder: written by `encoders.embed` or made with `create_store`.

    Raises:
        FileNotFoundError: if the manifest or a file of ids is missing; names it.
        ValueError: if one of them is damaged; names it.
    """
    folder = as_path(folder)
    chunks, versions = _chunks.read_manifest(folder)
    return EmbeddingStore(folder, tuple(map(id_text, chunks.read_ids())), versions, chunks)


def create_store(
    folder: str | os.PathLike,
    *,
    description: Mapping[str, Any],
    dimension: int,
    dtype: Any = np.float32,
) -> EmbeddingStore:
    """Make an empty store, or open the one that is there to continue it.

    Args:
        folder: made if missing.
        description: what made the embeddings, e.g. encoder, hash of its weights, pooling and
            preprocessing, as JSON values.
        dimension: length of a row.
        dtype: bfloat16, float16, float32 or float64.

    Raises:
        TypeError: if `description` has other values or `dimension` is no int.
        ValueError: for another dtype, or if the folder holds embeddings of another dimension,
            dtype or description (lists what differs).
        FileExistsError: if the folder holds something else.
        RuntimeError: if another process is writing.
    """
    folder = as_path(folder)
    name = checks.option("dtype", jnp.dtype(dtype).name, _chunks.DTYPES)
    dimension = checks.positive_int("dimension", dimension)
    run = {"description": _json_of(description), "dimension": dimension, "dtype": name}
    folder.mkdir(parents=True, exist_ok=True)
    _chunks.refuse_other_contents(folder)
    with _chunks.locked(folder):
        if not (folder / _chunks.MANIFEST).is_file():
            _chunks.write_manifest(ChunkFolder(folder, run, ()))
    store = open_store(folder)
    _refuse_other(store, run)
    return store


class StoreProblem(NamedTuple):
    """What `verify_store` found.

    Attributes:
        file: name of the file in the folder.
        message: what is wrong with it, with its path.
    """

    file: str
    message: str


def verify_store(folder: str | os.PathLike) -> list[StoreProblem]:
    """Read all of a store and return what is wrong with it.

    Finds flipped bits, missing and foreign chunks, chunks of other stores or places, ids that are
    changed, repeated or not one per row, and rows with NaN or infinity. A file that the system does
    not let it read is listed with what the system says.

    Args:
        folder: of a store.

    Returns:
        The problems, by file; none if the store is whole.
    """
    folder = as_path(folder)
    try:
        chunks, _ = _chunks.read_manifest(folder)
    except (OSError, ValueError) as error:
        return [StoreProblem(_chunks.MANIFEST, _why(folder / _chunks.MANIFEST, error))]
    problems = []
    seen: set[str] = set()
    for file in chunks.id_files:
        try:
            ids = chunks.read_id_file(file)
        except (OSError, ValueError) as error:
            problems.append(StoreProblem(file.name, _why(folder / file.name, error)))
            if chunks.parts is None:  # then it alone says how many chunks there are
                return problems
            continue
        for position, name in enumerate(map(id_text, ids)):
            if name in seen:
                message = f"{folder / file.name}: {name!r}, number {position}, is there twice"
                problems.append(StoreProblem(file.name, message))
            seen.add(name)
    for number in range(chunks.count):
        path = chunks.path(number)
        try:
            rows = chunks.read(number).embeddings
        except (OSError, ValueError) as error:
            problems.append(StoreProblem(path.name, _why(path, error)))
            continue
        for start in range(0, len(rows), ROWS_AT_ONCE):
            bad = np.flatnonzero(~np.isfinite(rows[start : start + ROWS_AT_ONCE]).all(axis=1))
            if bad.size:
                row = chunks.span(number).start + start + bad[0]
                problems.append(StoreProblem(path.name, f"{path}: NaN or infinity in row {row}"))
                break
    for path in chunks.foreign():
        message = f"{path} is not part of this store, whose {_chunks.MANIFEST} does not list it"
        problems.append(StoreProblem(path.name, message))
    return sorted(problems)


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{path} was not checked: {error.strerror}"
    return str(error)


@by_value
class JoinedRows(NamedTuple):
    """What `join_stores` returns.

    Attributes:
        rows_a: ``[m]``, ascending rows of `a` whose ids are in `b`.
        rows_b: ``[m]``, the rows of `b` with the same ids.
        only_a: number of ids that are only in `a`.
        only_b: number of ids that are only in `b`.
        first_only_a: the first few of them, in order.
        first_only_b: the first few of them, in order.
    """

    rows_a: np.ndarray
    rows_b: np.ndarray
    only_a: int
    only_b: int
    first_only_a: tuple[str, ...]
    first_only_b: tuple[str, ...]


def join_stores(a: EmbeddingStore, b: EmbeddingStore) -> JoinedRows:
    """Match the rows of two stores by id, in the order of `a`.

    Args:
        a: one side.
        b: the other side; may be of another dimension and dtype.

    Raises:
        ValueError: if an id is twice in a store; names it.
    """
    _refuse_repeated("a", a)
    _refuse_repeated("b", b)
    # Arrays of numbers and one dictionary: with millions of ids little else would fit.
    places = {name: row for row, name in enumerate(b.ids)}
    rows = np.fromiter((places.get(name, -1) for name in a.ids), np.int64, len(a))
    del places
    rows_a = np.flatnonzero(rows >= 0)
    rows_b = rows[rows_a]
    alone = np.ones(len(b), bool)
    alone[rows_b] = False
    only_a, only_b = np.flatnonzero(rows < 0), np.flatnonzero(alone)
    first_a, first_b = (
        tuple(store.ids[row] for row in only[:_SHOWN]) for store, only in ((a, only_a), (b, only_b))
    )
    return JoinedRows(rows_a, rows_b, len(only_a), len(only_b), first_a, first_b)


def _refuse_repeated(side: str, store: EmbeddingStore) -> None:
    if len(set(store.ids)) == len(store.ids):
        return
    places: dict[str, int] = {}
    for row, name in enumerate(store.ids):
        first = places.setdefault(name, row)
        if first != row:
            raise ValueError(
                f"{side}: {store.folder} has the id {name!r} twice, in rows {first} and {row}"
            )


def paired_batches(
    a: EmbeddingStore,
    b: EmbeddingStore,
    matched: JoinedRows,
    batch_rows: int,
    *,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream the matched rows of two stores, e.g. into `accumulate_stats`.

    Args:
        a: source side.
        b: target side.
        matched: of `join_stores(a, b)`.
        batch_rows: rows in a block; two blocks are in memory.
        shard: ``(k, n)``: only the k-th of n parts of the matched rows, consecutive and of about
            one size, e.g. `distributed.this_process()`. There may be none.

    Returns:
        Iterator of ``(x [k, d_in], y [k, d_out])`` with k = `batch_rows`, or less in the last.

    Raises:
        TypeError: if `batch_rows` or a number of `shard` is not an int.
        ValueError: if one is out of range, or nothing matched.
        IndexError: if `matched` is of other stores and has rows that are not there.
    """
    batch_rows = checks.positive_int("batch_rows", batch_rows)
    count = len(matched.rows_a)
    if count == 0:
        raise ValueError(
            f"matched is empty: no id is in both stores; {a.folder} has "
            f"{checks.first_few(map(repr, a.ids))}, {b.folder} {checks.first_few(map(repr, b.ids))}"
        )
    part = checks.shard_rows(count, *shard)
    starts = range(part.start, part.stop, batch_rows)
    blocks = (slice(start, min(start + batch_rows, part.stop)) for start in starts)
    return ((a.rows(matched.rows_a[k]), b.rows(matched.rows_b[k])) for k in blocks)
