"""How fast is the bootstrap of AUROC, next to a loop over scikit-learn in the same run?

Both compute the AUROC of every label in every resample; the resamples are the same, and so must
be the values. The time of ours includes drawing the resamples and the interval, but not
compilation, which is shown apart; that of scikit-learn is only of its calls, once a resample and
label, and once a resample for all labels (`average=None`). With --quick scikit-learn runs on
a part of the resamples, and its time is scaled up.

Examples:
    python benchmarks/metrics.py
    python benchmarks/metrics.py --docs docs/metrics-speed.md
    python benchmarks/metrics.py --quick
    python benchmarks/metrics.py --rows 500 --labels 5 --resamples 200 --out results
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import printing
import sklearn
from sklearn.metrics import roc_auc_score

from semalign_jax import metrics
from semalign_jax.metrics import intervals
from semalign_jax.studies import backend_settings, report

backend_settings.apply(quick_compile=False)  # before JAX computes

#: Resamples that scikit-learn runs on with --quick.
QUICK_RESAMPLES = 20


class Comparison(NamedTuple):
    """Bootstrap of the AUROC of several labels.

    Attributes:
        rows: number of rows.
        labels: number of labels.
        resamples: how many.
        milliseconds: ours, median of several runs, with drawing and intervals.
        first_call: ours with compilation, in milliseconds.
        loop: scikit-learn label by label, in milliseconds.
        loop_ratio: its time over ours.
        multi_label: scikit-learn with all labels a call, in milliseconds.
        multi_label_ratio: its time over ours.
        timed: resamples that scikit-learn was timed on; its times are scaled up to all.
        difference: largest absolute difference of any AUROC of these resamples.
    """

    rows: int
    labels: int
    resamples: int
    milliseconds: float
    first_call: float
    loop: float
    loop_ratio: float
    multi_label: float
    multi_label_ratio: float
    timed: int
    difference: float


def problem(rows: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True labels and scores with some ties [rows, labels]; the rarest label has 2 % positives."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, labels)) < np.geomspace(0.02, 0.4, labels)
    scores = rng.standard_normal((rows, labels)) + truth
    return truth, np.round(scores, 3).astype(np.float32)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and result."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - start), result


def compare(rows: int, labels: int, resamples: int, sample: int, repeats: int) -> Comparison:
    """Time one problem, scikit-learn on the first `sample` resamples."""
    truth, scores = problem(rows, labels)
    key = jax.random.key(0)

    def ours():
        ranking = metrics.rank_scores(truth, scores)
        return intervals.bootstrap(
            metrics.auroc_from_ranking, ranking, rows, key, resamples=resamples
        )

    first_call, _ = timed(ours)
    milliseconds = float(np.median([timed(ours)[0] for _ in range(repeats)]))

    weights = np.asarray(intervals.bootstrap_weights(key, rows, resamples)[:sample])
    drawn = [np.repeat(np.arange(rows), w.astype(int)) for w in weights]

    def each_label():
        return [[roc_auc_score(truth[i, k], scores[i, k]) for k in range(labels)] for i in drawn]

    loop, expected = timed(each_label)
    each: dict[str, Any] = {"average": None}  # its stub lacks None
    multi_label, _ = timed(lambda: [roc_auc_score(truth[i], scores[i], **each) for i in drawn])
    ranking = metrics.rank_scores(truth, scores)
    values = jax.lax.map(lambda w: metrics.auroc_from_ranking(ranking, w), weights, batch_size=128)
    scale = resamples / len(drawn)
    return Comparison(
        rows,
        labels,
        resamples,
        milliseconds,
        first_call,
        scale * loop,
        scale * loop / milliseconds,
        scale * multi_label,
        scale * multi_label / milliseconds,
        len(drawn),
        float(np.abs(np.asarray(values) - expected).max()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of ours")
    parser.add_argument(
        "--quick", action="store_true", help=f"scikit-learn on {QUICK_RESAMPLES} resamples only"
    )
    parser.add_argument("--out", type=Path, help="directory for metrics.json")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None:
            report.prepare_directory(options.out)
    except ValueError as error:
        print(f"metrics: error: {error}", file=sys.stderr)
        return 2
    sample = min(QUICK_RESAMPLES, options.resamples) if options.quick else options.resamples
    row = compare(options.rows, options.labels, options.resamples, sample, options.repeats)
    text = described(row, " ".join(sys.argv[1:] if arguments is None else arguments))
    print(text, end="")
    if options.docs is not None:
        printing.write_page(options.docs, "Speed of metrics", text)
    if options.out is not None:
        path = options.out / "metrics.json"
        report.write_json(path, {"bootstrap": row._asdict()} | report.environment())
    return 0


def described(row: Comparison, arguments: str) -> str:
    """The comparison in Markdown."""
    part = ""
    if row.timed < row.resamples:
        part = f" scikit-learn was timed on {row.timed} resamples, scaled to {row.resamples}."
    lines = [
        ["semalign_jax, compiled", row.milliseconds / 1e3, 1.0],
        ["semalign_jax, first call with compilation", row.first_call / 1e3, ""],
        ["scikit-learn, label by label", row.loop / 1e3, row.loop_ratio],
        ["scikit-learn, all labels a call", row.multi_label / 1e3, row.multi_label_ratio],
    ]
    cells = [[f"{c:.3g}" if isinstance(c, float) else c for c in line] for line in lines]
    head = [["bootstrap by", "seconds", "times ours"], ["---"] * 3]
    table = "\n".join(f"| {' | '.join(line)} |" for line in head + cells)
    command = f"python benchmarks/metrics.py {arguments}".strip()
    where = f"{report.environment()['processor']}, {os.cpu_count()} threads, float32"
    versions = f"jax {jax.__version__}, scikit-learn {sklearn.__version__}"
    return (
        f"Printed by `{command}`.\n\n"
        f"On {where}, {versions}.\n\n"
        f"## AUROC of {row.labels} labels, {row.rows} rows, {row.resamples} resamples\n\n"
        f"{table}\n\n"
        f"Ours with the drawing of resamples and the intervals.{part} The largest difference of "
        f"any AUROC of these resamples is {row.difference:.1e}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
