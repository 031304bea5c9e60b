"""Embeddings of the prompts of a set: read from a store, or made by an encoder."""

from pathlib import Path
from typing import Any

import numpy as np

from .._core.checks import first_few
from ..stores.store import EmbeddingStore, open_store
from ..zeroshot.prompts import PromptSet, embedded_prompts, prompt_ids, prompt_texts
from ..zeroshot.scores import EmbeddedPrompts
from . import inputs
from .zero_shot_settings import PromptSource

#: What of a store's description must be the same for reports and prompts.
_IDENTITY = ("model_type", "params", "pooling", "layer", "normalize")


def embed_prompts(
    where: str,
    source: PromptSource,
    prompt_set: PromptSet,
    folder: Path,
    reports: EmbeddingStore | None,
) -> EmbeddedPrompts:
    """The prompts of a set, read from a store, which is made in `folder` if an encoder is given.

    They must be of the same encoder as the reports, as far as the stores say.
    """
    if source.encoder is not None:
        made = _embedded(source, prompt_set, folder, reports)
    else:
        assert source.store is not None
        made = inputs.open_stores(where, {"store": source.store})["store"]
    if reports is not None:
        _check_encoder(where, made, reports)
    texts, readable = prompt_texts(prompt_set).texts, prompt_ids(prompt_set)
    places = {key: row for row, key in enumerate(made.ids)}
    for ids in (readable, [str(i) for i in range(len(texts))], texts):
        if places.keys() >= set(ids):
            rows = made.rows([places[key] for key in ids])
            rows = rows if rows.dtype == np.float64 else rows.astype(np.float32)
            try:
                return embedded_prompts(prompt_set, rows)
            except ValueError as error:
                raise ValueError(f"{where}: {made.folder}: {error}") from None
    lacking = [key for key in readable if key not in places]
    raise ValueError(
        f"{where}: {made.folder} lacks prompts of the set {prompt_set.name!r}, e.g. "
        f"{lacking[0]!r}; its ids are {first_few(map(repr, made.ids))}. They must be like "
        f"{lacking[0]!r}, the positions of the texts, or the texts"
    )


def _check_encoder(where: str, made: EmbeddingStore, reports: EmbeddingStore) -> None:
    prompts, others = made.description, reports.description
    for name in _IDENTITY:
        if name in prompts and name in others and prompts[name] != others[name]:
            raise ValueError(
                f"{where}: the prompts were embedded with another {name} than the reports of "
                f"{reports.folder}: {prompts[name]!r} and {others[name]!r}"
            )
    if made.dimension != reports.dimension:
        raise ValueError(
            f"{where}: the prompts of {made.folder} have {made.dimension} dimensions, the "
            f"reports of {reports.folder} {reports.dimension}: embed both with one encoder"
        )


def _embedded(
    source: PromptSource, prompt_set: PromptSet, folder: Path, reports: EmbeddingStore | None
) -> EmbeddingStore:
    from .. import encoders  # slow to import

    assert source.encoder is not None
    described = {} if reports is None else reports.description
    names = ("pooling", "layer", "normalize")
    options: dict[str, Any] = {name: described.get(name) for name in names}
    own = source.model_dump(include=options.keys() | {"revision"}, exclude_none=True)
    encoder = encoders.load_encoder(source.encoder, **(options | own))
    encoders.embed(
        encoder,
        prompt_texts(prompt_set).texts,
        modality="text",
        ids=prompt_ids(prompt_set),
        out=folder,
        progress=False,
    )
    return open_store(folder)
