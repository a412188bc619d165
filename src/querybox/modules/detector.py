"""The detection transformer (DETR, Carion et al. 2020, section 3.2): the forward pass through all stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from querybox.arguments import is_number, kind_of, require_type
from querybox.errors import ConfigError
from querybox.memory import first_line
from querybox.modules.attention_masks import AttentionMaskHead
from querybox.modules.masks import MaskHead
from querybox.settings import Settings
from querybox.structures import (
    MAX_CLASSES,
    Category,
    DetectorOutput,
    ImageBatch,
    Memory,
    Predictions,
    Preprocessing,
    Target,
)
from querybox.targets import check_masks, check_targets, on_class_rows

if TYPE_CHECKING:
    from querybox.models import Recipe

MIXED_DTYPES = re.compile(r"dtype|scalar type|bias type")
"""Part of PyTorch's messages about operands of different types."""


class DetectionTransformer(nn.Module):
    """Predicts a class, a box and possibly a mask for every query; `querybox.Detector` adds loading and prediction.

    Attributes:
        categories: The classes by label, 0 ... C-1. They can be set, also to names such as ``["cat", "dog"]``.
        preprocessing: Resizing and normalisation of images. It can be set.
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
        mask_head: MaskHead | AttentionMaskHead | None = None,
        categories: Sequence[Category | str],
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
        self.mask_head = mask_head
        self.categories = categories
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
            ConfigError: `batch` is not an `ImageBatch` for this detector; there is not a valid `Target` for each image,
                with masks of its size; the class head does not fit the categories; or the parameters are in half
                precision.
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
            if batch.sizes.device.type == "cpu":
                check_masks("the detector", targets, batch.sizes)
        maps = self.backbone(self.checked_images(batch.images))  # [B, channels, h, w]
        # The first ones are for masks alone.
        for_masks = 0 if self.mask_head is None else len(self.mask_head.strides)
        features = self.neck(maps[for_masks:])  # maps [B, D, h, w]
        memory = self.encode(features, batch)  # tokens [B, S, D]
        queries = self.queries(memory)  # [B, Q, D]
        if self.denoising is not None and targets is not None:
            queries = self.denoising(queries, on_class_rows(targets, self.class_rows), object_counts)
        layers = self.decoder(queries, memory)
        self.check_rows(layers[-1])
        if self.mask_head is not None:
            layers = self.mask_head(layers, maps[:for_masks], features, memory)
        return DetectorOutput.of(layers, queries, self.class_rows)

    def __call__(self, *args: Any, **kwargs: Any) -> DetectorOutput:
        """Run the forward pass.

        Raises:
            ConfigError: See `forward`; or some parameters are in another precision than the others.
        """
        try:
            output: DetectorOutput = super().__call__(*args, **kwargs)
        except RuntimeError as error:
            dtypes = {str(each.dtype) for each in self.parameters() if each.is_floating_point()}
            if len(dtypes) > 1 and MIXED_DTYPES.search(str(error)):
                raise ConfigError(
                    f"the detector has parameters of {' and '.join(sorted(dtypes))}, which cannot be combined "
                    f"({first_line(error)}); expected torch.float32: use detector.float() with torch.autocast, or "
                    "detector.optimize(precision=...)"
                ) from error
            raise
        return output

    def checked_images(self, images: Tensor) -> Tensor:
        """Return the images, in float64 if the parameters are.

        Raises:
            ConfigError: Images are not on the device of the detector, or its parameters are in half precision.
        """
        if images.device != self.device:
            raise ConfigError(
                f"the detector is on {self.device} and the images are on {images.device}; expected the same device: "
                "ImageBatch.from_images(images, device=detector.device)"
            )
        if self.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"the detector has parameters of {self.dtype}, which is too coarse for its positions; expected "
                "torch.float32: use detector.float() with torch.autocast, or detector.optimize(precision=...)"
            )
        return images.double() if self.dtype == torch.float64 else images

    def check_rows(self, predictions: Predictions) -> None:
        """Raise ConfigError unless the class head has a row for each class, as it may have been replaced."""
        rows, expected = predictions.num_classes, len(self.categories) + len(self.unused_rows)
        if rows != expected:
            raise ConfigError(
                f"the class head has {rows} rows for classes, but there are {len(self.categories)} categories and "
                f"{len(self.unused_rows)} unused rows; set detector.categories to the classes of the head"
            )

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
    def categories(self) -> tuple[Category, ...]:
        """The classes by label, 0 ... C-1."""
        return self._categories

    @categories.setter
    def categories(self, classes: Sequence[Category | str]) -> None:
        self._categories = as_categories("the detector", classes)

    @property
    def preprocessing(self) -> Preprocessing:
        """Resizing and normalisation of images."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        require_type("the detector", value, Preprocessing, "a Preprocessing as preprocessing")
        self._preprocessing = value

    @property
    def recipe(self) -> Recipe | None:
        """The settings it was built from; None if it was composed by hand."""
        return self._recipe

    @recipe.setter
    def recipe(self, value: Recipe | None) -> None:
        require_type(
            "the detector", value, (Settings, NoneType), "the Recipe that it was built from, or None"
        )
        self._recipe = value

    @property
    def unused_rows(self) -> tuple[int, ...]:
        """The rows of the class head that belong to no class."""
        return self.recipe.unused_rows if self.recipe else ()

    @property
    def class_rows(self) -> tuple[int, ...]:
        """The row of the class head of each class, by label."""
        rows = range(len(self.categories) + len(self.unused_rows))
        return tuple(row for row in rows if row not in self.unused_rows)

    @property
    def proposes_queries(self) -> bool:
        """Whether the queries are selected from proposals of the encoder."""
        return hasattr(self.queries, "proposals")

    @property
    def exchanges_queries(self) -> bool:
        """Whether the decoder is permutation-equivariant: reordered queries give the same predictions, reordered."""
        return bool(getattr(self.queries, "exchangeable", False))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters of the queries; other parts of an optimised copy may be in half precision."""
        return next(chain(self.queries.parameters(), self.parameters())).dtype


def as_categories(where: str, classes: Sequence[Category | str]) -> tuple[Category, ...]:
    """Return classes that are given as categories, or by their names; the id of a name is its label.

    Args:
        where: The function that got them, for messages.
        classes: The classes by label.

    Raises:
        ConfigError: There is none, or one is of another type.
    """
    expected = 'a sequence of Category, or of names such as ["cat", "dog"]'
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ConfigError(f"{where} got {kind_of(classes)} as categories; expected {expected}")
    if not classes:
        raise ConfigError(f"{where} got no categories; expected at least one class")
    if len(classes) > MAX_CLASSES:
        raise ConfigError(f"{where} got {len(classes):,} categories; expected at most {MAX_CLASSES:,}")
    for each in classes:
        require_type(where, each, (Category, str), f"{expected} as categories")
        if isinstance(each, str) and not each.strip():  # datasets with a class without a name have a finding
            raise ConfigError(f"{where} got {each!r} as the name of a class; expected one that is not empty")
    categories = tuple(
        Category(id=label, name=each) if isinstance(each, str) else each for label, each in enumerate(classes)
    )
    for category in categories:
        is_id = isinstance(category.id, int) and is_number(category.id)
        if not (is_id and isinstance(category.name, str)):
            raise ConfigError(f"{where} got {category}; expected an integer as id and a str as name")
    return categories
