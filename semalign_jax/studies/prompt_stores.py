"""Embeddings of the prompts of a set: read from a store, or made by an encoder."""

from pathlib import Path
from typing import Any

from ..stores.store import EmbeddingStore, open_store
from ..zeroshot.prompts import PromptSet, embedded_prompts, prompt_ids, prompt_texts
from ..zeroshot.scores import EmbeddedPrompts
from . import inputs
from .zero_shot_settings import PromptSource

#: What of a store's description must be the same for reports and prompts.
_IDENTITY = ("model_type", "params", "pooling", "layer", "normalize")


def prompt_store(
    where: str,
    source: PromptSource,
    prompt_set: PromptSet,
    folder: Path,
    reports: EmbeddingStore | None = None,
) -> EmbeddingStore:
    """The store of the prompts, made in `folder` if an encoder is given.

    Raises:
        ValueError: if it is known to be of another encoder than that of the reports.
    """
    if source.encoder is not None:
        made = _embedded(source, prompt_set, folder, reports)
    else:
        assert source.store is not None
        made = inputs.open_stores(where, {"store": source.store})["store"]
    if reports is None:
        return made
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
    return made


def _embedded(
    source: PromptSource, prompt_set: PromptSet, folder: Path, reports: EmbeddingStore | None
) -> EmbeddingStore:
    from .. import encoders  # slow to import

    assert source.encoder is not None
    options: dict[str, Any] = {} if reports is None else dict(reports.description)
    for name in ("pooling", "layer", "normalize"):
        own = getattr(source, name)
        options[name] = options.get(name) if own is None else own
    encoder = encoders.load_encoder(
        source.encoder,
        pooling=options["pooling"],
        layer=options["layer"],
        normalize=options["normalize"],
        revision=source.revision,
    )
    encoders.embed(
        encoder,
        prompt_texts(prompt_set).texts,
        modality="text",
        ids=prompt_ids(prompt_set),
        out=folder,
        progress=False,
    )
    return open_store(folder)


def read_prompts(where: str, store: EmbeddingStore, prompt_set: PromptSet) -> EmbeddedPrompts:
    """The prompts of a store, by any of the ids that `PromptSource` names.

    Raises:
        ValueError: if it lacks one.
    """
    texts, readable = prompt_texts(prompt_set).texts, prompt_ids(prompt_set)
    known = set(store.ids)
    for ids in (readable, [str(i) for i in range(len(texts))], list(texts)):
        if known.issuperset(ids):
            try:
                return embedded_prompts(prompt_set, inputs.embeddings_of(ids, store, where))
            except ValueError as error:
                raise ValueError(f"{where}: {store.folder}: {error}") from None
    lacking = [key for key in readable if key not in known]
    raise ValueError(
        f"{where}: {store.folder} lacks prompts of the set {prompt_set.name!r}, e.g. "
        f"{lacking[0]!r}; its ids begin with {list(store.ids[:5])}. They must be like "
        f"{lacking[0]!r}, the positions of the texts, or the texts"
    )
