"""The app that the commands are added to."""

from typing import Annotated

import typer

from ._console import Commands

app = typer.Typer(
    name="semalign",
    cls=Commands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Exit status: 0; 1 if a run failed or found problems; 2 for bad input.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"semalign_jax {version('semalign_jax')}")
        raise typer.Exit()


@app.callback()
def semalign(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Align the embedding spaces of two frozen encoders with simple maps.

    Embed images and texts into stores, fit a map between two stores, and run the studies of model
    stitching and zero-shot classification.
    """
    del version
