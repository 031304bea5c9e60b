"""Splits by patient and anchor sets: disjoint by construction, with the seed in the result."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .._core import checks
from .._core.ids import id_texts
from .._core.trees import by_value
from ._dataset import ImageTextDataset, Label


@by_value
class PatientSplit(NamedTuple):
    """A split of images in which no patient is in two parts.

    Attributes:
        parts: row indices of each part, int64, ascending.
        fractions: the fractions that were asked for.
        seed: the seed.
    """

    parts: dict[str, np.ndarray]
    fractions: dict[str, float]
    seed: int


@by_value
class AnchorSample(NamedTuple):
    """Rows drawn as anchors.

    Attributes:
        rows: int64 [count], distinct rows in the order in which they were drawn; the beginning
            of a larger draw with the same seed is the smaller draw.
        patients: the patients of these rows, each once.
        stratify_by: how they were drawn.
        seed: the seed.
    """

    rows: np.ndarray
    patients: frozenset[str]
    stratify_by: str | None
    seed: int


def check_disjoint(parts: Mapping[str, Any]) -> None:
    """Refuse patients or items that are in two of several parts.

    Args:
        parts: name -> part, the name for messages: a data set, an anchor sample, anything else with
            `patients` (and `ids`), or patient ids: text or whole numbers, where 7, 7.0, "7" and
            "7.0" are one patient.

    Raises:
        TypeError: if a part is one string.
        ValueError: for an overlap; the message names the parts and the first few ids. For an id
            that is missing, or neither text nor a whole number.
    """
    known = {name: _ids_of(name, part) for name, part in parts.items()}
    for first, second in itertools.combinations(known, 2):
        for field in ("patients", "ids"):
            common = sorted(known[first].get(field, set()) & known[second].get(field, set()))
            if common:
                number = checks.counted(len(common), field.removesuffix("s"))
                raise ValueError(
                    f"{first} and {second} have {number} in common: "
                    f"{checks.first_few(map(repr, common))}. Split by patient"
                )


def _ids_of(name: str, part: Any) -> dict[str, set[str]]:
    """The patients of a part, and its ids if it has them."""
    if isinstance(part, str):
        raise TypeError(f"{name}: expected a data set or many patient ids; got the string {part!r}")
    if not hasattr(part, "patients"):
        return {"patients": set(id_texts(name, part))}
    fields = [field for field in ("patients", "ids") if hasattr(part, field)]
    return {field: set(id_texts(f"{field} of {name}", getattr(part, field))) for field in fields}


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int; got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0; got {seed}")
    return int(seed)


def patient_split(
    patients: Sequence[Any],
    fractions: Mapping[str, float],
    seed: int,
    *,
    stratify: Any = None,
) -> PatientSplit:
    """Split images so that all images of a patient are in one part.

    With `stratify`, parts get each class in about their fraction, by iterative stratification
    (Sechidis et al. 2011, "On the stratification of multi-label data") with patients as units:
    the rarest class is dealt out first, each of its patients to the part that lacks it most.

    Args:
        patients: n patient ids, one for each image, e.g. `data.patients`; as in `check_disjoint`.
        fractions: part name to fraction of the images; they sum to 1.
        seed: of the random order.
        stratify: classes, int [n], or positives, 0/1 or bool [n, classes], e.g. the labels of
            `binary_labels`.

    Returns:
        the parts. With few patients, or a patient with very many images, fractions are met
        only roughly.

    Raises:
        TypeError: for a seed or classes that are not integers.
        ValueError: for no images, fractions that are not positive or do not sum to 1, fewer
            patients than parts, a patient that is missing, or `stratify` of another length.
    """
    seed = _seed(seed)
    if isinstance(patients, str) or len(patients) == 0:
        raise ValueError("patients must be a sequence with one id for each image; it is empty")
    fractions = {str(name): float(value) for name, value in fractions.items()}
    wanted = np.array(list(fractions.values()))
    if not (wanted.size and np.all(wanted > 0) and abs(wanted.sum() - 1) < 1e-6):
        raise ValueError(f"fractions must be positive and sum to 1; got {fractions}")
    patients = id_texts("patients", patients)
    names, unit = np.unique(patients, return_inverse=True)
    if names.size < wanted.size:
        raise ValueError(f"{names.size} patients cannot be split into {wanted.size} parts")
    classes = _class_table(stratify, len(patients))
    # Column 0 counts images, the others images of each class.
    table = np.concatenate([np.ones((len(patients), 1), np.int64), classes], axis=1)
    counts = np.zeros((names.size, table.shape[1]), np.int64)
    np.add.at(counts, unit, table)
    part = _deal(counts, wanted, np.random.default_rng(seed))
    rows = part[unit]
    parts = {name: np.flatnonzero(rows == i) for i, name in enumerate(fractions)}
    return PatientSplit(parts, fractions, seed)


def _class_table(stratify: Any, n: int) -> np.ndarray:
    """Positives [n, classes] of either form of `stratify`; no columns for None."""
    if stratify is None:
        return np.zeros((n, 0), np.int64)
    classes = np.asarray(checks.host_array("stratify", stratify))
    if not (np.issubdtype(classes.dtype, np.integer) or classes.dtype == np.bool_):
        raise TypeError(f"stratify must hold integers or booleans; got {classes.dtype}")
    if classes.ndim not in (1, 2) or classes.shape[0] != n:
        raise ValueError(f"stratify must have shape ({n},) or ({n}, classes); got {classes.shape}")
    if classes.ndim == 1:
        return (classes[:, None] == np.unique(classes)).astype(np.int64)
    if not np.isin(classes, (0, 1)).all():
        raise ValueError("stratify must be 0 or 1 where it has two dimensions: see binary_labels")
    return classes.astype(np.int64)


def _deal(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part of each unit, given counts [units, 1 + classes]."""
    units = counts.shape[0]
    part = np.full(units, -1)
    lacking = fractions[:, None] * counts.sum(axis=0)  # [parts, 1 + classes]

    def give(which: int, column: int) -> None:
        # The part that lacks this class most; then the one that lacks images most.
        best = max(range(len(fractions)), key=lambda i: (lacking[i, column], lacking[i, 0]))
        part[which] = best
        lacking[best] -= counts[which]

    order = rng.permutation(units)
    left = counts[:, 1:].sum(axis=0)
    open_classes = set(np.flatnonzero(left).tolist())
    while open_classes:
        rarest = min(open_classes, key=lambda c: (left[c], c))
        column = 1 + rarest
        for which in order[(counts[order, column] > 0) & (part[order] < 0)].tolist():
            give(which, column)
            left -= counts[which, 1:]
        open_classes = {c for c in open_classes - {rarest} if left[c] > 0}
    for which in order[part[order] < 0].tolist():
        give(which, 0)
    # Small sets may leave a part empty: it takes the last unit of the largest part.
    for i in range(len(fractions)):
        if not (part == i).any():
            largest = np.bincount(part, minlength=len(fractions)).argmax()
            part[order[part[order] == largest][-1]] = i
    return part


def sample_anchors(
    data: ImageTextDataset,
    count: int,
    seed: int,
    *,
    stratify_by: Literal["label", "view", "patient"] | None = None,
    exclude_patients: ImageTextDataset | AnchorSample | Iterable[str] = (),
) -> AnchorSample:
    """Draw images as anchors, without replacement.

    Args:
        data: where to draw from.
        count: how many images.
        seed: of the draw.
        stratify_by: None draws uniformly over images. "patient" takes one image of every
            patient before it takes a second of any. "label" takes turns over the labels that
            are positive in at least one image, "view" over the views, so that rare ones are
            represented; an image with several positive labels counts for each.
        exclude_patients: patients that must not be drawn from, e.g. the test set.

    Raises:
        TypeError: if `count` or `seed` are not integers.
        ValueError: if fewer than `count` images are left, or nothing is labelled.
    """
    seed = _seed(seed)
    count = checks.positive_int("count", count)
    checks.option("stratify_by", stratify_by, ("label", "view", "patient", None))
    excluded = _ids_of("exclude_patients", exclude_patients)["patients"]
    allowed = np.array([patient not in excluded for patient in data.patients], bool)
    rows = np.flatnonzero(allowed)
    if stratify_by == "label":
        rows = rows[(data.labels[rows] == Label.POSITIVE).any(axis=1)]
    if count > rows.size:
        labelled = " with a positive label" if stratify_by == "label" else ""
        raise ValueError(
            f"count is {count}, but only "
            f"{checks.counted(rows.size, f'image{labelled} is', f'images{labelled} are')} left "
            f"after {checks.counted(len(excluded), 'patient is', 'patients are')} excluded"
        )
    order = np.random.default_rng(seed).permutation(rows)
    if stratify_by == "patient":
        order = _rounds(order, [data.patients[i] for i in order])
    elif stratify_by is not None:
        order = _turns(order, _groups(data, order, stratify_by), count)
    picked = order[:count]
    return AnchorSample(
        picked, frozenset(data.patients[i] for i in picked.tolist()), stratify_by, seed
    )


def _groups(data: ImageTextDataset, order: np.ndarray, by: str) -> list[list[int]]:
    """Groups of each row of `order`: its view, or its positive labels."""
    if by == "label":
        positive = data.labels[order] == Label.POSITIVE
        return [np.flatnonzero(row).tolist() for row in positive]
    codes = {view: i for i, view in enumerate(sorted(set(data.views)))}
    return [[codes[data.views[i]]] for i in order]


def _rounds(order: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """Rows with the first of every patient, then the second, and so on."""
    seen: dict[str, int] = defaultdict(int)
    rounds = []
    for patient in patients:
        rounds.append(seen[patient])
        seen[patient] += 1
    return order[np.argsort(rounds, kind="stable")]


def _turns(order: np.ndarray, groups: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """The first `count` rows if each turn takes a row of the group that has the fewest so far."""
    members: dict[int, list[int]] = defaultdict(list)
    for position in range(len(order) - 1, -1, -1):  # reversed: pop() gives the earliest
        for group in groups[position]:
            members[group].append(position)
    taken = np.zeros(len(order), bool)
    drawn = dict.fromkeys(sorted(members), 0)
    result = []
    while len(result) < count:
        group = min(drawn, key=lambda g: (drawn[g], g))
        while members[group] and taken[members[group][-1]]:
            members[group].pop()
        if not members[group]:
            del drawn[group]
            continue
        position = members[group].pop()
        taken[position] = True
        result.append(order[position])
        for other in groups[position]:
            if other in drawn:
                drawn[other] += 1
    return np.array(result, np.int64)
