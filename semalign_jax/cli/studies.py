"""`semalign stitch`, `semalign zeroshot`, `semalign report` and `semalign demo`."""

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
    settings_of,
    writing,
)
from ._options import (
    DatasetOption,
    DatasetPathOption,
    ReaderOption,
    dataset_flags,
    option,
)

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
    stores = {name: here(str(at)) for name, at in keys_and_values("store", store).items()}
    flags = {
        **dataset_flags(dataset, path, reader_options),
        "stores": stores or None,
        "counts": _numbers("anchors", anchors),
        "seeds": seeds,
        "train": train,
        "test": test,
        **keys_and_values("set", settings),
        "config": config,
    }
    _quick_jax()
    from ..studies import stitching

    resolved = settings_of(stitching.StitchingSettings, flags)
    with writing(folder), hushed():
        return _outcome(stitching.run(resolved, folder), folder)


def _quick_jax() -> None:
    """Of many small programs, compilation takes longest."""
    from ..studies import backend_settings

    backend_settings.apply(quick_compile=True)


def _outcome(results: "StudyResults", out: Path) -> Outcome:
    from ..studies.report import summary_tables

    lines = [f"{results['title']}: written to {out} (report.html) in {results['seconds']:.0f} s"]
    values = {"out": str(out), **results}
    return Outcome(values, "\n".join([*lines, *results["notes"]]), summary_tables(results["rows"]))


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
