import gc
import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from semalign_jax.studies import backend_settings

# The suite compiles far more than it runs. Set XLA_FLAGS to test with others.
backend_settings.apply(quick_compile=True)  # before JAX computes
# Threads of PyTorch that wait for each other took half of the time of small models.
os.environ.setdefault("OMP_NUM_THREADS", "1")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for the sharding tests
# Users may run us under these: nothing may rely on implicit broadcasting or dtype promotion.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many objects that live long: looking for dead ones took a tenth of the time.
gc.freeze()
gc.set_threshold(200_000, 50, 100)
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
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 8_000:
        jax.clear_caches()
        gc.collect()
