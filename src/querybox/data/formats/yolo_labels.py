"""YOLO label files, which have a line for each object; see `querybox.data.formats.yolo_lines`.

The label file of `images/a/b.jpg` is `labels/a/b.txt`; without such a file, or if no parent is named `images`, it is
`b.txt` beside the image. An image without a label file, or with an empty one, is a negative example.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from unicodedata import normalize

from querybox.data.class_names import note_repeated_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.yolo_lines import LabelledObject, LabelParser, Names
from querybox.data.locate import find_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.text import read_lines, read_start
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import listed

LABEL_FOLDERS = {"images": "labels", "image": "label"}
"""Names of the folders of label files by that of the images."""

NAMES_FILES = (
    "classes.txt",
    "obj.names",
    "_darknet.labels",  # Roboflow
    "names.txt",
    "labels.txt",
    "predefined_classes.txt",
)
"""Files with one class name per line, which tools also write among the label files; in lower case."""


def read_yolo(
    source: Path,
    images: Mapping[int, Path],
    names: Names,
    findings: FindingCollector,
    *,
    label_folder: Path | None = None,
    has_keypoints: bool = False,
) -> DetectionData:
    """Read the labels of `images`.

    Category ids are the class numbers of the label files, including gaps. Sizes are read from the images. Problems of
    lines and images are among the data's `findings`.

    Args:
        source: The dataset, for messages.
        images: The image files by id.
        names: Class names by class number.
        findings: Collects problems; may have some already.
        label_folder: Folder that contains label files of `images` alone, so that others are reported.
        has_keypoints: Whether lines have keypoints after the box, which are ignored.

    Raises:
        DataError: There are no images, or some are listed twice.
    """
    if not images:
        raise DataError(f"{source}: no images; a dataset needs at least one")
    repeated = [path for path, count in Counter(images.values()).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: images must be listed once; repeated: {listed(repeated)}")
    note_repeated_names(names, findings)
    reader = _RecordReader(names, findings, has_keypoints)
    records = [reader.read(number, path) for number, path in images.items()]
    reader.note_files(source, label_folder)
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=number, name=names[number]) for number in reader.parser.labels),
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )
    return require_any_image(data, list(dict.fromkeys(path.parent for path in images.values()))[:3])


def find_names_file(folders: Iterable[Path]) -> Path | None:
    """Return the first of `NAMES_FILES` in the first of the folders that has one, also with a capital letter."""
    names = [spelling for name in NAMES_FILES for spelling in (name, name.capitalize())]
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def label_folder_of(images: Path) -> Path:
    """Return the folder of the label files for a folder of images: `images` in its path is replaced by `labels`.

    `image` is replaced by `label`, and a capital letter is kept.
    """
    parts = list(images.parts)
    for place in range(len(parts) - 1, -1, -1):
        if (labels := LABEL_FOLDERS.get(parts[place].lower())) is not None:
            parts[place] = labels.title() if parts[place].istitle() else labels
            break
    return Path(*parts)


def is_label_file(file: Path) -> bool:
    """Return whether a text file looks like labels, by its first line; an empty one does."""
    try:
        fields = read_start(file, 1024).split(b"\n", 1)[0].replace(b",", b" ").split()
        numbers = [float(field) for field in fields[1:]]
        is_named = len(fields) == 5 and all(0 <= number <= 1 for number in numbers)
        return not fields or (len(fields) >= 5 and (is_named or math.isfinite(float(fields[0]))))
    except (OSError, ValueError):
        return False


def _label_file(image: Path) -> Path | None:
    """Return the label file of an image; None if there is none. The Unicode normal form of the name may differ."""
    stems = dict.fromkeys([image.stem, *(normalize(form, image.stem) for form in ("NFC", "NFD"))])
    folders = (label_folder_of(image.parent), image.parent)
    files = (
        folder / f"{stem}{suffix}" for folder in folders for stem in stems for suffix in (".txt", ".TXT")
    )
    return next((file for file in files if file.is_file()), None)


class _RecordReader:
    def __init__(self, names: Names, findings: FindingCollector, has_keypoints: bool) -> None:
        self.parser = LabelParser(names, has_keypoints=has_keypoints)
        self.findings = findings
        self.label_files: set[Path] = set()
        """The name without suffix, whose case some systems ignore."""
        self.unlabeled: list[tuple[int, Path]] = []

    def read(self, number: int, image: Path) -> ImageRecord | None:
        """Create the record of an image; None if it is excluded."""
        file = _label_file(image)
        if file is not None:
            self.label_files.add(file.with_suffix(""))
        size = read_size_or_note(image, number, self.findings)
        if size is None:
            return None
        if file is None:
            self.unlabeled.append((number, image))
        height, width = size
        objects = [] if file is None else self._objects(file, number)
        return make_record(
            id=number,
            path=image,
            size=size,
            boxes_xyxy=[
                (x0 * width, y0 * height, x1 * width, y1 * height)
                for x0, y0, x1, y1 in (one.box_xyxy for one in objects)
            ],
            labels=[one.label for one in objects],
            findings=self.findings,
            locate=lambda index: f"{file}, line {objects[index].line}",
            size_stated=False,
            masks=[one.region(width, height) for one in objects],
        )

    def note_files(self, source: Path, label_folder: Path | None) -> None:
        """Add findings for images without label files and label files without images."""
        if self.unlabeled and not self.label_files:
            where = label_folder or label_folder_of(self.unlabeled[0][1].parent)
            what = f"{source}: label files are expected in {where}"
            self.findings.add("no_labels", what, count=len(self.unlabeled))
        else:
            for number, image in self.unlabeled:
                self.findings.add("unlabeled_negative", str(image), image_id=number, path=image)
        if label_folder is not None and label_folder.is_dir():
            for file in find_files(label_folder, {".txt"}):
                is_read = file.with_suffix("") in self.label_files
                if not is_read and file.name.lower() not in NAMES_FILES and is_label_file(file):
                    self.findings.add("unmatched_label", str(file))

    def _objects(self, file: Path, image_id: int) -> list[LabelledObject]:
        """Return the objects in a label file; add findings for lines that are invalid."""
        try:
            lines = read_lines(file, self.findings)
        except DataError as error:
            self.findings.add("malformed", str(error), image_id=image_id)
            return []
        return self.parser.objects(str(file), lines, self.findings, image_id=image_id)
