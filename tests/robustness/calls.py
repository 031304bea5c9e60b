"""Wrong arguments of public functions: an error that names the argument, or the right value."""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import semalign_jax as sa
from semalign_jax import metrics, zeroshot

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((12, d)).astype(np.float32) for d in (5, 4))
LABELS = np.arange(12) % 3
SCORES = RNG.standard_normal((12, 3)).astype(np.float32)
#: Where a value of the changes below is right: only order counts, or any number names a patient.
_RIGHT = {
    ("auroc", "scores", "infinity"),
    ("average_precision", "scores", "infinity"),
    ("accuracy", "predicted", "negative"),
    ("bootstrap_weights", "clusters", "negative"),
    ("bootstrap_weights", "clusters", "beyond 32 bits"),
}


class Call(NamedTuple):
    """A public function and arguments that it takes."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


def calls() -> dict[str, Call]:
    """The functions that are tried, by name."""
    mapping = sa.fit_affine(X, Y)
    head = sa.fit_head(X, LABELS, num_classes=3)
    stats = sa.accumulate_stats([(X, Y)])
    pair = {"x": X, "y": Y}
    classified = {"labels": LABELS, "predicted": LABELS, "num_classes": 3}
    ranked = {"scores": SCORES[:, 0], "labels": LABELS == 1}
    found = {
        **{
            f.__name__: Call(f, {**pair, "weights": np.ones(12, np.float32)})
            for f in (
                sa.fit_affine,
                sa.fit_linear,
                sa.fit_l_ortho,
                sa.fit_ortho,
                sa.fit_auto,
                sa.maps.mismatch_scores,
            )
        },
        "diagnose": Call(sa.maps.diagnose, pair),
        "fit": Call(sa.fit, {"method": "linear", **pair, "ridge": 0.1}),
        "fit_from_stats": Call(sa.fit_from_stats, {"method": "affine", "stats": stats}),
        "accumulate_stats": Call(lambda x, y: sa.accumulate_stats([(x, y)]), pair),
        "apply": Call(mapping.apply, {"x": X}),
        "polar_factor": Call(sa.polar_factor, {"m": X}),
        "identity_map": Call(sa.identity_map, {"d_in": 3, "d_out": 4}),
        "fit_head": Call(sa.fit_head, {"x": X, "labels": LABELS, "num_classes": 3, "l2": 0.1}),
        "stitch": Call(sa.stitch, {"head": head, "mapping": sa.fit_affine(Y, X)}),
        "evaluate_stitching": Call(
            sa.evaluate_stitching,
            {"head": head, "mapping": sa.fit_affine(X, X), "x": X, "y": X, "labels": LABELS},
        ),
        "head_accuracy": Call(sa.stitching.head_accuracy, {"head": head, "x": X, "labels": LABELS}),
        "zero_shot_logits": Call(sa.zero_shot_logits, {"embeddings": X, "classes": X[:3]}),
        "zero_shot_predict": Call(sa.zero_shot_predict, {"embeddings": X, "classes": X[:3]}),
        "anchor_sweep": Call(
            sa.anchor_sweep,
            {
                **pair,
                "counts": (4, 8),
                "keys": jax.random.split(jax.random.key(0), 2),
                "eval_data": (sa.fit_head(Y, LABELS, num_classes=3), X, LABELS),
                "methods": ("linear",),
                "metrics": ("accuracy",),
            },
        ),
        "accuracy": Call(metrics.accuracy, {"labels": LABELS, "predicted": LABELS}),
        "balanced_accuracy": Call(metrics.balanced_accuracy, classified),
        "confusion_matrix": Call(metrics.confusion_matrix, classified),
        "auroc": Call(metrics.auroc, ranked),
        "average_precision": Call(metrics.average_precision, ranked),
        "retrieval_ranks": Call(metrics.retrieval_ranks, {"x": X, "y": X}),
        "mean_cosine": Call(metrics.mean_cosine, {"x": X, "y": X}),
        "linear_cka": Call(metrics.linear_cka, pair),
        "normalize_rows": Call(metrics.normalize_rows, {"x": X}),
        "expected_calibration_error": Call(
            metrics.expected_calibration_error,
            {"probabilities": np.full((12, 3), 1 / 3, np.float32), "labels": LABELS},
        ),
        "anchor_space": Call(zeroshot.anchor_space, {"source": X, "target": Y}),
        "bootstrap_weights": Call(
            metrics.intervals.bootstrap_weights,
            {"key": jax.random.key(0), "rows": 12, "resamples": 5, "clusters": LABELS},
        ),
    }
    for call in found.values():
        call.function(**call.arguments)  # what is changed was right before
    return found


class Change(NamedTuple):
    """A wrong value, and whether a result may come of it."""

    what: str
    value: Any
    may_pass: bool


def changes(value: Any) -> Iterator[Change]:
    """Wrong values in place of a right one."""
    yield Change("a text", "seven", isinstance(value, str))
    yield Change("an object", object(), False)
    yield Change("a dict", {"a": 1}, False)
    if isinstance(value, str):
        yield Change("another case", value.upper(), False)
        yield Change("a number", 7, False)
    elif isinstance(value, bool):
        yield Change("a text of it", str(value), False)
    elif isinstance(value, int | float):
        yield Change("below zero", -1, False)
        yield Change("NaN", float("nan"), False)
        yield Change("infinity", float("inf"), False)
        yield Change("a list", [value], False)
        yield Change("not whole", 2.5, isinstance(value, float))
        yield Change("as a text", str(value), False)
    elif isinstance(value, np.ndarray):
        yield from _changed_arrays(value)
    elif isinstance(value, tuple):
        yield Change("empty", (), False)
        yield Change("with None", (*value, None), False)
        yield Change("below zero", (-3,), False)


def _changed_arrays(value: np.ndarray) -> Iterator[Change]:
    floats = value.dtype.kind == "f"
    yield Change("None", None, True)  # of an optional one
    yield Change("one more axis", value[None], True)  # batches
    yield Change("a scalar", value.ravel()[0], False)
    yield Change("no rows", value[:0], False)
    yield Change("fewer rows", value[:-1], value.ndim > 1)  # where it is the only one
    yield Change("objects", value.astype(object), False)
    yield Change("texts", value.astype(str), False)
    yield Change("masked", np.ma.masked_array(value, mask=value == value.ravel()[0]), False)
    yield Change("complex", value.astype(np.complex64), False)
    yield Change("longdouble", value.astype(np.longdouble), False)
    yield Change("dates", value.astype("datetime64[s]"), False)
    if floats:
        holed = value.copy()
        holed[(1,) * value.ndim] = np.nan
        yield Change("NaN", holed, False)
        yield Change("infinity", np.where(np.isnan(holed), np.inf, holed), False)
        wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
        yield Change("beyond float32", value.astype(np.float64) * 1e300, wide)
    else:
        yield Change("beyond 32 bits", value.astype(np.int64) + 2**32, False)
        yield Change("negative", value.astype(np.int64) - 9, False)
        yield Change("not whole", value + 0.5, False)


def outcome(name: str, call: Call, argument: str, change: Change) -> str:
    """What is wrong with the answer to a wrong argument; "" if nothing."""
    arguments = {**call.arguments, argument: change.value}
    where = f"{name}({argument}={change.what})"
    try:
        result = call.function(**arguments)
        jax.block_until_ready(result)
    except (TypeError, ValueError) as error:
        text = str(error)
        if not _names(text, argument, call.arguments):
            return f"{where}: {type(error).__name__} names no argument: {text[:200]}"
        return ""
    except Exception as error:  # any other is a fault
        return f"{where}: {type(error).__name__}: {str(error)[:200]}"
    # NaN that is told by NaN is no wrong answer.
    told = change.what in ("NaN", "infinity") and _any_nan(result)
    return "" if change.may_pass or told else f"{where}: passes and gives {str(result)[:80]!r}"


def _any_nan(result: Any) -> bool:
    """Whether NaN, infinity, or the class -1 that stands for none is in a result."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    return any(not np.isfinite(leaf).all() or (leaf == -1).any() for leaf in leaves)


def _names(text: str, argument: str, arguments: dict[str, Any]) -> bool:
    """Whether a message has the name of the argument, or, of several that do not fit, another's."""
    own = re.search(rf"\b{argument}\b", text)
    others = [name for name in arguments if re.search(rf"\b{name}\b", text)]
    return bool(own or (others and re.search("same|match|space|shape|per row|number of", text)))


def run(count: int, seed: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Try wrong arguments; yield how many were tried, and the faults found, so far."""
    draw = random.Random(seed)
    named = calls()
    cases = [
        (name, argument, change)
        for name, call in named.items()
        for argument, value in call.arguments.items()
        for change in changes(value)
        if (name, argument, change.what) not in _RIGHT
    ]
    faults: dict[str, None] = {}
    for number in range(count):
        if number % len(cases) == 0:
            draw.shuffle(cases)
        name, argument, change = cases[number % len(cases)]
        call = named[name]
        if number >= len(cases) and len(call.arguments) > 1:
            call = _further(draw, call, argument)  # two at a time
        fault = outcome(name, call, argument, change)
        if fault:
            faults[fault] = None
        yield number + 1, list(faults)


def _further(draw: random.Random, call: Call, argument: str) -> Call:
    """The call with another argument that is right in another form."""
    other = draw.choice([name for name in call.arguments if name != argument])
    value = call.arguments[other]
    if isinstance(value, np.ndarray):
        forms = [value.tolist(), jnp.asarray(value), value[:, ::-1] if value.ndim > 1 else value]
        return call._replace(arguments={**call.arguments, other: draw.choice(forms)})
    return call
