"""`embed`: from many texts or images to embeddings, in batches of static shapes.

Threads of `concurrent.futures` read and decode ahead of the device; Pillow and tokenizers release
the interpreter lock while they work. The data loader grain does this part as well, but what it
adds (shuffling, epochs, worker processes, saved iterators) is not needed for one pass in order,
and it depends on seven further packages.
"""

import hashlib
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._core.checks import counted, flag, option, positive_int
from .._core.files import as_path, content_hash
from .._core.machine import core_count
from .._core.progress import Progress
from .._core.trees import by_value
from ..distributed.processes import Section, jointly
from ..stores.chunks import Chunk, ChunkFolder
from ._encoder import DTYPES, Encoder, embedding_dimension, encode, read_config, with_layer
from ._family import TEXT
from ._images import image_preprocessor
from ._items import Items, contents_hash, ids_of, modality_of, refuse_repeated, sequence
from ._store import (
    Begun,
    chunks_of_others,
    deal,
    drop_begun,
    open_run,
    read_begun,
    save_begun,
    whole_chunks,
)
from ._texts import TextPreprocessor, text_preprocessor
from ._weights import flatten

_T = TypeVar("_T")
#: Seconds after which what is done of a chunk is kept.
KEEP_EVERY = 15.0


@by_value
class Embedded(NamedTuple):
    """What `embed` returns.

    Attributes:
        embeddings: ``[n, dimension]``, in the order of the items; of several layers ``[n, layers,
            dimension]``.
        ids: one per item.
        truncated: number of texts that were longer than the encoder reads, and cut.
    """

    embeddings: np.ndarray
    ids: list[str]
    truncated: int


class ImageReader(Protocol):
    """Reads an image for `embed`, e.g. from a format that Pillow does not know.

    Attributes:
        fingerprint: identifies what it does; kept with the embeddings.
    """

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __call__(self, item: Any, /) -> Any:
        """From an item to what `ImagePreprocessor` takes; called from several threads at once."""
        ...


class _Batch(NamedTuple):
    chunk: int
    rows: list[int]  # positions in the chunk
    truncated: int
    inputs: Callable[[], dict[str, np.ndarray]]  # waits until they are there


def embed(
    encoder: Encoder,
    items: Sequence[Any],
    *,
    batch_size: int = 32,
    modality: str | None = None,
    ids: Sequence[str | int] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    dtype: str = "float32",
    chunk_size: int = 4096,
    progress: bool = True,
    workers: int | None = None,
    devices: Sequence[Any] | None = None,
    reader: ImageReader | None = None,
    prompt_name: str | None = None,
    layers: Sequence[int] | None = None,
) -> Embedded:
    """Embed many texts or images.

    Items are taken in chunks of `chunk_size`. Within a chunk texts are sorted by length, so that a
    batch is padded little, and a batch of long texts has fewer of them; the last batch of a chunk
    is filled up with a repeated item. So the encoder is compiled once per padded length and once
    for images. Between other chunk sizes texts are padded in other ways, and embeddings are equal
    up to rounding.

    With `out`, each chunk is written as a file when it is done, and every 15 s what is done of the
    next one. A run that was interrupted continues from there (a damaged chunk is made again, with a
    warning); a note of the exception that ended it says how many items are kept. Its files are then
    those of an uninterrupted run, byte for byte, as far as XLA compiles the same program to the
    same kernels: it does on CPUs; on GPUs its autotuning may not, and values then agree up to
    rounding. `read_embeddings` reads such a folder.

    All embeddings are held in memory, also with `out`.

    When several processes have joined with `distributed.initialize`, all call this with the same
    arguments. With `out`, a folder that all of them share, each makes a part of the chunks on its
    own devices and reads the others, and the folder is that of one process with as many devices as
    each has; the run can be continued with another number of processes. Without `out` each process
    embeds all its items.

    Args:
        encoder: see `load_encoder`.
        items: texts (str), or images: paths (`pathlib.Path`; str if the encoder has no text),
            encoded bytes, Pillow images or NumPy arrays.
        batch_size: items per step, over all devices; rounded up to a multiple of their number. Of
            texts longer than 64 tokens fewer, so that a step has as many tokens.
        modality: "text" or "image"; by default found from the items, where a str is a text if the
            encoder has texts.
        ids: one per item, unique if `out` is given; 7 and "7.0" are "7", as in stores. By default
            the path as given, or for items without one their position.
        out: folder to write into. Only one run can write into it at a time. Its manifest
            holds a hash of the contents of items in memory (so they are decoded once more), but
            files are known by their ids only: whether a file changed between an interrupted run
            and its continuation is not noticed.
        resume: whether a folder with a part of the same embeddings may be continued.
        dtype: "float32", "bfloat16" or "float16": of the result.
        chunk_size: items per chunk; best a multiple of `batch_size`.
        progress: whether to show progress on stderr: a bar in a terminal, else a line now and
            then.
        workers: number of threads that decode images; by default the number of CPU cores, at most
            16.
        devices: JAX devices to use, each gets a part of each batch; by default all of this process.
        reader: how images are read; by default as `ImagePreprocessor` does.
        prompt_name: of the prompt in the folder's ``config_sentence_transformers.json`` that is put
            before every text. "query" is for what is searched with, "document" for what is
            searched, as in ``encode_query`` and ``encode_document`` of sentence-transformers: none
            where the folder does not have the name. By default it is the folder's default prompt,
            if it has one. A store keeps its name and text.
        layers: hidden layers, counted from 0 (the embeddings), negative from the end: each is
            pooled, in one pass, e.g. for `sweeps.choose_layers`. A store has their vectors one
            after the other in its rows. None for what the encoder pools.

    Returns:
        Embeddings in host memory, ids and the number of texts that were cut, of which a warning
        tells as well.

    Raises:
        TypeError: if an item is of a type that the encoder does not embed; names the item.
        ValueError: if an item cannot be read or its embedding is not finite in `dtype` (names the
            item), texts and images are mixed, ids do not fit, there is no such prompt (lists those
            that there are), or the folder holds another run (lists what differs).
        FileExistsError: if the folder holds something else, or anything without `resume`.
        RuntimeError: if another run writes into the folder, or another process of this run is gone
            or has failed (says why, and which failed), found out after each chunk.
    """
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder must come from load_encoder; got {type(encoder).__name__}")
    option("dtype", dtype, DTYPES)
    chunk_size = positive_int("chunk_size", chunk_size)
    workers = positive_int("workers", min(16, core_count()) if workers is None else workers)
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices is empty: give None or at least one device")
    foreign = [device for device in devices if device.process_index != jax.process_index()]
    if foreign:
        raise ValueError(f"devices must be of this process; {foreign[0]} is not: give None")
    batch_size = -(-positive_int("batch_size", batch_size) // len(devices)) * len(devices)
    flag("resume", resume)
    flag("progress", progress)
    if layers is not None:
        encoder = replace(encoder, config=with_layer(encoder.config, tuple(layers)))

    values = sequence(items)
    modality = modality_of(encoder.config.family.modalities, values, modality)
    named = Items(values, ids_of(values, ids, modality))
    begun: dict[int, Begun] = {}
    if modality == TEXT:
        prepare = text_preprocessor(encoder, prompt_name=prompt_name)
        lengths = list(prepare.buckets)
        rows_of = partial(rows_of_length, batch_size, devices=len(devices))
        batches_of = partial(_text_batches, prepare, named, rows_of, begun)
    else:
        if prompt_name is not None:
            raise ValueError(f"prompt_name must be None for images; got {prompt_name!r}")
        prepare = image_preprocessor(encoder)
        lengths = None
        inputs = prepare.inputs
        inputs_of = inputs if reader is None else lambda item: inputs(reader(item))
        batches_of = partial(_image_batches, inputs_of, prepare.outline, named, batch_size, begun)
    dimension = embedding_dimension(encoder, modality)

    count = len(values)
    starts = range(0, count, chunk_size)
    spans = {k: range(s, min(s + chunk_size, count)) for k, s in enumerate(starts)}
    embeddings = np.empty((count, dimension), jnp.dtype(dtype))
    truncated = 0
    done: set[int] = set()

    def put(number: int, chunk: Chunk) -> None:
        nonlocal truncated
        start = number * chunk_size
        embeddings[start : start + len(chunk.embeddings)] = chunk.embeddings
        truncated += chunk.truncated
        done.add(number)

    with ExitStack() as stack:
        section = Section("embed") if out is None else stack.enter_context(jointly("embed"))
        store, rounds = None, 0
        if out is not None:
            refuse_repeated(named.ids)
            run = {
                **_identity(encoder, modality),
                "preprocessing": prepare.fingerprint,
                "padded_lengths": lengths,
                "contents": contents_hash(named, modality),
                "items": count,
                "dimension": dimension,
                "dtype": dtype,
                "batch_size": batch_size,
                "chunk_size": chunk_size,
                "devices": {"kind": devices[0].device_kind, "count": len(devices)},
            }
            if isinstance(prepare, TextPreprocessor) and prepare.prompt[0] is not None:
                run["prompt"] = dict(zip(("name", "text"), prepare.prompt, strict=True))
            if reader is not None:
                run["reader"] = reader.fingerprint
            first = section.index == 0
            store = stack.enter_context(open_run(as_path(out), run, named.ids, resume, first))
            stack.enter_context(_noting_kept(store, spans, done, begun))
            if first:
                for number, chunk in whole_chunks(store):
                    put(number, chunk)
            shares = deal(store, list(done), section)
            rounds = len(shares[0])
            spans = {number: spans[number] for number in shares[section.index]}
            found = ((number, read_begun(store, number)) for number in spans)
            begun |= {number: part for number, part in found if part is not None}
        own = sum(map(len, spans.values())) - sum(int(part.done.sum()) for part in begun.values())
        total = count if section.count == 1 else sum(map(len, spans.values()))
        name = _name(section, len(spans), progress)
        shown = stack.enter_context(Progress(name, total, total - own, show=progress))
        pool = stack.enter_context(_threads(workers))
        # Some tokenizers must not be called from two threads at once.
        tokenizing = stack.enter_context(_threads(1))
        # All workers busy, and two batches beyond, so that one slow image stops nothing.
        depth = 2 + -(-workers // batch_size)
        encoded = _encoded(encoder, batches_of(spans, pool, tokenizing), depth, devices)
        keep = None if store is None else partial(_keep, store, begun)
        outline = (dimension, dtype)
        for number, chunk in _chunks(encoded, named, spans, outline, begun, keep, shown):
            put(number, chunk)
            if store is not None:
                store.write(number, chunk)
                drop_begun(store, number)
                section.exchange()  # whether another process has failed
        if store is not None:
            for _ in range(rounds - len(spans)):
                section.exchange()
            for number, chunk in chunks_of_others(store, done):
                put(number, chunk)
    if truncated:
        warnings.warn(
            f"{truncated} of {count} texts are longer than the encoder reads and were cut",
            stacklevel=2,
        )
    if layers is not None:
        embeddings = embeddings.reshape(count, len(layers), -1)
    return Embedded(embeddings, named.ids, truncated)


@contextmanager
def _noting_kept(
    store: ChunkFolder, spans: Mapping[int, range], done: set[int], begun: Mapping[int, Begun]
) -> Iterator[None]:
    """Say in a note of what ends a run how much of it is kept."""
    spans = dict(spans)
    try:
        yield
    except BaseException as error:
        kept = sum(len(spans[number]) for number in done)
        kept += sum(int(part.done.sum()) for number, part in begun.items() if number not in done)
        error.add_note(
            f"{kept} of {store.items} items are kept in {store.folder}; the same call again goes on"
        )
        raise


def _keep(store: ChunkFolder, begun: dict[int, Begun], number: int, part: Begun) -> None:
    save_begun(store, number, part)
    begun[number] = part._replace(done=part.done.copy())  # for the note


def _name(section: Section, chunks: int, progress: bool) -> str:
    """Return how this process is called in its progress, and say what it does."""
    if section.count == 1:
        return "embed"
    name = f"embed, process {section.index} of {section.count}"
    if progress:
        print(f"{name}: {counted(chunks, 'chunk')} to make", file=sys.stderr, flush=True)
    return name


def _identity(encoder: Encoder, modality: str) -> dict[str, Any]:
    """Return what identifies the encoder, as JSON values.

    The parameters are hashed as well as their files, since a caller can put others in place.
    """
    config = encoder.config
    params = sorted(flatten(encoder.params).items())
    files = {}
    for path in (encoder.folder / read_config(encoder.folder)[1], *encoder.weight_files):
        with path.open("rb") as file:
            name = path.relative_to(encoder.folder).as_posix()
            files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model_type": config.model_type,
        "modality": modality,
        "pooling": config.pooling,
        "layer": list(config.layer) if isinstance(config.layer, tuple) else config.layer,
        "normalize": config.normalize,
        **({"dense": list(config.dense)} if config.dense else {}),
        "files": files,
        "params": content_hash(part for path, leaf in params for part in (path, np.asarray(leaf))),
        "computed_in": str(encoder.dtype),
    }


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="embed")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(started: Iterable[_T], depth: int) -> Iterator[_T]:
    """Yield what `started` yields; its work begins when it is drawn, `depth` elements early."""
    drawn: deque[_T] = deque()
    for element in started:
        drawn.append(element)
        if len(drawn) > depth:
            yield drawn.popleft()
    yield from drawn


#: Texts up to this length come in batches of the full size.
_FULL_LENGTH = 64


def rows_of_length(batch_size: int, length: int, devices: int = 1) -> int:
    """Return how many texts of a padded length are embedded at once.

    Short and long texts in one batch waste most of it: with as many tokens in each batch, a few
    long texts come alone.
    """
    rows = -(-batch_size * _FULL_LENGTH // max(length, _FULL_LENGTH))
    return -(-rows // devices) * devices


def _text_batches(
    prepare: TextPreprocessor,
    items: Items,
    rows_of: Callable[[int], int],
    begun: Mapping[int, Begun],
    spans: dict[int, range],
    pool: ThreadPoolExecutor,
    tokenizing: ThreadPoolExecutor,
) -> Iterator[_Batch]:
    """Tokenize a chunk ahead; yield its batches, long texts first so that memory runs out early."""

    def started():
        for number, span in spans.items():
            yield number, tokenizing.submit(_tokenize, prepare, items, span)

    for number, future in _ahead(started(), 1):
        tokens = future.result()
        lengths = [len(row) for row in tokens.rows]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        start = 0
        while start < len(order):
            length = prepare.bucket(lengths[order[start]])
            size = rows_of(length)
            rows = order[start : start + size]
            if number in begun and begun[number].done[rows].all():
                start += size
                continue
            filled = rows + rows[:1] * (size - len(rows))
            types = None if tokens.types is None else [tokens.types[row] for row in filled]
            padded = pool.submit(prepare.pad, [tokens.rows[row] for row in filled], length, types)
            truncated = tokens.truncated if start == 0 else 0
            yield _Batch(number, rows, truncated, padded.result)
            start += size


def _tokenize(prepare: TextPreprocessor, items: Items, span: range) -> Any:
    texts = [str(items.values[index]) for index in span]
    try:
        return prepare.tokenize(texts)
    except Exception:
        for index, text in zip(span, texts, strict=True):
            try:
                prepare.tokenize([text])
            except Exception as error:
                raise items.broken(index, error) from error
        raise


def _image_batches(
    inputs_of: Callable[[Any], dict[str, np.ndarray]],
    outline: Mapping[str, tuple[tuple[int, ...], Any]],
    items: Items,
    batch_size: int,
    begun: Mapping[int, Begun],
    spans: dict[int, range],
    pool: ThreadPoolExecutor,
    tokenizing: ThreadPoolExecutor,
) -> Iterator[_Batch]:
    def load(index: int, row: int, into: dict[str, np.ndarray]) -> None:
        try:
            for name, values in inputs_of(items.values[index]).items():
                into[name][row] = values
        except Exception as error:
            raise items.broken(index, error) from error

    def finish(batch: dict[str, np.ndarray], jobs: list[Future]) -> dict[str, np.ndarray]:
        for job in jobs:
            job.result()
        for values in batch.values():
            values[len(jobs) :] = values[:1]
        return batch

    for number, span in spans.items():
        for start in range(0, len(span), batch_size):
            rows = list(range(start, min(start + batch_size, len(span))))
            if number in begun and begun[number].done[rows].all():
                continue
            batch = {
                name: np.empty((batch_size, *shape), dtype)
                for name, (shape, dtype) in outline.items()
            }
            jobs = [pool.submit(load, span[row], i, batch) for i, row in enumerate(rows)]
            yield _Batch(number, rows, 0, partial(finish, batch, jobs))


def _encoded(
    encoder: Encoder, batches: Iterator[_Batch], depth: int, devices: Sequence[Any]
) -> Iterator[tuple[_Batch, jax.Array]]:
    """Yield each batch with its embeddings, when those of the next have been asked for.

    `depth` batches are prepared early.
    """
    mesh = Mesh(np.array(devices), ("batch",))
    params = jax.device_put(encoder.params, NamedSharding(mesh, PartitionSpec()))
    by_rows = NamedSharding(mesh, PartitionSpec("batch"))

    def dispatched():
        for batch in _ahead(batches, depth):
            inputs = jax.device_put(batch.inputs(), by_rows)
            yield batch, encode(encoder.config, params, inputs)

    return _ahead(dispatched(), 1)


def _chunks(
    encoded: Iterator[tuple[_Batch, jax.Array]],
    items: Items,
    spans: dict[int, range],
    outline: tuple[int, str],
    begun: Mapping[int, Begun],
    keep: Callable[[int, Begun], None] | None,
    shown: Progress,
) -> Iterator[tuple[int, Chunk]]:
    """Put the rows of batches in the items' order and yield the chunks that are complete.

    Now and then `keep` gets what is done of a chunk; `begun` is what it got in an earlier run.
    """
    dimension, dtype = outline
    part: Begun | None = None
    kept = time.monotonic()
    for batch, vectors in encoded:
        span = spans[batch.chunk]
        if part is None:
            empty = np.zeros((len(span), dimension), jnp.dtype(dtype))
            part = begun.get(batch.chunk, Begun(empty, np.zeros(len(span), bool), 0))
        embeddings = part.embeddings
        with np.errstate(over="ignore"):  # found below
            rows = np.asarray(vectors)[: len(batch.rows)].astype(embeddings.dtype)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            error = ValueError(f"its embedding holds NaN or infinity in {dtype}")
            raise items.broken(span[batch.rows[bad[0]]], error)
        embeddings[batch.rows] = rows
        part.done[batch.rows] = True
        part = part._replace(truncated=part.truncated + batch.truncated)
        shown.advance(len(batch.rows))
        if part.done.all():
            yield batch.chunk, Chunk(embeddings, part.truncated)
            part = None
        elif keep is not None and time.monotonic() - kept > KEEP_EVERY:
            keep(batch.chunk, part)
            kept = time.monotonic()
