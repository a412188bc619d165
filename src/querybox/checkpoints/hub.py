"""Checkpoints from the Hugging Face Hub: downloaded once into its cache and pinned to a commit."""

from __future__ import annotations

import logging
import queue
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from querybox.errors import CheckpointError
from querybox.memory import first_line

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
TIMEOUT = 3.0
"""Seconds to wait for the Hub before falling back to the cache, including the lookup of its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of a repository at one commit."""

    name: str
    """``hf://owner/name@commit``, which always refers to the same files."""
    folder: Path


def is_hub_name(path: str | Path) -> bool:
    """Return whether a path is ``hf://owner/name``."""
    return Path(path).as_posix().startswith("hf:/")


def fetch(name: str | Path, *, config: bool = True) -> Snapshot:
    """Download the configuration and the weights of a repository, or find them in the cache.

    A commit that is in the cache is used as it is, if all of its files are known to be there. A branch or a tag is
    looked up on the Hub; without a network, or if the repository is no longer permitted or there, the commit it last
    referred to is used, with a warning.

    Args:
        name: ``hf://owner/name`` or ``hf://owner/name@revision``: a branch, a tag or a commit.
        config: Whether the configuration is required.

    Raises:
        CheckpointError: The name is malformed, the repository has no such files, or they are neither in the cache nor
            can be downloaded.
    """
    match = NAME.fullmatch(Path(name).as_posix())
    if match is None:
        raise CheckpointError(f"{name}: expected hf://owner/name or hf://owner/name@revision")
    repository, revision = match["repository"], match["revision"] or "main"
    try:
        folder = download(repository, revision, config=config)
    except CheckpointError:
        raise
    except Exception as error:  # of the Hub, its HTTP client or the operating system
        raise CheckpointError(explain(repository, revision, error)) from error
    logger.info("hf://%s@%s is commit %s", repository, revision, folder.name)
    return Snapshot(name=f"hf://{repository}@{folder.name}", folder=folder)


def download(repository: str, revision: str, *, config: bool) -> Path:
    """Return the folder of the cache that holds the revision's configuration and its weights in one format.

    Raises:
        CheckpointError: The repository has no configuration, or no weights in a known format.
        Exception: The Hub does not answer, or refuses, and the cache lacks them; what `find_problem` returns.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cached = is_cached_commit(repository, revision)
    problem = None if cached else find_problem(repository, revision)
    for patterns in FORMATS:
        files = [CONFIG, PREPROCESSOR, *patterns]
        try:
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=files,
                    local_files_only=cached or problem is not None,
                )
            )
        except LocalEntryNotFoundError as error:
            raise problem or error from error
        if config and not (folder / CONFIG).is_file():
            raise problem or CheckpointError(
                f"hf://{repository}@{revision}: the repository has no {CONFIG}; expected a model saved by transformers"
            )
        if any((folder / pattern).is_file() for pattern in patterns):
            if problem is not None:
                logger.warning(
                    "hf://%s@%s: cannot be looked up on the Hub (%s); using the cache",
                    repository,
                    revision,
                    first_line(problem),
                )
            return folder
    raise problem or CheckpointError(
        f"hf://{repository}@{folder.name}: the repository has none of {', '.join(WEIGHTS)}"
    )


def is_cached_commit(repository: str, revision: str) -> bool:
    """Return whether a revision is a commit that is in the cache, so that nothing has to be requested.

    A download may have been interrupted, or be that of another program, which needed fewer files: the cache does not
    say which files the commit has, so that weights in several files are not known to be complete.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if COMMIT.fullmatch(revision) is None:
        return False
    try:
        files = [CONFIG, PREPROCESSOR, *FORMATS[0]]
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=files, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return False
    weights = [folder / name for name in WEIGHTS if not name.endswith(".json")]
    return all((folder / name).is_file() for name in (CONFIG, PREPROCESSOR)) and any(
        path.is_file() for path in weights
    )


def find_problem(repository: str, revision: str) -> Exception | None:
    """Return why a revision cannot be looked up on the Hub within `TIMEOUT`, or None if it can.

    `snapshot_download` would try again for most of a minute. The lookup of an address cannot be interrupted, hence the
    thread.
    """
    from huggingface_hub import model_info

    outcomes: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            model_info(repository, revision=revision, timeout=TIMEOUT)
        except Exception as error:  # noqa: BLE001 - of its HTTP client, which differs between versions
            outcomes.put(error)
        else:
            outcomes.put(None)

    Thread(target=ask, daemon=True).start()
    try:
        return outcomes.get(timeout=TIMEOUT)
    except queue.Empty:
        return TimeoutError(f"no answer within {TIMEOUT:g} s")


def explain(repository: str, revision: str, error: Exception) -> str:
    """Return what went wrong and how to continue."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name = f"hf://{repository}@{revision}"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return (
            f"{name}: the Hub has no such repository or revision, or it is not public; check the name, and log in to a "
            "private or gated repository: hf auth login"
        )
    return (
        f"{name}: not in the cache, and the download failed ({type(error).__name__}). Where there is a network, "
        f"download {CONFIG} and {WEIGHTS[0]} from {ENDPOINT}/{repository}/tree/{revision}, put both into one folder, "
        "and pass the path of the folder instead of the name"
    )
