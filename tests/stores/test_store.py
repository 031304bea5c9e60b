"""Stores of embeddings: reading, appending, verifying, joining, other formats."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import filelock
import jax.numpy as jnp
import numpy as np
import pytest

import semalign_jax as sa
from semalign_jax.stores import chunks as _chunks

ABOUT = {"encoder": "vit", "weights": "0" * 8, "pooling": "cls", "preprocessing": {"size": 224}}
SIZES = (4, 7, 1)


def values(rows=12, dimension=3, seed=0, dtype: Any = np.float32):
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(dtype)


def names(rows=12, prefix="image"):
    return [f"{prefix}-{row}" for row in range(rows)]


def make(folder, rows, ids, sizes=None):
    store = sa.stores.create_store(
        folder, description=ABOUT, dimension=rows.shape[1], dtype=rows.dtype.name
    )
    start = 0
    for size in sizes or (len(rows),):
        block = slice(start, start + size)
        store, start = store.append(ids[block], rows[block]), start + size
    return store


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "store", values(), names(), SIZES)
    return tmp_path / "store"


def fixed_store(folder, rows, ids, chunk_size=5):
    """As `encoders.embed` writes it; that module's tests read its real folders."""
    from semalign_jax.encoders._store import open_run

    run = {"pooling": "cls", "items": len(rows), "dimension": rows.shape[1]}
    run |= {"dtype": rows.dtype.name, "chunk_size": chunk_size}
    with open_run(folder, run, ids, True) as chunks:
        for number in range(chunks.count):
            span = chunks.span(number)
            chunks.write(number, _chunks.Chunk(rows[span.start : span.stop], 0))
    return sa.stores.open_store(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("writer", ["append", "embed"])
def test_rows_are_those_that_were_written(tmp_path, writer, dtype):
    rows, ids = values(dtype=jnp.dtype(dtype)), names()
    if writer == "append":
        make(tmp_path, rows, ids, SIZES)
    else:
        fixed_store(tmp_path, rows, ids)
    store = sa.stores.open_store(tmp_path)
    assert (len(store), store.dimension, store.dtype) == (12, 3, jnp.dtype(dtype))
    assert list(store.ids) == ids
    assert store.description["pooling"] == "cls"
    assert "semalign_jax" in store.versions
    indices = [
        slice(None), slice(3, 6), slice(None, None, -2), slice(20, 30),
        [11, 0, 0, 4, -1, -12, 5], np.array([7], np.uint8), [],
    ]  # fmt: skip
    for index in indices:
        expected = rows[index] if len(np.shape(index)) == 0 or len(index) else rows[:0]
        got = store.rows(index)
        assert got.dtype == rows.dtype
        np.testing.assert_array_equal(got, expected)
    assert [len(batch) for batch in store.batches(5)] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(list(store.batches(5))), rows)
    assert sa.stores.verify_store(tmp_path) == []


def test_a_store_with_other_rows_has_another_checksum(folder, tmp_path):
    store = sa.stores.open_store(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert sa.stores.open_store(tmp_path / "copy").checksum == store.checksum
    found = {store.checksum, store.append(["new"], values(1)).checksum}
    for number, write in enumerate((make, make, fixed_store, fixed_store)):
        found.add(write(tmp_path / str(number), (number + 1) * values(), names()).checksum)
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("2", "3")]
    assert manifests[0] == manifests[1]
    assert len(found) == 6


def test_bad_indices_are_named(folder):
    store = sa.stores.open_store(folder)
    for index in ([3, 12], [-13]):
        with pytest.raises(IndexError, match=f"row {index[-1]} is out of range.*12 rows"):
            store.rows(index)
    wrong: list[Any] = [np.ones(12, bool), [0.5], [[1]], 3]
    for index in wrong:
        with pytest.raises(TypeError, match="index must be a slice or"):
            store.rows(index)
    with pytest.raises(ValueError, match="batch_rows must be at least 1"):
        store.batches(0)


def test_reading_some_rows_takes_little_memory(tmp_path):
    rows = np.zeros((20000, 64), np.float32)
    rows[:, 0] = np.arange(20000)
    store = make(tmp_path, rows, names(20000))
    tracemalloc.start()
    got = store.rows([19999, 5])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got[:, 0], [19999, 5])
    assert peak < 200_000  # of 5 MB


def test_an_empty_store_is_one(tmp_path):
    store = sa.stores.create_store(tmp_path, description=ABOUT, dimension=3)
    assert (len(store), store.ids, store.rows([]).shape) == (0, (), (0, 3))
    assert list(store.batches(2)) == []
    assert sa.stores.verify_store(tmp_path) == []
    with pytest.raises(ValueError, match="is empty"):
        sa.stores.export_store(store, tmp_path / "a.npy")


def test_appends_that_do_not_fit_change_nothing(folder):
    store = sa.stores.open_store(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    nan = values(2)
    nan[1, 2] = np.nan
    two = ["x", "y"]
    refused: list[tuple[Any, Any, dict, type, str]] = [
        (two, values(2, 4), {}, ValueError, "dimension: 3 there, 4 now"),
        (two, values(2, dtype=np.float64), {}, ValueError, "'float32' there, 'float64' now"),
        (two, values(2), {"description": {**ABOUT, "pooling": "mean"}}, ValueError,
         r"\n  description\['pooling'\]: 'cls' there, 'mean' now$"),
        (["x", "image-3"], values(2), {}, ValueError, "'image-3' of row 1 is a duplicate"),
        (["x", "x"], values(2), {}, ValueError, "'x' of row 1 is a duplicate"),
        (["x"], values(2), {}, ValueError, "1 id and 2 rows"),
        (["x", 1], values(2), {}, TypeError, "that of row 1 is 1"),
        ("xy", values(2), {}, TypeError, "one str"),
        (two, nan, {}, ValueError, r"NaN or infinity in row 1 \(id 'y'"),
        ([], values(0), {}, ValueError, "k >= 1"),
        (two, values(2)[0], {}, ValueError, "k >= 1"),
    ]  # fmt: skip
    for ids, rows, options, error, message in refused:
        with pytest.raises(error, match=message):
            store.append(ids, rows, **options)
    after = {path: path.read_bytes() for path in folder.iterdir()}
    assert after == before
    with filelock.FileLock(folder / ".lock"), pytest.raises(RuntimeError, match="another process"):
        store.append(two, values(2))


def test_creating_again_continues_or_lists_what_differs(folder, tmp_path):
    store = sa.stores.create_store(folder, description=dict(ABOUT), dimension=3)
    assert len(store) == 12
    grown = store.append(["x"], values(1, seed=1), description=ABOUT)
    assert (len(store), len(grown), grown.ids[-1]) == (12, 13, "x")
    with pytest.raises(ValueError, match="changed since it was opened"):
        store.append(["y"], values(1))
    with pytest.raises(
        ValueError, match=r"(?s)description\['pooling'\].*dimension: 3 there, 4 now"
    ):
        sa.stores.create_store(folder, description={**ABOUT, "pooling": "mean"}, dimension=4)
    with pytest.raises(ValueError, match="dtype must be one of"):
        sa.stores.create_store(tmp_path / "a", description=ABOUT, dimension=3, dtype=np.int32)
    with pytest.raises(TypeError, match="JSON values"):
        sa.stores.create_store(tmp_path / "a", description={"x": object()}, dimension=3)
    with pytest.raises(TypeError, match="must be a mapping"):
        sa.stores.create_store(tmp_path / "a", description="vit", dimension=3)  # pyright: ignore
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"holds a\.png"):
        sa.stores.create_store(tmp_path / "other", description=ABOUT, dimension=3)
    fixed = fixed_store(tmp_path / "fixed", values(), names())
    with pytest.raises(ValueError, match="written by embed"):
        fixed.append(["x"], values(1))


def test_an_interrupted_append_does_not_count_and_is_done_again(folder, monkeypatch):
    store = sa.stores.open_store(folder)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_chunks, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            store.append(["x", "y"], values(2, seed=5))
    assert list(sa.stores.open_store(folder).ids) == names()
    # What is left of it is no damage: it does not count, and the next append overwrites it.
    assert {"chunk-00003.safetensors", "ids-00003.json"} <= {p.name for p in folder.iterdir()}
    assert sa.stores.verify_store(folder) == []
    (folder / ".chunk-00004.safetensors.abc").write_bytes(b"left by a killed writer")
    store = sa.stores.open_store(folder).append(["z"], values(1, seed=6))
    np.testing.assert_array_equal(store.rows([12]), values(1, seed=6))
    assert sa.stores.verify_store(folder) == []
    assert not list(folder.glob(".chunk*"))


def flip(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def damages(other):
    first, second = "chunk-00000.safetensors", "chunk-00001.safetensors"
    return {
        "bit": (lambda f: flip(f / second), second, "do not have their sha256"),
        "header bit": (lambda f: flip(f / second, 40), second, "damaged"),
        "cut": (lambda f: (f / second).write_bytes((f / second).read_bytes()[:-1]), second,
                "damaged"),
        "missing": (lambda f: (f / second).unlink(), second, "is missing"),
        "foreign": (lambda f: shutil.copy(other / second, f), second, "sha256"),
        "misplaced": (lambda f: shutil.copy(f / first, f / second), second, "is chunk 0 of run"),
        "more": (lambda f: shutil.copy(f / first, f / "chunk-00009.safetensors"),
                 "chunk-00009.safetensors", "not part of this store"),
        "ids bit": (lambda f: flip(f / "ids-00002.json"), "ids-00002.json", "damaged"),
        "ids missing": (lambda f: (f / "ids-00002.json").unlink(), "ids-00002.json", "missing"),
        "manifest": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json", "damaged"),
        "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json", "has no"),
    }  # fmt: skip


@pytest.mark.parametrize("damage", damages(Path()))
def test_damage_is_found_and_its_file_named(folder, tmp_path, damage):
    # The same description and ids, other values.
    make(tmp_path / "other", values(seed=9), names(), SIZES)
    act, file, message = damages(tmp_path / "other")[damage]
    act(folder)
    (problem,) = sa.stores.verify_store(folder)
    assert problem.file == file
    assert message in problem.message
    assert str(folder / file) in problem.message or "manifest" in file


def test_several_problems_are_listed_by_file(folder):
    for number in (2, 0):
        flip(folder / f"chunk-0000{number}.safetensors")
    (folder / "ids-00001.json").unlink()
    files = [problem.file for problem in sa.stores.verify_store(folder)]
    assert files == ["chunk-00000.safetensors", "chunk-00002.safetensors", "ids-00001.json"]
    with pytest.raises(FileNotFoundError, match="ids-00001.json is missing"):
        sa.stores.open_store(folder)


def test_what_is_no_store_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no embeddings at .*/none: there is no such"):
        sa.stores.open_store(tmp_path / "none")
    (tmp_path / "a.npz").touch()
    with pytest.raises(FileNotFoundError, match="a.npz has no manifest.json: .* makes one of it"):
        sa.stores.open_store(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="no map at .*: this is a folder"):
        sa.load_map(tmp_path)


def test_ids_that_do_not_fit_are_found(tmp_path):
    # Written by another program, with checksums that are right.
    fixed_store(tmp_path / "twice", values(), [*names(11), "image-3"])
    (problem,) = sa.stores.verify_store(tmp_path / "twice")
    assert problem.file == "ids.json"
    assert "'image-3', number 11, is there twice" in problem.message
    with pytest.raises(ValueError, match=r"a: .* the id 'image-3' twice, in rows 3 and 11"):
        sa.stores.join_stores(*[sa.stores.open_store(tmp_path / "twice")] * 2)
    with pytest.raises(ValueError, match="holds 11 ids; manifest.json says 12 items"):
        fixed_store(tmp_path / "few", values(), names(11))
    (problem,) = sa.stores.verify_store(tmp_path / "few")
    assert problem.file == "ids.json"
    rows = values()
    rows[7, 1] = np.inf
    fixed_store(tmp_path / "infinite", rows, names())
    (problem,) = sa.stores.verify_store(tmp_path / "infinite")
    assert problem.file == "chunk-00001.safetensors"
    assert "row 7" in problem.message


def test_reading_rows_finds_missing_and_foreign_chunks(folder, tmp_path):
    store = sa.stores.open_store(folder)
    make(tmp_path / "other", values(seed=9), names(), SIZES)
    shutil.copy(tmp_path / "other" / "chunk-00001.safetensors", folder)
    np.testing.assert_array_equal(store.rows([0]), values()[:1])
    with pytest.raises(ValueError, match="chunk-00001.safetensors is damaged"):
        store.rows([4])
    (folder / "chunk-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="chunk-00002.safetensors is missing"):
        store.rows([11])


def test_manifests_of_wrong_types_are_refused(folder):
    path = folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    for key, value in [("chunks", [{"rows": 0, "ids": "", "sha256": ""}]), ("chunks", [{}]),
                       ("chunks", 3), ("run", {**whole["run"], "dimension": 0}),
                       ("versions", None)]:  # fmt: skip
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            sa.stores.open_store(folder)


def test_join_matches_by_id_in_the_order_of_the_first(tmp_path):
    a = make(tmp_path / "a", values(5), ["p", "q", "r", "s", "t"])
    b = make(tmp_path / "b", values(9, 2), ["t", "u", "q", "v", "w", "x", "y", "z", "p"], (4, 5))
    joined = sa.stores.join_stores(a, b)
    np.testing.assert_array_equal(joined.rows_a, [0, 1, 4])
    np.testing.assert_array_equal(joined.rows_b, [8, 2, 0])
    assert (joined.only_a, joined.first_only_a) == (2, ("r", "s"))
    assert (joined.only_b, joined.first_only_b) == (6, ("u", "v", "w", "x", "y"))
    batches = list(sa.stores.paired_batches(a, b, joined, 2))
    assert [(x.shape, y.shape) for x, y in batches] == [((2, 3), (2, 2)), ((1, 3), (1, 2))]
    np.testing.assert_array_equal(batches[0][1], values(9, 2)[[8, 2]])
    c = make(tmp_path / "c", values(1), ["other"])
    joined = sa.stores.join_stores(a, c)
    assert (joined.rows_a.shape, joined.only_a, joined.only_b) == ((0,), 5, 1)
    with pytest.raises(ValueError, match=r"matched is empty.*'p'.* 'other'"):
        sa.stores.paired_batches(a, c, joined, 2)


@pytest.mark.parametrize("method", ["affine", "linear", "l-ortho", "ortho"])
def test_a_fit_over_stores_equals_the_fit_in_memory(tmp_path, method):
    rng = np.random.default_rng(0)
    x, y = values(60, 5), values(60, 5, seed=1)
    order_a, order_b = rng.permutation(60)[:50], rng.permutation(60)[:50]
    ids = names(60)
    a = make(tmp_path / "a", x[order_a], [ids[k] for k in order_a], (20, 30))
    b = fixed_store(tmp_path / "b", y[order_b], [ids[k] for k in order_b], 7)
    stats = sa.accumulate_stats(sa.stores.paired_batches(a, b, sa.stores.join_stores(a, b), 8))
    both = np.intersect1d(order_a, order_b)
    fitted = sa.fit_from_stats(method, stats)
    expected = sa.fit(method, x[both].astype(np.float64), y[both].astype(np.float64))
    np.testing.assert_allclose(fitted.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(fitted.bias, expected.bias, atol=1e-9)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    x = values(30, 4)
    make(tmp_path / "images", x, names(30))
    np.save(tmp_path / "reports.npy", x[::-1, ::-1])
    (tmp_path / "reports.ids.json").write_text(json.dumps(names(30)[::-1]))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(example, scope)
    np.testing.assert_allclose(scope["mapping"](x), x[:, ::-1], atol=1e-5)


FORMATS = [".npy", ".npz", ".parquet", ".h5"]


def need(suffix):
    package = {".parquet": "pyarrow", ".h5": "h5py"}.get(suffix)
    if package:
        pytest.importorskip(package)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tmp_path, suffix, dtype):
    need(suffix)
    rows = values(dtype=jnp.dtype(dtype))
    ids = ["é", "a b", "", '"', *names(8)]
    store = make(tmp_path / "a", rows, ids, SIZES)
    sa.stores.export_store(store, tmp_path / f"file{suffix}")
    assert not list(tmp_path.glob(".*"))
    back = sa.stores.import_store(
        tmp_path / f"file{suffix}", tmp_path / "b", description={"of": "b"}, chunk_rows=5
    )
    assert list(back.ids) == ids
    assert back.dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert back.description == {"of": "b"}
    np.testing.assert_array_equal(back.rows(slice(None)), rows.astype(back.dtype))
    assert len(list((tmp_path / "b").glob("chunk-*"))) == 3
    assert sa.stores.verify_store(tmp_path / "b") == []


def test_exports_are_plain_files_of_their_formats(tmp_path, folder):
    store = sa.stores.open_store(folder)
    sa.stores.export_store(store, tmp_path / "a.npy")
    sa.stores.export_store(store, tmp_path / "a.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values())
    assert json.loads((tmp_path / "a.ids.json").read_text()) == names()
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["embeddings"], values())
        assert file["ids"].tolist() == names()
    parquet = pytest.importorskip("pyarrow.parquet")
    sa.stores.export_store(store, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    np.testing.assert_array_equal(np.float32(table["embeddings"]), values())
    assert table["ids"] == names()


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupted_import_continues(tmp_path, suffix, monkeypatch):
    need(suffix)
    store = make(tmp_path / "a", values(), names(), SIZES)
    path = tmp_path / f"a{suffix}"
    sa.stores.export_store(store, path)
    append, calls = sa.stores.EmbeddingStore.append, []

    def killed(self, *arguments, **options):
        calls.append(len(self))
        if calls == [0, 5]:
            raise KeyboardInterrupt
        return append(self, *arguments, **options)

    monkeypatch.setattr(sa.stores.EmbeddingStore, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        sa.stores.import_store(path, tmp_path / "b", description=ABOUT, chunk_rows=5)
    back = sa.stores.import_store(path, tmp_path / "b", description=ABOUT, chunk_rows=4)
    assert calls == [0, 5, 5, 9]
    np.testing.assert_array_equal(back.rows(slice(None)), values())
    make(tmp_path / "c", values(3), ["x", "y", "z"])
    with pytest.raises(ValueError, match="rows of other ids"):
        sa.stores.import_store(path, tmp_path / "c", description=ABOUT)
    changed = values()
    changed[7] *= 2  # the file was made anew, with rows of the same ids
    sa.stores.export_store(make(tmp_path / "d", changed, names()), path)
    with pytest.raises(ValueError, match=r"other rows than .*, from row 7 \(id 'image-7'\)"):
        sa.stores.import_store(path, tmp_path / "b", description=ABOUT, chunk_rows=4)


def test_rows_never_stand_beside_ids_of_others(tmp_path, monkeypatch):
    sa.stores.export_store(make(tmp_path / "a", values(2), names(2)), tmp_path / "a.npy")
    replace = os.replace

    def ends_before_the_rows(source, target):
        if str(target).endswith(".npy"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", ends_before_the_rows)
    with pytest.raises(KeyboardInterrupt):
        sa.stores.export_store(make(tmp_path / "b", values(2), ["x", "y"]), tmp_path / "a.npy")
    assert json.loads((tmp_path / "a.ids.json").read_text()) == ["x", "y"]
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_rows_stay_with_their_ids_where_a_disk_is_full(tmp_path):
    import resource

    sa.stores.export_store(make(tmp_path / "a", values(2), names(2)), tmp_path / "a.npy")
    other = make(tmp_path / "b", values(2, seed=1), ["x" * 3000, "y" * 3000])
    before = [(tmp_path / name).read_bytes() for name in ("a.npy", "a.ids.json")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            sa.stores.export_store(other, tmp_path / "a.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == [(tmp_path / name).read_bytes() for name in ("a.npy", "a.ids.json")]
    assert not list(tmp_path.glob(".*"))


def test_names_of_files_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"{'漢' * 80}.npz"  # 244 bytes, of 255
    sa.stores.export_store(make(tmp_path / "a", values(2), names(2)), path)
    np.testing.assert_array_equal(np.load(path)["embeddings"], values(2))


def test_bytes_in_another_order_and_memory_layout_are_kept(tmp_path):
    store = sa.stores.create_store(tmp_path, description=ABOUT, dimension=3)
    store = store.append(names(), np.asfortranarray(values()).astype(">f4"))
    np.testing.assert_array_equal(store.rows(slice(None)), values())
    assert sa.stores.verify_store(tmp_path) == []


@pytest.mark.parametrize("kind", [">i8", "<i4", ">U9", ">f8"])
def test_ids_of_files_may_be_in_another_order_of_bytes(tmp_path, kind):
    ids = np.arange(12).astype(kind)
    np.savez(tmp_path / "a.npz", embeddings=values().astype(">f4"), ids=ids)
    store = sa.stores.import_store(tmp_path / "a.npz", tmp_path / "a", description=ABOUT)
    assert store.ids == tuple(map(str, range(12)))
    np.testing.assert_array_equal(store.rows(slice(None)), values())


def imported(path, tmp_path, **options):
    return sa.stores.import_store(path, tmp_path / "imported", description=ABOUT, **options)


def test_bad_files_of_numpy_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    with pytest.raises(FileNotFoundError, match=r"a\.npy is missing"):
        imported(path, tmp_path)
    np.save(path, values(2))
    with pytest.raises(FileNotFoundError, match=r"a\.ids\.json is missing"):
        imported(path, tmp_path)
    ids = tmp_path / "a.ids.json"
    for text, message in [("[", "no JSON"), ("{}", "a JSON list"), ('["x"]', "1 id .* 2 rows"),
                          ('["x", "x"]', "'x' of row 1 is a duplicate"),
                          ('["x", 1.5]', "entry 1: 1.5 is no whole number"),
                          ('["x", null]', "entry 1 is empty"),
                          ('["7.0", 7]', "'7' of row 1 is a duplicate")]:  # fmt: skip
        ids.write_text(text)
        with pytest.raises(ValueError, match=message):
            imported(path, tmp_path)
    ids.write_text('["x", "y"]')
    with pytest.raises(ValueError, match="path must end in"):
        imported(tmp_path / "a.pkl", tmp_path)
    np.save(path, np.array([["x"], [None]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy is damaged or no .npy file of a plain array"):
        imported(path, tmp_path)
    for array in (np.ones((2, 3), np.int32), np.ones(2, np.float32)):
        np.save(path, array)
        with pytest.raises(ValueError, match="'embeddings' has shape"):
            imported(path, tmp_path)
    np.save(path, np.ones((0, 3), np.float32))
    with pytest.raises(ValueError, match=r"a\.npy: 'embeddings' has no rows"):
        imported(path, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npy is damaged"):
        imported(path, tmp_path)

    path = tmp_path / "a.npz"
    np.savez(path, x=values(2), name=np.array(["p", "q"]), pickled=np.array([{}, 1], object))
    with pytest.raises(
        ValueError, match=r"a\.npz has no 'embeddings'; it holds 'x', 'name', 'pickled'"
    ):
        imported(path, tmp_path)
    with pytest.raises(ValueError, match=r"a\.npz is damaged or no .npz file of plain arrays"):
        imported(path, tmp_path, embeddings="x", ids="pickled")
    nan = values(2)
    nan[1, 0] = np.nan
    np.savez(tmp_path / "nan.npz", embeddings=nan, ids=np.array(["p", "q"]))
    with pytest.raises(ValueError, match=r"nan\.npz, rows from 0: .*NaN or infinity in row 1"):
        imported(tmp_path / "nan.npz", tmp_path)
    store = imported(path, tmp_path, embeddings="x", ids="name")
    assert store.ids == ("p", "q")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        imported(path, tmp_path)


def test_one_id_in_all_formats(tmp_path):
    """7, 7.0, "7" and "7.0" are one id; "007" is another."""
    pa, h5py = pytest.importorskip("pyarrow"), pytest.importorskip("h5py")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = values(2)
    for number, ids in enumerate(([7, 8], [7.0, 8.0], ["7", "8"], ["7.0", "8.00"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.save(folder / "a.npy", rows)
        (folder / "a.ids.json").write_text(json.dumps(ids))
        np.savez(folder / "a.npz", embeddings=rows, ids=np.array(ids))
        parquet.write_table(pa.table({"ids": ids, "embeddings": list(rows)}), folder / "a.parquet")
        with h5py.File(folder / "a.h5", "w") as file:
            file["embeddings"], file["ids"] = rows, ids
        for suffix in ("npy", "npz", "parquet", "h5"):
            store = sa.stores.import_store(
                folder / f"a.{suffix}", folder / suffix, description=ABOUT
            )
            assert store.ids == ("7", "8"), (suffix, ids)
        store = store.append(["7.5", "007"], rows)
        assert store.ids == sa.stores.open_store(store.folder).ids == ("7", "8", "7.5", "007")
        with pytest.raises(ValueError, match="'7' of row 0 is a duplicate"):
            store.append(["7.0"], rows[:1])


def test_hdf5_ids_of_bytes_are_utf8(tmp_path):
    """As NumPy writes them: of a fixed length, and declared to be ASCII."""
    h5py = pytest.importorskip("h5py")
    for number, encoding in enumerate(("utf-8", "latin-1")):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["embeddings"], file["ids"] = values(2), np.array([b"7.0", "é".encode(encoding)])
    store = sa.stores.import_store(tmp_path / "0.h5", tmp_path / "store", description=ABOUT)
    assert store.ids == ("7", "é")
    with pytest.raises(ValueError, match="'ids': entry 1: these bytes are no UTF-8 text"):
        sa.stores.import_store(tmp_path / "1.h5", tmp_path / "other", description=ABOUT)


def test_masked_rows_are_refused(tmp_path):
    store = sa.stores.create_store(tmp_path, description=ABOUT, dimension=3)
    with pytest.raises(TypeError, match="rows is a masked array, whose mask would be lost"):
        store.append(names(), np.ma.masked_less(values(), 0))


def test_ids_that_a_format_cannot_hold_are_refused(tmp_path):
    store = make(tmp_path / "a", values(1), ["x\0"])
    with pytest.raises(ValueError, match=r"a\.npz: .*NUL"):
        sa.stores.export_store(store, tmp_path / "a.npz")
    pytest.importorskip("h5py")
    with pytest.raises(ValueError, match=r"a\.h5: .*NULL"):
        sa.stores.export_store(store, tmp_path / "a.h5")
    pytest.importorskip("pyarrow")
    store = make(tmp_path / "b", values(1), ["\udcff.png"])
    with pytest.raises(ValueError, match="no Unicode text"):
        sa.stores.export_store(store, tmp_path / "a.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_bad_files_of_parquet_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet is damaged or no Parquet file"):
        imported(path, tmp_path)

    def refused(vectors, message, kind=None, ids=("p", "q", "r")):
        ids = pa.array(list(ids[: len(vectors)]))
        kind = kind or pa.list_(pa.float32())
        columns = {"ids": ids, "embeddings": pa.array(vectors, kind)}
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(ValueError, match=message):
            imported(path, tmp_path)

    good = [1.0, 2.0]
    refused([good, good, [1.0]], "'embeddings' has 1 values in row 2")
    refused([good, None, good], "'embeddings' is empty in row 1")
    refused([good, good, [None, 1.0]], "has an empty value in row 2")
    refused([1.0, 2.0], "is double; it must hold lists", pa.float64())
    refused([[1], [2]], "has shape .* of int64", pa.list_(pa.int64()))
    refused([], "has no rows")
    refused([good, good], "'ids': entry 1 is empty", ids=("p", None))
    refused([good, good], "'ids': entry 0: list is neither text", ids=(["p"], ["q"]))
    refused([good, good], "that has lost its last digits: store text", ids=(1.0, 2.0**60))
    with pytest.raises(ValueError, match="has no 'x'; it holds 'ids', 'embeddings'"):
        imported(path, tmp_path, embeddings="x")
    columns = {"ids": ["p", "q"], "embeddings": [[1.0, 2.0], [3.0, 4.0]]}
    parquet.write_table(pa.table(columns), tmp_path / "good.parquet", row_group_size=1)
    store = sa.stores.import_store(tmp_path / "good.parquet", tmp_path / "good", description=ABOUT)
    np.testing.assert_array_equal(store.rows([1, 0]), [[3.0, 4.0], [1.0, 2.0]])


def test_bad_files_of_hdf5_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    path.write_bytes(b"no file of HDF5")
    with pytest.raises(ValueError, match=r"a\.h5 is damaged or no HDF5 file"):
        imported(path, tmp_path)
    with h5py.File(path, "w") as file:
        file["embeddings"], file["ids"] = values(2), np.arange(2) + 0.5
        file.create_group("group")
    with pytest.raises(ValueError, match="'ids': entry 0: 0.5 is no whole number"):
        imported(path, tmp_path)
    with pytest.raises(ValueError, match="has no 'x'; it holds 'embeddings', 'group', 'ids'"):
        imported(path, tmp_path, ids="x")
    with pytest.raises(ValueError, match="'group' is no data set"):
        imported(path, tmp_path, embeddings="group")


@pytest.mark.parametrize(("package", "suffix"), [("pyarrow", ".parquet"), ("h5py", ".h5")])
def test_a_missing_package_is_named(folder, tmp_path, monkeypatch, package, suffix):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extra = {".parquet": "parquet", ".h5": "hdf5"}[suffix]
    with pytest.raises(ModuleNotFoundError, match=rf"semalign_jax\[{extra}\]"):
        sa.stores.export_store(sa.stores.open_store(folder), tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=rf"semalign_jax\[{extra}\]"):
        imported(tmp_path / f"b{suffix}", tmp_path)
