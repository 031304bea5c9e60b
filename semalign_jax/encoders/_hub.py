"""From a folder or the id of a repository on the Hugging Face hub to a folder of files."""

import fnmatch
import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .._core.files import as_path
from ._sentence import MODULES_FILE, PROMPT_FILE, TRANSFORMER_FILES
from ._weights import (
    SINGLE_FILE,
    WEIGHTS_OF,
    CheckpointError,
    PickledCheckpointError,
    no_safetensors,
    pickled_name,
)

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *SENTENCEPIECE_FILES,
)
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
#: Of an adapter, e.g. LoRA; such a checkpoint is refused.
ADAPTER_FILE = "adapter_config.json"
#: Names (shell patterns) of what is downloaded besides the weights.
_SMALL_FILES = (
    *WEIGHTS_OF,
    ADAPTER_FILE,
    *TOKENIZER_FILES,
    *IMAGE_FILES,
    MODULES_FILE,
    PROMPT_FILE,
    TRANSFORMER_FILES,
    # Of the modules of sentence-transformers.
    "[0-9]_*/config.json",
    f"[0-9]_*/{SINGLE_FILE}",
)
#: Of the Dense layers of sentence-transformers.
DENSE_PICKLES = "[0-9]_*/pytorch_model.bin"
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def resolve_checkpoint(
    source: str | Path, revision: str | None = None, *, pickled: bool = False
) -> Path:
    """Return the folder of a checkpoint, downloaded if `source` is no folder.

    Only the files that are used are downloaded, into the cache of huggingface_hub, whose settings
    (``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE``, a token) count. New files are compared with
    the sizes and hashes that the hub states. Without a connection the cache is used.

    Args:
        source: a folder; or a string with the id of a repository, ``owner/name``.
        revision: branch, tag or commit of the repository; None for its main branch.
        pickled: whether the pickled weights are meant, not the safetensors.

    Raises:
        FileNotFoundError: if there is neither such a folder nor such a repository, the repository
            has no safetensors file, or it is not in the cache and the hub cannot be reached.
        PermissionError: if the repository's terms have to be accepted first.
        ConnectionError: if a download fails.
        ValueError: if `revision` does not exist, or is given with a folder.
        CheckpointError: if a downloaded file is not the one that the hub describes.
    """
    folder = _local_folder(source, revision)
    return _download(str(source), revision, pickled) if folder is None else folder


def _local_folder(source: str | Path, revision: str | None) -> Path | None:
    """Return the folder here, or None if `source` is an id."""
    folder = as_path(source)
    if folder.is_dir() and str(source):  # "" would be the current folder
        if revision is not None:
            raise ValueError(f"revision must be None for a folder; got {revision!r} with {folder}")
        _refuse_broken_links(folder)
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; give the folder that it is in")
    if not isinstance(source, str) or not _ID.fullmatch(source):
        raise FileNotFoundError(
            f"there is no folder {str(source)!r}, and that is no id of a repository on the hub "
            "either (owner/name)"
        )
    return None


def download_size(source: str, revision: str | None = None) -> int | None:
    """Return how many bytes `resolve_checkpoint` would download; None without a connection.

    If there are only pickled weights, of these. Raises what `resolve_checkpoint` does of what is
    not there.
    """
    if _local_folder(source, revision) is not None:
        return 0
    from huggingface_hub import try_to_load_from_cache

    info = _model_info(source, revision)
    if isinstance(info, Exception):
        return None
    described = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    try:
        weights = _weights(source, described, False)
    except PickledCheckpointError:
        weights = _weights(source, described, True)
    needed = [*weights, *filter(is_small, described)]
    return sum(
        described[name]
        for name in needed
        if not try_to_load_from_cache(source, name, revision=info.sha)
    )


def _refuse_broken_links(folder: Path) -> None:
    for path in (*folder.iterdir(), *folder.glob("[0-9]_*/*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.exists() and (is_small(name) or _is_weights(name)):
            raise FileNotFoundError(
                f"{path} is a link to {path.readlink()}, which is not there: download the "
                "checkpoint again"
            )


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"))


def _model_info(source: str, revision: str | None) -> Any:
    """Return what the hub says of a repository, or the error where it cannot be reached."""
    # Imported here, because a folder does not need it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The base error of the HTTP library, which has changed between releases, and OSError.
    unreachable: Any = HfHubHTTPError.__bases__
    api = HfApi()
    try:
        return api.model_info(source, revision=revision, files_metadata=True)
    except GatedRepoError:
        raise PermissionError(
            f"{source} is gated: accept its terms at {api.endpoint}/{source}, then log in with "
            "`hf auth login`"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(
            f"there is no folder {source!r} here, and no repository of that id at {api.endpoint} "
            "that you may read"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"revision {revision!r} is no branch, tag or commit of {source} at {api.endpoint}"
        ) from None
    except unreachable as error:
        return error


def _download(source: str, revision: str | None, pickled: bool) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    unreachable: Any = HfHubHTTPError.__bases__
    info = _model_info(source, revision)
    if isinstance(info, Exception):
        return _cached(source, revision, pickled, info)
    described = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = [*_weights(source, described, pickled), *filter(is_small, described)]
    names += fnmatch.filter(described, DENSE_PICKLES) if pickled else []
    known = {name for name in names if try_to_load_from_cache(source, name, revision=info.sha)}
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=names))
    except unreachable as error:
        raise ConnectionError(
            f"{source} could not be downloaded: {error} What has come whole is kept; try again"
        ) from error
    if folder.name != info.sha:
        raise ConnectionError(f"{source} has changed during its download; try again")
    for name in names:
        _check(folder / name, described[name], whole=name not in known)
    return folder


def is_small(name: str) -> bool:
    """Whether a file, by its path in the folder, is one that is used besides the weights."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _SMALL_FILES)


def _weights(source: str, names: Collection[str], pickled: bool) -> list[str]:
    """Return the files of weights that belong to the configuration in use."""
    choices = next((WEIGHTS_OF[config] for config in WEIGHTS_OF if config in names), ())
    if not choices:
        raise FileNotFoundError(f"{source} has no config.json and no open_clip_config.json")
    wanted = choices[0]
    if pickled:
        found = pickled_name(names, wanted)
        if found is None:
            raise FileNotFoundError(f"{source} has no pickled checkpoint, e.g. pytorch_model.bin")
        choices = (found.removesuffix(".index.json"),)
    for choice in choices:
        if choice in names:
            return [choice]
        if f"{choice}.index.json" in names:
            stem, suffix = map(re.escape, choice.rsplit(".", 1))
            shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            return [f"{choice}.index.json", *filter(shard.fullmatch, names)]
    raise no_safetensors(source, wanted, names)


def _cached(source: str, revision: str | None, pickled: bool, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = snapshot_download(
            source, revision=revision, local_files_only=True, allow_patterns=list(_SMALL_FILES)
        )
    except LocalEntryNotFoundError:
        wanted = source if revision is None else f"{source} at {revision}"
        raise FileNotFoundError(
            f"there is no folder {source!r} here, {wanted} is not (or not wholly) in the cache of "
            f"huggingface_hub, and the hub cannot be reached: {reason}"
        ) from None
    folder = Path(path)
    try:
        _weights(source, {path.name for path in folder.iterdir()}, pickled)
        _refuse_broken_links(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the cache of huggingface_hub: {error}; and the hub cannot be reached: {reason}"
        ) from None
    return folder


def _check(path: Path, described: Any, *, whole: bool) -> None:
    """Compare a file with the hub's description, its hash too if `whole`; remove a wrong one."""
    found, size = path.stat().st_size, described.size
    if size is not None and found != size:
        problem = f"it has {found} bytes instead of {size}"
    elif whole and not _has_hash(path, described):
        problem = "its hash is not the one that the hub states"
    else:
        return
    path.resolve().unlink()  # the content in the cache, of which `path` is a link
    path.unlink(missing_ok=True)
    raise CheckpointError(f"{path} has been damaged in the download: {problem}; try again")


def _has_hash(path: Path, described: Any) -> bool:
    if described.lfs is not None:
        expected, digest = described.lfs.sha256, hashlib.sha256()
    elif described.blob_id is not None:
        expected = described.blob_id
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest() == expected
