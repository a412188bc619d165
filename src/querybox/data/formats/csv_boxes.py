"""CSV: a row for each object, `filename,width,height,class,xmin,ymin,xmax,ymax` in pixels, under these names or others.

The tutorials of TensorFlow's Object Detection API write it (`data/train_labels.csv`), and Roboflow exports it
(`<split>/_annotations.csv`). In data of competitions the columns have other names, the class is missing if there is
only one, or boxes are `x, y, width, height`, also in one column. Keras RetinaNet has no names of columns. Images
without objects are not in the file, or in a row whose box and class are empty, or `NaN`, `NULL` and the like. In files
with semicolons or tabs, as Excel writes them where decimals have a comma, a comma is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import Corners, FindingCollector
from querybox.data.image import SUFFIXES
from querybox.data.parsing import csv_columns, csv_delimiter, read_csv, stated_size, to_numbers
from querybox.data.splits import Format

_IMAGES = (
    "filename",
    "file_name",
    "image",
    "image_path",
    "image_name",
    "image_id",
    "img_path",
    "path",
    "file",
)
_CATEGORIES = ("class", "label", "class_name", "category", "label_name", "name")
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_CENTERED = (
    ("x_center", "y_center", "width", "height"),
    ("center_x", "center_y", "width", "height"),
    ("xcenter", "ycenter", "width", "height"),
    ("cx", "cy", "w", "h"),
)
_WITH_SIZE = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox",),
)
_RETINANET = ("filename", "xmin", "ymin", "xmax", "ymax", "class")
_ONLY_CLASS = "object"
"""Name of the class of all objects in a file without a column for it."""
_UNKNOWN = ("", "nan", "none", "null", "na", "n/a", "[]")
"""What tools write in a cell without a value, in lower or upper case."""


class _Columns(NamedTuple):
    """The names of the columns that are read."""

    image: str
    category: str | None
    box: tuple[str, ...]
    decimal_comma: bool = False
    """Whether numbers have a comma before their decimals."""
    names: tuple[str, ...] | None = None
    """The names of all columns, if they are not in the first row."""


def _find_columns(file: Path) -> _Columns | None:
    """Return the columns of a file; None if it has another format."""
    names = csv_columns(file)
    if len(names) == len(_RETINANET) and Path(names[0]).suffix in SUFFIXES:
        if not any(names[1:]) or to_numbers(names[1:5]) is not None:
            return _Columns(_RETINANET[0], _RETINANET[5], _RETINANET[1:5], names=_RETINANET)
        return None
    image, category = _first(_IMAGES, names), _first(_CATEGORIES, names)
    for box in (*_CORNERS, *_CENTERED, *_WITH_SIZE):
        if image is not None and set(box) <= set(names):
            return _Columns(image, category, box, decimal_comma=csv_delimiter(file) != ",")
    return None


def _first(known: Collection[str], names: Collection[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _parse(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    columns = _find_columns(file)
    assert columns is not None
    images: dict[str, AnnotatedImage] = {}
    for where, row in read_csv(file, findings, columns.names):
        name = row[columns.image]
        category = _ONLY_CLASS if columns.category is None else row[columns.category]
        if not name:
            findings.add("malformed", f"{where}: has no {columns.image}; expected the name of an image")
            continue
        states_size = "width" not in columns.box
        size = stated_size(row.get("height"), row.get("width")) if states_size else None
        image = images.setdefault(name, AnnotatedImage(name=name, where=where, size=size))
        texts = [row[side][:40] for side in columns.box]
        box = _box(row, columns)
        cells = texts if columns.category is None else [*texts, category]
        if all(cell.lower() in _UNKNOWN for cell in cells):
            continue  # an image without objects
        if not category:
            findings.add("malformed", f"{where}: has no {columns.category}; expected a name")
        elif box is None:
            what = f"{where}: got the box {texts}; expected numbers in {', '.join(columns.box)}"
            findings.add("malformed", what)
        elif size != image.size:
            what = (
                f"{where}: the size of {name[:200]!r} differs from that in {image.where}; correct one of them"
            )
            findings.add("malformed", what)
        else:
            image.objects.append(AnnotatedObject(where, category, box))
    return list(images.values())


def _box(row: Mapping[str, str], columns: _Columns) -> Corners | None:
    texts = [row[name] for name in columns.box]
    if len(texts) == 1:
        texts = texts[0].strip("[]() ").replace(",", " ").split()
    elif columns.decimal_comma:
        texts = [text.replace(",", ".") for text in texts]
    sides = to_numbers(texts)
    if sides is None or len(sides) != 4:
        return None
    x, y, third, fourth = sides
    if columns.box in _CORNERS:
        return x, y, third, fourth
    if columns.box in _CENTERED:
        return x - third / 2, y - fourth / 2, x + third / 2, y + fourth / 2
    return x, y, x + third, y + fourth


CSV = Format(
    name="CSV",
    expected="CSV: a .csv file with the columns filename, class, xmin, ymin, xmax and ymax",
    splits=partial(
        splits_by_file,
        suffix=".csv",
        recognises=lambda file: _find_columns(file) is not None,
        parse=_parse,
    ),
    made_from="Pascal VOC",  # by the tutorials' xml_to_csv.py
)
