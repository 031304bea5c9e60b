"""What the scripts print and write, of rows that are not computed."""

import printing

from semalign_jax.studies.tables import Row


def row(method, anchors, mean, metric="auroc", protocol="zero-shot", source="vit"):
    return Row(
        protocol=protocol, source=source, target="bert", method=method, anchors=anchors,
        metric=metric, mean=mean, std=0.01, seeds=5,
    )  # fmt: skip


def test_print_tables_shows_names_as_they_are(capsys):
    printing.print_tables([row("affine [bold]", 10, 0.5, protocol="p", source="[red]a")])
    shown = capsys.readouterr().out
    assert "affine [bold]" in shown
    assert "p: [red]a → b" in shown
