"""Open Images CSV: a row for each box, in 0-1 of the image, with the code of its class.

Names of classes are in `class-descriptions*.csv`. Rows with `IsGroupOf` are crowd regions. An image is named by its id.
Annotations of images that have not been downloaded are left out.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from querybox.data.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSplit,
    annotated_splits,
)
from querybox.data.findings import FindingCollector
from querybox.data.layout import locator_for, split_files
from querybox.data.locate import ImageLocator, list_files
from querybox.data.parsing import csv_columns, csv_rows, read_csv, to_numbers
from querybox.data.splits import Format, Reader
from querybox.errors import DataError, ImageError

_BOX = ("xmin", "ymin", "xmax", "ymax")


def _splits(path: Path) -> dict[str, Reader]:
    files = split_files(path, ".csv", _is_open_images)
    splits = {}
    for name, file in files.items():
        locator = locator_for(path, file)
        splits[name] = AnnotatedSplit(file, locator, partial(_parse, file, locator), locator.root == path)
    return annotated_splits(splits)


def _is_open_images(file: Path) -> bool:
    return set(csv_columns(file)) >= {"imageid", "labelname", *_BOX}


def _parse(file: Path, locator: ImageLocator, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _class_names(file, locator.root, findings)
    images: dict[str, AnnotatedImage | None] = {}
    for where, row in read_csv(file, findings):
        number, code = row["imageid"], row["labelname"]
        if not number or not code:
            findings.add(
                "malformed", f"{where}: has no {'LabelName' if number else 'ImageID'}; expected both"
            )
            continue
        if number not in images:
            there = _is_there(number, locator)
            images[number] = AnnotatedImage(name=number, where=where, relative=True) if there else None
            if not there:
                findings.add("undownloaded_image", where)
        image = images[number]
        box = to_numbers([row[side] for side in _BOX])
        if box is None:
            texts = [row[side][:40] for side in _BOX]
            findings.add(
                "malformed", f"{where}: got the box {texts}; expected numbers in XMin, YMin, XMax, YMax"
            )
        elif image is not None:
            crowd = row.get("isgroupof", "").lower() in {"1", "true"}
            image.objects.append(
                AnnotatedObject(where, names.get(code, code), (box[0], box[1], box[2], box[3]), crowd)
            )
    found = [image for image in images.values() if image is not None]
    if images and not found:
        raise DataError(
            f"{file}: none of its {len(images):,} images is in {locator.root}; download some of them"
        )
    return found


def _is_there(number: str, locator: ImageLocator) -> bool:
    try:
        return locator.find(number) is not None
    except ImageError:
        return True  # ambiguous, which is reported with the record


def _class_names(file: Path, root: Path, findings: FindingCollector) -> dict[str, str]:
    """Return the names of classes by code; those with a name that several classes have keep their code."""
    folders = [
        file.parent,
        root,
        *(folder / "metadata" for folder in (file.parent, file.parent.parent, root)),
    ]
    files = (found for folder in folders for found in list_files(folder, ".csv"))
    descriptions = next(filter(_has_descriptions, files), None)
    if descriptions is None:
        return {}
    names = {
        row[0]: row[1].strip() for row in csv_rows(descriptions, findings) if len(row) > 1 and row[1].strip()
    }
    counts = Counter(names.values())
    return {code: name for code, name in names.items() if counts[name] == 1}


def _has_descriptions(file: Path) -> bool:
    return file.stem.lower().startswith("class-descriptions") or file.name.lower() == "classes.csv"


OPEN_IMAGES = Format(
    name="Open Images",
    expected="Open Images: a .csv file with the columns ImageID, LabelName, XMin, XMax, YMin and YMax",
    splits=_splits,
)
