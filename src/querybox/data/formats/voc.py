"""Pascal VOC XML: one file per image in `Annotations/`, lists of images in `ImageSets/Main/<split>.txt`.

Corners are read as written, with pixels counted from 0 as by LabelImg and similar tools. (The challenge's own files
count pixels from 1, so their boxes are shifted by one pixel. Objects marked `difficult` are treated like others.)
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from querybox.data.findings import FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.locate import image_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import Format, Reader, by_split
from querybox.data.text import read_lines
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import listed


class _Objects(NamedTuple):
    """The content of one XML file."""

    file: Path
    size: tuple[int, int] | None  # height, width
    names: list[str]
    boxes_xyxy: list[list[float]]


def voc_splits(folder: Path) -> dict[str, Reader]:
    """Return a reader for each split of a VOC folder; without image lists, the only split is `all`."""
    if not _annotation_files(folder):
        return {}
    lists = sorted((folder / "ImageSets" / "Main").glob("*.txt"))
    # The challenge also has lists of every class, such as cat_train.txt.
    lists = [file for file in lists if "_" not in file.stem] or lists
    if not lists:
        return {"all": partial(read_voc, folder)}
    return by_split({file.stem: partial(read_voc, folder, file) for file in lists})


def read_voc(folder: Path, image_list: Path | None = None) -> DetectionData:
    """Read a VOC folder.

    An image and its XML file have the same name. The categories are the names in all XML files in alphabetical order,
    so they are the same in every split; because VOC has no ids, they get 1 ... C. Image ids are 1, 2 ... in the order
    of the list. Problems of files and objects are among the data's `findings`.

    Args:
        folder: Contains `Annotations/`, and images in `JPEGImages/`, in `images/`, directly, or beside the XML files.
        image_list: Text file with one image name per line; None for all images.

    Raises:
        DataError: Listed XML files are missing, or all images are.
    """
    source = image_list or folder / "Annotations"
    findings = FindingCollector(source)
    files = {file.stem: file for file in _annotation_files(folder)}
    parsed = {stem: _parse_or_note(file, findings) for stem, file in files.items()}
    names = sorted({name for objects in parsed.values() for name in objects.names})
    stems = _read_list(image_list) if image_list else list(files)
    missing = [stem for stem in stems if stem not in parsed]
    if missing:
        raise DataError(f"{source}: {len(missing)} of {len(stems)} XML files are missing: {listed(missing)}")

    folders = _image_folders(folder)
    images = {file.stem: file for parent in reversed(folders) for file in image_files(parent)}
    labels = {name: label for label, name in enumerate(names)}
    records = [
        _record(number, images.get(stem, folders[0] / f"{stem}.jpg"), parsed[stem], labels, findings)
        for number, stem in enumerate(stems, start=1)
    ]
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=label + 1, name=name) for name, label in labels.items()),
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )
    return require_any_image(data, folders)


def _annotation_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("Annotations/*.xml")) or sorted(folder.glob("annotations/*.xml"))


def _image_folders(folder: Path) -> list[Path]:
    folders = [folder / name for name in ("JPEGImages", "images")]
    return [path for path in folders if path.is_dir()] or [folder]


def _read_list(file: Path) -> list[str]:
    stems = [line for line in read_lines(file) if line]
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: images must be listed once; repeated: {listed(repeated)}")
    return stems


def _record(
    number: int, image: Path, objects: _Objects, labels: dict[str, int], findings: FindingCollector
) -> ImageRecord | None:
    size = objects.size or read_size_or_note(image, number, findings)
    if size is None:
        return None
    return make_record(
        id=number,
        path=image,
        width=size[1],
        height=size[0],
        boxes_xyxy=objects.boxes_xyxy,
        labels=[labels[name] for name in objects.names],
        findings=findings,
        locate=lambda index: f"{objects.file}, object {index + 1}",
        size_stated=objects.size is not None,
    )


def _parse_or_note(file: Path, findings: FindingCollector) -> _Objects:
    """Parse an XML file; if that fails, add a finding and return no objects."""
    try:
        return _parse(file)
    except DataError as error:
        findings.add("malformed", str(error))
        return _Objects(file=file, size=None, names=[], boxes_xyxy=[])


def _parse(file: Path) -> _Objects:
    try:
        root: Element = fromstring(file.read_bytes(), forbid_dtd=True)
    except ParseError as error:
        raise DataError(f"{file}: is not well-formed XML: {error}") from None
    except DefusedXmlException:
        raise DataError(
            f"{file}: declares a document type or entities, which are not allowed; remove them"
        ) from None
    except (OSError, ValueError, LookupError) as error:  # unreadable; unknown or multi-byte encodings
        raise DataError(f"{file}: cannot be read as XML: {error}") from None
    objects = root.findall("object")
    boxes = [_box(file, number, item) for number, item in enumerate(objects, start=1)]
    height, width = _pixels(root.findtext("size/height")), _pixels(root.findtext("size/width"))
    return _Objects(
        file=file,
        size=(height, width) if height and width else None,
        names=[_name(file, number, item) for number, item in enumerate(objects, start=1)],
        boxes_xyxy=boxes,
    )


def _name(file: Path, number: int, item: Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: object {number} has no name; expected <name>class</name>")
    return name


def _box(file: Path, number: int, item: Element) -> list[float]:
    texts = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        return [float(text or "") for text in texts]
    except ValueError:
        raise DataError(
            f"{file}: object {number} has the box {texts}; expected numbers in xmin, ymin, xmax and ymax of <bndbox>"
        ) from None


def _pixels(text: str | None) -> int | None:
    """Return a side of the image; None if it is invalid, because some tools write 0 or nothing."""
    try:
        side = int(float(text or 0))
    except (ValueError, OverflowError):
        return None
    return side if 0 < side <= MAX_PIXELS else None


VOC = Format(name="Pascal VOC", expected="Pascal VOC: a folder with Annotations/*.xml", splits=voc_splits)
