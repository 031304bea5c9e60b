"""The map chosen by leave-one-out, against refits in NumPy; what it says of its anchors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, relative, rotation, some
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score

import semalign_jax as sa
from semalign_jax._core.typing import Method
from semalign_jax.stitching import head_accuracy
from semalign_jax.studies import demo


def refits(x, y, strength, prior, weights=None):
    """Predictions of each row by the fit of all others, as deviations from the mean of all."""
    w = np.ones(len(x)) if weights is None else weights
    mean_x, mean_y = w @ x / w.sum(), w @ y / w.sum()
    total_x, total_y = (w @ (a - m) ** 2 for a, m in ((x, mean_x), (y, mean_y)))
    penalty = strength * total_x.sum() / x.shape[1]
    base = 0 * np.eye(x.shape[1], y.shape[1])
    if prior:
        base = prior * np.sqrt(total_y.sum() / total_x.sum()) * np.eye(x.shape[1])
    found = []
    for i in range(len(x)):
        v = np.where(np.arange(len(x)) == i, 0, w)
        own_x, own_y = v @ x / v.sum(), v @ y / v.sum()
        a, b = x - own_x, y - own_y
        gram = a.T @ (v[:, None] * a) + penalty * np.eye(x.shape[1])
        weight = base + np.linalg.solve(gram, a.T @ (v[:, None] * (b - a @ base)))
        found.append((x[i] - own_x) @ weight + own_y - mean_y)
    return np.array(found)


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("n", "d_in", "d_out"), some([(12, 8, 8), (6, 8, 8), (30, 8, 6)]))
def test_every_candidate_is_that_of_refits_without_each_row(n, d_in, d_out):
    x, y = anchors(n, d_in, d_out, cond=3, offset=2)
    weights = np.linspace(0.5, 2, n) if n == 12 else None
    w = np.ones(n) if weights is None else weights
    fitted, info = jax.tree.map(np.asarray, sa.fit_auto(x, y, weights=weights))
    deviations = y - w @ y / w.sum()
    left_out = [
        refits(x, y, float(strength), float(prior), weights)
        for prior, strength in zip(info.priors, info.strengths, strict=True)
    ]
    expected = [w @ cosine(rows, deviations) / w.sum() for rows in left_out]
    np.testing.assert_allclose(info.cosine, expected, atol=1e-9)
    assert set(info.priors.tolist()) == ({0, 0.25, 0.5, 0.75, 1} if d_in == d_out else {0})
    best = int(np.argmax(expected))
    assert int(info.chosen) == best
    assert float(info.loo_cosine) == pytest.approx(expected[best])
    # The length of left-out predictions is that of the targets, and more for few anchors.
    length = np.sqrt(np.sum(w[:, None] * deviations**2) / np.sum(w[:, None] * left_out[best] ** 2))
    effective = max(w.sum() ** 2 / (w**2).sum(), 10)
    longer = 1 + 30 * (1 - max(expected[best], 0) ** 2) / effective
    assert float(info.gamma) == pytest.approx(length * longer)
    plain, _ = sa.fit_auto(x, y, weights=weights, restore_norm=False)
    np.testing.assert_allclose(fitted.weight, np.asarray(plain.weight) * info.gamma, atol=1e-9)
    if info.prior == 0:
        ridge = sa.fit_affine(x, y, ridge=float(info.strength), ridge_unit="gram", weights=weights)
        np.testing.assert_allclose(plain.weight, ridge.weight, atol=1e-9)
        loo = sa.fit_affine(x, y, ridge="loo", weights=weights)
        np.testing.assert_allclose(plain.weight, loo.weight, atol=1e-9)
    np.testing.assert_array_equal(sa.fit("auto", x, y, weights=weights).weight, fitted.weight)


def test_float32_is_enough_for_few_anchors_of_many_dimensions():
    x, y = anchors(6, 2048, 6, cond=3)
    x, y = x.astype(np.float32), y.astype(np.float32)
    _, info = sa.fit_auto(x, y)
    rows = np.linalg.qr(x.T.astype(np.float64))[1].T  # the same rows in 6 dimensions
    expected = [
        cosine(refits(rows, y, strength * 6 / 2048, 0), y - y.mean(0)).mean()
        for strength in np.asarray(info.strengths, np.float64)
    ]
    np.testing.assert_allclose(info.cosine, expected, atol=1e-5)


def test_the_identity_is_a_prior_between_spaces_that_are_alike():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 40))
    y = 3 * x + 0.3 * rng.standard_normal((12, 40))
    fitted, info = sa.fit_auto(x, y, restore_norm=False)
    assert info.prior == 1
    assert relative(fitted.weight, 3 * np.eye(40)) < 0.1
    assert relative(sa.fit_affine(x, y).weight, 3 * np.eye(40)) > 0.5
    x, turn = rng.standard_normal((60, 8)), rotation(8, rng)
    exact, info = sa.fit_auto(x, x @ turn + 1)
    np.testing.assert_allclose(exact.weight, turn, atol=3e-3)
    assert float(info.gamma) == pytest.approx(1, abs=3e-3)


def test_scikit_learn_knows_the_same_left_out_errors():
    x, y = anchors(30, 8, 6, cond=3)
    a, b = x - x.mean(0), y - y.mean(0)
    unit = np.sum(a**2) / 8
    other = RidgeCV(alphas=[3.16227766 * unit], store_cv_results=True).fit(x, y)
    left = refits(x, y, 3.16227766, 0)
    np.testing.assert_allclose(other.cv_results_[..., 0], (left - b) ** 2, rtol=1e-5)


@pytest.mark.parametrize("method", ["affine", "linear", "l-ortho"])
def test_ridge_by_leave_one_out_is_a_ridge_of_the_best_cosine(method):
    x, y = anchors(30, 8, 6, cond=3, offset=0.5)
    center = method == "affine"
    a, b = (x - x.mean(0), y - y.mean(0)) if center else (x, y)
    scores = []
    strengths = np.concatenate([[1e-3, 1e-2], 10.0 ** (np.arange(-2, 7) / 2)])
    for strength in strengths:
        penalty = strength * np.sum(a**2) / 8 * np.eye(8)
        if center:
            rows = refits(x, y, strength, 0)
        else:
            others = [(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(30)]
            rows = [
                row @ np.linalg.solve(p.T @ p + penalty, p.T @ q)
                for row, (p, q) in zip(a, others, strict=True)
            ]
        scores.append(cosine(np.array(rows), b).mean())
    best = strengths[int(np.argmax(scores))]
    found = jax.jit(lambda x, y: sa.fit(method, x, y, ridge="loo"))(x, y)
    expected = sa.fit(method, x, y, ridge=best, ridge_unit="gram")
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-9)


def test_transformations_agree_with_eager():
    x, y = anchors(12, 8, 8, cond=3)
    weights = np.linspace(0.5, 2, 12)
    rng = np.random.default_rng(0)
    target, *steps = (rng.standard_normal(a.shape) for a in (y, x, y, weights))

    def fitted(x, y, weights):
        return sa.fit_auto(x, y, weights=weights)

    eager = fitted(x, y, weights)
    cases = [jax.jit(fitted)(x, y, weights)]
    stacked = jax.vmap(fitted)(*(np.stack([a, a[::-1]]) for a in (x, y, weights)))
    cases += [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], stacked) for i in (0, 1)]
    for mapping, info in cases:
        np.testing.assert_allclose(mapping(x), eager[0](x), atol=1e-9)
        np.testing.assert_allclose(info.cosine, eager[1].cosine, atol=1e-9)
        assert int(info.chosen) == int(eager[1].chosen)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def score(*arguments):
        return jnp.sum(target * fitted(*arguments)[0](x) ** 2)  # at fixed rows

    gradient = score(x, y, weights)[1]
    slope = sum(np.sum(np.asarray(g) * s) for g, s in zip(gradient, steps, strict=True))
    above, below = (
        float(score(*(a + e * s for a, s in zip((x, y, weights), steps, strict=True)))[0])
        for e in (1e-5, -1e-5)
    )
    assert slope == pytest.approx((above - below) / 2e-5, rel=1e-5)


def test_derivatives_of_few_anchors_in_many_dimensions():
    x, y = anchors(6, 20, 20, cond=3)
    weights = np.array([1, 2, 1, 0, 1, 3], float)
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal(a.shape) for a in (x, y)] + [
        rng.standard_normal(6) * (weights > 0)
    ]

    @partial(jax.jit, static_argnums=0)
    @partial(jax.value_and_grad, argnums=(1, 2, 3))
    def score(dtype, *arguments):
        return jnp.sum(sa.fit_auto(*arguments[:2], weights=arguments[2])[0].weight ** 2)

    def slope(dtype):
        gradient = score(dtype, *(a.astype(dtype) for a in (x, y, weights)))[1]
        return sum(np.sum(np.asarray(g) * s) for g, s in zip(gradient, steps, strict=True))

    above, below = (
        float(
            score("float64", *(a + e * s for a, s in zip((x, y, weights), steps, strict=True)))[0]
        )
        for e in (1e-6, -1e-6)
    )
    assert slope("float64") == pytest.approx((above - below) / 2e-6, rel=1e-5)
    assert slope("float32") == pytest.approx(slope("float64"), rel=1e-3)


@pytest.mark.parametrize("precision", ["x32"], indirect=True)
def test_answers_are_defined_at_the_edges(precision):
    x, y = anchors(6, 8, 8, cond=3)
    one, info = sa.fit_auto(x[:1], y[:1])
    np.testing.assert_allclose(one(x), np.tile(y[:1], (6, 1)), rtol=1e-6)
    assert (float(info.loo_cosine), float(info.effective_rank)) == (0, 0)
    constant, info = sa.fit_auto(np.ones((6, 8)), y)
    np.testing.assert_allclose(constant(x), np.tile(y.mean(0), (6, 1)), rtol=1e-5, atol=1e-6)
    constant, info = sa.fit_auto(x, np.ones((6, 8)))
    np.testing.assert_allclose(constant(x), np.ones((6, 8)), rtol=1e-6)
    for rows in ([0, 1], [0, 0, 1, 1, 2, 2], [0] * 5 + [1]):
        fitted, info = sa.fit_auto(x[rows], y[rows])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((fitted, info)))
    twice, _ = sa.fit_auto(np.repeat(x, 2, 0), np.repeat(y, 2, 0))
    assert np.isfinite(twice.weight).all()
    mask = np.arange(6) < 4
    broken = np.where(mask[:, None], x, np.nan)
    masked, _ = sa.fit_auto(broken, y, weights=mask)
    np.testing.assert_allclose(masked.weight, sa.fit_auto(x[:4], y[:4])[0].weight, rtol=1e-3)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(sa.fit_auto(x, y[:1])[0].weight)))(x[:1])
    assert np.isfinite(gradient).all()
    _, info = sa.fit_auto(x, y, weights=np.ones(6, np.float32))
    for unit in (2.0**-100, 2.0**100):  # whose squares are out of range
        _, scaled = sa.fit_auto(x, y, weights=np.full(6, unit, np.float32))
        np.testing.assert_allclose(scaled.gamma, info.gamma, rtol=1e-5)
    half = sa.fit_auto(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))[0]
    assert half.weight.dtype == jnp.bfloat16


def test_bad_arguments_are_named():
    x, y = anchors(12, 8, 6)
    head = sa.AffineMap.from_weight(np.ones((8, 3)))
    for call, message in (
        (lambda: sa.fit_auto(x, y, readout=head), "readout takes 8 features, but y has 6"),
        (lambda: sa.fit_auto(x, y[:5]), "same number of rows"),
        (lambda: sa.fit("auto", x, y, ridge=1.0), "ridge is not an option of method 'auto'"),
        (lambda: sa.fit("ortho", x, y, ridge="loo"), "'loo' for affine, linear and l-ortho"),
        (lambda: sa.fit("affine", x, y, ridge="best"), "ridge must be a number"),
        (lambda: sa.fit_affine(x, y, ridge="loo", solver="adam"), "solver='auto'"),
        (lambda: sa.fit_from_stats("auto", stats(x, y)), "fit to the anchors themselves"),
        (lambda: sa.maps.diagnose(x[:2], y[:2]), "needs at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="robust must be True or False"):
        sa.fit_auto(x, y, robust=1)  # type: ignore[arg-type]


def stats(x, y):
    return sa.maps.update_stats(sa.maps.init_stats(8, 6), x, y)


@pytest.fixture(scope="module")
def glosses():
    """Embeddings of two text encoders, and their supersenses."""
    sets = [demo.load_demo(f"glosses_minilm_l{n}") for n in (3, 6)]
    return (*(one.values for one in sets), sets[0].labels("supersense")[0])


def test_wrong_pairs_are_found_and_weighed_down(glosses):
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(glosses[0]))
    x, y = (side[rows[:200]] for side in glosses[:2])
    wrong = np.arange(200) < 40
    shuffled = np.where(wrong[:, None], np.roll(y[:40], 1, 0)[np.arange(200) % 40], y)
    assert roc_auc_score(wrong, sa.maps.mismatch_scores(x, shuffled)) > 0.99
    fitted, info = sa.fit_auto(x, shuffled, robust=True)
    weights = np.asarray(info.weights)
    assert weights[wrong].mean() < 0.1 < 0.9 < weights[~wrong].mean()
    test_x, test_y = (side[rows[200:1200]] for side in glosses[:2])

    def error(mapping):
        return 1 - float(sa.metrics.mean_cosine(mapping(test_x), test_y))

    clean, plain = sa.fit_auto(x, y)[0], sa.fit_auto(x, shuffled)[0]
    assert error(clean) < error(fitted) < error(plain) - 0.02

    found = sa.maps.diagnose(x, shuffled)
    assert len(set(found.suspicious) & set(range(40))) > 35
    assert any("pairs look mismatched" in sentence for sentence in found.advice)
    assert found.counts == (12, 25, 50, 100, 200)
    summary = found.summary()
    assert summary["curve"][-1] == pytest.approx(found.loo_cosine, abs=1e-5)
    assert 0 < found.explained < 1
    assert 0 < found.stability < 1
    assert 1 < found.effective_ranks[0] < 200


def test_a_diagnosis_says_what_was_planted():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 40, 8))
    alike = sa.maps.diagnose(x, x @ rotation(8, rng))
    assert alike.loo_cosine > 0.99 < alike.explained * 1.01
    assert not alike.suspicious
    assert any("more of the same bring little" in sentence for sentence in alike.advice)
    unlike = sa.maps.diagnose(x, noise)
    assert unlike.loo_cosine < 0.2
    assert any("hardly point to their targets" in sentence for sentence in unlike.advice)
    # All of the source is in the target, but not the other way round.
    half = np.concatenate([x[:, :4], 0 * noise[:, :4]], axis=1)
    one_way = sa.maps.diagnose(half, np.concatenate([x[:, :4], 2 * noise[:, :4]], axis=1))
    assert one_way.explained_back > one_way.explained + 0.3
    assert alike.copies == 0
    twice = sa.maps.diagnose(*(np.concatenate([side, side[:10]]) for side in (x[:30], noise[:30])))
    assert twice.copies == 10
    assert "10 of 40 anchors repeat another pair exactly" in twice.advice[0]


def test_a_readout_has_its_say():
    """Of the target two dimensions are read; the rest is noise, and outweighs it in the rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8))
    noise = rng.standard_normal((60, 8))
    y = np.concatenate([x[:, :2] + 0.1 * noise[:, :2], 9 * noise[:, 2:]], axis=1)
    head = sa.AffineMap.from_weight(np.eye(8, 2))
    _, blind = sa.fit_auto(x, y)
    _, told = sa.fit_auto(x, y, readout=head)
    np.testing.assert_allclose(blind.score, blind.cosine)
    scored = np.asarray(told.score) - np.asarray(told.cosine)
    assert scored[int(told.chosen)] > scored[int(blind.chosen)] - 1e-9
    assert scored.max() > 0.9


def test_sweeps_take_it(glosses):
    x, y = (side[:60, :8].astype(np.float64) for side in glosses[:2])
    orders = np.stack([np.random.default_rng(s).permutation(60) for s in (0, 1)])

    def weight(mapping, _):
        return mapping.weight

    for route in ("masks", "prefixes"):
        found = sa.anchor_sweep(
            x, y, [12, 30], orders=orders, methods=["auto"], metrics={"w": weight}, route=route
        ).values["w"]
        expected, _ = sa.fit_auto(x[orders[1][:30]], y[orders[1][:30]])
        np.testing.assert_allclose(found[0, 1, 1], expected.weight, atol=1e-7)
    swept = sa.sweep_pairs(
        {"a": x, "b": y}, [12, 30], orders=orders, methods=["auto"], test={"a": x},
        readouts={"b": sa.AffineMap.from_weight(np.eye(8))}, pairs=[("a", "b")],
        metrics={"scores": lambda scores, _: scores},
    )  # fmt: skip
    np.testing.assert_allclose(swept.values["scores"][0, 0, 1, 1], expected(x), atol=1e-7)


@pytest.mark.slow  # full embeddings, five maps
def test_two_hundred_anchors_do_as_well_as_the_best_of_the_four():
    """Between encoders of texts and of images, and from images to prompts in the space of texts.

    Scored on rows that are no anchors; all maps on the same three draws.
    """
    small, large = (demo.load_demo(f"glosses_minilm_l{n}") for n in (3, 6))
    dino, net = (demo.load_demo(f"emoji_{n}") for n in ("dinov2_small", "efficientnet_lite0"))
    captions, prompts = (demo.load_demo(f"emoji_{n}_minilm_l6") for n in ("captions", "prompts"))
    texts, images = demo.split_demo({"l6": large}), demo.split_demo({"dino": dino, "net": net})
    category, supersense = (
        one.labels(kind)[0] for one, kind in ((captions, "category"), (large, "supersense"))
    )
    of_prompts = prompts.labels("category")[0]

    def stitched(source, target, labels, split):
        train, test = split
        head = sa.fit_head(target.values[train], labels[train], int(labels.max()) + 1)

        def score(mapping):
            return float(head_accuracy(mapping >> head, source.values[test], labels[test]))

        return source, target, train, score

    def zero_shot(source):
        kept = of_prompts >= 0
        rows, truth = source.values[images[1]], jnp.asarray(category[images[1]])
        classed = prompts.values[kept], of_prompts[kept], int(category.max()) + 1

        def score(mapping):
            center = mapping.target_offset
            found = sa.zeroshot.evaluate_zero_shot(mapping, rows, truth, *classed, center=center)
            return float(found)

        return source, captions, images[0], score

    four: dict[Method, dict] = {"affine": {}, "linear": {}}
    four |= {"l-ortho": {"normalize": "isotropic"}, "ortho": {"normalize": "isotropic"}}
    pairs = [stitched(*pair, supersense, texts) for pair in ((small, large), (large, small))]
    pairs += [stitched(*pair, category, images) for pair in ((dino, net), (net, dino))]
    for source, target, train, score in (*pairs, zero_shot(net)):
        found: dict[Method, list[float]] = {name: [] for name in (*four, "auto")}
        for seed in range(3):
            rows = train[np.random.default_rng(seed).permutation(len(train))[:200]]
            x, y = source.values[rows], target.values[rows]
            for name, values in found.items():
                values.append(score(sa.fit(name, x, y, **four.get(name, {}))))
        best = max(np.mean(found[name]) for name in four)
        assert np.mean(found["auto"]) > best - 0.01, found
