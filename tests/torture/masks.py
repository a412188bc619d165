"""Masks that cannot be: in COCO files, and in the bitmaps and brushes of annotation tools."""

from __future__ import annotations

import base64
import io
import math
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from querybox.data import DetectionData, read_dataset
from querybox.data.bitmaps import read_bitmap
from querybox.data.formats.coco_mask import read_mask
from querybox.data.formats.label_studio_brush import read_brush
from querybox.errors import DataError
from querybox.masks import Rle, rasterised, resized
from querybox.polygons import Polygons
from torture.case import Case, require
from torture.data_sets import Document, change, write_coco

HEIGHT, WIDTH = 32, 48
MEMORY = 2**28
"""Bytes that reading a small file with a mask of an enormous image may take."""
RANDOM = 20_000, 300
"""Random byte strings, in the long and in the short form."""


def read_with(folder: Path, segmentation: object) -> DetectionData:
    """Read a dataset of one object with this value of `segmentation`."""

    def put(content: Document) -> None:
        content["annotations"][0]["segmentation"] = segmentation

    return read_dataset(change(write_coco(folder, 1, (WIDTH, HEIGHT)), put))


def refused(action: Callable[[], object]) -> bool:
    """Return whether the library refuses something, as an error of the data in one line."""
    try:
        action()
    except DataError as error:
        return "\n" not in str(error)
    return False


def peak(action: Callable[[], object]) -> int:
    """Return the bytes that something takes at most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run_lengths(folder: Path, _: bool) -> str:
    """Read run lengths that no mask has."""
    whole, size = HEIGHT * WIDTH, [HEIGHT, WIDTH]
    faults: list[object] = [
        *({"size": size, "counts": counts} for counts in ("", "ab c", "\x00\x01", "~~~", "oooooooooo", "4é")),
        *(
            {"size": size, "counts": counts}
            for counts in ([], [whole - 1], [whole + 1], [-1, whole + 1], [2**62] * 4)
        ),
        *(
            {"size": size, "counts": counts}
            for counts in ([math.nan], [0.5, whole - 0.5], ["1"], None, {"0": whole})
        ),
        *(
            {"size": other, "counts": [whole]}
            for other in ([WIDTH, HEIGHT], [0, 0], [-1, 1], [HEIGHT], [2**31, 2**31])
        ),
        {"size": size},
        "mask",
        7,
    ]
    for number, fault in enumerate(faults):
        data = read_with(folder / str(number), fault)
        kinds = [finding.kind for finding in data.findings]
        require(kinds == ["malformed_mask"], f"{fault}: {kinds}")
        require(
            "annotations[0] (id 1)" in data.findings[0].places[0].what, f"{fault}: its place is not reported"
        )
        (record,) = data.images
        require(record.masks is None and len(record.labels) == 1, f"{fault}: masks {record.masks}")
    return f"all {len(faults)} are reported with their place and dropped, their boxes kept"


def polygons(folder: Path, _: bool) -> str:
    """Read polygons that are long, cross themselves, are outside, or no polygons."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    star = np.stack([24 + 15 * np.cos(angles * 7), 16 + 15 * np.sin(angles * 3)], 1).ravel()
    scribble = rng.uniform(-20, 60, 20_000)
    drawn = {
        "10,000 vertices": star,
        "10,000 random ones": scribble,
        "crossing": np.array([8, 6, 28, 22, 28, 6, 8, 22.0]),
        "outside": np.array([100, 100, 120, 100, 120, 130.0]),
        "far": np.array([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]),
        "empty": np.array([3, 3, 3, 3, 3, 3.0]),
    }
    for name, polygon in drawn.items():
        (record,) = read_with(folder / name, [polygon.tolist()]).images
        require(record.masks is not None and record.masks[0] is not None, f"{name}: no mask")
        assert record.masks is not None
        assert record.masks[0] is not None
        ours = rasterised(record.masks[0], (HEIGHT, WIDTH)).mask()
        if name == "far":  # pycocotools overflows
            require(bool(ours[2:, :].any()), f"{name}: nothing inside")
            continue
        (coded,) = coco_mask.frPyObjects([polygon.tolist()], HEIGHT, WIDTH)
        theirs = Rle((HEIGHT, WIDTH), coded["counts"]).mask()
        require(bool((ours == theirs).all()), f"{name}: other pixels than those of pycocotools")
    malformed: tuple[object, ...] = (
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, math.nan]],
        [[1, 2, 3, 4, 5, math.inf]],
        [["a"] * 6],
        [[1] * 7],
    )
    for number, fault in enumerate(malformed):
        data = read_with(folder / f"malformed {number}", fault)
        kinds = [finding.kind for finding in data.findings]
        require(kinds == ["malformed_mask"] and data.images[0].masks is None, f"{fault}: {kinds}")
    return f"pixels of pycocotools for {len(drawn) - 1}; {len(malformed)} that are none reported and dropped"


def enormous(folder: Path, _: bool) -> str:
    """Read masks of images of 30,000 x 30,000 pixels."""
    side = 30_000
    corner = [[0, 0, 40, 0, 40, 40, 0, 40]]
    larger = {"size": [70_000, 70_000], "counts": [0, 70_000**2]}
    require(refused(lambda: read_mask(larger)), "run lengths of 4.9 billion pixels are read")
    half = {"size": [side, side], "counts": [0, side * side // 2, side * side // 2]}
    lengths = read_mask(half)
    assert isinstance(lengths, Rle)
    memory = peak(lambda: resized(lengths, (side, side), (48, 64)))
    require(memory < MEMORY, f"run lengths: {memory / 2**20:.0f} MiB")
    shown = resized(lengths, (side, side), (48, 64))
    require(bool(shown[:, :32].all()) and not shown[:, 32:].any(), "run lengths: other pixels")

    def grow(content: Document) -> None:
        content["images"][0].update(width=side, height=side)
        content["annotations"][0]["segmentation"] = corner

    path = change(write_coco(folder, 1), grow)
    region = Polygons.of(corner)
    memory = peak(lambda: (read_dataset(path), Rle.of_polygons(region, (side, side)).area))
    require(memory < MEMORY, f"{memory / 2**20:.0f} MiB")
    require(Rle.of_polygons(region, (side, side)).area == 1600, "other pixels")
    return f"run lengths are read and resized, a polygon read and rasterised in less than {MEMORY / 2**20:.0f} MiB"


def bitmaps(_: Path, __: bool) -> str:
    """Read bitmaps and brushes that claim to be enormous."""
    stream = io.BytesIO()
    Image.new("1", (1, 1)).save(stream, "PNG")
    small = stream.getvalue()
    header = b"IHDR" + (2**16).to_bytes(4) * 2 + small[24:29]
    bomb = small[:12] + header + zlib.crc32(header).to_bytes(4) + small[33:]
    faults: list[Callable[[], object]] = [
        lambda: read_bitmap(bomb),
        lambda: read_bitmap(b""),
        lambda: read_bitmap(small[:40]),
        lambda: read_bitmap(base64.b64decode("R0lGODlhAQABAAAAACw=")),  # a GIF
        lambda: read_brush([255] * 64, (HEIGHT, WIDTH)),
        lambda: read_brush([*(4 * HEIGHT * WIDTH).to_bytes(4), *[0] * 64], (HEIGHT, WIDTH)),
        lambda: read_brush([*(2**32 - 4).to_bytes(4), *[255] * 64], (2**15, 2**15)),
    ]
    for number, fault in enumerate(faults):
        reported: list[bool] = []
        memory = peak(lambda: reported.append(refused(fault)))  # noqa: B023 - called at once
        require(reported == [True], f"{number}: is not refused")
        require(memory < MEMORY, f"{number}: {memory / 2**20:.0f} MiB")
    return f"all {len(faults)} are refused with one line, in less than {MEMORY / 2**20:.0f} MiB each"


def random_bytes(_: Path, long: bool) -> str:
    """Read random bytes as run lengths and as brushes."""
    random, read = Random(0), 0
    total = RANDOM[0] if long else RANDOM[1]
    for _number in range(total):
        text = "".join(
            chr(random.choice((random.randrange(48, 112), random.randrange(256)))) for _ in range(12)
        )
        packed = [*(4 * 6).to_bytes(4), *random.randbytes(random.randrange(40))]
        attempts: tuple[Callable[[], object], ...] = (
            partial(read_text, text),
            partial(read_brush, packed, (2, 3)),
        )
        for attempt in attempts:
            try:
                attempt()
                read += 1
            except DataError:
                pass
    return f"{2 * total:,} strings: {read} are masks, the others are refused; no other error"


def read_text(text: str) -> object:
    """Decode compressed run lengths."""
    region = read_mask({"size": [9, 9], "counts": text})
    assert region is not None
    return rasterised(region, (9, 9)).mask()


CASES = (
    Case(
        name="broken run lengths: odd characters, wrong totals, negative, huge, of another size",
        required="reported with their place and dropped, boxes kept",
        run=run_lengths,
    ),
    Case(
        name="polygons: 10,000 vertices, crossing, outside, empty, NaN, two points",
        required="pixels of pycocotools, or reported and dropped",
        run=polygons,
    ),
    Case(name="masks in images of 30,000 x 30,000", required="bounded memory", run=enormous),
    Case(
        name="bitmaps and brushes that claim to be enormous", required="refused, bounded memory", run=bitmaps
    ),
    Case(name="random bytes as masks", required="the library's own errors alone", run=random_bytes),
)
