"""Decoding of videos, and of as much as possible of damaged ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8

from querybox.errors import ImageError
from querybox.files import require_regular
from querybox.text import counted

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

OPTIONS = {
    # Other formats, such as playlists and stream descriptions, name files and hosts that FFmpeg would open.
    "format_whitelist": "asf,avi,flv,m4v,matroska,mov,mpeg,mpegts,mpegvideo",
    "protocol_whitelist": "file",
}
"""Options of FFmpeg: the formats of videos by its names, and what it may open."""
SUFFIXES = frozenset(
    (
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ts",
        ".webm",
        ".wmv",
    )
)
MAX_MISSING_SECONDS = 0.5
"""Seconds by which a whole video may be shorter than its header says."""
MAX_MISSING_FRAMES = 0.02
"""Fraction of the frames that a whole AVI may have less than its header says: empty ones repeat the one before."""
COUNTED_FROM_ZERO = ("matroska,webm", "asf")
"""Formats whose length is the time of the end, by FFmpeg's names, also if the first frame has a later time than 0."""
ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"uuid", b"pnot")
"""Types of top-level atoms of MP4 and QuickTime files."""


@dataclass(slots=True)
class Progress:
    """How much of a video was decoded."""

    frames: int = 0
    damaged: int = 0
    """Number of packets that could not be decoded, and of frames that were decoded with errors."""
    end: float = 0.0
    """Time in seconds at which the last packet of any stream ends."""
    reason: str = ""
    """Why nothing more could be read, if this is an error."""

    def add(self, packet: Packet[Any]) -> None:
        """Note the end of a packet."""
        time = packet.dts if packet.pts is None else packet.pts
        if time is not None and packet.time_base is not None:
            self.end = max(self.end, float((time + (packet.duration or 0)) * packet.time_base))

    def problems(self, container: InputContainer, stream: VideoStream) -> list[str]:
        """Return what is wrong with the video, after it was read to its end; empty if nothing is."""
        found = []
        if self.reason:
            found.append(self.reason)
        if self.damaged:
            found.append(f"{counted(self.damaged, 'frame')} damaged")
        if "avi" in container.format.name:  # whose duration is that of the file, not of the header
            if self.frames < stream.frames * (1 - MAX_MISSING_FRAMES) - 1:
                found.append(f"ends after {self.frames} of {stream.frames} frames")
        elif container.duration is not None:
            begin = 0.0 if container.format.name in COUNTED_FROM_ZERO else (container.start_time or 0) / 1e6
            length, seconds = container.duration / 1e6, self.end - begin
            if seconds < length - MAX_MISSING_SECONDS:
                found.append(f"ends after {seconds:.1f} of {length:.1f} seconds")
        if not self.frames:
            found.append("no frame can be decoded")
        return found


class DecodedFrame(NamedTuple):
    """A frame of a video."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """RGB, upright."""
    seconds: float | None
    """Presentation time in seconds by the file, which may begin anywhere; None if it has none."""
    pixel_ratio: Fraction
    """Width of a pixel divided by its height, as it is to be shown."""


def decode_video(path: Path) -> Iterator[DecodedFrame]:
    """Decode every frame of a video, rotated upright and mirrored as its header specifies.

    What follows a damaged part is decoded as well.

    Raises:
        ImageError: The file is not a video; or, after the last frame that can be decoded, the video is damaged or
            shorter than its header says.
    """
    import av

    progress = Progress()
    with open_video(path) as (container, stream):
        for packet in read_packets(container, progress):
            if packet.stream_index != stream.index:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                progress.damaged += 1
                continue
            for frame in frames:
                progress.frames += 1
                progress.damaged += frame.is_corrupt
                yield DecodedFrame(upright(frame), frame.time, pixel_ratio(stream, frame))
        if problems := progress.problems(container, stream):
            raise ImageError(
                f"{path}: the video is cut off or damaged: {', '.join(problems)}; only the "
                f"{counted(progress.frames, 'frame')} that can be decoded are used: copy or record it again"
            )


def upright(frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a frame, rotated upright, and mirrored, as phones store it."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90)  # counter-clockwise
    if is_mirrored(frame):
        pixels, turns = pixels[:, ::-1], turns + 2  # the rotation is that of the left edge
    return np.rot90(pixels, turns)


def pixel_ratio(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Return the width of a pixel of an upright frame divided by its height; 1 if the video does not say."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    return 1 / ratio if round(frame.rotation / 90) % 2 else ratio


def is_mirrored(frame: VideoFrame) -> bool:
    """Return whether the display matrix of a frame mirrors it, as that of some front cameras does."""
    matrix = cast("Mapping[str, Any]", frame.side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    return bool(a * d < b * c)


def read_packets(container: InputContainer, progress: Progress) -> Iterator[Packet[Any]]:
    """Read the packets of all streams, some of which may last longer than the video, as far as possible."""
    import av

    try:
        for packet in container.demux():
            progress.add(packet)
            yield packet
    except (av.FFmpegError, OSError) as error:
        progress.reason = str(error.strerror)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its first video stream.

    Raises:
        ImageError: The file is missing, not a video, or truncated.
    """
    import av

    require_regular(path, ImageError)
    try:
        with av.open(video_address(path), options=OPTIONS) as container:
            if not container.streams.video:
                raise ImageError(f"{path}: has no video stream; expected a video: check the file")
            yield container, container.streams.video[0]
    except FileNotFoundError:
        raise ImageError(f"{path}: no such video file", "missing_image") from None
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.InvalidDataError) and lacks_index(path):
            raise ImageError(
                f"{path}: has no index (moov atom), without which a video cannot be decoded: its recording or copying "
                "was interrupted; copy it again, or repair it with the help of a video of the same camera"
            ) from None
        raise ImageError(
            f"{path}: cannot be read as a video ({error.strerror}); repair or remove it"
        ) from error


def lacks_index(path: Path) -> bool:
    """Return whether a file is an MP4 or QuickTime video without its index, which most cameras write last."""
    size = path.stat().st_size
    position, first = 0, True
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if kind == b"moov" or (first and kind not in ATOMS):
                return False
            first = False
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(head[8:16], "big")
            if length < 8:  # 0: the last atom, to the end of the file
                break
            position += length
    return not first


def video_address(path: Path) -> str:
    """Return the address of a file for FFmpeg, which takes the beginning of ``concat:a.mp4`` for a protocol."""
    return f"file:{path}"
