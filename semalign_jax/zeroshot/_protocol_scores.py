"""Scores of the lines of `zero_shot_protocol`, for all anchor counts and draws."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.trees import entry
from .._core.typing import Array, Method
from ..maps.affine_map import AffineMap
from ..sweeps.one_pair import Fitter, SweepMethod, anchor_sweep
from ._protocol_data import AnchorPairs, Images, Multimodal, checked_embeddings
from .baselines import Baseline, linear_probe_scores
from .scores import (
    AnchorSpace,
    EmbeddedPrompts,
    SpaceNormalization,
    anchor_space,
    prompt_scores,
    zero_shot_scores,
)
from .truth import Truth

#: Numbers that the maps of a batch of seeds may hold.
MAP_NUMBERS = 2**27


def map_scores(
    anchors: AnchorPairs,
    orders: Array,
    counts: tuple[int, ...],
    images: Array,
    prompts: EmbeddedPrompts,
    normalizations: tuple[SpaceNormalization, ...],
    methods: Mapping[str, Method | SweepMethod | Fitter],
    temperature: Array,
    shrinkage: Array | None,
) -> np.ndarray:
    """Scores of the maps [methods * normalizations, counts, seeds, n, classes].

    The maps of all counts are fitted by one program, since they share factorisations, and scored
    by another that knows no counts.
    """
    source, target = anchors.source, anchors.target
    numbers = len(methods) * len(counts) * source.shape[1] * target.shape[1]
    batch = max(1, MAP_NUMBERS // numbers)
    batches = []
    for start in range(0, len(orders), batch):
        here = orders[start : start + batch]
        swept = anchor_sweep(
            source, target, counts, orders=here, methods=methods, metrics={"map": fitted_map}
        )
        maps = swept.values["map"]
        cells = []
        for c, count in enumerate(counts):
            space = None
            if any(how != "none" for how in normalizations):
                space = _spaces(source, target, here[:, :count], shrinkage)
            own = jax.tree_util.tree_map(lambda leaf, c=c: leaf[:, c], maps)
            scores = _scores_of_maps(normalizations, own, space, images, prompts, temperature)
            cells.append(np.asarray(scores))
        batches.append(np.stack(cells, axis=1))
    return np.concatenate(batches, axis=2)


def fitted_map(mapping: AffineMap, _: Any) -> AffineMap:
    """The metric of a sweep that gives the maps themselves."""
    return mapping


@partial(jax.jit, static_argnums=0)
def _scores_of_maps(
    normalizations: tuple[SpaceNormalization, ...],
    maps: AffineMap,
    spaces: AnchorSpace | None,
    images: Array,
    prompts: EmbeddedPrompts,
    temperature: Array,
) -> Array:
    """Scores [methods * normalizations, seeds, n, classes] of maps [methods, seeds, ...]."""

    def one(mapping: AffineMap, space: AnchorSpace | None) -> Array:
        return jnp.stack(
            [
                zero_shot_scores(
                    mapping,
                    images,
                    prompts,
                    normalization=normalization,
                    space=space,
                    temperature=temperature,
                )
                for normalization in normalizations
            ]
        )

    # Nested loops, so that the methods of a seed share its space without copies.
    scores = jax.lax.map(
        lambda seed: jax.lax.map(lambda mapping: one(mapping, seed[1]), seed[0]),
        (jax.tree_util.tree_map(lambda leaf: jnp.moveaxis(leaf, 1, 0), maps), spaces),
    )
    scores = jnp.moveaxis(scores, 0, 2)  # [methods, normalizations, seeds, n, classes]
    return scores.reshape(-1, *scores.shape[2:])


@jax.jit
def _spaces(source: Array, target: Array, orders: Array, shrinkage: Any) -> AnchorSpace:
    return jax.lax.map(
        lambda order: anchor_space(source[order], target[order], shrinkage=shrinkage), orders
    )


def baseline_scores(
    baselines: Mapping[str, Baseline],
    anchors: AnchorPairs,
    orders: Array,
    counts: tuple[int, ...],
    images: Array,
    prompts: EmbeddedPrompts,
    temperature: Array,
) -> np.ndarray:
    """Scores of the baselines [baselines, counts, seeds, n, classes]."""
    score = partial(_of_baselines, tuple(baselines.values()), anchors.source, anchors.target)
    found = [np.asarray(score(orders[:, :n], images, prompts, temperature)) for n in counts]
    return np.stack(found, axis=1)


@partial(jax.jit, static_argnums=0)
def _of_baselines(baselines, source, target, orders, images, prompts, temperature) -> Array:
    def one_seed(order):
        arguments = source[order], target[order], images, prompts
        return jnp.stack([score(*arguments, temperature=temperature) for score in baselines])

    return jnp.moveaxis(jax.lax.map(one_seed, orders), 0, 1)


def probe_scores(
    labelled: Images,
    truth: Truth,
    orders: Array,
    counts: tuple[int, ...],
    images: Array,
    prompts: EmbeddedPrompts,
    l2: Array,
) -> np.ndarray:
    """Scores of the linear probe [1, counts, seeds, n, classes]."""
    probe = partial(_of_probes, prompts.task, prompts.num_classes, labelled.embeddings, truth)
    found = [np.asarray(probe(orders[:, :n], images, l2)) for n in counts]
    return np.stack(found)[None]


@partial(jax.jit, static_argnums=(0, 1))
def _of_probes(task, num_classes, embeddings, truth, orders, images, l2) -> Array:
    def one_seed(order):
        labels, known = entry(truth, order)
        return linear_probe_scores(
            embeddings[order], labels, images, num_classes, task=task, l2=l2, known=known
        )

    return jax.lax.map(one_seed, orders)


def scores_of_multimodal(
    label: str,
    model: Multimodal,
    prompts: EmbeddedPrompts,
    rows: tuple[int, int],
    temperature: Array,
) -> Array:
    """Scores of the validation and test images, of which there are so many."""
    if (model.prompts.names, model.prompts.task) != (prompts.names, prompts.task):
        raise ValueError(
            f"multimodal[{label!r}]: its prompts are of another set than those of the maps"
        )
    scores = []
    for name, value, expected in (
        ("validation", model.validation, rows[0]),
        ("test", model.test, rows[1]),
    ):
        where = f"multimodal[{label!r}].{name}"
        value = checked_embeddings(where, value)
        if len(value) != expected:
            raise ValueError(
                f"{where} must have a row for each of the {expected} {name} images; got "
                f"{len(value)}"
            )
        # Both are in the model's space: no anchors and no map.
        scores.append(prompt_scores(value, model.prompts, temperature=temperature))
    return jnp.concatenate(scores)
