"""One rule for ids of items and patients, whatever file or type they come in."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import checks

_WHOLE = re.compile(r"(0|-?[1-9]\d*)\.0*")


def id_text(value: Any, digits: int = 53) -> str:
    """The text of an id, the same for 7, 7.0, "7" and "7.0"; "007" is another one.

    Programs write whole numbers as floats where a column has gaps, so one patient has other texts
    in other files.

    Args:
        value: text, UTF-8 bytes or a whole number; None and NaN are empty.
        digits: of floats, in bits.

    Raises:
        ValueError: for anything else, and a float so large that its last digits are lost.
    """
    if isinstance(value, str):
        # Most ids have no dot, and there may be millions.
        whole = _WHOLE.fullmatch(value) if "." in value else None
        return str(value) if whole is None else whole[1]
    if isinstance(value, bytes):
        try:
            return id_text(value.decode())
        except UnicodeDecodeError:
            raise ValueError("these bytes are no UTF-8 text") from None
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        if not float(value).is_integer():
            raise ValueError(f"{value} is no whole number")
        if isinstance(value, np.floating):
            digits = min(digits, np.finfo(value).nmant + 1)
        if abs(value) >= 2**digits:  # to which the next number is rounded, too
            raise ValueError(f"{value} is a float that has lost its last digits: store text")
    elif isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{type(value).__name__} is neither text nor a whole number")
    return str(int(value))


def id_texts(name: str, values: Iterable[Any], *, empty: bool = False) -> list[str]:
    """The texts of many ids, see `id_text`.

    Args:
        name: what they are, for messages.
        values: the ids [n].
        empty: whether an empty text is an id.

    Raises:
        TypeError: for a masked array.
        ValueError: if one is missing, or as `id_text`; names its place. For an array of another
            rank.
    """
    digits = 53
    if hasattr(values, "dtype") and hasattr(values, "ndim"):  # not only NumPy's
        if isinstance(values, np.ndarray):  # files have them in any byte order
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
        array = checks.host_array(name, values)
        if array.ndim != 1:
            raise ValueError(f"{name} must have shape [n]; got {array.shape}")
        if array.dtype.kind == "f":
            digits = min(digits, np.finfo(array.dtype).nmant + 1)
        values = array.tolist()
    texts = []
    for row, value in enumerate(values):
        try:
            text = id_text(value, digits)
        except ValueError as error:
            raise ValueError(f"{name}: entry {row}: {error}") from None
        if not text and not (empty and isinstance(value, str | bytes)):
            raise ValueError(f"{name}: entry {row} is empty")
        texts.append(text)
    return texts
