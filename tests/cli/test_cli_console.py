"""What all commands share: help, settings, errors, exit statuses, and what goes where."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_cases import error_of, pair_of_stores, run, values_of

import semalign_jax as sa
from semalign_jax.cli import _console, _options, _settings
from semalign_jax.cli._app import COMMANDS, app
from semalign_jax.studies import stitching, zero_shot
from semalign_jax.studies.settings import READERS, load_settings

DOCS = Path(__file__).parents[2] / "docs" / "command.md"


def command(name):
    found = app.get_command(click.Context(app), name)
    assert isinstance(found, _options.SettingsCommand)
    return found


def options_of(name):
    return [one for _, some in command(name).settings for one in some]


def test_help_names_every_command_in_order():
    text = run("--help").stdout
    listed = text.rpartition("Commands:")[2]
    places = [listed.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    for name, summary in COMMANDS.items():
        assert (command(name).help or "").partition("\n")[0] == summary
    assert run().stdout == text


@pytest.mark.parametrize("width", [80, 200])
def test_help_is_whole(width, monkeypatch):
    """In lines of the terminal's width: names, and sentences with choices and defaults."""
    monkeypatch.setenv("COLUMNS", str(width))
    for name in COMMANDS:
        text = run(name, "--help").stdout
        assert max(map(len, text.splitlines())) <= width, name
        assert (max(map(len, text.splitlines())) > 80) == (width > 80), name
        words = " ".join(text.split())
        for one in options_of(name):
            shown = " / ".join(one.names)
            shown += "" if one.is_flag or one.is_positional else f" {one.metavar}"
            assert f"{shown} {one.help}" in words, (name, one.key)
        assert all(flag in text for flag in ("--json", "--quiet", "--debug", "--config"))
        copied = text.partition("\nExample")[2].replace(" \\\n", "\n")
        assert all(example in " ".join(copied.split()) for example in command(name).examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_field_is_an_option_once_and_has_a_sentence(name):
    keys, names = [], []
    for one in options_of(name):
        keys.append(one.key)
        names += one.names
        assert one.text, one.key
    assert len(set(keys)) == len(keys)
    assert len(set(names)) == len(names)
    for kind, some in command(name).settings:
        assert {one.path[0] for one in some} == set(kind.model_fields)
        if kind.__module__ == _settings.__name__:
            for field, text in _options.descriptions(kind).items():
                assert re.fullmatch(r"[A-Z].*\.", text), (kind, field)


def test_objects_in_settings_are_options_with_dots():
    keys = {one.key: one.name for one in options_of("stitch") + options_of("zeroshot")}
    assert keys["intervals.resamples"] == "--intervals.resamples"
    assert keys["multimodal.*.prompts.store"] == "--multimodal.prompts.store"
    assert keys["prompt_embeddings.*.store"] == "--prompt-store"
    fields = set(stitching.StitchingSettings.model_fields)
    assert fields == {key.partition(".")[0] for key in keys} & fields


def test_help_says_what_values_there_are_and_which_is_taken():
    methods = {one.key: one for one in options_of("fit")}
    assert methods["method"].metavar == "NAME"
    choices = "[one of: affine, linear, l-ortho, ortho, auto; default: auto]"
    assert choices in methods["method"].help
    sweep = {one.key: one for one in options_of("sweep")}
    assert sweep["anchors"].metavar == "N,..."
    assert sweep["anchors"].help.endswith("[default: 50, 100, 200, 400]")
    assert f"[one of: {', '.join(READERS)}]" in sweep["dataset.reader"].help
    embed = {one.key: one for one in options_of("embed")}
    assert embed["content"].names == ["--images", "--texts"]
    assert embed["split"].help.endswith("[repeatable]")
    assert embed["skip_broken"].help.endswith("[default: --no-skip-broken]")


def flags_of(name):
    return {flag for one in options_of(name) for flag in one.names}


def command_lines():
    """Those of the documentation and of the help, as words."""
    text = DOCS.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("semalign ")]
    lines += [example for name in COMMANDS for example in command(name).examples]
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
        load_settings(kinds[name], tmp_path / name)


def test_version_and_completion():
    assert run("--version").stdout.strip() == f"semalign_jax {sa.__version__}"
    assert "_SEMALIGN_COMPLETE=bash_complete" in run("--show-completion", "bash").stdout


def test_values_are_completed(monkeypatch):
    for typed, expected in (
        ("semalign fit --method l-", ["plain,l-ortho"]),
        ("semalign fit --ridge-u", ["plain,--ridge-unit"]),
        ("semalign fit --out ", ["file,"]),
        ("semalign ze", ["plain,zeroshot"]),
    ):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        monkeypatch.setenv("_SEMALIGN_COMPLETE", "bash_complete")
        assert run().stdout.splitlines() == expected


def test_stdout_is_for_the_result_alone(tmp_path):
    out = ("--method", "ortho", "--out", tmp_path / "map.safetensors")
    words = ("fit", *pair_of_stores(tmp_path), *out, "--json")
    loud = run(*words)
    assert json.loads(loud.stdout)["anchors"] == 60
    assert "60 pairs of" in loud.stderr
    assert run(*words, "--quiet") == (loud.stdout, "")


def test_bad_input_and_failure_have_different_statuses(tmp_path):
    missing = run("verify", tmp_path / "none", status=2)
    assert missing.stdout == ""
    assert missing.stderr == f"semalign: error: {tmp_path}/none: there is no such folder\n"
    a, _ = pair_of_stores(tmp_path)
    chunk = a / "chunk-00000.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = values_of("verify", a, status=1)
    assert [p["file"] for p in damaged["problems"]] == [chunk.name]


#: `python -m semalign_jax.cli` where files may have 20,000 bytes.
SMALL_DISK = """
import resource, runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
runpy.run_module("semalign_jax.cli", run_name="__main__")
"""


def test_a_process_on_a_full_disk_names_the_file(tmp_path):
    a, _ = pair_of_stores(tmp_path, rows=4000)
    words = [sys.executable, "-c", SMALL_DISK, "convert", a, tmp_path / "a.npy", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(sa.__file__).parent.parent)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    message = f"{tmp_path}/a.npy: File too large"
    assert done.stderr == f"semalign: error: {message}\n"
    assert json.loads(done.stdout) == {"error": message}
    assert not list(tmp_path.glob("*a.npy*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "missing: SOURCE, TARGET, --out (give it on the command line, or in the file"),
        (
            ["fit", "a", "b", "--foo"],
            "No such option '--foo'. Did you mean '--out'? (see",
        ),
        (
            ["fit", "a", "b", "--out", "m", "--anchors", "0"],
            "--anchors '0': Input should be gre",
        ),
        (
            ["fit", "a", "b", "--out", "m", "--method", "best"],
            "--method 'best': Input should be",
        ),
        (["mend"], "No such command 'mend'"),
        (["fit", "a", "b", "--out", "m", "--config", "none.yaml"], "no settings file at "),
        (
            ["embed", "e", "--out", "s"],
            "give what to embed as one of files, a data set",
        ),
        (["embed", "e", "x.png", "--texts", "--out", "s"], "--texts needs a data set (--dataset)"),
        (["embed", "e", "--dataset", "table", "--path", "t.csv", "--out", "s"], "give --images or"),
        (["embed", "e", "--images", "--texts", "--out", "s"], "--images and --texts: give one of"),
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
    result = run("verify", tmp_path / "none", "--debug", status=2, debug=True)
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

    monkeypatch.setattr("semalign_jax.cli.files.verify_store", fail)
    assert error_of("verify", tmp_path, status=status) == message


def test_an_interruption_has_its_own_status(monkeypatch, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("semalign_jax.cli.files.verify_store", fail)
    assert run("verify", tmp_path, status=130).stderr.splitlines()[-1] == "semalign: interrupted"


def test_what_libraries_print_is_not_on_stdout(monkeypatch, tmp_path):
    def chatty(*_):
        print("loading")
        return []

    pair_of_stores(tmp_path)
    monkeypatch.setattr("semalign_jax.cli.files.verify_store", chatty)
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
        "matched_by": "id",
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


def test_the_list_of_commands_imports_nothing_heavy():
    code = (
        "import sys, semalign_jax.cli\n"
        "try: semalign_jax.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'flax', 'transformers', 'PIL', 'matplotlib', 'pydicom'}\n"
        "heavy |= {'pydantic', 'yaml', 'rich', 'semalign_jax.studies', 'semalign_jax.encoders'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
