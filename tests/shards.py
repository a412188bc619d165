"""Shards of images, for tests and torture."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
from PIL import Image

from querybox.data import DetectionData, ImageRecord, storage

Annotate = Callable[[ImageRecord, DetectionData], tuple[str, str]]


@cache
def jpeg(size: tuple[int, int] = (60, 40), colour: str = "orange") -> bytes:
    """Return the content of an image file of (width, height) pixels."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


ANNOTATED: dict[str, bytes | None] = {
    "0.jpg": jpeg(),
    "0.json": b'{"annotations": [{"bbox": [1, 2, 3, 4], "category": "cat"}]}',
}
"""The members of a shard with one image."""


def write_tar(path: Path, members: Mapping[str, bytes | None], kind: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of files, and of folders, whose content is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(
    data: DetectionData, folder: Path, images: int, annotate: Annotate | None = None, name: str = "train"
) -> Path:
    """Write a dataset as shards of WebDataset, and the names of its classes.

    Args:
        data: The dataset.
        folder: Where; it is made.
        images: Number of images of a shard.
        annotate: Returns the file name extension and the content of an annotation; None for `as_json`.
        name: Beginning of the names of the shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(data.images), images)):
        members: dict[str, bytes | None] = {}
        for image in data.images[start : start + images]:
            suffix, content = (annotate or as_json)(image, data)
            members[image.path.name] = image.path.read_bytes()
            members[f"{image.path.stem}{suffix}"] = content.encode()
        write_tar(folder / f"{name}-{number:03}.tar", members)
    (folder / "classes.txt").write_text("".join(f"{each.name}\n" for each in data.categories))
    return folder


def same_records(data: DetectionData, others: DetectionData) -> None:
    """Compare the records of a dataset with those of another one, except for the places of the images."""
    assert [each.name for each in data.categories] == [each.name for each in others.categories]
    for record, other in zip(data.images, others.images, strict=True):
        assert (record.id, record.path.name) == (other.id, other.path.name)
        assert (record.width, record.height) == (other.width, other.height)
        for name in ("boxes_xyxy", "labels", "crowd", "areas"):
            np.testing.assert_array_equal(getattr(record, name), getattr(other, name))


@contextmanager
def memory_storage() -> Iterator[fsspec.AbstractFileSystem]:
    """Context manager that yields a storage in the memory of this process, in place of one that is connected to."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    with mock.patch.object(storage, "SCHEMES", (*storage.SCHEMES, "memory")):
        yield filesystem
    filesystem.store.clear()


def as_json(image: ImageRecord, data: DetectionData) -> tuple[str, str]:
    """Return an annotation in JSON, with names of classes and the size of the image."""
    annotations = [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "category": data.categories[label].name}
        for (x0, y0, x1, y1), label in zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True)
    ]
    content = {"annotations": annotations, "width": image.width, "height": image.height}
    return ".json", json.dumps(content)


def write_parquet(path: Path, images: Sequence[Any], **options: Any) -> Path:
    """Write a Parquet file of images as the Hugging Face Hub has them."""
    import pyarrow as pa
    import pyarrow.parquet

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([None if image is None else {"bytes": image, "path": None} for image in images], kind)
    pyarrow.parquet.write_table(
        pa.table({"image": column, "label": list(range(len(images)))}), path, **options
    )
    return path


def write_images_and_boxes(
    data: DetectionData, folder: Path, images: int, *, rows_a_group: int, name: str = "train"
) -> Path:
    """Write a dataset as Parquet files with the images in them, as on the Hugging Face Hub.

    Args:
        data: The dataset.
        folder: Where; it is made.
        images: Number of images of a file.
        rows_a_group: Number of images of a row group.
        name: Beginning of the names of the files.
    """
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    names = {"_type": "ClassLabel", "names": [each.name for each in data.categories]}
    features = {"objects": {"category": {"feature": names, "_type": "List"}}}
    for number, start in enumerate(range(0, len(data.images), images)):
        rows = [
            {
                "image": {"bytes": image.path.read_bytes(), "path": image.path.name},
                "width": image.width,
                "height": image.height,
                "objects": {
                    "bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in image.boxes_xyxy.tolist()],
                    "category": image.labels.tolist(),
                },
            }
            for image in data.images[start : start + images]
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pyarrow.parquet.write_table(
            table, folder / f"{name}-{number:03}.parquet", row_group_size=rows_a_group
        )
    return folder
