"""`--distributed`: one command in several processes, on one machine or on many."""

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


def join(
    distributed: bool, coordinator: str | None, process_count: int | None, process_id: int | None
) -> None:
    """Join the other processes, if there are any; only process 0 prints a result.

    Args:
        distributed: whether to do so; the other options imply it.
        coordinator: ``host:port``.
        process_count: number of processes.
        process_id: of this one.

    Raises:
        ValueError: as `semalign_jax.distributed.initialize`.
    """
    if not distributed and (coordinator, process_count, process_id) == (None, None, None):
        return
    from ..distributed import initialize, this_process

    keep_libraries_off_stdout()  # Gloo, JAX's collectives on CPUs, tells when it is connected
    initialize(coordinator, process_count, process_id)
    if this_process()[0] > 0:
        print_errors_only()
