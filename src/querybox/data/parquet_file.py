"""Parquet files with images in them, on this disk or elsewhere: what they state is checked when they are opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from querybox.errors import DataError, MissingExtraError, QueryboxError
from querybox.files import restore

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData, ParquetFile

MAX_CONTENT = 1 << 28
"""Number of bytes that any file may contain, and the rows without images that are read at a time."""
_MAX_RATIO = 100
"""Ratio by which larger files may be compressed."""
_BUFFER = 1 << 20
BATCH = 8
"""Number of images in memory at a time."""


@runtime_checkable
class Seekable(Protocol):
    """A file that is not on this disk."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read some bytes."""

    def seek(self, offset: int, whence: int, /) -> int:
        """Move to a position."""


@contextmanager
def opened(file: Path | str, stream: Seekable | None = None, *, whole: bool = False) -> Iterator[ParquetFile]:
    """Open a Parquet file.

    Args:
        file: The file.
        stream: The file if it is open, or not on this disk; `file` is then only its name in messages.
        whole: Whether a column of a row group is read at once, rather than a part at a time.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: It cannot be read, also later.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtraError(
            f"{file}: reading Parquet needs pyarrow, which is not installed: pip install 'querybox[parquet]'"
        ) from None
    try:
        buffer = 0 if whole else _BUFFER
        with ParquetFile(stream or file, buffer_size=buffer, pre_buffer=False) as parquet:
            _check_sizes(file, stream.size if stream else Path(file).stat().st_size, parquet.metadata)
            yield parquet
    except QueryboxError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # also of texts and dates
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file}: cannot be read as Parquet ({reason}); {restore(file)}") from None


def _check_sizes(file: Path | str, size: int, metadata: FileMetaData) -> None:
    """Raise DataError if a file of `size` bytes states more content than it can be expected to have."""
    if metadata.num_rows > size:
        raise DataError(
            f"{file}: is corrupt: it states {metadata.num_rows:,} rows, more than bytes; {restore(file)}"
        )
    # Not the metadata of columns, at whose damage pyarrow ends the process.
    content = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if content > max(MAX_CONTENT, _MAX_RATIO * size):
        raise DataError(
            f"{file}: states {content:,} bytes of content in a file of {size:,} bytes, which is refused as a "
            "decompression bomb; write its images as JPEG or PNG"
        )


def has_content(type_: pa.DataType) -> bool:
    """Return whether a type is a structure with the content of an image file."""
    import pyarrow as pa

    return pa.types.is_struct(type_) and any(
        field.name == "bytes" and is_bytes(field.type) for field in type_
    )


def is_bytes(type_: pa.DataType) -> bool:
    """Return whether values of a type are bytes; pandas and Polars write other variants than Hugging Face does."""
    import pyarrow as pa

    return any(
        test(type_) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def is_text(type_: pa.DataType) -> bool:
    """Return whether values of a type are text; see `is_bytes`."""
    import pyarrow as pa

    return any(
        test(type_) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def contents(parquet: ParquetFile, group: int, column: str) -> Iterator[bytes | None]:
    """Yield the image files in a column of structures, of one row group, a few at a time; None where there is none."""
    batches = parquet.iter_batches(BATCH, row_groups=[group], columns=[f"{column}.bytes"], use_threads=False)
    for batch in batches:
        for row in batch.to_pylist():
            yield (row[column] or {}).get("bytes")
