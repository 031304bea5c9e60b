"""What the two studies share: parts of their settings, digests of their data, and how they run."""

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from .._core.files import content_hash
from ..data import ImageTextDataset
from ..data._dataset import known_groups
from ..maps.options import check_options
from ..sweeps.one_pair import SweepMethod
from .outputs import StudyResults, write_outputs

Count: TypeAlias = Annotated[int, Field(ge=1)]

#: The four maps, the orthogonal ones between spaces brought to one scale, which they cannot change
#: themselves; and the affine map with a penalty, for fewer anchors than dimensions.
METHODS: dict[str, dict[str, Any]] = {
    "affine": {"method": "affine"},
    "linear": {"method": "linear"},
    "l-ortho": {"method": "l-ortho", "normalize": "isotropic"},
    "ortho": {"method": "ortho", "normalize": "isotropic"},
    "ridge": {"method": "affine", "ridge": 1.0, "ridge_unit": "gram"},
}
#: Share of the demo's rows that are tested.
DEMO_TEST_SHARE = 0.3


def all_different(values: tuple | None) -> tuple | None:
    """Check that no value of a setting is repeated."""
    twice = [value for value in values or () if (values or ()).count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there more than once")
    return values


def with_options(values: Any, key: str) -> Any:
    """Names, or name -> name, as name -> options; what is neither is left to pydantic.

    Args:
        values: of the settings.
        key: of the options, under which a name stands.
    """
    if isinstance(values, list | tuple):
        if len(set(map(str, values))) < len(values):
            raise ValueError("a name is there more than once")
        values = {name: name for name in values}
    if not isinstance(values, Mapping):
        return values
    return {k: {key: v} if isinstance(v, str) else v for k, v in values.items()}


def sweep_method(options: Mapping[str, Any]) -> SweepMethod:
    """The line of a sweep, with its options checked as far as is possible without data."""
    options = dict(options)
    if "method" not in options:
        raise ValueError("the name of the map is missing, e.g. method: affine")
    line = SweepMethod(**options)
    check_options(line.method, (2, 2), **dict(line.options))
    hash(line)  # as compiled code is found by it
    return line


def digest(*parts: np.ndarray | bytes | None) -> str:
    """A short hash of arrays, their dtypes and shapes, and of bytes."""
    return content_hash(parts)[:16]


def check_splits(
    name: str,
    wanted: Collection[str],
    dataset: ImageTextDataset,
    usable: np.ndarray,
    where: str,
    needed: str,
) -> None:
    """Refuse splits that have no image.

    Args:
        name: of the setting.
        wanted: its splits.
        dataset: all images.
        usable: the splits of those that can be used.
        where: what the data set is called in the message.
        needed: what an image has to be to be used.
    """
    for split in wanted:
        if split not in usable:
            raise ValueError(
                f"{name}: {where} has no image of the split {split!r} that {needed}; its splits "
                f"are {known_groups(dataset.splits)}"
            )


def run_in(out: Path | None, study: Callable[[Path], StudyResults]) -> StudyResults:
    """Run a study and write its files.

    Args:
        out: folder of the files and of what is kept for another run; None for neither.
        study: folder to keep in -> results.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return study(Path(folder))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = study(out)
    write_outputs(out, results)
    return results
