"""The detections of one image, and their conversion to the formats of other libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import batched_nms

from querybox.arguments import is_number, require_number, require_type
from querybox.boxes import to_cxcywh
from querybox.data.image import read_image
from querybox.errors import ConfigError, ImageError, requires_extra
from querybox.html import PICTURE_SIDE, jpeg_url, render
from querybox.inference.panoptic import PanopticSegmentation
from querybox.masks import Rle
from querybox.structures import Category, PixelRange, at_least_float32
from querybox.text import listed

if TYPE_CHECKING:
    import supervision

SHOWN = 20
"""Maximum number of table rows in Jupyter."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """The detected objects of one image, sorted by descending score. All tensors are on the CPU."""

    boxes_xyxy: Float[Tensor, "N 4"]
    """Corners (x1, y1, x2, y2) in pixels of the original image."""
    scores: Float[Tensor, " N"]
    """0-1, descending."""
    labels: Int[Tensor, " N"]
    """Class of each detection, 0 ... C-1."""
    categories: tuple[Category, ...]
    """The classes, by label."""
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    source: str = ""
    """Path of the image, ``"video.mp4#12"`` for frame 12 of a video, or ``""`` for an image in memory."""
    pixel_range: PixelRange | None = None
    """How the image was read if it has more than 8 bits; see `Preprocessing.pixel_range`."""
    views: int = 1
    """Number of views that were searched: 1, or that of the tiles and of the whole image."""
    masks: tuple[Rle, ...] | None = None
    """Mask of each object, within its box unless it is stuff, at the size of the original image; None without a mask
    head."""
    track_ids: Int[Tensor, " N"] | None = None
    """Number of the track of each object, 1, 2 ... in each video; 0 = in no track (yet). None without tracking."""
    time: float | None = None
    """When a live source yielded the frame, in seconds since 1970-01-01 00:00 UTC; None for files."""

    def __post_init__(self) -> None:
        """Check types and shapes, as detections may be those of another model.

        Raises:
            ConfigError: A field is something else than it is documented to be.
        """
        tensors = {"boxes_xyxy": self.boxes_xyxy, "scores": self.scores, "labels": self.labels}
        if self.track_ids is not None:
            tensors["track_ids"] = self.track_ids
        for name, value in tensors.items():
            require_type(f"Detections.{name}", value, Tensor, "a tensor: torch.tensor(...)")
            if value.device.type != "cpu" or value.requires_grad:
                raise ConfigError(
                    f"Detections got {name} on {value.device}{' with a gradient' * value.requires_grad}; expected a "
                    f"tensor on the CPU without one: {name}.detach().cpu()"
                )
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        count = self.scores.shape[0] if self.scores.ndim else 1
        expected = {name: [count, 4] if name == "boxes_xyxy" else [count] for name in tensors}
        if shapes != expected or (self.masks is not None and len(self.masks) != count):
            masks = {} if self.masks is None else {"masks": len(self.masks)}
            given = ", ".join(f"{name} {shape}" for name, shape in {**shapes, **masks}.items())
            raise ConfigError(f"Detections got {given}; expected [N, 4] boxes_xyxy and N of each other")
        self.check_categories_and_size()
        self.check_values()
        for mask in () if self.masks is None else self.masks:
            require_type("Detections.masks", mask, Rle, "an Rle of querybox.masks for each: Rle.of(pixels)")
            if mask.size != self.size:
                raise ConfigError(
                    f"Detections got a mask of {mask.size[0]}x{mask.size[1]} for an image of "
                    f"{self.size[0]}x{self.size[1]}; expected the same (height x width)"
                )

    def check_values(self) -> None:
        """Check labels and scores; see `__post_init__`."""
        types = {
            "labels": self.labels.dtype,
            "scores": self.scores.dtype,
            "boxes_xyxy": self.boxes_xyxy.dtype,
        }
        if [dtype.is_floating_point for dtype in types.values()] != [False, True, True]:
            given = ", ".join(f"{name} of {dtype}" for name, dtype in types.items())
            raise ConfigError(f"Detections got {given}; expected integers, and floating-point numbers")
        if not len(self):
            return
        low, high = self.labels.min().item(), self.labels.max().item()
        if low < 0 or high >= len(self.categories):
            raise ConfigError(
                f"Detections got labels from {low} to {high} for {len(self.categories)} categories; expected 0 to "
                f"{len(self.categories) - 1}: a label is an index into the categories, not the id of one"
            )
        least, most = self.scores.min().item(), self.scores.max().item()  # NaN if any value is
        if not 0 <= least <= most <= 1:
            raise ConfigError(f"Detections got scores from {least:g} to {most:g}; expected 0 to 1")

    def check_categories_and_size(self) -> None:
        """Check the classes and the size of the image; see `__post_init__`."""
        require_type("Detections.categories", self.categories, tuple, "a tuple of Category, by label")
        if strangers := set(map(type, self.categories)) - {Category}:
            raise ConfigError(
                f"Detections got categories of type {strangers.pop().__name__}; expected Category(id=..., name=...)"
            )
        sides = self.size if isinstance(self.size, tuple) else ()
        if len(sides) != 2 or not all(is_number(side, Integral) and side > 0 for side in sides):
            raise ConfigError(
                f"Detections got size={self.size!r}; expected (height, width) of the image in pixels, a tuple of two "
                "integers"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        """Return, for example, ``Detections('a.jpg', 3 objects: 2 cat 0.91-0.97, 1 dog 0.88)``."""
        scores: dict[str, list[float]] = {}
        for name, score in zip(self.names, self.scores.tolist(), strict=True):
            scores.setdefault(name, []).append(score)
        classes = [f"{len(each)} {name} {score_range(each)}" for name, each in scores.items()]
        count = f"{len(self)} object{'' if len(self) == 1 else 's'}"
        found = f"{count}: {listed(classes)}" if classes else count
        return f"Detections({', '.join([*([repr(self.source)] if self.source else []), found])})"

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.categories[label].name for label in self.labels.tolist()]

    def above(self, threshold: float) -> Self:
        """Return the detections that score at least `threshold` (0-1).

        Raises:
            ConfigError: `threshold` is not within 0-1.
        """
        require_number("above", "threshold", threshold, 0, 1)
        return self.where(self.scores >= threshold)

    def nms(self, iou: float) -> Self:
        """Apply class-wise non-maximum suppression with the IoU threshold `iou` (0-1).

        DETR learns to detect each object once; this helps a model that has not learned it yet.

        Raises:
            ConfigError: `iou` is not within 0-1.
        """
        require_number("nms", "iou", iou, 0, 1)
        kept = batched_nms(at_least_float32(self.boxes_xyxy), at_least_float32(self.scores), self.labels, iou)
        return self.where(kept.sort().values)

    def polygons(self) -> list[list[list[float]]]:
        """Return the outlines of each object, x1, y1, x2, y2 ... in pixels: one for each part of its mask.

        Raises:
            ConfigError: The detector has no mask head.
        """
        return [mask.polygons() for mask in self.known_masks("polygons")]

    def panoptic(self, overlap: float = 0.8) -> PanopticSegmentation:
        """Return segments that do not overlap; see `querybox.inference.panoptic`.

        Args:
            overlap: A mask of which this fraction or less (0-1) is not covered by higher-scoring ones is dropped.

        Raises:
            ConfigError: `overlap` is not within 0-1, or the detector has no mask head.
        """
        require_number("panoptic", "overlap", overlap, 0, 1)
        return PanopticSegmentation.of(
            self.known_masks("panoptic"),
            self.labels.numpy(),
            self.scores.numpy(),
            self.categories,
            self.size,
            overlap,
        )

    def known_masks(self, where: str) -> tuple[Rle, ...]:
        """Return the masks.

        Args:
            where: What needs them, for messages.

        Raises:
            ConfigError: The detector has no mask head.
        """
        if self.masks is None:
            raise ConfigError(
                f"{where}: the detections have no masks; expected those of a detector trained with model.masks=true"
            )
        return self.masks

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections as COCO results.

        ``bbox`` is (x, y, width, height) in pixels; ``segmentation`` is a compressed RLE, if there are masks;
        ``track_id`` is the number of the track, if the object is in one.
        """
        corners = self.boxes_xyxy.double()  # float64, so that x + width is the right edge exactly
        boxes_xywh = (corners - corners[:, [0, 1, 0, 1]] * corners.new_tensor([0, 0, 1, 1])).tolist()
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": self.categories[label].id, "bbox": box, "score": score}
            for box, score, label in zip(boxes_xywh, self.scores.tolist(), self.labels.tolist(), strict=True)
        ]
        if self.masks is not None:
            for result, mask in zip(results, self.masks, strict=True):
                result["segmentation"] = mask.to_coco()
        for result, track in zip(results, self.tracks(), strict=True):
            if track:
                result["track_id"] = track
        return results

    def tracks(self) -> list[int]:
        """Return `track_ids` as a list; without tracking, all are 0."""
        return [0] * len(self) if self.track_ids is None else self.track_ids.tolist()

    def to_yolo(self) -> str:
        """Return the text of a YOLO label file: a line per object, with its label and its box or polygon in 0-1.

        Without masks it is the centre, width and height of the box. With masks it is one polygon, as in segmentation
        labels: the parts of a mask are joined by lines there and back, and an object with an empty mask has no line.
        """
        height, width = self.size
        if self.masks is None:
            boxes = to_cxcywh(self.boxes_xyxy.double()) / self.boxes_xyxy.new_tensor([width, height] * 2)
            values = boxes.tolist()
        else:
            sides = np.array([width, height])
            values = [
                (np.reshape(joined_polygons(parts), (-1, 2)) / sides).ravel().tolist()
                for parts in self.polygons()
            ]
        lines = zip(self.labels.tolist(), values, strict=True)
        return "".join(
            f"{label} {' '.join(f'{value:.6g}' for value in line)}\n" for label, line in lines if line
        )

    def to_supervision(self) -> supervision.Detections:
        """Convert to ``supervision.Detections``, with the class names in ``data["class_name"]``.

        Raises:
            MissingExtraError: The package supervision is not installed.
        """
        with requires_extra("supervision", "Detections.to_supervision"):
            import supervision
        return supervision.Detections(
            xyxy=self.boxes_xyxy.numpy(),
            mask=None if self.masks is None else self.pixel_masks(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.numpy() - 1,  # -1 = in no track
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _repr_html_(self) -> str:
        """Show the detections in Jupyter as a table, and on their image if its file still exists."""
        scores = [f"{score:.2f}" for score in self.scores.tolist()]
        captions = [f"{name} {score}" for name, score in zip(self.names, scores, strict=True)]
        boxes = self.boxes_xyxy.tolist()
        corners = [[f"{edge:.0f}" for edge in box] for box in boxes]
        rows = [[name, score, *box] for name, score, box in zip(self.names, scores, corners, strict=True)]
        return render(
            "notebook/detections.html",
            detections=self,
            boxes=boxes,
            captions=captions,
            url=self._image_url(),
            rows=rows,
            shown=SHOWN,
        )

    def _image_url(self) -> str | None:
        try:
            return jpeg_url(read_image(self.source, self.size, pixel_range=self.pixel_range), PICTURE_SIDE)
        except ImageError:  # an image in memory, a video frame, or a file that no longer exists
            return None

    def pixel_masks(self) -> Bool[np.ndarray, "N H W"]:
        """Return the masks decoded: True = inside.

        Raises:
            ConfigError: The detector has no mask head.
        """
        masks = [mask.mask() for mask in self.known_masks("pixel_masks")]
        return np.stack(masks) if masks else np.zeros((0, *self.size), dtype=bool)

    def where(self, index: Bool[Tensor, " N"] | Int[Tensor, " K"]) -> Self:
        """Return some of the detections, by a mask or by indices."""
        kept = torch.arange(len(self), device="cpu")[index].tolist()
        return dataclasses.replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=None if self.masks is None else tuple(self.masks[row] for row in kept),
            track_ids=None if self.track_ids is None else self.track_ids[index],
        )


def joined_polygons(parts: list[list[float]]) -> list[float]:
    """Return several polygons as one, which goes from the first point to each of the others and back."""
    if len(parts) < 2:
        return [edge for part in parts for edge in part]
    start = parts[0][:2]
    others = [edge for part in parts[1:] for edge in part + part[:2] + start]
    return parts[0] + start + others


def score_range(scores: Sequence[float]) -> str:
    """Format the lowest and the highest of descending scores, such as ``0.91-0.97``, or only one if they are equal."""
    low, high = f"{scores[-1]:.2f}", f"{scores[0]:.2f}"
    return high if low == high else f"{low}-{high}"
