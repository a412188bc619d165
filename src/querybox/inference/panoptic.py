"""Panoptic segmentation: masks, which may overlap, become segments, which do not.

The rule is that of transformers' `post_process_panoptic_segmentation` for masks of zeros and ones: a pixel belongs to
the highest-scoring mask that covers it, masks that are mostly covered by others are dropped, and all stuff of a class
is one segment. Segments of a few pixels are dropped, too, as by DETR (Carion et al., 2020).

Legend: N masks, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from querybox.data.formats.panoptic_png import colours, segment_id
from querybox.masks import Rle, mask_numbers
from querybox.structures import Category

MIN_AREA = 5
"""Smallest number of pixels of a segment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PanopticSegmentation:
    """The segments of an image."""

    numbers: Int32[np.ndarray, "H W"]
    """Segment of each pixel, 1 ... S; 0 = void."""
    labels: Int[np.ndarray, " S"]
    """Class of each segment, 0 ... C-1. An image has at most one segment of each class of stuff."""
    scores: Float[np.ndarray, " S"]
    """0-1, descending; the highest of the masks of a segment."""
    categories: tuple[Category, ...]
    """The classes, by label."""

    @classmethod
    def of(
        cls,
        masks: Sequence[Rle],
        labels: Int[np.ndarray, " N"],
        scores: Float[np.ndarray, " N"],
        categories: tuple[Category, ...],
        size: tuple[int, int],
        overlap: float,
    ) -> Self:
        """Convert masks to segments.

        Args:
            masks: The masks, by descending score.
            labels: Class of each mask.
            scores: Score of each mask, 0-1.
            categories: The classes, by label.
            size: (height, width) of the image in pixels.
            overlap: A mask of which this fraction or less (0-1) is not covered by higher-scoring ones is dropped.
        """
        owners = mask_numbers(masks, size)
        visible = np.bincount(owners.ravel(), minlength=len(masks) + 1)[1:]
        areas = np.array([mask.area for mask in masks], dtype=np.int64)
        segments: dict[tuple[int, int], list[int]] = {}  # the masks of each
        for index in np.flatnonzero(visible > overlap * areas).tolist():
            label = int(labels[index])
            segments.setdefault((label, -1 if categories[label].stuff else index), []).append(index)
        parts = [part for part in segments.values() if visible[part].sum() >= MIN_AREA]
        number_of_mask = np.zeros(len(masks) + 1, dtype=np.int32)
        for number, part in enumerate(parts, start=1):
            number_of_mask[[index + 1 for index in part]] = number
        first = [part[0] for part in parts]
        return cls(
            numbers=number_of_mask[owners], labels=labels[first], scores=scores[first], categories=categories
        )

    def segments_info(self) -> list[dict[str, Any]]:
        """Return the segments as COCO's panoptic JSON files list them, with a score.

        Their ids are those of their colours in the PNG; see `colours`.
        """
        infos = []
        for number, (label, score) in enumerate(zip(self.labels, self.scores, strict=True), start=1):
            mask = Rle.of(self.numbers == number)
            assert mask.box_xyxy is not None
            left, top, right, bottom = map(int, mask.box_xyxy)
            infos.append(
                {
                    "id": segment_id(number),
                    "category_id": self.categories[label].id,
                    "area": mask.area,
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
        return infos

    def colours(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of COCO's panoptic PNG: R + 256 G + 256^2 B is the id of the segment."""
        return colours(self.numbers, len(self.labels))
