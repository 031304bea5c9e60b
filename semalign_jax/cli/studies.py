"""`semalign stitch`, `semalign zeroshot`, `semalign report` and `semalign demo`."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .._core.checks import counted
from ..studies import backend_settings, stitching, zero_shot
from ..studies.drawings import UPPER_BOUND
from ..studies.outputs import StudyResults, load_results, write_report
from ..studies.settings import METHODS
from ..studies.stitching import StitchingSettings
from ..studies.tables import Row, counts_of, metric_title, over_pairs, summary_tables
from ..studies.zero_shot import ZeroShotSettings
from ._console import Console, Outcome
from ._options import DATASET, command
from ._settings import DemoSettings, ReportSettings, StudySettings
from ._signals import starting_processes

#: The studies by the folder of their results.
_STUDIES: dict[str, Any] = {"stitching": stitching, "zeroshot": zero_shot}


@command(
    StitchingSettings,
    StudySettings,
    spellings={
        **DATASET,
        "stores": "--store",
        "anchors": "--anchor-split",
        "counts": "--anchors",
    },
    examples=(
        "semalign stitch --config stitching.yaml --out results/stitching",
        "semalign stitch --dataset vindr-cxr --path vindr --store vit=stores/vit "
        "--store resnet=stores/resnet --train train --test test --anchors 100,400,1600 "
        "--out results/stitching",
    ),
)
def stitch(console: Console, settings: StitchingSettings, study: StudySettings) -> Outcome:
    """Let a head of one encoder read the embeddings of others, through maps.

    Writes results.json, settings.json, tables, figures and report.html. The settings are those of
    semalign_jax.studies.stitching.StitchingSettings.
    """
    return run_study("stitching", settings, study.out, console)


@command(
    ZeroShotSettings,
    StudySettings,
    spellings={
        "images.reader": "--dataset",
        "images.path": "--path",
        "images.options": "--option",
        "image_stores": "--image-store",
        "anchors.reader": "--anchor-dataset",
        "anchors.path": "--anchor-path",
        "anchors.options": "--anchor-option",
        "anchor_splits": "--anchor-split",
        "anchor_stores": "--anchor-store",
        "text_stores": "--text-store",
        "prompt_embeddings.*.store": "--prompt-store",
        "prompt_embeddings.*.encoder": "--prompt-encoder",
        "counts": "--anchors",
    },
    examples=(
        "semalign zeroshot --config zeroshot.yaml --out results/zeroshot",
        "semalign zeroshot --config zeroshot.yaml --anchors 100,1000 --seeds 3 "
        "--prompt-store cxr-bert=stores/prompts --resamples 200 --out results/quick",
    ),
)
def zeroshot(console: Console, settings: ZeroShotSettings, study: StudySettings) -> Outcome:
    """Classify images by prompts of a text encoder, through maps that anchors determine.

    Writes results.json, settings.json, tables, figures and report.html. The settings are those of
    semalign_jax.studies.zero_shot.ZeroShotSettings.
    """
    return run_study("zeroshot", settings, study.out, console)


def run_study(name: str, settings: Any, out: Path, console: Console) -> Outcome:
    """Run a study and write its files."""
    # The intervals take longest and need optimised code.
    backend_settings.apply(quick_compile=False)
    with console.hushed():
        results = _STUDIES[name].run(settings, out)
    lines = [f"{results['title']}: written to {out} (report.html) in {results['seconds']:.0f} s"]
    values = {"out": str(out), **results}
    return Outcome(values, "\n".join([*lines, *results["notes"]]), summary_tables(results["rows"]))


@command(
    DemoSettings,
    examples=("semalign demo", "semalign demo --full --out results/demo"),
)
def demo(console: Console, settings: DemoSettings) -> Outcome:
    """Run both studies on embeddings that come with the package, without a network.

    They run side by side, in processes of their own.
    """
    out = settings.out
    console.note(f"two studies, into {out}")
    # Spawned, since JAX must not have started before a fork. Most of the time goes into tracing and
    # compilation, which use one core each.
    with (
        console.progress("studies", len(_STUDIES)) as shown,
        ProcessPoolExecutor(
            len(_STUDIES), multiprocessing.get_context("spawn"), initializer=_show_nothing
        ) as pool,
    ):
        with starting_processes():
            runs = [pool.submit(_run_demo, name, settings.full, out / name) for name in _STUDIES]
        for done, finished in enumerate(as_completed(runs), 1):
            finished.result()
            shown.update(done)

    found = {name: load_results(out / name) for name in _STUDIES}
    written = _report(out / "report.html", list(found.values()))
    tables = [table for one in found.values() for table in summary_tables(one["rows"])]
    values = {**written.values, "rows": {name: one["rows"] for name, one in found.items()}}
    lines = [_in_a_line(name, one["rows"]) for name, one in found.items()]
    lines.append(f"read it in a browser: {(out / 'report.html').absolute()}")
    return Outcome(values, "\n".join(lines), tables)


def _in_a_line(name: str, rows: Sequence[Row]) -> str:
    """What a study of the demo has found, at the most anchors, as means over pairs of encoders."""
    metric, count = rows[0]["metric"], counts_of(rows)[-1]
    of_metric: list[Row] = [{**row, "protocol": name} for row in rows if row["metric"] == metric]
    scores = {
        row["method"]: row["mean"]
        for row in over_pairs(of_metric)
        if row["anchors"] in (None, count)
    }
    best = max((one for one in scores if one in METHODS), key=lambda one: scores[one])
    others = [f"{scores['naive']:.2f} without a map"]
    if UPPER_BOUND in scores:
        others.append(f"{scores[UPPER_BOUND]:.2f} with the encoder's own head")
    score = f"{metric_title(metric)} {scores[best]:.2f} by {best}"
    return f"{name}, {counted(count, 'anchor')}: {score}; {', '.join(others)}"


def _show_nothing() -> None:
    """Keep two studies from writing over each other's progress."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")


def _run_demo(name: str, full: bool, out: Path) -> None:
    """Run a study of the demo."""
    # Without all resamples compilation takes longest.
    backend_settings.apply(quick_compile=not full)
    _STUDIES[name].run(_STUDIES[name].demo_settings(quick=not full), out)


@command(
    ReportSettings,
    arguments=("results",),
    examples=("semalign report results/stitching results/zeroshot --out report.html",),
)
def report(console: Console, settings: ReportSettings) -> Outcome:
    """Write one self-contained HTML report of several studies."""
    return _report(settings.out, [load_results(folder) for folder in settings.results])


def _report(out: Path, studies: Sequence[StudyResults]) -> Outcome:
    write_report(out, studies)
    of = [{"kind": s["kind"], "title": s["title"], "rows": len(s["rows"])} for s in studies]
    text = f"{out}: a report of {', '.join(study['title'] for study in studies)}"
    return Outcome({"report": str(out), "studies": of}, text)
