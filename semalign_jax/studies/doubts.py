"""What a reader of results should doubt, as far as it follows from settings and scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._core.checks import counted, first_few
from ..plot.looks import is_control
from .inputs import Part, one_valued
from .settings import StudySettings
from .tables import ClassRow, Row, counts_of, metric_title

#: Fewer draws of anchors, and fewer resamples, leave deviations and ends of intervals rough.
DRAWS, RESAMPLES = 5, 1000
#: Fewer test images leave scores rough.
TESTED = 30


def doubts_of_parts(
    settings: StudySettings, anchors: int, parts: Mapping[str, Part], names: Sequence[str]
) -> Iterator[str]:
    """Sentences on images that make scores rough or undefined.

    Args:
        settings: of the study.
        anchors: how many there are to draw from.
        parts: "test", and perhaps "validation", on which thresholds are chosen.
        names: of the labels.
    """
    test = parts["test"]
    number = len(test.ids)
    if max(settings.counts) == anchors and settings.seeds > 1:
        yield f"{no_draws(anchors)}."
    if number < TESTED:
        yield f"Few test images ({number}): one is {1 / number:.0%} of them."
    if (test.patients == test.ids).all():
        yield "Each test image stands for a patient: no other patient ids are known."
    for name, effect in (("test", "no AUROC"), ("validation", "no threshold")):
        lacking = one_valued(parts[name], names) if name in parts else []
        if lacking:
            yield (
                f"Classes with the same value in all {name} images ({effect}; left out of macro "
                f"means): {first_few(lacking)}."
            )
    if test.known is not None and not test.known.all():
        unknown = int((~test.known).sum())
        them = counted(unknown, "label of test images is", "labels of test images are")
        yield f"{them} unknown and not counted."


def no_draws(anchors: int) -> str:
    """What a study or sweep says whose largest count is that of all anchors."""
    them = counted(anchors, "anchor is all there is", "anchors are all there are")
    return f"{them}: no draws, so no deviation"


def doubts_of(
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    classes: Sequence[ClassRow],
    dimensions: Mapping[str, int],
) -> Iterator[str]:
    """Sentences on what makes scores rough, undefined or hard to believe.

    `settings` are JSON values, `dimensions` those of the encoders that are mapped.
    """
    draws = settings["seeds"]
    if draws < DRAWS:
        yield f"Few draws of anchors ({draws}): means and deviations are rough."
    resamples = settings.get("resamples") or (settings.get("intervals") or {}).get("resamples")
    if resamples is not None and resamples < RESAMPLES:
        yield f"Few resamples ({resamples}): ends of intervals are rough."
    counts = counts_of(rows)
    few = {name: [c for c in counts if c < d] for name, d in dimensions.items()}
    wide = [
        f"{name} (up to {below[-1]} of {dimensions[name]})" for name, below in few.items() if below
    ]
    if wide:
        yield (
            f"Fewer anchors than dimensions, for {first_few(wide)}: of directions that they do "
            "not span, a map learns nothing from them."
        )
    if not any(is_control(row["method"]) for row in rows):
        yield "No control was fitted to wrong pairs: how much of a score is due to pairing is open."
    undefined = {metric_title(row["metric"]) for row in rows if math.isnan(row["mean"])}
    if undefined:
        yield f"Some scores are undefined: {first_few(sorted(undefined))}."
    labels = dict.fromkeys(row["label"] for row in classes if math.isnan(row["value"]))
    if labels:
        yield f"Classes with undefined scores: {first_few(labels)}."
