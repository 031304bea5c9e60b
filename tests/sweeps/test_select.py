"""Selections of anchors against brute force in NumPy."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from helpers import some

import semalign_jax as sa
from semalign_jax.sweeps import anchor_order, choose_layers, select_anchors
from semalign_jax.sweeps.select import SELECTIONS, Selection

KEYS = jax.random.split(jax.random.key(0), 4000)


def unit(x):
    centred = x - x.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def planted(sizes=(40, 20, 10, 5), d=6, seed=0):
    """Tight clusters in orthogonal directions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    x = 5 * np.eye(d)[labels] + 0.2 * rng.standard_normal((len(labels), d))
    return x.astype(np.float32), labels


@pytest.mark.parametrize("method", some(SELECTIONS))
def test_rows_are_distinct_and_repeat_themselves(method):
    x, labels = planted()
    labels = labels if method == "stratified" else None
    choose = jax.jit(partial(select_anchors, x, method=method, labels=labels), static_argnums=0)
    for count in (1, 12, 75):
        rows = choose(count, key=KEYS[0])
        assert rows.dtype == np.int32
        assert len(set(rows.tolist())) == count
        np.testing.assert_array_equal(rows, choose(count, key=KEYS[0]))
    same = np.ones_like(x)  # nothing to choose by
    rows = select_anchors(same, 12, method=method, key=KEYS[0], labels=labels)
    assert len(set(rows.tolist())) == 12


@pytest.mark.parametrize("method", some(SELECTIONS))
def test_a_key_draws_the_same_rows_in_float64(method):
    x, labels = planted()
    labels = labels if method == "stratified" else None
    wide = select_anchors(x.astype(float), 12, method=method, key=KEYS[0], labels=labels)
    with jax.enable_x64(False):
        rows = select_anchors(x, 12, method=method, key=KEYS[0], labels=labels)
    np.testing.assert_array_equal(rows, wide)


def test_random_and_stratified_are_those_of_sweeps():
    x, labels = planted()
    random = select_anchors(x, 7, method="random", key=KEYS[0])
    np.testing.assert_array_equal(random, anchor_order(KEYS[0], 75, size=7))
    found = select_anchors(x, 7, method="stratified", key=KEYS[0], labels=labels)
    np.testing.assert_array_equal(found, anchor_order(KEYS[0], 75, size=7, labels=labels))


def test_medoids_are_the_rows_nearest_to_the_centres_of_clusters():
    x, labels = planted()
    units, expected = unit(x), []
    for c in range(4):
        members = np.flatnonzero(labels == c)
        centre = units[members].sum(0)
        expected.append(members[np.argmax(units[members] @ centre)])
    found = jax.vmap(lambda key: select_anchors(x, 4, key=key))(KEYS[:10])
    hits = [sorted(rows) == expected for rows in np.asarray(found).tolist()]
    assert np.mean(hits) >= 0.7  # k-means begins at random


def test_medoids_stand_for_more_than_random_rows():
    x, labels = planted()
    methods: tuple[Selection, ...] = "k-medoids", "random"
    seen = {
        method: np.mean(
            [len(set(labels[select_anchors(x, 4, method=method, key=k)])) for k in KEYS[:10]]
        )
        for method in methods
    }
    assert seen["k-medoids"] > 3.6
    assert seen["random"] < 3


def test_farthest_is_the_greedy_choice():
    x, _ = planted(sizes=(8, 6, 5))
    units = unit(x)
    found = np.asarray(select_anchors(x, 10, method="farthest", key=KEYS[0]))
    chosen = [found[0]]
    for _ in range(9):
        gap = 1 - np.max(units @ units[chosen].T, axis=1)
        gap[chosen] = -1
        chosen.append(np.argmax(gap))
    np.testing.assert_array_equal(found, chosen)


def frequencies(method, x, count):
    """How often each row is chosen at each place [count, n]."""
    choose = partial(select_anchors, x, count, method=method)
    rows = np.asarray(jax.vmap(lambda key: choose(key=key))(KEYS))
    return np.stack([np.bincount(column, minlength=len(x)) for column in rows.T]) / len(KEYS), rows


def test_k_means_plus_plus_draws_by_squared_distance():
    x, _ = planted(sizes=(3, 2, 1))
    units = unit(x)
    first, rows = frequencies("k-means++", x, 2)
    np.testing.assert_allclose(first[0], 1 / 6, atol=0.03)
    gap = 1 - units @ units.T
    chance = np.mean(gap / gap.sum(1, keepdims=True), axis=0)
    np.testing.assert_allclose(first[1], chance, atol=0.03)


def test_leverage_is_that_of_ridge_regression():
    x, _ = planted(sizes=(3, 2, 1))
    a = (x - x.mean(0)).astype(np.float64)
    gram = a.T @ a
    scores = np.diag(a @ np.linalg.inv(gram + np.trace(gram) / 6 * np.eye(6)) @ a.T)
    found, _ = frequencies("leverage", 1e-25 * x, 1)  # in any unit
    np.testing.assert_allclose(found[0], scores / scores.sum(), atol=0.03)


def test_bad_input_names_the_argument():
    x, labels = planted()
    choose: Any = partial(select_anchors, key=KEYS[0])
    with pytest.raises(ValueError, match="count must be at most the number of rows of x, 75"):
        choose(x, 76)
    with pytest.raises(TypeError, match="count must be an int"):
        choose(x, 3.0)
    with pytest.raises(ValueError, match="method must be one of 'random'"):
        choose(x, 3, method="best")
    with pytest.raises(ValueError, match="labels are needed by .* got method='stratified' without"):
        choose(x, 3, method="stratified")
    with pytest.raises(ValueError, match="labels are needed by .* got method='k-medoids' with"):
        choose(x, 3, labels=labels)
    with pytest.raises(ValueError, match="x holds NaN .*; drop these rows$"):
        choose(np.where(np.arange(75)[:, None] == 2, np.nan, x), 3)
    with pytest.raises(TypeError, match=r"key must be made by jax\.random\.key"):
        choose(x, 3, key=0.5)


@pytest.mark.parametrize("measure", ["mutual-knn", "cka"])
def test_layers_are_those_that_see_the_rows_most_alike(measure):
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 6))
    x = {-1: rng.standard_normal((40, 6)), -2: latent + 0.1 * rng.standard_normal((40, 6))}
    y = {"last": rng.standard_normal((40, 6)), 3: rng.standard_normal((40, 6)), 2: 2 * latent + 1}
    found = choose_layers(x, y, measure=measure)
    assert (found.source, found.target) == (-2, 2)
    assert found.scores.shape == (2, 3)
    if measure == "cka":
        expected = sa.metrics.linear_cka(x[-1], y[3], debiased=True)
    else:
        expected = sa.metrics.mutual_knn(x[-1], y[3], 10)
    assert found.scores[0, 1] == pytest.approx(float(expected))
    assert choose_layers({0: latent[:4]}, {0: latent[:4]}).scores == 1  # of 3 others
    with pytest.raises(ValueError, match="y has no layers"):
        choose_layers(x, {})
    with pytest.raises(ValueError, match=r"x\[-1\] needs at least \d rows; got \(1, 6\)"):
        choose_layers({-1: latent[:1]}, y, measure=measure)
    with pytest.raises(ValueError, match="must have the same number of rows"):
        choose_layers(x, {0: latent[:-1]}, measure=measure)
