"""The processes of one run on several machines: how they start, wait for each other and fail.

When a process dies, JAX's runtime aborts the others after a while, with a message of its own. Here
each process leaves signs of life in the key-value store of JAX's coordinator and looks at those of
the others, so that an error can say earlier, in Python, who is missing.
"""

import atexit
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from .._core.checks import positive_int

#: Seconds without a sign of life after which a process counts as dead, by default.
TIMEOUT = 100
_ROOT = "semalign_jax"
_ALIVE, _FAILED = f"{_ROOT}/alive/", f"{_ROOT}/failed/"
_LEFT = "left"  # the last sign of a process that ends


def _state() -> Any:
    # JAX has no public access to its key-value store; Orbax reaches it in the same way.
    from jax._src import distributed

    return distributed.global_state


def this_process() -> tuple[int, int]:
    """Return the index of this process and the number of processes; starts no device."""
    state = _state()
    return (0, 1) if state.client is None else (state.process_id, state.num_processes)


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = 300,
    timeout: int = TIMEOUT,
    local_device_ids: Sequence[int] | None = None,
) -> None:
    """Join the processes of one run; call it in each of them before anything that computes.

    A thin layer over `jax.distributed.initialize`. Under SLURM, Open MPI and Kubernetes and on TPU
    pods no argument is needed.

    Args:
        coordinator: ``host:port`` of process 0, reachable from all, with a port that is free there.
        processes: their number.
        process_id: of this one, from 0.
        start_timeout: seconds to wait for all processes. JAX then aborts those that are there.
        timeout: seconds without a sign of life after which a process counts as dead. The others
            then raise an error that names it where they next check, or at latest JAX aborts them a
            quarter of this time (10 s at least) later.
        local_device_ids: devices of this machine that this process uses; by default all, and one
            GPU per process under SLURM and Open MPI.

    Raises:
        ValueError: if an argument is missing that the environment does not give, or out of range.
        RuntimeError: if JAX has started its devices already, or for a second call.
    """
    start_timeout = positive_int("start_timeout", start_timeout)
    timeout = positive_int("timeout", timeout)
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator must be 'host:port'; got {coordinator!r}")
    if jax.distributed.is_initialized():
        raise RuntimeError("initialize was called before: one call per process is enough")

    def waiting() -> None:
        name = "this process" if process_id is None else f"process {process_id}"
        at = "the coordinator" if coordinator is None else f"the coordinator at {coordinator}"
        message = (
            f"semalign_jax: {name} still waits for {at} and the other processes. Are all of them "
            f"started, process 0 too, and can they reach this port? They wait {start_timeout} s in "
            "all"
        )
        print(message, file=sys.stderr, flush=True)

    # JAX aborts when the time is over: what could be wrong is said before.
    timer = threading.Timer(min(10, start_timeout / 2), waiting)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            local_device_ids,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=timeout + max(10, math.ceil(timeout / 4)),
        )
    except ValueError as error:
        raise ValueError(
            f"{error} Give coordinator ('host:port'), processes and process_id; without them JAX "
            "must find SLURM, Open MPI, Kubernetes or a TPU pod"
        ) from error
    finally:
        timer.cancel()
    _watch(timeout)


class Signs:
    """When each process has last given a sign of life.

    Args:
        timeout: seconds after which a silent process counts as dead.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._seen: dict[int, tuple[str, float]] = {}  # the sign, and when it was new
        self._last = -math.inf

    def silent(self, signs: dict[int, str], now: float) -> list[int]:
        """Return the processes that are silent for too long.

        Args:
            signs: by process; each of them is another one than before if the process lives.
            now: seconds.
        """
        # If this process was stopped itself, the others may have been so too.
        restart, self._last = now - self._last > self.timeout / 2, now
        for process, sign in signs.items():
            if restart or process not in self._seen or self._seen[process][0] != sign:
                self._seen[process] = (sign, now)
        return sorted(
            process
            for process, (sign, since) in self._seen.items()
            if sign != _LEFT and now - since > self.timeout
        )


class _Watch:
    """A thread that gives signs of life and looks for those of the other processes."""

    def __init__(self, timeout: float):
        state = _state()
        self.client = state.client
        self.index, self.count = state.process_id, state.num_processes
        self.timeout = timeout
        self.gone: str | None = None  # a message
        self.left: frozenset[int] = frozenset()
        self.failed: dict[str, str] = {}  # messages by key
        self.sections = 0
        self._silent: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semalign-watch", daemon=True)
        self._thread.start()
        # JAX waits for all processes in its own atexit function, which runs after this one.
        atexit.register(self._leave)

    def values(self, folder: str) -> dict[int, str]:
        """Return what processes have put into a folder of the key-value store."""
        return {_process_of(k): v for k, v in self.client.key_value_dir_get(folder)}

    def _sign(self, value: str) -> None:
        self.client.key_value_set(f"{_ALIVE}{self.index}", value, allow_overwrite=True)

    def _run(self) -> None:
        signs, count = Signs(self.timeout), 0
        try:
            while not self._stop.wait(min(5.0, self.timeout / 20)):
                count += 1
                self._sign(str(count))
                self.failed = dict(self.client.key_value_dir_get(_FAILED))
                found = self.values(_ALIVE)
                self.left = frozenset(k for k, sign in found.items() if sign == _LEFT)
                self._silent = signs.silent(found, time.monotonic())
                if self._silent:
                    self.gone = (
                        f"process {', '.join(map(str, self._silent))} of {self.count} is gone: no "
                        f"sign of life for {self.timeout:g} s"
                    )
        except JaxRuntimeError as error:
            self.gone = _no_coordinator(self.count, error)

    def _leave(self) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._sign(_LEFT)
            if self.gone is None:
                return
            # JAX would wait for the missing process and then abort, with a long dump. The
            # coordinator ends last, since JAX aborts who loses it.
            others = set(range(self.count)) - set(self._silent) if self.index == 0 else set()
            wait_until(
                lambda: all(self.values(_ALIVE).get(k) == _LEFT for k in others), self.timeout / 4
            )
        except JaxRuntimeError:
            if self.gone is None:
                return
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _process_of(key: str) -> int:
    return int(key.rpartition("/")[2])


def _no_coordinator(count: int, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"process 0 of {count}, the coordinator, is gone or cannot be reached ({reason})"


_started: _Watch | None = None


def _watch(timeout: float = TIMEOUT) -> _Watch | None:
    """Return the watch of this process, started if it is not; None for a single process."""
    global _started
    if _started is None and this_process()[1] > 1:
        _started = _Watch(timeout)
    return _started


class Section:
    """What all processes do together, see `jointly`.

    Attributes:
        index: of this process.
        count: number of processes.
        timeout: seconds after which a silent process counts as dead.
    """

    def __init__(self, name: str, watch: _Watch | None):
        self._name, self._watch = name, watch
        self.index, self.count, self.timeout = 0, 1, math.inf
        if watch is not None:
            watch.sections += 1
            self._key = f"{_ROOT}/{watch.sections}"
            self._failed = f"{_FAILED}{watch.sections}/"
            self.index, self.count, self.timeout = watch.index, watch.count, watch.timeout

    def check(self) -> None:
        """Raise RuntimeError if another process is gone or has failed; cheap."""
        if self._watch is None:
            return
        for key, message in self._watch.failed.items():
            if key.startswith(self._failed):
                raise OtherProcessError(
                    f"process {_process_of(key)} of {self.count} failed in {self._name}: {message}",
                    known=True,
                )
        if self._watch.gone is not None:
            raise OtherProcessError(
                f"{self._name} cannot go on: {self._watch.gone}. Files on disk are whole: run the "
                "same command again in all processes to continue",
                known=True,
            )

    def exchange(self, label: str, value: str = "", timeout: float | None = None) -> list[str]:
        """Wait until all processes have called this, and return their values, by process.

        Args:
            label: unique within the section.
            value: of this process.
            timeout: seconds to wait; by default as long as all are alive.

        Raises:
            RuntimeError: if a process is missing, has ended, failed, or does something else.
        """
        if self._watch is None:
            return [value]
        try:
            return self._exchange(self._watch, label, value, timeout)
        except JaxRuntimeError as error:
            raise OtherProcessError(_no_coordinator(self.count, error)) from error

    def _exchange(self, watch: _Watch, label: str, value: str, timeout: float | None) -> list[str]:
        place = f"{self._key}/{label}/"
        name = f"{self._name} ({label})"
        watch.client.key_value_set(f"{self._key}/name/{self.index}", self._name, True)
        watch.client.key_value_set(f"{place}{self.index}", value)
        start, pause = time.monotonic(), 0.01
        while True:
            left = watch.left  # before their values are read
            found = watch.values(place)
            for process, other in watch.values(f"{self._key}/name/").items():
                if other != self._name:
                    raise OtherProcessError(
                        f"process {self.index} is in {self._name}, process {process} in {other}: "
                        "all processes must make the same calls in the same order"
                    )
            if len(found) == self.count:
                return [found[process] for process in range(self.count)]
            self.check()
            missing = sorted(set(range(self.count)) - set(found))
            for process in missing:
                if process in left:
                    raise OtherProcessError(
                        f"process {process} of {self.count} has ended and never came to {name}"
                    )
            if timeout is not None and time.monotonic() - start > timeout:
                raise OtherProcessError(
                    f"process {', '.join(map(str, missing))} of {self.count} did not come to "
                    f"{name} within {timeout:g} s"
                )
            time.sleep(pause)
            pause = min(0.3, 2 * pause)

    def _fail(self, error: BaseException) -> None:
        if self._watch is not None and not getattr(error, "known", False):
            message = f"{type(error).__name__}: {error}"[:2000]
            # Names of files can hold bytes that are not UTF-8.
            message = message.encode("utf-8", "backslashreplace").decode()
            try:
                self._watch.client.key_value_set(f"{self._failed}{self.index}", message, True)
            except JaxRuntimeError:  # nobody is left to be told
                pass

    def _end(self) -> None:
        self.exchange("end")
        if self._watch is not None and self.index == 0:
            # All are past the section before this one.
            previous = f"{_ROOT}/{self._watch.sections - 1}/"
            self._watch.client.key_value_delete(previous)


class OtherProcessError(RuntimeError):
    """Another process is gone, has failed or does something else.

    Attributes:
        known: whether all processes find this out by themselves.
    """

    def __init__(self, message: str, *, known: bool = False):
        super().__init__(message)
        self.known = known


@contextmanager
def jointly(name: str) -> Iterator[Section]:
    """Do something in all processes; end when all have ended it, or fail if one fails.

    All processes must enter the same sections in the same order. With one process it does nothing.

    Args:
        name: of what is done, for messages.

    Raises:
        RuntimeError: if another process is gone or failed; says which, and why.
    """
    section = Section(name, _watch())
    try:
        yield section
        section._end()
    except BaseException as error:
        section._fail(error)
        raise


def by_first(name: str, compute: Callable[[], Any]) -> Any:
    """Do something in process 0 only, and return its result, JSON values, in all processes.

    Args:
        name: of what is done, for messages.
        compute: called in process 0.

    Raises:
        RuntimeError: as `jointly`.
    """
    with jointly(name) as section:
        result = json.dumps(compute()) if section.index == 0 else ""
        return json.loads(section.exchange("result", result)[0])


def alone() -> Section:
    """Return a section of this process only."""
    return Section("", None)


def barrier(name: str, timeout: float | None = None) -> None:
    """Wait for all processes.

    Args:
        name: the same in all of them.
        timeout: seconds to wait; by default as long as all processes are alive.

    Raises:
        RuntimeError: if a process is gone, has ended or failed, or did not come in time; names it.
    """
    with jointly(f"barrier {name!r}") as section:
        section.exchange("start", timeout=timeout)


def wait_until(there: Callable[[], bool], seconds: float) -> bool:
    """Wait until `there` is true, at most `seconds`; return whether it is."""
    until, pause = time.monotonic() + seconds, 0.01
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(1.0, 2 * pause)
    return True
