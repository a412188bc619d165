"""Time and memory of reading large datasets: `python -m benchmarks.reading --images 100000`.

A dataset of one small JPEG, linked under as many names, is written in each format and read in a new process.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

STATUS = Path("/proc/self/status")
SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "coco_sample"
SIDES = (64, 48)
BOXES = [(x, y, x + 9, y + 7) for x in (1, 20, 40) for y in (2, 30)]
"""Corners of the objects of every image, in pixels."""


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--read", type=Path, help="read this dataset and print the result as JSON")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    for name, write in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), options.images)
            command = [sys.executable, "-m", "benchmarks.reading", "--read", folder]
            result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        kept, peak = (1024 * result[key] / options.images for key in ("kept", "peak"))
        print(
            f"{name:12} {result['images']:,} images: recognised in {result['recognised']:.1f} s, read in "
            f"{result['read']:.1f} s, {result['cpu']:.1f} s of CPU time; bytes an image: {kept:.0f} kept, "
            f"{peak:.0f} at the peak"
        )


def read(folder: Path) -> dict[str, float]:
    """Read a dataset; return seconds and the growth of the resident memory in KiB."""
    from querybox.data.read import find_splits, read_dataset
    from querybox.fast.memory import release_freed_memory

    read_dataset(SAMPLE, "train")  # imports what is needed
    gc.collect()
    before = memory("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    (reader,) = find_splits(folder).values()
    recognised = time.perf_counter()
    data = reader()
    end, end_cpu = time.perf_counter(), time.process_time()
    del reader  # which has what all splits have in common
    gc.collect()
    release_freed_memory()  # as training does
    return {
        "images": len(data.images),
        "recognised": recognised - start,
        "read": end - recognised,
        "cpu": end_cpu - start_cpu,
        "kept": memory("VmRSS") - before,
        "peak": memory("VmHWM") - before,
    }


def memory(key: str) -> int:
    """Return the resident memory of this process in KiB."""
    return int(
        next(
            line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key)
        ).split()[1]
    )


def write_images(folder: Path, count: int) -> list[str]:
    """Write images; return their names without suffix."""
    folder.mkdir(parents=True)
    Image.new("RGB", SIDES).save(folder / "source.jpg")
    names = [f"{number:012d}" for number in range(count)]
    for number, name in enumerate(names):
        if number % 50_000 == 0:  # file systems limit the links to a file
            (folder / "source.jpg").rename(folder / "last.jpg")
            (folder / "source.jpg").write_bytes((folder / "last.jpg").read_bytes())
            (folder / "last.jpg").unlink()
        os.link(folder / "source.jpg", folder / f"{name}.jpg")
    (folder / "source.jpg").unlink()
    return names


def write_coco(root: Path, count: int) -> None:
    """Write a COCO dataset."""
    names = write_images(root / "train2017", count)
    images = [
        {"id": number, "file_name": f"{name}.jpg", "width": SIDES[0], "height": SIDES[1]}
        for number, name in enumerate(names)
    ]
    annotations = [
        {"id": number, "image_id": number // len(BOXES), "category_id": 1, "area": 63.0, "iscrowd": 0}
        | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for number, box in enumerate(BOXES * count)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")


def write_voc(root: Path, count: int) -> None:
    """Write a Pascal VOC dataset."""
    (root / "Annotations").mkdir()
    tags = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        "<object><name>cat</name><bndbox>"
        + "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(tags, box, strict=True))
        + "</bndbox></object>"
        for box in BOXES
    )
    size = f"<size><width>{SIDES[0]}</width><height>{SIDES[1]}</height></size>"
    for name in write_images(root / "JPEGImages", count):
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def write_yolo(root: Path, count: int) -> None:
    """Write a YOLO dataset."""
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("cat\n", encoding="utf-8")
    lines = [
        f"0 {(x0 + x1) / 2 / SIDES[0]} {(y0 + y1) / 2 / SIDES[1]} {(x1 - x0) / SIDES[0]} {(y1 - y0) / SIDES[1]}\n"
        for x0, y0, x1, y1 in BOXES
    ]
    for name in write_images(root / "images", count):
        (root / "labels" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def write_webdataset(root: Path, count: int) -> None:
    """Write shards of 1,000 images."""
    Image.new("RGB", SIDES).save(root / "source.jpg")
    image = (root / "source.jpg").read_bytes()
    (root / "source.jpg").unlink()
    objects = [
        {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "category": "cat"} for box in BOXES
    ]
    annotation = json.dumps({"annotations": objects, "width": SIDES[0], "height": SIDES[1]}).encode()
    for start in range(0, count, 1000):
        with tarfile.TarFile(root / f"train-{start // 1000:06d}.tar", "w") as tar:
            for number in range(start, min(start + 1000, count)):
                for suffix, content in ((".jpg", image), (".json", annotation)):
                    member = tarfile.TarInfo(f"{number:012d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_indexed(root: Path, count: int) -> None:
    """Write shards and their indices."""
    from querybox.data.read import read_dataset

    write_webdataset(root, count)
    read_dataset(root)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "COCO": write_coco,
    "Pascal VOC": write_voc,
    "YOLO": write_yolo,
    "WebDataset": write_webdataset,
    "indexed": write_indexed,
}

if __name__ == "__main__":
    main()
