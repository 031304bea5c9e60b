"""The benchmark of heads on small problems; times are not looked at."""

import heads
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # scripts, as they are run


def table(text):
    """Rows of the Markdown table by the names of its columns."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_both_reach_the_least_loss_and_the_page_is_written(tmp_path, capsys):
    page = tmp_path / "pages" / "heads.md"
    losses = ["--losses", "multinomial", "binary", "hinge", "--dtypes", "float64"]
    short = ["--l2", "0.3", "--seconds", "0"]
    assert heads.main(["--problems", "90x4x3", *losses, *short, "--docs", str(page)]) == 0
    text = capsys.readouterr().out
    assert page.read_text().partition("\n\n")[2] == text
    assert "python benchmarks/heads.py --problems 90x4x3" in text
    assert heads.main(["--problems", "60x3x2", "--dtypes", "float32", *short]) == 0
    rows = table(text) + table(capsys.readouterr().out)
    assert [row["classes"] for row in rows] == ["3", "3", "3", "2"]
    for row in rows:
        assert abs(float(row["difference"])) < 2e-5
        assert -1e-9 < float(row["above"]) < 1e-5
        assert float(row["ratio"]) > 0


def test_losses_are_those_of_one_head_in_words():
    x, labels = np.array([[1.0], [2.0]]), np.array([0, 1], np.int32)
    weight, bias = np.array([[0.5, -1.0]]), np.array([0.1, 0.0])  # logits 0.6, -1 and 1.1, -2
    expected = {
        "multinomial": np.log1p(np.exp(-1.6)) + np.log1p(np.exp(3.1)) + 2 / 2 * 1.25,
        "binary": np.log1p(np.exp([-0.6, -1.0, 1.1, 2.0])).sum() + 2 / 2 * 1.25,
        "hinge": 0.4**2 + 0 + 2.1**2 + 3**2 + 2 / 2 * (1.25 + 0.01),
    }
    for loss, value in expected.items():
        problem = heads.Problem(x, labels, 2, loss, 2.0)
        np.testing.assert_allclose(problem.objective(weight, bias), value, rtol=1e-12)


def test_unknown_problems_are_named(capsys):
    assert heads.main(["--problems", "90x4"]) == 2
    assert "no '90x4'" in capsys.readouterr().err


@pytest.mark.parametrize("name", heads.DEMO_LABELS)
def test_shipped_embeddings_are_found(name):
    x, labels = heads.data(name)
    assert x.shape == (len(labels), 384)
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))
