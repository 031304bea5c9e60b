"""Folders of embeddings that may be larger than memory, matched by id; files of other tools.

`chunks` is the format on disk, `store` reads and grows it, `exchange` is for the files of other
tools: npy, npz, Parquet and HDF5.
"""

from .exchange import export_store as export_store
from .exchange import import_store as import_store
from .store import EmbeddingStore as EmbeddingStore
from .store import JoinedRows as JoinedRows
from .store import StoreProblem as StoreProblem
from .store import create_store as create_store
from .store import join_stores as join_stores
from .store import open_store as open_store
from .store import paired_batches as paired_batches
from .store import verify_store as verify_store

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
