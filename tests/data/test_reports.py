"""Sections of reports as they occur in MIMIC-CXR: invented texts in the published style."""

import pytest

from semalign_jax.data import parse_sections, report_text

from .trees import REPORT


def test_usual_report():
    assert parse_sections(REPORT) == {
        "findings": "The lungs are clear. Compared to ___, no change.",
        "impression": "No acute process.",
        "last_paragraph": "",
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


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("header", ["FINDINGS:", "HISTORY: cough"])
def test_line_ends_of_other_systems(header, end):
    """As tables hold them; files are read with any of them."""
    rule = "_" * 20
    text = f"WET READ: Large.\n{rule}\n FINAL REPORT\n{header}\n\n Clear.\n{rule}\nADDENDUM\nNone."
    assert parse_sections(text.replace("\n", end)) == parse_sections(text)
    assert report_text(text.replace("\n", end), "both") == "Clear."
    assert report_text(text.replace("\n", end), "all") == report_text(text, "all")


def test_what_is_no_report():
    for function in (parse_sections, report_text):
        with pytest.raises(TypeError, match="report must be a string; got float"):
            function(float("nan"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "header", ["IMPRESSION:", "Impression:", "impression :", "CONCLUSION:", "\xa0Impression\xa0:"]
)
def test_headers_in_any_case(header):
    text = f"FINAL REPORT\n Findings: Clear lungs.\n\n {header}  Normal."
    sections = parse_sections(text)
    assert (sections["findings"], sections["impression"]) == ("Clear lungs.", "Normal.")


def test_missing_sections_are_empty():
    for text in ("", "   \n", "RADIOGRAPH: lungs are clear.", "INDICATION: cough"):
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
    text = "COMPARISON: ___\n ABDOMEN:  Text.\nFINDINGS:\n LUNGS: Clear.\n HEART: Large.\n"
    sections = parse_sections(text)
    assert sections["findings"] == "LUNGS: Clear. HEART: Large."
    assert sections["other"] == "___ ABDOMEN: Text."
    # Of films too: what is said of them is findings or impression already.
    assert report_text("IMPRESSION: One.\n CHEST: Two.\n", "impression") == "One. CHEST: Two."
    # A time is no header.
    assert report_text("TECHNIQUE: PORTABLE\n CHEST AT 10:30.\n") == ""


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


@pytest.mark.parametrize(
    "header",
    ["CHEST, TWO VIEWS", "PORTABLE AP", "PA AND LATERAL FILMS", "PA  AND LAT", "LEFT RIBS",
     "FRONTAL SEMI-UPRIGHT", "SINGLE AP VIEW", "REFERENCE FINDINGS", "ADDITIONAL FINDINGS",
     "FINDING", "FINDINS", "FINDINDGS", "FINDGINGS", "FINDNGS", "FINDNNINGS", "FINIDNGS"],
)  # fmt: skip
def test_headers_of_films_and_misspelt_ones_open_findings(header):
    text = f" FINAL REPORT\n HISTORY:  Cough.\n \n {header}:  The lungs are clear.\n"
    expected = {"findings": "The lungs are clear.", "other": "Cough."}
    assert parse_sections(text) == {"impression": "", "last_paragraph": "", **expected}


@pytest.mark.parametrize(
    "header",
    ["IMPRESSON", "IMPRRESSION", "IMORESSION", "IMPRESSOIN", "IMPRSSION", "IMPRESION",
     "IMPERSSION", "MPRESSION", "IMPESSION", "IMPRESSIONS", "OVERALL IMPRESSION", "CONCLUSION"],
)  # fmt: skip
def test_headers_of_impressions(header):
    text = f" FINDINGS:  Clear.\n {header}:  Normal.\n"
    assert report_text(text, "impression") == "Normal."
    assert report_text(text, "findings") == "Clear."


@pytest.mark.parametrize(
    "header", ["FINDINGS/IMPRESSION", "FINDINGS/ IMPRESSION", "FINDINGS  /IMPRESSION",
               "Findings and Impression", "FINDINGS AND IMPRESSON", "FINDINGS & IMPRESSION"],
)  # fmt: skip
def test_headers_of_both(header):
    text = f" COMPARISON: None.\n {header}:\n No change.\n"
    assert report_text(text, "findings") == report_text(text, "impression") == "No change."


@pytest.mark.parametrize(
    "header",
    ["COMPARISION", "COMPARSION", "COMPARRISON", "COMPARISONS", "IDICATION", "NDICATION",
     "COMPARISON FILM", "REFERENCE EXAM", "PAST MEDICAL HISTORY", "PFI", "INDICATION FOR CHEST",
     "REASON FOR CHEST FILM", "Clinical Information", "RECOMMENDATION(S)"],
)  # fmt: skip
def test_headers_of_other_sections_end_findings(header):
    text = f" FINDINGS:  Clear.\n {header}:  Cough.\n"
    assert parse_sections(text)["findings"] == "Clear."
    assert parse_sections(text)["other"] == "Cough."


def test_a_header_that_only_looks_alike():
    text = " FINDINGS:  Clear.\n COMPRESSION:  None.\n MEDICATION(S):  None.\n"
    assert report_text(text, "findings") == "Clear. COMPRESSION: None. MEDICATION(S): None."


def test_empty_sections_do_not_count():
    text = " CHEST, PA LATERAL:\n \n INDICATION:  Cough.\n \n FINDINGS:\n \n IMPRESSION:  Normal.\n"
    assert report_text(text, "both") == "Normal."
    text = " CHEST:\n INDICATION:  Cough.\n \n The lungs are clear.\n"
    assert report_text(text, "both") == "The lungs are clear."


def test_the_last_paragraph_stands_for_missing_sections():
    text = (
        " FINAL REPORT\n INDICATION:\n \n Cough.\n \n AP view of the chest.\n\n"
        " LUNGS:  Clear.\n\n The heart is large.\n\n No edema.\n ADDENDUM:  Sent.\n\n Later.\n"
    )
    sections = parse_sections(text)
    assert sections["last_paragraph"] == "The heart is large. No edema."
    assert sections["other"] == "Cough. AP view of the chest. LUNGS: Clear. Sent. Later."
    assert report_text(text, "both") == "The heart is large. No edema."
    assert report_text(text, "findings") == report_text(text, "impression") == ""
    assert report_text("FINAL REPORT\n \n The lungs are clear.\n") == "The lungs are clear."
    assert report_text(f"{text} FINAL REPORT\n FINDINGS: Clear.\n") == "Clear."
    # Nothing but a reading before the report.
    assert report_text(" WET READ:  Clear.\n\n No change.\n") == ""
