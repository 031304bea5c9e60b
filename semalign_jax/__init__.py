"""Align the embedding spaces of two frozen encoders with simple maps, in JAX.

The names used most are here; all others are in their namespaces: `maps`, `sweeps`, `metrics`,
`stitching`, `zeroshot`, `stores`, `distributed`, `encoders`, `data`, `plot` and `studies`.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    __version__: str
    from . import data as data
    from . import distributed as distributed
    from . import encoders as encoders
    from . import maps as maps
    from . import metrics as metrics
    from . import plot as plot
    from . import stitching as stitching
    from . import stores as stores
    from . import studies as studies
    from . import sweeps as sweeps
    from . import zeroshot as zeroshot
    from .maps import AffineMap as AffineMap
    from .maps import AutoInfo as AutoInfo
    from .maps import FitInfo as FitInfo
    from .maps import PairStats as PairStats
    from .maps import accumulate_stats as accumulate_stats
    from .maps import fit as fit
    from .maps import fit_affine as fit_affine
    from .maps import fit_auto as fit_auto
    from .maps import fit_from_stats as fit_from_stats
    from .maps import fit_l_ortho as fit_l_ortho
    from .maps import fit_linear as fit_linear
    from .maps import fit_ortho as fit_ortho
    from .maps import fit_semi as fit_semi
    from .maps import identity_map as identity_map
    from .maps import load_map as load_map
    from .maps import polar_factor as polar_factor
    from .maps import save_map as save_map
    from .stitching import evaluate_stitching as evaluate_stitching
    from .stitching import fit_head as fit_head
    from .stitching import stitch as stitch
    from .sweeps import SweepMethod as SweepMethod
    from .sweeps import SweepResult as SweepResult
    from .sweeps import anchor_sweep as anchor_sweep
    from .sweeps import sweep_pairs as sweep_pairs
    from .zeroshot import zero_shot_classifier as zero_shot_classifier
    from .zeroshot import zero_shot_logits as zero_shot_logits
    from .zeroshot import zero_shot_predict as zero_shot_predict

#: Where the names are that are no namespaces.
_FOLDERS = ("maps", "sweeps", "stitching", "zeroshot")

__all__ = [
    "AffineMap",
    "AutoInfo",
    "FitInfo",
    "PairStats",
    "SweepMethod",
    "SweepResult",
    "accumulate_stats",
    "anchor_sweep",
    "data",
    "distributed",
    "encoders",
    "evaluate_stitching",
    "fit",
    "fit_affine",
    "fit_auto",
    "fit_from_stats",
    "fit_head",
    "fit_l_ortho",
    "fit_linear",
    "fit_ortho",
    "fit_semi",
    "identity_map",
    "load_map",
    "maps",
    "metrics",
    "plot",
    "polar_factor",
    "save_map",
    "stitch",
    "stitching",
    "stores",
    "studies",
    "sweep_pairs",
    "sweeps",
    "zero_shot_classifier",
    "zero_shot_logits",
    "zero_shot_predict",
    "zeroshot",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str):
    # JAX, Flax, transformers and pydantic are slow to import: only what is used, so that the maps
    # need only JAX, and the help of the command nothing.
    import importlib.util

    if name == "__version__":
        from importlib.metadata import version

        return version("semalign_jax")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f".{name}", __name__) is not None:
        return importlib.import_module(f".{name}", __name__)
    folders = (importlib.import_module(f".{folder}", __name__) for folder in _FOLDERS)
    found = next(getattr(folder, name) for folder in folders if name in folder.__all__)
    globals()[name] = found
    return found
