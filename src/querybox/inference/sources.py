"""Image sources: files, folders, globs, videos and images in memory, all read as frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from glob import glob, has_magic
from io import IOBase
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from querybox.arguments import require_path, require_type
from querybox.data.image import SUFFIXES as IMAGE_SUFFIXES
from querybox.data.image import read_image
from querybox.data.locate import is_junk, iterate_files
from querybox.data.shards import ImageFile
from querybox.data.tiff import is_read_in_parts, open_tiff
from querybox.data.tiling import Tiling
from querybox.data.windows import Window
from querybox.errors import ConfigError, DataError, ImageError
from querybox.files import require_regular
from querybox.inference.address import find_address
from querybox.inference.live import LiveStream
from querybox.inference.tiles import View
from querybox.inference.video import SUFFIXES as VIDEO_SUFFIXES
from querybox.inference.video import decode_video, open_video
from querybox.pixels import as_pixels
from querybox.structures import PixelRange
from querybox.text import listed, natural_key
from querybox.urls import is_url, public_name

Pixels: TypeAlias = Image.Image | npt.NDArray[Any] | Tensor
"""An RGB image in memory, 0-255: a PIL image, a uint8 array [h, w, 3] or a uint8 tensor [3, h, w]."""
Source: TypeAlias = str | Path | Pixels
SOURCE_TYPES = (str, Path, Image.Image, np.ndarray, Tensor)
EXPECTED = "a path, a PIL image, or a uint8 array or tensor"
"""`SOURCE_TYPES` in words."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An image, one frame of a video, or a part of one of these."""

    source: str
    """Path of the image, ``"video.mp4#12"`` for frame 12 (the first is 0), or ``""`` for an image in memory."""
    pixels: UInt8[Tensor, "3 h w"]
    """RGB; reduced if the image is too large."""
    view: View | None = None
    """Which part of the image this is; None for all of an image without tiles."""
    time: float | None = None
    """See `Detections.time`."""
    seconds: float | None = None
    """Presentation time of a frame of a video file, see `DecodedFrame.seconds`."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, or of this part of it, in pixels of the original."""
        if self.view is None:
            return self.pixels.shape[1], self.pixels.shape[2]
        return self.view.window.height, self.view.window.width

    @property
    def is_last(self) -> bool:
        """Whether no other view of the image follows."""
        return self.view is None or self.view.index == len(self.view.windows) - 1


def find_sources(sources: Source | Sequence[Source]) -> list[Path | Pixels]:
    """Resolve folders and globs to files, without reading them.

    Args:
        sources: A file; a folder (its images and videos in natural order, ``2.jpg`` before ``10.jpg``; subfolders are
            not searched); a glob such as ``"photos/**/*.jpg"``; an image in memory (a PIL image, a uint8 array
            ``[h, w, 3]`` or a uint8 tensor ``[3, h, w]``); or a sequence of those.

    Raises:
        ConfigError: A source is of another type, or the address of a live source.
        DataError: A path does not exist, or a folder or glob contains no image.
    """
    if isinstance(sources, (*SOURCE_TYPES, bytes, IOBase)):  # the last two would yield integers and lines
        sources = [sources]
    require_type("predict", sources, Iterable, f"{EXPECTED}, or a sequence of them")
    found: list[Path | Pixels] = []
    for source in sources:
        require_type("predict", source, SOURCE_TYPES, EXPECTED)
        if address := find_address(source):
            raise ConfigError(
                f"{address.name}: is a live source, which has no end; open it with querybox.LiveStream, or use "
                "`querybox predict`"
            )
        if isinstance(source, str | Path):
            found += find_files(require_path("predict", source, "an image, a video or a folder"))
        else:
            found.append(source)
    return found


def find_files(path: Path, shards: Collection[str] = ()) -> list[Path]:
    """Return the file at `path`, or the images and videos in the folder or glob.

    Args:
        path: A file, folder or glob.
        shards: Further file name extensions, in lower case, that are found in folders and by globs.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        return select_images(
            path,
            (file for file in path.iterdir() if not is_junk(file.name)),
            f"subfolders are not searched; to search them, use '{path / '**' / '*.jpg'}'",
            shards,
        )
    if has_magic(str(path)):
        return select_images(path, map(Path, matching_files(path)), "check the pattern", shards)
    require_regular(path, DataError)
    raise DataError(
        f"{path}: no such file or folder; expected an image, a video, a folder or a glob: check the path"
    )


def find_distinct_files(sources: Iterable[str | Path]) -> list[Path]:
    """Return the files of paths, folders and globs, each of them once; see `distinct`."""
    return distinct(file for source in sources for file in find_files(Path(source)))


def distinct(files: Iterable[T]) -> list[T]:
    """Return each file once, at its first position; log those that are named again.

    A file is the same by whatever path through folders and links to folders; a link to a file counts as another file.

    Args:
        files: Paths or URLs.
    """
    folders: dict[str, str] = {}  # without links, by path
    found: dict[str, T] = {}
    repeated: dict[str, T] = {}
    for file in files:
        place = str(file)
        if not is_url(place):
            folder, name = os.path.split(place)  # faster than Path, for millions of files
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            place = place if folders[folder] == folder else os.path.join(folders[folder], name)  # noqa: PTH118
        if place in found:
            repeated[place] = found[place]
        else:
            found[place] = file
    if repeated:
        names = [public_name(str(file)) for file in repeated.values()]
        logger.warning("files that are named more than once are used once: %s", listed(names))
    return list(found.values())


def matching_files(pattern: Path) -> Iterator[str]:
    """Yield the files that match a glob, in which ``**`` stands for any number of folders.

    Unlike `glob.glob`, links to a folder that has been searched are not followed: in ``/proc`` they have no end.
    """
    recursion = pattern.parts.index("**") if "**" in pattern.parts else None
    matches = glob(str(Path(*pattern.parts[:recursion])))  # noqa: PTH207 - Path.glob does not accept absolute patterns
    if recursion is None:
        yield from matches
        return
    unreadable: list[OSError] = []
    for folder in map(Path, matches):
        for file in iterate_files(folder, on_error=unreadable.append):
            if matches_parts(Path(file).relative_to(folder).parts, pattern.parts[recursion:]):
                yield file
    if unreadable:
        folders = listed([str(error.filename) for error in unreadable])
        logger.warning("%s: skipped %d folders that cannot be read: %s", pattern, len(unreadable), folders)


def matches_parts(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a glob."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(matches_parts(parts[count:], patterns[1:]) for count in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], patterns[0]) and matches_parts(parts[1:], patterns[1:])


def select_images(source: Path, paths: Iterable[Path], hint: str, shards: Collection[str]) -> list[Path]:
    """Return the images, the videos, and the files with a suffix of `shards`, in natural order; log the others.

    Raises:
        DataError: There are none. The message ends with `hint`.
    """
    files = sorted((path for path in paths if path.is_file()), key=natural_key)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {*shards}
    selected = [file for file in files if file.suffix.lower() in suffixes]
    if not selected:
        raise DataError(
            f"{source}: found no image or video among {len(files)} files; expected one of "
            f"{' '.join(sorted(suffixes))}: {hint}"
        )
    if others := [file.name for file in files if file.suffix.lower() not in suffixes]:
        logger.warning("%s: skipped %d files that are not images: %s", source, len(others), ", ".join(others))
    return selected


def is_video(source: Path | Pixels) -> bool:
    """Return whether `source` is a video file."""
    return isinstance(source, Path) and source.suffix.lower() in VIDEO_SUFFIXES


def read_frames(
    sources: Iterable[Path | Pixels | LiveStream],
    on_error: Callable[[ImageError], object] | None = None,
    *,
    pixel_range: PixelRange | None = None,
    tiling: Tiling | None = None,
) -> Iterator[Frame]:
    """Read frames lazily, one at a time; a video is never in memory as a whole.

    Args:
        sources: Files, images in memory and live sources.
        on_error: Called with the error of each file or live source that cannot be read (any more), which is skipped;
            None to raise it.
        pixel_range: See `Preprocessing.pixel_range`.
        tiling: The tiles that each image is divided into; None for none.

    Raises:
        ImageError: An image or a video cannot be read, or an image in memory is not uint8 RGB.
    """
    for source in sources:
        if not isinstance(source, Path | LiveStream):
            pixels = as_pixels(source).cpu()
            yield from views(Frame(source="", pixels=pixels), tiling)
            continue
        try:
            if isinstance(source, LiveStream):
                yield from read_live(source, tiling)
            else:
                yield from read_file(source, pixel_range, tiling)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)


def views(frame: Frame, tiling: Tiling | None) -> Iterator[Frame]:
    """Yield the whole image and its tiles, or the image alone if it fits one tile."""
    height, width = frame.pixels.shape[1:]
    windows = find_windows(frame.source, (height, width), tiling)
    if len(windows) < 2:
        yield frame
        return
    for index, (left, top, across, down) in enumerate(windows):
        yield replace(
            frame,
            pixels=frame.pixels[:, top : top + down, left : left + across],
            view=View((height, width), windows, index),
        )


def find_windows(source: str, size: tuple[int, int], tiling: Tiling | None) -> tuple[Window, ...]:
    """Return what is detected in: an image, and its tiles.

    Args:
        source: The name of the image, see `Frame.source`.
        size: Its (height, width) in pixels.
        tiling: The tiles that it is divided into; None for none.

    Raises:
        ConfigError: There are too many.
    """
    if tiling is None:
        return (Window(0, 0, size[1], size[0]),)
    try:
        return tiling.windows(size)
    except ConfigError as error:
        raise ConfigError(f"{source or 'an image in memory'}: {error}") from None


def image_views(
    path: ImageFile,
    pixel_range: PixelRange | None,
    tiling: Tiling | None,
    size: tuple[int, int] | None = None,
) -> Iterator[Frame]:
    """Read an image, and yield its views, or the image alone without `tiling`.

    A TIFF that is too large to be decoded as a whole is read in parts; its view of the whole image is reduced.

    Args:
        path: The image file, which may be in a shard.
        pixel_range: See `Preprocessing.pixel_range`.
        tiling: The tiles that the image is divided into; None for none.
        size: (height, width) according to the annotations; see `read_image`.

    Raises:
        ImageError: The image cannot be read.
    """
    try:
        pixels = as_pixels(read_image(path, size, pixel_range=pixel_range))
    except ImageError as error:
        if tiling is None or not is_read_in_parts(path, error):
            raise
    else:
        yield from views(Frame(source=str(path), pixels=pixels), tiling)
        return
    with open_tiff(path, pixel_range, size) as image:
        windows = find_windows(str(path), image.size, tiling)
        for index, window in enumerate(windows):
            pixels = as_pixels(image.read(window) if index else image.reduced())
            yield Frame(source=str(path), pixels=pixels, view=View(image.size, windows, index))


def read_file(path: Path, pixel_range: PixelRange | None, tiling: Tiling | None) -> Iterator[Frame]:
    """Read the frames of a video, or the single frame of an image, in tiles if `tiling` is given."""
    if not is_video(path):
        yield from image_views(path, pixel_range, tiling)
        return
    for frame in read_video(path):
        yield from views(frame, tiling)


def read_video(path: Path) -> Iterator[Frame]:
    """Read every frame of a video; see `decode_video`."""
    for number, (pixels, seconds, _) in enumerate(decode_video(path)):
        yield Frame(source=f"{path}#{number}", pixels=as_pixels(pixels), seconds=seconds)


def read_live(stream: LiveStream, tiling: Tiling | None) -> Iterator[Frame]:
    """Read the frames of a live source, in tiles if `tiling` is given."""
    for each in stream:
        frame = Frame(source=f"{stream.name}#{each.number}", pixels=as_pixels(each.pixels), time=each.time)
        yield from views(frame, tiling)


def count_frames(sources: Iterable[Path]) -> int | None:
    """Return the number of frames in the files, read from the video headers; None if a header does not state it."""
    total = 0
    for source in sources:
        count = 1
        if is_video(source):
            try:
                with open_video(source) as (_, stream):
                    count = stream.frames
            except ImageError:
                return None
        if not count:
            return None
        total += count
    return total
