"""Hungarian matching: which query answers for which object (DETR, section 3.1, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from querybox.boxes import giou, to_xyxy
from querybox.errors import NonFiniteError
from querybox.structures import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Matched pairs of all decoder layers. Every layer has M: min(Q, G) summed over the images."""

    image: Int[Tensor, " M"]
    """Which image the pair is in; the same in every layer."""
    query: Int[Tensor, "L M"]
    """The query that answers."""
    object: Int[Tensor, "L M"]
    """The object it answers for, an index into the objects of all images in a row."""


class HungarianMatcher(nn.Module):
    """Finds, for each image and decoder layer, the one-to-one assignment of objects to queries that costs least.

    The cost of a pair is ``class_cost`` x (-probability of the object's class) + ``box_cost`` x (L1 distance of
    normalised cxcywh boxes) + ``giou_cost`` x (-GIoU).
    """

    def __init__(self, class_cost: float = 1.0, box_cost: float = 5.0, giou_cost: float = 2.0) -> None:
        super().__init__()
        self.class_cost = class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost

    @torch.no_grad()
    def cost(
        self,
        logits: Float[Tensor, "L B Q K"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Sequence[Target],
    ) -> Float[Tensor, "L N Q"]:
        """Return the cost of every object (N in all images) with every query of its own image."""
        labels = torch.cat([target.labels for target in targets])  # [N]
        wanted = torch.cat([target.boxes for target in targets])[:, None]  # [N, 1, 4]
        image = torch.tensor(image_of_object(targets), dtype=torch.int64, device=logits.device)  # [N]
        probability = logits.float().softmax(-1)[:, image]  # [L, N, Q, K]
        of_class = labels[None, :, None, None].expand(*probability.shape[:3], 1)
        probability = probability.gather(-1, of_class)[..., 0]  # [L, N, Q]
        found = boxes.float()[:, image]  # [L, N, Q, 4]
        distance = (found - wanted).abs().sum(-1)  # [L, N, Q]
        overlap = giou(to_xyxy(found), to_xyxy(wanted))  # [L, N, Q]
        return self.box_cost * distance - self.class_cost * probability - self.giou_cost * overlap

    @torch.no_grad()
    def forward(
        self,
        logits: Float[Tensor, "L B Q K"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Sequence[Target],
    ) -> Matches:
        """Match exactly, all layers at once, with one transfer to the host and one back.

        Raises:
            NonFiniteError: A cost is NaN or infinite.
        """
        cost = self.cost(logits, boxes, targets).cpu().numpy()  # [L, N, Q]
        if not np.isfinite(cost).all():
            raise NonFiniteError("matching cost is NaN or infinite: the predictions or the targets are")
        ends = np.cumsum([len(target.labels) for target in targets])
        pairs = [[assign(part) for part in np.split(layer, ends[:-1])] for layer in cost]
        starts = [0, *ends[:-1].tolist()]
        objects = [
            np.concatenate([o + s for (o, _), s in zip(layer, starts, strict=True)]) for layer in pairs
        ]
        queries = [np.concatenate([q for _, q in layer]) for layer in pairs]
        images = np.repeat(np.arange(len(targets)), [len(o) for o, _ in pairs[0]])
        packed = torch.from_numpy(np.stack([images, *queries, *objects])).to(logits.device, non_blocking=True)
        layers = len(cost)
        return Matches(image=packed[0], query=packed[1 : layers + 1], object=packed[layers + 1 :])


def assign(cost: Float[np.ndarray, "G Q"]) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Return the objects and the queries of the cheapest assignment; K = min(G, Q)."""
    objects, queries = linear_sum_assignment(cost)
    return objects, queries


def image_of_object(targets: Sequence[Target]) -> list[int]:
    """Return, for the objects of all images in a row, the image each is in."""
    return [image for image, target in enumerate(targets) for _ in range(len(target.labels))]
