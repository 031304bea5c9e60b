"""Maps on disk: safetensors with a format version. No pickle, nothing half-written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from .._core.checks import is_concrete
from .._core.documents import parse_json
from .._core.files import as_path, format_header, format_problem, reading, write_atomically
from .affine_map import AffineMap
from .hub import download_map, is_repository

_FORMAT = "semalign_jax.AffineMap"
_FORMAT_VERSION = 1
_TENSORS = ("source_offset", "target_offset", "weight")


def save_map(
    mapping: AffineMap,
    path: str | os.PathLike,
    *,
    method: str | None = None,
    diagnosis: Mapping[str, Any] | None = None,
) -> None:
    """Save a map, or a batch of maps, as a safetensors file.

    Args:
        mapping: the map; its dtype and batch axes are kept.
        path: file to write; replaced in one step if it exists.
        method: a note of how it was estimated, for those who find the file; see `saved_method`.
        diagnosis: JSON values, of `Diagnosis.summary`; see `saved_diagnosis`.

    Raises:
        TypeError: if `mapping` is not an `AffineMap` or is traced, `method` is not text, or
            `diagnosis` holds other things than JSON values.
        ValueError: if its arrays are not those of a map: other shapes, or whole numbers.
        OSError: if the file cannot be written.

    Example:
        >>> import semalign_jax as sa
        >>> sa.save_map(sa.identity_map(4, 4), "map.safetensors", method="naive")
        >>> sa.load_map("map.safetensors").weight.shape
        (4, 4)
    """
    if not isinstance(mapping, AffineMap):
        raise TypeError(f"mapping must be an AffineMap; got {type(mapping).__name__}")
    tensors = {name: getattr(mapping, name) for name in _TENSORS}
    if not is_concrete(*tensors.values()):
        raise TypeError("mapping is traced: save_map works on values, call it outside of jit")
    if not isinstance(method, str | None):
        raise TypeError(f"method must be text; got {method!r}")
    header = {key: str(value) for key, value in format_header(_FORMAT, _FORMAT_VERSION).items()}
    metadata = {**header, "method": method or ""}
    if diagnosis is not None:
        try:
            metadata["diagnosis"] = json.dumps(diagnosis)
        except TypeError as error:
            raise TypeError(
                f"diagnosis must hold JSON values, e.g. diagnose(x, y).summary(): {error}"
            ) from None
    # NumPy's: JAX would make float32 of float64.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    _check_tensors("mapping", tensors)
    write_atomically(as_path(path), safetensors.numpy.save(tensors, metadata))


def load_map(path: str | os.PathLike, *, revision: str | None = None) -> AffineMap:
    """Load a map written by `save_map`, or from the Hugging Face hub.

    A float64 map stays one under `jax_enable_x64`; without it JAX makes float32 of it.

    Args:
        path: safetensors file; or ``user/map``, a repository that `push_map` wrote, if there is no
            file of that name.
        revision: branch, tag or commit of the hub.

    Raises:
        FileNotFoundError: if there is no such file or repository.
        ConnectionError: if the hub cannot be reached.
        PermissionError: if the repository's terms have to be accepted first.
        ValueError: if it is not a whole safetensors file, of another format or version, or its
            tensors are not those of a map; the message says which.

    Example:
        >>> import semalign_jax as sa
        >>> sa.save_map(sa.identity_map(4, 4), "map.safetensors")
        >>> sa.load_map("map.safetensors") == sa.identity_map(4, 4)
        True
    """
    return AffineMap(**_read(path, revision)[0])


def _read(
    path: str | os.PathLike, revision: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a map; see `load_map`."""
    if is_repository(path):
        path = download_map(str(path), revision)
    elif revision is not None:
        raise ValueError(f"revision must be None for a file; got {revision!r} with {path}")
    path = as_path(path)
    if not path.is_file():
        there = "this is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"no map at {path}: {there}")
    with reading(path, "whole safetensors file"):
        path.open("rb").close()  # safetensors calls a file missing that the system refuses
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            names = tuple(sorted(file.keys()))
            _check_header(path, metadata, names)
            tensors = {name: file.get_tensor(name) for name in names}
    _check_tensors(path, tensors)
    return tensors, metadata


def _check_tensors(where: Any, tensors: Mapping[str, Any]) -> None:
    shape = tensors["weight"].shape
    expected = {
        "weight": shape,
        "source_offset": shape[:-1],
        "target_offset": (*shape[:-2], *shape[-1:]),
    }
    for name, tensor in tensors.items():
        if len(shape) < 2 or tensor.shape != expected[name]:
            raise ValueError(
                f"{where}: tensor {name} has shape {tensor.shape}, which does not fit a map with "
                f"weight {shape}"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{where}: tensor {name} is {tensor.dtype}, not floating point")


def saved_method(path: str | os.PathLike) -> str:
    """How the map in a file was estimated, as `save_map` was told; "" if it was not."""
    return _read(path)[1].get("method", "")


def saved_diagnosis(path: str | os.PathLike) -> dict[str, Any] | None:
    """What `diagnose` said of the anchors of the map in a file; None if it was not saved."""
    text = _read(path)[1].get("diagnosis")
    return None if text is None else parse_json(text, f"the diagnosis in {as_path(path)}")


def _check_header(path: Path, metadata: dict[str, str], names: tuple[str, ...]) -> None:
    problem = format_problem(metadata, _FORMAT, _FORMAT_VERSION)
    if problem:
        raise ValueError(f"{path} {problem}")
    if names != _TENSORS:
        raise ValueError(
            f"{path} holds the tensors {', '.join(names) or 'none'}; expected {', '.join(_TENSORS)}"
        )
