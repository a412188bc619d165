"""Images that are embedded in a Parquet file, unpacked once to a folder beside it.

The folder is hidden, `.images/<file>-<digest>/`, with the digest of the file's footer, which states the place and the
size of every chunk of it. Images are written one after the other and moved into place, so that an interrupted
unpacking is continued, and several processes may unpack the same file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from querybox.data.image import SUFFIXES
from querybox.data.parquet_file import contents
from querybox.errors import DataError, DiskFullError
from querybox.files import MAX_NAME, atomic, fitting, is_regular
from querybox.text import counted

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

logger = logging.getLogger(__name__)

_MAGIC = b"PAR1"
_END = struct.Struct("<I4s")
"""End of a file: the length of the footer, and the magic number."""
_UNSAFE = re.compile(r"[^\w.,+@() -]")
"""Characters that are not kept in file names."""
_ADDED = len("000000000_.webp")
"""Number of bytes that are added to a name: the number of the row, and the suffix."""
_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"RIFF", ".webp"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"", ".bin"),
)
"""File name extensions by the first bytes."""


def read_footer(file: Path, limit: int = -1) -> bytes:
    """Return the footer of a Parquet file, of which the schema is the first part; nothing if it is not one.

    Args:
        file: The file.
        limit: Number of bytes after which it is cut; -1 for none.
    """
    if not is_regular(file) or (size := file.stat().st_size) < _END.size:
        return b""
    with file.open("rb") as stream:
        stream.seek(size - _END.size)
        length, magic = _END.unpack(stream.read(_END.size))
        if magic != _MAGIC or length > size - _END.size:
            return b""
        stream.seek(size - _END.size - length)
        return stream.read(length if limit < 0 else min(length, limit))


def image_folder(file: Path) -> Path:
    """Return the folder of the images of a file.

    Raises:
        DataError: It is a link, which may lead out of the dataset.
    """
    digest = hashlib.sha256(read_footer(file)).hexdigest()[:8]
    folder = file.parent / ".images" / fitting(file.stem, f"-{digest}")
    if link := next((path for path in (folder.parent, folder) if path.is_symlink()), None):
        raise DataError(f"{link}: is a link; images are only written to a folder of the dataset: remove it")
    return folder


def image_paths(parquet: ParquetFile, column: str) -> list[str | None]:
    """Return the paths beside the images in a column, one for each row; None where there is none."""
    paths: list[str | None] = []
    for batch in parquet.iter_batches(columns=[f"{column}.path"], use_threads=False):
        paths += [(row[column] or {}).get("path") for row in batch.to_pylist()] if batch.num_columns else []
    return paths or [None] * parquet.metadata.num_rows


def image_stems(paths: Sequence[str | None]) -> list[str]:
    """Return the names without extension that images are unpacked under, by their paths.

    They are those of the paths if all of them differ; otherwise the number of the row, from 0, precedes them.
    """
    stems = [_stem(path) for path in paths]
    counts = Counter(stem.casefold() for stem in stems)
    if "" not in counts and max(counts.values(), default=1) == 1:
        return stems
    return [f"{row:06d}_{stem}".rstrip("_") for row, stem in enumerate(stems)]


def image_suffix(content: bytes) -> str:
    """Return the file name extension of an image file by its first bytes."""
    return next(suffix for start, suffix in _SIGNATURES if content.startswith(start))


def _stem(path: Any) -> str:
    """Return the last part of a path without extension, as it can be used on any system; empty if there is none."""
    name = PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else ""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name such as `.jpg` has no suffix
    safe = _UNSAFE.sub("_", stem if suffix.lower() in SUFFIXES else name)[-100:].strip(" .")
    return fitting(safe, limit=MAX_NAME - _ADDED)


def unpacked_names(file: Path) -> dict[str, str]:
    """Return the names of the images of a file that have been unpacked, by name without extension."""
    folder = image_folder(file)
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - of many images
    return {os.path.splitext(name)[0]: name for name in names}  # noqa: PTH122


def unpack_images(file: Path, parquet: ParquetFile, column: str) -> bool:
    """Write the images in a column to `image_folder`, except for those that are there.

    Returns:
        Whether all are there; False if the folder is read-only.

    Raises:
        DataError: The folder cannot be written for another reason.
        DiskFullError: There is no space for it.
    """
    folder, done = image_folder(file), unpacked_names(file)
    stems = image_stems(image_paths(parquet, column))
    if done.keys() >= set(stems):
        return True
    existing = next(path for path in (folder, folder.parent, file.parent) if path.is_dir())
    if not os.access(existing, os.W_OK):
        logger.warning(
            "%s: is read-only, so that the images of %s are not unpacked to it; they are read in row groups, which "
            "takes more time: copy the dataset to a folder that can be written",
            existing,
            file.name,
        )
        return False
    logger.info("%s: writing its %s to %s, once", file, counted(len(stems), "image"), folder)
    remaining = iter(stems)
    for group in range(parquet.num_row_groups):
        of_group = list(islice(remaining, parquet.metadata.row_group(group).num_rows))
        if not done.keys() >= set(of_group):
            for stem, content in zip(of_group, contents(parquet, group, column), strict=False):
                if content and stem not in done:
                    _write(folder, stem, content)
    return True


def _write(folder: Path, stem: str, content: bytes) -> None:
    try:
        with atomic(folder / f"{stem}{image_suffix(content)}", size=len(content), durable=False) as temporary:
            temporary.write_bytes(content)
    except DiskFullError as error:
        raise DiskFullError(
            f"{error}; or let a YAML file name the Parquet files, whose images are then read where they are "
            "(docs/guides/shards.md)"
        ) from None
    except OSError as error:
        raise DataError(
            f"{folder}: images cannot be written to it ({error.strerror}); copy the dataset to a folder that can be "
            "written"
        ) from None
