"""Parquet files of the Hugging Face Hub: a row for each image, with its file in it and its `objects`.

The files of a split are `data/train-00000-of-00002.parquet`, `train/0000.parquet` or the like. An image is a structure
of `bytes` and `path`, or a path. `objects` are those of `querybox.data.formats.hugging_face_objects`, or its lists are
columns of their own. Names of classes are in the `ClassLabel` of the file's metadata, or in `README.md`.

Embedded images are written once to a folder beside their file: a row of Parquet cannot be read without all rows that
are compressed with it, so that reading images in random order would take many times as long. Requires pyarrow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from querybox.data.annotated import AnnotatedImage, AnnotatedSplit, annotated_splits
from querybox.data.findings import FindingCollector
from querybox.data.formats.hugging_face_objects import (
    CATEGORY,
    categories,
    class_names,
    names_in_readme,
    parse_image,
)
from querybox.data.formats.parquet_images import (
    image_folder,
    image_paths,
    image_stems,
    read_footer,
    unpack_images,
    unpacked_names,
)
from querybox.data.layout import locator_for, shards_by_split
from querybox.data.locate import find_files
from querybox.data.parquet_file import MAX_CONTENT, has_content, opened
from querybox.data.parsing import HEAD, partial_json
from querybox.data.records import DetectionData
from querybox.data.splits import Format, Reader
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import counted, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
_IMAGES = ("image", "img", "image_path", "file_name", "path")
_ROWS = 1000
"""Number of rows that are read at a time; without images, they are small."""


class _Columns(NamedTuple):
    """The columns of a file that are read."""

    image: str
    embedded: bool
    """Whether images are in the file; otherwise their paths."""
    objects: str | None
    """The column of the objects; None if their lists are columns of their own."""
    names: tuple[str, ...]
    """All columns to read, without the images themselves."""


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
    return {
        name: partial(_read, files, read)
        for (name, read), files in zip(readers.items(), groups.values(), strict=True)
    }


def _has_boxes(file: Path) -> bool:
    return b"bbox" in read_footer(file, HEAD)


def _read(files: Sequence[Path], read: Reader) -> DetectionData:
    """Read a split after its images have been unpacked."""
    for file in files:
        with opened(file) as parquet:
            columns = _find_columns(file, parquet.schema_arrow)
            if columns.embedded:
                unpack_images(file, parquet, columns.image)
    return read()


def _find_columns(file: Path, schema: pa.Schema) -> _Columns:
    """Return the columns of a file.

    Raises:
        DataError: It has no images or no boxes.
    """
    import pyarrow as pa

    fields = {field.name: field.type for field in schema}
    embedded = [name for name, type_ in fields.items() if has_content(type_)]
    paths = [name for name in _IMAGES if name in fields and pa.types.is_string(fields[name])]
    objects = next((name for name, type_ in fields.items() if "bbox" in _keys(type_)), None)
    if not (embedded or paths) or (objects is None and "bbox" not in fields):
        raise DataError(
            f"{file}: has the columns {listed(list(fields))}; expected 'image', with binary 'bytes' or a path, and "
            "'objects' with 'bbox'"
        )
    image = (embedded or paths)[0]
    lists = ("bbox", *CATEGORY, "iscrowd", "area") if objects is None else (objects,)
    others = [name for name in (*lists, "width", "height") if name in fields]
    return _Columns(image, bool(embedded), objects, (f"{image}.path" if embedded else image, *others))


def _keys(type_: pa.DataType) -> set[str]:
    """Return the keys of a structure, or of a list of structures."""
    import pyarrow as pa

    while pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return {field.name for field in type_} if pa.types.is_struct(type_) else set()


def _parse(files: Sequence[Path], root: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _class_names(files, root)
    return [image for file in files for image in _parse_file(file, root, names, findings)]


def _parse_file(
    file: Path, root: Path, names: Mapping[int, str], findings: FindingCollector
) -> Iterator[AnnotatedImage]:
    with opened(file) as parquet:
        columns = _find_columns(file, parquet.schema_arrow)
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
                image = parse_image(where, content, names)
            except DataError as error:
                findings.add("malformed", str(error))
            else:
                yield image


def _rows(file: Path, parquet: ParquetFile, columns: _Columns) -> Iterator[dict[str, Any]]:
    for batch in parquet.iter_batches(_ROWS, columns=list(columns.names), use_threads=False):
        if batch.nbytes > MAX_CONTENT:
            raise DataError(
                f"{file}: has {batch.nbytes:,} bytes of annotations in {counted(batch.num_rows, 'row')}, which is "
                "refused as a decompression bomb; expected lists of boxes and categories"
            )
        yield from batch.to_pylist()


def _unpacked_paths(
    file: Path, parquet: ParquetFile, columns: _Columns, root: Path, findings: FindingCollector
) -> list[str]:
    """Return the path of the image of each row, relative to `root`; that in the file for those that are not in it."""
    folder, unpacked = image_folder(file), unpacked_names(file)
    findings.add("embedded_image", f"{file}: unpacked to {folder}", count=len(unpacked))
    paths = image_paths(parquet, columns.image)
    return [
        (folder / unpacked[stem]).relative_to(root).as_posix() if stem in unpacked else path or stem
        for stem, path in zip(image_stems(paths), paths, strict=True)
    ]


def _categories(files: Sequence[Path], root: Path, names: Collection[str]) -> tuple[Category, ...]:
    return categories(_class_names(files, root), names)


def _class_names(files: Sequence[Path], root: Path) -> dict[int, str]:
    """Return the names of classes by number: of the metadata of the first file that has them, or of `README.md`."""
    for file in files:
        with opened(file) as parquet:
            metadata = (parquet.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = partial_json(metadata.decode(errors="replace"))
        labels = (_class_label(features, name) for name in CATEGORY)
        if names := class_names(next((label for label in labels if label is not None), None)):
            return names
    return names_in_readme(root)


def _class_label(node: Any, feature: str, name: str = "") -> Any:
    """Return the first `ClassLabel` of a feature with this name; None if there is none."""
    if isinstance(node, dict):
        if node.get("_type") == "ClassLabel" and name == feature:
            return node
        for key, item in node.items():
            if found := _class_label(item, feature, name if key == "feature" else key):
                return found
    return None


PARQUET = Format(
    name="Parquet",
    expected="Parquet: a folder with .parquet files that have 'image', and 'objects' with 'bbox'",
    splits=_splits,
)
