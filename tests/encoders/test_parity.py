"""Each family against its PyTorch reference, live (needs the extra ``parity``)."""

import numpy as np
import pytest

from semalign_jax.encoders import load_encoder

from .harness import all_cases, assert_equal, our_outputs, read_golden, write_checkpoint

pytest.importorskip("torch", reason="needs the extra parity")

from . import reference  # noqa: E402

pytestmark = pytest.mark.parity

CASES = all_cases()


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_pytorch(name, tmp_path):
    case = CASES[name]
    module, config, shapes = reference.build(case)
    batch = case.inputs()
    expected = reference.run(case, module, batch)
    write_checkpoint(tmp_path, config, shapes, case)
    encoder = load_encoder(tmp_path)
    assert_equal(our_outputs(case, encoder, batch), expected)
    # And the golden file is what its script would write today.
    golden_config, golden_shapes, golden_batch, golden = read_golden(name)
    assert (golden_config, golden_shapes) == (config, shapes)
    assert all(np.array_equal(golden_batch[key], batch[key]) for key in batch)
    assert_equal(golden, expected, 1e-5)
