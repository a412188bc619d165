"""Hungarian matching of queries to objects (DETR, section 3.1, equation 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from querybox.arguments import ROUNDING, require_number
from querybox.boxes import giou, to_xyxy
from querybox.errors import NonFiniteError
from querybox.losses.classification import MAX_WEIGHT, ClassificationLoss, checked_classification
from querybox.losses.masks import mask_costs
from querybox.mask_embeddings import Masks
from querybox.structures import Matches, Target, at_least_float32
from querybox.targets import check_labels


class HungarianMatcher(nn.Module):
    """Find the one-to-one assignment of objects to queries with the lowest cost, for each image and decoder layer.

    The cost of a pair is ``class_cost`` x (cost of the object's class, by default its negative probability) +
    ``box_cost`` x (L1 distance of normalised cxcywh boxes) + ``giou_cost`` x (-GIoU). If masks are predicted,
    ``mask_cost`` x (their binary cross-entropy) + ``dice_cost`` x (their dice loss), at random points, can be added
    (Mask2Former, Cheng et al. 2022).
    """

    def __init__(
        self,
        class_cost: float = 1.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        *,
        mask_cost: float = 0.0,
        dice_cost: float = 0.0,
        classification: ClassificationLoss | None = None,
    ) -> None:
        """Create the matcher.

        Args:
            class_cost: Weight of the class cost.
            box_cost: Weight of the L1 distance.
            giou_cost: Weight of the negative GIoU.
            mask_cost: Weight of the binary cross-entropy of masks.
            dice_cost: Weight of the dice loss of masks.
            classification: Defines the class cost; by default cross-entropy with a no-object class.

        Raises:
            ConfigError: An argument has another type or range.
        """
        super().__init__()
        weights = {
            "class_cost": class_cost,
            "box_cost": box_cost,
            "giou_cost": giou_cost,
            "mask_cost": mask_cost,
            "dice_cost": dice_cost,
        }
        for name, weight in weights.items():
            require_number("HungarianMatcher", name, weight, 0, MAX_WEIGHT)
        self.classification = checked_classification("HungarianMatcher", classification)
        self.class_cost = class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost

    def cost(
        self,
        logits: Float[Tensor, "L B Q K"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Sequence[Target],
        masks: Sequence[Masks | None] = (),
    ) -> Float[Tensor, "L B G Q"]:
        """Return the matching cost of every object with every query of its image.

        G is the largest number of objects in an image; the rows of images with fewer are padded with undefined values.
        """
        terms = self.terms(logits, boxes, targets, masks)
        total = terms.pop("box") + terms.pop("class") + terms.pop("giou")
        return sum(terms.values(), total)

    @torch.no_grad()
    def terms(
        self,
        logits: Float[Tensor, "L B Q K"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Sequence[Target],
        masks: Sequence[Masks | None] = (),
    ) -> dict[str, Float[Tensor, "L B G Q"]]:
        """Return the weighted terms of the cost: ``class``, ``box`` and ``giou``; with masks ``mask`` and ``dice``.

        Those of an object with an impossible label or box are NaN, so that `forward` finds it without another transfer.
        """
        labels = pad_sequence([target.labels for target in targets], batch_first=True)  # [B, G]
        boxes = at_least_float32(boxes)  # [L, B, Q, 4]
        target_boxes = pad_sequence([target.boxes for target in targets], batch_first=True)  # [B, G, 4]
        num_classes = logits.shape[3] - self.classification.no_object
        known = (labels >= 0) & (labels < num_classes)  # [B, G]
        inside = (target_boxes >= -ROUNDING) & (target_boxes <= 1 + ROUNDING)  # [B, G, 4]
        target_boxes = target_boxes.to(boxes.dtype).where(inside & known[..., None], math.nan)
        class_cost = self.classification.cost(at_least_float32(logits)).transpose(2, 3)  # [L, B, K, Q]
        index = labels.clamp(0, num_classes - 1)[None, :, :, None].expand(
            len(logits), -1, -1, logits.shape[2]
        )
        class_cost = class_cost.gather(2, index)  # [L, B, G, Q]
        l1 = torch.cdist(target_boxes, boxes, p=1)  # [L, B, G, Q]
        pairwise_giou = giou(to_xyxy(target_boxes)[:, :, None], to_xyxy(boxes)[:, :, None])  # [L, B, G, Q]
        terms = {
            "class": self.class_cost * class_cost,
            "box": self.box_cost * l1,
            "giou": -self.giou_cost * pairwise_giou,
        }
        if (self.mask_cost or self.dice_cost) and any(each is not None for each in masks):
            cross_entropy, dice = mask_costs(masks, targets, boxes)
            terms |= {"mask": self.mask_cost * cross_entropy, "dice": self.dice_cost * dice}
        return terms

    def forward(
        self,
        logits: Float[Tensor, "L B Q K"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Sequence[Target],
        masks: Sequence[Masks | None] = (),
    ) -> Matches:
        """Match all layers at once, with one transfer to the host and one back.

        Args:
            logits: Class logits.
            boxes: cxcywh in 0-1 of the unpadded images.
            targets: The objects of each image.
            masks: The masks of every layer, if the detector has a mask head.

        Raises:
            NonFiniteError: A cost is NaN or infinite.
            ConfigError: A target has an impossible label or, on an accelerator, an impossible box; on a CPU
                `Target` checks boxes.
        """
        cost = self.cost(logits, boxes, targets, masks).cpu().numpy()  # [L, B, G, Q]
        if not np.isfinite(cost).all():
            on_host = [target.to("cpu") for target in targets]  # which checks boxes
            check_labels("the matcher", on_host, logits.shape[3] - self.classification.no_object)
            raise NonFiniteError("matching cost is NaN or infinite, because predictions or targets are")
        cost = cost.astype(np.float64)  # the precision of the solver: converted once, not for every problem
        counts = [len(target.labels) for target in targets]
        pairs = [
            scipy.optimize.linear_sum_assignment(part[:count])  # imported for the first, not for predictions
            for layer in cost
            for part, count in zip(layer, counts, strict=True)
        ]
        size = (len(cost), -1)
        objects = np.concatenate([objects for objects, _ in pairs]).reshape(size)  # [L, M]
        queries = np.concatenate([queries for _, queries in pairs]).reshape(size)  # [L, M]
        # The pairs of each image are as many in every layer.
        matched = [len(objects) for objects, _ in pairs[: len(counts)]]
        images = np.repeat(np.arange(len(counts)), matched)  # [M]
        objects += np.cumsum([0, *counts])[images]  # from index in the image to index in the batch
        packed = torch.from_numpy(np.concatenate([images[None], queries, objects]))
        image, query, object_ = packed.to(logits.device, non_blocking=True).split([1, len(cost), len(cost)])
        return Matches(image=image[0], query=query, object=object_)
