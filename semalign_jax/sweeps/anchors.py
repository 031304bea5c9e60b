"""Drawing anchors: random, nested, optionally stratified by label. PRNG keys are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.typing import Array, ArrayLike


def check_counts(counts: Sequence[int], n: int) -> tuple[int, ...]:
    """Return anchor counts as a tuple of ints in [1, n], or raise."""
    values = np.atleast_1d(np.asarray(counts))
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"counts must be a non-empty list of anchor counts; got {counts!r}")
    checked = tuple(checks.positive_int("counts", c) for c in values.tolist())
    if max(checked) > n:
        raise ValueError(
            f"counts has {max(checked)}, more than the {checks.counted(n, 'row')} to draw from"
        )
    return checked


def anchor_order(
    key: Array, n: int, *, size: int | None = None, labels: ArrayLike | None = None
) -> Array:
    """A random order of the rows 0..n-1, of which every prefix is a set of anchors.

    Args:
        key: PRNG key.
        n: number of rows.
        size: how many rows of the order are wanted, 1 to n; None means all. A part costs far
            less than the whole, and is the beginning of it.
        labels: integer classes [n]; if given, every prefix holds the classes in about their
            overall proportions.

    Returns:
        int32 [size], distinct rows.

    Raises:
        TypeError: if `key` is none or `labels` are not integers.
        ValueError: if n < 1, `size` is not in [1, n] or `labels` has another length.
    """
    key, n = checks.prng_key("key", key), checks.positive_int("n", n)
    size = n if size is None else checks.positive_int("size", size)
    if size > n:
        raise ValueError(f"size must be at most n = {n}; got {size}")
    if labels is None:
        return _random_order(n, size, key)
    classes = checks.host_array("labels", labels)
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise TypeError(f"labels must be integer classes; got dtype {classes.dtype}")
    if classes.shape != (n,):
        raise ValueError(f"labels must have shape ({n},); got {classes.shape}")
    if isinstance(classes, np.ndarray):
        # Numbered from 0: JAX takes 64-bit integers modulo 2^32, which would merge classes.
        classes = np.unique(classes, return_inverse=True)[1].astype(np.int32)
    return _stratified_order(size, key, classes)


@partial(jax.jit, static_argnums=(0, 1))
def _random_order(n: int, size: int, key: Array) -> Array:
    # Random priorities, the smallest first; ties (2^-23 apart) keep the order of the rows.
    priority = jax.random.uniform(key, (n,), jnp.float32)
    if 4 * size <= n:
        return jax.lax.top_k(-priority, size)[1].astype(jnp.int32)
    return jnp.argsort(priority)[:size].astype(jnp.int32)


@partial(jax.jit, static_argnums=0)
def _stratified_order(size: int, key: Array, numbers: Array) -> Array:
    n = len(numbers)
    key_rank, key_shift = jax.random.split(key)
    # Of float32 whether or not JAX has 64-bit types, as in a random order.
    by_class = jnp.lexsort((jax.random.uniform(key_rank, (n,), jnp.float32), numbers))
    sorted_labels = numbers[by_class]
    first = jnp.searchsorted(sorted_labels, sorted_labels, side="left")
    members = jnp.searchsorted(sorted_labels, sorted_labels, side="right") - first
    # Member r of a class of c rows comes at about the fraction r / c of the order.
    shift = jax.random.uniform(key_shift, (n,), jnp.float32)
    member = jnp.arange(n, dtype=first.dtype) - first
    when = (member.astype(shift.dtype) + shift) / members.astype(shift.dtype)
    return by_class[jnp.argsort(when)[:size]].astype(jnp.int32)


def anchor_masks(
    key: Array,
    n: int,
    counts: Sequence[int],
    *,
    nested: bool = True,
    labels: ArrayLike | None = None,
) -> Array:
    """Boolean masks that pick `counts[i]` of n rows.

    Args:
        key: PRNG key; the same key gives the same masks.
        n: number of rows.
        counts: how many anchors each mask picks, ints in [1, n] (static).
        nested: whether a smaller set is part of every larger one; else they are independent.
        labels: integer classes [n] to stratify by; see `anchor_order`.

    Returns:
        bool [len(counts), n]; each can be passed as `weights` to the fits.

    Raises:
        TypeError: if `key` is none, or `labels` or `counts` are not integers.
        ValueError: if a count is not in [1, n] or `labels` has another length.
    """
    key, n = checks.prng_key("key", key), checks.positive_int("n", n)
    sizes = jnp.asarray(check_counts(counts, n))
    if checks.flag("nested", nested):
        ranks = jnp.argsort(anchor_order(key, n, labels=labels))[None, :]
    else:
        keys = jax.random.split(key, sizes.shape[0])
        ranks = jax.vmap(lambda k: jnp.argsort(anchor_order(k, n, labels=labels)))(keys)
    return ranks < sizes[:, None]
