"""Maps between embedding spaces as scikit-learn transformers; needs scikit-learn."""

from __future__ import annotations

from typing import Any, cast

import jax
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "semalign_jax.sklearn needs scikit-learn 1.6: pip install 'semalign_jax[sklearn]'",
        name="sklearn",
    ) from error

from ._core.typing import Completion, Method, Normalize, RidgeUnit
from .maps import AffineMap, fit

__all__ = ["AlignmentTransformer"]
#: Parameters that are options of the fits; None leaves them as they are there.
_OPTIONS = ("normalize", "ridge", "ridge_unit", "rcond", "scale", "rotation_only", "completion")


class AlignmentTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Map embeddings of one encoder into the space of another.

    `fit` takes anchors: rows of `X` and `y` are embeddings of the same items by both encoders.

    Args:
        method: "auto", "affine", "linear", "l-ortho" or "ortho", see `semalign_jax.fit`.
        normalize: normalisation of both spaces before the fit.
        ridge: penalty of the weights, or "loo".
        ridge_unit: unit of the penalty.
        rcond: share of the largest singular value below which others are left out.
        scale: whether an orthogonal map has a scale.
        rotation_only: whether reflections are excluded.
        completion: what fills directions that the anchors leave open.

    Attributes:
        map_: the fitted `AffineMap`.
        n_features_in_: dimension of the source space.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, turn = rng.standard_normal((50, 4)), np.linalg.qr(rng.standard_normal((4, 4)))[0]
        >>> AlignmentTransformer("ortho").fit(x, x @ turn).score(x, x @ turn) > 0.999
        True
    """

    def __init__(
        self,
        method: Method = "auto",
        *,
        normalize: Normalize | None = None,
        ridge: float | str | None = None,
        ridge_unit: RidgeUnit | None = None,
        rcond: float | None = None,
        scale: bool | None = None,
        rotation_only: bool | None = None,
        completion: Completion | None = None,
    ):
        self.method = method
        self.normalize = normalize
        self.ridge = ridge
        self.ridge_unit = ridge_unit
        self.rcond = rcond
        self.scale = scale
        self.rotation_only = rotation_only
        self.completion = completion

    @classmethod
    def from_map(cls, mapping: AffineMap) -> AlignmentTransformer:
        """A transformer that is fitted already, e.g. by `load_map`, for use in a pipeline.

        A pipeline fits its steps anew: wrap it in `sklearn.frozen.FrozenEstimator` there.
        """
        if not isinstance(mapping, AffineMap) or mapping.batch_shape:
            raise TypeError(f"mapping must be one AffineMap; got {mapping!r:.80}")
        made = cls()
        made.map_ = mapping
        setattr(made, "n_features_in_", mapping.d_in)  # noqa: B010 - scikit-learn's own, untyped
        return made

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> AlignmentTransformer:
        """Fit the map to anchors.

        Args:
            X: source anchors [n, d_in].
            y: target anchors [n, d_out], matched by row; [n] is one dimension.
            sample_weight: [n], >= 0.

        Raises:
            ValueError: for rows that do not match, NaN, or options that the method does not have.
        """
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=(np.float64, np.float32)
        )
        y = np.asarray(y, X.dtype).reshape(len(X), -1)
        options: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS}
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        if sample_weight is not None:
            given["weights"] = np.asarray(sample_weight, X.dtype)
        # As exact as the numbers that were given.
        with jax.enable_x64(X.dtype == np.float64):
            self.map_: AffineMap = jax.device_get(self._fitted(X, y, given))
        return self

    def _fitted(self, x: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> AffineMap:
        return fit(cast(Method, self.method), x, y, **options)

    def transform(self, X: Any) -> np.ndarray:
        """Embeddings [n, d_in] in the target space, [n, d_out]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return _applied(self.map_, X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Embeddings of the target space [n, d_out] in the source space, by the pseudo-inverse."""
        check_is_fitted(self)
        X = check_array(X, dtype=(np.float64, np.float32))  # pyright: ignore[reportArgumentType]
        if X.shape[1] != self.map_.d_out:
            raise ValueError(f"X must have {self.map_.d_out} features; got shape {X.shape}")
        with jax.enable_x64(self.map_.weight.dtype == np.float64):
            return _applied(jax.device_get(self.map_.inverse()), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean cosine of mapped and target rows; higher is better."""
        mapped, target = self.transform(X), np.asarray(y).reshape(len(X), -1)
        if target.shape != mapped.shape:
            raise ValueError(f"y must have shape {mapped.shape}, as mapped rows; got {np.shape(y)}")
        lengths = np.linalg.norm(mapped, axis=1) * np.linalg.norm(target, axis=1)
        cosines = np.sum(mapped * target, axis=1) / np.where(lengths > 0, lengths, 1)
        return float(np.average(cosines, weights=sample_weight))

    @property
    def _n_features_out(self) -> int:
        return self.map_.d_out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _applied(mapping: AffineMap, x: np.ndarray) -> np.ndarray:
    weight, before, after = (
        np.asarray(part, x.dtype)
        for part in (mapping.weight, mapping.source_offset, mapping.target_offset)
    )
    return (x - before) @ weight + after
