"""Fits and embeddings on several machines, on top of `jax.distributed`.

`initialize` joins the processes. `encoders.embed` with ``out=`` then divides its chunks among them,
and `accumulate_stats` of this module merges the statistics of all processes, from which each fits
the same map:

    from semalign_jax import distributed
    distributed.initialize()
    shard = distributed.this_process()
    stats = distributed.accumulate_stats(sa.stores.paired_batches(a, b, matched, 4096, shard=shard))
    mapping = sa.fit_from_stats("ortho", stats)
"""

from .merge import accumulate_stats as accumulate_stats
from .merge import merge_across_processes as merge_across_processes
from .merge import shard_rows as shard_rows
from .processes import OtherProcessError as OtherProcessError
from .processes import barrier as barrier
from .processes import initialize as initialize
from .processes import this_process as this_process

__all__ = [
    "OtherProcessError",
    "accumulate_stats",
    "barrier",
    "initialize",
    "merge_across_processes",
    "shard_rows",
    "this_process",
]
