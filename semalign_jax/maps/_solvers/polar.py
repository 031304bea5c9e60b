"""The orthogonal polar factor U V^T of a matrix, completed where it is not determined.

For m = U S V^T, directions whose singular value is at most `rcond` times the largest are
undetermined: the data do not say where they go, and their singular vectors are rounding noise. They
are mapped to each other as near to the identity (zero-padded or cut to shape) as an orthogonal
matrix can; where even that leaves a choice, as near to a fixed matrix (`_tie_breaker`). So the
result depends neither on the order of the rows behind m nor on the algorithm.

The *value* comes from one of two algorithms: an SVD of m (`_of_matrix`), or of a small matrix
between the bases of few anchors (`of_few_anchors`). The *derivative* is that of `_differentiable`,
whose denominators are s_i + s_j, never s_i - s_j.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..._core.linalg import (
    SpectralFactors,
    cholesky,
    counts,
    default_rcond,
    is_positive_definite,
    matmul,
    one_by_one_on_cpu,
    replace_value,
    safe_inverse,
    solve_lower,
    spectral_factors,
    svd,
    transpose,
)
from ..._core.typing import Array, Completion
from .products import nearest_orthogonal

#: Anchors of condition 1e6 leave about half of the directions of x^T y below rounding. Up to this
#: share of them is completed by a smaller SVD, in a third of the time of a whole one.
FEW_UNDETERMINED = (9, 16)


class Bases(NamedTuple):
    """A matrix of low rank as `left^T @ inner @ right`, constants for differentiation.

    Attributes:
        left: orthonormal rows [n, d_in].
        inner: [n, n].
        right: orthonormal rows [n, d_out].
    """

    left: Array
    inner: Array
    right: Array


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def orthogonal_factor(
    completion: Completion,
    rotation_only: bool,
    m: Array,
    rcond: Array | float | None = None,
    bases: Bases | None = None,
) -> Array:
    """The polar factor of `m` [d_in, d_out], (semi-)orthogonal.

    Args:
        completion: "orthogonal", or "partial": undetermined directions become zero.
        rotation_only: whether to exclude reflections (square `m`, Umeyama 1991): if need be, the
            least determined direction is reflected.
        m: the matrix, entries of about unit size.
        rcond: relative cut-off for singular values; None means 8 machine epsilons.
        bases: the same matrix between thin bases, if it comes from few anchors; `m` is then read
            for the derivative alone.
    """
    if rotation_only:
        return _differentiable(completion, rotation_only, m, rcond)
    if bases is not None:
        return of_few_anchors(completion, bases, rcond)
    if completion == "partial":
        f = spectral_factors(m, rcond)
        return matmul(f.kept_u, f.vt)
    return _of_matrix(m, rcond)


@orthogonal_factor.defjvp
def _orthogonal_factor_jvp(completion, rotation_only, primals, tangents):
    m, rcond, bases = lax.stop_gradient(primals)
    value = lax.stop_gradient(orthogonal_factor(completion, rotation_only, m, rcond, bases))

    def exact(m: Array) -> Array:
        return replace_value(_differentiable(completion, rotation_only, m, rcond), value)

    return jax.jvp(exact, primals[:1], tangents[:1])


# --- value -------------------------------------------------------------------------------------


@one_by_one_on_cpu
def _of_matrix(m: Array, rcond: Array | float | None) -> Array:
    u, vt, keep = polar_vectors(m, rcond)
    if m.shape[0] == m.shape[1]:
        return _completed(u, vt, keep)

    def completed() -> Array:
        rows = jnp.where(keep[:, None], transpose(u), 0), jnp.where(keep[:, None], vt, 0)
        return _completed_between(*rows, keep)

    return lax.cond(jnp.all(keep), lambda: matmul(u, vt), completed)


def _completed(u: Array, vt: Array, keep: Array) -> Array:
    """`u @ vt` [d, d] with undetermined directions mapped as near to the identity as can be.

    These are the last ones. The polar factor of their block of u^T vt^T, a smaller SVD, says how
    to turn them; what it leaves undetermined is decided by the tie-breaker in the same way.
    """
    d = len(keep)

    def of_last(width: int) -> Array:
        def unfinished(state):
            level, _, _, keep = state
            return (level < 2) & ~jnp.all(keep)

        def turned(state):
            level, u, vt, keep = state
            prior = jnp.where(level == 0, jnp.eye(d, dtype=u.dtype), _tie_breaker(d, u.dtype))
            block = matmul(transpose(u), matmul(prior, transpose(vt)))
            a, s, bt = svd(_only_undetermined(block, keep))
            return level + 1, matmul(u, a), matmul(bt, vt), s > 2 * default_rcond(u.dtype)

        state = (0, u[:, d - width :], vt[d - width :], keep[d - width :])
        _, last, last_t, _ = lax.while_loop(unfinished, turned, state)
        left = jnp.concatenate([u[:, : d - width], last], axis=1)
        return matmul(left, jnp.concatenate([vt[: d - width], last_t]))

    width = FEW_UNDETERMINED[0] * d // FEW_UNDETERMINED[1]
    if width < 2:
        return of_last(d)
    few = jnp.sum(keep, dtype=jnp.int32) >= d - width
    return lax.cond(few, lambda: of_last(width), lambda: of_last(d))


def _only_undetermined(block: Array, keep: Array) -> Array:
    """A block [k, k] without the rows and columns of determined directions.

    These get twos on the diagonal, which keeps them apart from the rest, of a norm of about 1.
    """
    free = ~keep[:, None] & ~keep[None, :]
    return jnp.where(free, block, jnp.diag(jnp.where(keep, 2, 0).astype(block.dtype)))


def polar_vectors(
    m: Array, rcond: Array | float | None = None, size: float | None = None
) -> tuple[Array, Array, Array]:
    """`u` and `vt` with the polar factor u @ vt, and which of their directions count.

    On accelerators u is the polar factor itself and vt the identity, or the other way round, by
    matrix products alone, if all directions count; else, and on CPUs, they are singular vectors.

    Args:
        m: matrix [d_in, d_out].
        rcond: relative cut-off for singular values; None means 8 machine epsilons.
        size: what the cut-off is relative to; None means the largest singular value.
    """
    cut = jnp.asarray(default_rcond(m.dtype) if rcond is None else rcond, m.dtype)

    def by_svd(m: Array, cut: Array) -> tuple[Array, Array, Array]:
        u, s, vt = svd(m)
        return u, vt, counts(s, cut) if size is None else s > cut * size

    def by_products(m: Array, cut: Array) -> tuple[Array, Array, Array, Array]:
        d = min(m.shape)
        q, eye = nearest_orthogonal(m), jnp.zeros_like(m[:d, :d]) + jnp.eye(d, dtype=m.dtype)
        wide = m.shape[0] < m.shape[1]
        h = matmul(m, transpose(q)) if wide else matmul(transpose(q), m)
        # The eigenvalues of h are the singular values. They are above the cut-off if h without
        # it has a Cholesky factor. The norm bounds the largest.
        limit = cut * (jnp.linalg.norm(h) if size is None else size)
        determined = is_positive_definite((h + transpose(h)) / 2 - limit * eye)
        u, vt = (eye, q) if wide else (q, eye)
        return u, vt, jnp.ones_like(eye[0], bool), determined

    @jax.custom_batching.custom_vmap
    def on_accelerator(m: Array, cut: Array) -> tuple[Array, Array, Array]:
        *found, determined = by_products(m, cut)
        return lax.cond(determined, lambda: tuple(found), lambda: by_svd(m, cut))

    @on_accelerator.def_vmap
    def of_batch(axis_size, in_batched, m, cut):
        # One condition for all: on its own, every element would compute both sides.
        axes = tuple(0 if batched else None for batched in in_batched)
        of_all = partial(jax.vmap, in_axes=axes, axis_size=axis_size)
        *found, determined = of_all(by_products)(m, cut)
        outputs = lax.cond(
            jnp.all(determined), lambda: tuple(found), lambda: of_all(by_svd)(m, cut)
        )
        return outputs, (True, True, True)

    return lax.platform_dependent(m, cut, cpu=by_svd, default=on_accelerator)


def of_few_anchors(completion: Completion, bases: Bases, rcond: Array | float | None) -> Array:
    """The polar factor of a matrix between thin bases [d_in, d_out], n < min(d_in, d_out)."""
    u, vt, keep = polar_vectors(bases.inner, rcond)
    # Undetermined rows become zero on both sides.
    u = matmul(jnp.where(keep[:, None], transpose(u), 0), bases.left)
    v = matmul(jnp.where(keep[:, None], vt, 0), bases.right)
    if completion == "partial":
        return matmul(transpose(u), v)
    return _completed_between(u, v, keep)


def _completed_between(u: Array, v: Array, keep: Array) -> Array:
    """`u^T @ v` of [n, d_in] and [n, d_out] with all other directions completed.

    With the determined singular vectors U and V (the rows of `u` and `v`) and the polar
    decomposition U^T V = H P, the completed factor is

        identity + U (1 + H) V^T - (U H + V) (1 + P)^-1 (U H + V)^T:

    outside of the span of U and V the identity; within the plane of a pair of principal vectors
    the direct rotation of one complement to the other (Davis and Kahan, "The rotation of
    eigenvectors by a perturbation III", 1970). For unequal dimensions U or V is padded by zeros,
    and the result cut. 1 + P has a condition number of at most 2. Rows that `keep` leaves out are
    zero on both sides.
    """
    d_in, d_out = u.shape[1], v.shape[1]
    shared, larger = min(d_in, d_out), max(d_in, d_out)
    cosines = matmul(u[:, :shared], transpose(v[:, :shared]))
    cosines = cosines + jnp.diag(jnp.where(keep, 0, 2).astype(u.dtype))
    a, bt, filled = polar_vectors(cosines, size=2.0)

    def tie_broken() -> Array:
        fixed = _tie_breaker(larger, u.dtype)[:d_out, :d_in]
        block = -matmul(u, matmul(transpose(fixed), transpose(v)))
        c, _, et = svd(
            _only_undetermined(matmul(transpose(a), matmul(block, transpose(bt))), filled)
        )
        return matmul(a, matmul(c, et))

    h = matmul(lax.cond(jnp.all(filled), lambda: a, tie_broken), bt)
    p = matmul(transpose(h), cosines)
    eye = jnp.eye(len(keep), dtype=u.dtype)
    first, second = (
        jnp.pad(side, ((0, 0), (0, larger - side.shape[1])))
        for side in (matmul(transpose(h), u), v)
    )
    # Of whose rows the identity loses the squares.
    turned = solve_lower(cholesky(eye + (p + transpose(p)) / 2), first + second)
    added = matmul(transpose(u), matmul(eye + h, v))
    lost = matmul(transpose(turned[:, :d_in]), turned[:, :d_out])
    return jnp.eye(d_in, d_out, dtype=u.dtype) + added - lost


def _tie_breaker(d: int, dtype) -> Array:
    """A fixed matrix [d, d] without structure, with a norm of about 2.

    It decides where the identity cannot: if one direction is undetermined in the source and an
    orthogonal one in the target, both signs are equally near to the identity. Integers are hashed,
    so that it is the same in every dtype.
    """
    index = jnp.arange(d, dtype=jnp.uint32)
    bits = (index[:, None] * jnp.uint32(2654435761)) ^ (index[None, :] * jnp.uint32(2246822519))
    bits = (bits ^ (bits >> jnp.uint32(15))) * jnp.uint32(3266489917)
    bits = (bits ^ (bits >> jnp.uint32(13))) >> jnp.uint32(8)
    uniform = bits.astype(dtype) / 2.0**24 - 0.5
    return uniform * (12 / d) ** 0.5


# --- derivative --------------------------------------------------------------------------------


def _differentiable(
    completion: Completion, rotation_only: bool, m: Array, rcond: Array | float | None
) -> Array:
    """The same polar factor as a differentiable function of `m`."""
    f = spectral_factors(m, rcond)
    isometry = _isometry(f, m)
    if completion == "partial":
        return isometry

    def determined() -> Array:
        return _isometry(_signed(f, rotation_only), m) if rotation_only else isometry

    def completed() -> Array:
        """The polar factor of twice the isometry and the prior between the rest, see `_completed`.

        The two keeps what is determined apart from the rest, of a norm of about 1.
        """
        d = max(m.shape)
        padded = jnp.pad(isometry, [(0, d - size) for size in m.shape])
        by_identity = filled(padded, jnp.eye(d, dtype=m.dtype))
        known = spectral_factors(by_identity)
        known = known._replace(keep=known.s > 2 * default_rcond(m.dtype))

        def tie_broken() -> Array:
            whole = filled(_isometry(known, by_identity), _tie_breaker(d, m.dtype))
            return _isometry(_signed(spectral_factors(whole, 0.0), rotation_only), whole)

        def unique() -> Array:
            return _isometry(_signed(known, rotation_only), by_identity)

        return lax.cond(jnp.all(known.keep), unique, tie_broken)[: m.shape[0], : m.shape[1]]

    def filled(p: Array, prior: Array) -> Array:
        rest = prior - matmul(p, matmul(transpose(p), prior))
        return 2 * p + rest - matmul(matmul(rest, transpose(p)), p)

    return lax.cond(jnp.all(f.keep), determined, completed)


def _signed(f: SpectralFactors, rotation_only: bool) -> SpectralFactors:
    """Factors of the optimum within the rotations: the last direction may change its sign."""
    if not rotation_only:
        return f
    sign = jnp.linalg.slogdet(matmul(f.u, f.vt))[0]
    return f._replace(u=f.u.at[:, -1].multiply(sign), s=f.s.at[-1].multiply(sign))


@jax.custom_jvp
def _isometry(f: SpectralFactors, m: Array) -> Array:
    return matmul(f.kept_u, f.vt)


@_isometry.defjvp
def _isometry_jvp(primals, tangents):
    f, m = primals
    q = _isometry(f, m)
    return q, _isometry_tangent(f, q, m, tangents[1])


def _isometry_tangent(f: SpectralFactors, q: Array, m: Array, dm: Array) -> Array:
    # With m = q h, h = V diag(s) V^T: h w + w h = q^T dm - dm^T q gives the rotation w within
    # the range; the other two terms turn the range itself. Denominators are s_i + s_j and s_i.
    qt = transpose(q)
    projector = matmul(qt, q)
    h = matmul(qt, m) + jnp.eye(m.shape[1], dtype=m.dtype) - projector
    skew = matmul(qt, dm)
    skew = matmul(projector, matmul(skew - transpose(skew), projector))
    tangent = matmul(q, _sylvester_solve(f, h, skew))
    left = matmul(dm - matmul(q, matmul(qt, dm)), projector)
    tangent = tangent + transpose(_symmetric_solve(f, h, transpose(left)))
    right = matmul(qt, dm - matmul(dm, projector))
    return tangent + matmul(q, _symmetric_solve(f, h, right))


def _symmetric_solve(f: SpectralFactors, h: Array, c: Array) -> Array:
    """`h^-1 c` for `h = V diag(s) V^T` on the kept directions and the identity elsewhere."""
    vt = f.kept_vt
    gain = safe_inverse(f.s, f.keep)[:, None]

    def solve(_, c):
        inner = matmul(vt, c)
        return c + matmul(transpose(vt), (gain - 1) * inner)

    return lax.custom_linear_solve(lambda w: matmul(h, w), c, solve, solve, symmetric=True)


def _sylvester_solve(f: SpectralFactors, h: Array, c: Array) -> Array:
    """The w with `h w + w h = c`, for `h` as in `_symmetric_solve`.

    Pairs of directions with s_i + s_j = 0 have no solution and get 0.
    """
    vt = f.kept_vt
    s = jnp.where(f.keep, f.s, 1)
    sums = s[:, None] + s[None, :]
    regular = jnp.abs(sums) > jnp.finfo(s.dtype).eps * jnp.max(jnp.abs(s))
    within = safe_inverse(sums, regular)
    across = safe_inverse(s + 1, s + 1 > 0)[:, None]

    def solve(_, c):
        left = matmul(vt, c)
        inner = matmul(left, transpose(vt))
        left = left - matmul(inner, vt)
        right = transpose(matmul(c, transpose(vt)) - matmul(transpose(vt), inner))
        rest = c - matmul(transpose(vt), matmul(inner, vt) + left) - matmul(transpose(right), vt)
        mixed = matmul(transpose(vt), across * left)
        mixed = mixed + transpose(matmul(transpose(vt), across * right))
        return matmul(transpose(vt), matmul(inner * within, vt)) + mixed + rest / 2

    def matvec(w):
        return matmul(h, w) + matmul(w, h)

    return lax.custom_linear_solve(matvec, c, solve, solve, symmetric=True)
