"""SHA-256 digests of model files, and their verification where a file has no internal checksum."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from querybox.checkpoints.damage import cure
from querybox.errors import CheckpointError, ConfigError
from querybox.files import require_regular

DATE = re.compile(r"20\d\d[01]\d[0-3]\d")


def digest_of(*paths: Path) -> str:
    """Return the SHA-256 of the contents of files.

    Raises:
        ConfigError: One of them is not a regular file.
    """
    digest = hashlib.sha256()
    for path in paths:
        require_regular(path, ConfigError)
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_digest(path: Path) -> None:
    """Compare a file with its published digest, if there is one.

    Raises:
        CheckpointError: The digest does not match.
    """
    known = known_digest(path)
    if known is None:
        return
    digest, source = known
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digest):
        raise CheckpointError(
            f"{path}: corrupt file: {source} says that its SHA-256 begins with {digest[:16]}, but it begins with "
            f"{actual[:16]}; {cure(path)}; or rename it if it was changed on purpose"
        )


def known_digest(path: Path) -> tuple[str, str] | None:
    """Return the digest of a file, or its first digits, and its source; None if there is none.

    It may be in a file beside it, as written by ``sha256sum model.pth > model.pth.sha256``, or in the file name:
    torch.hub, torchvision and MMDetection publish ``name-0676ba61.pth``, and the cache of the Hugging Face Hub names
    files by the whole digest.
    """
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        digest = beside.read_bytes()[:64].decode("ascii", errors="replace").lower()
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise CheckpointError(
                f"{beside}: corrupt file: expected a SHA-256 of 64 digits; recreate or remove it"
            )
        return digest, beside.name
    if named := re.search("-([0-9a-f]{8,64})$", path.stem):
        return None if DATE.fullmatch(named[1]) else (named[1], "its name")
    target = path.resolve().name
    return (target, "the Hub's cache") if re.fullmatch("[0-9a-f]{64}", target) else None
