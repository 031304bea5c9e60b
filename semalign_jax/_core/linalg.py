"""Dense linear algebra that the library shares: precision, the rank rule, safe factorisations.

None of the factorisations has a derivative here: what is differentiable is built on top of them,
in `maps/_solvers`, with derivatives that stay finite at repeated and zero singular values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .typing import Array

#: Precision of every matrix product in the solvers. TF32 and bfloat16, the defaults on GPU and
#: TPU, would ruin orthogonality. Assign another `jax.lax.Precision` here to override it.
PRECISION = lax.Precision.HIGHEST

#: Relative cut-off for singular values, in units of the machine epsilon eps. What lifts an exact
#: zero: forming m = x^T y errs by up to 1.7 eps ||m|| (measured, n to 5,000, d to 768; sums are
#: blocked, so the bound n eps is never near), and an SVD is backward stable, its zeros come out at
#: up to 5 eps ||m||, whatever the size and the kernels of the BLAS. Together below 8 eps, which
#: still keeps a condition number of 1e6 in float32.
CUTOFF_EPS = 8.0


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at `PRECISION`."""
    return jnp.matmul(a, b, precision=PRECISION)


def transpose(a: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(a, -1, -2)


def common_dtype(a, b) -> jnp.dtype:
    """The dtype that holds values of both, also where JAX's promotion is set to strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def compute_dtype(dtype) -> jnp.dtype:
    """Floating dtype the solvers work in: half precision is raised to float32."""
    return common_dtype(dtype, jnp.float32)


def default_rcond(dtype) -> float:
    """The relative cut-off for singular values where the user gives none."""
    return CUTOFF_EPS * float(jnp.finfo(dtype).eps)


def counts(s: Array, rcond: Array | float | None = None) -> Array:
    """Which singular values [k] count: those strictly above `rcond` times the largest.

    Strict, so that nothing of an all-zero matrix counts.
    """
    cut = jnp.asarray(default_rcond(s.dtype) if rcond is None else rcond, s.dtype)
    return s > cut * jnp.max(s, initial=0.0)


@jax.jit
def power_of_two_scale(a: Array) -> Array:
    """A power of two near max|a|, as a constant for differentiation; 1 for a == 0.

    Dividing by it is exact and keeps products of entries near 1e-20 or 1e20 in range.
    """
    info = jnp.finfo(a.dtype)
    # Half of it, as rounding up may not overflow.
    half = jnp.max(jnp.abs(lax.stop_gradient(a))) / 2
    usable = (half >= info.tiny) & jnp.isfinite(half)
    return lax.reduce_precision(jnp.where(usable, half, 1), info.nexp, mantissa_bits=0)


def safe_inverse(a: Array, where: Array) -> Array:
    """1 / a where `where`, else 0, with a finite derivative everywhere."""
    return jnp.where(where, 1 / jnp.where(where, a, 1), 0)


@jax.jit
def unit_rows(x: Array) -> Array:
    """Rows divided by their norm; zero rows stay zero, with a finite derivative."""
    dtype = x.dtype
    x = x.astype(compute_dtype(dtype))
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=-1, keepdims=True)
    x = x * safe_inverse(largest, largest > 0)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    zero = squares == 0
    return jnp.where(zero, 0, x / jnp.sqrt(jnp.where(zero, 1, squares))).astype(dtype)


# --- batches -----------------------------------------------------------------------------------


def one_by_one(function: Callable) -> Callable:
    """Give `function` a batching rule that runs it on one element after the other.

    For functions with conditions, of which `vmap` would compute both sides, and for those that
    use 64-bit types within, whose types `vmap` would ask for again where they are switched off.
    """
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, *args):
        del axis_size
        outputs = _mapped(wrapped, tuple(in_batched), args)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return wrapped


def one_by_one_on_cpu(function: Callable) -> Callable:
    """As `one_by_one` on a CPU; elsewhere `function` is batched as it is.

    XLA's CPU runtime splits a batched LAPACK call over its thread pool and waits inside of it:
    two such calls at once can block each other for ever.
    """
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size, in_batched, *args):
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
        outputs = lax.platform_dependent(
            *args,
            cpu=lambda *args: _mapped(wrapped, tuple(in_batched), args),
            default=jax.vmap(function, in_axes=axes, axis_size=axis_size),
        )
        return outputs, jax.tree.map(lambda _: True, outputs)

    return wrapped


def _mapped(function: Callable, in_batched: Any, args: tuple) -> Any:
    """`function` of each element; `in_batched`, like `args`, says which leaves have that axis."""
    leaves, structure = jax.tree.flatten(args)
    flags = jax.tree.leaves(in_batched)

    def one(own: list[Array]) -> Any:
        rest = iter(own)
        pairs = zip(leaves, flags, strict=True)
        return function(*structure.unflatten([next(rest) if f else leaf for leaf, f in pairs]))

    return lax.map(one, [leaf for leaf, f in zip(leaves, flags, strict=True) if f])


def in_batches(function: Callable[[Array], Any], rows: Array, batch_size: int | None) -> Any:
    """`function(rows)`, row by row independent, of at most `batch_size` rows at a time.

    What is held besides the result is that of one batch: `rows` are not copied or padded, for
    which the last batch may overlap the one before.
    """
    n = rows.shape[0]
    if batch_size is None or batch_size >= n:
        return function(rows)
    # The first batch is apart: what it gives varies over the same axes of a mesh as all others.
    first = function(rows[:batch_size])
    begun = jax.tree.map(
        lambda leaf: lax.dynamic_update_slice_in_dim(
            jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), leaf, 0, 0
        ),
        first,
    )

    def step(index: Array, found: Any) -> Any:
        start = jnp.minimum(index * batch_size, n - batch_size)
        part = function(lax.dynamic_slice_in_dim(rows, start, batch_size))
        return jax.tree.map(
            lambda whole, new: lax.dynamic_update_slice_in_dim(whole, new, start, 0), found, part
        )

    return lax.fori_loop(1, -(-n // batch_size), step, begun)


def in_float64(function: Callable) -> Callable:
    """`function` of arrays, computed in float64 and rounded to the first one's dtype.

    Also where JAX has 64-bit types switched off. No derivative.
    """

    @one_by_one
    def wide(*arrays: Array) -> Any:
        with jax.enable_x64(True):
            found = function(*(a.astype(jnp.float64) for a in arrays))
            return jax.tree.map(lambda leaf: leaf.astype(arrays[0].dtype), found)

    return wide


# --- factorisations ----------------------------------------------------------------------------


class SpectralFactors(NamedTuple):
    """`u @ diag(s) @ vt` of a matrix [n, d], constants for differentiation.

    Attributes:
        u: left singular vectors [n, k].
        s: singular values [k], descending.
        vt: right singular vectors [k, d].
        keep: boolean [k], which directions count.
    """

    u: Array
    s: Array
    vt: Array
    keep: Array

    @property
    def kept_u(self) -> Array:
        """`u` with zeros for the directions that do not count."""
        return jnp.where(self.keep[None, :], self.u, 0)

    @property
    def kept_vt(self) -> Array:
        """`vt` with zeros for the directions that do not count."""
        return jnp.where(self.keep[:, None], self.vt, 0)


@one_by_one_on_cpu
def svd(a: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of a matrix; no derivative.

    On NVIDIA GPUs in float64: that of float32 there leaves vectors orthonormal to 4e-4 only.
    """
    return lax.platform_dependent(a, cpu=_svd_on_cpu, cuda=in_float64(_svd), default=_svd)


def _svd(a: Array) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vt


def _svd_on_cpu(a: Array) -> tuple[Array, Array, Array]:
    """By divide and conquer; by QR iteration where that does not converge.

    LAPACK's sgesdd now and then gives up (NaN) on clustered singular values.
    """

    def again() -> tuple[Array, Array, Array]:
        u, s, vt = lax.linalg.svd(a, full_matrices=False, algorithm=lax.linalg.SvdAlgorithm.QR)
        return u, s, vt

    found = _svd(a)
    failed = jnp.isnan(found[1][0]) & ~jnp.isnan(a[0, 0])
    return lax.cond(failed, again, lambda: found)


def spectral_factors(a: Array, rcond: Array | float | None = None) -> SpectralFactors:
    """Thin SVD of `a` with the directions that count, cut off from differentiation."""
    u, s, vt = svd(lax.stop_gradient(a))
    return lax.stop_gradient(SpectralFactors(u, s, vt, counts(s, rcond)))


def singular_values(a: Array) -> Array:
    """Singular values of `a`, descending, cut off from differentiation."""
    return spectral_factors(a).s


@one_by_one_on_cpu
def qr(a: Array) -> tuple[Array, Array]:
    """Thin QR of `a` [n, d], n >= d; no derivative."""
    q, r = jnp.linalg.qr(a)
    return q, r


def lq(a: Array) -> tuple[Array, Array]:
    """`a` [n, d], n <= d, as a lower triangle [n, n] and orthonormal rows [n, d]; no derivative."""
    q, r = qr(transpose(a))
    # As LAPACK leaves it in memory. XLA would transpose it, by code that is slow to compile.
    return transpose(r), lax.optimization_barrier(transpose(q))


@one_by_one_on_cpu
def cholesky(a: Array) -> Array:
    """Lower Cholesky factor of a symmetric matrix, NaN if it has none; no derivative."""
    return lax.linalg.cholesky(a, symmetrize_input=False)


@one_by_one_on_cpu
def eigh(a: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix; no derivative."""
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@one_by_one_on_cpu
def solve_upper(r: Array, b: Array) -> Array:
    """`r^-1 b` for an upper triangular `r`; no derivative."""
    return lax.linalg.triangular_solve(r, b, left_side=True)


@one_by_one_on_cpu
def solve_lower(r: Array, b: Array) -> Array:
    """`r^-1 b` for a lower triangular `r`; no derivative."""
    return lax.linalg.triangular_solve(r, b, left_side=True, lower=True)


def is_positive_definite(a: Array) -> Array:
    """Whether the symmetric matrix `a` has a Cholesky factor."""
    return jnp.isfinite(jnp.sum(jnp.diagonal(cholesky(a))))


@jax.custom_jvp
def replace_value(exact: Array, value: Array) -> Array:
    """`value` with the derivative of `exact`, which is the same by another algorithm."""
    del exact
    return value


@replace_value.defjvp
def _replace_value_jvp(primals, tangents):
    return replace_value(*primals), tangents[0]
