"""How fast are linear heads, next to scikit-learn at the same loss in the same run?

Each problem is solved by `fit_head` at its default tolerance, and by scikit-learn at the loosest
tolerance (a power of ten) that comes as close to the least loss, to 1e-5 of it; of several
solvers the fastest counts. Where none comes that close, the closest is shown. Everything runs on
one thread, compiled and warm.

A problem is a data set, "cancer", "digits" or a shipped set of embeddings, or the size of a
drawn one, rows x dimensions x classes.

Examples:
    python benchmarks/heads.py
    python benchmarks/heads.py --docs docs/heads-speed.md
    python benchmarks/heads.py --problems 2000x384x10 digits --l2 0.01 --losses hinge
"""

import argparse
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import printing
import sklearn
import sklearn.datasets
import threadpoolctl
from scipy.linalg import LinAlgWarning
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from semalign_jax import fit_head
from semalign_jax.studies import backend_settings, report
from semalign_jax.studies.demo import load_demo

backend_settings.apply(quick_compile=False)  # before JAX computes

#: How far above the least loss, relatively, counts as there.
GOAL = 1e-5

#: Of scikit-learn.
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

#: "newton-cholesky" builds the Hessian of all classes: only up to this many rows of it.
LARGEST_HESSIAN = 1000

PROBLEMS = (
    "cancer",
    "digits",
    "emoji_dinov2_small",
    "glosses_minilm_l6",
    "300x768x10",
    "2000x384x2",
    "2000x384x10",
    "5000x384x100",
)

DEMO_LABELS = {"emoji_dinov2_small": "category", "glosses_minilm_l6": "supersense"}


class Problem(NamedTuple):
    """What is fitted.

    Attributes:
        x: features [n, d], float64.
        labels: classes [n], int32.
        classes: their number.
        loss: "multinomial", or "hinge" or "binary" of each class against the rest.
        l2: penalty.
    """

    x: np.ndarray
    labels: np.ndarray
    classes: int
    loss: Any
    l2: float

    @property
    def one_hot(self) -> np.ndarray:
        """The labels as booleans [n, classes]."""
        return self.labels[:, None] == np.arange(self.classes)

    def objective(self, weight: Any, bias: Any) -> float:
        """What `fit_head` minimises, in float64."""
        weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
        logits = self.x @ weight + bias
        squares = np.sum(weight**2)
        if self.loss == "multinomial":
            losses = -log_softmax(logits, axis=1)[self.one_hot]
        elif self.loss == "binary":
            losses = np.logaddexp(0, np.where(self.one_hot, -logits, logits))
        else:
            losses = np.maximum(0, 1 - np.where(self.one_hot, logits, -logits)) ** 2
            squares += np.sum(bias**2)
        return float(np.sum(losses) + self.l2 / 2 * squares)


class Comparison(NamedTuple):
    """One problem in one precision.

    Attributes:
        problem: its name.
        loss: see `Problem`.
        n: rows.
        d: dimensions.
        classes: their number.
        l2: penalty.
        dtype: of the features, and of the arithmetic.
        milliseconds: ours, median.
        scikit_learn: its milliseconds, median.
        ratio: its time over ours; above 1 we are faster.
        solver: of scikit-learn and its tolerance.
        difference: our loss minus its, relatively; negative where ours is better.
        above: our loss above the least one, relatively.
    """

    problem: str
    loss: str
    n: int
    d: int
    classes: int
    l2: float
    dtype: str
    milliseconds: float
    scikit_learn: float
    ratio: float
    solver: str
    difference: float
    above: float


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of a problem.

    Raises:
        ValueError: if there is none of this name.
    """
    if name == "cancer":
        x, labels = sklearn.datasets.load_breast_cancer(return_X_y=True)
    elif name == "digits":
        x, labels = sklearn.datasets.load_digits(return_X_y=True)
    elif name in DEMO_LABELS:
        demo = load_demo(name)
        x, labels = demo.values, demo.labels(DEMO_LABELS[name])[0]
    elif sizes := re.fullmatch(r"(\d+)x(\d+)x(\d+)", name):
        n, d, classes = map(int, sizes.groups())
        rng = np.random.default_rng(0)
        labels = np.arange(n) % classes
        # Overlapping classes in space whose directions differ in scale by a factor of 100.
        x = rng.standard_normal((n, d)) + rng.standard_normal((classes, d))[labels] / 4
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        x = (x * np.geomspace(1, 0.01, d)) @ rotation
    else:
        raise ValueError(
            f"--problems: no {name!r}; there are cancer, digits, {', '.join(DEMO_LABELS)} and "
            f"sizes like 2000x384x10"
        )
    return np.asarray(x, np.float64), np.asarray(labels, np.int32)


def timed(run: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds of several runs."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def peer(solver: str, tolerance: float, problem: Problem, x: np.ndarray) -> tuple[Any, Any]:
    """Weight [d, classes] and bias by scikit-learn."""
    classes, c = problem.classes, 1 / problem.l2
    options: dict[str, Any] = dict(tol=tolerance, max_iter=5000)
    if problem.loss == "hinge":
        options["dual"] = False
        model = LinearSVC(C=c, **options).fit(x, problem.labels)
    elif problem.loss == "binary":
        models = [
            LogisticRegression(C=c, solver=solver, **options).fit(x, column)
            for column in problem.one_hot.T
        ]
        return (
            np.concatenate([model.coef_ for model in models]).T,
            np.concatenate([model.intercept_ for model in models]),
        )
    else:
        c = 2 * c if classes == 2 else c  # one weight vector instead of two opposite ones
        model = LogisticRegression(C=c, solver=solver, **options).fit(x, problem.labels)
    weight, bias = model.coef_.T, model.intercept_
    if classes == 2:
        opposite = np.array([-1, 1]) / (2 if problem.loss == "multinomial" else 1)
        weight, bias = weight * opposite, bias * opposite
    return weight, bias


def compare(name: str, problem: Problem, dtype: str, seconds: float) -> Comparison:
    """Time one problem."""
    fit = partial(fit_head, loss=problem.loss, l2=problem.l2)
    labels = problem.one_hot if problem.loss == "binary" else problem.labels
    arguments = jnp.asarray(labels), problem.classes
    best = fit(jnp.asarray(problem.x), *arguments, tolerance=0.0, max_steps=5000)
    least = problem.objective(best.weight, best.bias)
    own = jnp.asarray(problem.x, dtype)
    head = fit(own, *arguments)
    value = problem.objective(head.weight, head.bias)
    ours = timed(lambda: jax.block_until_ready(fit(own, *arguments)), seconds)

    features = problem.x.astype(dtype)
    solvers = ["lbfgs"]
    columns = problem.classes if problem.loss == "multinomial" and problem.classes > 2 else 1
    if problem.loss == "hinge":
        solvers = ["LinearSVC"]
    elif problem.x.shape[1] * columns <= LARGEST_HESSIAN:
        solvers.append("newton-cholesky")
    found = []
    for solver in solvers:
        for tolerance in TOLERANCES:
            run = partial(peer, solver, tolerance, problem, features)
            reached = problem.objective(*run())
            if reached <= (1 + GOAL) * least or tolerance == TOLERANCES[-1]:
                # What is not close enough comes last.
                failed = 0.0 if reached <= (1 + GOAL) * least else reached
                found.append((failed, timed(run, seconds), f"{solver} {tolerance:g}", reached))
                break
    _, theirs, solver, reached = min(found)
    n, d = problem.x.shape
    return Comparison(
        name,
        problem.loss,
        n,
        d,
        problem.classes,
        problem.l2,
        dtype,
        ours,
        theirs,
        theirs / ours,
        solver,
        (value - reached) / reached,
        (value - least) / least,
    )


def comparisons(options: argparse.Namespace) -> Iterator[Comparison]:
    """Time all problems; that a solver of scikit-learn gave up shows in its loss."""
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        for name in options.problems:
            x, labels = data(name)
            for loss in options.losses:
                for l2 in options.l2:
                    problem = Problem(x, labels, int(labels.max()) + 1, loss, l2)
                    for dtype in options.dtypes:
                        yield compare(name, problem, dtype, options.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, help="data sets or sizes")
    parser.add_argument(
        "--losses",
        nargs="+",
        choices=("multinomial", "binary", "hinge"),
        default=("multinomial",),
    )
    parser.add_argument("--l2", type=float, nargs="+", default=(1e-2, 1.0), help="penalties")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "float64"), default=("float32", "float64")
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    try:
        for name in options.problems:
            data(name)
    except ValueError as error:
        print(f"heads: error: {error}", file=sys.stderr)
        return 2
    rows = []
    with jax.enable_x64(True):
        for row in comparisons(options):
            rows.append(row)
            print(
                f"{row.problem} {row.loss} {row.l2:g} {row.dtype}: {row.ratio:.3g}", file=sys.stderr
            )
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    where = f"{report.environment()['processor']}, one thread, OpenBLAS {printing.blas_kernels()}"
    text = (
        f"Printed by `{f'python benchmarks/heads.py {given}'.strip()}`.\n\n"
        f"On {where}, jax {jax.__version__}, scikit-learn {sklearn.__version__}. Both solve each "
        f"problem to {GOAL:g} of its least loss, if they can; scikit-learn at the loosest "
        f"tolerance that does, by its faster solver. `ratio` is its time over ours, `difference` "
        f"our loss minus its, `above` our loss above the least, both relative.\n\n"
        f"{printing.markdown(rows)}\n"
    )
    print(text, end="")
    if options.docs is not None:
        printing.write_page(options.docs, "Speed of heads", text)
    return 0


if __name__ == "__main__":
    # The kernels of this machine, for NumPy, which has loaded its BLAS already.
    if os.environ.pop("OPENBLAS_CORETYPE", None):
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # XLA takes its number of threads from here when it starts; its own flag has no effect.
    os.environ.setdefault("NPROC", "1")
    sys.exit(main())
