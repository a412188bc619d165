"""Files of detections: COCO JSON, CSV, drawn pictures and videos."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from querybox.data.image import read_image
from querybox.errors import ConfigError, ImageError
from querybox.inference.detections import Detections
from querybox.inference.draw import draw
from querybox.inference.sources import Frame, is_video, open_video, read_video
from querybox.structures import Category

if TYPE_CHECKING:
    from av import VideoStream

Add: TypeAlias = Callable[[Detections], None]
"""Takes the detections of the next image."""

CSV_COLUMNS = ("source", "category_id", "name", "score", "left", "top", "right", "bottom")


@contextmanager
def coco_file(path: Path, categories: Sequence[Category]) -> Iterator[Add]:
    """Write a COCO dataset file when all is done: images, categories, and detections as annotations with a score.

    Unlike a bare COCO result list it says which image is which, and annotation tools can open it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(found: Detections) -> None:
        height, width = found.size
        images.append({"id": len(images) + 1, "file_name": found.source, "width": width, "height": height})
        for result in found.to_coco(len(images)):
            area = result["bbox"][2] * result["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})

    yield add
    content = {
        "images": images,
        "categories": [dataclasses.asdict(category) for category in categories],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@contextmanager
def csv_file(path: Path) -> Iterator[Add]:
    """Write a table of `CSV_COLUMNS`, one row a detection, as the detections come. Corners are in pixels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(CSV_COLUMNS)

        def add(found: Detections) -> None:
            ids = [found.categories[label].id for label in found.labels.tolist()]
            columns = zip(ids, found.names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
            table.writerows([found.source, *rest, *box] for *rest, box in columns)

        yield add


def picture_paths(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Return the file in `folder` for the drawing of each source; equal names are numbered.

    Raises:
        ConfigError: A drawing would take the place of a source.
    """
    originals = {source.resolve() for source in sources}
    taken: dict[Path, None] = {}  # in the order of the sources
    for source in sources:
        suffix = ".mp4" if is_video(source) else ".jpg"
        path, number = folder / f"{source.stem}{suffix}", 1
        while path in taken:
            number += 1
            path = folder / f"{source.stem}-{number}{suffix}"
        if path.resolve() in originals:
            raise ConfigError(f"{path}: the drawing would overwrite a source; expected another output folder")
        taken[path] = None
    return list(taken)


def draw_files(sources: Sequence[Path], paths: Sequence[Path], results: Iterator[Detections]) -> None:
    """Draw the detections on their pictures and videos.

    Args:
        sources: Image and video files. They are read a second time: no prediction waits for its drawing in memory.
        paths: Where each drawing goes.
        results: Detections of every image and frame that could be read, in the order of the sources.
    """
    places = zip(sources, paths, strict=True)
    for found in results:
        # Those that cannot be read have no detections: their places are passed over.
        names = (found.source, found.source.rpartition("#")[0])
        source, path = next(each for each in places if str(each[0]) in names)
        if is_video(source):
            draw_video(source, path, chain([found], results))
        else:
            draw(read_image(source), found).save(path, quality=95)


def draw_video(source: Path, path: Path, results: Iterator[Detections]) -> None:
    """Draw the detections on every frame of a video; its sound is left out."""
    import av

    with open_video(source) as (_, original):
        rate = original.average_rate or 25
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(path, "w") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=rate))
        stream.pix_fmt = "yuv420p"
        frames = zip(readable_frames(source), results, strict=False)  # frame first: it ends the video
        for number, (frame, found) in enumerate(frames):
            picture = np.asarray(draw(frame.pixels.permute(1, 2, 0).numpy(), found))
            if number == 0:
                stream.height, stream.width = (
                    side // 2 * 2 for side in picture.shape[:2]
                )  # it wants even sides
            even = picture[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def readable_frames(video: Path) -> Iterator[Frame]:
    """Read the frames of a video that were predicted on: up to the one where it breaks off."""
    with suppress(ImageError):
        yield from read_video(video)
