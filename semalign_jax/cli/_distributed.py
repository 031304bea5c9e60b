"""`--distributed`: one command in several processes, on one machine or on many."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..distributed.processes import TIMEOUT, initialize, jointly, this_process
from ._console import Console
from ._settings import ProcessSettings


@contextmanager
def joined(console: Console, processes: ProcessSettings) -> Iterator[None]:
    """Join the other processes, if there are any, and fail with them; process 0 prints a result."""
    place = processes.coordinator, processes.process_count, processes.process_id
    if not processes.distributed and place == (None, None, None):
        if processes.timeout is not None:
            raise ValueError("--timeout is of several processes: give --distributed")
        yield
        return

    # Gloo, JAX's collectives on CPUs, tells when it is connected.
    console.keep_libraries_off_stdout()
    initialize(*place, timeout=processes.timeout or TIMEOUT)
    if this_process()[0] > 0:
        console.print_errors_only()
    with jointly("the command"):
        yield
