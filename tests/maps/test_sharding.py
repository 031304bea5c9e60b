"""Anchors spread over 8 virtual devices, or over two processes, give the same map."""

import itertools
import re
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors, some
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import semalign_jax as sa

ROWS, WIDTH = 160, 6


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()), ("rows",))


@pytest.fixture
def sharded(mesh):
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    return [jax.device_put(jnp.asarray(a), sharding) for a in anchors(ROWS, WIDTH, 5, cond=5)]


def fit_by_stats(method, x, y):
    stats = sa.maps.init_stats(x.shape[1], y.shape[1], dtype=x.dtype)
    return sa.fit_from_stats(method, sa.maps.update_stats(stats, x, y), normalize="center")


def gathers(compiled):
    """Sizes of the results of all all-gather operations in the compiled program."""
    shapes = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather", compiled.as_text() or "")
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


@pytest.mark.parametrize("method", some(METHODS))
def test_sharded_rows_under_jit(method, sharded):
    x, y = sharded
    assert len(x.sharding.device_set) == 8
    compiled = jax.jit(partial(fit_by_stats, method)).lower(x, y).compile()
    assert "all-reduce" in (compiled.as_text() or "")
    assert all(size < ROWS * WIDTH for size in gathers(compiled)), "x was gathered"
    expected = sa.fit(method, np.asarray(x), np.asarray(y), normalize="center")
    fitted = compiled(x, y)
    np.testing.assert_allclose(fitted.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(fitted.bias, expected.bias, atol=1e-9)


@pytest.mark.parametrize("method", some(METHODS))
def test_plain_fits_accept_sharded_rows(method, sharded):
    x, y = sharded
    expected = sa.fit(method, np.asarray(x), np.asarray(y))
    np.testing.assert_allclose(sa.fit(method, x, y).weight, expected.weight, atol=1e-9)


def test_shard_map_with_psum(mesh, sharded):
    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec("rows"), PartitionSpec("rows")),
        out_specs=PartitionSpec(),
    )
    def statistics(x, y):
        own = sa.maps.init_stats(x.shape[1], y.shape[1], dtype=x.dtype)
        own = jax.tree.map(lambda a: jax.lax.pcast(a, ("rows",), to="varying"), own)
        return sa.maps.psum_stats(sa.maps.update_stats(own, x, y), "rows")

    x, y = sharded
    whole = sa.maps.update_stats(
        sa.maps.init_stats(WIDTH, 5, dtype=x.dtype), np.asarray(x), np.asarray(y)
    )
    for one, two in zip(statistics(x, y), whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "rows"), some(itertools.product(["affine", "l-ortho", "ortho"], [160, 24]), 4)
)  # 20 a device, and 3
def test_a_map_a_device_under_shard_map(method, rows, mesh):
    """CASES-2, 5: with JAX's default checks of what varies over the mesh."""
    x, y = map(jnp.asarray, anchors(rows, WIDTH, WIDTH, cond=5))
    spec = PartitionSpec("rows")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    def weights(x, y):
        both = jax.vmap(lambda scale: sa.fit(method, scale * x, y).weight)(jnp.ones(2))
        gradient = jax.grad(lambda x: jnp.sum(sa.fit(method, x, y).weight ** 3))(x)
        return sa.fit(method, x, y).weight[None], both[:1], gradient

    @jax.jit
    def alone(x, y):
        weight, pull = jax.vjp(lambda x: sa.fit(method, x, y).weight, x)
        return weight, pull(3 * weight**2)[0]

    found, batched, gradient = weights(x, y)
    n = rows // 8
    for i in (0, 5):
        own = slice(i * n, i * n + n)
        expected, exact = alone(x[own], y[own])
        np.testing.assert_allclose(found[i], expected, atol=1e-9)
        np.testing.assert_allclose(batched[i], expected, atol=1e-9)
        np.testing.assert_allclose(gradient[own], exact, atol=1e-7)


@pytest.mark.parametrize("method", some(METHODS))
def test_float32_under_shard_map(method, mesh):
    x, y = (jnp.asarray(a, jnp.float32) for a in anchors(160, WIDTH, WIDTH, cond=5))
    spec = PartitionSpec("rows")
    fit = jax.shard_map(
        lambda x, y: sa.fit(method, x, y).weight[None],
        mesh=mesh, in_specs=(spec, spec), out_specs=spec,
    )  # fmt: skip
    expected = sa.fit(method, x[20:40], y[20:40]).weight
    np.testing.assert_allclose(fit(x, y)[1], expected, atol=1e-5)


def test_meshes_of_explicit_axes():
    explicit = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, y = anchors(ROWS, WIDTH, 5, cond=5)
    with jax.set_mesh(explicit):
        one, two = (jax.device_put(jnp.asarray(a), PartitionSpec("rows")) for a in (x, y))
        with pytest.raises(ValueError, match="x is spread over Explicit axes of a mesh"):
            sa.fit_ortho(one, two)
        with pytest.raises(ValueError, match="reshard"):
            sa.maps.update_stats(sa.maps.init_stats(WIDTH, 5, dtype=one.dtype), one, two)
        # The remedies of the message.
        expected = sa.fit_ortho(x, y).weight
        x, y = (jax.sharding.reshard(a, PartitionSpec()) for a in (one, two))
        np.testing.assert_allclose(sa.fit_ortho(x, y).weight, expected, atol=1e-9)
        fit: Any = jax.sharding.auto_axes(sa.fit_ortho, out_sharding=PartitionSpec())
        np.testing.assert_allclose(fit(one, two).weight, expected, atol=1e-9)


PROCESS = """
import sys
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
import semalign_jax as sa
from jax.sharding import Mesh, NamedSharding, PartitionSpec
data = np.load(folder + "/data.npz")
mesh = Mesh(np.array(jax.devices()), ("rows",))
sharding = NamedSharding(mesh, PartitionSpec("rows"))
half = slice(rank * 80, rank * 80 + 80)
x, y = (jax.make_array_from_process_local_data(sharding, data[k][half]) for k in "xy")

@jax.jit
def weight_of(x, y):
    stats = sa.maps.update_stats(sa.maps.init_stats(6, 5, dtype=x.dtype), x, y)
    return sa.fit_from_stats("ortho", stats, normalize="center").weight

np.save(f"{folder}/weight{rank}.npy", np.asarray(weight_of(x, y).addressable_data(0)))
"""


def test_two_processes(tmp_path):
    x, y = anchors(ROWS, WIDTH, 5, cond=5)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROCESS, str(port)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    expected = sa.fit_ortho(x, y, normalize="center").weight
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"weight{rank}.npy"), expected, atol=1e-9)
