"""Embeddings, labels and ids from a user's own array files."""

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open


def load_array(spec: str | Path) -> np.ndarray:
    """Load one array from `.npy`, `.npz` or `.safetensors`.

    Args:
        spec: the file, followed by `:key` if it holds several arrays (default key: the only
            array, or the one named "embeddings").

    Raises:
        ValueError: naming the file, if it is missing, damaged, of another type, or the array to
            take from it is not clear. Pickled objects are never read.
    """
    text = str(spec)
    path, key = Path(text), None
    if not path.exists() and ":" in text:
        head, _, key = text.rpartition(":")
        path = Path(head)
    if not path.is_file():
        raise ValueError(f"{text}: there is no such file")
    try:
        if path.suffix == ".npy":
            if key is not None:
                raise ValueError(f"{path}: a .npy file has no keys; got {key!r}")
            return np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[_choose(path, key, list(arrays))]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as tensors:
                return tensors.get_tensor(_choose(path, key, list(tensors.keys())))
    except (SafetensorError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable {path.suffix} file ({error})") from None
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a readable {path.suffix} file ({error})") from None
    raise ValueError(f"{path}: unknown type {path.suffix!r}; use .npy, .npz or .safetensors")


def _choose(path: Path, key: str | None, keys: list[str]) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    key = key or "embeddings"
    if key not in keys:
        raise ValueError(
            f"{path}: no array {key!r}; it holds {', '.join(keys) or 'nothing'}. "
            f"Choose one as {path}:KEY"
        )
    return key


def load_matrix(name: str, spec: str) -> np.ndarray:
    """Load embeddings [rows, dimension] for argument `name` as float32 (float64 stays)."""
    array = load_array(spec)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} {spec}: needs floating-point numbers; got {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} {spec}: needs shape [rows, dimension]; got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} {spec}: NaN or infinity in {bad.size} rows, first in row {bad[0]}"
        )
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def load_vector(name: str, spec: str, rows: int, what: str) -> np.ndarray:
    """Load labels or ids [rows] for argument `name`: integers or text."""
    array = load_array(spec)
    if array.dtype.kind not in "iuUS":
        raise ValueError(f"{name} {spec}: needs integers or text; got {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(
            f"{name} {spec}: needs one entry for each of the {rows} rows of {what}; "
            f"got {array.shape}"
        )
    return array


def match_rows(source_ids: np.ndarray, target_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row indices of the ids that both sides have, in the order of the source.

    Raises:
        ValueError: for ids that repeat, of different kinds, or with nothing in common.
    """
    for name, ids in (("--source-ids", source_ids), ("--target-ids", target_ids)):
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"{name}: id {values[counts > 1][0]!r} occurs more than once")
    if (source_ids.dtype.kind in "iu") != (target_ids.dtype.kind in "iu"):
        raise ValueError("--source-ids and --target-ids: one holds numbers and the other text")
    _, rows, columns = np.intersect1d(source_ids, target_ids, return_indices=True)
    if rows.size == 0:
        raise ValueError("--source-ids and --target-ids have no id in common")
    order = np.argsort(rows)
    return rows[order], columns[order]
