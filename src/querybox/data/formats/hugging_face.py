"""Hugging Face `imagefolder` with boxes: a `metadata.jsonl` or `metadata.csv` in the folder of each split.

A line has `file_name`, and `objects` with `bbox` (x, y, width, height in pixels) and `categories` or `category`, as
numbers or names (https://huggingface.co/docs/datasets/image_dataset#object-detection). Names of numbers are in the
`class_label` of the YAML head of `README.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from querybox.data.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    alphabetical,
    splits_by_file,
)
from querybox.data.findings import FindingCollector
from querybox.data.parsing import (
    Name,
    csv_columns,
    parse_json,
    partial_json,
    read_csv,
    read_head,
    stated_size,
    validation_problem,
)
from querybox.data.splits import SPLITS, Format, Reader, split_name
from querybox.data.text import decode, read_bounded
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.structures import Category

_EXPECTED = "'file_name', and 'objects' with 'bbox' and 'categories'"
_CATEGORY = ("categories", "category")
_Id = Annotated[int, Field(ge=0, lt=2**63)]


class _Objects(BaseModel):
    bbox: list[tuple[float, float, float, float]]  # x, y, width, height
    categories: list[_Id | Name] = Field(validation_alias=AliasChoices(*_CATEGORY))
    area: list[float | None] | None = None
    iscrowd: list[bool | None] | None = None


class _ClassLabel(BaseModel):
    names: list[Name] | dict[_Id, Name]

    @property
    def by_id(self) -> dict[int, str]:
        return self.names if isinstance(self.names, dict) else dict(enumerate(self.names))


class _Image(BaseModel):
    file_name: Name
    objects: dict[str, Any] | list[dict[str, Any]] | None = None
    width: float | None = None
    height: float | None = None


def _splits(path: Path) -> dict[str, Reader]:
    root = path
    if path.is_file():
        root = path.parent.parent if split_name(path.parent.name) in SPLITS else path.parent
    categorize = partial(_categories, root)
    return splits_by_file(
        path, ".jsonl", _is_json_lines, partial(_parse_json_lines, root), categorize
    ) or splits_by_file(path, ".csv", _is_csv, partial(_parse_csv, root), categorize)


def _categories(root: Path, names: Collection[str]) -> tuple[Category, ...]:
    """Return the categories that the README defines, or that have numbers for names; otherwise as without ids."""
    ids = {name: number for number, name in _class_names(root).items()}
    if not ids and all(name.isascii() and name.isdecimal() for name in names):
        ids = {name: int(name) for name in names}
    if not ids.keys() >= set(names):
        return alphabetical(names)
    return tuple(Category(id=ids[name], name=name) for name in sorted(ids, key=lambda name: ids[name]))


def _class_names(root: Path) -> dict[int, str]:
    """Return the names of the class label of objects in the YAML head of `README.md`; empty without one."""
    _, _, rest = read_head(root / "README.md").replace("\r\n", "\n").partition("---\n")
    try:
        content = yaml.load(rest.partition("\n---")[0], Loader)  # noqa: S506 - a safe loader
        return _ClassLabel.model_validate(_class_label(content)).by_id
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def _class_label(content: object) -> object:
    """Return the first `class_label` of a feature that is named like the category of an object."""
    pending: list[tuple[str, object]] = [("", content)]
    seen = set()
    while pending:
        name, node = pending.pop()
        if id(node) in seen:  # by an alias
            continue
        seen.add(id(node))
        if isinstance(node, list):
            pending += [(name, item) for item in node]
        elif isinstance(node, dict):
            name = str(node.get("name", name))
            if "class_label" in node and name in _CATEGORY:
                return node["class_label"]
            pending += [(name, item) for item in node.values()]
    return None


def _is_json_lines(file: Path) -> bool:
    first = partial_json(read_head(file).partition("\n")[0])
    return isinstance(first, dict) and first.keys() >= {"file_name", "objects"}


def _is_csv(file: Path) -> bool:
    return set(csv_columns(file)) >= {"file_name", "objects"}


def _parse_json_lines(root: Path, file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _class_names(root)
    text = decode(read_bounded(file), file, findings)
    images = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{file}, line {number}"
        if line.strip():
            try:
                image = _image(where, parse_json(line, where, f"an object with {_EXPECTED}"), names)
            except DataError as error:
                findings.add("malformed", str(error))
            else:
                images.append(image)
    return images


def _parse_csv(root: Path, file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _class_names(root)
    images = []
    for where, row in read_csv(file, findings):
        try:
            objects = parse_json(row["objects"] or "null", where, "JSON in 'objects'")
            image = _image(where, {**row, "objects": objects}, names)
        except DataError as error:
            findings.add("malformed", str(error))
        else:
            images.append(image)
    return images


def _image(where: str, content: Any, names: Mapping[int, str]) -> AnnotatedImage:
    """Return an image with its objects, whose classes are names or numbers in `names`.

    Raises:
        DataError: It is malformed.
    """
    try:
        image = _Image.model_validate(content)
        objects = _Objects.model_validate(_columns(image.objects)) if image.objects else None
    except ValidationError as error:
        raise DataError(f"{where}: {validation_problem(error)}; expected {_EXPECTED}") from None
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
    return {key: [item.get(key) for item in objects] for key in objects[0]}


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
        name = names.get(category, str(category)) if isinstance(category, int) else category
        yield AnnotatedObject(f"{where}, object {number}", name, box, bool(crowd), area)


HUGGING_FACE = Format(
    name="Hugging Face imagefolder",
    expected="Hugging Face: a folder with metadata.jsonl or metadata.csv that have 'file_name' and 'objects'",
    splits=_splits,
)
