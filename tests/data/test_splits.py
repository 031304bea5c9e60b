"""Splits by patient and anchor sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import semalign_jax as sa
from semalign_jax.data import ImageTextDataset, check_disjoint, patient_split, sample_anchors

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
RNG = np.random.default_rng(0)


def dataset(patients, labels=None, views=None):
    n = len(patients)
    labels = np.zeros((n, 0), np.int8) if labels is None else np.asarray(labels)
    return ImageTextDataset(
        name="toy",
        ids=tuple(str(i) for i in range(n)),
        patients=tuple(patients),
        studies=tuple(str(i) for i in range(n)),
        images=("a.png",) * n,
        texts=("",) * n,
        splits=("",) * n,
        views=("",) * n if views is None else tuple(views),
        labels=labels,
        label_names=tuple(f"l{i}" for i in range(labels.shape[1])),
    )


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=120),
    st.integers(0, 5),
    st.sampled_from([None, "classes", "table"]),
)
def test_splits_are_disjoint_and_whole(numbers, seed, stratify):
    patients = [f"p{number}" for number in numbers]
    by = {
        None: None,
        "classes": np.array([number % 3 for number in numbers]),
        "table": np.array([[number % 2, i % 5 == 0] for i, number in enumerate(numbers)]),
    }[stratify]
    if len(set(patients)) < 3:
        with pytest.raises(ValueError, match="patients cannot be split into 3 parts"):
            patient_split(patients, FRACTIONS, seed, stratify=by)
        return
    split = patient_split(patients, FRACTIONS, seed, stratify=by)
    assert list(split.parts) == ["train", "val", "test"]
    rows = np.concatenate(list(split.parts.values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(patients)))
    for name, part in split.parts.items():
        assert part.size
        np.testing.assert_array_equal(part, np.sort(part))
        others = [patients[i] for other in split.parts if other != name for i in split.parts[other]]
        check_disjoint({"part": [patients[i] for i in part], "others": others})


def test_fractions_are_met():
    patients = [f"p{i // 3}" for i in range(3000)]
    split = patient_split(patients, FRACTIONS, 0)
    sizes = [split.parts[name].size / 3000 for name in FRACTIONS]
    np.testing.assert_allclose(sizes, list(FRACTIONS.values()), atol=0.002)
    assert split.seed == 0
    assert split.fractions == FRACTIONS


def test_strata_are_met():
    """A rare label of 60 images of 30 patients: every part gets its share of it."""
    n = 3000
    patients = np.array([f"p{i // 2}" for i in range(n)])
    labels = np.stack([np.arange(n) < 60, np.arange(n) % 4 < 2], axis=1).astype(int)
    split = patient_split(patients.tolist(), FRACTIONS, 3, stratify=labels)
    for column in labels.T:
        shares = [column[rows].sum() / column.sum() for rows in split.parts.values()]
        np.testing.assert_allclose(shares, list(FRACTIONS.values()), atol=0.05)
    classes = np.where(np.arange(n) < 60, 7, -1)
    split = patient_split(patients.tolist(), FRACTIONS, 3, stratify=classes)
    shares = [(classes[rows] == 7).sum() / 60 for rows in split.parts.values()]
    np.testing.assert_allclose(shares, list(FRACTIONS.values()), atol=0.04)
    # Without strata this seed does not meet them, so the test can fail.
    plain = patient_split(patients.tolist(), FRACTIONS, 3)
    shares = [labels[rows, 0].sum() / 60 for rows in plain.parts.values()]
    assert np.abs(np.array(shares) - list(FRACTIONS.values())).max() > 0.05


def test_splits_depend_on_the_seed_alone():
    patients = [f"p{i}" for i in range(50)]
    first = patient_split(patients, FRACTIONS, 1)
    again = patient_split(patients, FRACTIONS, 1)
    other = patient_split(patients, FRACTIONS, 2)
    for name in FRACTIONS:
        np.testing.assert_array_equal(first.parts[name], again.parts[name])
    assert not np.array_equal(first.parts["train"], other.parts["train"])


def test_split_arguments_are_checked():
    patients = ["a", "b", "c", "d"]
    for fractions in ({}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": np.nan, "b": 0.5}):
        with pytest.raises(ValueError, match="fractions must be positive and sum to 1"):
            patient_split(patients, fractions, 0)
    for empty in ([], "", "abc"):
        with pytest.raises(ValueError, match="patients must be a sequence"):
            patient_split(empty, FRACTIONS, 0)
    with pytest.raises(TypeError, match="seed must be an int"):
        patient_split(patients, FRACTIONS, 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seed must be >= 0"):
        patient_split(patients, FRACTIONS, -1)
    with pytest.raises(TypeError, match="stratify must hold integers or booleans"):
        patient_split(patients, FRACTIONS, 0, stratify=["x"] * 4)
    with pytest.raises(ValueError, match=r"shape \(4,\) or \(4, classes\); got \(3,\)"):
        patient_split(patients, FRACTIONS, 0, stratify=[1, 2, 3])
    with pytest.raises(TypeError, match="stratify is a masked array"):
        patient_split(patients, FRACTIONS, 0, stratify=np.ma.masked_equal([1, 0, 1, 0], 0))
    with pytest.raises(ValueError, match="patients: entry 3 is empty"):
        patient_split([1.0, 2.0, 3.0, np.nan], {"a": 0.5, "b": 0.5}, 0)
    one = patient_split(["7", "7.0", 7, 8.0], {"a": 0.5, "b": 0.5}, 0).parts
    assert sorted(map(len, one.values())) == [1, 3]
    with pytest.raises(ValueError, match="stratify must be 0 or 1"):
        patient_split(patients, FRACTIONS, 0, stratify=[[1], [0], [-1], [0]])


def test_check_disjoint():
    a = dataset(["p1", "p2", "p2"])
    check_disjoint({"a": a, "b": ["p3"], "c": []})
    with pytest.raises(ValueError, match="a and c have 1 patient in common: 'p2'"):
        check_disjoint({"a": a, "b": ["p3"], "c": {"p2", "p9"}})
    with pytest.raises(ValueError, match="a and drawn have 1 patient in common: 'p1'"):
        check_disjoint({"a": a, "drawn": sample_anchors(dataset(["p1"]), 1, 0)})
    with pytest.raises(ValueError, match="a and b have 3 ids in common: '0', '1', '2'"):
        check_disjoint({"a": a, "b": dataset(["q1", "q2", "q3"])})
    many = [f"p{i:03}" for i in range(40)]
    with pytest.raises(ValueError, match="40 patients .*: 'p000', .*'p004' and 35 more"):
        check_disjoint({"one": many, "other": many})
    with pytest.raises(TypeError, match="one: .* the string 'p1'"):
        check_disjoint({"one": "p1", "other": a})
    for one in ([7, 8], [7.0, 8.0], ["7", "8"], ["7.0"], np.array([7, 9], ">i8").astype(int),
                np.array([7], np.float32), {7}, [np.int64(7)], dataset([7.0]),
                (b"7",)):  # fmt: skip
        check_disjoint({"one": one, "other": ["007", "70", "7.5", 17]})
        for other in (["7"], dataset(["7.0"]), np.array([7.0])):
            with pytest.raises(ValueError, match=r"one and other have \d patients? in common: '7'"):
                check_disjoint({"one": one, "other": other})
    for wrong, message in (([1.5], "1.5 is no whole number"), ([None], "entry 0 is empty"),
                           ([np.nan], "is empty"), ([""], "is empty"), ([[7]], "list is neither"),
                           (np.array([2**25], np.float32), "store text"),
                           ([np.float32(2**24 + 1)], "store text"), ([2.0**53], "store text"),
                           ([True], "bool is neither"),
                           (np.ones((2, 2)), r"must have shape \[n\]")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_disjoint({"one": wrong, "other": a})
    with pytest.raises(TypeError, match="one is a masked array"):
        check_disjoint({"one": np.ma.masked_equal([1, 2], 2), "other": a})
    pairs = sa.zeroshot.AnchorPairs(range(3), ["p2", "p3", "p4"], np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="a and pairs have 1 patient in common"):
        check_disjoint({"a": a, "pairs": pairs})


@pytest.mark.parametrize("by", [None, "label", "view", "patient"])
def test_anchors(by):
    n = 200
    labels = np.where(RNG.random((n, 3)) < [0.5, 0.2, 0.05], 1, 0)
    views = np.where(np.arange(n) % 20 == 0, "LATERAL", "PA").tolist()
    data = dataset([f"p{i % 60}" for i in range(n)], labels, views)
    test_set = data.select(np.array([p in ("p1", "p2", "p3") for p in data.patients]))
    sample = sample_anchors(data, 40, 5, stratify_by=by, exclude_patients=test_set)
    assert sample.rows.shape == (40,)
    assert sample.rows.dtype == np.int64
    assert len(set(sample.rows.tolist())) == 40
    assert sample.patients == {data.patients[i] for i in sample.rows}
    assert (sample.seed, sample.stratify_by) == (5, by)
    check_disjoint({"anchors": sample, "test": test_set})
    again = sample_anchors(data, 40, 5, stratify_by=by, exclude_patients=test_set)
    np.testing.assert_array_equal(again.rows, sample.rows)
    fewer = sample_anchors(data, 10, 5, stratify_by=by, exclude_patients=test_set)
    np.testing.assert_array_equal(fewer.rows, sample.rows[:10])
    other = sample_anchors(data, 40, 6, stratify_by=by, exclude_patients=test_set)
    assert not np.array_equal(other.rows, sample.rows)


def test_strata_of_anchors():
    n = 300
    labels = np.zeros((n, 3), int)
    labels[:200, 0] = 1
    labels[200:280, 1] = 1
    labels[280:290, 2] = 1  # the last ten have no label
    views = ["PA"] * 290 + ["LL"] * 10
    data = dataset([f"p{i // 2}" for i in range(n)], labels, views)
    rows = sample_anchors(data, 30, 0, stratify_by="label").rows
    np.testing.assert_array_equal(labels[rows].sum(axis=0), [10, 10, 10])
    rows = sample_anchors(data, 60, 0, stratify_by="label").rows  # the rare label runs out
    np.testing.assert_array_equal(labels[rows].sum(axis=0), [25, 25, 10])
    rows = sample_anchors(data, 290, 0, stratify_by="label").rows
    np.testing.assert_array_equal(np.sort(rows), np.arange(290))
    rows = sample_anchors(data, 20, 0, stratify_by="view").rows
    assert sum(views[i] == "LL" for i in rows) == 10
    rows = sample_anchors(data, 150, 0, stratify_by="patient").rows
    assert len({data.patients[i] for i in rows}) == 150
    rows = sample_anchors(data, 300, 0, stratify_by="patient").rows
    assert len(set(rows.tolist())) == 300
    uniform = sample_anchors(data, 300, 0).rows
    np.testing.assert_array_equal(np.sort(uniform), np.arange(n))


def test_anchor_arguments_are_checked():
    data = dataset(["p1", "p1", "p2"], [[1], [0], [-1]])
    with pytest.raises(ValueError, match="count is 4, but only 3 images are left after 0 patients"):
        sample_anchors(data, 4, 0)
    with pytest.raises(ValueError, match="count is 2, but only 1 image is left after 1 patient is"):
        sample_anchors(data, 2, 0, exclude_patients=["p1"])
    with pytest.raises(ValueError, match="only 1 image with a positive label is left"):
        sample_anchors(data, 2, 0, stratify_by="label")
    with pytest.raises(ValueError, match="count must be at least 1"):
        sample_anchors(data, 0, 0)
    with pytest.raises(ValueError, match="stratify_by must be one of"):
        sample_anchors(data, 1, 0, stratify_by="age")  # pyright: ignore[reportArgumentType]
