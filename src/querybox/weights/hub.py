"""Checkpoints from the Hugging Face hub by name: fetched once, kept in the hub's cache, pinned to a commit."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from querybox.errors import CheckpointError

logger = logging.getLogger(__name__)

NAME = re.compile(r"hf:/+(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
"""``pathlib`` makes one slash of two."""
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of a repository, or of a folder, that hold its weights or say which files do; the preferred first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of a repository at one commit."""

    name: str
    """``hf://owner/name@commit``, which means the same files forever."""
    folder: Path


def is_hub_name(path: str | Path) -> bool:
    """Tell ``hf://owner/name`` from paths."""
    return Path(path).as_posix().startswith("hf:/")


def fetch(name: str | Path) -> Snapshot:
    """Fetch the configuration and the weights of a repository, or find them in the cache.

    A commit that is in the cache is not asked for again. What a branch means is asked wherever there is a network.

    Args:
        name: ``hf://owner/name`` or ``hf://owner/name@revision``: a branch, a tag or a commit.

    Raises:
        CheckpointError: The name is malformed, the hub has no such files, or they are not in the cache and there is no
            network.
    """
    match = NAME.fullmatch(Path(name).as_posix())
    if match is None:
        raise CheckpointError(f"{name}: expected hf://owner/name or hf://owner/name@revision")
    repository, revision = match["repository"], match["revision"] or "main"
    try:
        folder = find_config(repository, revision).parent
        fetch_weights(repository, folder)
    except CheckpointError:
        raise
    except Exception as error:  # the hub's, its HTTP client's and the operating system's
        raise CheckpointError(explain(repository, revision, error)) from error
    logger.info("hf://%s@%s is commit %s", repository, revision, folder.name)
    return Snapshot(name=f"hf://{repository}@{folder.name}", folder=folder)


def find_config(repository: str, revision: str) -> Path:
    """Return the configuration in the cache, in the folder of the commit that the revision now means.

    Where there is no network, that is the commit that it meant when it was last asked for.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, CONFIG, revision=revision), str):
        # Fails at once without a network, where a download is tried again for half a minute.
        get_hf_file_metadata(hf_hub_url(repository, CONFIG, revision=revision), timeout=10)
    return download(repository, CONFIG, revision)


def download(repository: str, file: str, revision: str) -> Path:
    """Return where a file of a repository lies in the cache; it is fetched if it is not there."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file, revision=revision))


def fetch_weights(repository: str, folder: Path) -> None:
    """Bring the weights of one commit to its `folder`, and how images are prepared for them; nothing else.

    Raises:
        CheckpointError: The repository has no weights of a known name.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = folder.name
    in_cache = [file for file in WEIGHTS if (folder / file).is_file()]
    if not in_cache:  # weights come last: where they are, the rest is too
        with suppress(RemoteEntryNotFoundError):
            download(repository, PREPROCESSOR, commit)
    for file in in_cache or WEIGHTS:
        try:
            path = download(repository, file, commit)
        except RemoteEntryNotFoundError:
            continue
        if file.endswith(".index.json"):
            for shard in sorted(set(json.loads(path.read_bytes())["weight_map"].values())):
                download(repository, shard, commit)
        return
    raise CheckpointError(f"hf://{repository}@{commit}: the repository has none of {', '.join(WEIGHTS)}")


def explain(repository: str, revision: str, error: Exception) -> str:
    """Say what went wrong, and how to go on."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"hf://{repository}@{revision}"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return f"{name}: the hub has no such repository or revision, or it is not public; check the name"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{name}: the repository has no {CONFIG}; expected a model that transformers saved"
    return (
        f"{name}: neither in the cache nor to be fetched ({type(error).__name__}). Cure: where there is a network, "
        f"fetch {CONFIG} and {WEIGHTS[0]} from {ENDPOINT}/{repository}/tree/{revision}, put both into one folder, "
        "and give the folder's path in place of the name"
    )
