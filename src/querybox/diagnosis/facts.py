"""What a diagnosis is made from: a few numbers of the data, of the model at its start, and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from querybox.data import DataSettings, DetectionData, ImageRecord, resized_shape
from querybox.evaluation.average_precision import average_precision
from querybox.evaluation.confusion import MATCH_IOU, pairwise_iou
from querybox.evaluation.result import Evaluation
from querybox.inference.detections import Detections

NEAR_IOU = 0.2
"""A box that overlaps an object by so much has found the place, if not the extent."""
CONFIDENT = 0.5
"""Detections that score at least this share of their image's best are what the detector stands by."""
REPEATED_IOU = 0.7
"""A detection that overlaps a better one of its class by more than this says the same again."""
ONCE_IOU = 0.5
"""Non-maximum suppression at this IoU leaves one detection an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """The objects of a split, as the detector gets to see them."""

    images: int
    empty_images: int
    """Images without objects."""
    objects: Mapping[str, int]
    """Objects of each class by its name, crowds not counted."""
    most_objects: int
    """In one image."""
    lost_objects: int
    """Objects in excess of the queries, over all images: they have no query to answer for them."""
    repeated_objects: int
    """Objects that stand in the data before, with the very same box and class."""
    faulty_boxes: int
    """Boxes that reached out of their image or had no extent: cut or dropped when the data were read."""
    median_size: float
    """Of the square root of a box's area at the size of the model's input, pixels."""

    @classmethod
    def of(cls, data: DetectionData, settings: DataSettings, queries: int) -> Self:
        """Count the objects of `data` for a detector with so many `queries`."""
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
            median_size=float(np.median(sizes)),
        )


def repeated_objects(image: ImageRecord) -> int:
    """Count the objects that have box and class of one before."""
    objects = np.column_stack([image.boxes_xyxy, image.labels])[~image.crowd]
    return len(objects) - len(np.unique(objects, axis=0))


def input_sizes(image: ImageRecord, settings: DataSettings) -> Float[np.ndarray, " G"]:
    """Return the square root of the area of each box, crowds left out, in pixels of the model's input."""
    sizes = settings.sizes()
    height, width = resized_shape(image.height, image.width, sizes.short_side, sizes.long_side)
    boxes = image.boxes_xyxy[~image.crowd]
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1) * (height * width) / (image.height * image.width))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """One part of the detector: its backbone, its decoder ..."""

    parameters: int
    trained: int
    """Those that training may change."""
    weight_size: float | None
    """Root mean square of the trained weights at the start, the median over the tensors of two and more dimensions;
    None where there are none."""

    @classmethod
    def of(cls, part: nn.Module) -> Self:
        """Describe a part as it is."""
        parameters = list(part.parameters())
        trained = [each for each in parameters if each.requires_grad]
        sizes = [each.detach().float().square().mean().sqrt() for each in trained if each.ndim > 1]
        return cls(
            parameters=sum(each.numel() for each in parameters),
            trained=sum(each.numel() for each in trained),
            weight_size=float(torch.stack(sizes).median()) if sizes else None,
        )


def describe_parts(detector: nn.Module) -> dict[str, PartFacts]:
    """Describe every part of a detector that has parameters, by its name."""
    return {
        name: PartFacts.of(part)
        for name, part in detector.named_children()
        if next(part.parameters(), None) is not None
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """What became of the objects of one class. A detection is on an object if their IoU is at least 0.5."""

    name: str
    objects: int
    located: int
    """Objects with a detection of any class and score on them."""
    right: int
    """Of these, those whose best detection is of their class."""
    taken_for: str | None
    """The class that the others are most often taken for."""
    taken: int
    """How often that is."""
    tiny: int
    """Objects smaller than a cell of the model's finest feature map."""
    tiny_located: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFacts:
    """What an evaluation shows of the way in which a detector fails; of up to 100 detections an image."""

    AP50: float
    AP50_once: float
    """AP50 if each object were detected but once: after non-maximum suppression."""
    classes: tuple[ClassFacts, ...]
    """Those with objects."""
    best_iou: float
    """Mean over the objects of the IoU of the detection, of any class and score, that fits best."""
    near: float
    """Share of objects with such an IoU of at least 0.2."""
    top_score: float
    """Mean over the images with objects of the best score."""
    confident: float
    """Mean over the images of the detections that score at least half as much as the image's best."""
    repeated: float
    """Share of these that overlap a better one of their class by more than 0.7."""
    sameness: float | None
    """How alike two images are answered: the IoU of one's best detection with the nearest of the other, in shares of
    the image; the mean over neighbours. None for a single image."""

    @classmethod
    def of(cls, data: DetectionData, evaluation: Evaluation, settings: DataSettings, cell: int) -> Self:
        """Look at the detections of an evaluation on `data`.

        Args:
            data: What was evaluated on; it has objects.
            evaluation: The outcome.
            settings: How large images are made.
            cell: Pixels of the input a side that a cell of the model's finest feature map stands for.
        """
        found = evaluation.detections
        once, _ = average_precision(data, {key: one.nms(ONCE_IOU) for key, one in found.items()})
        objects = Tally.of(data, found, settings, cell)
        strong = [one.above(CONFIDENT * float(one.scores[0])) if len(one) else one for one in found.values()]
        kept = [batched_nms(one.boxes_xyxy, one.scores, one.labels, REPEATED_IOU) for one in strong]
        confident = sum(map(len, strong))
        tops = [found[image.id].scores for image in data.images if not image.crowd.all()]
        return cls(
            AP50=evaluation.metrics["AP50"],
            AP50_once=once["AP50"],
            classes=objects.by_class([category.name for category in data.categories]),
            best_iou=float(objects.iou.mean()),
            near=float((objects.iou >= NEAR_IOU).mean()),
            top_score=float(np.nan_to_num([scores[0] if len(scores) else 0.0 for scores in tops]).mean()),
            confident=confident / len(strong),
            repeated=1 - sum(map(len, kept)) / confident if confident else 0.0,
            sameness=sameness([found[image.id] for image in data.images]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of all N objects, crowds left out."""

    label: Int[np.ndarray, " N"]
    answer: Int[np.ndarray, " N"]
    """The label of the detection on it that scores best; -1: there is none."""
    iou: Float[np.ndarray, " N"]
    """Of the detection that fits best, whatever its class."""
    tiny: Bool[np.ndarray, " N"]
    """Whether it is smaller than a cell."""

    @classmethod
    def of(
        cls, data: DetectionData, found: Mapping[int, Detections], settings: DataSettings, cell: int
    ) -> Self:
        """Hold the detections of every image against its objects."""
        answers, ious = [], []
        for image in data.images:
            detected = found[image.id]
            iou = pairwise_iou(image, detected)[:, ~image.crowd]  # [N, G], best score first
            iou = np.concatenate([np.zeros((1, iou.shape[1])), iou])  # so that there is always one: none
            labels = np.concatenate([[-1], detected.labels.numpy()])
            answers.append(labels[(iou >= MATCH_IOU).argmax(0)])
            ious.append(iou.max(0))
        return cls(
            label=np.concatenate([image.labels[~image.crowd] for image in data.images]),
            answer=np.concatenate(answers),
            iou=np.concatenate(ious),
            tiny=np.concatenate([input_sizes(image, settings) < cell for image in data.images]),
        )

    def by_class(self, names: Sequence[str]) -> tuple[ClassFacts, ...]:
        """Count, for every class that has objects."""
        facts = []
        for label in np.unique(self.label):
            own = self.label == label
            answers, tiny = self.answer[own], self.tiny[own]
            wrong = np.bincount(answers[(answers >= 0) & (answers != label)], minlength=len(names))
            facts.append(
                ClassFacts(
                    name=names[label],
                    objects=int(own.sum()),
                    located=int((answers >= 0).sum()),
                    right=int((answers == label).sum()),
                    taken_for=names[int(wrong.argmax())] if wrong.any() else None,
                    taken=int(wrong.max()),
                    tiny=int(tiny.sum()),
                    tiny_located=int((tiny & (answers >= 0)).sum()),
                )
            )
        return tuple(facts)


def sameness(found: Sequence[Detections]) -> float | None:
    """Compare the best box of each image with the boxes of the next image; see `EvaluationFacts.sameness`."""
    boxes = [relative(one) for one in found if len(one)]
    # A box without extent has no IoU with anything.
    values = [box_iou(one[:1], other).nan_to_num().max().item() for one, other in pairwise(boxes)]
    return float(np.mean(values)) if values else None


def relative(found: Detections) -> Float[Tensor, "N 4"]:
    """Return the boxes as xyxy in shares of the image."""
    height, width = found.size
    return found.boxes_xyxy / found.boxes_xyxy.new_tensor([width, height, width, height])
