"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import here, keys_and_values

READERS = "table|mimic-cxr|rsna|vindr-cxr|open-i|chexpert|padchest"
METHODS = "affine|linear|l-ortho|ortho"
#: Options of readers that are paths.
_PATHS = ("images", "nih_mapping", "reports", "root")


def option(text: str, *names: str, values: str = "", default: str = "", **extra: Any) -> Any:
    """An option whose default is that of the settings.

    Args:
        text: of the help.
        *names: of the option, if not that of the parameter.
        values: that it can have, parted by "|"; the settings check them.
        default: as the help shows it.
        **extra: of `typer.Option`.
    """
    if values:
        known = values.split("|")
        text += f": {', '.join(known[:-1])} or {known[-1]}"
        extra["autocompletion"] = lambda incomplete: [k for k in known if k.startswith(incomplete)]
    if default:
        text += f" (default {default})"
    return typer.Option(*names, help=f"{text}.", **extra)


DatasetOption = Annotated[str | None, option("Kind of a data set", values=READERS)]
DatasetPathOption = Annotated[Path | None, option("Folder of the data set, or the table")]
ReaderOption = Annotated[
    list[str] | None,
    option(
        "Option of the data set's reader, e.g. section=impression; repeatable",
        "--option",
        metavar="KEY=VALUE",
    ),
]
NormalizeOption = Annotated[
    str | None,
    option(
        "Of both spaces before the fit",
        values="none|center|standard|isotropic",
        default="isotropic for ortho and l-ortho, else none",
    ),
]


def dataset_flags(
    reader: str | None, path: Path | None, options: list[str] | None, name: str = "dataset"
) -> dict[str, Any]:
    """The flags of a data set by the names of the settings, which have it as `name`."""
    values = keys_and_values("option", options)
    for key in _PATHS:
        if isinstance(values.get(key), str):
            values[key] = str(here(values[key]))
    flags = {f"{name}.reader": reader, f"{name}.path": path}
    return flags | {f"{name}.options.{key}": value for key, value in values.items()}
