"""Bootstrap, DeLong and paired tests against SciPy and NumPy in float64, and their coverage."""

import json
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import metrics as benchmark
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, PartitionSpec
from sklearn.metrics import roc_auc_score

from semalign_jax import metrics
from semalign_jax.metrics import intervals


def weighted_average(data, weights):
    return jnp.sum(data * weights.astype(data.dtype)) / jnp.sum(weights).astype(data.dtype)


def area(data, weights):
    return metrics.auroc(*data, weights=weights)


def scored(n, seed=0, strength=1.0, decimals=1):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    labels[:2] = [False, True]
    first = np.round(rng.standard_normal(n) + strength * labels, decimals)
    second = np.round(0.7 * first + 0.7 * rng.standard_normal(n) + 0.2 * labels, decimals)
    return labels, first, second


# --- resampling --------------------------------------------------------------------------------


def test_resamples_draw_rows_with_equal_probability():
    draws = np.asarray(intervals.bootstrap_weights(jax.random.key(0), 50, 4000))
    assert (draws.sum(1) == 50).all()
    # Counts of a row are binomial(50, 1 / 50): mean 1, variance 0.98.
    assert np.abs(draws.mean(0) - 1).max() < 5 * np.sqrt(0.98 / 4000)
    assert abs(draws.var() - 0.98) < 0.02
    covariance = np.cov(draws.T)[~np.eye(50, dtype=bool)]
    assert abs(covariance.mean() + 1 / 50) < 1e-3


def test_strata_keep_their_sizes_and_clusters_stay_whole():
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, 30, 100)) * 7 - 50
    hospital = np.where(patients < 40, 3, -1)
    mask = rng.random(100) < 0.8
    options = {"strata": hospital, "clusters": patients, "weights": mask}
    draws = np.asarray(intervals.bootstrap_weights(jax.random.key(1), 100, 300, **options))
    assert (draws[:, ~mask] == 0).all()
    active = np.unique(patients[mask])
    counts = np.stack([draws[:, mask & (patients == p)].max(1) for p in active], axis=1)
    for p, count in zip(active, counts.T, strict=True):
        rows = draws[:, mask & (patients == p)]
        assert (rows == count[:, None]).all()
    first = np.array([hospital[patients == p][0] == 3 for p in active])
    assert (counts[:, first].sum(1) == first.sum()).all()
    assert (counts[:, ~first].sum(1) == (~first).sum()).all()
    assert np.abs(counts.mean(0) - 1).max() < 0.3


def test_weights_multiply_the_counts():
    w = np.array([0.5, 0, 2, 1], np.float32)
    draws = np.asarray(intervals.bootstrap_weights(jax.random.key(0), 4, 50, weights=w))
    counts = draws[:, [0, 2, 3]] / w[[0, 2, 3]]
    np.testing.assert_array_equal(counts, np.round(counts))
    assert (counts.sum(1) == 3).all()
    assert (draws[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_numbers_of_clusters_and_strata_do_not_wrap_around(dtype, precision):
    """Modulo 2^32 the first two patients are one."""
    ids = np.repeat(np.array([0, 2**32, 2**63 - 1], dtype), 6)
    key = jax.random.key(0)
    draw = partial(intervals.bootstrap_weights, key, 18, 50)
    expected = np.repeat(np.arange(3), 6)
    np.testing.assert_array_equal(draw(clusters=ids), draw(clusters=expected))
    np.testing.assert_array_equal(draw(strata=ids), draw(strata=expected))
    assert (np.asarray(draw(clusters=ids))[:, 0] != np.asarray(draw(clusters=ids))[:, 6]).any()


def test_large_numbers_of_traced_clusters_do_not_wrap_around(precision):
    largest = 2**63 if precision == "x64" else 2**31
    dtype = jnp.uint64 if precision == "x64" else jnp.uint32
    ids = np.repeat(np.array([0, largest, 2 * largest - 1], dtype), 6)
    draw = jax.jit(lambda c: intervals.bootstrap_weights(jax.random.key(0), 18, 50, clusters=c))
    expected = draw(np.repeat(np.arange(3), 6).astype(dtype))
    np.testing.assert_array_equal(draw(ids), expected)


# --- intervals ---------------------------------------------------------------------------------


def scipy_interval(data, statistic, replicates, method, level):
    """SciPy's interval of given replicates."""
    result = scipy.stats.bootstrap(
        data, statistic, n_resamples=2, vectorized=False, paired=False, method="percentile"
    )
    result = type(result)(result.confidence_interval, replicates, result.standard_error)
    done = scipy.stats.bootstrap(
        data, statistic, n_resamples=0, vectorized=False, method=method,
        confidence_level=level, bootstrap_result=result,
    )  # fmt: skip
    return np.array([*done.confidence_interval, done.standard_error])


def test_interval_of_a_mean_equals_scipy(precision):
    x = np.random.default_rng(0).lognormal(size=40).astype(np.float32)
    key, level = jax.random.key(3), 0.9
    draws = np.asarray(intervals.bootstrap_weights(key, 40, 500), np.float64)
    wide = x.astype(np.float64)
    for method in ("percentile", "bca"):
        got = intervals.bootstrap(
            weighted_average, x, 40, key, resamples=500, level=level, method=method
        )
        expected = scipy_interval((wide,), np.mean, draws @ wide / 40, method, level)
        np.testing.assert_allclose((got.lower, got.upper, got.standard_error), expected, rtol=2e-5)
        np.testing.assert_allclose(got.estimate, wide.mean(), rtol=1e-6)
        assert int(got.undefined) == 0


def stratified_area(data, weights):
    return metrics.auroc_from_ranking(data, weights.astype(jnp.float64))


def test_stratified_bca_interval_equals_scipy_of_two_samples():
    """Of the AUROC: positives and negatives are two samples."""
    labels, scores, _ = scored(60)
    key = jax.random.key(0)
    ranking = metrics.rank_scores(labels, scores)
    got = intervals.bootstrap(
        stratified_area, ranking, 60, key, resamples=400, method="bca", strata=labels
    )
    draws = intervals.bootstrap_weights(key, 60, 400, strata=labels)
    replicates = np.array(
        [roc_auc_score(labels, scores, sample_weight=w) for w in np.asarray(draws)]
    )

    def statistic(positives, negatives):
        return (
            scipy.stats.mannwhitneyu(positives, negatives).statistic
            / len(positives)
            / len(negatives)
        )

    expected = scipy_interval((scores[labels], scores[~labels]), statistic, replicates, "BCa", 0.95)
    np.testing.assert_allclose((got.lower, got.upper, got.standard_error), expected, rtol=1e-9)


def test_clustered_interval_is_that_of_cluster_totals():
    """Clusters of equal size: the mean of rows is the mean of cluster means."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal(25)
    x = np.repeat(centers, 4) + 0.1 * rng.standard_normal(100)
    patients = np.repeat(np.arange(25), 4)
    order = rng.permutation(100)
    x, patients = x[order], patients[order]
    key = jax.random.key(0)
    got = intervals.bootstrap(
        weighted_average, x, 100, key, clusters=patients, method="bca", resamples=500
    )
    means = np.bincount(patients, x) / 4
    draws = np.asarray(intervals.bootstrap_weights(key, 100, 500, clusters=patients))
    first_row = [np.flatnonzero(patients == p)[0] for p in range(25)]
    replicates = draws[:, first_row] @ means / 25
    expected = scipy_interval((means,), np.mean, replicates, "BCa", 0.95)
    np.testing.assert_allclose((got.lower, got.upper, got.standard_error), expected, rtol=1e-9)
    rows = intervals.bootstrap(weighted_average, x, 100, key, resamples=500)
    assert float(got.standard_error) > 1.5 * float(rows.standard_error)


def test_masked_rows_are_inert():
    labels, scores, _ = scored(60)
    mask = np.arange(60) < 48
    run = partial(intervals.bootstrap, area, method="bca", resamples=200, weights=mask)
    got = run((labels, scores), 60, jax.random.key(0))
    garbage = (np.where(mask, labels, True), np.where(mask, scores, np.nan))
    again = run(garbage, 60, jax.random.key(0))
    # Garbage may sort between the others, which changes the order of sums.
    np.testing.assert_allclose(got, again, rtol=1e-12)
    short = intervals.bootstrap(
        area, (labels[:48], scores[:48]), 48, jax.random.key(1), method="bca", resamples=1000
    )
    np.testing.assert_allclose(got.estimate, short.estimate, rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, short.standard_error, rtol=0.2)
    np.testing.assert_allclose([got.lower, got.upper], [short.lower, short.upper], atol=0.05)


def test_undefined_resamples_are_left_out_and_counted():
    labels = np.zeros((30, 3), bool)
    labels[:2, 0] = True  # now and then not drawn
    labels[:, 1] = True  # never a negative
    labels[::2, 2] = True
    scores = np.random.default_rng(0).standard_normal((30, 3))
    ranking = metrics.rank_scores(labels, scores)
    key = jax.random.key(0)
    for method in ("percentile", "bca"):
        got = intervals.bootstrap(
            metrics.auroc_from_ranking, ranking, 30, key, resamples=300, method=method
        )
        draws = np.asarray(intervals.bootstrap_weights(key, 30, 300))
        without = np.sum(draws[:, :2].sum(1) == 0)
        assert without > 10
        np.testing.assert_array_equal(got.undefined, [without, 300, 0])
        bounds = np.stack([got.lower, got.upper, got.standard_error])
        assert np.isnan(bounds[:, 1]).all()
        assert np.isfinite(bounds[0, [0, 2]]).all()
    replicates = np.array([
        roc_auc_score(labels[:, 0], scores[:, 0], sample_weight=w)
        for w in draws if w[:2].sum() > 0
    ])  # fmt: skip
    got = intervals.bootstrap(metrics.auroc_from_ranking, ranking, 30, key, resamples=300)
    expected = np.quantile(replicates, [0.025, 0.975])
    bounds = np.stack([got.lower, got.upper, got.standard_error])[:, 0]
    np.testing.assert_allclose(bounds[:2], expected, atol=1e-6)
    np.testing.assert_allclose(bounds[2], replicates.std(ddof=1), rtol=1e-5)


def odds(data, weights):
    return jnp.sum(weights * data) / jnp.sum(weights * (1 - data))


def test_infinite_resamples_count_as_the_largest():
    data = np.array([1, 1, 1, 1, 1, 0], np.float32)  # some draw no 0
    for method in ("percentile", "bca"):
        got = intervals.bootstrap(odds, data, 6, jax.random.key(0), resamples=60, method=method)
        assert (got.estimate, got.upper, got.undefined) == (5, np.inf, 0)
        assert 0 < got.lower < 5


def macro_area(ranking, weights):
    return metrics.macro_mean(metrics.auroc_from_ranking(ranking, weights))


def test_statistics_may_be_structures():
    labels, first, second = scored(60)
    ranking = metrics.rank_scores(
        np.stack([labels, ~labels, labels | True], 1), np.stack([first, -second, second], 1)
    )
    got = intervals.bootstrap(macro_area, ranking, 60, jax.random.key(0), resamples=400)
    assert isinstance(got.lower, metrics.MacroMean)
    assert got.lower.undefined == got.upper.undefined == 1
    assert got.lower.value < got.estimate.value < got.upper.value


def test_perfect_scores_have_a_degenerate_interval():
    labels = np.arange(60) < 24
    ranking = metrics.rank_scores(labels, labels.astype(float))
    for method in ("percentile", "bca"):
        got = intervals.bootstrap(
            metrics.auroc_from_ranking, ranking, 60, jax.random.key(0), resamples=400, method=method
        )
        np.testing.assert_allclose([got.lower, got.upper], 1, rtol=1e-6)


def test_batch_size_and_jit_do_not_matter_and_code_is_reused():
    labels, scores, _ = scored(60)
    ranking, key = metrics.rank_scores(labels, scores), jax.random.key(0)
    run = partial(
        intervals.bootstrap, metrics.auroc_from_ranking, rows=60, resamples=400, method="bca"
    )
    expected = run(ranking, key=key)
    for got in (
        run(ranking, key=key, batch_size=90),
        jax.jit(lambda r, k: run(r, key=k))(ranking, key),
        jax.tree_util.tree_map(
            lambda a: np.asarray(a)[1],
            jax.vmap(lambda k: run(ranking, key=k))(jnp.stack([jax.random.key(1), key])),
        ),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5)

    @chex.assert_max_traces(n=3)
    def counted(ranking, weights):
        return metrics.auroc_from_ranking(ranking, weights)

    statistic: Any = counted
    for seed in range(3):
        labels, scores, _ = scored(60, seed=seed)
        ranking = metrics.rank_scores(labels, scores)
        intervals.bootstrap(statistic, ranking, 60, jax.random.key(seed), resamples=20)


def test_resampling_runs_in_shard_map():
    """Of rows that each device has, with its default `check_vma`."""
    rows = [scored(40, seed=seed) for seed in range(2)]
    labels, first, second = (np.stack(a) for a in zip(*rows, strict=True))
    key = jax.random.key(0)
    options: dict[str, Any] = {"rows": 40, "key": key}

    def on_device(labels, first, second):
        pair = (labels, first), (labels, second)
        own: dict[str, Any] = {"resamples": 9, "strata": labels, "weights": second > -2}
        found = (
            intervals.bootstrap(area, pair[0], method="bca", **own, **options),
            intervals.paired_bootstrap_test(area, *pair, **own, **options),
            intervals.paired_permutation_test(area, *pair, permutations=9, **options),
            intervals.delong_test(labels, first, second),
        )
        return jnp.stack([found[0].upper, found[1].p_value, found[2].p_value, found[3].p_value])

    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])
    split = PartitionSpec("d")
    mapped = jax.shard_map(
        lambda *args: on_device(*(a[0] for a in args))[None],
        mesh=mesh, in_specs=split, out_specs=split,
    )  # fmt: skip
    assert jax.eval_shape(mapped, labels, first, second).shape == (2, 4)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Percentile, BCa and DeLong at 90 % in 300 experiments, each within 4 standard errors."""
    truth = float(scipy.stats.norm.cdf(1 / np.sqrt(2)))
    keys = jax.random.split(jax.random.key(0), 300)
    labels = jnp.arange(60) < 25

    @jax.jit
    @jax.vmap
    def run(key):
        first, second = jax.random.split(key)
        scores = jax.random.normal(first, (60,)) + labels.astype(jnp.float64)
        ranking = metrics.rank_scores(labels, scores)
        options = {"resamples": 200, "level": 0.9, "strata": labels.astype(jnp.int32)}
        found = [
            intervals.bootstrap(
                metrics.auroc_from_ranking, ranking, 60, second, method=method, **options
            )
            for method in ("percentile", "bca")
        ]
        found = [*found, intervals.delong_interval(labels, scores, level=0.9)]
        return jnp.stack([(i.lower <= truth) & (truth <= i.upper) for i in found])

    coverage = np.asarray(run(keys)).mean(0)
    assert (np.abs(coverage - 0.9) < 4 * np.sqrt(0.09 / 300)).all(), coverage


# --- DeLong ------------------------------------------------------------------------------------


def delong_reference(labels, *scores):
    """AUROCs and their covariance, from all pairs, as in the paper."""
    v10, v01 = [], []
    for s in scores:
        pairs = s[labels][:, None] - s[~labels][None, :]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
    covariance = np.cov(v10) / labels.sum() + np.cov(v01) / (~labels).sum()
    return np.mean(v10, axis=1), np.atleast_2d(covariance)


def test_delong_by_its_definition(precision):
    labels, first, second = scored(60, decimals=0)
    first, second = first.astype(np.float32), second.astype(np.float32)
    areas, covariance = delong_reference(labels, first, second)
    tolerance = 1e-6
    got = intervals.delong_interval(labels, first, level=0.9)
    error = np.sqrt(covariance[0, 0])
    np.testing.assert_allclose(got.estimate, areas[0], rtol=tolerance)
    np.testing.assert_allclose(got.standard_error, error, rtol=tolerance)
    expected = np.clip(scipy.stats.norm.interval(0.9, areas[0], error), 0, 1)
    np.testing.assert_allclose([got.lower, got.upper], expected, rtol=tolerance)
    test = intervals.delong_test(labels, first, second)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    z = (areas[0] - areas[1]) / error
    np.testing.assert_allclose(test.difference, areas[0] - areas[1], rtol=2e-5)
    np.testing.assert_allclose(test.standard_error, error, rtol=1e-5)
    np.testing.assert_allclose(test.p_value, 2 * scipy.stats.norm.sf(abs(z)), rtol=1e-4)
    back = intervals.delong_test(labels, second, first)
    np.testing.assert_allclose([back.z, back.p_value], [-test.z, test.p_value], rtol=1e-5)


def test_delong_counts_are_repeated_rows_and_masks_removed_ones():
    labels, first, second = scored(60)
    counts = np.random.default_rng(0).multinomial(60, np.ones(60) / 60)
    repeated = [np.repeat(a, counts) for a in (labels, first, second)]
    hole = np.where(counts > 0, first, np.nan)
    junk = np.where(counts > 0, labels, -3)
    got = intervals.delong_interval(junk, hole, weights=counts)
    np.testing.assert_allclose(got, intervals.delong_interval(*repeated[:2]), rtol=1e-9)
    got = intervals.delong_test(junk, hole, second, weights=counts)
    np.testing.assert_allclose(got, intervals.delong_test(*repeated), rtol=1e-7)


def test_delong_of_many_labels_and_degenerate_cases():
    labels, first, second = scored(60)
    columns = np.stack([labels, np.zeros(60, bool), np.arange(60) == 5, labels], 1)
    scores = np.stack([first, first, first, labels.astype(float)], 1)
    got = jax.tree.map(np.asarray, intervals.delong_interval(columns, scores))
    single = intervals.delong_interval(labels, first)
    np.testing.assert_allclose([field[0] for field in got], single, rtol=1e-12)
    np.testing.assert_allclose(got.estimate, metrics.auroc(columns, scores), rtol=1e-12)
    assert np.isnan([field[1] for field in got]).all()
    assert np.isfinite(got.estimate[2])
    assert np.isnan(got.standard_error[2])
    np.testing.assert_array_equal([got.estimate[3], got.lower[3], got.upper[3]], 1)
    same = intervals.delong_test(labels, first, 3 * first)
    assert (same.difference, same.z, same.p_value) == (0, 0, 1)
    opposite = intervals.delong_test(labels, labels - 0.5, 0.5 - labels)
    assert (opposite.difference, opposite.p_value) == (1, 0)
    nan = jax.jit(intervals.delong_test)(labels, np.where(labels, first, np.nan), second)
    assert np.isnan(nan).all()
    nan = jax.jit(intervals.delong_interval)(labels, np.where(np.arange(60) == 1, np.nan, first))
    assert np.isnan(nan).all()


def test_delong_under_vmap():
    rows = [scored(60, seed=seed) for seed in range(3)]
    stacked = [np.stack(a) for a in zip(*rows, strict=True)]
    batched = jax.tree.map(np.asarray, jax.jit(jax.vmap(intervals.delong_test))(*stacked))
    for i in range(3):
        expected = intervals.delong_test(*rows[i])
        np.testing.assert_allclose([f[i] for f in batched], expected, rtol=1e-9)


# --- paired tests ------------------------------------------------------------------------------


def test_paired_bootstrap_by_its_definition():
    labels, first, second = scored(60)
    key = jax.random.key(2)
    got = intervals.paired_bootstrap_test(
        area, (labels, first), (labels, second), 60, key, resamples=400, level=0.8
    )
    draws = np.asarray(intervals.bootstrap_weights(key, 60, 400))
    observed = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    differences = np.array([
        roc_auc_score(labels, first, sample_weight=w)
        - roc_auc_score(labels, second, sample_weight=w) for w in draws
    ])  # fmt: skip
    np.testing.assert_allclose(got.difference, observed, rtol=1e-6)
    np.testing.assert_allclose(
        [got.lower, got.upper], np.quantile(differences, [0.1, 0.9]), rtol=1e-5
    )
    extreme = np.sum(np.abs(differences - observed) >= abs(observed) - 1e-9)
    np.testing.assert_allclose(got.p_value, (extreme + 1) / 401, rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, differences.std(ddof=1), rtol=1e-5)


def hits(data, weights):
    return metrics.accuracy(*data, weights=weights)


def test_permutation_test_of_accuracy_is_the_sign_test():
    """Swapping outputs of a row changes the accuracies only where one of the methods is right."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 40)
    first = np.where(rng.random(40) < 0.75, labels, (labels + 1) % 3)
    second = np.where(rng.random(40) < 0.6, labels, (labels + 1) % 3)
    only = [np.sum((a == labels) & (b != labels)) for a, b in ((first, second), (second, first))]
    exact = scipy.stats.binomtest(int(only[0]), int(sum(only))).pvalue
    got = intervals.paired_permutation_test(
        hits, (labels, first), (labels, second), 40, jax.random.key(0), permutations=4000
    )
    assert 0.01 < exact < 0.5
    np.testing.assert_allclose(got.p_value, exact, atol=4 * float(np.sqrt(exact / 4000)))
    assert int(got.undefined) == 0
    same = intervals.paired_permutation_test(
        hits, (labels, first), (labels, first), 40, jax.random.key(0), permutations=20
    )
    assert same.p_value == 1


def test_clusters_are_swapped_together():
    """One cluster of all rows: the difference can only keep or change its sign."""
    labels, first, second = scored(60)
    run = partial(
        intervals.paired_permutation_test, area, (labels, first), (labels, second), 60,
        jax.random.key(0), permutations=500,
    )  # fmt: skip
    assert run(clusters=np.zeros(60, int)).p_value == 1
    assert run().p_value < 1


def test_permutation_agrees_with_delong_and_counts_undefined():
    labels, first, second = scored(60, strength=1.5)
    # A common scale, as the test requires.
    first, second = (scipy.stats.rankdata(s) / 60 for s in (first, second))
    key = jax.random.key(0)
    arguments = (area, (labels, first), (labels, second), 60, key)
    got = intervals.paired_permutation_test(*arguments, permutations=500)
    delong = intervals.delong_test(labels, first, second)
    np.testing.assert_allclose(got.difference, delong.difference, rtol=1e-6)
    assert abs(float(got.p_value) - float(delong.p_value)) < 0.1
    one = np.ones(4, bool)
    nothing = intervals.paired_permutation_test(
        area, (one, first[:4]), (one, second[:4]), 4, key, permutations=10
    )
    assert np.isnan([nothing.difference, nothing.p_value]).all()
    assert int(nothing.undefined) == 10


@pytest.mark.slow
def test_p_values_are_uniform_without_a_difference():
    keys = jax.random.split(jax.random.key(0), 300)
    labels = jnp.arange(40) < 16

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        first, second = (jax.random.normal(k, (40,)) + labels.astype(jnp.float64) for k in keys[:2])
        bootstrap = intervals.paired_bootstrap_test(
            area, (labels, first), (labels, second), 40, keys[2], resamples=99
        )
        swapped = intervals.paired_permutation_test(
            area, (labels, first), (labels, second), 40, keys[2], permutations=99
        )
        delong = intervals.delong_test(labels, first, second)
        return jnp.stack(
            [p.astype(jnp.float32) for p in (bootstrap.p_value, swapped.p_value, delong.p_value)]
        )

    p_values = np.asarray(run(keys))
    below = (p_values <= 0.2).mean(0)
    assert (np.abs(below - 0.2) < 4 * np.sqrt(0.16 / 300)).all(), below


# --- errors ------------------------------------------------------------------------------------

KEY, Z = jax.random.key(0), np.arange(4)
D = (np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))
RUN: Any = partial(intervals.bootstrap, area, D, 4, KEY, resamples=3)
SWAP: Any = partial(intervals.paired_permutation_test, area, permutations=3)
wrongly: Any = intervals  # the calls below are wrong on purpose
ERRORS = {
    "method": (lambda: RUN(method="normal"), ValueError, "method must be one of"),
    "level": (lambda: RUN(level=95), ValueError, r"level must be a number in \(0, 1\)"),
    "resamples": (
        lambda: wrongly.bootstrap(area, D, 4, KEY, resamples=0),
        ValueError,
        "resamples",
    ),
    "rows": (lambda: wrongly.bootstrap(area, D, 4.0, KEY), TypeError, "rows must be an int"),
    "strata": (lambda: RUN(strata=Z[:3]), ValueError, r"strata must have shape \(4,\)"),
    "text": (lambda: RUN(clusters=["a", "b", "a", "b"]), TypeError, r"unique\(clusters, return"),
    "split": (
        lambda: RUN(clusters=Z // 2, strata=Z % 2),
        ValueError,
        "strata split 2 of the clusters",
    ),
    "weights": (lambda: RUN(weights=-Z), ValueError, "weights must be finite and >= 0"),
    "batch": (lambda: RUN(batch_size=0), ValueError, "batch_size"),
    "masked clusters": (
        lambda: RUN(clusters=np.ma.array(Z, mask=Z == 1)),
        TypeError,
        "clusters is a masked array",
    ),
    "big-endian strata": (
        lambda: RUN(strata=Z.astype(">i4")),
        TypeError,
        "strata has the byte order",
    ),
    "key": (lambda: wrongly.bootstrap(area, D, 4, 0), TypeError, "key must be made by"),
    "key of weights": (
        lambda: wrongly.bootstrap_weights(0, 4, 3),
        TypeError,
        "key must be made by",
    ),
    "key of swaps": (lambda: SWAP(D, D, 4, 0), TypeError, "key must be made by"),
    "keys": (
        lambda: wrongly.paired_bootstrap_test(area, D, D, 4, jax.random.split(KEY, 2)),
        ValueError,
        "key must be one key",
    ),
    "structure": (lambda: SWAP(D, D[0], 4, KEY), ValueError, "same structure"),
    "leaf": (lambda: SWAP(D, (D[0], D[1][:2]), 4, KEY), ValueError, "each of the 4 rows"),
    "shapes": (
        lambda: wrongly.delong_test(D[0], D[1], D[1][:2]),
        ValueError,
        "first and second must have",
    ),
    "second": (
        lambda: wrongly.delong_test(D[0], D[1], D[0]),
        TypeError,
        "second must have a floating",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_a_clear_error(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_data_that_jax_would_wrap_around_is_refused():
    """Where 64-bit types are on, the statistic sees the integers as they are, and says NaN."""
    large = (np.full(4, 2**32), np.zeros(4, int))
    calls = [
        ("data", lambda: intervals.bootstrap(hits, large, 4, KEY, resamples=3)),
        ("second", lambda: intervals.paired_bootstrap_test(hits, D, large, 4, KEY, resamples=3)),
        ("first", lambda: intervals.paired_permutation_test(hits, large, large, 4, KEY)),
    ]
    assert np.isnan(calls[0][1]().estimate)
    with jax.enable_x64(False):
        for name, call in calls:
            with pytest.raises(ValueError, match=f"{name} holds int64 beyond the range of int32"):
                call()


@pytest.mark.slow
def test_benchmark_compares_the_same_values(tmp_path, capsys):
    arguments = ["--rows", "200", "--labels", "2", "--resamples", "30", "--repeats", "1"]
    docs = tmp_path / "speed.md"
    assert benchmark.main([*arguments, "--quick", "--out", str(tmp_path), "--docs", str(docs)]) == 0
    printed = capsys.readouterr().out
    assert "timed on 20 resamples" in printed
    assert docs.read_text().partition("\n\n")[2] == printed
    row = json.loads((tmp_path / "metrics.json").read_text())["bootstrap"]
    assert row["difference"] < 1e-6
    assert row["loop_ratio"] > 0


def test_weightless_rows_may_split_clusters():
    weights = np.array([1, 0, 1, 1])
    got = intervals.bootstrap_weights(
        KEY, 4, 5, clusters=Z // 2, strata=np.array([0, 1, 1, 1]), weights=weights
    )
    assert (np.asarray(got)[:, 0] == 1).all()
