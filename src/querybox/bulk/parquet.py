"""Images that are embedded in a Parquet file, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from querybox.bulk.pictures import Picture
from querybox.data.parquet_file import has_content, is_bytes, opened
from querybox.data.storage import MAX_CONTENT, StoredFile, too_large
from querybox.errors import DataError
from querybox.text import listed

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 8
"""Number of images in memory at a time."""


def read_parquet(place: str, file: StoredFile) -> Iterator[Picture]:
    """Yield the image of each row, named ``PLACE#ROW`` with the number of the row from 0.

    Images are in a column of structures with binary ``bytes``, as on the Hugging Face Hub, or in the only binary
    column.

    Args:
        place: Path of the Parquet file, or URL without credentials.
        file: The file.

    Raises:
        DataError: It cannot be read as Parquet, has no column with images, or states too much content. What precedes
            the damage has been yielded.
    """
    with opened(place, file) as parquet:
        column, path = image_column(place, parquet.schema_arrow)
        row = 0
        for batch in parquet.iter_batches(ROWS, columns=[path], use_threads=False):
            for value in batch.column(column).to_pylist():
                yield row_picture(f"{place}#{row}", value)
                row += 1
    if row == 0:
        raise DataError(f"{place}: the Parquet file has no rows")


def row_picture(name: str, value: Any) -> Picture:
    """Return the image in a row."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        return Picture.broken(name, f"{name}: has no content; expected an embedded image")
    if len(content) > MAX_CONTENT:
        return Picture.broken(name, f"{name}: {too_large()}")
    return Picture.of(name, content)


def image_column(place: str, schema: pa.Schema) -> tuple[str, str]:
    """Return the name of the column with images, and the path of their content in it.

    Raises:
        DataError: There is none, or several.
    """
    structures = [field.name for field in schema if has_content(field.type)]
    binary = [field.name for field in schema if is_bytes(field.type)]
    found = structures or binary
    if len(found) != 1:
        raise DataError(
            f"{place}: has the columns {listed(schema.names)}; expected one with images: structures with binary "
            f"'bytes', or the only binary column, but found {len(found)}"
        )
    return found[0], f"{found[0]}.bytes" if structures else found[0]
