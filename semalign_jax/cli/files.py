"""`semalign info`, `verify`, `convert` and `convert-checkpoint`."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import encoders
from .._core import documents
from .._core.checks import counted
from .._core.files import beside
from .._core.rows import counts_of, grouped, metric_title
from ..encoders._encoder import read_config
from ..encoders._family import family_of, model_types
from ..encoders._hub import resolve_checkpoint
from ..encoders._weights import checkpoint_files, list_tensors
from ..maps.io import load_map, saved_diagnosis, saved_method
from ..stores import export_store, import_store, open_store
from ..stores.chunks import MANIFEST, read_manifest
from ..stores.exchange import SUFFIXES, ids_path
from ..stores.store import verify_store
from ..zeroshot.prompts import load_prompts, prompt_texts, shipped_prompt_sets
from ._console import Console, Outcome
from ._options import command
from ._settings import ConvertCheckpointSettings, ConvertSettings, InfoSettings, VerifySettings
from ._stores import open_rows
from .maps import map_hash

_MAP_SUFFIX = ".safetensors"


@command(
    InfoSettings,
    arguments=("path",),
    examples=("semalign info stores/images", "semalign info rsna_pneumonia --json"),
)
def info(console: Console, settings: InfoSettings) -> Outcome:
    """Say what a store, .npy file, map, encoder, prompt set or folder of results is.

    Nothing large is read: no rows of a store, no weights of an encoder.
    """
    path = settings.path
    kind, values = describe(path)
    lines = [f"{path}: {kind}", *(f"  {line}" for line in _lines(values))]
    return Outcome({"path": path, "kind": kind, **values}, "\n".join(lines))


def describe(name: str) -> tuple[str, dict[str, Any]]:
    """What is at a path, or a prompt set of this name: in one or two words, and its properties."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return "store", _store(path)
        if (path / "results.json").is_file():
            return "results", _results(path / "results.json")
        if (path / "migration.json").is_file():
            return "migration", _migration(path / "migration.json")
        if any((path / file).is_file() for file in ("config.json", "open_clip_config.json")):
            return "encoder", _encoder(path)
        raise ValueError(
            f"{path}: neither a store ({MANIFEST}) nor an encoder (config.json), results "
            "(results.json) or a migration (migration.json) is in this folder"
        )
    if not path.exists():
        if name in shipped_prompt_sets():
            return "prompt set", _prompts(name)
        raise FileNotFoundError(
            f"{path}: there is no such file or folder, and no prompt set of this name either "
            f"({', '.join(shipped_prompt_sets())})"
        )
    if path.suffix == _MAP_SUFFIX:
        return "map", _map(path)
    if path.suffix == ".npy":
        return "rows", _rows(path)
    if path.name == "results.json":
        return "results", _results(path)
    if path.suffix in documents.SUFFIXES:
        return "prompt set", _prompts(name)
    raise ValueError(
        f"{path}: files of {path.suffix or 'no suffix'} are not known here; expected a map "
        f"({_MAP_SUFFIX}), rows (.npy), a prompt set ({', '.join(documents.SUFFIXES)}) or "
        "results.json"
    )


def _store(path: Path) -> dict[str, Any]:
    store = open_store(path)
    chunks, versions = read_manifest(path)
    missing = [n for n in range(chunks.count) if not chunks.path(n).is_file()]
    return {
        "rows": len(store),
        "dimension": store.dimension,
        "dtype": store.dtype.name,
        "chunks": chunks.count,
        "chunks_missing": len(missing),
        "made_by": "embed" if chunks.parts is None else "create_store",
        "description": store.description,
        "versions": dict(versions),
    }


def _rows(path: Path) -> dict[str, Any]:
    rows, beside = open_rows(path), ids_path(path)
    ids = beside.name if beside.is_file() else f"by position, as there is no {beside.name}"
    return {
        "rows": len(rows),
        "dimension": rows.dimension,
        "dtype": rows.dtype.name,
        "ids": ids,
    }


def _map(path: Path) -> dict[str, Any]:
    mapping = load_map(path)
    values: dict[str, Any] = {"method": saved_method(path)}
    values |= _made_with(path.with_suffix(".settings.json"), ("source", "target", "anchors"))
    values |= {"d_in": mapping.d_in, "d_out": mapping.d_out}
    if mapping.batch_shape:
        values["maps"] = list(mapping.batch_shape)
    values |= {"dtype": mapping.weight.dtype.name, "sha256": map_hash(mapping)}
    diagnosis = saved_diagnosis(path)
    return values if diagnosis is None else {**values, "diagnosis": diagnosis}


def _made_with(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """These settings of a command, of those that were given, if its file is there."""
    settings = documents.read_json(path, dict) if path.is_file() else {}
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _encoder(path: Path) -> dict[str, Any]:
    resolve_checkpoint(path)
    config, _, weights = read_config(path)
    model_type = config["model_type"]
    values: dict[str, Any] = {"model_type": model_type, "supported": model_type in model_types()}
    if values["supported"]:
        family = family_of(model_type)
        values |= {"family": family.name, "modalities": list(family.modalities)}
    files = checkpoint_files(path, weights)
    tensors = list_tensors(files)
    values["parameters"] = sum(math.prod(tensor.shape) for tensor in tensors.values())
    values["weights"] = [file.name for file in files]
    return values


def _prompts(name: str) -> dict[str, Any]:
    prompt_set = load_prompts(name)
    return {
        "name": prompt_set.name,
        "task": prompt_set.task,
        "classes": list(prompt_set.names),
        "templates": len(prompt_set.templates),
        "texts": len(prompt_texts(prompt_set).texts),
        "description": prompt_set.description,
    }


def _results(path: Path) -> dict[str, Any]:
    results = documents.read_json(path, dict)
    rows = results.get("rows", [])
    if not isinstance(rows, list) or not isinstance(results.get("format"), str):
        raise ValueError(f"{path} holds no results of semalign_jax")
    values = {
        "format": results["format"],
        **({"study": results["kind"]} if "kind" in results else {}),
    }
    known = ("title", "format_version", "seconds", "environment", "notes")
    values |= {key: results[key] for key in known if key in results}
    return {**values, "rows": len(rows), "scores": _scores(path, rows)}


def _scores(path: Path, rows: list[Any]) -> dict[str, dict[str, float]]:
    """Mean scores of the methods, those of anchors at the largest count, for each pair."""
    found: dict[str, dict[str, float]] = {}
    try:
        for key, group in grouped(rows, "source", "target", "metric").items():
            source, target, metric = key
            counts = counts_of(group)
            most = f", {counted(counts[-1], 'anchor')}" if counts else ""
            last = {row["method"]: row["mean"] for row in group if row["anchors"] in counts[-1:]}
            others = {row["method"]: row["mean"] for row in group if row["anchors"] is None}
            found[f"{source} to {target}, {metric_title(metric)}{most}"] = {**others, **last}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no results of semalign_jax: {error!r} in a row") from error
    return found


def _migration(path: Path) -> dict[str, Any]:
    found = documents.read_json(path, dict)
    if not isinstance(found.get("kept"), list):
        raise ValueError(f"{path} holds no migration of semalign_jax")
    known = ("verdict", "method", "sample", "rows", "searched", "queries", "keep", "rows_to_embed")
    values = {key: found[key] for key in known if key in found}
    of_method = [one for one in found["kept"] if one["method"] == found["method"]]
    return {**values, "kept": {f"{one['measure']}@{one['k']}": one["value"] for one in of_method}}


def _lines(values: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in values.items():
        indent = "  " * depth
        if isinstance(value, Mapping) and all(isinstance(one, float) for one in value.values()):
            numbers = (f"{name} {number:.4g}" for name, number in value.items())
            lines.append(f"{indent}{key}: {', '.join(numbers)}")
        elif isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_lines(value, depth + 1)]
        elif isinstance(value, list) and any(". " in str(one) for one in value):
            lines += [f"{indent}{key}:", *(f"{indent}  {one}" for one in value)]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key}: {shown}")
    return lines


@command(
    VerifySettings,
    arguments=("store",),
    examples=("semalign verify stores/images",),
)
def verify(console: Console, settings: VerifySettings) -> Outcome:
    """Read all of a store and list what is wrong with it; exit with 1 if anything is."""
    store = settings.store
    if not store.is_dir():
        what = "is a file, no store" if store.exists() else "there is no such folder"
        raise FileNotFoundError(f"{store}: {what}")
    problems = verify_store(store)
    values: dict[str, Any] = {"store": str(store), "problems": [p._asdict() for p in problems]}
    if problems:
        lines = [
            f"{store}: {counted(len(problems), 'problem')}",
            *(f"  {p.message}" for p in problems),
        ]
        return Outcome(values, "\n".join(lines), status=1)
    values["rows"] = len(open_store(store))
    return Outcome(values, f"{store}: {counted(values['rows'], 'row')}, all whole")


@command(
    ConvertSettings,
    arguments=("source", "out"),
    examples=(
        "semalign convert stores/images images.parquet",
        "semalign convert vectors.npz stores/vectors --describe encoder=resnet50",
    ),
)
def convert(console: Console, settings: ConvertSettings) -> Outcome:
    """Convert between stores and files, by suffix: .npy, .npz, .parquet, .h5 and .hdf5.

    A .npy file has its ids as a JSON list beside it, in NAME.ids.json. An import that was
    interrupted goes on when it is run again; an existing file is replaced.
    """
    source, out = settings.source, settings.out
    to_file, from_store = out.suffix in SUFFIXES, source.is_dir()
    named: dict[str, Any] = {
        "description": {"file": source.name, **settings.describe},
        "embeddings": settings.embeddings,
        "ids": settings.ids,
    }
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such file or folder")
    if not from_store and not to_file and out.suffix:
        raise ValueError(
            f"{out}: files of {out.suffix} are not known here, of {', '.join(SUFFIXES)} are; the "
            "folder of a store has a name without a suffix"
        )
    if from_store and not to_file:
        raise ValueError(
            f"{out}: a store becomes a file of {', '.join(SUFFIXES)}; to copy it, copy its folder"
        )
    if to_file and not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: there is no such folder for the file")
    if to_file and out.is_dir():
        raise ValueError(f"{out} is a folder: choose another name for the file")
    if from_store:
        store = open_store(source)
        export_store(store, out)
    elif not to_file:
        store = import_store(source, out, **named)
    else:
        folder = beside(out)
        try:
            store = import_store(source, folder, **named)
            export_store(store, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    values = {
        "out": str(out),
        "rows": len(store),
        "dimension": store.dimension,
        "dtype": store.dtype.name,
    }
    return Outcome(values, f"{out}: {counted(len(store), 'row')} of {store.dimension} dimensions")


@command(
    ConvertCheckpointSettings,
    arguments=("source",),
    examples=(
        "semalign convert-checkpoint checkpoints/bert",
        "semalign convert-checkpoint owner/bert --out checkpoints/bert",
    ),
)
def convert_checkpoint(console: Console, settings: ConvertCheckpointSettings) -> Outcome:
    """Convert a checkpoint that has only pytorch_model.bin to safetensors; needs PyTorch.

    Only tensors are read from the pickle, and no code of the checkpoint is run.
    """
    folder = encoders.convert_checkpoint(
        settings.source, settings.out, revision=settings.revision, overwrite=settings.overwrite
    )
    files = [file.name for file in checkpoint_files(folder, read_config(folder)[2])]
    return Outcome({"out": str(folder), "weights": files}, f"{folder}: {', '.join(files)}")
