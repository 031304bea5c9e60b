"""`semalign migrate`."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._core.checks import counted
from .._core.files import format_header
from .._core.machine import check_space
from .._core.typing import Method
from ..maps.affine_map import AffineMap, identity_map
from ..maps.fit import fit
from ..maps.io import save_map
from ..stores import export_store
from ..stores.exchange import refuse_missing_package
from ..stores.store import EmbeddingStore
from ..studies.migration import Kept, search_kept
from ..studies.report import write_json
from ..studies.tables import Table
from ._console import Console, Outcome
from ._options import command
from ._settings import SEARCHED, MigrateSettings, save_settings, usual_options
from ._stores import MatchedStores, drawn_rows, open_pair, open_rows
from .maps import map_store

FORMAT = "semalign_jax.migration"
VERSION = 1
#: Lists of this length decide.
_DECIDING = 10
#: The other lines of the table: no map, and the maps of published tools.
_OTHERS: dict[str, dict[str, Any]] = {
    "affine": {"ridge": "loo"},
    "ortho": {"normalize": "isotropic"},
}
_ROWS_A_FILE = 16384


class _Parts(NamedTuple):
    """Rows of both stores: those of the sample, those searched among, and the queries."""

    sample: MatchedStores
    searched: MatchedStores
    queries: np.ndarray
    own: Any  # positions of the queries among the searched rows; None if they are others


@command(
    MigrateSettings,
    arguments=("old", "new"),
    examples=(
        "semalign migrate stores/old stores/new-of-a-sample --sample 2000 --out migration",
        "semalign migrate stores/old stores/new --cost 0.02 --write npy,parquet --out migration",
    ),
)
def migrate(console: Console, settings: MigrateSettings) -> Outcome:
    """Move a search index to another encoder by a map, and measure what the search keeps.

    The map is fitted to a sample that both encoders have embedded. Rows that are not of the sample
    are searched by the new encoder's queries, once mapped and once embedded again: recall@k is the
    share of queries whose nearest row is still among the first k, overlap@k the share of the first
    k that are the same. Run the same command again to go on after an interruption.
    """
    pairs = open_pair(settings.old, settings.new)
    old, new = pairs.source, pairs.target
    parts = _parts(settings, pairs)
    for ending in settings.write:
        refuse_missing_package(f".{ending}")
    copies = 1 + len(settings.write) if settings.write else 0
    check_space(settings.out, 4 * len(old) * new.dimension * copies, "the mapped rows")
    settings.out.mkdir(parents=True, exist_ok=True)

    console.note(
        f"{counted(len(parts.sample), 'row')} to fit to, {len(parts.searched)} to search, "
        + counted(len(parts.queries), "query", "queries")
    )
    x, y = map(jnp.asarray, parts.sample.rows())
    methods = {**_OTHERS, settings.method: _OTHERS.get(settings.method)}
    maps = {"naive": identity_map(old.dimension, new.dimension)}
    for name, options in methods.items():
        options = usual_options(settings.method) if options is None else options
        maps[name] = fit(cast(Method, name), x, y, **options)
    kept = search_kept(
        maps,
        *parts.searched.rows(),
        parts.queries,
        jax.random.key(settings.seed),
        own=parts.own,
        ks=[k for k in (1, _DECIDING, 100) if k < len(parts.searched)],
    )
    mapping = maps[settings.method]
    deciding = next(one for one in kept if one[:3] == (settings.method, "recall", _DECIDING))
    verdict, why = _verdict(deciding, settings.keep)
    # First: vectors of another map in this folder are refused, and its map stays beside them.
    vectors = settings.write or (settings.out / "vectors").is_dir()
    written = _write(console, settings, mapping, old) if vectors else []
    save_map(mapping, settings.out / "map.safetensors", method=settings.method)
    save_settings(settings, settings.out / "settings.json")
    values = {
        **format_header(FORMAT, VERSION),
        "verdict": verdict,
        "rows": len(old),
        "sample": len(x),
        "searched": len(parts.searched),
        "queries": len(parts.queries),
        "method": settings.method,
        "keep": settings.keep,
        "kept": [one._asdict() for one in kept],
        "rows_to_embed": len(x),
        "rows_saved": len(old) - len(x),
        "written": written,
    }
    cost = ""
    if settings.cost is not None:
        values["cost"] = settings.cost * len(x) / 1000
        values["cost_of_all"] = settings.cost * len(old) / 1000
        cost = f", cost {values['cost']:g} of {values['cost_of_all']:g}"
    write_json(settings.out / "migration.json", values)
    lines = [
        f"{verdict}: {why}",
        f"rows to embed: {len(x)} of {len(old)}{cost}",
        f"written to {settings.out}: {', '.join(['map.safetensors', 'migration.json', *written])}",
    ]
    lines += pairs.by_position
    if len(old) > len(parts.searched):
        lines.insert(
            1,
            f"measured among {counted(len(parts.searched), 'row')}; among all {len(old)} more are "
            "alike, and less is kept",
        )
    return Outcome({"out": str(settings.out), **values}, "\n".join(lines), [_table(kept)])


def _parts(settings: MigrateSettings, pairs: MatchedStores) -> _Parts:
    count, new = len(pairs), pairs.target
    left = check_rows(settings, count)
    parts_key, query_key = jax.random.split(jax.random.key(settings.seed))
    order = np.asarray(jax.random.permutation(parts_key, count))
    sample = pairs.select(np.sort(order[: count - left]))
    searched = pairs.select(np.sort(order[count - left :][: settings.search_rows]))
    if settings.queries is None:
        own = drawn_rows(query_key, len(searched), settings.search_queries)
        rows = new.rows(searched.matched.rows_b[own])
        return _Parts(sample, searched, rows.astype(np.float32), own)
    queries = open_rows(settings.queries)
    if queries.dimension != new.dimension or not len(queries):
        raise ValueError(
            f"{settings.queries} has {counted(len(queries), 'row')} of {queries.dimension} "
            f"dimensions; queries must be of the new encoder, as the {new.dimension} dimensions of "
            f"{settings.new}"
        )
    rows = queries.rows(drawn_rows(query_key, len(queries), settings.search_queries))
    return _Parts(sample, searched, rows.astype(np.float32), None)


def check_rows(settings: MigrateSettings, count: int) -> int:
    """How many of the rows that both have are searched: of a sample alone a fifth."""
    left = max(count - settings.sample, count // 5)
    if left < SEARCHED:
        raise ValueError(
            f"only {counted(count, 'id is', 'ids are')} in both {settings.old} and {settings.new}: "
            f"at least {5 * SEARCHED} are needed, to fit a map and to search"
        )
    return left


def _verdict(kept: Kept, keep: float) -> tuple[str, str]:
    """What to do, and why."""
    found = f"recall@{kept.k} of {kept.value:.3f} ({kept.lower:.3f} to {kept.upper:.3f})"
    asked = np.float32(keep)  # as the ends of the interval are rounded
    if kept.lower >= asked:
        return "bridge", f"{found} is at least the {keep:g} that is asked for"
    if kept.upper < asked:
        return "re-embed", f"{found} is less than the {keep:g} that is asked for"
    return (
        "undecided",
        f"{found} may be less than the {keep:g} asked for: take more queries",
    )


def _write(
    console: Console, settings: MigrateSettings, mapping: AffineMap, old: EmbeddingStore
) -> list[str]:
    """The mapped rows as a store and as files; their names."""
    mapped, _ = map_store(
        console,
        mapping,
        old,
        settings.out / "vectors",
        dtype="float32",
        chunk_size=_ROWS_A_FILE,
        unit_length=True,
    )
    names = [f"vectors.{ending}" for ending in settings.write]
    for name in names:
        export_store(mapped, settings.out / name)
    return ["vectors", *names]


def _table(kept: Sequence[Kept]) -> Table:
    """A line for each map, a column for each measure; the interval of what decides."""
    lines: dict[str, list[str]] = {}
    for one in kept:
        text = f"{one.value:.3f}"
        if (one.measure, one.k) == ("recall", _DECIDING):
            text += f" ({one.lower:.3f}-{one.upper:.3f})"
        lines.setdefault(one.method, []).append(text)
    columns = [f"{one.measure} @{one.k}" for one in kept if one.method == kept[0].method]
    body = [[name, *cells] for name, cells in lines.items()]
    return Table("of the search after a full re-embedding", ["map", *columns], body)
