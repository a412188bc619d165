"""The criterion: what a detector has to minimise (DETR, section 3.1, equation 2; MMDetection's averages)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from querybox.boxes import giou, to_xyxy
from querybox.losses.matcher import HungarianMatcher, Matches
from querybox.structures import DetectorOutput, Target


class Criterion(nn.Module):
    """Matches predictions with objects and returns the weighted losses of every decoder layer.

    Each layer is matched on its own and all losses are back-propagated, not the last layer's alone.
    """

    def __init__(
        self,
        matcher: HungarianMatcher | None = None,
        *,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        no_object_weight: float = 0.1,
        auxiliary: bool = True,
    ) -> None:
        """Set the weights.

        Args:
            matcher: How to match; the published costs by default.
            class_weight: Of the cross-entropy.
            box_weight: Of the L1 distance of normalised cxcywh boxes.
            giou_weight: Of 1 - GIoU.
            no_object_weight: Of a query without an object, within the cross-entropy; there are many of them.
            auxiliary: Whether the layers before the last have losses too.
        """
        super().__init__()
        self.matcher = matcher or HungarianMatcher()
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.no_object_weight = no_object_weight
        self.auxiliary = auxiliary

    def forward(self, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        """Return ``loss_cls, loss_bbox, loss_iou`` of the last layer and ``d0.loss_cls ...`` of the others.

        The loss to back-propagate is their sum. All is computed in float32.

        Raises:
            NonFiniteError: A prediction is NaN or infinite; there is nothing to match.
        """
        layers = output.layers if self.auxiliary else output.layers[-1:]
        logits = torch.stack([layer.logits for layer in layers]).float()  # [L, B, Q, K]
        boxes = torch.stack([layer.boxes for layer in layers]).float()  # [L, B, Q, 4]
        labels = torch.cat([target.labels for target in targets])  # [N]
        objects = torch.cat([target.boxes for target in targets])  # [N, 4]
        matches = self.matcher(logits, boxes, targets)

        count = len(matches.image)
        positives = mean_over_processes(count, logits.device)
        negatives = mean_over_processes(logits[0, ..., 0].numel() - count, logits.device)
        losses = {
            "loss_cls": self.class_loss(logits, labels, matches)
            / (positives + self.no_object_weight * negatives).clamp(min=1),
            **self.box_losses(boxes, objects, matches, positives.clamp(min=1)),
        }
        return named_by_layer(losses)

    def class_loss(
        self, logits: Float[Tensor, "L B Q K"], labels: Int[Tensor, " N"], matches: Matches
    ) -> Float[Tensor, " L"]:
        """Sum the weighted cross-entropy of all queries: the object's class, or the last class, "no object"."""
        num_layers, num_classes = len(logits), logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:-1], num_classes, device=logits.device)  # [L, B, Q]
        layer = torch.arange(num_layers, device=logits.device)[:, None]
        wanted[layer, matches.image, matches.query] = labels[matches.object]
        weight = logits.new_ones(num_classes + 1)
        weight[num_classes] = self.no_object_weight
        loss = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none")
        return self.class_weight * loss.view(num_layers, -1).sum(1)

    def box_losses(
        self,
        boxes: Float[Tensor, "L B Q 4"],
        objects: Float[Tensor, "N 4"],
        matches: Matches,
        positives: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, " L"]]:
        """Average L1 distance and 1 - GIoU over the matched queries."""
        layer = torch.arange(len(boxes), device=boxes.device)[:, None]
        found = boxes[layer, matches.image, matches.query]  # [L, M, 4]
        wanted = objects[matches.object]  # [L, M, 4]
        distance = (found - wanted).abs().sum((1, 2))
        looseness = (1 - giou(to_xyxy(found), to_xyxy(wanted))).sum(1)
        return {
            "loss_bbox": self.box_weight * distance / positives,
            "loss_iou": self.giou_weight * looseness / positives,
        }


def mean_over_processes(count: int, device: torch.device) -> Float[Tensor, ""]:
    """Average a count over the processes of a distributed run, so that they weigh every object alike."""
    mean = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean


def named_by_layer(losses: dict[str, Float[Tensor, " L"]]) -> dict[str, Float[Tensor, ""]]:
    """Name each layer's losses: the last layer's plainly, the earlier ones' with ``d0.``, ``d1.`` ... before."""
    num_layers = len(next(iter(losses.values())))
    last = {name: values[-1] for name, values in losses.items()}
    earlier = {f"d{layer}.{name}": losses[name][layer] for layer in range(num_layers - 1) for name in losses}
    return last | earlier
