"""The matrix of encoder by decoder equals heads, fits and metrics computed cell by cell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference
from scipy.special import logsumexp
from sklearn import metrics as skl
from sklearn.preprocessing import label_binarize

import semalign_jax as sa
from semalign_jax.metrics import by_name
from semalign_jax.stitching import matrix

N, T, K = 40, 25, 3
RNG = np.random.default_rng(0)
CLASSES, TEST_CLASSES = (RNG.integers(0, K, n).astype(np.int32) for n in (N, T))
LABELS, TEST_LABELS = (RNG.random((n, K)) < [0.3, 0.5, 0.6] for n in (N, T))
MEANS = 1.5 * RNG.standard_normal((2 * K, 6))


def embeddings(dims, *, seed=0, dtype: Any = np.float64):
    """Train and test parts by name: views of common latents that know classes and labels."""
    rng = np.random.default_rng(seed)
    classes = np.concatenate([CLASSES, TEST_CLASSES])
    labels = np.concatenate([LABELS, TEST_LABELS])
    latent = np.concatenate([np.eye(K)[classes], labels], axis=1) @ MEANS
    latent = latent + rng.standard_normal(latent.shape)
    train, test = {}, {}
    for name, d in dims.items():
        view = latent @ rng.standard_normal((6, d)) + 2
        train[name], test[name] = np.split(view.astype(dtype), [N])
    return train, test


def scores_by_class(logits, classes):
    """All metrics by scikit-learn from logits of a softmax."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    predicted, truth = np.argmax(logits, 1), label_binarize(classes, classes=range(K))
    return {
        "accuracy": skl.accuracy_score(classes, predicted),
        "balanced_accuracy": skl.balanced_accuracy_score(classes, predicted),
        "macro_f1": skl.f1_score(classes, predicted, average="macro"),
        "auroc": skl.roc_auc_score(classes, p, multi_class="ovr"),
        "average_precision": skl.average_precision_score(truth, p),
    }


def scores_by_label(logits, labels, known):
    """All metrics by scikit-learn, label by label."""
    values: dict[str, list[float]] = {name: [] for name in by_name.HEAD_METRICS}
    for k in range(K):
        truth, score = labels[known[:, k], k], logits[known[:, k], k]
        for name, function, against in (
            ("accuracy", skl.accuracy_score, score > 0),
            ("balanced_accuracy", skl.balanced_accuracy_score, score > 0),
            ("macro_f1", skl.f1_score, score > 0),
            ("auroc", skl.roc_auc_score, score),
            ("average_precision", skl.average_precision_score, score),
        ):
            values[name].append(function(truth, against))
    return {name: np.mean(value) for name, value in values.items()}


def check_cells(result, train, test, orders, lines, heads, scores_of):
    """Every entry of the result against one fit, one head and one metric at a time."""
    names = tuple(train)
    shape = (len(names), len(names), len(lines), len(result.counts), len(orders))

    def same(field, index, logits):
        expected = scores_of(np.asarray(logits))
        for metric, found in field.items():
            np.testing.assert_allclose(found.value[index], expected[metric], atol=1e-6)
            assert found.undefined[index] == 0

    for d, target in enumerate(names):
        same(result.upper_bound, d, heads[target](test[target]))
        for e, source in enumerate(names):
            if e == d:
                for field in (result.aligned, result.shuffled):
                    assert all(np.isnan(found.value[e, d]).all() for found in field.values())
                continue
            cut = np.zeros((T, train[target].shape[1]))
            width = min(cut.shape[1], test[source].shape[1])
            cut[:, :width] = test[source][:, :width]
            same(result.naive, (e, d), heads[target](cut))
            for m, line in enumerate(lines):
                for c, n in enumerate(result.counts):
                    for s, order in enumerate(orders):
                        wrong = wrong_rows(order, s)
                        left, right = (order, wrong) if e < d else (wrong, order)
                        for field, a, b in (
                            (result.aligned, order, order),
                            (result.shuffled, left, right),
                        ):
                            x, y = train[source][a[:n]], train[target][b[:n]]
                            weight, bias = reference(line.method, x, y, **dict(line.options))
                            same(
                                field, (e, d, m, c, s), heads[target](test[source] @ weight + bias)
                            )
    for field in (result.aligned, result.shuffled):
        for found in field.values():
            assert found.value.shape == found.undefined.shape == shape


def wrong_rows(order, seed):
    key = jax.random.fold_in(jax.random.key(3), seed)
    return np.asarray(matrix._cycle(key, jnp.asarray(order)))


LINES = {
    "ortho": sa.SweepMethod("ortho"),
    "affine": sa.SweepMethod("affine"),
    "ridge": sa.SweepMethod("affine", ridge=0.5),  # not shared
}


@pytest.mark.slow
def test_every_cell_of_a_softmax_matrix():
    train, test = embeddings({"a": 5, "b": 5, "c": 4})
    keys = jax.random.split(jax.random.key(1), 2)
    stages = []
    result = sa.stitching.evaluate_stitching_pairs(
        train, CLASSES, test, TEST_CLASSES, K, (30, 4), keys,
        methods=LINES, metrics=by_name.HEAD_METRICS, control_key=jax.random.key(3),
        head_options={"l2": 0.3}, progress=lambda *done: stages.append(done),
    )  # fmt: skip
    assert (result.names, result.methods, result.counts) == (("a", "b", "c"), (*LINES,), (30, 4))
    assert all(bool(info.converged) for info in result.head_info.values())
    heads = {name: sa.fit_head(train[name], CLASSES, K, l2=0.3) for name in train}
    orders = [np.asarray(sa.sweeps.anchor_order(key, N, size=30)) for key in keys]

    def scores_of(logits):
        return scores_by_class(logits, TEST_CLASSES)

    check_cells(result, train, test, orders, list(LINES.values()), heads, scores_of)
    for stage, total in (("heads", 3), ("references", 3), ("pairs", 24)):
        assert [s[1:] for s in stages if s[0] == stage][-1] == (total, total)


@pytest.mark.parametrize("kind", ["linear", pytest.param("mlp", marks=pytest.mark.slow)])
def test_every_cell_of_a_multilabel_matrix(kind):
    train, test = embeddings({"a": 4, "b": 4})
    known, test_known = (RNG.random(a.shape) < 0.8 for a in (LABELS, TEST_LABELS))
    truth = np.where(test_known, TEST_LABELS, 7)  # unknown ones may hold anything
    options: dict[str, Any] = dict(loss="binary", known=known)
    if kind == "linear":
        heads = {name: sa.fit_head(train[name], LABELS, K, **options) for name in train}
        own = options
    else:
        key = jax.random.key(0)
        heads: dict[str, Any] = {
            name: sa.stitching.fit_mlp_head(
                key, train[name], LABELS, K, units=4, max_steps=20, **options
            )
            for name in train
        }
        own = {"loss": "binary", "heads": heads}
    orders = np.stack([RNG.permutation(N)[:20] for _ in range(2)])
    result = sa.stitching.evaluate_stitching_pairs(
        train, LABELS, test, truth, K, (3, 20), orders=orders, test_known=test_known,
        methods=LINES, metrics=by_name.HEAD_METRICS, control_key=jax.random.key(3), **own,
    )  # fmt: skip

    def scores_of(logits):
        return scores_by_label(logits, TEST_LABELS, test_known)

    check_cells(result, train, test, orders, list(LINES.values()), heads, scores_of)


def test_separate_anchors_own_labels_and_no_control():
    train, test = embeddings({"a": 4, "b": 4})
    anchors, _ = embeddings({"a": 4, "b": 4}, seed=1)
    short = {"a": train["a"], "b": train["b"][:-6]}
    labels = {"a": CLASSES, "b": CLASSES[:-6]}
    run: dict[str, Any] = dict(
        orders=np.arange(N)[None], methods=["linear"], loss="hinge", control=False
    )
    result = sa.stitching.evaluate_stitching_pairs(
        short, labels, test, TEST_CLASSES, K, [10], anchors=anchors, **run
    )
    assert result.shuffled is None
    head = sa.fit_head(short["b"], labels["b"], K, loss="hinge")
    fitted = sa.fit_linear(anchors["a"][:10], anchors["b"][:10])
    expected = sa.stitching.head_accuracy(
        sa.stitch(head, fitted), test["a"], jnp.asarray(TEST_CLASSES)
    )
    np.testing.assert_allclose(result.aligned["accuracy"].value[0, 1, 0, 0, 0], expected)
    assert jax.tree.structure(result) == jax.tree.structure(jax.tree.map(jnp.ones_like, result))


def test_equal_shapes_compile_once(monkeypatch):
    traces = []
    score = by_name.accuracy

    def counted(*args, **kwargs):
        traces.append(1)
        return score(*args, **kwargs)

    monkeypatch.setattr(by_name, "accuracy", counted)

    def run(names, seed, seeds):
        train, test = embeddings(dict.fromkeys(names, 3), seed=seed)
        keys = jax.random.split(jax.random.key(seed), seeds)
        return sa.stitching.evaluate_stitching_pairs(
            train, CLASSES, test, TEST_CLASSES, K, (2, 17), keys, methods=["ortho", "linear"]
        )

    run("ab", 0, 1)
    assert traces
    traces.clear()
    run("wxyz", 1, 3)
    assert not traces


def test_the_control_gives_no_anchor_its_partner():
    order = np.array([7, 3, 11, 0, 5])
    seen = set()
    for seed in range(40):
        wrong = np.asarray(matrix._cycle(jax.random.key(seed), jnp.asarray(order)))
        assert sorted(wrong) == sorted(order)
        assert (wrong != order).all()
        seen.add(tuple(wrong))
    assert len(seen) > 10  # of 24


def test_undefined_scores_are_counted():
    train, test = embeddings({"a": 4, "b": 4})
    result = sa.stitching.evaluate_stitching_pairs(
        train, CLASSES, test, np.full(T, 1), K, [10], orders=np.arange(N)[None],
        methods=["linear"], metrics=("auroc", "balanced_accuracy", "accuracy"), control=False,
    )  # fmt: skip
    for field, index in ((result.aligned, (0, 1, 0, 0, 0)), (result.upper_bound, 0)):
        assert np.isnan(field["auroc"].value[index])
        assert field["auroc"].undefined[index] == K
        assert field["balanced_accuracy"].undefined[index] == K - 1
        expected = field["accuracy"].value[index]  # of one class, its recall
        np.testing.assert_allclose(field["balanced_accuracy"].value[index], expected)
        assert field["accuracy"].undefined[index] == 0


def test_a_score_that_is_nan_is_no_class():
    train, test = embeddings({"a": 4, "b": 4})
    heads = {name: sa.fit_head(x, CLASSES, K) for name, x in train.items()}
    heads["b"] = heads["b"]._replace(target_offset=heads["b"].target_offset.at[1].set(jnp.nan))
    metrics = ("accuracy", "balanced_accuracy", "macro_f1")
    result = sa.stitching.evaluate_stitching_pairs(
        train, CLASSES, test, TEST_CLASSES, K, [10], orders=np.arange(N)[None], heads=heads,
        methods=["linear"], metrics=metrics, control=False,
    )  # fmt: skip
    for name in metrics:
        assert np.isfinite(result.upper_bound[name].value[0])
        assert np.isnan(result.upper_bound[name].value[1])


def test_odds_of_sure_predictions_are_not_tied():
    odds = by_name.log_odds(jnp.asarray([[60.0, 0, 0], [61.0, 0, 0]]))
    assert odds[1, 0] > odds[0, 0] > 50
    logits = np.array([[110, 0, 0], [120, 0, 1], [2000, 1880, -99], [0.3, 0.1, 0.2]])
    beside = logits[:, [[1, 2], [0, 2], [0, 1]]]
    expected = logits - logsumexp(beside, axis=-1)
    odds = by_name.log_odds(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(odds, expected, rtol=2e-6)


def test_float32_stays_float32():
    train, test = embeddings({"a": 4, "b": 4}, dtype=np.float32)
    result = sa.stitching.evaluate_stitching_pairs(
        train, CLASSES, test, TEST_CLASSES, K, [10], orders=np.arange(N)[None],
        methods=["linear"], control=False,
    )  # fmt: skip
    floating = {a.dtype for a in jax.tree.leaves(result) if jnp.issubdtype(a.dtype, jnp.floating)}
    assert floating == {np.dtype(np.float32)}


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


def mistakes():
    train, test = embeddings({"a": 4, "b": 4, "c": 3})
    head = sa.fit_head(train["a"], CLASSES, K)
    return [
        (dict(train={"a": train["a"]}), ValueError, "at least two encoders; got .'a'."),
        (dict(train=list(train.items())), TypeError, "train must be a mapping"),
        (dict(test={"a": test["a"], "b": test["b"]}), ValueError, "test has no embeddings of 'c'"),
        (dict(test=test | {"b": test["b"][1:]}), ValueError, r"test\['b'\] has 24 rows, .* 25"),
        (dict(test=test | {"c": test["b"]}), ValueError, r"test\['c'\] has 4 features, .* 3"),
        (dict(train=train | {"c": train["c"][1:]}), ValueError, r"train\['c'\] has 39 rows"),
        (
            dict(train=train | {"c": changed(train["c"], (2, 1), np.inf)}),
            ValueError,
            r"train\['c'\] holds NaN or infinity .* row 2",
        ),
        (
            dict(test=test | {"b": changed(test["b"], (7, 0), np.nan)}),
            ValueError,
            r"test\['b'\] holds NaN or infinity .* row 7",
        ),
        (dict(train=train | {"b": train["b"][:0]}), ValueError, r"train\['b'\] is empty"),
        (dict(anchors={"a": train["a"]}), ValueError, "anchors has no embeddings of 'b'"),
        (
            dict(anchors=train | {"b": train["b"][:9]}),
            ValueError,
            r"anchors\['b'\] has 9 rows, anchors\['a'\] 40",
        ),
        (dict(labels={"a": CLASSES, "b": CLASSES}), ValueError, "labels has none of 'c'"),
        (
            dict(labels={"a": CLASSES, "b": np.minimum(CLASSES, 1), "c": CLASSES}),
            ValueError,
            "head of 'b': labels has no row of class 2",
        ),
        (dict(labels=changed(CLASSES, 3, 5)), ValueError, "head of 'a': labels must be in"),
        (dict(test_labels=changed(TEST_CLASSES, 3, 5)), ValueError, r"test_labels must be in \[0"),
        (dict(test_labels=TEST_CLASSES[1:]), ValueError, "test_labels must have shape"),
        (dict(test_labels=TEST_CLASSES / 2), TypeError, "test_labels must be integers"),
        (dict(test_known=np.ones(T - 1, bool)), ValueError, "test_known must have the shape"),
        (dict(metrics=()), ValueError, "metrics is empty"),
        (dict(metrics="auroc"), ValueError, "metrics must be a list"),
        (dict(metrics=["auroc", "auroc"]), ValueError, "metrics: 'auroc' is there more than once"),
        (dict(metrics=["f1"]), ValueError, "metrics must be one of 'accuracy'"),
        (dict(metrics={"a": "f1"}), ValueError, "metrics must be one of 'accuracy'"),
        (dict(metrics={"a": lambda s, t: s}), ValueError, r"metrics\['a'\] must return a scalar"),
        (dict(methods=["ortho", "ortho"]), ValueError, "methods: 'ortho' is there more than once"),
        (dict(methods={"own": sa.fit_ortho}), ValueError, "must be a name or a SweepMethod"),
        (dict(counts=[41]), ValueError, "counts has 41"),
        (dict(counts=[1], orders=np.zeros((1, 1), int)), ValueError, "control needs at least 2"),
        (dict(heads={"a": head}), ValueError, "heads has none of 'b'"),
        (dict(heads=dict.fromkeys("abc", head)), ValueError, r"heads\['c'\] must be one head of 3"),
        (
            dict(heads=dict.fromkeys("abc", head), head_options={"l2": 1.0}),
            ValueError,
            "head_options are those of fitted heads",
        ),
        (dict(loss="softmax"), ValueError, "loss must be one of"),
    ]


@pytest.mark.parametrize("number", range(len(mistakes())))
def test_bad_input_is_named(number):
    change, error, message = mistakes()[number]
    train, test = embeddings({"a": 4, "b": 4, "c": 3})
    arguments: dict[str, Any] = dict(
        train=train,
        labels=CLASSES,
        test=test,
        test_labels=TEST_CLASSES,
        num_classes=K,
        counts=[10],
        orders=np.arange(N)[None],
    )
    with pytest.raises(error, match=message):
        sa.stitching.evaluate_stitching_pairs(**arguments | change)
