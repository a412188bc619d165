"""Label Studio JSON and JSON-MIN: a list of tasks with regions in percent of the image.

Rectangles, polygons, ellipses and brushes become their bounding box; all but rectangles are masks, too. A rectangle is
rotated about its upper left corner (https://labelstud.io/templates/image_bbox). Tasks without an annotation are left
out; an annotation without regions is a negative example. Predictions are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import Corners, FindingCollector
from querybox.data.formats.label_studio_brush import read_brush
from querybox.data.image import SUFFIXES
from querybox.data.parsing import (
    NO_BOOL,
    Finite,
    Name,
    Number,
    json_head,
    read_json,
    stated_size,
    validation_problem,
)
from querybox.data.shapes import Point, bounding_box, ellipse, ellipse_box, polygon_region, rectangle, rotated
from querybox.data.splits import Format
from querybox.errors import DataError
from querybox.masks import Region, Rle
from querybox.text import listed

_UNLABELLED = frozenset({"rectangle", "polygon", "ellipse", "brush", "keypoint"})
"""Types of regions whose class is in another region with the same id."""
_SHAPE_KEYS = frozenset({"x", "points", "rle"})
"""Keys of shapes, of which each has one; regions of text and choices have none."""
_LABELS = TypeAdapter(Annotated[list[Name], Field(min_length=1)])


class _Value(BaseModel):
    """The shape of a region, in percent of the image."""

    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    radius_x: Number | None = Field(None, validation_alias="radiusX")
    radius_y: Number | None = Field(None, validation_alias="radiusY")
    rotation: Finite = 0
    points: list[Point] | None = Field(None, min_length=1)
    rle: Annotated[list[int] | None, NO_BOOL] = None  # of a brush


class _Region(BaseModel):
    type: str
    value: dict[str, Any]
    id: Annotated[str | int | None, NO_BOOL] = None
    to_name: str | None = None  # of the tag of the image or text that it is a region of
    original_width: Number | None = None
    original_height: Number | None = None
    image_rotation: Number = 0


class _Task(NamedTuple):
    """What is read of a task."""

    where: str
    data: dict[str, Any]
    regions: list[Any]


def _is_label_studio(file: Path) -> bool:
    content = json_head(file)
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and (_is_task(first) or bool(_minimal_regions(first)))


def _is_task(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("data"), dict) or any("result" in item for item in _annotations(entry))


def _annotations(entry: dict[str, Any]) -> list[dict[str, Any]]:
    annotations = entry.get("annotations", entry.get("completions"))  # before version 1.0
    return [item for item in annotations if isinstance(item, dict)] if isinstance(annotations, list) else []


def _minimal_regions(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the regions of an entry of JSON-MIN in the form of JSON."""
    values = [
        item
        for items in entry.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict)
    ]
    return [
        {**value, "type": key, "value": value}
        for value in values
        for key in value
        if key.endswith("labels") and isinstance(value[key], list)
    ]


def _parse(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    images = []
    for index, entry in enumerate(read_json(file, "a list of Label Studio tasks", findings)):
        where = f"{file}, [{index}]"
        if not isinstance(entry, dict):
            findings.add("malformed", f"{where}: expected a task, an object with 'data' and 'annotations'")
            continue
        task = (
            _task(where, entry, findings) if _is_task(entry) else _Task(where, entry, _minimal_regions(entry))
        )
        image = None if task is None else _image(task, findings)
        if image is not None:
            images.append(image)
    return images


def _task(where: str, entry: dict[str, Any], findings: FindingCollector) -> _Task | None:
    """Return a task with the regions of its first annotation; None without one."""
    submitted = [item for item in _annotations(entry) if not item.get("was_cancelled")]
    if not submitted:
        return None  # its image is found to be unlabeled
    if len(submitted) > 1:
        findings.add("several_annotations", f"{where}: {len(submitted)}")
    regions, data = submitted[0].get("result"), entry.get("data")
    if not isinstance(regions, list) or not isinstance(data, dict):
        findings.add("malformed", f"{where}: expected 'data', and a list as 'result' of its annotation")
        return None
    return _Task(where, data, regions)


def _image(task: _Task, findings: FindingCollector) -> AnnotatedImage | None:
    regions = list(_regions(task, findings))
    shapes = [region for _, region in regions if not _SHAPE_KEYS.isdisjoint(region.value)]
    tags = sorted({region.to_name for region in shapes if region.to_name})
    if len(tags) > 1:
        what = f"has regions of {len(tags)} images ({listed(tags)}); expected a task for each image"
        findings.add("malformed", f"{task.where}: {what}")
        return None
    name = _image_name(task.data, *tags)
    if name is None:
        findings.add("malformed", f"{task.where}: has no image; expected its path or URL in 'data'")
        return None
    sizes = [stated_size(region.original_height, region.original_width) for _, region in regions]
    size = next((size for size in sizes if size is not None), None)
    labelled = {region.id for _, region in regions if region.type.endswith("labels")}
    objects = []
    for where, region in regions:
        if region.type.endswith("labels"):
            objects += _objects(where, region, size, findings)
        elif region.type in _UNLABELLED and region.id not in labelled:
            findings.add("malformed", f"{where}: {region.type} without a class; label it, or remove it")
    return AnnotatedImage(name=name, where=task.where, size=size, relative=size is None, objects=objects)


def _image_name(data: dict[str, Any], tag: str = "") -> str | None:
    """Return the path or URL of the image: of the tag or of `image`, otherwise the first value that looks like one.

    Args:
        data: The data of the task. Tags often have the name of their key.
        tag: The name of the tag of the image; empty if it is not known.
    """
    own = [data[key] for key in (tag, "image") if key in data]
    texts = [text for text in (*own, *data.values()) if isinstance(text, str) and len(text) < 4000]
    if own and texts[:1] == own[:1]:  # it is text
        return texts[0]
    return next((text for text in texts if _without_query(text).suffix.lower() in SUFFIXES), None)


def _without_query(text: str) -> PurePosixPath:
    return PurePosixPath(text.partition("?")[0] if "://" in text else text)


def _regions(task: _Task, findings: FindingCollector) -> Iterator[tuple[str, _Region]]:
    for number, item in enumerate(task.regions, start=1):
        where = f"{task.where}, region {number}"
        if isinstance(item, dict) and not isinstance(item.get("value"), dict):
            continue  # a relation between regions
        try:
            region = _Region.model_validate(item)
        except ValidationError as error:
            findings.add("malformed", f"{where}: {validation_problem(error)}; expected a region")
            continue
        if region.image_rotation:
            degrees = f"{region.image_rotation:g} degrees"
            what = f"{where}: the image is rotated by {degrees} in Label Studio; rotate its file, and annotate that"
            findings.add("malformed", what)
            continue
        yield where, region


def _objects(
    where: str, region: _Region, size: tuple[int, int] | None, findings: FindingCollector
) -> list[AnnotatedObject]:
    """Return an object for each class of a region."""
    try:
        value = _Value.model_validate(region.value)
        labels = _LABELS.validate_python(region.value.get(region.type))
    except ValidationError as error:
        what = (
            f"{where}: {validation_problem(error)}; expected a shape in percent of the image, and its classes"
        )
        findings.add("malformed", what)
        return []
    if value.rotation and size is None:
        findings.add("malformed", f"{where}: is rotated; expected 'original_width' and 'original_height'")
        return []
    try:
        mask = _region(value, size)
    except DataError as error:
        findings.add("malformed", f"{where}: {error}")
        return []
    box = mask.box_xyxy if isinstance(mask, Rle) else _box(value, size or (1, 1))
    if box is None:
        findings.add("unsupported_shape", f"{where}, {region.type}")
        return []
    if value.rotation or value.width is None or value.rle is not None:
        findings.add("boxed_shape", where)
    return [AnnotatedObject(where, label, box, mask=mask) for label in labels]


def _region(value: _Value, size: tuple[int, int] | None) -> Region | None:
    """Return the pixels of a shape in an image of this (height, width); None if only its box is known.

    Raises:
        DataError: A brush is malformed, or that of an image of another size.
    """
    if size is None:
        return None
    if value.rle is not None:
        return read_brush(value.rle, size)
    height, width = size[0] / 100, size[1] / 100
    if value.points is not None:
        return polygon_region([[(x * width, y * height) for x, y in value.points]])
    if value.x is None or value.y is None or value.radius_x is None or value.radius_y is None:
        return None
    center, radii = (value.x * width, value.y * height), (value.radius_x * width, value.radius_y * height)
    return polygon_region([ellipse(center, radii, value.rotation)])


def _box(value: _Value, size: tuple[int, int]) -> Corners | None:
    """Return the bounding box in an image of `size`; None if the shape has no extent."""
    height, width = size[0] / 100, size[1] / 100
    if value.points is not None:
        return bounding_box([(x * width, y * height) for x, y in value.points])
    if value.x is None or value.y is None:
        return None
    corner = (value.x * width, value.y * height)
    if value.radius_x is not None and value.radius_y is not None:
        return ellipse_box(corner, (value.radius_x * width, value.radius_y * height), value.rotation)
    if value.width is None or value.height is None:
        return None
    sides = (value.width * width, value.height * height)
    if not value.rotation:
        return (*corner, corner[0] + sides[0], corner[1] + sides[1])
    return bounding_box(rotated(rectangle(*corner, *sides), corner, value.rotation))


LABEL_STUDIO = Format(
    name="Label Studio",
    expected="Label Studio: a .json file, a list of tasks",
    splits=partial(splits_by_file, suffix=".json", recognises=_is_label_studio, parse=_parse),
)
