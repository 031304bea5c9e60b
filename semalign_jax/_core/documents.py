"""JSON and YAML: of files that people write (prompt sets, settings), and any other JSON."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".yaml", ".yml")


def parse_json(data: str | bytes, where: Any, *, unique: bool = False) -> Any:
    """JSON values of a file or a part of one.

    Args:
        data: the text.
        where: it is from, for the message.
        unique: refuse a key that occurs twice in one object, of which a plain reader keeps the
            last.

    Raises:
        ValueError: if it is no JSON, or nested too deep; names `where`.
    """
    try:
        return json.loads(data, object_pairs_hook=_without_repeats if unique else None)
    except ValueError as error:  # also of the encoding
        raise ValueError(f"{where} is damaged or no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deep") from None


def without_nan(value: Any) -> Any:
    """JSON values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, kind: type) -> Any:
    """The object or list of a JSON file.

    Args:
        path: the file.
        kind: dict or list.

    Raises:
        ValueError: if it holds none; names it.
    """
    values = parse_json(path.read_bytes(), path)
    if not isinstance(values, kind):
        raise ValueError(f"{path} must hold a JSON {'object' if kind is dict else 'list'}")
    return values


def read_document(path: Path, what: str) -> Any:
    """Read a JSON or YAML file, by its suffix.

    Args:
        path: the file.
        what: is in it, for the message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file of another type, one that is not UTF-8 or cannot be parsed, and
            for a key that occurs twice in one object, of which a plain reader keeps the last.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a {what} is a file of {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return parse_json(text, path, unique=True)
        return _yaml(text)
    except ValueError as error:  # also of the encoding
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep") from None


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """For a name that is not known: the likely one, or all if none is like it."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _without_repeats(pairs: Iterable[tuple[Any, Any]]) -> dict:
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        result[key] = value
    return result


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The loader of `yaml.safe_load` without what makes a short text a huge value."""

        def compose_node(self, parent, index):
            # Of nested aliases each doubles the value.
            if self.check_event(yaml.AliasEvent):
                raise ValueError(
                    f"aliases (*{self.peek_event().anchor}) are not read: write it out"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            for key, _ in node.value:
                # Each level of mappings as keys would double the time.
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"line {key.start_mark.line + 1}: a key must be a text")
            keys = [self.construct_object(key) for key, _ in node.value]
            _without_repeats((str(key), None) for key in keys)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None
