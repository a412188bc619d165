"""The data of the figures: one image of the test split, processed by the shipped detectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from querybox import Detector, ImageBatch, read_dataset
from querybox.data import DataSettings, ImageRecord
from querybox.data.loader import Batch, collate
from querybox.data.training_images import TrainingImages
from querybox.inspect import Comparison, Trace
from querybox.inspect.annotated import trace_record

EXAMPLE = Path(__file__).parent.parent / "examples" / "blood_cells"
WEIGHTS = EXAMPLE / "detr.safetensors"
DINO_WEIGHTS = EXAMPLE / "weights.safetensors"
IMAGE = "BloodImage_00293.jpg"
EPOCHS = 4  # number of augmented copies in the batch of stage 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """One image, and the outputs of plain DETR for it."""

    detector: Detector
    record: ImageRecord
    trace: Trace
    comparison: Comparison
    """The predictions of the trace compared with the annotated cells."""
    batch: Batch
    """Several copies of the image, augmented as for training."""
    padded: Trace
    """Trace of the copy with the most padding."""


@cache
def specimen() -> Specimen:
    """Load the model and trace the image."""
    torch.manual_seed(0)
    detector = Detector.load(WEIGHTS)
    data = read_dataset(EXAMPLE, "test")
    index = [record.path.name for record in data.images].index(IMAGE)
    trace = trace_record(detector, data.images[index], data)
    assert trace.comparison is not None
    settings = DataSettings(image_size=detector.preprocessing.short_side)
    varied = TrainingImages(data, settings, seed=0)
    batch = collate([varied[index, epoch] for epoch in range(EPOCHS)])
    assert isinstance(batch, Batch)
    least = int(batch.sizes.prod(1).argmin())
    one = slice(least, least + 1)
    padded = ImageBatch.from_pixels(batch.pixels[one], batch.sizes[one], detector.preprocessing)
    return Specimen(
        detector=detector,
        record=data.images[index],
        trace=trace,
        comparison=trace.comparison,
        batch=batch,
        padded=detector.trace(padded),
    )
