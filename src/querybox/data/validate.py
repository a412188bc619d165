"""Dataset validation: find all problems of a dataset before it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Self

from querybox.arguments import require_dataset, require_number, require_type
from querybox.data.findings import DataFinding, FindingCollector
from querybox.data.plausibility import with_shared_images
from querybox.data.read import as_data_errors, chosen_splits, shown
from querybox.data.records import DetectionData
from querybox.data.scan import Callback, examine_images, with_observations
from querybox.data.settings import MAX_CORRUPT, DataSettings
from querybox.data.shards import ImageFile
from querybox.data.tiled import TileRecord, tiled
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import counted

VALIDATION = "validation.json"
"""Name of the file with the validation results in a run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport:
    """The validation result of one split of a dataset."""

    source: Path | str
    """File or folder of the split, or its URL without credentials."""
    images: int
    """Number of usable images."""
    excluded: int
    """Number of images that cannot be read."""
    objects: int
    """Number of valid boxes, without crowd regions."""
    categories: tuple[Category, ...] = field(repr=False)
    findings: tuple[DataFinding, ...]
    """One finding per kind, errors first."""

    @classmethod
    def of(cls, data: DetectionData) -> Self:
        """Create the report of a dataset whose images have been checked."""
        return cls(
            source=data.source,
            images=len(data.images),
            excluded=sum(data.unreadable.values()),
            objects=data.num_objects,
            categories=data.categories,
            findings=data.findings,
        )

    @property
    def usable(self) -> bool:
        """Whether the split can be used, i.e. no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": str(self.source),
            "usable": self.usable,
            "images": self.images,
            "left_out": self.excluded,
            "objects": self.objects,
            "categories": [{"id": one.id, "name": one.name} for one in self.categories],
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The validation result of a dataset."""

    source: Path | str
    """The file or folder, or the URL without credentials."""
    splits: Mapping[str, SplitReport]
    """The result of each split, by its name."""

    @property
    def usable(self) -> bool:
        """Whether every split can be used."""
        return all(split.usable for split in self.splits.values())

    def verdict(self) -> str:
        """Return in words whether the dataset, or which of its splits, can be used."""
        if self.usable:
            return "can be used"
        usable = [name for name, split in self.splits.items() if split.usable]
        if not usable:
            return "cannot be used: there are errors"
        others = [name for name in self.splits if name not in usable]
        return f"can be used in part ({', '.join(usable)}); there are errors in {', '.join(others)}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        splits = {name: split.to_json() for name, split in self.splits.items()}
        return {"source": str(self.source), "usable": self.usable, "splits": splits}


def validate(
    path: str | Path,
    split: str | None = None,
    *,
    max_corrupt: float = MAX_CORRUPT,
    allow_network: bool = False,
    callback: Callback = lambda _: None,
) -> Report:
    """Check the annotations and every image file of a dataset.

    No file is changed. A training run performs the same checks before its first step.

    Args:
        path: A dataset, as for `read_dataset`.
        split: The split to check; all splits if None.
        max_corrupt: Fraction of the images (0-1) that may be unreadable; a split with more is not usable.
        allow_network: Whether URLs of shards are opened.
        callback: Called with each image once it has been checked, e.g. to show progress.

    Raises:
        ConfigError: `max_corrupt` is not within 0-1; or there are URLs, without `allow_network` or malformed.
        DataError: There is no dataset at `path`, or no such split.
    """
    path = require_dataset("validate", path)
    require_type("validate", split, (str, NoneType), "the name of a split")
    require_number("validate", "max_corrupt", max_corrupt, 0, 1)
    with as_data_errors(path):
        readers = chosen_splits(path, split, allow_network=allow_network)
    splits: dict[str, SplitReport] = {}
    images: dict[str, set[ImageFile]] = {}
    for name, read in readers.items():
        try:
            with as_data_errors(path):
                data = read()
        except DataError as error:
            data = unreadable_data(shown(path), str(error))
        else:
            data = with_observations(data, examine_images(data.images, callback))
            data = with_shared_images(data, images)
            images[name] = {image.file for image in data.images}
        splits[name] = SplitReport.of(with_dataset_findings(data, max_corrupt))
    return Report(source=shown(path), splits=splits)


def unreadable_data(source: Path | str, reason: str) -> DetectionData:
    """Return an empty dataset with the finding that it cannot be read."""
    findings = FindingCollector(source)
    findings.add("malformed", reason)
    return DetectionData(source=source, categories=(), images=(), findings=findings.by_kind())


def with_dataset_findings(
    data: DetectionData,
    max_corrupt: float,
    num_queries: int | None = None,
    *,
    settings: DataSettings = DataSettings(),  # noqa: B008 - immutable
) -> DetectionData:
    """Return `data` with the findings that concern the dataset as a whole.

    Args:
        data: The dataset, whose images have been checked and which no longer contains unreadable ones.
        max_corrupt: Fraction of the images (0-1) that may be unreadable.
        num_queries: Number of queries of the model; None if unknown.
        settings: Its settings of tiles, each of which has all queries.
    """
    findings = FindingCollector(data.source, known=data.findings)
    excluded = sum(data.unreadable.values())
    total = len(data.images) + excluded
    if excluded > max_corrupt * total:
        what = f"{excluded} of {total}, more than data.max_corrupt = {max_corrupt:g}"
        findings.add("too_many_unreadable", what)
    if not data.num_objects and not any(finding.kind == "malformed" for finding in data.findings):
        findings.add("no_objects", counted(len(data.images), "image"))
    used = {label for record in data.images for label in record.labels[~record.crowd].tolist()}
    for label, category in enumerate(data.categories):
        if used and label not in used:
            findings.add("unused_category", f"{category.name!r}, id {category.id}")
    most = most_objects(data, settings)
    for record in data.images:
        image: dict[str, Any] = {"image_id": record.id, "path": record.file}
        crowds, objects = int(record.crowd.sum()), most[record.id]
        if crowds:
            findings.add("crowd", f"image {record.id}: {crowds}", count=crowds, **image)
        if not len(record.labels):
            findings.add("negative", f"image {record.id}", **image)
        if num_queries is not None and objects > num_queries:
            tile = " in a tile" if settings.tile else ""
            what = f"image {record.id}: {objects} objects{tile}, {num_queries} queries"
            findings.add("too_many_objects", what, count=objects - num_queries, **image)
    return replace(data, findings=findings.by_kind())


def most_objects(data: DetectionData, settings: DataSettings) -> dict[int, int]:
    """Return the number of objects of each image, or the largest number in one of its tiles, by image id."""
    most: Counter[int] = Counter()
    for record in tiled(data, settings).images:
        image = record.image if isinstance(record, TileRecord) else record
        most[image.id] = max(most[image.id], int((~record.crowd).sum()))
    return most
