"""A zero-shot classifier in one call, with probabilities that validation images calibrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._core.checks import counted
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from ..maps.affine_map import AffineMap
from .prompts import PLACEHOLDER, ClassPrompts, PromptSet, embedded_prompts, prompt_texts
from .scores import (
    TEMPERATURE,
    AnchorSpace,
    EmbeddedPrompts,
    SpaceNormalization,
    above_zero,
    class_of,
    not_nan,
    prompt_scores,
    zero_shot_scores,
)
from .truth import checked_truth

if TYPE_CHECKING:
    from ..encoders import Encoder

#: An encoder, or a function from texts to embeddings [n, d].
TextEncoder: TypeAlias = "Encoder | Callable[[Sequence[str]], ArrayLike]"
#: Newton steps of a calibration, the lengths that are tried in each, and what is added to the
#: second derivatives, of scores of unit variance.
_STEPS, _HALVINGS, _DAMPING = 30, 10, 1e-6
#: The least inverse temperature, of such scores.
_FLATTEST = 1e-3


@by_value
@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class ZeroShotClassifier:
    """Class prompts, and a map into their space; made by `zero_shot_classifier`.

    A pytree: it can be passed through `jax.jit` and `jax.vmap`.

    Attributes:
        prompts: embedded prompts of the classes, in the text encoder's space.
        mapping: from the image encoder's space into that one, or None if images are there already.
        space: of the anchors, see `anchor_space`, or None.
        temperature: by which the scores of a class are divided, [num_classes].
        bias: added to them then, [num_classes].
        normalization: of the mapped space, see `zero_shot_scores` (static).
    """

    prompts: EmbeddedPrompts
    mapping: AffineMap | None
    space: AnchorSpace | None
    temperature: Array
    bias: Array
    normalization: SpaceNormalization = field(metadata={"static": True})

    def __repr__(self) -> str:
        of = counted(len(self.names), "class", "classes") + f", {self.prompts.task}"
        through = "no map" if self.mapping is None else repr(self.mapping)
        return f"<ZeroShotClassifier: {of}, {through}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order."""
        return self.prompts.names

    def scores(self, images: ArrayLike, *, batch_size: int | None = None) -> Array:
        """Cosine of an image with each class, or how much nearer it is to its positive prompts.

        Args:
            images: embeddings [n, d].
            batch_size: images that are mapped and scored at a time; None means all.

        Returns:
            [n, num_classes]: in a single-label task the cosine with the class's prompts, in a
            multi-label task that with its positive ones less that with its negative ones. NaN for
            images that hold NaN or infinity.

        Raises:
            TypeError: for embeddings that are not floating point.
            ValueError: if the dimensions differ.
        """
        if self.mapping is None:
            found = prompt_scores(images, self.prompts, batch_size=batch_size)
        else:
            found = zero_shot_scores(
                self.mapping,
                images,
                self.prompts,
                normalization=self.normalization,
                space=self.space,
                batch_size=batch_size,
            )
        return found if self.prompts.task == "single-label" else jax.scipy.special.logit(found)

    def __call__(self, images: ArrayLike, *, batch_size: int | None = None) -> Array:
        """Logits [n, num_classes]: the scores over the temperature, and the bias."""
        scores = self.scores(images, batch_size=batch_size)
        temperature, bias = (a.astype(scores.dtype)[None] for a in (self.temperature, self.bias))
        return scores / temperature + bias

    def probabilities(self, images: ArrayLike, *, batch_size: int | None = None) -> Array:
        """Probabilities [n, num_classes]; of a single-label task they sum to 1.

        Without `calibrated` their order means something, but not their size.
        """
        logits = self(images, batch_size=batch_size)
        if self.prompts.task == "single-label":
            return jax.nn.softmax(logits, axis=1)
        return jax.nn.sigmoid(logits)

    def predict(self, images: ArrayLike, *, batch_size: int | None = None) -> Array:
        """The decisions.

        Returns:
            Of a single-label task the likeliest class, int32 [n], -1 for images that hold NaN; of a
            multi-label task whether each finding is likelier than not, bool [n, num_classes]. For
            other thresholds see `choose_threshold`.
        """
        logits = self(images, batch_size=batch_size)
        if self.prompts.task == "multi-label":
            return logits > 0
        return class_of(logits)

    def calibrated(
        self, images: ArrayLike, labels: ArrayLike, *, known: ArrayLike | None = None
    ) -> ZeroShotClassifier:
        """The classifier with the temperature, and the biases, that make labels likeliest.

        Of a single-label task one temperature (Guo et al. 2017, arXiv 1706.04599), which changes no
        decision; of a multi-label task one for each finding, and a bias (Platt 1999). Targets are
        smoothed as by Platt, (m + 1) / (m + 2) for m positive and 1 / (m + 2) for m negative
        images, so that separable classes have an optimum too.

        Args:
            images: embeddings of validation images [n, d]; never those of the test.
            labels: classes [n], or booleans or 0/1 [n, num_classes] of a multi-label task.
            known: of a multi-label task, bool [n, num_classes], which labels are known; others may
                hold anything. None means all.

        Raises:
            TypeError: for embeddings that are not floating point, labels that are not integers or
                `known` that is not boolean.
            ValueError: for shapes that do not match, labels out of range, images that hold NaN, or
                `known` of a single-label task.
        """
        scores, task = self.scores(images), self.prompts.task
        not_nan("images", scores)
        truth = checked_truth(labels, known, (scores.shape[0], scores.shape[1]), task)
        if task == "single-label":
            temperature = jnp.full(scores.shape[1], _temperature(scores, truth.labels))
            bias = jnp.zeros_like(temperature)
        else:
            known = jnp.ones(scores.shape, bool) if truth.known is None else truth.known
            temperature, bias = _platt(scores, truth.labels, known)
        return replace(self, temperature=temperature, bias=bias)


def zero_shot_classifier(
    text_encoder: TextEncoder,
    classes: Sequence[str] | PromptSet,
    templates: Sequence[str] | None = None,
    *,
    map: AffineMap | None = None,
    normalization: SpaceNormalization = "none",
    space: AnchorSpace | None = None,
    temperature: float = TEMPERATURE,
) -> ZeroShotClassifier:
    """A classifier of images from the names of the classes, as OpenCLIP builds them.

    Every class goes into every template; the prompts are embedded, brought to length 1, averaged,
    and brought to length 1 again.

    Args:
        text_encoder: from `encoders.load_encoder`, or a function from texts to their embeddings
            [n, d].
        classes: names, as they are put into the templates; or a prompt set with more than one
            prompt a class, see `load_prompts`.
        templates: texts with one placeholder `{}` each, e.g. "A chest X-ray of {}."; None means
            the names alone, and those of the set for a prompt set.
        map: from the image encoder's space into the text encoder's, see `fit_auto`. None for
            images of the text encoder's own space, e.g. of a multimodal model.
        normalization: of the mapped space, "none", "center" or "whiten"; see `zero_shot_scores`.
        space: of the anchors, from `anchor_space`; needed unless `normalization` is "none".
        temperature: > 0; see `ZeroShotClassifier.calibrated`.

    Returns:
        `ZeroShotClassifier`: `classifier(images)` are logits.

    Raises:
        TypeError: for an encoder that is neither, or classes that are not texts.
        ValueError: for an encoder without texts, templates beside a prompt set, a template without
            a placeholder, fewer than two classes or a class that occurs twice, a map into another
            dimension, or a normalisation without `space` or without `map`.

    Example:
        >>> import numpy as np, semalign_jax as sa
        >>> vectors = {"a cat": [1.0, 0.0], "a dog": [0.0, 1.0]}
        >>> encode = lambda texts: np.array([vectors[text] for text in texts])  # or an encoder
        >>> classifier = sa.zero_shot_classifier(
        ...     encode, ["cat", "dog"], ["a {}"], map=sa.identity_map(3, 2)
        ... )
        >>> print(classifier.predict(np.array([[0.1, 0.9, 0.5]])))
        [1]
    """
    if isinstance(templates, str):
        raise TypeError(f"templates must be a list of texts; got {templates!r:.80}")
    if isinstance(classes, PromptSet):
        if templates is not None:
            raise ValueError("templates must be None for a prompt set, which has its own")
        prompt_set = classes
    elif isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(
            f"classes must be names or a PromptSet; got {classes!r:.80}"
            + (f": give load_prompts({classes!r})" if isinstance(classes, str) else "")
        )
    else:
        prompt_set = PromptSet(
            "classes",
            "single-label",
            tuple(ClassPrompts(name, (name,)) for name in classes),
            (PLACEHOLDER,) if templates is None else tuple(templates),
        )
    if normalization != "none" and map is None:
        raise ValueError(f"normalization {normalization!r} is of a mapped space: give map")
    one = above_zero("temperature", temperature)
    prompts = embedded_prompts(prompt_set, _embedded(text_encoder, prompt_texts(prompt_set).texts))
    dimension = prompts.embeddings.shape[1]
    if map is not None and map.d_out != dimension:
        raise ValueError(
            f"map must lead into the text encoder's {dimension} dimensions; it has {map.d_out}"
        )
    bias = jnp.zeros(prompts.num_classes, prompts.embeddings.dtype)
    temperatures = jnp.full_like(bias, float(one))
    made = ZeroShotClassifier(prompts, map, space, temperatures, bias, normalization)
    if map is not None:
        jax.eval_shape(made, jax.ShapeDtypeStruct((1, map.d_in), bias.dtype))  # checks the rest
    return made


def _embedded(text_encoder: TextEncoder, texts: Sequence[str]) -> ArrayLike:
    from ..encoders import Encoder, embed

    if not isinstance(text_encoder, Encoder):
        if not callable(text_encoder):
            raise TypeError(
                "text_encoder must come from load_encoder or be a function of texts; got "
                f"{type(text_encoder).__name__}"
            )
        return np.asarray(text_encoder(texts))
    return embed(text_encoder, texts, modality="text", progress=False).embeddings


@jax.jit
def _temperature(scores: Array, labels: Array) -> Array:
    rows, classes = scores.shape
    smoothing = 1 / (rows + 2)
    target = jax.nn.one_hot(labels, classes, dtype=scores.dtype)
    target = (1 - smoothing) * target + smoothing / classes
    unit = _spread(scores, jnp.ones_like(scores))

    def loss(parameters: Array) -> Array:
        return jnp.mean(optax.softmax_cross_entropy(scores / unit * parameters[0], target))

    return unit / jnp.maximum(_minimum(loss, jnp.ones(1, scores.dtype))[0], _FLATTEST)


@jax.jit
def _platt(scores: Array, labels: Array, known: Array) -> tuple[Array, Array]:
    positive, known = labels & known, known.astype(scores.dtype)

    def of_class(scores: Array, positive: Array, known: Array) -> tuple[Array, Array]:
        positives = jnp.sum(positive, dtype=scores.dtype)
        negatives = jnp.sum(known) - positives
        target = jnp.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        unit, total = _spread(scores, known), jnp.maximum(jnp.sum(known), 1)
        # Without their mean: of scores far from 0, slope and bias would all but cancel.
        mean = jnp.sum(scores * known) / total
        units = jnp.where(known > 0, scores - mean, 0) / unit

        def loss(parameters: Array) -> Array:
            logits = units * parameters[0] + parameters[1]
            return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, target) * known) / total

        share = jnp.sum(target * known) / total
        prior = jnp.where(jnp.sum(known) > 0, jax.scipy.special.logit(share), 0)
        scale, bias = _minimum(loss, jnp.stack([jnp.ones_like(prior), prior]))
        # Scores that say the opposite, or nothing, of the labels leave the share of the positive.
        flat = scale < _FLATTEST
        temperature = unit / jnp.where(flat, _FLATTEST, scale)
        return temperature, jnp.where(flat, prior, bias) - mean / temperature

    return jax.vmap(of_class, in_axes=1)(scores, positive, known)


def _spread(scores: Array, weights: Array) -> Array:
    """Standard deviation of scores, 1 if there is none."""
    total = jnp.maximum(jnp.sum(weights), 1)
    mean = jnp.sum(scores * weights) / total
    variance = jnp.sum(weights * (scores - mean) ** 2) / total
    return jnp.sqrt(jnp.where(variance > 0, variance, 1))


def _minimum(loss: Callable[[Array], Array], begin: Array) -> Array:
    """One or two parameters of the least convex loss: Newton's method, steps halved if need be."""
    lengths = 0.5 ** jnp.arange(_HALVINGS, dtype=begin.dtype)

    def step(_: int, parameters: Array) -> Array:
        damped = jax.hessian(loss)(parameters) + _DAMPING * jnp.eye(len(begin), dtype=begin.dtype)
        direction = jnp.linalg.solve(damped, jax.grad(loss)(parameters))
        tried = parameters[None] - lengths[:, None] * direction[None]
        tried = jnp.concatenate([parameters[None], tried])
        return tried[jnp.argmin(jax.vmap(loss)(tried))]

    return lax.fori_loop(0, _STEPS, step, begin)
