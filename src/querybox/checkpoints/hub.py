"""Checkpoints from the Hugging Face Hub: downloaded once into its cache and pinned to a commit."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from querybox.errors import CheckpointError

logger = logging.getLogger(__name__)

NAME = re.compile(r"hf:/+(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
"""``pathlib`` collapses the two slashes into one."""
COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of a repository, or of a folder, that hold its weights or list the files that do; most preferred first."""
FORMATS = ((*WEIGHTS[:2], "model-*.safetensors"), (*WEIGHTS[2:], "pytorch_model-*.bin"))
"""Patterns of the files in either format, shards included; the second is downloaded only if the first is missing."""
TIMEOUT = 10.0
"""Seconds to wait for the Hub before falling back to the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of a repository at one commit."""

    name: str
    """``hf://owner/name@commit``, which always refers to the same files."""
    folder: Path


def is_hub_name(path: str | Path) -> bool:
    """Return whether a path is ``hf://owner/name``."""
    return Path(path).as_posix().startswith("hf:/")


def fetch(name: str | Path) -> Snapshot:
    """Download the configuration and the weights of a repository, or find them in the cache.

    A commit that is in the cache is used as it is. A branch or a tag is looked up on the Hub; without a network, the
    commit it last referred to is used.

    Args:
        name: ``hf://owner/name`` or ``hf://owner/name@revision``: a branch, a tag or a commit.

    Raises:
        CheckpointError: The name is malformed, the repository has no such files, or they are neither in the cache nor
            can be downloaded.
    """
    match = NAME.fullmatch(Path(name).as_posix())
    if match is None:
        raise CheckpointError(f"{name}: expected hf://owner/name or hf://owner/name@revision")
    repository, revision = match["repository"], match["revision"] or "main"
    try:
        folder = download(repository, revision)
    except CheckpointError:
        raise
    except Exception as error:  # of the Hub, its HTTP client or the operating system
        raise CheckpointError(explain(repository, revision, error)) from error
    logger.info("hf://%s@%s is commit %s", repository, revision, folder.name)
    return Snapshot(name=f"hf://{repository}@{folder.name}", folder=folder)


def download(repository: str, revision: str) -> Path:
    """Return the folder of the cache that holds the revision's configuration and its weights in one format.

    Raises:
        CheckpointError: The repository has no configuration, or no weights in a known format.
    """
    from huggingface_hub import snapshot_download

    offline = COMMIT.fullmatch(revision) is None and not is_reachable(repository, revision)
    for patterns in FORMATS:
        files = [CONFIG, PREPROCESSOR, *patterns]
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=files, local_files_only=offline)
        )
        if not (folder / CONFIG).is_file():
            raise CheckpointError(
                f"hf://{repository}@{revision}: the repository has no {CONFIG}; expected a model saved by transformers"
            )
        if any((folder / pattern).is_file() for pattern in patterns):
            return folder
    raise CheckpointError(f"hf://{repository}@{folder.name}: the repository has none of {', '.join(WEIGHTS)}")


def is_reachable(repository: str, revision: str) -> bool:
    """Return whether the Hub answers within `TIMEOUT`; `snapshot_download` would wait for it without a limit.

    Raises:
        RepositoryNotFoundError: The Hub has no such repository.
        RevisionNotFoundError: The repository has no such revision.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        model_info(repository, revision=revision, timeout=TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - of its HTTP client, which differs between versions
        logger.warning(
            "hf://%s@%s: the Hub does not answer (%s); using the cache", repository, revision, error
        )
        return False
    return True


def explain(repository: str, revision: str, error: Exception) -> str:
    """Return what went wrong and how to continue."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name = f"hf://{repository}@{revision}"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return f"{name}: the Hub has no such repository or revision, or it is not public; check the name"
    return (
        f"{name}: not in the cache, and the download failed ({type(error).__name__}). Where there is a network, "
        f"download {CONFIG} and {WEIGHTS[0]} from {ENDPOINT}/{repository}/tree/{revision}, put both into one folder, "
        "and pass the path of the folder instead of the name"
    )
