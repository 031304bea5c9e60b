"""How a study is run: cells that are computed once, rows in one order, and files of them."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cells import run_cells
from .doubts import doubts_of
from .outputs import FORMAT, VERSION, Kind, StudyResults, write_outputs
from .report import environment
from .settings import StudySettings, resolved_settings
from .tables import PAIR, Pair


@dataclass(frozen=True)
class Study:
    """What a study is made of.

    Attributes:
        kind: of its results.
        cells: what is computed, and kept for another run: names, e.g. of two encoders.
        compute: cell -> its "rows", "classes" and "trust", and what else `notes` reads, as JSON
            values.
        pairs: the order of the rows.
        data: digests of the data that scores rest on.
        scored: names of the settings that scores rest on.
        notes: results of the cells -> what a reader should know, a sentence each.
        doubts: results of the cells -> what a reader should doubt, besides `doubts_of`.
        dimensions: of the encoders that are mapped.
    """

    kind: Kind
    cells: Sequence[Sequence[str]]
    compute: Callable[..., dict[str, Any]]
    pairs: Sequence[Pair]
    data: Mapping[str, Any]
    scored: Sequence[str]
    notes: Callable[[Sequence[dict[str, Any]]], list[str]]
    doubts: Callable[[Sequence[dict[str, Any]]], list[str]]
    dimensions: Mapping[str, int]


def run_study(
    settings: StudySettings, out: Path | None, prepare: Callable[[Path], Study]
) -> StudyResults:
    """Run a study, or go on where it was stopped, and write its files.

    Args:
        settings: of the study.
        out: folder of the files and of what is kept for another run; None for neither.
        prepare: folder to keep in -> the study, its data read and checked.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _computed(settings, Path(folder), prepare)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = _computed(settings, out, prepare)
    write_outputs(out, results)
    return results


def _computed(
    settings: StudySettings, folder: Path, prepare: Callable[[Path], Study]
) -> StudyResults:
    study = prepare(folder)

    def compute(cell: Sequence[str]) -> dict[str, Any]:
        start = time.perf_counter()
        return {**study.compute(*cell), "seconds": time.perf_counter() - start}

    found = run_cells(
        study.cells,
        compute,
        folder / "cells.jsonl",
        settings={
            "study": study.kind,
            "semalign_jax": version("semalign_jax"),
            "data": study.data,
            **settings.model_dump(mode="json", include=set(study.scored)),
        },
        description="pairs of encoders",
    )
    place = {pair: number for number, pair in enumerate(study.pairs)}

    def in_order(name: str) -> list[Any]:
        rows = [row for cell in found for row in cell[name]]
        return sorted(rows, key=lambda row: place[tuple(row[key] for key in PAIR)])

    rows, classes, resolved = in_order("rows"), in_order("classes"), resolved_settings(settings)
    doubts = [*study.doubts(found), *doubts_of(resolved, rows, classes, study.dimensions)]
    return StudyResults(
        format=FORMAT,
        format_version=VERSION,
        kind=study.kind,
        title=settings.title,
        settings=resolved,
        environment=environment(),
        seconds=math.fsum(cell["seconds"] for cell in found),
        rows=rows,
        classes=classes,
        trust=in_order("trust"),
        notes=[*study.notes(found), *doubts],
        doubts=doubts,
    )
