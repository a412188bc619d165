"""The criterion: what a detector has to minimise (DETR, section 3.1, equation 2; MMDetection's averages)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from querybox.boxes import giou, to_xyxy
from querybox.losses.matcher import HungarianMatcher
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

        answers = matches.query + matches.image * logits.shape[2]  # [L, M], places in [B Q]
        positives, negatives = mean_over_processes(
            len(matches.image), logits[0, ..., 0].numel() - len(matches.image), logits.device
        )
        losses = {
            "loss_cls": self.class_loss(logits.flatten(1, 2), answers, labels[matches.object])
            / (positives + self.no_object_weight * negatives).clamp(min=1),
            **self.box_losses(boxes.flatten(1, 2), answers, objects[matches.object], positives.clamp(min=1)),
        }
        return named_by_layer(losses)

    def class_loss(
        self, logits: Float[Tensor, "L A K"], answers: Int[Tensor, "L M"], labels: Int[Tensor, "L M"]
    ) -> Float[Tensor, " L"]:
        """Sum the weighted cross-entropy of all A = B Q queries: the object's class, or the last, "no object"."""
        num_layers, _, num_classes = logits.shape
        wanted = labels.new_full(logits.shape[:2], num_classes - 1).scatter(1, answers, labels)  # [L, A]
        weight = logits.new_ones(num_classes)
        weight[-1] = self.no_object_weight
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight, reduction="none")
        return self.class_weight * loss.view(num_layers, -1).sum(1)

    def box_losses(
        self,
        boxes: Float[Tensor, "L A 4"],
        answers: Int[Tensor, "L M"],
        wanted: Float[Tensor, "L M 4"],
        positives: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, " L"]]:
        """Average L1 distance and 1 - GIoU over the matched queries."""
        found = boxes.gather(1, answers[..., None].expand(-1, -1, 4))  # [L, M, 4]
        distance = F.l1_loss(found, wanted, reduction="none").sum((1, 2))
        looseness = (1 - giou(to_xyxy(found), to_xyxy(wanted))).sum(1)
        return {
            "loss_bbox": self.box_weight * distance / positives,
            "loss_iou": self.giou_weight * looseness / positives,
        }


def mean_over_processes(
    positives: int, negatives: int, device: torch.device
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Average two counts over the processes of a distributed run, so that they weigh every object alike."""
    # Filled on the device: a copy from the host would wait for the device.
    mean = torch.stack([torch.full((), float(count), device=device) for count in (positives, negatives)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean[0], mean[1]


def named_by_layer(losses: dict[str, Float[Tensor, " L"]]) -> dict[str, Float[Tensor, ""]]:
    """Name each layer's losses: the last layer's plainly, the earlier ones' with ``d0.``, ``d1.`` ... before."""
    by_layer = {name: values.unbind() for name, values in losses.items()}
    num_layers = len(next(iter(by_layer.values())))
    last = {name: values[-1] for name, values in by_layer.items()}
    earlier = {
        f"d{layer}.{name}": by_layer[name][layer] for layer in range(num_layers - 1) for name in losses
    }
    return last | earlier
