"""How much of a search mapped rows keep, against counts by hand, and `semalign migrate`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from cli_cases import error_of, run, values_of
from scipy.stats import ortho_group

import semalign_jax as sa
from semalign_jax.studies.migration import search_kept

ROWS, QUERIES = 200, 50


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def first(queries, rows, own, k):
    cosines = unit(queries) @ unit(rows).T
    cosines[np.arange(len(queries)), own] = -np.inf
    return np.argsort(-cosines, axis=1)[:, :k]


def test_what_is_kept_is_counted_as_by_hand():
    rng = np.random.default_rng(0)
    old, new = (rng.standard_normal((ROWS, d)) for d in (6, 4))
    new[:, :3] += 2 * old[:, :3]
    weight = rng.standard_normal((6, 4)).astype(np.float32)
    mapping = sa.AffineMap.from_weight(jnp.asarray(weight))
    own = np.arange(0, ROWS, ROWS // QUERIES)
    old, new = old.astype(np.float32), new.astype(np.float32)
    kept = search_kept(
        {"map": mapping}, old, new, new[own], jax.random.key(0), own=own, ks=(1, 5), resamples=200
    )
    wanted = first(new[own], new, own, 5)
    found = first(new[own], old @ weight, own, 5)
    expected = {
        ("recall", 1): np.mean(wanted[:, 0] == found[:, 0]),
        ("recall", 5): np.mean([w[0] in f for w, f in zip(wanted, found, strict=True)]),
        ("overlap", 1): np.mean(wanted[:, 0] == found[:, 0]),
        ("overlap", 5): np.mean(
            [len(set(w) & set(f)) / 5 for w, f in zip(wanted, found, strict=True)]
        ),
        ("neighbours", 10): sa.metrics.mutual_knn(old @ weight, new, 10),
    }
    got = {(one.measure, one.k): one.value for one in kept}
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(float(value), abs=1e-6), name
    of_recall = next(one for one in kept if one[1:3] == ("recall", 5))
    spread = 1.96 * np.sqrt(of_recall.value * (1 - of_recall.value) / QUERIES)
    assert of_recall.upper - of_recall.lower == pytest.approx(2 * spread, rel=0.2)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """600 rows; a rotation of them; and rows that have nothing to do with them."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(1)
    old = rng.standard_normal((600, 12)).astype(np.float32)
    values = {
        "old": old,
        "turned": (old @ ortho_group.rvs(12, random_state=0)).astype(np.float32),
        "others": rng.standard_normal((600, 12)).astype(np.float32),
    }
    ids = [f"row {i}" for i in range(600)]
    for name, rows in values.items():
        kept = slice(0, 500) if name == "turned" else slice(None)
        store = sa.stores.create_store(folder / name, description={"encoder": name}, dimension=12)
        store.append(ids[kept], rows[kept])
    np.save(folder / "queries.npy", values["turned"][500:])
    np.save(folder / "others.npy", values["others"])
    return folder


def test_a_turned_space_is_bridged_and_written(stores, tmp_path):
    words = ("migrate", stores / "old", stores / "turned", "--sample", 300, "--cost", 2)
    words = (*words, "--write", "npy,parquet", "--out", tmp_path / "out")
    found = values_of(*words)
    assert (found["verdict"], found["sample"], found["searched"]) == ("bridge", 300, 200)
    assert (found["rows_to_embed"], found["cost"], found["cost_of_all"]) == (300, 0.6, 1.2)
    kept = {(one["method"], one["measure"], one["k"]): one["value"] for one in found["kept"]}
    assert kept["affine", "overlap", 10] > 0.99
    assert kept["naive", "recall", 10] < 0.5
    out = tmp_path / "out"
    mapping, old = sa.load_map(out / "map.safetensors"), sa.stores.open_store(stores / "old")
    rows = np.load(out / "vectors.npy")
    np.testing.assert_allclose(rows, unit(np.asarray(mapping(old.rows(slice(None))))), atol=1e-5)
    assert json.loads((out / "vectors.ids.json").read_text()) == list(old.ids)
    table = pyarrow.parquet.read_table(out / "vectors.parquet")
    assert table["ids"].to_pylist() == list(old.ids)
    np.testing.assert_array_equal(np.stack(table["embeddings"].to_numpy()), rows)
    before = (out / "vectors.npy").read_bytes()
    run(*words)  # goes on with what is there
    assert (out / "vectors.npy").read_bytes() == before
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for others in (words, words[:-4] + words[-2:]):  # also without --write
        message = error_of(*others, "--method", "ortho")
        assert "vectors holds embeddings of another run" in message
    assert made == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_unlike_spaces_are_embedded_again(stores, tmp_path):
    found = run("migrate", stores / "old", stores / "others.npy", "--out", tmp_path).stdout
    assert "matched by position, as others.npy came without ids" in found
    assert found.startswith("re-embed: recall@10 of ")
    assert "rows to embed: 480 of 600" in found  # a fifth of the sample is searched
    assert not (tmp_path / "vectors").exists()
    assert "NaN" not in (tmp_path / "migration.json").read_text()  # which JSON does not have


def test_a_recall_that_is_asked_for_may_be_the_end_of_the_interval(tmp_path):
    """Which is rounded to float32: 0.95 is then 0.94999999."""
    rng = np.random.default_rng(1)
    old = rng.standard_normal((600, 12)).astype(np.float32)
    np.save(tmp_path / "old.npy", old)
    np.save(tmp_path / "new.npy", old + 0.9 * rng.standard_normal(old.shape).astype(np.float32))
    words = ("migrate", tmp_path / "old.npy", tmp_path / "new.npy", "--sample", 300)
    words = (*words, "--search-queries", 100, "--seed", 3, "--method", "ortho")
    kept = values_of(*words, "--out", tmp_path / "first")["kept"]
    end = next(one for one in kept if (one["method"], one["k"]) == ("ortho", 10))
    for name, verdict in (("lower", "bridge"), ("upper", "undecided")):
        asked = round(end[name], 4)
        found = values_of(*words, "--keep", asked, "--out", tmp_path / name)
        assert found["verdict"] == verdict, asked


def test_queries_of_their_own_search(stores, tmp_path):
    words = ("migrate", stores / "old", stores / "turned", "--queries", stores / "queries.npy")
    found = values_of(*words, "--method", "ortho", "--out", tmp_path)
    assert (found["queries"], found["method"], found["verdict"]) == (100, "ortho", "bridge")


def test_bad_input_is_told_before_anything_is_written(stores, tmp_path):
    few = sa.stores.create_store(tmp_path / "few", description={}, dimension=12)
    few.append([f"row {i}" for i in range(50)], np.ones((50, 12), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((5, 13), np.float32))
    words = ("migrate", stores / "old", stores / "turned", "--out", tmp_path / "out")
    cases = (
        (("migrate", stores / "old", tmp_path / "few", "--out", tmp_path / "out"), "only 50 ids"),
        ((*words, "--queries", tmp_path / "wide.npy"), "queries must be of the new encoder"),
        ((*words, "--write", "faiss"), "--write"),
        ((*words, "--keep", "1.5"), "--keep"),
    )
    for case, message in cases:
        assert message in error_of(*case)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_told_first(stores, tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    words = ("migrate", stores / "old", stores / "turned", "--write", "npy")
    message = error_of(*words, "--out", tmp_path / "out", status=1)
    assert "the mapped rows take" in message
    assert "are free" in message
    assert not (tmp_path / "out").exists()
