"""Contrastive denoising: queries that begin near an object and learn to find it, or near it and learn to refuse."""

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
    """Puts denoising queries before the others, in training (DINO, Zhang et al. 2022, section 3.3).

    They come in groups. Every group has two queries for each object: one whose box is up to half its size off and has
    to find the object, and one that is off by more and has to answer "nothing here".
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        count: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        """Set the amount of noise.

        Args:
            width: Features of a query, D.
            num_classes: Classes, C.
            count: About how many queries there shall be of each kind, in all groups together.
            label_noise: Half this share of the queries is told a random class.
            box_noise: How far corners move, in halves of the box's size.
        """
        super().__init__()
        self.label = nn.Embedding(num_classes, width)
        self.count = count
        self.label_noise = label_noise
        self.box_noise = box_noise

    def forward(self, queries: Queries, targets: Sequence[Target]) -> Queries:
        """Return the queries with denoising queries before them: without objects, none.

        Even then they are spoken of, so that several processes have the same losses to share, each with its images.
        """
        counts = [len(target.labels) for target in targets]
        most = max(counts)
        groups = max(1, self.count // max(1, most))
        device = queries.content.device
        labels = torch.cat([target.labels for target in targets])  # [N]
        boxes = torch.cat([target.boxes for target in targets])  # [N, 4]
        places = [(image, rank) for image, count in enumerate(counts) for rank in range(count)]
        # non_blocking: a GPU is not waited for.
        placed = torch.tensor(places, dtype=torch.long).to(device, non_blocking=True)
        image, rank = placed.view(-1, 2).unbind(1)  # [N]
        slot = most * torch.arange(2 * groups, device=device)[:, None] + rank  # [2 groups, N]

        total = 2 * groups * most
        content = queries.content.new_zeros(len(targets), total, queries.content.shape[2])
        reference = queries.content.new_full((len(targets), total, 4), 0.5)  # of slots that no object fills
        content[image, slot] = self.label(self.noisy_labels(labels.expand(2 * groups, -1))).to(content.dtype)
        reference[image, slot] = self.noisy_boxes(boxes.expand(2 * groups, -1, -1)).to(reference.dtype)
        assert queries.reference is not None
        return replace(
            queries,
            content=torch.cat([content, queries.content], 1),
            position=torch.cat([torch.zeros_like(content), queries.position], 1),
            reference=torch.cat([reference, queries.reference], 1),
            denoising_mask=denoising_mask(groups, 2 * most, queries.content.shape[1], device),
            num_denoising=total,
            denoising=Matches(
                image=image.repeat(groups),
                query=slot[::2].reshape(1, -1),
                object=torch.arange(len(labels), device=device).repeat(groups)[None],
            ),
        )

    def noisy_labels(self, labels: Tensor) -> Tensor:
        """Replace some labels by random ones."""
        chosen = torch.rand(labels.shape, device=labels.device) < self.label_noise / 2
        return torch.where(chosen, torch.randint_like(labels, self.label.num_embeddings), labels)

    def noisy_boxes(self, boxes: Tensor) -> Tensor:
        """Move the corners of `boxes` ([2 groups, N, 4]): by 0 to 1 half sizes in even rows, by 1 to 2 in odd ones."""
        amount = torch.rand(boxes.shape, device=boxes.device)
        amount[1::2] += 1
        sign = 2 * torch.randint_like(amount, 2) - 1
        half = boxes[..., 2:].repeat(1, 1, 2) / 2
        return to_cxcywh((to_xyxy(boxes) + self.box_noise * sign * amount * half).clamp(0, 1))


def denoising_mask(groups: int, size: int, queries: int, device: torch.device) -> Bool[Tensor, "N Q"]:
    """Return True where a denoising query may not see a query: one of another of the `groups`, of `size` each.

    They may see the `queries` that follow, which are matched; those never see them.
    """
    group = torch.arange(groups, device=device).repeat_interleave(size)  # [N]
    return F.pad(group[:, None] != group, (0, queries))
