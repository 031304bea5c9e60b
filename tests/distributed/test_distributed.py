"""Several processes on this machine make what one process makes, and fail together."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_cases import error_of as error_of_command
from cli_cases import image_encoder
from data.trees import write_image
from encoders.test_embed import contents, fake_preprocessors, load, one_device, texts
from encoders.test_texts import write_tokenizer
from helpers import anchors

import semalign_jax as sa
from semalign_jax import distributed
from semalign_jax.distributed import processes as _processes
from semalign_jax.encoders import _store, embed, load_encoder

ROWS = 41
CHUNK = {"batch_size": 4, "chunk_size": 4, "progress": True}


def environment():
    tests = Path(__file__).parents[1]
    folders = [Path(__file__).parent, tests, tests.parent, os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(map(str, folders))
    return os.environ | {"PYTHONPATH": paths}


def free_port(candidates=(0,)):
    """Return a port that nobody uses now; 0 stands for any."""
    for port in candidates:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return free.getsockname()[1]
    raise RuntimeError("no port is free")


def start(commands, variables=({}, {})):
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | own,
        )
        for command, own in zip(commands, variables, strict=True)
    ]


def finish(processes):
    """Return exit codes, stdout and stderr."""
    texts = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], *zip(*texts, strict=True)


def launch(function, *args):
    """Start a function of this module in two processes."""
    code = f"import sys, test_distributed as t; t.{function.__name__}(*sys.argv[1:])"
    coordinator = f"localhost:{free_port()}"
    return start([["-c", code, coordinator, rank, *args] for rank in range(2)])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def faked(monkeypatch):
    fake_preprocessors(monkeypatch)


def error_of(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work_together(coordinator, rank, folder, checkpoint):
    """Run in each of the two processes, with JAX's default settings."""
    rank, folder = int(rank), Path(folder)
    distributed.initialize(coordinator, 2, rank, timeout=60)
    assert distributed.this_process() == (rank, 2)
    assert list(distributed.shard_rows(5)) == [[0, 1], [2, 3, 4]][rank]

    a, b = sa.stores.open_store(folder / "a"), sa.stores.open_store(folder / "b")
    batches = sa.stores.paired_batches(
        a, b, sa.stores.join_stores(a, b), 7, shard=distributed.this_process()
    )
    stats = distributed.accumulate_stats(batches)
    np.savez(folder / f"stats{rank}.npz", **stats._asdict())
    sa.save_map(sa.fit_from_stats("ortho", stats), folder / f"map{rank}.safetensors")
    first = distributed.merge_across_processes(stats if rank == 0 else None)
    assert all(map(np.array_equal, first, stats))

    fake_preprocessors(pytest.MonkeyPatch())
    encoder = load_encoder(checkpoint)
    for out in ("new", "begun"):
        result = embed(encoder, texts(), out=folder / out, **CHUNK)
        np.save(folder / f"{out}{rank}.npy", result.embeddings)

    x = np.ones((8, 2))
    broken = np.where(np.arange(8)[:, None] == 5, np.nan, x) if rank else x
    dtype = ("float32", "float16")[rank]
    wrong = {
        "arguments": lambda: embed(encoder, texts(), out=folder / "x", dtype=dtype, **CHUNK),
        "nan": lambda: distributed.accumulate_stats([(broken, x)]),
        "shapes": lambda: distributed.merge_across_processes(sa.maps.init_stats(2 + rank, 3)),
        "nothing": lambda: distributed.merge_across_processes(None),
        "order": lambda: distributed.barrier(f"number {rank}"),
        "late": lambda: time.sleep(1.5 * rank) or distributed.barrier("late", timeout=0.3),
        "after": lambda: distributed.barrier("after"),
        "ended": lambda: None if rank else distributed.barrier("never"),
    }
    errors = {name: error_of(call) for name, call in wrong.items()}
    (folder / f"errors{rank}.json").write_text(json.dumps(errors))


@pytest.fixture(scope="module")
def together(bert, tmp_path_factory):
    """A folder with the files of one process and of two."""
    folder = tmp_path_factory.mktemp("together")
    x, y = anchors(ROWS, 6, 5, cond=5, offset=100.0)
    ids = [f"study {row}" for row in range(ROWS)]
    for name, rows in (("a", x), ("b", y)):
        store = sa.stores.create_store(folder / name, description={}, dimension=rows.shape[1])
        store.append(ids, rows.astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        fake_preprocessors(patch)
        devices = jax.devices()[:1]
        embed(bert, texts(), out=folder / "one", devices=devices, **CHUNK)
    begun = folder / "begun"
    shutil.copytree(folder / "one", begun)
    for number in (0, 2, 3):
        (begun / f"chunk-0000{number}.safetensors").unlink()
    codes, _, errors = finish(launch(work_together, folder, bert.folder))
    assert codes == [0, 0], "\n".join(errors)
    return folder


def test_statistics_are_those_of_one_process(together):
    a, b = sa.stores.open_store(together / "a"), sa.stores.open_store(together / "b")
    matched = sa.stores.join_stores(a, b)
    expected = sa.accumulate_stats(sa.stores.paired_batches(a, b, matched, 7))
    stats = [np.load(together / f"stats{rank}.npz") for rank in range(2)]
    for name, value in expected._asdict().items():
        assert stats[0][name].dtype == np.float64
        np.testing.assert_array_equal(stats[0][name], stats[1][name])
        scale = np.abs(value).max()
        np.testing.assert_allclose(stats[0][name], value, rtol=0, atol=1e-12 * scale)
    weights = [sa.load_map(together / f"map{rank}.safetensors").weight for rank in range(2)]
    np.testing.assert_array_equal(weights[0], weights[1])
    fitted = sa.fit_from_stats("ortho", expected).weight
    np.testing.assert_allclose(weights[0], fitted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("out", ["new", "begun"])
def test_embeddings_are_those_of_one_process(out, together):
    assert contents(together / out) == contents(together / "one")
    expected = sa.stores.open_store(together / "one").rows(slice(None))
    for rank in range(2):
        np.testing.assert_array_equal(np.load(together / f"{out}{rank}.npy"), expected)


def test_what_goes_wrong_in_one_process_is_said_in_all(together):
    first, second = (json.loads((together / f"errors{rank}.json").read_text()) for rank in range(2))
    own = "ValueError: process 1 has other arguments than process 0"
    assert second["arguments"].startswith(own)
    assert "dtype: 'float32' there, 'float16' here" in second["arguments"]
    echo = "OtherProcessError: process 1 of 2 failed in embed: "
    assert first["arguments"] == echo + second["arguments"]
    assert "first in row 5" in second["nan"]
    assert "process 1 of 2 failed in accumulate_stats: ValueError: x or y" in first["nan"]
    for errors in (first, second):
        assert "process 0 has 2 and 3, process 1 has [3, 3]" in errors["shapes"]
        assert "at least one batch of anchors is needed" in errors["nothing"]
        assert "the same calls in the same order" in errors["order"]
    assert "process 1 of 2 did not come to barrier 'late' (start) within 0.3 s" in first["late"]
    assert "process 0 of 2 failed in barrier 'late': OtherProcessError" in second["late"]
    assert first["after"] == second["after"] == second["ended"] == "no error"
    assert "process 1 of 2 has ended and never came to barrier 'never'" in first["ended"]


MANY = {"items": texts(50, longest=4), **CHUNK}


def die_at_work(coordinator, rank, victim, out, checkpoint):
    """Embed; the victim is killed at its fourth write, when the file has its temporary name."""
    if victim == "1":
        distributed.initialize(coordinator, 2, int(rank), timeout=6)
    else:  # works as well, with JAX's times
        jax.distributed.initialize(coordinator, 2, int(rank), heartbeat_timeout_seconds=10)
    fake_preprocessors(pytest.MonkeyPatch())
    rename, count = os.replace, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == 4 and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)
        time.sleep(0.05)

    os.replace = counted
    embed(load_encoder(checkpoint), out=out, **MANY)


@pytest.fixture(scope="module")
def killed(bert, tmp_path_factory):
    """For each victim the folder, the exit codes and stderr of both processes."""
    folders = [tmp_path_factory.mktemp(f"victim{rank}") for rank in range(2)]
    began = time.monotonic()
    both = [launch(die_at_work, rank, folders[rank] / "two", bert.folder) for rank in range(2)]
    found = []
    for folder, processes in zip(folders, both, strict=True):
        codes, _, errors = finish(processes)
        found.append((folder, codes, errors))
    assert time.monotonic() - began < 120
    return found


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_others(victim, killed, bert):
    folder, codes, errors = killed[victim]
    assert codes[victim] == -signal.SIGKILL
    if victim == 1:
        assert codes[0] == 1
        assert "OtherProcessError: embed cannot go on: process 1 of 2 is gone" in errors[0]
        assert "run the same command again in all processes to continue" in errors[0]
    else:  # JAX aborts those that lose the coordinator; what to do was said before
        assert codes[1] != 0
        assert "then run the same command again, in any number of processes" in errors[1]
    assert 0 < len(list((folder / "two").glob("chunk-*"))) < 13
    one = {"devices": jax.devices()[:1], **MANY}
    embed(bert, out=folder / "one", **one)
    embed(bert, out=folder / "two", **one)
    assert contents(folder / "two") == contents(folder / "one")


def test_signs_of_life():
    signs = _processes.Signs(timeout=10.0)
    assert signs.silent({0: "1", 1: "1"}, 0.0) == []
    assert signs.silent({0: "2", 1: "1"}, 4.0) == []
    assert signs.silent({0: "3", 1: "1"}, 8.0) == []
    assert signs.silent({0: "4", 1: "1"}, 11.0) == [1]
    assert signs.silent({0: "5", 1: "left"}, 14.0) == []
    # Who was stopped itself does not blame the others.
    assert signs.silent({0: "5", 1: "left", 2: "1"}, 100.0) == []
    assert signs.silent({0: "5", 1: "left", 2: "1"}, 104.0) == []


def test_rows_are_divided_without_gaps():
    for rows, count in ((0, 3), (2, 3), (41, 2), (100, 7)):
        shards = [distributed.shard_rows(rows, index, count) for index in range(count)]
        assert [row for shard in shards for row in shard] == list(range(rows))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert distributed.shard_rows(5) == range(5)
    with pytest.raises(ValueError, match="index of the shard must be from 0 to 1; got 2"):
        distributed.shard_rows(5, 2, 2)
    with pytest.raises(TypeError, match="number of shards must be an int"):
        distributed.shard_rows(5, 0, 2.0)  # pyright: ignore[reportArgumentType]


def test_one_process_needs_no_coordinator():
    x, y = anchors(ROWS, 6, 5)
    expected = sa.accumulate_stats([(x, y)])
    for stats in (
        distributed.accumulate_stats([(x, y)]),
        distributed.merge_across_processes(expected),
    ):
        for one, two in zip(stats, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    distributed.barrier("alone")
    with pytest.raises(ValueError, match="needs a positive weight"):
        distributed.accumulate_stats([(x, y, np.zeros(ROWS))])


WRONG_STARTS = {
    "coordinator must be 'host:port'; got 'node0'": {"coordinator": "node0"},
    "timeout must be at least 1; got 0": {"timeout": 0},
    "Give coordinator ('host:port'), processes and process_id": {"processes": 2},
    "process_id=2, num_processes=2": {"coordinator": "a:1", "processes": 2, "process_id": 2},
}


START_WRONGLY = """
import json, sys
from semalign_jax import distributed
for arguments in json.loads(sys.argv[1]):
    try:
        distributed.initialize(**arguments)
    except ValueError as error:
        print("ValueError:", error)
"""


def test_wrong_starts_are_refused():
    arguments = json.dumps(list(WRONG_STARTS.values()))
    command = [sys.executable, "-c", START_WRONGLY, arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(), timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(WRONG_STARTS), done.stderr
    for line, message in zip(lines, WRONG_STARTS, strict=True):
        assert line.startswith("ValueError: ")
        assert message in line
    jax.devices()
    with pytest.raises(RuntimeError, match="must be called before any JAX calls"):
        distributed.initialize("localhost:1", 1, 0)


def test_the_commands_embed_and_fit(together, bert, tmp_path):
    write_tokenizer(bert.folder)
    (tmp_path / "reports.txt").write_text("no acute finding\nleft finding\nleft\n" * 3)
    semalign = ["-m", "semalign_jax.cli"]
    words = [*semalign, "embed", bert.folder, tmp_path / "reports.txt", "--json", "--out"]
    words += [tmp_path / "reports", "--batch-size", 2, "--chunk-size", 2]
    port = free_port()
    address = ["--coordinator", f"localhost:{port}", "--process-count", 2, "--process-id"]
    embedding = start([[*words, *address, rank] for rank in range(2)])

    # JAX takes the port from the job's number.
    job = free_port(range(61440, 2**16)) - 61440
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} | slurm for rank in "01"]
    words = [*semalign, "fit", together / "a", together / "b", "--json", "--distributed", "--out"]
    fitting = start([[*words, tmp_path / "map.safetensors", "--normalize", "none"]] * 2, ranks)

    codes, printed, errors = finish(fitting)
    assert codes == [0, 0], "\n".join(errors)
    values = json.loads(printed[0])
    assert (values["anchors"], values["d_in"], values["d_out"]) == (ROWS, 6, 5)
    weight = sa.load_map(together / "map0.safetensors").weight
    np.testing.assert_array_equal(sa.load_map(tmp_path / "map.safetensors").weight, weight)

    codes, printed, errors = finish(embedding)
    assert codes == [0, 0], "\n".join(errors)
    assert json.loads(printed[0].splitlines()[-1])["rows"] == 9
    assert "process 1 of 2: 2 chunks to make" in errors[1]
    assert sa.stores.verify_store(tmp_path / "reports") == []
    rows = sa.stores.open_store(tmp_path / "reports").rows(slice(None))
    np.testing.assert_allclose(rows[3:], rows[:6], atol=1e-6)


def test_broken_images_are_looked_for_by_all_processes(tmp_path):
    vit = image_encoder(tmp_path / "vit")
    for number in range(70):  # more than one process checks at a time
        write_image(tmp_path / "films" / f"{number:02}.png", np.full((40, 32), number, np.uint8))
    for number in (3, 66):
        (tmp_path / "films" / f"{number:02}.png").write_bytes(b"no image")
    port, words = free_port(), ["-m", "semalign_jax.cli", "embed", vit, tmp_path / "films"]
    words += ["--json", "--skip-broken", "--chunk-size", 16, "--out", tmp_path / "store"]
    words += ["--coordinator", f"localhost:{port}", "--process-count", 2, "--timeout", 60]
    codes, printed, errors = finish(start([[*words, "--process-id", rank] for rank in range(2)]))
    assert codes == [1, 1], "\n".join(errors)
    values = json.loads(printed[0].splitlines()[-1])
    assert values["rows"] == 68
    assert [why.partition(".png")[0][-2:] for why in values["skipped"]] == ["03", "66"]
    blocks = [
        [json.loads(line)["cell"] for line in lines[1:]]
        for rank in range(2)
        for lines in [(tmp_path / f"store/.checked-{rank}-of-2.jsonl").read_text().splitlines()]
    ]
    assert blocks == [[0], [64]]
    assert sa.stores.verify_store(tmp_path / "store") == []


def test_a_time_out_is_of_several_processes():
    message = error_of_command("fit", "a", "b", "--timeout", 5, "--out", "map.safetensors")
    assert "--timeout is of several processes: give --distributed" in message


def test_a_folder_that_is_not_shared_is_refused(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_VISIBLE", 0.05)
    embed(bert, texts(), out=tmp_path / "there", **one_device())
    chunks = sa.stores.open_store(tmp_path / "there")._files

    second = _processes.alone()
    second.index, second.count = 1, 2
    plan = json.dumps([chunks.run, [1, 2]])
    monkeypatch.setattr(second, "exchange", lambda label, value: [plan, value])
    here = replace(chunks, folder=tmp_path / "here")
    with pytest.raises(FileNotFoundError, match="process 1 does not see .* that all processes"):
        _store.deal(here, [], second)
    assert _store.deal(chunks, [], second) == [2]
