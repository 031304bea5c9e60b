"""How fast are images decoded and maps fitted to stores on disk, next to the peers in one run?

Decoding: the script writes chest films of 2,000 x 2,500 pixels of 12 bits as DICOM in several
transfer syntaxes, as PNG and as JPEG, and reads them with `read_many`, and with a plain loop of
pydicom (pixels, modality LUT, VOI LUT) or Pillow. The files are in the page cache.

Streaming: two stores of embeddings are written, matched by id and streamed into the affine map, in
a process of its own, whose peak of resident memory is measured: mapped pages count. The peer,
numpy.linalg.lstsq, needs its rows in memory, and gets fewer.

Examples:
    python benchmarks/data_speed.py --folder /scratch  # 13 GB are written and removed
    python benchmarks/data_speed.py --quick
    python benchmarks/data_speed.py --skip decoding --rows 100000
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from clinical_trees import chest_film, dicom
from solver_sweeps import memory_megabytes, reset_peak

from semalign_jax import accumulate_stats, fit_from_stats
from semalign_jax.data import read_many, read_pixels
from semalign_jax.maps import row_batches
from semalign_jax.stores import create_store, join_stores, open_store, paired_batches

DIMENSION = 768
CHUNK_ROWS = 1 << 16
BATCH_ROWS = 4096
#: Each store also has ids that the other lacks: one in this many.
ALONE = 100
STAGES = ("decoding", "streaming")


class Decoding(NamedTuple):
    """Images per second of one format.

    Attributes:
        format: of the files.
        megabytes: size of a file.
        peer: images per second of a plain loop of pydicom or Pillow.
        one: of `read_many` with one worker.
        threads: with two threads.
        processes: with two processes, after they have started.
        ratio: best of ours over the peer.
        difference: largest difference from the peer, in grey levels of 255.
    """

    format: str
    megabytes: float
    peer: float
    one: float
    threads: float
    processes: float
    ratio: float
    difference: float


class Streaming(NamedTuple):
    """A fit to embeddings.

    Attributes:
        solver: whose.
        rows: matched pairs.
        seconds: of statistics and fit; of the peer, of the solution alone.
        rate: rows per second.
        ratio: our rate over this one; above 1 we are faster.
        peak: largest resident memory of the process, mapped files included, in MiB.
        private: of that the largest memory that is not mapped from files, in MiB; sampled every
            few milliseconds.
        difference: from our map of the same rows, relative.
    """

    solver: str
    rows: int
    seconds: float
    rate: float
    ratio: float
    peak: float
    private: float
    difference: float | None


# --- decoding ----------------------------------------------------------------------------------


def _film(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Stored values of 12 bits with the noise of a digital film."""
    shown = chest_film(shape, seed)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.clip(np.rint(3500 - 3000 * shown + 12 * noise), 0, 4095).astype(np.uint16)


def _dicom(values: np.ndarray) -> Any:
    window = {"WindowCenter": 2048, "WindowWidth": 3000, "RescaleSlope": 1, "RescaleIntercept": 0}
    return dicom(values, 12, PhotometricInterpretation="MONOCHROME1", **window)


def _recoded(plain: Path, path: Path, name: str) -> None:
    """Change the transfer syntax with gdcm."""
    import gdcm  # pyright: ignore[reportMissingImports]

    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    if not reader.Read():
        raise RuntimeError(f"gdcm cannot read {plain.name}")
    change.SetInput(reader.GetImage())
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    if not change.Change():
        raise RuntimeError(f"gdcm cannot encode {name}")
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"gdcm cannot write {name}")


def write_images(folder: Path, shape: tuple[int, int], files: int) -> dict[str, list[Path]]:
    """Write the same images in every format; returns the files by format."""
    from PIL import Image
    from pydicom.uid import JPEG2000Lossless, RLELossless

    found: dict[str, list[Path]] = {}
    for number in range(files):
        values = _film(shape, number)
        names = ("uncompressed", "RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000")
        paths = {name: folder / f"{name}-{number}.dcm" for name in names}
        _dicom(values).save_as(paths["uncompressed"], enforce_file_format=True)
        for name, syntax in (("RLE", RLELossless), ("JPEG 2000", JPEG2000Lossless)):
            header = _dicom(values)
            header.compress(syntax, generate_instance_uid=False)
            header.save_as(paths[name], enforce_file_format=True)
        _recoded(paths["uncompressed"], paths["JPEG lossless"], "JPEGLosslessProcess14_1")
        _recoded(paths["uncompressed"], paths["JPEG-LS"], "JPEGLSLossless")
        paths = {f"DICOM, {name}": path for name, path in paths.items()}
        paths |= {
            "PNG, 16 bits": folder / f"{number}.png",
            "JPEG, 8 bits": folder / f"{number}.jpg",
        }
        Image.fromarray(values << 4).save(paths["PNG, 16 bits"])
        Image.fromarray((values >> 4).astype(np.uint8)).save(paths["JPEG, 8 bits"], quality=95)
        for name, path in paths.items():
            found.setdefault(name, []).append(path)
    return found


def pydicom_loop(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """Pixels as pydicom's documentation says, as float64."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    for path in paths:
        header = dcmread(path)
        yield apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)


def pillow_loop(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """Pixels as they are stored."""
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            yield np.asarray(image)


def rate(images: Iterable[Any], skip: int) -> float:
    """Images per second, after the first `skip` have come."""
    start, count = time.perf_counter(), 0
    for number, _ in enumerate(images, start=1):
        if number == skip:
            start = time.perf_counter()
        count = number
    return (count - skip) / (time.perf_counter() - start)


def difference(path: Path) -> float:
    """Our pixels against the peer's, in grey levels."""
    own = read_pixels(path)
    if path.suffix == ".dcm":
        # The window of the peer maps to 0..4095; MONOCHROME1 is left to the caller.
        expected = 255 * (1 - next(pydicom_loop([path])) / 4095)
    else:
        expected = next(pillow_loop([path])).astype(np.float64)
        expected *= 255 / (65535 if path.suffix == ".png" else 255)
    return float(np.abs(own - expected).max())


def decodings(folder: Path, shape: tuple[int, int], files: int, images: int) -> Iterator[Decoding]:
    """Measure each format."""
    for name, paths in write_images(folder, shape, files).items():
        peer = pydicom_loop if paths[0].suffix == ".dcm" else pillow_loop
        differs = max(map(difference, paths))  # imports decoders, too
        many = [paths[i % len(paths)] for i in range(images)]
        own = {"peer": rate(peer(many), 1), "one": rate(read_many(many, workers=1), 3)}
        own["threads"] = rate(read_many(many, workers=2), 5)
        own["processes"] = rate(read_many(many, workers=2, processes=True), images // 3)
        ratio = max(own["one"], own["threads"], own["processes"]) / own["peer"]
        size = statistics.fmean(path.stat().st_size for path in paths) / 1e6
        yield Decoding(name, size, **own, ratio=ratio, difference=differs)


# --- streaming ---------------------------------------------------------------------------------


def write_stores(folder: Path, rows: int) -> None:
    """Write the stores x and y, which have `rows` ids in common, chunk by chunk."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((DIMENSION, DIMENSION), np.float32) / np.float32(DIMENSION**0.5)
    stores = {
        name: create_store(folder / name, description={"benchmark": name}, dimension=DIMENSION)
        for name in ("x", "y")
    }
    alone = max(1, rows // ALONE)
    first = {"x": 0, "y": alone}  # number of the item in row 0
    for start in range(0, rows + 2 * alone, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows + 2 * alone - start)
        x = rng.standard_normal((count, DIMENSION), np.float32)
        sides = {"x": x, "y": x @ mixing + 0.1 * rng.standard_normal(x.shape, np.float32)}
        # As long as those of MIMIC-CXR.
        ids = [sha256(str(start + i).encode()).hexdigest()[:44] for i in range(count)]
        for name, side in sides.items():
            low = max(first[name] - start, 0)
            high = min(first[name] + rows + alone - start, count)
            if low < high:
                stores[name] = stores[name].append(ids[low:high], side[low:high])


class PeakOfPrivate(threading.Thread):
    """Samples the memory of this process that is not mapped from files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Sample until `finish`."""
        while not self._stop_now.wait(0.005):
            self.megabytes = max(self.megabytes, memory_megabytes("RssAnon"))

    def finish(self) -> float:
        """Stop and return the peak."""
        self._stop_now.set()
        self.join()
        return self.megabytes


def streamed_fit(folder: Path) -> dict[str, Any]:
    """Match the two stores and fit the affine map; with seconds of each step and memory."""
    peak = PeakOfPrivate()
    peak.start()
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    x, y = open_store(folder / "x"), open_store(folder / "y")
    mark()
    matched = join_stores(x, y)
    mark()
    stats = accumulate_stats(paired_batches(x, y, matched, BATCH_ROWS))
    mark()
    weight = np.asarray(fit_from_stats("affine", stats).weight)
    mark()
    if not np.isfinite(weight).all():
        raise RuntimeError("the map is not finite")
    steps = dict(zip(("open", "match", "statistics", "fit"), np.diff(marks).tolist(), strict=True))
    memory = {"peak": memory_megabytes("VmHWM"), "private": peak.finish()}
    return {"rows": len(matched.rows_a), "steps": steps, **memory}


def lstsq_fit(folder: Path, rows: int, dtype: str) -> dict[str, Any]:
    """The same map by numpy.linalg.lstsq, and how far ours of the same rows is from it."""
    x, y = open_store(folder / "x"), open_store(folder / "y")
    matched = join_stores(x, y)
    a, b = x.rows(matched.rows_a[:rows]), y.rows(matched.rows_b[:rows])
    peak = PeakOfPrivate()
    reset_peak()
    peak.start()
    source, target = a.astype(dtype), b.astype(dtype)
    start = time.perf_counter()
    source -= source.mean(axis=0)
    target -= target.mean(axis=0)
    weight = np.linalg.lstsq(source, target, rcond=None)[0]
    seconds = time.perf_counter() - start
    memory = {"peak": memory_megabytes("VmHWM"), "private": peak.finish()}
    own = np.asarray(
        fit_from_stats("affine", accumulate_stats(row_batches(a, b, BATCH_ROWS))).weight
    )
    differs = float(np.linalg.norm(own - weight) / np.linalg.norm(weight))
    return {"rows": len(a), "seconds": seconds, "difference": differs, **memory}


def product_rate() -> float:
    """Operations per second of a float64 matrix product of the size of a block."""
    a, b = np.random.default_rng(0).standard_normal((2, BATCH_ROWS, DIMENSION))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a.T, b)
        times.append(time.perf_counter() - start)
    return 2 * a.size * DIMENSION / min(times)


def in_a_process(*arguments: Any) -> Any:
    """What this script prints with these arguments, as JSON."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; see above")
    return json.loads(done.stdout.splitlines()[-1])


def worker(task: str, folder: Path, rows: int) -> None:
    """Do one measurement and print it as JSON."""
    import jax

    jax.config.update("jax_enable_x64", True)  # so that maps are compared in float64
    if task == "ours":
        print(json.dumps(streamed_fit(folder)))
    elif task == "rate":
        print(json.dumps(product_rate()))
    else:
        print(json.dumps(lstsq_fit(folder, rows, task)))


def streamings(
    folder: Path, rows: int, peer_rows: int
) -> tuple[list[Streaming], dict[str, Any], float]:
    """Ours and the peers; also our steps in seconds and the rate of matrix products."""
    write_stores(folder, rows)
    products = in_a_process("--worker", "rate", "--folder", folder)
    own = in_a_process("--worker", "ours", "--folder", folder)
    seconds = own["steps"]["statistics"] + own["steps"]["fit"]
    speed = own["rows"] / seconds
    name = "semalign_jax, from disk"
    table = [
        Streaming(name, own["rows"], seconds, speed, 1.0, own["peak"], own["private"], None),
    ]
    for dtype in ("float64", "float32"):
        found = in_a_process("--worker", dtype, "--folder", folder, "--peer-rows", peer_rows)
        theirs = found["rows"] / found["seconds"]
        table.append(
            Streaming(
                f"numpy.linalg.lstsq, {dtype} in memory",
                found["rows"],
                found["seconds"],
                theirs,
                speed / theirs,
                found["peak"],
                found["private"],
                found["difference"],
            )
        )
    return table, own["steps"], products


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small images, few rows")
    parser.add_argument("--rows", type=int, help="matched pairs to stream (default 2,000,000)")
    parser.add_argument("--peer-rows", type=int, default=50_000, help="rows of the peer")
    parser.add_argument("--images", type=int, help="images to read of each format (default 48)")
    parser.add_argument("--skip", nargs="+", choices=STAGES, default=[])
    parser.add_argument("--folder", type=Path, help="where files are written and removed again")
    parser.add_argument("--out", type=Path, help="directory for the results as JSON")
    parser.add_argument("--docs", type=Path, help="file for what is printed")
    parser.add_argument(
        "--worker", choices=("ours", "float64", "float32", "rate"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.worker:
        worker(options.worker, options.folder, options.peer_rows)
        return 0

    import printing

    from semalign_jax.studies import report

    rows = options.rows or (6_000 if options.quick else 2_000_000)
    images = options.images or (24 if options.quick else 48)
    shape, files = ((250, 200), 2) if options.quick else ((2500, 2000), 8)
    try:
        if min(rows, options.peer_rows) <= DIMENSION or images < 6:
            raise ValueError(f"--rows and --peer-rows need more than {DIMENSION}, --images 6")
        for folder in (options.out, options.folder):
            if folder is not None:
                report.prepare_directory(folder)
    except ValueError as error:
        print(f"data_speed: error: {error}", file=sys.stderr)
        return 2
    text = io.StringIO()

    def say(*parts: Any) -> None:
        print(*parts)
        print(*parts, file=text)

    arguments = sys.argv[1:] if arguments is None else arguments
    where = report.environment()
    say(f"Printed by `{' '.join(['python benchmarks/data_speed.py', *arguments])}`.\n")
    say(f"On {where['processor']}, {os.cpu_count()} threads.\n")
    content: dict[str, Any] = {"environment": where}
    if "decoding" not in options.skip:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            table = list(decodings(Path(temporary), shape, files, images))
        content["decoding"] = [row._asdict() for row in table]
        say(f"## Images per second, {shape[1]} x {shape[0]} pixels of 12 bits\n")
        say("Peers: a loop of pydicom (float64, windowed, not inverted) or Pillow (as stored).")
        say("Ours are windowed, inverted and uint8: a difference of 0.5 is this rounding. `one`,")
        say("`threads` and `processes` are ours with one worker, two threads and two processes,")
        say("`ratio` the best of these over the peer.\n")
        say(printing.markdown(table, digits=3), "\n")
    if "streaming" not in options.skip:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            table, steps, products = streamings(Path(temporary), rows, options.peer_rows)
        content |= {
            "streaming": [row._asdict() for row in table],
            "seconds": steps,
            "products": products,
        }
        size = 2 * 4 * rows * DIMENSION / 2**30
        say(f"## Affine map of two stores, d = {DIMENSION}, float32, {size:.3g} GiB on disk\n")
        say("`rate` is in rows a second, `ratio` ours over this one; `peak` is resident memory")
        say("with mapped files and `private` without, in MiB; `difference` is of the map.\n")
        say(printing.markdown(table, digits=3), "\n")
        parts = ", ".join(f"{name} {value:.1f}" for name, value in steps.items())
        # Half of x^T x and all of x^T y.
        floor = rows * 3 * DIMENSION**2 / products
        say(f"Seconds of ours by step: {parts}. Matrix products run at {products / 1e9:.0f}")
        say(f"Gflop/s in float64; those of the statistics alone would take {floor:.1f} s.")
    if options.out is not None:
        report.write_json(options.out / "data_speed.json", content)
    if options.docs is not None:
        printing.write_page(options.docs, "Speed of readers and stores", text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
