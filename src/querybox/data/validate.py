"""The validator: what is wrong with a dataset, all of it, before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from querybox.data.findings import Finding, Findings
from querybox.data.read import as_data_errors, find_splits
from querybox.data.records import DetectionData
from querybox.data.scan import Callback, examine_images, with_seen
from querybox.data.settings import MAX_CORRUPT
from querybox.data.splits import pick_split
from querybox.errors import ConfigError, DataError
from querybox.structures import Category

VALIDATION = "validation.json"
"""What a run's folder keeps of its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    """What was found in one split of a dataset."""

    source: Path
    """Its file or folder."""
    images: int
    """Images that can be used."""
    left_out: int
    """Images that cannot be read."""
    objects: int
    """Boxes that can be used, crowds left out."""
    categories: tuple[Category, ...]
    findings: tuple[Finding, ...]
    """One a kind, errors first."""

    @classmethod
    def of(cls, data: DetectionData) -> Self:
        """Report on data whose findings are complete."""
        return cls(
            source=data.source,
            images=len(data.images),
            left_out=sum(data.unreadable.values()),
            objects=data.num_objects,
            categories=data.categories,
            findings=data.findings,
        )

    @property
    def usable(self) -> bool:
        """Whether one can train and evaluate on it: no finding is an error."""
        return all(found.severity != "error" for found in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": str(self.source),
            "usable": self.usable,
            "images": self.images,
            "left_out": self.left_out,
            "objects": self.objects,
            "categories": [{"id": one.id, "name": one.name} for one in self.categories],
            "findings": [found.to_json() for found in self.findings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found in a dataset."""

    source: Path
    splits: Mapping[str, SplitReport]
    """By their names."""

    @property
    def usable(self) -> bool:
        """Whether one can train and evaluate on every split."""
        return all(split.usable for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        splits = {name: split.to_json() for name, split in self.splits.items()}
        return {"source": str(self.source), "usable": self.usable, "splits": splits}


def validate(
    path: str | Path,
    split: str | None = None,
    *,
    max_corrupt: float = MAX_CORRUPT,
    callback: Callback = lambda _: None,
) -> Report:
    """Look at a whole dataset, its annotations and every image, once.

    Nothing is changed, neither the files nor anything else. What is found is what training does about it: a run looks
    in the same way before its first step.

    Args:
        path: A dataset: COCO, Pascal VOC or YOLO, as `read_dataset` takes it.
        split: The split to look at; all of them where it is None.
        max_corrupt: Share of the images (0-1) that may be unreadable; with more, a split is not usable.
        callback: Called with each image once it has been checked, e.g. to show progress.

    Raises:
        ConfigError: `max_corrupt` is no share.
        DataError: There is no dataset at `path`, or no such split.
    """
    if not 0 <= max_corrupt <= 1:
        raise ConfigError(f"validate got max_corrupt={max_corrupt:g}; expected a share of the images, 0 to 1")
    with as_data_errors(Path(path)):
        readers = find_splits(Path(path))
        if split is not None:
            readers = {split: pick_split(readers, split, Path(path))}
    splits = {}
    for name, read in readers.items():
        try:
            with as_data_errors(Path(path)):
                data = read()
        except DataError as error:
            data = unreadable_data(Path(path), str(error))
        else:
            data = with_seen(data, examine_images(data.images, callback))
        splits[name] = SplitReport.of(judged(data, max_corrupt))
    return Report(source=Path(path), splits=splits)


def unreadable_data(source: Path, reason: str) -> DetectionData:
    """Return what is left of data that cannot be read at all: the finding that they cannot."""
    findings = Findings(source)
    findings.add("malformed", reason)
    return DetectionData(source=source, categories=(), images=(), findings=findings.all())


def judged(data: DetectionData, max_corrupt: float, queries: int | None = None) -> DetectionData:
    """Return `data`, whose images were looked at, with the findings that it takes all of them to see.

    Args:
        data: The dataset; images that cannot be read are not among its images any more.
        max_corrupt: Share of the images (0-1) that may be unreadable.
        queries: Of the model; None = not known.
    """
    findings = Findings(data.source, known=data.findings)
    left_out = sum(data.unreadable.values())
    listed = len(data.images) + left_out
    if left_out > max_corrupt * listed:
        what = f"{left_out} of {listed}, more than data.max_corrupt = {max_corrupt:g}"
        findings.add("too_many_unreadable", what)
    if not data.num_objects and not any(found.kind == "malformed" for found in data.findings):
        findings.add("no_objects", f"{len(data.images)} images")
    for record in data.images:
        about: dict[str, Any] = {"image_id": record.id, "path": record.path}
        crowds, objects = int(record.crowd.sum()), int((~record.crowd).sum())
        if crowds:
            findings.add("crowd", f"image {record.id}: {crowds}", count=crowds, **about)
        if not len(record.labels):
            findings.add("negative", f"image {record.id}", **about)
        if queries is not None and objects > queries:
            what = f"image {record.id}: {objects} objects, {queries} queries"
            findings.add("too_many_objects", what, count=objects - queries, **about)
    return replace(data, findings=findings.all())
