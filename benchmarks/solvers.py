"""How exact and how fast are the solvers, next to peers in the same run?

With --accuracy, a table of the float32 fits against float64 SciPy and NumPy over condition
numbers, scales, offsets and anchor counts; exit status 1 if a bound is missed. Without it, times:
single fits against SciPy, NumPy, scikit-learn, plain jax.numpy and, where installed, PyTorch and
qc-procrustes (the `parity` extra), everything on one thread, with the error of each; scored
sweeps over many pairs of encoders, on one and on two threads; and the time from a cold start to
the first map. With --batch, a vmapped batch of fits against a vmapped SVD on the default device.

Examples:
    python benchmarks/solvers.py --accuracy --docs docs/solver-accuracy.md
    python benchmarks/solvers.py --skip sweeps --docs docs/solver-speed.md
    python benchmarks/solvers.py --skip single cold --docs docs/solver-sweeps.md
    python benchmarks/solvers.py --dims 384 --counts 50 500 --skip sweeps cold --out results
    python benchmarks/solvers.py --large --docs docs/solver-large.md
    python benchmarks/solvers.py --batch 100
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import printing
import scipy.linalg
import solver_sweeps

from semalign_jax import fit, fit_linear, fit_ortho
from semalign_jax.studies import backend_settings, report

backend_settings.apply(quick_compile=False)  # before JAX computes

# --- data --------------------------------------------------------------------------------------


def correlated_anchors(
    n: int, d: int, *, condition: float, scale: float = 1.0, offset: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 anchors [n, d] of two noisy views whose covariances have condition `condition`^2."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, d))
    spectrum = np.geomspace(1, 1 / condition, d)
    sides = []
    for view in (latent, latent + 0.3 * rng.standard_normal((n, d))):
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        sides.append((scale * ((view * spectrum) @ rotation + offset)).astype(np.float32))
    return sides[0], sides[1]


# --- accuracy ----------------------------------------------------------------------------------

#: Bounds in float32. Orthogonality and objective hold for every case; predictions of the least
#: squares maps for conditions up to 1e6. The exact map, rounded to float32 and applied, may miss
#: that bound by itself: ours may then err by FLOORS times as much.
ORTHOGONALITY_BOUND = 5e-6
OBJECTIVE_BOUND = 1e-5
PREDICTION_BOUND = 1e-3
FLOORS = 1.5


class Accuracy(NamedTuple):
    """Errors of the four maps on one problem.

    Attributes:
        condition: of the anchors.
        scale: their unit.
        offset: their common offset in that unit.
        n: number of anchors.
        d: dimension of both spaces.
        orthogonality: max |Q^T Q - I| of ortho and l-ortho.
        objective: 1 - tr(Q^T M) / nuclear norm of M, of ortho; M = x^T y in float64.
        linear: relative error of the predictions at the anchors, linear with rcond=0.
        linear_floor: the same of the exact map rounded to float32 and applied in float32.
        affine: as `linear`, of affine.
        affine_floor: as `linear_floor`.
    """

    condition: float
    scale: float
    offset: float
    n: int
    d: int
    orthogonality: float
    objective: float
    linear: float
    linear_floor: float
    affine: float
    affine_floor: float

    @property
    def failures(self) -> list[str]:
        """The bounds that are missed."""
        missed = []
        if self.orthogonality > ORTHOGONALITY_BOUND:
            missed.append(f"orthogonality {self.orthogonality:.1e}")
        if self.objective > OBJECTIVE_BOUND:
            missed.append(f"objective {self.objective:.1e}")
        if self.condition <= 1e6:
            linear = "linear", self.linear, self.linear_floor
            affine = "affine", self.affine, self.affine_floor
            missed += [
                f"{name} {error:.1e}"
                for name, error, floor in (linear, affine)
                if not error <= max(PREDICTION_BOUND, FLOORS * floor)
            ]
        return missed


def accuracy_cases(d: int) -> Iterator[dict[str, Any]]:
    """Problems: every condition, scale, offset and count in turn, and the hard ones together."""
    plain = dict(n=4 * d, d=d, condition=1e2, scale=1.0, offset=0.0)
    for condition in (1.0, 1e2, 1e4, 1e6, 1e8):
        yield plain | dict(condition=condition)
    for scale in (1e-20, 1e-10, 1e10, 1e20):
        yield plain | dict(scale=scale)
    for n in sorted({1, 2, max(3, d // 4), d // 2, d - 1, d, d + 1, 2 * d, 10 * d}):
        yield plain | dict(n=n)
        yield plain | dict(n=n, offset=1e4)
    for n in (d // 2, 3 * d // 4, d - 1, d, d + 1, 9 * d // 8, 2 * d, 4 * d, 10 * d):
        yield plain | dict(n=n, condition=1e6)
    for n in (d // 2, 4 * d):
        yield plain | dict(n=n, condition=1e6, scale=1e-20)
        yield plain | dict(n=n, condition=1e6, scale=1e20)


def relative_error(got: Any, expected: np.ndarray) -> float:
    """||got - expected|| / ||expected|| in float64."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected))


def accuracy(case: dict[str, Any]) -> Accuracy:
    """Measure one problem in float32."""
    x, y = correlated_anchors(**case)
    center: dict[str, Any] = {"normalize": "center"} if case["offset"] else {}
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = wide_x.mean(0), wide_y.mean(0)
    centred_x, centred_y = wide_x - mean_x, wide_y - mean_y
    a, b = (centred_x, centred_y) if center else (wide_x, wide_y)

    orthogonality = objective = 0.0
    for method in ("ortho", "l-ortho"):
        weight = np.asarray(fit(method, x, y, **center).weight, np.float64)
        error = np.abs(weight.T @ weight - np.eye(case["d"])).max()
        orthogonality = max(orthogonality, float(error))
        if method == "ortho":
            matrix = a.T @ b
            best = np.sum(scipy.linalg.orthogonal_procrustes(a, b)[0] * matrix)
            objective = float(1 - np.sum(weight * matrix) / best) if best else 0.0

    # Untruncated on both sides; minimum norm where the anchors do not determine the map.
    linear = prediction_errors(fit_linear(x, y, rcond=0.0, **center)(x), a, b, wide_y)
    affine = prediction_errors(fit("affine", x, y, rcond=0.0)(x), centred_x, centred_y, wide_y)
    return Accuracy(
        **{key: case[key] for key in ("condition", "scale", "offset", "n", "d")},
        orthogonality=orthogonality,
        objective=max(objective, 0.0),
        linear=linear[0],
        linear_floor=linear[1],
        affine=affine[0],
        affine_floor=affine[1],
    )


def prediction_errors(
    predicted: Any, a: np.ndarray, b: np.ndarray, y: np.ndarray
) -> tuple[float, float]:
    """Relative error at the anchors, and that of the exact map rounded to float32.

    Args:
        predicted: targets [n, d] by the fitted map.
        a: source anchors as the exact map takes them, centred or not, float64 [n, d].
        b: target anchors, likewise.
        y: target anchors, not centred.
    """
    # Float32 anchors have nothing but rounding below 2 epsilons.
    exact = np.linalg.lstsq(a, b, rcond=2 * float(np.finfo(np.float32).eps))[0]
    mean = (y - b)[0]  # a constant, zero if not centred
    rounded = a.astype(np.float32) @ exact.astype(np.float32) + mean.astype(np.float32)
    expected = a @ exact + mean
    return relative_error(predicted, expected), relative_error(rounded, expected)


# --- speed -------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """One solver on one problem, compiled and warm.

    Attributes:
        method: "ortho" or "linear".
        n: number of anchors.
        d: dimension.
        solver: who.
        milliseconds: median.
        spread: half the distance between the quartiles, in per cent of the median.
        ratio: its time over ours; above 1 we are faster.
        error: of ortho the missing part of the objective, of linear the relative error of the
            predictions at the anchors; both against float64.
    """

    method: str
    n: int
    d: int
    solver: str
    milliseconds: float
    spread: float
    ratio: float
    error: float


def peers(method: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Name -> function `(x, y) -> weight` on float32 arrays of JAX or NumPy, ours first."""
    if method == "ortho":
        found: dict[str, Callable] = {"semalign_jax": lambda x, y: fit_ortho(x, y).weight}
        partial_map = partial(fit_ortho, completion="partial")
        found["semalign_jax, partial"] = lambda x, y: partial_map(x, y).weight
        # As peers do it: directions below rounding are left as they come.
        found["semalign_jax, rcond=0"] = lambda x, y: fit_ortho(x, y, rcond=0.0).weight
        found["scipy"] = lambda x, y: scipy.linalg.orthogonal_procrustes(x, y)[0]
        try:
            import procrustes  # pyright: ignore[reportMissingImports]
        except ImportError:
            pass
        else:
            found["qc-procrustes"] = lambda x, y: procrustes.orthogonal(x, y).t
        found["jax.numpy"] = _naive_ortho
    else:
        from sklearn.linear_model import LinearRegression

        found = {"semalign_jax": lambda x, y: fit_linear(x, y, rcond=0.0).weight}
        found["numpy"] = lambda x, y: np.linalg.lstsq(x, y, rcond=0.0)[0]
        found["numpy, normal equations"] = normal_equations
        found["scikit-learn"] = lambda x, y: LinearRegression(fit_intercept=False).fit(x, y).coef_.T
        found["jax.numpy"] = _naive_linear
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    torch.set_num_threads(1)

    def torch_ortho(x, y):
        u, _, vt = torch.linalg.svd(torch.from_numpy(x).T @ torch.from_numpy(y))
        return (u @ vt).numpy()

    def torch_linear(x, y):
        return torch.linalg.lstsq(torch.from_numpy(x), torch.from_numpy(y)).solution.numpy()

    found["torch"] = torch_ortho if method == "ortho" else torch_linear
    return found


def normal_equations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares in three lines of NumPy, in float64; no rank is looked at."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    if len(x) >= x.shape[1]:
        return np.linalg.solve(x.T @ x, x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T, y)


@jax.jit
def _naive_ortho(x, y):
    u, _, vt = jnp.linalg.svd(x.T @ y)
    return u @ vt


@jax.jit
def _naive_linear(x, y):
    return jnp.linalg.lstsq(x, y, rcond=0.0)[0]


def median_time(run: Callable[[], Any], seconds: float) -> tuple[float, float, Any]:
    """Median and relative half quartile distance of the time of `run`, and its result."""
    result = jax.block_until_ready(run())  # compiles
    times: list[float] = []
    while (
        len(times) < 2
        or (len(times) < 5 and sum(times) < 20 * seconds)
        or (len(times) < 30 and sum(times) < seconds)
    ):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    lower, median, upper = statistics.quantiles(times, n=4)
    return median, (upper - lower) / 2 / median, result


def timings(
    methods: Sequence[str], counts: Sequence[int], dims: Sequence[int], seconds: float
) -> Iterator[Timing]:
    """Time every peer on every problem."""
    for d in dims:
        for n in counts:
            x, y = correlated_anchors(n, d, condition=1e6)
            wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
            cross = wide_x.T @ wide_y
            nuclear = np.linalg.svd(cross, compute_uv=False).sum()
            predicted = wide_x @ np.linalg.lstsq(wide_x, wide_y, rcond=1e-14)[0]
            for method in methods:
                own = None
                for solver, run in peers(method).items():
                    # Everyone gets the arrays of their own library.
                    of_jax = solver.startswith(("semalign_jax", "jax"))
                    sides = (jnp.asarray(x), jnp.asarray(y)) if of_jax else (x, y)
                    median, spread, weight = median_time(partial(run, *sides), seconds)
                    weight = np.asarray(weight, np.float64)
                    if method == "ortho":
                        error = 1 - np.sum(weight * cross) / nuclear
                    else:
                        error = relative_error(wide_x @ weight, predicted)
                    own = median if own is None else own
                    yield Timing(
                        method, n, d, solver, 1e3 * median, 100 * spread, median / own, float(error)
                    )


class Large(NamedTuple):
    """One solver on one large problem, compiled and warm, run once.

    Attributes:
        method: "ortho" or "linear".
        n: number of anchors.
        d: dimension.
        solver: who.
        seconds: wall time.
        ratio: its time over ours; above 1 we are faster.
        difference: from ours: of ortho that of the objective, of linear that of the predictions,
            relatively.
    """

    method: str
    n: int
    d: int
    solver: str
    seconds: float
    ratio: float
    difference: float


def large_timings() -> Iterator[Large]:
    """Few anchors of many dimensions, and many anchors, next to SciPy and NumPy."""
    for method, n, solver in (
        ("ortho", 1000, "scipy"),
        ("linear", 20_000, "numpy, normal equations"),
    ):
        x, y = correlated_anchors(n, 4096, condition=1e4)
        sides = jnp.asarray(x), jnp.asarray(y)
        run = partial(fit, method, *sides)
        jax.block_until_ready(run())  # compiles
        start = time.perf_counter()
        own = np.asarray(jax.block_until_ready(run()).weight)
        middle = time.perf_counter()
        theirs = peers(method)[solver](x, y)
        end = time.perf_counter()
        ours, others = x @ own, x @ theirs.astype(np.float32)
        if method == "ortho":
            difference = float(1 - np.sum(ours * y) / np.sum(others * y))
        else:
            difference = relative_error(ours, others.astype(np.float64))
        del x, y, sides, ours, others
        yield Large(method, n, 4096, "semalign_jax", middle - start, 1.0, 0.0)
        yield Large(
            method, n, 4096, solver, end - middle, (end - middle) / (middle - start), difference
        )


class ColdStart(NamedTuple):
    """From the start of Python to the first map, ortho at n = 200, d = 768; or of an import.

    Attributes:
        solver: who.
        seconds: wall time.
        megabytes: peak memory, read from /proc (Linux).
    """

    solver: str
    seconds: float
    megabytes: float


_COLD = "import numpy as np; x, y = np.random.default_rng(0).standard_normal((2, 200, 768), 'f'); "
COLD_STARTS = {
    "semalign_jax": _COLD
    + "import semalign_jax as s; s.fit_ortho(x, y).weight.block_until_ready()",
    "jax.numpy": _COLD
    + "import jax, jax.numpy as j; u, _, v = jax.jit(lambda m: j.linalg.svd(m))(x.T @ y); "
    + "(u @ v).block_until_ready()",
    "scipy": _COLD + "import scipy.linalg as s; s.orthogonal_procrustes(x, y)",
    "import of jax.numpy": "import jax.numpy",
    "import of semalign_jax": "import jax.numpy, semalign_jax",
}


def cold_starts(repeats: int = 3) -> Iterator[ColdStart]:
    """Run each in a new process; the median of a few, after one that leaves bytecode behind.

    An installation has that from the start, a checkout may not.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for solver, code in COLD_STARTS.items():
        # Not getrusage, whose peak a new process inherits from its parent.
        code += "; print(*[l.split()[1] for l in open('/proc/self/status') if 'VmHWM' in l])"
        seconds, megabytes = [], []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                text=True,
                env=environment,
            )
            seconds.append(time.perf_counter() - start)
            megabytes.append(int(done.stdout) / 1024)
        yield ColdStart(solver, statistics.median(seconds[1:]), statistics.median(megabytes[1:]))


def matmul_rate(d: int = 1024) -> float:
    """Measured float32 matrix products of this machine, one thread, in operations a second."""
    a = jnp.ones((d, d), jnp.float32)
    return 2 * d**3 / median_time(lambda: _product(a, a), 0.5)[0]


@jax.jit
def _product(a, b):
    return jnp.matmul(a, b, precision="highest")


class Batch(NamedTuple):
    """A vmapped batch of orthogonal fits, n = 2 d, compiled and warm.

    Attributes:
        d: dimension.
        fits: how many at once.
        solver: who.
        compilation: seconds.
        milliseconds: median of the batch.
        ratio: its time over ours; above 1 we are faster.
        floors: its time over that of 50 matrix products of the same size and precision for
            each fit.
        orthogonality: max |Q^T Q - I|.
        objective: the missing part of the objective, of the first fit.
    """

    d: int
    fits: int
    solver: str
    compilation: float
    milliseconds: float
    ratio: float
    floors: float
    orthogonality: float
    objective: float


def batch_of_anchors(fits: int, n: int, d: int, condition: float) -> tuple[jax.Array, jax.Array]:
    """As `correlated_anchors`, [fits, n, d] each, drawn on the default device."""
    rng = np.random.default_rng(0)
    spectrum = np.geomspace(1, 1 / condition, d)[:, None]
    first, second = (
        jnp.asarray(spectrum * np.linalg.qr(rng.standard_normal((d, d)))[0], jnp.float32)
        for _ in range(2)
    )
    latent, noise = jax.random.normal(jax.random.key(0), (2, fits, n, d), jnp.float32)
    return _product(latent, first), _product(latent + 0.3 * noise, second)


def batch_timings(fits: int, dims: Sequence[int], seconds: float) -> Iterator[Batch]:
    """Time a batch on the default device."""
    for d in dims:
        x, y = batch_of_anchors(fits, 2 * d, d, condition=1e3)
        cross = np.asarray(x[0], np.float64).T @ np.asarray(y[0], np.float64)
        nuclear = np.linalg.svd(cross, compute_uv=False).sum()
        square = x[:, :d]
        floor = 50 * median_time(partial(_product, square, square), seconds)[0]
        own = None
        for solver, fit_one in (
            ("semalign_jax", lambda x, y: fit_ortho(x, y).weight),
            ("jax.numpy", _naive_ortho),
        ):
            start = time.perf_counter()
            many = jax.jit(jax.vmap(fit_one)).lower(x, y).compile()
            compilation = time.perf_counter() - start
            median, _, weight = median_time(partial(many, x, y), seconds)
            own = median if own is None else own
            objective = 1 - np.sum(np.asarray(weight[0], np.float64) * cross) / nuclear
            with jax.enable_x64(True):
                weight = weight.astype(np.float64)
                gap = jnp.swapaxes(weight, 1, 2) @ weight - jnp.eye(d, dtype=weight.dtype)[None]
                error = jnp.max(jnp.abs(gap))
            times = compilation, 1e3 * median, median / own, median / floor
            yield Batch(d, fits, solver, *times, float(error), float(objective))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--accuracy", action="store_true", help="errors, not times")
    parser.add_argument("--large", action="store_true", help="4,096 dimensions, some minutes")
    parser.add_argument("--batch", type=int, metavar="FITS", help="a vmapped batch of fits")
    parser.add_argument("--dims", type=int, nargs="+", default=None, help="dimensions")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=(50, 200, 768, 2000, 5000), help="anchor counts"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=("ortho", "linear", "affine", "l-ortho"),
        default=("ortho", "linear", "affine", "l-ortho"),
        help="of the sweeps; single fits are those of ortho and linear",
    )
    parser.add_argument(
        "--skip", nargs="+", choices=("single", "sweeps", "cold"), default=(), help="parts"
    )
    parser.add_argument("--encoders", type=int, default=6, help="in a sweep over pairs")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--out", type=Path, help="directory for the results as JSON")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None:
            report.prepare_directory(options.out)
        if options.encoders < 2:
            raise ValueError(f"--encoders must be at least 2; got {options.encoders}")
    except ValueError as error:
        print(f"solvers: error: {error}", file=sys.stderr)
        return 2
    text = io.StringIO()

    def say(*parts: Any) -> None:
        print(*parts)
        print(*parts, file=text)

    arguments = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/solvers.py", *arguments])
    device = jax.devices()[0]
    where = report.environment()["processor"] if device.platform == "cpu" else device.device_kind
    say(f"Printed by `{command}`.\n")
    say(f"On {where}, jax {jax.__version__}, float32, one thread if not said otherwise.\n")
    say(f"OpenBLAS: {printing.blas_kernels()} (OPENBLAS_CORETYPE is not set).\n")
    if options.accuracy:
        run, title = _accuracy, "Accuracy of the solvers"
    elif options.batch:
        run, title = _batch, "Speed of batches of fits"
    elif options.large:
        run, title = _large, "Speed of fits in 4,096 dimensions"
    else:
        single = "single" not in options.skip
        title = "Speed of single fits" if single else "Speed of sweeps over pairs"
        run = _speed
    status = run(options, say)
    if options.docs is not None:
        printing.write_page(options.docs, title, text.getvalue())
    return status


def _accuracy(options: argparse.Namespace, say: Callable[..., None]) -> int:
    rows = [accuracy(case) for d in options.dims or (64, 256) for case in accuracy_cases(d)]
    say(printing.markdown(rows))
    _write(options.out, "accuracy.json", {"accuracy": rows})
    failed = [(row, row.failures) for row in rows if row.failures]
    for row, missed in failed:
        print(f"missed at {row[:5]}: {', '.join(missed)}", file=sys.stderr)
    return 1 if failed else 0


def _batch(options: argparse.Namespace, say: Callable[..., None]) -> int:
    rows = []
    for row in batch_timings(options.batch, options.dims or (768,), options.seconds):
        rows.append(row)
        print(f"{row.solver} d={row.d}: {row.milliseconds:.3g} ms", file=sys.stderr)
    say(printing.markdown(rows))
    _write(options.out, "batch.json", {"batch": rows})
    return 0


def _large(options: argparse.Namespace, say: Callable[..., None]) -> int:
    rows = list(large_timings())
    say(printing.markdown(rows))
    _write(options.out, "large.json", {"large": rows})
    return 0


def _speed(options: argparse.Namespace, say: Callable[..., None]) -> int:
    dims = options.dims or (384, 768, 1024)
    rate = matmul_rate()
    tables: dict[str, Sequence[Any]] = {}
    say(f"Matrix products of jax.numpy run at {rate / 1e9:.0f} Gflop/s.\n")
    if "single" not in options.skip:
        rows: list[Any] = []
        tables["timings"] = rows
        single = [method for method in options.methods if method in ("ortho", "linear")]
        for row in timings(single, options.counts, dims, options.seconds):
            rows.append(row)
            print(f"{row.method} n={row.n} d={row.d} {row.solver}", file=sys.stderr)
        say("## Single fits\n")
        say(printing.markdown(rows), "\n")
    if "sweeps" not in options.skip:
        rows = []
        tables["sweeps"] = rows
        d = 768 if 768 in dims else dims[0]
        for threads in (1, 2):
            rows += solver_sweeps.in_new_process(options.methods, d, options.encoders, threads)
        say(f"## Scored sweeps, {options.encoders} encoders, all ordered pairs, d = {d}\n")
        say(printing.markdown(rows), "\n")
        for method in options.methods:
            floor = solver_sweeps.floor_milliseconds(method, d, rate)
            own = next(row.milliseconds for row in rows if row.method == method)
            say(f"- {method}: floor {floor:.0f} ms, {own / floor:.1f} times that are taken.")
        say()
    if "cold" not in options.skip:
        tables["cold_starts"] = list(cold_starts())
        say("## From a cold start to the first map\n")
        say(printing.markdown(tables["cold_starts"]))
    _write(options.out, "solvers.json", tables, matmul_rate=rate)
    return 0


def _write(out: Path | None, name: str, tables: dict[str, Sequence[Any]], **more: Any) -> None:
    if out is not None:
        lists = {key: [row._asdict() for row in rows] for key, rows in tables.items()}
        report.write_json(out / name, lists | more | report.environment())


if __name__ == "__main__":
    # The kernels of this machine, for NumPy, which has loaded its BLAS already.
    if os.environ.pop("OPENBLAS_CORETYPE", None):
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # XLA takes its number of threads from here when it starts; its own flag has no effect.
    os.environ.setdefault("NPROC", "1")
    sys.exit(main())
