"""CreateML JSON: a list of images, each with objects as a label and the center, width and height of a box in pixels.

Apple's documentation names the keys `imagefilename` and `annotation`; Roboflow (`<split>/_annotations.createml.json`)
and other tools write `image` and `annotations`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import FindingCollector
from querybox.data.parsing import Name, Number, json_head, read_json, validation_problem
from querybox.data.splits import Format


class _Coordinates(BaseModel):
    x: Number  # of the center
    y: Number
    width: Number
    height: Number


class _Object(BaseModel):
    label: Name
    coordinates: _Coordinates


class _Image(BaseModel):
    name: Name = Field(validation_alias=AliasChoices("image", "imagefilename"))
    annotations: list[Any] = Field(validation_alias=AliasChoices("annotations", "annotation"))


def _is_createml(file: Path) -> bool:
    content = json_head(file)
    first = content[0] if isinstance(content, list) and content else None
    return (
        isinstance(first, dict)
        and not first.keys().isdisjoint({"imagefilename", "image"})
        and not first.keys().isdisjoint({"annotations", "annotation"})
    )


def _parse(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    images = []
    entries = read_json(file, "a list of images with 'image' and 'annotations'", findings)
    for index, entry in enumerate(entries):
        where = f"{file}, [{index}]"
        try:
            parsed = _Image.model_validate(entry)
        except ValidationError as error:
            findings.add(
                "malformed", f"{where}: {validation_problem(error)}; expected 'image' and 'annotations'"
            )
            continue
        image = AnnotatedImage(name=parsed.name, where=where)
        for number, item in enumerate(parsed.annotations):
            _add_object(image, f"{where}.annotations[{number}]", item, findings)
        images.append(image)
    return images


def _add_object(image: AnnotatedImage, where: str, item: Any, findings: FindingCollector) -> None:
    try:
        parsed = _Object.model_validate(item)
    except ValidationError as error:
        what = (
            f"{where}: {validation_problem(error)}; expected 'label' and 'coordinates' (x, y, width, height)"
        )
        findings.add("malformed", what)
        return
    box = parsed.coordinates
    x0, y0 = box.x - box.width / 2, box.y - box.height / 2
    image.objects.append(AnnotatedObject(where, parsed.label, (x0, y0, x0 + box.width, y0 + box.height)))


CREATEML = Format(
    name="CreateML",
    expected="CreateML: a .json file, a list of images with 'image' and 'annotations'",
    splits=partial(splits_by_file, suffix=".json", recognises=_is_createml, parse=_parse),
)
