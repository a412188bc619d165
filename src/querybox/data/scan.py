"""Looking at every image of a dataset once: what cannot be read is left out before anything begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from querybox.data.findings import UNREADABLE, Findings
from querybox.data.image import examine_image
from querybox.data.loader import start_worker
from querybox.data.records import DetectionData, ImageRecord
from querybox.errors import ImageError

FEW = 1000
"""So many images are decoded before helping processes would have started."""
PORTION = 32

Callback = Callable[[ImageRecord], object]
"""Is called with each image that was looked at."""


class Seen(NamedTuple):
    """Something that was seen of one image."""

    image_id: int
    kind: str
    what: str


class _Images(Dataset[tuple[ImageRecord, list[Seen]]]):
    """What there is to see of every image."""

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[ImageRecord, list[Seen]]:
        record = self.images[index]
        size = (record.height, record.width) if record.size_stated else None
        try:
            notes = examine_image(record.path, size)
        except ImageError as error:
            notes = [(error.kind, str(error))]
        return record, [Seen(record.id, kind, what) for kind, what in notes]

    def __len__(self) -> int:
        return len(self.images)


def examine_images(images: Sequence[ImageRecord], callback: Callback = lambda _: None) -> list[Seen]:
    """Decode every image, in several processes where there are many; the order is that of `images`."""
    workers = 0 if len(images) < FEW else os.cpu_count() or 1
    portions = DataLoader(
        _Images(images),
        batch_size=PORTION,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # of its own, so that nothing is drawn from the global one
    )
    seen: list[Seen] = []
    for portion in portions:
        for record, notes in portion:
            seen += notes
            callback(record)
    return seen


def with_seen(data: DetectionData, seen: Iterable[Seen]) -> DetectionData:
    """Return `data` with what was seen among its findings, and without the images that cannot be read."""
    records = {record.id: record for record in data.images}
    findings = Findings(data.source, known=data.findings)
    unreadable = set()
    for one in seen:
        findings.add(one.kind, one.what, image_id=one.image_id, path=records[one.image_id].path)
        if one.kind in UNREADABLE:
            unreadable.add(one.image_id)
    return replace(data.only(records.keys() - unreadable), findings=findings.all())
