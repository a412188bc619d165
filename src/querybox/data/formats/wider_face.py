"""WIDER FACE: a list of images in a text file, each with the number of its faces and a line for each of them.

A line has left, top, width and height in pixels, and the attributes blur, expression, illumination, invalid, occlusion
and pose. An image without faces has one line of zeros. Faces that are invalid are left out.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import FindingCollector
from querybox.data.image import SUFFIXES
from querybox.data.parsing import read_head
from querybox.data.splits import Format
from querybox.data.text import read_lines

_FACE = re.compile(r"(-?\d{1,9}\s+){9}-?\d{1,9}")
_INVALID = 3
"""Index of the attribute that marks invalid faces."""


def _is_wider_face(file: Path) -> bool:
    name, count, face = [line.strip() for line in [*read_head(file).split("\n"), "", "", ""][:3]]
    return _is_image(name) and count.isdecimal() and _FACE.fullmatch(face) is not None


def _is_image(line: str) -> bool:
    return Path(line).suffix.lower() in SUFFIXES


def _parse(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    images: list[AnnotatedImage] = []
    for number, line in enumerate(read_lines(file, findings), start=1):
        where = f"{file}, line {number}"
        if _is_image(line):
            images.append(AnnotatedImage(name=line, where=where))
        elif not images or (line and not line.isdecimal() and _FACE.fullmatch(line) is None):
            what = (
                f"{where}: got {line[:80]!r}; expected an image, a number of faces, or 10 numbers of a face"
            )
            findings.add("malformed", what)
        elif _FACE.fullmatch(line):
            x, y, width, height, *attributes = map(int, line.split())
            if attributes[_INVALID]:
                findings.add("ignored_region", where)
            elif any((x, y, width, height)):  # an image without faces has a line of zeros
                images[-1].objects.append(AnnotatedObject(where, "face", (x, y, x + width, y + height)))
    return images


WIDER_FACE = Format(
    name="WIDER FACE",
    expected="WIDER FACE: a .txt file with an image, the number of its faces, and their boxes in lines of 10 numbers",
    splits=partial(splits_by_file, suffix=".txt", recognises=_is_wider_face, parse=_parse),
)
