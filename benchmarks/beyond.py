"""Maps beyond the paper's four, each in pairs with the best of these, on the shipped embeddings.

The protocols are those of `protocols.py`. Lines:

- four: the best of affine, linear, l-ortho and ortho at each count, by their mean on the test rows,
  which favours them;
- auto: `fit_auto`, from the anchors alone;
- auto, head known: the same, in stitching, with the head as `readout`;
- semi: `fit_semi`, with up to 600 rows of each side that nobody paired, none of them an anchor, a
  partner of one in the other pool, or a test row;
- medoids: `fit_auto` on anchors that `select_anchors` chose among the source rows.

All lines of one draw have the same anchors (but the medoids) and test rows, so differences are
paired: their mean and its standard error over draws.

Examples:
    python benchmarks/beyond.py --out results
    python benchmarks/beyond.py --quick
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import anchor_sweep as paper
import jax
import numpy as np
from protocols import PROTOCOLS, Pair, demo_pairs

from semalign_jax import fit_auto, fit_semi, plot
from semalign_jax.studies import report
from semalign_jax.studies.tables import Row
from semalign_jax.sweeps import select_anchors

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
DRAWS = 10
FOUR = ("affine", "linear", "l-ortho", "ortho")
LINES = ("auto", "auto, head known", "semi", "medoids")
#: Of each side at most; and up to so many anchors, or no rows are left for the pools.
UNPAIRED, MOST_WITH_POOLS = 600, 200
#: As many as are worth a choice by hand.
MOST_CHOSEN = 200


class Found(NamedTuple):
    """Scores of one pair of encoders.

    Attributes:
        pair: protocol, source and target.
        four: accuracy of the four maps [4, counts, draws].
        lines: accuracy of each other line [counts, draws]; NaN where it was not run.
    """

    pair: tuple[str, str, str]
    four: np.ndarray
    lines: dict[str, np.ndarray]


def run_pair(pair: Pair, counts: Sequence[int]) -> Found:
    """Score all lines on one pair."""
    started = time.perf_counter()
    counts = [count for count in counts if count <= pair.orders.shape[1]]
    draws = len(pair.orders)
    records = paper.run_pair(pair, counts, {name: paper.METHODS[name] for name in FOUR})
    four = np.full((len(FOUR), len(counts), draws), np.nan)
    for one in records:
        if one["method"] in FOUR and one["anchors"] is not None:
            place = FOUR.index(one["method"]), counts.index(one["anchors"]), one["seed"]
            four[place] = one["value"]
    task, _ = paper.stitching(pair) if pair.prompts is None else paper.zero_shot(pair)
    metric, data, axes = task
    score = jax.jit(metric)

    def of_draw(draw: int) -> dict[str, Any]:
        return {name: values[draw] if axes[name] == 0 else values for name, values in data.items()}

    lines = {name: np.full((len(counts), draws), np.nan) for name in LINES}
    for (c, count), draw in ((c, d) for c in enumerate(counts) for d in range(draws)):
        for name, fitted in _maps(pair, data.get("head"), pair.orders[draw], count, draw):
            lines[name][c, draw] = float(score(fitted, of_draw(draw)))
    seconds = time.perf_counter() - started
    print(f"{pair.protocol}: {pair.source} to {pair.target}, {seconds:.0f} s", file=sys.stderr)
    return Found((pair.protocol, pair.source, pair.target), four, lines)


def _maps(pair: Pair, head: Any, order: np.ndarray, count: int, draw: int):
    """The maps of one draw of anchors, by line."""
    x, y = pair.x[order[:count]], pair.y[order[:count]]
    yield "auto", fit_auto(x, y)[0]
    if head is not None:
        yield "auto, head known", fit_auto(x, y, readout=head)[0]
    if count <= MOST_WITH_POOLS:
        free = order[MOST_WITH_POOLS:]
        size = min(UNPAIRED, len(free) // 2)
        pools = pair.x[free[:size]], pair.y[free[size : 2 * size]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it takes the anchors alone
            yield "semi", fit_semi(x, y, *pools, key=jax.random.key(draw))[0]
    if count <= MOST_CHOSEN:
        chosen = order[np.asarray(select_anchors(pair.x[order], count, key=jax.random.key(draw)))]
        yield "medoids", fit_auto(pair.x[chosen], pair.y[chosen])[0]


def print_table(found: Sequence[Found], counts: Sequence[int]) -> None:
    """Print, for each pair, the best of the four and the paired differences to it, in points."""
    print("accuracy of the best of the four maps; below, points more or less ± standard error")
    for one in found:
        width = one.four.shape[1]
        best = one.four.mean(axis=2).argmax(axis=0)
        four = one.four[best, np.arange(width)]
        print(f"\n{one.pair[0]}: {one.pair[1]} to {one.pair[2]}")
        print(f"{'anchors':18}" + "".join(f"{count:>13}" for count in counts[:width]))
        print(f"{'best of the four':18}" + "".join(f"{value:13.3f}" for value in four.mean(axis=1)))
        for name, scores in one.lines.items():
            gains = 100 * (scores - four)
            if np.isnan(gains).all():
                continue
            errors = gains.std(axis=1, ddof=1) / np.sqrt(gains.shape[1])
            cells = (
                " " * 13 if np.isnan(mean) else f"{mean:+6.1f} ±{error:4.1f}".rjust(13)
                for mean, error in zip(gains.mean(axis=1), errors, strict=True)
            )
            print(f"{name:18}" + "".join(cells))
        print(f"{'  (which of four)':18}" + "".join(f"{FOUR[k]:>13}" for k in best))


def draw_figure(path: Path, found: Sequence[Found], counts: Sequence[int]) -> None:
    """Draw one panel a pair: mean accuracy against anchors, the four maps in grey."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    looks = {
        name: plot.Look("0.65", "-", marker) for name, marker in zip(FOUR, "os^D", strict=True)
    }
    shown = ("semi", "auto", "medoids")
    for name, color, marker in zip(shown, ("#0072B2", "#D55E00", "#009E73"), "vPX", strict=True):
        looks[name] = plot.Look(color, "-", marker)
    with rc_context({"font.size": 8, "lines.markersize": 3.5, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 6), layout="constrained")
        panels = figure.subplots(2, -(-len(found) // 2), sharex=True, squeeze=False).ravel()
        for panel, one in zip(panels, found, strict=False):
            four = dict(zip(FOUR, one.four, strict=True))
            means = {n: (four | one.lines)[n].mean(axis=1).tolist() for n in (*FOUR, *shown)}
            protocol, source, target = one.pair
            rows: list[Row] = [
                Row(protocol=protocol, source=source, target=target, method=method, anchors=count,
                    metric="accuracy", mean=mean, std=0.0, seeds=one.four.shape[2])
                for method, values in means.items()
                for count, mean in zip(counts, values, strict=False)
                if np.isfinite(mean)
            ]  # fmt: skip
            plot.anchor_curves(rows, looks=looks, legend=False, ax=panel)
            panel.set(title=f"{protocol}\n{source} to {target}", xlabel="", ylabel="")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(looks))
        figure.supxlabel("anchors")
        figure.supylabel("accuracy")
        figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="directory for results.json and beyond.png")
    parser.add_argument("--quick", action="store_true", help="two counts and two draws")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    options = parser.parse_args(arguments)
    counts, draws = ((20, 200), 2) if options.quick else (COUNTS, DRAWS)
    started = time.perf_counter()
    pairs = demo_pairs(options.protocols, draws, draws)
    os.environ.setdefault("NPROC", "1")  # XLA's threads in each
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        run: Callable[[Pair], Found] = partial(run_pair, counts=counts)
        found = list(pool.map(run, pairs))
    print_table(found, counts)
    if options.out is not None:
        report.prepare_directory(options.out)
        lines = {
            name: {k: v.tolist() for k, v in one.lines.items()}
            for one in found
            for name in [" ".join(one.pair)]
        }
        four = {" ".join(one.pair): one.four.tolist() for one in found}
        made = {"counts": counts, "draws": draws, "four": four, "lines": lines}
        report.write_json(options.out / "results.json", made | report.environment())
        draw_figure(options.out / "beyond.png", found, counts)
    print(f"\ndone in {time.perf_counter() - started:.0f} s on {report.environment()['processor']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
