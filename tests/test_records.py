"""Results by name: records, frames, summaries, and how they are shown."""

from typing import Any

import jax
import numpy as np
import pandas
import pytest

import semalign_jax as sa
from semalign_jax.stitching import evaluate_stitching_pairs

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((60, 5)).astype(np.float32) for _ in range(2))
LABELS = np.arange(60) % 3
KEYS = jax.random.split(jax.random.key(0), 3)


def cosine(mapping, data):
    return sa.metrics.mean_cosine(mapping(data[0]), data[1])


def fitted(mapping, data):
    return mapping


@pytest.fixture(scope="module")
def swept():
    metrics = {"cosine": cosine, "map": fitted}
    return sa.anchor_sweep(
        X, Y, [10, 20], KEYS, metrics=metrics, eval_data=(X, Y), methods=["affine", "ortho"]
    )


def test_a_sweep_is_records_a_frame_and_means(swept):
    records = swept.to_records()
    assert len(records) == 2 * 2 * 3  # maps are no scores
    assert records[7] == {
        "metric": "cosine", "method": "ortho", "anchors": 10, "seed": 1,
        "value": float(swept.values["cosine"][1, 0, 1]),
    }  # fmt: skip
    frame = swept.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["metric", "method", "anchors", "seed", "value"]
    means = frame.groupby(["method", "anchors"])["value"].agg(["mean", "std"])
    for row in swept.summary():
        expected = means.loc[(row["method"], row["anchors"])]
        assert (row["mean"], row["std"]) == pytest.approx(tuple(expected), rel=1e-6)
        assert row["seeds"] == 3


def test_means_over_classes_are_records_too():
    def score(mapping, data):
        return sa.metrics.macro_mean(mapping(data[0])[0])

    found = sa.anchor_sweep(
        X, Y, [10, 20], KEYS, metrics={"mean": score}, eval_data=(X, Y), methods=["affine"]
    )
    values = [row["value"] for row in found.to_records()]
    np.testing.assert_array_equal(values, np.asarray(found.values["mean"].value).ravel())


def test_scores_are_selected_by_name(swept):
    chosen = swept.select(method="ortho", anchors=20)
    expected = swept.values["cosine"][1, 1]
    np.testing.assert_allclose([row["value"] for row in chosen], expected, rtol=1e-6)
    with pytest.raises(KeyError, match="did you mean 'method'"):
        swept.select(methd="ortho")
    with pytest.raises(KeyError, match="no record has anchors 15; there are"):
        swept.select(anchors=15)


def test_results_are_short_and_notebooks_see_a_table(swept):
    assert repr(swept) == "<SweepResult: cosine, map of affine, ortho, anchors 10 to 20>"
    html = swept._repr_html_()
    assert html.count("<tr>") == 3
    assert f"{swept.summary()[0]['mean']:.3f}±" in html
    traced = []

    def traced_repr(counts):
        found = sa.anchor_sweep(
            X, Y, counts, KEYS, metrics={"c": cosine}, eval_data=(X, Y), methods=["affine"],
            route="masks",
        )  # fmt: skip
        traced.append(repr(found))
        return found.values["c"]

    jax.eval_shape(traced_repr, jax.ShapeDtypeStruct((2,), np.int32))
    assert traced == ["<SweepResult: c of affine, traced anchor counts>"]


def test_pairs_and_stitching_have_names_of_encoders():
    sides = {"a": X, "b": Y}
    pairs = sa.sweep_pairs(
        sides, [10], KEYS, test=sides, metrics={"accuracy": lambda scores, y: scores.mean()},
        readouts={name: sa.fit_head(rows, LABELS) for name, rows in sides.items()},
        methods=["affine"],
    )  # fmt: skip
    first = pairs.to_records()[0]
    assert (first["source"], first["target"], first["seed"]) == (*pairs.pairs[0], 0)
    assert first["value"] == pytest.approx(float(pairs.values["accuracy"][0, 0, 0, 0]))
    assert repr(pairs) == "<PairSweepResult: accuracy of affine, 2 pairs of encoders, anchors 10>"
    matrix = evaluate_stitching_pairs(
        sides, LABELS, sides, LABELS, 3, [10, 20], KEYS, methods=["affine"]
    )
    rows = matrix.summary()
    methods = [row["method"] for row in rows if row["source"] == "a" and row["target"] == "b"]
    assert methods == ["naive", "affine", "affine", "shuffled affine", "shuffled affine"]
    bound = matrix.select(method="upper bound", target="b")
    assert bound[0]["value"] == pytest.approx(float(matrix.upper_bound["accuracy"].value[1]))
    mapped = matrix.select(method="affine", source="a", target="b", anchors=20, seed=2)
    value = matrix.aligned["accuracy"].value[0, 1, 0, 1, 2]
    assert [row["value"] for row in mapped] == pytest.approx([float(value)])
    assert repr(matrix).startswith("<StitchingMatrix: accuracy of a, b, affine")
    assert "upper bound" in matrix._repr_html_()


def test_what_auto_chose_is_a_line():
    _, info = sa.fit_auto(X, Y)
    assert repr(info).startswith("AutoInfo(prior=")
    assert len(repr(info)) < 100
    shown = []
    jax.eval_shape(lambda x, y: shown.append(repr(sa.fit_auto(x, y)[1])), X, Y)
    assert shown == ["AutoInfo(traced)"]


def test_labels_may_be_text_and_classes_are_counted():
    names = np.array(["edema", "mass", "cyst"])[LABELS]
    expected = sa.fit_head(X, np.unique(names, return_inverse=True)[1], 3)
    kinds: tuple[Any, ...] = (names, list(names), names.astype(object))
    for labels in kinds:
        found = sa.fit_head(X, labels)
        np.testing.assert_array_equal(found.weight, expected.weight)
    with pytest.raises(TypeError, match="labels must be integers"):  # "10" is before "2"
        sa.fit_head(X, LABELS.astype(str), 3)
    columns = np.stack([LABELS == 0, LABELS == 1], axis=1)
    assert sa.fit_head(X, columns, loss="binary").d_out == 2
    with pytest.raises(TypeError, match=r"labels.astype\(int\)"):
        sa.fit_head(X, LABELS.astype(float))
    with pytest.raises(TypeError, match="num_classes is needed where labels are traced"):
        jax.jit(lambda labels: sa.fit_head(X, labels).weight)(LABELS)
