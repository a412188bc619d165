"""Image files of every kind, strange sizes, and more pixels than there is room for."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from dataset_writers import write_json
from PIL import Image

from querybox import Criterion, ImageBatch, validate
from querybox.data import DataSettings, read_dataset, read_image, read_pixels, train_loader
from querybox.data.findings import DataFinding
from querybox.data.scan import examine_images
from querybox.data.tiled import tiled
from querybox.errors import ImageError
from querybox.pixels import ORIENTATION
from torture.case import Case, require
from torture.data_sets import tiny_detector

UNDO = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""By EXIF orientation, how an upright image becomes the stored one (`PIL.Image.Transpose`)."""
HEIGHT, WIDTH = 24, 40


def findings(folder: Path) -> dict[str, DataFinding]:
    """Validate a dataset of one split, and return what was found by its kind."""
    (split,) = validate(folder / "data.json").splits.values()
    return {found.kind: found for found in split.findings}


def one_image(folder: Path, name: str, size: tuple[int, int], box: Sequence[float]) -> Path:
    """Write a COCO file about one image of (width, height)."""
    image = {"id": 1, "file_name": name, "width": size[0], "height": size[1]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1.0, "iscrowd": 0}
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    return write_json(folder / "data.json", content)


def modes(folder: Path, _: bool) -> str:
    """Read an image of every mode, and find the same picture in each."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    gray = (4 * columns + 2 * rows).astype(np.uint8)
    picture = Image.fromarray(np.repeat(gray[:, :, None], 3, 2))
    writers: dict[str, Callable[[Path], None]] = {
        mode: lambda path, mode=mode: picture.convert(mode).save(path)  # type: ignore[misc]
        for mode in ("L", "LA", "RGB", "RGBA", "1")
    }
    writers["P"] = lambda path: picture.quantize(256).save(path)
    writers["CMYK"] = lambda path: picture.convert("CMYK").save(path, format="JPEG", quality=95)
    writers["16-bit"] = lambda path: Image.fromarray(gray.astype(np.uint16) * 257).save(path, format="PNG")
    writers["wrong extension"] = lambda path: picture.save(path, format="BMP")
    for name, write in writers.items():
        path = folder / f"{name}.png"
        write(path)
        read = read_image(path)
        difference = np.abs(np.asarray(read).astype(int) - np.asarray(picture)).mean()
        most = 130 if name == "1" else 3
        require(
            read.mode == "RGB" and difference <= most, f"{name}: {read.mode}, {difference:.1f} levels off"
        )
    one_image(folder, "wrong extension.png", (WIDTH, HEIGHT), [0, 0, 9, 9])
    require("other_format" in findings(folder), "a wrong extension is not noted")
    return f"{len(writers)} kinds read as the same RGB, 16 bits rescaled"


def orientations(folder: Path, _long: bool) -> str:
    """Find a white object under its box, whether the box follows the stored or the turned pixels."""
    upright = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    upright[2:10, 4:16] = 255
    warned = 0
    for orientation, undo in UNDO.items():
        image = Image.fromarray(upright)
        stored = image if undo is None else image.transpose(Image.Transpose(undo))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored.save(folder / "a.png", exif=exif)
        for pixels in (upright, np.asarray(stored)):
            if pixels.shape == upright.shape and pixels is not upright:
                continue  # indistinguishable: taken for turned, with a warning
            rows, columns = np.nonzero(pixels[..., 0])
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            path = one_image(folder, "a.png", (pixels.shape[1], pixels.shape[0]), box)
            (record,) = read_dataset(path).images
            seen = read_pixels(record)[0].numpy()
            x0, y0, x1, y1 = record.boxes_xyxy[0].astype(int)
            inside, total = seen[y0:y1, x0:x1], int((seen > 0).sum())
            require(
                bool((inside > 0).all()) and inside.size == total, f"orientation {orientation}: box is off"
            )
        warned += "ambiguous_orientation" in findings(folder)
        one_image(folder, "a.png", (WIDTH, HEIGHT), [4, 2, 12, 8])
        same = np.array_equal(np.asarray(read_image(folder / "a.png")), upright)
        require(same, f"orientation {orientation}: prediction sees another picture than training")
    require(warned == 3, f"{warned} of 3 ambiguous orientations have a warning")
    return "8 orientations, boxes on stored and turned pixels: all on their objects; a warning for 3 ambiguous ones"


def animations(folder: Path, _: bool) -> str:
    """Read the first frame of a GIF and of a WebP."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "webp"):
        frames[0].save(folder / f"a.{suffix}", save_all=True, append_images=frames[1:])
        red, _green, blue = read_image(folder / f"a.{suffix}").getpixel((0, 0))  # type: ignore[misc]
        require(red > 200 > 50 > blue, f"{suffix}: not the first frame")
        one_image(folder, f"a.{suffix}", (WIDTH, HEIGHT), [0, 0, 9, 9])
        require(
            findings(folder).keys() == {"animation", "unused_category"}, f"{suffix}: {list(findings(folder))}"
        )
    return "first frame of GIF and WebP, each with a note"


def extremes(folder: Path, _: bool) -> str:
    """Train and predict on a single pixel and on a line of ten thousand."""
    detector = tiny_detector()
    detector.train()  # which keeps batch norms frozen
    sizes = [(1, 1), (1, 10_000), (10_000, 1)]
    for width, height in sizes:
        Image.new("L", (width, height), 90).save(folder / "a.png")
        data = read_dataset(one_image(folder, "a.png", (width, height), [0, 0, width, height]))
        loader = train_loader(data, DataSettings(image_size=32, workers=0), batch_size=1, seed=0)
        for epoch in range(4):
            loader.batch_sampler.set_epoch(epoch)
            (batch,) = loader
            images = ImageBatch.from_pixels(batch.pixels, batch.sizes, detector.preprocessing)
            losses = Criterion()(detector(images, batch.targets), batch.targets)
            finite = all(bool(loss.isfinite()) for loss in losses.values())
            require(
                finite and batch.pixels.numel() < 10**7, f"{width}x{height}: {batch.pixels.shape}, {losses}"
            )
        (found,) = detector.predict(folder / "a.png", threshold=0.0)
        finite = bool(found.boxes_xyxy.isfinite().all() and found.scores.isfinite().all())
        require(finite and len(found) > 0, f"{width}x{height}: {len(found)} detections")
    return f"{len(sizes)} sizes: losses and detections are finite"


def bombs(folder: Path, _: bool) -> str:
    """Refuse PNGs whose headers promise more pixels than the cap, without the memory for them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sides = [9_460, 30_000, 2**31 - 1]
    for side in sides:
        (folder / "a.png").write_bytes(png_header(side))
        try:
            read_image(folder / "a.png")
        except ImageError as error:
            require(error.kind == "too_large_image", f"{side}: {error}")
        else:
            require(False, f"{side}x{side} was read")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts KiB
    require(grown < 32, f"memory grew by {grown:.0f} MiB")
    return f"{len(sides)} refused from their headers, memory grew by {grown:.0f} MiB"


def large_tiffs(folder: Path, _: bool) -> str:
    """Read a TIFF above the cap in tiles; one that breaks off is found out before training."""
    side, settings = 9_472, DataSettings(tile=4096, overlap=0, image_size=64)
    black = np.zeros((512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(
        folder / "a.tif",
        (black for _ in range((side // 512 + 1) ** 2)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(512, 512),
        compression="deflate",
        photometric="rgb",
    )
    data = read_dataset(one_image(folder, "a.tif", (side, side), [side - 40, side - 40, 30, 30]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    require(not examine_images(data.images, in_parts=True), "the file was not read in parts")
    loader = train_loader(tiled(data, settings), settings, batch_size=3, seed=0)
    batches = list(loader)
    objects = sum(len(target.labels) for batch in batches for target in batch.targets)
    require(len(batches) == 3 and objects == 1, f"{len(batches)} batches with {objects} objects")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts KiB
    require(grown < 900, f"memory grew by {grown:.0f} MiB")
    content = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(content[: len(content) // 2])
    (found,) = examine_images(data.images, in_parts=True)
    require(found.kind == "broken_image", f"{found.kind}: {found.what}")
    (refused,) = examine_images(data.images)
    require(refused.kind == "too_large_image", f"{refused.kind}: {refused.what}")
    return f"{len(loader.dataset)} tiles read, memory grew by {grown:.0f} MiB; the broken one excluded"


def png_header(side: int) -> bytes:
    """Return a PNG of `side` x `side` pixels as it begins, with little behind."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ):
        chunks += (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )
    return chunks


CASES = [
    Case(
        name="grayscale, LA, P, RGBA, CMYK, 1-bit, 16-bit, wrong extension",
        required="documented RGB",
        run=modes,
    ),
    Case(
        name="EXIF orientation 1-8",
        required="boxes on their objects; a warning if ambiguous",
        run=orientations,
    ),
    Case(name="animated GIF and WebP", required="first frame, with a note", run=animations),
    Case(name="1x1, 1x10000 pixels", required="no crash, finite output", run=extremes),
    Case(name="more pixels than the cap", required="refused from the header, no memory", run=bombs),
    Case(
        name="TIFF above the cap, trained on in tiles; cut off",
        required="read in parts in bounded memory; excluded",
        run=large_tiffs,
    ),
]
