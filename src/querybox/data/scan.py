"""Check every image of a dataset once, so that unreadable ones are excluded beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from querybox.data.deep import DeepValues
from querybox.data.findings import UNREADABLE, FindingCollector
from querybox.data.image import Examination, examine_image
from querybox.data.loader import preload_for_workers, start_worker, worker_errors
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.shards import ImageFile
from querybox.data.tiff import examine_tiff, is_read_in_parts
from querybox.errors import ImageError, StorageError
from querybox.machine import available_cpus, refuse_import_by_child
from querybox.structures import PixelRange

FEW_IMAGES = 1000
"""Fewer images than this are decoded before worker processes would have started."""
BATCH_SIZE = 32
CURE = "Free memory, and repeat the command"
"""What to do if a process that checks images has exited."""

Callback = Callable[[ImageRecord], object]
"""Called with each image once it has been checked."""


class Observation(NamedTuple):
    """An occurrence of a finding in an image file."""

    image_id: int
    kind: str
    what: str
    deep: DeepValues | None = None
    """The pixel values, for the kind `deep_image`."""


class _Images(Dataset[tuple[ImageRecord, list[Observation] | StorageError]]):
    """Each image's record and observations, or the error of its storage, which says nothing about the image."""

    def __init__(
        self, images: Sequence[ImageRecord], pixel_range: PixelRange | None, *, in_parts: bool
    ) -> None:
        self.images = images
        self.pixel_range = pixel_range
        self.in_parts = in_parts

    def __getitem__(self, index: int) -> tuple[ImageRecord, list[Observation] | StorageError]:
        record = self.images[index]
        size = (record.height, record.width) if record.size_stated else None
        try:
            found = self.examine(record.file, size)
        except ImageError as error:
            found = Examination([(error.kind, str(error))])
        except StorageError as error:
            return record, error
        return record, [
            Observation(record.id, kind, what, found.deep if kind == "deep_image" else None)
            for kind, what in found.findings
        ]

    def __len__(self) -> int:
        return len(self.images)

    def examine(self, path: ImageFile, size: tuple[int, int] | None) -> Examination:
        try:
            return examine_image(path, size, pixel_range=self.pixel_range)
        except ImageError as error:
            if not (self.in_parts and is_read_in_parts(path, error)):
                raise
        return examine_tiff(path, size, pixel_range=self.pixel_range)


def examine_images(
    images: Sequence[ImageRecord],
    callback: Callback = lambda _: None,
    *,
    pixel_range: PixelRange | None = None,
    in_parts: bool = False,
) -> list[Observation]:
    """Decode every image, in several processes if there are many, and return the observations in order of `images`.

    Args:
        images: The images.
        callback: Called with each image once it has been checked.
        pixel_range: See `Preprocessing.pixel_range`; with a range, images of float and 32-bit pixels can be read.
        in_parts: Whether TIFFs that are too large to be decoded as a whole can be used, because they are read in parts.

    Raises:
        ConfigError: A process that checks images imports the script that called this, and so called it again.
        StorageError: The storage of an image cannot be reached, or refuses.
        WorkerError: A process that checks images exited.
    """
    refuse_import_by_child("checking images")
    preload_for_workers()
    workers = 0 if len(images) < FEW_IMAGES else available_cpus()
    batches = DataLoader(
        _Images(images, pixel_range, in_parts=in_parts),
        batch_size=BATCH_SIZE,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # so that the global generator is left alone
    )
    observations: list[Observation] = []
    with worker_errors(CURE):
        for record, notes in chain.from_iterable(batches):
            if isinstance(notes, StorageError):
                raise notes
            observations += notes
            callback(record)
    return observations


def with_observations(data: DetectionData, observations: Iterable[Observation]) -> DetectionData:
    """Return `data` with the observations added to its findings, and without the images that cannot be read."""
    records = {record.id: record for record in data.images}
    findings = FindingCollector(data.source, known=data.findings)
    unreadable = set()
    for image_id, kind, what, _ in observations:
        findings.add(kind, what, image_id=image_id, path=records[image_id].file)
        if kind in UNREADABLE:
            unreadable.add(image_id)
    return replace(data.only(records.keys() - unreadable), findings=findings.by_kind())
