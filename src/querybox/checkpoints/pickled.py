"""Reading of ``.pth``, ``.pt`` and ``.bin`` files: tensors and plain values, without executing code.

The unpickler is that of ``torch.load(weights_only=True)``, which supports tensors and plain values and rejects all
other names. `ALLOWED` are the few other names in public training checkpoints. Except for options and dicts they are
replaced by a class that does nothing, so that the named objects are neither imported nor called.
"""

from __future__ import annotations

import re
import struct
import threading
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from querybox.checkpoints.damage import cure
from querybox.checkpoints.digest import check_digest
from querybox.errors import CheckpointError

THREADS = 4
CHUNK = 1 << 20
"""Number of bytes that a thread reads at a time."""
ZIP = b"PK\x03\x04"
"""Signature of a zip file and of each of its records."""
PICKLE = b"\x80"
"""Beginning of a pickle, which `torch.save` wrote before PyTorch 1.6."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a zip record: signature, and lengths of the name and the extra field that precede the data."""


class Ignored:
    """Replacement for objects in a file that are not needed; it ignores its arguments and state."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


ALLOWED: list[Any] = [
    (Namespace, "argparse.Namespace"),  # the options of a facebookresearch training: attributes alone
    (dict, "mmengine.config.config.ConfigDict"),
    *(
        (Ignored, name)
        for name in (
            "builtins.getattr",  # methods that a history buffer lists
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.dtype",
            "numpy.ndarray",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
        )
    ),
]
"""Allowed names in a pickle, with the class that is created for them."""

_allowing = threading.Lock()  # the list of allowed names in torch is global


def read_pickled(path: Path) -> Any:
    """Read a file written by `torch.save`, with its tensors on the CPU. No code in the file is executed.

    The checksums of the records of a zip file are verified, which PyTorch does not do, and the published digest of the
    file, if any. Older files, which are not zip files, have no internal checksum.

    Raises:
        CheckpointError: The file is truncated, corrupt, of another kind, or contains objects that require code to be
            executed.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        records = list(zip_records(path))
        checks = [pool.submit(check_records, path, records[part::THREADS]) for part in range(THREADS)]
        checks.append(pool.submit(check_digest, path))
        content, error = unpickle(path)
        for check in checks:
            check.result()
    if error is None:
        return content
    rejected = re.search(r"GLOBAL (\S+)", str(error))
    if rejected:
        raise CheckpointError(
            f"{path}: refused: it contains '{rejected[1]}', and loading that would execute code specified by the file; "
            "if the name looks random, the file is corrupt. Cure, if you trust its author: load it with "
            "torch.load(..., weights_only=False) in their environment, and torch.save its state dict alone"
        ) from error
    model = path.with_suffix(".xml")
    if path.suffix == ".bin" and model.is_file():
        raise CheckpointError(f"{path}: the weights of an OpenVINO model; open {model} instead") from error
    raise unreadable_file(path, reason(path, error)) from error


def unpickle(path: Path) -> tuple[Any, Exception | None]:
    """Return the content of the file, or the error."""
    try:
        with _allowing, torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are either read or raise an error
            return torch.load(path, map_location="cpu", weights_only=True), None
    except Exception as error:  # noqa: BLE001 - a corrupt pickle can raise anything
        return None, error


def reason(path: Path, error: Exception) -> str:
    """Return why a file cannot be read, in one line, without PyTorch's advice to trust the file."""
    text = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error)).partition("\n")[0]
    text = text.partition(" In PyTorch 2.6, we changed")[0]
    with path.open("rb") as file:
        begins = file.read(len(ZIP))
    is_tar = "legacy .tar format" in text and any(begins)  # PyTorch says so of zeros, too
    if not is_tar and not begins.startswith((ZIP, PICKLE)):
        return "it begins neither as a zip file nor as a pickle, which torch.save writes"
    if isinstance(error, LookupError | EOFError) or not text:  # its text, if any, is only a key of the pickle
        return f"its pickle is not as torch.save writes it: {type(error).__name__}"
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipRecord:
    """The location of a record according to the directory of a zip file."""

    name: str
    offset: int
    """Offset of its header in bytes."""
    size: int
    """Size of its data in bytes."""
    crc: int


def zip_records(path: Path) -> Iterator[ZipRecord]:
    """Yield the records of a zip file whose checksums must be verified; none for other files.

    Raises:
        CheckpointError: The directory of the zip file is corrupt, or a record is compressed, which `torch.save` never
            does and which could make a small file expand beyond the memory.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception as error:
        raise unreadable_file(path, reason(path, error)) from error
    compressed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise CheckpointError(
            f"{path}: corrupt, or not written by torch.save: its '{compressed[0]}' is compressed"
        )
    if any(record.CRC for record in records):  # all are 0 with `set_crc32_options(False)`
        for record in records:
            yield ZipRecord(
                name=record.filename, offset=record.header_offset, size=record.file_size, crc=record.CRC
            )


def check_records(path: Path, records: Iterable[ZipRecord]) -> None:
    """Verify the checksums of records.

    Raises:
        CheckpointError: A checksum does not match.
    """
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        for record in records:
            if checksum(file, record, buffer) != record.crc:
                raise CheckpointError(
                    f"{path}: corrupt file: the checksum of its '{record.name}' does not match; {cure(path)}"
                )


def checksum(file: FileIO, record: ZipRecord, buffer: memoryview) -> int | None:
    """Return the CRC-32 of the data of a record; None if there is no such record."""
    try:
        file.seek(record.offset)
        signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        file.seek(name + extra, 1)
    except (OSError, ValueError, OverflowError, struct.error):  # the directory points outside the file
        return None
    crc, left = 0, record.size
    while left and (count := file.readinto(buffer[:left])):
        crc, left = zlib.crc32(buffer[:count], crc), left - count
    return crc if signature == ZIP and not left else None


STAND_INS = {
    b"version https://git-lfs.github.com": "it is a pointer of Git LFS to the file: git lfs pull",
    b"<!doctype html": "it is a web page",
    b"<html": "it is a web page",
    b"<?xml": "it is XML, such as the answer of a server",
}
"""What is often saved in place of weights, by its beginning in lower case."""


def unreadable_file(path: Path, reason: object) -> CheckpointError:
    """Return the error for a file that cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(64).lstrip().lower()
        reason = next((text for beginning, text in STAND_INS.items() if head.startswith(beginning)), reason)
        reason = reason if head else "it is empty"
    return CheckpointError(f"{path}: corrupt, or not a weights file ({reason}); {cure(path)}")
