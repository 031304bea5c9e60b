"""Progress of a long run, on stderr: a bar in a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

_LINE_EVERY = 30.0  # seconds


class Progress:
    """Shows how many items are done, the rate and the time left; a context manager.

    Args:
        name: of what is done.
        total: number of items.
        done: of these, done before the start, by an earlier run.
        show: False shows nothing.
    """

    def __init__(self, name: str, total: int, done: int = 0, *, show: bool = True):
        self._name = name
        self._total = total
        self._before = self._done = done
        self._show = show
        self._start = self._last_line = time.monotonic()
        self._bar = _rich_bar(name, total, done) if show and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count further items."""
        self.update(self._done + count)

    def update(self, done: int) -> None:
        """Say how many items are done in all."""
        self._done = done
        now = time.monotonic()
        rate = (done - self._before) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, rate=f"{rate:.1f}/s")
        elif self._show and now - self._last_line >= _LINE_EVERY and rate > 0:
            self._last_line = now
            left = (self._total - done) / rate
            line = f"{self._name}: {done} of {self._total} items, {rate:.1f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def _rich_bar(name: str, total: int, done: int):
    """Return a bar that is not started."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(name, total=total, completed=done, rate="")
    return bar
