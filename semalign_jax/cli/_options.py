"""Options of commands, made from the fields of pydantic classes.

Each option stands once, as a field of a settings class: name, type, default and help are the
field's. A settings file holds the same class.

This is a thin layer over click: it parses and completes, has no dependencies, has been maintained
since 2014, and comes with huggingface-hub anyway. typer wants a signature beside each class. tyro
makes a subcommand of an object that may be missing, such as a data set, and takes no lists with
commas; pydantic-settings shows types of Python for values, in lines that are longer than the
terminal, and its errors name fields instead of options. Both import the classes of all commands,
and with them JAX, to list the commands.
"""

import inspect
import json
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..studies.settings import (
    READERS,
    Settings,
    load_settings,
    path_options,
    problem_text,
    problems_of,
)
from ._console import wrapped, write_rows
from ._settings import RunSettings

#: Spellings of the options of a data set.
DATASET = {"dataset.reader": "--dataset", "dataset.path": "--path", "dataset.options": "--option"}
#: Those of all commands: what no settings file holds needs no way to say no.
_SPELLINGS = {"as_json": "--json", "settings": "--set"} | {
    name: f"--{name}" for name in ("quiet", "debug", "distributed")
}
#: What stands for a value in the help.
_METAVARS = {int: "N", float: "NUMBER", bool: "yes|no", str: "TEXT", Path: "PATH", Any: "VALUE"}
#: Options of any reader of data sets that are paths.
_PATHS = set().union(*map(path_options, READERS))


def descriptions(kind: type[Settings]) -> dict[str, str]:
    """What the docstrings of the fields say; one with another default keeps that of its base."""
    bases = (one for one in reversed(kind.__mro__) if issubclass(one, Settings))
    fields = (pair for one in bases for pair in one.model_fields.items())
    texts = {name: field.description for name, field in fields if field.description}
    return {name: " ".join(text.replace("`", "").split()) for name, text in texts.items()}


def _plain(annotation: Any) -> Any:
    """A type without constraints and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _here(path: str | Path) -> Path:
    """A path of the command line in full: it starts here, others at their settings file."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Setting:
    """A field that is an option, or a positional argument, of a command.

    Args:
        path: the fields that lead to it; "*" stands for a key of the user's.
        field: what pydantic knows of it.
        text: its sentences.
        group: those of the object that it is part of, "" for none.
        spelling: ``--name``, ``--this/--that``, or ``NAME`` of a positional argument.
    """

    def __init__(
        self, path: tuple[str, ...], field: FieldInfo, text: str, group: str, spelling: str
    ):
        kind = _plain(field.annotation)
        inner = _plain(get_args(kind)[1]) if get_origin(kind) is dict else None
        self.path, self.text, self.group = path, text, group
        self.names = spelling.split("/")
        self.name, self.key = self.names[0], ".".join(path)
        self.is_positional = not spelling.startswith("-")
        self.is_list = get_origin(kind) is tuple
        self.is_pairs = "*" in path or inner in _METAVARS
        self.item = _plain(get_args(kind)[0]) if self.is_list else kind
        if inner in _METAVARS:
            self.item = inner
        self.choices = get_args(self.item) if get_origin(self.item) is Literal else ()
        self.is_flag = kind is bool and not self.is_pairs or len(self.names) > 1
        self.has_commas = self.is_list and (bool(self.choices) or self.item in (int, float))
        self.is_of_reader = path[-1] == "options"
        self.is_required = field.is_required()
        self._field = field
        self.metavar = "NAME" if self.choices else _METAVARS.get(self.item, "JSON")
        if self.is_pairs:
            self.metavar = "KEY=VALUE" if self.item is Any else f"NAME={self.metavar}"
        if self.has_commas:
            self.metavar += ",..."

    @property
    def help(self) -> str:
        """Its sentences, with what values it can have and which it has."""
        default = None if self.is_required else self._field.get_default(call_default_factory=True)
        if self.is_flag and isinstance(default, bool):
            default = [*self.names, None][0 if default else 1]
        elif isinstance(default, tuple | dict):
            default = ", ".join(map(str, default)) or None
        several = (self.is_list or self.is_pairs) and not self.has_commas and not self.is_positional
        notes = (
            ("any of" if self.is_list else "one of", not self.is_flag and ", ".join(self.choices)),
            ("default", None if default is None else str(default)),
        )
        shown = [f"{name}: {note}" for name, note in notes if note] + ["repeatable"] * several
        return f"{self.text} [{'; '.join(shown)}]" if shown else self.text

    @cached_property
    def parameter(self) -> click.Parameter:
        """As click knows it."""
        name = "__".join(self.path).replace("*", "any")
        if self.is_positional:
            return click.Argument([name], required=False, nargs=-1 if self.is_list else 1)
        if self.is_flag:
            return click.Option(["/".join(self.names), name], is_flag=True, default=None)
        several = self.is_list or self.is_pairs
        return click.Option([self.name, name], multiple=several, shell_complete=self._complete)

    def _complete(self, _: Any, __: Any, incomplete: str) -> list[Any]:
        if self.item is Path:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(one) for one in self.choices if one.startswith(incomplete)]

    def value(self, given: Any) -> Any:
        """What was typed, as a value of the field; paths start at the working directory."""
        if self.is_flag:
            return self.names[0 if given else 1].removeprefix("--") if self.choices else given
        if self.is_pairs:
            pairs = dict(self._pair(word) for word in given)
            return pairs if self.item is Any else {k: self._checked(v) for k, v in pairs.items()}
        if self.is_list:
            return self._checked([one for word in given for one in self._listed(word)])
        # JSON: the class may read more than the field's type says.
        return _json_or_text(given) if self.metavar == "JSON" else self._checked(given)

    def _listed(self, word: str) -> list[Any]:
        values = _json_or_text(word)
        if isinstance(values, list):
            return values
        return [part.strip() for part in word.split(",")] if self.has_commas else [word]

    def _pair(self, word: str) -> tuple[str, Any]:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{self.name} {word!r}: expected {self.metavar}")
        value = _json_or_text(text) if self.item is Any else text
        is_path = self.is_of_reader and key in _PATHS and isinstance(value, str)
        return key, str(_here(value)) if is_path else value

    def _checked(self, value: Any) -> Any:
        kind: Any = Annotated[self._field.annotation, self._field]
        if self.is_pairs and "*" not in self.path:
            kind = self.item
        try:
            found = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            typed = ",".join(map(str, value)) if isinstance(value, list) else value
            first = problem_text(None, problems_of(error)[0])
            raise ValueError(f"{self.name} {typed!r}: {first}") from None
        if isinstance(found, tuple):
            return [_here(one) if isinstance(one, Path) else one for one in found]
        return _here(found) if isinstance(found, Path) else found


def settings_of(
    kind: type[Settings],
    spellings: Mapping[str, str],
    path: tuple[str, ...] = (),
    group: str = "",
) -> Iterator[Setting]:
    """The fields of a class, and those of the objects in it, as options.

    Args:
        kind: the class.
        spellings: of options that are not called like their fields.
        path: the fields that lead to the class.
        group: what the docstring says of the last of them.
    """
    texts = descriptions(kind)
    for name, field in kind.model_fields.items():
        inner, at = _plain(field.annotation), (*path, name)
        if get_origin(inner) is dict and hasattr(_plain(get_args(inner)[1]), "model_fields"):
            inner, at = _plain(get_args(inner)[1]), (*at, "*")
        if hasattr(inner, "model_fields"):
            yield from settings_of(inner, spellings, at, texts.get(name, ""))
            continue
        key = ".".join(at)
        usual = "--" + key.replace("*.", "").replace("_", "-")
        if inner is bool and "*" not in at:
            usual += f"/--no-{usual[2:]}"  # a settings file may say yes
        yield Setting(at, field, texts.get(name, ""), group, spellings.get(key, usual))


class SettingsCommand(click.Command):
    """A command whose options are the fields of pydantic classes.

    Args:
        function: called with the `Console` and an object of each class but the last.
        kinds: these; a settings file holds the first, the last is `RunSettings`. A field
            `settings` of the others holds more values of the first.
        spellings: field -> option, where their names differ.
        examples: command lines for its help.
    """

    def __init__(
        self,
        function: Callable,
        kinds: Sequence[type[Settings]],
        spellings: Mapping[str, str],
        examples: Sequence[str],
    ):
        name = function.__name__.replace("_", "-")
        super().__init__(name, help=inspect.getdoc(function))
        self.function, self.examples = function, examples
        self.settings = [(kind, list(settings_of(kind, spellings))) for kind in kinds]
        self.params = [one.parameter for _, some in self.settings for one in some]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line; the two names of a choice exclude each other."""
        for names in (one.names for _, some in self.settings for one in some if one.choices):
            if len(names) > 1 and set(names) <= set(args):
                raise click.UsageError(f"{' and '.join(names)}: give one of them", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Make the objects and call the function."""
        (first, own), *others = self.settings
        *rest, run = (_load(kind, some, ctx.params) for kind, some in others)
        more = {k: v for one in rest for k, v in getattr(one, "settings", {}).items()}
        loaded = _load(first, own, ctx.params, run.config, more)
        return self.function(ctx.obj, loaded, *rest)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, text, options by groups, and examples that can be copied into a shell."""
        usage, groups = [], {"Arguments": [], "Options": []}
        for number, (kind, some) in enumerate(self.settings):
            title = (inspect.getdoc(kind) or "").partition("\n")[0] if number else "Options"
            for one in some:
                heading = "Arguments" if one.is_positional else one.group or title
                shown = " / ".join(one.names)
                if one.is_positional:
                    dots = "..." if one.is_list else ""
                    usage.append(f"{one.name}{dots}" if one.is_required else f"[{one.name}{dots}]")
                elif not one.is_flag:
                    shown += f" {one.metavar}"
                    usage += [shown] * (one.is_required and len(one.path) == 1)
                groups.setdefault(heading.rstrip("."), []).append((shown, one.help))
        groups[heading.rstrip(".")].append(("-h, --help", "Show this text."))
        formatter.write_usage(ctx.command_path, " ".join([*usage, "[OPTIONS]"]))
        self.format_help_text(ctx, formatter)
        for heading, rows in groups.items():
            if rows:
                formatter.write(f"\n{wrapped(f'{heading}:', formatter.width)}\n")
                write_rows(formatter, rows)
        formatter.write("\nExample:\n" if len(self.examples) == 1 else "\nExamples:\n")
        for example in self.examples:
            together = re.sub(r" (--\S+) (?!-)", " \\1\0", example)
            lines = wrapped(together, formatter.width - 4, "    ").replace("\0", " ").split("\n")
            formatter.write("  " + " \\\n  ".join(lines) + "\n")


def command(
    *kinds: type[Settings],
    examples: Sequence[str],
    arguments: Sequence[str] = (),
    spellings: Mapping[str, str] | None = None,
) -> Callable[[Callable], SettingsCommand]:
    """Make a function a `SettingsCommand` of these classes and `RunSettings`.

    `arguments` are fields that are positional.
    """
    names = {**_SPELLINGS, **(spellings or {}), **{field: field.upper() for field in arguments}}
    return lambda function: SettingsCommand(function, (*kinds, RunSettings), names, examples)


def _given(
    settings: Iterable[Setting], params: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """What was typed: keys with dots, as `load_settings` takes them; options; and values."""
    objects: dict[str, dict[str, Any]] = {}
    for one in settings:
        given = params[one.parameter.name or ""]
        if given is None or given == ():
            continue
        value = one.value(given)
        if "*" in one.path:
            key, _, inner = one.key.partition(".*.")
            for name, part in value.items():
                *outer, last = inner.split(".")
                at = objects.setdefault(key, {}).setdefault(name, {})
                for step in outer:
                    at = at.setdefault(step, {})
                at[last] = part
            yield key, one.name, objects[key]
        elif one.is_of_reader:  # added to those of the file
            for name, part in value.items():
                yield f"{one.key}.{name}", f"{one.name} {name}", part
        else:
            yield one.key, one.name, value


def _load(
    kind: type[Settings],
    settings: Sequence[Setting],
    params: Mapping[str, Any],
    config: Path | None = None,
    more: Mapping[str, Any] | None = None,  # None: no file can hold these
) -> Any:
    """An object of a class: from the file, with what was typed before it.

    Errors name options, not keys; but with a file the keys of what was not typed.
    """
    given = [*_given(settings, params), *((k, f"--set {k}", v) for k, v in (more or {}).items())]
    typed = {key: option for key, option, _ in given}
    known = {one.key: one.name for one in settings}

    def called(key: str) -> str:
        options = (typed if config is not None else {**known, **typed}).items()
        # Of an object the first option, e.g. --dataset of what has a reader and a path.
        return next((name for k, name in options if f"{k}.".startswith(f"{key}.")), key)

    def explain(error: ValidationError) -> str:
        missing, wrong = [], []
        for problem in problems_of(error):
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "missing":
                missing.append(known.get(key, key))
                continue
            own = max((k for k in typed if f"{key}.".startswith(f"{k}.")), key=len, default=None)
            if own is not None:
                key = typed[own] + key[len(own) :]
            elif key and config is not None:
                key = f"{config}: {key}"
            wrong.append(f"{key}: {problem_text(kind, problem, called)}".removeprefix(": "))
        if missing:
            or_file = "" if more is None else ", or in the file of --config"
            wrong.insert(0, f"missing: {', '.join(missing)} (give it on the command line{or_file})")
        return "; ".join(wrong)

    values = {key: value for key, _, value in given}
    return load_settings(kind, config, values, explain=explain)
