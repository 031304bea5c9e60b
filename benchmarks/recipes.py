"""Every recipe on small trees in the layouts of the data sets, with real encoders.

MIMIC-CXR-JPG with reports, RSNA and VinDr-CXR are written as drawings with reports that belong to
them; DINOv2-small takes the place of the image encoders, MiniLM-L3 and L6 that of the text
encoders. Prints what each recipe prints. Needs the packages of benchmarks/weights.txt and onnx.

The films are drawings: scores say that the parts fit together, nothing about radiology.

Example:
    python benchmarks/recipes.py --docs docs/recipes-run.md
    python benchmarks/recipes.py --patients 128 --only migrate
"""

import argparse
import io
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import clinical_trees as trees
import end_to_end
import printing
from demo_embeddings import weights

from semalign_jax.studies import report

#: Recipe -> encoder of it -> folder that takes its place.
ENCODERS = {
    "mimic-text-stitching": {"MiniLM-L6": "minilm-l6", "BERT": "minilm-l3"},
    "rsna-vision-stitching": {"DINOv2": "dinov2-small", "RAD-DINO": "dinov2-mean"},
    "rsna-zero-shot": {"DINOv2": "dinov2-small", "MiniLM-L6": "minilm-l6"},
    "vindr-zero-shot": {"DINOv2": "dinov2-small", "MiniLM-L6": "minilm-l6"},
    "migrate": {"old": "minilm-l3", "new": "minilm-l6"},
}
#: Fewer anchors than the recipes have: the trees are small.
CHANGES = {
    "mimic-text-stitching": ["counts=[10,40]", "intervals=null", 'test=["test","validate"]'],
    "rsna-vision-stitching": ["counts=[10,40]", "intervals=null"],
    "rsna-zero-shot": ["counts=[10,40]", "resamples=200", 'metrics=["auroc"]'],
    "vindr-zero-shot": ["counts=[10,40]", "resamples=200", 'metrics=["auroc"]'],
    "migrate": ["sample=80"],
}
#: Labels that the drawings show.
LABELS = ["Cardiomegaly", "Lung Opacity", "Pleural Effusion"]


def write_inputs(work: Path, patients: int, recipes: Sequence[str]) -> None:
    """Write below `work` the encoders, and the data sets that the recipes read."""
    data, encoders = work / "data", work / "encoders"
    many = [trees.patients(patients, seed) for seed in range(4)]
    splits = {"train": 0.75, "validate": 0.125, "test": 0.125}
    trees.write_mimic_cxr(data / "mimic-cxr-jpg", many[0], splits)
    # The reports are a data set of their own.
    for path in sorted((data / "mimic-cxr-jpg").rglob("*.txt")):
        target = data / "mimic-cxr" / path.relative_to(data / "mimic-cxr-jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    if any("rsna" in name for name in recipes):
        trees.write_rsna(data / "rsna", many[1])
    if any("vindr" in name for name in recipes):
        trees.write_vindr_cxr(data / "vindr-cxr", many[2], many[3])
    for name, made in (
        ("dinov2-small", weights.dinov2_small),
        ("dinov2-mean", weights.dinov2_small),
        ("minilm-l6", weights.minilm_l6),
        ("minilm-l3", weights.minilm_l3),
    ):
        shutil.copytree(made(), encoders / name)
    processor = end_to_end.image_processor(168)
    for name in ("dinov2-small", "dinov2-mean"):
        (encoders / name / "preprocessor_config.json").write_text(json.dumps(processor))
        processor = end_to_end.image_processor(112)  # the other sees smaller films


def words_of(name: str) -> list[str]:
    """The command line of a recipe, without the word `semalign`."""
    words = ["recipe", name, "--data", "data", "--out", f"results/{name}"]
    for key, folder in ENCODERS[name].items():
        words += ["--encoder", f"{key}=encoders/{folder}", "--only", key]
    changes = [*CHANGES[name]]
    if name != "migrate":
        changes += ["seeds=3", f"methods={json.dumps(end_to_end.MAPS)}"]
    if name == "mimic-text-stitching":
        changes.append(f"labels={json.dumps(LABELS)}")
    return words + [word for change in changes for word in ("--set", change)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipes; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=128, help="in each data set (default 128)")
    parser.add_argument("--only", choices=list(ENCODERS), help="this recipe alone")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    options = parser.parse_args(arguments)
    missing = end_to_end.missing_packages()
    if missing:
        print(f"recipes: error: not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    text = io.StringIO()

    def say(*parts: str) -> None:
        print(*parts)
        print(*parts, file=text)

    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = [options.only] if options.only else list(ENCODERS)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        write_inputs(work, options.patients, chosen)
        lines = [[*words_of(chosen[0]), "--dry-run"], *map(words_of, chosen)]
        try:
            done = [(words, end_to_end.run_command(words, work)) for words in lines]
        except end_to_end.FailedError as error:
            print(f"recipes: error: {error}", file=sys.stderr)
            return 1
    seconds = time.perf_counter() - start
    title, body, note = (__doc__ or "").split("\n\n")[:3]
    say(f"Printed by `{' '.join(['python benchmarks/recipes.py', *arguments])}`")
    say(f"on {report.environment()['processor']} in {seconds:.0f} s.\n")
    say(body, "\n")
    say(note, "\n")
    for words, printed in done:
        say(f"```console\n$ semalign {shlex.join(words)}\n{printed.rstrip()}\n```\n")
    if options.docs is not None:
        printing.write_page(options.docs, title.rstrip("."), text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
