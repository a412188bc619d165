"""VisDrone-DET text: a file in `annotations/` for each image in `images/`, with a line for each object.

A line is `left,top,width,height,score,category,truncation,occlusion` in pixels; the categories are those of the
benchmark (https://github.com/VisDrone/VisDrone2018-DET-toolkit). Objects with the score 0 are ignored in evaluation:
regions in which objects are not annotated, and the category `others`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_image
from querybox.data.findings import FindingCollector
from querybox.data.locate import ImageLocator
from querybox.data.splits import Format
from querybox.data.text import read_lines, read_start
from querybox.structures import Category

_NAMES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
"""Names of the categories 1 to 10; 0 are ignored regions, and 11 others."""
_LINE = re.compile(r"(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9}),([01]),(\d|10|11),-?\d+,-?\d+,?")


def _is_visdrone(file: Path) -> bool:
    first = read_start(file, 256).decode(errors="replace").partition("\n")[0].strip()
    return file.parent.name.lower() == "annotations" and _LINE.fullmatch(first) is not None


def _categories(names: Collection[str]) -> tuple[Category, ...]:
    assert set(names) <= set(_NAMES)
    return tuple(Category(id=number, name=name) for number, name in enumerate(_NAMES, start=1))


def _parse(file: Path, locator: ImageLocator, findings: FindingCollector) -> AnnotatedImage:
    folder = file.parent.parent.relative_to(locator.root)
    image = AnnotatedImage(name=(folder / "images" / file.stem).as_posix(), where=str(file))
    for number, line in enumerate(read_lines(file, findings), start=1):
        where = f"{file}, line {number}"
        if not line:
            continue
        if (found := _LINE.fullmatch(line)) is None:
            findings.add("malformed", f"{where}: got {line[:80]!r}; expected 8 whole numbers of VisDrone")
            continue
        x, y, width, height, score, category = map(int, found.groups())
        if score == 0 or not 1 <= category <= len(_NAMES):
            findings.add("ignored_region", where)
        else:
            image.objects.append(AnnotatedObject(where, _NAMES[category - 1], (x, y, x + width, y + height)))
    return image


VISDRONE = Format(
    name="VisDrone",
    expected="VisDrone: a folder with images/, and annotations/ with a .txt file for each image",
    splits=partial(
        splits_by_image, suffix=".txt", recognises=_is_visdrone, parse=_parse, categorize=_categories
    ),
)
