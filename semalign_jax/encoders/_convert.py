"""From a pickled checkpoint of PyTorch to safetensors, once, where its user asks for it."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._core.files import as_path, replaced, write_atomically
from ._encoder import read_config
from ._hub import DENSE_PICKLES, is_small, resolve_checkpoint
from ._weights import SINGLE_FILE, CheckpointError, pickled_name, shards


def convert_checkpoint(
    source: str | Path,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the tensors of a pickled PyTorch checkpoint as safetensors, which `load_encoder` reads.

    Only tensors are read from the pickle (``torch.load`` with ``weights_only``), and no code of the
    checkpoint is run. Shards stay shards; tensors that share memory are written one by one. The
    configuration, the tokenizer, the processor and the files of sentence-transformers are copied to
    `out`; the weights of Dense layers behind its pooling are converted, too. The pickle stays. The
    weights come last and are whole or not there. Needs PyTorch.

    Args:
        source: folder with ``pytorch_model.bin``, its shards and index, or
            ``open_clip_pytorch_model.bin``; or the id of such a repository on the hub.
        out: folder to write into, made if missing; by default the folder itself.
        revision: branch, tag or commit on the hub.
        overwrite: whether safetensors files that are there may be replaced.

    Returns:
        The folder that `load_encoder` takes.

    Raises:
        ModuleNotFoundError: without PyTorch; says how to install it.
        FileExistsError: if there are safetensors and `overwrite` is false.
        FileNotFoundError: if there is no such folder or repository, or no pickled checkpoint.
        ValueError: if `source` is on the hub and `out` is not given.
        CheckpointError: if a file is no pickle of tensors alone; names it.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "PyTorch is needed to read pickled checkpoints: pip install torch"
        ) from None
    if out is None and not as_path(source).is_dir():
        raise ValueError(f"give a folder to write to (out): {source} is not a folder here")
    folder = resolve_checkpoint(source, revision, pickled=True)
    target = folder if out is None else as_path(out)
    _, _, wanted = read_config(folder)
    names = [path.name for path in folder.iterdir()]
    name = pickled_name(names, wanted)
    if name is None:
        raise FileNotFoundError(f"{folder} has no pickled checkpoint, e.g. pytorch_model.bin")
    index = f"{wanted}.index.json"
    there = [file for file in (wanted, index) if (target / file).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{target / there[0]} exists already: give overwrite (--overwrite) to replace it"
        )
    indexed = name.endswith(".index.json")
    sources = shards(folder / name) if indexed else (folder / name,)
    target.mkdir(parents=True, exist_ok=True)
    if target.resolve() != folder.resolve():
        _copy_small(folder, target)
    weight_map = {}
    stem = wanted.removesuffix(".safetensors")
    for path in sorted(folder.glob(DENSE_PICKLES)):
        place = target / path.parent.name / SINGLE_FILE
        if overwrite or not place.exists():
            place.parent.mkdir(exist_ok=True)
            _save(_tensors(path), place, path)
    for number, shard in enumerate(sources, 1):
        tensors = _tensors(shard)
        file = f"{stem}-{number:05d}-of-{len(sources):05d}.safetensors" if indexed else wanted
        weight_map |= dict.fromkeys(tensors, file)
        _save(tensors, target / file, shard)
    if indexed:
        text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1)
        write_atomically(target / index, text.encode())
        (target / wanted).unlink(missing_ok=True)  # it would be read before the index
    return target


def _save(tensors: dict[str, Any], place: Path, source: Path) -> None:
    from safetensors.torch import save_file

    with replaced(place) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt"})
        except Exception as error:  # sparse, quantized or otherwise unusual tensors
            raise CheckpointError(f"{source} cannot be converted: {error}") from error


def _copy_small(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and is_small(name):
            (target / name).parent.mkdir(exist_ok=True)
            with replaced(target / name) as temporary:
                shutil.copyfile(path, temporary)


def _tensors(path: Path) -> dict[str, Any]:
    import torch

    try:
        # Files of PyTorch before 1.6 are no archives and cannot be mapped.
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # of many kinds: broken archives, pickles of other things
        reason = re.split(r"[.\n]", str(error))[0]
        raise CheckpointError(
            f"{path} is broken or holds more than tensors, and other objects are not read, since "
            f"they can run code: {type(error).__name__}: {reason}"
        ) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # of a training run of open_clip
        if all(str(key).startswith("module.") for key in found):
            found = {key.removeprefix("module."): value for key, value in found.items()}
    named = isinstance(found, Mapping) and all(isinstance(key, str) for key in found)
    if not named or not found:
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not tensors by name")
    others = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{path} holds {others[0]!r}, which is no tensor")
    return dict(_unshared(found))


def _unshared(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors in memory of their own, which safetensors asks for."""
    seen = set()
    for key, tensor in tensors.items():
        if str(tensor.layout) == "torch.strided":  # others are refused when they are written
            memory = tensor.untyped_storage().data_ptr()
            tensor = tensor.clone() if memory in seen else tensor
            seen.add(memory)
            tensor = tensor.detach().contiguous()
        yield key, tensor
