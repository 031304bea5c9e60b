"""`semalign fit`, `apply` and `sweep` on small stores."""

import json
import shutil

import jax
import numpy as np
import pytest
from cli_cases import error_of, pair_of_stores, run, values_of
from data.trees import write_csv
from stores.test_store import fixed_store

import semalign_jax as sa
from semalign_jax.cli import maps, sweeps
from semalign_jax.cli.maps import read_ids


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return pair_of_stores(tmp_path_factory.mktemp("stores"))


def rows_of(folder):
    store = sa.stores.open_store(folder)
    return dict(zip(store.ids, store.rows(slice(None)), strict=True))


def pairs(stores, ids=None):
    a, b = map(rows_of, stores)
    keys = [key for key in a if key in b and (ids is None or key in ids)]
    # The command computes in float64 as well.
    return tuple(np.stack([side[k] for k in keys]).astype(np.float64) for side in (a, b))


def close(path, expected):
    found = sa.load_map(path)
    for name in ("weight", "source_offset", "target_offset"):
        ours = np.asarray(getattr(found, name), np.float64)
        np.testing.assert_allclose(ours, getattr(expected, name), atol=2e-5)


@pytest.mark.parametrize(
    ("method", "flags", "options"),
    [
        ("ortho", (), {"normalize": "isotropic"}),
        ("ortho", ("--normalize", "none"), {}),
        ("affine", ("--ridge", 0.5), {"ridge": 0.5}),
        (
            "l-ortho",
            ("--normalize", "center", "--completion", "partial", "--scale"),
            {"normalize": "center", "completion": "partial", "scale": True},
        ),
    ],
    ids=["ortho", "plain ortho", "affine", "l-ortho"],
)
def test_a_fit_is_that_of_the_matched_rows(method, flags, options, stores, tmp_path):
    out = tmp_path / "map.safetensors"
    found = values_of("fit", *stores, "--method", method, *flags, "--out", out)
    close(out, sa.fit(method, *pairs(stores), **options))
    assert found["sha256"] == values_of("info", out)["sha256"]
    counts = ("anchors", "matched", "only_source", "only_target", "ids_not_found")
    assert [found[name] for name in counts] == [60, 60, 5, 3, 0]


def test_a_map_that_chooses_for_itself(stores, tmp_path, monkeypatch):
    out = tmp_path / "map.safetensors"
    found = values_of("fit", *stores, "--anchors", 40, "--out", out)
    assert found["prior"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0.001 <= found["strength"] <= 1000
    assert -1 <= found["loo_cosine"] <= 1
    told = values_of("info", out)
    assert (told["method"], told["diagnosis"]["anchors"]) == ("auto", 40)
    assert told["diagnosis"]["loo_cosine"] == pytest.approx(found["loo_cosine"], abs=1e-5)
    values_of("fit", *stores, "--method", "auto", "--out", out)
    x, y = (side.astype(np.float32) for side in pairs(stores))
    close(out, sa.fit_auto(x, y)[0])
    text = run("fit", *stores, "--method", "auto", "--out", out).stdout
    assert "chosen: ridge of" in text
    monkeypatch.setattr(maps, "AUTO_ANCHORS", 50)
    message = error_of("fit", *stores, "--method", "auto", "--out", out)
    assert "at most 50; there are 60: draw some with --anchors" in message
    message = error_of("fit", *stores, "--ridge", 1.0, "--out", out)
    assert "--ridge is not for --method auto" in message
    assert "give --method affine or linear or l-ortho or ortho" in message
    message = error_of("fit", *stores, "--rotation-only", "--out", out)
    assert "give --method l-ortho or ortho" in message


def test_correlation_is_that_of_the_mapped_anchors(stores, tmp_path):
    out = tmp_path / "map.safetensors"
    found = values_of("fit", *stores, "--method", "affine", "--out", out)
    x, y = pairs(stores)
    mapped = np.asarray(sa.load_map(out)(x))
    mapped, y = mapped - mapped.mean(0), y - y.mean(0)
    expected = np.sum(mapped * y) / np.sqrt(np.sum(mapped**2) * np.sum(y**2))
    assert found["correlation"] == pytest.approx(expected, abs=1e-5)
    few = run("fit", *stores, "--method", "affine", "--anchors", 5, "--out", out).stdout
    assert "5 anchors of 6 dimensions are fitted exactly, whatever they are" in few


ORTHO = ("--method", "ortho", "--anchors", 10)


def test_a_fit_to_some_ids_and_to_random_anchors(stores, tmp_path):
    out = tmp_path / "map.safetensors"
    (tmp_path / "ids.txt").write_text("i3\ni5\n\ni7\ni11\ni13\ni17\nnobody\n")
    (tmp_path / "ids.json").write_text('["i3", "i5", "i7", "i11", "i13", "i17", "nobody"]')
    wanted = {"i3", "i5", "i7", "i11", "i13", "i17"}
    for name in ("ids.txt", "ids.json"):
        found = values_of(
            "fit", *stores, "--method", "ortho", "--ids", tmp_path / name, "--out", out
        )
        assert (found["anchors"], found["ids_not_found"]) == (6, 1)
        close(out, sa.fit("ortho", *pairs(stores, wanted), normalize="isotropic"))
    maps = []
    for seed in (0, 0, 1):
        words = ("fit", *stores, *ORTHO, "--seed", seed, "--batch-rows", 4, "--out", out)
        found = values_of(*words)
        assert found["anchors"] == 10
        maps.append(found["sha256"])
    assert maps[0] == maps[1] != maps[2]


def test_anchors_chosen_by_the_rows_of_the_source(stores, tmp_path):
    out = tmp_path / "map.safetensors"
    found = values_of("fit", *stores, *ORTHO, "--select", "farthest", "--out", out)
    assert found["anchors"] == 10
    x, y = pairs(stores)
    key = jax.random.key(0)
    narrow = x.astype(np.float32)
    rows = np.sort(sa.sweeps.select_anchors(narrow, 10, method="farthest", key=key))
    close(out, sa.fit("ortho", x[rows], y[rows], normalize="isotropic"))


def test_a_fit_with_unpaired_rows(stores, tmp_path):
    out = tmp_path / "map.safetensors"
    unpaired = ("--unpaired-source", stores[0], "--unpaired-target", stores[1])
    found = values_of("fit", *stores, "--anchors", 8, *unpaired, "--out", out)
    assert (found["method"], found["anchors"]) == ("affine", 8)
    assert (found["unpaired_source"], found["unpaired_target"]) == (65, 63)
    rows = np.sort(sa.sweeps.anchor_order(jax.random.key(0), 60, size=8))
    x, y = (side[rows].astype(np.float32) for side in pairs(stores))
    pools = (sa.stores.open_store(folder).rows(slice(None)) for folder in stores)
    expected, info = sa.fit_semi(x, y, *pools)
    assert found["unpaired_used"]
    assert bool(info.used)
    assert found["left_out_cosine"] == pytest.approx(float(info.unpaired_cosine), abs=1e-5)
    close(out, expected)
    assert sa.maps.saved_method(out) == "affine"
    again = run("fit", "--config", out.with_suffix(".settings.json"), "--unpaired-rows", 20)
    assert "unpaired: 20 rows of the source, 20 of the target" in again.stdout


def test_ids_of_files_are_those_of_stores(tmp_path):
    (tmp_path / "ids.txt").write_text("7\r\n7.0\n 007 \n\n")
    (tmp_path / "ids.json").write_text('[7, 7.0, "7.0", "007", ""]')
    for name in ("ids.txt", "ids.json"):
        assert read_ids(tmp_path / name) == {"7", "007"}
    (tmp_path / "ids.json").write_text('[" a", "b\\nc "]')  # names of a store, as they are
    assert read_ids(tmp_path / "ids.json") == {" a", "b\nc "}
    (tmp_path / "ids.json").write_text("[7, 7.5]")
    with pytest.raises(ValueError, match=r"ids\.json: entry 1: 7\.5 is no whole number"):
        read_ids(tmp_path / "ids.json")


UNPAIRED = ("--unpaired-source", "four.npy", "--unpaired-target", "four.npy")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--anchors", "61"), "--anchors 61: only 60 pairs to draw from"),
        (("--ids", "none.txt"), "none.txt: there is no such file of ids"),
        (("--ids", "bad.json"), "bad.json must hold a JSON list of ids"),
        (("--ids", "blank.txt"), "blank.txt holds no ids"),
        (("--ids", "other.txt"), "none of its ids is in both stores"),
        (("--method", "linear", "--scale"), "scale is not an option of method 'linear'"),
        (("--method", "ortho", "--ridge", "1"), "--ridge changes nothing of an ortho map without"),
        (("--out", "map.npz"), "--out map.npz: a map is a .safetensors file"),
        (("--method", "ortho", "--rotation-only"), "rotation_only needs equal dimensions"),
        (("--select", "k-medoids"), "--select needs the number of anchors (--anchors)"),
        (("--unpaired-source", "a.npy"), "--unpaired-source and --unpaired-target: give both"),
        ((*UNPAIRED, "--ridge", "1"), "--ridge and --unpaired-source: a fit with unpaired rows is"),
        ((*UNPAIRED, "--method", "ortho"), "--method and --unpaired-source: a fit with unpaired"),
        ((*UNPAIRED, "--anchors", "3"), "--unpaired-source needs at least 4 pairs to fit to"),
        (UNPAIRED, "four.npy has 4 dimensions; "),
        (("--out", "no/folder/map.safetensors"), "there is no such folder for the map"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else "",
)
def test_a_fit_refuses(flags, message, stores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"i3": 1}')
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "other.txt").write_text("nobody\n")
    np.save("four.npy", np.ones((3, 4), np.float32))
    assert message in error_of("fit", *stores, "--out", "map.safetensors", *flags)
    assert not (tmp_path / "map.safetensors").exists()


def test_stores_without_common_ids(stores, tmp_path):
    other = sa.stores.create_store(tmp_path / "c", description={}, dimension=3)
    other.append(["x", "y"], np.ones((2, 3), np.float32))
    out = tmp_path / "map.safetensors"
    assert "no id is in both stores" in error_of("fit", stores[0], other.folder, "--out", out)
    message = error_of("sweep", stores[0], other.folder)
    assert "no id is in both stores" in message
    assert "c has 'x', 'y'. Rows are matched by what they were called" in message


@pytest.fixture(scope="module")
def mapping(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("map") / "map.safetensors"
    run("fit", *stores, "--method", "ortho", "--out", out)
    return out


def test_apply_makes_a_store(stores, mapping, tmp_path):
    words = ("apply", mapping, stores[0], "--chunk-size", 25, "--out")
    assert values_of(*words, tmp_path / "out") == {
        "store": str(tmp_path / "out"),
        "rows": 65,
        "rows_before": 0,
        "dimension": 5,
        "dtype": "float32",
    }
    assert sa.stores.verify_store(tmp_path / "out") == []
    store, source = sa.stores.open_store(tmp_path / "out"), sa.stores.open_store(stores[0])
    assert store.ids == source.ids
    expected = sa.load_map(mapping)(source.rows(slice(None)))
    np.testing.assert_allclose(store.rows(slice(None)), expected, atol=1e-5)
    digest = values_of("info", mapping)["sha256"]
    assert store.description == {
        "map": {"sha256": digest},
        "of": {"made": "a"},
        "of_rows": source.checksum,
    }
    assert values_of(*words, tmp_path / "half", "--dtype", "float16")["dtype"] == "float16"
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["map"] == str(mapping)


def test_an_interrupted_apply_goes_on(stores, mapping, tmp_path, monkeypatch):
    words = ("apply", mapping, stores[0], "--chunk-size", 20, "--out", tmp_path / "out")
    append, calls = sa.stores.EmbeddingStore.append, []

    def stopped(self, ids, rows, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(ids))
        return append(self, ids, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sa.stores.EmbeddingStore, "append", stopped)
        run(*words, status=130)
    assert len(sa.stores.open_store(tmp_path / "out")) == 40
    found = values_of(*words)
    assert (found["rows_before"], found["rows"]) == (40, 65)
    assert values_of(*words)["rows_before"] == 65
    expected = sa.load_map(mapping)(sa.stores.open_store(stores[0]).rows(slice(None)))
    rows = sa.stores.open_store(tmp_path / "out").rows(slice(None))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_store_that_was_made_anew_is_not_mapped_into_rows_of_the_old_one(
    stores, mapping, tmp_path
):
    rows, ids = sa.stores.open_store(stores[0]).rows(slice(None)), [str(k) for k in range(65)]
    words = ("apply", mapping, tmp_path / "source", "--out", tmp_path / "out")
    fixed_store(tmp_path / "source", rows, ids)
    assert values_of(*words)["rows_before"] == 0
    assert values_of(*words)["rows_before"] == 65
    shutil.rmtree(tmp_path / "source")
    fixed_store(tmp_path / "source", 2 * rows, ids)
    np.save(tmp_path / "rows.npy", rows)
    of_array = ("apply", mapping, tmp_path / "rows.npy", "--out", tmp_path / "of-array")
    values_of(*of_array)
    (tmp_path / "rows.ids.json").write_text(json.dumps(ids[::-1]))
    for message in (error_of(*words), error_of(*of_array)):
        assert "another run" in message
        assert "description['of_rows']" in message


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--method", "affine", "--batch-rows", "20"),
        ("sweep", "--anchors", "9"),
        ("migrate",),
    ],
)
def test_rows_with_nan_are_named(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).standard_normal((2, 120, 4)).astype(np.float32)
    y[41:] = np.nan
    np.save("x.npy", x)
    np.save("y.npy", y)
    message = error_of(words[0], "x.npy", "y.npy", *words[1:], "--out", "to.safetensors")
    assert "y.npy holds NaN or infinity, first in the row of the id '" in message
    assert words[0] != "fit" or "'41': leave such rows out" in message


def test_plain_arrays_are_matched_by_position(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 4))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    names = (tmp_path / "x.npy", tmp_path / "y.npy")
    found = values_of("fit", *names, "--method", "linear", "--out", tmp_path / "m.safetensors")
    assert (found["anchors"], found["d_in"], found["d_out"]) == (30, 6, 4)
    assert found["matched_by"] == "position"
    said = run("sweep", *names, *SMALL).stdout
    assert "matched by position, as x.npy and y.npy came without ids" in said
    values_of("apply", tmp_path / "m.safetensors", names[0], "--out", tmp_path / "mapped")
    mapped = sa.stores.open_store(tmp_path / "mapped")
    np.testing.assert_allclose(mapped.rows(slice(None)), y, atol=1e-4)
    assert mapped.ids[:2] == ("0", "1")
    again = ("apply", tmp_path / "m.safetensors", names[0], "--out", tmp_path / "mapped")
    assert values_of(*again)["rows"] == 30
    np.save(names[0], 2 * x)  # other rows under the same name
    assert "another run" in error_of(*again)
    np.save(names[0], x)
    assert values_of("sweep", *names, *SMALL)["matched"] == 30
    # Rows without ids take those of a store, and of a file beside them.
    store = sa.stores.create_store(tmp_path / "s", description={}, dimension=4)
    store.append([f"case {k}" for k in range(30)], y)
    other = ("fit", names[0], tmp_path / "s", *ORTHO[:2], "--out", tmp_path / "n.safetensors")
    assert values_of(*other)["matched"] == 30
    (tmp_path / "x.ids.json").write_text(json.dumps([f"case {k}" for k in range(10, 40)]))
    assert values_of(*other)["matched"] == 20
    np.save(names[1], y[:20])
    (tmp_path / "x.ids.json").unlink()
    message = error_of("fit", *names, "--out", tmp_path / "m.safetensors")
    assert message.startswith(f"{names[0]} has 30 rows and {names[1]} 20: {names[0]} has no ids")
    np.save(names[1], np.arange(30).reshape(10, 3))
    assert "of int64; expected [n, dimension] of one of" in error_of(
        "fit", *names, "--out", tmp_path / "m.safetensors"
    )


def test_apply_refuses(stores, mapping, tmp_path):
    message = error_of("apply", mapping, stores[1], "--out", tmp_path / "out")
    assert message == f"{mapping} maps 6 dimensions; {stores[1]} has 5"
    run("apply", mapping, stores[0], "--out", tmp_path / "out")
    other = tmp_path / "other.safetensors"
    run("fit", *stores, *ORTHO, "--out", other)
    message = error_of("apply", other, stores[0], "--out", tmp_path / "out")
    assert "holds embeddings of another run" in message
    assert "description['map']" in message
    many = sa.AffineMap(np.ones((2, 6, 5)), np.ones((2, 6)), np.ones((2, 5)))  # pyright: ignore
    sa.save_map(many, other)
    assert "holds (2,) maps; expected one" in error_of(
        "apply", other, stores[0], "--out", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()


SMALL = ("--anchors", "5,20", "--seeds", 2, "--methods", "ortho,affine", "--seed", 3)


def test_a_sweep_writes_its_scores(stores, tmp_path):
    found = values_of("sweep", *stores, *SMALL, "--out", tmp_path / "out")
    assert (found["train"], found["test"], found["held_out_by"]) == (48, 12, "pair, at random")
    rows = found["rows"]
    assert len(rows) == 2 * 2 * 3
    best = {row["metric"]: row for row in rows if (row["method"], row["anchors"]) == ("affine", 20)}
    assert best["recall@1"]["mean"] > 0.9
    assert best["mean cosine"]["mean"] > 0.99
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == rows
    assert len(written["records"]) == 2 * len(rows)
    lines = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert lines[0] == "protocol,source,target,method,anchors,metric,mean,std,seeds"
    assert len(lines) == 1 + len(rows)
    again = run("sweep", "--config", tmp_path / "out" / "settings.json")
    assert "held-out pairs: a → b (recall@1, mean ± std)" in again.stdout
    assert f"{best['recall@1']['mean']:.3f}" in again.stdout
    shown = values_of("info", tmp_path / "out")
    assert (shown["kind"], shown["format"], shown["rows"]) == ("results", sweeps.FORMAT, len(rows))


def test_scores_of_a_map():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4))
    scores = sweeps._scores(lambda a: a, (x, np.vstack([x[:5], -x[5:]])))
    assert float(scores["recall@1"]) == pytest.approx(5 / 6)
    assert float(scores["mean cosine"]) == pytest.approx(4 / 6)


def table_of(folder, ids):
    """Two items a patient; patient 0 has one item in each split."""
    rows = []
    for number, key in enumerate(sorted(ids)):
        split = "test" if number % 10 < 2 or number == 1 else "train"
        rows.append([key, f"p{number // 2}", "train" if number == 0 else split])
    return write_csv(folder / "items.csv", ["key", "person", "part"], rows)


def parts(stores, tmp_path, monkeypatch, *flags):
    """Ids of the pairs that are drawn from, and of those that are held out."""
    seen = {}

    def spy(settings, pairs, parts):
        ids = np.array(pairs.ids, object)
        seen.update(train=set(ids[parts.train]), test=set(ids[parts.test]))
        return []

    monkeypatch.setattr(sweeps, "_records", spy)
    run("sweep", *stores, *SMALL, *flags)
    return seen["train"], seen["test"]


def test_no_patient_is_on_both_sides(stores, tmp_path, monkeypatch):
    ids = [f"i{row}" for row in range(58)]  # two matched pairs are not in the data set
    path = table_of(tmp_path, ids)
    patient = {key: number // 2 for number, key in enumerate(sorted(ids))}
    source = ("--dataset", "table", "--path", path)
    for column in ("id=key", "patient=person", "split=part"):
        source = (*source, "--option", column)
    train, test = parts(stores, tmp_path, monkeypatch, *source)
    assert len(train) + len(test) == 58
    assert not {patient[key] for key in train} & {patient[key] for key in test}
    train, test = parts(stores, tmp_path, monkeypatch, *source, "--test-split", "test")
    assert test == {key for number, key in enumerate(sorted(ids)) if number and number % 10 < 2}
    assert not {patient[key] for key in train} & {patient[key] for key in test}
    assert sorted(ids)[0] not in train  # the other item of a patient that is held out


def test_ids_that_are_held_out(stores, tmp_path, monkeypatch):
    held = [f"i{row}" for row in range(30)]
    (tmp_path / "held.txt").write_text("\n".join(held))
    words = ("--test-ids", tmp_path / "held.txt", "--test-rows", 7)
    train, test = parts(stores, tmp_path, monkeypatch, *words)
    assert train == {f"i{row}" for row in range(30, 60)}
    assert len(test) == 7
    assert test < set(held)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--anchors", "100"), "--anchors 100: only 48 of 60 matched pairs are left"),
        (("--anchors", "5,x"), "--anchors '5,x': Input should be a valid integer"),
        (("--test-split", "test"), "--test-split needs a data set (--dataset)"),
        (("--test-fraction", "0.01"), "1 pair is held out and 59 left; at least 2 and 1"),
        (("--methods", "best"), "--methods 'best': Input should be 'affine'"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else "",
)
def test_a_sweep_refuses(flags, message, stores):
    assert message in error_of("sweep", *stores, *flags)
