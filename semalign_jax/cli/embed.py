"""`semalign embed`."""

import time
import warnings
from pathlib import Path
from typing import Any

from .. import encoders
from .._core.checks import counted
from .._core.machine import core_count
from ..distributed.processes import by_first
from ..encoders import Encoder
from ..stores.chunks import refuse_other_contents
from ._console import Console, Outcome
from ._distributed import joined
from ._options import DATASET, command
from ._settings import EmbedSettings, ProcessSettings, save_settings
from ._sources import IMAGE, Source, find_broken, pixel_reader, read_source


@command(
    EmbedSettings,
    ProcessSettings,
    arguments=("encoder", "inputs"),
    spellings={**DATASET, "content": "--images/--texts"},
    examples=(
        "semalign embed vit images/ --out stores/images",
        "semalign embed owner/bert reports.txt --out stores/reports --batch-size 64",
        "semalign embed bert --dataset mimic-cxr --path mimic-cxr-jpg --option reports=mimic-cxr "
        "--option section=impression --texts --split train --view PA --out stores/reports",
        "semalign embed bert --prompts rsna_pneumonia --out stores/prompts",
        "semalign embed e5 questions.txt --prompt-name query --out stores/questions",
    ),
)
def embed(console: Console, settings: EmbedSettings, processes: ProcessSettings) -> Outcome:
    """Embed texts or images with a frozen encoder into a store.

    The ids of a data set's rows are its image ids, also those of texts. Run the same command again
    to go on after an interruption.
    """
    with joined(console, processes):
        if settings.out.is_dir():
            refuse_other_contents(settings.out)  # before the encoder is loaded
        return embed_source(console, settings, read_source(settings))


def embed_source(console: Console, settings: EmbedSettings, source: Source) -> Outcome:
    """Embed the items that were found by the settings."""
    started = time.monotonic()
    console.note(f"{counted(len(source.items), source.modality)} to embed into {settings.out}")

    encoder = load_for(settings, source.modality)
    workers = settings.workers or min(16, core_count())
    paths = [Path(item) for item in source.items] if source.modality == IMAGE else []
    items, ids = list(source.items), list(source.ids)
    skipped = list(source.skipped)
    with pixel_reader(paths, settings.processes, workers) as reader:
        if settings.skip_broken and source.modality == IMAGE:
            prepare = encoders.image_preprocessor(encoder)
            broken = find_broken(source, prepare, reader, settings.out, workers)
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
                    progress=not console.quiet,
                    workers=workers,
                    reader=reader,
                    prompt_name=settings.prompt_name,
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
        "left_out": source.why,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 3),
    }
    return Outcome(values, _summary(values), status=1 if skipped else 0)


def load_for(settings: EmbedSettings, modality: str) -> Encoder:
    """The encoder of the settings, which embeds such items."""
    encoder = encoders.load_encoder(
        settings.encoder,
        dtype=settings.compute_dtype,
        pooling=settings.pooling,
        layer=settings.layer,
        normalize=settings.normalize,
        revision=settings.revision,
    )
    reads = encoder.config.family.modalities
    if modality not in reads:
        raise ValueError(
            f"{settings.encoder} embeds {' and '.join(reads)}s, but these are {modality}s"
        )
    return encoder


def _summary(values: dict[str, Any]) -> str:
    lines = [
        f"{values['store']}: {counted(values['rows'], values['modality'])} of "
        f"{values['dimension']} dimensions, {values['dtype']}, in {values['seconds']:.1f} s"
    ]
    if values["truncated"]:
        lines.append(
            counted(values["truncated"], "text was", "texts were")
            + " cut to what the encoder reads"
        )
    if values["without_text"]:
        lines.append(counted(values["without_text"], "item") + " without a text left out")
    if values["left_out"]:
        lines.append(values["left_out"])
    if values["skipped"]:
        lines.append(counted(len(values["skipped"]), "was", "were") + " skipped:")
        lines += [f"  {why}" for why in values["skipped"]]
    return "\n".join(lines)
