"""Progress of a long run: a bar in a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

_LINE_EVERY = 30.0  # seconds


class Progress:
    """Shows how many items are done, the rate and the time left; a context manager.

    Args:
        total: number of items.
        done: of these, done before the start (by an earlier run).
        show: False shows nothing.
        name: of what is done.
    """

    def __init__(self, total: int, done: int, show: bool, name: str = "embed"):
        self._name = name
        self._total = total
        self._before = self._done = done
        self._show = show
        self._start = self._last_line = time.monotonic()
        self._bar = _rich_bar(total, done, name) if show and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count further items."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=f"{rate:.1f}/s")
        elif self._show and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            left = (self._total - self._done) / rate
            amount = f"{self._done} of {self._total} items"
            line = f"{self._name}: {amount}, {rate:.1f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def _rich_bar(total: int, done: int, name: str):
    """Return a bar that is not started."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(name, total=total, completed=done, rate="")
    return bar
