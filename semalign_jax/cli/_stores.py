"""The stores that commands read pairs of: folders, and .npy files as other tools write them."""

from dataclasses import replace
from pathlib import Path

from .._core.checks import first_few
from ..stores.exchange import ids_path, open_array
from ..stores.store import EmbeddingStore, JoinedRows, join_stores, open_store


def open_rows(path: Path) -> EmbeddingStore:
    """A store, or the rows of a .npy file."""
    return open_array(path) if path.suffix == ".npy" else open_store(path)


def open_pair(source: Path, target: Path) -> tuple[EmbeddingStore, EmbeddingStore]:
    """Two stores whose rows have ids in common.

    A .npy file without a file of ids has as many rows as the other side, in the same order.
    """
    one, two = open_rows(source), open_rows(target)
    bare = _without_ids(source, target)
    if not bare:
        return one, two
    if len(one) != len(two):
        raise ValueError(
            f"{source} has {len(one)} rows and {target} {len(two)}: {bare[0]} has no ids, so rows "
            f"are matched by position; write the ids as a JSON list into {ids_path(bare[0])}"
        )
    ids = two.ids if bare == [source] else one.ids
    return replace(one, ids=ids), replace(two, ids=ids)


def join_pair(source: EmbeddingStore, target: EmbeddingStore) -> JoinedRows:
    """The rows that two stores have in common, at least one."""
    matched = join_stores(source, target)
    if not len(matched.rows_a):
        sides = (f"{one.folder} has {first_few(map(repr, one.ids))}" for one in (source, target))
        raise ValueError(
            f"no id is in both stores: {', '.join(sides)}. Rows are matched by what they were "
            "called when they were embedded; a table with a column of ids calls images and texts "
            "the same (--dataset table)"
        )
    return matched


def matched_by_position(source: Path, target: Path) -> list[str]:
    """A line that says so, if rows are not matched by id."""
    bare = [path.name for path in _without_ids(source, target)]
    return [f"matched by position, as {' and '.join(bare)} came without ids"] if bare else []


def _without_ids(*paths: Path) -> list[Path]:
    return [path for path in paths if path.suffix == ".npy" and not ids_path(path).is_file()]
