"""Sweeps share factorisations between nested anchor sets: every cell equals its own fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors

import semalign_jax as sa
from semalign_jax.sweeps._nested import contrasts


def the_map(mapping, _):
    return mapping.weight, mapping.bias


LINES = {method: sa.SweepMethod(method) for method in METHODS}
LINES |= {f"{m} centred": sa.SweepMethod(m, normalize="center") for m in ("l-ortho", "ortho")}
LINES |= {
    "isotropic": sa.SweepMethod("ortho", normalize="isotropic", scale=True),
    "standard": sa.SweepMethod("linear", normalize="standard"),
    "rcond": sa.SweepMethod("linear", rcond=0.2),
}


@pytest.mark.parametrize(("d_in", "d_out"), [(9, 9), (6, 9)])
def test_every_cell_equals_its_own_fit(d_in, d_out):
    x, y = map(jnp.asarray, anchors(40, d_in, d_out, cond=3, offset=10))
    order = jax.random.permutation(jax.random.key(3), 40)
    counts = (1, 2, 6, 9, 10, 30)
    lines = LINES | {"shuffled": sa.SweepMethod("affine", ridge=0.3, shuffled=True)}
    result = sa.anchor_sweep(
        x, y, counts, orders=order[None], methods=lines, metrics={"map": the_map}
    )
    for m, line in enumerate(lines.values()):
        for c, n in enumerate(counts):
            a, b = x[order[:n]], y[order[:n]]
            own = sa.fit(
                line.method, a, jnp.roll(b, 1, 0) if line.shuffled else b, **dict(line.options)
            )
            for got, expected in zip(result.values["map"], (own.weight, own.bias), strict=True):
                np.testing.assert_allclose(
                    got[m, c, 0], expected, atol=1e-6, err_msg=f"{line} at {n}"
                )


def test_cells_in_float32_with_a_large_offset():
    with jax.enable_x64(False):
        x, y = (jnp.asarray(a, jnp.float32) for a in anchors(300, 24, 24, cond=30, offset=1e4))
        counts = (5, 20, 24, 25, 26, 100, 300)
        run = partial(sa.anchor_sweep, orders=np.arange(300)[None], metrics={"map": the_map})
        weights, _ = run(x, y, counts, methods=["affine"]).values["map"]
        for c, n in enumerate(counts):
            a, b = (np.asarray(side[:n], np.float64) for side in (x, y))
            a, b = a - a.mean(0), b - b.mean(0)
            expected = a @ np.linalg.lstsq(a, b, rcond=1e-13)[0]
            error = np.linalg.norm(a @ np.asarray(weights[0, c, 0], np.float64) - expected)
            assert error < 2e-4 * np.linalg.norm(expected), n


def test_contrasts_have_the_centred_products_of_every_prefix():
    x, y = anchors(12, 4, 3, offset=5)
    hx, hy = contrasts(jnp.asarray(x)), contrasts(jnp.asarray(y))
    for n in range(2, 13):
        a, b = x[:n] - x[:n].mean(0), y[:n] - y[:n].mean(0)
        np.testing.assert_allclose(hx[: n - 1].T @ hy[: n - 1], a.T @ b, atol=1e-11)


def test_repeated_anchors_fall_back_to_singular_values():
    x, y = map(jnp.asarray, anchors(12, 10, 10, cond=3))
    x, y = x.at[4].set(x[1]), y.at[4].set(y[1])
    result = sa.anchor_sweep(
        x, y, (3, 8), orders=np.arange(12)[None], methods=METHODS, metrics={"map": the_map}
    )
    for m, method in enumerate(METHODS):
        for c, n in enumerate((3, 8)):
            own = sa.fit(method, x[:n], y[:n])
            np.testing.assert_allclose(
                result.values["map"][0][m, c, 0], own.weight, atol=1e-8, err_msg=f"{method} {n}"
            )


def test_gradient_through_a_sweep():
    x, y = map(jnp.asarray, anchors(8, 6, 6, cond=3))

    def swept(x):
        result = sa.anchor_sweep(
            x, y, (4, 8), orders=np.arange(8)[None], methods=METHODS, metrics={"map": the_map}
        )
        return sum(jnp.sum(leaf**3) for leaf in result.values["map"])

    def own(x):
        maps = [sa.fit(m, x[:n], y[:n]) for m in METHODS for n in (4, 8)]
        return sum(jnp.sum(m.weight**3) + jnp.sum(m.bias**3) for m in maps)

    np.testing.assert_allclose(jax.grad(swept)(x), jax.grad(own)(x), rtol=1e-6, atol=1e-8)
