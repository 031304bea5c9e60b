"""Sweeps of one pair: every cell equals its own fit, by either route."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, latin, reference, some

import semalign_jax as sa


def the_map(mapping, _):
    return mapping.weight, mapping.bias


LINES = {method: sa.SweepMethod(method) for method in ("affine", "l-ortho")}
LINES |= {
    "isotropic": sa.SweepMethod("ortho", normalize="isotropic", scale=True),
    "rcond": sa.SweepMethod("linear", rcond=0.2),
}


@pytest.mark.parametrize(
    ("d_in", "d_out", "route"), some(latin([9, 6], [9], ["prefixes", "masks"]))
)
def test_every_cell_equals_its_own_fit(d_in, d_out, route):
    x, y = anchors(40, d_in, d_out, cond=3, offset=10)
    order = np.random.default_rng(3).permutation(40)
    counts = (1, 6, 30)
    lines = LINES | {"shuffled": sa.SweepMethod("affine", ridge=0.3, shuffled=True)}
    result = sa.anchor_sweep(
        x, y, counts, orders=order[None], methods=lines, metrics={"map": the_map}, route=route
    )
    assert result.counts == counts
    assert result.methods == tuple(lines)
    maps = jax.tree.map(np.asarray, result.values["map"])
    for m, line in enumerate(lines.values()):
        for c, n in enumerate(counts):
            a, b = x[order[:n]], y[order[:n]]
            b = np.roll(b, 1, 0) if line.shuffled else b
            own = reference(line.method, a, b, **dict(line.options))
            for got, expected in zip(maps, own, strict=True):
                np.testing.assert_allclose(
                    got[m, c, 0], expected, atol=1e-6, err_msg=f"{line} at {n}"
                )


def test_metrics_by_name():
    x, y = anchors(60, 6, 9, cond=3)
    labels = (y[:, 0] > 0).astype(np.int32)
    head = sa.fit_head(y[:40], labels[:40], 2)
    data = head, x[40:], labels[40:]
    names: Any = ["accuracy", "auroc"]
    options: Any = {"orders": np.arange(40)[None], "methods": ["affine"], "eval_data": data}
    values = sa.anchor_sweep(x[:40], y[:40], (5, 30), metrics=names, **options).values
    named: Any = {"rank": "auroc", "total": lambda fitted, given: fitted(given[1]).sum()}
    mixed = sa.anchor_sweep(x[:40], y[:40], (5, 30), metrics=named, **options).values
    np.testing.assert_array_equal(mixed["rank"], values["auroc"])
    totals, accuracies, areas = map(np.asarray, (mixed["total"], *map(values.get, names)))
    for c, n in enumerate((5, 30)):
        fitted = sa.fit_affine(x[:n], y[:n])
        np.testing.assert_allclose(totals[0, c, 0], np.sum(fitted(x[40:])))
        head_at_n = sa.stitch(head, fitted)
        expected = sa.stitching.head_accuracy(head_at_n, *data[1:])
        np.testing.assert_allclose(accuracies[0, c, 0], expected)
        odds = np.diff(head_at_n(x[40:]))[:, 0]
        positive, negative = (odds[labels[40:] == value] for value in (1, 0))
        expected = np.mean(positive[:, None] > negative[None, :])
        np.testing.assert_allclose(areas[0, c, 0], expected)
    options["eval_data"] = *data[:2], labels[40:] + 1
    wrong = sa.anchor_sweep(x[:40], y[:40], (5, 30), metrics=names, **options)
    assert all(np.isnan(values).all() for values in wrong.values.values())  # there is no class 2
    with pytest.raises(ValueError, match="metrics must be one of 'accuracy'"):
        sa.anchor_sweep(x, y, (5,), metrics=names[:1] + ["error"], **options)
    with pytest.raises(TypeError, match="metrics: functions go by names of yours"):
        sa.anchor_sweep(x, y, (5,), metrics=names + [max], **options)
    with pytest.raises(ValueError, match=r"by name need eval_data=\(head, test rows, labels\)"):
        sa.anchor_sweep(x, y, (5,), metrics=names, **(options | {"eval_data": x}))


def test_cells_in_float32_with_a_large_offset():
    with jax.enable_x64(False):
        x, y = (a.astype(np.float32) for a in anchors(300, 24, 24, cond=30, offset=1e4))
        counts = (5, 20, 24, 25, 26, 100, 300)
        run = partial(sa.anchor_sweep, orders=np.arange(300)[None], metrics={"map": the_map})
        weights = np.asarray(run(x, y, counts, methods=["affine"]).values["map"][0])
        for c, n in enumerate(counts):
            a, b = (side[:n].astype(np.float64) for side in (x, y))
            a, b = a - a.mean(0), b - b.mean(0)
            expected = a @ np.linalg.lstsq(a, b, rcond=1e-13)[0]
            error = np.linalg.norm(a @ weights[0, c, 0].astype(np.float64) - expected)
            assert error < 2e-4 * np.linalg.norm(expected), n


@pytest.mark.slow
def test_repeated_anchors():
    x, y = anchors(12, 10, 10, cond=3)
    x[4], y[4] = x[1], y[1]
    result = sa.anchor_sweep(
        x, y, (3, 8), orders=np.arange(12)[None], methods=METHODS, metrics={"map": the_map}
    )
    for m, method in enumerate(METHODS):
        for c, n in enumerate((3, 8)):
            weight, _ = reference(method, x[:n], y[:n])
            np.testing.assert_allclose(
                result.values["map"][0][m, c, 0], weight, atol=1e-8, err_msg=f"{method} {n}"
            )


@pytest.mark.slow
def test_gradient_through_a_sweep():
    x, y = map(jnp.asarray, anchors(8, 6, 6, cond=3))

    def swept(x):
        result = sa.anchor_sweep(
            x, y, (4, 8), orders=np.arange(8)[None], methods=METHODS[2:], metrics={"map": the_map}
        )
        return sum(jnp.sum(leaf**3) for leaf in result.values["map"])

    def own(x):
        maps = [sa.fit(m, x[:n], y[:n]) for m in METHODS[2:] for n in (4, 8)]
        return sum(jnp.sum(m.weight**3) + jnp.sum(m.bias**3) for m in maps)

    found, expected = (jax.jit(jax.grad(total))(x) for total in (swept, own))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_size", some([4, 1]))
def test_masks_equal_prefixes_over_seeds_and_own_data(batch_size):
    x, y = anchors(30, 6, 6, cond=3)
    keys = jax.random.split(jax.random.key(0), 3)
    data = {"x": x[:4], "scale": np.arange(3.0)}

    def metric(fitted, data):
        return fitted(data["x"]) * data["scale"], fitted

    run = partial(
        sa.anchor_sweep, x, y, (4, 12, 30), keys,
        metrics={"m": metric}, eval_data=data, eval_in_axes={"x": None, "scale": 0},
        methods=["affine", "ortho"], batch_size=batch_size,
    )  # fmt: skip
    prefixes, masks = (run(route=route).values["m"] for route in ("prefixes", "masks"))
    assert masks[0].shape == (2, 3, 3, 4, 6)
    assert isinstance(masks[1], sa.AffineMap)
    assert masks[1].batch_shape == (2, 3, 3)
    for one, two in zip(jax.tree.leaves(prefixes), jax.tree.leaves(masks), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-8)


def test_masks_compile_one_fit_whatever_the_counts():
    x, y = anchors(30, 6, 6, cond=3)
    sizes = []
    for counts in ((5,), (3, 5, 8, 13, 21)):
        run = partial(
            sa.anchor_sweep, counts=counts, orders=np.arange(21)[None], metrics={"map": the_map},
            methods=["ortho"], route="masks",
        )  # fmt: skip
        sizes.append(len(jax.jit(run).lower(x[:21], y[:21]).as_text().splitlines()))
    assert abs(sizes[0] - sizes[1]) < 20


def test_counts_may_be_traced():
    x, y = anchors(30, 6, 6, cond=3)
    order = np.arange(30)[None]

    @jax.jit
    def run(counts):
        return sa.anchor_sweep(x, y, counts, orders=order, metrics={"map": the_map})

    result = run(np.array([4, 20]))
    np.testing.assert_array_equal(result.counts, [4, 20])
    expected = sa.anchor_sweep(x, y, (4, 20), orders=order, metrics={"map": the_map})
    for got, exact in zip(result.values["map"], expected.values["map"], strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-8)
    with pytest.raises(ValueError, match="counts is traced, which needs route='masks'"):
        jax.jit(
            lambda counts: sa.anchor_sweep(
                x, y, counts, orders=order, metrics={"map": the_map}, route="prefixes"
            )
        )(np.array([4]))


def test_keys_and_orders_are_checked():
    """CASES-2, 11."""
    x, y = anchors(12, 4, 4)
    run = partial(sa.anchor_sweep, x, y=y, counts=[3], metrics={"map": the_map})
    with pytest.raises(ValueError, match=r"keys must be an array of keys \[seeds\].*got one key"):
        run(keys=jax.random.key(0))
    with pytest.raises(TypeError, match="keys must be made by jax.random.key"):
        run(keys=jnp.arange(3))
    with pytest.raises(ValueError, match="orders must be rows from 0 to 11"):
        run(orders=np.arange(1, 13)[None])
    with pytest.raises(ValueError, match="is a function of the anchors alone"):
        run(orders=np.arange(12)[None], methods={"own": sa.fit_ortho}, route="masks")
    with pytest.raises(ValueError, match="orders must be rows from 0 to 11"):
        run(orders=np.arange(12)[None] + 2**32)  # JAX may take these as 0 to 11
    with pytest.raises(ValueError, match="y holds NaN or infinity in 1 of 12 rows"):
        run(y=np.where(np.arange(12)[:, None] == 3, np.nan, y), orders=np.arange(12)[None])
    with jax.enable_x64(False), pytest.raises(ValueError, match="eval_data holds int64 beyond"):
        run(orders=np.arange(12)[None], eval_data={"patients": np.array([2**40])})
    with pytest.raises(ValueError, match="hold no seed"):
        run(keys=jax.random.split(jax.random.key(0), 2)[:0])
    with pytest.raises(TypeError, match="key must be made by jax.random.key"):
        sa.sweeps.anchor_masks(0, 12, [3])  # type: ignore[arg-type]
    for rows in (1, 3):  # JAX would take the last row for a seed that has none
        with pytest.raises(ValueError, match="one row for each of the 2 seeds"):
            run(orders=np.tile(np.arange(12), (2, 1)), eval_data=np.ones(rows), eval_in_axes=0)
    raw = jax.random.split(jax.random.PRNGKey(0), 2)
    assert run(keys=raw, methods=["ortho"]).values["map"][0].shape == (1, 1, 2, 4, 4)


def test_classes_are_told_apart_before_any_cast():
    """Beyond 32 bits, where JAX without 64-bit types takes integers modulo 2^32."""
    labels = np.arange(40) % 2 * 2**32
    with jax.enable_x64(False):
        order = sa.sweeps.anchor_order(jax.random.key(0), 40, labels=labels)
        expected = sa.sweeps.anchor_order(
            jax.random.key(0), 40, labels=(labels > 0).astype(np.int32)
        )
        np.testing.assert_array_equal(order, expected)
        x = anchors(10, 3, 3)[0].astype(np.float32)
        big = sa.fit_linear(x, x, ridge=np.int64(2**32))
        assert np.abs(big.weight).max() < 1e-6


def test_fits_are_shared_by_pairs_of_equal_dimensions():
    """The second pair differs in its number of rows, its metric and its data."""
    x, y = anchors(40, 5, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    run = partial(sa.anchor_sweep, counts=(7, 11), methods=["l-ortho"], route="prefixes")
    jax.clear_caches()
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled: list[str] = []
        patch.setattr("logging.Logger.handle", lambda _, r: compiled.append(r.getMessage()))
        run(x, y, keys=keys, metrics={"map": the_map})
        fits = [text for text in compiled if "XLA compilation of jit(compiled_fit)" in text]
        assert len(fits) == 2  # one a count, whatever the seeds
        compiled.clear()
        run(
            y[:30] @ np.ones((4, 5)) + x[:30],
            y[:30],
            keys=keys,
            metrics={"trace": lambda mapping, data: jnp.trace(mapping.weight) + data},
            eval_data=1.0,
        )
    assert any("compilation of jit(_scores)" in text for text in compiled)
    assert not any("compilation of jit(compiled_fit)" in text for text in compiled)
