"""Reading ``.pth``, ``.pt`` and ``.bin`` files: tensors and plain values, and nothing that runs code.

The unpickler is that of ``torch.load(weights_only=True)``: it knows tensors and plain values, and refuses the name of
anything else. `HARMLESS` are the few other names that public training files hold beside their weights. All but options
and plain dicts stand for a class that does nothing, so that not even these are imported, let alone called.
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
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from querybox.checkpoints.digest import check_digest
from querybox.errors import CheckpointError

THREADS = 4
CHUNK = 1 << 20
"""Bytes that a thread reads at a time."""
ZIP = b"PK\x03\x04"
"""What a zip file, and each of its records, begins with."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a zip record: its mark, and how long the name and the extra field are that stand before the data."""


class Ignored:
    """Stands where a file has an object that nobody needs: it takes what it is given and keeps none of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


HARMLESS: list[Any] = [
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
"""What is rebuilt for which name in a pickle."""

_allowing = threading.Lock()  # torch keeps one list of allowed names for all threads


def read_pickled(path: Path) -> Any:
    """Return what `torch.save` wrote, with its tensors on the CPU; nothing in the file is executed.

    The checksums of a zip file's records are compared, which PyTorch leaves out, and the file's digest where it is
    known. Older files, which are no zip, have no checksum inside.

    Raises:
        CheckpointError: The file is truncated, corrupt, of another kind, or holds objects that would need code to
            be executed.
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
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        raise CheckpointError(
            f"{path}: refused: it holds '{refused[1]}', and to rebuild that would execute code of the file's choosing; "
            "it is corrupt if the name means nothing. Cure, if you trust who wrote it: load it there with "
            "torch.load(..., weights_only=False) and torch.save its state dict alone"
        ) from error
    raise damaged(path, reason(error)) from error


def unpickle(path: Path) -> tuple[Any, Exception | None]:
    """Return what is in the file, or why there is nothing to return."""
    try:
        with _allowing, torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles: they are read, or they are errors
            return torch.load(path, map_location="cpu", weights_only=True), None
    except Exception as error:  # noqa: BLE001 - a corrupt pickle can raise anything
        return None, error


def reason(error: Exception) -> str:
    """Return what the error says in one line, less PyTorch's advice to trust the file."""
    text = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error))
    return text.partition("\n")[0] or type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipRecord:
    """Where the directory of a zip file says that one of its records is."""

    name: str
    offset: int
    """Of its header, in bytes."""
    size: int
    """Of its data, in bytes."""
    crc: int


def zip_records(path: Path) -> Iterator[ZipRecord]:
    """Yield the records of a zip file whose checksums are to be compared; none of a file of another kind.

    Raises:
        CheckpointError: The zip file's directory is corrupt, or a record is compressed, which `torch.save` never does
            and which could make a small file fill the memory.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception as error:
        raise damaged(path, reason(error)) from error
    packed = [each.filename for each in records if each.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path}: corrupt, or not written by torch.save: its '{packed[0]}' is compressed"
        )
    if any(record.CRC for record in records):  # all are 0 where `set_crc32_options(False)` was in force
        for each in records:
            yield ZipRecord(name=each.filename, offset=each.header_offset, size=each.file_size, crc=each.CRC)


def check_records(path: Path, records: Iterable[ZipRecord]) -> None:
    """Compare the data of records with their checksums.

    Raises:
        CheckpointError: They do not fit.
    """
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        for record in records:
            if checksum(file, record, buffer) != record.crc:
                raise CheckpointError(
                    f"{path}: corrupt file: the checksum of its '{record.name}' does not match; fetch it again"
                )


def checksum(file: FileIO, record: ZipRecord, buffer: memoryview) -> int | None:
    """Return the CRC-32 of the data of a record; None where there is no such record."""
    try:
        file.seek(record.offset)
        mark, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        file.seek(name + extra, 1)
    except (OSError, ValueError, OverflowError, struct.error):  # the directory leads outside of the file
        return None
    crc, left = 0, record.size
    while left and (count := file.readinto(buffer[:left])):
        crc, left = zlib.crc32(buffer[:count], crc), left - count
    return crc if mark == ZIP and not left else None


def damaged(path: Path, reason: object) -> CheckpointError:
    """Return the error that tells of a file that cannot be read."""
    return CheckpointError(f"{path}: corrupt, or no weights file ({reason}); copy or download it again")
