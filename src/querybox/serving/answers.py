"""The JSON of an answer: the detections of every image of a request, in the order of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field

from querybox.inference.detections import Detections


class Mask(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="Height and width of the image in pixels.")
    counts: str = Field(description="Compressed lengths of runs, down the columns of the image.")


class Detection(BaseModel):
    """A detected object."""

    label: int = Field(description="The class, 0 ... C-1.")
    category_id: int = Field(description="The id of the class in the training data.")
    name: str = Field(description="The name of the class.")
    score: float = Field(description="0-1.")
    box_xyxy: tuple[float, float, float, float] = Field(
        description="Corners x1, y1, x2, y2 in pixels of the upright image."
    )
    segmentation: Mask | None = Field(description="The mask; null if the model has no masks.")


class ImageAnswer(BaseModel):
    """The detections in an image, by descending score."""

    width: int = Field(description="Width of the upright image in pixels.")
    height: int = Field(description="Height of the upright image in pixels.")
    detections: list[Detection]

    @classmethod
    def of(cls, found: Detections) -> Self:
        """Convert detections; all numbers stay as they are."""
        masks = found.masks if found.masks is not None else [None] * len(found)
        rows = zip(
            found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), masks, strict=True
        )
        detections = [
            Detection(
                label=label,
                category_id=found.categories[label].id,
                name=found.categories[label].name,
                score=score,
                box_xyxy=tuple(box),
                segmentation=None if mask is None else Mask(**mask.to_coco()),
            )
            for label, score, box, mask in rows
        ]
        return cls(width=found.size[1], height=found.size[0], detections=detections)


class Answer(BaseModel):
    """The answer to a request."""

    images: list[ImageAnswer] = Field(description="One entry for each image, in their order.")

    @classmethod
    def of(cls, found: Sequence[Detections]) -> Self:
        """Convert the detections of all images of a request."""
        return cls(images=[ImageAnswer.of(each) for each in found])
