"""Reads tensors from a file of ``torch.save`` in its first format, without PyTorch or pickle.

Such a file is a sequence of pickles, and unpickling runs whatever a file names. Here the opcodes
are only interpreted as data: dictionaries, tuples, numbers, strings and tensors. No name is
imported and nothing of the file is called; any other content is refused.
"""

import pickletools
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_DICT = "collections OrderedDict"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")


class TorchFileError(ValueError):
    """The file has another format, or content that is no plain tensor."""


class _Name(NamedTuple):
    text: str


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
            if _interpret(file) != _MAGIC:
                raise TorchFileError(f"{path} is not a file of torch.save in its first format")
            for _ in ("version", "machine"):
                _interpret(file)
            state, keys = _interpret(file), _interpret(file)
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


def _interpret(file: BinaryIO) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"D": {}, "L": [], "T": ()}[name[6]])
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[5])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduced(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of the dictionary: versions of modules
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise TorchFileError(f"opcode {name} is not one of plain tensors")
    raise TorchFileError("no end")


def _storage(reference: tuple) -> _Storage:
    kind, dtype, key, _, _, view = reference
    if kind != "storage" or view is not None or dtype.text not in _DTYPES:
        raise TorchFileError(f"storage {reference} is not supported")
    return _Storage(_DTYPES[dtype.text], key)


def _reduced(function: _Name, arguments: tuple) -> Any:
    if function.text == _DICT and not arguments:
        return {}
    if function.text == _TENSOR:
        return _Tensor(*arguments[:4])
    raise TorchFileError(f"{function.text} of {arguments} is not a plain tensor")
