"""Whether images fit a model that takes images of one size alone, which is checked before the first one is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from querybox.data.tiff import image_size
from querybox.data.tiling import Tiling
from querybox.data.transforms import resized_shape
from querybox.errors import ConfigError, ImageError
from querybox.inference.engine import Engine
from querybox.inference.sources import find_windows, is_video
from querybox.structures import Preprocessing
from querybox.text import listed


@runtime_checkable
class SizedEngine(Engine, Protocol):
    """The interface of a model that may be limited to images of one size, to which smaller ones are padded."""

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Maximum (height, width) of resized images in pixels; None if they may have any size."""


def require_fitting(
    engine: Engine, images: Iterable[tuple[str, tuple[int, int]]], tiling: Tiling | None
) -> None:
    """Check that a model takes images.

    Args:
        engine: The model.
        images: The name and the (height, width) in pixels of each image, which are read only if there is a limit.
        tiling: The tiles that each image is divided into; None for none.

    Raises:
        ConfigError: Some of them, or of their tiles, are too large after resizing, or an image has too many tiles.
    """
    limit = engine.max_size if isinstance(engine, SizedEngine) else None
    if limit is None:
        return
    found = {}
    for name, size in images:
        windows = find_windows(name, size, tiling)
        found[name] = misfits(engine.preprocessing, [(each.height, each.width) for each in windows], limit)
    if names := [name for name, sizes in found.items() if sizes]:
        raise ConfigError(f"{listed(names, 3)}: {wrong_size(set().union(*found.values()), limit)}")


def misfits(
    preprocessing: Preprocessing, sizes: Iterable[tuple[int, int]], limit: tuple[int, int]
) -> set[tuple[int, int]]:
    """Return what sizes of images become by resizing where they exceed a limit; all are (height, width) in pixels."""
    short_side, long_side, resizing = (
        preprocessing.short_side,
        preprocessing.long_side,
        preprocessing.resizing,
    )
    resized = {resized_shape(*size, short_side, long_side, resizing) for size in set(sizes)}
    return {each for each in resized if each[0] > limit[0] or each[1] > limit[1]}


def wrong_size(sizes: Iterable[tuple[int, ...]], fixed: tuple[int, int], *, padded: bool = True) -> str:
    """Return the message about resized images that do not fit a fixed size; all are (height, width) in pixels."""
    found = listed(sorted({f"{height}x{width}" for height, width in sizes}))
    return (
        f"an exported model of the fixed size {fixed[0]}x{fixed[1]} got images of {found} pixels; expected "
        f"{'at most this' if padded else 'this'} size (height x width): resize them, or export the model without a size"
    )


def file_sizes(files: Iterable[object]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name and the (height, width) of each image file whose header can be read; videos are passed over."""
    for file in files:
        if isinstance(file, Path) and not is_video(file):
            try:
                yield str(file), image_size(file)
            except ImageError:  # which is told when it is read
                continue
