"""Files that are not what their names say: pipes, devices, and formats that run programs or name other files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from malicious_files import CANARY

from querybox import read_dataset, validate
from querybox.data.image import read_image, read_size
from querybox.inference.sources import read_frames
from querybox.runfile import read_run_file
from torture.samples import SAMPLES, write_coco
from torture.watch import SECRET, Attempt, Ending, fresh

SECONDS = 60
"""An attempt that takes longer ends its process: it waits for somebody to write into a pipe."""

EITHER: tuple[Ending, ...] = ("refused", "read")
"""A file of several may be reported among the findings, or not be recognised as belonging to the dataset."""
PLACES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
}


def special_files(folder: Path, long: bool) -> Iterator[Attempt]:
    """Pipes, devices and folders in place of every file of every sample, and of some others."""
    for place, make in PLACES.items():
        for sample in SAMPLES:
            inside = fresh(folder, sample.write)
            files = sorted(path for path in inside.rglob("*") if path.is_file() and path.name != "card.json")
            for file in files:
                content = file.read_bytes()
                file.unlink()
                make(file)
                name = f"{place}, {sample.name}, {file.name}"
                signal.alarm(SECONDS)
                yield Attempt(name=name, read=partial(sample.read, inside, file), inside=inside, ends=EITHER)
                signal.alarm(0)
                file.rmdir() if place == "folder" else file.unlink()
                file.write_bytes(content)
        inside = fresh(folder, write_coco)
        for name in ("run.yaml", "clip.mp4", "model.onnx", "images/3.png"):
            make(inside / name)
        reads: dict[str, Callable[[], object]] = {
            "run file": partial(read_run_file, inside / "run.yaml"),
            "video": partial(read_video, inside / "clip.mp4"),
            "dataset": partial(read_dataset, inside / "run.yaml"),
        }
        signal.alarm(SECONDS)
        for name, read in reads.items():
            yield Attempt(name=f"{place}, {name}", read=read, inside=inside)
        yield Attempt(
            name=f"{place}, validate", read=partial(validate, inside), inside=inside, ends=("read",)
        )
        signal.alarm(0)


EPS = f"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 6
%%EndComments
({CANARY}) (w) file closefile
showpage
"""
VIDEOS = {
    "ffconcat": "ffconcat version 1.0\nfile '{secret}/clip.mp4'\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}/clip.ts\n#EXT-X-ENDLIST\n",
    "HLS of a host": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/1.ts\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{secret}/clip.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
}


def disguises(folder: Path, long: bool) -> Iterator[Attempt]:
    """Content of other formats under the names of images and videos."""
    secret = folder / SECRET
    secret.mkdir()
    write_video(secret / "clip.mp4")
    write_video(secret / "clip.ts")
    inside = fresh(folder, lambda _: None)
    for suffix in (".png", ".jpg", ".tga", ".eps"):
        file = inside / f"image{suffix}"
        file.write_text(EPS)
        yield Attempt(name=f"EPS, {suffix}", read=partial(read_image, file), inside=inside)
        yield Attempt(name=f"size of EPS, {suffix}", read=partial(read_size, file), inside=inside)
    for name, content in VIDEOS.items():
        for suffix in (".mp4", ".mkv", ".avi"):
            file = inside / f"clip{suffix}"
            file.write_text(content.format(secret=secret))
            yield Attempt(name=f"{name}, {suffix}", read=partial(read_video, file), inside=inside)


def read_video(path: Path) -> None:
    """Decode a video."""
    list(read_frames([path]))


def write_video(path: Path) -> None:
    """Write a video that can be read."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 16, "yuv420p")))
        container.mux(stream.encode())
