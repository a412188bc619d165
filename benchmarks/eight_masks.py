"""Overfit the masks of eight images: ``python -m benchmarks.eight_masks``.

Fine-tunes the shipped detector of blood cells, with a new mask head, on eight images of nuclei, and evaluates it on the
same images. Fails unless the AP50 of masks is above 0.9.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.setup import EXAMPLE
from querybox import Detector, evaluate, train
from querybox.data import read_dataset
from querybox.data.write import write_split

IMAGES, EPOCHS = 8, 60
GOAL = 0.9


def main() -> int:
    """Train, evaluate and print the metrics; return 1 if the goal is missed."""
    data = read_dataset(EXAMPLE / "nuclei", "train")
    start = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder:
        images, run = Path(folder) / "eight", Path(folder) / "run"
        write_split(data.only({record.id for record in data.images[:IMAGES]}), images)
        overrides: dict[str, Any] = {
            "data.train": str(images),
            "data.val": str(images),
            "weights": str(EXAMPLE / "weights.safetensors"),
            "output": str(run),
            "image_size": 320,
            "scales": [320],
            "crop": 0.0,
            "vertical_flip": 0.0,
            "color_jitter": 0.0,
            "epochs": EPOCHS,
            "evaluate_every": EPOCHS,
            "batch_size": 4,
            "max_time": None,
        }
        train(EXAMPLE / "nuclei" / "run.yaml", **overrides)
        wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
        metrics = evaluate(Detector.load(run), images).masks
    assert metrics is not None
    print(f"{IMAGES} images, {EPOCHS} epochs, {wall:.0f} s ({processor:.0f} s of CPU time)")
    print("masks: " + ", ".join(f"{name} {metrics.metrics[name]:.3f}" for name in ("AP", "AP50", "AP75")))
    return int(metrics.metrics["AP50"] <= GOAL)


if __name__ == "__main__":
    sys.exit(main())
