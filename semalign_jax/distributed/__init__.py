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

from .merge import accumulate_stats, merge_across_processes, shard_rows
from .processes import OtherProcessError, barrier, initialize, this_process

__all__ = [
    "OtherProcessError",
    "accumulate_stats",
    "barrier",
    "initialize",
    "merge_across_processes",
    "shard_rows",
    "this_process",
]
