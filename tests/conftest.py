import gc
import importlib.metadata
import os

# Must be set before NumPy and JAX are loaded: one BLAS thread a call, and quick compilation,
# since the suite compiles far more than it runs. Set XLA_FLAGS to test with others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
flags = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", flags)

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for the sharding tests
# Users may run us under these: nothing may rely on implicit broadcasting or dtype promotion.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
settings.register_profile("semalign", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("semalign")


@pytest.fixture(params=["x64", "x32"])
def precision(request):
    """Run a test with 64-bit types on and off."""
    with jax.enable_x64(request.param == "x64"):
        yield request.param


@pytest.fixture(autouse=True, scope="module")
def free_compiled_code():
    """Compiled programs hold memory maps, of which a process has only about 65,000."""
    yield
    jax.clear_caches()
    gc.collect()
