"""What the fits of many pairs of encoders have in common.

`prepare` factors the anchors of one encoder, for all of its pairs and both directions (the idea of
netrep's `partial_fit` and `finalize_fit`); `shared_heads` makes the maps of one pair from that,
with the readout of the target multiplied into them at once, since it has few columns.

- The anchor sets of all counts are prefixes of the same rows. The Cholesky factor of a prefix's
  x x^T is the leading block of the factor of the longest prefix, and so is its QR.
- Centring depends on the prefix. But with the successive contrasts h_j, row j + 1 against the mean
  of the first j rows, the centred products of the first n rows are those of the first n - 1
  contrasts (Helmert 1876; the running update of Welford 1962). So centred prefixes are plain
  prefixes of other rows.
- The polar factor of one direction is the transposed one of the other.

Least squares goes through Gram matrices in float64, so everything here is called where JAX has its
64-bit types switched on; results are float32 if the anchors are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from .._core.linalg import (
    cholesky,
    default_rcond,
    lq,
    matmul,
    power_of_two_scale,
    solve_lower,
    transpose,
)
from .._core.typing import METHODS, Array
from ..maps._solvers.float64 import (
    SMALLEST,
    cross_product,
    determines,
    gram_matrix,
    inverse_root,
    row_sums,
)
from ..maps._solvers.polar import Bases, orthogonal_factor
from ..maps.affine_map import AffineMap
from ..maps.fit import FEW_ANCHORS
from ..maps.sides import deviations
from .one_pair import SweepMethod

#: Up to this share of the largest, singular values of float64 anchors are not trusted to a Gram
#: matrix: it squares the condition number, and what is shared must be as exact as a fit of its own.
TRUSTED_FLOAT64 = 1e-4


class Plan(NamedTuple):
    """What compiled code depends on besides shapes; hashable.

    Attributes:
        lines: the lines whose work is shared.
        counts: anchor counts, ascending.
        float32: whether the anchors are float32, or float64.
    """

    lines: tuple[SweepMethod, ...]
    counts: tuple[int, ...]
    float32: bool

    def lengths(self, center: bool) -> list[int]:
        """Of the prefix of each count; one less if centred, see `contrasts`."""
        return [max(n - center, 0) for n in self.counts]

    def variants(self) -> list[bool]:
        """Whether there are lines that are not centred, and ones that are."""
        return sorted({is_centered(line) for line in self.lines})

    def cuts(self, center: bool) -> list[float]:
        """Relative cut-offs for singular values of the lines of least squares of that kind."""
        lines = (line for line in self.lines if line.method != "ortho")
        return sorted({self.cut(line) for line in lines if is_centered(line) == center})

    def cut(self, line: SweepMethod) -> float:
        """That of one line, or what its Gram matrix resolves if that is more."""
        rcond = dict(line.options).get("rcond")
        least = SMALLEST if self.float32 else TRUSTED_FLOAT64
        if rcond is None:
            rcond = default_rcond(jnp.float32 if self.float32 else jnp.float64)
        return max(float(rcond), least)


class Variant(NamedTuple):
    """An encoder's anchors, centred or not, ready for all of its pairs.

    Attributes:
        rows: the anchors, or their contrasts if centred [m, d], divided by `unit`.
        unit: scalar power of two.
        means: what is subtracted from embeddings at each count [counts, d].
        scales: isotropic deviation of the anchors at each count [counts].
        triangle: lower [k, k], k the longest prefix that is solved in the span of few rows.
        basis: orthonormal rows [k, d], rows[:k] = triangle @ basis.
        few: lower Cholesky factor of x x^T for the longest prefix of less than d rows, float64.
        many: for each prefix of at least d rows and each cut-off, a root of the inverse of x^T x
            without the directions below the cut-off, float64.
        safe: whether what is here is exact, for each cut-off and count: with fewer rows than d, and
            in float64, only if no singular value is below the cut-off [cuts, counts].
    """

    rows: Array
    unit: Array
    means: Array
    scales: Array
    triangle: Array
    basis: Array
    few: Array
    many: tuple[tuple[Array, ...], ...]
    safe: Array


def is_centered(line: SweepMethod) -> bool:
    """Whether a line centres the anchors."""
    return line.method == "affine" or dict(line.options).get("normalize", "none") != "none"


def is_shared(line: SweepMethod) -> bool:
    """Whether a line is made from shared factors; others are fitted on their own."""
    options = dict(line.options)
    rcond = options.pop("rcond", None)
    return (
        line.method in METHODS
        and not line.shuffled
        and options.pop("normalize", "none") in ("none", "center", "isotropic")
        and (rcond is None or (line.method != "ortho" and isinstance(rcond, int | float)))
        and set(options) <= {"completion"}
    )


# --- one encoder -------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def prepare(plan: Plan, data: Array) -> dict[bool, Variant]:
    """Factor the anchors of one encoder [n, d], in order."""
    return {center: _variant(plan, data, center) for center in plan.variants()}


def _variant(plan: Plan, data: Array, center: bool) -> Variant:
    d = data.shape[1]
    means = jnp.zeros((len(plan.counts), d), data.dtype)
    rows = data
    if center:
        rows, means = contrasts(data), _prefix_means(data, plan.counts)
    unit = power_of_two_scale(rows)
    rows = rows / unit
    lengths = plan.lengths(center)
    ends = zip(lengths, plan.counts, strict=True)
    squares = jnp.stack([jnp.sum(rows[:m] ** 2) / n for m, n in ends])
    variances = jnp.broadcast_to((squares * unit * unit / d)[:, None], means.shape)
    scales = jax.vmap(lambda v, mean: deviations("isotropic", v, mean)[0])(variances, means)
    few = [m for m in lengths if m < d]
    spanned = max((m for m in few if m <= FEW_ANCHORS * d), default=0)
    triangle, basis = lq(rows[:spanned])
    factor, many, safe = jnp.zeros((0, 0), jnp.float64), [], []
    cuts = plan.cuts(center)
    if cuts:
        longest = max(few, default=0)
        gram = row_sums(gram_matrix, transpose(rows[:longest])) if longest else factor
        factor = cholesky(gram)
        safe = [_is_safe(gram[:m, :m], cuts) for m in few]
        grams = prefix_sums(partial(row_sums, gram_matrix), lengths[len(few) :], rows)
        for gram in grams:
            many.append(tuple(inverse_root(gram, cut) for cut in cuts))
            safe.append(jnp.ones(len(cuts), bool) if plan.float32 else _is_safe(gram, cuts))
    trusted = jnp.stack(safe, axis=1) if cuts else jnp.ones((0, len(lengths)), bool)
    return Variant(rows, unit, means, scales, triangle, basis, factor, tuple(many), trusted)


def _is_safe(gram: Array, cuts: Sequence[float]) -> Array:
    """Whether the singular values behind a Gram matrix are above each share of the largest."""
    if not gram.size:
        return jnp.zeros(len(cuts), bool)
    return jnp.stack([determines(gram, cut) for cut in cuts])


def contrasts(data: Array) -> Array:
    """Every row but the first against the mean of the rows before it [n - 1, d], orthonormal.

    `contrasts(x)[:n - 1]^T @ contrasts(y)[:n - 1]` is the centred product of the first n rows.
    """
    # Sums over many rows would cost float32 digits, and so would a large common offset.
    shifted = (data - data[:1]).astype(jnp.float64)
    _, sums = lax.scan(lambda total, row: (total + row, total + row), shifted[0], shifted)
    count = jnp.arange(1, data.shape[0], dtype=jnp.float64)[:, None]
    found = (shifted[1:] - sums[:-1] / count) * jnp.sqrt(count / (count + 1))
    return found.astype(data.dtype)


def _prefix_means(data: Array, counts: Sequence[int]) -> Array:
    """Means of the first n rows for ascending counts n [counts, d]."""
    shifted = data - data[:1]  # so that a large common offset costs no digits
    total, start, means = jnp.zeros(data.shape[1], data.dtype), 0, []
    for n in counts:
        total = total + jnp.sum(shifted[start:n], axis=0)
        start = n
        means.append(total / n)
    return data[:1] + jnp.stack(means)


def prefix_sums(products: Callable, lengths: Sequence[int], *sides: Array) -> list[Array]:
    """`products` of the first m rows of all sides, for ascending m; zeros for no rows."""
    total = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(products, *(a[:1] for a in sides))
    )
    found, start = [], 0
    for m in lengths:
        if m > start:
            total = total + products(*(side[start:m] for side in sides))
            start = m
        found.append(total)
    return found


# --- one pair ----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def shared_heads(
    plan: Plan,
    first: dict[bool, Variant],
    second: dict[bool, Variant],
    readouts: tuple[AffineMap, ...],
) -> list[list[tuple[AffineMap, Array]]]:
    """The shared lines of one pair, each map followed by the target's readout.

    Args:
        plan: lines and counts.
        first: of `prepare`, the source of the first direction.
        second: its target.
        readouts: of the second encoder, and of the first one if the other direction is wanted.

    Returns:
        For each direction and line, maps [counts] from the source to the readout's scores, and
        whether each can be trusted [counts].
    """
    sides = list(zip((first, second), (second, first), readouts, strict=False))
    found: list[list[tuple[AffineMap, Array]]] = [[] for _ in sides]
    for line in plan.lines:
        center = is_centered(line)
        variants = [(x[center], y[center], readout) for x, y, readout in sides]
        if line.method == "ortho":
            weights = _ortho(plan, line, variants)
        elif line.method == "l-ortho":
            weights = _l_ortho(plan, line, variants)
        else:
            weights = [_least_squares(plan, line, *variant) for variant in variants]
        for cells, of_counts, (x, y, readout) in zip(found, weights, variants, strict=True):
            target = matmul(y.means - readout.source_offset[None, :], readout.weight)
            target = target + readout.target_offset[None, :]
            weight = jnp.stack(of_counts)
            if "ortho" in line.method and dict(line.options).get("normalize") == "isotropic":
                # One number a side changes no direction, and least squares not at all.
                weight = weight * (y.scales / x.scales).astype(weight.dtype)[:, None, None]
            heads = AffineMap(weight.astype(x.rows.dtype), x.means, target)
            if line.method == "ortho":
                safe = jnp.ones(len(plan.counts), bool)
            else:
                safe = x.safe[plan.cuts(center).index(plan.cut(line))]
            cells.append((heads, safe))
    return found


def _ortho(
    plan: Plan, line: SweepMethod, variants: Sequence[tuple[Variant, Variant, AffineMap]]
) -> list[list[Array]]:
    """U V^T of x^T y for every count; its transpose for the other direction."""
    x, y, _ = variants[0]
    found: list[list[Array]] = [[] for _ in variants]
    lengths = plan.lengths(is_centered(line))
    for m, total in zip(lengths, prefix_sums(cross_product, lengths, x.rows, y.rows), strict=True):
        bases = None
        if 0 < m <= FEW_ANCHORS * min(total.shape):
            inner = matmul(transpose(x.triangle[:m, :m]), y.triangle[:m, :m])
            bases = Bases(x.basis[:m], inner, y.basis[:m])
        weight = orthogonal_factor(_completion(line), False, total, None, bases)
        for cells, (_, _, readout), direction in zip(
            found, variants, (weight, transpose(weight)), strict=False
        ):
            cells.append(matmul(direction, readout.weight))
    return found


def _l_ortho(
    plan: Plan, line: SweepMethod, variants: Sequence[tuple[Variant, Variant, AffineMap]]
) -> list[list[Array]]:
    """The polar factor of the least-squares solution for every count."""
    x, y, _ = variants[0]
    d = min(x.rows.shape[1], y.rows.shape[1])
    lengths = plan.lengths(is_centered(line))
    used = [m if m >= d else 0 for m in lengths]  # fewer rows have no use for products
    totals = prefix_sums(partial(row_sums, cross_product), used, x.rows, y.rows)
    found: list[list[Array]] = [[] for _ in variants]
    for m, total in zip(lengths, totals, strict=True):
        for cells, (source, target, readout), cross in zip(
            found, variants, (total, transpose(total)), strict=False
        ):
            bases = None
            if 0 < m <= FEW_ANCHORS * d:
                inner = solve_lower(source.triangle[:m, :m], target.triangle[:m, :m])
                bases = Bases(source.basis[:m], inner, target.basis[:m])
            linear = _solution(plan, line, source, m, target.rows[:m], cross)
            linear = linear.astype(source.rows.dtype)
            weight = orthogonal_factor(_completion(line), False, linear, None, bases)
            cells.append(matmul(weight, readout.weight))
    return found


def _least_squares(
    plan: Plan, line: SweepMethod, x: Variant, y: Variant, readout: AffineMap
) -> list[Array]:
    """The least-squares solution times the readout for every count."""
    weight = readout.weight.astype(jnp.float64)
    values = matmul(y.rows.astype(jnp.float64), weight) * (y.unit / x.unit).astype(jnp.float64)
    lengths = plan.lengths(is_centered(line))
    totals = prefix_sums(partial(row_sums, cross_product), lengths, x.rows, values)
    return [
        _solution(plan, line, x, m, values[:m], total)
        for m, total in zip(lengths, totals, strict=True)
    ]


def _solution(
    plan: Plan, line: SweepMethod, x: Variant, m: int, values: Array, cross: Array
) -> Array:
    """The least-squares solution of the first `m` rows in float64.

    Args:
        plan: counts and cut-offs.
        line: for its cut-off.
        x: the source.
        m: number of rows.
        values: right-hand sides [m, c].
        cross: x^T values [d, c], for m >= d.
    """
    d = x.rows.shape[1]
    if m == 0:
        return jnp.zeros((d, values.shape[1]), jnp.float64)
    if m < d:
        z = cho_solve((x.few[:m, :m], True), values.astype(jnp.float64))
        return cross_product(x.rows[:m].astype(jnp.float64), z)
    center = is_centered(line)
    at = [length for length in plan.lengths(center) if length >= d].index(m)
    root = x.many[at][plan.cuts(center).index(plan.cut(line))]
    return matmul(root, matmul(transpose(root), cross))


def _completion(line: SweepMethod):
    return dict(line.options).get("completion", "orthogonal")
