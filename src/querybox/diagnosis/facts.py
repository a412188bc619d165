"""The facts that a diagnosis uses: statistics of the data, of the initial model, and of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import box_iou

from querybox.data import DataSettings, DetectionData, ImageRecord, resized_shape
from querybox.data.plausibility import repeated_objects
from querybox.diagnosis.offset import Offset, find_offset
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.confusion import MATCH_IOU
from querybox.evaluation.errors import BACKGROUND_IOU
from querybox.evaluation.overlaps import Overlaps
from querybox.evaluation.result import Evaluation
from querybox.inference.detections import Detections

NEAR_IOU = 0.2
"""IoU with an object from which a box is near it."""
CONFIDENT = 0.5
"""Detections are confident if they score at least this fraction of the highest score in their image."""
DUPLICATE_IOU = 0.7
"""IoU with a higher-scoring detection of the same class above which a detection is a duplicate."""
NMS_IOU = 0.5
"""IoU threshold of non-maximum suppression that leaves one detection per object."""

# Of a record that was edited, other numbers are refused.
Count = Annotated[int, Field(gt=0)]
Value = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """Statistics of the objects of a split."""

    images: Count
    empty_images: int
    """Number of images without objects."""
    objects: Mapping[str, int]
    """Number of objects of each class by name, without crowd regions."""
    most_objects: int
    """Maximum number of objects in an image."""
    lost_objects: int
    """Number of objects in excess of the number of queries, summed over the images."""
    repeated_objects: int
    """Number of objects with the same box and class as an earlier one."""
    faulty_boxes: int
    """Number of boxes that were clipped or dropped when the data were read."""
    dropped_boxes: int | None = None
    """Number of those that were dropped, and are not counted as objects; None if it was not recorded."""
    median_size: Size
    """Median of the square root of the box area in pixels of the model's input."""

    @property
    def faulty_fraction(self) -> float:
        """Fraction of all boxes that were clipped or dropped."""
        dropped = self.faulty_boxes if self.dropped_boxes is None else self.dropped_boxes
        return self.faulty_boxes / max(1, sum(self.objects.values()) + dropped)

    @property
    def objects_per_image(self) -> float:
        """Mean number of objects of images with objects."""
        return sum(self.objects.values()) / max(1, self.images - self.empty_images)

    @classmethod
    def of(cls, data: DetectionData, settings: DataSettings, queries: int) -> Self:
        """Compute the statistics of `data` for a detector with this many `queries`."""
        counts = [int((~image.crowd).sum()) for image in data.images]
        labels = np.concatenate([image.labels[~image.crowd] for image in data.images])
        sizes = np.concatenate([input_sizes(image, settings) for image in data.images])
        by_label = np.bincount(labels, minlength=len(data.categories)).tolist()
        return cls(
            images=len(counts),
            empty_images=counts.count(0),
            objects={category.name: by_label[label] for label, category in enumerate(data.categories)},
            most_objects=max(counts),
            lost_objects=sum(max(0, count - queries) for count in counts),
            repeated_objects=sum(map(repeated_objects, data.images)),
            faulty_boxes=sum(data.faulty_boxes.values()),
            dropped_boxes=sum(data.faulty_boxes.values()) - data.faulty_boxes.get("clipped_box", 0),
            median_size=float(np.median(sizes)),
        )


def input_sizes(image: ImageRecord, settings: DataSettings) -> Float[np.ndarray, " G"]:
    """Return the square root of the area of each box in pixels of the model's input, without crowd regions."""
    sizes = settings.sizes()
    height, width = (min(side, settings.tile or side) for side in (image.height, image.width))
    resized = resized_shape(
        height, width, sizes.short_side, sizes.long_side, "stretch" if settings.stretch else "querybox"
    )
    boxes = image.boxes_xyxy[~image.crowd]
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1) * math.prod(resized) / (height * width))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """Statistics of a top-level module of the detector, such as the backbone."""

    parameters: int
    """Number of parameters."""
    trained: int
    """Number of trainable parameters."""
    weight_size: float | None
    """Median over the trainable tensors with at least two dimensions of the root mean square of their initial values;
    None if there are no such tensors."""

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Compute the statistics of a module."""
        parameters = list(module.parameters())
        trained = [p for p in parameters if p.requires_grad]
        sizes = [p.detach().float().square().mean().sqrt() for p in trained if p.ndim > 1]
        return cls(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in trained),
            weight_size=float(torch.stack(sizes).median()) if sizes else None,
        )


def describe_parts(detector: nn.Module) -> dict[str, PartFacts]:
    """Return the statistics of every top-level module of a detector that has parameters, by name."""
    return {
        name: PartFacts.of(module)
        for name, module in detector.named_children()
        if next(module.parameters(), None) is not None
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """Statistics of the objects of a class. An object is located if a detection has an IoU of at least 0.5 with it."""

    name: str
    objects: Count
    """Number of objects."""
    located: int
    """Number of objects that a detection of any class and score locates."""
    right: int
    """Number of located objects whose highest-scoring detection has their class."""
    taken_for: str | None
    """The most frequent class of the highest-scoring detections of the others."""
    taken: int
    """Number of objects classified as `taken_for`."""
    tiny: int
    """Number of objects smaller than a cell of the model's finest feature map."""
    tiny_located: int
    """Number of these that are located."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFacts:
    """Statistics of an evaluation, from up to 100 detections per image."""

    AP50: Value
    AP50_once: Value
    """AP50 after non-maximum suppression."""
    classes: Annotated[tuple[ClassFacts, ...], Field(min_length=1)]
    """Statistics of each class with objects."""
    best_iou: Value
    """Mean over the objects of the highest IoU with a detection of any class and score."""
    near: Value
    """Fraction of objects for which this IoU is at least 0.2."""
    top_score: Value
    """Mean over the images with objects of the highest score."""
    confident: Value
    """Mean number of confident detections per image: those with at least half of the highest score of the image."""
    repeated: Value
    """Fraction of these with an IoU above 0.7 with a higher-scoring one of their class."""
    sameness: Value | None
    """Similarity of the predictions for different images: the IoU of an image's best detection with the closest one of
    the next image, relative to the image size, averaged over the images; None for a single image."""
    other_iou: Value | None = None
    """`best_iou` with the detections of another image, relative to the image size, which is that of chance; None for a
    single image, or if it was not recorded."""
    background: Value | None = None
    """Mean number of confident detections, without duplicates, that have an IoU below 0.1 with every object, per image
    with objects; None if it was not recorded."""
    covered: Value | None = None
    """Fraction of objects that these detections locate; None if it was not recorded."""
    AP: Value | None = None
    """AP; None if it was not recorded."""
    offset: Offset | None = None
    """The offset of the detections from the objects; None if there is none, or if it was not recorded."""

    @property
    def located(self) -> float:
        """Fraction of the objects that are located."""
        return sum(each.located for each in self.classes) / sum(each.objects for each in self.classes)

    @classmethod
    def of(cls, data: DetectionData, evaluation: Evaluation, settings: DataSettings, stride: int) -> Self:
        """Compute the statistics of an evaluation on `data`.

        Args:
            data: The evaluated dataset, which has objects.
            evaluation: The evaluation.
            settings: The settings of image sizes.
            stride: Stride of the model's finest feature map in pixels of the input.
        """
        detections = evaluation.detections
        once, _ = average_precision(data, {key: image.nms(NMS_IOU) for key, image in detections.items()})
        objects = ObjectFacts.of(data, detections, settings, stride)
        others = ObjectFacts.of(data, of_other_images(data, detections), settings, stride)
        confident = {
            key: image.above(CONFIDENT * float(image.scores[0])) if len(image) else image
            for key, image in detections.items()
        }
        distinct = {key: image.nms(DUPLICATE_IOU) for key, image in confident.items()}
        num_confident = sum(map(len, confident.values()))
        background, covered = background_and_covered(data, distinct)
        scores = [detections[image.id].scores for image in data.images if not image.crowd.all()]
        return cls(
            AP50=evaluation.metrics["AP50"],
            AP50_once=once["AP50"],
            classes=objects.by_class([category.name for category in data.categories]),
            best_iou=float(objects.iou.mean()),
            near=float((objects.iou >= NEAR_IOU).mean()),
            top_score=float(np.nan_to_num([image[0] if len(image) else 0.0 for image in scores]).mean()),
            confident=num_confident / len(confident),
            repeated=1 - sum(map(len, distinct.values())) / num_confident if num_confident else 0.0,
            sameness=sameness([detections[image.id] for image in data.images]),
            other_iou=float(others.iou.mean()) if len(data.images) > 1 else None,
            background=background,
            covered=covered,
            AP=evaluation.metrics["AP"],
            offset=find_offset(data, detections, distinct, evaluation.metrics["AP"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    """The outcome for each of N objects, without crowd regions."""

    label: Int[np.ndarray, " N"]
    """Class of the object."""
    predicted: Int[np.ndarray, " N"]
    """Class of the highest-scoring detection that locates the object; -1 if there is none."""
    iou: Float[np.ndarray, " N"]
    """Highest IoU with a detection of any class."""
    tiny: Bool[np.ndarray, " N"]
    """Whether the object is smaller than a cell of the finest feature map."""

    @classmethod
    def of(
        cls, data: DetectionData, detections: Mapping[int, Detections], settings: DataSettings, stride: int
    ) -> Self:
        """Compare the detections of every image with its objects."""
        predicted, ious = [], []
        for image in data.images:
            found = detections[image.id]
            overlaps = Overlaps.of(image, found)
            best = np.zeros(len(image.labels))
            np.maximum.at(best, overlaps.object, overlaps.iou)
            located = overlaps.where(overlaps.iou >= MATCH_IOU)  # highest score first
            objects, first = np.unique(located.object, return_index=True)
            label = np.full(len(image.labels), -1)
            label[objects] = found.labels.numpy()[located.detection[first]]
            predicted.append(label[~image.crowd])
            ious.append(best[~image.crowd])
        return cls(
            label=np.concatenate([image.labels[~image.crowd] for image in data.images]),
            predicted=np.concatenate(predicted),
            iou=np.concatenate(ious),
            tiny=np.concatenate([input_sizes(image, settings) < stride for image in data.images]),
        )

    def by_class(self, names: Sequence[str]) -> tuple[ClassFacts, ...]:
        """Return the statistics of every class with objects."""
        facts = []
        for label in np.unique(self.label):
            own = self.label == label
            predicted, tiny = self.predicted[own], self.tiny[own]
            wrong = np.bincount(predicted[(predicted >= 0) & (predicted != label)], minlength=len(names))
            facts.append(
                ClassFacts(
                    name=names[label],
                    objects=int(own.sum()),
                    located=int((predicted >= 0).sum()),
                    right=int((predicted == label).sum()),
                    taken_for=names[int(wrong.argmax())] if wrong.any() else None,
                    taken=int(wrong.max()),
                    tiny=int(tiny.sum()),
                    tiny_located=int((tiny & (predicted >= 0)).sum()),
                )
            )
        return tuple(facts)


def background_and_covered(data: DetectionData, detections: Mapping[int, Detections]) -> tuple[float, float]:
    """Return the number of detections in the background per image with objects, and the fraction of objects located."""
    images = [image for image in data.images if not image.crowd.all()]
    background, covered, objects = 0, 0, 0
    for image in images:
        overlaps = Overlaps.of(image, detections[image.id])
        near = overlaps.where(overlaps.iou >= BACKGROUND_IOU).detection
        background += len(detections[image.id]) - len(np.unique(near))
        located = np.unique(overlaps.where(overlaps.iou >= MATCH_IOU).object)
        covered += int((~image.crowd[located]).sum())
        objects += int((~image.crowd).sum())
    return background / len(images), covered / objects


def sameness(detections: Sequence[Detections]) -> float | None:
    """Compare the best box of each image with the boxes of the next image; see `EvaluationFacts.sameness`."""
    boxes = [relative_boxes(image) for image in detections if len(image)]
    # The IoU of boxes without area is NaN.
    values = [box_iou(first[:1], second).nan_to_num().max().item() for first, second in pairwise(boxes)]
    return float(np.mean(values)) if values else None


def of_other_images(data: DetectionData, detections: Mapping[int, Detections]) -> dict[int, Detections]:
    """Return for each image the detections of another one, scaled to its size: that half of the images further.

    Neighbours may be much alike, as frames of a video.
    """
    half = len(data.images) // 2
    found = {}
    for image, other in zip(data.images, (*data.images[half:], *data.images[:half]), strict=True):
        boxes = relative_boxes(detections[other.id])
        found[image.id] = replace(
            detections[other.id],
            boxes_xyxy=boxes * boxes.new_tensor([image.width, image.height] * 2),
            size=(image.height, image.width),
            masks=None,
        )
    return found


def relative_boxes(detections: Detections) -> Float[Tensor, "N 4"]:
    """Return the boxes as xyxy in 0-1 of the image."""
    height, width = detections.size
    return detections.boxes_xyxy / detections.boxes_xyxy.new_tensor([width, height, width, height])
