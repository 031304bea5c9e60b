"""Reads tensors from a file of ``torch.save`` in its first format, without PyTorch.

Such a file is a sequence of pickles, and unpickling runs whatever a file names. Here every name
but those of plain tensors is refused, before anything is imported or called.
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C


class TorchFileError(ValueError):
    """The file has another format, or content that is no plain tensor."""


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, values: np.ndarray) -> np.ndarray:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, last, 0) < 0 or last >= len(values):
            raise TorchFileError(f"{self} lies outside of its {len(values)} values")
        strides = [s * values.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)
        return np.ascontiguousarray(view).reshape(self.shape)


class _Reader(pickle.Unpickler):
    _KNOWN = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": lambda *arguments: _Tensor(*arguments[:4]),
        "torch.FloatStorage": np.dtype("<f4"),
        "torch.LongStorage": np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._KNOWN:
            raise TorchFileError(f"{module}.{name} is not of a plain tensor")
        return self._KNOWN[f"{module}.{name}"]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, _, view = reference
        if kind != "storage" or view is not None:
            raise TorchFileError(f"storage {reference} is not supported")
        return _Storage(dtype, key)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state dictionary by name.

    Args:
        path: file in the format before PyTorch 1.6 (not a zip archive), little-endian.

    Raises:
        TorchFileError: if it is not, or holds anything but a dictionary of float32 and int64
            tensors.
    """
    with path.open("rb") as file:
        try:
            parts = (_Reader(file).load() for _ in range(5))
            if next(parts) != _MAGIC:
                raise TorchFileError(f"{path} is not a file of torch.save in its first format")
            _version, _machine, state, keys = parts
            tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
            dtypes = {t.storage.key: t.storage.dtype for t in tensors.values()}
            storages = {}
            for key in keys:
                (count,) = struct.unpack("<q", file.read(8))
                storages[key] = np.fromfile(file, dtypes[key], count)
            return {name: t.of(storages[t.storage.key]) for name, t in tensors.items()}
        except TorchFileError:
            raise
        except Exception as error:
            raise TorchFileError(f"{path} is malformed or cut: {error}") from error
