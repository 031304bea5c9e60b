"""Each family against stored outputs of its PyTorch reference, layer by layer."""

import pytest

from semalign_jax.encoders import load_encoder

from .harness import GOLDEN, all_cases, assert_equal, our_outputs, read_golden, write_checkpoint

CASES = all_cases()
#: A third of the kinds of model, the first case of each; `test_parity` has all cases.
FIRST = {str(case.model): name for name, case in reversed(CASES.items())}
KEPT = [*FIRST.values()][::4]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in KEPT else [pytest.mark.slow]) for name in CASES],
)
def test_outputs_equal_the_stored_ones(name, tmp_path):
    config, shapes, batch, expected = read_golden(name)
    write_checkpoint(tmp_path, config, shapes, CASES[name])
    encoder = load_encoder(tmp_path)
    assert_equal(our_outputs(CASES[name], encoder, batch), expected)


def test_each_golden_file_has_its_case():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == set(CASES)
