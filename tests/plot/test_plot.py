"""Figures: what is on the axes, and that it can be told apart."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, some
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from semalign_jax import anchor_sweep, maps, metrics, plot, sweep_pairs


def row(method, count, mean, *, pair=("zero-shot", "vit", "bert"), metric="auroc", **others) -> Any:
    cell = dict(zip(("protocol", "source", "target"), pair, strict=True))
    scores = {"metric": metric, "mean": mean, "std": 0.01, "seeds": 5}
    return {**cell, "method": method, "anchors": count, **scores, **others}


def score(**changes) -> Any:
    values = {"method": "affine", "label": "Edema", "value": 0.7, "lower": 0.6, "upper": 0.8}
    return values | changes


OF_TWO_PAIRS = [score(protocol="p", source=s, target=t) for s, t in ("ab", "ba")]
OF_TWO_METRICS = [score(metric="auroc"), score(metric="f1", value=0.65)]
ROWS = [
    row("upper bound", None, 0.95, seeds=1),
    row("affine", 10, 0.61),
    row("ortho", 10, 0.712),
    row("affine", 100, 0.8204),
    row("ortho", 100, 0.8196),
]
X, Y = (np.asarray(part) for part in anchors(30, 5, 5))
DIAGNOSIS: Any = type("Diagnosis", (), {"counts": (10, 20), "curve": (0.1, 0.4)})()
MATRIX = [
    row("ortho", 10, value, pair=("p", *pair))
    for pair, value in {("a $", "b"): 0.61, ("b", "a $"): 0.3}.items()
]
MADE: Any = {
    "curves": lambda **o: plot.anchor_curves(ROWS, references={"chance": 0.5}, **o),
    "classes": lambda **o: plot.class_scores([score(), score(label="Mass $")], chance=0.5, **o),
    "matrix": lambda **o: plot.score_matrix(MATRIX, **o),
    "similarities": lambda **o: plot.similarity_histogram(X, Y, **o),
    "residuals": lambda **o: plot.residual_histogram(X, Y, **o),
    "learning": lambda **o: plot.learning_curve({"a": DIAGNOSIS}, **o),
    "spaces": lambda **o: plot.spaces(X, Y, **o),
}


def lines(axis):
    """Lines with data by their labels; those of controls, which have none, by colour."""
    with_data = [line for line in axis.get_lines() if len(line.get_xdata())]
    return {line.get_label(): line for line in with_data}


def legend(axis):
    found = axis.get_legend() or axis.figure.legends[0]
    return [text.get_text() for text in found.get_texts()]


@pytest.mark.parametrize("name", some(MADE, 3))
def test_a_figure_of_a_column_is_equal_bytes_each_time(name):
    import matplotlib

    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    first = MADE[name]()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        again = MADE[name]()
        assert matplotlib.rcParams["font.size"] == 20
        files = [{f: plot.to_bytes(ax, f) for f in starts} for ax in (first, again)]
    assert files[0] == files[1]
    assert all(files[0][format].startswith(start) for format, start in starts.items())
    pixels = imread(io.BytesIO(files[0]["png"]))[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert first.figure.get_figwidth() == 3.3
    sizes = {text.get_fontsize() for text in first.figure.findobj(Text)}
    assert sizes <= {8, 9}


@pytest.mark.parametrize("name", MADE)
def test_it_draws_on_the_axes_that_it_is_given(name):
    import matplotlib

    with matplotlib.rc_context({"font.size": 13}):
        figure = Figure()
        axis = figure.subplots()
        assert MADE[name](ax=axis) is axis
    assert axis.has_data()
    assert axis.xaxis.label.get_fontsize() == 13
    assert not figure.legends  # those of the figure are the user's


def test_curves_have_bands_of_intervals_or_deviations_and_the_legend_says_which():
    rows = [*ROWS, row("csa", 10, 0.5, lower=0.2, upper=0.9)]
    axis: Any = plot.anchor_curves(rows)
    assert axis.get_xscale() == "log"
    curves = lines(axis)
    assert list(curves["affine"].get_xdata()) == [10, 100]
    assert list(curves["affine"].get_ydata()) == [0.61, 0.8204]
    assert list(curves["upper bound"].get_ydata()) == [0.95, 0.95]
    low, high = (f(axis.collections[0].get_paths()[0].vertices[:, 1]) for f in (np.min, np.max))
    assert (low, high) == pytest.approx((0.60, 0.8304))
    for csa in axis.collections[2:]:  # of one count the band is a line
        band = csa.get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == (0.2, 0.9)
    assert legend(axis)[-1] == "band: interval or ± 1 std"
    assert legend(plot.anchor_curves(ROWS))[-1] == "band: ± 1 std"
    assert legend(plot.anchor_curves(rows[-1:]))[-1] == "band: interval"
    assert not any("band" in text for text in legend(plot.anchor_curves([row("a", 1, 1, std=0)])))


def test_dotted_is_what_was_fitted_to_wrong_pairs_and_nothing_else():
    """Whatever the number of references and methods, and whichever of them has a control."""
    without = [row(f"model {i}", None, 0.1 * i) for i in range(5)]
    methods = [row(f"method {i}", 10, 0.1 * i) for i in range(20)]
    controls = [row(name, 10, 0.5) for name in ("shuffled", "shuffled method 3", "shuffled (c)")]
    axis: Any = plot.anchor_curves([*without, *methods, *controls], references={"chance": 0.5})
    drawn = [line for line in axis.get_lines() if len(line.get_xdata())]
    dotted = [line for line in drawn if line.get_linestyle() == ":"]
    assert len(dotted) == 3
    assert "dotted: wrong pairs" in legend(axis)
    named = lines(axis)
    assert {"shuffled", "shuffled (c)"} <= set(named)
    control = next(line for line in dotted if line.get_label().startswith("_"))
    assert control.get_color() == named["method 3"].get_color()
    # No colour is there twice but that of a method and its control; no two pairs of these either.
    colours = [line.get_color() for line in drawn if line is not control]
    assert len(set(map(to_rgb, colours))) == len(colours) == 28
    for name, line in named.items():
        red, green, blue = to_rgb(line.get_color())
        grey = name.startswith("model") or name == "chance"
        assert (red == green == blue) == (grey or line.get_color() == "#000000")
    assert not any("dotted" in text for text in legend(plot.anchor_curves(ROWS)))


def test_legends_leave_out_no_name():
    rows = [row(name, count, 0.5) for name in ("_mine", "a_b", "$c") for count in (10, 100)]
    axis = plot.anchor_curves(rows, references={"_chance": 0.5})
    assert legend(axis)[:4] == [" _chance", " _mine", "a_b", r"\$c"]
    assert legend(plot.class_scores([score(method="_mine")])) == [" _mine"]
    assert legend(plot.learning_curve({"_a": DIAGNOSIS})) == [" _a"]


def test_looks_of_all_rows_make_several_axes_agree():
    looks = plot.looks([*ROWS, row("shuffled ortho", 10, 0.5)], ["chance"])
    part = [r for r in ROWS if r["method"] == "ortho"]
    assert lines(plot.anchor_curves(part))["ortho"].get_color() != looks["ortho"].color
    axis = plot.anchor_curves(part, looks=looks)
    points = plot.class_scores([score(method="ortho")], looks=looks).get_lines()[0]
    assert lines(axis)["ortho"].get_color() == points.get_color() == looks["ortho"].color
    assert looks["shuffled ortho"].control
    assert not looks["ortho"].control


def test_curves_of_sweeps():
    keys = jax.random.split(jax.random.key(0), 2)
    score_of = {"cosine": lambda m, _: jnp.mean(metrics.cosine_similarity(m(X), Y)), "map": _map}
    result = anchor_sweep(X, Y, (10, 20), keys, metrics=score_of, methods=["ortho"])
    axis: Any = plot.anchor_curves(result_of(result, "cosine"))
    values = np.asarray(result.values["cosine"])[0]
    np.testing.assert_allclose(lines(axis)["ortho"].get_ydata(), values.mean(-1), rtol=1e-6)
    assert axis.get_ylabel() == "cosine"
    assert lines(plot.anchor_curves(result)).keys() == lines(axis).keys()  # maps are no scores
    with pytest.raises(TypeError, match=r"its rows, of to_records\(\); got DataFrame"):
        plot.anchor_curves(result.to_pandas())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scores is empty"):
        plot.anchor_curves(result_of(result, "map"))


def _map(mapping, _):
    return mapping.weight


def result_of(result, name):
    return type(result)({name: result.values[name]}, result.counts, result.methods)


def test_matrix_has_the_scores_in_its_cells_and_the_upper_bound_on_its_diagonal():
    own = [row("upper bound", None, 0.9, pair=("p", "b", "a $"))]
    axis: Any = plot.score_matrix([*MATRIX, *own, row("affine", 10, 0.1, pair=("p", "a $", "b"))],
                                  "ortho")  # fmt: skip
    assert [(t.get_position(), t.get_text()) for t in axis.texts] == [
        ((0, 0), "0.90"), ((1, 0), "0.61"), ((0, 1), "0.30"),
    ]  # fmt: skip
    assert axis.get_title() == "ortho\n10 anchors"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("decoder", "encoder")


def test_classes_go_down_with_points_and_intervals_of_each_method():
    scores = [score(), score(method="shuffled affine", value=0.5, lower=0.55)]
    scores += [score(label="Mass"), score(method="naive", value=float("nan"))]
    axis: Any = plot.class_scores(scores, metric="auroc")
    assert [t.get_text() for t in axis.get_yticklabels()] == ["Edema", "Mass"]
    affine, control, *_ = axis.get_lines()
    assert list(affine.get_xdata()) == [0.7, 0.7]
    assert affine.get_ydata()[0] < control.get_ydata()[0] < 0.5 < affine.get_ydata()[1]
    assert list(axis.collections[1].get_segments()[0][:, 0]) == [0.55, 0.8]
    # A control has the colour of its method, and is hollow.
    assert control.get_color() == affine.get_color() == affine.get_markerfacecolor()
    assert control.get_markerfacecolor() == "white"
    assert legend(axis) == ["affine", "naive", "hollow: wrong pairs"]
    axis = plot.class_scores(OF_TWO_METRICS, metric="f1")
    assert list(axis.get_lines()[0].get_xdata()) == [0.65]
    assert axis.get_xlabel() == "F1"
    many: Any = plot.class_scores([score(label=str(i)) for i in range(30)])
    assert many.figure.get_figheight() > axis.figure.get_figheight() + 3


def test_histograms_tell_matched_from_unmatched_rows():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(200, 5)) + 3
    mapped = target + 0.1 * rng.normal(size=target.shape)
    texts = legend(plot.similarity_histogram(mapped, target))
    medians = [float(re.findall(r"median (.*)\)", text)[0]) for text in texts]
    cosines = np.asarray(metrics.cosine_similarity(mapped, target))
    wrong = cosines[~np.eye(200, dtype=bool)]
    expected = np.median(np.diag(cosines)), np.median(wrong)
    assert medians == pytest.approx(expected, abs=0.01)
    texts = legend(plot.residual_histogram(mapped, target))
    medians = [float(re.findall(r"median (.*)\)", text)[0]) for text in texts]
    spread = np.linalg.norm(target - target.mean(0), axis=1)
    distances = np.linalg.norm(mapped - target, axis=1), spread
    expected = [np.median(part) / np.sqrt(np.mean(spread**2)) for part in distances]
    assert medians == pytest.approx(expected, abs=0.01)
    # Targets of the same class beside each other change nothing: wrong ones are from anywhere.
    order = np.argsort(target[:, 0])
    first, again = (
        plot.similarity_histogram(mapped[at], target[at]) for at in (np.arange(200), order)
    )
    medians = [float(re.findall(r"median (.*)\)", legend(ax)[1])[0]) for ax in (first, again)]
    assert medians[0] == pytest.approx(medians[1], abs=0.01)


def test_learning_curves_are_those_of_the_diagnosis():
    found = maps.diagnose(X, Y)
    axis: Any = plot.learning_curve(found)
    (line,) = axis.get_lines()
    assert tuple(line.get_xdata()) == found.counts
    assert tuple(line.get_ydata()) == found.curve
    assert not axis.figure.legends
    assert legend(plot.learning_curve({"a": found, "b": found})) == ["a", "b"]


def test_spaces_are_shown_by_components_of_the_targets():
    target = np.diag([5.0, 3.0, 0.1, 0.1]) @ np.random.default_rng(0).normal(size=(4, 30))
    axis: Any = plot.spaces(target.T, target.T)
    rows, goals = axis.collections
    np.testing.assert_allclose(rows.get_offsets(), goals.get_offsets())
    shares = np.linalg.svd(target.T - target.T.mean(0), compute_uv=False) ** 2
    assert f"({shares[0] / shares.sum():.0%})" in axis.get_xlabel()
    spread = np.std(np.asarray(goals.get_offsets()), axis=0)
    np.testing.assert_allclose(spread**2 * 30, shares[:2])
    # Wider rows are cut, as narrower ones are padded.
    wider: Any = plot.spaces(np.hstack([target.T, target.T]), target.T)
    np.testing.assert_allclose(wider.collections[0].get_offsets(), rows.get_offsets())
    labelled: Any = plot.spaces(target.T, target.T, labels=np.arange(30) % 2)
    assert legend(labelled) == ["class 0", "class 1", "hollow: targets"]
    drawn = [part for part in labelled.collections if len(part.get_offsets())]
    assert [len(part.get_offsets()) for part in drawn] == [15] * 4
    colours = [tuple(part.get_edgecolor()[0]) for part in drawn]
    assert colours[0] == colours[1] != colours[2] == colours[3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.to_bytes(Figure(), "jpg"), "one of png, svg, pdf"),
        (lambda: plot.anchor_curves([]), "scores is empty"),
        (lambda: plot.anchor_curves([row("affine", 0, 0.5)]), "anchors must be positive"),
        (lambda: plot.anchor_curves(MATRIX), "one pair of encoders; got 2: a $ → b, b → a $"),
        (lambda: plot.anchor_curves([*ROWS, ROWS[1]]), "'affine' has two rows of 10 anchors"),
        (lambda: plot.anchor_curves([*ROWS, row("a", 1, 1, metric="f1")]), "one of auroc, f1"),
        (lambda: plot.anchor_curves(ROWS, metric="F1"), "metric 'F1' is not in scores"),
        (lambda: plot.score_matrix(ROWS), "method must say which is drawn, one of affine, ortho"),
        (lambda: plot.score_matrix(ROWS, "x"), "no 'x'; methods are affine, ortho"),
        (lambda: plot.score_matrix(ROWS, "ortho", anchors=7), "'ortho' with 7 anchors"),
        (lambda: plot.score_matrix([row("a", 1, np.nan)]), "none is finite"),
        (lambda: plot.class_scores([]), "scores is empty"),
        (lambda: plot.class_scores([score(metric="auroc")], metric="f1"), "'f1' is not in scores"),
        (lambda: plot.class_scores(OF_TWO_METRICS), "metric must say which is drawn, one of auroc"),
        (lambda: plot.class_scores([score()], looks={}), "looks lacks affine: make it of all rows"),
        (lambda: plot.anchor_curves(ROWS, references={"c": 1}, looks=plot.looks(ROWS)), "lacks c"),
        (lambda: plot.class_scores([score(), score()]), "two values for class 'Edema'"),
        (lambda: plot.class_scores(OF_TWO_PAIRS), "one pair of encoders; got 2: a → b, b → a"),
        (lambda: plot.class_scores([score(lower=0.9)]), "lower 0.9 is above upper 0.8"),
        (lambda: plot.similarity_histogram(X, Y[:, :3]), "must have the same shape"),
        (lambda: plot.similarity_histogram(X[:1], Y[:1]), "1 row; at least 2 are needed"),
        (lambda: plot.residual_histogram(X, np.zeros_like(Y)), "all rows are equal"),
        (lambda: plot.residual_histogram(X * np.nan, Y), "mapped holds NaN"),
        (lambda: plot.residual_histogram(X, Y, bins=0), "bins"),
        (lambda: plot.learning_curve({}), "diagnosis is empty"),
        (lambda: plot.spaces(X[:2], Y[:2]), "at least 3 are needed"),
        (lambda: plot.spaces(X, Y, labels=[1]), "labels must have shape (30,); got (1,)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.slow  # compiles as users do
def test_the_page_of_the_documentation_runs_as_printed(tmp_path, monkeypatch):
    page = (Path(plot.__file__).parents[2] / "docs" / "plotting.md").read_text()
    first, second, third = (part.split("```")[0] for part in page.split("```python\n")[1:])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(first + second, names)
    assert len(names["figure"].axes) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"similarity.pdf", "similarity.png"}
    rows = [row("ortho", 10, 0.7, pair=("p", "vit", "dino"), metric="auroc")]
    classes = [score(source="vit", target="dino", anchors=10)]
    found = {"rows": rows, "classes": classes}
    monkeypatch.setattr("semalign_jax.studies.outputs.load_results", lambda _: found)
    exec(third, {})


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'semalign_jax[plot]'")):
        plot.anchor_curves(ROWS)


def test_matrix_of_a_sweep_over_pairs():
    rows = {"a": X, "b": Y}
    score_of = {"n": lambda mapped, _: jnp.sum(mapped)}
    readouts = {name: maps.identity_map(5, 5, dtype=X.dtype) for name in rows}
    keys = jax.random.split(jax.random.key(0), 1)
    result = sweep_pairs(
        rows, [10], keys, readouts=readouts, test=rows, metrics=score_of, methods=["ortho"]
    )
    axis: Any = plot.score_matrix(result)
    assert len(axis.texts) == 2
    with pytest.raises(ValueError, match="one pair of encoders; got 2: a → b, b → a"):
        plot.anchor_curves(result)
