"""Who made a COCO dataset and its images, and under which licences: not needed to train, but to be kept in copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from querybox.data.findings import FindingCollector
from querybox.data.formats.coco_json import Id, numbers
from querybox.data.json_stream import stream_members
from querybox.data.records import DetectionData
from querybox.data.text import read_text

OF_DATASET = ("info", "licenses")
"""Members of a COCO file."""
OF_IMAGE = ("license", "flickr_url", "coco_url", "date_captured")
"""Keys of an entry of `images`."""
_ID = TypeAdapter(Id)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a COCO file says about its origin, as it is written there."""

    dataset: Mapping[str, Any] = field(default_factory=dict)
    """The members `OF_DATASET` that the file has."""
    images: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """The keys `OF_IMAGE` of each image that has any, by its id."""


UNKNOWN = Attribution()


def read_attribution(data: DetectionData) -> Attribution:
    """Return what the file of a dataset says about its origin; nothing if it is not a COCO file."""
    if isinstance(data.source, str) or data.source.suffix.lower() != ".json":
        return UNKNOWN
    findings = FindingCollector(data.source)  # not used: the dataset has them already
    dataset: dict[str, Any] = {}
    images: list[tuple[Id, dict[str, Any]]] = []
    try:
        for name, items in stream_members(read_text(data.source, findings), {"images"}, OF_DATASET):
            if name in OF_DATASET:
                (dataset[name],) = items
            else:
                images += [
                    (_ID.validate_python(item["id"]), {key: item[key] for key in OF_IMAGE if key in item})
                    for item in items
                ]
    except (ValueError, TypeError, KeyError, RecursionError):  # the JSON of another format
        return UNKNOWN
    ids = numbers((one for one, _ in images), "image", findings)
    return Attribution(dataset, {ids[one]: stated for one, stated in images if stated})
