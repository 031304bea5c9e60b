"""The data of a zero-shot study: labelled images, pairs that anchors come from, prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np

from .. import data as datasets
from ..data import ImageTextDataset
from ..stores.store import EmbeddingStore
from ..zeroshot.prompts import PromptSet, load_prompts, prompt_texts
from ..zeroshot.protocol import Multimodal
from ..zeroshot.scores import EmbeddedPrompts
from . import inputs
from .demo import EMOJI, load_demo, split_demo
from .inputs import Part, StudyData
from .prompt_stores import prompt_store, read_prompts
from .zero_shot_settings import ZeroShotSettings

DEMO_TEXTS = {"MiniLM-L6": ("emoji_captions_minilm_l6", "emoji_prompts_minilm_l6")}
DEMO_LABEL = "category"
DEMO_VALIDATION = 6  # one of so many other emoji
_PURPOSES = {"validation": "for validation", "test": "to test", "labelled": "for the probe"}


@dataclass(frozen=True, eq=False)
class ZeroShotData(StudyData):
    """What zero-shot needs besides; the parts are "validation", "test" and perhaps "labelled".

    Attributes:
        encoders: names of the image and of the text encoders.
        anchors: ids and patients of the pairs.
        anchor_rows: (image encoder, text encoder) -> both sides of the pairs.
        prompts: text encoder -> prompts.
        multimodal: reads images and prompts of a multimodal model; None without one.
    """

    encoders: tuple[Sequence[str], Sequence[str]]
    anchors: tuple[np.ndarray, np.ndarray]
    anchor_rows: Callable[[str, str], tuple[np.ndarray, np.ndarray]]
    prompts: Callable[[str], EmbeddedPrompts]
    multimodal: Callable[[], Multimodal] | None = None


def demo_data() -> ZeroShotData:
    """Emoji as in `benchmarks/anchor_sweep.py`, with a validation part out of its training rows."""
    sets = {name: load_demo(file) for name, file in EMOJI.items()}
    train, test = split_demo(sets)
    rows = {"validation": train[::DEMO_VALIDATION], "test": test}
    rows["labelled"] = train = np.setdiff1d(train, rows["validation"])
    texts = {
        name: (load_demo(captions), load_demo(prompts))
        for name, (captions, prompts) in DEMO_TEXTS.items()
    }
    captions, _ = next(iter(texts.values()))
    labels, names = captions.labels(DEMO_LABEL)
    ids = np.asarray(captions.card["row_ids"])

    def prompts(text: str) -> EmbeddedPrompts:
        found = texts[text][1]
        classes, _ = found.labels(DEMO_LABEL)
        positive = jnp.ones(len(classes), bool)
        values = jnp.asarray(found.values)
        return EmbeddedPrompts(values, jnp.asarray(classes), positive, tuple(names), "single-label")

    embeddings = {name: one.values for name, one in sets.items()}
    embeddings |= {name: one.values for name, (one, _) in texts.items()}
    embeddings |= {f"{name} prompts": one.values for name, (_, one) in texts.items()}
    left_out = len(labels) - sum(map(len, rows.values()))
    note = (
        f"Demo: {len(train)} pairs of emoji and their names to draw anchors from, "
        f"{len(rows['validation'])} emoji for validation, {len(test)} to test; {left_out} "
        "that look like another are left out. Emoji are no medical images."
    )
    return ZeroShotData(
        names=tuple(names),
        task="single-label",
        parts={name: Part(ids[at], ids[at], labels[at], None) for name, at in rows.items()},
        rows=lambda image: {name: sets[image].values[at] for name, at in rows.items()},
        digests={
            "stores": {name: inputs.digest(values) for name, values in embeddings.items()},
            "parts": inputs.digest(*rows.values(), labels),
        },
        notes=[note],
        encoders=(list(sets), list(texts)),
        anchors=(ids[train], ids[train]),
        anchor_rows=lambda image, text: (sets[image].values[train], texts[text][0].values[train]),
        prompts=prompts,
    )


def own_data(settings: ZeroShotSettings, folder: Path) -> ZeroShotData:
    """The data of a user; `folder` keeps prompts that are embedded here."""
    assert settings.images is not None
    assert settings.prompts is not None
    prompt_set = load_prompts(settings.prompts)
    dataset = inputs.read_dataset(settings.images)
    where = f"images ({settings.images.path})"
    stores = _opened(settings)
    columns = label_columns(dataset, prompt_set, settings, where)
    needed = {f"multimodal.{name}": store for name, store in stores["multimodal"].items()}
    kept = inputs.in_all_stores(dataset, stores["image_stores"] | needed, where)
    notes = _left_out(dataset, kept, f"images of {where} are not in all stores")
    rows = _rows_of_parts(kept, columns, prompt_set, settings, where, notes)
    parts = {name: kept.select(at) for name, at in rows.items()}
    anchors, anchors_where = _anchors(settings, dataset, parts, stores, where, notes)
    _check_parts(settings, parts, anchors, where, anchors_where)
    truth = {
        name: inputs.labelled(name, part, columns, prompt_set.task, settings, where)
        for name, part in parts.items()
    }
    inputs.check_tested(truth["test"], prompt_set.names, where)
    notes += _size_notes(parts, anchors, truth, settings, prompt_set)
    _add_prompts(stores, settings, prompt_set, folder)

    def read(kind: str, name: str, ids: Sequence[str]) -> np.ndarray:
        return inputs.embeddings_of(ids, stores[kind][name], f"{kind}.{name}")

    def prompts(kind: str, name: str) -> EmbeddedPrompts:
        return read_prompts(f"{kind}.{name}", stores[kind][name], prompt_set)

    def multimodal() -> Multimodal:
        tuned, tested = (read("multimodal", "images", parts[n].ids) for n in ("validation", "test"))
        return Multimodal(tuned, tested, prompts("multimodal", "prompts"))

    pairs = np.array(anchors.ids), np.array(anchors.patients)
    return ZeroShotData(
        names=prompt_set.names,
        task=prompt_set.task,
        parts=truth,
        rows=lambda image: {n: read("image_stores", image, part.ids) for n, part in parts.items()},
        digests={
            "stores": {
                kind: {name: inputs.store_digest(store) for name, store in of_kind.items()}
                for kind, of_kind in stores.items()
            },
            "parts": {name: inputs.digest(*part) for name, part in truth.items()},
            "anchors": inputs.digest(*pairs),
            "prompts": inputs.digest(np.array(prompt_texts(prompt_set).texts)),
        },
        notes=notes,
        encoders=(list(settings.image_stores), list(settings.text_stores)),
        anchors=pairs,
        anchor_rows=lambda image, text: (
            read("anchor_stores", image, anchors.ids),
            read("text_stores", text, anchors.ids),
        ),
        prompts=lambda text: prompts("prompt_embeddings", text),
        multimodal=multimodal if settings.multimodal is not None else None,
    )


def _opened(settings: ZeroShotSettings) -> dict[str, dict[str, EmbeddingStore]]:
    """The stores by setting and name; those of prompts are added when all else is right."""
    folders = {
        "image_stores": settings.image_stores,
        "anchor_stores": settings.anchor_stores or settings.image_stores,
        "text_stores": settings.text_stores,
        "multimodal": {"images": settings.multimodal.images} if settings.multimodal else {},
    }
    return {kind: inputs.open_stores(kind, of_kind) for kind, of_kind in folders.items()}


def _add_prompts(
    stores: dict[str, dict[str, EmbeddingStore]],
    settings: ZeroShotSettings,
    prompt_set: PromptSet,
    folder: Path,
) -> None:
    def at(base: Path, name: str) -> Path:  # whatever characters the name has
        return base / f"of-{quote(name, safe='')}"

    stores["prompt_embeddings"] = {
        name: prompt_store(
            f"prompt_embeddings.{name}",
            source,
            prompt_set,
            at(folder, name),
            stores["text_stores"][name],
        )
        for name, source in settings.prompt_embeddings.items()
    }
    model = settings.multimodal
    if model is not None:
        stores["multimodal"]["prompts"] = prompt_store(
            "multimodal.prompts", model.prompts, prompt_set, at(folder / "multimodal", model.name)
        )


def _left_out(before: ImageTextDataset, after: ImageTextDataset, why: str) -> list[str]:
    number = len(before) - len(after)
    return [f"{number} {why}."] if number else []


def label_columns(
    dataset: ImageTextDataset, prompt_set: PromptSet, settings: ZeroShotSettings, where: str
) -> list[int]:
    """The column of the data set's labels for each class.

    Raises:
        ValueError: for a class without a label, a label without a class, and unknown names.
    """
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
            f"{prompt_set.name!r} ({len(without)} such labels: {', '.join(without)}). Add a class, "
            "name it in label_names, or list it in ignored_labels"
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
        notes += _left_out(dataset, dataset.select(usable), f"images of {where} are of no class")
    split = settings.patient_split
    if split is None:
        wanted = {name: getattr(settings, name) for name in _PURPOSES}
        return inputs.rows_of_splits(dataset, usable, wanted, where)
    fractions = {"validation": split.validation, "test": split.test}
    rest = 1 - split.validation - split.test
    if rest > 1e-9:
        fractions["labelled"] = rest
    positive = (labels * known)[usable]
    return inputs.rows_of_patients(dataset, usable, fractions, split.seed, where, stratify=positive)


def _anchors(
    settings: ZeroShotSettings,
    images: ImageTextDataset,
    parts: Mapping[str, ImageTextDataset],
    stores: Mapping[str, dict[str, EmbeddingStore]],
    where: str,
    notes: list[str],
) -> tuple[ImageTextDataset, str]:
    """The pairs that anchors are drawn from, and where they are from."""
    splits = settings.anchor_splits
    if settings.anchors is not None:
        where = f"anchors ({settings.anchors.path})"
        images = inputs.read_dataset(settings.anchors)
    elif splits is None:
        images = parts.get("labelled", images.select(()))
    if splits is not None:
        wanted = {"anchor_splits": splits}
        rows = inputs.rows_of_splits(images, np.arange(len(images)), wanted, where)
        images = images.select(rows["anchor_splits"])
    if not len(images):
        raise ValueError(
            f"anchors: no image of {where} is left for them: name their splits in anchor_splits, "
            "or leave a part of patient_split"
        )
    pairs = inputs.in_all_stores(images, stores["anchor_stores"] | stores["text_stores"], where)
    notes += _left_out(
        images, pairs, f"images of {where} are not in all stores of anchors and reports"
    )
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


def _size_notes(
    parts: Mapping[str, ImageTextDataset],
    anchors: ImageTextDataset,
    truth: Mapping[str, Part],
    settings: ZeroShotSettings,
    prompt_set: PromptSet,
) -> list[str]:
    sizes = [inputs.size(anchors, "to draw anchors from", "pairs")]
    sizes += [
        inputs.size(part, _PURPOSES[name])
        for name, part in parts.items()
        if name != "labelled" or settings.probe is not None
    ]
    notes = [f"{', '.join(sizes)}; no patient is tested and used otherwise."]
    if parts["test"].patients == parts["test"].ids:
        notes.append("Each test image stands for a patient: no other patient ids are known.")
    names, test = prompt_set.names, truth["test"]
    notes += inputs.note_of_one_valued("test", test, names)
    if prompt_set.task == "multi-label":
        notes += inputs.note_of_one_valued("validation", truth["validation"], names, "no threshold")
    if test.known is not None and not test.known.all():
        unknown = int((~test.known).sum())
        notes.append(f"{unknown} labels of test images are unknown and not counted.")
    return notes
