"""The data set type, its summary, and the policies for labels."""

import dataclasses

import numpy as np
import pytest

from semalign_jax.data import Box, DatasetError, ImageTextDataset, Label, binary_labels

CODES = [[1, 0], [-1, -2], [1, 1]]


def dataset(**changes):
    fields = {
        "name": "toy",
        "ids": ("a", "b", "c"),
        "patients": ("p", "p", "q"),
        "studies": ("s", "s", "t"),
        "images": ("a.png", "b.png", "c.png"),
        "texts": ("x", "", "z"),
        "splits": ("train", "train", "test"),
        "views": ("PA", "", "AP"),
        "labels": np.array(CODES, np.int8),
        "label_names": ("Edema", "Fracture"),
        "boxes": ((Box("Edema", "R1", 0, 0, 1, 1),), (), ()),
        "skipped": ("d: no image",),
    }
    return ImageTextDataset(**(fields | changes))


def test_summary():
    summary = dataset().summary()
    assert summary[:6] == ("toy", 3, 2, 2, 2, 1)
    assert summary.splits == {"test": 1, "train": 2}
    assert summary.views == {"": 1, "AP": 1, "PA": 1}
    assert summary.labels == {"Edema": (2, 0, 1, 0), "Fracture": (1, 1, 0, 1)}
    text = str(summary)
    assert "toy: 3 images, 2 studies, 2 patients, 2 images with text, 1 box, 1 skipped" in text
    assert "views: unknown 1, AP 1, PA 1" in text
    assert text.splitlines()[-1].split() == ["Fracture", "1", "1", "0", "1"]
    assert "left out" not in text
    part = dataset(left_out={"without image": 2, "without row": 1})
    assert part.summary().left_out == {"without image": 2, "without row": 1}
    sentence = "3 of 6 rows and files left out: 2 without image, 1 without row"
    assert str(part.summary()).splitlines()[1] == sentence
    assert repr(dataset()) == "<toy: 3 images, 2 labels>"


def test_frozen():
    data = dataset()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.ids = ()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0, 0] = 0
    source = np.array(CODES, np.int8)
    data = dataset(labels=source)
    source[0, 0] = 0
    assert data.labels[0, 0] == 1


def test_select():
    data = dataset()
    for rows in ([2, 0], np.array([2, 0])):
        part = data.select(rows)
        assert part.ids == ("c", "a")
        assert part.boxes == ((), data.boxes[0])
        np.testing.assert_array_equal(part.labels, [[1, 1], [1, 0]])
    assert data.select(data.has_text).ids == ("a", "c")
    assert len(data.select([])) == 0
    assert data.select([]).labels.shape == (0, 2)
    assert data.select([]).summary().images == 0
    with pytest.raises(ValueError, match=r"mask of shape \(3,\); got \(2,\)"):
        data.select(np.array([True, False]))
    with pytest.raises(IndexError, match=r"rows must be in 0\.\.2; got -1\.\.0"):
        data.select([-1, 0])
    with pytest.raises(TypeError, match="list of integers"):
        data.select([0.5])
    with pytest.raises(DatasetError, match="1 id is not unique: a"):
        data.select([0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("x",)}, "texts has 1 entry; expected 3, one per id"),
        ({"labels": np.zeros((3, 1), np.int8)}, r"shape \(3, 2\), .* got \(3, 1\)"),
        ({"labels": np.full((3, 2), 2)}, "integer codes"),
        ({"labels": np.zeros((3, 2))}, "integer codes"),
        ({"label_names": ("Edema", "Edema")}, "label_names are not all different"),
        ({"ids": ("a", "a", "b")}, "1 id is not unique: a"),
        ({"ids": ("7", 7.0, "b")}, "1 id is not unique: 7"),
        ({"patients": ("p", 7.5, "q")}, "patients: entry 1: 7.5 is no whole number"),
        ({"patients": ("p", None, "q")}, "patients: entry 1 is empty"),
        ({"labels": np.full((3, 2), 2**32)}, "integer codes"),
        ({"patients": ("p", "", "q")}, "image b has no patient id"),
    ],
)
def test_fields_are_checked(changes, message):
    with pytest.raises(DatasetError, match=message):
        dataset(**changes)


def test_ids_are_text():
    data = dataset(ids=(1, 2.0, "03"), patients=np.array([7.0, 7, 8]), studies=("7.0", "7", "x"))
    assert (data.ids, data.patients, data.studies) == (
        ("1", "2", "03"), ("7", "7", "8"), ("7", "7", "x")
    )  # fmt: skip
    with pytest.raises(TypeError, match="labels is a masked array"):
        dataset(labels=np.ma.masked_equal(CODES, 1))


def test_codes_are_those_of_chexpert():
    assert [Label.POSITIVE, Label.NEGATIVE, Label.UNCERTAIN] == [1, 0, -1]
    assert Label.BLANK not in (-1, 0, 1)


@pytest.mark.parametrize(
    ("policy", "blank", "labels", "mask"),
    [
        ("ignore", "ignore", [[1, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [1, 1]]),
        ("zeros", "ignore", [[1, 0], [0, 0], [1, 1]], [[1, 1], [1, 0], [1, 1]]),
        ("ones", "ignore", [[1, 0], [1, 0], [1, 1]], [[1, 1], [1, 0], [1, 1]]),
        ("ignore", "zeros", [[1, 0], [0, 0], [1, 1]], [[1, 1], [0, 1], [1, 1]]),
        ("ones", "zeros", [[1, 0], [1, 0], [1, 1]], [[1, 1], [1, 1], [1, 1]]),
    ],
)
def test_policies(policy, blank, labels, mask):
    result = binary_labels(dataset(), policy, blank=blank)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.known, np.array(mask, bool))
    assert result.labels.dtype == np.int32
    assert result.known.dtype == bool


def test_policies_are_checked():
    with pytest.raises(ValueError, match="policy must be one of 'ignore', 'zeros', 'ones'"):
        binary_labels(dataset(), "mask")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="blank must be one of"):
        binary_labels(dataset(), "ones", blank="ones")  # pyright: ignore[reportArgumentType]
