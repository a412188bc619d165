"""Panoptic PNGs and JSON files that cannot be."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from dataset_writers import write_json
from panoptic_sets import choose_segments, draw_segments, write_panoptic, write_png
from PIL import Image

from querybox.data import DetectionData
from querybox.data.read import read_split
from querybox.errors import DataError
from torture.case import Case, require
from torture.data_sets import change
from torture.masks import MEMORY, peak

SIZE = 24, 32
RANDOM = 2_000, 40
"""Files with changed bytes, in the long and in the short form."""
Document = dict[str, Any]


def write(folder: Path) -> Path:
    """Write a dataset of two images, and return its file."""
    rng = np.random.default_rng(0)
    return write_panoptic(
        folder, "train", [choose_segments(rng, draw_segments(rng, SIZE, 6)) for _ in range(2)]
    )


def kinds(data: DetectionData) -> set[str]:
    """Return the kinds of what was found."""
    return {finding.kind for finding in data.findings}


def claiming(content: bytes, side: int) -> bytes:
    """Return a PNG whose header claims to be of another size."""
    header = b"IHDR" + side.to_bytes(4) * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return an image file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def pngs(folder: Path, _: bool) -> str:
    """Read PNGs that are missing, of another size, not in colour, enormous, truncated, or none."""
    whole = (write(folder / "whole").with_suffix("") / "1.png").read_bytes()
    faults: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "a web page": b"<html>",
        "a GIF": encoded(np.zeros(SIZE, np.uint8), "GIF"),
        "a JPEG": encoded(np.zeros((*SIZE, 3), np.uint8), "JPEG"),
        "truncated": whole[: len(whole) // 2],
        "its header alone": whole[:33],
        "another size": encoded(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)),
        "gray": encoded(np.zeros(SIZE, np.uint8)),
        "gray with 16 bits": encoded(np.zeros(SIZE, np.uint16)),
        "65,536 x 65,536": claiming(whole, 2**16),
        "2,147,483,647 x 2,147,483,647": claiming(whole, 2**31 - 1),
    }
    for name, content in faults.items():
        png = (file := write(folder / name)).with_suffix("") / "1.png"
        png.unlink()
        if content is not None:
            png.write_bytes(content)
        read: list[DetectionData] = []
        memory = peak(lambda: read.append(read_split(file, None)))  # noqa: B023 - called at once
        (data,) = read
        require(kinds(data) == {"broken_panoptic"}, f"{name}: {kinds(data)}")
        require([record.id for record in data.images] == [2], f"{name}: the other image is gone")
        (finding,) = data.findings
        require("annotations[0], image 1: " in finding.places[0].what, f"{name}: its place is not reported")
        require(memory < MEMORY, f"{name}: {memory / 2**20:.0f} MiB")
    return f"all {len(faults)} are reported with their place, their images left out, the others used"


def large(folder: Path, _: bool) -> str:
    """Read the PNG of an image of 9,000 x 9,000 pixels, and one in which every pixel is another segment."""
    side = 9_000

    def grow(content: Document) -> None:
        del content["annotations"][1], content["images"][1]
        content["images"][0].update(width=side, height=side)
        content["annotations"][0]["segments_info"] = [{"id": 7, "category_id": 3}]

    file = change(write(folder / "large"), grow)
    blank = Image.new("RGB", (side, side))
    blank.paste((7, 0, 0), (0, 0, 100, 100))
    blank.save(file.with_suffix("") / "1.png", compress_level=1)
    del blank
    read: list[DetectionData] = []
    memory = peak(lambda: read.append(read_split(file, None)))
    require(read[0].images[0].areas.tolist() == [10_000], f"areas {read[0].images[0].areas}")
    require(memory < MEMORY, f"{memory / 2**20:.0f} MiB")

    file = write(folder / "many")
    count = SIZE[0] * SIZE[1]
    write_png(file.with_suffix("") / "1.png", np.arange(count).reshape(SIZE) * 21_001 % 2**24)
    found = {one.kind: one.count for one in read_split(file, None).findings}
    require(found.get("unlisted_segment", 0) >= count - 8, f"{found}")
    return f"81 million pixels in {memory / 2**20:.0f} MiB (without Pillow's); {count} segments not listed: reported"


def documents(folder: Path, _: bool) -> str:
    """Read JSON whose segments cannot be."""

    def segment(**values: object) -> Callable[[Document], object]:
        return lambda content: content["annotations"][0]["segments_info"][0].update(values)

    values: dict[str, tuple[object, ...]] = {
        "id": (0, -1, 2**24, 2**70, 0.5, "a", None, []),
        "category_id": (99, -1, None, {}, 2**70),
        "bbox": ([1, 2, 3], "a", 7, [[1]] * 4),
        "area": ("a", [], {}),
        "iscrowd": (7, [], "maybe"),
    }
    faults: dict[str, Callable[[Document], object]] = {
        **{f"{key} {one!r}": segment(**{key: one}) for key, many in values.items() for one in many},
        "segments that are an object": lambda content: content["annotations"][0].update(segments_info={}),
        "a segment that is a number": lambda content: content["annotations"][0].update(segments_info=[7]),
        "no file name": lambda content: content["annotations"][0].pop("file_name"),
        "no category": lambda content: content.update(categories=[]),
        "isthing of another type": lambda content: content["categories"][0].update(isthing="perhaps"),
        "a repeated id": lambda content: content["annotations"][0]["segments_info"].append(
            content["annotations"][0]["segments_info"][0]
        ),
        "an image annotated twice": lambda content: content["annotations"].append(content["annotations"][0]),
    }
    for name, spoil in faults.items():
        file = change(write(folder / str(len(list(folder.iterdir())))), spoil)
        try:
            data = read_split(file, None)
        except DataError as error:
            require("\n" not in str(error) and str(file) in str(error), f"{name}: {error}")
        else:
            require(any(one.severity == "error" for one in data.findings), f"{name}: {kinds(data)}")
    for name, text in {
        "a list": "[]",
        "nested": '{"images": ' + "[" * 100_000,
        "NaN": '{"segments_info": NaN}',
    }.items():
        file.write_text(f'{text} "segments_info"')
        try:
            read_split(file, None)
        except DataError as error:
            require("\n" not in str(error), f"{name}: {error}")
        else:
            require(False, f"{name}: is read")
    return f"all {len(faults) + 3} are errors of the library in one line, or of the data"


def outside(folder: Path, _: bool) -> str:
    """Read a dataset whose PNG is outside of its folder."""
    file = write(folder / "data")
    write_png(folder / "secret.png", np.zeros(SIZE, dtype=np.int64))
    names = (
        "../../../secret.png",
        str(folder / "secret.png"),
        "..\\..\\..\\secret.png",
        "a\0b.png",
        "x" * 5000,
    )
    for name in names:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["annotations"][0]["file_name"] = name
        data = read_split(write_json(file, content), None)
        require(kinds(data) == {"broken_panoptic"}, f"{name[:40]!r}: {kinds(data)}")
    return f"{len(names)} names: none is opened, their images are left out"


def changed_bytes(folder: Path, long: bool) -> str:
    """Change bytes of the JSON file and of a PNG."""
    random, file = Random(0), write(folder)
    png = file.with_suffix("") / "1.png"
    originals = {path: path.read_bytes() for path in (file, png)}
    read = 0
    for number in range(total := RANDOM[0] if long else RANDOM[1]):
        path = (file, png)[number % 2]
        content = bytearray(originals[path])
        for _ in range(random.randrange(1, 6)):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content)
        try:
            read_split(file, None)
            read += 1
        except DataError:
            pass
        path.write_bytes(originals[path])
    require(json.loads(file.read_text())["images"] != [], "the files are not restored")
    return f"{total:,} files: {read:,} are read, with what differs reported, the others are refused; no other error"


CASES = (
    Case(
        name="panoptic PNGs: missing, of another size, gray, enormous, truncated, none",
        required="reported with their place, their images left out, bounded memory",
        run=pngs,
    ),
    Case(
        name="panoptic PNGs of 81 million pixels, and of a segment for each pixel",
        required="bounded memory; reported",
        run=large,
    ),
    Case(
        name="panoptic JSON: ids beyond 24 bits, void, unknown classes, repeated, other types",
        required="refused with one line",
        run=documents,
    ),
    Case(name="panoptic JSON that names files outside of the dataset", required="not opened", run=outside),
    Case(name="random bytes in panoptic files", required="the library's own errors alone", run=changed_bytes),
)
