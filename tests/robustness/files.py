"""Damaged, foreign and hostile files: an error that names the file, or the right value.

Nothing may take much more memory than the file, end the process, or run for long.
"""

import gzip
import json
import multiprocessing
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import semalign_jax as sa

_MEMORY = 400e6  # bytes that one small file may take at most
_SECONDS = 20.0
_LIMIT = 20.0  # seconds after which a case is given up


class Sample(NamedTuple):
    """A good file, and how it is read.

    Attributes:
        path: the file, in a folder of its own.
        read: from the folder to a value that can be compared.
    """

    path: Path
    read: Callable[[Path], Any]


def _values(folder: Path) -> Any:
    store = sa.stores.open_store(folder)
    return list(store.ids), store.rows(slice(None)).tobytes()


def _verified(folder: Path) -> Any:
    problems = sa.stores.verify_store(folder)
    if problems:  # reported, not raised: each names its file
        unnamed = [p for p in problems if str(folder) not in p.message]
        if unnamed:
            raise AssertionError(f"verify names no file: {unnamed[0].message}")
        raise ValueError(f"{folder}: damaged")
    return _values(folder)


def _imported(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        out = folder / "imported"
        shutil.rmtree(out, ignore_errors=True)
        try:
            return _values(sa.stores.import_store(folder / name, out, description={}).folder)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return read


def _weights(folder: Path) -> Any:
    mapping = sa.load_map(folder / "map.safetensors")
    return [np.asarray(leaf).tobytes() for leaf in mapping]


def _study(folder: Path) -> Any:
    from semalign_jax.studies.outputs import load_results

    return json.dumps(load_results(folder), sort_keys=True)


def _settings(folder: Path) -> Any:
    from semalign_jax._core.documents import read_document

    return read_document(folder / "run.yaml", "settings file")


def _table(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        found = sa.data.read_table(folder / name, id="id", text="text", label=["a", "b"])
        return found.ids, found.texts, found.labels.tolist()

    return read


def _prompts(name: str) -> Callable[[Path], Any]:
    return lambda folder: sa.zeroshot.load_prompts(folder / name)


def _pixels(name: str) -> Callable[[Path], Any]:
    return lambda folder: sa.data.read_pixels(folder / name).tobytes()


def _described(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from semalign_jax.cli.files import describe

        return json.dumps(describe(str(folder / name)), default=str)

    return read


def samples(root: Path) -> dict[str, Sample]:
    """Good files of all kinds, written below `root`."""
    from data.trees import write_dicom, write_image

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 6)).astype(np.float32)
    ids = [f"case {k}" for k in range(40)]
    found: dict[str, Sample] = {}

    def folder(name: str) -> Path:
        (root / name).mkdir(parents=True)
        return root / name

    store = sa.stores.create_store(folder("store"), description={"made": "here"}, dimension=6)
    store = store.append(ids[:25], rows[:25]).append(ids[25:], rows[25:])
    for name in ("manifest.json", "ids-00000.json", "chunk-00001.safetensors"):
        for how, read in (("verify", _verified), ("open", _values)):
            copy = shutil.copytree(store.folder, root / f"{how} {name}")
            found[f"{how} {name}"] = Sample(copy / name, read)
    for suffix in (".npy", ".npz", ".parquet", ".h5"):
        path = folder(suffix) / f"rows{suffix}"
        sa.stores.export_store(store, path)
        found[suffix] = Sample(path, _imported(path.name))
    path = folder("compressed npz") / "rows.npz"
    np.savez_compressed(path, embeddings=rows, ids=np.array(ids))
    found["compressed npz"] = Sample(path, _imported(path.name))
    path = folder("ids of npy") / "rows.npy"
    sa.stores.export_store(store, path)
    found["ids of npy"] = Sample(path.with_suffix(".ids.json"), _imported(path.name))
    path = folder("map") / "map.safetensors"
    sa.save_map(sa.fit_affine(rows[:, :4], rows), path, method="affine")
    found["map"] = Sample(path, _weights)
    text = "id,text,a,b\n" + "".join(
        f"{name},text,{k % 2},{-1 if k % 3 else ''}\n" for k, name in enumerate(ids)
    )
    path = folder("csv") / "table.csv"
    path.write_text(text)
    found["csv"] = Sample(path, _table(path.name))
    path = folder("csv gz") / "table.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    found["csv gz"] = Sample(path, _table(path.name))
    import pyarrow
    from pyarrow import parquet

    columns = {"id": ids, "text": ids, "a": [1, 0] * 20, "b": [0, 1] * 20}
    path = folder("parquet table") / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found["parquet table"] = Sample(path, _table(path.name))
    prompts = (Path(sa.zeroshot.__file__).parent / "prompt_sets").glob("*.json")
    shipped = json.loads(sorted(prompts)[0].read_text())
    path = folder("prompts json") / "prompts.json"
    path.write_text(json.dumps(shipped))
    found["prompts json"] = Sample(path, _prompts(path.name))
    import yaml

    path = folder("prompts yaml") / "prompts.yaml"
    path.write_text(yaml.safe_dump(shipped))
    found["prompts yaml"] = Sample(path, _prompts(path.name))
    path = folder("png") / "image.png"
    write_image(path, rng.integers(0, 255, (30, 20)))
    found["png"] = Sample(path, _pixels(path.name))
    path = folder("dicom") / "image.dcm"
    write_dicom(path, rng.integers(0, 4000, (30, 20)).astype(np.uint16))
    found["dicom"] = Sample(path, _pixels(path.name))
    from cli_cases import text_encoder

    encoder = text_encoder(folder("encoder"))
    for name in ("config.json", "model.safetensors"):
        copy = shutil.copytree(encoder, root / f"encoder {name}")
        found[f"info {name}"] = Sample(copy / name, _described(""))
    path = folder("settings") / "run.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "methods": ["ortho"], "anchors": [20, 50]}))
    found["settings"] = Sample(path, _settings)
    path = folder("results") / "results.json"
    path.write_text(json.dumps({"format": "semalign_jax.study", "format_version": 1, "rows": []}))
    found["info results"] = Sample(path, _described(path.name))
    return found


def mutations(draw: random.Random, data: bytes, others: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Endless changed contents of a file, and what was done."""
    size = max(1, len(data))
    while True:
        kind = draw.randrange(12)
        place, length = draw.randrange(size), draw.randrange(1, 64)
        changed = bytearray(data)
        if kind == 0:
            yield f"cut at {place}", data[:place]
        elif kind in (1, 2, 3):
            for _ in range(draw.choice((1, 1, 3, 20))):
                changed[draw.randrange(size) % len(changed)] ^= 1 << draw.randrange(8)
            yield f"bits flipped at {place}", bytes(changed)
        elif kind == 4:
            changed[place : place + length] = bytes(length)
            yield f"zeros at {place}", bytes(changed)
        elif kind == 5:
            changed[place:place] = draw.randbytes(length)
            yield f"bytes inserted at {place}", bytes(changed)
        elif kind == 6:
            del changed[place : place + length]
            yield f"bytes removed at {place}", bytes(changed)
        elif kind == 7:
            yield "another file", draw.choice(others)
        elif kind == 8:
            yield "huge numbers", _huge(draw, data)
        elif kind == 9:
            changed[place : place + 4] = draw.choice(
                (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80")
            )
            yield f"a huge size at {place}", bytes(changed)
        elif kind == 10:
            depth = draw.choice((100, 100_000))
            nest = b"[" * depth if draw.random() < 0.5 else b'{"a":' * depth
            yield "nested", draw.choice((nest, data[:place] + nest + data[place:]))
        else:
            yield (
                "noise",
                draw.choice((b"", b"\0" * 100, draw.randbytes(200), b"null", b"[]", b"{}")),
            )


def _huge(draw: random.Random, data: bytes) -> bytes:
    digits = [k for k, byte in enumerate(data) if byte in b"123456789"]
    if not digits:
        return data + b"9" * 20
    place = draw.choice(digits)
    return data[:place] + draw.choice((b"9" * 12, b"9" * 30, b"1e400", b"-1")) + data[place + 1 :]


def outcome(name: str, sample: Sample, what: str, data: bytes, right: Any) -> str:
    """What is wrong with how a changed file is read; "" if nothing."""
    sample.path.write_bytes(data)
    where = f"{name}, {what}"
    before, start = _peak(), time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = sample.read(sample.path.parent)
    except (ValueError, OSError) as error:
        text = str(error)
        fault = "" if str(sample.path.parent) in text else f"names no file: {text[:200]}"
    except ModuleNotFoundError:
        raise
    except BaseException as error:
        fault = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        fault = "" if _may_read(name, value, right) else f"gives other values: {str(value)[:100]}"
    taken, seconds = _peak() - before, time.monotonic() - start
    if taken > _MEMORY:
        fault = f"takes {taken / 1e6:.0f} MB"
    if seconds > _SECONDS:
        fault = f"takes {seconds:.0f} s"
    return f"{where}: {fault}" if fault else ""


def _may_read(name: str, value: Any, right: Any) -> bool:
    # Files without a checksum hold other values after a flip, which nobody can know.
    checked = name.startswith("verify")
    return value == right or not checked


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _work(root: Path, start: int, count: int, seed: int, pipe: Connection) -> None:
    """Try cases start, start + 1, ... in a process that may die of them."""
    found = samples(root / f"from-{start}")
    names = sorted(found)
    good = {name: found[name].path.read_bytes() for name in names}
    right = {name: found[name].read(found[name].path.parent) for name in names}
    for number in range(start, count):
        draw = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        what, data = next(mutations(draw, good[name], list(good.values())))
        pipe.send((number, f"{name}, {what}", False))
        fault = outcome(name, found[name], what, data, right[name])
        found[name].path.write_bytes(good[name])
        pipe.send((number, fault, True))
    pipe.send(None)


def _next(pipe: Connection) -> Any:
    if not pipe.poll(_LIMIT):
        raise TimeoutError
    return pipe.recv()


def run(root: Path, count: int, seed: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Try damaged files; yield how many were tried, and the faults found, so far."""
    faults: dict[str, None] = {}
    start = 0
    context = multiprocessing.get_context("spawn")
    while start < count:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(root, start, count, seed, there))
        process.start()
        there.close()
        message: Any = None
        try:
            while (received := _next(here)) is not None:
                message = received
                number, fault, done = message
                if done:
                    if fault:
                        faults[fault] = None
                    start = number + 1
                    yield start, list(faults)
            start = count
        except (EOFError, TimeoutError) as error:  # it is gone, or hangs
            if message is None:
                raise RuntimeError("the process that tries files does not start") from None
            process.kill()
            how = "ends the process" if isinstance(error, EOFError) else "does not come back"
            faults[f"{message[1]}: {how}"] = None
            start = message[0] + 1
            yield start, list(faults)
        process.join()


def refusal(name: str, path: Path, read: Callable[[Path], Any]) -> str:
    """What is wrong with how one of `bombs` is read; "" if it is refused, in little memory."""
    before = _peak()
    try:
        read(path.parent)
    except ValueError as error:
        taken = _peak() - before
        if str(path) not in str(error):
            return f"{name}: names no file: {error}"
        return f"{name}: takes {taken / 1e6:.0f} MB" if taken > _MEMORY else ""
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return f"{name}: is read"


def bombs(root: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Small files that declare much, or lead elsewhere; each has to be refused."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[Path, Callable[[Path], Any]]] = {}

    def add(name: str) -> Path:
        path = root / name
        found[name] = path, _imported(name)
        return path

    text = h5py.string_dtype()
    secret = root / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["embeddings"] = np.ones((3, 2), np.float32)
        file.create_dataset("ids", data=["a", "b", "c"], dtype=text)
    (root / "raw.bin").write_bytes(np.ones(6, np.float32).tobytes())
    with h5py.File(add("unwritten.h5"), "w") as file:
        file.create_dataset("embeddings", (10**6, 2000), np.float32, chunks=(100, 2000))
        file.create_dataset("ids", (10**6,), text, chunks=(1000,))
    with h5py.File(add("many ids.h5"), "w") as file:
        file["embeddings"] = np.ones((3, 2), np.float32)
        file.create_dataset("ids", (10**9,), text, chunks=(1000,))
    with h5py.File(add("external link.h5"), "w") as file:
        file["embeddings"] = h5py.ExternalLink("secret.h5", "embeddings")
        file.create_dataset("ids", data=["a", "b", "c"], dtype=text)
    with h5py.File(add("soft link.h5"), "w") as file:
        file["other"] = h5py.ExternalLink("secret.h5", "embeddings")
        file["embeddings"] = h5py.SoftLink("/other")
        file.create_dataset("ids", data=["a", "b", "c"], dtype=text)
    with h5py.File(add("external data.h5"), "w") as file:
        parts = [(str(root / "raw.bin"), 0, 24)]
        file.create_dataset("embeddings", (3, 2), np.float32, external=parts)
        file.create_dataset("ids", data=["a", "b", "c"], dtype=text)
    layout = h5py.VirtualLayout((3, 2), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "embeddings", (3, 2))
    with h5py.File(add("virtual.h5"), "w") as file:
        file.create_virtual_dataset("embeddings", layout)
        file.create_dataset("ids", data=["a", "b", "c"], dtype=text)
    np.savez_compressed(
        add("zeros.npz"), embeddings=np.zeros((40, 10**6), np.float32), ids=np.array(["a"] * 40)
    )
    np.savez_compressed(
        add("long ids.npz"), embeddings=np.ones((40, 2)), ids=np.zeros(40, "U1000000")
    )
    import pyarrow
    from pyarrow import parquet

    flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(4 * 10**6)), 4)
    names = pyarrow.array(["a"] * 10**6)
    parquet.write_table(pyarrow.table({"ids": names, "embeddings": flat}), add("alike.parquet"))
    line = b"a" * (200 << 20)
    table = root / "one line.csv.gz"
    table.write_bytes(gzip.compress(b"id,text,a,b\n" + line, 1))
    found[table.name] = table, _table(table.name)
    return found
