"""The results of a study, and the files that they are handed over in."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from pydantic import BaseModel

from .._core.files import format_problem, write_atomically
from . import figures
from .report import (
    Picture,
    Row,
    Section,
    html_report,
    latex_table,
    pairs_of,
    rows_of,
    summary_tables,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "semalign_jax.study"
VERSION = 1
Kind = Literal["stitching", "zero-shot"]
KINDS: tuple[Kind, ...] = ("stitching", "zero-shot")
#: The decoder on its own encoder, which is what a matrix has on its diagonal.
UPPER_BOUND = "upper bound"
#: Scores of guessing, where they do not depend on the data.
CHANCE = {"auroc": 0.5, "AUROC": 0.5}
#: More pairs than this do not fit on a page side by side: curves are then split by target.
PAIRS_PER_FIGURE = 12
PAIRS_PER_TABLE = 4
#: Of the figures of single classes, of which there may be one for each pair.
CLASS_FIGURES = 12


class ClassRow(figures.ClassScore):
    """Score of one method on one class, with its interval, and which pair it is of."""

    protocol: NotRequired[str]
    metric: str
    source: str
    target: str
    anchors: int | None


class StudyResults(TypedDict):
    """All that a study found: JSON values, but that undefined scores are NaN.

    Methods named "shuffled ..." are controls; "upper bound" is the decoder on its own encoder.

    Attributes:
        format: `FORMAT`.
        format_version: `VERSION`.
        kind: what was studied.
        title: of the report.
        settings: all of them, as `resolved_settings` gives them.
        environment: versions and hardware, as `report.environment` gives them.
        seconds: spent on computing.
        rows: scores.
        classes: scores of single classes.
        notes: what a reader should know besides, a sentence each.
    """

    format: str
    format_version: int
    kind: Kind
    title: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    rows: list[Row]
    classes: list[ClassRow]
    notes: list[str]


_SCORES = ("mean", "std", "lower", "upper", "value")
_NEEDED = {
    "rows": Row.__required_keys__,
    "classes": ClassRow.__required_keys__,
}


def resolved_settings(settings: BaseModel) -> dict[str, Any]:
    """Settings as JSON values, with absolute paths, so that they hold in any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.absolute())
        if isinstance(value, Mapping):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [absolute(inner) for inner in value]
        return value

    return absolute(settings.model_dump())


def write_outputs(
    out: Path, results: StudyResults, *, command: Sequence[str] | None = None
) -> list[Path]:
    """Write a study's files.

    results.json (see `load_results`), settings.json (can be run again), summary.csv, classes.csv
    if there are scores of classes, tables.tex, figures/*.png and *.pdf, report.html. Equal results
    give equal files on one installation. Without matplotlib there are no figures, which one line
    on stderr says.

    Args:
        out: folder to write to, made if need be. Files of these names are replaced.
        results: of the study.
        command: the words of the command line, for the report; by default that of this process.

    Returns:
        The files written.

    Raises:
        OSError: if a file cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "results.json", out / "settings.json", out / "summary.csv"]
    write_json(written[0], _without_nan(results))
    write_json(written[1], results["settings"])
    write_csv(written[2], results["rows"])
    if results["classes"]:
        written.append(out / "classes.csv")
        _write_classes(written[-1], results["classes"])
    written.append(out / "tables.tex")
    write_atomically(written[-1], _latex(results).encode())
    drawings = list(_drawn(results))
    if drawings:
        (out / "figures").mkdir(exist_ok=True)
    for drawing in drawings:
        for suffix, data in (("png", drawing.png), ("pdf", drawing.pdf())):
            written.append(out / "figures" / f"{drawing.name}.{suffix}")
            write_atomically(written[-1], data)
    written.append(out / "report.html")
    html_report(
        written[-1],
        results["title"],
        results["settings"],
        results["environment"],
        _sections(results, drawings),
        command=command,
    )
    return written


def load_results(path: Path) -> StudyResults:
    """Read what `write_outputs` wrote.

    Args:
        path: its folder, or the file results.json.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of results, of another version, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: there is no such file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
    problem = format_problem(values, FORMAT, VERSION)
    if problem:
        raise ValueError(f"{path} {problem}")
    if values.get("kind") not in KINDS:
        raise ValueError(f"{path}: kind must be one of {', '.join(KINDS)}")
    expected: dict[str, Any] = {
        "title": str,
        **dict.fromkeys(("settings", "environment"), dict),
        **dict.fromkeys(("rows", "classes", "notes"), list),
        "seconds": int | float,
    }
    for name, kind in expected.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{path}: {name} is missing or of the wrong type; run the study again")
    for name, needed in _NEEDED.items():
        for number, row in enumerate(values[name]):
            lacking = sorted(needed - set(row)) if isinstance(row, dict) else sorted(needed)
            if lacking:
                raise ValueError(f"{path}: {name}[{number}] lacks {', '.join(lacking)}")
            for score in _SCORES:
                if row.get(score, 0) is None:
                    row[score] = math.nan
    return values  # type: ignore[return-value]


def write_report(
    path: Path, studies: Sequence[StudyResults], *, command: Sequence[str] | None = None
) -> None:
    """Write one HTML file of several studies.

    Args:
        path: the file.
        studies: at least one.
        command: the words of the command line, by default that of this process.

    Raises:
        ValueError: if there are no studies.
        OSError: if the file cannot be written.
    """
    if not studies:
        raise ValueError("studies is empty: give at least one")
    titles = _distinct([study["title"] for study in studies])
    several = len(studies) > 1
    sections = []
    for title, study in zip(titles, studies, strict=True):
        found = _sections(study, list(_drawn(study)))
        sections += [s._replace(title=f"{title}: {s.title}") if several else s for s in found]

    def of_each(name: Literal["settings", "environment"]) -> dict[str, Any]:
        values = [study[name] for study in studies]
        if all(value == values[0] for value in values):
            return values[0]
        return dict(zip(titles, values, strict=True))

    environment = of_each("environment")
    html_report(
        path, "; ".join(titles), of_each("settings"), environment, sections, command=command
    )


def _distinct(names: Sequence[str], before: str = " ") -> list[str]:
    """The names, with a number behind those that are there already."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name}{before}{number}"
        found.append(candidate)
    return found


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_classes(path: Path, classes: Sequence[ClassRow]) -> None:
    fields = ["protocol", "source", "target", "method", "anchors", "metric", "label"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*fields, "value", "lower", "upper"], lineterminator="\n")
    writer.writeheader()
    for row in classes:
        writer.writerow({key: f"{v:.6f}" if isinstance(v, float) else v for key, v in row.items()})
    write_atomically(path, text.getvalue().encode())


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """(protocol, metric, rows) in their order."""
    for protocol, metric in dict.fromkeys((row["protocol"], row["metric"]) for row in rows):
        here = [row for row in rows if (row["protocol"], row["metric"]) == (protocol, metric)]
        yield protocol, metric, here


def _latex(results: StudyResults) -> str:
    parts = ["% Needs \\usepackage{booktabs}. With more than seven counts: table* or landscape.\n"]
    for protocol, metric, rows in _groups(results["rows"]):
        pairs = pairs_of(rows)
        for start in range(0, len(pairs), PAIRS_PER_TABLE):
            here = [
                r for pair in pairs[start : start + PAIRS_PER_TABLE] for r in rows_of(rows, pair)
            ]
            number = start // PAIRS_PER_TABLE + 1
            name = _slug("tab", protocol, metric, *([str(number)] if number > 1 else []))
            caption = f"{results['title']}: {protocol}, {metric}."
            # A label is read by LaTeX, which older versions do in ASCII only.
            label = name.encode("ascii", "ignore").decode()
            parts.append(latex_table(here, caption=caption, label=label))
    return "\n".join(parts)


def _slug(*parts: str) -> str:
    """A file name without spaces and signs."""
    words = [re.sub(r"\W+", "-", part.lower()).strip("-") for part in parts]
    return "-".join(word for word in words if word)[:120]


# --- figures -----------------------------------------------------------------------------------


class _Drawing(NamedTuple):
    """A figure of a protocol."""

    name: str
    protocol: str
    caption: str
    png: bytes
    pdf: Callable[[], bytes]


def _drawn(results: StudyResults) -> Iterator[_Drawing]:
    """The figures; none without matplotlib, which one line on stderr says."""
    if find_spec("matplotlib") is None:
        print("no figures: install matplotlib (pip install 'semalign_jax[plot]')", file=sys.stderr)
        return
    names: list[str] = []
    for kind, protocol, details, caption, figure in _figures(results):
        names = _distinct([*names, _slug(kind, protocol, *details)], "-")

        def pdf(figure: "Figure" = figure) -> bytes:
            return figures.to_bytes(figure, "pdf")

        yield _Drawing(names[-1], protocol, caption, figures.to_bytes(figure), pdf)


_Found = tuple[str, str, tuple[str, ...], str, "Figure"]


def _figures(results: StudyResults) -> Iterator[_Found]:
    """(kind, protocol, what else its name says, caption, figure)."""
    for protocol, metric, rows in _groups(results["rows"]):
        yield from _curves(protocol, metric, rows)
    for protocol in dict.fromkeys(row["protocol"] for row in results["rows"]):
        yield from _matrices(protocol, [r for r in results["rows"] if r["protocol"] == protocol])
    yield from _bars(results["classes"])


def _curves(protocol: str, metric: str, rows: Sequence[Row]) -> Iterator[_Found]:
    if all(row["anchors"] is None for row in rows):
        return
    parts: dict[str, list[Row]] = {"": list(rows)}
    if len(pairs_of(rows)) > PAIRS_PER_FIGURE:
        targets = dict.fromkeys(row["target"] for row in rows)
        parts = {target: [r for r in rows if r["target"] == target] for target in targets}
    for target, here in parts.items():
        about = f"{protocol}: {metric} against the number of anchors"
        about += f", decoder {target}" if target else ""
        band = "the interval" if any("lower" in row for row in here) else "one standard deviation"
        caption = f"{about}; mean over draws of anchors, band: {band}."
        if any(figures.is_control(row["method"]) for row in here):
            caption += " Dotted: fitted to anchors matched to wrong ones."
        yield (
            "curves",
            protocol,
            (metric, target),
            caption,
            figures.anchor_curves(here, title=about),
        )


def _matrices(protocol: str, rows: Sequence[Row]) -> Iterator[_Found]:
    """Encoder by decoder, of each method at its largest count, in the first metric."""
    rows = [row for row in rows if row["metric"] == rows[0]["metric"]]
    if len(pairs_of(rows)) < 2:
        return
    metric = rows[0]["metric"]
    own = {row["target"]: row["mean"] for row in rows if row["method"] == UPPER_BOUND}
    sources = list(dict.fromkeys(row["source"] for row in rows))
    # Targets in the order of the sources, so that an encoder's own decoder is on the diagonal.
    targets = sorted(
        dict.fromkeys(row["target"] for row in rows), key=lambda name: [*sources, name].index(name)
    )
    panels = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        counts = [row["anchors"] for row in rows if row["method"] == method]
        largest = max((count for count in counts if count is not None), default=None)
        if largest is None or figures.is_control(method):
            continue
        values = figures.matrix_of(
            rows, sources, targets, protocol=protocol, method=method, anchors=largest
        )
        for name in set(sources) & set(targets) & set(own):
            values[sources.index(name), targets.index(name)] = own[name]
        panels[f"{method}\n{largest} anchors"] = values
    if not any(np.isfinite(values).any() for values in panels.values()):
        return
    caption = f"{protocol}: {metric} of each method at its largest count, encoder by decoder"
    caption += "; on the diagonal the decoder on its own encoder." if own else "."
    about = f"{protocol}: {metric}, encoder by decoder"
    figure = figures.score_matrices(panels, sources, targets, metric=metric, title=about)
    yield "matrices", protocol, (metric,), caption, figure


def _bars(classes: Sequence[ClassRow]) -> Iterator[_Found]:
    cells: dict[tuple[str, str, str, str], list[ClassRow]] = {}
    for row in classes:
        cell = row.get("protocol", ""), row["source"], row["target"], row["metric"]
        cells.setdefault(cell, []).append(row)
    for (protocol, source, target, metric), rows in list(cells.items())[:CLASS_FIGURES]:
        defined = [row for row in rows if math.isfinite(row["value"])]
        if not defined:
            continue
        counts = sorted({row["anchors"] for row in rows if row["anchors"] is not None})
        about = f"{source} → {target}"
        about += f", {counts[-1]} anchors" if counts else ""
        references = [row["method"] for row in defined if row["anchors"] is None]
        figure = figures.class_bars(
            defined,
            metric=metric,
            title=about,
            chance=CHANCE.get(metric),
            references=references,
        )
        caption = f"{about}: {metric} of each class with its confidence interval."
        yield "classes", protocol, (metric, source, target), caption, figure


# --- report ------------------------------------------------------------------------------------


def _sections(results: StudyResults, drawings: Sequence[_Drawing]) -> list[Section]:
    """One for each protocol, the notes before them."""
    notes = [*results["notes"]]
    cells = {
        (r.get("protocol", ""), r["metric"], r["source"], r["target"]) for r in results["classes"]
    }
    if len(cells) > CLASS_FIGURES:
        notes.append(f"The first {CLASS_FIGURES} figures of classes are shown; all are in the CSV.")
    seconds = f"Computed in {results['seconds']:.0f} s."
    sections = [Section("Notes", "\n\n".join([*notes, seconds]))]
    protocols = list(dict.fromkeys(row["protocol"] for row in results["rows"]))
    for protocol in protocols:
        rows = [row for row in results["rows"] if row["protocol"] == protocol]
        pictures = [Picture(d.caption, d.png) for d in drawings if d.protocol == protocol]
        sections.append(Section(protocol, "", summary_tables(rows), pictures))
    others = [Picture(d.caption, d.png) for d in drawings if d.protocol not in protocols]
    if others:
        sections.append(Section("Classes", pictures=others))
    return sections
