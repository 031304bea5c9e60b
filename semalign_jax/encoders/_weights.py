"""From the tensors of a checkpoint to the parameters of a module: rules as data, one engine.

A rule names a source tensor and the parameter that it fills. Every source tensor must match
exactly one rule, every parameter must be filled exactly once and every shape must be that of the
abstract module; all problems are reported in one error. Tensors are then read one at a time, the
largest first, so that the peak of memory stays near the size of the parameters themselves.
"""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from .._core.documents import read_json

SINGLE_FILE = "model.safetensors"
#: Names of the weights that belong to a configuration, the usual one first.
WEIGHTS_OF = {
    "config.json": (SINGLE_FILE,),
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
}


class CheckpointError(ValueError):
    """The tensors of a checkpoint are not those that its configuration asks for."""


def linear_kernel(w: np.ndarray) -> np.ndarray:
    """``[out, in]`` to ``[in, out]``."""
    return w.T


def conv_kernel(w: np.ndarray) -> np.ndarray:
    """``[out, in, height, width]`` to ``[height, width, in, out]``."""
    return w.transpose(2, 3, 1, 0)


def patch_kernel(w: np.ndarray) -> np.ndarray:
    """``[out, in, height, width]`` of a patch embedding to ``[in * height * width, out]``."""
    return w.reshape(w.shape[0], -1).T


def same(w: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return w


def first(w: np.ndarray) -> np.ndarray:
    """``[1, ...]`` to ``[...]``."""
    return w.reshape(w.shape[1:])


def scalar(w: np.ndarray) -> np.ndarray:
    """``[]`` or ``[1]`` to ``[]``."""
    return w.reshape(())


@dataclass(frozen=True)
class Rule:
    """Where one source tensor goes.

    Attributes:
        source: name of the tensor; ``*`` stands for a number.
        target: path of the parameter, ``/`` between levels; each ``*`` takes the number found at
            its place in `source`. Several targets: the tensor is split evenly along its first
            axis, one part each.
        transform: from the source's layout to ours, applied to each part.
    """

    source: str
    target: str | tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = same

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets."""
        return (self.target,) if isinstance(self.target, str) else self.target


def _layer(source: str, target: str, transform: Callable) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{target}/kernel", transform),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a linear layer: ``source.weight``, ``source.bias`` (if the module has one)."""
    return _layer(source, target, linear_kernel)


def packed(
    source: str, target: str, names: Sequence[str] = ("query", "key", "value")
) -> tuple[Rule, Rule]:
    """Rules of linear layers in one tensor, which are ``names`` below `target`.

    The tensors are `source` and "weight" or "bias" behind it, so `source` ends in "." or "_".
    """
    return (
        Rule(f"{source}weight", tuple(f"{target}/{name}/kernel" for name in names), linear_kernel),
        Rule(f"{source}bias", tuple(f"{target}/{name}/bias" for name in names)),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a layer norm: ``source.weight`` is its scale."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def embedding(source: str, target: str) -> tuple[Rule]:
    """Rule of an embedding table."""
    return (Rule(f"{source}.weight", f"{target}/embedding"),)


def conv(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a convolution: ``source.weight``, ``source.bias``."""
    return _layer(source, target, conv_kernel)


def patch_embedding(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a convolution whose stride is its size, which we compute as one product."""
    return _layer(source, target, patch_kernel)


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Rules of a batch norm in inference: scale, bias and the running moments."""
    return (
        Rule(f"{source}.weight", f"{target}/scale"),
        Rule(f"{source}.bias", f"{target}/bias"),
        Rule(f"{source}.running_mean", f"{target}/mean"),
        Rule(f"{source}.running_var", f"{target}/var"),
    )


def conv_norm(convolution: str, normalization: str, target: str) -> tuple[Rule, ...]:
    """Rules of a convolution and the batch norm behind it."""
    return (*conv(convolution, f"{target}/conv"), *batch_norm(normalization, f"{target}/norm"))


def prefixed(rules: Iterable[Rule], source: str, target: str) -> tuple[Rule, ...]:
    """Rules of a model that is a part of another, whose names begin with `source`, `target`."""
    return tuple(
        Rule(
            source + rule.source,
            tuple(target + path for path in rule.targets),
            rule.transform,
        )
        for rule in rules
    )


@dataclass(frozen=True)
class SourceTensor:
    """A tensor in a file, not yet read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Return its values; the file is opened for this call alone, so its pages are freed."""
        with safetensors.safe_open(self.file, framework="numpy") as file:
            return file.get_slice(self.key)[rows] if self.shape else file.get_tensor(self.key)


def checkpoint_files(folder: Path, name: str = SINGLE_FILE) -> tuple[Path, ...]:
    """Return the safetensors files of a folder: the single one or those of the index.

    Raises:
        FileNotFoundError: without safetensors files; says how to convert a pickled checkpoint.
        CheckpointError: if the index is malformed or names files that are not there.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return (folder / name,)
    if index.is_file():
        return shards(index)
    names = [path.name for path in folder.iterdir()]
    raise no_safetensors(str(folder), name, names)


def shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names, of safetensors or of pickles.

    Raises:
        CheckpointError: if it is malformed or names files that are not there.
    """
    try:
        names = sorted(set(read_json(index, dict)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of checkpoint files: {error}") from None
    # A name such as ../x would read outside of the folder.
    wrong = [n for n in names if Path(n).name != n or not (index.parent / n).is_file()]
    if wrong or not names:
        raise CheckpointError(f"{index} names files that are not there: {wrong or 'none at all'}")
    return tuple(index.parent / name for name in names)


class PickledCheckpointError(FileNotFoundError):
    """A checkpoint has only pickled weights, which `convert_checkpoint` converts."""


def no_safetensors(source: str, wanted: str, names: Iterable[str]) -> FileNotFoundError:
    """Return the error of a checkpoint without safetensors; it says how to convert a pickled one.

    Args:
        source: folder or hub id.
        wanted: file that is missing.
        names: of the files that are there.
    """
    pickled = pickled_name(names, wanted)
    if pickled is None:
        return FileNotFoundError(f"{source} has no {wanted} and no {wanted}.index.json")
    return PickledCheckpointError(
        f"{source} has {pickled} but no {wanted}. Pickled checkpoints are never opened here. "
        f"Convert it once, with PyTorch: `semalign convert-checkpoint {source} --out FOLDER`, and "
        "load that folder"
    )


def pickled_name(names: Iterable[str], wanted: str) -> str | None:
    """Return the pickled file, or its index, from which a safetensors file can be made.

    Args:
        names: of the files that are there.
        wanted: name of the safetensors file, that of open_clip or of transformers.
    """
    found = {name for name in names if re.fullmatch(r"[^/]*\.(bin|pt|pth)(\.index\.json)?", name)}
    usual = "pytorch_model.bin" if wanted == SINGLE_FILE else "open_clip_pytorch_model.bin"
    for name in (usual, f"{usual}.index.json"):
        if name in found:
            return name
    others = [name for name in sorted(found) if not _OF_TRAINING.match(name)]
    return others[0] if len(others) == 1 else None


#: Pickles of a training run that are no weights.
_OF_TRAINING = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state|openvino")


def list_tensors(files: Iterable[Path]) -> dict[str, SourceTensor]:
    """Return all tensors of some safetensors files by name, without reading their values.

    Raises:
        CheckpointError: if a file is cut or no safetensors file, or two files share a name.
    """
    found: dict[str, SourceTensor] = {}
    for path in files:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                tensors = {
                    key: SourceTensor(path, key, tuple(one.get_shape()), one.get_dtype())
                    for key, one in slices.items()
                }
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{path} repeats tensors of {found[twice[0]].file}: {twice}")
        found |= tensors
    return found


def canonical_names(
    tensors: Mapping[str, SourceTensor], prefixes: Sequence[str]
) -> dict[str, SourceTensor]:
    """Return the tensors under today's names.

    The old names ``gamma`` and ``beta`` of norms become ``weight`` and ``bias``, and the prefix
    that a model has inside of a task model (``bert.``) is taken off. What has this name outside of
    the model, too, is of the task's head and left out.

    Raises:
        CheckpointError: if two tensors get the same name.
    """
    renamed: dict[str, SourceTensor] = {}
    problems = []
    for key, tensor in tensors.items():
        name = re.sub(r"(?i)(norm[^.]*)\.gamma$", r"\1.weight", key)
        name = re.sub(r"(?i)(norm[^.]*)\.beta$", r"\1.bias", name)
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        name = name[len(prefix) :]
        if name in renamed:
            outer, inner = sorted((renamed[name], tensor), key=lambda one: len(one.key))
            if inner.key in [prefix + outer.key for prefix in prefixes]:
                tensor = inner  # the other is of a head, as in BEiT's masked image modelling
            else:
                problems.append(f"{key} and {renamed[name].key} are the same tensor {name}")
        renamed[name] = tensor
    if problems:
        raise CheckpointError("ambiguous checkpoint:\n  " + "\n  ".join(problems))
    return renamed


#: Types of weights, as safetensors calls them. Others have scales of their own, or none.
_FLOATS = ("F64", "F32", "F16", "BF16")


def _fill(target: str, numbers: Sequence[str]) -> str:
    found = iter(numbers)
    return re.sub(r"\*", lambda _: next(found), target)


def flatten(params: Any) -> dict[str, Any]:
    """Return the leaves of nested dictionaries by path, ``/`` between levels."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _parts(rule: Rule, value: np.ndarray) -> list[np.ndarray]:
    parts = [value] if len(rule.targets) == 1 else np.split(value, len(rule.targets))
    return [rule.transform(part) for part in parts]


def load_params(
    tensors: Mapping[str, SourceTensor],
    rules: Sequence[Rule],
    ignored: Sequence[str],
    abstract: Mapping[str, Any],
    dtype: Any,
) -> dict[str, Any]:
    """Fill the parameters of a module from a checkpoint.

    Args:
        tensors: the checkpoint's tensors under today's names.
        rules: where they go; checked one after another, each tensor must match exactly one.
        ignored: shell patterns of tensors that are not used: buffers and the heads of tasks.
        abstract: nested dictionary of the parameters' shapes.
        dtype: floating dtype of the parameters.

    Returns:
        Nested dictionary of arrays on the default device.

    Raises:
        CheckpointError: with every missing, unexpected, doubly filled and misshaped tensor.
    """
    compiled = [
        (re.compile(re.escape(rule.source).replace(r"\*", r"(\d+)")), rule) for rule in rules
    ]
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    filled_by: dict[str, list[str]] = defaultdict(list)
    plan: list[tuple[SourceTensor, Rule, list[str]]] = []
    problems, quantized = [], []
    for name, tensor in tensors.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
            continue
        if 0 in tensor.shape:  # e.g. of no register tokens
            continue
        matches = [(m, rule) for p, rule in compiled if (m := p.fullmatch(name))]
        if len(matches) != 1:
            what = "no place" if not matches else f"{len(matches)} places"
            problems.append(f"{tensor.key} {list(tensor.shape)}: {what} in this model")
            continue
        if tensor.dtype not in _FLOATS:
            quantized.append(tensor)
        match, rule = matches[0]
        targets = [_fill(target, match.groups()) for target in rule.targets]
        if len(tensor.shape) and tensor.shape[0] % len(targets):
            problems.append(f"{tensor.key} {list(tensor.shape)}: not {len(targets)} equal parts")
            continue
        try:
            outline = _parts(rule, np.broadcast_to(np.float32(0), tensor.shape))
        except ValueError:
            problems.append(f"{tensor.key} has the shape {list(tensor.shape)}, of another rank")
            continue
        for target, part in zip(targets, outline, strict=True):
            filled_by[target].append(tensor.key)
            if target not in shapes:
                problems.append(f"{tensor.key} {list(tensor.shape)}: the model has no {target}")
            elif part.shape != shapes[target]:
                problems.append(
                    f"{tensor.key} {list(tensor.shape)}: {target} should have the shape "
                    f"{list(shapes[target])}, it would get {list(part.shape)}"
                )
        plan.append((tensor, rule, targets))
    if quantized:
        first = quantized[0]
        raise CheckpointError(
            f"{first.file} has {len(quantized)} weights of {first.dtype}, e.g. {first.key}: "
            "quantized checkpoints are not supported; take the one in float32, float16 or bfloat16"
        )
    problems += [
        f"{path} {list(shape)} is not filled"
        for path, shape in shapes.items()
        if path not in filled_by
    ]
    problems += [f"{path} is filled by {keys}" for path, keys in filled_by.items() if len(keys) > 1]
    if problems:
        raise CheckpointError(
            "the checkpoint does not fit the model of its config.json:\n  " + "\n  ".join(problems)
        )
    leaves = {}
    for tensor, rule, targets in sorted(plan, key=lambda item: -np.prod(item[0].shape)):
        if rule.transform is same and len(targets) == 1 and np.prod(tensor.shape) > _ELEMENTS:
            leaves[targets[0]] = _read_in_slices(tensor, dtype)
            continue
        for target, part in zip(targets, _parts(rule, tensor.read()), strict=True):
            leaves[target] = jnp.asarray(np.asarray(part, order="C"), dtype)
        jax.block_until_ready([leaves[target] for target in targets])
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[path] for path in shapes])


#: Read at once. A table of word embeddings can be most of a model: it is read in slices.
_ELEMENTS = 2**20


@partial(jax.jit, donate_argnums=0)
def _with_rows(whole: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)


def _read_in_slices(tensor: SourceTensor, dtype: Any) -> jax.Array:
    whole = jnp.zeros(tensor.shape, dtype)
    step = max(1, _ELEMENTS // int(np.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        part = jnp.asarray(tensor.read(slice(start, min(start + step, tensor.shape[0]))), dtype)
        whole = _with_rows(whole, part, jnp.asarray(start, jnp.int32)).block_until_ready()
    return whole
