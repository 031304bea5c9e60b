"""The scores against scikit-learn, SciPy and NumPy in float64, on plain and awkward data."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from helpers import latin, rotation, some
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors

import semalign_jax as sa
from semalign_jax import metrics


def quiet(function, *args, **options):
    """Call scikit-learn, which warns of what is undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def binary_reference(function, labels, scores, weights):
    """NaN where the score is undefined; rows of weight zero are removed."""
    kept = weights > 0
    labels, scores, weights = labels[kept], scores[kept], weights[kept]
    empty = not labels.any() or (function is sk.roc_auc_score and labels.all())
    return np.nan if empty else function(labels, scores, sample_weight=weights)


RANKED = {"auroc": sk.roc_auc_score, "average_precision": sk.average_precision_score}


@st.composite
def ranked_rows(draw):
    """Labels, scores with many ties, and weights with zeros; NaN where the weight is zero."""
    n = draw(st.sampled_from([1, 33]))  # few shapes, few compilations
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    scores = np.round(rng.standard_normal(n), draw(st.sampled_from([0, 1, 8])))
    scores = np.float64(np.float32(scores)) * draw(st.sampled_from([0.0, 1.0]))
    kinds = [np.ones(n), rng.integers(0, 4, n), rng.uniform(0.1, 3, n) * (rng.random(n) < 0.7)]
    weights = np.float64(np.float32(draw(st.sampled_from(kinds))))
    return labels, scores, weights


@pytest.mark.parametrize("name", RANKED)
@given(ranked_rows())
def test_ranking_scores_equal_scikit_learn(name, rows):
    labels, scores, weights = rows
    expected = binary_reference(RANKED[name], labels, scores, weights)
    scores = np.where(weights > 0, scores, np.nan)
    got = getattr(metrics, name)(labels, scores, weights=weights)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    narrow = [a.astype(np.float32) for a in (scores, weights)]
    got = getattr(metrics, name)(labels.astype(int), narrow[0], weights=narrow[1])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("name", RANKED)
def test_ranking_scores_of_many_labels_and_classes(name):
    rng = np.random.default_rng(0)
    labels = rng.random((90, 4)) < [0.3, 0.5, 0, 1]
    scores = np.round(rng.standard_normal((90, 4)) + labels, 1).astype(np.float32)
    weights = rng.uniform(0.1, 2, 90).astype(np.float32)
    own_mask = rng.random((90, 4)) < 0.7
    function, tolerance = getattr(metrics, name), 1e-6
    for w in (None, weights, own_mask):
        full = np.ones((90, 4)) * (1 if w is None else w.reshape(90, -1))
        expected = [
            binary_reference(RANKED[name], labels[:, k], scores[:, k], full[:, k]) for k in range(4)
        ]
        got = function(labels, scores, weights=w)
        np.testing.assert_allclose(got, expected, atol=tolerance)
        mean = metrics.macro_mean(got)
        np.testing.assert_allclose(mean.value, np.nanmean(expected), atol=tolerance)
        assert int(mean.undefined) == np.isnan(expected).sum() > 0
        ranking = metrics.rank_scores(labels, scores)
        from_ranking = getattr(metrics, name + "_from_ranking")(ranking, w)
        np.testing.assert_allclose(from_ranking, expected, atol=tolerance)
    classes = rng.integers(0, 3, 90)  # the last class is empty
    one_hot = classes[:, None] == np.arange(4)
    expected = [
        binary_reference(RANKED[name], one_hot[:, k], scores[:, k], weights) for k in range(4)
    ]
    np.testing.assert_allclose(function(classes, scores, weights=weights), expected, atol=tolerance)


def test_infinite_and_half_precision_scores():
    labels = np.array([0, 1, 0, 1, 1])
    scores = np.array([-np.inf, 0.5, 0.5, np.inf, -np.inf])
    order = np.array([0.0, 1, 1, 2, 0])
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16):
        got = metrics.auroc(labels, jnp.asarray(scores, dtype))
        assert got.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        np.testing.assert_allclose(got, sk.roc_auc_score(labels, order), rtol=1e-6)


def test_perfect_scores_are_not_above_one():
    rng, labels = np.random.default_rng(0), np.arange(33) > 20
    scores = np.arange(33, dtype=np.float32)
    for weights in [np.full(33, w, np.float32) for w in (0.7, 0.3)] + list(rng.random((9, 33))):
        for score in (metrics.auroc, metrics.average_precision):
            assert score(labels, scores, weights=weights.astype(np.float32)) <= 1
        found = metrics.intervals.delong_interval(labels, scores, weights=weights.astype("f"))
        assert found.estimate <= 1


def test_zero_and_minus_zero_are_tied():
    assert metrics.auroc(np.array([0, 1, 0, 1]), np.array([0.0, -0.0, -0.0, 0.0])) == 0.5


@pytest.mark.parametrize("n", [1, 2, 300])
def test_float32_scores_are_ranked_in_order(n):
    rng = np.random.default_rng(n)
    scores = rng.standard_normal((2, n)).astype(np.float32) * 10.0 ** rng.integers(-30, 38, (2, n))
    scores = scores.astype(np.float32)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0], np.float32)
    scores[0, : n // 2] = rng.choice(odd, n // 2)
    ranking = metrics.rank_scores(np.zeros((n, 2), bool), scores.T)
    ranking = jax.tree.map(np.asarray, ranking)
    for k in range(2):
        order = np.argsort(-scores[k], kind="stable")
        np.testing.assert_array_equal(ranking.order[k], order)
        ordered = scores[k][order]
        same = ordered[1:] == ordered[:-1]
        starts = np.flatnonzero(np.append(True, ~same))
        group = np.cumsum(np.append(True, ~same)) - 1
        np.testing.assert_array_equal(ranking.first[k], starts[group])
        np.testing.assert_array_equal(ranking.last[k], np.append(starts[1:], n)[group])


# --- vectorised over weights -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), latin([*RANKED], [(80,), (80, 3)]))
def test_ranking_under_many_weights(name, shape):
    rng = np.random.default_rng(1)
    labels = rng.random((2, *shape)) < 0.3
    scores = np.round(rng.standard_normal((2, *shape)), 1)
    weights = rng.integers(0, 3, (5, 80)).astype(np.float32)
    function, plain = getattr(metrics, name + "_from_ranking"), getattr(metrics, name)
    rankings = jax.tree.map(np.asarray, jax.jit(jax.vmap(metrics.rank_scores))(labels, scores))
    expected = np.array(
        [[plain(labels[i], scores[i], weights=w) for w in weights] for i in range(2)]
    )
    first = jax.tree_util.tree_map(lambda a: a[0], rankings)
    over_weights = jax.vmap(function, (None, 0))
    np.testing.assert_allclose(over_weights(first, weights), expected[0], atol=1e-6)
    np.testing.assert_allclose(jax.jit(over_weights)(first, weights), expected[0], atol=1e-6)
    both = jax.vmap(over_weights, (0, None))(rankings, weights)
    np.testing.assert_allclose(both, expected, atol=1e-6)
    other = jax.vmap(jax.vmap(function, (0, None)), (None, 0))(rankings, weights)
    np.testing.assert_allclose(other, expected.swapaxes(0, 1), atol=1e-6)
    nested = jax.vmap(over_weights, (None, 0))(first, weights[None])
    np.testing.assert_allclose(nested, expected[None, 0], atol=1e-6)
    of_scores = jax.vmap(lambda w: plain(labels[0], scores[0], weights=w))
    np.testing.assert_allclose(of_scores(weights), expected[0], atol=1e-6)
    both = jax.vmap(lambda y, s, w: plain(y, s, weights=w))(labels, scores, weights[:2])
    np.testing.assert_allclose(both, [expected[0, 0], expected[1, 1]], atol=1e-6)


def test_labels_that_are_too_many_for_the_memory_are_taken_in_parts(monkeypatch):
    from semalign_jax.metrics import ranking as _ranking

    rng = np.random.default_rng(3)
    labels = rng.random((37, 5)) < 0.4
    scores = rng.standard_normal((37, 5)).astype(np.float32)
    one_by_one = [metrics.auroc(labels[:, k], scores[:, k]) for k in range(5)]
    monkeypatch.setattr(_ranking, "SCORES_AT_ONCE", 2 * 38)
    np.testing.assert_allclose(metrics.auroc(labels, scores), one_by_one, atol=1e-6)


def test_large_float32_inputs_stay_accurate():
    """Rare classes, and weights of which plain float32 sums lose digits."""
    n = 100_000
    rng = np.random.default_rng(2)
    labels = rng.random(n) < 1e-3
    scores = np.round(rng.standard_normal(n) + labels, 2).astype(np.float32)
    predicted = scores > 2
    probability = 1 / (1 + np.exp(-scores))
    for weights in (np.full(n, 0.1), rng.uniform(0, 1000, n)):
        weights = weights.astype(np.float32)
        wide = weights.astype(np.float64)
        classes = (labels.astype(int), predicted.astype(int), 2)
        plain = (labels, predicted)
        pairs = [
            (metrics.auroc(labels, scores, weights=weights),
             sk.roc_auc_score(labels, scores, sample_weight=wide)),
            (metrics.average_precision(labels, scores, weights=weights),
             sk.average_precision_score(labels, scores, sample_weight=wide)),
            (metrics.matthews_correlation(*classes, weights=weights),
             sk.matthews_corrcoef(*plain, sample_weight=wide)),
            (metrics.cohen_kappa(*classes, weights=weights),
             sk.cohen_kappa_score(*plain, sample_weight=wide)),
            (metrics.balanced_accuracy(*classes, weights=weights).value,
             sk.balanced_accuracy_score(*plain, sample_weight=wide)),
            (metrics.precision_recall_f1(*plain, weights=weights).f1,
             sk.f1_score(*plain, sample_weight=wide)),
            (metrics.accuracy(*plain, weights=weights),
             sk.accuracy_score(*plain, sample_weight=wide)),
            (metrics.brier_score(labels, probability, weights=weights),
             sk.brier_score_loss(labels, np.float64(probability), sample_weight=wide)),
            (metrics.expected_calibration_error(labels, probability, weights=weights),
             calibration_reference(labels, probability, wide, 15)),
        ]  # fmt: skip
        several = np.stack([labels, ~labels], axis=1)
        guesses = np.stack([predicted, ~predicted], axis=1)
        pairs += [
            (metrics.precision_recall_f1(several, guesses, weights=weights).recall,
             [sk.recall_score(*plain, sample_weight=wide, pos_label=p) for p in (1, 0)]),
        ]  # fmt: skip
        for got, expected in pairs:
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
        matrix = metrics.confusion_matrix(*classes, weights=weights)
        expected = sk.confusion_matrix(*plain, sample_weight=wide)
        np.testing.assert_allclose(matrix, expected, rtol=1e-6)


# --- predicted classes -------------------------------------------------------------------------


@st.composite
def classified_rows(draw):
    n, num_classes = draw(st.sampled_from([(1, 2), (60, 2), (60, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = draw(st.integers(1, num_classes))
    labels, predicted = rng.integers(0, used, (2, n))
    predicted = np.where(rng.random(n) < 0.5, labels, predicted)
    weights = rng.uniform(0.1, 3, n) * (rng.random(n) < 0.8)
    if not weights.any():
        weights[0] = 1
    return labels, predicted, num_classes, weights


@given(classified_rows())
def test_class_scores_equal_scikit_learn(rows):
    labels, predicted, num_classes, weights = rows
    kept = weights > 0
    plain = (labels[kept], predicted[kept])
    options: dict[str, Any] = {"sample_weight": weights[kept]}
    every: dict[str, Any] = options | {"labels": range(num_classes)}
    # Rows without weight may hold anything.
    given_labels = np.where(kept, labels, -7)
    given_predicted = np.where(kept, predicted, 99)
    args = (given_labels, given_predicted, num_classes)
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)

    close(
        metrics.confusion_matrix(*args, weights=weights),
        quiet(sk.confusion_matrix, *plain, **every),
    )
    close(metrics.accuracy(*args[:2], weights=weights), sk.accuracy_score(*plain, **options))
    scores = metrics.precision_recall_f1(*args, weights=weights)
    undefined: dict[str, Any] = every | {"zero_division": np.nan}
    expected = sk.precision_recall_fscore_support(*plain, **undefined)[:3]
    for got, wanted in zip(scores, expected, strict=True):
        close(got, wanted)
        mean = metrics.macro_mean(got)
        close(mean.value, np.nan if np.isnan(wanted).all() else np.nanmean(wanted))
        assert int(mean.undefined) == np.isnan(wanted).sum()
    balanced = metrics.balanced_accuracy(*args, weights=weights)
    close(balanced.value, quiet(sk.balanced_accuracy_score, *plain, **options))
    assert int(balanced.undefined) == num_classes - len(np.unique(plain[0]))
    one_class = min(len(np.unique(side)) for side in plain) == 1
    expected = np.nan if one_class else sk.matthews_corrcoef(*plain, **options)
    close(metrics.matthews_correlation(*args, weights=weights), expected)
    kinds: dict[Any, Any] = {"nominal": None, "linear": "linear", "quadratic": "quadratic"}
    for kind, name in kinds.items():
        expected = quiet(sk.cohen_kappa_score, *plain, **every, weights=name)
        close(metrics.cohen_kappa(*args, disagreement=kind, weights=weights), expected)


def test_binary_and_multi_label_scores():
    rng = np.random.default_rng(0)
    labels, predicted = rng.random((2, 50, 3)) < [0.3, 0.6, 0.0]
    predicted[:, 2] = False
    weights = rng.uniform(0.1, 2, 50)
    got = metrics.precision_recall_f1(labels, predicted, weights=weights)
    options: dict[str, Any] = {"sample_weight": weights, "zero_division": np.nan}
    expected = sk.precision_recall_fscore_support(labels, predicted, **options)
    for ours, theirs in zip(got, expected[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert np.isnan(got.f1[2])
    own = np.where(rng.random((50, 3)) < 0.5, weights[:, None], 0)
    missing = np.where(own > 0, labels, -1)
    got = metrics.precision_recall_f1(missing, predicted.astype(int), weights=own)
    one = sk.f1_score(labels[:, 1], predicted[:, 1], sample_weight=own[:, 1])
    np.testing.assert_allclose(got.f1[1], one, rtol=1e-10)
    single = metrics.precision_recall_f1(labels[:, 0], predicted[:, 0])
    np.testing.assert_allclose(single.f1, sk.f1_score(labels[:, 0], predicted[:, 0]), rtol=1e-6)


# --- probabilities -----------------------------------------------------------------------------


def test_brier_score_equals_scikit_learn():
    rng = np.random.default_rng(0)
    classes, weights = rng.integers(0, 3, 40), rng.uniform(0.1, 2, 40)
    p = rng.dirichlet(np.ones(4), 40)
    expected = sk.brier_score_loss(classes, p, sample_weight=weights, labels=range(4))
    np.testing.assert_allclose(metrics.brier_score(classes, p, weights=weights), expected)
    one_hot = classes[:, None] == np.arange(4)
    expected = [
        sk.brier_score_loss(one_hot[:, k], p[:, k], sample_weight=weights, pos_label=True)
        for k in range(4)
    ]
    np.testing.assert_allclose(metrics.brier_score(one_hot, p, weights=weights), expected)
    np.testing.assert_allclose(
        metrics.brier_score(one_hot[:, 1], p[:, 1], weights=weights), expected[1]
    )
    p[:5], weights[:5] = 7, 0
    assert np.isfinite(metrics.brier_score(classes, p, weights=weights))
    with pytest.raises(ValueError, match="probabilities must be in .*; convert logits"):
        metrics.brier_score(classes, p)
    assert np.isnan(jax.jit(metrics.brier_score)(classes, p))
    p[:5] = np.nan
    assert np.isfinite(metrics.brier_score(classes, p, weights=weights))
    assert np.isnan(metrics.brier_score(classes, p))
    assert np.isnan(metrics.brier_score(classes, p, weights=np.zeros(40)))


def calibration_reference(hit, confidence, weights, bins):
    confidence = np.float64(confidence)
    error = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        inside |= (confidence == 0) & (k == 0)
        error += abs(np.sum((weights * (hit - confidence))[inside]))
    return error / weights.sum()


def test_predicted_classes_are_those_of_argmax():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 3, (4, 50, 6)).astype(np.float32)  # ties
    scores[0, :9] = np.inf
    scores[1, :9] = -np.inf
    scores[2, :9, 2:4] = np.nan
    scores[3, :9, 5] = np.inf
    found = metrics.predicted_classes(scores)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, scores.argmax(-1))
    np.testing.assert_array_equal(jax.vmap(metrics.predicted_classes)(scores), found)
    np.testing.assert_array_equal(metrics.predicted_classes(scores[0, 20]), scores[0, 20].argmax())
    with pytest.raises(TypeError, match="scores must have a floating-point dtype"):
        metrics.predicted_classes(np.arange(3))
    with pytest.raises(ValueError, match="scores"):
        metrics.predicted_classes(np.float32(1))


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_error_by_its_definition(bins):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 200)
    p[:3] = [[0, 1, 0], [1, 0, 0], [0.5, 0.25, 0.25]]
    classes, weights = rng.integers(0, 3, 200), rng.uniform(0.1, 2, 200)
    got = metrics.expected_calibration_error(classes, p, bins=bins, weights=weights)
    hit = p.argmax(1) == classes
    np.testing.assert_allclose(got, calibration_reference(hit, p.max(1), weights, bins))
    one_hot = classes[:, None] == np.arange(3)
    got = metrics.expected_calibration_error(one_hot, p, bins=bins, weights=weights)
    expected = [calibration_reference(one_hot[:, k], p[:, k], weights, bins) for k in range(3)]
    np.testing.assert_allclose(got, expected)
    got = metrics.expected_calibration_error(one_hot[:, 0], p[:, 0], bins=bins, weights=weights)
    np.testing.assert_allclose(got, expected[0])


def test_perfect_calibration_and_undefined():
    labels = np.array([1, 0, 1, 1])
    assert metrics.expected_calibration_error(labels, labels.astype(float)) == 0
    half = metrics.expected_calibration_error(labels[:2], np.array([0.5, 0.5]))
    assert half == 0
    zeros = np.zeros(4)
    assert np.isnan(metrics.expected_calibration_error(labels, zeros, weights=zeros))


# --- retrieval ---------------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def rank_reference(x, y, k=None):
    cosine = unit(x) @ unit(y).T
    if k is not None:
        near_x = np.sort(cosine, axis=1)[:, -k:].mean(1)
        near_y = np.sort(cosine, axis=0)[-k:].mean(0)
        cosine = 2 * cosine - near_x[:, None] - near_y[None, :]
    cosine = np.round(cosine, 10)  # equal rows have equal similarities
    one_way = rankdata(-cosine, axis=1).diagonal()
    return one_way, rankdata(-cosine, axis=0).diagonal()


@pytest.mark.parametrize("neighbors", [None, 5, 60])
def test_retrieval_ranks_in_both_directions(neighbors):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8))
    y = x + 0.7 * rng.standard_normal((60, 8))
    y[10:20] = y[0]  # equal reports
    x[30] = x[31]
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = rank_reference(np.float64(x), np.float64(y), neighbors)
    got = metrics.retrieval_ranks(x, y, csls_neighbors=neighbors)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(metrics.recall_at_k(ours, 5), np.mean(theirs <= 5), rtol=1e-6)
        np.testing.assert_allclose(
            metrics.mean_reciprocal_rank(ours), np.mean(1 / theirs), rtol=1e-6
        )
        np.testing.assert_allclose(metrics.median_rank(ours), np.median(theirs))
    # Rows of weight zero are as good as removed.
    mask = rng.random(60) < 0.8
    if neighbors == 60:
        return
    masked = metrics.retrieval_ranks(
        np.where(mask[:, None], x, np.nan), y, csls_neighbors=neighbors, weights=mask
    )
    expected = rank_reference(np.float64(x[mask]), np.float64(y[mask]), neighbors)
    for ours, theirs in zip(masked, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[mask], theirs)
        assert np.isnan(np.asarray(ours)[~mask]).all()
        np.testing.assert_allclose(metrics.median_rank(ours, weights=mask), np.median(theirs))


@pytest.mark.parametrize("own", [False, True], ids=["other queries", "own rows"])
def test_nearest_neighbors_are_those_of_a_full_sort(own):
    rng = np.random.default_rng(3)
    candidates = rng.standard_normal((300, 7)).astype(np.float32)
    at = rng.integers(0, 300, 40)
    queries = candidates[at] if own else rng.standard_normal((40, 7)).astype(np.float32)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (queries, candidates)]
    cosines = unit[0].astype(np.float64) @ unit[1].T
    if own:
        cosines[np.arange(40), at] = -np.inf
    expected = np.argsort(-cosines, axis=1)[:, :12]
    got = metrics.nearest_neighbors(queries, candidates, 12, own=at if own else None)
    np.testing.assert_array_equal(got, expected)


def test_constant_embeddings_do_not_look_perfect():
    x = np.ones((9, 3))
    ranks = metrics.retrieval_ranks(x, x).x_to_y
    np.testing.assert_array_equal(ranks, 5)
    assert metrics.recall_at_k(ranks, 1) == 0


def test_csls_corrects_a_hub():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 6)) + 1.5
    y = x + 0.3 * rng.standard_normal((100, 6))
    y[0] = x.mean(0)
    plain, csls = (metrics.retrieval_ranks(x, y, csls_neighbors=k).x_to_y for k in (None, 10))
    assert metrics.recall_at_k(csls, 1) > metrics.recall_at_k(plain, 1)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=8, max_size=9))
def test_median_rank_under_counts_is_that_of_repeated_rows(pairs):
    ranks, counts = np.array(pairs).T
    repeated = np.repeat(ranks, counts)
    expected = np.median(repeated) if len(repeated) else np.nan
    got = metrics.median_rank(np.where(counts > 0, ranks, np.nan), weights=counts)
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("n", [8, 10])
def test_median_rank_of_equal_weights_is_the_median(n):
    ranks = np.arange(1.0, n + 1)
    for weight in (0.1, 0.3, 1 / 3):
        weights = np.full(n, weight, np.float32)
        assert float(metrics.median_rank(ranks.astype("f"), weights=weights)) == np.median(ranks)


# --- similarity --------------------------------------------------------------------------------


def repeated(counts, *arrays):
    return [np.repeat(a, counts, axis=0) for a in arrays]


def cka_reference(k, m):
    n = len(k)
    center = np.eye(n) - 1 / n
    k, m = center @ k @ center, center @ m @ center
    return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


def gaussian(x, bandwidth):
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    sigma = bandwidth * np.median(distances[~np.eye(len(x), dtype=bool)])
    return np.exp(-(distances**2) / (2 * sigma**2))


def debiased_reference(k, m):
    """Song et al. (2012), equation 5, for the three products of Nguyen et al. (2021)."""

    def hsic(k, m):
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = (one @ k @ one) * (one @ m @ one) / (n - 1) / (n - 2)
        return (np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def svcca_reference(x, y, variance):
    bases = []
    for z in (x, y):
        u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        bases.append(u[:, : np.searchsorted(share, variance) + 1])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


def pair(n, d_x, d_y, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d_x)) * np.geomspace(1, 0.05, d_x)
    y = x @ rng.standard_normal((d_x, d_y)) + 0.5 * rng.standard_normal((n, d_y))
    return x + 3, y - 1


@pytest.mark.parametrize(
    ("shape", "precision"), latin([(30, 5, 7), (6, 9, 20)], ["x64", "x32"]), indirect=["precision"]
)
def test_similarities_by_their_definitions(shape, precision):
    n, d_x, d_y = shape
    x, y = pair(n, d_x, d_y)
    tolerance = 1e-9 if precision == "x64" else 2e-5
    close = partial(np.testing.assert_allclose, rtol=tolerance)
    expected = cka_reference(x @ x.T, y @ y.T)
    close(metrics.linear_cka(x, y), expected)
    debiased = debiased_reference(x @ x.T, y @ y.T)
    close(metrics.linear_cka(x, y, debiased=True), debiased, rtol=10 * tolerance)
    for bandwidth in (0.3, 1.0):
        kernels = gaussian(x, bandwidth), gaussian(y, bandwidth)
        close(metrics.rbf_cka(x, y, bandwidth=bandwidth), cka_reference(*kernels))
        got = metrics.rbf_cka(x, y, bandwidth=bandwidth, debiased=True)
        close(got, debiased_reference(*kernels), rtol=10 * tolerance)
    for variance in (0.5, 0.9, 0.99):
        close(metrics.svcca(x, y, variance=variance), svcca_reference(x, y, variance))
    for k in (1, 4):
        found = [
            NearestNeighbors(n_neighbors=k, metric="cosine")
            .fit(z)
            .kneighbors(return_distance=False)
            for z in (x, y)
        ]
        shared = [len(set(a) & set(b)) / k for a, b in zip(*found, strict=True)]
        close(metrics.mutual_knn(x, y, k), np.mean(shared), atol=1e-7)
    width = min(d_x, d_y)
    cosine = np.sum(unit(x[:, :width]) * unit(y[:, :width]), axis=1)
    close(metrics.mean_cosine(x[:, :width], y[:, :width]), cosine.mean(), atol=1e-7)


def test_weights_are_counts_and_masks():
    x, y = pair(25, 4, 4)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(25, np.ones(25) / 25)
    mask = counts > 0
    x_nan = np.where(mask[:, None], x, np.nan)
    for function in (metrics.linear_cka, metrics.mean_cosine):
        got = function(x_nan, y, weights=counts)
        np.testing.assert_allclose(got, function(*repeated(counts, x, y)), rtol=1e-9)
    plain = (metrics.linear_cka, metrics.rbf_cka, metrics.svcca, metrics.mean_cosine)
    for function in (*plain, *(partial(f, debiased=True) for f in plain[:2])):
        np.testing.assert_allclose(
            function(x_nan, y, weights=mask), function(x[mask], y[mask]), rtol=1e-9
        )
    got = metrics.mutual_knn(x_nan, y, 3, weights=mask)
    np.testing.assert_allclose(got, metrics.mutual_knn(x[mask], y[mask], 3), rtol=1e-9)
    assert np.isnan(metrics.mutual_knn(x, y, 3, weights=np.arange(25) < 3))
    # Half weights everywhere are no weights.
    halves = np.full(25, 0.5)
    np.testing.assert_allclose(
        metrics.rbf_cka(x, y, weights=halves), metrics.rbf_cka(x, y), rtol=1e-9
    )


def test_gaussian_kernel_means_are_weighted():
    x, y = pair(20, 3, 3)
    weights = np.random.default_rng(0).uniform(0.1, 2, 20)
    w = weights / weights.sum()
    kernels = []
    for z in (x, y):
        k = gaussian(z, 0.5)
        center = np.eye(20) - w[None, :]
        kernels.append(center @ k @ center.T)
    a, b = (np.sqrt(w)[:, None] * k * np.sqrt(w)[None, :] for k in kernels)
    expected = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(metrics.rbf_cka(x, y, weights=weights), expected, rtol=1e-9)


@pytest.mark.parametrize("function", some([metrics.linear_cka, metrics.rbf_cka, metrics.svcca]))
def test_similarity_is_invariant_and_survives_offsets(function):
    rng = np.random.default_rng(0)
    x, y = pair(40, 5, 5)
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = float(function(x, y))
    turned = 1e-6 * (x @ rotation(5, rng).astype(np.float32)) - np.float32(1e-6)
    np.testing.assert_allclose(function(turned, 1e12 * y), expected, rtol=2e-3)
    np.testing.assert_allclose(function(y, x), expected, rtol=1e-5)
    np.testing.assert_allclose(function(x, x), 1, rtol=1e-5)
    assert np.isnan(function(np.full_like(x, 0.1), y))
    assert np.isnan(function(x, y, weights=np.zeros(40)))


@pytest.mark.parametrize("function", some([metrics.rbf_cka, metrics.linear_cka]))
def test_debiased_alignment_of_unrelated_sides_is_zero_on_average(function):
    """The default is about .67 and .95 here."""
    x, y = np.random.default_rng(0).standard_normal((2, 100, 32, 64))
    rng = np.random.default_rng(1)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def scores(x, y, weights):
        return function(x, y, weights=weights, debiased=True)

    for weights in (np.ones(32), rng.uniform(0, 2, 32), rng.multinomial(32, np.ones(32) / 32)):
        values = np.asarray(scores(x, y, np.float64(weights)))
        assert abs(values.mean()) < 4 * values.std() / 10
        assert values.std() < 0.1
    np.testing.assert_allclose(function(x[0], x[0], debiased=True), 1, rtol=1e-9)
    assert function(x[0], y[0]) > 0.6


def test_weighted_debiased_alignment_is_the_correlation_of_pairs_without_additive_parts():
    """By least squares over all pairs of different rows, weighted by the products of weights."""
    x, y = pair(9, 4, 3)
    weights = np.random.default_rng(0).uniform(0.1, 2, 9)
    first, second = np.nonzero(~np.eye(9, dtype=bool))
    design = np.eye(9)[first] + np.eye(9)[second]
    root = np.sqrt(weights[first] * weights[second])
    for function, kernel in (
        (metrics.linear_cka, lambda z: z @ z.T),
        (metrics.rbf_cka, lambda z: gaussian(z, 0.5)),
    ):
        rest = []
        for z in (x, y):
            values = kernel(z)[first, second]
            part = np.linalg.lstsq(root[:, None] * design, root * values, rcond=None)[0]
            rest.append(root * (values - design @ part))
        expected = rest[0] @ rest[1] / np.linalg.norm(rest[0]) / np.linalg.norm(rest[1])
        got = function(x, y, weights=weights, debiased=True)
        np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("function", [metrics.linear_cka, metrics.rbf_cka])
def test_debiased_alignment_that_is_undefined(function, precision):
    x, y = (z.astype(np.float32) for z in pair(7, 7, 3))
    score = partial(function, y=y, debiased=True)
    assert np.isnan(score(x, weights=np.arange(7) < 3))
    assert np.isfinite(score(x, weights=np.arange(7) < 4))
    for simplex in (np.ones((7, 7)), np.eye(7)):  # of which all distances are equal
        assert np.isnan(score(simplex.astype(np.float32)))
    for debiased in (False, True):
        assert np.isnan(function(x[:1], y[:1], debiased=debiased))


def test_orthogonality_error():
    rng = np.random.default_rng(0)
    q = rotation(5, rng)
    for weight in (q, q[:, :3], q[:3]):
        assert metrics.orthogonality_error(weight) < 1e-14
    np.testing.assert_allclose(metrics.orthogonality_error(2 * q[:3]), 3, rtol=1e-12)


def test_derivatives_are_finite_and_right():
    x, y = pair(12, 3, 3)
    mask = np.arange(12) < 9
    direction = np.random.default_rng(0).standard_normal((12, 3))
    step = 1e-6 * direction
    same = x.copy()
    same[1] = same[0]  # whose distance has no derivative
    plain = (metrics.linear_cka, metrics.rbf_cka, metrics.mean_cosine)
    for function in (*plain, *(partial(f, debiased=True) for f in plain[:2])):
        score = jax.jit(jax.value_and_grad(partial(function, y=y, weights=mask)))
        gradient = np.asarray(score(x)[1])
        assert np.isfinite(gradient).all()
        assert (gradient[9:] == 0).all()
        slope = float(score(x + step)[0] - score(x - step)[0]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5, atol=1e-9)
        assert np.isfinite(score(same)[1]).all()


# --- transformations, undefined values and errors ----------------------------------------------

RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((2, 3, 20, 4))
CLASSES, PREDICTED = RNG.integers(0, 3, (2, 3, 20)).astype(np.int32)
LABELS = RNG.random((3, 20)) < 0.4
P = softmax(X[..., :3], axis=-1)
W = RNG.uniform(0, 2, (3, 20)) * (RNG.random((3, 20)) < 0.8)
RANKS = RNG.integers(1, 20, (3, 20)).astype(np.float64)


def weighted(function, *static, **options):
    return lambda *args: function(*args[:-1], *static, weights=args[-1], **options)


TRANSFORMED = {
    "accuracy": (weighted(metrics.accuracy), (CLASSES, PREDICTED, W)),
    "confusion_matrix": (weighted(metrics.confusion_matrix, 3), (CLASSES, PREDICTED, W)),
    "balanced_accuracy": (weighted(metrics.balanced_accuracy, 3), (CLASSES, PREDICTED, W)),
    "precision_recall_f1": (weighted(metrics.precision_recall_f1), (LABELS, ~LABELS, W)),
    "matthews": (weighted(metrics.matthews_correlation, 3), (CLASSES, PREDICTED, W)),
    "kappa": (weighted(metrics.cohen_kappa, 3), (CLASSES, PREDICTED, W)),
    "brier_score": (weighted(metrics.brier_score), (CLASSES, P, W)),
    "calibration": (weighted(metrics.expected_calibration_error), (CLASSES, P, W)),
    "auroc": (weighted(metrics.auroc), (CLASSES, P, W)),
    "average_precision": (weighted(metrics.average_precision), (LABELS, X[..., 0], W)),
    "retrieval": (weighted(metrics.retrieval_ranks, csls_neighbors=3), (X, Y, W)),
    "recall_at_k": (weighted(metrics.recall_at_k, 3), (RANKS, W)),
    "mean_reciprocal_rank": (weighted(metrics.mean_reciprocal_rank), (RANKS, W)),
    "median_rank": (weighted(metrics.median_rank), (RANKS, W)),
    "mean_cosine": (weighted(metrics.mean_cosine), (X, Y, W)),
    "linear_cka": (weighted(metrics.linear_cka), (X, Y, W)),
    "rbf_cka": (weighted(metrics.rbf_cka), (X, Y, W)),
    "debiased linear_cka": (weighted(metrics.linear_cka, debiased=True), (X, Y, W)),
    "debiased rbf_cka": (weighted(metrics.rbf_cka, debiased=True), (X, Y, W)),
    "svcca": (weighted(metrics.svcca), (X, Y, W)),
    "mutual_knn": (weighted(metrics.mutual_knn, 4), (X, Y, W)),
    "orthogonality_error": (metrics.orthogonality_error, (X,)),
}
UNWEIGHTED = {
    "orthogonality_error": TRANSFORMED["orthogonality_error"],
    "predicted_classes": (metrics.predicted_classes, (P,)),
    "macro_mean": (metrics.macro_mean, (W,)),
    "normalize_rows": (metrics.normalize_rows, (X,)),
    "cosine_similarity": (metrics.cosine_similarity, (X, Y)),
    "rank_scores": (metrics.rank_scores, (CLASSES, P)),
}
FROM_RANKING = {
    name: (lambda y, s, w, f=function: f(metrics.rank_scores(y, s), w), (CLASSES, P, W))
    for name, function in (
        ("auroc_from_ranking", metrics.auroc_from_ranking),
        ("average_precision_from_ranking", metrics.average_precision_from_ranking),
    )
}
EVERY = TRANSFORMED | UNWEIGHTED | FROM_RANKING
LABELS_ONLY = (
    "accuracy", "confusion_matrix", "balanced_accuracy", "precision_recall_f1", "matthews", "kappa",
)  # fmt: skip


@pytest.mark.parametrize("name", some(TRANSFORMED, 3))
def test_same_under_jit_and_vmap(name):
    function, args = TRANSFORMED[name]
    batched = jax.jit(jax.vmap(function))(*args)
    for i, kind in enumerate((np.asarray, np.asarray, jnp.asarray)):
        jax.tree_util.tree_map(
            partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
            jax.tree_util.tree_map(lambda a, i=i: np.asarray(a)[i], batched),
            function(*[kind(a[i]) for a in args]),
        )


def in_shard_map(function, args, varying):
    """Results [3, ...] of three devices, each with its own part of the `varying` arguments."""
    mesh = jax.make_mesh((3,), ("d",), (AxisType.Auto,), devices=jax.devices()[:3])
    specs = tuple(PartitionSpec("d") if own else PartitionSpec() for own in varying)

    def on_device(*args):
        args = [a[0] if own else a for a, own in zip(args, varying, strict=True)]
        return jax.tree_util.tree_map(lambda leaf: leaf[None], function(*args))

    args = [a if own else a[0] for a, own in zip(args, varying, strict=True)]
    if not any(varying):
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()), args
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("d"))
    return mapped, args


@pytest.mark.parametrize("name", some(EVERY, 3))
def test_runs_in_shard_map(name):
    """With its default `check_vma`: replicated rows, own rows, and one argument that is own."""
    function, args = EVERY[name]
    args = [a.astype(np.float32) if a.dtype == np.float64 else a for a in args]
    expected = jax.eval_shape(function, *[a[0] for a in args])
    n = len(args)
    for varying in ((False,) * n, (True,) * n, *np.eye(n, dtype=bool).tolist()):
        mapped, own = in_shard_map(function, args, varying)
        got = jax.eval_shape(mapped, *own)
        lead = (3,) if any(varying) else ()
        for a, b in zip(*map(jax.tree_util.tree_leaves, (got, expected)), strict=True):
            assert (a.shape, a.dtype) == ((*lead, *b.shape), b.dtype)


@pytest.mark.parametrize("name", ["auroc", "confusion_matrix", "retrieval", "linear_cka"])
def test_values_in_shard_map(name):
    function, args = TRANSFORMED[name]
    mapped, args = in_shard_map(function, args, (True, False, True))
    got = jax.jit(mapped)(*args)
    for i in range(3):
        jax.tree_util.tree_map(
            partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
            jax.tree_util.tree_map(lambda a, i=i: np.asarray(a)[i], got),
            function(args[0][i], args[1], args[2][i]),
        )


@pytest.mark.parametrize("name", some(EVERY, 3))
def test_rows_on_explicit_axes_work_or_get_an_error_that_says_how(name):
    function, args = EVERY[name]
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Explicit,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        spread = [jax.device_put(a[0], PartitionSpec("d")) for a in args]
        refused = name not in LABELS_ONLY and name not in ("normalize_rows", "cosine_similarity")
        says_how = pytest.raises(ValueError, match=r"gather it first: jax.sharding.reshard\(")
        with says_how if refused else nullcontext():
            jax.eval_shape(function, *spread)
        automatic = jax.sharding.auto_axes(
            function,
            out_sharding=jax.tree_util.tree_map(
                lambda _: PartitionSpec(), jax.eval_shape(function, *[a[0] for a in args])
            ),
        )
        jax.eval_shape(automatic, *spread)


def test_labels_and_weights_on_explicit_axes_are_gathered():
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Explicit,), devices=jax.devices()[:4])
    spread = [jax.device_put(a[0], NamedSharding(mesh, PartitionSpec("d"))) for a in (CLASSES, W)]
    got = metrics.auroc(spread[0], P[0], weights=spread[1])
    np.testing.assert_allclose(got, metrics.auroc(CLASSES[0], P[0], weights=W[0]), rtol=1e-12)
    got = jax.jit(metrics.confusion_matrix, static_argnums=2)(spread[0], PREDICTED[0], 3)
    np.testing.assert_array_equal(got, metrics.confusion_matrix(CLASSES[0], PREDICTED[0], 3))


@pytest.mark.parametrize("name", some(sorted(TRANSFORMED.keys() - {"orthogonality_error"}), 3))
def test_float32_stays_float32_and_nothing_weighted_is_undefined(name):
    function, args = TRANSFORMED[name]
    narrow = [a[0].astype(np.float32) if a.dtype == np.float64 else a[0] for a in args]
    function = jax.jit(function)
    for leaf in jax.tree_util.tree_leaves(function(*narrow)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    nothing = function(*narrow[:-1], np.zeros(20, np.float32))
    for leaf in jax.tree_util.tree_leaves(nothing):
        if leaf.dtype != jnp.int32 and name != "confusion_matrix":
            assert np.isnan(leaf).all()


def test_invalid_traced_rows_make_the_score_undefined():
    labels, bad = np.array([[0, 1, 1, 0], [0, 1, 2, -1]])
    scores, nan = np.array([[0.1, 0.4, 0.3, 0.9], [0.1, np.nan, 0.3, 0.9]])
    some, every = np.array([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    for function in (metrics.auroc, metrics.average_precision, metrics.brier_score):
        jitted = jax.jit(lambda y, s, w, f=function: f(y, s, weights=w))
        assert np.isnan(jitted(labels, nan, every))
        assert np.isfinite(jitted(labels, nan, some))
        assert np.isnan(jitted(bad, scores, every))
        assert np.isfinite(jitted(bad, scores, np.array([1.0, 1, 0, 0])))
    calibration = jax.jit(metrics.expected_calibration_error)
    assert np.isnan(calibration(labels, scores + 1))
    assert np.isnan(calibration(labels, nan))
    matrix = jax.jit(metrics.confusion_matrix, static_argnums=2)
    assert np.isnan(matrix(bad, labels, 2)).all()
    assert np.isnan(matrix(labels, bad, 2)).all()
    assert np.isnan(jax.jit(metrics.precision_recall_f1)(labels, bad)).all()
    two = jax.jit(
        lambda p, w: metrics.precision_recall_f1(labels[:, None].repeat(2, 1), p, weights=w)
    )
    columns = np.stack([labels, bad], axis=1)
    for found in two(columns, every):
        assert np.isnan(found).tolist() == [False, True]
    assert np.isfinite(two(columns, np.array([1.0, 1, 0, 0]))).all()
    ranks = jnp.array([1.0, np.nan])
    for function in (metrics.mean_reciprocal_rank, metrics.median_rank):
        assert np.isnan(function(ranks))
        assert function(ranks, weights=np.array([True, False])) == 1
    assert np.isnan(metrics.recall_at_k(ranks, 1))


NAN_ROWS = {
    "mean_cosine": metrics.mean_cosine,
    "linear_cka": metrics.linear_cka,
    "debiased linear_cka": partial(metrics.linear_cka, debiased=True),
    "rbf_cka": metrics.rbf_cka,
    "debiased rbf_cka": partial(metrics.rbf_cka, debiased=True),
    "svcca": metrics.svcca,
    "mutual_knn": lambda x, y, weights: metrics.mutual_knn(x, y, 4, weights=weights),
    "retrieval": metrics.retrieval_ranks,
    "csls": partial(metrics.retrieval_ranks, csls_neighbors=3),
}


@pytest.mark.parametrize("name", some(NAN_ROWS, 3))
def test_embeddings_that_hold_nan_make_the_score_undefined(name):
    function = jax.jit(NAN_ROWS[name])
    x, y = X[0], Y[0]
    entry = (np.arange(20)[:, None] == 3) & (np.arange(4) == 1)
    for value in (np.nan, np.inf):
        for side in ((np.where(entry, value, x), y), (x, np.where(entry, value, y))):
            every = jax.tree_util.tree_leaves(function(*side, weights=np.ones(20)))
            assert np.isnan(every).all()
            others = jax.tree_util.tree_leaves(function(*side, weights=np.arange(20) != 3))
            assert np.isnan(others).sum() == (2 if np.ndim(others[0]) else 0)  # ranks of row 3
    nan = np.where(entry, np.nan, x)
    assert np.isnan(metrics.normalize_rows(nan)).sum() == 4
    assert np.isnan(metrics.cosine_similarity(nan, y)).sum() == 20


def test_integers_beyond_32_bits_do_not_wrap_around(precision):
    labels, zeros = np.full(12, 2**32), np.zeros(12, int)
    scores = np.linspace(0, 1, 12)
    two = np.stack([1 - scores, scores], axis=1)
    calls = {
        "labels": [
            lambda w: metrics.accuracy(labels, zeros, weights=w),
            lambda w: metrics.confusion_matrix(labels, zeros, 2, weights=w),
            lambda w: metrics.precision_recall_f1(labels, zeros, weights=w),
            lambda w: metrics.auroc(labels, scores, weights=w),
            lambda w: metrics.auroc(labels, two, weights=w),
            lambda w: metrics.brier_score(labels, two, weights=w),
            lambda w: metrics.expected_calibration_error(labels, scores, weights=w),
        ],
        "predicted": [
            lambda w: metrics.accuracy(zeros, labels, weights=w),
            lambda w: metrics.confusion_matrix(zeros, labels, 2, weights=w),
            lambda w: metrics.precision_recall_f1(zeros, labels, weights=w),
        ],
    }
    for dtype in (np.int64, np.uint64):
        labels = labels.astype(dtype)
        for name, functions in calls.items():
            for function in functions:
                with pytest.raises(ValueError, match=rf"{name} .* entry \(0,\) is beyond 32 bits"):
                    function(None)
    for function in calls["labels"][:3]:
        function(np.zeros(12))  # rows without weight may hold anything
    assert np.isnan(metrics.auroc_from_ranking(metrics.rank_scores(labels, scores)))
    assert metrics.accuracy(np.full(3, 2**31 - 2), np.full(3, -(2**31) + 1)) == 0
    with pytest.raises(ValueError, match=r"labels must be in \[0, .* is -1\. .*the weight 0"):
        metrics.accuracy(np.array([-1, 1, 0]), np.array([0, 1, 0]))  # -1 stands for no label
    k: Any = np.int64(2**32 + 1)
    assert metrics.recall_at_k(np.array([3.0]), k) == 1


def test_traced_integers_beyond_32_bits_make_the_score_undefined(precision):
    dtype = np.uint64 if precision == "x64" else np.uint32
    labels, zeros = np.full(4, np.iinfo(dtype).max, dtype), np.zeros(4, np.int32)
    for pair in ((labels, zeros), (zeros, labels), (labels, labels - 1)):
        assert np.isnan(jax.jit(metrics.accuracy)(*pair))
    assert np.isnan(jax.jit(metrics.auroc)(labels, np.linspace(0, 1, 4)))


def test_weights_keep_their_value_or_are_refused(precision):
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    large = np.array([2**40, 2**40], np.int64)
    np.testing.assert_allclose(metrics.accuracy(labels, predicted, weights=large), 0.5)
    np.testing.assert_allclose(
        metrics.accuracy(labels, predicted, weights=large.astype(np.uint64) * 2**23), 0.5
    )
    tiny = np.full(2, 1e-36, np.float32)
    got = metrics.balanced_accuracy(labels, predicted, 2, weights=tiny).value
    np.testing.assert_allclose(got, 0.5)
    for value in (1e-60, 1e60):  # beyond float32
        weights = np.array([value, 1e-3])
        if precision == "x64":
            share = value / weights.sum()
            got = metrics.accuracy(labels, predicted, weights=weights)
            np.testing.assert_allclose(got, share)
        else:
            with pytest.raises(ValueError, match=r"in the range of float32; entry \(0,\)"):
                metrics.accuracy(labels, predicted, weights=weights)


def test_one_class_is_left_out_and_counted():
    labels = np.ones((3, 2), bool)
    labels[0, 0] = False
    areas = metrics.auroc(labels, np.array([[0.1, 3], [0.4, 2], [0.2, 1]]))
    np.testing.assert_array_equal(areas, [1, np.nan])
    mean = metrics.macro_mean(areas)
    assert (mean.value, mean.undefined) == (1, 1)
    nothing = metrics.macro_mean(jnp.full(3, jnp.nan))
    assert np.isnan(nothing.value)
    assert nothing.undefined == 3


Z2, F2 = np.array([0, 1]), np.array([0.3, 0.7])
wrongly: Any = metrics  # the calls below are wrong on purpose
ERRORS = {
    "float labels": (lambda: wrongly.auroc(F2, F2), TypeError, "labels must be integers or bool"),
    "label 2": (
        lambda: wrongly.auroc(np.array([0, 2]), F2),
        ValueError,
        r"labels must be in \[0, 2",
    ),
    "class 3": (lambda: wrongly.auroc(Z2 + 2, np.eye(2)), ValueError, "weight 0"),
    "integer scores": (lambda: wrongly.auroc(Z2, Z2), TypeError, "scores must have a floating"),
    "long labels": (
        lambda: wrongly.auroc(np.zeros(3, int), F2),
        ValueError,
        "labels must have shape",
    ),
    "label columns": (
        lambda: wrongly.auroc(np.zeros((2, 2), int), F2),
        ValueError,
        "shape of the scores",
    ),
    "long weights": (
        lambda: wrongly.auroc(Z2, F2, weights=np.ones(3)),
        ValueError,
        "weights must have",
    ),
    "negative": (
        lambda: wrongly.accuracy(Z2, Z2, weights=-F2),
        ValueError,
        "weights must be finite",
    ),
    "NaN weight": (
        lambda: wrongly.accuracy(Z2, Z2, weights=F2 * np.nan),
        ValueError,
        "finite and >= 0",
    ),
    "text weights": (
        lambda: wrongly.accuracy(Z2, Z2, weights=["a", "b"]),
        TypeError,
        "boolean mask",
    ),
    "long double weights": (
        lambda: wrongly.accuracy(Z2, Z2, weights=F2.astype(np.longdouble)),
        TypeError,
        "weights must be floats of at most 64 bits",
    ),
    "complex weights": (
        lambda: wrongly.accuracy(Z2, Z2, weights=F2 + 0j),
        TypeError,
        "weights must be floats",
    ),
    "masked weights": (
        lambda: wrongly.accuracy(Z2, Z2, weights=np.ma.array(F2, mask=[True, False])),
        TypeError,
        "weights is a masked array",
    ),
    "masked labels": (
        lambda: wrongly.accuracy(Z2, np.ma.array(Z2, mask=[True, False])),
        TypeError,
        "predicted is a masked array",
    ),
    "big-endian labels": (
        lambda: wrongly.auroc(Z2.astype(">i8"), F2),
        TypeError,
        "labels has the byte order",
    ),
    "debiased": (
        lambda: wrongly.linear_cka(X[0], Y[0], debiased=1),
        TypeError,
        "debiased must be True or False",
    ),
    "fraction of k": (lambda: wrongly.recall_at_k(F2, 1.5), TypeError, "k must be integers"),
    "lengths": (
        lambda: wrongly.accuracy(Z2, np.zeros(3, int)),
        ValueError,
        "predicted must have shape",
    ),
    "no rows": (lambda: wrongly.accuracy(Z2[:0], Z2[:0]), ValueError, "n >= 1"),
    "predicted 5": (
        lambda: wrongly.confusion_matrix(Z2, Z2 + 4, 2),
        ValueError,
        r"predicted .* entry \(0,\) is 4",
    ),
    "num_classes": (
        lambda: wrongly.confusion_matrix(Z2, Z2, 2.0),
        TypeError,
        "num_classes must be an int",
    ),
    "kappa": (
        lambda: wrongly.cohen_kappa(Z2, Z2, 2, disagreement="cubic"),
        ValueError,
        "disagreement",
    ),
    "logits": (lambda: wrongly.expected_calibration_error(Z2, 5 * F2), ValueError, "softmax"),
    "bins": (lambda: wrongly.expected_calibration_error(Z2, F2, bins=0), ValueError, "bins"),
    "spaces": (lambda: wrongly.retrieval_ranks(X[0], Y[0, :, :2]), ValueError, "same space"),
    "rows": (lambda: wrongly.linear_cka(X[0], Y[0, :5]), ValueError, "same number of rows"),
    "k": (lambda: wrongly.mutual_knn(X[0], Y[0], 20), ValueError, "less than the number of rows"),
    "csls": (
        lambda: wrongly.retrieval_ranks(X[0], Y[0], csls_neighbors=21),
        ValueError,
        "more than 20 rows",
    ),
    "neighbours": (
        lambda: wrongly.nearest_neighbors(X[0], Y[0], 20, own=np.arange(20)),
        ValueError,
        "only 19 candidates",
    ),
    "NaN": (
        lambda: wrongly.nearest_neighbors(X[0], Y[0] * np.nan, 2),
        ValueError,
        "candidates holds NaN",
    ),
    "vector": (
        lambda: wrongly.cosine_similarity(F2, np.eye(2)),
        ValueError,
        "x must have 2 or",
    ),
    "two spaces": (
        lambda: wrongly.cosine_similarity(X[0], Y[0][:, :2]),
        ValueError,
        "x and y must be in the same space",
    ),
    "no unit rows": (lambda: wrongly.normalize_rows(np.zeros((0, 2))), ValueError, "x is empty"),
    "cosines": (
        lambda: wrongly.expected_calibration_error(Z2, np.array([[0.5, -0.5], [0.2, 0.1]])),
        ValueError,
        r"probabilities must be in \[0, 1\]",
    ),
    "own": (
        lambda: wrongly.nearest_neighbors(X[0], Y[0], 2, own=np.full(20, 20)),
        ValueError,
        "own",
    ),
    "variance": (
        lambda: wrongly.svcca(X[0], Y[0], variance=1.5),
        ValueError,
        "variance must be in",
    ),
    "bandwidth": (
        lambda: wrongly.rbf_cka(X[0], Y[0], bandwidth=0.0),
        ValueError,
        "bandwidth must be > 0",
    ),
    "macro": (lambda: wrongly.macro_mean(jnp.float32(1)), ValueError, "values must have"),
    "map": (lambda: wrongly.orthogonality_error(F2), ValueError, "weight must have 2 dim"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_a_clear_error(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_score_of_numpy_arrays_is_one_program():
    n, c = 23, 3  # sizes of no other test
    rng = np.random.default_rng(0)
    labels, predicted = np.arange(n) % c, rng.integers(0, c, n)
    scores, flags = rng.normal(size=(n, c)), rng.random((n, c)) > 0.5
    shares, x, ranks = rng.dirichlet(np.ones(c), n), rng.normal(size=(n, 5)), np.arange(1.0, n + 1)
    calls: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: metrics.accuracy(labels, predicted),
        "confusion_matrix": lambda: metrics.confusion_matrix(labels, predicted, c),
        "predicted_classes": lambda: metrics.predicted_classes(scores),
        "auroc": lambda: metrics.auroc(labels, scores),
        "average_precision": lambda: metrics.average_precision(flags, scores),
        "brier_score": lambda: metrics.brier_score(labels, shares),
        "expected_calibration_error": lambda: metrics.expected_calibration_error(labels, shares),
        "mean_cosine": lambda: metrics.mean_cosine(x, x[::-1]),
        "linear_cka": lambda: metrics.linear_cka(x, x[::-1]),
        "median_rank": lambda: metrics.median_rank(ranks),
        "fit_ortho": lambda: sa.fit_ortho(x, x[::-1]),
        "fit_head": lambda: sa.fit_head(x, labels, c),
    }
    programs: list[str] = []

    def compiled(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        counted = {}
        for name, call in calls.items():
            programs.clear()
            call()
            counted[name] = len(programs)
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    assert counted == dict.fromkeys(calls, 1)


@pytest.mark.parametrize("start", [0, 1])  # where memory is aligned for XLA, and where not
def test_rows_may_change_after_a_call(start):
    rows = np.zeros(200_016 * 16, np.float32)
    start += -rows.__array_interface__["data"][0] // rows.itemsize % 16
    rows = rows[start : start + 200_000 * 16].reshape(-1, 16)
    rows[:] = 1
    found = metrics.mean_cosine(rows, rows)  # computed while this goes on
    rows[:] = np.nan
    np.testing.assert_allclose(found, 1, atol=1e-6)


def test_public_names_agree():
    assert metrics.__all__ == sorted(metrics.__all__)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
