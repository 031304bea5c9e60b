"""Ctrl-C and SIGTERM: every command ends with one line and the exit status of the signal.

Nothing else of the package is imported here, so that this is in force while the rest is imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SOON = 0.05  # seconds
_starting = threading.Event()


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

    def first(number: int, frame: FrameType | None) -> None:
        if _starting.is_set() or _importing(frame):
            send_again(number)
            return
        for one in _SIGNALS:
            signal.signal(one, at_once)
        if "multiprocessing" in sys.modules:
            # Whoever waits for them would wait until they are done.
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
        raise Interrupted(number)

    def at_once(number: int, _: Any) -> None:
        os.write(2, f"semalign: {Interrupted(number)}\n".encode())
        os._exit(128 + number)

    def again(unraisable: Any) -> None:
        # Python could not raise, e.g. in a destructor: send the signal anew.
        if isinstance(unraisable.exc_value, Interrupted):
            for one in _SIGNALS:
                signal.signal(one, first)
            send_again(unraisable.exc_value.status - 128)
        else:
            hook(unraisable)

    def send_again(number: int) -> None:
        timer = threading.Timer(_SOON, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    for number in _SIGNALS:
        signal.signal(number, first)
    sys.unraisablehook = again
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if own else handler)
        sys.unraisablehook = hook


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported; extensions make an ImportError of what is raised then."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def leave(status: int) -> NoReturn:
    """End the process without waiting for its threads, which may compute for long."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody listens any more
            pass
    os._exit(status)


@contextmanager
def starting_processes() -> Iterator[None]:
    """Keep the signals from processes that are started in the block: this one ends them.

    They inherit that the signals are blocked, from their first moment on. Here a signal waits for
    the end of the block, or half a process would be left that complains.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    _starting.set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _starting.clear()
