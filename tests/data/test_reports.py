"""Sections of reports as they occur in MIMIC-CXR: invented texts in the published style."""

import pytest

from semalign_jax.data import parse_sections, report_text

from .trees import REPORT


def test_usual_report():
    assert parse_sections(REPORT) == {
        "findings": "The lungs are clear. Compared to ___, no change.",
        "impression": "No acute process.",
        "other": "CHEST (PA AND LAT) ___F with cough",
    }
    assert report_text(REPORT, "findings") == "The lungs are clear. Compared to ___, no change."
    assert report_text(REPORT, "impression") == "No acute process."
    assert report_text(REPORT, "both") == (
        "The lungs are clear. Compared to ___, no change. No acute process."
    )
    assert report_text(REPORT, "all").startswith("FINAL REPORT EXAMINATION: CHEST")
    assert report_text(REPORT, "findings", keep_blanks=False) == (
        "The lungs are clear. Compared to , no change."
    )


@pytest.mark.parametrize("header", ["IMPRESSION:", "Impression:", "impression :", "CONCLUSION:"])
def test_headers_in_any_case(header):
    text = f"FINAL REPORT\n Findings: Clear lungs.\n\n {header}  Normal."
    sections = parse_sections(text)
    assert (sections["findings"], sections["impression"]) == ("Clear lungs.", "Normal.")


def test_missing_sections_are_empty():
    for text in ("", "   \n", "CHEST RADIOGRAPH: lungs are clear.", "INDICATION: cough"):
        assert report_text(text, "both") == ""
    only = "FINDINGS: Clear."
    assert report_text(only, "impression") == ""
    assert report_text(only, "both") == "Clear."
    # A word at the start of a sentence is no header.
    assert report_text("INDICATION: x\n Findings are normal\n", "findings") == ""


def test_other_sections_end_the_wanted_ones():
    text = (
        "FINDINGS: Clear.\n\nIMPRESSION: Normal.\n\nNOTIFICATION:  Called to Dr. ___ at ___.\n"
        "RECOMMENDATION(S):  None."
    )
    assert report_text(text, "both") == "Clear. Normal."


def test_subheadings_stay_in_findings_but_end_other_sections():
    text = "COMPARISON: ___\n PORTABLE CHEST:  Text.\nFINDINGS:\n LUNGS: Clear.\n HEART: Large.\n"
    sections = parse_sections(text)
    assert sections["findings"] == "LUNGS: Clear. HEART: Large."
    assert sections["other"] == "___ PORTABLE CHEST: Text."


def test_joint_section_counts_once_in_both():
    text = "FINDINGS AND IMPRESSION:  No change.\n"
    assert report_text(text, "findings") == "No change."
    assert report_text(text, "impression") == "No change."
    assert report_text(text, "both") == "No change."


def test_wet_reads_and_addenda_do_not_count():
    text = (
        " WET READ: ___ 8:12 PM\n  FINDINGS: wet.\n"
        " ______________________________________________________________________________\n"
        "                FINAL ADDENDUM\n ADDENDUM:\n IMPRESSION: added.\n ________________\n"
        "                FINAL REPORT\n FINDINGS: final.\n IMPRESSION: end.\n"
    )
    sections = parse_sections(text)
    assert (sections["findings"], sections["impression"]) == ("final.", "end.")
    assert "wet." in sections["other"]
    assert "added." in sections["other"]
    assert "____" not in sections["other"]
    after = "FINDINGS: a.\nIMPRESSION: b.\n ADDENDUM: c.\n IMPRESSION: d.\n"
    assert report_text(after, "both") == "a. b."


def test_repeated_and_inline_headers():
    text = "COMPARISON: None. FINDINGS: Clear. IMPRESSION: One.\nIMPRESSION: Two."
    sections = parse_sections(text)
    assert sections["findings"] == "Clear."
    assert sections["impression"] == "One. Two."
    wrapped = "FINDINGS: as on the prior\n study: clear.\nComparison: none\n"
    assert report_text(wrapped, "findings") == "as on the prior study: clear."
    assert report_text("FINDINGS: the impression: of a nodule", "impression") == ""


def test_blanks_are_of_one_length():
    assert report_text("FINDINGS: Dr. _______ and __", "findings") == "Dr. ___ and ___"


def test_section_is_checked():
    with pytest.raises(ValueError, match="section must be one of 'findings', 'impression'"):
        report_text("", "technique")  # pyright: ignore[reportArgumentType]
