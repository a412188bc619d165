"""CPU time of each augmentation of docs/guides/augmentation.md, for an image: ``python -m benchmarks.augmentation``.

The kinds take turns, and the least of several passes is printed, so that a busy machine changes little.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.setup import EXAMPLE
from querybox.data import DataSettings, read_dataset, train_loader

KINDS: dict[str, dict[str, Any]] = {
    "resizing alone": {},
    "color_jitter": {"color_jitter": 0.2},
    "photometric": {"photometric": 0.5},
    "zoom_out": {"zoom_out": 0.5},
    "iou_crop": {"iou_crop": 0.8},
    "multi_scale": {"multi_scale": 3},
    "mosaic": {"mosaic": 0.5},
    "mixup": {"mixup": 0.5},
    "all": {
        "photometric": 0.5,
        "zoom_out": 0.5,
        "iou_crop": 0.8,
        "multi_scale": 3,
        "mosaic": 0.5,
        "mixup": 0.5,
    },
    "DETR's default": {"stretch": False, "crop": 0.5, "horizontal_flip": 0.5},
}
"""Settings by name, on top of `PLAIN`."""
PLAIN = DataSettings(image_size=640, stretch=True, crop=0, horizontal_flip=0, workers=0)
IMAGES, BATCH, PASSES = 32, 8, 5


def main() -> None:
    """Print a table of the CPU milliseconds of each kind, without and with the images in memory."""
    torch.set_num_threads(1)
    data = read_dataset(EXAMPLE, "train")
    data = data.only({image.id for image in data.images[:IMAGES]})
    print("| | read from files | with `data.cache` |\n|---|---|---|")
    least: dict[tuple[str, bool], float] = {}
    for _ in range(PASSES):
        for name, settings in KINDS.items():
            for cache in (False, True):
                values = PLAIN.replace(cache=cache, **settings)
                loader = train_loader(data, values, batch_size=BATCH, seed=0)
                loader.batch_sampler.set_epoch(0)
                started = time.process_time()
                images = sum(len(batch.image_ids) for batch in loader)
                spent = 1000 * (time.process_time() - started) / images
                least[name, cache] = min(spent, least.get((name, cache), spent))
    for name in KINDS:
        print(f"| {name} | {least[name, False]:.1f} ms | {least[name, True]:.1f} ms |")


if __name__ == "__main__":
    main()
