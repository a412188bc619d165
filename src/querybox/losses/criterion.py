"""The training criterion (DETR, section 3.1, equation 2; averaged as in MMDetection)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from querybox.arguments import require_number, require_type
from querybox.boxes import iou_and_giou, to_xyxy
from querybox.errors import ConfigError
from querybox.losses.classification import MAX_WEIGHT, ClassificationLoss, checked_classification
from querybox.losses.masks import MaskLosses
from querybox.losses.matcher import HungarianMatcher
from querybox.structures import (
    DetectorOutput,
    Matches,
    Predictions,
    Target,
    at_least_float32,
)
from querybox.targets import check_targets, on_class_rows


class Supervised(NamedTuple):
    """Predictions that have losses, with the objects that they are matched to."""

    prefix: str
    """Prefix of the names of the losses."""
    layers: Sequence[Predictions]
    targets: Sequence[Target]
    matches: Matches


class Criterion(nn.Module):
    """Match predictions to objects and return the weighted losses of every decoder layer.

    Every decoder layer is matched and supervised separately (auxiliary losses).
    """

    def __init__(
        self,
        matcher: HungarianMatcher | None = None,
        *,
        classification: ClassificationLoss | None = None,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        auxiliary: bool = True,
        class_agnostic_proposals: bool = False,
        masks: MaskLosses | None = None,
    ) -> None:
        """Create the criterion.

        Args:
            matcher: The matcher; by default one with DETR's cost weights and the class cost of `classification`.
            classification: The classification loss; by default cross-entropy with a no-object class. It must be one for
                the scores of the detector; `Detector.criterion` returns the criterion of its kind.
            class_weight: Weight of the classification loss.
            box_weight: Weight of the L1 loss of normalised cxcywh boxes.
            giou_weight: Weight of the GIoU loss, 1 - GIoU.
            auxiliary: Whether the decoder layers before the last have losses too.
            class_agnostic_proposals: Whether the encoder's proposals are trained to detect any object with their first
                logit (Deformable DETR) rather than to classify it (DINO).
            masks: The losses of masks, for detectors with a mask head; by default with the weights of Mask DINO.

        Raises:
            ConfigError: An argument has another type or range, or `matcher` and `classification` are for different
                scores.
        """
        super().__init__()
        self.classification = checked_classification("Criterion", classification)
        if matcher is not None:
            require_type("Criterion", matcher, HungarianMatcher, "a HungarianMatcher")
        self.matcher = matcher or HungarianMatcher(classification=self.classification)
        if self.matcher.classification.no_object != self.classification.no_object:
            raise ConfigError(
                f"Criterion got {type(self.classification).__name__} and a matcher with "
                f"{type(self.matcher.classification).__name__}; expected both with a no-object class, or both without: "
                "give the matcher the same classification"
            )
        for name, weight in (("class", class_weight), ("box", box_weight), ("giou", giou_weight)):
            require_number("Criterion", f"{name}_weight", weight, 0, MAX_WEIGHT)
        flags = {"auxiliary": auxiliary, "class_agnostic_proposals": class_agnostic_proposals}
        for name, flag in flags.items():
            require_type("Criterion", flag, bool, f"True or False for {name}")
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.auxiliary = auxiliary
        self.class_agnostic_proposals = class_agnostic_proposals
        if masks is not None:
            require_type("Criterion", masks, MaskLosses, "a MaskLosses")
        self.masks = masks or MaskLosses()

    def forward(
        self, output: DetectorOutput, targets: Sequence[Target], object_counts: Sequence[int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted losses by name; the total loss is their sum.

        Losses are computed in float32, or in float64 if the predictions are.

        Args:
            output: Predictions of all decoder layers, and of the encoder's proposals and denoising queries if any.
            targets: Objects of each image of the batch.
            object_counts: Number of objects of each image of the update, if the batch is only a part of it (gradient
                accumulation): the losses of all parts add up to those of the whole. By default those of `targets`.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last decoder layer; ``d0.loss_cls`` ... of the
            earlier layers, ``pre_loss_cls`` ... of the start boxes of distributions, ``enc_loss_cls`` ... of the
            encoder's proposals, ``dn_loss_cls``, ``d0.dn_loss_cls``, ``dn_pre_loss_cls`` ... of denoising. With masks
            also ``loss_mask`` and ``loss_dice``, of decoder layers and denoising.

        Raises:
            ConfigError: There is not a valid `Target` for each image, or the criterion is for other scores than those
                of the detector.
            NonFiniteError: A prediction is NaN or infinite, so that it cannot be matched.
        """
        self.check_inputs(output, targets)
        counts = object_counts or [len(target.labels) for target in targets]
        losses: dict[str, Tensor] = {}
        for prefix, layers, objects, matches in self.supervised(output, targets):
            losses |= self.layer_losses(layers, objects, counts, matches, prefix=prefix)
        return losses

    def supervised(self, output: DetectorOutput, targets: Sequence[Target]) -> Iterator[Supervised]:
        """Yield the predictions that have losses, each group of them with its matches."""
        layers = output.layers if self.auxiliary else output.layers[-1:]
        yield Supervised("", layers, targets, self.match(layers, targets))
        if output.layers[0].initial is not None:
            layers = (output.layers[0].initial,)
            yield Supervised("pre_", layers, targets, self.match(layers, targets))
        if output.proposals is not None:
            layers, objects = (output.proposals,), targets
            if self.class_agnostic_proposals:
                objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
            yield Supervised("enc_", layers, objects, self.match(layers, objects))
        if output.denoising_matches is not None:
            yield Supervised("dn_", output.denoising, targets, output.denoising_matches)
            if output.denoising[0].initial is not None:
                layers = (output.denoising[0].initial,)
                yield Supervised("dn_pre_", layers, targets, output.denoising_matches)

    def check_inputs(self, output: DetectorOutput, targets: Sequence[Target]) -> None:
        """Raise ConfigError unless the output is one for this criterion, with a `Target` for each image."""
        require_type("the criterion", output, DetectorOutput, "the DetectorOutput of a detector")
        last = output.layers[-1]
        if last.no_object != self.classification.no_object:
            scores = "a softmax with a no-object class" if last.no_object else "a sigmoid for each class"
            raise ConfigError(
                f"the criterion has {type(self.classification).__name__}, but the scores of the detector are {scores}; "
                "use detector.criterion()"
            )
        check_targets(
            "the criterion",
            targets,
            images=len(last.logits),
            classes=last.num_classes,
            device=last.logits.device,
        )

    def match(self, layers: Sequence[Predictions], targets: Sequence[Target]) -> Matches:
        """Match the predictions of some layers, each by itself."""
        logits, boxes = stacked(layers)
        targets = on_class_rows(targets, layers[0].class_rows)
        matches: Matches = self.matcher(logits, boxes, targets, [layer.masks for layer in layers])
        return matches

    def layer_losses(
        self,
        layers: Sequence[Predictions],
        targets: Sequence[Target],
        object_counts: Sequence[int],
        matches: Matches,
        box_matches: Matches | None = None,
        *,
        prefix: str = "",
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses of the predictions of some layers, given their matches; boxes may have others.

        They are averaged over all images of the update, with `object_counts` objects each.
        """
        logits, boxes = stacked(layers)
        targets = on_class_rows(targets, layers[0].class_rows)
        labels = torch.cat([target.labels for target in targets])  # [N]
        objects = torch.cat([target.boxes for target in targets]).to(boxes.dtype)  # [N, 4]

        matched_objects = matches.object.expand(len(layers), -1)  # [L, M]
        matched_queries, matched_boxes = matched_rows(boxes, matches)
        num_queries = logits.shape[2]
        own_matched = matches.repeats * sum(min(count, num_queries) for count in object_counts)
        num_matched, num_unmatched = mean_over_processes(
            own_matched, len(object_counts) * num_queries - own_matched, like=logits
        )
        target_boxes = objects[matched_objects]  # [L, M, 4]
        iou, giou = iou_and_giou(to_xyxy(matched_boxes), to_xyxy(target_boxes))  # [L, M]
        class_loss = self.classification.loss(
            logits.flatten(1, 2),
            matched_queries,
            labels[matched_objects],
            num_matched,
            num_unmatched,
            iou.detach(),
        )
        num_boxes = num_matched
        if box_matches is not None:
            num_boxes = num_pairs(box_matches, targets, object_counts, like=logits)
            matched_boxes = matched_rows(boxes, box_matches)[1]
            target_boxes = objects[box_matches.object.expand(len(layers), -1)]
            giou = iou_and_giou(to_xyxy(matched_boxes), to_xyxy(target_boxes))[1]
        l1 = F.l1_loss(matched_boxes, target_boxes, reduction="none").sum((1, 2))
        losses = {
            "loss_cls": self.class_weight * class_loss,
            "loss_bbox": self.box_weight * l1 / num_boxes.clamp(min=1),
            "loss_iou": self.giou_weight * (1 - giou).sum(1) / num_boxes.clamp(min=1),
        }
        if layers[-1].masks is not None:
            losses |= self.masks(layers, targets, matches, num_matched=num_matched)
        return split_by_layer(losses, prefix)


def stacked(layers: Sequence[Predictions]) -> tuple[Float[Tensor, "L B Q K"], Float[Tensor, "L B Q 4"]]:
    """Return the logits and the boxes of some layers, in float32 or more."""
    logits = torch.stack([layer.logits for layer in layers])
    boxes = torch.stack([layer.boxes for layer in layers])
    return at_least_float32(logits), at_least_float32(boxes)


def matched_rows(
    boxes: Float[Tensor, "L B Q 4"], matches: Matches
) -> tuple[Int[Tensor, "L M"], Float[Tensor, "L M 4"]]:
    """Return the indices of the matched queries among the A = B Q of all images, and their boxes."""
    queries = matches.query + matches.image * boxes.shape[2]
    queries = queries.expand(len(boxes), -1)
    return queries, boxes.flatten(1, 2).gather(1, queries[..., None].expand(-1, -1, 4))


def num_pairs(
    matches: Matches, targets: Sequence[Target], object_counts: Sequence[int], *, like: Tensor
) -> Float[Tensor, ""]:
    """Return the number of pairs, averaged over processes.

    If the batch is only a part of the update, the pairs of the whole are not known; there are assumed to be as many for
    each object.
    """
    own = sum(len(target.labels) for target in targets)
    pairs = len(matches.image) * sum(object_counts) / max(1, own)
    return mean_over_processes(pairs, 0, like=like)[0]


def mean_over_processes(
    num_matched: float, num_unmatched: float, *, like: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Average two counts over the processes of a distributed run, so that every object has the same weight.

    The results have the dtype and device of `like`.
    """
    # Filled on the device: a copy from the host would synchronise with it.
    mean = torch.stack([like.new_full((), float(count)) for count in (num_matched, num_unmatched)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean[0], mean[1]


def split_by_layer(losses: dict[str, Float[Tensor, " _"]], prefix: str) -> dict[str, Float[Tensor, ""]]:
    """Split losses by layer: before the `prefix` of their names, earlier layers than the last get ``d0.``, ``d1.`` ...

    Some losses may be those of the last layers alone.
    """
    by_layer = {f"{prefix}{name}": values.unbind() for name, values in losses.items()}
    num_layers = max(map(len, by_layer.values()))
    last = {name: values[-1] for name, values in by_layer.items()}
    earlier = {
        f"d{layer}.{name}": values[layer - num_layers]
        for layer in range(num_layers - 1)
        for name, values in by_layer.items()
        if len(values) >= num_layers - layer
    }
    return last | earlier
