"""How methods look, and what their looks mean."""

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._core.checks import first_few
from .style import plain

#: Okabe and Ito's colours for all kinds of colour vision (Wong 2011, Nature Methods 8, 441), but
#: the yellow, which is too light for lines; then the darkest of Tol's "muted" scheme (SRON/EPS/TN/
#: 09-002). Markers tell lines apart in print without colour.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
    "#882255", "#332288", "#999933", "#44AA99",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
#: Of what uses no anchors.
GREY_MARKERS = ("|", "x", "+", "1", "2", "3", "4")
#: Methods whose names begin like this are controls, fitted to wrong pairs.
CONTROL = "shuffled"
DOTTED = "dotted: wrong pairs"
HOLLOW = "hollow: wrong pairs"


class Look(NamedTuple):
    """How one method looks.

    Attributes:
        color: of its line and marker.
        linestyle: dotted for controls, and for nothing else.
        marker: of its points; a control has that of its method, if there is one.
        legend: whether it is named in legends; controls of a method that is, are not.
    """

    color: str
    linestyle: Any
    marker: str
    legend: bool = True

    @property
    def control(self) -> bool:
        """Whether it was fitted to wrong pairs."""
        return self.linestyle == ":"


def is_control(method: str) -> bool:
    """Whether a method is fitted to wrong pairs, by its name."""
    return method == CONTROL or method.startswith(f"{CONTROL} ")


def looks(rows: Sequence[Mapping[str, Any]], references: Sequence[str] = ()) -> dict[str, Look]:
    """How the methods of rows look; no two but a method and its control have the same colour.

    Give those of all rows to several axes that should agree.

    Args:
        rows: each with a "method" and, unless it uses none, a number of "anchors".
        references: names of further ones that use no anchors, which come first.

    Returns:
        The look of each name: grey, solid or dashed, without anchors; dotted for controls (names
        that are "shuffled" or begin so), in the colour of the method that follows in their name.
    """
    anchored = {row["method"]: None for row in rows if row.get("anchors", 0) is not None}
    plain_ones = [name for name in anchored if not is_control(name)]
    controls = [name for name in anchored if is_control(name)]
    own = [name for name in controls if _controlled(name) not in plain_ones]
    greys = dict.fromkeys([*references, *(row["method"] for row in rows)])
    greys = [name for name in greys if name not in anchored]
    found = {
        name: Look(str(round(level, 3)), ("-", "--", (0, (8, 3)))[i % 3], _at(GREY_MARKERS, i))
        for i, (name, level) in enumerate(
            zip(greys, np.linspace(0.35, 0.7, len(greys)), strict=True)
        )
    }
    for i, (name, color) in enumerate(zip([*plain_ones, *own], _colors(), strict=False)):
        found[name] = Look(color, ":" if name in own else "-", _at(MARKERS, i))
    for name in controls:
        if name not in own:
            found[name] = found[_controlled(name)]._replace(linestyle=":", legend=False)
    return found


def checked_looks(
    given: Mapping[str, Look] | None,
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[str] = (),
) -> Mapping[str, Look]:
    """The looks that are given, none of which may be missing, else those of the rows."""
    own = looks(rows, references)
    missing = [] if given is None else [name for name in own if name not in given]
    if missing:
        raise ValueError(f"looks lacks {first_few(missing)}: make it of all rows and references")
    return own if given is None else given


def _controlled(name: str) -> str:
    return name.removeprefix(f"{CONTROL} ")


def _at(items: Sequence[str], place: int) -> str:
    return items[place % len(items)]


def _colors() -> Iterator[str]:
    """Colours without end and without repeats."""
    yield from PALETTE
    for i in range(10**6):
        red, green, blue = colorsys.hls_to_rgb(i * 0.618034 % 1, (0.3, 0.5)[i % 2], 0.6)
        yield f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def label_of(method: str, look: Look) -> str:
    """What a legend calls a method; nothing for a control whose method is named."""
    return plain(method) if look.legend else "_"
