"""Sections of free-text radiology reports in the style of MIMIC-CXR."""

import re
from collections.abc import Iterable
from typing import Literal

from .._core import checks

Section = Literal["findings", "impression", "both", "all"]
_WANTED = ("findings", "impression", "both", "all")

#: Headers as they occur, by the section that they open.
_HEADERS = {
    "findings": ("findings", "finding", "report"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "opinion"),
    "findings and impression": (
        "findings and impression",
        "findings/impression",
        "findings / impression",
        "impression and findings",
        "impression/findings",
    ),
    "other": (
        "examination",
        "exam",
        "study",
        "type of examination",
        "procedure",
        "indication",
        "indications",
        "clinical indication",
        "clinical information",
        "clinical history",
        "history",
        "reason for exam",
        "reason for examination",
        "reason for the exam",
        "technique",
        "comparison",
        "comparisons",
        "comparison study",
        "notification",
        "notifications",
        "recommendation",
        "recommendations",
        "recommendation(s)",
        "provisional findings impression",
        "provisional findings impression (pfi)",
        "preliminary findings",
        "preliminary report",
    ),
    "aside": ("addendum", "final addendum", "wet read", "preliminary read", "wet reading"),
}
_SECTION = {header: section for section, headers in _HEADERS.items() for header in headers}
_NAMES = "|".join(
    re.escape(name).replace(r"\ ", r"[ \t]+") for name in sorted(_SECTION, key=len, reverse=True)
)
_MARKS = re.compile(
    rf"""
    ^[ \t]*(?P<title>final[ \t]+report|final[ \t]+addendum|addendum)[ \t]*:?[ \t]*$
    | ^[ \t]*(?P<start>{_NAMES})[ \t]*:
    | \b(?-i:(?P<inside>{"|".join(n.upper() for n in ("findings", "impression", "comparison"))})):
    | ^[ \t]*(?-i:(?P<capitals>[A-Z][A-Z0-9 ,/()&_-]{{2,}})):
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_RULE = re.compile(r"^[ \t]*[_=*-]{5,}[ \t]*$", re.MULTILINE)
_BLANK = re.compile(r"_{2,}")


def parse_sections(report: str) -> dict[str, str]:
    """Split a report into "findings", "impression" and "other".

    Headers may be in any case (those of other sections start with a capital) and end with a
    colon; FINDINGS, IMPRESSION and COMPARISON in
    capitals also count inside a line. A header in capitals that is not known, e.g. "CHEST
    RADIOGRAPH:", is part of the findings or the impression if it occurs in one, and ends any
    other section. What a wet read, a preliminary read or an addendum says goes to "other", with
    the headers in it, up to "FINAL REPORT". A section that occurs twice is joined; a section
    "findings and impression" counts as both. White space is collapsed, lines that only rule
    off are dropped, and de-identified words stay as "___".

    Returns:
        the three keys; empty text for a section that the report does not have.
    """
    report = _RULE.sub("", report)
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "other": []}
    section, aside, start = "other", False, 0

    def close(end: int) -> None:
        text = _BLANK.sub("___", " ".join(report[start:end].split()))
        if text:
            into = (
                ("findings", "impression") if section == "findings and impression" else (section,)
            )
            for name in into:
                parts[name].append(text)

    for mark in _MARKS.finditer(report):
        title, known = mark["title"], mark["start"] or mark["inside"]
        if title:
            opened = "other"
            now_aside = "addendum" in title.lower()
        elif known:
            opened = _SECTION[" ".join(known.lower().split())]
            if opened == "other" != section and known[0].islower():
                continue  # a wrapped sentence, e.g. "... on the prior / study: ..."
            now_aside = aside or opened == "aside"
        elif section != "other":
            continue  # a sub-heading
        else:
            opened, now_aside = "other", aside
        close(mark.start())
        aside = now_aside
        section = "other" if aside or opened == "aside" else opened
        # The words of a header that is not known are kept: they may say what was examined.
        start = mark.start() if mark["capitals"] else mark.end()
    close(len(report))
    return {name: " ".join(texts) for name, texts in parts.items()}


def report_text(report: str, section: Section = "both", *, keep_blanks: bool = True) -> str:
    """The text of one report that is wanted.

    Args:
        report: the whole report.
        section: "findings", "impression", "both" (findings, then impression), or "all" (the
            whole report with white space collapsed).
        keep_blanks: whether de-identified words stay as "___", or are dropped.

    Returns:
        the text; empty if the report does not have the section.

    Raises:
        ValueError: for another section.
    """
    checks.option("section", section, _WANTED)
    if section == "all":
        text = _BLANK.sub("___", " ".join(_RULE.sub("", report).split()))
    else:
        text = sections_text(parse_sections(report), section)
    return text if keep_blanks else " ".join(text.replace("___", " ").split())


def sections_text(sections: dict[str, str], section: Section) -> str:
    """The wanted one of parsed sections; "all" here means every section."""
    names: Iterable[str] = {
        "findings": ("findings",),
        "impression": ("impression",),
        "both": ("findings", "impression"),
        "all": tuple(sections),
    }[section]
    texts = [sections.get(name, "") for name in names]
    return " ".join(dict.fromkeys(text for text in texts if text))
