"""Reports as one HTML file that loads nothing from elsewhere."""

import base64
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
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
        tables: shown first.
        pictures: shown after the tables.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


CSS = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #fff; --line: #c8c8c8; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --back: #161616; --line: #4a4a4a; --soft: #242424; }
}
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, .plain th, .plain td { text-align: left; }
thead th { border-bottom-width: 2px; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; background: #fff; }
@media print {
  body { font-size: .7rem; max-width: none; margin: 0; }
  .wide { overflow: visible; }
  h2, caption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
}
"""
#: The page may load nothing from elsewhere, and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_report(
    path: Path,
    title: str,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    sections: Sequence[Section],
    *,
    command: Sequence[str] | None = None,
) -> None:
    """Write one HTML file that holds all of a run: nothing else is needed to read it.

    Args:
        path: file to write, in one step.
        title: of the page.
        settings: options of the run; may be nested.
        environment: versions and hardware, as `environment()` gives them.
        sections: tables and figures in their order.
        command: the words of the command line that made it; by default that of this process.

    Raises:
        ValueError: if a picture is neither PNG nor SVG, or a table's rows do not fit its header.
        OSError: if the file cannot be written.
    """
    words = sys.orig_argv if command is None else command
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(_html_section(section) for section in sections),
        "<h2>How it was made</h2>",
        f"<pre><code>{escape(shlex.join(words))}</code></pre>",
    ]
    for caption, values in (("Settings", settings), ("Environment", environment)):
        table = Table(caption, ("name", "value"), list(_flat(values)))
        parts.append(_html_table(table, kind=' class="plain"'))
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


def _html_section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [
        f"<p>{escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()
    ]
    parts += [_html_table(table) for table in section.tables]
    parts += [_html_picture(picture) for picture in section.pictures]
    return "\n".join(parts)


def _html_table(table: Table, kind: str = "") -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(
                f"table {table.caption!r}: row {row[0] if row else ''!r} has {len(row)} cells, the "
                f"header {len(table.header)}"
            )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="wide"><table{kind}>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _html_picture(picture: Picture) -> str:
    if picture.data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif picture.data.lstrip().startswith((b"<?xml", b"<svg")):
        kind = "svg+xml"
    else:
        raise ValueError(f"picture {picture.caption!r} is neither PNG nor SVG, as pages need")
    caption = escape(picture.caption)
    data = base64.b64encode(picture.data).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/{kind};base64,{data}">'
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
