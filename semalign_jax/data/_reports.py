"""Sections of free-text radiology reports in the style of MIMIC-CXR."""

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from .._core import checks

Section = Literal["findings", "impression", "both", "all"]

#: What is wanted, and the parts of a report in which it is.
_INTO = {
    "findings": ("findings",),
    "impression": ("impression",),
    "findings and impression": ("findings", "impression"),
    "last_paragraph": ("last_paragraph",),
}
#: Headers as they occur, by section; those of "aside" open what does not count.
_HEADERS = {
    "findings": ("findings", "finding", "report"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "opinion"),
    "findings and impression": (
        "findings and impression",
        "findings/impression",
        "impression and findings",
        "impression/findings",
    ),
    "examination": ("examination", "exam", "type of examination", "study", "procedure"),
    "indication": (
        "indication",
        "indications",
        "clinical indication",
        "reason for exam",
        "reason for examination",
        "reason for the exam",
    ),
    "history": (
        "history",
        "clinical history",
        "clinical information",
        "patient history",
        "provisional findings impression",
        "provisional findings impression (pfi)",
        "pfi",
    ),
    "technique": ("technique",),
    "comparison": (
        "comparison",
        "comparisons",
        "comparison study",
        "comparison exam",
        "comparison film",
        "reference exam",
    ),
    "notification": ("notification", "notifications"),
    "recommendations": ("recommendations", "recommendation", "recommendation(s)"),
    "preliminary": ("preliminary findings", "preliminary report"),
    "aside": (
        "addendum",
        "final addendum",
        "wet read",
        "wetread",
        "wet reading",
        "preliminary read",
    ),
}
_SECTION = {header: section for section, headers in _HEADERS.items() for header in headers}
#: What another header opens that contains one of these, the first that fits.
_CONTAINED = {
    "addendum": "aside",
    "impression": "impression",
    "findings": "findings",
    "history": "history",
    "comparison": "comparison",
    "indication": "indication",
    "reason for": "indication",
    "technique": "technique",
}
_VIEW = "view"
#: In headers that name the films, e.g. "CHEST, TWO VIEWS": findings follow.
_VIEWS = (
    "chest",
    "portable",
    "pa and lat",
    "lateral and pa",
    "ap and lateral",
    "lateral and ap",
    "frontal and",
    "two views",
    "one view",
    "frontal view",
    "pa view",
    "ap view",
    "lateral view",
    "bone window",
    "frontal upright",
    "frontal semi-upright",
    "ribs",
)
#: How alike a misspelt header is; "compression" is less like "impression".
_ALIKE = 0.87
_NAMES = "|".join(
    re.escape(name).replace(r"\ ", r"[ \t]+").replace("/", r"[ \t]*/[ \t]*")
    for name in sorted(_SECTION, key=len, reverse=True)
)
_MARKS = re.compile(
    rf"""
    ^[ \t]*(?P<title>final[ \t]+report|final[ \t]+addendum|addendum)[ \t]*:?[ \t]*$
    | ^[ \t]*(?P<start>{_NAMES})[ \t]*:
    | \b(?-i:(?P<inside>{"|".join(n.upper() for n in ("findings", "impression", "comparison"))})):
    | ^[ \t]*(?-i:(?P<capitals>[A-Z][A-Z0-9 ,/()&_-]{{2,}})):(?=\s|$)
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_RULE = re.compile(r"^[ \t]*[_=*-]{5,}[ \t]*$", re.MULTILINE)
_BLANK = re.compile(r"_{2,}")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")


class _Part(NamedTuple):
    """What stands under a header, up to the next one.

    Attributes:
        section: a key of `_HEADERS`; a header that is not known, in lower case; empty for none.
        aside: whether it belongs to an addendum or to a reading before the report.
        header: one that is not known, with its colon: its words may say what was examined.
        text: as it is in the report.
    """

    section: str
    aside: bool
    header: str
    text: str


@lru_cache(4096)
def _section_of(header: str) -> str:
    """The section that a header opens, `_VIEW`, or the header itself if it is not known."""
    if header in _SECTION:
        return _SECTION[header]
    alike = difflib.get_close_matches(header, _SECTION, 1, _ALIKE)
    if alike:
        return _SECTION[alike[0]]
    for word, section in _CONTAINED.items():
        if word in header:
            both = section == "impression" and "finding" in header
            return "findings and impression" if both else section
    return _VIEW if any(view in header for view in _VIEWS) else header


def _lines(report: str) -> str:
    """The report with line ends and spaces of one kind, and without lines that only rule off."""
    if not isinstance(report, str):  # e.g. the NaN of a table
        raise TypeError(f"report must be a string; got {type(report).__name__}")
    return _RULE.sub("", "\n".join(report.replace("\xa0", " ").splitlines()))


def _parts(report: str) -> list[_Part]:
    """The report cut at its headers."""
    report = _lines(report)
    parts: list[_Part] = []
    section, aside, header, start = "", False, "", 0
    for mark in _MARKS.finditer(report):
        known, inside = mark["start"] or mark["inside"], not aside and section in _INTO
        name = " ".join((known or mark["capitals"] or "").lower().split())
        opened = _section_of(re.sub(r"\s*/\s*", "/", name))
        if mark["title"]:
            opened, next_aside = "", "addendum" in mark["title"].lower()
        elif inside and opened not in _HEADERS:
            continue  # a sub-heading
        elif inside and opened not in _INTO and known and known[0].islower():
            continue  # a wrapped sentence, e.g. "... on the prior / study: ..."
        else:
            next_aside = aside or opened == "aside"
        parts.append(_Part(section, aside, header, report[start : mark.start()]))
        section, aside, start = "findings" if opened == _VIEW else opened, next_aside, mark.end()
        header = "" if section in _HEADERS or mark["title"] else f"{mark['capitals']}: "
    return [*parts, _Part(section, aside, header, report[start:])]


def _clean(text: str) -> str:
    return _BLANK.sub("___", " ".join(text.split()))


def parse_sections(report: str) -> dict[str, str]:
    """Split a report into "findings", "impression", "last_paragraph" and "other".

    Headers may be in any case (those of other sections start with a capital) and end with a
    colon; FINDINGS, IMPRESSION and COMPARISON in capitals also count inside a line. Headers in
    capitals that are misspelt or contain one of these words are theirs, and such as name the films,
    e.g. "CHEST, TWO VIEWS:", open findings. Any other header in capitals, and one of films, is part
    of the findings or the impression if it occurs in one, and ends any other section. What a wet
    read, a preliminary read or an addendum says goes to "other", with the headers in it, up to
    "FINAL REPORT". A section that occurs twice is joined; a section "findings and impression"
    counts as both. White space is collapsed, lines that only rule off are dropped, and
    de-identified words stay as "___".

    A report with neither findings nor impression often has its text below the last header, after
    an empty line: that is the last paragraph.

    Headers are those that the section parser of the MIMIC-CXR code repository knows. It differs: it
    takes the last of several sections of one name, ends findings at every header in capitals,
    counts addenda and wet reads as any other section, and its labeler reads the impression, and
    the findings only where there is none. Here a text is what the image is matched with, so nothing
    of it is dropped, and nothing is in it that the report itself does not say.

    Returns:
        the four keys; empty text for what the report does not have.

    Raises:
        TypeError: if the report is no string.
    """
    found: dict[str, list[str]] = {
        name: [] for name in ("findings", "impression", "last_paragraph", "other")
    }
    for part in _with_last_paragraph(_parts(report)):
        text = _clean(part.header + part.text)
        for name in ("other",) if part.aside else _INTO.get(part.section, ("other",)):
            found[name].append(text)
    return {name: " ".join(filter(None, texts)) for name, texts in found.items()}


def _with_last_paragraph(parts: list[_Part]) -> list[_Part]:
    """The parts, the last one cut at its first empty line if none has findings or impression."""
    own = [number for number, part in enumerate(parts) if not part.aside]
    if not own or any(
        parts[number].section in _INTO and parts[number].text.strip() for number in own
    ):
        return parts
    last = parts[own[-1]]
    # An empty line between a header and its text is not meant.
    text = last.text.lstrip() if last.section else last.text
    first, *rest = _EMPTY_LINE.split(text, maxsplit=1)
    cut = [last._replace(text=first), *(_Part("last_paragraph", False, "", text) for text in rest)]
    return [*parts[: own[-1]], *cut, *parts[own[-1] + 1 :]]


def named_section(report: str, name: str) -> str:
    """What stands in the last section of a name, e.g. "technique"; empty if there is none."""
    texts = [_clean(part.text) for part in _parts(report) if part.section == name]
    return texts[-1] if texts else ""


def report_text(report: str, section: Section = "both", *, keep_blanks: bool = True) -> str:
    """The text of one report that is wanted.

    Args:
        report: the whole report.
        section: "findings", "impression", "both" (findings, then impression; if there is neither,
            the last paragraph, see `parse_sections`), or "all" (the whole report with white space
            collapsed).
        keep_blanks: whether de-identified words stay as "___", or are dropped.

    Returns:
        the text; empty if the report does not have the section.

    Raises:
        TypeError: if the report is no string.
        ValueError: for another section.
    """
    checks.option("section", section, get_args(Section))
    if section == "all":
        text = _clean(_lines(report))
    else:
        text = sections_text(parse_sections(report), section)
    return text if keep_blanks else without_blanks(text)


def without_blanks(text: str) -> str:
    """A text without its de-identified words."""
    return " ".join(text.replace("___", " ").split())


def sections_text(sections: dict[str, str], section: Section) -> str:
    """The wanted one of parsed sections; "all" here means every section."""
    names: Iterable[str] = {
        "findings": ("findings",),
        "impression": ("impression",),
        "both": ("findings", "impression", "last_paragraph"),
        "all": tuple(sections),
    }[section]
    texts = [sections.get(name, "") for name in names]
    return " ".join(dict.fromkeys(text for text in texts if text))
