"""Reports as one HTML file that loads nothing from elsewhere."""

import base64
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from .._core.files import write_atomically
from .tables import Table


class Picture(NamedTuple):
    """A figure as the bytes of a PNG or SVG file.

    Attributes:
        caption: below it; also what readers hear who do not see it.
        data: the file.
    """

    caption: str
    data: bytes


class Section(NamedTuple):
    """A part of an HTML report.

    Attributes:
        title: its heading.
        text: paragraphs, parted by empty lines.
        tables: shown after the pictures, folded if they are many.
        pictures: shown first; a click shows one in full size.
        parts: of it, with headings of their own.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    parts: Sequence["Section"] = ()


#: More tables than this in a section are folded, all but the first.
OPEN_TABLES = 4
CSS = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
#: The page may load nothing from elsewhere, and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_report(
    path: Path,
    title: str,
    sections: Sequence[Section],
    made: Sequence[Table] = (),
    *,
    doubts: Mapping[str, Sequence[str]] | None = None,
    command: Sequence[str] | None = None,
) -> None:
    """Write one HTML file that holds all of a run: nothing else is needed to read it.

    Args:
        path: file to write, in one step.
        title: of the page.
        sections: figures and tables in their order.
        made: folded at the end: settings, versions and hardware, see `values_table`.
        doubts: on top: of what (a study, or nothing) -> what a reader should doubt.
        command: the words of the command line that made it; by default that of this process.

    Raises:
        ValueError: if a picture is neither PNG nor SVG, or a table's rows do not fit its header.
        OSError: if the file cannot be written.
    """
    words = sys.orig_argv if command is None else command
    numbers = count(1)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *_html_doubts(doubts or {}),
        f'<nav aria-label="Contents">\n<h2>Contents</h2>\n{_contents(sections)}\n</nav>',
        *(_html_section(one, f"s{i}", 2, numbers) for i, one in enumerate(sections)),
        '<section id="made"><h2>How it was made</h2>',
        f"<pre><code>{escape(shlex.join(words))}</code></pre>",
        *(_html_table(table, folded=True, kind=' class="plain"') for table in made),
        "</section>",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    # A file name on the command line need not be valid UTF-8.
    write_atomically(path, page.encode(errors="backslashreplace"))


def values_table(caption: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Named values, which may be nested, of one or several runs.

    Args:
        caption: above it.
        columns: name of a run -> its values; one column is enough if all are equal.
    """
    found = {name: dict(_flat(values)) for name, values in columns.items()}
    first, *others = found.values()
    if all(other == first for other in others):
        found = {"value": first}
    names = dict.fromkeys(name for values in found.values() for name in values)
    rows = [[name, *(values.get(name, "") for values in found.values())] for name in names]
    return Table(caption, ["name", *found], rows)


def _html_doubts(doubts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if not any(doubts.values()):
        return
    yield "<aside>\n<h2>What to doubt</h2>"
    for about, sentences in doubts.items():
        if about and sentences:
            yield f"<p>{escape(about)}</p>"
        if sentences:
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
            yield f"<ul>{items}</ul>"
    yield "</aside>"


def _contents(sections: Sequence[Section], start: str = "s") -> str:
    items = []
    for i, section in enumerate(sections):
        here = f"{start}{i}"
        inner = _contents(section.parts, f"{here}-") if section.parts else ""
        items.append(f'<li><a href="#{here}">{escape(section.title)}</a>{inner}</li>')
    if start == "s":
        items.append('<li><a href="#made">How it was made</a></li>')
    return f"<ul>{''.join(items)}</ul>"


def _html_section(section: Section, here: str, level: int, numbers: Iterator[int]) -> str:
    parts = [f'<section id="{here}"><h{level}>{escape(section.title)}</h{level}>']
    parts += [
        f"<p>{escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()
    ]
    parts += [_html_picture(picture, next(numbers)) for picture in section.pictures]
    if section.tables:
        fold = len(section.tables) > OPEN_TABLES
        tables = [_html_table(one, fold, i == 0) for i, one in enumerate(section.tables)]
        notes = dict.fromkeys(table.note for table in section.tables if table.note)
        parts += [f'<p class="rule">{escape(note)}</p>' for note in notes]
        parts.append('<div class="tables">' + "\n".join(tables) + "</div>")
    for i, part in enumerate(section.parts):
        parts.append(_html_section(part, f"{here}-{i}", level + 1, numbers))
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table, folded: bool = False, opened: bool = False, kind: str = "") -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(
                f"table {table.caption!r}: row {row[0] if row else ''!r} has {len(row)} cells, the "
                f"header {len(table.header)}"
            )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(_html_cell(cell, (i, j) in table.best) for j, cell in enumerate(row[1:], 1))
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    caption = escape(table.caption)
    inner = (
        f"<table{kind}>\n<caption>{caption}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )
    if not folded:
        return f'<div class="wide">{inner}</div>'
    inner = inner.replace(f"<caption>{caption}</caption>\n", "", 1)
    state = " open" if opened else ""
    return (
        f'<details{state}><summary>{caption}</summary>\n<div class="wide">{inner}</div></details>'
    )


def _html_cell(cell: str, best: bool) -> str:
    text = escape(cell)
    return f'<td class="best"><strong>{text}</strong></td>' if best else f"<td>{text}</td>"


def _html_picture(picture: Picture, number: int) -> str:
    if picture.data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif picture.data.lstrip().startswith((b"<?xml", b"<svg")):
        kind = "svg+xml"
    else:
        raise ValueError(f"picture {picture.caption!r} is neither PNG nor SVG, as pages need")
    caption = escape(picture.caption)
    image = f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"
    # Without a script: the picture is the label of a box, which is ticked where it is large.
    return (
        f'<figure><input type="checkbox" class="zoom" id="f{number}" aria-label="full size">'
        f'<label for="f{number}"><img alt="{caption}" src="{image}"></label>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text, those of nested mappings with dots in their names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)
