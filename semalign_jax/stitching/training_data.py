"""The arguments that all heads are trained on, checked and prepared."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.linalg import compute_dtype, matmul, safe_inverse, transpose
from .._core.typing import Array, ArrayLike
from ..metrics.samples import checked_known, in_range, integers, poisoned, targets

#: What a head minimises, see `fit_head`.
Loss: TypeAlias = Literal["multinomial", "binary", "hinge"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


class TrainingData(NamedTuple):
    """Checked arguments.

    Attributes:
        x: [n, d].
        labels: int32 [n] or [n, num_classes].
        weights: of the shape of `labels`, zero where these are not known.
        num_classes: as an int.
    """

    x: Array
    labels: Array
    weights: Array
    num_classes: int


def checked_data(
    x: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None,
    loss: Loss,
    weights: ArrayLike | None,
    known: ArrayLike | None,
) -> TrainingData:
    """Check the arguments of `fit_head` and `fit_mlp_head`; see these for what is raised."""
    x = checks.float_array("x", x, 2)
    checks.option("loss", loss, LOSSES)
    labels = class_numbers("labels", labels)
    num_classes = class_count(labels) if num_classes is None else num_classes
    num_classes = checks.positive_int("num_classes", num_classes)
    n = x.shape[0]
    labels = checked_labels("labels", labels, n, num_classes, loss)
    w = checks.row_weights(np.ones(n, bool) if weights is None else weights, n)
    if checks.is_concrete(w):
        checks.weight_values(w)
    if labels.ndim == 2:
        w = checks.namespace(w).broadcast_to(w[:, None], labels.shape)
    mask = checked_known("known", known, labels)
    if mask is not None:
        w = checks.namespace(mask, w).where(mask, w, 0)
    if checks.is_concrete(x, w):
        checks.finite_rows("x", x, np.asarray(w).reshape(n, -1).max(axis=1) > 0)
    in_range("labels", labels, num_classes if labels.ndim == 1 else 2, w, known="known")
    if checks.is_concrete(labels, w):
        _check_present(np.asarray(labels), np.asarray(w) > 0, num_classes)
    return TrainingData(x, labels, w, num_classes)


def class_numbers(name: str, labels: Any) -> Any:
    """Labels as they are, and names as the place of each in alphabetical order.

    Numbers as text stay what they are, and are refused with all else that is no label: "10" stands
    before "2" in that order.
    """
    if isinstance(labels, jax.Array):
        return labels
    values = np.asarray(labels)
    if values.dtype == object and values.size and all(isinstance(v, str) for v in values.flat):
        values = values.astype(str)
    if values.dtype.kind != "U" or any(map(_is_number, np.unique(values))):
        return labels
    if values.ndim != 1:
        raise ValueError(f"{name} that are text must be classes [n]; got shape {values.shape}")
    return np.unique(values, return_inverse=True)[1]


def _is_number(text: str) -> bool:
    """Also "2.0" and "nan", as which tables write numbers and what is missing."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_count(labels: Any) -> int:
    """How many classes, or columns of 0 and 1, labels have, which must be concrete."""
    if not checks.is_concrete(labels):
        raise TypeError("num_classes is needed where labels are traced: give the number of classes")
    values = np.asarray(labels)
    if values.ndim != 1:
        return values.shape[-1] if values.ndim else 1
    return int(values.max()) + 1 if values.size and values.dtype.kind in "iu" else 2


def checked_labels(name: str, labels: Any, rows: int, num_classes: int, loss: Loss) -> Array:
    """Labels of a loss as int32, [rows] or [rows, num_classes]; values are not looked at."""
    labels = checks.host_array(name, labels)
    columns = loss == "binary" or (loss == "hinge" and labels.ndim == 2)
    return integers(name, labels, (rows, num_classes) if columns else (rows,))


def _check_present(labels: np.ndarray, active: np.ndarray, num_classes: int) -> None:
    """Refuse classes without rows, and labels that are the same everywhere."""
    if labels.ndim == 1:
        missing = np.setdiff1d(np.arange(num_classes), labels[active])
        if missing.size:
            raise ValueError(
                f"labels has no row of class {missing[0]} with a weight "
                f"({checks.counted(missing.size, 'such class', 'such classes')} of {num_classes}): "
                "leave these out and number the others from 0"
            )
        return
    positive = (active & (labels == 1)).sum(axis=0)
    negative = (active & (labels == 0)).sum(axis=0)
    constant = np.flatnonzero((positive == 0) | (negative == 0))
    if constant.size:
        column = constant[0]
        raise ValueError(
            f"labels must have positive and negative rows for every label; column {column} has "
            f"{positive[column]} positive and {negative[column]} negative known ones "
            f"({checks.counted(constant.size, 'such column')}): leave these out"
        )


class PreparedRows(NamedTuple):
    """Prepared rows of a training set.

    Attributes:
        x: centred embeddings [n, d], zero in rows without weight.
        center: their mean [d].
        target: booleans [num_classes, n].
        weights: [1, n], or [num_classes, n] where classes are separate problems.
        share: weights of the rows that add up to 1 [n].
    """

    x: Array
    center: Array
    target: Array
    weights: Array
    share: Array


def prepared_rows(
    loss: Loss, num_classes: int, x: Array, labels: Array, weights: Array
) -> PreparedRows:
    """Centre the rows by their weights, and give each class its targets."""
    work = compute_dtype(x.dtype)
    w = jnp.where(weights > 0, weights, 0).astype(work)
    if w.ndim == 1 and loss != "multinomial":
        w = jnp.broadcast_to(w[:, None], (len(w), num_classes))
    if loss == "multinomial":
        target, valid = targets(labels, (len(w), num_classes), w[:, None])
        valid, w = valid[:, :1], w[:, None]
    else:
        target, valid = targets(labels, w.shape, w)
    share = jnp.max(w, axis=1)
    active = (share > 0)[:, None]
    share = share * inverse_or_zero(jnp.sum(share))
    x = jnp.where(active, x.astype(work), 0)
    # Centring changes nothing but the intercept, and float32 keeps its digits.
    center = matmul(share, x)
    x = jnp.where(active, x - center[None, :], 0)
    return PreparedRows(x, center, transpose(target), transpose(poisoned(w, valid)), share)


def inverse_or_zero(total: Array) -> Array:
    """1 / total, and 0 of a total of 0."""
    return safe_inverse(total, total > 0)
