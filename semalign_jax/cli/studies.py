"""`semalign stitch`, `semalign zeroshot`, `semalign report` and `semalign demo`."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import app
from ._console import (
    ConfigOption,
    Outcome,
    command,
    here,
    hushed,
    keys_and_values,
    note,
    progress,
    settings_of,
    writing,
)
from ._options import READERS, DatasetOption, DatasetPathOption, ReaderOption, dataset_flags, option

if TYPE_CHECKING:
    from ..studies.outputs import StudyResults

SetOption = Annotated[
    list[str] | None,
    option(
        "Any setting, e.g. intervals.resamples=200; a value that is JSON is read as such; "
        "repeatable",
        "--set",
        metavar="KEY=VALUE",
    ),
]
StudyOutOption = Annotated[
    Path | None, option("Folder of the results; a run that was interrupted goes on there")
]
CountsOption = Annotated[str | None, option("Anchor counts, with commas")]
SeedsOption = Annotated[int | None, option("Number of draws of anchors", min=1)]


def _numbers(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} {text!r}: expected numbers with commas between them") from None


def _folders(name: str, pairs: list[str] | None) -> dict[str, Path] | None:
    return {key: here(str(at)) for key, at in keys_and_values(name, pairs).items()} or None


def _required(out: Path | None) -> Path:
    if out is None:
        raise ValueError("missing: --out, the folder of the results")
    return here(out)


@command(
    app,
    "stitch",
    examples=(
        "semalign stitch --config stitching.yaml --out results/stitching",
        "semalign stitch --dataset vindr-cxr --path vindr --store vit=stores/vit "
        "--store resnet=stores/resnet --train train --test test --anchors 100,400,1600 "
        "--out results/stitching",
    ),
)
def stitch(
    out: StudyOutOption = None,
    store: Annotated[
        list[str] | None,
        option("Embeddings of the data set's images; repeatable", metavar="NAME=FOLDER"),
    ] = None,
    dataset: DatasetOption = None,
    path: DatasetPathOption = None,
    reader_options: ReaderOption = None,
    train: Annotated[
        list[str] | None, option("Split that heads are trained on; repeatable")
    ] = None,
    test: Annotated[list[str] | None, option("Split that is tested; repeatable")] = None,
    anchors: CountsOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
) -> Outcome:
    """Let a head of one encoder read the embeddings of others, through maps.

    Writes results.json, settings.json, tables, figures and report.html. The settings are those of
    semalign_jax.studies.stitching.StitchingSettings.
    """
    folder = _required(out)
    flags = {
        **dataset_flags(dataset, path, reader_options),
        "stores": _folders("store", store),
        "counts": _numbers("anchors", anchors),
        "seeds": seeds,
        "train": train,
        "test": test,
        "config": config,
    }
    from ..studies import backend_settings, stitching

    # The intervals take longest and need optimised code.
    backend_settings.apply(quick_compile=False)

    extra = keys_and_values("set", settings)
    resolved = settings_of(stitching.StitchingSettings, flags, extra)
    with writing(folder), hushed():
        return _outcome(stitching.run(resolved, folder), folder)


def _outcome(results: "StudyResults", out: Path) -> Outcome:
    from ..studies.report import summary_tables

    lines = [f"{results['title']}: written to {out} (report.html) in {results['seconds']:.0f} s"]
    values = {"out": str(out), **results}
    return Outcome(values, "\n".join([*lines, *results["notes"]]), summary_tables(results["rows"]))


@command(
    app,
    "zeroshot",
    examples=(
        "semalign zeroshot --config zeroshot.yaml --out results/zeroshot",
        "semalign zeroshot --config zeroshot.yaml --anchors 100,1000 --seeds 3 "
        "--prompt-store cxr-bert=stores/prompts --set resamples=200 --out results/quick",
    ),
)
def zeroshot(
    out: StudyOutOption = None,
    dataset: DatasetOption = None,
    path: DatasetPathOption = None,
    reader_options: ReaderOption = None,
    image_store: Annotated[
        list[str] | None,
        option("Embeddings of the images, by encoder; repeatable", metavar="NAME=FOLDER"),
    ] = None,
    validation: Annotated[
        list[str] | None, option("Split that thresholds are chosen on; repeatable")
    ] = None,
    test: Annotated[list[str] | None, option("Split that is tested; repeatable")] = None,
    anchor_dataset: Annotated[
        str | None,
        option("Data set of the anchors, if not that of the images", values=READERS),
    ] = None,
    anchor_path: Annotated[Path | None, option("Its folder, or the table")] = None,
    anchor_option: Annotated[
        list[str] | None, option("Option of its reader; repeatable", metavar="KEY=VALUE")
    ] = None,
    anchor_split: Annotated[
        list[str] | None, option("Split that anchors are drawn from; repeatable")
    ] = None,
    anchor_store: Annotated[
        list[str] | None,
        option("Embeddings of its images, by image encoder; repeatable", metavar="NAME=FOLDER"),
    ] = None,
    text_store: Annotated[
        list[str] | None,
        option("Embeddings of its texts, by text encoder; repeatable", metavar="NAME=FOLDER"),
    ] = None,
    prompts: Annotated[str | None, option("Prompt set: a name or a file")] = None,
    prompt_store: Annotated[
        list[str] | None,
        option("Embeddings of the prompts, by text encoder; repeatable", metavar="NAME=FOLDER"),
    ] = None,
    anchors: CountsOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
) -> Outcome:
    """Classify images by prompts of a text encoder, through maps that anchors determine.

    Writes results.json, settings.json, tables, figures and report.html. The settings are those of
    semalign_jax.studies.zero_shot.ZeroShotSettings.
    """
    folder = _required(out)
    prompt_stores = _folders("prompt-store", prompt_store)
    if prompts is not None and here(prompts).exists():
        prompts = str(here(prompts))
    flags = {
        **dataset_flags(dataset, path, reader_options, "images"),
        **dataset_flags(anchor_dataset, anchor_path, anchor_option, "anchors"),
        "image_stores": _folders("image-store", image_store),
        "validation": validation,
        "test": test,
        "anchor_splits": anchor_split,
        "anchor_stores": _folders("anchor-store", anchor_store),
        "text_stores": _folders("text-store", text_store),
        "prompts": prompts,
        "prompt_embeddings": prompt_stores
        and {name: {"store": where} for name, where in prompt_stores.items()},
        "counts": _numbers("anchors", anchors),
        "seeds": seeds,
        "config": config,
    }
    from ..studies import backend_settings, zero_shot

    backend_settings.apply(quick_compile=False)  # as for `stitch`

    extra = keys_and_values("set", settings)
    resolved = settings_of(zero_shot.ZeroShotSettings, flags, extra)
    with writing(folder), hushed():
        return _outcome(zero_shot.run(resolved, folder), folder)


@command(app, "demo", examples=("semalign demo", "semalign demo --full --out results/demo"))
def demo(
    out: Annotated[
        Path, option("Folder of the results", default="semalign-demo", show_default=False)
    ] = Path("semalign-demo"),
    full: Annotated[
        bool, option("With all anchor counts, draws and resamples, which takes longer", "--full")
    ] = False,
) -> Outcome:
    """Run both studies on embeddings that come with the package, without a network.

    They run side by side, in processes of their own.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    out = here(out)
    note(f"two studies, into {out}")
    # Spawned, since JAX must not have started before a fork. Most of the time goes into tracing and
    # compilation, which use one core each.
    with (
        writing(out),
        progress("studies", len(_STUDIES)) as shown,
        ProcessPoolExecutor(
            len(_STUDIES), multiprocessing.get_context("spawn"), initializer=_show_nothing
        ) as pool,
    ):
        runs = [pool.submit(_run_demo, name, full, out / name) for name in _STUDIES]
        for done, finished in enumerate(as_completed(runs), 1):
            finished.result()
            shown.update(done)
    from ..studies.outputs import load_results
    from ..studies.report import summary_tables

    found = {name: load_results(out / name) for name in _STUDIES}
    written = _report(out / "report.html", list(found.values()))
    tables = [table for one in found.values() for table in summary_tables(one["rows"])]
    values = {**written.values, "rows": {name: one["rows"] for name, one in found.items()}}
    return Outcome(values, written.text, tables)


#: Folder of the results, and module of the study.
_STUDIES = {"stitching": "stitching", "zeroshot": "zero_shot"}


def _show_nothing() -> None:
    """Keep two studies from writing over each other's progress."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")


def _run_demo(name: str, full: bool, out: Path) -> None:
    """Run a study of the demo."""
    from ..studies import backend_settings

    # Without all resamples compilation takes longest.
    backend_settings.apply(quick_compile=not full)
    study = importlib.import_module(f"..studies.{_STUDIES[name]}", __package__)
    study.run(study.demo_settings(quick=not full), out)


@command(
    app,
    "report",
    examples=("semalign report results/stitching results/zeroshot --out report.html",),
)
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of results, or results.json.")],
    out: Annotated[Path, option("HTML file", default="report.html", show_default=False)] = Path(
        "report.html"
    ),
) -> Outcome:
    """Write one self-contained HTML report of several studies."""
    from ..studies.outputs import load_results

    return _report(out, [load_results(folder) for folder in results])


def _report(out: Path, studies: Sequence["StudyResults"]) -> Outcome:
    from ..studies.outputs import write_report

    with writing(out):
        write_report(out, studies)
    of = [{"kind": s["kind"], "title": s["title"], "rows": len(s["rows"])} for s in studies]
    text = f"{out}: a report of {', '.join(study['title'] for study in studies)}"
    return Outcome({"report": str(out), "studies": of}, text)
