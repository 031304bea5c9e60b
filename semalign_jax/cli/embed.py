"""`semalign embed`."""

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._app import app
from ._console import (
    ConfigOption,
    Outcome,
    command,
    here,
    note,
    quiet,
    save_settings,
    settings_of,
    writing,
)
from ._distributed import (
    JOIN,
    CoordinatorOption,
    DistributedOption,
    ProcessCountOption,
    ProcessIdOption,
    TimeoutOption,
    joined,
)
from ._options import DatasetOption, DatasetPathOption, ReaderOption, dataset_flags, option

if TYPE_CHECKING:
    from ._settings import EmbedSettings

_DTYPES = "float32|bfloat16|float16"


@command(
    app,
    "embed",
    examples=(
        "semalign embed vit images/ --out stores/images",
        "semalign embed owner/bert reports.txt --out stores/reports --batch-size 64",
        "semalign embed bert --dataset mimic-cxr --path mimic-cxr-jpg --option reports=mimic-cxr "
        "--option section=impression --texts --split train --view PA --out stores/reports",
        "semalign embed bert --prompts rsna_pneumonia --out stores/prompts",
    ),
)
def embed(
    encoder: Annotated[
        str | None, typer.Argument(help="Folder of a checkpoint, or its id on the hub.")
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="A .txt file, a text a line; or images, folders, quoted patterns."),
    ] = None,
    out: Annotated[Path | None, option("Folder of the store")] = None,
    dataset: DatasetOption = None,
    path: DatasetPathOption = None,
    reader_options: ReaderOption = None,
    images: Annotated[bool, option("Images of the data set", "--images")] = False,
    texts: Annotated[bool, option("Texts of the data set", "--texts")] = False,
    prompts: Annotated[str | None, option("Texts of a prompt set: a name or a file")] = None,
    split: Annotated[
        list[str] | None, option("Keep this split of the data set; repeatable")
    ] = None,
    view: Annotated[list[str] | None, option("Keep this view, e.g. PA; repeatable")] = None,
    one_per_study: Annotated[
        bool | None, option("Keep the first item of each study", "--one-per-study")
    ] = None,
    id_from: Annotated[
        str | None,
        option("What image files are called", values="path|name|stem", default="path"),
    ] = None,
    batch_size: Annotated[int | None, option("Items a step", default="32", min=1)] = None,
    chunk_size: Annotated[
        int | None, option("Items a file of the store", default="4096", min=1)
    ] = None,
    dtype: Annotated[
        str | None,
        option("Of the store", values=_DTYPES, default="float32"),
    ] = None,
    compute_dtype: Annotated[
        str | None,
        option("Of the encoder", values=_DTYPES, default="float32"),
    ] = None,
    pooling: Annotated[
        str | None,
        option(
            "From tokens to a row; by default the encoder's own",
            values="cls|mean|eos|pooler|projection",
        ),
    ] = None,
    layer: Annotated[
        int | None, option("Hidden layer to pool, -1 is the last", default="output")
    ] = None,
    normalize: Annotated[
        bool | None,
        option("Whether rows get length 1; by default as the encoder's folder says"),
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit on the hub")] = None,
    workers: Annotated[
        int | None,
        option("Threads that decode images", default="cores, at most 16", min=1),
    ] = None,
    processes: Annotated[
        bool | None,
        option("Whether processes decode DICOM files", default="if 1000 or more"),
    ] = None,
    skip_broken: Annotated[
        bool | None,
        option("Leave out what cannot be read, list it, exit with 1", "--skip-broken"),
    ] = None,
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    process_count: ProcessCountOption = None,
    process_id: ProcessIdOption = None,
    timeout: TimeoutOption = None,
    config: ConfigOption = None,
) -> Outcome:
    """Embed texts or images with a frozen encoder into a store.

    The ids of a data set's rows are its image ids, also those of texts. Run the same command again
    to go on after an interruption.
    """
    flags = dict(locals())
    for name in JOIN:
        del flags[name]
    if images and texts:
        raise ValueError("--images and --texts: give one of them")
    for name in ("images", "texts", "dataset", "path", "reader_options"):
        del flags[name]
    flags["content"] = "images" if images else "texts" if texts else None
    flags |= dataset_flags(dataset, path, reader_options)
    # What is no path by its type starts here as well, not at the settings file.
    for name in ("encoder", "prompts"):
        if flags[name] is not None and here(flags[name]).exists():
            flags[name] = str(here(flags[name]))

    from ._settings import EmbedSettings

    settings = settings_of(EmbedSettings, flags)
    with joined(distributed, coordinator, process_count, process_id, timeout):
        return run(settings)


def run(settings: "EmbedSettings") -> Outcome:
    """Embed as the settings say."""
    from ..distributed.processes import by_first
    from ..stores.chunks import refuse_other_contents
    from ._sources import IMAGE, find_broken, pixel_reader, read_source, worker_count

    started = time.monotonic()
    if settings.out.is_dir():
        refuse_other_contents(settings.out)  # before the encoder is loaded
    source = read_source(settings)
    note(f"{len(source.items)} {source.modality}s to embed into {settings.out}")
    from .. import encoders  # slow to import

    encoder = encoders.load_encoder(
        settings.encoder,
        dtype=settings.compute_dtype,
        pooling=settings.pooling,
        layer=settings.layer,
        normalize=settings.normalize,
        revision=settings.revision,
    )
    reads = encoder.config.family.modalities
    if source.modality not in reads:
        raise ValueError(
            f"{settings.encoder} embeds {' and '.join(reads)}s, but these are {source.modality}s"
        )
    workers = worker_count(settings.workers)
    paths = [Path(item) for item in source.items] if source.modality == IMAGE else []
    items, ids = list(source.items), list(source.ids)
    skipped = list(source.skipped)
    with writing(settings.out), pixel_reader(paths, settings.processes, workers) as reader:
        if settings.skip_broken and source.modality == IMAGE:
            prepare = encoders.image_preprocessor(encoder)
            broken = dict(find_broken(source, prepare, reader, settings.out, workers))
            skipped += broken.values()
            items = [item for row, item in enumerate(items) if row not in broken]
            ids = [name for row, name in enumerate(ids) if row not in broken]
            if not items:
                raise ValueError(f"no image can be embedded; the first: {skipped[0]}")
        with warnings.catch_warnings():
            # It is part of what the command reports.
            warnings.filterwarnings("ignore", ".* texts are longer than the encoder reads")
            try:
                found = encoders.embed(
                    encoder,
                    items,
                    batch_size=settings.batch_size,
                    modality=source.modality,
                    ids=ids,
                    out=settings.out,
                    dtype=settings.dtype,
                    chunk_size=settings.chunk_size,
                    progress=not quiet(),
                    workers=workers,
                    reader=reader,
                )
            except ValueError as error:
                if source.modality != IMAGE or not str(error).startswith("items["):
                    raise
                raise ValueError(f"{error}; --skip-broken leaves such files out") from error
        by_first("settings.json", lambda: save_settings(settings, settings.out / "settings.json"))
    values = {
        "store": str(settings.out),
        "modality": source.modality,
        "rows": len(found.ids),
        "dimension": found.embeddings.shape[1],
        "dtype": settings.dtype,
        "truncated": found.truncated,
        "without_text": source.left_out,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 3),
    }
    return Outcome(values, _summary(values), status=1 if skipped else 0)


def _summary(values: dict[str, Any]) -> str:
    lines = [
        f"{values['store']}: {values['rows']} {values['modality']}s of {values['dimension']} "
        f"dimensions, {values['dtype']}, in {values['seconds']:.1f} s"
    ]
    if values["truncated"]:
        lines.append(f"{values['truncated']} texts are longer than the encoder reads and were cut")
    if values["without_text"]:
        lines.append(f"{values['without_text']} items without a text were left out")
    if values["skipped"]:
        lines.append(f"{len(values['skipped'])} were skipped:")
        lines += [f"  {why}" for why in values["skipped"]]
    return "\n".join(lines)
