"""Stores from and to the files of other tools: npy and npz, Parquet, HDF5."""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.documents import read_json
from .._core.files import as_path, content_hash, reading, replaced
from .._core.ids import id_texts
from .chunks import DTYPES, ChunkFolder, Part, encoded_ids
from .store import ROWS_AT_ONCE, EmbeddingStore, create_store

_EMBEDDINGS, _IDS = "embeddings", "ids"
#: No embeddings are compressed to less than one in so many of their bytes: a file that declares
#: more is damaged or made to fill memory.
_MOST_COMPRESSED = 50


def ids_path(path: Path) -> Path:
    """The file of the ids of a .npy file."""
    return path.with_suffix(".ids.json")


def refuse_missing_package(suffix: str) -> None:
    """Say, before any work, that a file of this ending needs a package that is not there."""
    if suffix in _FORMATS:
        _FORMATS[suffix].package()


def export_store(store: EmbeddingStore, path: str | os.PathLike) -> None:
    """Write a store as one file for other programs, block by block.

    bfloat16, which these formats do not have, becomes float32.

    Args:
        store: what to write.
        path: its ending says the format. ``.npy``: the rows, and the ids as a JSON list in
            ``<name>.ids.json``; ``.npz``: arrays "embeddings" and "ids"; ``.parquet``: columns
            "ids" and "embeddings" (needs pyarrow); ``.h5``, ``.hdf5``: data sets of these names
            (needs h5py). Replaced in one step if it exists; the old rows of ``.npy`` go when the
            new ids are written, so that they never stand beside ids of others.

    Raises:
        ModuleNotFoundError: if the format's package is missing; names the extra.
        OSError: if the file cannot be written, e.g. to a full disk; the old one stays.
        ValueError: for another ending, an empty store, or ids that the format cannot hold.
    """
    path = as_path(path)
    if len(store) == 0:
        raise ValueError(f"store: {store.folder} is empty, there is nothing to export")
    write = _format(path).write
    dtype = np.dtype(np.float32) if store.dtype == jnp.bfloat16 else store.dtype
    with replaced(path) as temporary:
        try:
            write(store, temporary, dtype)
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: an id is no Unicode text: {error}") from None
        except ValueError as error:  # of an id with a NUL character
            raise ValueError(f"{path}: {error}") from None
        except (OSError, RuntimeError) as error:  # h5py raises both
            number = getattr(error, "errno", None)
            if number is not None:
                raise OSError(number, os.strerror(number), str(path)) from error
            raise OSError(f"{path} cannot be written: {error}") from error
        if path.suffix == ".npy":  # rows never stand beside ids of others, even after a crash
            with replaced(ids_path(path)) as ids:
                ids.write_bytes(encoded_ids(store.ids))
                path.unlink(missing_ok=True)


def _blocks(store: EmbeddingStore, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of a store in blocks, each with its place."""
    for start in range(0, len(store), ROWS_AT_ONCE):
        block = slice(start, min(start + ROWS_AT_ONCE, len(store)))
        yield block, store.rows(block).astype(dtype)


def _write_array(store: EmbeddingStore, file: Any, dtype: np.dtype) -> None:
    shape = (len(store), store.dimension)
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for _, rows in _blocks(store, dtype):
        file.write(rows.tobytes())


def _write_npy(store: EmbeddingStore, path: Path, dtype: np.dtype) -> None:
    with path.open("wb") as file:
        _write_array(store, file, dtype)


def _write_npz(store: EmbeddingStore, path: Path, dtype: np.dtype) -> None:
    ids = np.array(store.ids, np.str_)
    if ids.tolist() != list(store.ids):  # NumPy cuts them
        raise ValueError("an id ends in a NUL character, which .npz cannot hold")
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{_EMBEDDINGS}.npy", "w", force_zip64=True) as file:
            _write_array(store, file, dtype)
        with archive.open(f"{_IDS}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, ids, allow_pickle=False)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Parquet needs pyarrow: pip install 'semalign_jax[parquet]'"
        ) from error
    return pyarrow


def _h5py() -> Any:
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("HDF5 needs h5py: pip install 'semalign_jax[hdf5]'") from error
    return h5py


def _write_parquet(store: EmbeddingStore, path: Path, dtype: np.dtype) -> None:
    pa = _pyarrow()
    vector = pa.list_(pa.from_numpy_dtype(dtype), store.dimension)
    schema = pa.schema([(_IDS, pa.string()), (_EMBEDDINGS, vector)])
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for block, rows in _blocks(store, dtype):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=vector)
            ids = pa.array(store.ids[block], pa.string())
            writer.write_table(pa.table([ids, lists], schema=schema))


def _write_hdf5(store: EmbeddingStore, path: Path, dtype: np.dtype) -> None:
    h5py = _h5py()
    with h5py.File(path, "w") as file:
        data = file.create_dataset(_EMBEDDINGS, (len(store), store.dimension), dtype)
        for block, rows in _blocks(store, dtype):
            data[block] = rows
        ids = [name.encode() for name in store.ids]
        file.create_dataset(_IDS, data=ids, shape=(len(ids),), dtype=h5py.string_dtype())


def import_store(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    description: Mapping[str, Any],
    embeddings: str = _EMBEDDINGS,
    ids: str = _IDS,
    chunk_rows: int = 16384,
) -> EmbeddingStore:
    """Make a store of a file that `export_store` or another program wrote; nothing is unpickled.

    An import that was interrupted continues when it is called again; rows that are there already
    are compared with those of the file. Files are read block by block, but ``.npz`` whole.

    Args:
        path: ``.npy`` with a JSON list of ids in ``<name>.ids.json``, ``.npz``, ``.parquet``,
            ``.h5`` or ``.hdf5``; see `export_store`.
        folder: of the new store.
        description: what made the embeddings; see `create_store`.
        embeddings: name of the array, column or data set of the rows ``[n, dimension]``; the dtype
            is kept.
        ids: name of that of the ids, text or whole numbers; 7 and 7.0 are "7".
        chunk_rows: rows in a chunk.

    Raises:
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: if the format's package is missing; names the extra.
        ValueError: if the file is damaged, lacks a key or holds rows or ids that do not fit (names
            file, key and row), or if the folder holds other embeddings (lists what differs).
    """
    path = as_path(path)
    chunk_rows = checks.positive_int("chunk_rows", chunk_rows)
    read = _format(path).read
    for needed in (path, ids_path(path)) if path.suffix == ".npy" else (path,):
        if not needed.is_file():
            hint = "" if needed == path else ": it must hold the ids of the rows, as a JSON list"
            raise FileNotFoundError(f"{needed} is missing{hint}")
    with read(path, embeddings, ids) as (found, rows):
        names = id_texts(f"{path}: {ids!r}", found, empty=True)
        _refuse_other_rows(path, repr(embeddings), rows)
        _refuse_other_count(path, ids, len(names), embeddings, rows.shape[0])
        store = create_store(
            folder, description=description, dimension=rows.shape[1], dtype=rows.dtype
        )
        done = len(store)
        if list(store.ids) != names[:done]:
            raise ValueError(f"{folder} holds rows of other ids than {path}: choose another folder")
        for start in range(0, done, chunk_rows):  # the file may have been made anew since
            block = slice(start, min(start + chunk_rows, done))
            with reading(path, "file of embeddings"):
                found = rows[block]
            differs = np.flatnonzero((store.rows(block) != found).any(axis=1))
            if differs.size:
                raise ValueError(
                    f"{folder} holds other rows than {path}, from row {start + differs[0]} (id "
                    f"{names[start + differs[0]]!r}): choose another folder"
                )
        for start in range(done, len(names), chunk_rows):
            block = slice(start, start + chunk_rows)
            with reading(path, "file of embeddings"):
                found = rows[block]
            try:
                store = store.append(names[block], found)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, rows from {start}: {error}") from None
        return store


def _refuse_other_count(path: Path, ids: str, count: int, embeddings: str, rows: int) -> None:
    if count != rows:
        raise ValueError(
            f"{path}: {checks.counted(count, 'id')} in {ids!r} and {checks.counted(rows, 'row')} "
            f"in {embeddings!r}; there must be one id per row"
        )


def _refuse_declared(path: Path, key: str, declared: int) -> None:
    """Compare what a file declares with its size, before memory is taken."""
    size = path.stat().st_size
    if declared > _MOST_COMPRESSED * size:
        raise ValueError(
            f"{path}: {key!r} declares {declared} bytes in a file of {size}: it is damaged, or its "
            "values are all alike"
        )


@contextmanager
def _read_npy(path: Path, embeddings: str, ids: str) -> Iterator[tuple[Any, Any]]:
    yield read_json(ids_path(path), list), _map_array(path)


def _map_array(path: Path) -> np.ndarray:
    with reading(path, ".npy file of a plain array"):
        return np.lib.format.open_memmap(path, mode="r")  # of objects it maps none


@dataclass(frozen=True)
class _ArrayFile(ChunkFolder):
    """A .npy file as the one chunk of a store that cannot grow."""

    array: np.ndarray = field(kw_only=True)

    def view(self, number: int) -> np.ndarray:
        return self.array

    @cached_property
    def checksum(self) -> str:
        starts = range(0, len(self.array), ROWS_AT_ONCE)
        rows = content_hash(self.array[start : start + ROWS_AT_ONCE] for start in starts)
        return content_hash([rows, *(part.ids for part in self.parts or ())])


def open_array(path: Path) -> EmbeddingStore:
    """The rows of a .npy file as a store to read; nothing is copied.

    Ids are those of ``<name>.ids.json``, or without it the positions from "0".
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    array = _map_array(path)
    _refuse_other_rows(path, "the array", array)
    count, dimension = array.shape
    found = read_json(ids_path(path), list) if ids_path(path).is_file() else range(count)
    names = id_texts(str(ids_path(path)), found, empty=True)
    _refuse_other_count(path, ids_path(path).name, len(names), "the array", count)
    run = {"dimension": dimension, "dtype": array.dtype.name, "description": {"file": path.name}}
    part = Part(count, content_hash([encoded_ids(names)]), "")
    chunk = _ArrayFile(path, run, (part,), array=array)
    return EmbeddingStore(path, tuple(names), {}, chunk)


def _refuse_other_rows(path: Path, name: str, rows: Any) -> None:
    if len(rows.shape) == 2 and rows.shape[0] == 0:
        raise ValueError(f"{path}: {name} has no rows")
    if len(rows.shape) != 2 or 0 in rows.shape or rows.dtype.name not in DTYPES:
        raise ValueError(
            f"{path}: {name} has shape {rows.shape} of {rows.dtype}; expected [n, dimension] of "
            f"one of {', '.join(DTYPES)}"
        )


@contextmanager
def _read_npz(path: Path, embeddings: str, ids: str) -> Iterator[tuple[Any, Any]]:
    what = ".npz file of plain arrays"
    with path.open("rb") as file:  # NumPy leaves broken archives open
        with reading(path, what):
            archive = zipfile.ZipFile(file)
            found = [name.removesuffix(".npy") for name in archive.namelist()]
        keys = _keys(path, found, embeddings, ids)
        with reading(path, what):
            (rows, *_), (count, *_) = (_declared_shape(path, archive, key) for key in keys)
        _refuse_other_count(path, ids, count, embeddings, rows)
        file.seek(0)
        with reading(path, what):
            whole = np.load(file, allow_pickle=False)
            array, names = (whole[key] for key in keys)
    yield names, array


def _declared_shape(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    """The shape of an array of an archive, from its header; its size is checked."""
    name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
    with archive.open(name) as file:
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"{key!r} is of another version of the format, {version}")
        shape, _, dtype = readers[version](file)
    if not shape:
        raise ValueError(f"{key!r} is one value and no array")
    declared = math.prod(shape) * dtype.itemsize
    if declared > archive.getinfo(name).file_size:
        raise ValueError(f"{key!r} is cut off")
    _refuse_declared(path, key, declared)
    return shape


@contextmanager
def _read_hdf5(path: Path, embeddings: str, ids: str) -> Iterator[tuple[Any, Any]]:
    h5py = _h5py()
    with reading(path, "HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with reading(path, "HDF5 file"):
            _keys(path, file, embeddings, ids)
            rows, names = (_data_set(path, file, key) for key in (embeddings, ids))
            if not rows.shape or len(names.shape) != 1:
                raise ValueError(f"{path}: {embeddings!r} must be [n, dimension] and {ids!r} [n]")
            _refuse_other_count(path, ids, names.shape[0], embeddings, rows.shape[0])
            text = h5py.check_string_dtype(names.dtype)
            if text is not None and text.length is None:
                _check_texts(path, names)
            found = names[:]  # texts as bytes: not all that is called ASCII is
        yield found, rows


def _data_set(path: Path, file: Any, key: str) -> Any:
    """A data set whose values are all in this file, and as many as it declares."""
    h5py = _h5py()
    place = ""
    for name in key.strip("/").split("/"):
        place += f"/{name}"
        # Such links lead into files that the user did not name.
        if not isinstance(file.get(place, getlink=True), h5py.HardLink):
            raise ValueError(f"{path}: {key!r} is a link; give the file that holds the values")
    found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{path}: {key!r} is no data set")
    if found.external or found.is_virtual:
        raise ValueError(f"{path}: the values of {key!r} are in other files; give a file with them")
    declared = math.prod(found.shape or ()) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    if declared > _MOST_COMPRESSED * stored:
        raise ValueError(
            f"{path}: {key!r} declares {declared} bytes and holds {stored}: it was not written to "
            "its end, or its values are all alike"
        )
    _refuse_declared(path, key, math.prod(found.chunks or ()) * found.dtype.itemsize)
    return found


def _check_texts(path: Path, texts: Any) -> None:
    """Look at where a data set of texts has them, before HDF5 reads: it believes what is there.

    It takes the memory that a length asks for, and does not come back from a heap of texts whose
    free space is of size zero. Of compressed data sets nothing can be seen.
    """
    if texts.chunks is None:
        parts = [(texts.id.get_offset(), texts.id.get_storage_size())]
    elif texts.id.get_create_plist().get_nfilters():
        return
    else:
        chunks = (texts.id.get_chunk_info(k) for k in range(texts.id.get_num_chunks()))
        parts = [(chunk.byte_offset, chunk.size) for chunk in chunks]
    kind = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
    with path.open("rb") as file:
        for start, size in parts:
            if start is None:  # they are in the header, and few
                continue
            file.seek(start)
            found = np.frombuffer(file.read(size // kind.itemsize * kind.itemsize), kind)
            _refuse_declared(path, texts.name, int(found["length"].sum(dtype=np.uint64)))
            for heap in np.unique(found["heap"][found["length"] > 0]).tolist():
                file.seek(min(heap, path.stat().st_size))
                _check_heap(path, file.read(16), file)


def _check_heap(path: Path, header: bytes, file: Any) -> None:
    size = int.from_bytes(header[8:], "little")
    _refuse_declared(path, "heap", size)
    data = file.read(max(0, size - 16))
    place = 0
    while header[:4] == b"GCOL" and place + 16 <= len(data):
        index, length = (
            int.from_bytes(data[place + k : place + m], "little") for k, m in ((0, 2), (8, 16))
        )
        if index == 0 and length == 0:
            raise ValueError(f"{path} is damaged: a heap of texts has free space of size zero")
        place += length if index == 0 else 16 + -(-length // 8) * 8


def _keys(path: Path, found: Any, *keys: str) -> tuple[str, ...]:
    for key in keys:
        if key not in found:
            raise ValueError(f"{path} has no {key!r}; it holds {', '.join(map(repr, found))}")
    return keys


class _ParquetRows:
    """Rows of a column of lists, to be sliced in ascending order."""

    def __init__(self, path: Path, file: Any, column: str):
        self._path, self._file, self._column = path, file, column
        with reading(path, "Parquet file"):
            first = next(file.iter_batches(batch_size=1, columns=[column]), None)
            if first is None:
                raise ValueError(f"{path} has no rows")
            example = self._values(first.column(0), 0, None)
        self.dtype, self.shape = example.dtype, (file.metadata.num_rows, example.shape[1])
        _refuse_declared(path, column, math.prod(self.shape) * self.dtype.itemsize)

    def __getitem__(self, block: slice) -> np.ndarray:
        start, stop, _ = block.indices(self.shape[0])
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        first = 0
        for group in range(self._file.num_row_groups):
            last = first + self._file.metadata.row_group(group).num_rows
            if first < stop and last > start:
                self._copy(group, first, start, out)
            first = last
        return out

    def _copy(self, group: int, first: int, start: int, out: np.ndarray) -> None:
        options = {"batch_size": ROWS_AT_ONCE, "row_groups": [group], "columns": [self._column]}
        for batch in self._file.iter_batches(**options):
            low, high = max(first, start), min(first + len(batch), start + len(out))
            if low < high:
                column = batch.column(0).slice(low - first, high - low)
                out[low - start : high - start] = self._values(column, low, self.shape[1])
            first += len(batch)

    def _values(self, column: Any, row: int, dimension: int | None) -> np.ndarray:
        name = f"{self._path}: {self._column!r}"
        if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
            raise ValueError(f"{name} is {column.type}; it must hold lists of floats")
        if column.null_count:
            bad = row + int(np.argmax(np.asarray(column.is_null())))
            raise ValueError(f"{name} is empty in row {bad}")
        lengths = np.asarray(column.value_lengths())
        wrong = np.flatnonzero(lengths != (lengths[0] if dimension is None else dimension))
        if wrong.size:
            raise ValueError(
                f"{name} has {lengths[wrong[0]]} values in row {row + wrong[0]}, and {dimension} "
                "in row 0"
            )
        values = column.flatten()
        if values.null_count:
            bad = row + int(np.argmax(np.asarray(values.is_null()))) // int(lengths[0])
            raise ValueError(f"{name} has an empty value in row {bad}")
        return values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)


@contextmanager
def _read_parquet(path: Path, embeddings: str, ids: str) -> Iterator[tuple[Any, Any]]:
    pa = _pyarrow()
    with reading(path, "Parquet file"):
        file = pa.parquet.ParquetFile(path)
    with file:
        with reading(path, "Parquet file"):
            _keys(path, file.schema_arrow.names, embeddings, ids)
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
            columns = [group.column(n) for group in groups for n in range(group.num_columns)]
            unpacked = sum(column.total_uncompressed_size for column in columns)
        _refuse_declared(path, embeddings, unpacked)
        rows = _ParquetRows(path, file, embeddings)
        with reading(path, "Parquet file"):
            names = file.read(columns=[ids]).column(0)
            # As an array floats keep their precision, in which large ones lose digits.
            floats = pa.types.is_floating(names.type)
            names = names.to_numpy() if floats else names.to_pylist()
        yield names, rows


class _Format(NamedTuple):
    """How files of an ending are read and written; `package` imports what that needs."""

    read: Callable[[Path, str, str], Any]
    write: Callable[[EmbeddingStore, Path, np.dtype], None]
    package: Callable[[], Any] = lambda: None


_HDF5 = _Format(_read_hdf5, _write_hdf5, _h5py)
_FORMATS = {
    ".npy": _Format(_read_npy, _write_npy),
    ".npz": _Format(_read_npz, _write_npz),
    ".parquet": _Format(_read_parquet, _write_parquet, _pyarrow),
    ".h5": _HDF5,
    ".hdf5": _HDF5,
}
SUFFIXES = tuple(_FORMATS)


def _format(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}; got {path.name!r}")
    return _FORMATS[path.suffix]
