"""What Hugging Face's formats of detection datasets have in common: `objects` of an image, and names of their classes.

`objects` has `bbox` (x, y, width, height in pixels) and `categories`, `category`, `label` or `labels`, as numbers or
names: lists by key, or a list of objects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, alphabetical
from querybox.data.class_names import names_by_number
from querybox.data.parsing import (
    MAX_NAME,
    NO_BOOL,
    Name,
    Natural,
    Number,
    read_head,
    stated_size,
    validation_problem,
)
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.structures import Category
from querybox.text import listed

EXPECTED = "'file_name', and 'objects' with 'bbox' and 'categories'"
CATEGORY = ("categories", "category", "label", "labels")
_Label = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_NAME)]


class _Objects(BaseModel):
    bbox: list[tuple[Number, Number, Number, Number]]  # x, y, width, height
    categories: Annotated[list[Natural | Name], NO_BOOL] = Field(validation_alias=AliasChoices(*CATEGORY))
    area: list[Number | None] | None = None
    iscrowd: list[bool | None] | None = None


class _ClassLabel(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be named 7, or not at all

    names: list[_Label] | dict[Natural, _Label]


class _Image(BaseModel):
    file_name: Name
    objects: dict[str, Any] | list[dict[str, Any]] | None = None
    width: Number | None = None
    height: Number | None = None


def categories(source: Path | str, known: Mapping[int, str], names: Collection[str]) -> tuple[Category, ...]:
    """Return the categories of a dataset: those that it defines.

    If it defines none, names that are numbers are ids as well; others are numbered in alphabetical order.

    Args:
        source: The dataset, for messages.
        known: Names of classes by number, as the dataset defines them; empty if it does not.
        names: The names that occur in it.

    Raises:
        DataError: It defines classes, but not all that occur.
    """
    ids = {name: number for number, name in known.items()}
    if not ids:
        ids = {name: int(name) for name in names if name.isascii() and name.isdecimal()}
        if len(set(ids.values())) < len(names):  # such as 1 and 01
            return alphabetical(names)
    if unknown := sorted(set(names) - ids.keys()):
        raise DataError(
            f"{source}: objects have classes that the dataset does not define: {listed([*map(repr, unknown)])}; "
            f"it defines {listed([*map(repr, ids)])}; correct the annotations, or add these classes"
        )
    return tuple(Category(id=ids[name], name=name) for name in sorted(ids, key=lambda name: ids[name]))


def names_in_readme(root: Path) -> dict[int, str]:
    """Return the names of the class label of objects in the YAML head of `README.md`; empty without one.

    See `are_of_objects` for the class label of an image as a whole.
    """
    _, _, rest = read_head(root / "README.md").replace("\r\n", "\n").partition("---\n")
    try:
        content = yaml.load(rest.partition("\n---")[0], Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return class_names(_class_label(content, name) for name in CATEGORY)


def class_names(labels: Iterable[object]) -> dict[int, str]:
    """Return the names of classes by number of the first class label that is not None; empty if it has none.

    Args:
        labels: Mappings with `names`, or None.
    """
    first = next((label for label in labels if label is not None), None)
    try:
        return names_by_number(_ClassLabel.model_validate(first).names)
    except (ValueError, RecursionError):
        return {}


def are_of_objects(features: Collection[str]) -> bool:
    """Return whether features beside each other may be those of objects, and not those of an image as a whole."""
    return "bbox" in features or "image" not in features


def _class_label(content: object, feature: str) -> object:
    """Return the first `class_label` of objects in a feature with this name."""
    for node in _nodes(content):
        if isinstance(node, list):
            features = {str(item.get("name")): item for item in node if isinstance(item, dict)}
            for inner in _nodes(features.get(feature) if are_of_objects(features) else None):
                if isinstance(inner, dict) and "class_label" in inner:
                    return inner["class_label"]
    return None


def _nodes(content: object) -> Iterator[object]:
    """Yield the lists and mappings in a value, itself included; each once, also if aliases refer to it."""
    pending, seen = [content], set()
    while pending:
        node = pending.pop()
        if isinstance(node, list | dict) and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += node if isinstance(node, list) else node.values()


def parse_image(where: str, content: Any, names: Mapping[int, str]) -> AnnotatedImage:
    """Return an image with its objects, whose classes are names or numbers in `names`.

    Raises:
        DataError: It is malformed.
    """
    try:
        image = _Image.model_validate(content)
        columns = _columns(image.objects or {})
        objects = _Objects.model_validate(columns) if any(columns.values()) else None
    except ValidationError as error:
        raise DataError(f"{where}: {validation_problem(error)}; expected {EXPECTED}") from None
    return AnnotatedImage(
        name=image.file_name,
        where=where,
        size=stated_size(image.height, image.width),
        objects=[] if objects is None else list(_named_objects(where, objects, names)),
    )


def _columns(objects: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """Return lists by key, also of a list of objects."""
    if isinstance(objects, dict):
        return objects
    keys = dict.fromkeys(key for item in objects for key in item)
    return {key: [item.get(key) for item in objects] for key in keys}


def _named_objects(where: str, objects: _Objects, names: Mapping[int, str]) -> Iterator[AnnotatedObject]:
    count = len(objects.bbox)
    columns = (objects.categories, objects.iscrowd or [None] * count, objects.area or [None] * count)
    if any(len(column) != count for column in columns):
        raise DataError(
            f"{where}: lists in 'objects' differ in length; expected a value for each of {count} boxes"
        )
    for number, ((x, y, width, height), category, crowd, area) in enumerate(
        zip(objects.bbox, *columns, strict=True), start=1
    ):
        box = (x, y, x + width, y + height)
        if names and isinstance(category, int) and category not in names:
            raise DataError(
                f"{where}, object {number}: class {category}; the dataset defines {listed(list(names))}"
            )
        name = names.get(category, str(category)) if isinstance(category, int) else category
        yield AnnotatedObject(f"{where}, object {number}", name, box, bool(crowd), area)
