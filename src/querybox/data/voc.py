"""Pascal VOC XML: one file an image in `Annotations/`, lists of images in `ImageSets/Main/<split>.txt`.

Corners are taken as they are written, as LabelImg and the like write them, from 0. (The challenge's own files count
pixels from 1: a shift of one pixel. Objects marked `difficult` are objects like all others.)
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from querybox.data.findings import Findings
from querybox.data.image import MAX_PIXELS, image_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    require_images,
    size_in_header,
    sound_record,
)
from querybox.data.splits import Reader, by_split
from querybox.data.text import read_lines
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import listed


class _Objects(NamedTuple):
    """What one XML file says."""

    file: Path
    size: tuple[int, int] | None  # height, width
    names: list[str]
    boxes_xyxy: list[list[float]]


def voc_splits(folder: Path) -> dict[str, Reader]:
    """Find the image lists of a VOC folder, by split; without lists, all its images are the split `all`."""
    if not _annotation_files(folder):
        return {}
    lists = sorted((folder / "ImageSets" / "Main").glob("*.txt"))
    # The challenge adds a list for every class, such as cat_train.txt.
    lists = [file for file in lists if "_" not in file.stem] or lists
    if not lists:
        return {"all": partial(read_voc, folder)}
    return by_split({file.stem: partial(read_voc, folder, file) for file in lists})


def read_voc(folder: Path, image_list: Path | None = None) -> DetectionData:
    """Read a VOC folder.

    An image and its XML share their name. The categories are the names found in all XML files, in alphabetical order,
    so that every split has the same; VOC has no ids, they get 1 ... C. Image ids are 1, 2 ... in the list's order.
    Faults of files and objects are among the data's `findings`.

    Args:
        folder: Holds `Annotations/`, and images in `JPEGImages/`, `images/`, itself, or beside the XML files.
        image_list: Text file with one image name a line; None = all images.

    Raises:
        DataError: XML files that are listed are missing, or all images are.
    """
    source = image_list or folder / "Annotations"
    findings = Findings(source)
    files = {file.stem: file for file in _annotation_files(folder)}
    parsed = {stem: _parse_or_note(file, findings) for stem, file in files.items()}
    names = sorted({name for found in parsed.values() for name in found.names})
    stems = _read_list(image_list) if image_list else list(files)
    absent = [stem for stem in stems if stem not in parsed]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(stems)} XML files are missing: {listed(absent)}")

    folders = _image_folders(folder)
    images = {file.stem: file for where in reversed(folders) for file in image_files(where)}
    labels = {name: label for label, name in enumerate(names)}
    records = [
        _record(number, images.get(stem, folders[0] / f"{stem}.jpg"), parsed[stem], labels, findings)
        for number, stem in enumerate(stems, start=1)
    ]
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=label + 1, name=name) for name, label in labels.items()),
        images=tuple(record for record in records if record is not None),
        findings=findings.all(),
    )
    return require_images(data, folders)


def _annotation_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("Annotations/*.xml")) or sorted(folder.glob("annotations/*.xml"))


def _image_folders(folder: Path) -> list[Path]:
    folders = [folder / name for name in ("JPEGImages", "images")]
    return [path for path in folders if path.is_dir()] or [folder]


def _read_list(file: Path) -> list[str]:
    stems = [line for line in read_lines(file) if line]
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: images must be listed once, these repeat: {listed(repeated)}")
    return stems


def _record(
    number: int, image: Path, found: _Objects, labels: dict[str, int], findings: Findings
) -> ImageRecord | None:
    size = found.size or size_in_header(image, number, findings)
    if size is None:
        return None
    return sound_record(
        id=number,
        path=image,
        width=size[1],
        height=size[0],
        boxes_xyxy=found.boxes_xyxy,
        labels=[labels[name] for name in found.names],
        findings=findings,
        where=lambda place: f"{found.file}, object {place + 1}",
        size_stated=found.size is not None,
    )


def _parse_or_note(file: Path, findings: Findings) -> _Objects:
    """Parse an XML file; of one that cannot be understood note so, which is an error of the dataset."""
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
            f"{file}: declares a document type or entities, which are refused; remove them"
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
    """Read a side of the image. Some tools write 0 or nothing; the image's header knows better."""
    try:
        side = int(float(text or 0))
    except (ValueError, OverflowError):
        return None
    return side if 0 < side <= MAX_PIXELS else None
