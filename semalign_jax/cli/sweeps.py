"""`semalign sweep`."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import metrics
from .._core.checks import counted
from .._core.files import format_header
from .._core.typing import Method
from ..data import patient_split
from ..studies import backend_settings, report, tables
from ..studies.doubts import no_draws
from ..studies.inputs import read_dataset
from ..sweeps.one_pair import SweepMethod, anchor_sweep
from ._console import Console, Outcome
from ._options import DATASET, command
from ._settings import SweepSettings, usual_options
from ._stores import MatchedStores, open_pair
from .maps import read_ids

FORMAT = "semalign_jax.sweep"
VERSION = 1


@command(
    SweepSettings,
    arguments=("source", "target"),
    spellings=DATASET,
    examples=(
        "semalign sweep stores/images stores/reports --anchors 100,400,1600 --seeds 5 "
        "--out results/sweep",
        "semalign sweep stores/images stores/reports --dataset mimic-cxr --path mimic-cxr-jpg "
        "--test-split test --out results/sweep",
    ),
)
def sweep(console: Console, settings: SweepSettings) -> Outcome:
    """Fit maps to more and more anchors and score them on held-out pairs.

    Scores are the retrieval of the matching row among the held-out ones (recall@1, both ways) and
    the mean cosine. Without a data set pairs are held out at random: rows of one patient may then
    be on both sides.
    """
    backend_settings.apply(quick_compile=True)

    started = time.monotonic()
    if settings.out is not None:
        report.prepare_directory(settings.out)
    pairs = open_pair(settings.source, settings.target)
    parts = _hold_out(settings, pairs.ids)
    largest = max(settings.anchors)
    if largest > len(parts.train):
        raise ValueError(
            f"--anchors {largest}: only {len(parts.train)} of {len(pairs)} matched pairs "
            "are left to draw from"
        )
    console.note(
        f"{counted(len(parts.train), 'pair')} to draw anchors from, {len(parts.test)} held out"
    )
    records = _records(settings, pairs, parts)
    rows = tables.summarize(records)
    values: dict[str, Any] = {
        **format_header(FORMAT, VERSION),
        "settings": settings.model_dump(mode="json"),
        "environment": report.environment(),
        "seconds": round(time.monotonic() - started, 3),
        "matched": len(pairs),
        "only_source": pairs.matched.only_a,
        "only_target": pairs.matched.only_b,
        "train": len(parts.train),
        "test": len(parts.test),
        "held_out_by": parts.by,
        "rows": rows,
        "records": records,
    }
    lines = [
        f"{counted(values['train'], 'pair')} to draw anchors from, {values['test']} held out by "
        f"{parts.by}; not matched: {counted(values['only_source'], 'id')} of the source, "
        f"{values['only_target']} of the target"
    ]
    lines += pairs.by_position
    if largest == len(parts.train) and settings.seeds > 1:
        lines.append(no_draws(largest))
    if settings.out is not None:
        replaced = (settings.out / "results.json").is_file()
        report.write_json(settings.out / "results.json", values)
        report.write_json(settings.out / "settings.json", values["settings"])
        tables.write_csv(settings.out / "summary.csv", rows)
        lines.append(f"written to {settings.out}: results.json, settings.json, summary.csv")
        lines[-1] += " (those that were there are replaced)" * replaced
    shown = {key: value for key, value in values.items() if key != "records"}
    return Outcome(shown, "\n".join(lines), tables.summary_tables(rows))


class _Parts(NamedTuple):
    """Positions among the matched pairs, and how they were parted."""

    train: np.ndarray
    test: np.ndarray
    by: str


def _hold_out(settings: SweepSettings, ids: list[str]) -> _Parts:
    positions = np.arange(len(ids))
    if settings.dataset is not None:
        data = read_dataset(settings.dataset)
        place = {key: row for row, key in enumerate(data.ids)}
        positions = np.array([row for row, key in enumerate(ids) if key in place], int)
        data = data.select([place[ids[row]] for row in positions])
        if settings.test_split is not None:
            test = np.array([split == settings.test_split for split in data.splits], bool)
            # Nobody of the held-out part may be among the anchors.
            held = set(data.select(test).patients)
            train = np.array([patient not in held for patient in data.patients], bool)
            by = f"the split {settings.test_split!r}"
        else:
            fractions = {"train": 1 - settings.test_fraction, "test": settings.test_fraction}
            split = patient_split(data.patients, fractions, settings.seed)
            test, by = np.isin(np.arange(len(data)), split.parts["test"]), "patient"
            train = ~test
    elif settings.test_ids is not None:
        wanted = read_ids(settings.test_ids)
        test, by = np.array([key in wanted for key in ids], bool), settings.test_ids.name
        train = ~test
    else:
        order = np.random.default_rng(settings.seed).permutation(len(ids))
        test, by = np.zeros(len(ids), bool), "pair, at random"
        test[order[: round(settings.test_fraction * len(ids))]] = True
        train = ~test
    train, held_out = positions[train], positions[test]
    if len(held_out) > settings.test_rows:
        draw = np.random.default_rng([settings.seed, 1])
        held_out = np.sort(draw.choice(held_out, settings.test_rows, replace=False))
    if len(held_out) < 2 or not len(train):
        raise ValueError(
            f"held out by {by}: {counted(len(held_out), 'pair is', 'pairs are')} held out and "
            f"{len(train)} left; at least 2 and 1 are needed"
        )
    return _Parts(train, held_out, by)


def _scores(mapping: Any, held_out: Any) -> dict[str, Any]:
    x, y = held_out
    mapped = mapping(x)
    ranks = metrics.retrieval_ranks(mapped, y)
    return {
        "recall@1": metrics.recall_at_k(ranks.x_to_y, 1),
        "recall@1 back": metrics.recall_at_k(ranks.y_to_x, 1),
        "mean cosine": metrics.mean_cosine(mapped, y),
    }


def _records(settings: SweepSettings, pairs: MatchedStores, parts: _Parts) -> list[dict[str, Any]]:
    def line(name: Method) -> SweepMethod:
        # The map that chooses for itself has no normalisation to set.
        normalize = None if name == "auto" else settings.normalize
        return SweepMethod(name, **usual_options(name, normalize))

    result = anchor_sweep(
        *pairs.select(parts.train).rows(),
        settings.anchors,
        jax.random.split(jax.random.key(settings.seed), settings.seeds),
        metrics={"scores": _scores},
        eval_data=pairs.select(parts.test).rows(),
        methods={name: line(name) for name in settings.methods},
    )
    pair = {
        "protocol": "held-out pairs",
        "source": pairs.source.folder.name,
        "target": pairs.target.folder.name,
    }
    scores = replace(result, values=result.values["scores"])
    return [pair | record for record in scores.to_records()]
