"""How a class is judged: classes and "no object" share one softmax (DETR), or each is judged alone (its relatives)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax:
    """Cross-entropy over the classes and, last, "no object" (DETR, section 3.1, equation 2)."""

    no_object_weight: float = 0.1
    """Of a query without an object; there are many of them."""

    def cost(self, logits: Float[Tensor, "L B Q K"]) -> Float[Tensor, "L B Q _"]:
        """Return what it costs to match a query with an object of each class: its probability, negated."""
        return -logits.softmax(-1)

    def loss(
        self,
        logits: Float[Tensor, "L A K"],
        answers: Int[Tensor, "L M"],
        labels: Int[Tensor, "L M"],
        positives: Float[Tensor, ""],
        negatives: Float[Tensor, ""],
        iou: Float[Tensor, "L M"],  # noqa: ARG002 - however well the box fits
    ) -> Float[Tensor, " L"]:
        """Return each layer's loss over A queries: the cross-entropy, averaged by its weights.

        Args:
            logits: Of all queries.
            answers: The matched queries, places in A.
            labels: The classes of their objects.
            positives: How many are matched, averaged over the processes.
            negatives: How many are not, averaged over the processes.
            iou: Of their boxes with those of their objects, without gradient.
        """
        num_layers, _, num_classes = logits.shape
        wanted = labels.new_full(logits.shape[:2], num_classes - 1).scatter(1, answers, labels)  # [L, A]
        weight = logits.new_ones(num_classes)
        weight[-1] = self.no_object_weight
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight, reduction="none")
        return loss.view(num_layers, -1).sum(1) / (positives + self.no_object_weight * negatives).clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Focal:
    """Focal loss of each class by itself (Lin et al. 2017, equation 5): what is judged well already hardly counts."""

    alpha: float = 0.25
    """Weight of the class of the object; that of all others is 1 - alpha."""
    gamma: float = 2.0
    """How little it counts: the loss is multiplied by (1 - probability of the right answer) ** gamma."""

    def cost(self, logits: Float[Tensor, "L B Q K"]) -> Float[Tensor, "L B Q _"]:
        """Return the loss of finding each class, less that of not finding it (Deformable DETR)."""
        return self.found(logits) - self.missed(logits)

    def loss(
        self,
        logits: Float[Tensor, "L A K"],
        answers: Int[Tensor, "L M"],
        labels: Int[Tensor, "L M"],
        positives: Float[Tensor, ""],
        negatives: Float[Tensor, ""],  # noqa: ARG002 - they hardly count
        iou: Float[Tensor, "L M"],
    ) -> Float[Tensor, " L"]:
        """Return each layer's loss: the sum over all queries and classes, divided by the matched queries."""
        rows = logits.gather(1, answers[..., None].expand(-1, -1, logits.shape[2]))  # [L, M, K]
        right = rows.gather(2, labels[..., None])[..., 0]  # [L, M]
        matched = (self.matched(right, iou) - self.missed(right)).sum(1)
        return (self.missed(logits).sum((1, 2)) + matched) / positives.clamp(min=1)

    def matched(
        self,
        logits: Float[Tensor, "*shape"],
        iou: Float[Tensor, "*shape"],  # noqa: ARG002 - however well the box fits
    ) -> Float[Tensor, "*shape"]:
        """Return the loss of matched queries for the class of their object."""
        return self.found(logits)

    def found(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss where the class is there."""
        return self.alpha * (-logits).sigmoid() ** self.gamma * F.softplus(-logits)

    def missed(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss where it is not."""
        return (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)


class Varifocal(Focal):
    """Focal loss that asks a matched query how well its box fits: the IoU, and not 1 (Zhang et al. 2021, equation 2).

    Of several queries at one object, the one with the best box is then to have the best score, and what fits badly is
    not to be sure. A match weighs as much as its IoU; what is not matched weighs as in focal loss.
    """

    def matched(
        self, logits: Float[Tensor, "*shape"], iou: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return the cross-entropy with the IoU, times the IoU."""
        return iou * F.binary_cross_entropy_with_logits(logits, iou, reduction="none")


Classification = Softmax | Focal
