"""Scored anchor sweeps over many pairs of encoders, ours and the peers' ways of doing them.

A sweep fits a map at every anchor count for ordered pairs of encoders, maps the test embeddings
and scores them by the target's readout. Peers do so one fit after the other, as their users do.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from semalign_jax import AffineMap, SweepMethod, sweep_pairs

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
        anchors: name -> [max(COUNTS), d].
        test: name -> [TEST_ROWS, d].
        readouts: name -> [d, CLASSES].
    """

    anchors: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    readouts: dict[str, np.ndarray]


def make_encoders(number: int, d: int, *, condition: float = 1e6) -> Encoders:
    """Noisy rotated views of common latents, with condition number `condition`, in float32."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((max(COUNTS) + TEST_ROWS, d))
    spectrum = np.geomspace(1, 1 / condition, d)
    found = Encoders({}, {}, {})
    for name in map(str, range(number)):
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        view = latent + 0.3 * rng.standard_normal(latent.shape)
        view = ((view * spectrum) @ rotation).astype(np.float32)
        found.anchors[name], found.test[name] = np.split(view, [max(COUNTS)])
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
            others the relative error of the mapped test embeddings; against float64, the worst
            count.
        orthogonality: max |Q^T Q - I|, the worst count.
        megabytes: peak memory of the process in this measurement (Linux).
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
    return jnp.argmax(scores, axis=1)


def the_scores(scores: jax.Array, _: None) -> jax.Array:
    """The metric that returns the scores themselves."""
    return scores


def run_ours(encoders: Encoders, method: str, *, workers: int = 1) -> Any:
    """All ordered pairs."""
    result = sweep_pairs(
        encoders.anchors,
        COUNTS,
        orders=np.arange(max(COUNTS))[None],
        readouts={name: AffineMap.from_weight(w) for name, w in encoders.readouts.items()},
        test=encoders.test,
        metrics={"class": predicted},
        methods={method: METHODS[method]},
        workers=workers,
    )
    return jax.block_until_ready(result.values)


def our_maps(encoders: Encoders, method: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) of the first pair at every count: readout and test rows are the identity."""
    first = {name: encoders.anchors[name] for name in ("0", "1")}
    d = first["0"].shape[1]
    rows = np.concatenate([np.zeros((1, d), np.float32), np.eye(d, dtype=np.float32)])
    result = sweep_pairs(
        first,
        COUNTS,
        orders=np.arange(max(COUNTS))[None],
        readouts=dict.fromkeys(first, AffineMap.from_weight(np.eye(d, dtype=np.float32))),
        test=dict.fromkeys(first, rows),
        metrics={"scores": the_scores},
        methods={method: METHODS[method]},
        pairs=[("0", "1")],
    )
    scores = np.asarray(result.values["scores"], np.float64)[0, 0, :, 0]
    return [(part[1:] - part[:1], part[0]) for part in scores]


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
    for n in COUNTS:
        weight, bias = fit(x[:n], y[:n])
        predictions.append(np.argmax((test @ weight + bias) @ encoders.readouts["1"], axis=1))
    return predictions


def errors(
    encoders: Encoders, method: str, maps: list[tuple[Any, Any]]
) -> tuple[float | None, float | None]:
    """Error and orthogonality error of the maps at every count; see `SweepTiming`."""
    worst_error = worst_orthogonality = 0.0
    for n, (weight, bias) in zip(COUNTS, maps, strict=True):
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
        error = np.linalg.norm(x @ weight + bias - expected) / np.linalg.norm(expected)
        worst_error = max(worst_error, float(error))
    orthogonality = worst_orthogonality if method in ("ortho", "l-ortho") else None
    return None if method == "l-ortho" else worst_error, orthogonality


def sweep_timings(
    methods: tuple[str, ...], d: int, number: int, repeats: int, threads: int
) -> Iterator[SweepTiming]:
    """Time every way of running the sweep with this number of threads."""
    encoders = make_encoders(number, d)
    for method in methods:
        maps = our_maps(encoders, method)
        pairs = number * (number - 1)
        seconds, memory = timed(partial(run_ours, encoders, method, workers=threads), repeats)
        own = seconds / pairs
        yield SweepTiming(
            method,
            "semalign_jax",
            threads,
            1e3 * own,
            1.0,
            *errors(encoders, method, maps),
            memory,
        )
        for solver, fit in peer_fits(method).items():
            if threads > 1 and solver != "torch":
                continue  # BLAS has one thread in this process
            seconds, memory = timed(partial(run_peer, encoders, fit), repeats)
            maps = [fit(*(encoders.anchors[name][:n] for name in ("0", "1"))) for n in COUNTS]
            error, orthogonality = errors(encoders, method, maps)
            milliseconds = 1e3 * seconds
            yield SweepTiming(
                method, solver, threads, milliseconds, seconds / own, error, orthogonality, memory
            )


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of `run` after a first call, and the peak memory in MB."""
    reset_peak()
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), peak_megabytes()


def reset_peak() -> None:
    """Forget the peak memory of this process so far, where the system can (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_megabytes() -> float:
    """Peak memory of this process since the last reset; NaN where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
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
