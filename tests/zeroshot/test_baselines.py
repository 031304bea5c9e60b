"""Baselines against short NumPy references, their invariances, and on real embeddings."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, latin, rotation, some
from sklearn.cross_decomposition import CCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

import semalign_jax as sa
from semalign_jax.studies import demo
from semalign_jax.zeroshot import Task, baselines

SCORERS = {
    "naive": baselines.naive_scores,
    "relative": baselines.relative_scores,
    "asif": partial(baselines.asif_scores, top=7),
    "csa": baselines.csa_scores,
    "cca": baselines.cca_scores,
    "kernel ridge": baselines.kernel_ridge_scores,
    "reduced rank": partial(baselines.reduced_rank_scores, rank=3),
    "diagonal": partial(baselines.diagonal_scores, rank=3, rounds=4),
    "whitened": baselines.whitened_scores,
}


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def problem(k=20, d_in=6, d_out=8, classes=3, n=15, seed=0, task: Task = "multi-label"):
    rng = np.random.default_rng(seed)
    source, target = anchors(k + n, d_in, d_out, cond=5, offset=0.3, seed=seed)
    which = np.arange(4 * classes) % classes
    texts = rng.standard_normal((4 * classes, d_out)) + target.mean(0)
    positive, names = np.arange(4 * classes) < 2 * classes, tuple(map(str, range(classes)))
    parts: Any = texts, which.astype(np.int32), positive, names, task
    prompts = sa.zeroshot.EmbeddedPrompts(*parts)
    return source[:k], target[:k], source[k:], prompts


def finish(images, texts, prompts, weights: Any = 1.0, temperature=1.0):
    """Scores of unit images by the definition."""
    classes, positive = np.asarray(prompts.classes), np.asarray(prompts.positive)
    cosines = [
        unit(images)
        * weights
        @ unit(
            np.stack(
                [
                    unit(texts)[(classes == c) & (positive == side)].sum(0)
                    for c in range(prompts.num_classes)
                ]
            )
        ).T
        for side in (True, False)
    ]
    if prompts.task == "single-label":
        return cosines[0]
    e = [np.exp(c / temperature) for c in cosines]
    return e[0] / (e[0] + e[1])


def reference_relative(source, target, images, texts):
    return unit(images) @ unit(source).T, unit(texts) @ unit(target).T


def reference_asif(source, target, images, texts, top=7, exponent=8.0):
    sides = []
    for similarity in reference_relative(source, target, images, texts):
        cut = np.sort(similarity, axis=1)[:, -top][:, None]
        sides.append(np.where((similarity >= cut) & (similarity > 0), similarity, 0) ** exponent)
    return sides[0], sides[1]


def inverse_root(m):
    values, vectors = np.linalg.eigh(m)
    return vectors / np.sqrt(values) @ vectors.T


def reference_csa(source, target, images, texts, ridge=1.0, dims=None):
    a, b = source - source.mean(0), target - target.mean(0)
    roots = [
        inverse_root(c.T @ c + ridge * np.trace(c.T @ c) / c.shape[1] * np.eye(c.shape[1]))
        for c in (a, b)
    ]
    u, s, vt = np.linalg.svd(roots[0] @ a.T @ b @ roots[1], full_matrices=False)
    dims = min(dims or len(s), len(source))
    images = (images - source.mean(0)) @ roots[0] @ u[:, :dims]
    return images, (texts - target.mean(0)) @ roots[1] @ vt.T[:, :dims], s[:dims]


def ridge_rows(a, b, ridge=1.0):
    """Centred rows whose least squares are those with a ridge."""
    penalty = np.sqrt(ridge * np.sum(a * a) / a.shape[1]) * np.eye(a.shape[1])
    return np.concatenate([a, penalty]), np.concatenate([b, np.zeros((a.shape[1], b.shape[1]))])


def reference_reduced_rank(a, b, rank):
    a, b = ridge_rows(a, b)
    weight = np.linalg.lstsq(a, b)[0]
    directions = np.linalg.svd(a @ weight)[2][:rank].T
    return weight @ directions @ directions.T


def reference_diagonal(a, b, rank, rounds):
    weight = np.zeros((a.shape[1], b.shape[1]))
    penalty = np.sum(a * a) / a.shape[1]
    for _ in range(rounds):
        rest = b - a @ weight
        diagonal = np.sum(a * rest, axis=0) / (np.sum(a * a, axis=0) + penalty)
        weight = reference_reduced_rank(a, b - a * diagonal, rank)
    return weight + np.diag(diagonal)


def problem_of(name, **options):
    return problem(d_in=8 if name == "diagonal" else 6, **options)


@pytest.mark.parametrize(("name", "task"), latin([*SCORERS], ["multi-label", "single-label"]))
def test_against_numpy(task, name):
    source, target, images, prompts = problem_of(name, task=task)
    texts = np.asarray(prompts.embeddings)
    a, b, new = source - source.mean(0), target - target.mean(0), images - source.mean(0)
    deviations = texts - target.mean(0)
    csa = reference_csa(source, target, images, texts)

    def of_map(weight, whiten=np.eye(8)):  # noqa: B008
        return finish(new @ weight @ whiten, deviations @ whiten, prompts)

    def kernel_ridge():
        spread = np.mean(np.sum((a[:, None] - a[None]) ** 2, axis=2))
        options: Any = {"alpha": 0.1, "gamma": 1 / (2 * spread)}
        model = KernelRidge(kernel="rbf", **options)
        return finish(model.fit(a, b).predict(new), deviations, prompts)

    expected = {
        "naive": lambda: finish(np.pad(images, ((0, 0), (0, 2))), texts, prompts),
        "relative": lambda: finish(*reference_relative(source, target, images, texts), prompts),
        "asif": lambda: finish(*reference_asif(source, target, images, texts), prompts),
        "csa": lambda: finish(*csa[:2], prompts, weights=csa[2]),
        "cca": lambda: finish(*csa[:2], prompts),
        "kernel ridge": kernel_ridge,
        "reduced rank": lambda: of_map(reference_reduced_rank(a, b, 3)),
        "diagonal": lambda: of_map(reference_diagonal(a, b, 3, 4)),
        "whitened": lambda: of_map(
            np.linalg.lstsq(*ridge_rows(a, b))[0],
            inverse_root(b.T @ b + np.trace(b.T @ b) / 8 * np.eye(8)),
        ),
    }[name]()
    got = SCORERS[name](source, target, images, prompts)
    assert got.shape == (15, 3)
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize(("k", "ridge", "dims"), [(5, 0.1, None), (30, 0.0, None), (30, 0.5, 4)])
def test_csa_with_few_anchors_or_few_coordinates(k, ridge, dims):
    source, target, images, prompts = problem(k=k)
    texts = np.asarray(prompts.embeddings)
    reference = reference_csa(source, target, images, texts, ridge, dims)
    if k == 5:  # the full reference has directions without variance, of correlation zero
        reference = tuple(part[..., :4] for part in reference)
    expected = finish(reference[0], reference[1], prompts, weights=reference[2])
    got = baselines.csa_scores(source, target, images, prompts, ridge=ridge, dims=dims)
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_canonical_correlations_are_those_of_the_projections():
    source, target, _, _ = problem(k=200)
    maps = baselines.fit_canonical(source, target, ridge=0.0)
    u, v = np.asarray(maps.source(source)), np.asarray(maps.target(target))
    for i, correlation in enumerate(np.asarray(maps.correlations)):
        np.testing.assert_allclose(np.corrcoef(u[:, i], v[:, i])[0, 1], correlation, atol=1e-9)
    assert (np.diff(maps.correlations) <= 0).all()
    peer = CCA(3, scale=False, tol=1e-12, max_iter=10_000).fit(source, target)
    u, v = peer.transform(source, target)
    peers = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(np.asarray(maps.correlations)[:3], peers, atol=1e-6)
    same = baselines.fit_canonical(source, source @ rotation(6, np.random.default_rng(1)), ridge=0)
    np.testing.assert_allclose(same.correlations, 1, atol=1e-9)


def test_rotations_of_a_space_change_nothing():
    rng = np.random.default_rng(5)
    source, target, images, prompts = problem()
    q, r = rotation(6, rng), rotation(8, rng)
    turned = replace(prompts, embeddings=prompts.embeddings @ r)
    for name in set(SCORERS) - {"naive", "diagonal"}:
        expected = SCORERS[name](source, target, images, prompts)
        got = SCORERS[name](3 * source @ q, target @ r, 3 * images @ q, turned)
        np.testing.assert_allclose(got, expected, atol=1e-8, err_msg=name)
    naive = SCORERS["naive"]
    before, after = naive(source, target, images, prompts), naive(source, target, images, turned)
    assert np.abs(np.asarray(before) - np.asarray(after)).max() > 0.01


def test_offsets_change_nothing_for_csa_and_centred_similarities():
    source, target, images, prompts = problem()
    moved = replace(prompts, embeddings=prompts.embeddings + 2.0)
    centred = {
        "csa": baselines.csa_scores,
        "relative": partial(baselines.relative_scores, center=True),
        "asif": partial(baselines.asif_scores, center=True, top=5),
    }
    for name, scorer in centred.items():
        expected = scorer(source, target, images, prompts)
        got = scorer(source - 1, target + 2, images - 1, moved)
        np.testing.assert_allclose(got, expected, atol=1e-8, err_msg=name)


def test_asif_with_all_anchors_and_power_one_is_relative_where_cosines_are_positive():
    source, target, images, prompts = problem()
    shifted = replace(prompts, embeddings=np.abs(prompts.embeddings))
    arguments = np.abs(source), np.abs(target), np.abs(images), shifted
    np.testing.assert_allclose(
        baselines.asif_scores(*arguments, exponent=1.0),
        baselines.relative_scores(*arguments),
        atol=1e-9,
    )


def test_asif_keeps_scores_apart_where_powers_underflow():
    # cosines of 1e-6 to the power 8 are zero in float32
    source = np.eye(4, dtype=np.float32)
    target = np.eye(4, dtype=np.float32)
    images = np.array([[1, 1e-6, 0, 0], [0, 0, 1e-6, 1]], np.float32)
    texts = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    parts: Any = texts, np.arange(2), np.ones(2, bool), ("a", "b"), "single-label"
    prompts = sa.zeroshot.EmbeddedPrompts(*parts)
    got = baselines.asif_scores(source, target, images * 1e-6, prompts)
    np.testing.assert_allclose(got, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("name", some(SCORERS))
def test_dtype_jit_and_vmap(name):
    source, target, images, prompts = problem_of(name)
    expected = SCORERS[name](source, target, images, prompts)
    half = [a.astype(np.float32) for a in (source, target, images)]
    single = replace(prompts, embeddings=prompts.embeddings.astype(np.float32))
    got = SCORERS[name](*half, single)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)
    order = np.arange(20)[::-1]
    stacks = [np.stack([a, a[order]]) for a in (source, target)]
    batched = jax.jit(jax.vmap(SCORERS[name], in_axes=(0, 0, None, None)))
    both = np.asarray(batched(*stacks, images, prompts))
    np.testing.assert_allclose(both[0], expected, atol=1e-9)
    np.testing.assert_allclose(both[1], expected, atol=1e-7)  # the order of anchors is free


@pytest.mark.parametrize("name", SCORERS)
def test_one_anchor_gives_finite_scores(name):
    source, target, images, prompts = problem_of(name)
    assert np.isfinite(SCORERS[name](source[:1], target[:1], images, prompts)).all()


def test_bad_input_names_the_argument():
    source, target, images, prompts = problem()
    score = baselines.relative_scores
    with pytest.raises(ValueError, match="source and target must have the same number of rows"):
        score(source[:-1], target, images, prompts)
    with pytest.raises(ValueError, match="images must have the 6 features of source"):
        score(source, target, images[:, :5], prompts)
    with pytest.raises(ValueError, match="prompts must have the 7 features of target"):
        score(source, target[:, :7], images, prompts)
    with pytest.raises(ValueError, match="source is empty"):
        score(source[:0], target[:0], images, prompts)
    with pytest.raises(TypeError, match="images must have a floating-point dtype"):
        score(source, target, np.ones((2, 6), int), prompts)
    broken = np.where(np.arange(20)[:, None] == 3, np.nan, target)
    with pytest.raises(ValueError, match="target holds NaN .* first in row 3"):
        score(source, broken, images, prompts)
    with pytest.raises(ValueError, match="top must be at least 1"):
        baselines.asif_scores(source, target, images, prompts, top=0)
    with pytest.raises(ValueError, match="exponent must be > 0"):
        baselines.asif_scores(source, target, images, prompts, exponent=0.0)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        baselines.kernel_ridge_scores(source, target, images, prompts, ridge=0.0)
    with pytest.raises(ValueError, match="rank must be at least 1"):
        baselines.reduced_rank_scores(source, target, images, prompts, rank=0)
    with pytest.raises(ValueError, match="source and target must have equal dimensions"):
        baselines.diagonal_scores(source, target, images, prompts)
    with pytest.raises(ValueError, match="ridge must be finite"):
        baselines.csa_scores(source, target, images, prompts, ridge=-1.0)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        score(source, target, images, prompts, temperature=0.0)


def test_linear_probe_equals_sklearn():
    rng = np.random.default_rng(0)
    x, images = rng.standard_normal((60, 4)), rng.standard_normal((10, 4))
    classes = np.argmax(x[:, :3] + 0.5 * rng.standard_normal((60, 3)), axis=1)
    got = baselines.linear_probe_scores(x, classes, images, 3, task="single-label", l2=0.5)
    expected = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(x, classes)
    np.testing.assert_allclose(got, expected.predict_proba(images), atol=2e-3)
    findings = np.stack([classes == 0, x[:, 3] + 0.5 * rng.standard_normal(60) > 0], axis=1)
    got = baselines.linear_probe_scores(x, findings, images, 2, task="multi-label", l2=0.5)
    got = np.asarray(got)
    for c in range(2):
        # the two-class softmax spreads a weight w over +-w/2, whose penalty is half as large
        binary = LogisticRegression(C=4.0, tol=1e-8, max_iter=1000).fit(x, findings[:, c])
        np.testing.assert_allclose(got[:, c], binary.predict_proba(images)[:, 1], atol=2e-3)


def test_linear_probe_leaves_unknown_labels_out():
    rng = np.random.default_rng(4)
    x, images = rng.standard_normal((60, 4)), rng.standard_normal((10, 4))
    labels, known = rng.random((2, 60, 2)) > 0.4
    known = np.argsort(known, axis=0) < 36  # as many of both findings
    probe = partial(baselines.linear_probe_scores, task="multi-label")
    anything = np.where(known, labels, -1)
    found = np.asarray(probe(x, anything, images, 2, known=known))
    with pytest.raises(TypeError, match="known must be booleans"):
        probe(x, labels, images, 2, known=known * 3)
    with pytest.raises(ValueError, match=r"known must have the shape of the labels \(60, 2\)"):
        probe(x, labels, images, 2, known=known[:, 0])
    with pytest.raises(ValueError, match="known must be None for a single-label task"):
        probe(x, labels[:, 0], images, 2, task="single-label", known=known[:, 0])
    for c, kept in enumerate(known.T):
        one = np.asarray(probe(x[kept], labels[kept][:, [c]], images, 1))
        np.testing.assert_allclose(found[:, c], one[:, 0], atol=2e-4)


def test_linear_probe_of_a_finding_that_never_occurs_and_bad_labels():
    x = np.random.default_rng(0).standard_normal((12, 3))
    labels = np.zeros((12, 2), bool)
    labels[::2, 1] = True
    got = np.asarray(baselines.linear_probe_scores(x, labels, x, 2, task="multi-label"))
    assert np.isfinite(got).all()
    assert got[:, 0].max() < 0.5
    bad = labels.astype(int)
    bad[3, 1] = 7
    probe = partial(baselines.linear_probe_scores, task="multi-label")
    traced = np.asarray(jax.jit(lambda labels: probe(x, labels, x, 2))(bad))
    np.testing.assert_allclose(traced[:, 0], got[:, 0], atol=1e-5)
    assert np.isnan(traced[:, 1]).all()
    with pytest.raises(ValueError, match="labels must have shape"):
        baselines.linear_probe_scores(x, labels[:, :1], x, 2, task="multi-label")
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        baselines.linear_probe_scores(x, labels + 2, x, 2, task="multi-label")
    with pytest.raises(ValueError, match="images must have the 3 features"):
        baselines.linear_probe_scores(x, labels, x[:, :2], 2, task="multi-label")


def test_scores_of_a_multimodal_model():
    _, _, _, prompts = problem()
    images = np.random.default_rng(2).standard_normal((5, 8))
    expected = finish(images, np.asarray(prompts.embeddings), prompts)
    np.testing.assert_allclose(sa.zeroshot.prompt_scores(images, prompts), expected, atol=1e-12)


@pytest.mark.slow
def test_real_images_and_captions():
    """Emoji under DINOv2 and their captions under MiniLM: above chance, unlike shuffled anchors."""
    load = demo.load_demo
    images, captions = load("emoji_dinov2_small"), load("emoji_captions_minilm_l6")
    embedded = load("emoji_prompts_minilm_l6")
    labels, names = captions.labels("category")
    texts = embedded.values
    classes, positive = embedded.labels("category")[0], np.ones(len(texts), bool)
    parts: Any = texts, classes, positive, tuple(names), "single-label"
    prompts = sa.zeroshot.EmbeddedPrompts(*parts)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:300], order[300:700]

    def score(scorer, targets):
        arguments = images.values[train], captions.values[targets], images.values[test], prompts
        return np.mean(np.argmax(np.asarray(scorer(*arguments)), axis=1) == labels[test])

    for name in ("asif", "csa"):
        scorer = baselines.BASELINES[name]
        assert score(scorer, train) > 0.3, name  # the largest class has 0.2
        assert score(scorer, train) > score(scorer, np.roll(train, 1)) + 0.08, name
