"""Draw detections on their images and videos, and write the drawings to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import torch
from PIL import Image

from querybox.data.tiff import read_picture
from querybox.errors import ConfigError, ImageError
from querybox.files import atomic, comparable
from querybox.inference.detections import Detections
from querybox.inference.draw import draw
from querybox.inference.frame_times import FrameTimes
from querybox.inference.live import LiveStream
from querybox.inference.sources import is_video
from querybox.inference.video import DecodedFrame, decode_video
from querybox.inference.video_file import VideoFile, video_file
from querybox.inference.writers import AddDetections

LIVE_RATE = Fraction(30)
"""Frames a second that the codec assumes for the video of a live source, whose frames have times."""


def drawing_paths(names: Mapping[str, str], folder: Path) -> list[Path]:
    """Return the path in `folder` of the drawing of each source.

    Args:
        names: The name of each source; see `file_names`.
        folder: The folder.

    Raises:
        ConfigError: A drawing would overwrite a source.
    """
    sources = {Path(source): name for source, name in names.items()}
    originals = {comparable(str(source.resolve())) for source in sources}
    paths = [folder / f"{name}{'.mp4' if is_video(source) else '.jpg'}" for source, name in sources.items()]
    for path in paths:
        if comparable(str(path.resolve())) in originals:
            raise ConfigError(f"{path}: the drawing would overwrite a source; expected another output folder")
    return paths


def draw_files(
    sources: Sequence[Path],
    paths: Sequence[Path],
    results: Iterator[Detections],
    on_error: Callable[[ImageError], object] | None = None,
) -> None:
    """Draw the detections on their images and videos.

    Args:
        sources: Image and video files. They are read a second time, so that images need not be kept in memory.
        paths: Path of each drawing.
        results: Detections of every image and frame that could be read, in the order of the sources.
        on_error: Called with the error of each file that cannot be read any more, which is not drawn; None to raise it.

    Raises:
        DiskFullError: There is no space for an image.
        ImageError: A file cannot be read any more, and `on_error` is None.
    """
    left = {str(source): (source, path) for source, path in zip(sources, paths, strict=True)}
    for detections in results:
        name = detections.source if detections.source in left else detections.source.rpartition("#")[0]
        if name not in left:  # a video that could not be drawn
            continue
        source, path = left.pop(name)
        path.unlink(missing_ok=True)  # the name alone, if it is a link to another file
        try:
            if is_video(source):
                draw_video(source, path, chain([detections], results))
                continue
            drawing = draw_image(source, detections)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        with atomic(path, durable=False) as temporary:
            drawing.save(temporary, format="JPEG", quality=95)


def draw_image(source: Path, detections: Detections) -> Image.Image:
    """Draw the detections on their image; an image that is read in parts is reduced, and drawn without masks."""
    image = read_picture(source, pixel_range=detections.pixel_range)
    height, width = detections.size
    size = (image.height, image.width)
    if size == detections.size:
        return draw(image, detections)
    scale = torch.tensor([image.width / width, image.height / height] * 2, device="cpu")
    return draw(image, replace(detections, boxes_xyxy=detections.boxes_xyxy * scale, size=size, masks=None))


def draw_video(source: Path, path: Path, results: Iterator[Detections]) -> None:
    """Draw the detections on every frame of a video, each at its own time from the first; the audio is dropped."""
    times = FrameTimes(source)
    with video_file(path, times.rate) as file:
        # Frames first, so that no result of the next file is taken at the end of the video.
        for frame, detections in zip(readable_frames(source), results, strict=False):
            file.add(draw(frame.pixels, detections), times.next(frame.seconds), frame.pixel_ratio)


@contextmanager
def live_video(path: Path, stream: LiveStream) -> Iterator[AddDetections]:
    """Draw the detections on each processed frame of a live source, which is shown until the next one.

    The file appears with the first frame, see `video_file`. An older one is removed first.
    """
    path.unlink(missing_ok=True)
    with ExitStack() as stack:
        file: VideoFile | None = None

        def add(detections: Detections) -> None:
            nonlocal file
            assert stream.frame is not None
            if file is None:
                file = stack.enter_context(video_file(path, LIVE_RATE, live=True))
            frame = stream.frame
            file.add(draw(frame.pixels, detections), frame.time, frame.pixel_ratio)

        yield add


def readable_frames(video: Path) -> Iterator[DecodedFrame]:
    """Read the frames of a video as far as they can be decoded, as prediction does."""
    with suppress(ImageError):
        yield from decode_video(video)
