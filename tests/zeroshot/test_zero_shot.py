"""Zero-shot numerics, thresholds, and the protocol: its refusals and its table."""

from dataclasses import replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import anchors, rotation, some
from sklearn.covariance import LedoitWolf
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

import semalign_jax as sa
from semalign_jax.zeroshot import SpaceNormalization, Task, baselines

NAMES = ("a", "b", "c")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_prompts(texts, task: Task = "multi-label", names=NAMES):
    """Prompts [4 * classes, d], half of them negative."""
    number = np.arange(len(texts))
    classes, positive = (number % len(names)).astype(np.int32), number < len(texts) // 2
    parts: Any = texts, classes, positive, names, task
    return sa.zeroshot.EmbeddedPrompts(*parts)


# --- scores ------------------------------------------------------------------------------------


def test_multi_label_scores_are_a_softmax_of_positive_and_negative_ensembles():
    rng = np.random.default_rng(0)
    texts, images = rng.standard_normal((12, 5)), rng.standard_normal((7, 5))
    prompts = make_prompts(texts)
    positive = unit(np.stack([unit(texts[[c, c + 3]]).mean(0) for c in range(3)]))
    negative = unit(np.stack([unit(texts[[c + 6, c + 9]]).mean(0) for c in range(3)]))
    p, n = (np.exp(unit(images) @ side.T / 0.2) for side in (positive, negative))
    got = sa.zeroshot.prompt_scores(images, prompts, temperature=0.2)
    np.testing.assert_allclose(got, p / (p + n), atol=1e-12)
    single = replace(prompts, task="single-label")
    np.testing.assert_allclose(
        sa.zeroshot.prompt_scores(images, single), unit(images) @ positive.T, atol=1e-12
    )


def test_single_label_scores_equal_the_older_functions():
    rng = np.random.default_rng(1)
    texts, images = rng.standard_normal((6, 5)), rng.standard_normal((4, 5))
    prompts = make_prompts(texts, "single-label")
    prompts = replace(prompts, positive=np.ones(6, bool))
    classes = sa.zeroshot.class_embeddings(texts, prompts.classes, 3)
    expected = sa.zero_shot_logits(images, classes)
    np.testing.assert_allclose(sa.zeroshot.prompt_scores(images, prompts), expected, atol=1e-12)


def test_a_wrong_center_or_allowed_is_named():
    rng = np.random.default_rng(3)
    texts, images = rng.standard_normal((6, 5)), rng.standard_normal((4, 5))
    labels = np.arange(6, dtype=np.int32) % 3
    classes = sa.zeroshot.class_embeddings(texts, labels, 3)
    given = sa.identity_map(5, 5, dtype=jnp.float64), images, np.arange(4) % 3, texts, labels, 3
    for center in (np.zeros(1), np.zeros(4)):
        for call in (
            lambda center: sa.zeroshot.class_embeddings(texts, labels, 3, center=center),
            lambda center: sa.zero_shot_predict(images, classes, center=center),
            lambda center: sa.zeroshot.evaluate_zero_shot(*given, center=center),
        ):
            with pytest.raises(ValueError, match=r"center must have shape \(5,\)"):
                call(center)
    batch = jax.tree.map(lambda a: jnp.stack([a] * 4), given[0])
    with pytest.raises(ValueError, match=r"mapping must be a single one; got a batch \(4,\)"):
        sa.zeroshot.evaluate_zero_shot(batch, *given[1:])
    for allowed, message in (
        (np.arange(3), r"allowed must be booleans of shape \(3,\), .* got int64 \(3,\)"),
        (np.array([True]), r"allowed must be booleans of shape \(3,\), .* got bool \(1,\)"),
        (np.zeros(3, bool), "allowed is False for every class"),
    ):
        with pytest.raises(ValueError, match=message):
            sa.zeroshot.evaluate_zero_shot(*given, allowed=allowed)
    score = jax.jit(lambda allowed: sa.zeroshot.evaluate_zero_shot(*given, allowed=allowed))
    assert np.isnan(score(np.zeros(3, bool)))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_images_and_prompts_with_nan_have_no_scores(transform):
    rng = np.random.default_rng(3)
    texts, images = rng.standard_normal((6, 5)), rng.standard_normal((4, 5))
    labels = np.arange(6, dtype=np.int32) % 3
    classes = sa.zeroshot.class_embeddings(texts, labels, 3)
    truth: Any = np.array(sa.zero_shot_predict(images, classes))
    images[1, 2], images[2, 0] = np.nan, np.inf
    logits = transform(sa.zero_shot_logits)(images, classes)
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), [False, True, True, False])
    assert np.isfinite(np.asarray(logits)[[0, 3]]).all()
    predicted = transform(sa.zero_shot_predict)(images, classes)
    np.testing.assert_array_equal(predicted, [truth[0], -1, -1, truth[3]])

    def score(images, weights):
        mapping = sa.identity_map(5, 5, dtype=jnp.float64)
        return sa.zeroshot.evaluate_zero_shot(
            mapping, images, truth, texts, labels, 3, weights=weights
        )

    assert np.isnan(transform(score)(images, np.ones(4)))
    assert transform(score)(images, np.array([1.0, 0, 0, 1])) == 1.0
    truth[0] = 3  # of three classes
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\); entry \(0,\) is 3"):
        score(images, np.ones(4))
    texts[5, 0] = np.nan
    assert np.isnan(np.asarray(sa.zeroshot.class_embeddings(texts, labels, 3))[2]).all()
    with pytest.raises(ValueError, match="embeddings holds NaN or infinity in 1 of 6 rows"):
        sa.zeroshot.embedded_prompts(
            sa.zeroshot.PromptSet(
                "s", "single-label", tuple(sa.zeroshot.ClassPrompts(n, (n, n)) for n in NAMES)
            ),
            texts,
        )


def test_temperature_keeps_rankings_and_the_default_ties_nothing_in_float32():
    rng = np.random.default_rng(2)
    prompts = make_prompts(rng.standard_normal((12, 3)).astype(np.float32))
    images = rng.standard_normal((500, 3)).astype(np.float32)
    got, sharp = (
        np.asarray(sa.zeroshot.prompt_scores(images, prompts, temperature=t)) for t in (1.0, 0.2)
    )
    assert got.dtype == np.float32
    for c in range(3):
        assert np.all(np.diff(sharp[np.argsort(got[:, c], kind="stable"), c]) >= -1e-6)
        assert len(np.unique(got[:, c])) > 490
    with pytest.raises(ValueError, match="temperature must be > 0"):
        sa.zeroshot.prompt_scores(images, prompts, temperature=0.0)
    with pytest.raises(ValueError, match="map them first"):
        sa.zeroshot.prompt_scores(images[:, :2], prompts)
    images[3, 1], images[5, 0] = np.nan, np.inf
    bad = np.isnan(sa.zeroshot.prompt_scores(images, prompts)).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(bad), [3, 5])


# --- normalisation of the mapped space ---------------------------------------------------------


@pytest.mark.parametrize("n", [4, 30])
def test_whitening_is_the_inverse_root_of_the_shrunk_covariance(n):
    source, target = anchors(n, 4, 6, cond=5, offset=2)
    space = sa.zeroshot.anchor_space(source, target)
    covariance = LedoitWolf().fit(target).covariance_
    whitening = np.asarray(space.whitening)
    np.testing.assert_allclose(whitening @ covariance @ whitening, np.eye(6), atol=1e-8)
    np.testing.assert_allclose(whitening, whitening.T, atol=1e-9)
    np.testing.assert_allclose(space.source_mean, source.mean(0), atol=1e-12)
    np.testing.assert_allclose(space.target_mean, target.mean(0), atol=1e-12)
    plain = np.cov(target.T, bias=True)
    fixed = 0.7 * plain + 0.3 * np.trace(plain) / 6 * np.eye(6)
    whitening = np.asarray(sa.zeroshot.anchor_space(source, target, shrinkage=0.3).whitening)
    np.testing.assert_allclose(whitening @ fixed @ whitening, np.eye(6), atol=1e-8)


def test_whitening_without_shrinkage_drops_directions_without_variance():
    source, target = anchors(4, 3, 6, cond=3)
    whitening = np.asarray(sa.zeroshot.anchor_space(source, target, shrinkage=0.0).whitening)
    product = whitening @ np.cov(target.T, bias=True) @ whitening
    np.testing.assert_allclose(np.linalg.eigvalsh(product), [0, 0, 0, 1, 1, 1], atol=1e-8)
    with pytest.raises(ValueError, match=r"shrinkage must be in \[0, 1\]"):
        sa.zeroshot.anchor_space(source, target, shrinkage=1.5)


def test_one_anchor_whitens_by_the_identity():
    space = sa.zeroshot.anchor_space(np.ones((1, 2)), np.ones((1, 3)))
    np.testing.assert_array_equal(space.whitening, np.eye(3))


def test_normalised_scores():
    x, y = anchors(40, 5, 6, cond=3, offset=1)
    texts = np.random.default_rng(3).standard_normal((12, 6))
    prompts, mapping = make_prompts(texts), sa.fit_linear(x[:30], y[:30])
    space = sa.zeroshot.anchor_space(x[:30], y[:30])
    images = x[30:] @ np.asarray(mapping.weight)
    center = x[:30].mean(0) @ np.asarray(mapping.weight)
    root = np.asarray(space.whitening)
    rows, centred = images - center, texts - y[:30].mean(0)
    expected: dict[SpaceNormalization, Any] = {
        "none": sa.zeroshot.prompt_scores(images, prompts),
        "center": sa.zeroshot.prompt_scores(rows, make_prompts(centred)),
        "whiten": sa.zeroshot.prompt_scores(rows @ root, make_prompts(centred @ root)),
    }
    for how, scores in expected.items():
        got = sa.zeroshot.zero_shot_scores(mapping, x[30:], prompts, normalization=how, space=space)
        np.testing.assert_allclose(got, scores, atol=1e-9)
    with pytest.raises(ValueError, match="needs space"):
        sa.zeroshot.zero_shot_scores(mapping, x[30:], prompts, normalization="center")
    with pytest.raises(ValueError, match="normalization must be one of"):
        sa.zeroshot.zero_shot_scores(mapping, x[30:], prompts, normalization="zca")  # pyright: ignore


def test_scores_under_jit_and_vmap_and_in_float32():
    x, y = (a.astype(np.float32) for a in anchors(20, 4, 5, cond=3))
    texts = np.random.default_rng(4).standard_normal((12, 5)).astype(np.float32)

    def score(x, y):
        mapping, space = sa.fit_ortho(x, y), sa.zeroshot.anchor_space(x, y)
        prompts = make_prompts(texts)
        return sa.zeroshot.zero_shot_scores(
            mapping, x, prompts, normalization="whiten", space=space
        )

    plain = score(x, y)
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(score)(x, y), plain, atol=1e-5)
    both = np.asarray(jax.vmap(score)(np.stack([x, x[::-1]]), np.stack([y, y[::-1]])))
    np.testing.assert_allclose(both[0], plain, atol=1e-5)
    np.testing.assert_allclose(both[1][::-1], plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_of_half_precision_are_those_of_the_same_numbers_in_float32(dtype):
    rng = np.random.default_rng(5)
    narrow = [jnp.asarray(rng.standard_normal((n, 5)), dtype) for n in (12, 12, 12, 300)]
    wide = [a.astype(jnp.float32) for a in narrow]

    def scores(source, target, texts, images):
        prompts, mapping = make_prompts(texts), sa.identity_map(5, 5)
        classes = sa.zeroshot.class_embeddings(texts, prompts.classes, 3)
        probe = baselines.linear_probe_scores
        return {
            "logits": sa.zero_shot_logits(images, classes),
            "prompts": sa.zeroshot.prompt_scores(images, prompts),
            "map": sa.zeroshot.zero_shot_scores(mapping, images, prompts),
            "relative": baselines.relative_scores(source, target, images, prompts),
            "csa": baselines.csa_scores(source, target, images, prompts),
            "probe": probe(source, prompts.classes, images, 3, task="single-label"),
        }

    found, expected = scores(*narrow), scores(*wide)
    for name, score in found.items():
        assert score.dtype == jnp.float32, name
        np.testing.assert_allclose(score, expected[name], atol=1e-5, err_msg=name)


# --- thresholds --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", some(range(5), 5))
@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_are_the_best_of_all(seed, ties):
    rng = np.random.default_rng(seed)
    labels = rng.random((40, 3)) < 0.3
    scores = labels + rng.standard_normal((40, 3))
    scores = np.round(scores * 2) / 2 if ties else scores
    labels[0], labels[1] = True, False
    for rule in ("youden", "f1"):
        got = np.asarray(sa.zeroshot.choose_threshold(labels, scores, rule=rule))
        for c in range(3):
            if rule == "youden":
                false, true, cuts = roc_curve(labels[:, c], scores[:, c], drop_intermediate=False)
                values = true - false
            else:
                cuts = np.unique(scores[:, c])[::-1]
                values = [f1_score(labels[:, c], scores[:, c] >= cut) for cut in cuts]
            best = np.flatnonzero(np.isclose(values, np.max(values), atol=1e-12))[0]
            assert got[c] == cuts[best], (rule, c)
        assert sa.zeroshot.choose_threshold(labels[:, 0], scores[:, 0], rule=rule) == got[0]


def test_undefined_thresholds_and_bad_input():
    scores = np.array([0.1, 0.4, 0.4])
    none, every = np.zeros(3, bool), np.ones(3, bool)
    assert np.isnan(sa.zeroshot.choose_threshold(none, scores))
    assert np.isnan(sa.zeroshot.choose_threshold(every, scores))
    assert np.isnan(sa.zeroshot.choose_threshold(none, scores, rule="f1"))
    assert sa.zeroshot.choose_threshold(every, scores, rule="f1") == 0.1
    assert sa.zeroshot.choose_threshold(np.ones(1, bool), np.array([0.3]), rule="f1") == 0.3
    with pytest.raises(ValueError, match=r"scores holds NaN in 1 entry, first at \(1,\)"):
        sa.zeroshot.choose_threshold(np.array([0, 1, 0]), np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        sa.zeroshot.choose_threshold(np.array([0, 2, 0]), scores)
    with pytest.raises(ValueError, match="rule must be one of"):
        sa.zeroshot.choose_threshold(np.array([0, 1, 0]), scores, rule="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="labels must have shape"):
        sa.zeroshot.choose_threshold(np.array([0, 1]), scores)
    traced = jax.jit(sa.zeroshot.choose_threshold)(
        np.array([0, 1, 0]), np.array([0.1, np.nan, 0.2])
    )
    assert np.isnan(traced)


# --- evaluation --------------------------------------------------------------------------------


RUN: dict[str, Any] = {"task": "multi-label", "key": jax.random.key(0), "resamples": 50}


def score_parts(seed=0, rows=80):
    rng = np.random.default_rng(seed)
    labels = [rng.random((rows, 3)) < 0.4 for _ in range(2)]
    scores = [part + rng.standard_normal((rows, 3)) for part in labels]
    return labels, scores


def test_multi_label_metrics_equal_sklearn():
    labels, scores = score_parts()
    report = sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1], **RUN)
    threshold = np.asarray(sa.zeroshot.choose_threshold(labels[0], scores[0]))
    np.testing.assert_array_equal(report.thresholds, threshold)
    predicted, truth = scores[1] >= threshold, labels[1]
    expected = {
        "auroc": [roc_auc_score(truth[:, c], scores[1][:, c]) for c in range(3)],
        "average_precision": [
            average_precision_score(truth[:, c], scores[1][:, c]) for c in range(3)
        ],
        "f1": [f1_score(truth[:, c], predicted[:, c]) for c in range(3)],
        "sensitivity": [recall_score(truth[:, c], predicted[:, c]) for c in range(3)],
        "specificity": [recall_score(~truth[:, c], ~predicted[:, c]) for c in range(3)],
    }
    estimate, lower, upper = report.intervals[:3]
    assert set(estimate) == {"auroc", "average_precision", "macro_f1", "classes"}
    for name, values in expected.items():
        of_classes = estimate["classes"][name]
        np.testing.assert_allclose(of_classes, values, atol=1e-6, err_msg=name)
        if name not in ("sensitivity", "specificity"):
            mean = estimate["macro_f1" if name == "f1" else name]
            np.testing.assert_allclose(mean, np.mean(values), atol=1e-6)
        assert (lower["classes"][name] <= of_classes).all()
        assert (upper["classes"][name] >= of_classes).all()


def test_single_label_metrics_equal_sklearn():
    rng = np.random.default_rng(1)
    labels = [np.arange(60) % 3, rng.integers(0, 3, 60)]
    scores = [np.eye(3)[part] + rng.standard_normal((60, 3)) for part in labels]
    arguments = labels[0], scores[0], labels[1], scores[1]
    report = sa.zeroshot.evaluate_scores(
        *arguments, task="single-label", key=jax.random.key(0), resamples=20
    )
    predicted = scores[1].argmax(1)
    estimate = report.intervals.estimate
    np.testing.assert_allclose(estimate["accuracy"], np.mean(predicted == labels[1]), atol=1e-6)
    balanced = balanced_accuracy_score(labels[1], predicted)
    np.testing.assert_allclose(estimate["balanced_accuracy"], balanced, atol=1e-6)
    each = [roc_auc_score(labels[1] == c, scores[1][:, c]) for c in range(3)]
    np.testing.assert_allclose(estimate["classes"]["auroc"], each, atol=1e-6)


def test_test_labels_do_not_move_thresholds():
    labels, scores = score_parts()
    first = sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1], **RUN)
    other = sa.zeroshot.evaluate_scores(labels[0], scores[0], ~labels[1], scores[1] * 3, **RUN)
    np.testing.assert_array_equal(first.thresholds, other.thresholds)


def test_patients_are_drawn_as_a_whole():
    labels, scores = score_parts()
    patients = np.repeat([f"p{i}" for i in range(4)], 20)
    arguments = labels[0], scores[0], labels[1], scores[1]
    report = sa.zeroshot.evaluate_scores(*arguments, patients=patients, **RUN)
    expected = sa.metrics.intervals.bootstrap(
        sa.metrics.auroc_from_ranking,
        sa.metrics.rank_scores(labels[1], scores[1]),
        80,
        RUN["key"],
        resamples=RUN["resamples"],
        clusters=np.repeat(np.arange(4), 20),
    )
    np.testing.assert_allclose(
        report.intervals.lower["classes"]["auroc"], expected.lower, atol=1e-6
    )
    np.testing.assert_allclose(
        report.intervals.upper["classes"]["auroc"], expected.upper, atol=1e-6
    )


def test_classes_without_positive_or_negative_rows_are_nan_and_counted():
    labels, scores = score_parts()
    labels[1][:, 0], labels[0][:, 1] = True, False
    report = sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1], **RUN)
    np.testing.assert_array_equal(report.undefined_test, [True, False, False])
    np.testing.assert_array_equal(report.undefined_validation, [False, True, False])
    estimate = report.intervals.estimate
    classes = estimate["classes"]
    np.testing.assert_array_equal(np.isnan(classes["auroc"]), [True, False, False])
    np.testing.assert_array_equal(np.isnan(classes["f1"]), [False, True, False])
    np.testing.assert_allclose(estimate["auroc"], np.nanmean(classes["auroc"]))
    labels[1][:] = True
    nothing = sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1], **RUN)
    assert nothing.undefined_test.all()
    assert np.isnan(nothing.intervals.estimate["auroc"])


def test_bad_scores_and_labels_are_refused():
    labels, scores = score_parts(rows=10)
    broken = scores[1].copy()
    broken[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"test_scores holds NaN in 1 entry, first at \(4, 2\)"):
        sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], broken, **RUN)
    with pytest.raises(ValueError, match=r"test_labels must be in \[0, 2\); entry \(0, 0\) is 2"):
        sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1] * 0 + 2, scores[1], **RUN)
    with pytest.raises(ValueError, match="validation_labels must have shape"):
        sa.zeroshot.evaluate_scores(labels[0][:, :2], scores[0], labels[1], scores[1], **RUN)
    with pytest.raises(ValueError, match=r"test_labels must have shape \(9, 3\)"):
        sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1][:9], **RUN)
    with pytest.raises(ValueError, match="must have the same classes"):
        sa.zeroshot.evaluate_scores(labels[0], scores[0][:, :2], labels[1], scores[1], **RUN)
    with pytest.raises(ValueError, match="patients must have one entry for each of the 10 rows"):
        sa.zeroshot.evaluate_scores(labels[0], scores[0], labels[1], scores[1], patients=[1], **RUN)
    single: dict[str, Any] = {**RUN, "task": "single-label"}
    classes = np.arange(10) % 3
    with pytest.raises(ValueError, match=r"test_labels must be in \[0, 3\); entry \(2,\) is 3"):
        sa.zeroshot.evaluate_scores(classes, scores[0], classes + 1, scores[1], **single)


# --- protocol ----------------------------------------------------------------------------------

D_IN, D_OUT = 6, 5


class Study(NamedTuple):
    anchors: sa.zeroshot.AnchorPairs
    validation: sa.zeroshot.Images
    test: sa.zeroshot.Images
    prompts: sa.zeroshot.EmbeddedPrompts


def study(task: Task = "multi-label", seed=0, rows=(40, 30, 35)):
    """Anchors, validation, test and prompts, in which a map of low noise classifies well."""
    rng = np.random.default_rng(seed)
    texts = rng.standard_normal((3, D_OUT))
    turn = rotation(D_IN, rng)[:D_OUT]
    parts: dict[str, Any] = {}
    for part, n in zip(("anchors", "validation", "test"), rows, strict=True):
        labels = rng.random((n, 3)) < 0.5
        if task == "single-label":
            labels = np.eye(3, dtype=bool)[rng.integers(0, 3, n)]
        space = (2.0 * labels - 1) @ texts + 0.3 * rng.standard_normal((n, D_OUT))
        ids = [f"{part}-{i}" for i in range(n)]
        patients = [f"{part}-patient-{i // 2}" for i in range(n)]
        images = space @ turn + 0.1 * rng.standard_normal((n, D_IN))
        if part == "anchors":
            parts[part] = sa.zeroshot.AnchorPairs(ids, patients, images, space)
        else:
            kept = labels if task == "multi-label" else np.argmax(labels, axis=1)
            parts[part] = sa.zeroshot.Images(ids, patients, images, kept)
    prompts = make_prompts(np.concatenate([texts, texts, -texts, -texts]), task)
    return Study(**parts, prompts=prompts)


@pytest.mark.parametrize("rule", some(["youden", "f1"]))
def test_unknown_labels_count_nowhere(rule):
    rng = np.random.default_rng(8)
    labels, known = rng.random((2, 40, 3)) > 0.4
    scores = rng.integers(0, 9, (40, 3)) / 8  # with ties
    choose = sa.zeroshot.choose_threshold
    thresholds = np.asarray(choose(labels, scores, rule=rule, known=known))
    one = [choose(labels[k, c], scores[k, c], rule=rule) for c, k in enumerate(known.T)]
    np.testing.assert_array_equal(thresholds, one)
    none = choose(labels, scores, rule=rule, known=np.zeros_like(known))
    assert np.isnan(none).all()
    anything = np.where(known, labels, -1)  # as CheXpert marks what is uncertain
    for call in (choose, jax.jit(choose, static_argnames="rule")):
        np.testing.assert_array_equal(call(anything, scores, rule=rule, known=known), thresholds)
    with pytest.raises(ValueError, match=r"known must have the shape of the labels \(40, 3\)"):
        choose(labels, scores, known=known[0])
    report = sa.zeroshot.evaluate_scores(
        labels, scores, labels, scores, rule=rule, validation_known=known, test_known=known, **RUN
    )
    found = jax.tree.map(np.asarray, report.intervals.estimate["classes"])
    for c, kept in enumerate(known.T):
        truth, mine = labels[kept, c], scores[kept, c]
        decided = mine >= thresholds[c]
        np.testing.assert_allclose(found["auroc"][c], roc_auc_score(truth, mine), atol=1e-12)
        precision = average_precision_score(truth, mine)
        np.testing.assert_allclose(found["average_precision"][c], precision, atol=1e-9)
        np.testing.assert_allclose(found["f1"][c], f1_score(truth, decided), atol=1e-12)
        np.testing.assert_allclose(
            found["specificity"][c], recall_score(~truth, ~decided), atol=1e-12
        )
    report = sa.zeroshot.evaluate_scores(labels, scores, labels, scores, test_known=labels, **RUN)
    assert report.undefined_test.all()
    assert not report.undefined_validation.any()
    with pytest.raises(ValueError, match="test_known must have the shape of the labels"):
        sa.zeroshot.evaluate_scores(labels, scores, labels, scores, test_known=known[:3], **RUN)
    with pytest.raises(ValueError, match="is -1. Labels that are .* False in test_known"):
        sa.zeroshot.evaluate_scores(labels, scores, anything, scores, **RUN)


def test_known_labels_of_images_are_checked():
    part = study().test
    with pytest.raises(TypeError, match="known must be booleans"):
        replace(part, known=np.ones((35, 3), int))
    with pytest.raises(ValueError, match="known must have the shape of the labels"):
        replace(part, known=np.ones((35, 2), bool))


def run(parts, counts=(8, 20), **options):
    settings: dict[str, Any] = {"key": jax.random.key(1), "seeds": 2, "resamples": 20} | options
    pairs, validation, test, prompts = parts
    return sa.zeroshot.zero_shot_protocol(pairs, validation, test, prompts, counts, **settings)


ORTHO: dict[str, Any] = {"methods": {"ortho": "ortho"}, "baselines": {}}


def own_auroc(scores, truth):
    """A metric as users write it."""
    labels, weights = truth
    return sa.metrics.macro_mean(sa.metrics.auroc(labels, scores, weights=weights))


@pytest.fixture(scope="module")
def table():
    parts = study()
    pairs = parts.anchors
    labels = np.arange(120).reshape(40, 3) % 2
    labelled = sa.zeroshot.Images(pairs.ids, pairs.patients, pairs.source, labels)
    rng = np.random.default_rng(9)
    multimodal = {
        name: sa.zeroshot.Multimodal(
            rng.standard_normal((30, d)),
            rng.standard_normal((35, d)),
            make_prompts(rng.standard_normal((12, d))),
        )
        for name, d in (("clip", 4), ("siglip", 3))
    }
    more: dict[str, Any] = {"multimodal": multimodal, "metrics": {"own": own_auroc}}
    return parts, multimodal, run(parts, labelled=labelled, **more)


def test_table_holds_every_line(table):
    _, _, result = table
    methods = ("naive", "affine", "linear", "l-ortho", "ortho")
    lines = [(m, how) for m in methods for how in ("none", "center", "whiten")]
    lines += [(m, "") for m in ("relative", "asif", "csa", "linear probe", "clip", "siglip")]
    assert result.lines == tuple(lines)
    assert result.scores.shape == (21, 2, 2, 35, 3)
    assert result.thresholds.shape == (21, 2, 2, 3)
    assert result.intervals.estimate["classes"]["auroc"].shape == (21, 2, 2, 3)
    assert result.seed_means.lower["auroc"].shape == (21, 2)
    rows = result.rows()
    assert len(rows) == 21 * 2 * 4
    for part in (result.intervals, result.seed_means):  # its intervals are of the same resamples
        for values in part:
            np.testing.assert_allclose(values["own"], values["auroc"], atol=1e-6)
    assert {row["metric"] for row in rows} == {"auroc", "average_precision", "macro_f1", "own"}
    best = {r["method"]: r["mean"] for r in result.rows(["auroc"]) if r["anchors"] == 20}
    assert best["affine"] > 0.9 > max(best["clip"], best["siglip"])
    assert all(r["lower"] <= r["mean"] <= r["upper"] for r in rows)
    with pytest.raises(ValueError, match="metrics must be one of"):
        result.rows(["classes"])


def test_cells_equal_single_computations(table):
    parts, multimodal, result = table
    pairs, validation, test, prompts = parts
    anchor_key, _, bootstrap_key = jax.random.split(jax.random.key(1), 3)
    keys = jax.random.split(anchor_key, 2)
    for c, (count, seed) in enumerate([(8, 0), (20, 1)]):
        order = np.asarray(sa.sweeps.anchor_order(keys[seed], 40, size=20))[:count]
        x, y = pairs.source[order], pairs.target[order]
        space = sa.zeroshot.anchor_space(x, y)
        for i, (name, how) in enumerate(result.lines):
            if how:
                mapping = (
                    sa.identity_map(D_IN, D_OUT, dtype=x.dtype)
                    if name == "naive"
                    else sa.fit(name, x, y)
                )
                options = {"normalization": how, "space": space}
                expected = sa.zeroshot.zero_shot_scores(
                    mapping, test.embeddings, prompts, **options
                )
            elif name in baselines.BASELINES:
                expected = baselines.BASELINES[name](x, y, test.embeddings, prompts)
            elif name in multimodal:
                model = multimodal[name]
                expected = sa.zeroshot.prompt_scores(model.test, model.prompts)
            else:
                continue
            np.testing.assert_allclose(
                result.scores[i, c, seed], expected, atol=1e-6, err_msg=f"{name} {how}"
            )
    own = sa.zeroshot.zero_shot_scores(sa.fit("ortho", x, y), validation.embeddings, prompts)
    report = sa.zeroshot.evaluate_scores(
        validation.labels,
        own,
        test.labels,
        result.scores[12, 1, 1],
        task="multi-label",
        key=bootstrap_key,
        patients=test.patients,
        resamples=20,
    )
    assert result.lines[12] == ("ortho", "none")
    np.testing.assert_allclose(result.thresholds[12, 1, 1], report.thresholds, atol=1e-6)
    upper = {name: value for name, value in result.intervals.upper.items() if name != "own"}
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[12, 1, 1], upper), report.intervals.upper, atol=1e-6
    )


def test_seed_means_are_means_over_seeds(table):
    _, _, result = table
    expected = jax.tree.map(lambda leaf: leaf.mean(axis=2), result.intervals.estimate)
    chex.assert_trees_all_close(result.seed_means.estimate, expected, atol=1e-6)


def test_single_label_protocol_takes_class_names():
    parts = study("single-label")
    validation, test = (
        replace(part, labels=np.asarray(NAMES)[part.labels])
        for part in (parts.validation, parts.test)
    )
    first = run(parts, **ORTHO)
    second = run(parts._replace(validation=validation, test=test), **ORTHO)
    np.testing.assert_array_equal(first.scores, second.scores)
    accuracy = first.seed_means.estimate["accuracy"]
    assert accuracy.shape == (3, 2)
    assert accuracy[1, 1] > 0.7
    assert np.isnan(first.thresholds).all()
    wrong = replace(parts.test, labels=np.full(35, "d"))
    with pytest.raises(ValueError, match="labels of test hold 'd', which the prompt set lacks"):
        run(parts._replace(test=wrong), **ORTHO)


def test_undefined_classes_are_named():
    parts = study()
    labels = np.array(parts.test.labels)
    labels[:, 1] = False
    parts = parts._replace(test=replace(parts.test, labels=labels))
    result = run(parts, **ORTHO)
    assert result.undefined_test == ("b",)
    assert result.undefined_validation == ()
    assert np.isnan(result.intervals.estimate["classes"]["auroc"][..., 1]).all()
    assert result.rows(["auroc"])[0]["undefined_classes"] == 1


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="ids must be all different; repeated: 'a'"):
        sa.zeroshot.Images(["a", "b", "a"], [1, 2, 3], np.ones((3, 2)), [0, 1, 0])
    with pytest.raises(ValueError, match="repeated: '1'"):
        sa.zeroshot.Images(["1", 1.0], [1, 2], np.ones((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="patients: entry 1: 2.5 is no whole number"):
        sa.zeroshot.Images(["a", "b"], [1.0, 2.5], np.ones((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="patients: entry 1 is empty"):
        sa.zeroshot.Images(["a", "b"], [1.0, np.nan], np.ones((2, 2)), [0, 1])
    masked = np.ma.masked_equal([True, False], False)
    with pytest.raises(TypeError, match="known is a masked array"):
        sa.zeroshot.Images(["a", "b"], [1, 2], np.ones((2, 2)), [0, 1], masked)
    parts = study("single-label")
    masked = np.ma.masked_equal(parts.test.labels, 0)
    with pytest.raises(TypeError, match="labels is a masked array"):
        run(parts._replace(test=replace(parts.test, labels=masked)))
    with pytest.raises(ValueError, match="patients must have one entry for each of the 2 rows"):
        sa.zeroshot.Images(["a", "b"], [1], np.ones((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="labels must have one entry for each of the 2 images"):
        sa.zeroshot.Images(["a", "b"], [1, 2], np.ones((2, 2)), [0])
    with pytest.raises(ValueError, match="source and target must have the same rows"):
        sa.zeroshot.AnchorPairs(["a"], [1], np.ones((1, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="target holds NaN or infinity in 1 of 1 rows"):
        sa.zeroshot.AnchorPairs(["a"], [1], np.ones((1, 2)), np.full((1, 2), np.nan))


@pytest.mark.parametrize("field", ["ids", "patients"])
@pytest.mark.parametrize(
    ("first", "second"), [("anchors", "validation"), ("anchors", "test"), ("validation", "test")]
)
def test_overlapping_parts_are_refused(field, first, second):
    parts = study()._asdict()
    values = np.array(getattr(parts[second], field)).astype("U40")
    shared = np.unique(getattr(parts[first], field))[:7]
    values[: 2 * len(shared) : 2] = shared
    parts[second] = replace(parts[second], **{field: values})
    message = f"{first} and {second} have 7 {field} in common: .* and 2 more"
    with pytest.raises(ValueError, match=message):
        run(Study(**parts))


def test_patients_in_common_are_found_whatever_their_type():
    parts = study()
    texts = [f"{i}.0" for i in range(len(parts.validation.ids))]
    numbers = replace(parts.test, patients=np.arange(35) + 20)
    with pytest.raises(ValueError, match="validation and test have .* patients in common: '20'"):
        run(parts._replace(validation=replace(parts.validation, patients=texts), test=numbers))


def test_labelled_images_may_be_anchors_but_not_tested():
    parts = study()
    with pytest.raises(ValueError, match="test and labelled have .* patients in common"):
        run(parts, labelled=parts.test)
    with pytest.raises(ValueError, match="validation and labelled have .* patients in common"):
        run(parts, labelled=parts.validation)


def never(source, target, images, prompts):
    raise AssertionError("what is wrong is told before anything is scored")


def test_bad_protocols_are_refused():
    parts = study()
    unscored: dict[str, Any] = {"methods": {}, "baselines": {"never": never}}
    with pytest.raises(ValueError, match="counts has 41, more than the 40 rows"):
        run(parts, counts=(41,))
    with pytest.raises(ValueError, match="test images have 5 features, the source anchors 6"):
        run(parts._replace(test=replace(parts.test, embeddings=np.ones((35, 5)))))
    with pytest.raises(ValueError, match="prompts have 4 features, the target anchors 5"):
        run(parts._replace(prompts=make_prompts(np.ones((12, 4)))))
    with pytest.raises(ValueError, match="normalizations must be one of"):
        run(parts, normalizations=("zca",))
    with pytest.raises(ValueError, match="give at least one line"):
        run(parts, methods={}, baselines={})
    with pytest.raises(ValueError, match=r"labels of test must be in \[0, 2\); entry"):
        run(parts._replace(test=replace(parts.test, labels=np.full((35, 3), 2))))
    for options, message in (
        ({"temperature": -1.0}, "temperature must be finite and >= 0; got -1.0"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"shrinkage": 5.0}, r"shrinkage must be in \[0, 1\]; got 5.0"),
        ({"l2": -1.0}, "l2 must be finite and >= 0; got -1.0"),
        ({"level": 1.5}, r"level must be a number in \(0, 1\)"),
        ({"resamples": 0}, "resamples must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(parts, **options, **unscored)
    few = sa.zeroshot.Images(["x"], ["y"], np.ones((1, D_IN)), [[0, 1, 0]])
    with pytest.raises(ValueError, match="counts has 20, more than the 1 row"):
        run(parts, labelled=few, **unscored)
    short = sa.zeroshot.Multimodal(
        np.ones((29, 4)), np.ones((35, 4)), make_prompts(np.ones((12, 4)))
    )
    with pytest.raises(
        ValueError, match=r"multimodal\['clip'\].validation must have a row for each of"
    ):
        run(parts, multimodal={"clip": short}, **unscored)
    other = replace(short, prompts=make_prompts(np.ones((8, 4)), names=("x", "y")))
    with pytest.raises(ValueError, match="its prompts are of another set"):
        run(parts, multimodal={"clip": other}, **unscored)


def broken(x, y):
    return sa.AffineMap.from_weight(jnp.full((x.shape[1], y.shape[1]), jnp.nan, x.dtype))


def test_nan_scores_name_the_line():
    with pytest.raises(ValueError, match="scores of broken none at 8 anchors holds NaN"):
        run(study(), counts=(8,), methods={"broken": broken}, baselines={})


def test_progress_counts_lines():
    seen = []
    run(study(), progress=lambda done, total: seen.append((done, total)), **ORTHO)
    assert seen == [(done, 6) for done in range(1, 7)]  # three normalizations, two counts
