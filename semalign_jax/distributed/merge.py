"""Statistics of anchors merged across processes, and the rows of each."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np

from .._core import checks
from ..maps.stats import PairStats, accumulate, chan_merge, require_anchors
from .processes import Section, jointly, this_process


def shard_rows(rows: int, index: int | None = None, count: int | None = None) -> range:
    """Return the rows of one process: consecutive, of all processes about as many.

    Args:
        rows: number of rows of all processes.
        index: of the process; by default this one.
        count: number of processes; by default all.

    Raises:
        TypeError: if an argument is not an int.
        ValueError: if one is out of range.
    """
    own = this_process()
    return checks.shard_rows(
        rows if rows == 0 else checks.positive_int("rows", rows),
        own[0] if index is None else index,
        own[1] if count is None else count,
    )


def accumulate_stats(
    batches: Iterable[tuple[Any, ...]], *, progress: Callable[[int], None] | None = None
) -> PairStats:
    """Statistics of the anchors of all processes; see `semalign_jax.accumulate_stats`.

    Args:
        batches: of this process, from its rows; a process may have none.
        progress: called after every batch with the number of rows done so far in this process.

    Returns:
        `PairStats` of float64 NumPy arrays, equal to the bit in all processes.

    Raises:
        TypeError: for anchors that are not floating point.
        ValueError: as `semalign_jax.accumulate_stats`; a row has its number in this process.
        OtherProcessError: if another process is gone or has failed; says why, and which failed.
    """
    with jointly("accumulate_stats") as section:
        return require_anchors(_merged(accumulate(batches, progress), section))


def merge_across_processes(stats: PairStats | None) -> PairStats:
    """Merge the statistics of all processes.

    Their float64 bits travel as integers through JAX's collectives, so that nothing is lost where
    JAX computes in float32, and each process merges them in the same order.

    Args:
        stats: of this process's anchors, or None if it has none.

    Returns:
        `PairStats` of float64 NumPy arrays, equal to the bit in all processes.

    Raises:
        ValueError: if the dimensions differ between processes, or no process has anchors.
        OtherProcessError: if another process is gone or has failed; says why, and which failed.
    """
    with jointly("merge_across_processes") as section:
        return require_anchors(_merged(stats, section))


def _merged(stats: PairStats | None, section: Section) -> PairStats | None:
    shapes = section.exchange(None if stats is None else list(np.shape(stats.cxy)))
    holders = [process for process, shape in enumerate(shapes) if shape is not None]
    if not holders:
        return None
    d_in, d_out = shapes[holders[0]]
    for process in holders:
        if shapes[process] != [d_in, d_out]:
            raise ValueError(
                f"stats must have the same dimensions in all processes; process {holders[0]} has "
                f"{d_in} and {d_out}, process {process} has {shapes[process]}"
            )
    fields = [(), (), (d_in,), (d_out,), (d_in, d_in), (d_in, d_out), (d_out,)]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in fields])
    flat = np.zeros(ends[-1])
    if stats is not None:
        flat = np.concatenate([np.ravel(np.asarray(field, np.float64)) for field in stats])
    merged: PairStats | None = None
    for process in holders:
        parts = np.split(section.broadcast(flat, process), ends[:-1])
        arrays = [part.reshape(shape) for part, shape in zip(parts, fields, strict=True)]
        # NumPy arrays stand in for JAX arrays.
        one = PairStats(*(cast(Any, array) for array in arrays))
        merged = one if merged is None else chan_merge(merged, one)
    return merged
