"""Contrastive denoising: queries made from noisy ground truth, which learn to reconstruct or to reject it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from querybox.boxes import to_cxcywh, to_xyxy
from querybox.structures import Matches, Queries, Target


class Denoising(nn.Module):
    """Prepends denoising queries in training (DINO, Zhang et al. 2022, section 3.3).

    They are organised in groups. Each group has two queries per object: a positive one with little box noise, which
    has to reconstruct the object, and a negative one with more, which has to predict that there is no object.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        count: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        padding: float = 0.5,
    ) -> None:
        """Set the number of queries and the amount of noise.

        Args:
            width: Features of a query, D.
            num_classes: Classes, C.
            count: Approximate number of positive queries, and of negative ones, in all groups.
            label_noise: Twice the fraction of queries that get a random class.
            box_noise: Scale of the noise of box corners, in units of half the box size.
            padding: Coordinates of the boxes of padding queries, which fill the groups of images with fewer objects
                than others; the other queries of their group attend to them.
        """
        super().__init__()
        self.label = nn.Embedding(num_classes, width)
        self.count = count
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.padding = padding

    def forward(
        self, queries: Queries, targets: Sequence[Target], object_counts: Sequence[int] | None = None
    ) -> Queries:
        """Return the queries preceded by denoising queries, of which there are none if there are no objects.

        `Queries.denoising` is set in any case, so that all processes have the same losses, whatever their images.

        Args:
            queries: The queries that are matched.
            targets: The objects of each image.
            object_counts: Number of objects of each image of the update, if this batch is only a part of it: all parts
                have the groups of the whole.
        """
        counts = [len(target.labels) for target in targets]
        max_objects = max(object_counts or counts)
        groups = max(1, self.count // max(1, max_objects))
        device = queries.content.device
        labels = torch.cat([target.labels for target in targets])  # [N]
        boxes = torch.cat([target.boxes for target in targets])  # [N, 4]
        pairs = [(image, rank) for image, count in enumerate(counts) for rank in range(count)]
        # non_blocking, so that the host does not wait for a GPU.
        indices = torch.tensor(pairs, dtype=torch.long, device="cpu").to(device, non_blocking=True)
        image, rank = indices.view(-1, 2).unbind(1)  # [N]
        slot = max_objects * torch.arange(2 * groups, device=device)[:, None] + rank  # [2 groups, N]

        total = 2 * groups * max_objects
        content = queries.content.new_zeros(len(targets), total, queries.content.shape[2])
        reference = queries.content.new_full((len(targets), total, 4), self.padding)
        content[image, slot] = self.label(self.noisy_labels(labels.expand(2 * groups, -1))).to(content.dtype)
        reference[image, slot] = self.noisy_boxes(boxes.expand(2 * groups, -1, -1)).to(reference.dtype)
        assert queries.reference is not None
        return replace(
            queries,
            content=torch.cat([content, queries.content], 1),
            position=torch.cat([torch.zeros_like(content), queries.position], 1),
            reference=torch.cat([reference, queries.reference], 1),
            denoising_mask=denoising_mask(groups, 2 * max_objects, queries.content.shape[1], device),
            num_denoising=total,
            denoising=Matches(
                image=image.repeat(groups),
                query=slot[::2].reshape(1, -1),
                object=torch.arange(len(labels), device=device).repeat(groups)[None],
                repeats=groups,
            ),
        )

    def noisy_labels(self, labels: Tensor) -> Tensor:
        """Replace a fraction `label_noise` / 2 of the labels by random ones."""
        # An impossible label must not be an index on an accelerator; the matcher raises an error for it.
        labels = labels.clamp(0, self.label.num_embeddings - 1)
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise / 2
        return torch.where(replaced, torch.randint_like(labels, self.label.num_embeddings), labels)

    def noisy_boxes(self, boxes: Tensor) -> Tensor:
        """Shift box corners [2 groups, N, 4]: by 0-1 half sizes in even (positive) rows, by 1-2 in odd ones."""
        amount = torch.rand(boxes.shape, device=boxes.device, dtype=boxes.dtype)
        amount[1::2] += 1
        sign = 2 * torch.randint_like(amount, 2) - 1
        half = boxes[..., 2:].repeat(1, 1, 2) / 2
        return to_cxcywh((to_xyxy(boxes) + self.box_noise * sign * amount * half).clamp(0, 1))


def denoising_mask(groups: int, size: int, queries: int, device: torch.device) -> Bool[Tensor, "N Q"]:
    """Return the self-attention mask of denoising queries in `groups` of `size` each: True = may not attend.

    A denoising query may attend to its own group and to the `queries` that follow, which are matched.
    """
    group = torch.arange(groups, device=device).repeat_interleave(size)  # [N]
    return F.pad(group[:, None] != group, (0, queries))
