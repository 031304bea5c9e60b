"""Anchors spread over 8 virtual devices, or over two processes, give the same map."""

import re
import socket
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import METHODS, anchors
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
    stats = sa.init_stats(x.shape[1], y.shape[1], dtype=x.dtype)
    return sa.fit_from_stats(method, sa.update_stats(stats, x, y), normalize="center")


def gathers(compiled):
    """Sizes of the results of all all-gather operations in the compiled program."""
    shapes = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather", compiled.as_text() or "")
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
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
        own = sa.init_stats(x.shape[1], y.shape[1], dtype=x.dtype)
        own = jax.tree.map(lambda a: jax.lax.pcast(a, ("rows",), to="varying"), own)
        return sa.psum_stats(sa.update_stats(own, x, y), "rows")

    x, y = sharded
    whole = sa.update_stats(sa.init_stats(WIDTH, 5, dtype=x.dtype), np.asarray(x), np.asarray(y))
    for one, two in zip(statistics(x, y), whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-10)


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
    stats = sa.update_stats(sa.init_stats(6, 5, dtype=x.dtype), x, y)
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
