"""Classification losses and matching costs: cross-entropy with a no-object class (DETR), focal loss (its relatives)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from querybox.arguments import require_number, require_type

MAX_WEIGHT = 1e6
"""Largest weight of a loss or a cost, far beyond any sensible one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropyLoss:
    """Softmax cross-entropy over the classes and a last no-object class (DETR, section 3.1, equation 2)."""

    no_object: ClassVar[bool] = True
    """It is for logits with a no-object class, whose scores are a softmax."""

    no_object_weight: float = 0.1
    """Weight of the no-object class (DETR's `eos_coef`)."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the weight is not a number, or is negative."""
        require_number("CrossEntropyLoss", "no_object_weight", self.no_object_weight, 0, MAX_WEIGHT)

    def cost(self, logits: Float[Tensor, "L B Q K"]) -> Float[Tensor, "L B Q _"]:
        """Return the cost of matching a query to an object of each class: the negative probability of the class."""
        return -logits.softmax(-1)

    def loss(
        self,
        logits: Float[Tensor, "L A K"],
        matched_queries: Int[Tensor, "L M"],
        labels: Int[Tensor, "L M"],
        num_matched: Float[Tensor, ""],
        num_unmatched: Float[Tensor, ""],
        iou: Float[Tensor, "L M"],  # noqa: ARG002 - used by varifocal loss alone
    ) -> Float[Tensor, " L"]:
        """Return the weighted mean of the cross-entropy over all queries, for each layer.

        Args:
            logits: Logits of A = B Q queries.
            matched_queries: Indices of the matched queries, 0 ... A-1.
            labels: Classes of the objects they are matched to.
            num_matched: Number of matched queries, averaged over processes.
            num_unmatched: Number of unmatched queries, averaged over processes.
            iou: IoU of the matched boxes with their objects, without gradient.
        """
        num_layers, _, num_classes = logits.shape
        no_object = labels.new_full(logits.shape[:2], num_classes - 1)  # [L, A]
        target = no_object.scatter(1, matched_queries, labels)
        weight = logits.new_ones(num_classes)
        weight[-1:] = self.no_object_weight  # a slice: for a single element the host would wait for a GPU
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, reduction="none")
        total_weight = num_matched + self.no_object_weight * num_unmatched
        return loss.view(num_layers, -1).sum(1) / total_weight.clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalLoss:
    """Sigmoid focal loss (Lin et al. 2017, equation 5): well-classified examples are down-weighted."""

    no_object: ClassVar[bool] = False
    """It is for logits without a no-object class, whose scores are sigmoids."""

    alpha: float = 0.25
    """Weight of positive examples; that of negative ones is 1 - alpha."""
    gamma: float = 2.0
    """Focusing parameter: the loss is multiplied by (1 - probability of the true label) ** gamma."""

    def __post_init__(self) -> None:
        """Raise ConfigError if a parameter is out of its range."""
        require_number("FocalLoss", "alpha", self.alpha, 0, 1)
        require_number("FocalLoss", "gamma", self.gamma, 0, 100)

    def cost(self, logits: Float[Tensor, "L B Q K"]) -> Float[Tensor, "L B Q _"]:
        """Return the cost of matching a query to an object of each class: positive loss - negative loss."""
        return self.positive_loss(logits) - self.negative_loss(logits)

    def loss(
        self,
        logits: Float[Tensor, "L A K"],
        matched_queries: Int[Tensor, "L M"],
        labels: Int[Tensor, "L M"],
        num_matched: Float[Tensor, ""],
        num_unmatched: Float[Tensor, ""],  # noqa: ARG002 - used by cross-entropy alone
        iou: Float[Tensor, "L M"],
    ) -> Float[Tensor, " L"]:
        """Return the sum of the loss over queries and classes, divided by the number of matched queries, per layer.

        See `CrossEntropyLoss.loss` for the arguments.
        """
        rows = logits.gather(1, matched_queries[..., None].expand(-1, -1, logits.shape[2]))  # [L, M, K]
        true_class = rows.gather(2, labels[..., None])[..., 0]  # [L, M]
        # Every logit is counted as a negative example first; then the terms of the matched classes are replaced.
        correction = (self.matched_loss(true_class, iou) - self.negative_loss(true_class)).sum(1)
        return (self.negative_loss(logits).sum((1, 2)) + correction) / num_matched.clamp(min=1)

    def matched_loss(
        self,
        logits: Float[Tensor, "*shape"],
        iou: Float[Tensor, "*shape"],  # noqa: ARG002 - used by varifocal loss
    ) -> Float[Tensor, "*shape"]:
        """Return the loss of matched queries for the class of their object."""
        return self.positive_loss(logits)

    def positive_loss(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss of positive examples."""
        return self.alpha * (-logits).sigmoid() ** self.gamma * F.softplus(-logits)

    def negative_loss(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss of negative examples."""
        return (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)


class VarifocalLoss(FocalLoss):
    """Focal loss whose target for a matched query is the IoU of its box, not 1 (Zhang et al. 2021, equation 2).

    Of several queries at one object, the one with the best box learns the highest score. Positive examples are weighted
    by their IoU, negative ones as in focal loss.
    """

    def matched_loss(
        self, logits: Float[Tensor, "*shape"], iou: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return the cross-entropy with the IoU as target, weighted by the IoU."""
        return iou * F.binary_cross_entropy_with_logits(logits, iou, reduction="none")


class DetachedVarifocalLoss(VarifocalLoss):
    """Varifocal loss as in RT-DETR: the weight of negative examples is a constant, without a gradient."""

    def negative_loss(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss of negative examples."""
        return (1 - self.alpha) * logits.detach().sigmoid() ** self.gamma * F.softplus(logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchabilityLoss(FocalLoss):
    """Matchability-aware loss (MAL; Huang et al. 2024, DEIM), a varifocal loss for matches of any quality.

    The target of a matched query is a power of the IoU, and its weight is 1, so that matches with a low IoU are learned
    from as well. The weight of a negative example is a power of its probability, without a gradient.
    """

    gamma: float = 1.5
    """Exponent of the IoU in the target, and of the probability in the weight of negative examples."""

    def matched_loss(
        self, logits: Float[Tensor, "*shape"], iou: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return the cross-entropy with a power of the IoU as target."""
        return F.binary_cross_entropy_with_logits(logits, iou**self.gamma, reduction="none")

    def negative_loss(self, logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the loss of negative examples."""
        return logits.detach().sigmoid() ** self.gamma * F.softplus(logits)


ClassificationLoss = CrossEntropyLoss | FocalLoss


def checked_classification(where: str, value: ClassificationLoss | None) -> ClassificationLoss:
    """Return `value`, or cross-entropy if it is None.

    Raises:
        ConfigError: It is something else.
    """
    if value is not None:
        require_type(where, value, (CrossEntropyLoss, FocalLoss), "a CrossEntropyLoss or a FocalLoss")
    return value or CrossEntropyLoss()
