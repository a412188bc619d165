"""Shards of images, for tests and torture."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image


@cache
def jpeg(size: tuple[int, int] = (60, 40), colour: str = "orange") -> bytes:
    """Return the content of an image file of (width, height) pixels."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes | None], kind: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of files, and of folders, whose content is None."""
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
