"""KITTI text: a file for each image, with a line for each object, whose corners are in pixels.

A line has the class, truncation, occlusion, angle, left, top, right and bottom, and seven values of the object in space
(https://github.com/bostondynamics/kitti): 15 values, or 16 with a score. Labels in `label_2/` belong to the images in
`image_2/`, those in `labels/` to `images/`. `DontCare` are regions in which objects are not annotated.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_image
from querybox.data.findings import FindingCollector
from querybox.data.locate import ImageLocator
from querybox.data.parsing import to_numbers
from querybox.data.splits import Format
from querybox.data.text import read_lines, read_start

_NUM_VALUES = (15, 16)
_IGNORED = "DontCare"


def _is_kitti(file: Path) -> bool:
    fields = read_start(file, 1024).partition(b"\n")[0].decode(errors="replace").split()
    return (
        len(fields) in _NUM_VALUES and to_numbers(fields[:1]) is None and to_numbers(fields[1:]) is not None
    )


def _parse(file: Path, locator: ImageLocator, findings: FindingCollector) -> AnnotatedImage:
    folder = file.parent.relative_to(locator.root)
    images = folder.with_name(folder.name.replace("label", "image")) if folder.name else folder
    image = AnnotatedImage(name=(images / file.stem).as_posix(), where=str(file))
    for number, line in enumerate(read_lines(file, findings), start=1):
        where = f"{file}, line {number}"
        category, *fields = line.split() or [""]
        values = to_numbers(fields)
        if category == _IGNORED:
            findings.add("ignored_region", where)
        elif category and (values is None or 1 + len(values) not in _NUM_VALUES):
            findings.add("malformed", f"{where}: got {line[:80]!r}; expected a class and 14 numbers")
        elif category and values:
            image.objects.append(
                AnnotatedObject(where, category, (values[3], values[4], values[5], values[6]))
            )
    return image


KITTI = Format(
    name="KITTI",
    expected="KITTI: a folder with label_2/ and image_2/",
    splits=partial(splits_by_image, suffix=".txt", recognises=_is_kitti, parse=_parse),
)
