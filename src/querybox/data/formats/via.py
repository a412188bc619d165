"""VGG Image Annotator 1 and 2: its project, and its annotations as JSON or CSV; regions in pixels.

Every shape with an extent becomes its bounding box; polygons, circles and ellipses are masks, too. The class of a
region is the value of its attribute `class`, `label` or the like, otherwise of its only attribute; if no region of the
file has any, it is `object`. Images without regions are negative examples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from querybox.arguments import kind_of
from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import Corners, FindingCollector
from querybox.data.parsing import (
    NO_BOOL,
    Finite,
    Name,
    Number,
    csv_columns,
    json_head,
    parse_json,
    read_csv,
    read_json,
    validation_problem,
)
from querybox.data.shapes import Point, bounding_box, ellipse, ellipse_box, polygon_region
from querybox.data.splits import Format, Reader
from querybox.errors import DataError
from querybox.masks import Region

_ATTRIBUTES = ("class", "label", "name", "category", "type", "object")
"""Names of the attribute with the class, in lower case, by precedence."""
_ONLY_CLASS = "object"
_PROJECT = "_via_img_metadata"


class _Shape(BaseModel):
    """A shape: a point, a rectangle, a circle, an ellipse, a polygon or a polyline."""

    name: str
    x: Number = math.nan
    y: Number = math.nan
    width: Number = math.nan
    height: Number = math.nan
    cx: Finite = 0
    cy: Finite = 0
    r: Finite = 0
    rx: Finite = 0
    ry: Finite = 0
    theta: Finite = 0  # radians
    xs: Annotated[list[float], NO_BOOL] = Field(default=[], validation_alias="all_points_x")
    ys: Annotated[list[float], NO_BOOL] = Field(default=[], validation_alias="all_points_y")

    @property
    def points(self) -> list[Point]:
        """The vertices of a polygon or a polyline."""
        return list(zip(self.xs, self.ys, strict=True))

    @property
    def degrees(self) -> float:
        """The angle of an ellipse, less than a turn, so that it is finite in degrees as well."""
        return math.degrees(math.fmod(self.theta, math.tau))

    @property
    def box(self) -> Corners | None:
        """The bounding box in pixels; None if the shape has no extent."""
        match self.name:
            case "rect":
                return self.x, self.y, self.x + self.width, self.y + self.height
            case "circle":
                return ellipse_box((self.cx, self.cy), (self.r, self.r), 0)
            case "ellipse":
                return ellipse_box((self.cx, self.cy), (self.rx, self.ry), self.degrees)
            case "polygon" | "polyline":
                return bounding_box(self.points)
            case _:
                return None

    @property
    def region(self) -> Region | None:
        """The pixels inside; None for other shapes than polygons, circles and ellipses."""
        match self.name:
            case "circle":
                return polygon_region([ellipse((self.cx, self.cy), (self.r, self.r), 0)])
            case "ellipse":
                return polygon_region([ellipse((self.cx, self.cy), (self.rx, self.ry), self.degrees)])
            case "polygon":
                return polygon_region([self.points])
            case _:
                return None

    @model_validator(mode="after")
    def _has_points(self) -> _Shape:
        if self.name.startswith("poly") and not 0 < len(self.xs) == len(self.ys):
            raise ValueError("all_points_x and all_points_y differ in length, or are empty")
        return self


class _Region(BaseModel):
    shape: _Shape = Field(validation_alias="shape_attributes")
    attributes: dict[str, Any] = Field(default={}, validation_alias="region_attributes")


class _Image(BaseModel):
    filename: Name
    regions: list[Any] | dict[str, Any] = []  # a mapping in version 1


def _splits(path: Path) -> dict[str, Reader]:
    return splits_by_file(path, ".json", _is_json, _parse_json) or splits_by_file(
        path, ".csv", _is_csv, _parse_csv
    )


def _is_json(file: Path) -> bool:
    content = json_head(file)
    if not isinstance(content, dict):
        return False
    entry = next(iter(content.values()), None)
    return _PROJECT in content or (isinstance(entry, dict) and entry.keys() >= {"filename", "regions"})


def _is_csv(file: Path) -> bool:
    return "region_shape_attributes" in csv_columns(file)


def _parse_json(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    content = read_json(file, "an object with an entry for each image", findings)
    images = []
    entries = content.get(_PROJECT, content)
    if not isinstance(entries, dict):
        raise DataError(
            f"{file}: {_PROJECT} is {kind_of(entries)}; expected an object with an entry for each image"
        )
    for key, entry in entries.items():
        where = f"{file}, {key[:200]!r}"
        try:
            parsed = _Image.model_validate(entry)
        except ValidationError as error:
            findings.add(
                "malformed", f"{where}: {validation_problem(error)}; expected 'filename' and 'regions'"
            )
            continue
        image = AnnotatedImage(name=parsed.filename, where=where)
        regions = parsed.regions.values() if isinstance(parsed.regions, dict) else parsed.regions
        for number, region in enumerate(regions):
            _add_object(image, f"{where}, region {number}", region, findings)
        images.append(image)
    _name_unlabelled(images, findings)
    return images


def _parse_csv(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    images: dict[str, AnnotatedImage] = {}
    for where, row in read_csv(file, findings):
        name = row.get("filename") or row.get("#filename", "")  # in version 1
        if not name:
            findings.add("malformed", f"{where}: has no filename; expected the name of an image")
            continue
        image = images.setdefault(name, AnnotatedImage(name=name, where=where))
        try:
            shape, attributes = (
                parse_json(row.get(column) or "{}", where, f"JSON in {column}")
                for column in ("region_shape_attributes", "region_attributes")
            )
        except DataError as error:
            findings.add("malformed", str(error))
            continue
        if shape:  # otherwise an image without regions
            region = {"shape_attributes": shape, "region_attributes": attributes}
            _add_object(image, where, region, findings)
    _name_unlabelled(images.values(), findings)
    return list(images.values())


def _add_object(image: AnnotatedImage, where: str, region: Any, findings: FindingCollector) -> None:
    try:
        parsed = _Region.model_validate(region)
    except ValidationError as error:
        findings.add("malformed", f"{where}: {validation_problem(error)}; expected 'shape_attributes'")
        return
    if (box := parsed.shape.box) is None:
        findings.add("unsupported_shape", f"{where}, {parsed.shape.name}")
    elif (category := _category(parsed.attributes)) is None:
        found = ", ".join(sorted(parsed.attributes))
        findings.add(
            "malformed", f"{where}: has no class in its attributes ({found}); expected it in 'class'"
        )
    else:
        if parsed.shape.name != "rect":
            findings.add("boxed_shape", where)
        image.objects.append(AnnotatedObject(where, category, box, mask=parsed.shape.region))


def _name_unlabelled(images: Collection[AnnotatedImage], findings: FindingCollector) -> None:
    """Name the class of objects without attributes, if there are no others in the file; otherwise drop them."""
    labelled = any(one.category for image in images for one in image.objects)
    for image in images:
        if not labelled:
            image.objects = [one._replace(category=_ONLY_CLASS) for one in image.objects]
            continue
        for one in image.objects:
            if not one.category:
                what = "has no attributes, but other regions have their class there; expected a class"
                findings.add("malformed", f"{one.where}: {what}")
        image.objects = [one for one in image.objects if one.category]


def _category(attributes: Mapping[str, Any]) -> str | None:
    """Return the class of a region: empty if it has no attributes, None if none of them is a class."""
    if not attributes:
        return ""
    values = {name.strip().lower(): value for name, value in attributes.items()}
    known = [name for name in _ATTRIBUTES if name in values]
    names = known or list(values)
    value = values[names[0]] if known or len(names) == 1 else None
    if isinstance(value, dict):  # of check boxes
        checked = [name for name, is_checked in value.items() if is_checked]
        value = checked[0] if len(checked) == 1 else None
    is_name = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value).strip() or None if is_name else None


VIA = Format(
    name="VGG Image Annotator",
    expected="VGG Image Annotator: a .json or .csv file with 'filename' and 'regions'",
    splits=_splits,
)
