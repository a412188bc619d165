"""Pascal VOC XML: one file per image, in `Annotations/` or beside the images; lists of images in `ImageSets/Main/`."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PureWindowsPath

from querybox.data.findings import DataFinding, FindingCollector
from querybox.data.formats.voc_masks import MASKS, read_masks
from querybox.data.formats.voc_xml import Annotation, parse_voc
from querybox.data.image import SUFFIXES
from querybox.data.layout import split_folder
from querybox.data.locate import ImageLocator, find_files, list_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import SPLITS, Format, Reader, by_split, split_name
from querybox.data.text import read_lines, read_start
from querybox.errors import DataError, ImageError
from querybox.files import comparable
from querybox.masks import Region
from querybox.structures import Category
from querybox.text import listed

_FOLDERS = frozenset({"annotation", "annotations", "annots", "labels", "xml", "xmls"})
"""Names of folders (lower case) of annotation files, beside those of the images."""
_IMAGE_FOLDERS = ("JPEGImages", "images")
_RECOGNISED = 1024
"""Number of bytes at the beginning of a file by which it is recognised."""
_ROOT = re.compile(rb"<annotation[\s>]")
_FLAG = re.compile(r"\s+-?[01]$")
"""Whether an object of a list's class is in the image, after its name."""


def voc_splits(path: Path) -> dict[str, Reader]:
    """Return a reader for each split of a VOC folder, which has XML files of the format in it or its subfolders.

    The splits are the lists in `ImageSets/Main`; without lists, the folders with the names of splits (`train/`,
    `Annotations/val/`); otherwise the only split is `all`. The challenge and VoTT also have a list of every class and
    split, such as `cat_train.txt`; the images of a split are those in any of its lists.
    """
    if not path.is_dir():
        return {}
    root = path.parent if path.name.lower() in _FOLDERS else path
    files = find_files(path, {".xml"})
    if not any(map(_is_voc, islice(files, 20))):
        return {}
    dataset = VocFiles(root, path)
    if lists := _lists(root):
        return by_split({name: partial(read_voc, dataset, lists=found) for name, found in lists.items()})
    folders = sorted({split for file in files if (split := split_folder(file.parent, root))})
    if not folders:
        return {"all": partial(read_voc, dataset)}
    return by_split({name: partial(read_voc, dataset, folder=name) for name in folders})


class VocFiles:
    """The XML files of a dataset, which are parsed once for all its splits.

    Attributes:
        root: Contains the XML files and the images.
        folder: Contains the XML files, itself or in its subfolders.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder

    @cached_property
    def parsed(self) -> tuple[list[Annotation], tuple[DataFinding, ...]]:
        """The content of all files in sorted order, and what was found in them."""
        findings = FindingCollector(self.root)
        annotations = [parse_voc(file, findings) for file in find_files(self.folder, {".xml"})]
        return [annotation for annotation in annotations if annotation is not None], findings.by_kind()


def read_voc(dataset: VocFiles, *, lists: Sequence[Path] = (), folder: str | None = None) -> DetectionData:
    """Read one split of a VOC folder.

    An image has the name of its XML file; if there is no such image, that in `<filename>`. The categories are the
    names in all XML files in alphabetical order, so they are the same in every split; because VOC has no ids, they get
    1 ... C. Image ids are 1, 2 ... in order. Corners are read as written, with pixels counted from 0 as by LabelImg and
    similar tools. (The challenge's own files count pixels from 1, so their boxes are shifted by one pixel.) Objects
    marked `difficult` are treated like others. For masks see `voc_masks`. Problems are among the data's `findings`.

    Args:
        dataset: The XML files of all splits.
        lists: Text files with one image name per line; the split has the images in any of them.
        folder: Name of the folders that contain the split's files; None for all files.

    Raises:
        DataError: Listed XML files are missing, or all images are.
    """
    root = dataset.root
    source = lists[0] if lists else (root / folder if folder and (root / folder).is_dir() else root)
    annotations, known = dataset.parsed
    findings = FindingCollector(source, known)
    names = sorted({name for annotation in annotations for name in annotation.names})
    if lists:
        chosen = _listed(lists, annotations, root, findings)
    elif folder is not None:
        chosen = [one for one in annotations if split_folder(one.file.parent, root) == folder]
    else:
        chosen = annotations
    locator = ImageLocator(root, [root / name for name in _IMAGE_FOLDERS])
    reader = _RecordReader(root, locator, {name: label for label, name in enumerate(names)}, findings)
    reader.note_others(annotations, folder)
    records = [reader.read(number, annotation) for number, annotation in enumerate(chosen, start=1)]
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=number, name=name) for number, name in enumerate(names, start=1)),
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )
    return require_any_image(data, locator.folders)


def _is_voc(file: Path) -> bool:
    return _ROOT.search(read_start(file, _RECOGNISED).replace(b"\0", b"")) is not None


def _lists(root: Path) -> dict[str, list[Path]]:
    """Return the image lists of each split."""
    files = list_files(root / "ImageSets" / "Main", ".txt")
    if whole := [file for file in files if "_" not in file.stem]:
        return {file.stem: [file] for file in whole}
    lists: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        last = file.stem.rpartition("_")[2]
        is_split = last == "trainval" or split_name(last) in SPLITS
        lists[last if is_split else file.stem].append(file)
    return dict(lists)


def _listed(
    lists: Sequence[Path], annotations: Sequence[Annotation], root: Path, findings: FindingCollector
) -> list[Annotation]:
    """Return the XML files of the images in the lists, which may state folders and suffixes, in their order."""
    by_stem: defaultdict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_stem[annotation.file.stem].append(annotation)
    chosen: dict[str, Annotation] = {}
    missing = []
    for image_list in lists:
        names = [_FLAG.sub("", line) for line in read_lines(image_list, findings) if line]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise DataError(f"{image_list}: images must be listed once; repeated: {listed(repeated)}")
        for name in names:
            match _named(name, by_stem):
                case []:
                    missing.append(name)
                case [one]:
                    chosen[one.path] = one
                case [first, *_]:
                    missing.append(f"{name} (several, e.g. {first.file.relative_to(root)})")
    if missing:
        raise DataError(
            f"{lists[0]}: {len(missing)} of {len(missing) + len(chosen)} XML files are missing: {listed(missing)}"
        )
    return list(chosen.values())


def _named(name: str, by_stem: Mapping[str, list[Annotation]]) -> list[Annotation]:
    """Return the XML files that a name in a list means, given those of each stem; its folders tell several apart."""
    path = name.replace("\\", "/")
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - a string
    if suffix.lower() not in SUFFIXES | {".xml"}:
        stem = path
    found = by_stem.get(stem.rpartition("/")[2], [])
    if len(found) == 1:
        return found
    return [one for one in found if one.file.with_suffix("").as_posix().endswith("/" + stem)]


class _RecordReader:
    def __init__(
        self, root: Path, locator: ImageLocator, labels: Mapping[str, int], findings: FindingCollector
    ) -> None:
        self.root = root
        self.locator = locator
        self.labels = labels
        self.findings = findings
        folder = root / MASKS
        self.masks = folder if folder.is_dir() else None

    def read(self, number: int, annotation: Annotation) -> ImageRecord | None:
        """Create the record of an image; None if it is excluded."""
        try:
            image = self._image(annotation)
        except ImageError as error:
            self.findings.add(error.kind, f"{annotation.file}: {error}", image_id=number)
            return None
        size = annotation.size or read_size_or_note(image, number, self.findings)
        if size is None:
            return None
        for place in annotation.difficult:
            what = f"{annotation.file}, object {place}"
            self.findings.add("difficult_object", what, image_id=number, path=image)
        return make_record(
            id=number,
            path=image,
            size=size,
            boxes_xyxy=annotation.boxes_xyxy,
            labels=[self.labels[name] for name in annotation.names],
            findings=self.findings,
            locate=lambda index: f"{annotation.file}, object {index + 1}",
            size_stated=annotation.size is not None,
            masks=self._masks(annotation, number, image),
        )

    def _masks(self, annotation: Annotation, number: int, image: Path) -> Sequence[Region | None]:
        """Return the masks of the objects of an image: those of the PNG, or the polygons of the XML file."""

        def report(problem: str) -> None:
            self.findings.add("malformed_mask", problem, image_id=number, path=image)

        masks = self.masks and read_masks(self.masks / f"{image.stem}.png", annotation.boxes_xyxy, report)
        return masks or annotation.regions

    def note_others(self, annotations: Iterable[Annotation], folder: str | None) -> None:
        """Add findings for the files that belong to no split, and for images without an XML file."""
        stems = set()
        for annotation in annotations:
            stems |= {
                comparable(name.stem) for name in (annotation.file, PureWindowsPath(annotation.file_name))
            }
            if folder is not None and split_folder(annotation.file.parent, self.root) is None:
                self.findings.add("unread_file", f"{annotation.file}: is in no folder of a split")
        for path in self.locator.others(used=()):
            image = self.root / path
            if comparable(image.stem) not in stems and split_folder(image.parent, self.root) in {
                None,
                folder,
            }:
                self.findings.add("unlabeled_image", str(image))

    def _image(self, annotation: Annotation) -> Path:
        """Return the image with the name of the XML file, otherwise the one in `<filename>`.

        Raises:
            ImageError: There are several.
        """
        file = annotation.file.relative_to(self.root)
        folders = [part for part in file.parts[:-1] if part.lower() not in _FOLDERS]
        written = PureWindowsPath(annotation.file_name)  # which has slashes of both kinds
        suffix = written.suffix if written.suffix.lower() in SUFFIXES else ""
        own = self.locator.find("/".join([*folders, file.stem + suffix]))
        names_other = written.stem not in {file.stem, ""}
        if own is None and names_other:
            return self.locator.find(annotation.file_name) or self.locator.folders[0] / written.name
        if own is None:
            return self.locator.folders[0] / (file.stem + (suffix or ".jpg"))
        if names_other and self._find_unique(annotation.file_name) not in {None, own}:
            self.findings.add("other_file_name", f"{annotation.file}: {annotation.file_name}")
        return own

    def _find_unique(self, name: str) -> Path | None:
        try:
            return self.locator.find(name)
        except ImageError:
            return None


VOC = Format(
    name="Pascal VOC",
    expected="Pascal VOC: a folder with .xml files, in Annotations/ or beside the images",
    splits=voc_splits,
)
