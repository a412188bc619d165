"""Names of the files that are written for images, videos and the frames of videos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from querybox.errors import ConfigError
from querybox.files import MAX_NAME, comparable, fitting
from querybox.inference.sources import is_video

FRAME = re.compile("(.+)_[0-9]{6,}", re.DOTALL)
"""The name of a frame, which begins with that of its video; see `name_of`."""
_SUFFIX, _NUMBER = len(".png"), len("_0000000000")
"""Number of bytes that are added to a name: the suffix of a file, and the number of a frame."""


def file_names(sources: Iterable[Path]) -> dict[str, str]:
    """Return the name, without suffix, of what is written for each source, in order.

    It is that of the source, with a number if a source before has it: files of two images, of two videos, or of an
    image and any frame of a video never have the same name, also where capital letters and the composition of accents
    make no difference. An image and a video may have the same, since those of the frames are longer. Names do not
    depend on the number of frames, on what is detected, or on what is written. Those that file systems would refuse
    for their length are cut; see `fitting`.

    Args:
        sources: Different images and videos; see `find_distinct_files`.

    Raises:
        ConfigError: The path of an image is what results call a frame of a video, such as ``clip.mp4#12``.
    """
    sources = list(sources)
    check_sources(sources)
    used: dict[bool, set[str]] = {False: set(), True: set()}  # by whether they are of videos
    claimed: set[str] = set()  # names of videos of which an image has the name of a frame
    tried: dict[tuple[bool, str], int] = {}  # the last number of a name
    names = {}
    for source in sources:
        video, stem = is_video(source), source.stem
        limit = MAX_NAME - _SUFFIX - (_NUMBER if video else 0)
        key = (video, comparable(stem))
        for number in count(tried.get(key, 0) + 1):
            name = fitting(stem if number == 1 else f"{stem}-{number}", limit=limit)
            own, frame = comparable(name), FRAME.fullmatch(comparable(name))
            meets_frames = own in claimed if video else frame is not None and frame[1] in used[True]
            if own not in used[video] and not meets_frames:
                break
        tried[key] = number
        used[video].add(own)
        if frame is not None and not video:
            claimed.add(frame[1])
        names[str(source)] = name
    return names


def check_sources(sources: Sequence[Path]) -> None:
    """Check that no path is what results call a frame of a video.

    Raises:
        ConfigError: A path is.
    """
    videos = {str(source) for source in sources if is_video(source)}
    for source in map(str, sources):
        video, _, number = source.rpartition("#")
        if number.isdecimal() and video in videos:
            raise ConfigError(
                f"{source}: has the name that results give to a frame of {video}; rename one of the two files"
            )


def check_folder(folder: Path, sources: Iterable[Path]) -> None:
    """Check that no source is in a folder that files are written to.

    Raises:
        ConfigError: A source is.
    """
    place = comparable(str(folder.resolve()))
    for source in sources:
        if comparable(str(source.parent.resolve())) == place:
            raise ConfigError(
                f"{source}: is in {folder}, to which results are written; expected another output folder"
            )


def renamed(names: Mapping[str, str]) -> Iterator[str]:
    """Yield ``NAME for SOURCE`` for each source whose results have another name; see `file_names`."""
    for source, name in names.items():
        if name != Path(source).stem:
            yield f"{name} for {source}"


def name_of(source: str, names: Mapping[str, str]) -> str:
    """Return the name of an image, or of a frame of a video: that of the video and its number, ``clip_000012``.

    Args:
        source: See `Detections.source`.
        names: The name of each image and video; see `file_names`.
    """
    if source in names:
        return names[source]
    video, _, number = source.rpartition("#")
    return f"{names[video]}_{int(number):06d}"
