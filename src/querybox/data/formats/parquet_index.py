"""The index of a Parquet file whose images are read where they are: it is read once, from beginning to end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic_core

from querybox.data.formats.parquet_columns import Columns, find_columns, stated_names
from querybox.data.formats.parquet_images import image_paths, image_stems, image_suffix
from querybox.data.parquet_file import BATCH
from querybox.data.parquet_file import opened as open_parquet
from querybox.data.parquet_rows import require_small_groups
from querybox.data.shard_index import MAX_ANNOTATION, MAX_TEXT, Sample, ShardIndex, image_shape
from querybox.data.storage import MAX_CONTENT, opened, too_large
from querybox.errors import DataError
from querybox.urls import public_name

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class _Row(NamedTuple):
    number: int
    """Index of the row in the file, from 0."""
    group: int
    """Index of its row group in the file, from 0."""
    start: int
    """Index of the row in the row group, from 0."""
    content: dict[str, Any]


def parquet_index(place: str, stated: str) -> ShardIndex:
    """Return the index of a Parquet file. Annotations become JSON, and images have the names of their files.

    Args:
        place: Path or URL of the file.
        stated: Its version.

    Raises:
        DataError: The file is missing or damaged, has no boxes, paths in place of images, or too large row groups.
        MissingExtraError: pyarrow is not installed.
        StorageError: Its storage cannot be reached, or refuses.
    """
    name = public_name(place)
    index = ShardIndex(stated)
    with opened(place) as file, open_parquet(name, file) as parquet:
        require_small_groups(name, parquet.metadata)
        columns = find_columns(name, parquet.schema_arrow)
        if not columns.embedded:
            raise DataError(
                f"{name}: has paths in {columns.image!r} in place of images; expected images in the file, with binary "
                "'bytes'"
            )
        index.names = stated_names(parquet.schema_arrow)
        stems = image_stems(image_paths(parquet, columns.image))
        length = 0
        for row in _rows(parquet, columns):
            sample = _sample(name, stems[row.number], row, columns, index.problems)
            if sample is not None:
                index.samples.append(sample)
                length += len(sample.text)
            if length > MAX_TEXT:
                raise DataError(
                    f"{name}: has more than {MAX_TEXT:,} bytes of annotations, which are in memory together; make more "
                    "and smaller files"
                )
    if not index.samples and not index.problems:
        raise DataError(f"{name}: the Parquet file has no rows; expected one with an image each")
    return index


def _rows(parquet: ParquetFile, columns: Columns) -> Iterator[_Row]:
    """Yield the rows, with their images, a few at a time."""
    names = [f"{columns.image}.bytes", *columns.names]
    number = 0
    for group in range(parquet.num_row_groups):
        start = number
        for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=names, use_threads=False):
            for content in batch.to_pylist():
                yield _Row(number, group, number - start, content)
                number += 1


def _sample(
    place: str, stem: str, row: _Row, columns: Columns, problems: list[tuple[str, str]]
) -> Sample | None:
    """Return an image with its annotation; None, after adding a problem, for a row that is not used."""
    annotation = f"row {row.number}"
    content = row.content
    image = (content[columns.image] or {}).get("bytes") or b""
    objects = content[columns.objects] if columns.objects else content | {columns.image: None}
    stated = {"objects": objects, "width": content.get("width"), "height": content.get("height")}
    text = pydantic_core.to_json(stated, inf_nan_mode="constants", fallback=str).decode()
    problem = None
    if not image:
        problem = "broken_image", "has no content; expected an embedded image"
    elif len(image) > MAX_CONTENT:
        problem = "too_large_image", too_large()
    elif len(text) > MAX_ANNOTATION:
        problem = "malformed", f"has {len(text):,} bytes of annotations; expected at most {MAX_ANNOTATION:,}"
    if problem is not None:
        kind, what = problem
        problems.append((kind, f"{place}#{annotation}: {what}"))
        return None
    name = f"{stem}{image_suffix(image)}"
    return Sample(name, row.start, len(image), annotation, text, image_shape(name, image), row.group)
