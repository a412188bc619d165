"""The detection transformer (DETR, Carion et al. 2020, section 3.2): the forward pass through all stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from querybox.arguments import require_type
from querybox.structures import (
    Category,
    DetectorOutput,
    ImageBatch,
    Memory,
    Preprocessing,
    Target,
)
from querybox.targets import check_targets, on_class_rows

if TYPE_CHECKING:
    from querybox.models import Recipe


class DetectionTransformer(nn.Module):
    """Predicts a class and a box for every object query. `querybox.Detector` adds loading, prediction and export.

    Attributes:
        categories: The classes by label, 0 ... C-1.
        preprocessing: Resizing and normalisation of images.
        recipe: The settings it was built from; None if it was composed by hand, in which case it cannot be saved.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module,
        *,
        denoising: nn.Module | None = None,
        categories: Sequence[Category],
        preprocessing: Preprocessing,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.denoising = denoising
        self.categories = tuple(categories)
        self.preprocessing = preprocessing
        self.recipe = recipe

    def forward(
        self,
        batch: ImageBatch,
        targets: Sequence[Target] | None = None,
        object_counts: Sequence[int] | None = None,
    ) -> DetectorOutput:
        """Return the predictions of every decoder layer.

        Args:
            batch: The images.
            targets: The ground-truth objects, in training; used only for denoising queries, if the model has them.
            object_counts: Number of objects of each image of the update, if `batch` is only a part of it (gradient
                accumulation).

        Raises:
            ConfigError: `batch` is not an `ImageBatch`, or there is not a valid `Target` for each image.
        """
        require_type("the detector", batch, ImageBatch, "an ImageBatch: ImageBatch.from_images(images)")
        if targets is not None:
            check_targets(
                "the detector",
                targets,
                images=len(batch.images),
                classes=len(self.categories),
                device=batch.images.device,
            )
        features = self.backbone(batch.images)  # maps [B, channels, h, w]
        features = self.neck(features)  # maps [B, D, h, w]
        memory = self.encode(features, batch)  # tokens [B, S, D]
        queries = self.queries(memory)  # [B, Q, D]
        if self.denoising is not None and targets is not None:
            queries = self.denoising(queries, on_class_rows(targets, self.class_rows), object_counts)
        return DetectorOutput.of(self.decoder(queries, memory), queries, self.class_rows)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, except for batch norms whose parameters are frozen.

        These stay in evaluation mode, because in training mode they would update their statistics.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Memory:
        """Run the encoder; a separate method, so that values that depend only on the image size can be cached."""
        memory: Memory = self.encoder(features, batch.padding_mask)
        return memory

    @property
    def class_rows(self) -> tuple[int, ...]:
        """The row of the class head of each class, by label."""
        unused = self.recipe.unused_rows if self.recipe else ()
        rows = range(len(self.categories) + len(unused))
        return tuple(row for row in rows if row not in unused)

    @property
    def proposes_queries(self) -> bool:
        """Whether the queries are selected from proposals of the encoder."""
        return hasattr(self.queries, "proposals")

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device
