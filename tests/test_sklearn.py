"""`AlignmentTransformer` among scikit-learn's own tools."""

import pickle
from typing import Any, cast

import numpy as np
import pytest
from helpers import latin
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import semalign_jax as sa
from semalign_jax.sklearn import AlignmentTransformer

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 6))
Y = X @ RNG.standard_normal((6, 4)) + 0.1 * RNG.standard_normal((80, 4)) + 3


@parametrize_with_checks([AlignmentTransformer("affine", ridge=1e-3)])
def test_scikit_learn_takes_it_for_one_of_its_own(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([AlignmentTransformer("ortho")])
def test_scikit_learn_takes_orthogonal_maps_too(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("method", "dtype"),
    latin(["affine", "linear", "l-ortho", "ortho", "auto"], [np.float32, np.float64]),
)
def test_it_is_the_map_of_that_name(method, dtype):
    x, y = X.astype(dtype), Y.astype(dtype)
    found = AlignmentTransformer(method).fit(x, y)
    mapped = found.transform(x)
    assert mapped.dtype == dtype
    np.testing.assert_allclose(mapped, sa.fit(method, x, y)(x), atol=1e-4)
    if dtype == np.float64 and method == "affine":
        exact = np.linalg.lstsq(np.c_[x, np.ones(80)], y, rcond=None)[0]
        np.testing.assert_allclose(mapped, np.c_[x, np.ones(80)] @ exact, atol=1e-10)
    names = found.get_feature_names_out()
    assert list(names[:2]) == ["alignmenttransformer0", "alignmenttransformer1"]
    assert len(names) == 4


def test_the_inverse_leads_back():
    found = AlignmentTransformer("affine").fit(Y, X[:, :4] @ RNG.standard_normal((4, 4)))
    np.testing.assert_allclose(found.inverse_transform(found.transform(Y)), Y, atol=1e-8)
    with pytest.raises(ValueError, match="X must have 4 features"):
        found.inverse_transform(X)
    whole = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(
        found.inverse_transform(whole), found.inverse_transform(1.0 * whole)
    )
    with pytest.raises(ValueError, match="NaN"):
        found.inverse_transform(whole * np.nan)


def test_scores_are_of_rows_of_one_shape():
    found = AlignmentTransformer("affine").fit(X, Y)
    for other in (Y[:, :1], Y[:, 0], np.r_[Y, Y]):
        with pytest.raises(ValueError, match=r"y must have shape \(80, 4\), as mapped rows"):
            found.score(X, other)


def test_a_grid_search_chooses_the_penalty():
    noisy = X[:, :3] @ RNG.standard_normal((3, 5)) + 0.5 * RNG.standard_normal((80, 5))
    pipeline = make_pipeline(StandardScaler(), AlignmentTransformer("affine"))
    grid = {"alignmenttransformer__ridge": [1e-3, 10.0, 1e6]}
    search = GridSearchCV(pipeline, grid, cv=4).fit(X, noisy)
    assert search.best_params_["alignmenttransformer__ridge"] in (1e-3, 10.0)
    assert search.best_score_ > 0.6
    assert search.transform(X).shape == (80, 5)


def test_a_head_of_the_target_reads_the_source_in_a_pipeline(tmp_path):
    labels = (Y[:, 0] > Y[:, 0].mean()).astype(int)
    head = LogisticRegression().fit(Y, labels)
    sa.save_map(
        sa.fit_affine(X.astype(np.float32), Y.astype(np.float32)), tmp_path / "m.safetensors"
    )
    step = AlignmentTransformer.from_map(sa.load_map(tmp_path / "m.safetensors"))
    stitched = make_pipeline(FrozenEstimator(step), FrozenEstimator(head))
    assert stitched.fit(X, labels).score(X, labels) > 0.95
    again = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(again.transform(X), step.transform(X))
    with pytest.raises(TypeError, match="one AffineMap"):
        AlignmentTransformer.from_map(cast(Any, X))


def test_parameters_are_those_of_the_fit():
    made: Any = clone(AlignmentTransformer("ortho", normalize="center", scale=True))
    expected = sa.fit_ortho(X, Y, normalize="center", scale=True)
    np.testing.assert_allclose(made.fit(X, Y).transform(X), expected(X), atol=1e-4)
    weights = np.arange(80.0)
    wrongly: Any = AlignmentTransformer
    weighted = AlignmentTransformer("affine").fit(X, Y, sample_weight=weights)
    np.testing.assert_allclose(
        weighted.transform(X), sa.fit_affine(X, Y, weights=weights)(X), atol=1e-4
    )
    with pytest.raises(ValueError, match="ridge_unit"):
        wrongly("affine", ridge_unit="wrong").fit(X, Y)
