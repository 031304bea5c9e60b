"""Settings that make many short JAX programs quick on a CPU; apply them before JAX computes.

LAPACK is fastest with one BLAS thread a call and the calls side by side; several BLAS threads
beside other work are many times slower. And a sweep compiles many shapes that run briefly, with
the work in BLAS and LAPACK: XLA's own optimisation of the code in between would take longer than
it saves. On GPUs XLA tries dozens of Triton kernels for every matrix product that it compiles:
minutes for a batch of fits, where cuBLAS is as fast.
"""

import importlib.metadata
import os

import threadpoolctl


def apply(*, quick_compile: bool) -> None:
    """Set them, unless the user's environment does.

    XLA reads its flags when JAX first computes or lists devices; later calls have no effect on it.

    Args:
        quick_compile: whether compilation time matters more than the speed of the result.
    """
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of libraries that are loaded later
        threadpoolctl.threadpool_limits(1, user_api="blas")
    flags = []
    # XLA aborts on a flag that it does not know: only for versions that were seen to.
    version = importlib.metadata.version("jaxlib")
    if version.startswith(("0.8.", "0.9.", "0.10.", "0.11.", "0.12.")):
        flags.append("--xla_gpu_enable_triton_gemm=false")
    if quick_compile:
        flags.append("--xla_backend_optimization_level=0")
        if version.startswith(("0.9.", "0.10.")):
            flags.append("--xla_cpu_use_fusion_emitters=false")
            flags.append("--xla_cpu_parallel_codegen_split_count=1")  # each part costs time
    os.environ["XLA_FLAGS"] = " ".join((*flags, os.environ.get("XLA_FLAGS", "")))
