"""Training on tiles against training on large images that are shrunk: AP on mosaics of photos of blood cells.

``python -m benchmarks.tile_training`` prints the table of ``docs/guides/tiles.md``. The training photos are put
together as in `benchmarks.tiles`, 2 x 2 to mosaics of 1280 x 960 pixels, and so are the validation photos. The small
model is trained twice from ImageNet weights of its backbone, with the same number of updates of four images at the same
size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.setup import EXAMPLE
from benchmarks.tiles import mosaics
from querybox.data import DetectionData, read_dataset
from querybox.evaluation.evaluate import evaluate
from querybox.files import write_text
from querybox.text import to_json
from querybox.training import RunSettings, train

TILE: dict[str, Any] = {"tile": 480, "overlap": 0.2}
IMAGE_SIZE = 256
RUNS: dict[str, tuple[dict[str, Any], int]] = {"images": ({}, 13), "tiles": (TILE, 1)}
"""Settings of `data`, and epochs: about 160 updates each."""


def write(data: DetectionData, folder: Path) -> Path:
    """Write mosaics of the photos as a COCO dataset; return its file."""
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, mosaic in enumerate(mosaics(data), 1):
        name = f"{number}.png"
        Image.fromarray(mosaic.pixels.permute(1, 2, 0).numpy()).save(folder / name)
        record = mosaic.record
        images.append({"id": number, "file_name": name, "width": record.width, "height": record.height})
        for (x0, y0, x1, y1), label in zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": data.categories[label].id}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **box})
    categories = [{"id": each.id, "name": each.name} for each in data.categories]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "mosaics.json", to_json(content))
    return folder / "mosaics.json"


def settings(training: Path, output: Path, data: Mapping[str, Any], epochs: int) -> RunSettings:
    """Return the settings of a run."""
    return RunSettings.parse(
        {
            "recipe": "dino_small",
            "data": {"train": str(training), "val": "none", "image_size": IMAGE_SIZE, "workers": 0, **data},
            "train": {"epochs": epochs, "batch_size": 4, "ema": 0.99, "seed": 0},
            "output": str(output),
        }
    )


def main() -> None:
    """Train, evaluate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    print("| trained on | evaluated in | AP | AP50 | APs |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training = write(read_dataset(EXAMPLE, "train"), folder / "train")
        validation = read_dataset(write(read_dataset(EXAMPLE, "val"), folder / "val"))
        for name, (data, epochs) in RUNS.items():
            detector = train(settings(training, folder / name, data, epochs)).detector
            for way, tiles in (("images", {}), ("tiles", TILE)):
                metrics = evaluate(detector, validation, **tiles).metrics
                numbers = " | ".join(f"{metrics[metric]:.3f}" for metric in ("AP", "AP50", "APs"))
                print(f"| {name} | {way} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
