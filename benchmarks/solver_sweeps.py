"""Scored anchor sweeps over many pairs of encoders, ours and the peers' ways of doing them.

A sweep fits a map at every anchor count for ordered pairs of encoders, maps the test embeddings
and scores them by the target's readout. Peers do so one fit after the other, as their users do.

As a script, which `solvers.py` runs once for each number of threads, it prints the times as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
import threadpoolctl

from semalign_jax import AffineMap, SweepMethod, sweep_pairs
from semalign_jax.metrics import predicted_classes
from semalign_jax.studies import backend_settings

COUNTS = (10, 25, 50, 100, 200, 400, 800, 1500, 3000, 5000)
TEST_ROWS = 3000
CLASSES = 100

#: Nothing is cut off, as peers of equal accuracy do it.
METHODS = {
    "ortho": SweepMethod("ortho"),
    "linear": SweepMethod("linear", rcond=0.0),
    "affine": SweepMethod("affine", rcond=0.0),
    "l-ortho": SweepMethod("l-ortho", rcond=0.0),
}


class Encoders(NamedTuple):
    """Embeddings of the same items by several encoders, and a readout of each space.

    Attributes:
        counts: anchor counts of the sweep.
        anchors: name -> [max(counts), d].
        test: name -> [test rows, d].
        readouts: name -> [d, CLASSES].
    """

    counts: tuple[int, ...]
    anchors: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    readouts: dict[str, np.ndarray]


def make_encoders(
    number: int, d: int, counts: tuple[int, ...] = COUNTS, test_rows: int = TEST_ROWS
) -> Encoders:
    """Noisy rotated views of common latents, with condition number 1e6, in float32."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((max(counts) + test_rows, d))
    spectrum = np.geomspace(1, 1e-6, d)
    found = Encoders(counts, {}, {}, {})
    for name in map(str, range(number)):
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        view = latent + 0.3 * rng.standard_normal(latent.shape)
        view = ((view * spectrum) @ rotation).astype(np.float32)
        found.anchors[name], found.test[name] = np.split(view, [max(counts)])
        found.readouts[name] = rng.standard_normal((d, CLASSES)).astype(np.float32)
    return found


class SweepTiming(NamedTuple):
    """One way to run a scored sweep, compiled and warm.

    Attributes:
        method: name of the map.
        solver: who.
        threads: how many threads it may use.
        milliseconds: median for one ordered pair with all its counts.
        ratio: its time over ours with as many threads; above 1 we are faster.
        error: of ortho the missing part of the objective, of l-ortho none is given, of the
            others the relative error of the anchors that are mapped in float32; against float64,
            the worst count.
        orthogonality: max |Q^T Q - I|, the worst count.
        megabytes: peak memory beyond what the process held before, encoders included in the
            latter (Linux).
    """

    method: str
    solver: str
    threads: int
    milliseconds: float
    ratio: float
    error: float | None
    orthogonality: float | None
    megabytes: float


def predicted(scores: jax.Array, _: None) -> jax.Array:
    """The metric of the sweep: predicted classes."""
    return predicted_classes(scores)


def the_scores(scores: jax.Array, _: None) -> jax.Array:
    """The metric that returns the scores themselves."""
    return scores


def run_ours(encoders: Encoders, method: str, *, workers: int = 1) -> Any:
    """All ordered pairs."""
    result = sweep_pairs(
        encoders.anchors,
        encoders.counts,
        orders=np.arange(max(encoders.counts))[None],
        readouts={name: AffineMap.from_weight(w) for name, w in encoders.readouts.items()},
        test=encoders.test,
        metrics={"class": predicted},
        methods={method: METHODS[method]},
        workers=workers,
    )
    return jax.block_until_ready(result.values)


def our_results(encoders: Encoders, method: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and mapped anchors of the first pair at every count.

    The readout is the identity; test rows are the identity, which gives the weight of a map
    without offset, and the anchors.
    """
    first = {name: encoders.anchors[name] for name in ("0", "1")}
    d = first["0"].shape[1]
    eye = np.eye(d, dtype=np.float32)
    result = sweep_pairs(
        first,
        encoders.counts,
        orders=np.arange(max(encoders.counts))[None],
        readouts={"1": AffineMap.from_weight(eye)},
        test={"0": np.concatenate([eye, first["0"]])},
        metrics={"scores": the_scores},
        methods={method: METHODS[method]},
        pairs=[("0", "1")],
    )
    scores = np.asarray(result.values["scores"])[0, 0, :, 0]
    return [(part[:d], part[d:][:n]) for n, part in zip(encoders.counts, scores, strict=True)]


def peer_results(encoders: Encoders, fit: "Fit") -> list[tuple[np.ndarray, np.ndarray]]:
    """The same of a peer."""
    results = []
    for n in encoders.counts:
        x, y = (encoders.anchors[name][:n] for name in ("0", "1"))
        weight, bias = fit(x, y)
        results.append((weight, x @ weight + bias))
    return results


Fit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | float]]


def peer_fits(method: str) -> dict[str, Fit]:
    """Name -> function `(x, y) -> (weight, bias)` of the peers that have this map."""
    if method == "ortho":
        fits: dict[str, Fit] = {
            "scipy": lambda x, y: (scipy.linalg.orthogonal_procrustes(x, y)[0], 0.0)
        }
    elif method == "linear":
        fits = {"numpy": lambda x, y: (np.linalg.lstsq(x, y, rcond=0.0)[0], 0.0)}
    elif method == "affine":
        from sklearn.linear_model import LinearRegression

        def scikit_learn(x, y):
            model = LinearRegression().fit(x, y)
            return model.coef_.T, model.intercept_

        fits = {"scikit-learn": scikit_learn}
    else:

        def numpy_l_ortho(x, y):
            u, _, vt = np.linalg.svd(np.linalg.lstsq(x, y, rcond=0.0)[0])
            return u @ vt, 0.0

        fits = {"numpy": numpy_l_ortho}
    return fits | _torch_fits(method)


def _torch_fits(method: str) -> dict[str, Fit]:
    """The same in PyTorch, in the way of the latentis library."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}

    def polar(m):
        u, _, v = torch.svd(m)
        return u @ v.T

    def fit(x, y):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        bias = 0.0
        if method == "ortho":
            weight = polar(x.T @ y)
        elif method == "affine":
            mean_x, mean_y = x.mean(0), y.mean(0)
            weight = torch.linalg.lstsq(x - mean_x, y - mean_y).solution
            bias = (mean_y - mean_x @ weight).numpy()
        else:
            weight = torch.linalg.lstsq(x, y).solution
            weight = polar(weight) if method == "l-ortho" else weight
        return weight.numpy(), bias

    return {"torch": fit}


def run_peer(encoders: Encoders, fit: Fit) -> list[np.ndarray]:
    """One ordered pair."""
    x, y, test = encoders.anchors["0"], encoders.anchors["1"], encoders.test["0"]
    predictions = []
    for n in encoders.counts:
        weight, bias = fit(x[:n], y[:n])
        predictions.append(np.argmax((test @ weight + bias) @ encoders.readouts["1"], axis=1))
    return predictions


def errors(
    encoders: Encoders, method: str, results: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float | None, float | None]:
    """Error and orthogonality error at every count; see `SweepTiming`."""
    worst_error = worst_orthogonality = 0.0
    for n, (weight, mapped) in zip(encoders.counts, results, strict=True):
        x, y = (encoders.anchors[name][:n].astype(np.float64) for name in ("0", "1"))
        weight = np.asarray(weight, np.float64)
        if method == "ortho":
            cross = x.T @ y
            best = np.linalg.svd(cross, compute_uv=False).sum()
            worst_error = max(worst_error, 1 - np.sum(weight * cross) / best)
        if method in ("ortho", "l-ortho"):
            gap = np.abs(weight.T @ weight - np.eye(len(weight))).max()
            worst_orthogonality = max(worst_orthogonality, gap)
            continue
        mean_x, mean_y = (a.mean(0) if method == "affine" else 0 * a[0] for a in (x, y))
        exact = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=1e-13)[0]
        # At the anchors: elsewhere few of them determine the map badly.
        expected = (x - mean_x) @ exact + mean_y
        error = np.linalg.norm(mapped - expected) / np.linalg.norm(expected)
        worst_error = max(worst_error, float(error))
    orthogonality = worst_orthogonality if method in ("ortho", "l-ortho") else None
    return None if method == "l-ortho" else worst_error, orthogonality


def sweep_timings(
    methods: Sequence[str], encoders: Encoders, threads: int, repeats: int = 3
) -> Iterator[SweepTiming]:
    """Time every way of running the sweep in this process, which has this number of threads."""
    number = len(encoders.anchors)
    for method in methods:
        results = our_results(encoders, method)
        run = partial(run_ours, encoders, method, workers=threads)
        seconds, memory = timed(run, repeats)
        own = seconds / (number * (number - 1))
        yield SweepTiming(
            method,
            "semalign_jax",
            threads,
            1e3 * own,
            1.0,
            *errors(encoders, method, results),
            memory,
        )
        for solver, fit in peer_fits(method).items():
            # We run pairs side by side, each with one BLAS thread; peers have one fit at a time.
            with threadpoolctl.threadpool_limits(threads, user_api="blas"):
                seconds, memory = timed(partial(run_peer, encoders, fit), repeats)
            yield SweepTiming(
                method,
                solver,
                threads,
                1e3 * seconds,
                seconds / own,
                *errors(encoders, method, peer_results(encoders, fit)),
                memory,
            )


def in_new_process(methods: Sequence[str], d: int, number: int, threads: int) -> list[SweepTiming]:
    """`sweep_timings` in a process that has this number of threads; it reports on stderr.

    Args:
        methods: names of maps.
        d: dimension of all encoders.
        number: of encoders.
        threads: of XLA, PyTorch and the peers' BLAS. XLA takes NPROC when it starts.
    """
    options = {"methods": methods, "dim": [d], "encoders": [number], "threads": [threads]}
    options |= {"counts": COUNTS, "test-rows": [TEST_ROWS]}
    words = [word for name, values in options.items() for word in (f"--{name}", *map(str, values))]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"NPROC": str(threads)},
    )
    return [SweepTiming(**row) for row in json.loads(done.stdout)]


def main() -> int:
    """Print the times of this process as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--encoders", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1, help="set NPROC to the same for XLA")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    options = parser.parse_args()
    backend_settings.apply(quick_compile=False)  # before JAX computes
    set_torch_threads(options.threads)
    encoders = make_encoders(
        options.encoders, options.dim, tuple(options.counts), options.test_rows
    )
    rows = []
    for row in sweep_timings(options.methods, encoders, options.threads):
        print(f"sweep {row.method} {row.solver} {row.threads}", file=sys.stderr)
        rows.append(row._asdict())
    print(json.dumps(rows))
    return 0


def set_torch_threads(threads: int) -> None:
    """Limit PyTorch, if there is one."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    torch.set_num_threads(threads)


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of `run` after a first call, and its peak memory in MB."""
    run()
    reset_peak()
    held = memory_megabytes("VmRSS")
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), memory_megabytes("VmHWM") - held


def reset_peak() -> None:
    """Forget the peak memory of this process so far, where the system can (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def memory_megabytes(field: str) -> float:
    """Memory of this process, now ("VmRSS") or at most since the last reset ("VmHWM").

    NaN where the system does not tell.
    """
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
    except OSError:
        return float("nan")


def floor_milliseconds(method: str, d: int, rate: float) -> float:
    """Operations of the best algorithm known to us over the machine's matrix product rate.

    For one ordered pair of a sweep over many encoders: what an encoder's pairs share is not
    counted, and an SVD counts 28/3 d^3 (bidiagonal form 8/3, two back-transformations 4, divide
    and conquer 8/3), half of it for either direction if both have the same polar factor.

    Args:
        method: name of the map.
        d: dimension.
        rate: measured matrix products, in operations a second.
    """
    small = [n for n in COUNTS if n < d]
    large = [n for n in COUNTS if n >= d]
    score = 2 * TEST_ROWS * d * CLASSES
    svds = sum(28 / 3 * n**3 for n in small) + len(large) * 28 / 3 * d**3
    read = sum(4 * n * d * CLASSES for n in small) + len(large) * 4 * d * d * CLASSES
    cross = 2 * max(COUNTS) * d * d
    if method == "ortho":
        operations = (svds + cross) / 2 + read + len(COUNTS) * score
    elif method == "l-ortho":
        operations = svds + cross + len(large) * 2 * d**3 + read + len(COUNTS) * score
    else:
        products = 2 * max(COUNTS) * d * CLASSES * 2
        operations = products + read + (len(large) + 1) * score
    return 1e3 * operations / rate


if __name__ == "__main__":
    sys.exit(main())
