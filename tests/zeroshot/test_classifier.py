"""`zero_shot_classifier`, against its parts and against SciPy's optimum of the calibration."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_cases import WORDS, text_encoder
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

import semalign_jax as sa
from semalign_jax.encoders import embed, load_encoder
from semalign_jax.zeroshot import (
    ClassPrompts,
    PromptSet,
    anchor_space,
    embedded_prompts,
    load_prompts,
    prompt_scores,
    prompt_texts,
    zero_shot_classifier,
    zero_shot_scores,
)

wrongly: Any = zero_shot_classifier
CLASSES, D_IN, D_OUT, ROWS = ("cat", "dog", "bird"), 8, 6, 120
TEMPLATES = ("a {}", "the photo of a {}.")
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((ROWS, D_IN)).astype(np.float32)
TARGETS = RNG.standard_normal((ROWS, D_OUT)).astype(np.float32)
MAP = sa.fit_affine(IMAGES, TARGETS)


def embedder(texts):
    """Any texts as embeddings, the same text always the same."""
    rows = [np.random.default_rng(sum(map(ord, text))).standard_normal(D_OUT) for text in texts]
    return np.asarray(rows, np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_class_names_and_templates_are_an_ensemble():
    found = zero_shot_classifier(embedder, CLASSES, TEMPLATES, map=MAP)
    ensembles = [
        unit(unit(embedder([t.format(name) for t in TEMPLATES])).mean(axis=0)) for name in CLASSES
    ]
    expected = unit(np.asarray(MAP(IMAGES))) @ np.stack(ensembles).T
    np.testing.assert_allclose(found(IMAGES), expected, atol=1e-6)
    np.testing.assert_array_equal(found.predict(IMAGES), expected.argmax(axis=1))
    np.testing.assert_allclose(found.probabilities(IMAGES).sum(axis=1), 1, atol=1e-6)
    assert found.names == CLASSES
    assert repr(found) == "<ZeroShotClassifier: 3 classes, single-label, AffineMap(float32[8,6])>"


def test_no_map_is_for_images_of_the_same_space():
    found = zero_shot_classifier(embedder, CLASSES)
    expected = unit(TARGETS) @ unit(embedder(CLASSES)).T
    np.testing.assert_allclose(found(TARGETS), expected, atol=1e-6)


def test_a_prompt_set_gives_margins_and_findings():
    prompt_set = load_prompts("vindr_cxr")
    found = zero_shot_classifier(embedder, prompt_set, map=MAP)
    prompts = embedded_prompts(prompt_set, embedder(prompt_texts(prompt_set).texts))
    np.testing.assert_allclose(
        found.probabilities(IMAGES), zero_shot_scores(MAP, IMAGES, prompts), atol=1e-6
    )
    np.testing.assert_array_equal(found.predict(IMAGES), found.scores(IMAGES) > 0)


def test_the_space_can_be_normalised_and_the_classifier_traced():
    space = anchor_space(IMAGES, TARGETS)
    found = zero_shot_classifier(
        embedder, CLASSES, map=MAP, normalization="whiten", space=space, temperature=0.5
    )
    prompts = found.prompts
    expected = zero_shot_scores(MAP, IMAGES, prompts, normalization="whiten", space=space)
    np.testing.assert_allclose(found.scores(IMAGES), expected, atol=1e-6)
    np.testing.assert_allclose(found(IMAGES), 2 * expected, atol=1e-5)
    logits = jax.jit(lambda classifier, rows: classifier(rows))(found, IMAGES)
    np.testing.assert_allclose(logits, 2 * expected, atol=1e-5)


def test_an_encoder_embeds_the_prompts(tmp_path):
    encoder = load_encoder(text_encoder(tmp_path / "bert"))
    found = zero_shot_classifier(encoder, WORDS[:3], ("no {}",))
    rows = embed(encoder, [f"no {word}" for word in WORDS[:3]], progress=False).embeddings
    np.testing.assert_allclose(found.prompts.embeddings, rows, atol=1e-6)


def test_an_undefined_image_has_no_class():
    images = IMAGES.copy()
    images[3, 0] = np.nan
    found = zero_shot_classifier(embedder, CLASSES, map=MAP).predict(images)
    assert found[3] == -1
    assert (np.delete(np.asarray(found), 3) >= 0).all()


# --- calibration -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.2, 2.0], ids=["easy", "hard"])
def test_one_temperature_is_the_likeliest(noise):
    classifier = zero_shot_classifier(embedder, CLASSES, map=MAP)
    scores = np.asarray(classifier.scores(IMAGES), np.float64)
    noisy = scores + noise * scores.std() * RNG.standard_normal(scores.shape)
    labels = noisy.argmax(axis=1)
    found = classifier.calibrated(IMAGES, labels)
    eps = 1 / (ROWS + 2)
    target = (1 - eps) * np.eye(3)[labels] + eps / 3

    def loss(scale):
        return -np.mean(np.sum(target * log_softmax(scores * np.exp(scale), axis=1), axis=1))

    best = minimize(lambda p: loss(p[0]), [0.0], method="Nelder-Mead", options={"xatol": 1e-8})
    assert np.log(float(found.temperature[0])) == pytest.approx(-best.x[0], abs=2e-3)
    assert loss(-np.log(float(found.temperature[0]))) <= best.fun + 1e-7
    np.testing.assert_array_equal(found.predict(IMAGES), classifier.predict(IMAGES))


def test_margins_far_from_zero_are_calibrated_too():
    finding = PromptSet("one", "multi-label", (ClassPrompts("x", ("there",), ("absent",)),))
    angles, noise = 0.01 * np.random.default_rng(2).standard_normal((2, 60))
    labels = (angles < noise)[:, None]
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    classifier = zero_shot_classifier(lambda texts: np.eye(len(texts), dtype="f"), finding)
    found = classifier.calibrated(images, labels)
    margins, m = np.cos(angles) - np.sin(angles), labels.sum()
    target = np.where(labels[:, 0], (m + 1) / (m + 2), 1 / (len(labels) - m + 2))

    def loss(p):
        logits = p[0] * (margins - margins.mean()) / margins.std() + p[1]
        return np.mean(np.logaddexp(0, logits) - target * logits)

    slope = 1 / float(found.temperature[0])
    ours = slope * margins.std(), float(found.bias[0]) + slope * margins.mean()
    assert loss(ours) <= minimize(loss, [1.0, 0.0]).fun + 1e-5


def test_each_finding_has_a_temperature_and_a_bias():
    prompt_set = load_prompts("vindr_cxr")
    classifier = zero_shot_classifier(embedder, prompt_set, map=MAP)
    margins = np.asarray(classifier.scores(IMAGES), np.float64)
    spread = margins.std(axis=0)
    labels = margins / spread + 2 * RNG.standard_normal(margins.shape) > 1
    labels[:, 0] = margins[:, 0] > 0  # separable
    labels[:, 1] = False  # never there
    known = RNG.random(margins.shape) < 0.8
    found = classifier.calibrated(IMAGES, labels, known=known)
    for k in range(margins.shape[1]):
        z, y = margins[known[:, k], k], labels[known[:, k], k]
        m, n = y.sum(), (~y).sum()
        target = np.where(y, (m + 1) / (m + 2), 1 / (n + 2))

        def loss(p, z=z, target=target):
            q = np.clip(expit(p[0] * z + p[1]), 1e-12, 1 - 1e-12)
            return -np.mean(target * np.log(q) + (1 - target) * np.log(1 - q))

        bounds = [(1e-6, None), (None, None)]
        best = minimize(loss, [1 / spread[k], 0.0], bounds=bounds, options={"ftol": 1e-14})
        ours = 1 / float(found.temperature[k]), float(found.bias[k])
        assert loss(ours) <= best.fun + 2e-5, k
    assert np.isfinite(np.asarray(found.probabilities(IMAGES))).all()
    # As many as there are, which a calibration keeps.
    shares = np.asarray(found.probabilities(IMAGES)).mean(axis=0)
    assert shares[1] < 0.02
    np.testing.assert_allclose(shares[2:], labels[:, 2:].mean(axis=0), atol=0.1)


# --- errors ------------------------------------------------------------------------------------

ERRORS = {
    "one name": (lambda: zero_shot_classifier(embedder, "cat"), TypeError, "classes must be"),
    "one class": (lambda: zero_shot_classifier(embedder, ["cat"]), ValueError, "at least two"),
    "twice": (lambda: zero_shot_classifier(embedder, ["a", "a"]), ValueError, "occurs twice"),
    "template": (
        lambda: zero_shot_classifier(embedder, CLASSES, ["photo"]),
        ValueError,
        "placeholder",
    ),
    "one template": (
        lambda: zero_shot_classifier(embedder, CLASSES, "a {}"),
        TypeError,
        "templates must be a list",
    ),
    "templates of a set": (
        lambda: zero_shot_classifier(embedder, load_prompts("vindr_cxr"), ["{}"]),
        ValueError,
        "templates must be None",
    ),
    "encoder": (lambda: wrongly("bert", CLASSES), TypeError, "text_encoder must"),
    "rows": (
        lambda: zero_shot_classifier(lambda texts: embedder(texts)[:2], CLASSES),
        ValueError,
        "must have 3 rows",
    ),
    "map": (
        lambda: zero_shot_classifier(embedder, CLASSES, map=sa.identity_map(D_IN, 5)),
        ValueError,
        "text encoder's 6 dimensions",
    ),
    "space": (
        lambda: zero_shot_classifier(embedder, CLASSES, map=MAP, normalization="center"),
        ValueError,
        "needs space",
    ),
    "nothing mapped": (
        lambda: zero_shot_classifier(embedder, CLASSES, normalization="center"),
        ValueError,
        "give map",
    ),
    "temperature": (
        lambda: zero_shot_classifier(embedder, CLASSES, temperature=0.0),
        ValueError,
        "temperature must be > 0",
    ),
    "labels": (
        lambda: zero_shot_classifier(embedder, CLASSES, map=MAP).calibrated(
            IMAGES, np.full(ROWS, 3)
        ),
        ValueError,
        "labels",
    ),
    "undefined": (
        lambda: zero_shot_classifier(embedder, CLASSES, map=MAP).calibrated(
            IMAGES * jnp.nan, np.zeros(ROWS, int)
        ),
        ValueError,
        "images",
    ),
    "known": (
        lambda: zero_shot_classifier(embedder, CLASSES, map=MAP).calibrated(
            IMAGES, np.zeros(ROWS, int), known=np.ones(ROWS, bool)
        ),
        ValueError,
        "known must be None",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_a_clear_error(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_multimodal_classifier_is_its_scores():
    found = zero_shot_classifier(embedder, load_prompts("rsna_pneumonia"))
    np.testing.assert_allclose(
        found.probabilities(TARGETS), prompt_scores(TARGETS, found.prompts), atol=1e-6
    )
