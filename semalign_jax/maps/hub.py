"""Maps on the Hugging Face hub, each with a card that says what it is and how far to trust it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._core.files import as_path

#: Name of the file in a repository.
MAP_FILE = "map.safetensors"
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_repository(path: str | os.PathLike) -> bool:
    """Whether a name can be that of a repository, and of no file here: ``user/map``."""
    text = os.fspath(path)
    return (
        isinstance(path, str)
        and _ID.fullmatch(text) is not None
        and not text.endswith(".safetensors")
        and not as_path(text).exists()
    )


def download_map(repository: str, revision: str | None = None) -> Path:
    """The file of a map on the hub, in the cache of huggingface_hub.

    Raises:
        FileNotFoundError: if there is no such repository, or no map in it.
        ConnectionError: if the hub cannot be reached and the cache does not have it.
        PermissionError: if the repository's terms have to be accepted first.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: Any = HfHubHTTPError.__bases__
    try:
        return Path(hf_hub_download(repository, MAP_FILE, revision=revision))
    except GatedRepoError:
        raise PermissionError(f"{repository} is gated: accept its terms on the hub first") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        wanted = repository if revision is None else f"{repository} at {revision}"
        raise FileNotFoundError(
            f"there is no file {repository!r} here, and no repository {wanted} on the hub that you "
            "may read"
        ) from None
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"there is no file {repository!r} here, it is not in the cache of the hub, and {error}"
        ) from None
    except EntryNotFoundError:
        raise FileNotFoundError(f"{repository} on the hub has no {MAP_FILE}") from None
    except unreachable as error:
        raise ConnectionError(f"{repository} could not be downloaded: {error}") from error


def push_map(
    path: str | os.PathLike,
    repository: str,
    *,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload a map that `save_map` wrote to the Hugging Face hub, with its card.

    `load_map("user/map")` reads it. Anchors are not uploaded; but a map of few anchors tells
    something of them, as docs/privacy.md says.

    Args:
        path: file of the map.
        repository: ``user/map``; made if there is none.
        license: identifier of the hub for the card, e.g. "mit".
        private: whether a new repository is private.
        token: of the hub; by default that of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no map, or `repository` is no ``user/map``.
        PermissionError: if the token may not write there, or there is none.
        ConnectionError: if the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(repository, str) or not _ID.fullmatch(repository):
        raise ValueError(f"repository must be like 'user/map'; got {repository!r}")
    card = map_card(path, license=license)
    api = HfApi(token=token)
    unreachable: Any = HfHubHTTPError.__bases__
    files = {MAP_FILE: as_path(path).read_bytes(), "README.md": card.encode()}
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message="Upload a map and its card")
    except unreachable as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"you may not write to {repository}: log in with `hf auth login`, or give a token "
                "that may write"
            ) from None
        raise ConnectionError(f"{repository} could not be written: {error}") from error
    return str(done.commit_url)


def map_card(path: str | os.PathLike, *, license: str | None = None) -> str:
    """The model card of a map that `save_map` wrote, as Markdown with the hub's header.

    Args:
        path: file of the map.
        license: identifier of the hub.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no map.
    """
    from .io import load_map, saved_diagnosis, saved_method

    path = as_path(path)
    mapping, diagnosis = load_map(path), saved_diagnosis(path)
    header = {"library_name": "semalign_jax", "tags": ["embedding-alignment", "model-stitching"]}
    if license is not None:
        header["license"] = license
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    method = saved_method(path) or "affine"
    article = "An" if method[0] in "aeio" else "A"
    return "\n".join(
        [
            f"---\n{front}\n---",
            f"# {path.stem}\n",
            f"{article} {method} map from embeddings of {mapping.d_in} dimensions to embeddings of "
            f"{mapping.d_out}, fitted with semalign_jax "
            "to pairs that two frozen encoders have embedded. Use it only with the encoders, "
            "pooling and normalisation that it was fitted to.\n",
            "```python\nfrom semalign_jax import load_map\n",
            'mapped = load_map("user/map")(embeddings)  # the name of this repository\n```\n',
            *_trust(diagnosis),
        ]
    )


def _trust(diagnosis: dict[str, Any] | None) -> Iterator[str]:
    yield "## How far to trust it\n"
    if diagnosis is None:
        yield "Nothing was measured when it was saved.\n"
        return
    for line in diagnosis.get("advice", []):
        yield f"- {line}"
    yield "\n| measured on the anchors | |\n|---|---|"
    for key, value in diagnosis.items():
        if isinstance(value, int | float):
            yield f"| {key.replace('_', ' ')} | {value:.4g} |"
    yield ""
