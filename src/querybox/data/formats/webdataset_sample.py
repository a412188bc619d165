"""The annotation of an image in a shard, JSON or YOLO's labels.

JSON is an object with `annotations` or `objects`, or this list alone: objects with `bbox` (x, y, width, height in
pixels), a class, and, as in COCO, `segmentation`, `iscrowd` and `area`; without `bbox` the box is that of
`segmentation`. Or it is an object with `objects` as lists by key, as on the Hugging Face Hub. `width` and `height` of
the image may be beside them or in `image`, names of class numbers in `categories`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject
from querybox.data.findings import FindingCollector
from querybox.data.formats.coco_json import CocoCategory
from querybox.data.formats.coco_mask import mask_box, read_mask
from querybox.data.formats.hugging_face_objects import CATEGORY, parse_image
from querybox.data.formats.yolo_lines import LabelParser, Names
from querybox.data.parsing import parse_json, validation_problem
from querybox.data.shard_index import Sample
from querybox.data.shards import ShardImage
from querybox.data.text import stripped_lines
from querybox.errors import DataError
from querybox.masks import Region
from querybox.text import listed
from querybox.urls import public_name

EXPECTED = (
    "JSON with 'annotations' or 'objects', which have 'bbox' (x, y, width, height) and a class; if this is an archive "
    "of another dataset, unpack it"
)
_LISTS = ("annotations", "objects")
_CLASS = ("category_name", *CATEGORY, "category_id")
"""Keys of the class of an object, by precedence."""
_CATEGORIES = TypeAdapter(list[CocoCategory])


def parse_sample(place: str, sample: Sample, names: Names, findings: FindingCollector) -> AnnotatedImage:
    """Return the image of a sample, with its objects.

    Args:
        place: Path or URL of the shard.
        sample: The sample.
        names: Class names by class number, as the dataset defines them.
        findings: Collects problems.

    Raises:
        DataError: The annotation is malformed.
    """
    where = f"{public_name(place)}#{sample.annotation}"
    image = (
        _parse_labels(where, sample, names, findings)
        if sample.has_labels
        else _parse_json(where, sample, names, findings)
    )
    image.file = ShardImage(place, sample.image, sample.start, sample.size, sample.group)
    image.name = str(image.file)
    if image.size is None:
        image.size, image.size_stated = sample.shape, False
    return image


def _parse_labels(where: str, sample: Sample, names: Names, findings: FindingCollector) -> AnnotatedImage:
    parser = LabelParser(names)
    by_label = [names[number] for number in parser.labels]
    height, width = sample.shape or (0, 0)
    lines = stripped_lines(sample.text)
    objects = [
        AnnotatedObject(
            f"{where}, line {one.line}", by_label[one.label], one.box_xyxy, mask=one.region(width, height)
        )
        for one in parser.objects(where, lines, findings)
    ]
    return AnnotatedImage(name=sample.image, where=where, relative=True, objects=objects)


def _parse_json(where: str, sample: Sample, names: Names, findings: FindingCollector) -> AnnotatedImage:
    content = parse_json(sample.text, where, EXPECTED)
    if isinstance(content, list):
        content = {_LISTS[0]: content}
    if not isinstance(content, dict) or not any(name in content for name in _LISTS):
        found = f"the keys {listed([*content])}" if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{where}: has {found}; expected {EXPECTED}")
    items = next(content[name] for name in _LISTS if name in content)
    stated = content["image"] if isinstance(content.get("image"), dict) else content
    image = parse_image(
        where,
        {
            "file_name": "image",  # the place in the shard is its name, which need not be UTF-8
            "objects": _by_key(where, items) if isinstance(items, list) else items,
            "width": stated.get("width"),
            "height": stated.get("height"),
        },
        {**names, **_own_names(where, content.get("categories"))},
    )
    if isinstance(items, list):
        for one, item in zip(image.objects, items, strict=True):
            if not item.get("bbox"):
                findings.add("boxed_shape", one.where)
        image.objects = [
            one._replace(
                mask=_mask(one.where, item.get("segmentation"), findings), boxed=not item.get("bbox")
            )
            for one, item in zip(image.objects, items, strict=True)
        ]
    return image


def _by_key(where: str, items: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the values of objects as lists by key."""
    if not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{where}: has values that are not objects among its annotations; expected {EXPECTED}"
        )
    return {
        "bbox": [item.get("bbox") or mask_box(item.get("segmentation")) for item in items],
        "categories": [next((item[key] for key in _CLASS if key in item), None) for item in items],
        "iscrowd": [item.get("iscrowd") for item in items],
        "area": [item.get("area") for item in items],
    }


def _own_names(where: str, content: object) -> Names:
    """Return the names of classes by number that an annotation has itself, as a COCO file of a single image."""
    try:
        found = _CATEGORIES.validate_python(content or [])
    except ValidationError as error:
        raise DataError(
            f"{where}: categories{validation_problem(error)}; expected objects with id and name"
        ) from None
    return {one.id: one.name for one in found if isinstance(one.id, int)}


def _mask(where: str, segmentation: object, findings: FindingCollector) -> Region | None:
    try:
        return read_mask(segmentation)
    except DataError as error:
        findings.add("malformed_mask", f"{where}: {error}")
        return None
