"""What all commands share: help, settings, errors, exit statuses, and what goes where."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_cases import error_of, pair_of_stores, run, values_of
from typer.testing import CliRunner

import semalign_jax as sa
from semalign_jax.cli import _console, _distributed, _settings, app, embed, maps, sweeps
from semalign_jax.cli._options import READERS
from semalign_jax.studies import inputs, zero_shot

DOCS = Path(__file__).parents[2] / "docs" / "command.md"
COMMANDS = typer.main.get_command(app).list_commands(None)  # pyright: ignore


def command_line(*words, program=("-m", "semalign_jax.cli")):
    """Run the command in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(sa.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
    }
    words = [sys.executable, *program, *map(str, words)]
    return subprocess.run(
        words, capture_output=True, text=True, env=environment, check=False, timeout=120
    )


#: The command where files may have 20,000 bytes.
SMALL_DISK = """
import resource, signal
from semalign_jax.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main()
"""


def test_help_names_every_command_in_order():
    text = run("--help").stdout
    listed = text.rpartition("Commands")[2]
    places = [listed.index(f" {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert run().stdout == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example(name):
    text = run(name, "--help").stdout
    assert "Example" in text
    assert f"semalign {name} " in text.split("Example")[1]
    assert all(flag in text for flag in ("--json", "--quiet", "--debug"))


def flags_of(name):
    command = typer.main.get_command(app).get_command(None, name)  # pyright: ignore
    return {
        flag
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


def command_lines():
    """Those of the documentation and of the help, as words."""
    text = DOCS.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("semalign ")]
    for name in COMMANDS:
        command = typer.main.get_command(app).get_command(None, name)  # pyright: ignore
        lines += command.epilog.split("\n\n")[1:]
    return [shlex.split(line) for line in lines]


def test_examples_have_only_options_that_there_are():
    lines = command_lines()
    assert {words[1] for words in lines} == set(COMMANDS)
    for words in lines:
        unknown = {word for word in words[2:] if word.startswith("-")} - flags_of(words[1])
        assert not unknown, words


def test_settings_of_the_documentation_can_be_used(tmp_path):
    kinds = {
        "fit.yaml": _settings.FitSettings,
        "embed.yaml": _settings.EmbedSettings,
        "zeroshot.yaml": zero_shot.ZeroShotSettings,
    }
    blocks = [part.split("```")[0] for part in DOCS.read_text().split("```yaml\n")[1:]]
    names = [re.match(r"# (\S+\.yaml)", block)[1] for block in blocks]  # pyright: ignore
    assert sorted(names) == sorted(kinds)
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(block)
        inputs.load_settings(kinds[name], tmp_path / name)


def test_version_and_completion(monkeypatch):
    assert run("--version").stdout.strip() == f"semalign_jax {sa.__version__}"
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = CliRunner().invoke(app, ["--show-completion", "bash"], prog_name="semalign")
    assert script.exit_code == 0
    assert "_SEMALIGN_COMPLETE=complete_bash" in script.stdout


def test_values_are_completed():
    words = {"COMP_WORDS": "semalign fit --method l-", "COMP_CWORD": "3"}
    environment = words | {"_SEMALIGN_COMPLETE": "complete_bash"}
    done = CliRunner(env=environment).invoke(app, [], prog_name="semalign")
    assert done.stdout.split() == ["l-ortho"]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (embed.embed, _settings.EmbedSettings),
        (maps.fit, _settings.FitSettings),
        (maps.apply, _settings.ApplySettings),
        (sweeps.sweep, _settings.SweepSettings),
    ],
    ids=["embed", "fit", "apply", "sweep"],
)
def test_help_and_settings_agree(function, kind):
    fields = set(kind.model_fields)
    parameters = inspect.signature(function).parameters
    of_data_sets = {"dataset", "path", "reader_options", "images", "texts"}
    of_the_launch = set(_distributed.JOIN)
    flags = set(parameters) - {"config"} - of_data_sets - of_the_launch
    assert flags == fields - {"dataset", "content"}
    for name in flags:
        option = parameters[name].annotation.__metadata__[0]
        shown = option.help.partition("(default ")[2].rstrip(").")
        default = kind.model_fields[name].default
        if isinstance(default, str):
            assert shown == default, name
        elif isinstance(default, int | float) and not isinstance(default, bool):
            assert shown == f"{default:g}", name
    counts = kind.model_fields["anchors"].default if kind is _settings.SweepSettings else ()
    if counts:
        option = parameters["anchors"].annotation.__metadata__[0]
        assert option.help.endswith(f"(default {','.join(map(str, counts))}).")


def test_readers_are_those_of_the_studies():
    assert READERS.split("|") == list(inputs.READERS)


def test_a_process_keeps_stdout_for_the_result(tmp_path):
    a, b = pair_of_stores(tmp_path)
    words = ("fit", a, b, "--out", tmp_path / "map.safetensors", "--json")
    done = command_line(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["anchors"] == 60
    assert "60 pairs of" in done.stderr
    assert command_line(*words, "--quiet").stderr == ""


def test_a_process_tells_bad_input_from_failure(tmp_path):
    missing = command_line("verify", tmp_path / "none")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"semalign: error: {tmp_path}/none: there is no such folder\n"
    a, _ = pair_of_stores(tmp_path)
    chunk = a / "chunk-00000.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = command_line("verify", a, "--json")
    assert damaged.returncode == 1
    assert [p["file"] for p in json.loads(damaged.stdout)["problems"]] == [chunk.name]


def test_a_full_disk_names_the_file(tmp_path):
    a, _ = pair_of_stores(tmp_path, rows=4000)
    done = command_line("convert", a, tmp_path / "a.npy", program=("-c", SMALL_DISK))
    assert done.returncode == 1
    assert done.stderr == f"semalign: error: {tmp_path}/a.npy: File too large\n"
    assert not list(tmp_path.glob("*a.npy*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "missing: source, target, out (give it on the command line, or in the file of"),
        (["fit", "a", "b", "--foo"], "No such option: --foo"),
        (["fit", "a", "b", "--out", "m", "--anchors", "0"], "Invalid value for '--anchors'"),
        (["fit", "a", "b", "--out", "m", "--method", "best"], "method: Input should be 'affine', "),
        (["mend"], "No such command 'mend'"),
        (["fit", "a", "b", "--out", "m", "--config", "none.yaml"], "no settings file at "),
        (
            ["embed", "e", "--out", "s"],
            "give what to embed as one of files, a data set",
        ),
        (["embed", "e", "x.png", "--texts", "--out", "s"], "content needs a data set (--dataset)"),
        (["embed", "e", "--dataset", "table", "--path", "t.csv", "--out", "s"], "give --images or"),
        (["embed", "e", "t.csv", "--out", "s"], "is a table: give it as --dataset table --path"),
        (["embed", "e", "a.txt", "--option", "id", "--out", "s"], "--option 'id': expected KEY=VA"),
        (["info", "nothing"], "there is no such file or folder, and no prompt set of this name"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(*words)


def test_errors_are_json_too(tmp_path):
    result = run("verify", tmp_path / "none", "--json", status=2)
    assert json.loads(result.stdout) == {"error": f"{tmp_path}/none: there is no such folder"}
    assert result.stderr.count("\n") == 1


def test_debug_shows_where(tmp_path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "none"), "--debug"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "in verify" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("another process writes"), 1, "another process writes"),
        (KeyError("rows"), 1, "unexpected KeyError: 'rows'; --debug shows where"),
        (OSError(28, "No space left on device", "s/c"), 1, "s/c: No space left on device"),
        (ConnectionError("the hub cannot be reached"), 1, "the hub cannot be reached"),
        (PermissionError(13, "Permission denied", "s/c"), 2, "s/c: Permission denied"),
        (sa.encoders.CheckpointError("a:\n  b\n  c\n(d)"), 2, "a: b; c (d)"),
        (ValueError("a\x1b[31m\u202e"), 2, r"a\x1b[31m\u202e"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_kinds_of_errors(error, status, message, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr("semalign_jax.stores.store.verify_store", fail)
    assert error_of("verify", tmp_path, status=status) == message


def test_an_interruption_has_its_own_status(monkeypatch, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("semalign_jax.stores.store.verify_store", fail)
    assert run("verify", tmp_path, status=130).stderr.splitlines()[-1] == "semalign: interrupted"


def test_what_libraries_print_is_not_on_stdout(monkeypatch, tmp_path):
    def chatty(*_):
        print("loading")
        return []

    pair_of_stores(tmp_path)
    monkeypatch.setattr("semalign_jax.stores.store.verify_store", chatty)
    result = run("verify", tmp_path / "a", "--json")
    assert json.loads(result.stdout)["rows"] == 65
    assert "loading" in result.stderr


def test_nan_is_null_in_json(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "semalign_jax.cli.files.describe", lambda _: ("map", {"score": [float("nan"), 1.0]})
    )
    assert values_of("info", tmp_path)["score"] == [None, 1.0]


def test_a_settings_file_and_the_command_line_before_it(tmp_path, monkeypatch):
    a, b = pair_of_stores(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "source: a\ntarget: b\nout: map.safetensors\nmethod: affine\nanchors: 20\nridge: 0.5\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ("fit", "--config", "../run.yaml")
    assert values_of(*words) | {"sha256": ""} == {
        "map": str(tmp_path / "map.safetensors"),
        "sha256": "",
        "method": "affine",
        "d_in": 6,
        "d_out": 5,
        "anchors": 20,
        "matched": 60,
        "only_source": 5,
        "only_target": 3,
        "ids_not_found": 0,
        "correlation": pytest.approx(0.99, abs=0.01),
    }
    mine = values_of(*words, "--out", "mine.safetensors", "--anchors", "30")
    assert mine["map"] == str(tmp_path / "elsewhere" / "mine.safetensors")
    assert (mine["anchors"], mine["method"]) == (30, "affine")
    # What was saved is complete and does not depend on the folder.
    saved = json.loads((tmp_path / "elsewhere" / "mine.settings.json").read_text())
    assert saved["source"] == str(a)
    assert (saved["target"], saved["ridge"], saved["batch_rows"]) == (str(b), 0.5, 4096)
    monkeypatch.chdir(tmp_path)
    again = values_of("fit", "--config", "elsewhere/mine.settings.json")
    assert again == mine


def test_one_line():
    text = "two problems:\n  one\n  two\n(see the docs)\n\n"
    assert _console.one_line(text) == "two problems: one; two (see the docs)"
    assert _console.one_line("") == ""


def test_import_is_light():
    code = (
        "import sys, semalign_jax.cli\n"
        "heavy = {'flax', 'transformers', 'PIL', 'matplotlib', 'pydicom', 'pydantic', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "heavy = {'semalign_jax.studies', 'semalign_jax.encoders'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
