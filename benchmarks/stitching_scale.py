"""What does stitching all encoders with all others cost, and what takes the time?

Every encoder's head reads every other encoder through maps of several methods, anchor counts and
seeds, between the naive and the own embeddings and with a shuffled control, by
`evaluate_stitching_pairs`. Embeddings are made up, views of common latents; only cost is measured.

The stages add up to the whole time. "compilation" is XLA's, taken out of the others. "preparation"
is what an encoder's pairs share, estimated as the wait for the first pair of a seed beyond the
time of the others. Each method is also timed alone, compiled, on three encoders and one seed.

Examples:
    python benchmarks/stitching_scale.py --out results
    python benchmarks/stitching_scale.py --encoders 3 --counts 10 50 200 --seeds 2 --dim 128
    python benchmarks/stitching_scale.py --loss multinomial --metrics accuracy macro_f1
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import printing
from solver_sweeps import COUNTS, memory_megabytes, reset_peak

from semalign_jax.metrics.by_name import HEAD_METRICS
from semalign_jax.stitching import StitchingMatrix, evaluate_stitching_pairs
from semalign_jax.stitching.training_data import LOSSES
from semalign_jax.studies import backend_settings, report

backend_settings.apply(quick_compile=False)  # before JAX computes

#: What JAX calls the time of XLA.
COMPILATION = "/jax/core/compile/backend_compile_duration"
METHODS = ("affine", "linear", "l-ortho", "ortho")


class Task(NamedTuple):
    """Embeddings of the same items by several encoders, and their labels.

    Attributes:
        train: name -> [n, d], float32.
        labels: classes [n], or booleans [n, labels].
        test: name -> [t, d].
        test_labels: like `labels`.
    """

    train: dict[str, np.ndarray]
    labels: np.ndarray
    test: dict[str, np.ndarray]
    test_labels: np.ndarray


def make_task(encoders: int, d: int, rows: int, test_rows: int, labels: int, loss: str) -> Task:
    """Noisy rotated views of common latents, which the labels depend on."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((rows + test_rows, d))
    scores = latent @ rng.standard_normal((d, labels)) / np.sqrt(d)
    scores = scores + 0.5 * rng.standard_normal(scores.shape)
    truth = scores > 0.7 if loss == "binary" else np.argmax(scores, axis=1).astype(np.int32)
    spectrum = np.geomspace(1, 1e-2, d)
    task = Task({}, truth[:rows], {}, truth[rows:])
    for number in range(encoders):
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        view = latent + 0.3 * rng.standard_normal(latent.shape)
        view = ((view * spectrum) @ rotation).astype(np.float32)
        name = f"encoder {number}"
        task.train[name], task.test[name] = np.split(view, [rows])
    return task


class Run(NamedTuple):
    """One evaluation.

    Attributes:
        result: all scores.
        seconds: of each stage.
        total: seconds in all.
    """

    result: StitchingMatrix
    seconds: dict[str, float]
    total: float


def run(
    task: Task, options: argparse.Namespace, methods: Sequence[str], seeds: int, **more: Any
) -> Run:
    """Evaluate and take the times from the calls of `progress`."""
    stamps: list[tuple[str, float]] = []
    compiling = 0.0
    show = Progress()

    def compiled(event: str, duration_secs: float, **kwargs: Any) -> None:
        nonlocal compiling
        del kwargs
        if event == COMPILATION:
            compiling += duration_secs

    def clock() -> float:
        return time.perf_counter() - compiling

    def progress(stage: str, done: int, total: int) -> None:
        stamps.append((stage, clock()))
        show(stage, done, total)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    start = clock()
    result = evaluate_stitching_pairs(
        task.train,
        task.labels,
        task.test,
        task.test_labels,
        options.labels,
        options.counts,
        jax.random.split(jax.random.key(0), seeds),
        loss=options.loss,
        metrics=options.metrics,
        methods=dict(zip(methods, methods, strict=True)),
        control=options.control,
        max_encoders=options.max_encoders,
        workers=options.workers,
        progress=progress,
        **more,
    )
    jax.block_until_ready(result)
    end = clock()
    jax.monitoring.unregister_event_duration_listener(compiled)
    seconds = stages(start, stamps, end, seeds) | {"compilation": compiling}
    return Run(result, seconds, end + compiling - start)


def stages(
    start: float, stamps: Sequence[tuple[str, float]], end: float, seeds: int
) -> dict[str, float]:
    """Seconds of each stage, see the top of this file.

    Args:
        start: time of the start, on a clock that stands still during compilation.
        stamps: stage and time of every call of `progress`.
        end: time of the end.
        seeds: how many.
    """
    seconds, before = {}, start
    for stage in ("heads", "references"):
        times = [at for name, at in stamps if name == stage]
        if times:
            seconds[stage], before = times[-1] - before, times[-1]
    of_pairs = np.reshape([at for name, at in stamps if name == "pairs"], (seeds, -1))
    seconds["preparation"] = 0.0
    for times in of_pairs:
        # One call for both directions of a pair.
        others = len(times) - 1
        if others:  # else nothing tells the two apart
            each = (times[-1] - times[0]) / others
            seconds["preparation"] += max(times[0] - before - each, 0.0)
        before = times[-1]
    first = stamps[-1 - of_pairs.size][1]  # of the references
    seconds["pairs"] = before - first - seconds["preparation"]
    seconds["collecting"] = end - before
    return seconds


class Progress:
    """Lines on stderr, at most one a second."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        now = time.perf_counter()
        if done == total or now - self.last > 1:
            self.last = now
            print(f"{stage}: {done} of {total}", file=sys.stderr)


def time_methods(task: Task, options: argparse.Namespace, heads: Any) -> dict[str, float]:
    """Milliseconds of an ordered pair with all its counts, by method, compiled."""
    names = list(task.train)[:3]
    few = task._replace(
        train={name: task.train[name] for name in names},
        test={name: task.test[name] for name in names},
    )
    heads = {name: heads[name] for name in names}
    found = {}
    for method in options.methods:
        for _ in range(2):  # the first one compiles
            seconds = run(few, options, [method], 1, heads=heads).seconds
        pairs = len(names) * (len(names) - 1) * (1 + options.control)
        found[method] = 1e3 * seconds["pairs"] / pairs
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three digits."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def mean_scores(result: StitchingMatrix, metric: str) -> list[list[Any]]:
    """Rows of method, aligned and shuffled score at the largest count, mean over all pairs."""
    largest = int(np.argmax(result.counts))
    off_diagonal = ~np.eye(len(result.names), dtype=bool)

    def mean(field: Any, index: Any) -> Any:
        return float(np.nanmean(np.asarray(field[metric].value)[off_diagonal][index]))

    rows: list[list[Any]] = [["naive", mean(result.naive, ()), ""]]
    for number, method in enumerate(result.methods):
        index = (slice(None), number, largest)
        control = "" if result.shuffled is None else mean(result.shuffled, index)
        rows.append([method, mean(result.aligned, index), control])
    upper = np.asarray(result.upper_bound[metric].value)
    return [*rows, ["upper bound", float(np.nanmean(upper)), ""]]


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        ValueError: for options that do not fit together.
    """
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoders", type=int, default=12)
    parser.add_argument("--dim", type=int, default=768, help="of every encoder")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of anchors")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--train-rows", type=int, default=5000)
    parser.add_argument("--test-rows", type=int, default=3000)
    parser.add_argument("--labels", type=int, default=14, help="labels or classes")
    parser.add_argument("--loss", choices=LOSSES, default="binary")
    parser.add_argument("--metrics", nargs="+", choices=HEAD_METRICS, default=("auroc",))
    parser.add_argument(
        "--no-control", dest="control", action="store_false", help="no shuffled anchors"
    )
    parser.add_argument("--workers", type=int, default=1, help="pairs at once")
    parser.add_argument("--max-encoders", type=int, help="prepared at once; bounds the memory")
    parser.add_argument("--out", type=Path, help="directory for stitching_scale.json")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    for name, least in (
        ("encoders", 2),
        ("dim", 1),
        ("seeds", 1),
        ("test_rows", 1),
        ("labels", 2),
    ):
        if getattr(options, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be at least {least}; got {getattr(options, name)}")
    if max(options.counts) > options.train_rows:
        raise ValueError(
            f"--counts has {max(options.counts)}, but --train-rows is {options.train_rows}"
        )
    if options.out is not None:
        report.prepare_directory(options.out)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    text = io.StringIO()

    def say(*parts: Any) -> None:
        print(*parts)
        print(*parts, file=text)

    try:
        options = arguments_of(arguments)
        measure(options, list(sys.argv[1:] if arguments is None else arguments), say)
        if options.docs is not None:
            printing.write_page(options.docs, "A stitching study of 12 encoders", text.getvalue())
    except ValueError as error:
        print(f"stitching_scale: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(
    options: argparse.Namespace, arguments: Sequence[str], say: Callable[..., None]
) -> None:
    """Run everything, print tables and write the JSON file."""
    start = time.perf_counter()
    task = make_task(
        options.encoders,
        options.dim,
        options.train_rows,
        options.test_rows,
        options.labels,
        options.loss,
    )
    seconds = {"embeddings": time.perf_counter() - start}
    reset_peak()
    held = memory_megabytes("VmRSS")
    full = run(task, options, options.methods, options.seeds)
    seconds |= full.seconds
    peak = memory_megabytes("VmHWM")
    alone = time_methods(task, options, full.result.heads)

    command = " ".join(["python benchmarks/stitching_scale.py", *arguments])
    pairs = options.encoders * (options.encoders - 1)
    environment = report.environment()
    say(f"Printed by `{command}`.\n")
    say("Embeddings are made up, noisy views of common latents: only cost is measured.\n")
    say(
        f"On {environment['processor']}, jax {jax.__version__}, float32, {options.workers} at once."
    )
    say(
        f"\n## {options.encoders} encoders, {pairs} ordered pairs, d = {options.dim}, "
        f"{len(options.methods)} methods, {len(options.counts)} counts, {options.seeds} seeds\n"
    )
    control = ", each with its shuffled control" if options.control else ""
    cells = pairs * len(options.methods) * len(options.counts) * options.seeds
    say(
        f"{cells} fits{control}, {options.test_rows} test rows: {full.total:.1f} s. Peak memory "
        f"{peak:.0f} MB, {held:.0f} MB of it held before.\n"
    )
    total = sum(seconds.values())
    rows = [[name, value, 100 * value / total] for name, value in seconds.items()]
    say(table(["stage", "seconds", "% of all"], rows))
    say("\nEach method alone, one ordered pair with all counts:\n")
    whole = sum(alone.values())
    rows = [[name, value, 100 * value / whole] for name, value in alone.items()]
    say(table(["method", "milliseconds", "% of all"], rows))
    converged = sum(bool(info.converged) for info in full.result.head_info.values())
    say(f"\n{converged} of {options.encoders} heads converged. At {max(options.counts)} anchors:\n")
    scores = {metric: mean_scores(full.result, metric) for metric in options.metrics}
    for metric, rows in scores.items():
        say(table([metric, "aligned", "shuffled"], rows))
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        content = {
            "settings": settings | {"docs": None if options.docs is None else options.docs.name},
            "seconds": seconds,
            "total_seconds": full.total,
            "peak_megabytes": peak,
            "held_megabytes": held,
            "milliseconds_alone": alone,
            "scores": scores,
        }
        report.write_json(options.out / "stitching_scale.json", content | environment)


if __name__ == "__main__":
    sys.exit(main())
