"""`load_encoder`, and the pure function `encode` from a batch to embeddings."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .._core.checks import option
from .._core.documents import read_json
from ._config import ConfigReader
from ._family import TEXT, Family, family_of
from ._hub import ADAPTER_FILE, resolve_checkpoint
from ._layers import ACTIVATIONS, Array, Outputs, masked_mean, unit_length
from ._sentence import Dense, sentence_settings
from ._weights import (
    SINGLE_FILE,
    WEIGHTS_OF,
    CheckpointError,
    Rule,
    canonical_names,
    checkpoint_files,
    linear_kernel,
    list_tensors,
    load_params,
)

DTYPES = ("float32", "bfloat16", "float16")
#: Size of the parts that `encode` cuts a batch into on a CPU.
PART_TOKENS = 4 * 128
PART_PIXELS = 2 * 224 * 224
#: Of a batch of images; the last two only where images come as patches.
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


@dataclass(frozen=True)
class EncoderConfig:
    """What `encode` computes; frozen and hashable, so a static argument of jit.

    Attributes:
        model_type: the family's key, as in ``config.json``.
        model: the family's own configuration.
        pooling: from tokens to one vector: "cls" (first token), "mean" (over the tokens that the
            mask shows; over patches for images), "eos" (last token), "pooler" (the model's own) or
            "projection" (into the space shared by two towers). As in sentence-transformers, "mean"
            and "eos" of a text without any token are zeros.
        layer: hidden layer that is pooled, 0 for the embeddings; None for the final output. Several
            are pooled each, and their vectors stand one after the other.
        normalize: whether embeddings are scaled to length 1.
        dense: activations of the linear layers between pooling and normalisation, by their names
            in configurations; None for none.
    """

    model_type: str
    model: Any
    pooling: str
    layer: int | tuple[int, ...] | None = None
    normalize: bool = False
    dense: tuple[str | None, ...] = ()

    @property
    def family(self) -> Family:
        """The architecture."""
        return family_of(self.model_type)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder.

    Attributes:
        config: what is computed.
        params: nested dictionary of arrays; under "dense" those of the layers behind the pooling.
        folder: the checkpoint's files.
        weight_files: those with the parameters.
    """

    config: EncoderConfig
    params: dict[str, Any]
    folder: Path
    weight_files: tuple[Path, ...]

    def __repr__(self) -> str:
        number = sum(leaf.size for leaf in jax.tree.leaves(self.params)) / 1e6
        what = f"{self.config.model_type}, {self.config.pooling}, {self.dtype}"
        return f"<Encoder: {what}, {number:.1f} million parameters, {self.folder}>"

    @property
    def dtype(self) -> Any:
        """Floating dtype of the parameters, in which the encoder computes."""
        return jax.tree.leaves(self.params)[0].dtype


def read_config(folder: Path) -> tuple[dict[str, Any], str, str]:
    """Return the decoded configuration, its file name and the name of the file of weights.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a JSON object with a ``model_type``, or timm's ``architecture``, or
            if an adapter changes the model.
    """
    if (folder / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{folder} has an adapter of the package peft ({ADAPTER_FILE}), which is not applied "
            "here: merge it into the weights (merge_and_unload), save the model, and load that"
        )
    for name, weight_names in WEIGHTS_OF.items():
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path, dict)
        if name == "open_clip_config.json":
            values["model_type"] = "open_clip"
        elif "model_type" not in values and "architecture" in values:
            values["model_type"] = "timm"
        if not isinstance(values.get("model_type"), str):
            raise ValueError(f"{path} has no model_type, which names the family")
        there = [file for file in weight_names if (folder / file).is_file()]
        return values, name, (there or weight_names)[0]
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    hint = f"; there is one in its folder {below[0]}" if below else ""
    raise FileNotFoundError(f"{folder} has no config.json and no open_clip_config.json{hint}")


def load_encoder(
    folder_or_hub_id: str | Path,
    *,
    dtype: str = "float32",
    pooling: str | None = None,
    layer: int | None = None,
    normalize: bool | None = None,
    revision: str | None = None,
    ignore_config_keys: Sequence[str] = (),
) -> Encoder:
    """Load a checkpoint: ``config.json``, of transformers or timm, and safetensors.

    No code of a checkpoint is run and no pickle is opened.

    Args:
        folder_or_hub_id: a folder, or the id of a repository on the Hugging Face hub.
        dtype: "float32", "bfloat16" or "float16": of the parameters and of the computation.
        pooling: see `EncoderConfig`; by default as the folder's sentence-transformers
            ``modules.json`` says, else the family's first. Dense layers that the folder puts
            behind its pooling are left out with another pooling or a `layer`.
        layer: hidden layer to pool, counted from 0 (the embeddings), negative from the end; by
            default the final output.
        normalize: whether to scale embeddings to length 1; by default as ``modules.json`` says,
            else not.
        revision: branch, tag or commit on the hub.
        ignore_config_keys: keys of ``config.json`` that are unknown here and known to you not to
            change the embeddings.

    Returns:
        The encoder, its parameters on the default device.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if the architecture, an option or a pooling is not supported, or the tensors
            do not fit the model; every problem is listed.
    """
    option("dtype", dtype, DTYPES)
    folder = resolve_checkpoint(folder_or_hub_id, revision)
    values, config_file, weight_file = read_config(folder)
    model_type = values["model_type"]
    family = family_of(model_type)
    files = checkpoint_files(folder, weight_file)
    tensors = canonical_names(list_tensors(files), family.prefixes)
    reader = ConfigReader(values, str(folder / config_file), ignore_config_keys)
    model = family.parse(reader, frozenset(tensors))
    reader.finish()

    settings = sentence_settings(folder)
    supported = family.poolings(model)
    if pooling is None and layer is not None:
        usual = [p for p in (settings.pooling, *supported) if p in ("cls", "mean", "eos")]
        pooling = usual[0]
    pooling = pooling or settings.pooling or supported[0]
    if pooling not in supported:
        raise ValueError(f"pooling {pooling!r} is not one that this model has: {supported}")
    normalize = settings.normalize if normalize is None else normalize
    config = EncoderConfig(model_type, model, pooling, None, normalize)
    abstract = abstract_params(config)
    if layer is not None:
        config = with_layer(config, layer)
    ignored = family.ignored(model) if callable(family.ignored) else family.ignored
    rules = family.rules(model) if callable(family.rules) else family.rules
    params = load_params(tensors, rules, ignored, abstract, jnp.dtype(dtype))
    if layer is None and pooling == settings.pooling and settings.dense:
        config = replace(config, dense=tuple(dense.activation for dense in settings.dense))
        params["dense"] = {
            str(i): _dense_params(dense, dtype) for i, dense in enumerate(settings.dense)
        }
        files += tuple(dense.folder / SINGLE_FILE for dense in settings.dense)
    return Encoder(config, params, folder, files)


def _dense_params(dense: Dense, dtype: str) -> dict[str, Any]:
    path = dense.folder / SINGLE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. If there is a pytorch_model.bin, convert the whole checkpoint "
            f"once, with PyTorch: `semalign convert-checkpoint {dense.folder.parent} --out FOLDER`"
        )
    tensors = list_tensors([path])
    shapes = {"kernel": (dense.inputs, dense.outputs)}
    shapes |= {"bias": (dense.outputs,)} if dense.bias else {}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    rules = (Rule("linear.weight", "kernel", linear_kernel), Rule("linear.bias", "bias"))
    try:
        return load_params(tensors, rules, (), abstract, jnp.dtype(dtype))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def with_layer(config: EncoderConfig, layer: int | Sequence[int]) -> EncoderConfig:
    """Return the configuration that pools a hidden layer, or several.

    Raises:
        TypeError: for layers that are no whole numbers.
        ValueError: for a layer that there is not, several that are equal or of unequal widths, a
            pooling of the final output, or two towers.
    """
    several = isinstance(layer, Sequence)
    layers = [operator.index(one) for one in (layer if several else (layer,))]
    if config.pooling not in ("cls", "mean", "eos"):
        raise ValueError(f"pooling {config.pooling!r} is of the final output; layer must be None")
    batch = example_batch(config)
    if len(config.family.modalities) > 1:
        raise ValueError("layer must be None for a model of two towers")
    abstract = abstract_params(config)
    states = jax.eval_shape(partial(forward, config), abstract, batch).hidden_states
    count = len(states)
    for one in layers:
        if not -count <= one < count:
            raise ValueError(f"layer must be from {-count} to {count - 1}; got {one}")
    layers = tuple(one % count for one in layers)
    widths = {one: states[one].shape[-1] for one in layers}
    if len(widths) < len(layers) or not layers:
        raise ValueError(f"layers must be different ones, at least one; got {layer}")
    if len(set(widths.values())) > 1:
        raise ValueError(f"layers of unequal widths cannot stand in one array: {widths}")
    return replace(config, layer=layers if several else layers[0], dense=())


def example_batch(config: EncoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the outline of a batch with all the inputs that the model takes."""
    family, batch = config.family, {}
    if family.patches is not None:
        count, values = family.patches(config.model)
        batch["pixel_values"] = jax.ShapeDtypeStruct((1, count, values), jnp.float32)
        batch["pixel_attention_mask"] = jax.ShapeDtypeStruct((1, count), jnp.int32)
        batch["spatial_shapes"] = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    elif family.image_size is not None:
        shape = (1, *family.image_size(config.model))
        batch["pixel_values"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    if family.max_tokens is not None:
        tokens = jax.ShapeDtypeStruct((1, min(8, family.max_tokens(config.model))), jnp.int32)
        batch |= {"input_ids": tokens, "attention_mask": tokens}
    return batch


def embedding_dimension(encoder: Encoder, modality: str) -> int:
    """Return the length of an embedding of a text or an image."""
    batch = example_batch(encoder.config)
    batch = {k: value for k, value in batch.items() if (k in IMAGE_INPUTS) == (modality != TEXT)}
    return jax.eval_shape(partial(encode, encoder.config), encoder.params, batch).shape[1]


def abstract_params(config: EncoderConfig) -> dict[str, Any]:
    """Return the outline of the parameters, without making them."""
    module = config.family.build(config.model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(module.init, key, example_batch(config))["params"]


def forward(config: EncoderConfig, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Outputs:
    """Return all the outputs of a batch, before pooling.

    Pixels are cast to the dtype of the parameters. In float32 products have full precision, also
    on hardware whose default is less.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    batch = dict(batch)
    longest = config.family.max_tokens
    if "input_ids" in batch and longest and batch["input_ids"].shape[1] > longest(config.model):
        raise ValueError(
            f"input_ids {batch['input_ids'].shape} are longer than the {longest(config.model)} "
            "tokens that the model has positions for: cut the texts"
        )
    if "pixel_values" in batch:
        batch["pixel_values"] = jnp.asarray(batch["pixel_values"]).astype(dtype)
    precision = "highest" if dtype == jnp.float32 else "default"
    own = {name: value for name, value in params.items() if name != "dense"}
    with jax.default_matmul_precision(precision):
        return config.family.build(config.model).apply({"params": own}, batch)  # pyright: ignore[reportReturnType]


def pool(
    config: EncoderConfig,
    params: Mapping[str, Any],
    outputs: Outputs,
    attention_mask: Array | None,
) -> Array:
    """Return one vector per item, ``[batch, dimension]``."""
    if config.pooling == "pooler":
        vectors = outputs.pooled
    elif config.pooling == "projection":
        vectors = outputs.projected
    elif isinstance(config.layer, tuple):
        each = (replace(config, layer=layer) for layer in config.layer)
        found = [pool(one, params, outputs, attention_mask) for one in each]
        return jnp.concatenate(found, axis=1)
    else:
        x = outputs.last if config.layer is None else outputs.hidden_states[config.layer]
        if config.pooling == "cls":
            vectors = x[:, 0]
        elif config.pooling == "mean":
            vectors = masked_mean(x[:, outputs.prefix_tokens :], attention_mask)
        else:
            last = outputs.eos
            if last is None and attention_mask is None:
                last = jnp.full(len(x), x.shape[1] - 1)
            elif last is None:
                shown = attention_mask != 0
                last = x.shape[1] - 1 - jnp.argmax(shown[:, ::-1], axis=1)
                x = jnp.where(shown[:, :, None], x, 0)
            vectors = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    assert vectors is not None  # load_encoder offers only the poolings that a model has
    for i, activation in enumerate(config.dense):
        layer = params["dense"][str(i)]
        precision = "highest" if vectors.dtype == jnp.float32 else "default"
        vectors = jnp.matmul(vectors, layer["kernel"], precision=precision)
        if "bias" in layer:
            vectors = vectors + layer["bias"][None]
        if activation is not None:
            vectors = ACTIVATIONS[activation](vectors)
    return unit_length(vectors) if config.normalize else vectors


@partial(jax.jit, static_argnames="config")
def encode(config: EncoderConfig, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Array:
    """Embed one batch: a pure function, compiled once per configuration and shape.

    Args:
        config: `Encoder.config`.
        params: `Encoder.params`, or arrays of the same structure: cast, sharded, fine-tuned.
        batch: text: ``input_ids [batch, tokens]``, ``attention_mask [batch, tokens]`` and, where
            the model has segments, ``token_type_ids``; images: ``pixel_values [batch, channels,
            height, width]``, preprocessed, or, of a model that takes images of any size, patches
            (see `Family.build`).

    Returns:
        Embeddings ``[batch, dimension]`` in the dtype of the parameters.

    Raises:
        ValueError: if the batch does not have the inputs of exactly one modality of the model.
    """
    given = [name for name in ("pixel_values", "input_ids") if name in batch]
    allowed = {"image": "pixel_values", "text": "input_ids"}
    wanted = [allowed[modality] for modality in config.family.modalities]
    if len(given) != 1 or given[0] not in wanted:
        raise ValueError(
            f"batch must have {' or '.join(wanted)}, and inputs of one kind; it has {sorted(batch)}"
        )

    def embedded(part: Mapping[str, Array]) -> Array:
        mask = part.get("attention_mask", part.get("pixel_attention_mask"))
        return pool(config, params, forward(config, params, part), mask)

    arrays = {name: jnp.asarray(values) for name, values in batch.items()}
    if jax.default_backend() != "cpu":
        return embedded(arrays)
    return _in_parts(embedded, arrays, _rows_of_part(arrays[given[0]].shape))


def _rows_of_part(shape: tuple[int, ...]) -> int:
    """Rows whose activations stay in a CPU's cache; smaller parts also take less memory."""
    # Of images, pixels; patches have three values a pixel.
    work = shape[1] if len(shape) == 2 else math.prod(shape[1:]) // (shape[1] if shape[3:] else 3)
    return max(PART_TOKENS if len(shape) == 2 else PART_PIXELS, work) // max(work, 1)


def _in_parts(
    function: Callable[[Mapping[str, Array]], Array], batch: Mapping[str, Array], rows: int
) -> Array:
    """Apply a function to equal parts of at most so many rows, one after the other."""
    items = len(next(iter(batch.values())))
    parts = -(-items // rows)
    if parts < 2:
        return function(batch)
    rows = -(-items // parts)
    missing = parts * rows - items

    def split(values: Array) -> Array:
        # Part i has the rows i, i + parts...: each device keeps its own rows if they are sharded.
        values = jnp.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), mode="edge")
        return jnp.swapaxes(values.reshape(rows, parts, *values.shape[1:]), 0, 1)

    found = jax.lax.map(function, jax.tree.map(split, dict(batch)))
    return jnp.swapaxes(found, 0, 1).reshape(rows * parts, -1)[:items]
