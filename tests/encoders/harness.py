"""Tiny checkpoints with the same values everywhere, and the outputs that are compared.

A case names a PyTorch model of transformers and its options. Values of a checkpoint are drawn by
the names and shapes of its tensors alone, so the golden files hold inputs, outputs and shapes, no
weights, and PyTorch is only needed to make them or to compare live.
"""

import importlib
import json
import pkgutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from semalign_jax.encoders import _encoder

from . import cases

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One tiny model.

    Attributes:
        name: unique; the name of the golden file.
        model: class of transformers, or a function from the configuration to a PyTorch module.
        config: configuration class of transformers, or a function that returns a dictionary.
        options: of the configuration.
        inputs: a function that returns the batch (NumPy arrays).
        reference: from the PyTorch module and its inputs to named outputs; by default
            ``hidden_i`` of each layer, ``last`` and ``pooled`` if there is a pooler.
        outputs: the same names from our encoder and the batch.
        edit: changes names or values of the stored tensors, as old checkpoints have them.
        edit_config: changes the stored configuration likewise.
        files: further files of the folder, by name.
        weights: name of the file with the tensors.
    """

    name: str
    model: Any
    config: Any
    options: Mapping[str, Any]
    inputs: Callable[[], dict[str, np.ndarray]]
    reference: Callable[[Any, dict], dict[str, Any]] | None = None
    outputs: Callable[[Any, dict], dict[str, Any]] | None = None
    edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    edit_config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    weights: str = "model.safetensors"


def all_cases() -> dict[str, Case]:
    """Return the cases of every file in ``cases``."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(cases.__path__)):
        for case in importlib.import_module(f"{cases.__name__}.{module}").CASES:
            if case.name in found:
                raise ValueError(f"two cases are named {case.name}")
            found[case.name] = case
    return found


def texts(*, vocab: int = 60, lengths=(9, 6, 1), first: int = 4, pad: int = 0, types: int = 0):
    """Return a function that makes token ids with padding, and segments if `types` > 1."""

    def make() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        width = max(lengths)
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
        ids = np.where(mask, rng.integers(first, vocab, mask.shape), pad).astype(np.int32)
        batch = {"input_ids": ids, "attention_mask": mask}
        if types > 1:
            batch["token_type_ids"] = (rng.integers(0, types, mask.shape) * mask).astype(np.int32)
        return batch

    return make


def images(height: int = 32, width: int | None = None, *, channels: int = 3, count: int = 2):
    """Return a function that makes preprocessed pixels."""

    def make() -> dict[str, np.ndarray]:
        shape = (count, channels, height, width or height)
        return {"pixel_values": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}

    return make


def synthetic(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a tensor: activations keep a scale near 1, so that details show."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("num_batches_tracked", "position_ids")):
        return np.zeros(shape, np.int64)
    elif len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        value = rng.standard_normal(shape) / (1 if "embed" in name else np.sqrt(fan_in))
    else:
        offset = (
            1.0
            if name.endswith(("weight", "gamma", "lambda1", "lambda_1", "lambda_2", "scale"))
            else 0.0
        )
        value = offset + 0.2 * rng.standard_normal(shape)
    return np.asarray(value, np.float32)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], case: Case
) -> None:
    """Write a folder as a user would have it."""
    tensors = {name: synthetic(name, tuple(shape)) for name, shape in shapes.items()}
    if case.edit:
        tensors = case.edit(tensors)
    config = dict(config)
    if case.edit_config:
        config = case.edit_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / case.weights, {"format": "pt"})
    if "open_clip_config.json" not in case.files:
        (folder / "config.json").write_text(json.dumps(config))
    for name, text in case.files.items():
        (folder / name).write_text(text)


def our_outputs(case: Case, encoder: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return our outputs under the names of the reference."""
    if case.outputs:
        found = case.outputs(encoder, batch)
    else:
        import jax

        run = jax.jit(lambda params, batch: dict(_named(encoder.config, params, batch)))
        found = run(encoder.params, batch)
    return {name: np.asarray(value) for name, value in found.items()}


def _named(config, params, batch):
    outputs = _encoder.forward(config, params, batch)
    for i, state in enumerate(outputs.hidden_states):
        yield f"hidden_{i}", state
    yield "last", outputs.last
    if outputs.pooled is not None:
        yield "pooled", outputs.pooled
    if outputs.projected is not None:
        yield "projected", outputs.projected


def assert_equal(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], bound=1e-5):
    """Compare every output of the reference, relative to its largest magnitude if above 1."""
    missing = reference.keys() - found.keys()
    assert not missing, f"outputs not computed: {sorted(missing)}"
    for name, expected in reference.items():
        assert found[name].shape == expected.shape, (name, found[name].shape, expected.shape)
        scale = max(1.0, float(np.abs(expected).max()))
        error = float(np.abs(found[name] - expected).max()) / scale
        assert error <= bound, f"{name}: {error:.1e} above {bound:.0e}"


def save_golden(case: Case, config, shapes, batch, outputs) -> None:
    """Write a golden file."""
    metadata = {"config": json.dumps(config, sort_keys=True), "shapes": json.dumps(shapes)}
    arrays = {f"in/{k}": v for k, v in batch.items()} | {f"out/{k}": v for k, v in outputs.items()}
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    safetensors.numpy.save_file(arrays, GOLDEN / f"{case.name}.safetensors", metadata)


def read_golden(name: str):
    """Return configuration, shapes, batch and outputs of a golden file."""
    path = GOLDEN / f"{name}.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load_file(path)
    batch = {k[3:]: v for k, v in arrays.items() if k.startswith("in/")}
    outputs = {k[4:]: v for k, v in arrays.items() if k.startswith("out/")}
    return json.loads(metadata["config"]), json.loads(metadata["shapes"]), batch, outputs
