"""`--distributed`: one command in several processes, on one machine or on many."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from ._console import keep_libraries_off_stdout, print_errors_only
from ._options import option

DistributedOption = Annotated[
    bool,
    option("Share the work with other processes that run this same command", "--distributed"),
]
CoordinatorOption = Annotated[
    str | None,
    option(
        "Address of process 0 for --distributed",
        default="from SLURM, Open MPI, Kubernetes or the TPU pod",
        metavar="HOST:PORT",
    ),
]
ProcessCountOption = Annotated[
    int | None, option("Number of processes for --distributed", default="likewise", min=1)
]
ProcessIdOption = Annotated[
    int | None, option("Which of them this is, from 0", default="likewise", min=0)
]
TimeoutOption = Annotated[
    int | None,
    option("Seconds of silence after which a process counts as dead", default="100", min=1),
]
#: Parameters of the commands that are `joined`'s, and no settings.
JOIN = ("distributed", "coordinator", "process_count", "process_id", "timeout")


@contextmanager
def joined(
    distributed: bool,
    coordinator: str | None,
    process_count: int | None,
    process_id: int | None,
    timeout: int | None,
) -> Iterator[None]:
    """Join the other processes, if there are any, and fail with them; process 0 prints the result.

    Args:
        distributed: whether to do so; the other options imply it.
        coordinator: ``host:port``.
        process_count: number of processes.
        process_id: of this one.
        timeout: seconds; None for the default of `semalign_jax.distributed.initialize`.

    Raises:
        ValueError: as `semalign_jax.distributed.initialize`; for a time-out of a single process.
    """
    if not distributed and (coordinator, process_count, process_id) == (None, None, None):
        if timeout is not None:
            raise ValueError("--timeout is of several processes: give --distributed")
        yield
        return
    from ..distributed.processes import TIMEOUT, initialize, jointly, this_process

    keep_libraries_off_stdout()  # Gloo, JAX's collectives on CPUs, tells when it is connected
    initialize(coordinator, process_count, process_id, timeout=timeout or TIMEOUT)
    if this_process()[0] > 0:
        print_errors_only()
    with jointly("the command"):
        yield
