"""Class prompts as data: sets of positive and negative sentences, read from JSON or YAML files.

The library writes the texts and keeps track of which is which; a text encoder of the user's
choice embeds them:

    prompt_set = load_prompts("vindr_cxr")
    texts = prompt_texts(prompt_set)
    prompts = embedded_prompts(prompt_set, encode(texts.texts))
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.documents import SUFFIXES, did_you_mean, read_document
from .._core.files import as_path
from .._core.trees import by_value
from .._core.typing import ArrayLike
from .scores import TASKS, EmbeddedPrompts, Task

#: The sets that come with the library.
SHIPPED = resources.files("semalign_jax.zeroshot") / "prompt_sets"
#: Where a prompt goes in a template.
PLACEHOLDER = "{}"


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of one class or finding.

    Attributes:
        name: the class.
        positive: sentences that hold if the class is present.
        negative: sentences that hold if it is not; needed in multi-label sets.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text("name", self.name)
        for key in ("positive", "negative"):
            object.__setattr__(self, key, _texts(f"{self.name!r}: {key}", getattr(self, key)))
        if not self.positive:
            raise ValueError(f"{self.name!r}: positive holds no prompts; give at least one")


@dataclass(frozen=True)
class PromptSet:
    """Prompts of all classes of a task; files hold the same keys.

    Attributes:
        name: of the set.
        task: "single-label" (one of the classes) or "multi-label" (each finding is present or
            not, e.g. a single one).
        classes: in the order of the scores; in a file a list of objects with the keys of
            `ClassPrompts`.
        templates: sentences with one placeholder `{}` each; every prompt goes into every one.
        description: free text.

    Raises:
        TypeError: for values of the wrong type.
        ValueError: for an unknown task, no classes, duplicate classes, a class without prompts
            that its task needs, no templates or one without a single placeholder. The message
            names the key.
    """

    name: str
    task: Task
    classes: tuple[ClassPrompts, ...]
    templates: tuple[str, ...] = (PLACEHOLDER,)
    description: str = ""

    def __post_init__(self) -> None:
        _text("name", self.name)
        if not isinstance(self.description, str):
            raise TypeError(f"description must be text; got {self.description!r}")
        checks.option("task", self.task, TASKS)
        object.__setattr__(self, "templates", _texts("templates", self.templates))
        if not self.templates:
            raise ValueError(f"templates is empty; leave it out for plain prompts, {PLACEHOLDER!r}")
        for i, template in enumerate(self.templates):
            if template.count(PLACEHOLDER) != 1:
                raise ValueError(
                    f"templates[{i}] must hold the placeholder {PLACEHOLDER!r} once; got "
                    f"{template!r}"
                )
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes:
            raise ValueError("classes is empty; give at least one")
        seen: set[str] = set()
        for i, entry in enumerate(self.classes):
            if not isinstance(entry, ClassPrompts):
                raise TypeError(f"classes[{i}] must be a ClassPrompts; got {entry!r}")
            if entry.name in seen:
                raise ValueError(f"classes[{i}]: the class {entry.name!r} occurs twice")
            seen.add(entry.name)
            if self.task == "multi-label" and not entry.negative:
                raise ValueError(
                    f"classes[{i}] {entry.name!r}: negative holds no prompts, which a "
                    f"multi-label task needs"
                )
        if self.task == "single-label" and len(self.classes) < 2:
            raise ValueError("classes: a single-label task needs at least two")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order."""
        return tuple(entry.name for entry in self.classes)


@by_value
class PromptTexts(NamedTuple):
    """The texts of a prompt set, in one list.

    Attributes:
        texts: p sentences.
        classes: int32 [p], index of the class of each.
        positive: bool [p], whether it holds if the class is present.
    """

    texts: tuple[str, ...]
    classes: np.ndarray
    positive: np.ndarray


def prompt_texts(prompt_set: PromptSet) -> PromptTexts:
    """All prompts of a set in all templates, class by class, the positive ones first.

    Negative prompts of a single-label set are left out, since nothing uses them.
    """
    texts, classes, positive = [], [], []
    for i, entry in enumerate(prompt_set.classes):
        sides = [(entry.positive, True)]
        if prompt_set.task == "multi-label":
            sides.append((entry.negative, False))
        for prompts, is_positive in sides:
            filled = [t.replace(PLACEHOLDER, p) for p in prompts for t in prompt_set.templates]
            texts += filled
            classes += [i] * len(filled)
            positive += [is_positive] * len(filled)
    return PromptTexts(tuple(texts), np.asarray(classes, np.int32), np.asarray(positive))


def prompt_ids(prompt_set: PromptSet) -> list[str]:
    """An id for each of `prompt_texts`, in their order: "<class>/<positive or negative>/<number>".

    Numbers count from 0 within a class and side.
    """
    texts = prompt_texts(prompt_set)
    counts: dict[str, int] = {}
    ids = []
    for number, positive in zip(texts.classes.tolist(), texts.positive.tolist(), strict=True):
        key = f"{prompt_set.names[number]}/{'positive' if positive else 'negative'}"
        counts[key] = counts.get(key, -1) + 1
        ids.append(f"{key}/{counts[key]}")
    return ids


def embedded_prompts(prompt_set: PromptSet, embeddings: ArrayLike) -> EmbeddedPrompts:
    """Join a prompt set and the embeddings of its texts.

    Args:
        prompt_set: the set.
        embeddings: [p, d], row i of `prompt_texts(prompt_set).texts[i]`; floating point.

    Raises:
        TypeError: for embeddings that are not floating point.
        ValueError: if there is not one finite row a text.
    """
    embeddings = checks.float_array("embeddings", embeddings, 2)
    texts = prompt_texts(prompt_set)
    if embeddings.shape[0] != len(texts.texts):
        raise ValueError(
            f"embeddings must have {checks.counted(len(texts.texts), 'row')}, one for each text of "
            f"prompt_texts({prompt_set.name!r}); got {embeddings.shape}"
        )
    if checks.is_concrete(embeddings):
        checks.finite_rows("embeddings", embeddings)
    return EmbeddedPrompts(
        checks.on_device(embeddings),
        jnp.asarray(texts.classes),
        jnp.asarray(texts.positive),
        prompt_set.names,
        prompt_set.task,
    )


def shipped_prompt_sets() -> tuple[str, ...]:
    """Names of the sets that come with the library."""
    names = (Path(entry.name) for entry in SHIPPED.iterdir())
    return tuple(sorted(name.stem for name in names if name.suffix == ".json"))


def load_prompts(source: str | os.PathLike) -> PromptSet:
    """Load a prompt set from a file, or one that comes with the library.

    Args:
        source: a `.json`, `.yaml` or `.yml` file, or a name out of `shipped_prompt_sets()`.

    Raises:
        FileNotFoundError: if there is neither such a file nor such a set.
        ModuleNotFoundError: for a YAML file without PyYAML.
        ValueError: for a file of another type or one that cannot be parsed, unknown, missing or
            repeated keys, and everything that `PromptSet` refuses; the message names the file and
            the key.
    """
    path = as_path(source)
    if path.suffix not in SUFFIXES:
        if str(source) not in shipped_prompt_sets():
            raise FileNotFoundError(
                f"there is no prompt set {str(source)!r}; give a .json, .yaml or .yml file or one "
                f"of {', '.join(shipped_prompt_sets())}"
            )
        text = (SHIPPED / f"{source}.json").read_text("utf-8")
        return _parsed(f"prompt set {source}", json.loads(text))
    return _parsed(str(path), read_document(path, "prompt set"))


def _parsed(source: str, data: Any) -> PromptSet:
    try:
        values = _keys(data, PromptSet)
        classes = values["classes"]
        if not isinstance(classes, list):
            raise ValueError(f"classes must be a list of objects; got {classes!r:.80}")
        entries = []
        for i, entry in enumerate(classes):
            try:
                entries.append(ClassPrompts(**_keys(entry, ClassPrompts)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"classes[{i}]: {error}") from None
        return PromptSet(**{**values, "classes": tuple(entries)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None


def _keys(data: Any, kind: type) -> dict[str, Any]:
    """The keys of an object that makes a dataclass, all known and the required ones there."""
    if not isinstance(data, Mapping):
        raise ValueError(f"expected an object of keys and values; got {data!r:.80}")
    allowed = {field.name: field for field in fields(kind)}
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; {did_you_mean(unknown[0], allowed)}")
    required = (name for name, field in allowed.items() if field.default is MISSING)
    missing = [key for key in required if key not in data]
    if missing:
        raise ValueError(f"the key {missing[0]!r} is missing")
    return dict(data)


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{key} must be text; got {value!r}")
    if not value.strip():
        raise ValueError(f"{key} is empty")


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise TypeError(f"{key} must be a list of texts; got {value!r:.80}")
    for i, text in enumerate(value):
        _text(f"{key}[{i}]", text)
    return tuple(value)
