"""What the scripts print and write, of rows that are not computed."""

import printing
from matplotlib.image import imread

from semalign_jax.studies.report import Row


def row(method, anchors, mean, metric="AUROC", protocol="zero-shot", source="vit"):
    return Row(
        protocol=protocol, source=source, target="bert", method=method, anchors=anchors,
        metric=metric, mean=mean, std=0.01, seeds=5,
    )  # fmt: skip


def test_print_tables_shows_names_as_they_are(capsys):
    printing.print_tables([row("affine [bold]", 10, 0.5, protocol="p", source="[red]a")])
    shown = capsys.readouterr().out
    assert "affine [bold]" in shown
    assert "p: [red]a → b" in shown


def test_plots_are_named_by_protocol_and_by_metric_if_there_are_several(tmp_path):
    rows = [row("affine", 10, 0.61), row("affine", 100, 0.82)]
    assert printing.plot_protocols(tmp_path, rows) == [tmp_path / "zero-shot.png"]
    rows.append(row("affine", 10, 0.5, metric="accuracy"))
    names = ["zero-shot-AUROC.png", "zero-shot-accuracy.png"]
    assert printing.plot_protocols(tmp_path, rows) == [tmp_path / name for name in names]
    assert imread(tmp_path / names[1]).ndim == 3
