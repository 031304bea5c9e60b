"""Ctrl-C and SIGTERM: every command ends with one line and the exit status of the signal.

Nothing else of the package is imported here, so that this is in force while the rest is imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """One of the signals; not a KeyboardInterrupt, which click answers with a line of its own.

    Attributes:
        status: exit status, 130 or 143.
    """

    def __init__(self, number: int):
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.status = 128 + number


@contextmanager
def interruptible(own: bool) -> Iterator[None]:
    """Let the signals raise `Interrupted` in the block; a second one ends the process at once.

    Args:
        own: whether the process is that of the command: then the signals end it without a word
            after the block. Otherwise what was is restored.
    """
    if threading.current_thread() is not threading.main_thread():  # no other gets signals
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    hook = sys.unraisablehook

    def first(number: int, _: Any) -> None:
        for one in _SIGNALS:
            signal.signal(one, at_once)
        raise Interrupted(number)

    def at_once(number: int, _: Any) -> None:
        os.write(2, f"semalign: {Interrupted(number)}\n".encode())
        os._exit(128 + number)

    def again(unraisable: Any) -> None:
        # Python could not raise, e.g. in a destructor: send the signal anew.
        if isinstance(unraisable.exc_value, Interrupted):
            for one in _SIGNALS:
                signal.signal(one, first)
            number = unraisable.exc_value.status - 128
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        else:
            hook(unraisable)

    for number in _SIGNALS:
        signal.signal(number, first)
    sys.unraisablehook = again
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if own else handler)
        sys.unraisablehook = hook


def leave(status: int) -> NoReturn:
    """End the process without waiting for its threads, which may compute for long."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody listens any more
            pass
    os._exit(status)


def leave_to_parent() -> None:
    """Ignore Ctrl-C in a process that decodes: the one that has started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
