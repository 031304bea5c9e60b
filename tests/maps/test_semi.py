"""Maps from anchors and unpaired rows, against the recipe in float64 NumPy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some

import semalign_jax as sa
from semalign_jax.maps.semi import sinkhorn
from semalign_jax.stitching import head_accuracy
from semalign_jax.studies import demo
from semalign_jax.zeroshot import evaluate_zero_shot

STRENGTHS = (0.32, 1.0, 3.2, 10.0, 32.0)


def unit(a):
    norms = np.linalg.norm(a, axis=-1, keepdims=True)
    return a / np.where(norms > 0, norms, 1)


def plan(similarity, epsilon, scalings):
    """Row-normalised entropic coupling of uniform marginals, not in the log domain."""
    kernel = np.exp(similarity / epsilon)
    columns = np.ones(kernel.shape[1])
    for _ in range(scalings):
        rows = 1 / (kernel @ columns)
        columns = len(kernel) / kernel.shape[1] / (kernel.T @ rows)
    kernel = kernel * columns
    return kernel / kernel.sum(1, keepdims=True)


def ridge(x, y, weights, prior, strength):
    base = prior * np.eye(x.shape[1], y.shape[1])
    gram = (x.T * weights) @ x
    penalty = strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    return base + np.linalg.solve(gram + penalty, (x.T * weights) @ (y - x @ base))


def rms(a):
    return np.sqrt(np.mean(np.sum(a * a, axis=1)))


def both(x, y, pools, penalty, epsilon=0.03):
    """Means of the anchors, weights without and with the pools."""
    means = x.mean(0), y.mean(0)
    x, y, p, q = (a - m for a, m in zip((x, y, *pools), means * 2, strict=True))
    alone = found = ridge(x, y, np.ones(len(x)), *penalty)
    weights = np.repeat([1, len(x) / len(p)], [len(x), len(p)])
    for _ in range(3):
        targets = plan(unit(p @ found) @ unit(q).T, epsilon, 15) @ q
        found = ridge(np.vstack([x, p]), np.vstack([y, targets]), weights, *penalty)
    joint = found / rms(p @ found) + 0.5 * alone / rms(p @ alone)
    return means, alone, joint * rms(q) / rms(p @ joint)


def recipe(x, y, pools, folds=4):
    n = len(x)
    a, b = x - x.mean(0), y - y.mean(0)
    size = np.linalg.norm(b) / np.linalg.norm(a)
    priors = np.arange(5) / 4 * size if a.shape[1] == b.shape[1] else [0.0]
    scores = {}
    for prior in priors:
        for strength in STRENGTHS:
            found = np.empty_like(b)
            for i in range(n):  # refitted without row i, with the means and the penalty of all
                others = np.arange(n) != i
                gram, base = a[others].T @ a[others], prior * np.eye(*(a.shape[1], b.shape[1]))
                # The offset is free: centred by the mean of the others.
                c, d = (s - s[others].mean(0) for s in (a, b))
                gram = c[others].T @ c[others]
                penalty = strength * np.sum(a * a) / a.shape[1] * np.eye(len(gram))
                cross = c[others].T @ (d[others] - c[others] @ base)
                weight = base + np.linalg.solve(gram + penalty, cross)
                found[i] = b[others].mean(0) + c[i] @ weight
            scores[prior, strength] = np.mean(np.sum(unit(found) * unit(b), 1)), found
    penalty = max(scores, key=lambda key: scores[key][0])
    left_out = scores[penalty][1]
    cosines = np.zeros(2)
    for fold in range(folds):
        out = np.arange(n) % folds == fold
        means, *weights = both(x[~out], y[~out], pools, penalty)
        for k, weight in enumerate(weights):
            mapped = (x[out] - means[0]) @ weight
            cosines[k] += np.sum(unit(mapped) * unit(y[out] - means[1])) / n
    means, alone, joint = both(x, y, pools, penalty)
    mapped, q = (pools[0] - means[0]) @ alone, pools[1] - means[1]
    expected = np.mean(np.sum((left_out - b) ** 2, 1)) / n
    expected += mapped.var(0).sum() / len(mapped) + q.var(0).sum() / len(q)
    shift = np.sum((mapped.mean(0) - q.mean(0)) ** 2) / expected
    alone = alone * np.linalg.norm(b) / np.linalg.norm(left_out)
    return joint, alone, means, cosines, (penalty[0] / size, penalty[1]), shift


def problem(n=12, d_in=8, d_out=8, pools=(60, 50), seed=7, same=False):
    """Clustered rows, of which n are matched; `same`: of almost one space."""
    rng = np.random.default_rng(seed)
    count = n + sum(pools)
    latent = 3 * rng.standard_normal((20, 5))[rng.integers(0, 20, count)]
    latent = latent + rng.standard_normal((count, 5))
    x, y = (latent @ rng.standard_normal((5, d)) for d in (d_in, d_out))
    y = x if same else y
    x, y = (a + 0.3 * rng.standard_normal(a.shape) + 1 for a in (x, y))
    return x[:n], y[:n], x[n : n + pools[0]], y[n + pools[0] :], rng


def test_coupling_is_that_of_many_scalings():
    rng = np.random.default_rng(0)
    for n, m, epsilon in ((30, 20, 0.05), (7, 40, 0.3)):
        similarity = unit(rng.standard_normal((n, 6))) @ unit(rng.standard_normal((m, 6))).T
        found = sinkhorn(jnp.asarray(similarity / epsilon), 2000)
        np.testing.assert_allclose(found, plan(similarity, epsilon, 10_000), atol=1e-9)
        np.testing.assert_allclose(np.sum(found, axis=0), n / m, rtol=1e-6)
    sharp = sinkhorn(jnp.asarray(similarity / 1e-4, jnp.float32), 15)  # no kernel holds exp(1e4)
    assert np.isfinite(sharp).all()


@pytest.mark.parametrize(("d_out", "same"), some([(8, True), (8, False), (5, False)]))
def test_a_fit_is_that_of_the_recipe(d_out, same):
    x, y, p, q, _ = problem(d_out=d_out, same=same)
    found, info = sa.fit_semi(x, y, p, q)
    joint, _, means, cosines, penalty, shift = recipe(x, y, (p, q))
    assert bool(info.used)
    assert bool(info.prior > 0) == same
    np.testing.assert_allclose(found.weight, joint, atol=1e-7)
    np.testing.assert_allclose(found.source_offset, means[0], atol=1e-12)
    np.testing.assert_allclose(found.target_offset, means[1], atol=1e-12)
    np.testing.assert_allclose((info.anchors_cosine, info.unpaired_cosine), cosines, atol=1e-9)
    np.testing.assert_allclose((info.prior, info.strength), penalty, rtol=1e-9)
    np.testing.assert_allclose(info.shift, shift, rtol=1e-9)
    compiled, _ = jax.jit(sa.fit_semi)(x, y, p, q)
    np.testing.assert_allclose(compiled.weight, found.weight, atol=1e-9)
    unit = 2.0**-600  # whose square is out of range
    tiny, _ = sa.fit_semi(x * unit, y, p * unit, q)
    np.testing.assert_allclose(tiny.weight * unit, found.weight, atol=1e-9)


def test_a_common_offset_costs_no_digits():
    x, y, p, q, _ = problem(seed=1)
    narrow: Any = [np.asarray(a + 1000, np.float32) for a in (x, y, p, q)]
    wide = [a.astype(np.float64) for a in narrow]
    expected, found = (np.float64(sa.fit_semi(*data)[0].weight) for data in (wide, narrow))
    assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)


def test_pools_that_do_not_match_are_left_out():
    x, y, p, q, rng = problem()
    noise = rng.standard_normal(q.shape) * 3 + q.mean(0)
    with pytest.warns(
        UserWarning, match="the map is of the anchors alone: with the unpaired rows the mean cos"
    ):
        found, info = sa.fit_semi(x, y, p, noise)
    assert not bool(info.used)
    np.testing.assert_allclose(found.weight, recipe(x, y, (p, noise))[1], atol=1e-9)
    with pytest.warns(
        UserWarning, match=r"x_unpaired show other things: .* means is \d+\.\d times"
    ):
        far, info = sa.fit_semi(x, y, p, q + 9)
    np.testing.assert_allclose(far.weight, found.weight, atol=1e-9)
    jax.jit(sa.fit_semi)(x, y, p, q + 9)  # where there is nothing to look at, no warning


def test_pools_of_many_rows_go_in_blocks():
    x, y, p, q, _ = problem(pools=(300, 200))
    whole, info = sa.fit_semi(x, y, p, q, block_rows=300)
    parts, of_parts = sa.fit_semi(x, y, p, q, block_rows=64, key=jax.random.key(1))
    assert bool(info.used)
    assert bool(of_parts.used)
    one, two = (mapping(p) - mapping.target_offset[None, :] for mapping in (whole, parts))
    assert sa.metrics.mean_cosine(one, two) > 0.98
    again, _ = sa.fit_semi(x, y, p, q, block_rows=64, key=jax.random.key(1))
    np.testing.assert_array_equal(again.weight, parts.weight)


@pytest.mark.filterwarnings("ignore:the map is of the anchors alone")
def test_rows_that_say_nothing_give_a_finite_map():
    x, y, p, q, _ = problem()
    constant = (
        (np.ones_like(x), y, p, q),
        (x, np.ones_like(y), p, q),
        (x, y, np.ones_like(p), q),
        (x, y, p, np.ones_like(q)),
        tuple(map(np.ones_like, (x, y, p, q))),
    )
    for rows in constant:
        found, info = sa.fit_semi(*rows)
        assert all(np.isfinite(a).all() for a in (*found, *info))
    found, _ = sa.fit_semi(x[:4], y[:4], p, q)  # one in each fold
    assert np.isfinite(found.weight).all()


def test_bad_input_names_the_argument():
    x, y, p, q, _ = problem()
    for arguments, message in (
        ((x[:3], y[:3], p, q), "x and y have 3 rows: fit_semi needs at least 4 anchors"),
        ((x, y[:-1], p, q), "x and y must have the same number of rows"),
        ((x, y, p[:, :-1], q), "x_unpaired must have the 8 features of x; got"),
        ((x, y, p, q[:, :-1]), "y_unpaired must have the 8 features of y; got"),
        ((x, y, p[:0], q), "x_unpaired is empty"),
        ((x, y, p, q[:0]), "y_unpaired is empty"),
        ((x, y, np.where(np.arange(60)[:, None] == 3, np.nan, p), q), "x_unpaired holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            sa.fit_semi(*arguments)
    with pytest.raises(ValueError, match="epsilon must be > 0"):
        sa.fit_semi(x, y, p, q, epsilon=0.0)
    with pytest.raises(ValueError, match="block_rows must be at least 1"):
        sa.fit_semi(x, y, p, q, block_rows=0)
    with pytest.raises(TypeError, match="y_unpaired must have a floating-point dtype"):
        sa.fit_semi(x, y, p, np.ones((4, 8), int))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the map is of the anchors alone")
def test_unpaired_rows_are_worth_points_on_the_shipped_embeddings():
    """50 anchors and 500 rows of either side."""
    images = {name: demo.load_demo(name) for name in demo.EMOJI.values()}
    captions = demo.load_demo("emoji_captions_minilm_l6")
    train, test = demo.split_demo(images)
    labels, names = captions.labels("category")
    embedded = demo.load_demo("emoji_prompts_minilm_l6")
    prompts = embedded.values, embedded.labels("category")[0], len(names)
    dino, efficient = (images[demo.EMOJI[n]].values for n in ("DINOv2-small", "EfficientNet-Lite0"))
    texts = captions.values
    sides = {
        "vision": ((dino, efficient), (efficient, dino)),
        "zero-shot": ((dino, texts), (efficient, texts)),
    }
    heads = [sa.fit_head(side[train], labels[train], len(names)) for side in (dino, efficient)]
    gains: dict[str, list[float]] = {name: [] for name in sides}
    for name, pairs in sides.items():
        for (source, target), seed in itertools.product(pairs, range(3)):
            order = np.random.default_rng(seed).permutation(train)
            anchors, p, q = order[:50], order[50:550], order[550:]

            def score(mapping, target=target, source=source):
                if target is not texts:
                    head = heads[0 if target is dino else 1]
                    return head_accuracy(mapping >> head, source[test], labels[test])
                data: Any = source[test], labels[test], *prompts
                return evaluate_zero_shot(mapping, *data, center=mapping.target_offset)

            matched = source[anchors], target[anchors]
            found, _ = sa.fit_semi(*matched, source[p], target[q])
            # Of the anchors alone, whatever the pools are.
            alone, info = sa.fit_semi(*matched, source[p[:10]], target[q[:10]] + 100)
            assert not bool(info.used)
            gains[name].append(float(score(found) - score(alone)))
    assert min(map(np.mean, gains.values())) > 0.025, gains
