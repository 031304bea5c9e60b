"""Some hundred cases of the bench, and faults of the system: a full disk, too few descriptors."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from helpers import some

import semalign_jax as sa
from robustness import calls, files, kills

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals are Linux's")


def last(cases):
    *_, found = cases
    return found


@pytest.mark.parametrize("count", some([20, 180]))
def test_wrong_arguments_are_named(count):
    assert last(calls.run(count, seed=count)) == (count, [])


@pytest.mark.parametrize("count", some([100, 200]))
def test_damaged_files_are_named(count, tmp_path):
    assert last(files.run(tmp_path, count, seed=count)) == (count, [])


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    return files.bombs(tmp_path_factory.mktemp("bombs"))


@pytest.mark.parametrize(
    "name",
    [
        "unwritten.h5", "many ids.h5", "external link.h5", "soft link.h5", "external data.h5",
        "virtual.h5", "zeros.npz", "long ids.npz", "alike.parquet", "one line.csv.gz",
    ],
)  # fmt: skip
def test_files_that_declare_too_much_or_lead_elsewhere(bombs, name):
    assert files.refusal(name, *bombs[name]) == ""


@pytest.mark.slow
def test_killed_and_interrupted_runs(tmp_path):
    assert last(kills.run(tmp_path, 20, seed=1)) == (20, [])


@contextmanager
def limit(kind, soft):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def store(tmp_path):
    store = sa.stores.create_store(tmp_path / "store", description={}, dimension=500)
    rows = np.random.default_rng(0).standard_normal((40, 500)).astype(np.float32)
    return store.append([f"i{k}" for k in range(40)], rows)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".h5"])
def test_a_full_disk_leaves_the_old_file(store, tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"old")
    with limit(resource.RLIMIT_FSIZE, 10_000), pytest.raises(OSError, match="rows"):
        sa.stores.export_store(store, path)
    assert path.read_bytes() == b"old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_what_cannot_be_opened_is_not_called_damaged(store):
    ids = store.ids
    taken = []
    with limit(resource.RLIMIT_NOFILE, 2 + max(map(int, os.listdir("/proc/self/fd")))):
        with suppress(OSError):
            while True:  # until none is left
                taken.append(os.open(os.devnull, os.O_RDONLY))
        problems = sa.stores.verify_store(store.folder)
    for descriptor in taken:
        os.close(descriptor)
    assert problems
    assert all("was not checked: Too many open files" in found.message for found in problems)
    assert sa.stores.verify_store(store.folder) == []
    assert sa.stores.open_store(store.folder).ids == ids


@pytest.mark.parametrize(
    ("number", "after", "status", "said"),
    [(signal.SIGINT, 0.3, 130, "interrupted"), (signal.SIGTERM, 1.5, 143, "terminated")],
)
def test_a_signal_ends_a_command_with_one_line(tmp_path, number, after, status, said):
    words = [sys.executable, "-m", "semalign_jax.cli", "demo", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*words, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(after)
    os.killpg(process.pid, number)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", f"semalign: {said}\n")
