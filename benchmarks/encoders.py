"""How fast are the encoders, next to the same models in PyTorch in the same run?

Each library runs in a process of its own, with the same number of threads, on the same random
weights of the real sizes (BERT-base, ViT-B/16, DINOv2-B; others with `--models`). Those of timm are
its networks in plain PyTorch, from the tests, since timm needs torchvision. Items per second
at several batch sizes; for BERT also texts of mixed lengths: ours in the batches of `embed`
(sorted, padded to one of a few lengths, fewer long ones a batch), those of PyTorch 32 a batch,
padded to the longest, in the given order (as a plain loop does) and sorted by length (as sentence-
transformers does). The lengths are those of the paragraphs of the docstrings in Python's standard
library. Also: from the start of the process to the first embedding, and the peak of memory. On a
GPU PyTorch is compiled (`torch.compile`).

Examples:
    python benchmarks/encoders.py
    python benchmarks/encoders.py --models bert-base --batches 1 8 --threads 1
    python benchmarks/encoders.py --models resnet50 vit_base_patch16_224 --threads 1 --clock cpu
    python benchmarks/encoders.py --dtype bfloat16 --out results
"""

import argparse
import importlib
import importlib.metadata
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLOCKS = "cpu: seconds of the processor, where other programs run; with --threads 1"
MEMORY = """\
`floor` is what the process takes after its imports. What it takes beyond that at its peak, over the
weights, is `loading` until the model is loaded and `ratio` in the whole run: compiled programs and
activations do not shrink with the model.
"""
WORKERS = ("semalign_jax", "pytorch")
TOKENS = 128
MIXED_TEXTS = 128
MAX_TOKENS = 512
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


class Model(NamedTuple):
    """A model of PyTorch and how it is measured.

    Attributes:
        kind: class of transformers without "Model", or of the models of timm.
        options: of its configuration, where the defaults are not those of the model.
        pooling: "cls", "mean" or what the family calls the model's own.
        takes: "texts", "images" or "patches".
        size: of the images, in pixels.
        tiny: options that make it tiny.
    """

    kind: str
    options: dict[str, Any] = {}
    pooling: str = "cls"
    takes: str = "texts"
    size: int = 224
    tiny: dict[str, Any] = TINY


def of_images(
    kind: str, options: dict[str, Any] | None = None, pooling: str = "pooler", **more: Any
) -> Model:
    """Return a model of images."""
    return Model(kind, options or {}, pooling, "images", **more)


_STAGES = {"depths": [1, 1, 1, 1]}
MODELS = {
    "bert-base": Model("Bert"),
    "albert-base-v2": Model(
        "Albert",
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu_new",
        },
    ),
    "megatron-bert-345m": Model("MegatronBert"),
    "deberta-v3-base": Model(
        "DebertaV2",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
        },
    ),
    "nomic-embed-text-v1.5": Model("NomicBert", pooling="mean"),
    "embeddinggemma-300m": Model(
        "Gemma3Text",
        {
            "vocab_size": 262144,
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 1152,
            "max_position_embeddings": 2048,
            "sliding_window": 512,
            "use_bidirectional_attention": True,
        },
        "mean",
    ),
    "qwen3-embedding-0.6b": Model(
        "Qwen3",
        {
            "vocab_size": 151669,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "intermediate_size": 3072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        "mean",
        tiny=TINY | {"num_key_value_heads": 1},
    ),
    "vit-b16": of_images("ViT", pooling="cls"),
    "dinov2-b": of_images("Dinov2", {"image_size": 518}, "cls"),
    "vit-mae-base": of_images("ViTMAE", {"mask_ratio": 0.0}, "cls"),
    "siglip2-base-naflex": Model("Siglip2Vision", {}, "projection", "patches"),
    "swinv2-tiny-window8": of_images(
        "Swinv2",
        {"image_size": 256, "window_size": 8},
        size=256,
        tiny={"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2]},
    ),
    "convnextv2-tiny": of_images("ConvNextV2", tiny=_STAGES),
    "dinov3-convnext-tiny": of_images("DINOv3ConvNext", tiny=_STAGES),
    "vit_base_patch16_224": of_images(
        "VisionTransformer",
        {
            "patch_size": 16,
            "embed_dim": 768,
            "depth": 12,
            "num_heads": 12,
            "img_size": [224, 224],
        },
        tiny={"depth": 1},
    ),
    "resnet50": of_images(
        "ResNet",
        {"layers": [3, 4, 6, 3], "channels": [64, 128, 256, 512]},
        tiny={"layers": [1, 1, 1, 1]},
    ),
    "convnext_tiny": of_images(
        "ConvNext", {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]}, tiny=_STAGES
    ),
    "efficientnet_b0": of_images("EfficientNet", tiny={}),
}
USUAL = ("bert-base", "vit-b16", "dinov2-b")
#: The kinds of timm: from its models in plain PyTorch and options to a module.
TIMM: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "VisionTransformer": lambda timm, options: timm.VisionTransformer(options),
    "ResNet": lambda timm, options: timm.ResNet("bottleneck", **options),
    "ConvNext": lambda timm, options: timm.ConvNext(**options),
    "EfficientNet": lambda timm, options: timm.EfficientNet(1.0, 1.0, False),
}
#: As `embed` pads texts.
BUCKETS = (16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
#: Of the standard library, so that anyone has the same texts.
DOCUMENTED = ("argparse", "difflib", "decimal", "email", "json", "logging", "random", "statistics")


class Speed(NamedTuple):
    """One model at one load.

    Attributes:
        model: which.
        load: batch size, or texts of mixed lengths.
        items: ours, per second.
        pytorch: items per second.
        ratio: ours over PyTorch's; above 1 we are faster.
        spread: half the distance between the quartiles of our times, in per cent of the median.
        difference: largest absolute difference of an embedding (unit: the largest magnitude); None
            where the two libraries embed the texts in different orders.
    """

    model: str
    load: str
    items: float
    pytorch: float
    ratio: float
    spread: float
    difference: float | None


class Start(NamedTuple):
    """From the start of a process to the first embedding, in seconds, and the memory.

    Attributes:
        model: which.
        library: whose.
        imports: start of Python, imports and a first computation.
        load: the checkpoint.
        first: the first embedding, compilation included.
        total: all of it.
        peak: largest resident memory of the process during the whole run, in MiB.
        floor: the same after `imports`.
        weights: size of the checkpoint, in MiB.
        loading: of what is above the floor at the peak of loading to the weights.
        ratio: the same of the peak of the whole run.
    """

    model: str
    library: str
    imports: float
    load: float
    first: float
    total: float
    peak: float
    floor: float
    weights: float
    loading: float
    ratio: float


def text_lengths(count: int) -> list[int]:
    """Lengths in tokens (words and punctuation, and two special tokens) of real paragraphs."""
    lengths = []
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        parts = [module, *(value for _, value in sorted(vars(module).items()) if callable(value))]
        docs = dict.fromkeys(part.__doc__ for part in parts if isinstance(part.__doc__, str))
        for paragraph in (p for doc in docs for p in doc.split("\n\n")):
            length = len(re.findall(r"\w+|[^\w\s]", paragraph)) + 2
            if length > 6:
                lengths.append(min(length, MAX_TOKENS))
    return [int(n) for n in np.random.default_rng(0).permutation(lengths)[:count]]


def loads(model: str, batches: Sequence[int], mixed: int) -> list[str]:
    """Names of the loads of a model."""
    names = [f"batch {n}" for n in batches]
    return [*names, f"{mixed} mixed texts"] if model == "bert-base" and mixed else names


def make_checkpoint(name: str, folder: Path, tiny: bool) -> None:
    """Write random weights in the real size (or a tiny one, for tests)."""
    import safetensors.torch
    import torch
    import transformers

    torch.manual_seed(0)
    model = MODELS[name]
    options = model.options | (model.tiny if tiny else {})
    if model.kind in TIMM:
        module = timm_module(model.kind, options)
        safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
        config = {"architecture": name, "model_args": options}
        (folder / "config.json").write_text(json.dumps(config))
        return
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{model.kind}Config")(**options)
    getattr(transformers, f"{model.kind}Model")(config).save_pretrained(folder)


def timm_module(kind: str, options: dict[str, Any]) -> Any:
    """Return a model of timm's in plain PyTorch, which the tests compare with."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    return TIMM[kind](importlib.import_module("tests.encoders.references.timm"), options)


def inputs(model: str, load: str, order: str = "given") -> tuple[list[dict[str, np.ndarray]], int]:
    """Return the batches of a load and its number of items.

    Args:
        model: which.
        load: a name of `loads`.
        order: of mixed texts: "given", "sorted" or "buckets".
    """
    rng = np.random.default_rng(0)
    count = int(load.split()[0 if "mixed" in load else 1])
    size, takes = MODELS[model].size, MODELS[model].takes
    if takes == "images":
        return [{"pixel_values": rng.standard_normal((count, 3, size, size), np.float32)}], count
    if takes == "patches":
        side = size // 16
        pixels = rng.standard_normal((count, side * side, 3 * 16 * 16), np.float32)
        mask = np.ones((count, side * side), np.int32)
        shapes = np.full((count, 2), side, np.int32)
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        return [dict(zip(names, (pixels, mask, shapes), strict=True))], count
    lengths = text_lengths(count) if "mixed" in load else [TOKENS] * count
    ids = [rng.integers(1000, 20000, n) for n in lengths]
    size = 32 if "mixed" in load else count
    if order != "given":
        ids.sort(key=len, reverse=True)
    batches = []
    while ids:
        width = max(map(len, ids[:size]))
        rows = size
        if order == "buckets":
            from semalign_jax.encoders import _embed

            width = next(b for b in BUCKETS if b >= width)
            rows = _embed.rows_of_length(size, width)
        part, ids = ids[:rows], ids[rows:]
        # The last batch is filled up, as `embed` does; what is added is not counted.
        part += part[:1] * (rows - len(part) if order == "buckets" else 0)
        mask = (np.arange(width) < np.array([len(row) for row in part])[:, None]).astype(np.int32)
        rows = np.stack([np.pad(row, (0, width - len(row))) for row in part]).astype(np.int32)
        batches.append({"input_ids": rows, "attention_mask": mask})
    return batches, count


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def semalign_jax_runner(folder: str, dtype: str, model: str) -> tuple[Callable, Callable]:
    """Import; return what loads, and then what embeds."""
    import jax

    from semalign_jax.encoders import encode, load_encoder

    jax.numpy.ones(1).block_until_ready()

    def load() -> Callable:
        encoder = load_encoder(folder, dtype=dtype, pooling=MODELS[model].pooling)
        jax.block_until_ready(encoder.params)

        def run(batches: list[dict[str, Any]]) -> list[np.ndarray]:
            # All are dispatched before the first is fetched, as `embed` does.
            found = [encode(encoder.config, encoder.params, batch) for batch in batches]
            return [np.asarray(value, np.float32) for value in found]

        return run

    return load, lambda batches: batches


def pytorch_runner(folder: str, dtype: str, model: str) -> tuple[Callable, Callable]:
    """Import; return what loads, and then what embeds."""
    import safetensors.torch
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.ones(1, device=device)

    def load() -> Callable:
        kind, pooling = MODELS[model].kind, MODELS[model].pooling
        if kind in TIMM:
            options = json.loads((Path(folder) / "config.json").read_text())["model_args"]
            module = timm_module(kind, options)
            module.load_state_dict(safetensors.torch.load_file(f"{folder}/model.safetensors"))
        else:
            # The class itself: `AutoModel` makes two towers of a vision tower's folder.
            module = getattr(transformers, f"{kind}Model").from_pretrained(folder)
        module = module.eval().to(device, getattr(torch, dtype))
        if device == "cuda":
            module = torch.compile(module, dynamic=True)

        def pooled(batch: dict[str, Any]) -> Any:
            found = module(**batch)
            if kind in TIMM:
                return found[2]
            if pooling not in ("cls", "mean"):
                return found.pooler_output.flatten(1)
            last = found.last_hidden_state
            if pooling == "cls":
                return last[:, 0]
            shown = batch["attention_mask"][:, :, None].to(last.dtype)
            return (last * shown).sum(1) / shown.sum(1)

        def run(batches: list[dict[str, Any]]) -> list[np.ndarray]:
            with torch.inference_mode():
                found = [pooled(batch) for batch in batches]
                return [value.float().cpu().numpy() for value in found]

        return run

    def prepare(batches: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
        def tensor(value: np.ndarray) -> Any:
            kind = torch.int64 if value.dtype.kind == "i" else getattr(torch, dtype)
            return torch.from_numpy(value).to(device, kind)

        return [{name: tensor(value) for name, value in batch.items()} for batch in batches]

    return load, prepare


def worker(options: argparse.Namespace) -> None:
    """Measure one model in one library; prints one JSON object."""
    orders = {"semalign_jax": ["buckets"], "pytorch": ["given", "sorted"]}[options.worker]
    runner = {"semalign_jax": semalign_jax_runner, "pytorch": pytorch_runner}[options.worker]
    if options.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    model = options.models[0]
    load, prepare = runner(options.folder, options.dtype, model)
    marks, floor = [time.time()], peak_memory()
    run = load()
    marks.append(time.time())
    loaded = peak_memory()
    names = loads(model, options.batches, options.mixed)
    run(prepare(inputs(model, names[0])[0]))
    marks.append(time.time())
    found: dict[str, Any] = {"marks": marks, "loads": {}}
    for name in names:
        for order in orders if "mixed" in name else ["given"]:
            batches, count = inputs(model, name, order)
            prepared = prepare(batches)
            value = np.concatenate(run(prepared))  # compiles
            times: list[float] = []
            while len(times) < 3 or (sum(times) < options.seconds and len(times) < 100):
                start = clock()
                run(prepared)
                times.append(clock() - start)
            quarters = statistics.quantiles(times, n=4)
            found["loads"][f"{name}, {order}"] = {
                "rate": count / quarters[1],
                "spread": 50 * (quarters[2] - quarters[0]) / quarters[1],
                "norms": np.abs(value).max(),
                "sample": value[0].tolist(),
            }
    found |= {"peak": peak_memory(), "floor": floor, "loaded": loaded}
    print(json.dumps(found, default=float))


def run_worker(library: str, model: str, folder: Path, options: argparse.Namespace) -> dict:
    """Run `worker` in a process of its own."""
    command = [sys.executable, __file__, "--worker", library, "--models", model]
    command += ["--folder", str(folder), "--dtype", options.dtype, "--mixed", str(options.mixed)]
    command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
    command += ["--batches", *map(str, options.batches), "--clock", options.clock]
    start = time.time()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library} on {model} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["seconds"] = np.diff([start, *found.pop("marks")]).tolist()
    return found


def speeds(model: str, found: dict[str, dict], options: argparse.Namespace) -> Iterator[Speed]:
    """Compare the two libraries."""
    own, peer = found["semalign_jax"]["loads"], found["pytorch"]["loads"]
    for name in loads(model, options.batches, options.mixed):
        mixed = "mixed" in name
        ours = own[f"{name}, {'buckets' if mixed else 'given'}"]
        for order in ("given", "sorted") if mixed else ("given",):
            theirs = peer[f"{name}, {order}"]
            # Sorted batches begin with the same (longest) text in both libraries.
            comparable = not mixed or order == "sorted"
            error = np.abs(np.subtract(ours["sample"], theirs["sample"])).max() / ours["norms"]
            yield Speed(
                model,
                f"{name}, PyTorch {'in order' if order == 'given' else order}" if mixed else name,
                ours["rate"],
                theirs["rate"],
                ours["rate"] / theirs["rate"],
                ours["spread"],
                float(error) if comparable else None,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=USUAL)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32), help="batch sizes")
    parser.add_argument("--mixed", type=int, default=MIXED_TEXTS, help="texts of mixed lengths")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, a measurement")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=CLOCKS)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--out", type=Path, help="directory for the results as JSON")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        worker(options)
        return 0

    import printing

    from semalign_jax.studies import report

    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("encoders: error: PyTorch is missing: pip install -e '.[parity]'", file=sys.stderr)
        return 2
    try:
        if options.out is not None:
            report.prepare_directory(options.out)
    except ValueError as error:
        print(f"encoders: error: {error}", file=sys.stderr)
        return 2
    rows: list[Speed] = []
    starts: list[Start] = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_checkpoint(model, folder, options.tiny)
            size = (folder / "model.safetensors").stat().st_size / 2**20
            found = {}
            for library in WORKERS:
                print(f"{model} in {library}", file=sys.stderr)
                found[library] = run_worker(library, model, folder, options)
                imports, load, first = found[library]["seconds"]
                total = imports + load + first
                peak, floor = found[library]["peak"], found[library]["floor"]
                over = [(found[library][at] - floor) / size for at in ("loaded", "peak")]
                starts.append(
                    Start(model, library, imports, load, first, total, peak, floor, size, *over)
                )
        rows += speeds(model, found, options)

    text = io.StringIO()

    def say(*parts: Any) -> None:
        print(*parts)
        print(*parts, file=text)

    arguments = sys.argv[1:] if arguments is None else arguments
    where = report.environment()
    threads = options.threads or os.cpu_count()
    say(f"Printed by `{' '.join(['python benchmarks/encoders.py', *arguments])}`.\n")
    versions = f"jax {where['versions']['jax']}, torch {importlib.metadata.version('torch')}"
    threads = "1 thread" if threads == 1 else f"{threads} threads"
    say(f"On {where['processor']}, {threads}, {options.dtype}, {versions}.\n")
    unit = "second of the processor" if options.clock == "cpu" else "second"
    say(f"## Items per {unit}\n")
    say(printing.markdown(rows, digits=3), "\n")
    say("## From the start of the process to the first embedding (seconds), memory (MiB)\n")
    say(MEMORY)
    say(printing.markdown(starts, digits=3))
    if options.out is not None:
        content = {
            "environment": where,
            "speeds": [row._asdict() for row in rows],
            "starts": [row._asdict() for row in starts],
        }
        report.write_json(options.out / "encoders.json", content)
    if options.docs is not None:
        title = f"Speed of encoders on {where['processor']}"
        printing.write_page(options.docs, title, text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
