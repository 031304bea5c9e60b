"""The data of a zero-shot study: labelled images, pairs that anchors come from, prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from .. import data as datasets
from .._core.checks import counted
from ..data import ImageTextDataset
from ..stores.store import EmbeddingStore
from ..zeroshot.prompts import PromptSet, load_prompts
from ..zeroshot.scores import EmbeddedPrompts
from . import inputs
from .demo import EMOJI, Embeddings, load_demo, split_demo
from .demo_towers import train_towers
from .doubts import doubts_of_parts
from .inputs import Part, StudyData
from .prompt_stores import embed_prompts
from .settings import DatasetSettings
from .zero_shot_settings import PromptSource, ZeroShotSettings

DEMO_TEXT, DEMO_LABEL = "MiniLM-L6", "category"
#: The multimodal model of the demo, and the encoder of its images.
TOWERS, DEMO_TOWER = "two towers", "DINOv2-small"
DEMO_VALIDATION = 6  # one of so many other emoji
_PURPOSES = {"validation": "for validation", "test": "to test", "labelled": "for the probe"}


@dataclass(frozen=True, eq=False)
class ZeroShotData(StudyData):
    """What zero-shot needs besides; the parts are "validation", "test" and perhaps "labelled".

    Attributes:
        prompts: text encoder -> prompts.
        multimodal: multimodal model -> the prompts under it.
    """

    prompts: Mapping[str, EmbeddedPrompts]
    multimodal: Mapping[str, EmbeddedPrompts] = field(default_factory=dict)


def demo_data() -> ZeroShotData:
    """Emoji as in `benchmarks/anchor_sweep.py`, with a validation part out of its training rows."""
    images = {name: load_demo(file) for name, file in EMOJI.items()}
    captions, prompts = (load_demo(f"emoji_{kind}_minilm_l6") for kind in ("captions", "prompts"))
    train, test = split_demo(images)
    rows = {"validation": train[::DEMO_VALIDATION], "test": test}
    rows["labelled"] = np.setdiff1d(train, rows["validation"])
    ids, (labels, names) = np.array(captions.ids), captions.labels(DEMO_LABEL)
    parts = {name: Part(ids[at], ids[at], labels[at], None) for name, at in rows.items()}
    classes = jnp.asarray(prompts.labels(DEMO_LABEL)[0])
    positive = jnp.ones(len(classes), bool)

    def embedded(texts: Any) -> EmbeddedPrompts:
        return EmbeddedPrompts(jnp.asarray(texts), classes, positive, tuple(names), "single-label")

    # Trained on all pairs that anchors are drawn from.
    pairs, pictures = rows["labelled"], images[DEMO_TOWER].values
    of_images, of_texts = train_towers(pictures[pairs], captions.values[pairs])
    tower = Embeddings(np.asarray(of_images(pictures)), captions.card)
    left_out = len(labels) - sum(map(len, rows.values()))
    note = (
        f"Demo: {len(rows['labelled'])} pairs of emoji and their names to draw anchors from, "
        f"{len(rows['validation'])} emoji for validation, {len(test)} to test; {left_out} "
        "that look like another are left out."
    )
    return ZeroShotData(
        names=tuple(names),
        task="single-label",
        parts=parts,
        anchors=parts["labelled"][:2],
        stores={
            "image_stores": images,
            "anchor_stores": images,
            "text_stores": {DEMO_TEXT: captions},
            "multimodal": {TOWERS: tower},
        },
        notes=(
            note,
            f"{TOWERS}: projections of {DEMO_TOWER} and {DEMO_TEXT} that were trained together, as "
            f"CLIP is, on all {len(pairs)} pairs.",
        ),
        doubts=("Emoji are no medical images.",),
        prompts={DEMO_TEXT: embedded(prompts.values)},
        multimodal={TOWERS: embedded(of_texts(prompts.values))},
    )


def own_data(settings: ZeroShotSettings, folder: Path) -> ZeroShotData:
    """The data of a user; `folder` keeps prompts that are embedded here."""
    assert settings.prompts is not None
    prompt_set = load_prompts(settings.prompts)
    folders = settings.store_folders()
    stores = {kind: inputs.open_stores(kind, of_kind) for kind, of_kind in folders.items()}
    found = parts_of(settings, prompt_set, stores)

    def prompts(
        setting: str, sources: Mapping[str, PromptSource], reports: Mapping[str, EmbeddingStore]
    ) -> dict[str, EmbeddedPrompts]:
        made = {}
        for name, source in sources.items():
            at = folder / setting / f"of-{quote(name, safe='')}"  # whatever characters it has
            where = f"{setting}.{name}"
            made[name] = embed_prompts(where, source, prompt_set, at, reports.get(name))
        return made

    models = {name: model.prompts for name, model in settings.multimodal.items()}
    return ZeroShotData(
        **vars(found),
        prompts=prompts("prompt_embeddings", settings.prompt_embeddings, stores["text_stores"]),
        multimodal=prompts("multimodal", models, {}),
    )


def parts_of(
    settings: ZeroShotSettings,
    prompt_set: PromptSet,
    stores: Mapping[str, Mapping[str, Any]],
    read: Callable[[DatasetSettings], ImageTextDataset] = inputs.read_dataset,
) -> StudyData:
    """All but the prompts, checked; of the stores by setting only the ids are looked at."""
    assert settings.images is not None
    dataset = read(settings.images)
    where = f"images ({settings.images.path})"
    columns = label_columns(dataset, prompt_set, settings, where)
    needed = {f"multimodal.{name}": store for name, store in stores["multimodal"].items()}
    kept = inputs.in_all_stores(dataset, {**stores["image_stores"], **needed}, where)
    notes = inputs.note_of_left_out(dataset)
    notes += _left_out(dataset, kept, where, "not in all stores")
    rows = _rows_of_parts(kept, columns, prompt_set, settings, where, notes)
    parts = {name: kept.select(at) for name, at in rows.items()}
    anchors, anchors_where = _anchors(settings, dataset, parts, stores, where, notes, read)
    _check_parts(settings, parts, anchors, where, anchors_where)
    truth = {
        name: inputs.labelled(name, part, columns, prompt_set.task, settings, where)
        for name, part in parts.items()
    }
    inputs.check_tested(truth["test"], prompt_set.names, where)
    notes.append(_sizes(parts, anchors, settings))
    doubted = {"test": truth["test"]}
    if prompt_set.task == "multi-label":  # which needs thresholds
        doubted["validation"] = truth["validation"]
    return StudyData(
        names=prompt_set.names,
        task=prompt_set.task,
        parts=truth,
        anchors=(np.array(anchors.ids), np.array(anchors.patients)),
        stores=stores,
        notes=notes,
        doubts=list(doubts_of_parts(settings, len(anchors), doubted, prompt_set.names)),
    )


def _left_out(before: ImageTextDataset, after: ImageTextDataset, where: str, why: str) -> list[str]:
    number = len(before) - len(after)
    them = counted(number, f"image of {where} is", f"images of {where} are")
    return [f"{them} {why}."] if number else []


def label_columns(
    dataset: ImageTextDataset, prompt_set: PromptSet, settings: ZeroShotSettings, where: str
) -> list[int]:
    """The column of the data set's labels for each class; each label is of one or ignored."""
    has = f"it has {', '.join(dataset.label_names) or 'none'}"
    for key in settings.label_names:
        if key not in prompt_set.names:
            raise ValueError(
                f"label_names: {key!r} is no class of the prompt set {prompt_set.name!r}; it has "
                f"{', '.join(prompt_set.names)}"
            )
    for name in settings.ignored_labels:
        if name not in dataset.label_names:
            raise ValueError(f"ignored_labels: {name!r} is no label of {where}; {has}")
    labels = [settings.label_names.get(name, name) for name in prompt_set.names]
    for name, label in zip(prompt_set.names, labels, strict=True):
        if label not in dataset.label_names:
            raise ValueError(
                f"{where} has no label {label!r} for the class {name!r} of the prompt set "
                f"{prompt_set.name!r}; {has}. Name it in label_names"
            )
    without = [n for n in dataset.label_names if n not in (*labels, *settings.ignored_labels)]
    if without:
        raise ValueError(
            f"{where}: the label {without[0]!r} has no prompts in the prompt set "
            f"{prompt_set.name!r} ({counted(len(without), 'such label')}: {', '.join(without)}). "
            "Add a class, name it in label_names, or list it in ignored_labels"
        )
    return [dataset.label_names.index(label) for label in labels]


def _rows_of_parts(
    dataset: ImageTextDataset,
    columns: Sequence[int],
    prompt_set: PromptSet,
    settings: ZeroShotSettings,
    where: str,
    notes: list[str],
) -> dict[str, np.ndarray]:
    """Rows of "validation", "test" and perhaps "labelled"."""
    labels, known = inputs.binary_labels(dataset, columns, settings)
    usable = np.arange(len(dataset))
    if prompt_set.task == "single-label":
        usable = np.flatnonzero((labels * known).any(axis=1))
        if not len(usable):
            raise ValueError(f"{where}: no image has one of the classes of {prompt_set.name!r}")
        notes += _left_out(dataset, dataset.select(usable), where, "of no class")
    splits = {name: getattr(settings, name) for name in _PURPOSES}
    positive = (labels * known)[usable]
    return inputs.rows_of_parts(
        dataset, usable, splits, settings.patient_split, where, stratify=positive
    )


def _anchors(
    settings: ZeroShotSettings,
    images: ImageTextDataset,
    parts: Mapping[str, ImageTextDataset],
    stores: Mapping[str, Mapping[str, Any]],
    where: str,
    notes: list[str],
    read: Callable[[DatasetSettings], ImageTextDataset],
) -> tuple[ImageTextDataset, str]:
    """The pairs that anchors are drawn from, and where they are from."""
    splits = settings.anchor_splits
    if settings.anchors is not None:
        where = f"anchors ({settings.anchors.path})"
        images = read(settings.anchors)
        notes += inputs.note_of_left_out(images)
    elif splits is None:
        images = parts.get("labelled", images.select(()))
    if splits is not None:
        wanted = {"anchor_splits": splits}
        rows = inputs.rows_of_parts(images, np.arange(len(images)), wanted, None, where)
        images = images.select(rows["anchor_splits"])
    if not len(images):
        raise ValueError(
            f"anchors: no image of {where} is left for them: name their splits in anchor_splits, "
            "or leave a part of patient_split"
        )
    # An image and a text encoder may have the same name.
    needed = {
        f"{kind}.{name}": store
        for kind in ("anchor_stores", "text_stores")
        for name, store in stores[kind].items()
    }
    pairs = inputs.in_all_stores(images, needed, where)
    notes += _left_out(images, pairs, where, "not in all stores of anchors and reports")
    return pairs, where


def _check_parts(
    settings: ZeroShotSettings,
    parts: Mapping[str, ImageTextDataset],
    anchors: ImageTextDataset,
    where: str,
    anchors_where: str,
) -> None:
    """Refuse patients in two parts, and more anchors or labelled images than there are."""
    named = {f"{name} of {where}": part for name, part in parts.items()}
    datasets.check_disjoint(named)
    # They may be labelled images.
    named.pop(f"labelled of {where}", None)
    datasets.check_disjoint({f"anchors of {anchors_where}": anchors, **named})
    inputs.check_anchor_counts(settings.counts, len(anchors), f"pairs of {anchors_where}")
    if settings.probe is None:
        return
    if "labelled" not in parts:
        raise ValueError(
            "baselines: the probe needs labelled images: name splits as labelled, or leave a part "
            "of patient_split"
        )
    if max(settings.counts) > len(parts["labelled"]):
        raise ValueError(
            f"counts: {max(settings.counts)} is more than the {len(parts['labelled'])} labelled "
            f"images of {where} for the probe: leave it out of baselines, or counts"
        )


def _sizes(
    parts: Mapping[str, ImageTextDataset], anchors: ImageTextDataset, settings: ZeroShotSettings
) -> str:
    sizes = [inputs.size(anchors, "to draw anchors from", "pair")]
    sizes += [
        inputs.size(part, _PURPOSES[name])
        for name, part in parts.items()
        if name != "labelled" or settings.probe is not None
    ]
    return f"{', '.join(sizes)}; no patient is tested and used otherwise."
