"""The items of `embed`: which kind they are of, what they are called, what they contain."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._core.checks import option
from .._core.files import content_hash
from .._core.ids import id_text
from ._family import IMAGE, TEXT


class Items(NamedTuple):
    """Texts or images with their ids."""

    values: Sequence[Any]
    ids: list[str]

    def broken(self, index: int, error: Exception) -> ValueError:
        """Return an error that names the item."""
        name = "" if self.ids[index] == str(index) else f" ({self.ids[index]})"
        return ValueError(f"items[{index}]{name} cannot be embedded: {error}")


def sequence(items: Any) -> Sequence[Any]:
    """Return items that can be indexed; refuse a single one and none."""
    if isinstance(items, str | bytes | os.PathLike) or not isinstance(items, Iterable):
        raise TypeError(
            f"items must be a sequence of texts or images; got one {type(items).__name__}: put it "
            "in a list"
        )
    values = items if isinstance(items, list | tuple | np.ndarray) else list(items)
    if len(values) == 0:
        raise ValueError("items is empty: give at least one text or image")
    return values  # pyright: ignore[reportReturnType]


def _is_image(item: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # without it there can be no such item
    if isinstance(item, bytes | Path | np.ndarray):
        return True
    return pillow is not None and isinstance(item, pillow.Image)


def modality_of(allowed: Sequence[str], items: Sequence[Any], modality: str | None) -> str:
    """Return what all items are, one of the modalities that are allowed.

    Raises:
        TypeError: if an item is of none of them.
        ValueError: if they are not all of one, or `modality` is not allowed.
    """
    if modality is not None:
        allowed = (option("modality", modality, allowed),)
    found = None
    for index, item in enumerate(items):
        if isinstance(item, str):
            kind = TEXT if TEXT in allowed else IMAGE
        else:
            kind = IMAGE if _is_image(item) else None
        if kind not in allowed:
            wanted = " or ".join("a text (str)" if a == TEXT else "an image" for a in allowed)
            raise TypeError(f"items[{index}] must be {wanted}; got {type(item).__name__}")
        found = found or kind
        if kind != found:
            raise ValueError(
                f"items[0] is {found}, items[{index}] is {kind}: embed texts and images apart, or "
                "set modality='image' if each str is the path of an image"
            )
    assert found is not None  # items is not empty
    return found


def ids_of(items: Sequence[Any], ids: Sequence[str | int] | None, modality: str) -> list[str]:
    """Return the texts of ids, see `id_text`; by default paths, and positions without one."""
    if ids is None:
        path = (str, Path) if modality == IMAGE else ()
        return [id_text(str(v) if isinstance(v, path) else i) for i, v in enumerate(items)]
    ids = list(ids)
    if len(ids) != len(items):
        raise ValueError(f"ids must have one entry per item, {len(items)}; got {len(ids)}")
    for index, value in enumerate(ids):
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise TypeError(f"ids[{index}] must be str or int; got {type(value).__name__}")
    return [id_text(value) for value in ids]


def refuse_repeated(ids: Sequence[str]) -> None:
    """Raise `ValueError` if two ids are equal."""
    first: dict[str, int] = {}
    for index, value in enumerate(ids):
        if first.setdefault(value, index) != index:
            raise ValueError(
                f"items {first[value]} and {index} have the same id {value!r}; a folder of "
                "embeddings needs unique ids: pass ids"
            )


def contents_hash(items: Items, modality: str) -> str:
    """Return a SHA-256 over the contents of items in memory; files count as empty."""

    def of_item(index: int, item: Any) -> bytes:
        try:
            return bytes.fromhex(content_hash(_content(item, modality)))
        except Exception as error:  # Pillow reads some images only now
            raise items.broken(index, error) from error

    return content_hash(of_item(index, item) for index, item in enumerate(items.values))


def _content(item: Any, modality: str) -> Iterator[bytes]:
    if isinstance(item, str) and modality == TEXT:
        yield b"text" + item.encode("utf-8", "surrogatepass")
    elif isinstance(item, str | Path):
        yield b"path"
    elif isinstance(item, bytes):
        yield b"file"
        yield item
    elif isinstance(item, np.ndarray):
        yield f"array {item.dtype} {item.shape}".encode()
        yield item.tobytes()
    else:
        transparency = item.info.get("transparency")
        yield f"image {item.mode} {item.size} {item.getpalette()} {transparency}".encode()
        yield item.tobytes()
