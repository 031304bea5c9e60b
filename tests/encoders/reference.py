"""The PyTorch side of a case (needs the extra ``parity``)."""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers

from .harness import Case, synthetic

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def configuration(case: Case):
    """Return the configuration object (or dictionary) of a case."""
    kind = getattr(transformers, case.config) if isinstance(case.config, str) else case.config
    return kind(**case.options)


def build(case: Case) -> tuple[torch.nn.Module, dict, dict]:
    """Return the PyTorch module with synthetic values, its configuration and stored shapes.

    The module passes through its own files, because names on disk differ from those in memory.
    """
    torch.manual_seed(0)
    config = configuration(case)
    if not isinstance(case.model, str):
        module = case.model(config).eval()
        state = module.state_dict()
        shapes = {name: list(value.shape) for name, value in state.items()}
        values = {name: torch.from_numpy(synthetic(name, tuple(s))) for name, s in shapes.items()}
        module.load_state_dict(values)
        stored = config if isinstance(config, dict) else json.loads(config.to_json_string())
        return module, stored, shapes
    kind = getattr(transformers, case.model)
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        values = {name: torch.from_numpy(synthetic(name, tuple(s))) for name, s in shapes.items()}
        safetensors.torch.save_file(values, path, {"format": "pt"})
        module = kind.from_pretrained(folder, attn_implementation="eager").eval()
        stored = json.loads((Path(folder) / "config.json").read_text())
    return module, stored, shapes


def run(case: Case, module: torch.nn.Module, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the reference's outputs."""
    inputs = {
        name: torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "i" else value)
        for name, value in batch.items()
    }
    with torch.inference_mode():
        outputs = case.reference(module, inputs) if case.reference else _outputs(module, inputs)
    return {name: np.ascontiguousarray(value.numpy()) for name, value in outputs.items()}


def _outputs(module, inputs):
    outputs = module(**inputs, output_hidden_states=True)
    found = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    found["last"] = outputs.last_hidden_state
    if getattr(outputs, "pooler_output", None) is not None:
        found["pooled"] = outputs.pooler_output
    return found
