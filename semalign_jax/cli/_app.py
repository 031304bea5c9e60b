"""The `semalign` command: its subcommands, each imported when it is used or its help is shown."""

import difflib
import inspect
from importlib import import_module
from typing import Any

import click

from ._options import write_rows

#: Command -> its module, in the order of use.
COMMANDS = {
    "embed": "embed",
    "fit": "maps",
    "apply": "maps",
    "sweep": "sweeps",
    "migrate": "migrate",
    "stitch": "studies",
    "zeroshot": "studies",
    "recipe": "recipe",
    "report": "studies",
    "demo": "studies",
    "info": "files",
    "verify": "files",
    "doctor": "doctor",
    "convert": "files",
    "convert-checkpoint": "files",
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
        module = import_module(f".{COMMANDS[cmd_name]}", __package__)
        return getattr(module, cmd_name.replace("-", "_"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and the commands with the first line of the help of each."""
        records = (one.get_help_record(ctx) for one in self.get_params(ctx))
        formatter.write("\nOptions:\n")
        write_rows(formatter, filter(None, records))
        formatter.write("\nCommands:\n")
        for name in COMMANDS:
            command = self.get_command(ctx, name)
            assert command is not None
            write_rows(formatter, [(name, (command.help or "").partition("\n")[0])], 24)


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
