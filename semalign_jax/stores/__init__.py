"""Folders of embeddings that may be larger than memory, matched by id; files of other tools.

`chunks` is the format on disk, `store` reads and grows it, `exchange` is for the files of other
tools: npy, npz, Parquet and HDF5.
"""

from .exchange import export_store, import_store
from .store import (
    EmbeddingStore,
    JoinedRows,
    StoreProblem,
    create_store,
    join_stores,
    open_store,
    paired_batches,
    verify_store,
)

__all__ = [
    "EmbeddingStore",
    "JoinedRows",
    "StoreProblem",
    "create_store",
    "export_store",
    "import_store",
    "join_stores",
    "open_store",
    "paired_batches",
    "verify_store",
]
