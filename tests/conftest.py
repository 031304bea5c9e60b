import os

# One BLAS thread a call; must be set before NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
settings.register_profile("semalign", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("semalign")


@pytest.fixture(params=["x64", "x32"])
def precision(request):
    """Run a test with 64-bit types on and off."""
    with jax.enable_x64(request.param == "x64"):
        yield request.param
