"""Several processes on this machine make what one process makes, and fail together."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import workers
from cli_cases import error_of as error_of_command
from cli_cases import image_encoder
from data.trees import write_image
from encoders.fakes import fake_preprocessors, one_device, texts
from encoders.test_embed import contents, load
from helpers import anchors
from workers import CHUNK, MANY

import semalign_jax as sa
from semalign_jax import distributed
from semalign_jax.distributed.processes import Section
from semalign_jax.encoders import _store, embed

pytestmark = pytest.mark.slow  # processes start and are killed
ROWS = 41


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


def start(commands, variables):
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
    try:
        texts = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], *zip(*texts, strict=True)


def launch(function, *args, processes=2):
    """Start a function of `workers` in processes."""
    code = f"import sys, workers; workers.{function.__name__}(*sys.argv[1:])"
    coordinator = f"localhost:{free_port()}"
    commands = [["-c", code, coordinator, rank, *args] for rank in range(processes)]
    return start(commands, [{}] * processes)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def faked(monkeypatch):
    fake_preprocessors(monkeypatch)


@pytest.fixture(scope="module")
def runs(bert, tmp_path_factory):
    """A folder with the files of one process and of two; how they ended, by who was killed."""
    folder, lost = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("lost")
    x, y = anchors(ROWS, 6, 5, cond=5, offset=100.0)
    ids = [f"study {row}" for row in range(ROWS)]
    for name, rows in (("a", x), ("b", y)):
        store = sa.stores.create_store(folder / name, description={}, dimension=rows.shape[1])
        store.append(ids, rows.astype(np.float32))
    one = {"devices": jax.devices()[:1]}
    with pytest.MonkeyPatch.context() as patch:
        fake_preprocessors(patch)
        embed(bert, texts(), out=folder / "one", **one, **CHUNK)
        begun = folder / "begun"
        shutil.copytree(folder / "one", begun)
        for number in (0, 2, 3):
            (begun / f"chunk-0000{number}.safetensors").unlink()
        both = [
            launch(workers.lose_the_first, lost, bert.folder),
            launch(workers.work_together, folder, bert.folder),
            launch(workers.wait_for_others, processes=1),
        ]
        embed(bert, out=folder / "many", **one, **MANY)
    ends = [finish(processes) for processes in both]
    assert (folder / "errors1.json").is_file(), ends[1]
    return folder, lost, [(codes, errors) for codes, _, errors in ends]


@pytest.fixture(scope="module")
def together(runs):
    return runs[0]


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
    assert first["nested"].endswith("process 1 of 2 failed in inner: ValueError: inner fails")
    assert second["nested"] == "ValueError: outer fails"
    assert first["after"] == second["after"] == "no error"


def test_an_item_that_fails_ends_all_processes_after_a_chunk(together):
    first, second = (json.loads((together / f"errors{rank}.json").read_text()) for rank in range(2))
    assert second["item"].startswith("ValueError: items[4]")
    assert first["item"] == "OtherProcessError: process 1 of 2 failed in embed: " + second["item"]
    chunks = [path.name for path in (together / "y").glob("chunk-*")]
    assert chunks == ["chunk-00000.safetensors"]


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_others(victim, runs, bert):
    folder = runs[1 - victim] / "killed"
    codes, errors = runs[2][victim]
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, None)
    # JAX aborts those that are left: what to do is said before.
    assert "another one is gone, noticed within about 10 s: files on disk" in errors[1 - victim]
    if victim == 1:
        own = "OtherProcessError: embed cannot go on: another process is gone or cannot be reached"
        assert own in errors[0]
    assert 0 < len(list(folder.glob("chunk-*"))) < 13
    embed(bert, out=folder, devices=jax.devices()[:1], **MANY)
    assert contents(folder) == contents(runs[0] / "many")


def test_a_process_that_never_comes_is_not_waited_for(runs):
    codes, errors = runs[2][2]
    assert codes[0] not in (0, None)
    assert "If JAX aborts this one after 2 s: are all started" in errors[0]


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
distributed.barrier("alone")  # starts no device: JAX would refuse to initialize then
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


def fits(folder, targets, options, variables=({}, {})):
    """Start `semalign fit` in two processes, of each what is its own."""
    words = ["-m", "semalign_jax.cli", "fit", folder / "a"]
    more = ["--json", "--out", folder / "map.safetensors", "--method", "ortho"]
    more += ["--normalize", "none"]
    own = zip(targets, options, strict=True)
    return start([[*words, folder / store, *more, *rest] for store, rest in own], variables)


def by_hand():
    port = free_port()
    options = ["--coordinator", f"localhost:{port}", "--process-count", 2, "--process-id"]
    return [[*options, rank] for rank in range(2)]


def test_the_command_fits(together):
    # JAX takes the port from the job's number.
    job = free_port(range(61440, 2**16)) - 61440
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} | slurm for rank in "01"]
    fitting = fits(together, ("b", "b"), [["--distributed"]] * 2, ranks)
    failing = fits(together, ("b", "nowhere"), by_hand())

    codes, printed, errors = finish(fitting)
    assert codes == [0, 0], "\n".join(errors)
    values = json.loads(printed[0])
    assert (values["anchors"], values["d_in"], values["d_out"]) == (ROWS, 6, 5)
    weight = sa.load_map(together / "map0.safetensors").weight
    np.testing.assert_array_equal(sa.load_map(together / "map.safetensors").weight, weight)

    # Before anything is done together.
    codes, printed, _ = finish(failing)
    assert 0 not in codes
    own = json.loads(printed[0])["error"]
    assert own.startswith("process 1 of 2 failed in the command: FileNotFoundError: ")
    assert "nowhere" in own


def test_the_command_embeds_and_all_processes_look_for_broken_images(tmp_path):
    vit = image_encoder(tmp_path / "vit")
    for number in range(70):  # more than one process checks at a time
        value = 3 * (number % 69)  # the first and the last are the same
        write_image(tmp_path / "films" / f"{number:02}.png", np.full((40, 32), value, np.uint8))
    for number in (3, 66):
        (tmp_path / "films" / f"{number:02}.png").write_bytes(b"no image")
    words = ["-m", "semalign_jax.cli", "embed", vit, tmp_path / "films", "--timeout", 60]
    words += ["--json", "--skip-broken", "--chunk-size", 16, "--out", tmp_path / "store"]
    codes, printed, errors = finish(start([[*words, *own] for own in by_hand()], [{}, {}]))
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
    assert "process 1 of 2: 2 chunks to make" in errors[1]
    assert (tmp_path / "store/settings.json").is_file()
    assert sa.stores.verify_store(tmp_path / "store") == []
    rows = sa.stores.open_store(tmp_path / "store").rows(slice(None))
    np.testing.assert_allclose(rows[-1], rows[0], atol=1e-6)
    assert np.abs(rows[1:-1] - rows[0]).max(axis=1).min() > 1e-4


def test_a_time_out_is_of_several_processes():
    message = error_of_command("fit", "a", "b", "--timeout", 5, "--out", "map.safetensors")
    assert "--timeout is of several processes: give --distributed" in message


def test_a_folder_that_is_not_shared_is_refused(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_VISIBLE", 0.05)
    embed(bert, texts(), out=tmp_path / "there", **one_device())
    chunks = sa.stores.open_store(tmp_path / "there")._files

    second = Section("embed", 1, 2)
    plan = [chunks.run, [1, 2]]
    monkeypatch.setattr(Section, "exchange", lambda section, value: [plan, value])
    here = replace(chunks, folder=tmp_path / "here")
    with pytest.raises(FileNotFoundError, match="process 1 does not see .* that all processes"):
        _store.deal(here, [], second)
    assert _store.deal(chunks, [], second) == [[1], [2]]
