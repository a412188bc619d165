"""DETR, the DEtection TRansformer: the forward pass on one screen (Carion et al. 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from querybox.structures import Category, DetectorOutput, ImageBatch, Memory, Preprocessing, Target

if TYPE_CHECKING:
    from querybox.models import Recipe


class DetectionTransformer(nn.Module):
    """Images in, a class and a box for every object query out. `querybox.Detector` is this model with its tools.

    Attributes:
        categories: The classes by label, 0 ... C-1.
        preprocessing: How an image becomes the model's input.
        recipe: The settings it was built from, or None for one composed by hand (which cannot be saved).
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

    def forward(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Detect objects in a batch; one set of predictions for every decoder layer.

        Args:
            batch: The images.
            targets: Their objects, in training; only denoising, where the detector has it, looks at them.
        """
        features = self.backbone(batch.images)  # maps [B, channels, h, w]
        features = self.neck(features)  # maps [B, D, h, w]
        memory = self.encode(features, batch)  # tokens [B, S, D]
        queries = self.queries(memory)  # [B, Q, D]
        if self.denoising is not None and targets is not None:
            queries = self.denoising(queries, targets)
        return DetectorOutput.of(self.decoder(queries, memory), queries, self.class_rows)

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Memory:
        """Run the encoder; a step of its own, so that what depends on the size of the images alone can be kept."""
        memory: Memory = self.encoder(features, batch.padding_mask)
        return memory

    @property
    def class_rows(self) -> tuple[int, ...]:
        """The row of the class head that belongs to each class, by label."""
        unused = self.recipe.unused_rows if self.recipe else ()
        rows = range(len(self.categories) + len(unused))
        return tuple(row for row in rows if row not in unused)

    @property
    def proposes_queries(self) -> bool:
        """Whether the queries are the encoder's best proposals, made anew for every image."""
        return hasattr(self.queries, "proposals")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
