import base64
import errno
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from helpers import some

from semalign_jax.plot import to_bytes
from semalign_jax.studies import cells, figures, html, latex, report, tables


def row(method, anchors, mean, *, pair=("zero-shot", "vit", "bert"), **others):
    protocol, source, target = pair
    return tables.Row(
        protocol=protocol,
        source=source,
        target=target,
        method=method,
        anchors=anchors,
        metric=others.pop("metric", "auroc"),
        mean=mean,
        std=others.pop("std", 0.01),
        seeds=others.pop("seeds", 5),
        **others,
    )


ROWS = [
    row("upper bound", None, 0.95, seeds=1),
    row("affine", 10, 0.61),
    row("ortho", 10, 0.712),
    row("affine", 100, 0.8204),
    row("ortho", 100, 0.8196),
]


# LaTeX


def test_latex_table_is_methods_by_counts_with_the_best_in_bold():
    assert latex.latex_table(ROWS, caption="AUROC in %", label="tab:zero_shot") == (
        r"""\begin{table}
\centering
\caption{AUROC in \%}
\label{tab:zero_shot}
\footnotesize\setlength{\tabcolsep}{2pt}
\begin{tabular}{lrr}
\toprule
anchors & 10 & 100 \\
\midrule
upper bound & \multicolumn{2}{c}{.950} \\
affine & .610{\tiny$\pm$.010} & \textbf{.820}{\tiny$\pm$.010} \\
ortho & \textbf{.712}{\tiny$\pm$.010} & \textbf{.820}{\tiny$\pm$.010} \\
\bottomrule
\end{tabular}
\end{table}
"""
    )


def test_latex_best_may_be_the_smallest_and_numbers_per_cent():
    def text(best):
        return latex.latex_table(ROWS, best=best, spread="none", scale=100, digits=2)

    assert r"affine & \textbf{61.00} & 82.04 \\" in text("min")
    assert r"ortho & 71.20 & \textbf{81.96} \\" in text("min")
    assert r"ortho & \textbf{71.20} & 81.96 \\" in text("max")
    assert r"ortho & 71.20 & 81.96 \\" in text("none")
    assert r"\begin{table}" not in text("max")


def test_latex_intervals_parts_gaps_and_undefined_scores():
    rows = [
        row("affine", 10, 0.7, lower=0.65, upper=0.74),
        row("ortho", 10, math.nan, lower=math.nan, upper=math.nan),
        row("ortho", 20, 0.5, lower=0.4, upper=0.6, pair=("stitching", "a_b", "c&d")),
    ]
    text = latex.latex_table(rows, spread="interval", digits=2)
    assert r"affine & \textbf{.70} [.65, .74] &  \\" in text
    assert r"ortho & -- &  \\" in text
    assert r"ortho &  & \textbf{.50} [.40, .60] \\" in text
    assert r"\multicolumn{3}{l}{\emph{stitching: a\_b $\rightarrow$ c\&d}} \\" in text
    assert text.count(r"\midrule") == 2


def test_latex_controls_are_never_bold():
    rows = [row("ortho", 10, 0.4), row("shuffled", 10, 0.4), row("shuffled ortho", 10, 0.5)]
    text = latex.latex_table(rows, spread="none", digits=2)
    assert r"ortho & \textbf{.40} \\" in text
    assert text.count("textbf") == 1


def test_latex_table_without_counts_has_one_column():
    text = latex.latex_table([row("a", None, 0.2), row("b", None, 0.4)], spread="none")
    assert "method & macro AUROC \\\\\n" in text
    assert "b & \\textbf{.400} \\\\\n" in text


def test_latex_numbers_below_one_have_no_leading_zero():
    rows = [row("a", 10, -0.25), row("a", 20, 1.0), row("a", 50, 10.5)]
    text = latex.latex_table(rows, spread="none", best="none", digits=2)
    assert r"a & -.25 & 1.00 & 10.50 \\" in text


def test_latex_text_has_no_active_characters():
    text = latex.latex_text("a_b & 5% $x$ #1 {y} \\cmd ~ ^ [opt] *\n\n<|>")
    left = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\{[][*]\}", "", text)
    assert not set("\\{}$&#^_%~[]*<>|\n") & set(left)
    assert text.startswith(r"a\_b \& 5\% \$x\$ \#1 \{y\} \textbackslash{}cmd")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "rows must be those of one metric; got none"),
        ([*ROWS, row("affine", 10, 0.5, metric="accuracy")], {}, "auroc, accuracy"),
        (ROWS, {"spread": "interval"}, "'upper bound' has no lower and upper"),
        (ROWS, {"spread": "sem"}, "spread must be one of 'std', 'interval', 'none'"),
        (ROWS, {"best": "most"}, "best must be one of"),
        (ROWS, {"label": "tab}x"}, "label must be of letters"),
    ],
)
def test_latex_mistakes_are_named(rows, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        latex.latex_table(rows, **options)


# Tables


def test_summary_tables_have_one_per_metric_and_pair():
    rows = [*ROWS, row("affine", None, 0.5, metric="accuracy", seeds=1)]
    first, second = tables.summary_tables(rows)
    assert first[:3] == (
        "zero-shot: vit → bert (macro AUROC, mean ± std)",
        ["anchors", "10", "100"],
        [
            ("upper bound", "0.950", ""),
            ("affine", "0.610±0.010", "0.820±0.010"),
            ("ortho", "0.712±0.010", "0.820±0.010"),
        ],
    )
    assert second.header == ["method", "accuracy"]
    assert second.rows == [("affine", "0.500")]


def test_the_best_of_each_column_are_marked_by_a_rule_that_is_told():
    rows = [
        *ROWS,
        row("ridge", 10, 0.69, std=0.02),
        row("shuffled ortho", 10, 0.99),
        row("ridge", 100, math.nan),
    ]
    (table,) = tables.summary_tables(rows)
    # 10 anchors: 0.712 - 0.01 / √5 is above 0.69 + 0.02 / √5; 100: 0.8204 and 0.8196 are one.
    assert table.best == {(2, 1), (1, 2), (2, 2)}
    assert "one standard error" in table.note
    assert ("ridge", "0.690±0.020", "–") in table.rows
    ends = {"affine": (0.6, 0.705), "ortho": (0.7, 0.75)}
    for one in (rows := ROWS[1:3]):
        lower, upper = ends[one["method"]]
        rows = [*rows[1:], row(one["method"], 10, one["mean"], lower=lower, upper=upper)]
    (table,) = tables.summary_tables(rows)
    assert table.best == {(0, 1), (1, 1)}
    assert "intervals that overlap" in table.note
    (alone,) = tables.summary_tables([row("a", None, 0.2, seeds=1), row("b", None, 0.4, seeds=1)])
    assert alone.best == {(1, 1)}


def test_csv_has_intervals_only_where_rows_have_them(tmp_path):
    tables.write_csv(tmp_path / "a.csv", ROWS)
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == (
        "zero-shot,vit,bert,upper bound,,auroc,0.950000,0.010000,1"
    )
    tables.write_csv(tmp_path / "b.csv", [*ROWS, row("c", 5, 0.5, lower=0.25, upper=0.75)])
    lines = (tmp_path / "b.csv").read_text().splitlines()
    assert lines[0].endswith(",seeds,lower,upper")
    assert lines[1].endswith(",1,,")
    assert lines[-1].endswith(",0.500000,0.010000,5,0.250000,0.750000")
    tables.write_csv(tmp_path / "c.csv", [row("c", 5, 1.25e-9), row("c", 9, float("nan"))])
    small, undefined = (tmp_path / "c.csv").read_text().splitlines()[1:]
    assert small.endswith(",1.25e-09,0.010000,5")
    assert undefined.endswith(",nan,0.010000,5")


# Figures


def score(**changes) -> Any:
    values = {"method": "affine", "label": "Edema", "value": 0.7, "lower": 0.6, "upper": 0.8}
    return values | changes


MATRIX = [
    row(method, 10, value, pair=("p", *pair))
    for method, value in {"affine": 0.5, "ortho": 0.7}.items()
    for pair in (("vit $_a", "bert"), ("bert", "vit $_a"))
]


def some_figures():
    scores = [score(), score(method="ortho", value=0.5), score(label="Effusion")]
    return {
        "curves": lambda: figures.anchor_curves(ROWS, title="cost $5 and $6"),
        "classes": lambda: figures.class_scores(scores, metric="auroc", chance=0.5),
        "matrix": lambda: figures.score_matrices(MATRIX),
    }


@pytest.mark.parametrize("name", some(some_figures(), 3))
def test_figures_are_equal_bytes_each_time_whatever_the_settings_of_the_user(name):
    import matplotlib

    make = some_figures()[name]
    first = {f: to_bytes(make(), f) for f in ("png", "svg", "pdf")}
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        assert {f: to_bytes(make(), f) for f in first} == first


def test_curves_have_a_panel_per_pair_in_one_look():
    other = ("stitching", "vit", "dino")
    rows = [*ROWS, row("ortho", 20, 0.6, pair=other), row("shuffled ortho", 20, 0.6, pair=other)]
    figure: Any = figures.anchor_curves(rows, references={"chance": 0.5})
    first, second = figure.axes
    assert first.get_xscale() == second.get_xscale() == "log"
    assert first.get_title() == "zero-shot\nvit → bert"
    colours = [
        {line.get_label(): line.get_color() for line in axis.get_lines()}["ortho"]
        for axis in figure.axes
    ]
    assert colours[0] == colours[1]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names))
    assert {"chance", "upper bound", "dotted: wrong pairs", "band: ± 1 std"} <= set(names)


@pytest.mark.parametrize("name", ["curves", "classes"])
def test_the_legend_is_clear_of_the_axes(name):
    figure = some_figures()[name]()
    (legend,) = figure.legends
    top = legend.get_window_extent().y1
    axes: Any = figure.axes
    assert all(axis.get_tightbbox().y0 >= top for axis in axes)


def test_unused_panels_are_hidden():
    rows = [row("affine", 10, 0.5, pair=("p", "a", str(i))) for i in range(3)]
    axes = figures.anchor_curves(rows, columns=2).axes
    assert [axis.get_visible() for axis in axes] == [True, True, True, False]
    assert [axis.get_xlabel() for axis in axes[:3]] == ["", "anchors", "anchors"]


def test_many_classes_are_continued_in_further_columns():
    labels = [f"class {i}" for i in range(26)]
    methods = [f"method {i}" for i in range(8)]
    scores = [score(method=method, label=label) for label in labels for method in methods]
    figure = figures.class_scores(scores, metric="auroc", chance=0.5)
    axes: Any = figure.axes
    assert len(axes) > 1
    assert [t.get_text() for axis in axes for t in axis.get_yticklabels()] == labels
    assert figure.get_figheight() < figures.HIGHEST + 1.5
    assert len({axis.get_ylim() for axis in axes}) == len({axis.get_xlim() for axis in axes}) == 1
    assert [t.get_text() for t in figure.legends[0].get_texts()].count("method 0") == 1


def test_matrices_are_in_one_scale_without_controls():
    rows = [*MATRIX, *({**r, "method": "shuffled ortho", "mean": 0.1} for r in MATRIX[2:])]
    *axes, bar = figures.score_matrices(rows).axes
    assert [axis.get_title() for axis in axes] == ["affine\n10 anchors", "ortho\n10 anchors"]
    assert [[t.get_text() for t in axis.texts] for axis in axes] == [["0.50"] * 2, ["0.70"] * 2]
    assert bar.get_ylim() == pytest.approx((0.5, 0.7))
    with pytest.raises(ValueError, match="there is nothing to draw"):
        figures.score_matrices(rows[4:])


def test_many_matrices_take_several_rows():
    names = [f"encoder {i}" for i in range(8)]
    rows = [
        row(f"method {i}", 10, i / 5, pair=("p", source, target))
        for i in range(3)
        for source in names
        for target in names
    ]
    *axes, _ = figures.score_matrices(rows).axes
    places = [axis.get_position() for axis in axes]
    assert places[0].y0 > places[-1].y1
    assert [len(axis.texts) for axis in axes] == [64] * 3


# HTML


class Page(HTMLParser):
    """Tags with their attributes, text, and a check that every tag is closed in order."""

    VOID = {"meta", "img", "input", "!doctype"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


EVIL = "<script>alert(1)</script> & \"q\" 'x'"


@pytest.fixture(scope="module")
def pictures():
    """A PNG and an SVG."""
    figure = figures.anchor_curves(ROWS)
    return to_bytes(figure), to_bytes(figure, "svg")


def write_page(path, pictures):
    section = html.Section(
        EVIL,
        f"First {EVIL}\n\nSecond",
        [*tables.summary_tables(ROWS), tables.Table(EVIL, [EVIL, "b"], [[EVIL, EVIL]])],
        [html.Picture(EVIL, pictures[0]), html.Picture("vector", pictures[1])],
    )
    one, other = ({"counts": [n, 100], EVIL: EVIL, "inner": {"k": n}} for n in (10, 20))
    html.html_report(
        path,
        EVIL,
        [section, html.Section("whole", parts=[section])],
        [
            html.values_table("Settings", {EVIL: one, "b": other}),
            html.values_table("Environment", dict.fromkeys("ab", {"versions": {"jax": "0.8"}})),
        ],
        doubts={"": [], EVIL: [EVIL, "few draws"]},
        command=["python", "zero_shot.py", "--out", "a dir", "\udcff"],
    )


def test_html_report_is_one_file_with_all_of_it(tmp_path, pictures):
    write_page(tmp_path / "report.html", pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    for shown in (
        "python zero_shot.py --out 'a dir' '\\udcff'",
        "10, 100",
        "versions.jax",
        "0.712±0.010",
        f"First {EVIL}",
    ):
        assert shown in text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    kinds, data = zip(*(image["src"].split(";base64,") for image in images), strict=True)
    assert kinds == ("data:image/png", "data:image/svg+xml") * 2
    assert tuple(base64.b64decode(part) for part in data) == pictures * 2
    assert images[0]["alt"] == EVIL
    assert text.index("few draws") < text.index("First")  # doubts are on top
    assert f"name{EVIL}b" in text  # a column of settings for each run
    assert text.endswith("namevalue\n\nversions.jax0.8\n\n\n\n\n\n")  # one if all are equal


def test_html_report_escapes_text_and_loads_nothing(tmp_path, pictures):
    write_page(tmp_path / "report.html", pictures)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in page.tags)
    # The contents have a link to every part, and each name is there once.
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert links == ["#s0", "#s1", "#s1-0", "#made"]
    assert len(set(names)) == len(names)
    assert {link.removeprefix("#") for link in links} <= set(names)
    heads = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert heads == ["h1", "h2", "h2", "h2", "h2", "h3", "h2"]
    assert "url(" not in content
    assert "@import" not in content
    assert "prefers-color-scheme: dark" in content
    write_page(tmp_path / "again.html", pictures)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (html.Section("s", pictures=[html.Picture("roc", b"%PDF-1.4")]), "picture 'roc'"),
        (html.Section("s", tables=[tables.Table("t", ["a", "b"], [["x"]])]), "has 1 cells"),
    ],
)
def test_html_mistakes_are_named_and_nothing_is_written(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        html.html_report(tmp_path / "report.html", "t", [section])
    assert not list(tmp_path.iterdir())


def test_html_report_names_the_command_of_this_process(tmp_path):
    made = html.values_table("Environment", {"": report.environment()})
    html.html_report(tmp_path / "report.html", "t", [], [made])
    text = "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert sys.orig_argv[-1] in text
    assert report.environment()["versions"]["jax"] in text


# Resumable cells

CELLS = [["vit", "bert", 10], ["vit", "bert", 20], ["dino", "bert", 10]]
SETTINGS = {"seeds": 5, "solver": {"ridge": math.nan, "center": True}}


class Compute:
    """Counts calls; fails at the call of number `fail`."""

    def __init__(self, fail=None):
        self.calls, self.fail = [], fail

    def __call__(self, cell):
        if len(self.calls) == self.fail:
            raise KeyboardInterrupt
        self.calls.append(cell)
        return {"auroc": len(cell[0]) / cell[2], "nothing": math.nan, "pair": (1, 2)}


def expected():
    return [{"auroc": len(c[0]) / c[2], "pair": [1, 2]} for c in CELLS]


def results(compute, path, given=CELLS, settings=SETTINGS):
    found = cells.run_cells(given, compute, path, settings=settings)
    assert all(math.isnan(result.pop("nothing")) for result in found)
    return found


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "cells.jsonl"
    with pytest.raises(KeyboardInterrupt):
        results(Compute(fail=2), path)
    second = Compute()
    assert results(second, path) == expected()
    assert second.calls == CELLS[2:]
    third = Compute()
    assert results(third, path, list(reversed(CELLS))) == expected()[::-1]
    assert results(third, path, [*CELLS, ["new", "bert", 5]])[-1]["auroc"] == 0.6
    assert third.calls == [["new", "bert", 5]]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_broken_last_line_is_computed_again(tmp_path, kept):
    path = tmp_path / "cells.jsonl"
    results(Compute(), path)
    whole = path.read_bytes()
    *lines, last = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:kept])
    compute = Compute()
    assert results(compute, path) == expected()
    assert compute.calls == CELLS[2:]
    assert path.read_bytes() == whole


def test_results_are_on_disk_before_the_next_cell(tmp_path):
    path = tmp_path / "cells.jsonl"
    seen = []

    def compute(cell):
        seen.append([json.loads(line)["cell"] for line in path.read_text().splitlines()[1:]])
        return 0

    assert cells.run_cells(CELLS, compute, path, settings={}) == [0, 0, 0]
    assert seen == [[], CELLS[:1], CELLS[:2]]


def test_a_full_disk_names_the_file_of_the_cells(tmp_path, monkeypatch):
    path = tmp_path / "cells.jsonl"

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as the system says it

    def compute(cell):
        monkeypatch.setattr(os, "fsync", full)
        return 0

    with pytest.raises(OSError, match=r"No space left on device: '.*cells\.jsonl'"):
        cells.run_cells(CELLS, compute, path, settings={})


def test_a_killed_process_leaves_a_file_to_go_on_with(tmp_path):
    path = tmp_path / "cells.jsonl"
    program = (
        "import os\nfrom semalign_jax.studies import cells\n"
        "def compute(cell):\n"
        "    if cell == 2: os._exit(9)\n"
        "    return cell\n"
        f"cells.run_cells([0, 1, 2], compute, {str(path)!r}, settings={{}})\n"
    )
    paths = [str(p) for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}"], check=False
    )
    assert done.returncode == 9
    calls = []
    assert cells.run_cells([0, 1, 2], lambda c: calls.append(c), path, settings={}) == [0, 1, None]
    assert calls == [2]


def test_other_settings_are_refused_with_what_differs(tmp_path):
    path = tmp_path / "cells.jsonl"
    results(Compute(), path)
    before = path.read_bytes()
    other = {"seeds": 9, "solver": {"ridge": math.nan, "center": True, "scale": None}}
    message = r"\(seeds: 5 there, 9 now; solver.scale: not set there, null now\)"
    with pytest.raises(ValueError, match=message):
        results(Compute(), path, settings=other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "line 1, has format None, expected 'semalign_jax.cells'"),
        (
            lambda lines: ["{}\n", *lines[1:]],
            "line 1, has format None, expected 'semalign_jax.cells'",
        ),
        (lambda lines: [lines[0].replace('version": 1', 'version": 7')], "version 7; this release"),
        (lambda lines: [lines[0], lines[1][:9] + "\n", lines[2]], "line 2 is damaged"),
    ],
)
def test_files_that_are_damaged_or_foreign_are_kept_and_named(tmp_path, change, message):
    path = tmp_path / "cells.jsonl"
    results(Compute(), path)
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        results(Compute(), path)
    assert path.read_bytes() == before


def test_mistakes_of_the_caller_are_named(tmp_path):
    path = tmp_path / "cells.jsonl"
    with pytest.raises(ValueError, match=r'\["vit", "bert", 10\] is there more than once'):
        results(Compute(), path, [CELLS[0], tuple(CELLS[0])])
    with pytest.raises(TypeError, match="settings must be of JSON values"):
        results(Compute(), path, settings={"path": tmp_path})
    assert not path.exists()
    with pytest.raises(TypeError, match='the result of "a" must be of JSON values'):
        cells.run_cells(["a"], lambda _: np.float32(1), path, settings={})
    assert cells.run_cells(["a"], lambda _: 1, path, settings={}) == [1]
    assert cells.run_cells([], lambda _: 1, path, settings={}) == []


def test_one_process_writes_at_a_time(tmp_path):
    path = tmp_path / "cells.jsonl"

    def compute(cell):
        with pytest.raises(RuntimeError, match="another process is writing"):
            cells.run_cells(["b"], lambda _: 2, path, settings={})
        return 1

    assert cells.run_cells(["a"], compute, path, settings={}) == [1]
    assert cells.run_cells(["b"], lambda _: 2, path, settings={}) == [2]
