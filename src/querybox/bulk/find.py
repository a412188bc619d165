"""Find the files of a collection: images and shards, on this disk or at URLs."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from querybox.data.image import SUFFIXES
from querybox.data.storage import list_urls, suffix
from querybox.errors import DataError
from querybox.inference.sources import find_files
from querybox.text import counted, listed, natural_key
from querybox.urls import is_url, public_name


def find(source: str, shards: Collection[str]) -> list[str]:
    """Return the files of a source in natural order: itself, or those in the folder or pattern.

    Args:
        source: A path or URL.
        shards: File name extensions that are found in folders besides those of images.

    Raises:
        ConfigError: It is a URL of another scheme.
        DataError: There is no such file or folder, or no image in it.
    """
    if not is_url(source):
        return [os.path.abspath(path) for path in find_files(Path(source), shards)]  # noqa: PTH100 - links are kept
    if (urls := list_urls(source)) is None:
        return [source]
    urls.sort(key=natural_key)
    selected = [url for url in urls if suffix(url) in SUFFIXES or suffix(url) in shards]
    if not selected:
        some = f" ({listed(urls, 3)})" if urls else ""
        raise DataError(
            f"{public_name(source)}: found no image among {counted(len(urls), 'file')}{some}; expected images, or "
            f"shards ({' '.join(shards)})"
        )
    return selected
