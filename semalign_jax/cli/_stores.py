"""The stores that commands read pairs of: folders, and .npy files as other tools write them."""

from dataclasses import replace
from pathlib import Path

from ..stores.exchange import ids_path, open_array
from ..stores.store import EmbeddingStore, open_store


def open_rows(path: Path) -> EmbeddingStore:
    """A store, or the rows of a .npy file."""
    return open_array(path) if path.suffix == ".npy" else open_store(path)


def open_pair(source: Path, target: Path) -> tuple[EmbeddingStore, EmbeddingStore]:
    """Two stores whose rows have ids in common.

    A .npy file without a file of ids has as many rows as the other side, in the same order.

    Raises:
        ValueError: if it has not.
        As `open_store` and `open_array`.
    """
    one, two = open_rows(source), open_rows(target)
    bare = [path for path in (source, target) if path.suffix == ".npy" and not _has_ids(path)]
    if not bare:
        return one, two
    if len(one) != len(two):
        raise ValueError(
            f"{source} has {len(one)} rows and {target} {len(two)}: {bare[0]} has no ids, so rows "
            f"are matched by position; write the ids as a JSON list into {ids_path(bare[0])}"
        )
    ids = two.ids if bare == [source] else one.ids
    return replace(one, ids=ids), replace(two, ids=ids)


def _has_ids(path: Path) -> bool:
    return ids_path(path).is_file()
