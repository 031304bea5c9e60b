"""The processes of one run on several machines: how they start, meet and fail.

They meet in JAX's collectives. Whoever fails tells the others why where they next meet; whoever is
killed tells nothing, and JAX's own heartbeats end those that are left.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from .._core.checks import positive_int

#: Seconds after which JAX takes a silent process for dead, by default.
TIMEOUT = 100
_AGAIN = "files on disk are whole; run the same command again in all processes to continue"


class OtherProcessError(RuntimeError):
    """Another process is gone, has failed or does something else."""


def this_process() -> tuple[int, int]:
    """Return the index of this process and their number; of a single one it starts no device."""
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


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

    A thin layer over `jax.distributed.initialize`; then all processes meet once. Under SLURM, Open
    MPI and Kubernetes and on TPU pods no argument is needed.

    If a process is killed, JAX aborts the others about `timeout` seconds later (at once if it was
    process 0), with a message of its own; a line on stderr says at the start what to do then. On
    CPUs they raise `OtherProcessError` before, where they next meet.

    Args:
        coordinator: ``host:port`` of process 0, reachable from all, with a port that is free there.
        processes: their number.
        process_id: of this one, from 0.
        start_timeout: seconds to wait for all processes. JAX then aborts those that are there.
        timeout: seconds without a heartbeat of one process after which JAX aborts the others.
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
    # JAX aborts with little more than a stack trace: what it means is said before.
    line = (
        f"semalign_jax: waiting for all processes{f' at {coordinator}' if coordinator else ''}. If "
        f"JAX aborts this one after {start_timeout} s: are all started, and can they reach the "
        f"port of process 0? If JAX aborts it later, another one is gone, noticed within about "
        f"{timeout} s: {_AGAIN}"
    )
    print(line, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            local_device_ids,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise ValueError(
            f"{error} Give coordinator ('host:port'), processes and process_id; without them JAX "
            "must find SLURM, Open MPI, Kubernetes or a TPU pod"
        ) from error
    barrier("initialize")  # on CPUs who comes 30 s late finds no connection any more


@dataclass(frozen=True)
class Section:
    """What process `index` of `count` does together with the others, see `jointly`."""

    name: str
    index: int = 0
    count: int = 1

    def exchange(self, value: Any = None) -> list[Any]:
        """Wait until all processes have called this; return their JSON values, by process."""
        return [value] if self.count == 1 else self._meet(value, None)

    def broadcast(self, values: np.ndarray, source: int) -> np.ndarray:
        """Return the float64 `values` of one process, bit by bit; the shape is that of all."""
        if self.count == 1:
            return values
        # As integers, so that nothing is lost where JAX computes in float32.
        bits, is_source = values.view(np.uint32), self.index == source
        found = self._collective(multihost_utils.broadcast_one_to_all, bits, is_source=is_source)
        return np.asarray(found).view(np.float64)

    def fail(self, error: Exception) -> None:
        """Tell the others why this process leaves, unless they know or cannot be reached."""
        if self.count > 1 and not _known(error):
            message = f"{type(error).__name__}: {error}"[:2000]
            with suppress(OtherProcessError):  # this process has its own error
                # Names of files can hold bytes that are not UTF-8.
                self._meet(None, message.encode("utf-8", "backslashreplace").decode())
            error.told = True  # pyright: ignore[reportAttributeAccessIssue]

    def _meet(self, value: Any, error: str | None) -> list[Any]:
        text = json.dumps([self.name, value, error]).encode()
        gather = multihost_utils.process_allgather
        sizes = self._collective(gather, np.array([len(text)], np.int32)).ravel()
        width = 1 << max(8, int(sizes.max()).bit_length())  # so that few programs are compiled
        rows = self._collective(gather, np.frombuffer(text.ljust(width, b"\0"), np.uint8))
        found = [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]
        for process, (name, _, message) in enumerate(found):
            if message is not None:
                who = f"process {process} of {self.count}"
                raise OtherProcessError(f"{who} failed in {name}: {message}")
        for process, (name, _, _) in enumerate(found):
            if name != self.name:
                raise OtherProcessError(
                    f"process {self.index} is in {self.name}, process {process} in {name}: all "
                    "processes must make the same calls in the same order"
                )
        return [value for _, value, _ in found]

    def _collective(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return call(*args, **options)
        except (JaxRuntimeError, ValueError) as error:  # JAX 0.8 raises ValueError
            gone = f"another process is gone or cannot be reached ({str(error).splitlines()[0]})"
            raise OtherProcessError(f"{self.name} cannot go on: {gone}; {_AGAIN}") from error


def _known(error: BaseException | None) -> bool:
    """Whether all processes know of an error, or of one that it comes from."""
    if error is None or isinstance(error, OtherProcessError) or hasattr(error, "told"):
        return error is not None
    return _known(error.__cause__ or error.__context__)


@contextmanager
def jointly(name: str) -> Iterator[Section]:
    """Do in all processes what messages call `name`; end when all have ended it, or one fails.

    All processes must enter the same sections in the same order; sections may be nested. With one
    process it does nothing.

    Raises:
        OtherProcessError: if another process is gone or failed; says why, and which failed.
    """
    section = Section(name, *this_process())
    try:
        yield section
        section.exchange()
    except Exception as error:
        section.fail(error)
        raise


def by_first(name: str, compute: Callable[[], Any]) -> Any:
    """Compute JSON values in process 0 only, and return them in all processes; see `jointly`."""
    with jointly(name) as section:
        return section.exchange(compute() if section.index == 0 else None)[0]


def barrier(name: str) -> None:
    """Wait for all processes, as long as they are alive.

    Args:
        name: the same in all of them.

    Raises:
        OtherProcessError: if another process is gone, has failed or is at another place.
    """
    with jointly(f"barrier {name!r}"):
        pass
