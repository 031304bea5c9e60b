"""The results of a study, and the files that they are handed over in."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .._core.checks import counted
from .._core.documents import parse_json
from .._core.files import as_path, format_problem, write_atomically
from .._core.records import Records, shown_counts
from . import drawings
from .drawings import Drawing, distinct, drawn, slug
from .html import Picture, Section, html_report, values_table
from .latex import latex_table
from .report import write_json
from .settings import resolved_settings as resolved_settings
from .tables import (
    CELL,
    PAIR,
    ClassRow,
    Row,
    Table,
    counts_of,
    grouped,
    metric_title,
    summary_tables,
    write_classes,
    write_csv,
)
from .trust import TrustRow

FORMAT = "semalign_jax.study"
VERSION = 1
Kind = Literal["stitching", "zero-shot"]
KINDS: tuple[Kind, ...] = ("stitching", "zero-shot")
PAIRS_PER_TABLE = 4


class StudyResults(Records, dict[str, Any]):
    """All that a study found: JSON values, but that undefined scores are NaN.

    Methods named "shuffled ..." are controls; "upper bound" is the decoder on its own encoder.
    Records are means over draws of anchors: a dictionary with the keys below, as which it was made,
    that is a line in `repr`, a table in notebooks and a frame by `to_pandas`.

    Keys:
        format: `FORMAT`.
        format_version: `VERSION`.
        kind: what was studied.
        title: of the report.
        settings: all of them, as `resolved_settings` gives them.
        environment: versions and hardware, as `report.environment` gives them.
        seconds: spent on computing.
        rows: scores.
        classes: scores of single classes.
        trust: a diagnosis of the anchors of each pair, see `studies.trust`.
        notes: what a reader should know besides, a sentence each.
        doubts: those of the notes that are reasons to doubt the scores.
    """

    def __repr__(self) -> str:
        pairs = len(grouped(self["rows"], *PAIR))
        counts = shown_counts(tuple(counts_of(self["rows"])))
        return f"<StudyResults: {self['title']}, {counted(pairs, 'pair')} of encoders, {counts}>"

    def to_records(self) -> list[dict[str, Any]]:
        """The rows: mean and deviation of each score, with its interval where there is one."""
        first = dict.fromkeys(CELL)  # what is kept between runs has its keys sorted
        return [{**first, **row} for row in self["rows"]]

    def summary(self) -> list[dict[str, Any]]:
        """As `to_records`: the rows are means already."""
        return self.to_records()


_SCORES = ("mean", "std", "lower", "upper", "value")
_KINDS_OF_ROWS = {"rows": Row, "classes": ClassRow, "trust": TrustRow}


def write_outputs(
    out: Path, results: StudyResults, *, command: Sequence[str] | None = None
) -> list[Path]:
    """Write a study's files.

    results.json (see `load_results`), settings.json (can be run again), summary.csv, classes.csv
    if there are scores of classes, tables.tex, `figures/*.png` and `*.pdf`, report.html. Equal
    results give equal files on one installation. Without matplotlib there are no figures, which one
    line on stderr says.

    Args:
        out: folder to write to, made if need be. Files of these names are replaced.
        results: of the study.
        command: the words of the command line, for the report; by default that of this process.

    Returns:
        The files written.

    Raises:
        OSError: if a file cannot be written.
    """
    out = as_path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "results.json", out / "settings.json", out / "summary.csv"]
    write_json(written[0], results)
    write_json(written[1], results["settings"])
    write_csv(written[2], results["rows"])
    if results["classes"]:
        written.append(out / "classes.csv")
        write_classes(written[-1], results["classes"])
    written.append(out / "tables.tex")
    write_atomically(written[-1], "\n".join(_latex(results)).encode())
    found = list(drawn(results["rows"], results["classes"], results["trust"]))
    if found:
        (out / "figures").mkdir(exist_ok=True)
    for drawing in found:
        for suffix, data in (("png", drawing.png), ("pdf", drawing.pdf())):
            written.append(out / "figures" / f"{drawing.name}.{suffix}")
            write_atomically(written[-1], data)
    written.append(out / "report.html")
    _write_page(written[-1], {results["title"]: results}, [_sections(results, found)], command)
    return written


def load_results(path: Path) -> StudyResults:
    """Read what `write_outputs` wrote.

    Args:
        path: its folder, or the file results.json.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of results, of another version, or damaged.
    """
    path = as_path(path)
    if path.is_dir():
        path = path / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: there is no such file")
    values = parse_json(path.read_bytes(), path)
    problem = format_problem(values, FORMAT, VERSION)
    if problem:
        raise ValueError(f"{path} {problem}")
    if values.get("kind") not in KINDS:
        raise ValueError(f"{path}: kind must be one of {', '.join(KINDS)}")
    expected: dict[str, Any] = {
        "title": str,
        **dict.fromkeys(("settings", "environment"), dict),
        **dict.fromkeys(("rows", "classes", "trust", "notes", "doubts"), list),
        "seconds": int | float,
    }
    for name, kind in expected.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{path}: {name} is missing or of the wrong type; run the study again")
    for name, kind in _KINDS_OF_ROWS.items():
        for number, row in enumerate(values[name]):
            found = row if isinstance(row, dict) else ()
            lacking = sorted(kind.__required_keys__.difference(found))
            if lacking:
                raise ValueError(f"{path}: {name}[{number}] lacks {', '.join(lacking)}")
            for score in _SCORES:
                if row.get(score, 0) is None:
                    row[score] = math.nan
    return StudyResults(values)


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
    titles = distinct([study["title"] for study in studies])
    found = [
        _sections(study, drawn(study["rows"], study["classes"], study["trust"]))
        for study in studies
    ]
    _write_page(path, dict(zip(titles, studies, strict=True)), found, command)


def _write_page(
    path: Path,
    studies: Mapping[str, StudyResults],
    found: Sequence[Sequence[Section]],
    command: Sequence[str] | None,
) -> None:
    """Write studies, by their titles, and their sections: a heading for each of several."""
    sections, several = found[0], len(studies) > 1
    if several:
        sections = [Section(t, parts=parts) for t, parts in zip(studies, found, strict=True)]
    made = [
        values_table("Settings", {title: study["settings"] for title, study in studies.items()}),
        values_table("Environment", {t: study["environment"] for t, study in studies.items()}),
    ]
    doubts = {t if several else "": study["doubts"] for t, study in studies.items()}
    html_report(path, "; ".join(studies), sections, made, doubts=doubts, command=command)


def _latex(results: StudyResults) -> Iterator[str]:
    yield "% Needs \\usepackage{booktabs}. With more than seven counts: table* or landscape.\n"
    for (protocol, metric), rows in grouped(results["rows"], "protocol", "metric").items():
        pairs = list(grouped(rows, *PAIR).values())
        for start in range(0, len(pairs), PAIRS_PER_TABLE):
            here = [row for pair in pairs[start : start + PAIRS_PER_TABLE] for row in pair]
            number = start // PAIRS_PER_TABLE + 1
            name = slug("tab", protocol, metric, *([str(number)] if number > 1 else []))
            caption = f"{results['title']}: {protocol}, {metric_title(metric)}."
            # A label is read by LaTeX, which older versions do in ASCII only.
            label = name.encode("ascii", "ignore").decode()
            yield latex_table(here, caption=caption, label=label)


def _sections(results: StudyResults, figures: Iterable[Drawing]) -> list[Section]:
    """One for each protocol, the notes before them."""
    doubts = results["doubts"]
    notes = [note for note in results["notes"] if note not in doubts]  # those are on top
    if not drawings.can_draw():
        notes.append(f"There are no figures: {drawings.INSTALL}, then make the report again.")
    shown = drawings.CLASS_FIGURES
    if len(grouped(results["classes"], *PAIR, "metric")) > shown:
        notes.append(f"The first {shown} figures of classes are shown; all are in the CSV.")
    seconds = f"Computed in {results['seconds']:.0f} s."
    sections = [Section("Notes", "\n\n".join([*notes, seconds]))]
    pictures: dict[str, list[Picture]] = {}
    for figure in figures:
        pictures.setdefault(figure.protocol, []).append(Picture(figure.caption, figure.png))
    for (protocol,), rows in grouped(results["rows"], "protocol").items():
        sections.append(Section(protocol, "", summary_tables(rows), pictures.get(protocol, ())))
    if results["trust"]:
        sections.append(_trust_section(results["trust"]))
    return sections


def _trust_section(trust: Sequence[TrustRow]) -> Section:
    """What the anchors alone say of the maps."""
    shown = trust[: drawings.PAIRS_PER_FIGURE]
    advice = [f"{row['source']} → {row['target']}: {' '.join(row['advice'])}" for row in shown]
    header = ["pair", "anchors", "leave-one-out cosine", "explained", "back", "stability"]
    header += ["hubness", "suspicious pairs"]
    keys = ("loo_cosine", "explained", "explained_back", "stability", "hubness")
    body = [
        [
            f"{row['source']} → {row['target']}",
            f"{row['anchors']}",
            *(f"{row[key]:.3f}" for key in keys),
            f"{row['suspicious']}",
        ]
        for row in trust
    ]
    about = (
        "One draw of anchors each, looked at by itself (semalign_jax.maps.diagnose): no labels, no "
        "test rows, and no interval. Between pairs and counts the leave-one-out cosine orders "
        "scores; within one pair it does not tell good draws from bad ones."
    )
    table = Table("by the anchors alone", header, body)
    return Section("How far to trust the maps", "\n\n".join([about, *advice]), [table])
