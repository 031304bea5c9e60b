"""The `semalign` command: its subcommands, each imported when it is used or its help is shown.

The list of commands is shown without JAX, which takes a second to import.
"""

import difflib
import inspect
from importlib import import_module
from typing import Any

import click

from ._console import write_rows

#: Command -> the first line of its help, in the order of use.
COMMANDS = {
    "embed": "Embed texts or images with a frozen encoder into a store.",
    "fit": "Fit a map from one store's space to another's.",
    "apply": "Map all rows of a store, or of a .npy file, into a new store, chunk by chunk.",
    "sweep": "Fit maps to more and more anchors and score them on held-out pairs.",
    "migrate": (
        "Move a search index to another encoder by a map, and measure what the search keeps."
    ),
    "stitch": "Let a head of one encoder read the embeddings of others, through maps.",
    "zeroshot": (
        "Classify images by prompts of a text encoder, through maps that anchors determine."
    ),
    "recipe": "Run one of the paper's experiments as a whole: embed, study, report.",
    "report": "Write one self-contained HTML report of several studies.",
    "demo": "Run both studies on embeddings that come with the package, without a network.",
    "info": "Say what a store, .npy file, map, encoder, prompt set or folder of results is.",
    "verify": "Read all of a store and list what is wrong with it; exit with 1 if anything is.",
    "doctor": "Show versions, devices, extras, threads and disks, for a report of a fault.",
    "convert": "Convert between stores and files, by suffix: .npy, .npz, .parquet, .h5 and .hdf5.",
    "convert-checkpoint": (
        "Convert a checkpoint that has only pytorch_model.bin to safetensors; needs PyTorch."
    ),
}
#: Module -> its commands; others are in one of their name.
_MODULES = {
    "maps": ("fit", "apply"),
    "sweeps": ("sweep",),
    "studies": ("stitch", "zeroshot", "report", "demo"),
    "files": ("info", "verify", "convert", "convert-checkpoint"),
}


class Commands(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them, from its module."""
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            if close:
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {close[0]!r}?")
            return None
        module = next((one for one, its in _MODULES.items() if cmd_name in its), cmd_name)
        return getattr(import_module(f".{module}", __package__), cmd_name.replace("-", "_"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and the commands with the first line of the help of each."""
        records = (one.get_help_record(ctx) for one in self.get_params(ctx))
        formatter.write("\nOptions:\n")
        write_rows(formatter, filter(None, records))
        formatter.write("\nCommands:\n")
        write_rows(formatter, COMMANDS.items(), 24)


def _show_completion(ctx: click.Context, _: Any, shell: str | None) -> None:
    if shell:
        from click.shell_completion import get_completion_class

        kind = get_completion_class(shell)
        assert kind is not None
        click.echo(kind(app, {}, "semalign", "_SEMALIGN_COMPLETE").source())
        ctx.exit()


_HELP = """
Align the embedding spaces of two frozen encoders with simple maps.

Embed images and texts into stores, fit a map between two stores, and run the studies of model
stitching and zero-shot classification. `semalign COMMAND --help` shows the options of a command.
"""

app = Commands(
    name="semalign",
    help=inspect.cleandoc(_HELP),
    epilog="The exit status is 0; 1 if a run failed or found problems; 2 for bad input.",
    # Of the terminal; click stops at 80 columns.
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 1000},
    params=[
        click.Option(
            ["--show-completion"],
            type=click.Choice(["bash", "fish", "zsh"]),
            metavar="SHELL",
            help="Show a script for this shell (bash, fish or zsh) that completes commands, "
            "options and values.",
            expose_value=False,
            is_eager=True,
            callback=_show_completion,
        )
    ],
)
click.version_option(
    package_name="semalign_jax", message="%(package)s %(version)s", help="Show the version."
)(app)
