"""A map from few anchors and many rows without a partner, by ridge and optimal transport.

The recipe: a ridge map of the anchors alone maps the unpaired source rows; a coupling with
uniform marginals (entropic optimal transport, Cuturi 2013) gives each of them a mean of unpaired
target rows, and a ridge map of anchors and these pairs is the next one. Pools that do not match
mislead it, so cross-validation over the anchors decides whether the result is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._core import checks
from .._core.linalg import (
    common_dtype,
    matmul,
    one_by_one_on_cpu,
    safe_inverse,
    transpose,
    unit_rows,
)
from .._core.trees import by_value
from .._core.typing import Array, ArrayLike
from .affine_map import AffineMap
from .auto import choose
from .leave_one_out import same_length
from .options import check_anchors
from .sides import Anchors, centred_anchors

#: Penalties that are tried, in units of the mean diagonal entry of the Gram matrix.
STRENGTHS = (0.32, 1.0, 3.2, 10.0, 32.0)
#: Scalings of either marginal; more change nothing that was measured.
SCALINGS = 15
#: Times that the coupling and the map are computed from each other.
ROUNDS = 3
#: What the map of the anchors alone counts in the mean with that of both.
ALONE = 0.5
#: Parts of the anchors that are left out in turn.
FOLDS = 4
#: Shifts above this count as no chance, see `SemiInfo`; those of the shipped data, with pools of
#: the same and of disjoint classes, are in docs/unpaired-data.md.
FAR = 2.0


@by_value
class SemiInfo(NamedTuple):
    """Diagnostics of `fit_semi`; all fields are scalar arrays.

    Attributes:
        used: bool, whether the unpaired rows have a part in the map; False where cross-validation
            preferred the map of the anchors alone or the pools are too far apart.
        anchors_cosine: mean cosine of left-out anchors with the map of the other anchors alone.
        unpaired_cosine: the same with the unpaired rows.
        prior: what the penalty draws the weight to, as in `AutoInfo`.
        strength: the penalty, in units of the mean diagonal entry of the Gram matrix.
        shift: squared distance of the means of `y_unpaired` and of `x_unpaired` mapped by the
            anchors alone, over what is expected if both show the same things: about 1 then.
    """

    used: Array
    anchors_cosine: Array
    unpaired_cosine: Array
    prior: Array
    strength: Array
    shift: Array


class _Ridge(NamedTuple):
    """A penalty: `strength` * mean Gram diagonal * ||weight - prior * size * identity||^2."""

    prior: Array
    strength: Array
    size: Array

    def fit(self, gram: Array, cross: Array) -> Array:
        """The weight [d_in, d_out] from x^T x and x^T y of centred rows."""
        base = self.prior * self.size * jnp.eye(*cross.shape, dtype=gram.dtype)
        unit = jnp.trace(gram) / gram.shape[0]
        unit = jnp.where(unit > 0, unit, 1)
        penalty = self.strength * unit * jnp.eye(gram.shape[0], dtype=gram.dtype)
        return _solve(gram + penalty, cross - matmul(gram, base)) + base


@one_by_one_on_cpu
def _solve(a: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve(a, b, assume_a="pos")


def _choose_ridge(anchors: Anchors) -> tuple[_Ridge, Array, Array]:
    """The penalty of the largest leave-one-out cosine; a gain that undoes its shrinkage; its error.

    The error is the mean square of what left-out predictions miss.
    """
    choice, y = choose(anchors, None, STRENGTHS), anchors.y.rows
    norm = _norm(choice.left_out)
    gain = _norm(y) * safe_inverse(norm, norm > 0)
    ridge = _Ridge(*choice.best, same_length(anchors.x.rows, y))
    return ridge, gain, jnp.mean(jnp.sum((choice.left_out - y) ** 2, axis=1))


def _norm(a: Array) -> Array:
    return jnp.sqrt(jnp.sum(a * a))


def sinkhorn(logits: Array, scalings: int) -> Array:
    """The coupling exp(logits + u + v) of uniform marginals, scaled to row sums of 1.

    In the log domain, so that no `epsilon` underflows. (ott-jax has it too, and installs, but needs
    jaxopt, which is no longer developed, lineax and equinox for these lines.)

    Args:
        logits: similarity over epsilon [n, m].
        scalings: of rows and columns in turn (static); rows are scaled once more at the end.
    """

    def scaled(_, columns: Array) -> Array:
        rows = jax.nn.logsumexp(logits + columns[None, :], axis=1)
        return share - jax.nn.logsumexp(logits - rows[:, None], axis=0)

    share = jnp.log(jnp.asarray(logits.shape[0] / logits.shape[1], logits.dtype))
    columns = lax.fori_loop(0, scalings, scaled, jnp.zeros_like(logits[0]))
    return jax.nn.softmax(logits + columns[None, :], axis=1)


def _coupled(mapped: Array, target: Array, epsilon: Array, key: Array, block: int) -> Array:
    """For each row of `mapped` the mean of the rows of `target` that it is coupled with.

    At most `block` rows of either side at a time, which are drawn at random if there are more.
    """
    n, m = len(mapped), len(target)
    rows, columns = min(n, block), min(m, block)
    key_rows, key_columns = jax.random.split(key)
    order_rows = jnp.arange(n) if n <= block else jax.random.permutation(key_rows, n)
    order_columns = jnp.arange(m) if m <= block else jax.random.permutation(key_columns, m)

    def of_block(index: Array) -> tuple[Array, Array]:
        own = order_rows[(index * rows + jnp.arange(rows)) % n]
        others = target[order_columns[(index * columns + jnp.arange(columns)) % m]]
        cosines = matmul(unit_rows(mapped[own]), transpose(unit_rows(others)))
        return own, matmul(sinkhorn(cosines / epsilon, SCALINGS), others)

    own, means = lax.map(of_block, jnp.arange(-(-n // rows)))
    return (
        jnp.zeros((n, target.shape[1]), means.dtype)
        .at[own.ravel()]
        .set(means.reshape(-1, target.shape[1]))
    )


def _two_maps(
    x: Array, y: Array, weights: Array, pools: Sequence[Array], ridge: _Ridge,
    epsilon: Array, key: Array, block: int,
) -> tuple[tuple[Array, Array], Array, Array]:  # fmt: skip
    """The means of the anchors, and the weights of the maps of anchors alone and with the pools."""
    total = jnp.sum(weights)
    means = matmul(weights, x) / total, matmul(weights, y) / total
    x, y = x - means[0][None, :], y - means[1][None, :]
    source, target = (pool - mean[None, :] for pool, mean in zip(pools, means, strict=True))
    rows = transpose(x * weights[:, None])
    gram, cross = matmul(rows, x), matmul(rows, y)
    share = total / len(source)  # together the pool weighs as much as the anchors
    gram_of_all = gram + share * matmul(transpose(source), source)

    def better(index: Array, weight: Array) -> Array:
        key_of_round = jax.random.fold_in(key, index)
        found = _coupled(matmul(source, weight), target, epsilon, key_of_round, block)
        return ridge.fit(gram_of_all, cross + share * matmul(transpose(source), found))

    alone = ridge.fit(gram, cross)
    joint = lax.fori_loop(0, ROUNDS, better, alone)
    # The mean with the map of the anchors alone: with few of them much safer, else not worse.
    joint = _sized(joint, source, 1.0) + _sized(alone, source, ALONE)
    return means, alone, _sized(joint, source, _root_mean_square(target))


def _sized(weight: Array, rows: Array, size: Array | float) -> Array:
    """A weight that brings `rows` to this root mean square length."""
    own = _root_mean_square(matmul(rows, weight))
    return weight * (size * safe_inverse(own, own > 0))


def _root_mean_square(rows: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.sum(rows * rows, axis=1)))


@partial(jax.jit, static_argnums=0)
def _fit(
    block: int, x: Array, y: Array, pools: Sequence[Array], epsilon: Array, key: Array
) -> tuple[AffineMap, SemiInfo]:
    anchors = centred_anchors(x, y, None)
    sides, work = (anchors.x, anchors.y), anchors.w.dtype
    source, target = (
        side.centred(pool.astype(work)) / side.unit for pool, side in zip(pools, sides, strict=True)
    )
    dtype, n, epsilon = common_dtype(x.dtype, y.dtype), len(x), epsilon.astype(work)
    x, y = (side.rows for side in sides)
    ridge, gain, error = _choose_ridge(anchors)
    key_gate, key_fit = jax.random.split(key)
    # One block of the pools tells as well whether they help.
    some = [
        pool if len(pool) <= block else pool[jax.random.permutation(own, len(pool))[:block]]
        for pool, own in zip((source, target), jax.random.split(key_gate), strict=True)
    ]

    def without(fold: Array) -> Array:
        out = (jnp.arange(n) % FOLDS == fold).astype(work)
        means, *weights = _two_maps(x, y, 1 - out, some, ridge, epsilon, key_gate, block)
        truth = unit_rows(y - means[1][None, :])
        mapped = (unit_rows(matmul(x - means[0][None, :], weight)) for weight in weights)
        return jnp.stack([jnp.sum(out[:, None] * rows * truth) for rows in mapped])

    cosines = jnp.sum(lax.map(without, jnp.arange(FOLDS)), axis=0) / n
    _, alone, joint = _two_maps(x, y, anchors.w, (source, target), ridge, epsilon, key_fit, block)
    shift = _shift(source, target, alone, error / n)
    used = (cosines[1] > cosines[0]) & (shift < FAR)
    weight = jnp.where(used, joint, alone * gain)
    mapping = anchors.map_of(weight * (anchors.y.unit / anchors.x.unit))
    info = SemiInfo(used, cosines[0], cosines[1], ridge.prior, ridge.strength, shift)
    return jax.tree.map(lambda a: a.astype(dtype), mapping), info


def _shift(source: Array, target: Array, weight: Array, error: Array) -> Array:
    """Squared distance of the means of mapped and target pool over what is expected by chance.

    Chance is in the means of both pools, and in that of the anchors' residuals, whose expected
    square is `error`.
    """
    means, variances = [], []
    for rows in (matmul(source, weight), target):
        mean = jnp.mean(rows, axis=0)
        means.append(mean)
        variances.append(jnp.mean(jnp.sum((rows - mean[None, :]) ** 2, axis=1)) / len(rows))
    expected = error + variances[0] + variances[1]
    return jnp.sum((means[0] - means[1]) ** 2) * safe_inverse(expected, expected > 0)


def fit_semi(
    x: ArrayLike,
    y: ArrayLike,
    x_unpaired: ArrayLike,
    y_unpaired: ArrayLike,
    *,
    epsilon: ArrayLike = 0.03,
    block_rows: int = 4096,
    key: Array | None = None,
    validate: bool = True,
) -> tuple[AffineMap, SemiInfo]:
    """Affine map from few anchors and many rows of either side that have no partner.

    For 10 to 200 anchors and some hundred unpaired rows of the same kind, e.g. images without a
    report and reports without an image; docs/unpaired-data.md says what to expect. The penalty is
    chosen by leave-one-out cosine of the anchors. The unpaired rows are used if 4-fold
    cross-validation of the anchors prefers it and the pools are not far from each other; else the
    map is that of the anchors alone, and a warning says why.

    Computes a matrix [d_in, d_in], a few copies of the rows and coupling matrices of at most
    `block_rows` rows of either side at a time: 64 MiB each in float32, so that pools of 100,000
    rows need no more.

    Args:
        x: source anchors [n, d_in], floating point, n >= 4; row i matches row i of `y`.
        y: target anchors [n, d_out].
        x_unpaired: rows of the source space [n_x, d_in].
        y_unpaired: rows of the target space [n_y, d_out], drawn from what `x_unpaired` shows but
            in any order.
        epsilon: of the coupling, > 0: the larger, the more target rows are averaged for a source
            row; in units of cosine; may be traced.
        block_rows: how many rows of a pool are coupled at a time (static). Of larger pools every
            block of source rows is coupled with as many target rows, drawn anew each time.
        key: PRNG key of these draws; None is `jax.random.key(0)`.
        validate: whether to check values and to warn when called outside of a transformation.

    Returns:
        The map, and the `SemiInfo`. Not differentiable.

    Raises:
        TypeError: for a non-floating dtype or an option of the wrong type.
        ValueError: for shapes that do not match, empty pools, fewer than 2 anchors, values that are
            not finite, or an `epsilon` that is not positive.

    Example:
        >>> import jax, semalign_jax as sa
        >>> x = jax.random.normal(jax.random.key(0), (20, 4))
        >>> y = x[:, ::-1] + 3
        >>> mapping, info = sa.fit_semi(x[:10], y[:10], x[10:], y[10:])
        >>> mapping(x).shape
        (20, 4)
    """
    x, y, _ = check_anchors(x, y, None, validate)
    if x.shape[0] < FOLDS:
        raise ValueError(
            f"x and y have {checks.counted(x.shape[0], 'row')}: fit_semi needs at least {FOLDS} "
            "anchors, of which some are left out in turn"
        )
    pools = {"x_unpaired": (x_unpaired, x), "y_unpaired": (y_unpaired, y)}
    checked = []
    for name, (pool, anchors) in pools.items():
        pool = checks.float_array(name, pool, 2)
        if pool.shape[1] != anchors.shape[1]:
            raise ValueError(
                f"{name} must have the {anchors.shape[1]} features of {name[0]}; got {pool.shape}"
            )
        if validate and checks.is_concrete(pool):
            checks.finite_rows(name, pool)
        checked.append(pool)
    epsilon = checks.scalar("epsilon", epsilon)
    if checks.is_concrete(epsilon) and not float(epsilon) > 0:
        raise ValueError(f"epsilon must be > 0; got {float(epsilon)}")
    key = jax.random.key(0) if key is None else checks.prng_key("key", key)
    block = checks.positive_int("block_rows", block_rows)
    mapping, info = _fit(block, x, y, tuple(checked), epsilon, key)
    if validate and checks.is_concrete(*info):
        _warn(info)
    return mapping, info


def _warn(info: SemiInfo) -> None:
    if bool(info.used):
        return
    why = (
        "y_unpaired and the mapped x_unpaired show other things: the squared distance of their "
        f"means is {float(info.shift):.1f} times what chance makes"
        if float(info.shift) >= FAR
        else f"with the unpaired rows the mean cosine of left-out anchors is "
        f"{float(info.unpaired_cosine):.3f}, without {float(info.anchors_cosine):.3f}"
    )
    warnings.warn(f"the map is of the anchors alone: {why}", stacklevel=3)
