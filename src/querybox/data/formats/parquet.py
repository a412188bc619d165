"""Parquet files of the Hugging Face Hub: a row for each image, with its file in it and its `objects`.

The files of a split are `data/train-00000-of-00002.parquet`, `train/0000.parquet` or the like. An image is a structure
of `bytes` and `path`, or a path. `objects` are those of `querybox.data.formats.hugging_face_objects`, or its lists are
columns of their own. Names of classes are in the `ClassLabel` of the file's metadata, or in `README.md`.

Embedded images are written once to a folder beside their file: a row of Parquet cannot be read without all rows that
are compressed with it, so that reading images in random order would take many times as long. Those that a file names
are read where they are; see `querybox.data.formats.shard_urls`. Requires pyarrow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querybox.data.annotated import AnnotatedImage, AnnotatedSplit, annotated_splits
from querybox.data.class_names import note_repeated_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.hugging_face_objects import (
    categories,
    names_in_readme,
    parse_image,
)
from querybox.data.formats.parquet_columns import Columns, find_columns, stated_names
from querybox.data.formats.parquet_images import (
    image_folder,
    image_paths,
    image_stems,
    read_footer,
    unpack_images,
    unpacked_names,
)
from querybox.data.formats.shard_reader import shard_readers
from querybox.data.layout import locator_for, shards_by_split
from querybox.data.locate import find_files
from querybox.data.parquet_file import MAX_CONTENT, opened
from querybox.data.parsing import HEAD
from querybox.data.records import DetectionData
from querybox.data.shard_index import FOLDER
from querybox.data.splits import Format, Reader
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import counted

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
_ROWS = 1000
"""Number of rows that are read at a time; without images, they are small."""


def _splits(path: Path) -> dict[str, Reader]:
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else find_files(path, {SUFFIX})
    groups = shards_by_split(
        [file for file in files if file.suffix.lower() == SUFFIX and _has_boxes(file)], root
    )
    splits = {}
    for name, files in groups.items():
        locator = locator_for(path, files[0])
        splits[name] = AnnotatedSplit(
            path, locator, partial(_parse, files, locator.root), locator.root == path
        )
    shards = [file for files in groups.values() for file in files]
    readers = annotated_splits(splits, partial(_categories, shards, root))
    places = {name: partial(map, str, files) for name, files in groups.items()}
    in_place = shard_readers(path, root / FOLDER, places, lambda _: _class_names(shards, root))
    return {  # the readers are in the order of the groups, but may have other names
        name: partial(_read, files, read, in_place[name])
        for (name, read), files in zip(readers.items(), groups.values(), strict=True)
    }


def _has_boxes(file: Path) -> bool:
    return b"bbox" in read_footer(file, HEAD)


def _read(files: Sequence[Path], read: Reader, read_in_place: Reader) -> DetectionData:
    """Read a split after its images have been unpacked; where they are, if their folder is read-only."""
    for file in files:
        with opened(file) as parquet:
            columns = find_columns(file, parquet.schema_arrow)
            if columns.embedded and not unpack_images(file, parquet, columns.image):
                return read_in_place()
    return read()


def _parse(files: Sequence[Path], root: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _class_names(files, root)
    note_repeated_names(names, findings)
    return [image for file in files for image in _parse_file(file, root, names, findings)]


def _parse_file(
    file: Path, root: Path, names: Mapping[int, str], findings: FindingCollector
) -> Iterator[AnnotatedImage]:
    with opened(file) as parquet:
        columns = find_columns(file, parquet.schema_arrow)
        names = stated_names(parquet.schema_arrow) or names
        paths = _unpacked_paths(file, parquet, columns, root, findings) if columns.embedded else None
        for number, row in enumerate(_rows(file, parquet, columns)):
            where = f"{file}, row {number}"
            content = {
                "file_name": paths[number] if paths else row[columns.image],
                "objects": row[columns.objects] if columns.objects else row,
                "width": row.get("width"),
                "height": row.get("height"),
            }
            try:
                yield parse_image(where, content, names)
            except DataError as error:
                findings.add("malformed", str(error))


def _rows(file: Path, parquet: ParquetFile, columns: Columns) -> Iterator[dict[str, Any]]:
    for batch in parquet.iter_batches(_ROWS, columns=list(columns.names), use_threads=False):
        if batch.nbytes > MAX_CONTENT:
            raise DataError(
                f"{file}: has {batch.nbytes:,} bytes of annotations in {counted(batch.num_rows, 'row')}, which is "
                "refused as a decompression bomb; expected lists of boxes and categories"
            )
        yield from batch.to_pylist()


def _unpacked_paths(
    file: Path, parquet: ParquetFile, columns: Columns, root: Path, findings: FindingCollector
) -> list[str]:
    """Return the path of the image of each row: relative to `root` if it was unpacked, otherwise as the file has it."""
    folder, unpacked = image_folder(file), unpacked_names(file)
    findings.add("embedded_image", f"{file}: unpacked to {folder}", count=len(unpacked))
    paths = image_paths(parquet, columns.image)
    return [
        (folder / unpacked[stem]).relative_to(root).as_posix() if stem in unpacked else path or stem
        for stem, path in zip(image_stems(paths), paths, strict=True)
    ]


def _categories(files: Sequence[Path], root: Path, names: Collection[str]) -> tuple[Category, ...]:
    return categories(root, _class_names(files, root), names)


def _class_names(files: Sequence[Path], root: Path) -> dict[int, str]:
    """Return the names of classes by number: of the first file that has them, or of `README.md`."""
    for file in files:
        with opened(file) as parquet:
            if names := stated_names(parquet.schema_arrow):
                return names
    return names_in_readme(root)


PARQUET = Format(
    name="Parquet",
    expected="Parquet: a folder with .parquet files that have 'image', and 'objects' with 'bbox'",
    splits=_splits,
)
