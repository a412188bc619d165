"""The criterion: what a detector has to minimise (DETR, section 3.1, equation 2; MMDetection's averages)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querybox.boxes import iou_and_giou, to_xyxy
from querybox.losses.classification import Classification, Softmax
from querybox.losses.matcher import HungarianMatcher
from querybox.structures import DetectorOutput, Matches, Predictions, Target, at_least_float32


class Criterion(nn.Module):
    """Matches predictions with objects and returns the weighted losses of every decoder layer.

    Each layer is matched on its own and all losses are back-propagated, not the last layer's alone.
    """

    def __init__(
        self,
        matcher: HungarianMatcher | None = None,
        *,
        classification: Classification | None = None,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        auxiliary: bool = True,
        any_class_proposed: bool = False,
    ) -> None:
        """Set the weights.

        Args:
            matcher: How to match; the published costs by default.
            classification: How a class is judged; a softmax with "no object" by default.
            class_weight: Of its loss.
            box_weight: Of the L1 distance of normalised cxcywh boxes.
            giou_weight: Of 1 - GIoU.
            auxiliary: Whether the layers before the last have losses too.
            any_class_proposed: Whether the encoder's proposals need say only that there is an object, by their first
                logit (Deformable DETR), and not of which class (DINO).
        """
        super().__init__()
        self.matcher = matcher or HungarianMatcher()
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.classification = classification or Softmax()
        self.auxiliary = auxiliary
        self.any_class_proposed = any_class_proposed

    def forward(self, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        """Return ``loss_cls, loss_bbox, loss_iou`` of the last layer and ``d0.loss_cls ...`` of the others.

        Those of the encoder's proposals are ``enc_loss_cls ...``, those of denoising ``dn_loss_cls, d0.dn_loss_cls
        ...``. The loss to back-propagate is their sum. All is computed in float32, or in
        float64 where the predictions are.

        Raises:
            NonFiniteError: A prediction is NaN or infinite; there is nothing to match.
        """
        losses = self.layer_losses(output.layers if self.auxiliary else output.layers[-1:], targets)
        if output.proposals is not None:
            if self.any_class_proposed:
                targets = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
            losses |= self.layer_losses((output.proposals,), targets, prefix="enc_")
        if output.denoising_matches is not None:
            losses |= self.layer_losses(output.denoising, targets, output.denoising_matches, prefix="dn_")
        return losses

    def layer_losses(
        self,
        layers: Sequence[Predictions],
        targets: Sequence[Target],
        matches: Matches | None = None,
        *,
        prefix: str = "",
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses of some predictions, matched here unless their `matches` are known."""
        logits = at_least_float32(torch.stack([layer.logits for layer in layers]))  # [L, B, Q, K]
        boxes = at_least_float32(torch.stack([layer.boxes for layer in layers]))  # [L, B, Q, 4]
        labels = torch.cat([target.labels for target in targets])  # [N]
        objects = torch.cat([target.boxes for target in targets]).to(boxes.dtype)  # [N, 4]
        matches = matches or self.matcher(logits, boxes, targets)

        found = matches.object.expand(len(layers), -1)  # [L, M]
        answers = (matches.query + matches.image * logits.shape[2]).expand_as(
            found
        )  # places in A = B Q queries
        positives, negatives = mean_over_processes(
            len(matches.image), logits[0, ..., 0].numel() - len(matches.image), like=logits
        )
        answered = boxes.flatten(1, 2).gather(1, answers[..., None].expand(-1, -1, 4))  # [L, M, 4]
        wanted = objects[found]  # [L, M, 4]
        distance = F.l1_loss(answered, wanted, reduction="none").sum((1, 2))
        iou, giou = iou_and_giou(to_xyxy(answered), to_xyxy(wanted))  # [L, M]
        judged = self.classification.loss(
            logits.flatten(1, 2), answers, labels[found], positives, negatives, iou.detach()
        )
        losses = {
            "loss_cls": self.class_weight * judged,
            "loss_bbox": self.box_weight * distance / positives.clamp(min=1),
            "loss_iou": self.giou_weight * (1 - giou).sum(1) / positives.clamp(min=1),
        }
        return named_by_layer({f"{prefix}{name}": values for name, values in losses.items()})


def mean_over_processes(
    positives: int, negatives: int, *, like: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Average two counts over the processes of a distributed run, so that they weigh every object alike.

    They come in the type and on the device of `like`.
    """
    # Filled on the device: a copy from the host would wait for the device.
    mean = torch.stack([like.new_full((), float(count)) for count in (positives, negatives)])
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
