"""A recipe on a small tree with real encoders, as the script for the docs runs it.

Skipped without the packages of ``benchmarks/weights.txt`` and onnx.
"""

import end_to_end
import pytest
import recipes

from semalign_jax.cli._recipes import shipped_recipes

pytestmark = pytest.mark.slow


def test_every_recipe_has_its_encoders_here():
    assert sorted(recipes.ENCODERS) == sorted(shipped_recipes()) == sorted(recipes.CHANGES)


@pytest.mark.skipif(bool(end_to_end.missing_packages()), reason="see benchmarks/weights.txt")
def test_reports_are_searched_by_a_new_encoder(tmp_path, capsys):
    out = tmp_path / "run.md"
    assert recipes.main(["--only", "migrate", "--patients", "128", "--docs", str(out)]) == 0
    text = out.read_text()
    assert text.partition("\n\n")[2] == capsys.readouterr().out
    assert "plan" in text
    assert "bridge: recall@10 of" in text
    assert "rows to embed: 80 of 128" in text
