"""`semalign fit` and `semalign apply`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.checks import counted
from .._core.documents import parse_json
from .._core.files import content_hash, reading
from .._core.ids import id_texts
from ..distributed.merge import accumulate_stats, shard_rows
from ..distributed.processes import by_first, this_process
from ..maps.affine_map import AffineMap
from ..maps.auto import fit_auto, prior_in_words
from ..maps.diagnose import diagnose
from ..maps.fit_from_stats import fit_from_stats
from ..maps.io import load_map, save_map
from ..maps.options import check_method, check_options
from ..maps.semi import FOLDS, fit_semi
from ..maps.stats import PairStats
from ..metrics import normalize_rows
from ..stores.store import EmbeddingStore, create_store, paired_batches
from ..sweeps.select import select_anchors
from ._console import Console, Outcome
from ._distributed import joined
from ._options import command
from ._settings import ApplySettings, FitSettings, ProcessSettings, save_settings
from ._stores import MatchedStores, drawn_rows, open_pair, open_rows

#: The most anchors that `--method auto` takes.
AUTO_ANCHORS = 20_000
#: The most anchors whose map is diagnosed, which takes about 60 fits.
DIAGNOSED_ANCHORS = 1000


@command(
    FitSettings,
    ProcessSettings,
    arguments=("source", "target"),
    examples=(
        "semalign fit stores/images stores/reports --out image-to-text.safetensors",
        "semalign fit stores/images stores/reports --method affine --ridge 0.1 --anchors 100000 "
        "--seed 0 --out affine.safetensors",
        "semalign fit stores/images stores/reports --anchors 50 --select k-medoids "
        "--unpaired-source stores/images --unpaired-target stores/reports --out map.safetensors",
    ),
)
def fit(console: Console, settings: FitSettings, processes: ProcessSettings) -> Outcome:
    """Fit a map from one store's space to another's.

    Rows are matched by id. Of a method but auto they are streamed, so stores may be larger than
    memory; auto and a fit with unpaired rows hold their anchors, and the choice of anchors by the
    source's rows these. Beside the map, in NAME.settings.json, is what it was made with.
    """
    with joined(console, processes):
        return _fit(console, settings)


def _fit(console: Console, settings: FitSettings) -> Outcome:
    matched = open_pair(settings.source, settings.target)
    # Before hours of reading.
    check_method(settings.method, settings.options)
    dimensions = matched.source.dimension, matched.target.dimension
    check_options(settings.method, dimensions, **settings.options)
    if not settings.out.parent.is_dir():
        raise FileNotFoundError(f"{settings.out.parent}: there is no such folder for the map")
    pairs, not_found = _anchors(settings, matched)
    count = len(pairs)
    if settings.method == "auto" and count > AUTO_ANCHORS:
        raise ValueError(
            f"--method auto holds its anchors in memory, at most {AUTO_ANCHORS}; there are "
            f"{count}: draw some with --anchors, or give --method affine, which streams them"
        )
    console.note(f"{counted(count, 'pair')} of {settings.source} and {settings.target}")
    pools = _unpaired(settings, pairs)
    with console.progress("fit", len(shard_rows(count))) as shown:
        stats = accumulate_stats(_batches(pairs, settings.batch_rows), progress=shown.update)
    about: dict[str, Any] = {}
    if pools is not None:
        mapping, about = _fit_with_unpaired(settings, pairs, pools)
    elif settings.method == "auto":
        mapping, about = _fit_auto(pairs)
    else:
        mapping = fit_from_stats(settings.method, stats, **settings.options)

    def save() -> None:
        save_map(mapping, settings.out, method=settings.method, diagnosis=about.get("diagnosis"))
        save_settings(settings, settings.out.with_suffix(".settings.json"))

    by_first("writing the map", save)
    values = {
        "map": str(settings.out),
        "sha256": map_hash(mapping),
        "method": settings.method,
        "d_in": mapping.d_in,
        "d_out": mapping.d_out,
        "anchors": count,
        "matched": len(matched),
        "only_source": matched.matched.only_a,
        "only_target": matched.matched.only_b,
        "ids_not_found": not_found,
        "correlation": correlation(mapping, stats),
        **about,
    }
    values["matched_by"] = "position" if matched.by_position else "id"
    lines = [_fit_summary(values), *matched.by_position]
    without_penalty = settings.method in ("affine", "linear") and not settings.ridge
    if without_penalty and pools is None and count <= mapping.d_in:
        lines.append(
            f"{counted(count, 'anchor')} of {mapping.d_in} dimensions are fitted exactly, whatever "
            "they are: --method auto finds a penalty"
        )
    return Outcome(values, "\n".join(lines))


def _batches(pairs: MatchedStores, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the rows, each batch checked."""
    start = shard_rows(len(pairs)).start
    stores = pairs.source, pairs.target, pairs.matched
    for x, y in paired_batches(*stores, size, shard=this_process()):
        pairs.check_finite(x, y, start)
        start += len(x)
        yield x, y


def _fit_auto(pairs: MatchedStores) -> tuple[AffineMap, dict[str, Any]]:
    """The map of `fit_auto`, and what it chose."""
    x, y = pairs.rows()
    mapping, info = fit_auto(x, y)
    chosen: dict[str, Any] = {
        "prior": float(info.prior),
        "strength": float(info.strength),
        "loo_cosine": float(info.loo_cosine),
    }
    if 3 <= len(x) <= DIAGNOSED_ANCHORS:
        chosen["diagnosis"] = diagnose(x, y).summary()
    return mapping, chosen


def _unpaired(
    settings: FitSettings, pairs: MatchedStores
) -> tuple[EmbeddingStore, EmbeddingStore] | None:
    """The stores of unpaired rows, or None; before anything is read."""
    if settings.unpaired_source is None or settings.unpaired_target is None:
        return None
    if len(pairs) < FOLDS:
        raise ValueError(
            f"--unpaired-source needs at least {FOLDS} pairs to fit to; there are {len(pairs)}"
        )
    stores = open_rows(settings.unpaired_source), open_rows(settings.unpaired_target)
    for store, like in zip(stores, (pairs.source, pairs.target), strict=True):
        if not len(store):
            raise ValueError(f"{store.folder} holds no rows")
        if store.dimension != like.dimension:
            raise ValueError(
                f"{store.folder} has {store.dimension} dimensions; {like.folder} has "
                f"{like.dimension}: unpaired rows must be of the same encoder"
            )
    return stores


def _fit_with_unpaired(
    settings: FitSettings, pairs: MatchedStores, pools: tuple[EmbeddingStore, EmbeddingStore]
) -> tuple[AffineMap, dict[str, Any]]:
    """The map, and what is told of it."""
    key_fit, *keys = jax.random.split(jax.random.key(settings.seed), 3)
    rows = [
        store.rows(drawn_rows(key, len(store), settings.unpaired_rows)).astype(np.float32)
        for store, key in zip(pools, keys, strict=True)
    ]
    mapping, info = fit_semi(*pairs.rows(), *rows, key=key_fit)
    about = {
        "unpaired_used": bool(info.used),
        "unpaired_source": len(rows[0]),
        "unpaired_target": len(rows[1]),
        "left_out_cosine": float(info.unpaired_cosine),
        "left_out_cosine_of_anchors_only": float(info.anchors_cosine),
    }
    return mapping, about


def _anchors(settings: FitSettings, pairs: MatchedStores) -> tuple[MatchedStores, int]:
    """The pairs that are fitted to, and how many of the ids that are wanted are not among them."""
    not_found = 0
    if settings.ids is not None:
        wanted = read_ids(settings.ids)
        pairs = pairs.select(np.array([key in wanted for key in pairs.ids], bool))
        not_found = len(wanted) - len(pairs)
        if not len(pairs):
            raise ValueError(f"{settings.ids}: none of its ids is in both stores")
    if settings.anchors is not None:
        pairs = pairs.select(_chosen(settings, settings.anchors, pairs))
    return pairs, not_found


def read_ids(path: Path) -> set[str]:
    """Ids of a file: one a line, or a JSON list of text or whole numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of ids")
    with reading(path, "file of ids"):
        text = path.read_text(encoding="utf-8-sig")
        lines = (line.strip() for line in text.split("\n"))
        ids = parse_json(text, path) if path.suffix == ".json" else list(lines)
    if not isinstance(ids, list):
        raise ValueError(f"{path} must hold a JSON list of ids")
    found = set(id_texts(str(path), ids, empty=True)) - {""}
    if not found:
        raise ValueError(f"{path} holds no ids")
    return found


def _chosen(settings: FitSettings, count: int, pairs: MatchedStores) -> np.ndarray:
    """Which of the pairs, by the rows of the source store, are anchors."""
    key = jax.random.key(settings.seed)
    if count > len(pairs):
        raise ValueError(f"--anchors {count}: only {counted(len(pairs), 'pair')} to draw from")
    if settings.select == "random":
        return drawn_rows(key, len(pairs), count)
    rows = pairs.source.rows(pairs.matched.rows_a).astype(np.float32)
    return np.sort(np.asarray(select_anchors(rows, count, method=settings.select, key=key)))


def correlation(mapping: AffineMap, stats: PairStats) -> float | None:
    """Correlation of mapped and target anchors, over all dimensions together, both centred.

    sum_i <(x_i - mean) W, y_i - mean> over the roots of the two sums of squares, from the
    statistics: in [-1, 1], and blind to scale, which an orthogonal map leaves as it is. None if one
    side does not vary.
    """
    weight = np.asarray(mapping.weight, np.float64)
    squares = np.sum((np.asarray(stats.cxx) @ weight) * weight)
    scale = float(np.sqrt(squares * np.asarray(stats.cyy_diagonal).sum()))
    return float(np.sum(np.asarray(stats.cxy) * weight)) / scale if scale > 0 else None


def _fit_summary(values: dict[str, Any]) -> str:
    lines = [
        f"{values['map']}: {values['method']}, {values['d_in']} to {values['d_out']} dimensions, "
        f"fitted to {values['anchors']} of {values['matched']} matched pairs",
        f"not matched: {counted(values['only_source'], 'id')} of the source, "
        f"{values['only_target']} of the target",
    ]
    if values["ids_not_found"]:
        lines.append(f"{values['ids_not_found']} of the ids that were asked for are not in both")
    if values["correlation"] is not None:
        lines.append(
            f"correlation of mapped and target anchors, to which it was fitted: "
            f"{values['correlation']:.4f}"
        )
    if "prior" in values:
        lines.append(
            f"chosen: ridge of {values['strength']:.3g} towards {prior_in_words(values['prior'])}, "
            f"leave-one-out cosine {values['loo_cosine']:.4f}"
        )
    lines += values.get("diagnosis", {}).get("advice", [])
    if "unpaired_used" in values:
        lines.append(
            f"unpaired: {counted(values['unpaired_source'], 'row')} of the source, "
            f"{values['unpaired_target']} of the target, "
            f"{'used' if values['unpaired_used'] else 'left out'}; cosine of left-out anchors "
            f"{values['left_out_cosine']:.3f} with them, "
            f"{values['left_out_cosine_of_anchors_only']:.3f} without"
        )
    return "\n".join(lines)


def map_hash(mapping: AffineMap) -> str:
    """SHA-256 of what a map computes; its file holds metadata in an order that differs."""
    parts = (mapping.weight, mapping.source_offset, mapping.target_offset)
    return content_hash(map(np.asarray, parts))


@command(
    ApplySettings,
    arguments=("map", "store"),
    examples=(
        "semalign apply image-to-text.safetensors stores/images --out stores/images-as-text",
    ),
)
def apply(console: Console, settings: ApplySettings) -> Outcome:
    """Map all rows of a store, or of a .npy file, into a new store, chunk by chunk.

    Run the same command again to go on after an interruption; a store with other rows than then,
    or with more, is refused.
    """
    mapping, store = load_map(settings.map), open_rows(settings.store)
    if mapping.batch_shape:
        raise ValueError(f"{settings.map} holds {mapping.batch_shape} maps; expected one")
    if mapping.d_in != store.dimension:
        raise ValueError(
            f"{settings.map} maps {mapping.d_in} dimensions; {settings.store} has {store.dimension}"
        )
    narrow = store.dtype.name if store.dtype.name in ("bfloat16", "float16") else "float32"
    dtype = settings.dtype or narrow
    mapped, before = map_store(
        console, mapping, store, settings.out, dtype=dtype, chunk_size=settings.chunk_size
    )
    save_settings(settings, settings.out / "settings.json")
    values = {
        "store": str(settings.out),
        "rows": len(mapped),
        "rows_before": before,
        "dimension": mapped.dimension,
        "dtype": dtype,
    }
    text = (
        f"{settings.out}: {counted(len(mapped), 'row')} of {mapped.dimension} dimensions, {dtype}"
    )
    return Outcome(values, text)


def map_store(
    console: Console,
    mapping: AffineMap,
    store: EmbeddingStore,
    out: Path,
    *,
    dtype: str,
    chunk_size: int,
    unit_length: bool = False,
) -> tuple[EmbeddingStore, int]:
    """Map all rows of a store into a new one in `out`, or go on with it.

    Returns:
        The new store, and how many of its rows were there before.
    """
    description = {
        "map": {"sha256": map_hash(mapping), **({"unit_length": True} if unit_length else {})},
        "of": store.description,
        "of_rows": store.checksum,  # its folder may have been made anew
    }
    mapped = create_store(out, description=description, dimension=mapping.d_out, dtype=dtype)
    before = len(mapped)
    if mapped.ids != store.ids[:before]:
        raise ValueError(
            f"{out} holds rows of other ids than {store.folder}: choose another folder"
        )
    with console.progress("apply", len(store), before) as shown:
        for start in range(before, len(store), chunk_size):
            rows = slice(start, start + chunk_size)
            found = mapping(jnp.asarray(store.rows(rows).astype(np.float32)))
            found = np.asarray(normalize_rows(found) if unit_length else found)
            with np.errstate(over="ignore"):  # the store refuses infinity and names the row
                found = found.astype(mapped.dtype)
            mapped = mapped.append(store.ids[rows], found)
            shown.update(len(mapped))
    return mapped, before
