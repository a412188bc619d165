"""The content of a COCO file: parsed, with unique numbers for ids and a box for every annotation."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, TypeAdapter, ValidationError

from querybox.data.findings import FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.parsing import validation_problem
from querybox.data.text import decode
from querybox.errors import DataError
from querybox.files import require_regular

Id = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | str, Field(union_mode="left_to_right")]
"""An id as written; strings of digits are numbers."""
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass(slots=True, kw_only=True)
class CocoCategory:
    """An entry of `categories`."""

    id: Id
    name: str


@dataclass(slots=True, kw_only=True)
class CocoImage:
    """An entry of `images`."""

    id: Id
    file_name: str
    width: Pixels | None = None
    height: Pixels | None = None


@dataclass(slots=True, kw_only=True)
class CocoAnnotation:
    """An entry of `annotations`."""

    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: Box | None = None
    area: float | None = None
    iscrowd: bool | None = None


@dataclass(slots=True, kw_only=True)
class CocoFile:
    """A COCO file."""

    categories: list[CocoCategory]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]


@dataclass(slots=True, kw_only=True)
class _Shape:
    segmentation: Any = None


@dataclass(slots=True, kw_only=True)
class _Shapes:
    annotations: list[_Shape]


_FILE = TypeAdapter(CocoFile)
_SHAPES = TypeAdapter(_Shapes)
_POLYGONS = TypeAdapter(Annotated[list[Annotated[list[float], Field(min_length=6)]], Field(min_length=1)])


def parse_coco(file: Path, findings: FindingCollector) -> CocoFile:
    """Parse a COCO file. Annotations without `bbox` get that of their polygons, or None if they have no polygons.

    Raises:
        DataError: The file is not COCO JSON.
    """
    require_regular(file, DataError)
    try:
        written: bytes | str = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    if isinstance(written, bytes) and not written.isascii():
        written = decode(written, file, findings)
    try:
        content = _FILE.validate_json(written)
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_problem(error)}; expected COCO JSON, an object with 'images', "
            f"'annotations' and 'categories' ({error.error_count()} validation errors)"
        ) from None
    _check_ids(content, findings)
    if any(item.bbox is None for item in content.annotations):
        # Parsed only if necessary, because polygons take much more memory than all the rest.
        _add_boxes(content.annotations, _SHAPES.validate_json(written).annotations, findings)
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """All annotations of a file in arrays, which take a fifth of the memory of objects."""

    ids: Sequence[Id | None]
    boxes_xyxy: Float64[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    areas: Float64[np.ndarray, " N"]
    no_area: Bool[np.ndarray, " N"]
    """Whether the annotation has no area."""
    no_iscrowd: Bool[np.ndarray, " N"]
    """Whether the annotation has no iscrowd."""
    order: Int64[np.ndarray, " M"]
    """The annotations that have an image, a category and a box, by image."""
    starts: Int64[np.ndarray, " I"]
    """Where those of each image, and after the last one, begin in `order`."""

    @classmethod
    def of(
        cls, annotations: Sequence[CocoAnnotation], labels: Mapping[Id, int], images: Mapping[Id, int]
    ) -> Self:
        """Create the columns of annotations, given the label of each category id and the index of each image id."""
        missing = (math.nan,) * 4
        boxes = np.array([item.bbox or missing for item in annotations], dtype=np.float64).reshape(-1, 4)
        of_label = np.array([labels.get(item.category_id, -1) for item in annotations], dtype=np.int64)
        of_image = np.array([images.get(item.image_id, -1) for item in annotations], dtype=np.int64)
        has_box = np.array([item.bbox is not None for item in annotations], dtype=bool)
        of_image[(of_label < 0) | ~has_box] = -1
        order = np.argsort(of_image, kind="stable")
        ids = [item.id for item in annotations]
        numbered = [one for one in ids if isinstance(one, int)]
        return cls(
            ids=array("q", numbered) if len(numbered) == len(ids) else ids,
            boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            labels=of_label,
            crowd=np.array([bool(item.iscrowd) for item in annotations], dtype=bool),
            areas=np.array([item.area for item in annotations], dtype=np.float64),  # None -> NaN
            no_area=np.array([item.area is None for item in annotations], dtype=bool),
            no_iscrowd=np.array([item.iscrowd is None for item in annotations], dtype=bool),
            order=order,
            starts=np.searchsorted(of_image[order], np.arange(max(images.values(), default=-1) + 2)),
        )

    def of_image(self, index: int) -> Int64[np.ndarray, " G"]:
        """Return the indices of the annotations of `images[index]`."""
        return self.order[self.starts[index] : self.starts[index + 1]]

    def location(self, index: int) -> str:
        """Return the place of an annotation for messages."""
        return location(index, self.ids[index])


def numbers(ids: Iterable[Id], kind: str, findings: FindingCollector) -> dict[Id, int]:
    """Return a number for each id: itself, or 1, 2 ... in the order of `ids` if some are not numbers."""
    unique = list(dict.fromkeys(ids))
    names = [one for one in unique if isinstance(one, str)]
    if names:
        findings.add("string_id", f"{kind} ids such as {names[0]!r}", count=len(names))
        return {one: number for number, one in enumerate(unique, start=1)}
    return {one: one for one in unique if isinstance(one, int)}


def location(index: int, annotation_id: Id | None) -> str:
    """Return the place of an annotation for messages."""
    return f"annotations[{index}]" + ("" if annotation_id is None else f" (id {annotation_id})")


def _add_boxes(
    annotations: Sequence[CocoAnnotation], shapes: Sequence[_Shape], findings: FindingCollector
) -> None:
    for index, (item, shape) in enumerate(zip(annotations, shapes, strict=True)):
        if item.bbox is not None:
            continue
        try:
            polygons = _POLYGONS.validate_python(shape.segmentation)
        except ValidationError:
            what = "has neither a bbox nor polygons in segmentation; expected bbox [x, y, width, height]"
            findings.add("malformed", f"{location(index, item.id)}: {what}")
            continue
        x, y = ([value for polygon in polygons for value in polygon[start::2]] for start in (0, 1))
        item.bbox = (min(x), min(y), max(x) - min(x), max(y) - min(y))
        findings.add("boxed_shape", location(index, item.id))


def _check_ids(content: CocoFile, findings: FindingCollector) -> None:
    kinds: dict[str, Sequence[CocoCategory] | Sequence[CocoImage] | Sequence[CocoAnnotation]] = {
        "category": content.categories,
        "image": content.images,
        "annotation": content.annotations,
    }
    for kind, items in kinds.items():
        counts = Counter(item.id for item in items)
        for number, count in counts.items():
            if number is not None and count > 1:
                findings.add(f"repeated_{kind}_id", f"{number} occurs {count} times")
    names = Counter(category.name for category in content.categories)
    for name, count in names.items():
        if count > 1:
            ids = [str(category.id) for category in content.categories if category.name == name]
            findings.add("repeated_category", f"{name!r} with ids {', '.join(ids)}")
