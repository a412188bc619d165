"""Findings of dataset validation: a fixed set of kinds of problems and notes, each with its cure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from querybox.data.shards import ImageFile
from querybox.text import listed

Severity = Literal["error", "warning", "note"]
Corners = tuple[float, float, float, float]

MAX_PLACES = 100_000
"""Maximum number of places stored per kind; further ones are only counted."""


class FindingKind(NamedTuple):
    """The meaning of a kind of finding."""

    severity: Severity
    """Errors prevent the use of the data; warnings affect images or objects; notes are for information."""
    meaning: str
    cure: str


_REPLACE = "excluded; replace the file, or remove the image from the annotations"
_NO_BOX = "dropped; correct or remove the box"

KINDS = {
    "malformed": FindingKind("error", "annotations that cannot be parsed", "correct them"),
    "unknown_category": FindingKind(
        "error",
        "objects of a class that the dataset does not define",
        "define the class, or correct the object",
    ),
    "repeated_image_id": FindingKind("error", "image ids that are not unique", "give each image its own id"),
    "repeated_annotation_id": FindingKind(
        "error", "annotation ids that are not unique", "give each annotation its own id"
    ),
    "repeated_category_id": FindingKind(
        "error", "category ids that are not unique", "give each class its own id"
    ),
    "repeated_category": FindingKind(
        "error", "classes with the same name, which cannot be distinguished", "rename or remove one of them"
    ),
    "normalized_boxes": FindingKind(
        "error",
        "boxes, all of them within 0-1 though the format has pixels",
        "multiply them by the width and the height of their image",
    ),
    "no_labels": FindingKind(
        "error", "images, none of which has a label file", "add the label files, or remove the images"
    ),
    "no_objects": FindingKind(
        "error", "no objects to train on or to validate on", "annotate at least one object"
    ),
    "too_many_unreadable": FindingKind(
        "error", "too many images that cannot be read", "replace them, or raise data.max_corrupt"
    ),
    "missing_image": FindingKind("warning", "missing image files", _REPLACE),
    "ambiguous_image": FindingKind(
        "warning",
        "image names that fit several files",
        "excluded; write the folders into the names, or remove the copies",
    ),
    "broken_image": FindingKind("warning", "files that are corrupt or not images", _REPLACE),
    "too_large_image": FindingKind(
        "warning",
        "images with too many pixels",
        "excluded; make them smaller, or save them as TIFFs and train on tiles, data.tile=640",
    ),
    "other_size": FindingKind(
        "warning",
        "images whose size differs from that in the annotations",
        "excluded; correct the size, or restore the image that was annotated",
    ),
    "broken_panoptic": FindingKind(
        "warning",
        "images whose panoptic PNG is missing, corrupt or of another size",
        "excluded; replace the PNG, or remove the image from the annotations",
    ),
    "unknown_range": FindingKind(
        "warning",
        "images with an unknown range of pixel values",
        "excluded; set data.depth, or save them with 8 or 16 bits",
    ),
    "beyond_range": FindingKind(
        "warning",
        "images of more than 8 bits that become nearly black or white, as their values are beyond data.depth, which "
        "weights keep",
        "used; set data.depth to the range of their values, or to 16 for all of 16 bits",
    ),
    "ambiguous_orientation": FindingKind(
        "warning",
        "images whose EXIF orientation keeps their size, so that the boxes may refer to the stored pixels or to the "
        "rotated ones",
        "assumed to be rotated; check their boxes, and store the images upright",
    ),
    "repeated_image": FindingKind(
        "warning", "images that are listed under several ids", "used several times; merge their annotations"
    ),
    "repeated_object": FindingKind(
        "warning",
        "objects with the box and the class of another one of their image",
        "used, each as an object of its own; remove the duplicates",
    ),
    "other_file_name": FindingKind(
        "warning",
        "annotation files whose <filename> names another image than their own name does",
        "the image with the name of the annotation file is used; correct <filename>",
    ),
    "unlabeled_image": FindingKind(
        "warning", "images without annotations", "not used; annotate them, or remove them"
    ),
    "unannotated_images": FindingKind(
        "warning",
        "images without objects, so many or in such an order that they may not have been annotated",
        "used as negative examples, in which all that is found is wrong; annotate or remove them if they show objects",
    ),
    "unmatched_label": FindingKind(
        "warning", "label files without an image", "not used; add the image, or remove the file"
    ),
    "unread_file": FindingKind(
        "warning", "files that are not read", "move them into the folder of a split, or remove them"
    ),
    "shared_image": FindingKind(
        "warning",
        "images that are also in another split",
        "used in both; results on them say nothing about new images: remove them from one split",
    ),
    "similar_category": FindingKind(
        "warning",
        "classes whose names differ only in case, spaces, hyphens or underscores",
        "used as different classes; give them the same name if they are one",
    ),
    "unnamed_category": FindingKind("warning", "classes without a name", "used; name them"),
    "num_classes_mismatch": FindingKind(
        "warning",
        "counts of classes that differ from the number of class names",
        "ignored; correct the count",
    ),
    "nan_box": FindingKind("warning", "boxes with a NaN", _NO_BOX),
    "infinite_box": FindingKind("warning", "boxes with an infinite coordinate", _NO_BOX),
    "zero_size_box": FindingKind("warning", "boxes without width or height", _NO_BOX),
    "negative_size_box": FindingKind("warning", "boxes with a negative width or height", _NO_BOX),
    "outside_box": FindingKind("warning", "boxes outside their image", _NO_BOX),
    "clipped_box": FindingKind("warning", "boxes that extend beyond their image", "clipped to the image"),
    "malformed_mask": FindingKind(
        "warning",
        "masks that are malformed or of another size than their image",
        "dropped; correct or remove the mask",
    ),
    "empty_mask": FindingKind(
        "warning",
        "objects with a box whose mask has no pixel",
        "used, which trains to predict no mask; draw the mask, or remove it so that only the box is used",
    ),
    "absent_segment": FindingKind(
        "warning", "segments without a pixel in their panoptic PNG", "dropped; correct their ids"
    ),
    "unlisted_segment": FindingKind(
        "warning",
        "segments of panoptic PNGs that segments_info does not list",
        "their pixels are void; list them",
    ),
    "mismatched_segment": FindingKind(
        "warning",
        "segments whose area or bbox is not that of their pixels",
        "those of the pixels are used; correct the ids or the values",
    ),
    "misplaced_mask": FindingKind(
        "warning",
        "masks whose bounding box lies mostly outside the box of their object",
        "used; correct the mask or the box",
    ),
    "unsupported_shape": FindingKind(
        "warning",
        "shapes without an extent, such as points, lines and tags",
        "not read; draw boxes, polygons or ellipses",
    ),
    "ignored_region": FindingKind(
        "note", "regions in which objects are not annotated, and invalid objects", "not read"
    ),
    "several_annotations": FindingKind(
        "warning", "tasks with several annotations", "the first is used; remove the others"
    ),
    "subpixel_box": FindingKind(
        "warning", "boxes smaller than a pixel", "used; check the unit of their coordinates"
    ),
    "xyxy_boxes": FindingKind(
        "warning",
        "boxes, more than half of all, beyond the right or bottom side of their image, as if x2 and y2 were given as "
        "width and height",
        "clipped to the image; check whether the boxes are (x1, y1, x2, y2)",
    ),
    "yx_boxes": FindingKind(
        "warning",
        "boxes beyond the sides of their image, though all boxes of the data are inside with x and y exchanged",
        "dropped or clipped to the image; check whether the boxes are (y, x, height, width), or those of the image "
        "turned by 90 degrees",
    ),
    "absent_image": FindingKind(
        "warning", "annotations of images that are not listed", "dropped; list the image"
    ),
    "too_many_objects": FindingKind(
        "warning", "objects in excess of the number of queries", "not matched; raise model.queries"
    ),
    "animation": FindingKind("note", "animated images", "only the first frame is read"),
    "other_format": FindingKind(
        "note", "images whose format differs from their file name extension", "read by content"
    ),
    "deep_image": FindingKind("note", "16-bit images", "rescaled to 8 bits"),
    "narrow_range": FindingKind(
        "note",
        "images of 16 bits whose values use less than a quarter of the range",
        "training determines the range of all training images and keeps it with the weights (data.depth)",
    ),
    "other_encoding": FindingKind(
        "note", "text files that are not UTF-8", "read in another encoding; check the class names"
    ),
    "string_id": FindingKind(
        "note", "ids that are not numbers", "numbered 1, 2 ... in the order of the file"
    ),
    "embedded_image": FindingKind(
        "note", "images inside of Parquet files", "written once to files in a hidden folder beside them"
    ),
    "copied_annotations": FindingKind("note", "copies of the annotations in another format", "not read"),
    "ignored_key": FindingKind("note", "settings of the dataset that are not used", "ignored"),
    "moved_path": FindingKind(
        "note", "paths that do not exist", "the path with the same ending in the dataset's folder is used"
    ),
    "keypoints": FindingKind("note", "objects with keypoints", "only their box is used"),
    "difficult_object": FindingKind(
        "note",
        "objects marked as difficult",
        "used like others; the evaluation of Pascal VOC ignores them, so that its results differ",
    ),
    "unlabeled_negative": FindingKind("note", "images without a label file", "used as negative examples"),
    "no_area": FindingKind("note", "objects without an area above 0", "the area of the box is used"),
    "no_iscrowd": FindingKind("note", "objects without iscrowd", "treated as single objects"),
    "boxed_shape": FindingKind(
        "note", "polygons and other shapes that are not upright boxes", "their bounding boxes are used"
    ),
    "undownloaded_image": FindingKind(
        "note", "annotated images that are not in the dataset's folder", "left out"
    ),
    "unused_category": FindingKind("note", "classes without objects", "kept"),
    "no_mask": FindingKind(
        "note", "objects without a mask in a dataset with masks", "their images are used to train boxes only"
    ),
    "crowd": FindingKind("note", "crowd regions", "not used in training, ignored in evaluation"),
    "negative": FindingKind("note", "images without objects", "used as negative examples"),
}
"""All kinds, in the order of reports."""

UNREADABLE = frozenset(
    {
        "missing_image",
        "ambiguous_image",
        "broken_image",
        "too_large_image",
        "other_size",
        "broken_panoptic",
        "unknown_range",
    }
)
"""Kinds of findings for which an image is excluded."""
BOXES = ("nan_box", "infinite_box", "zero_size_box", "negative_size_box", "outside_box", "clipped_box")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One occurrence of a finding, or several at one place."""

    what: str
    """Its location in the file and its content, in one line."""
    image_id: int | None = None
    path: ImageFile | None = None
    """The image file."""
    box_xyxy: Corners | None = None
    """The invalid box in pixels, as given in the file."""
    size: tuple[int, int] | None = None
    """(height, width) of the image that the box refers to, in pixels."""
    count: int = 1
    """Number of occurrences, such as objects of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """A kind of finding in a dataset, with all its places."""

    kind: str
    """A key of `KINDS`."""
    file: Path | str
    """The dataset's file or folder, or its URL without credentials."""
    count: int
    places: tuple[Place, ...] = field(repr=False)
    """The places, at most `MAX_PLACES`, in the order of the file."""

    @property
    def severity(self) -> Severity:
        """The severity of the kind."""
        return KINDS[self.kind].severity

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the affected images, without duplicates."""
        ids = (place.image_id for place in self.places)
        return tuple(dict.fromkeys(number for number in ids if number is not None))

    def summary(self, max_places: int) -> str:
        """Return the finding in one line, with its first `max_places` places."""
        kind = KINDS[self.kind]
        places = listed([place.what for place in self.places], max_places, separator="; ")
        return f"{kind.meaning} ({self.count:,}: {places}): {kind.cure}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-serialisable values."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "meaning": kind.meaning,
            "cure": kind.cure,
            "file": str(self.file),
            "count": self.count,
            "image_ids": list(self.image_ids),
            "places": [place.what for place in self.places],
        }


class FindingCollector:
    """Collects the findings of one dataset."""

    def __init__(self, file: Path | str, known: Sequence[DataFinding] = ()) -> None:
        """Start with the `known` findings of the dataset `file`."""
        self.file = file
        self.places: defaultdict[str, list[Place]] = defaultdict(list)
        self.counts: defaultdict[str, int] = defaultdict(int)
        for finding in known:
            self.places[finding.kind] += finding.places
            self.counts[finding.kind] += finding.count

    def add(
        self,
        kind: str,
        what: str,
        *,
        image_id: int | None = None,
        path: ImageFile | None = None,
        box_xyxy: Corners | None = None,
        size: tuple[int, int] | None = None,
        count: int = 1,
    ) -> None:
        """Add a place with `count` occurrences."""
        self.counts[kind] += count
        if len(self.places[kind]) < MAX_PLACES:
            place = Place(what=what, image_id=image_id, path=path, box_xyxy=box_xyxy, size=size, count=count)
            self.places[kind].append(place)

    def by_kind(self) -> tuple[DataFinding, ...]:
        """Return one finding per kind, in the order of `KINDS`."""
        return tuple(
            DataFinding(kind=kind, file=self.file, count=self.counts[kind], places=tuple(self.places[kind]))
            for kind in KINDS
            if self.counts[kind]
        )
