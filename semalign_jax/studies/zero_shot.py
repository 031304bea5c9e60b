"""Unimodal zero-shot classification of a user's own images, from embeddings on disk to a report.

Image encoders never saw a text and text encoders never saw an image; a map fitted to a few pairs of
images and reports lets class prompts classify images (Di Folco et al. 2025, arXiv 2503.04478).
Every image encoder is paired with every text encoder, and evaluated by `zero_shot_protocol`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core.checks import counted
from ..metrics.by_name import ScoreMetric
from ..zeroshot.protocol import (
    PROBE_LINE,
    TASK_METRICS,
    AnchorPairs,
    Images,
    Multimodal,
    ZeroShotResult,
    zero_shot_protocol,
)
from ..zeroshot.scores import EmbeddedPrompts
from .inputs import Part, digest, functions_digest
from .outputs import StudyResults
from .study import Study, run_study
from .tables import ClassRow, Pair, Row, class_row, metric_title, row_of_draws
from .trust import trust_rows
from .zero_shot_data import ZeroShotData, demo_data, own_data
from .zero_shot_settings import METHODS as METHODS
from .zero_shot_settings import NAIVE, ClassMetric, ZeroShotSettings, baseline
from .zero_shot_settings import ImageSplitSettings as ImageSplitSettings
from .zero_shot_settings import MultimodalSettings as MultimodalSettings
from .zero_shot_settings import PromptSource as PromptSource
from .zero_shot_settings import demo_settings as demo_settings

PROTOCOL = "zero-shot"
CLASS_METRICS: Mapping[str, tuple[ClassMetric, ...]] = {
    "single-label": ("auroc", "average_precision"),
    "multi-label": ("auroc", "average_precision", "f1", "sensitivity", "specificity"),
}
#: All settings that scores rest on, but the names of multimodal models; not where the data lie.
SCORED = (
    "counts", "seeds", "seed", "methods", "baselines", "normalizations", "temperature",
    "shrinkage", "rule", "metrics", "class_metrics", "resamples", "level", "trust",
)  # fmt: skip


class _Pairs:
    """Computes pairs of an image and a text encoder."""

    def __init__(
        self, data: ZeroShotData, settings: ZeroShotSettings, metrics: Mapping[str, ScoreMetric]
    ) -> None:
        self.data, self.settings, self.metrics = data, settings, metrics
        self.methods = settings.sweep_methods()
        found = {name: baseline(options) for name, options in settings.baselines.items()}
        # Compiled code is found by these functions, so they are made once.
        self.baselines = {name: score for name, score in found.items() if score is not None}
        self.images, self.multimodal = cache(self._images), cache(self._multimodal)

    def _images(self, encoder: str) -> dict[str, Images]:
        """The parts by an image encoder."""

        def of(part: Part) -> Images:
            known = None if part.known is None or part.known.all() else part.known
            rows = self.data.embeddings("image_stores", encoder, part.ids)
            return Images(part.ids, part.patients, rows, part.labels, known)

        return {name: of(part) for name, part in self.data.parts.items()}

    def _multimodal(self) -> dict[str, Multimodal]:
        data, found = self.data, {}
        for name, prompts in data.multimodal.items():
            ids = (data.parts[part].ids for part in ("validation", "test"))
            tuned, tested = (data.embeddings("multimodal", name, of_part) for of_part in ids)
            found[name] = Multimodal(tuned, tested, prompts)
        return found

    def pair(self, image: str, text: str) -> dict[str, Any]:
        """All scores of a pair of encoders."""
        data, settings, parts = self.data, self.settings, self.images(image)
        sides = ("anchor_stores", image), ("text_stores", text)
        x, y = (data.embeddings(*side, data.anchors[0]) for side in sides)
        probe: dict[str, Any] = {}
        if settings.probe is not None:
            l2 = settings.baselines[settings.probe].get("l2", 1.0)
            probe = {"labelled": parts["labelled"], "l2": l2}
        result = zero_shot_protocol(
            AnchorPairs(*data.anchors, x, y),
            parts["validation"],
            parts["test"],
            data.prompts[text],
            settings.counts,
            key=jax.random.key(settings.seed),
            seeds=settings.seeds,
            methods=self.methods,
            normalizations=settings.normalizations,
            baselines=self.baselines,
            multimodal=self.multimodal(),
            temperature=settings.temperature,
            shrinkage=settings.shrinkage,
            rule=settings.rule,
            metrics=self.metrics,
            resamples=settings.resamples,
            level=settings.level,
            **probe,
        )
        pair: Pair = (PROTOCOL, image, text)
        return {
            "rows": list(self._rows(result, pair)),
            "classes": list(self._classes(result, pair)),
            "trust": trust_rows(settings, pair, x, y),
        }

    def _name(self, line: tuple[str, str]) -> str:
        method, normalization = line
        if method == PROBE_LINE and self.settings.probe is not None:
            return self.settings.probe
        if normalization and len(self.settings.normalizations) > 1:
            return f"{method} ({normalization})"
        return method

    def _uses_anchors(self, line: tuple[str, str]) -> bool:
        options = self.settings.baselines.get(line[0], {})
        return line[0] not in self.data.multimodal and options.get("baseline") != NAIVE

    def _rows(self, result: ZeroShotResult, pair: Pair) -> Iterator[Row]:
        means, each = result.seed_means, result.intervals.estimate
        named = self.settings.metrics or TASK_METRICS[self.data.task]
        for metric in (*named, *self.metrics):
            for i, line in enumerate(result.lines):
                anchored = self._uses_anchors(line)
                for c, count in enumerate(result.counts if anchored else result.counts[:1]):
                    values = each[metric][i, c]
                    yield row_of_draws(
                        pair,
                        self._name(line),
                        count if anchored else None,
                        metric,
                        values if anchored else values[:1],
                        mean=float(means.estimate[metric][i, c]),
                        lower=float(means.lower[metric][i, c]),
                        upper=float(means.upper[metric][i, c]),
                    )

    def _classes(self, result: ZeroShotResult, pair: Pair) -> Iterator[ClassRow]:
        c = int(np.argmax(result.counts))
        ends = result.seed_means
        for metric in self.settings.class_metrics:
            for i, line in enumerate(result.lines):
                for k, label in enumerate(result.names):
                    yield class_row(
                        pair,
                        self._name(line),
                        result.counts[c] if self._uses_anchors(line) else None,
                        metric,
                        label,
                        float(ends.estimate["classes"][metric][i, c, k]),
                        float(ends.lower["classes"][metric][i, c, k]),
                        float(ends.upper["classes"][metric][i, c, k]),
                    )


# --- study -------------------------------------------------------------------------------------


def run(
    settings: ZeroShotSettings,
    out: Path | None = None,
    *,
    metrics: Mapping[str, ScoreMetric] | None = None,
) -> StudyResults:
    """Run the study, or go on where it was stopped, and write its files.

    Each pair of an image and a text encoder is computed once, over as many runs as that takes;
    what is done is kept in `out`/cells.jsonl, with digests of all that it rests on. Prompts that
    are embedded here are kept in `out`/prompts.

    Args:
        settings: of the study.
        out: folder for the files, see `write_outputs`; None writes none.
        metrics: scores of your own besides those of the settings, see `zero_shot_protocol`.

    Returns:
        The results.

    Raises:
        FileNotFoundError: if a store or a data set is missing.
        ValueError: if a patient is in two of anchors (or labelled images), validation and test;
            for names of splits, labels and classes that there are not, labels without prompts, too
            few anchors, test images of one class only, NaN, prompts and reports of different
            encoders, or if `out` holds cells of other settings or data. Otherwise as the readers
            of `semalign_jax.data`, `load_prompts` and `zero_shot_protocol`.
        RuntimeError: if another process is running it in the same folder.
    """
    return run_study(settings, out, partial(_study, settings, metrics or {}))


def _study(settings: ZeroShotSettings, functions: Mapping[str, ScoreMetric], folder: Path) -> Study:
    data = demo_data() if settings.demo else own_data(settings, folder / "prompts")
    for name, metrics, known in (
        ("metrics", settings.metrics or (), TASK_METRICS),
        ("class_metrics", settings.class_metrics, CLASS_METRICS),
    ):
        for metric in metrics:
            if metric not in known[data.task]:
                raise ValueError(
                    f"{name}: {metric!r} is no score of a {data.task} task; it has "
                    f"{', '.join(known[data.task])}"
                )
    cells = list(product(data.stores["image_stores"], data.stores["text_stores"]))

    def digests(prompts: Mapping[str, EmbeddedPrompts]) -> dict[str, str]:
        arrays = {name: map(np.asarray, jax.tree.leaves(one)) for name, one in prompts.items()}
        return {name: digest(*of_one) for name, of_one in arrays.items()}

    return Study(
        kind="zero-shot",
        cells=cells,
        compute=_Pairs(data, settings, functions).pair,
        pairs=[(PROTOCOL, *cell) for cell in cells],
        data={
            **data.digests(),
            "prompts": digests(data.prompts),
            "multimodal": digests(data.multimodal),
            **functions_digest(functions, TASK_METRICS[data.task]),
        },
        scored=SCORED,
        notes=lambda found: _notes(settings, data, [row for cell in found for row in cell["rows"]]),
        doubts=lambda _: list(data.doubts),
        dimensions=data.dimensions("image_stores"),
    )


def _notes(settings: ZeroShotSettings, data: ZeroShotData, rows: Sequence[Row]) -> list[str]:
    units = "emoji" if settings.demo else "patients"
    notes = [
        *data.notes,
        f"Mean and deviation over {counted(settings.seeds, 'draw')} of anchors; "
        f"{100 * settings.level:g} % percentile intervals of "
        f"{counted(settings.resamples, 'resample')} of the test {units}. Scores of classes are "
        f"those at {counted(max(settings.counts), 'anchor')}.",
    ]
    if data.task == "multi-label":
        notes.append(f"Thresholds: {settings.rule} on the validation images, for each class.")
    if settings.probe is not None:
        notes.append("The probe learns from as many labelled images as others have anchors.")
    if len(settings.normalizations) > 1:
        notes.append(_effect(settings, rows))
    return notes


def _effect(settings: ZeroShotSettings, rows: Sequence[Row]) -> str:
    """What the normalisation of the mapped space changes, in the first metric."""
    maps = [n for n, o in settings.methods.items() if not o.get("shuffled")]
    metric, largest = rows[0]["metric"], max(settings.counts)
    parts = []
    for how in settings.normalizations:
        names = {f"{name} ({how})" for name in maps}
        values = [
            row["mean"]
            for row in rows
            if (row["metric"], row["anchors"]) == (metric, largest) and row["method"] in names
        ]
        parts.append(f"{how} {np.mean(values):.3f}" if values else f"{how} -")
    return (
        f"Normalisation of the mapped space: {metric_title(metric)} at "
        f"{counted(largest, 'anchor')}, mean over maps and pairs of encoders: {', '.join(parts)}."
    )
