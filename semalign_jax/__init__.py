"""Align the embedding spaces of two frozen encoders with simple maps, in JAX.

The names used most are here; all others are in their namespaces: `maps`, `sweeps`, `metrics`,
`stitching`, `zeroshot`, `stores`, `distributed`, `encoders`, `data`, `plot` and `studies`.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    __version__: str
    from . import (
        data,
        distributed,
        encoders,
        maps,
        metrics,
        plot,
        stitching,
        stores,
        studies,
        sweeps,
        zeroshot,
    )
    from .maps import (
        AffineMap,
        AutoInfo,
        FitInfo,
        PairStats,
        accumulate_stats,
        fit,
        fit_affine,
        fit_auto,
        fit_from_stats,
        fit_l_ortho,
        fit_linear,
        fit_ortho,
        fit_semi,
        identity_map,
        load_map,
        polar_factor,
        save_map,
    )
    from .stitching import evaluate_stitching, fit_head, stitch
    from .sweeps import SweepMethod, SweepResult, anchor_sweep, sweep_pairs
    from .zeroshot import zero_shot_classifier, zero_shot_logits, zero_shot_predict

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
