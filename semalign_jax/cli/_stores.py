"""The stores that commands read pairs of: folders, and .npy files as other tools write them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from .._core.checks import counted, first_few
from ..stores.exchange import ids_path, open_array
from ..stores.store import EmbeddingStore, JoinedRows, join_stores, open_store
from ..sweeps.anchors import anchor_order


def open_rows(path: Path) -> EmbeddingStore:
    """A store, or the rows of a .npy file."""
    return open_array(path) if path.suffix == ".npy" else open_store(path)


@dataclass(frozen=True)
class MatchedStores:
    """Two stores, and rows that they have in common.

    Attributes:
        source: one of them.
        target: the other.
        matched: the rows.
        by_position: a line that says so, unless they are matched by id.
    """

    source: EmbeddingStore
    target: EmbeddingStore
    matched: JoinedRows
    by_position: list[str]

    def __len__(self) -> int:
        return len(self.matched.rows_a)

    @property
    def ids(self) -> list[str]:
        """Of the rows."""
        return [self.source.ids[row] for row in self.matched.rows_a]

    def select(self, rows: Any) -> Self:
        """Some of the rows, by their positions."""
        at = {name: getattr(self.matched, name)[rows] for name in ("rows_a", "rows_b")}
        return replace(self, matched=self.matched._replace(**at))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of the source and of the target, float32."""
        found = self.source.rows(self.matched.rows_a), self.target.rows(self.matched.rows_b)
        self.check_finite(*found)
        return found[0].astype(np.float32), found[1].astype(np.float32)

    def check_finite(self, x: np.ndarray, y: np.ndarray, start: int = 0) -> None:
        """Refuse NaN and infinity in rows that were read, the first of which is number `start`."""
        for store, at, rows in (
            (self.source, self.matched.rows_a, x),
            (self.target, self.matched.rows_b, y),
        ):
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if bad.size:
                raise ValueError(
                    f"{store.folder} holds NaN or infinity, first in the row of the id "
                    f"{store.ids[at[start + bad[0]]]!r}: leave such rows out"
                )


def open_pair(source: Path, target: Path) -> MatchedStores:
    """Two stores that have rows in common.

    A .npy file without a file of ids has as many rows as the other side, in the same order.
    """
    one, two = open_rows(source), open_rows(target)
    bare = [path for path in (source, target) if path.suffix == ".npy"]
    bare = [path for path in bare if not ids_path(path).is_file()]
    if bare and len(one) != len(two):
        raise ValueError(
            f"{source} has {counted(len(one), 'row')} and {target} {len(two)}: {bare[0]} has no "
            "ids, so rows are matched by position; write the ids as a JSON list into "
            f"{ids_path(bare[0])}"
        )
    if bare:
        ids = two.ids if bare == [source] else one.ids
        one, two = replace(one, ids=ids), replace(two, ids=ids)
    matched = join_stores(one, two)
    if not len(matched.rows_a):
        sides = (f"{side.folder} has {first_few(map(repr, side.ids))}" for side in (one, two))
        raise ValueError(
            f"no id is in both stores: {', '.join(sides)}. Rows are matched by what they were "
            "called when they were embedded; a table with a column of ids calls images and texts "
            "the same (--dataset table)"
        )
    names = " and ".join(path.name for path in bare)
    by_position = [f"matched by position, as {names} came without ids"] if bare else []
    return MatchedStores(one, two, matched, by_position)


def drawn_rows(key: Any, rows: int, count: int) -> np.ndarray:
    """Some of so many rows, without replacement, at most all."""
    # Ascending, so that files are read from front to back.
    return np.sort(np.asarray(anchor_order(key, rows, size=min(rows, count))))
