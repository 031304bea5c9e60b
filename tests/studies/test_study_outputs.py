"""Files of a study: read back, redrawn, complete without matplotlib."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_report import Page, row

from semalign_jax.studies import drawings, figures, outputs, report, tables
from semalign_jax.studies.doubts import doubts_of
from semalign_jax.studies.settings import DataPath, Settings, StudySettings, load_settings
from semalign_jax.studies.trust import trust_rows

METHODS = ("upper bound", "affine", "shuffled affine", "ortho")


def rows(protocol="findings", metrics=("auroc", "accuracy"), encoders=("vit", "dino", "bert")):
    return [
        row(
            method,
            None if method == "upper bound" else count,
            0.9 - 0.1 * METHODS.index(method) - 1 / count,
            pair=(protocol, source, target),
            metric=metric,
        )
        for metric in metrics
        for source in encoders
        for target in encoders
        if source != target
        for method in METHODS
        for count in ((10,) if method == "upper bound" else (10, 100))
    ]


ROWS = rows(encoders=("vit", "bert"))  # each pair is a panel that is drawn


def class_row(method, label, value, **changes: Any):
    lower, upper = value - 0.1, value + 0.05
    pair = {"source": "vit", "target": "bert", "anchors": 100, "metric": "auroc"}
    values = {"method": method, "label": label, "value": value, "lower": lower, "upper": upper}
    return outputs.ClassRow(**{"protocol": "findings", **values, **pair, **changes})


def study(**changes: Any) -> outputs.StudyResults:
    values: dict[str, Any] = {
        "format": outputs.FORMAT,
        "format_version": outputs.VERSION,
        "kind": "stitching",
        "title": "Chest findings",
        "settings": {"seeds": 5, "stores": {"vit": "/data/vit"}},
        "environment": {"processor": "a processor", "versions": {"jax": "0.9"}},
        "seconds": 12.5,
        "rows": ROWS,
        "classes": [
            class_row("affine", "Edema", 0.8),
            class_row("ortho", "Edema", 0.7),
            class_row("affine", "Mass", math.nan),
        ],
        "trust": [],
        "notes": ["The first note.", "Mass has no positive test image."],
        "doubts": ["Mass has no positive test image."],
    }
    return outputs.StudyResults(**{**values, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of outputs and what was returned for it."""
    out = tmp_path_factory.mktemp("study") / "a" / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "PAIRS_PER_TABLE", 1)
        return out, outputs.write_outputs(out, study(), command=["semalign", "stitch"])


def test_results_are_a_line_a_table_and_a_frame():
    results = study()
    assert repr(results).startswith(f"<StudyResults: {results['title']}, 2 pairs of encoders, ")
    frame = results.to_pandas()
    assert list(frame["mean"]) == [row["mean"] for row in results["rows"]]
    rows = [dict(sorted(row.items())) for row in results["rows"]]
    kept = outputs.StudyResults({**results, "rows": rows}).to_pandas()
    assert list(kept)[:6] == ["protocol", "source", "target", "method", "anchors", "metric"]
    html = results._repr_html_()
    assert html.count("<table>") == 2
    assert "macro AUROC" in html
    first = results["rows"][0]
    names = {name: first[name] for name in ("source", "target", "method", "anchors", "metric")}
    assert results.select(**names) == [first]


def test_all_files_are_there(written):
    out, paths = written
    names = [str(path.relative_to(out)) for path in paths]
    drawn = ["curves-findings-auroc", "curves-findings-accuracy", "matrices-findings-auroc"]
    drawn += ["classes-findings-auroc-vit-bert"]
    assert names == [
        "results.json", "settings.json", "summary.csv", "classes.csv", "tables.tex",
        *(f"figures/{name}.{suffix}" for name in drawn for suffix in ("png", "pdf")),
        "report.html",
    ]  # fmt: skip
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(paths)
    for path in (out / "figures").iterdir():
        assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")


def test_what_the_anchors_say_by_themselves_is_a_section_and_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)).astype(np.float32)
    forty = StudySettings(counts=(10, 40))
    found = [
        row
        for name, y in (("alike", x @ rng.standard_normal((5, 4))), ("unlike", x[::-1] + 0))
        for row in trust_rows(forty, ("findings", "vit", name), x, y.astype(np.float32))
    ]
    assert [row["anchors"] for row in found] == [40, 40]
    assert found[0]["loo_cosine"] > 0.9 > found[1]["loo_cosine"]
    assert trust_rows(StudySettings(counts=(2,)), ("findings", "a", "b"), x, x) == []
    assert trust_rows(StudySettings(trust=False), ("findings", "a", "b"), x, x) == []
    results = study(rows=ROWS[:4], classes=[], trust=found)
    outputs.write_outputs(tmp_path, results)
    assert outputs.load_results(tmp_path)["trust"] == found
    assert (tmp_path / "figures" / "trust-findings.png").is_file()
    text = "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "How far to trust the maps" in text
    assert f"{found[0]['loo_cosine']:.3f}" in text
    assert f"vit → unlike: {' '.join(found[1]['advice'])}" in text


def test_results_are_read_back(written):
    out, _ = written
    results = study()
    assert "NaN" not in (out / "results.json").read_text()
    for place in (out, out / "results.json"):
        again: Any = outputs.load_results(place)
        for name in ("value", "lower", "upper"):
            assert math.isnan(again["classes"][2][name])
            again["classes"][2][name] = results["classes"][2][name]  # no NaN is equal to another
        assert again == results
    assert json.loads((out / "settings.json").read_text()) == results["settings"]


def test_spreadsheets_run_no_cell(tmp_path):
    names = ["=cmd()", "+1", "-1", "@a", "'a", "a=b"]
    results = study(rows=[{**ROWS[0], "source": name, "mean": -0.5} for name in names])
    outputs.write_outputs(tmp_path, results)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [row["source"] for row in rows]
    assert found == ["'=cmd()", "'+1", "'-1", "'@a", "''a", "a=b"]
    assert [name.removeprefix("'") for name in found] == names  # how they are read back
    assert {row["mean"] for row in rows} == {"-0.500000"}


def test_tables_hold_the_scores(written):
    out, _ = written
    with (out / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert len(summary) == len(ROWS)
    assert float(summary[1]["mean"]) == pytest.approx(ROWS[1]["mean"], abs=1e-6)
    with (out / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert classes[1] == {
        "protocol": "findings", "source": "vit", "target": "bert", "method": "ortho",
        "anchors": "100", "metric": "auroc", "label": "Edema",
        "value": "0.700000", "lower": "0.600000", "upper": "0.750000",
    }  # fmt: skip
    text = (out / "tables.tex").read_text()
    # Two pairs and two metrics, a table each.
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert re.findall(r"\\label\{(.*)\}", text) == [
        "tab-findings-auroc", "tab-findings-auroc-2",
        "tab-findings-accuracy", "tab-findings-accuracy-2",
    ]  # fmt: skip
    assert outputs.PAIRS_PER_TABLE == 4
    whole = "".join(outputs._latex(study(rows=rows(metrics=("auroc",)))))
    assert [part.count(r"\emph{") for part in whole.split(r"\begin{table}")[1:]] == [4, 2]


def test_the_page_has_the_figures_settings_versions_and_hardware(written):
    out, _ = written
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    shown = ["Chest findings", "semalign stitch", "/data/vit", "a processor", "versions.jax"]
    shown += ["Mass has no positive test image.", "Computed in 12 s", "Bold: the best of each"]
    assert all(part in text for part in shown)
    assert text.count("Mass has no positive test image.") == 1  # on top, and not again
    assert text.index("Mass has no") < text.index("Contents") < text.index("The first note.")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(list((out / "figures").glob("*.png"))) == 4
    assert "macro AUROC against the number of anchors; mean over draws" in images[0]["alt"]


def test_what_all_pairs_say_together_is_that_of_all_their_draws():
    rng = np.random.default_rng(0)
    draws = {pair: rng.normal(size=4) + n for n, pair in enumerate(("ab", "ac", "bc"))}
    few = [
        tables.row_of_draws(("p", source, target), "ortho", 20, "auroc", values)
        for (source, target), values in draws.items()
    ]
    few += [tables.row_of_draws(("p", "a", "b"), "naive", None, "auroc", np.array(0.5))]
    whole, naive = tables.over_pairs(few)
    every = np.concatenate(list(draws.values()))
    assert (whole["mean"], whole["std"]) == pytest.approx((every.mean(), every.std(ddof=1)))
    assert (whole["seeds"], whole["anchors"], naive["mean"], naive["std"]) == (12, 20, 0.5, 0.0)


def drawn_as(kind, few, classes=()) -> Any:
    """The figures of a kind, of those that a study has."""
    return [found for found in drawings.study_figures(few, classes) if found[0] == kind]


def test_classes_of_all_pairs_are_means_next_to_grey_references():
    values = {"a": 0.6, "b": 0.9, "c": math.nan}
    classes: list[Any] = [
        class_row("ortho", "Edema", value, source=s) for s, value in values.items()
    ]
    classes += [{**class_row("CLIP", "Edema", 0.7, source=s), "anchors": None} for s in values]
    ((*_, caption, figure),) = drawn_as("overall-classes", [], classes)
    assert "line: from the lowest to the highest" in caption
    (axis,) = figure.axes
    points = {line.get_label(): line for line in axis.get_lines()}
    assert list(points["ortho"].get_xdata()) == [0.75]
    assert list(axis.collections[0].get_segments()[0][:, 0]) == [0.6, 0.9]
    assert len(set(to_rgb(points["CLIP"].get_color()))) == 1
    assert len(drawn_as("classes", [], classes)) == 3  # and one for each pair


def test_matrices_have_the_upper_bound_on_the_diagonal():
    few = rows(metrics=("auroc",))

    def matrices(some):
        return [
            axis.images[0].get_array().filled(math.nan)
            for *_, figure in drawn_as("matrices", some)
            for axis in figure.axes[:-1]
        ]

    values, _ = matrices(few)  # neither references nor controls
    expected = np.full((3, 3), 0.79)
    np.fill_diagonal(expected, 0.8)
    np.testing.assert_allclose(values, expected)
    # What there is no score of is undefined, as is the diagonal without an upper bound.
    chain = {("vit", "dino"), ("dino", "bert")}
    part = [r for r in few if (r["source"], r["target"]) in chain and r["method"] != "upper bound"]
    np.testing.assert_allclose(matrices(part)[0], [[0.79, math.nan], [math.nan, 0.79]])
    # A single pair is no matrix.
    assert not matrices(rows(encoders=("vit", "bert"))[:4])


def test_captions_say_nothing_that_the_figure_may_not_hold():
    """What lines and bands are is in the legend, which follows from what is drawn."""
    plain = [r for r in ROWS if not r["method"].startswith("shuffled")]
    for some, dotted in ((ROWS, True), (plain, False)):
        for *_, caption, figure in drawn_as("curves", some):
            (legend,) = figure.legends
            names = [text.get_text() for text in legend.get_texts()]
            lines = [line for axis in figure.axes for line in axis.get_lines()]
            assert ("dotted: wrong pairs" in names) == dotted
            assert any(line.get_linestyle() == ":" for line in lines) == dotted
            assert "otted" not in caption
            assert "band" not in caption


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are chosen, but not drawn."""
    for name in ("anchor_curves", "score_matrices", "class_scores"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    monkeypatch.setattr(drawings, "to_bytes", lambda *_: b"")


@pytest.mark.usefixtures("undrawn")
def test_many_pairs_are_split_by_target_and_many_classes_stay_in_the_csv(monkeypatch):
    monkeypatch.setattr(drawings, "PAIRS_PER_FIGURE", 2)
    monkeypatch.setattr(drawings, "CLASS_FIGURES", 1)
    few = rows(metrics=("auroc",))
    classes = [class_row("affine", "Edema", 0.8, source=name) for name in ("vit", "dino")]
    results = study(rows=few, classes=classes)
    chosen = list(drawings.study_figures(few, classes))
    assert "mean over the 6 pairs and all draws of anchors" in chosen[0][3]
    names = ["-".join(found[2]) for found in chosen]
    assert names == [
        "auroc", "auroc-dino", "auroc-bert", "auroc-vit", "auroc", "auroc-vit-bert",
    ]  # fmt: skip
    notes = outputs._sections(results, [])[0].text
    assert "The first 1 figures of classes are shown; all are in the CSV." in notes


@pytest.mark.usefixtures("undrawn")
def test_names_of_figures_are_distinct_and_safe():
    few = rows("a/b", ("auroc",), ("vit", "bert"))
    twice = [*few, *({**r, "protocol": "A b"} for r in few)]
    names = [drawing.name for drawing in drawings.drawn(twice, [])]
    assert names == [
        "curves-a-b-auroc", "curves-a-b-auroc-2", "matrices-a-b-auroc", "matrices-a-b-auroc-2",
    ]  # fmt: skip


def test_without_matplotlib_all_else_is_written_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = outputs.write_outputs(tmp_path, study())
    assert [path.name for path in written] == [
        "results.json", "settings.json", "summary.csv", "classes.csv", "tables.tex", "report.html",
    ]  # fmt: skip
    assert not (tmp_path / "figures").exists()
    text = (tmp_path / "report.html").read_text()
    assert "There are no figures: install matplotlib (pip install" in text
    assert capsys.readouterr().err.splitlines() == [
        "no figures: install matplotlib (pip install 'semalign_jax[plot]')"
    ]


def test_doubts_follow_from_settings_and_scores():
    sound = {"seeds": 5, "resamples": 1000}
    assert list(doubts_of(sound, ROWS, [], {"vit": 10})) == []
    rough = {"seeds": 2, "intervals": {"resamples": 50}}
    some = [{**r, "mean": math.nan} for r in ROWS if r["method"] == "affine"]
    classes = study()["classes"]
    found = list(doubts_of(rough, some, classes, {"vit": 64, "bert": 5}))  # type: ignore[arg-type]
    assert [sentence.split(":")[0] for sentence in found] == [
        "Few draws of anchors (2)",
        "Few resamples (50)",
        "Fewer anchors than dimensions, for vit (up to 10 of 64)",
        "No control was fitted to wrong pairs",
        "Some scores are undefined",
        "Classes with undefined scores",
    ]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Opens a page of a width: its document as it is then, and what the console said."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"

    def opened(path):
        words = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            profile,
            "--enable-logging=stderr",
        ]
        words += ["--virtual-time-budget=5000", "--window-size=1280,900", "--dump-dom"]
        done = subprocess.run([*words, path.as_uri()], check=True, capture_output=True, text=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return opened


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_screens_in_a_browser(written, browser, tmp_path, width):
    content = (written[0] / "report.html").read_text(encoding="utf-8")
    # A copy may run a script, which says how wide it is laid out, and where pictures are large.
    policy = '<meta http-equiv="Content-Security-Policy"'
    script = (
        "<script>onload = () => {"
        "const box = document.querySelector('.zoom'), image = document.querySelector('img');"
        "const wide = document.documentElement.scrollWidth, before = image.clientWidth;"
        "box.click();"
        "const sizes = [innerWidth, wide, before, image.naturalWidth, image.clientWidth];"
        "parent.postMessage(sizes.join(), '*'); }</script>"
    )
    copy = content.replace(policy, f"{script}<meta name='none'", 1)
    (tmp_path / "copy.html").write_text(copy, encoding="utf-8")
    # No window is narrower than 500 pixels, but a frame may be.
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = (message) => { document.title = message.data }</script>"
        f'<iframe src="copy.html" width="{width}" height="900" style="border: 0"></iframe>'
    )
    title = re.search("<title>(.*?)</title>", browser(tmp_path / "frame.html")[0])
    assert title is not None
    inner, wide, before, natural, after = map(int, title[1].split(","))
    assert wide <= inner == width
    assert before <= min(natural, width) <= after  # a click shows it in full size


def test_the_page_makes_a_browser_complain_of_nothing(written, browser, tmp_path):
    document, complaints = browser(written[0] / "report.html")
    assert "Chest findings</h1>" in document
    assert complaints == []
    (tmp_path / "wrong.html").write_text("<script>nothing()</script>")
    assert len(browser(tmp_path / "wrong.html")[1]) == 1


def test_one_report_of_several_studies(tmp_path):
    one = study(rows=rows(metrics=("auroc",), encoders=("vit", "bert")), classes=[])
    other = rows("others", ("auroc",), ("vit", "bert"))[:4]
    other = study(rows=other, classes=[], settings={"seeds": 3})
    outputs.write_report(tmp_path / "all.html", [one, other], command=["semalign", "report"])
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    shown = ["Chest findings; Chest findings 2", "findings", "versions.jax", "others"]
    shown += ["nameChest findingsChest findings 2", "seeds53"]
    assert all(part in text for part in shown)
    assert [tag for tag, _ in page.tags].count("img") == 2 + 1
    with pytest.raises(ValueError, match="studies is empty"):
        outputs.write_report(tmp_path / "none.html", [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "has format 'other', expected 'semalign_jax.study'"),
        ({"format_version": 9}, "version 9; this release reads 1"),
        ({"kind": "other"}, "kind must be one of stitching, zero-shot"),
        ({"title": 3}, "title is missing or of the wrong type"),
        ({"rows": {}}, "rows is missing or of the wrong type"),
        ({"rows": [{"mean": 1.0}]}, r"rows\[0\] lacks anchors, method, metric"),
        ({"classes": [3]}, r"classes\[0\] lacks anchors, label"),
        ({"trust": [{"source": "vit"}]}, r"trust\[0\] lacks advice, anchors, counts, curve"),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path, change, message):
    report.write_json(tmp_path / "results.json", {**study(), **change})
    with pytest.raises(ValueError, match=rf"results\.json:? .*{message}"):
        outputs.load_results(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results at .*results\.json"):
        outputs.load_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="damaged or no JSON"):
        outputs.load_results(tmp_path)


class Inner(Settings):
    """Settings within settings."""

    folder: DataPath


class Outer(Settings):
    """Settings with paths."""

    stores: dict[str, DataPath]
    inner: tuple[Inner, ...]


def test_resolved_settings_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text(json.dumps({"stores": {"a": "x"}, "inner": [{"folder": "y"}]}))
    resolved = outputs.resolved_settings(load_settings(Outer, Path("run.json")))
    assert resolved == {"stores": {"a": f"{tmp_path}/x"}, "inner": [{"folder": f"{tmp_path}/y"}]}
    (tmp_path / "elsewhere").mkdir()
    report.write_json(tmp_path / "elsewhere" / "settings.json", resolved)
    settings = load_settings(Outer, tmp_path / "elsewhere" / "settings.json")
    assert outputs.resolved_settings(settings) == resolved
