"""Heads against scikit-learn, SciPy and their definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from helpers import some
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC

import semalign_jax as sa
from semalign_jax.studies.demo import load_demo

RNG = np.random.default_rng(0)
N, D, K = 150, 5, 3
CLASSES = RNG.integers(0, K, N).astype(np.int32)
X = RNG.standard_normal((N, D)) + 1.5 * np.eye(D)[CLASSES] + 3
# Of very different frequency, none of them separable.
LABELS = RNG.standard_normal((N, K)) + X[:, :K] - 3 > np.array([0.3, 1.5, 2.4])
WEIGHTS = RNG.uniform(0.2, 2, N)


def logistic(x, labels, l2, weights=None):
    model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000)
    return model.fit(x, labels, sample_weight=weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_multilabel_equals_scikit_learn_label_by_label(weighted):
    weights = WEIGHTS if weighted else None
    head, info = sa.fit_head(
        X, LABELS, K, loss="binary", l2=0.5, weights=weights, tolerance=1e-14, info=True
    )
    assert bool(info.converged)
    assert 0 < float(info.gradient) < 1e-7
    weight, bias, got = map(np.asarray, (head.weight, head.bias, jax.nn.sigmoid(head(X))))
    for k in range(K):
        expected = logistic(X, LABELS[:, k], 0.5, weights)
        np.testing.assert_allclose(weight[:, k], expected.coef_[0], atol=1e-5)
        np.testing.assert_allclose(bias[k], expected.intercept_[0], atol=1e-5)
        np.testing.assert_allclose(got[:, k], expected.predict_proba(X)[:, 1], atol=1e-6)


@pytest.mark.parametrize("penalized", [False, True])
def test_two_classes_equal_the_definition(penalized):
    """One weight vector is searched for, and two opposite ones are given."""
    labels = (CLASSES > 0).astype(np.int32)

    def loss(flat):
        weight, bias = flat[: 2 * D].reshape(D, 2), flat[2 * D :]
        logits = X @ weight + bias
        losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(N), labels]
        squares = np.sum(weight**2) + (np.sum(bias**2) if penalized else 0)
        return np.sum(WEIGHTS * losses) + 0.7 / 2 * squares

    best = scipy.optimize.minimize(loss, np.zeros(2 * D + 2), method="BFGS", tol=1e-9)
    head, info = sa.fit_head(
        X, labels, 2, l2=0.7, weights=WEIGHTS, penalize_intercept=penalized, tolerance=0.0,
        info=True,
    )  # fmt: skip
    flat = np.concatenate([np.ravel(head.weight), head.bias])
    np.testing.assert_allclose(loss(flat), best.fun, rtol=1e-9)
    np.testing.assert_allclose(flat[: 2 * D], best.x[: 2 * D], atol=1e-4)
    np.testing.assert_allclose(float(info.loss) * WEIGHTS.sum(), best.fun, rtol=1e-9)
    np.testing.assert_allclose(flat[: 2 * D : 2], -flat[1 : 2 * D : 2], atol=1e-12)


def test_unknown_labels_are_left_out_one_by_one():
    known = np.random.default_rng(1).random((N, K)) < 0.7
    known[3] = False
    x = X.copy()
    x[3] = np.nan  # no known label: the row does not count
    labels = np.where(known, LABELS, -1).astype(np.int8)
    head = sa.fit_head(x, labels, K, loss="binary", known=known, tolerance=1e-14)
    for k in range(K):
        rows = known[:, k]
        expected = logistic(X[rows], LABELS[rows, k], 1.0)
        np.testing.assert_allclose(head.weight[:, k], expected.coef_[0], atol=1e-5)
        np.testing.assert_allclose(head.bias[k], expected.intercept_[0], atol=1e-5)


def test_labels_do_not_influence_each_other():
    together = sa.fit_head(X, LABELS, K, loss="binary", tolerance=1e-15)
    alone = sa.fit_head(X, LABELS[:, 1:2], 1, loss="binary", tolerance=1e-15)
    np.testing.assert_allclose(together.weight[:, 1], alone.weight[:, 0], atol=1e-7)


@pytest.mark.parametrize("c", [0.1, 2.0])
def test_hinge_equals_linear_svc(c):
    head, info = sa.fit_head(X, CLASSES, K, loss="hinge", l2=1 / c, tolerance=1e-14, info=True)
    assert bool(info.converged)
    primal: Any = False  # its stub lacks booleans
    expected = LinearSVC(C=c, tol=1e-10, max_iter=100_000, dual=primal).fit(X, CLASSES)
    np.testing.assert_allclose(head.weight.T, expected.coef_, atol=1e-5)
    np.testing.assert_allclose(head.bias, expected.intercept_, atol=1e-5)
    np.testing.assert_allclose(head(X), expected.decision_function(X), atol=1e-5)
    weighted = sa.fit_head(X, CLASSES, K, loss="hinge", l2=1 / c, weights=WEIGHTS, tolerance=1e-14)
    expected.fit(X, CLASSES, sample_weight=WEIGHTS)
    np.testing.assert_allclose(weighted.weight.T, expected.coef_, atol=1e-5)


def test_hinge_takes_labels_and_can_leave_the_intercept_free():
    one_hot = CLASSES[:, None] == np.arange(K)
    by_class = sa.fit_head(X, CLASSES, K, loss="hinge", tolerance=1e-14)
    by_label = sa.fit_head(X, one_hot, K, loss="hinge", tolerance=1e-14)
    np.testing.assert_allclose(by_class.weight, by_label.weight, atol=1e-10)
    free: dict[str, Any] = dict(loss="hinge", penalize_intercept=False, tolerance=1e-15)
    here, there = sa.fit_head(X, CLASSES, K, **free), sa.fit_head(X + 7, CLASSES, K, **free)
    np.testing.assert_allclose(here.weight, there.weight, atol=1e-6)  # unmoved by an offset

    def objective(params):
        score = np.where(one_hot[:, 0], 1, -1) * (X @ params[:-1] + params[-1])
        return np.sum(np.maximum(0, 1 - score) ** 2) + 0.5 * np.sum(params[:-1] ** 2)

    best = scipy.optimize.minimize(objective, np.zeros(D + 1), method="BFGS", tol=1e-10)
    np.testing.assert_allclose(here.weight[:, 0], best.x[:-1], atol=1e-4)
    np.testing.assert_allclose(here.bias[0], best.x[-1], atol=1e-4)


def test_penalised_intercept_of_a_multinomial_head():
    head = sa.fit_head(X, CLASSES, K, penalize_intercept=True, tolerance=1e-15)
    ones = np.concatenate([X, np.ones((N, 1))], axis=1)
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000, fit_intercept=False)
    expected = model.fit(ones, CLASSES)
    np.testing.assert_allclose(head.weight.T, expected.coef_[:, :-1], atol=1e-4)
    np.testing.assert_allclose(head.bias, expected.coef_[:, -1], atol=1e-4)


@pytest.mark.parametrize("loss", some(["multinomial", "binary", "hinge"], 3))
def test_rows_without_weight_are_inert(loss: Any):
    labels = (LABELS if loss == "binary" else CLASSES).astype(np.int32)
    keep = np.arange(N) % 7 != 0
    x, bad = X.copy(), labels.copy()
    x[~keep], bad[~keep] = np.nan, 99
    head = sa.fit_head(x, bad, K, loss=loss, weights=keep, tolerance=1e-15)
    expected = sa.fit_head(X[keep], labels[keep], K, loss=loss, tolerance=1e-15)
    np.testing.assert_allclose(head.weight, expected.weight, atol=1e-7)
    np.testing.assert_allclose(head.bias, expected.bias, atol=1e-7)


# --- the right optimum -------------------------------------------------------------------------


def embeddings(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Float64 features and classes of real data."""
    name, _, scaled = name.partition(", ")
    bundled = {"cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
    if name in bundled:
        x, labels = bundled[name](return_X_y=True)
    else:
        data = load_demo(name)
        x = data.values[::2].astype(np.float64)
        labels = data.labels("category" if name.startswith("emoji") else "supersense")[0][::2]
    if scaled:
        x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    return x, np.unique(labels, return_inverse=True)[1].astype(np.int32)


def objective(weight, bias, x, labels, l2):
    """What a multinomial head minimises, and its gradient by weight and bias; in float64."""
    weight, bias, x = (np.asarray(a, np.float64) for a in (weight, bias, x))
    logits = x @ weight + bias
    likely = scipy.special.log_softmax(logits, axis=1)
    rest = scipy.special.softmax(logits, axis=1) - np.eye(len(bias))[labels]
    value = l2 / 2 * np.sum(weight**2) - likely[np.arange(len(x)), labels].sum()
    return value, x.T @ rest + l2 * weight, rest.sum(0)


@pytest.mark.parametrize(
    "name",
    [
        "cancer",
        "cancer, scaled",
        "wine, scaled",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "wine",
                "digits",
                "digits, scaled",
                "emoji_dinov2_small",
                "glosses_minilm_l6",
            )
        ),
    ],
)
def test_loss_is_that_of_the_optimum(name):
    """At the default tolerance, whatever the scale of the features; in either precision."""
    x, labels = embeddings(name)
    k = labels.max() + 1
    x -= x.mean(0)
    for l2 in (1e-4, 1e-2, 1.0):
        best = sa.fit_head(x, labels, k, l2=l2, tolerance=0.0)
        value, by_weight, by_bias = objective(best.weight, best.bias, x, labels, l2)
        # The loss is l2-convex in the weights: no head is better by more than this.
        assert np.sum(by_weight**2) / (2 * l2) < 1e-7 * value
        assert np.abs(by_bias).max() < 1e-6
        if "scaled" in name or (name, l2) == ("cancer", 1.0):
            solver = "newton-cholesky" if k < 5 else "lbfgs"
            model = LogisticRegression(
                C=(2 if k == 2 else 1) / l2, tol=1e-8, max_iter=10_000, solver=solver
            ).fit(x, labels)
            weight, bias = model.coef_.T, model.intercept_
            if k == 2:
                weight, bias = weight * [[-0.5, 0.5]], bias * [-0.5, 0.5]
            expected = objective(weight, bias, x, labels, l2)[0]
            assert value < (1 + 1e-5) * expected  # where it stops early, ours is better
        for dtype in (np.float64, np.float32):
            head, info = sa.fit_head(x.astype(dtype), labels, k, l2=float(l2), info=True)
            assert bool(info.converged)
            got = objective(head.weight, head.bias, x, labels, l2)[0]
            assert got < (1 + 1e-5) * value, (l2, dtype)
            np.testing.assert_allclose(info.loss * len(x), got, rtol=1e-5)


@pytest.mark.slow
def test_hinge_loss_is_that_of_the_optimum():
    x, labels = embeddings("digits, scaled")
    x, labels = x[::3], labels[::3]
    x -= x.mean(0)
    signs = np.where(labels[:, None] == np.arange(10), 1, -1)

    def values(head):
        """Of each class, and how far it is at most from the least, which is l2-convex."""
        weight, bias = np.asarray(head.weight, np.float64), np.asarray(head.bias, np.float64)
        short = np.maximum(0, 1 - signs * (x @ weight + bias))
        slope = -2 * signs * short
        above = np.sum((x.T @ slope + l2 * weight) ** 2, 0) + (slope.sum(0) + l2 * bias) ** 2
        return np.sum(short**2, 0) + l2 / 2 * (np.sum(weight**2, 0) + bias**2), above / (2 * l2)

    for l2 in (1e-2, 1.0):
        best, above = values(sa.fit_head(x, labels, 10, loss="hinge", l2=l2, tolerance=0.0))
        assert (above < 1e-7 * best).all()
        for dtype in (np.float64, np.float32):
            head, info = sa.fit_head(x.astype(dtype), labels, 10, loss="hinge", l2=l2, info=True)
            assert bool(info.converged)
            assert (values(head)[0] < (1 + 1e-5) * best).all()
    primal: Any = False  # its stub lacks booleans
    model = LinearSVC(C=1.0, tol=1e-6, max_iter=100_000, dual=primal).fit(x, labels)
    expected = values(sa.AffineMap.from_weight(model.coef_.T, model.intercept_))[0]
    np.testing.assert_allclose(best, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["multinomial", "binary", "hinge"])
def test_search_does_not_depend_on_the_units_of_features(loss: Any):
    labels = LABELS if loss == "binary" else CLASSES
    units = np.array([1e-6, 1e-3, 1.0, 1e3, 1e6])
    # Nearly without a penalty; with one, the unit of all.
    cases = ((X * units, 1e-18, units[:, None]), (X * 1e5, 0.3 * 1e10, 1e5))
    for x, l2, unit in cases:
        plain = 0.3 if l2 > 1 else 0.0
        options: dict[str, Any] = dict(loss=loss, penalize_intercept=False, info=True)
        expected, first = sa.fit_head(X, labels, K, l2=plain, **options)
        head, second = sa.fit_head(x, labels, K, l2=l2, **options)
        assert bool(first.converged) and bool(second.converged)  # noqa: PT018
        assert int(first.steps) == int(second.steps)
        np.testing.assert_allclose(head.weight * unit, expected.weight, rtol=1e-6, atol=1e-7)


def test_more_dimensions_than_rows():
    x = np.random.default_rng(2).standard_normal((30, 80)) + 4
    for penalized in (False, True):
        head = sa.fit_head(x, CLASSES[:30], K, l2=0.3, penalize_intercept=penalized, tolerance=0.0)
        data = np.concatenate([x, np.ones((30, 1))], axis=1) if penalized else x
        model = LogisticRegression(
            C=1 / 0.3, tol=1e-10, max_iter=5000, fit_intercept=not penalized
        ).fit(data, CLASSES[:30])
        np.testing.assert_allclose(head.weight.T, model.coef_[:, :80], atol=1e-5)
        logits = data @ model.coef_.T + model.intercept_
        np.testing.assert_allclose(head(x), logits, atol=1e-4)


def test_what_did_not_converge_says_so():
    x, labels = embeddings("wine, scaled")
    _, info = sa.fit_head(x, labels, 3, l2=1e-4, max_steps=8, info=True)
    assert int(info.steps) == 8
    assert not bool(info.converged)
    # Separable and not penalised: no head is best.
    _, info = sa.fit_head(x, labels, 3, l2=0.0, max_steps=100, info=True)
    assert not bool(info.converged)
    # Products beyond the range of float32
    _, info = sa.fit_head((1e25 * x).astype(np.float32), labels, 3, info=True)
    assert not bool(info.converged)


# --- MLP ---------------------------------------------------------------------------------------


def exclusive_or(n=200) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, 4))
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int32)


def test_mlp_learns_what_a_linear_head_cannot():
    x, labels = exclusive_or()
    head, info = sa.stitching.fit_mlp_head(
        jax.random.key(0), x, labels, 2, units=16, l2=0.1, max_steps=3000, info=True
    )
    assert int(info.steps) > 5
    linear = sa.fit_head(x, labels, 2)
    assert float(sa.stitching.head_accuracy(head, x, labels)) > 0.95
    assert float(sa.stitching.head_accuracy(linear, x, labels)) < 0.7


def numpy_mlp(head, x):
    """The definition, from the arrays alone."""
    (w1, s1, t1), (w2, s2, t2) = (
        map(np.asarray, (m.weight, m.source_offset, m.target_offset))
        for m in (head.hidden, head.output)
    )
    return (np.maximum((x - s1) @ w1 + t1, 0) - s2) @ w2 + t2


def standardized():
    x, labels = exclusive_or()
    x = x - x.mean(0)
    return x / np.sqrt(np.mean(x**2)), labels  # the unit that the penalty refers to


def test_mlp_loss_is_as_defined():
    x, labels = standardized()
    head, info = sa.stitching.fit_mlp_head(
        jax.random.key(0), x, labels, 2, units=8, activation="relu", l2=0.7, info=True
    )
    logits = numpy_mlp(head, x)
    np.testing.assert_allclose(head(x), logits, atol=1e-9)
    mean = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), labels])
    squares = sum(np.sum(np.asarray(m.weight) ** 2) for m in (head.hidden, head.output))
    np.testing.assert_allclose(info.loss, mean + 0.7 / 2 / len(x) * squares, atol=1e-9)


def test_mlp_is_as_good_a_minimum_as_that_of_scikit_learn():
    x, classes = standardized()
    labels = np.stack([classes, x[:, 2] ** 2 > 1], axis=1).astype(np.int32)
    losses, expected = [], []
    for seed in range(3):
        info = sa.stitching.fit_mlp_head(
            jax.random.key(seed), x, labels, 2, units=8, activation="relu", loss="binary",
            tolerance=1e-6, info=True,
        )[1]  # fmt: skip
        model = MLPClassifier(
            (8,), alpha=1.0, solver="lbfgs", max_iter=5000, tol=1e-9, random_state=seed
        )
        losses.append(float(info.loss))
        expected.append(model.fit(x, labels).loss_)
    assert min(losses) < min(expected) * 1.02


def test_mlp_counts_every_known_label_the_same():
    x, classes = standardized()
    labels = np.stack([classes, x[:, 2] ** 2 > 1], axis=1).astype(np.int32)
    known = np.ones(labels.shape, bool)
    known[20:, 1] = False
    head, info = sa.stitching.fit_mlp_head(
        jax.random.key(0), x, labels, 2, units=8, activation="relu", loss="binary", known=known,
        tolerance=1e-6, info=True,
    )  # fmt: skip
    losses = np.logaddexp(0, np.where(labels == 1, -1, 1) * numpy_mlp(head, x))
    squares = sum(np.sum(np.asarray(m.weight) ** 2) for m in (head.hidden, head.output))
    minimised = np.sum(known * losses) + squares / 2
    np.testing.assert_allclose(info.loss, minimised / known.sum(axis=0).mean(), rtol=1e-6)


@pytest.mark.parametrize(  # smooth ones
    "activation", [pytest.param("tanh", marks=pytest.mark.slow), "gelu"]
)
def test_mlp_gradient_vanishes(activation: Any):
    x, labels = exclusive_or()
    head, info = sa.stitching.fit_mlp_head(
        jax.random.key(1), x, labels, 2, units=16, activation=activation, tolerance=1e-5,
        max_steps=3000, info=True,
    )  # fmt: skip
    assert bool(info.converged)
    scale = np.sqrt(np.mean((x - x.mean(0)) ** 2))

    @jax.jit
    @jax.grad
    def gradient(head):
        losses = jax.nn.logsumexp(head(x), axis=1) - head(x)[np.arange(len(x)), labels]
        squares = jnp.sum((scale * head.hidden.weight) ** 2) + jnp.sum(head.output.weight**2)
        return jnp.mean(losses) + squares / 2 / len(x)

    slope = gradient(head)
    for part in (slope.hidden.target_offset, slope.output.weight):
        assert np.abs(part).max() < 1e-5


def test_mlp_does_not_depend_on_offset_and_unit_of_the_embeddings():
    x, labels = exclusive_or(80)
    plain, moved = (
        sa.stitching.fit_mlp_head(jax.random.key(0), data, labels, 2, units=6, max_steps=20)(data)
        for data in (x, 1e3 * x - 7)
    )
    np.testing.assert_allclose(plain, moved, rtol=1e-6, atol=1e-6)


# --- derivatives and devices -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "penalized", "few"),
    [
        ("multinomial", False, False),
        pytest.param("multinomial", True, True, marks=pytest.mark.slow),
        pytest.param("binary", False, True, marks=pytest.mark.slow),
        pytest.param("hinge", True, False, marks=pytest.mark.slow),
    ],
)
def test_derivatives_of_the_optimum(loss: Any, penalized, few):
    rng = np.random.default_rng(6)
    x, labels = X, LABELS if loss == "binary" else CLASSES
    if few:  # fewer rows than dimensions
        x = rng.standard_normal((12, 15)) + 2
        labels = LABELS[:12] if loss == "binary" else np.arange(12) % K
    directions = rng.standard_normal((x.shape[1], K)), rng.standard_normal(K)

    def score(x, weights, l2):
        head = sa.fit_head(
            x, labels, K, loss=loss, l2=l2, weights=weights, tolerance=0.0,
            penalize_intercept=penalized,
        )  # fmt: skip
        return (head.weight * directions[0]).sum() + (head.bias * directions[1]).sum()

    point = x, WEIGHTS[: len(x)], np.array(0.7)
    step = rng.standard_normal(x.shape), rng.standard_normal(len(x)), np.array(0.3)
    ahead, behind = ([p + h * s for p, s in zip(point, step, strict=True)] for h in (1e-5, -1e-5))

    @jax.jit
    def everything(*point):
        value, push = jax.linearize(score, *point)
        return value, push(*step), jax.linear_transpose(push, *point)(jnp.ones_like(value))

    expected = float(everything(*ahead)[0] - everything(*behind)[0]) / 2e-5
    _, slope, gradient = everything(*point)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    got = sum(np.sum(np.asarray(g) * s) for g, s in zip(gradient, step, strict=True))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.slow
def test_derivatives_in_batches_and_of_second_order():
    def slope(l2):
        return jax.grad(
            lambda l2: jnp.sum(sa.fit_head(X, CLASSES, K, l2=l2, tolerance=0.0)(X) ** 2)
        )(l2)

    slopes = np.asarray(jax.jit(jax.vmap(slope))(np.array([0.7 - 1e-4, 0.7, 0.7 + 1e-4])))
    first, second = jax.jit(jax.value_and_grad(slope))(0.7)
    np.testing.assert_allclose(slopes[1], first, rtol=1e-9)
    np.testing.assert_allclose(second, (slopes[2] - slopes[0]) / 2e-4, rtol=1e-5)


@pytest.mark.slow
def test_shard_map():
    """Rows, penalties or nothing are spread; JAX checks what varies between devices."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = P("rows"), P()
    x, labels = X[:144], np.arange(144) % K
    l2 = np.geomspace(0.1, 10, 8)

    def fit(x, labels, l2):
        head, info = sa.fit_head(x, labels, K, l2=l2[0], info=True)
        return head.weight[None], info.steps[None]

    def slope(x, labels, l2):
        return (jax.grad(lambda l2: jnp.sum(sa.fit_head(x, labels, K, l2=l2[0]).weight ** 2))(l2),)

    for function, specs in (
        (fit, (rows, rows, rows)),
        (fit, (everywhere, everywhere, rows)),
        (slope, (rows, rows, rows)),
    ):
        device = 3 if specs[2] == rows else 0
        part = slice(54, 72) if specs[0] == rows else slice(None)
        out = rows if specs[2] == rows else everywhere
        got = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out))(
            x, labels, l2
        )
        expected = jax.jit(function)(x[part], labels[part], l2[device : device + 1])
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a[device], b[0], rtol=1e-6, atol=1e-9)


# --- all heads ---------------------------------------------------------------------------------

HEADS = {
    "multinomial": lambda _, x, w: sa.fit_head(x, CLASSES, K, weights=w, tolerance=1e-15),
    "binary": lambda _, x, w: sa.fit_head(x, LABELS, K, loss="binary", weights=w, tolerance=1e-15),
    "hinge": lambda _, x, w: sa.fit_head(x, CLASSES, K, loss="hinge", weights=w, tolerance=1e-15),
    "mlp": lambda key, x, w: sa.stitching.fit_mlp_head(
        key, x, CLASSES, K, units=4, weights=w, max_steps=15
    ),
}


@pytest.mark.parametrize(
    "name",
    ["binary", *(pytest.param(k, marks=pytest.mark.slow) for k in HEADS if k != "binary")],
)
def test_transformations_dtypes_and_stitching(name):
    fit: Any = HEADS[name]
    weights, keys = np.stack([WEIGHTS, WEIGHTS[::-1]]), jax.random.split(jax.random.key(0), 2)
    batch = jax.vmap(fit, (0, None, 0))(keys, X, weights)
    jitted = jax.jit(fit)
    for i in range(2):
        one = jitted(keys[i], X, weights[i])
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(np.asarray(a)[i], b, atol=1e-6)
    np.testing.assert_allclose(np.asarray(batch(X))[1], one(X), atol=1e-5)
    if name == "mlp":  # seeds matter
        other = jitted(keys[0], X, weights[1])
        assert np.abs(np.asarray(one(X)) - np.asarray(other(X))).max() > 1e-2
    narrow = fit(keys[0], X.astype(np.float32), WEIGHTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {np.dtype(np.float32)}

    x = np.random.default_rng(5).standard_normal((9, 7))
    mapping = sa.AffineMap.from_weight(RNG.standard_normal((7, D)), RNG.standard_normal(D))
    stitched = sa.stitch(one, mapping)
    assert type(stitched) is type(one)
    assert stitched.d_in == 7
    np.testing.assert_allclose(stitched(x), one(mapping(x)), atol=1e-10)
    step = 1e-6 * RNG.standard_normal(x.shape)
    squares = jax.jit(lambda x: jnp.sum(stitched(x) ** 2))
    gradient = np.asarray(jax.grad(squares)(x))
    change = squares(x + step) - squares(x - step)
    np.testing.assert_allclose(np.sum(gradient * step) * 2, change, rtol=1e-4)
    scores = sa.evaluate_stitching(one, mapping, x, X[:9], CLASSES[:9])
    expected = np.mean(np.argmax(np.asarray(one(mapping(x))), 1) == CLASSES[:9])
    np.testing.assert_allclose(scores.aligned, expected)


def test_new_values_do_not_compile_again(caplog):
    cases: Any = (("multinomial", CLASSES), ("binary", LABELS), ("hinge", CLASSES))

    def fit(x, seed):
        for loss, labels in cases:
            sa.fit_head(x, labels, K, loss=loss, l2=0.1 + seed)
        sa.stitching.fit_mlp_head(jax.random.key(seed), x, CLASSES, K, units=3, max_steps=3)

    fit(X, 0)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        fit(X + 1, 1)
    assert "Compiling" not in caplog.text


def test_traced_labels_out_of_range_give_nan():
    cases: Any = (("multinomial", CLASSES), ("hinge", CLASSES), ("binary", LABELS))
    for loss, labels in cases:
        bad = np.array(labels, np.int32)
        bad[4] = 7
        head = jax.jit(lambda labels, loss=loss: sa.fit_head(X, labels, K, loss=loss))(bad)
        assert np.isnan(head.weight).all()


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(labels=changed(CLASSES, 5, 3)), ValueError, r"\[0, 3\); entry \(5,\) is 3"),
        (dict(labels=changed(CLASSES, 5, -1)), ValueError, r"entry \(5,\) is -1.* False in known"),
        (dict(labels=np.minimum(CLASSES, 1)), ValueError, "no row of class 2"),
        (dict(weights=CLASSES != 1), ValueError, "no row of class 1"),
        (dict(labels=CLASSES.astype(float)), TypeError, "labels must be integers"),
        (dict(labels=CLASSES[:-1]), ValueError, "labels must have shape"),
        (dict(labels=LABELS), ValueError, "labels must have shape"),
        (dict(x=changed(X, (8, 1), np.nan)), ValueError, "x holds NaN or infinity .* row 8"),
        (dict(x=X[:0], labels=CLASSES[:0]), ValueError, "x is empty"),
        (dict(x=X.astype(int)), TypeError, "x must have a floating-point dtype"),
        (dict(weights=-WEIGHTS), ValueError, "weights must be finite and >= 0"),
        (dict(weights=0 * WEIGHTS), ValueError, "weights are all zero"),
        (dict(known=np.ones(N)), TypeError, "known must be booleans"),
        (dict(known=np.ones((N, K), bool)), ValueError, "known must have the shape of the labels"),
        (dict(loss="logistic"), ValueError, "loss must be one of 'multinomial'"),
        (dict(penalize_intercept=1), TypeError, "penalize_intercept must be True or False"),
        (dict(loss="binary"), ValueError, r"labels must have shape \(150, 3\)"),
        (
            dict(loss="binary", labels=LABELS & [True, True, False]),
            ValueError,
            "column 2 has 0 positive and 150 negative",
        ),
        (
            dict(loss="binary", labels=LABELS, known=LABELS | [False, True, True]),
            ValueError,
            "column 0 has .* and 0 negative known",
        ),
        (
            dict(loss="binary", labels=changed(LABELS.astype(int), (2, 1), 2)),
            ValueError,
            r"\[0, 2\); entry \(2, 1\) is 2",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments: dict[str, Any] = dict(x=X, labels=CLASSES, num_classes=K) | change
    with pytest.raises(error, match=message):
        sa.fit_head(**arguments)
    if "penalize_intercept" not in change:
        with pytest.raises(error, match=message):
            sa.stitching.fit_mlp_head(jax.random.key(0), **arguments)


def test_a_head_needs_a_key_first():
    with pytest.raises(TypeError, match="key must be made by jax.random.key"):
        sa.stitching.fit_mlp_head(X, CLASSES, K)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key must be made by jax.random.key; got NoneType"):
        sa.stitching.fit_mlp_head(cast_any(None), X, CLASSES, K)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(labels=changed(CLASSES.astype(np.int64), 5, 2**32)), ValueError, "labels"),
        (dict(labels=changed(CLASSES.astype(np.uint64), 5, 2**63 + 1)), ValueError, "labels"),
        (dict(labels=[2**70, *CLASSES[1:].tolist()]), TypeError, "labels must be integers"),
        (dict(labels=np.array(["1.0", "2.0", "10.0"])[CLASSES % 3]), TypeError, "labels must be"),
        (dict(labels=np.array(["a", "b", "nan"])[CLASSES % 3]), TypeError, "labels must be"),
        (dict(labels=np.ma.masked_equal(CLASSES, 1)), TypeError, "labels is a masked array"),
        (dict(labels=CLASSES.astype(">i4")), TypeError, "labels has the byte order of another"),
        (dict(x=np.ma.masked_less(X, 0)), TypeError, "x is a masked array"),
        (dict(x=X.astype(">f8")), TypeError, "x has the byte order of another"),
        (dict(x=X.astype(np.longdouble)), TypeError, "x is .*128"),
        (dict(weights=np.ma.masked_less(WEIGHTS, 1)), TypeError, "weights is a masked array"),
        (dict(weights=WEIGHTS.astype(np.longdouble)), TypeError, "weights is .*128"),
        (dict(known=np.ma.masked_all(N, bool)), TypeError, "known is a masked array"),
        (dict(info=1), TypeError, "info must be True or False"),
    ],
)  # fmt: skip
def test_values_are_looked_at_before_they_are_cast(precision, change, error, message):
    arguments: dict[str, Any] = dict(x=X, labels=CLASSES, num_classes=K) | change
    with pytest.raises(error, match=message):
        sa.fit_head(**arguments)
    with pytest.raises(error, match=message):
        sa.stitching.fit_mlp_head(jax.random.key(0), **arguments)


def test_bad_mlps_and_stitches_are_named():
    with pytest.raises(ValueError, match="activation must be one of 'relu'"):
        sa.stitching.fit_mlp_head(jax.random.key(0), X, CLASSES, K, activation=cast_any("sine"))
    with pytest.raises(ValueError, match="units must be at least 1"):
        sa.stitching.fit_mlp_head(jax.random.key(0), X, CLASSES, K, units=0)
    head = sa.stitching.fit_mlp_head(jax.random.key(0), X, CLASSES, K, units=3, max_steps=3)
    with pytest.raises(ValueError, match="ends in 4 dimensions and other starts from 5"):
        sa.stitch(head, sa.identity_map(3, 4))
    with pytest.raises(TypeError, match="mapping must be an AffineMap"):
        sa.stitch(head, cast_any(head))
    with pytest.raises(TypeError, match="head must be an AffineMap or MlpHead; got ndarray"):
        sa.stitch(cast_any(X), sa.identity_map(3, 4))
    one = sa.identity_map(D, D)
    both = jax.tree.map(lambda a: jnp.stack([a, a]), one)
    for call, name in (
        (lambda: sa.stitching.head_accuracy(both, X, CLASSES % D), "head"),
        (lambda: sa.evaluate_stitching(one, both, X, X, CLASSES % D), "mapping"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be a single one; got a batch \(2,\)"):
            call()


def cast_any(value) -> Any:
    return value


def test_one_row_a_class_is_enough():
    head, info = sa.fit_head(np.eye(3), np.arange(3), 3, info=True)
    assert bool(info.converged)
    assert np.argmax(head(np.eye(3)), axis=1).tolist() == [0, 1, 2]
